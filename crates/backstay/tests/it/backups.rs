//! How a backup ends when something around it fails.

use std::os::unix::fs::PermissionsExt;

use backstay_testkit::daemon::wait_until;
use rustix::process::{Pid, Signal, kill_process};

use crate::shell::Shell;

fn with_shop(extra: &str) -> Shell {
    let shell = Shell::with_directory();
    std::fs::create_dir(shell.path("shop")).unwrap();
    std::fs::write(shell.path("shop/one"), "one").unwrap();
    shell.edit_config("[sources.shop]\n", &format!("[sources.shop]\n{extra}\n"));
    shell
}

#[test]
fn hook_that_fails_after_the_backup_fails_the_command_and_the_backup_stays() {
    let shell = with_shop("after_backup = { run = ['false'] }");
    let output = shell.run(&["backup", "shop", "--json"]);
    assert_eq!(output.status.code(), Some(1));
    let made: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let id = made["id"].as_str().unwrap();
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(error.contains(&format!("backup {id} was made, and then")), "{error}");
    assert!(error.contains("after_backup"), "{error}");
    shell.ends(0, &["verify", id]);
    let status = shell.json(&["status"]);
    let shop = status.as_array().unwrap().iter().find(|one| one["source"] == "shop").unwrap();
    assert_eq!((&shop["last_job"], &shop["newest_good"]), (&"succeeded".into(), &id.into()));
    assert!(shop["troubles"].to_string().contains("after_backup"), "{status}");
}

/// Says whether what the hook left in the background runs.
fn child_runs(shell: &Shell) -> bool {
    let child = std::fs::read_to_string(shell.path("child")).unwrap();
    let state = std::fs::read_to_string(format!("/proc/{}/stat", child.trim()));
    state.is_ok_and(|state| !state.contains(") Z "))
}

#[test]
fn hook_that_takes_too_long_ends_with_all_that_it_started_and_an_app_in_the_background_goes_on() {
    let shell = with_shop("before_backup = { run = ['sh', 'hook.sh'], timeout = '20s' }");
    std::fs::write(shell.path("hook.sh"), "sleep 600 & echo $! > child").unwrap();
    shell.ends(0, &["backup", "shop"]);
    assert!(child_runs(&shell), "it was started to stay");
    let child = std::fs::read_to_string(shell.path("child")).unwrap();
    let child = Pid::from_raw(child.trim().parse().unwrap()).unwrap();
    kill_process(child, Signal::KILL).unwrap();
    shell.edit_config("timeout = '20s'", "timeout = '1s'");
    std::fs::write(shell.path("hook.sh"), "sleep 600 & echo $! > child; wait").unwrap();
    let error = shell.complains(1, &["backup", "shop"]);
    assert!(error.contains("before_backup") && error.contains("longer than 1 s"), "{error}");
    wait_until("what it started is gone", || !child_runs(&shell));
}

#[test]
fn failures_of_some_sources_outweigh_what_the_others_made() {
    // The database of the second source is not there, and the third is incomplete.
    let shell = with_shop("");
    let config = shell.config();
    let odd = shell.path("odd");
    let more =
        format!("[sources.odd]\nkind = 'files'\npath = '{}'\nstorage = 'main'\n", odd.display());
    shell.set_config(format!("{config}\n{more}"));
    std::fs::create_dir(&odd).unwrap();
    std::fs::write(odd.join("broken.db"), b"SQLite format 3\0 and no more of it").unwrap();
    shell.ends(3, &["backup", "odd", "shop"]);
    let output = shell.run(&["backup", "crm", "odd", "shop", "--json"]);
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{error}");
    assert!(error.contains("error: source crm: "), "{error}");
    let made: Vec<serde_json::Value> = serde_json::from_slice(&output.stdout).unwrap();
    let named: Vec<_> = made.iter().map(|one| (&one["source"], &one["status"])).collect();
    assert_eq!(
        named,
        [(&"odd".into(), &"incomplete".into()), (&"shop".into(), &"complete".into())]
    );
}

#[test]
fn root_that_cannot_be_listed_fails_the_backup() {
    let shell = with_shop("");
    std::fs::set_permissions(shell.path("shop"), PermissionsExt::from_mode(0o100)).unwrap();
    let output = shell.command_of_nobody(&["backup", "shop"]).output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(14), "{error}");
    assert!(error.contains("cannot list") || error.contains("cannot open"), "{error}");
}
