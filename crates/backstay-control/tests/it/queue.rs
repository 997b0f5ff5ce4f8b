//! The queue: each slot once, each job by one worker, and none lost with its worker (V39, T33).

use std::collections::HashSet;

use backstay_control::{
    Again, Catalog, DueSlot, Holder, JobSpec, JobState, OfSource, Progress, Since, WaitingJob,
    Whose,
};
use jiff::{SignedDuration, Timestamp};

use crate::catalogs::Place;

/// A source of the one organisation.
pub(crate) fn of(source: &str) -> OfSource<'_> {
    OfSource { organisation: "default", source }
}

pub(crate) fn id() -> String {
    use std::sync::atomic::{AtomicU64, Ordering};
    static NEXT: AtomicU64 = AtomicU64::new(1);
    format!("job-{}", NEXT.fetch_add(1, Ordering::Relaxed))
}

/// What time it is for the catalog; where that has a clock of its own, that is what counts.
pub(crate) async fn now(catalog: &Catalog) -> Timestamp {
    catalog.time("2026-11-22T12:00:00Z".parse().unwrap()).await.unwrap()
}

pub(crate) fn minutes(minutes: i64) -> SignedDuration {
    SignedDuration::from_mins(minutes)
}

fn due(slot: Timestamp) -> DueSlot {
    DueSlot { slot, is_late: false }
}

async fn states(catalog: &Catalog, source: &str) -> Vec<(JobState, u32)> {
    let mut jobs = catalog.jobs(Whose::Source(source), 100).await.unwrap();
    jobs.reverse();
    jobs.iter().map(|job| (job.state, job.attempt)).collect()
}

/// Enqueues a slot of a source as a server does; returns whether it was enqueued.
async fn enqueue(catalog: &Catalog, source: &str, slot: Timestamp) -> bool {
    catalog.see(source, slot, minutes(10)).await.unwrap();
    catalog.enqueue_slot((id(), of(source)), due(slot), slot).await.unwrap()
}

/// Takes up the only job that waits.
pub(crate) async fn begin(
    catalog: &Catalog,
    me: &Holder,
    at: Timestamp,
) -> (WaitingJob, backstay_control::Lease) {
    let waiting = catalog.waiting_jobs(at).await.unwrap();
    let [job] = waiting.try_into().unwrap();
    let lease = catalog.lease(&job.source, me, at).await.unwrap();
    assert!(catalog.begin_job(&job, &lease, None, at).await.unwrap());
    (job, lease)
}

