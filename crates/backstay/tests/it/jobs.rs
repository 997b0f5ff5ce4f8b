//! `backstay jobs`, beside a server (V33).

use backstay_testkit::daemon::wait_until;

use crate::serve::{Serving, jobs, start_standing_still, states, with_program};
use crate::workers::start;

#[test]
fn job_is_cancelled_by_hand_with_a_reason() {
    let shell = with_program("schedule = 'every 24h'");
    let _serving = start_standing_still(&shell);
    let id = jobs(&shell)[0]["id"].as_str().unwrap().to_owned();
    shell.ends(0, &["jobs", "cancel", &id[..6], "--reason", "the app is busy"]);
    wait_until("it stops", || states(&shell) == ["cancelled"]);
    let told = shell.ends(0, &["jobs", "show", &id]);
    assert!(told.contains("cancelled: the app is busy"), "{told}");
    let again = shell.complains(2, &["jobs", "cancel", &id]);
    assert!(again.contains("has ended already"), "{again}");
}

/// V33, V34: also where no server runs.
#[test]
fn backup_by_a_command_is_cancelled_from_elsewhere_and_the_next_source_goes_on() {
    let shell = with_program("");
    std::fs::create_dir(shell.path("tree")).unwrap();
    let tree = shell.path("tree").display().to_string();
    let config = shell.config();
    shell.set_config(format!(
        "{config}\n[sources.tree]\nkind = 'files'\npath = '{tree}'\nstorage = 'main'\n"
    ));
    std::fs::write(shell.path("wait"), "").unwrap();
    let backup = start(&shell, &["backup", "--all"], &[]);
    wait_until("the backup is under way", || shell.path("begun").exists());
    let id = jobs(&shell)[0]["id"].as_str().unwrap().to_owned();
    let told = shell.ends(0, &["jobs", "cancel", &id, "--reason", "the app is busy"]);
    assert!(told.contains("the backup of db is told to stop"), "{told}");
    assert_eq!(backup.wait(), 130);
    let all = jobs(&shell);
    let state = |source: &str| {
        all.iter().find(|job| job["source"] == source).unwrap()["state"]
            .as_str()
            .unwrap()
            .to_owned()
    };
    assert_eq!((state("db"), state("tree")), ("cancelled".to_owned(), "succeeded".to_owned()));
    let told = shell.ends(0, &["jobs", "show", &id]);
    assert!(told.contains("cancelled: the app is busy"), "{told}");
    std::fs::remove_file(shell.path("wait")).unwrap();
    shell.ends(0, &["backup", "db"]);
}

/// V33.
#[test]
fn jobs_that_failed_are_deleted_by_hand_all_or_none() {
    let shell = with_program("schedule = 'every 24h'");
    let _serving = start_standing_still(&shell);
    let id = jobs(&shell)[0]["id"].as_str().unwrap().to_owned();
    let running = shell.complains(2, &["jobs", "delete", &id]);
    assert!(running.contains("is running: only jobs that failed"), "{running}");
    shell.ends(0, &["jobs", "cancel", &id]);
    wait_until("it stops", || states(&shell) == ["cancelled"]);
    std::fs::remove_file(shell.path("wait")).unwrap();
    shell.ends(0, &["backup", "db"]);
    let made = jobs(&shell)[0]["id"].as_str().unwrap().to_owned();
    let refused = shell.complains(2, &["jobs", "delete", &id, &made]);
    assert!(refused.contains("is succeeded: only jobs that failed"), "{refused}");
    assert_eq!(states(&shell), ["succeeded", "cancelled"], "all or none");
    let told = shell.ends(0, &["jobs", "delete", &id[..6], &id]);
    assert_eq!((told.lines().count(), states(&shell)), (1, vec!["succeeded".to_owned()]));
    // What `status` tells of a source is not to be silenced.
    shell.edit_config("echo dump", "exit 3");
    shell.complains(1, &["backup", "db"]);
    let failed = jobs(&shell)[0]["id"].as_str().unwrap().to_owned();
    let refused = shell.complains(2, &["jobs", "delete", &failed]);
    assert!(refused.contains("the newest run of db is what `status` tells"), "{refused}");
}

#[test]
fn job_that_only_a_newer_server_understands_holds_up_no_other() {
    let shell = with_program("schedule = 'every 24h'");
    shell.ends(0, &["status"]);
    let catalog = rusqlite::Connection::open(shell.path("home/catalog.db")).unwrap();
    let insert = "INSERT INTO jobs (id, source, kind, state, queued_at, holder, spec) \
                  VALUES ('1', 'db', 'mend', 'queued', unixepoch('now') * 1000000, '', '{\"mend\": 1}')";
    catalog.execute(insert, []).unwrap();
    drop(catalog);
    let _serving = Serving::start(&shell);
    wait_until("the other one is done", || states(&shell) == ["succeeded", "queued"]);
}
