//! Jobs whose workers died, and what is said of them.

use backstay_control::{Holder, JobSpec, RestoreSpec};

use crate::catalogs::Place;
use crate::queue::{begin, id, now, of};

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
