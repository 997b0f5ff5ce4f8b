//! `backstay guard`: a deploy between checks and backups (T24 to T32).

use std::process::{Child, Stdio};

use backstay_testkit::daemon::wait_until;
use jiff::{Timestamp, ToSpan as _};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::shell::Shell;

/// What is guarded: it leaves a file, so that nobody can say that it was not run.
fn deploy(then: &str) -> String {
    format!("touch ran; {then}")
}

fn guarded(shell: &Shell, options: &[&str], then: &str) -> std::process::Output {
    let script = deploy(then);
    let words = [&["guard", "--source", "shop"], options, &["--", "sh", "-c", &script]].concat();
    shell.run(&words)
}

/// Runs a guard that must refuse with this code and word, without running the command.
fn refuses(shell: &Shell, options: &[&str], (code, word): (i32, &str)) {
    let output = guarded(shell, options, "true");
    let error = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{word}: {error}");
    assert!(error.contains(word), "{word}: {error}");
    assert!(!shell.path("ran").exists(), "{word}: the command was run");
}

fn triggers(shell: &Shell) -> Vec<Value> {
    let backups = shell.json(&["backups"]);
    backups.as_array().unwrap().iter().map(|backup| backup["trigger"].clone()).collect()
}

#[test]
fn command_runs_between_two_backups_and_keeps_its_output() {
    let shell = Shell::with_tree("");
    let output =
        guarded(&shell, &["--before"], "echo deployed; echo careful >&2; echo after > shop/a.txt");
    assert!(output.status.success(), "{output:?}");
    assert_eq!(output.stdout, b"deployed\n", "standard output is the command's");
    assert!(String::from_utf8_lossy(&output.stderr).contains("careful"));
    assert_eq!(triggers(&shell), ["post-deploy", "pre-deploy"]);
    // The one before is what was there before.
    let id = shell.json(&["backups"])[1]["id"].as_str().unwrap().to_owned();
    shell.ends(0, &["restore", "shop", "--id", &id, "--to", "old", "--yes"]);
    assert_eq!(std::fs::read_to_string(shell.path("old/a.txt")).unwrap(), "before");
    shell.ends(0, &["restore", "shop", "--to", "new", "--yes"]);
    assert_eq!(std::fs::read_to_string(shell.path("new/a.txt")).unwrap(), "after\n");
}

#[test]
fn command_that_fails_keeps_its_code_and_no_backup_is_made_of_what_it_left() {
    let shell = Shell::with_tree("");
    assert_eq!(guarded(&shell, &[], "exit 7").status.code(), Some(7));
    assert_eq!(guarded(&shell, &[], "kill -9 $$").status.code(), Some(137));
    shell.ends(127, &["guard", "--all", "--", "no-such-program"]);
    shell.ends(126, &["guard", "--all", "--", "./shop"]);
    assert_eq!(triggers(&shell), [""; 0]);
}

#[test]
fn nothing_is_run_where_a_backup_could_not_be_made() {
    let shell = Shell::with_tree("");
    let good = shell.config();
    refuses(&shell, &["--source", "misspelt"], (2, "there is no source \"misspelt\""));
    shell.set_config(format!("{good}misspelt = 1\n"));
    refuses(&shell, &[], (2, "misspelt"));
    shell.set_config(&good);
    std::fs::rename(shell.path("shop"), shell.path("gone")).unwrap();
    refuses(&shell, &[], (1, "the command was not run: source shop"));
    // The checks before made it.
    std::fs::remove_dir_all(shell.path("storage")).unwrap();
    std::fs::write(shell.path("storage"), "no directory").unwrap();
    refuses(&shell, &[], (1, "2 checks failed"));
    std::fs::rename(shell.path("gone"), shell.path("shop")).unwrap();
    refuses(&shell, &[], (1, "the command was not run: storage main"));
}

#[test]
fn credentials_that_expired_keep_a_deploy_back_and_those_that_soon_will_are_told() {
    let server = backstay_testkit::s3::S3Server::start().unwrap();
    let shell = Shell::with_bucket(&server);
    std::fs::create_dir(shell.path("shop")).unwrap();
    let config = shell.config();
    let expiring = |days: i64| {
        let day = Timestamp::now().checked_add((24 * days).hours()).unwrap();
        let line = format!("provider = 's3'\ncredentials_expire = '{}'", day.strftime("%F"));
        shell.set_config(config.replace("provider = 's3'", &line));
    };
    expiring(-2);
    refuses(&shell, &[], (1, "expired on"));
    expiring(20);
    let output = guarded(&shell, &[], "true");
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && error.contains("expire on"), "{error}");
    assert!(shell.path("ran").exists());
    expiring(40);
    let output = guarded(&shell, &[], "true");
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && !error.contains("expire on"), "{error}");
}

#[test]
fn backup_after_the_command_that_fails_is_told_and_changes_nothing() {
    let shell = Shell::with_tree("");
    let output = guarded(&shell, &["-q"], "rm -r shop");
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{error}");
    assert!(error.contains("the command went well, but its backup did not"), "{error}");
    assert_eq!(shell.json(&["status"])[0]["last_job"], "failed");
    // So does one that lacks something, a hook that fails, and a catalog that is gone.
    let shell = Shell::with_tree("");
    let output = guarded(&shell, &["-q"], "printf 'SQLite format 3\\0 and no more' > shop/bad.db");
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && error.contains("is incomplete, without 1"), "{error}");
    let shell = Shell::with_tree("");
    shell.set_config(shell.config() + "after_backup = { run = ['false'] }\n");
    let output = guarded(&shell, &["-q"], "true");
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && error.contains("after_backup"), "{error}");
    assert_eq!(triggers(&shell), ["post-deploy"]);
    let output = guarded(&shell, &["--wait", "800000h"], "echo broken > home/catalog.db");
    assert!(output.status.success(), "{output:?}");
}

