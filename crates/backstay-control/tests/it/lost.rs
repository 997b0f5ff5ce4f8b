//! Jobs whose workers died, and what is said of them.

use backstay_control::{Again, BackupSpec, Holder, JobSpec, JobState, LostJob, RestoreSpec};
use backstay_format::Trigger;

use crate::catalogs::Place;
use crate::queue::{begin, id, minutes, now, of};

#[tokio::test]
async fn lost_restore_is_told_with_what_puts_it_back_and_one_beside_never_is() {
    for place in Place::both() {
        let catalog = place.open().await.unwrap();
        let here = Holder::this_process("a");
        let dead = Holder { started: here.started + 1, ..here.clone() };
        let at = now(&catalog).await;
        for (to, told) in
            [(None, "`backstay undo shop`"), (Some("look".to_owned()), "nothing was replaced")]
        {
            let spec = JobSpec::Restore(RestoreSpec {
                backup: "20261122T120000Z-7k3f9q2x".parse().unwrap(),
                to,
                only: Vec::new(),
                in_place: false,
                accept_unsealed: false,
                safety_backup: true,
                replaces: None,
                worker: None,
            });
            let job = catalog.enqueue((id(), of("shop")), (&spec, None), at).await.unwrap();
            begin(&catalog, &dead, at).await;
            assert_eq!(catalog.end_lost_jobs(None, &here, at, id).await.unwrap().len(), 1);
            let error = catalog.job(&job).await.unwrap().unwrap().error.unwrap();
            assert!(error.contains(told), "{}: {error}", place.name());
            assert_eq!(error.contains("undo"), told.contains("undo"), "{error}");
        }
    }
}

#[tokio::test]
async fn lost_backup_that_somebody_asked_for_is_tried_again_as_it_was_asked_for() {
    for place in Place::both() {
        let catalog = place.open().await.unwrap();
        let here = Holder::this_process("a");
        let dead = Holder { started: here.started + 1, ..here.clone() };
        let mut at = now(&catalog).await;
        let spec =
            BackupSpec { trigger: Trigger::PreDeploy, note: Some("v2".to_owned()), hold: true };
        let spec = JobSpec::Backup(spec);
        let mut job = catalog.enqueue((id(), of("shop")), (&spec, Some("ann")), at).await.unwrap();
        for pause in [Some(1), Some(4), None] {
            begin(&catalog, &dead, at).await;
            let lost = catalog.end_lost_jobs(None, &here, at, id).await.unwrap();
            let next_try = pause.map(|pause| at + minutes(pause));
            assert_eq!(lost, [LostJob { id: job.clone(), source: "shop".to_owned(), next_try }]);
            let ended = catalog.job(&job).await.unwrap().unwrap();
            assert_eq!(
                (ended.state, ended.next_try.is_some()),
                (JobState::Failed, pause.is_some())
            );
            let Some(next) = ended.next_try else { break };
            let again = catalog.job(&next).await.unwrap().unwrap();
            assert_eq!(
                (again.state, again.spec, again.slot),
                (JobState::Queued, Some(spec.clone()), None)
            );
            assert_eq!(again.asked_by.as_deref(), Some("ann"), "{}", place.name());
            (job, at) = (next, next_try.unwrap());
        }
        // There is one next try, however often somebody comes to that conclusion; what fails of itself, and looks, have none.
        let job = catalog.enqueue((id(), of("shop")), (&spec, None), at).await.unwrap();
        begin(&catalog, &here, at).await;
        assert_eq!(catalog.try_again((id(), &job), Again::Outage, at).await.unwrap(), None);
        let gave_way = Again::GaveWay { retries: 2, after: minutes(1) };
        assert_eq!(catalog.try_again((id(), &job), gave_way, at).await.unwrap(), None);
        for _ in 0..2 {
            assert!(catalog.try_again((id(), &job), Again::LeaseLost, at).await.unwrap().is_some());
        }
        assert_eq!(catalog.waiting_jobs(at + minutes(1)).await.unwrap().len(), 1);
        let look = catalog.enqueue((id(), of("crm")), (&JobSpec::Test, None), at).await.unwrap();
        begin(&catalog, &dead, at).await;
        let lost = catalog.end_lost_jobs(None, &here, at, id).await.unwrap();
        assert_eq!(lost, [LostJob { id: look, source: "crm".to_owned(), next_try: None }]);
    }
}