#[tokio::test(flavor = "multi_thread")]
async fn slot_is_enqueued_once_however_many_servers_do() {
    for place in Place::both() {
        let servers = futures_util::future::join_all((0..4).map(|_| place.open())).await;
        let servers: Vec<Catalog> = servers.into_iter().map(Result::unwrap).collect();
        let at = now(&servers[0]).await;
        let each = servers.iter().cycle().take(16).cloned().map(|catalog| {
            tokio::spawn(async move {
                catalog.see("shop", at, minutes(10)).await.unwrap();
                catalog.enqueue_slot((id(), of("shop")), due(at), at).await.unwrap()
            })
        });
        let enqueued = futures_util::future::join_all(each.collect::<Vec<_>>()).await;
        let winners = enqueued.into_iter().filter(|won| *won.as_ref().unwrap()).count();
        assert_eq!(winners, 1, "{}", place.name());
        assert_eq!(states(&servers[0], "shop").await, [(JobState::Queued, 1)]);
        assert_eq!(servers[0].slots().await.unwrap()["shop"].since(), Since::Slot(at));
        // Its next slot waits until that one is being done: nobody needs two in a row.
        let later = at + minutes(60);
        assert!(!servers[1].enqueue_slot((id(), of("shop")), due(later), later).await.unwrap());
        assert_eq!(servers[0].slots().await.unwrap()["shop"].since(), Since::Slot(at));
        begin(&servers[2], &Holder::this_process("a"), at).await;
        assert!(servers[1].enqueue_slot((id(), of("shop")), due(later), later).await.unwrap());
        assert_eq!(servers[0].slots().await.unwrap()["shop"].since(), Since::Slot(later));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn each_job_is_begun_by_one_worker_and_a_source_has_one_at_a_time() {
    for place in Place::both() {
        let catalog = place.open().await.unwrap();
        let at = now(&catalog).await;
        for source in 0..10 {
            let source = format!("source-{source}");
            assert!(enqueue(&catalog, &source, at).await);
        }
        let workers = (0..5).map(|worker| {
            let catalog = catalog.clone();
            tokio::spawn(async move {
                let me = Holder { pid: worker, ..Holder::this_process(&format!("host{worker}")) };
                let mut begun = Vec::new();
                for job in catalog.waiting_jobs(at).await.unwrap() {
                    let Ok(lease) = catalog.lease(&job.source, &me, at).await else { continue };
                    if catalog.begin_job(&job, &lease, None, at).await.unwrap() {
                        begun.push(job.source);
                    }
                }
                begun
            })
        });
        let begun = futures_util::future::join_all(workers.collect::<Vec<_>>()).await;
        let begun: Vec<String> = begun.into_iter().flat_map(Result::unwrap).collect();
        let different: HashSet<&String> = begun.iter().collect();
        assert_eq!((begun.len(), different.len()), (10, 10), "{}", place.name());
        assert_eq!(catalog.waiting_jobs(at).await.unwrap(), []);
    }
}

#[tokio::test]
async fn job_whose_worker_died_is_tried_again_later_and_not_for_ever() {
    for place in Place::both() {
        let catalog = place.open().await.unwrap();
        let here = Holder::this_process("a");
        let dead = Holder { started: here.started + 1, ..here.clone() };
        let mut at = now(&catalog).await;
        enqueue(&catalog, "shop", at).await;
        for (attempt, pause) in [(1, Some(1)), (2, Some(4)), (3, None)] {
            let (job, _) = begin(&catalog, &dead, at).await;
            let lost = catalog.end_lost_jobs(None, &here, at, id).await.unwrap();
            let [lost] = lost.try_into().unwrap();
            assert_eq!(lost.id, job.id);
            let next = pause.map(|pause| at + minutes(pause));
            assert_eq!(lost.next_try, next, "{}: try {attempt}", place.name());
            assert_eq!(catalog.waiting_jobs(at).await.unwrap(), [], "it pauses");
            at = next.unwrap_or(at);
        }
        let failed = |attempt| (JobState::Failed, attempt);
        assert_eq!(states(&catalog, "shop").await, [failed(1), failed(2), failed(3)]);
        let last = catalog.last_backup_job(of("shop")).await.unwrap().unwrap();
        assert!(last.error.unwrap().contains("lease lost"));
    }
}

#[tokio::test]
async fn worker_that_lost_its_lease_cannot_end_its_job() {
    for place in Place::both() {
        let catalog = place.open().await.unwrap();
        let here = Holder::this_process("a");
        let elsewhere = Holder { host: "b".to_owned(), ..here.clone() };
        let at = now(&catalog).await;
        enqueue(&catalog, "shop", at).await;
        let (job, lease) = begin(&catalog, &elsewhere, at).await;
        // As long as it is renewed nobody touches it.
        assert_eq!(catalog.end_lost_jobs(None, &here, at, id).await.unwrap(), []);
        place.sql("UPDATE leases SET expires_at = 1");
        assert_eq!(catalog.end_lost_jobs(None, &here, at, id).await.unwrap().len(), 1);
        let (again, _) = begin(&catalog, &here, at + minutes(1)).await;
        assert!(catalog.renew(&lease, at).await.is_err(), "{}", place.name());
        let outcome = (None, Some("backup".to_owned()));
        assert!(
            !catalog.advance_job(&job.id, JobState::Succeeded, at, outcome.clone()).await.unwrap()
        );
        assert!(catalog.advance_job(&again.id, JobState::Succeeded, at, outcome).await.unwrap());
        assert_eq!(
            states(&catalog, "shop").await,
            [(JobState::Failed, 1), (JobState::Succeeded, 2)]
        );
        // A lease of the same source that somebody else took meanwhile is as bad as none.
        place.sql("UPDATE jobs SET state = 'running' WHERE attempt = 2; UPDATE leases SET token = token + 1");
        assert_eq!(catalog.end_lost_jobs(None, &here, at, id).await.unwrap().len(), 1);
    }
}

#[tokio::test]
async fn interrupted_job_is_enqueued_again_at_once_and_one_by_hand_is_not() {
    for place in Place::both() {
        let catalog = place.open().await.unwrap();
        let here = Holder::this_process("a");
        let at = now(&catalog).await;
        enqueue(&catalog, "shop", at).await;
        let (job, lease) = begin(&catalog, &here, at).await;
        for _ in 0..2 {
            let again = catalog
                .try_again((id(), &job.id), Again::Interrupted { after: SignedDuration::ZERO }, at)
                .await
                .unwrap();
            assert_eq!(again, Some(at));
        }
        catalog.advance_job(&job.id, JobState::Cancelled, at, (None, None)).await.unwrap();
        catalog.release(&lease).await.unwrap();
        assert_eq!(catalog.waiting_jobs(at).await.unwrap().len(), 1, "{}", place.name());
        let by_hand = catalog
            .start_job((id(), of("crm")), backstay_control::JobKind::Backup, &here, at)
            .await
            .unwrap();
        let again = catalog.try_again((id(), &by_hand), Again::LeaseLost, at).await.unwrap();
        assert_eq!(again, None);
        // Servers that were told to end cost no try: only those count that died.
        let dead = Holder { started: here.started + 1, ..here.clone() };
        for _ in 0..3 {
            let (job, lease) = begin(&catalog, &here, at).await;
            catalog
                .try_again((id(), &job.id), Again::Interrupted { after: SignedDuration::ZERO }, at)
                .await
                .unwrap();
            catalog.advance_job(&job.id, JobState::Cancelled, at, (None, None)).await.unwrap();
            catalog.release(&lease).await.unwrap();
        }
        begin(&catalog, &dead, at).await;
        catalog.advance_job(&by_hand, JobState::Failed, at, (None, None)).await.unwrap();
        let lost = catalog.end_lost_jobs(None, &here, at, id).await.unwrap();
        assert_eq!(
            lost.iter().map(|lost| lost.next_try).collect::<Vec<_>>(),
            [Some(at + minutes(1))]
        );
    }
}

#[tokio::test]
async fn job_goes_on_though_its_lease_ran_out_while_its_machine_slept() {
    for place in Place::both() {
        let catalog = place.open().await.unwrap();
        let here = Holder::this_process("a");
        let at = now(&catalog).await;
        enqueue(&catalog, "shop", at).await;
        begin(&catalog, &here, at).await;
        place.sql("UPDATE leases SET expires_at = 1");
        let lost = catalog.end_lost_jobs(None, &here, at + minutes(60), id).await.unwrap();
        assert_eq!(lost, [], "{}", place.name());
        // Given back, it is nobody's any more.
        place.sql("UPDATE leases SET expires_at = 0");
        assert_eq!(catalog.end_lost_jobs(None, &here, at, id).await.unwrap().len(), 1);
        place.sql(
            "UPDATE jobs SET state = 'running' WHERE attempt = 1; UPDATE leases SET expires_at = 1",
        );
        // Seen from elsewhere it is lost.
        let elsewhere = Holder { host: "b".to_owned(), ..here };
        let lost = catalog.end_lost_jobs(None, &elsewhere, at, id).await.unwrap();
        assert_eq!(lost.len(), 1, "{}", place.name());
    }
}

#[tokio::test]
async fn lost_job_that_was_cancelled_is_not_tried_again_and_one_whose_source_is_leased_is() {
    for place in Place::both() {
        let catalog = place.open().await.unwrap();
        let here = Holder::this_process("a");
        let dead = Holder { started: here.started + 1, ..here.clone() };
        let at = now(&catalog).await;
        for source in ["shop", "crm"] {
            enqueue(&catalog, source, at).await;
            begin(&catalog, &dead, at).await;
        }
        let job = catalog.jobs(Whose::Source("shop"), 1).await.unwrap().remove(0);
        catalog.cancel_job(&job.id, "not now", at).await.unwrap();
        // A command takes the lease before any server looks.
        let lease = catalog.lease("crm", &here, at).await.unwrap();
        let lost = catalog.end_lost_jobs(Some("crm"), &here, at, id).await.unwrap();
        assert_eq!(lost.len(), 1);
        assert_eq!(states(&catalog, "crm").await, [(JobState::Failed, 1), (JobState::Queued, 2)]);
        catalog.release(&lease).await.unwrap();
        catalog.end_lost_jobs(None, &here, at, id).await.unwrap();
        assert_eq!(states(&catalog, "shop").await, [(JobState::Cancelled, 1)], "{}", place.name());
    }
}

#[tokio::test]
async fn password_of_a_catalog_is_in_no_error_wherever_it_stands() {
    let home = tempfile::tempdir().unwrap();
    let home = backstay_control::Home::open(&home.path().join("home")).unwrap();
    for url in [
        "postgres://app:hunter2@127.0.0.1:1/catalog",
        "postgres://127.0.0.1:1/catalog?user=app&password=hunter2",
        "postgres:hunter2",
    ] {
        let key = backstay_control::MasterKey::load(&home, None, None).unwrap();
        let error = Catalog::open_shared(&url.to_owned().into(), key).await.unwrap_err();
        let told = format!("{error} {error:?}");
        assert!(!told.contains("hunter2"), "{told}");
    }
}

#[tokio::test]
async fn source_whose_last_slot_is_in_the_future_is_seen_anew() {
    for place in Place::both() {
        let catalog = place.open().await.unwrap();
        let at = now(&catalog).await;
        let wrong = at + SignedDuration::from_hours(24 * 365);
        enqueue(&catalog, "shop", wrong).await;
        assert_eq!(catalog.see("shop", wrong, minutes(10)).await.unwrap(), Since::Slot(wrong));
        assert_eq!(catalog.see("shop", at, minutes(10)).await.unwrap(), Since::FirstSeen(at));
        // When that slot comes it is run, whatever was run for it by the wrong clock.
        let job = catalog.jobs(Whose::Source("shop"), 1).await.unwrap().remove(0);
        catalog.cancel_job(&job.id, "ended", wrong).await.unwrap();
        assert!(catalog.enqueue_slot((id(), of("shop")), due(wrong), wrong).await.unwrap());
        place.sql("UPDATE slots SET last_slot = NULL; DELETE FROM jobs");
        // Seen again, it is known.
        let later = at + minutes(5);
        assert_eq!(catalog.see("shop", later, minutes(10)).await.unwrap(), Since::FirstSeen(at));
    }
}

#[tokio::test]
async fn waiting_job_is_cancelled_at_once_and_a_running_one_by_its_worker() {
    for place in Place::both() {
        let catalog = place.open().await.unwrap();
        let at = now(&catalog).await;
        for source in ["shop", "crm"] {
            enqueue(&catalog, source, at).await;
        }
        let waiting = catalog.jobs(Whose::Source("crm"), 1).await.unwrap().remove(0);
        catalog.cancel_job(&waiting.id, "not tonight", at).await.unwrap();
        assert_eq!(states(&catalog, "crm").await, [(JobState::Cancelled, 1)]);
        let (job, _) = begin(&catalog, &Holder::this_process("a"), at).await;
        assert_eq!(catalog.wish_to_cancel(&job.id).await.unwrap(), None);
        catalog.cancel_job(&job.id, "disk is full", at).await.unwrap();
        assert_eq!(states(&catalog, "shop").await, [(JobState::Running, 1)], "{}", place.name());
        let wish = catalog.wish_to_cancel(&job.id).await.unwrap();
        assert_eq!(wish.as_deref(), Some("disk is full"));
    }
}

#[tokio::test]
async fn job_that_pauses_by_a_clock_that_was_set_back_waits_no_longer() {
    for place in Place::both() {
        let catalog = place.open().await.unwrap();
        let at = now(&catalog).await;
        enqueue(&catalog, "shop", at).await;
        let in_a_year = (at + SignedDuration::from_hours(24 * 365)).as_microsecond();
        let soon = (at + minutes(4)).as_microsecond();
        place.sql(&format!("UPDATE jobs SET not_before = {soon}"));
        assert_eq!(catalog.waiting_jobs(at).await.unwrap(), [], "{}", place.name());
        place.sql(&format!("UPDATE jobs SET not_before = {in_a_year}"));
        assert_eq!(catalog.waiting_jobs(at).await.unwrap().len(), 1, "{}", place.name());
    }
}

#[tokio::test]
async fn job_that_nobody_took_up_fails_and_old_ones_are_forgotten_but_for_the_newest() {
    for place in Place::both() {
        let catalog = place.open().await.unwrap();
        let at = now(&catalog).await;
        let days = |days: i64| SignedDuration::from_hours(24 * days);
        for (source, age) in [("gone", 8), ("shop", 2)] {
            let then = at - days(age);
            enqueue(&catalog, source, then).await;
        }
        let here = Holder::this_process("a");
        for (source, age) in [("crm", 200), ("crm", 100), ("crm", 95), ("old", 300)] {
            let then = at - days(age);
            let job = catalog
                .start_job((id(), of(source)), backstay_control::JobKind::Backup, &here, then)
                .await
                .unwrap();
            catalog.advance_job(&job, JobState::Succeeded, then, (None, None)).await.unwrap();
        }
        catalog.tidy_jobs(at).await.unwrap();
        assert_eq!(states(&catalog, "gone").await, [(JobState::Failed, 1)], "{}", place.name());
        assert_eq!(states(&catalog, "shop").await, [(JobState::Queued, 1)]);
        assert_eq!(states(&catalog, "crm").await.len(), 1);
        assert_eq!(states(&catalog, "old").await.len(), 1);
        let told = catalog.last_backup_job(of("gone")).await.unwrap().unwrap().error.unwrap();
        assert!(told.contains("no server took it up"), "{told}");
    }
}

/// V50: a yes is not good for ever.
#[tokio::test]
async fn what_changes_a_source_begins_soon_or_not_at_all() {
    for place in Place::both() {
        let catalog = place.open().await.unwrap();
        let at = now(&catalog).await;
        for spec in [JobSpec::Undo, JobSpec::Test] {
            catalog.enqueue((id(), of("shop")), (&spec, Some("anna")), at).await.unwrap();
        }
        catalog.cancel_stale_changes(at + minutes(14)).await.unwrap();
        assert_eq!(catalog.waiting_jobs(at + minutes(14)).await.unwrap().len(), 2);
        let [left] = &catalog.waiting_jobs(at + minutes(16)).await.unwrap()[..] else {
            panic!("{}: only the look waits on", place.name())
        };
        assert_eq!(left.spec, JobSpec::Test);
        catalog.cancel_stale_changes(at + minutes(16)).await.unwrap();
        let mut ended = states(&catalog, "shop").await;
        ended.sort_by_key(|(state, _)| state.as_str());
        assert_eq!(ended, [(JobState::Cancelled, 1), (JobState::Queued, 1)], "{}", place.name());
    }
}

#[tokio::test]
async fn outages_are_tried_again_for_hours_and_giving_way_as_often_as_is_asked() {
    for place in Place::both() {
        let catalog = place.open().await.unwrap();
        let here = Holder::this_process("a");
        // Returns the pauses before each further try, until there is none.
        let pauses = async |source: &str, why: Again| {
            let mut at = now(&catalog).await;
            enqueue(&catalog, source, at).await;
            let mut pauses = Vec::new();
            loop {
                let (job, lease) = begin(&catalog, &here, at).await;
                let next = catalog.try_again((id(), &job.id), why, at).await.unwrap();
                catalog.advance_job(&job.id, JobState::Failed, at, (None, None)).await.unwrap();
                catalog.release(&lease).await.unwrap();
                let Some(next) = next else { return pauses };
                assert!(catalog.waiting_jobs(next - minutes(1) / 2).await.unwrap().is_empty());
                pauses.push(next.duration_since(at).as_mins());
                at = next;
            }
        };
        let outage = pauses("away", Again::Outage).await;
        assert_eq!(outage, [1, 4, 16, 60, 60, 60], "{}", place.name());
        let gave_way = Again::GaveWay { retries: 2, after: minutes(3) };
        assert_eq!(pauses("busy", gave_way).await, [3, 3]);
        // What lies a day ahead would look like a clock that was set back.
        let patient = Again::GaveWay { retries: 1, after: minutes(24 * 60) };
        assert_eq!(pauses("patient", patient).await, [60]);
    }
}

#[tokio::test]
async fn progress_is_kept_and_read() {
    for place in Place::both() {
        let catalog = place.open().await.unwrap();
        let (here, at) = (Holder::this_process("a"), now(&catalog).await);
        enqueue(&catalog, "shop", at).await;
        let (job, _lease) = begin(&catalog, &here, at).await;
        let progress =
            || async { catalog.jobs(Whose::Source("shop"), 1).await.unwrap()[0].progress.clone() };
        assert_eq!(progress().await, None);
        let half =
            Progress { part: "database.dump".to_owned(), plain_bytes: 5, estimate_bytes: None };
        catalog.keep_progress(&job.id, &half).await.unwrap();
        assert_eq!(progress().await, Some(half));
    }
}

#[tokio::test]
async fn retry_that_pauses_begins_when_the_next_slot_is_due() {
    for place in Place::both() {
        let catalog = place.open().await.unwrap();
        let (here, at) = (Holder::this_process("a"), now(&catalog).await);
        enqueue(&catalog, "shop", at).await;
        let (job, lease) = begin(&catalog, &here, at).await;
        let patient = Again::GaveWay { retries: 1, after: minutes(60) };
        catalog.try_again((id(), &job.id), patient, at).await.unwrap();
        catalog.advance_job(&job.id, JobState::Failed, at, (None, None)).await.unwrap();
        catalog.release(&lease).await.unwrap();
        let later = at + minutes(5);
        assert!(catalog.waiting_jobs(later).await.unwrap().is_empty(), "{}", place.name());
        assert!(!enqueue(&catalog, "shop", later).await, "it takes the place of another");
        assert_eq!(catalog.waiting_jobs(later).await.unwrap().len(), 1);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn slot_whose_failed_job_was_deleted_is_not_run_again() {
    for place in Place::both() {
        let catalog = place.open().await.unwrap();
        let (me, at) = (Holder::this_process("a"), now(&catalog).await);
        assert!(enqueue(&catalog, "shop", at).await);
        let (job, lease) = begin(&catalog, &me, at).await;
        // What is being done stays.
        catalog.delete_job(&job.id).await.unwrap();
        assert_eq!(states(&catalog, "shop").await, [(JobState::Running, 1)]);
        let failed = (Some("disk full".to_owned()), None);
        catalog.advance_job(&job.id, JobState::Failed, at, failed).await.unwrap();
        catalog.release(&lease).await.unwrap();
        catalog.delete_job(&job.id).await.unwrap();
        assert_eq!(states(&catalog, "shop").await, []);
        assert_eq!(catalog.see("shop", at, minutes(10)).await.unwrap(), Since::Slot(at));
    }
}