#[test]
fn source_that_another_holds_after_the_command_is_a_failed_job() {
    let shell = standing_still();
    let script = format!(
        "{} backup db & while [ ! -e begun ]; do sleep 0.05; done",
        env!("CARGO_BIN_EXE_backstay")
    );
    let mut guard = start(&shell, &["guard", "--all", "--wait", "0s", "--", "sh", "-c", &script]);
    assert!(guard.wait().unwrap().success());
    let log = std::fs::read_to_string(shell.path("log")).unwrap();
    assert!(log.contains("its backup did not"), "{log}");
    std::fs::remove_file(shell.path("wait")).unwrap();
    let states = || {
        let jobs = shell.json(&["jobs", "list"]);
        let mut states: Vec<String> = jobs
            .as_array()
            .unwrap()
            .iter()
            .map(|job| job["state"].as_str().unwrap().to_owned())
            .collect();
        states.sort();
        states
    };
    wait_until("the other backup is done", || states() == ["failed", "succeeded"]);
}

#[test]
fn guard_of_nothing_is_none() {
    let shell = Shell::with_tree("");
    let config = shell.config();
    shell.set_config(&config[..config.find("[sources.shop]").unwrap()]);
    shell.complains(2, &["guard", "--all", "--", "touch", "ran"]);
    assert!(!shell.path("ran").exists());
    shell.set_config(config);
    for wait in ["-1s", "soon", "9999999999999999d"] {
        shell.complains(2, &["guard", "--all", "--wait", wait, "--", "touch", "ran"]);
    }
    assert!(!shell.path("ran").exists());
}

#[test]
fn incomplete_backup_before_a_command_is_none() {
    let shell = Shell::with_tree("");
    // By its header a database, and none that can be read.
    let damaged = [b"SQLite format 3\0".as_slice(), &[0xff; 4096]].concat();
    std::fs::write(shell.path("shop/bad.db"), damaged).unwrap();
    refuses(&shell, &["--before"], (3, "is incomplete, without 1 of its items"));
    assert_eq!(triggers(&shell), ["pre-deploy"]);
}

#[test]
fn guard_waits_for_whoever_works_on_a_source() {
    let shell = standing_still();
    let mut first = start(&shell, &["backup", "db"]);
    wait_until("the backup is under way", || shell.path("begun").exists());
    let words = ["guard", "--source", "db", "--before", "--wait", "0s", "--", "touch", "ran"];
    let error = shell.complains(11, &words);
    assert!(error.contains("the command was not run") && !shell.path("ran").exists(), "{error}");
    let mut guard = start(&shell, &["guard", "--source", "db", "--before", "--", "touch", "ran"]);
    let log = || std::fs::read_to_string(shell.path("log")).unwrap();
    wait_until("it waits", || log().contains("waiting, since"));
    assert!(!shell.path("ran").exists());
    std::fs::remove_file(shell.path("wait")).unwrap();
    assert!(first.wait().unwrap().success() && guard.wait().unwrap().success());
    assert!(shell.path("ran").exists());
    assert_eq!(triggers(&shell), ["post-deploy", "pre-deploy", "manual"]);
}

/// A machine whose source is a program that stands still as long as the file `wait` is there.
fn standing_still() -> Shell {
    let shell = crate::serve::with_program("");
    std::fs::write(shell.path("wait"), "").unwrap();
    shell
}

fn start(shell: &Shell, words: &[&str]) -> Child {
    let log = std::fs::File::options().create(true).append(true).open(shell.path("log"));
    let mut command = shell.command(words);
    command.stdout(Stdio::null()).stderr(log.unwrap()).spawn().unwrap()
}

#[test]
fn guard_that_is_told_to_end_tells_its_command() {
    let shell = Shell::with_tree("");
    // Ends by itself, should nobody tell it.
    let script = "for s in INT TERM HUP; do trap \"touch told-$s\" $s; done; touch ran; \
                  for i in $(seq 600); do sleep 0.05; [ -e told-HUP ] && exit 3; done";
    let mut guard = start(&shell, &["guard", "--all", "--", "sh", "-c", script]);
    wait_until("the command runs", || shell.path("ran").exists());
    let pid = Pid::from_child(&guard);
    for (signal, name) in [(Signal::INT, "INT"), (Signal::TERM, "TERM"), (Signal::HUP, "HUP")] {
        kill_process(pid, signal).unwrap();
        wait_until("the command was told", || shell.path(&format!("told-{name}")).exists());
    }
    assert_eq!(guard.wait().unwrap().code(), Some(3), "as the command ended");
    assert_eq!(triggers(&shell), [""; 0]);
    // One that is told and goes on is backed up as any other.
    std::fs::remove_file(shell.path("ran")).unwrap();
    std::fs::remove_file(shell.path("told-TERM")).unwrap();
    let script = "trap 'touch told-TERM' TERM; touch ran; for i in $(seq 600); do sleep 0.05; [ -e told-TERM ] && exit 0; done; exit 4";
    let mut guard = start(&shell, &["guard", "--all", "--", "sh", "-c", script]);
    wait_until("the command runs", || shell.path("ran").exists());
    kill_process(Pid::from_child(&guard), Signal::TERM).unwrap();
    assert_eq!(guard.wait().unwrap().code(), Some(0));
    assert_eq!(triggers(&shell), ["post-deploy"]);
}
