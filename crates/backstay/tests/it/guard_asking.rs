//! `backstay guard --server`: a deploy from where neither the databases nor the storage can be reached (T24 to T32, ADR 21).

use std::process::Output;

use backstay_testkit::daemon::wait_until;
use backstay_testkit::proxy::{Network, Proxy};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::members::Office;
use crate::serve::{states, with_program};
use crate::shell::Shell;

fn guarded(office: &Office, source: &str, options: &[&str], then: &str) -> Output {
    let script = format!("touch ran; {then}");
    let words = [&["guard", "--source", source], options, &["--", "sh", "-c", &script]].concat();
    office.run("operator", &words)
}

fn refuses(office: &Office, (source, options): (&str, &[&str]), (code, word): (i32, &str)) {
    let output = guarded(office, source, options, "true");
    let error = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{word}: {error}");
    assert!(error.contains(word), "{word}: {error}");
    assert!(!office.laptop.path("ran").exists(), "{word}: the command was run");
}

fn triggers(office: &Office) -> Vec<Value> {
    let backups = office.server.json(&["backups"]);
    backups.as_array().unwrap().iter().map(|backup| backup["trigger"].clone()).collect()
}

#[test]
fn command_runs_here_between_two_backups_by_the_server_and_keeps_its_output_and_code() {
    let office = Office::new(Shell::with_tree(""));
    let _serving = office.serve(&[]);
    let place = office.server.path("shop/a.txt").display().to_string();
    let then = format!("echo deployed; echo careful >&2; echo after > '{place}'; test -z \"$KIT\"");
    let output = guarded(&office, "shop", &["--before"], &then);
    assert!(output.status.success(), "{output:?}");
    assert_eq!(output.stdout, b"deployed\n", "standard output is the command's");
    assert_eq!(triggers(&office), ["post-deploy", "pre-deploy"]);
    let id = office.server.json(&["backups"])[1]["id"].as_str().unwrap().to_owned();
    office.server.ends(0, &["restore", "shop", "--id", &id, "--to", "old", "--yes"]);
    assert_eq!(std::fs::read_to_string(office.server.path("old/a.txt")).unwrap(), "before");
    assert_eq!(guarded(&office, "shop", &[], "exit 7").status.code(), Some(7));
    assert_eq!(triggers(&office).len(), 2, "no backup of what a failure left");
}

#[test]
fn nothing_is_run_where_the_server_could_not_make_a_backup() {
    let office = Office::new(Shell::with_tree(""));
    refuses(&office, ("shop", &[]), (1, "the command was not run: the server does not answer"));
    let _serving = office.serve(&[]);
    refuses(&office, ("misspelt", &[]), (2, "the server has no source \"misspelt\""));
    let words = ["guard", "--all", "--", "touch", "ran"];
    // Who may look only may not have a source tested.
    let said = office.ends(1, "viewer", &words);
    assert!(
        said.contains("viewer is a member with the role viewer, and this needs operator"),
        "{said}"
    );
    std::fs::rename(office.server.path("shop"), office.server.path("away")).unwrap();
    refuses(&office, ("shop", &[]), (1, "the command was not run: source shop"));
    std::fs::create_dir(office.server.path("shop")).unwrap();
    // By its header a database, and none that can be read.
    let damaged = [b"SQLite format 3\0".as_slice(), &[0xff; 4096]].concat();
    std::fs::write(office.server.path("shop/bad.db"), damaged).unwrap();
    refuses(&office, ("shop", &["--before"]), (3, "is incomplete"));
    std::fs::remove_dir_all(office.server.path("storage")).unwrap();
    std::fs::write(office.server.path("storage"), "no directory").unwrap();
    refuses(&office, ("shop", &[]), (1, "the command was not run: storage main"));
    assert!(!office.laptop.path("ran").exists());
}

#[test]
fn vault_that_is_gone_is_not_made_anew_since_a_deploy_asks() {
    let office = Office::new(Shell::with_tree(""));
    office.server.ends(0, &["backup", "shop"]);
    let _serving = office.serve(&[]);
    // As with a disk that is not mounted.
    let storage = office.server.path("storage");
    std::fs::rename(&storage, office.server.path("unmounted")).unwrap();
    std::fs::create_dir(&storage).unwrap();
    refuses(&office, ("shop", &["--before"]), (10, "the command was not run: storage main"));
    assert!(!storage.join("backstay/vault.json").exists());
    std::fs::create_dir_all(storage.join("backstay")).unwrap();
    std::fs::write(storage.join("backstay/vault.json"), "garbage").unwrap();
    refuses(&office, ("shop", &[]), (1, "the command was not run: storage main"));
}

/// T25, T26.
#[test]
fn credentials_of_the_server_that_expired_keep_a_deploy_back_and_those_that_soon_will_are_told() {
    let bucket = backstay_testkit::s3::S3Server::start().unwrap();
    let shell = Shell::with_bucket(&bucket);
    std::fs::create_dir(shell.path("shop")).unwrap();
    let config = shell.config();
    let expiring = |shell: &Shell, days: i64| {
        let day = jiff::Timestamp::now() + jiff::SignedDuration::from_hours(24 * days);
        let line = format!("provider = 's3'\ncredentials_expire = '{}'", day.strftime("%F"));
        shell.set_config(config.replace("provider = 's3'", &line));
    };
    expiring(&shell, -2);
    let office = Office::new(shell);
    let serving = office.serve(&[]);
    refuses(&office, ("shop", &[]), (1, "expired on"));
    serving.end();
    expiring(&office.server, 20);
    let _serving = office.serve(&[]);
    let output = guarded(&office, "shop", &[], "true");
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && error.contains("expire on"), "{error}");
}

/// T32.
#[test]
fn server_that_is_lost_after_the_command_changes_nothing_and_is_told() {
    let office = Office::new(Shell::with_tree(""));
    let serving = office.serve(&[]);
    let pid = serving.0.id();
    let then = format!("kill -9 {pid}");
    let script = format!("touch ran; {then}");
    let words = ["guard", "--all", "--wait", "1s", "--", "sh", "-c", &script];
    let output = office.run("operator", &words);
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{error}");
    assert!(error.contains("the command went well, but its backup did not"), "{error}");
    drop(serving);
}

#[test]
fn busy_source_is_waited_for_as_long_as_is_said() {
    let office = Office::new(with_program(""));
    std::fs::write(office.server.path("wait"), "").unwrap();
    let _serving = office.serve(&[]);
    let mut first = office.start("operator", &["backup", "db"]);
    wait_until("the backup is under way", || office.server.path("begun").exists());
    refuses(&office, ("db", &["--wait", "0s"]), (1, "it did not begin in time"));
    let states = || states(&office.server);
    assert_eq!(states(), ["cancelled", "running"], "nothing of it is left to be done");
    let words = ["guard", "--all", "--before", "--", "touch", "ran"];
    let mut guard = office.start("operator", &words);
    wait_until("it waits", || states()[0] == "queued");
    assert!(!office.laptop.path("ran").exists());
    std::fs::remove_file(office.server.path("wait")).unwrap();
    assert!(first.wait().unwrap().success() && guard.wait().unwrap().success());
    assert_eq!(triggers(&office), ["post-deploy", "pre-deploy", "manual"]);
}

#[test]
fn guard_that_is_told_to_end_before_its_command_runs_nothing_and_cancels_its_job() {
    let office = Office::new(with_program(""));
    std::fs::write(office.server.path("wait"), "").unwrap();
    let _serving = office.serve(&[]);
    let mut guard = office.start("operator", &["guard", "--all", "--before", "--", "touch", "ran"]);
    wait_until("the backup is under way", || office.server.path("begun").exists());
    kill_process(Pid::from_child(&guard), Signal::TERM).unwrap();
    assert_eq!(guard.wait().unwrap().code(), Some(130), "{}", office.log());
    wait_until("it stops", || states(&office.server)[0] == "cancelled");
    assert!(!office.laptop.path("ran").exists());
}

#[test]
fn network_that_comes_back_is_waited_for() {
    let mut office = Office::new(with_program(""));
    std::fs::write(office.server.path("wait"), "").unwrap();
    let _serving = office.serve(&[]);
    let proxy = Proxy::start(office.port);
    let direct = std::mem::replace(&mut office.port, proxy.port);
    let mut guard = office.start("operator", &["guard", "--all", "--before", "--", "touch", "ran"]);
    wait_until("the backup is under way", || office.server.path("begun").exists());
    proxy.set(Network::Cut);
    wait_until("it notices", || office.log().contains("trying again"));
    std::fs::remove_file(office.server.path("wait")).unwrap();
    proxy.set(Network::Whole);
    assert!(guard.wait().unwrap().success(), "{}", office.log());
    assert!(office.laptop.path("ran").exists());
    office.port = direct;
    assert_eq!(triggers(&office), ["post-deploy", "pre-deploy"]);
}

#[test]
fn backup_after_the_command_that_does_not_begin_is_told_and_stays_in_the_status() {
    let office = Office::new(with_program(""));
    let _serving = office.serve(&[]);
    std::fs::write(office.server.path("wait"), "").unwrap();
    // Somebody else comes between the command and the backup of what it did.
    let begun = office.server.path("begun");
    let script = format!(
        "'{}' backup db & while [ ! -e '{}' ]; do sleep 0.05; done",
        env!("CARGO_BIN_EXE_backstay"),
        begun.display()
    );
    let words = ["guard", "--all", "--wait", "0s", "--", "sh", "-c", &script];
    let mut guard = office.start("operator", &words);
    assert!(guard.wait().unwrap().success(), "{}", office.log());
    assert!(office.log().contains("its backup did not: it did not begin"), "{}", office.log());
    std::fs::remove_file(office.server.path("wait")).unwrap();
    wait_until("the other one is done", || !states(&office.server).contains(&"running".to_owned()));
    let status = office.json("viewer", &["status"]);
    let troubles = status[0]["troubles"].to_string();
    assert!(troubles.contains("no backup was made after a deploy"), "{status}");
    office.ends(0, "operator", &["backup", "db"]);
    assert_eq!(office.json("viewer", &["status"])[0]["troubles"], Value::Array(Vec::new()));
}
