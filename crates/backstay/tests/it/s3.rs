//! A real S3 server that misbehaves by script: no false success, nothing lost, the next run good.

use std::process::Child;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use backstay_testkit::s3::{Call, Fault, S3Server};
use http::Method;

use crate::shell::{Shell, copy};

/// A machine with one backup in the bucket, and its configuration tested.
fn with_backup() -> (S3Server, Shell) {
    let server = S3Server::start().unwrap();
    let shell = Shell::with_bucket(&server);
    std::fs::create_dir(shell.path("shop")).unwrap();
    std::fs::write(shell.path("shop/file"), "content".repeat(1000)).unwrap();
    shell.ends(0, &["backup", "shop"]);
    (server, shell)
}

/// Every backup that is listed verifies, the first one is still there, and the next run is good.
fn assert_sound(server: &S3Server, shell: &Shell) {
    server.script(|_| Fault::Pass);
    assert!(!shell.json(&["backups", "shop"]).as_array().unwrap().is_empty());
    shell.ends(0, &["verify", "--all"]);
    shell.ends(0, &["backup", "shop"]);
    shell.ends(0, &["verify", "--all"]);
}

fn is_put_of_part(call: &Call) -> bool {
    call.method == Method::PUT && call.path.contains("files.tar")
}

#[test]
fn killed_at_every_call_leaves_old_backups_whole_and_no_half_one() {
    let (server, shell) = with_backup();
    let (vault, saved) = (server.bucket().join("backstay"), shell.path("saved"));
    let (home, saved_home) = (shell.path("home"), shell.path("saved-home"));
    copy(&vault, &saved);
    copy(&home, &saved_home);
    let mut at = 0;
    loop {
        assert!(at < 100, "no run came to its end");
        let pid = Arc::new(AtomicU32::new(0));
        let victim = pid.clone();
        server.script(move |call| {
            if call.index != at {
                return Fault::Pass;
            }
            // The process is known as soon as it was started; its first call may come before we wrote it down.
            while victim.load(Ordering::SeqCst) == 0 {
                std::thread::yield_now();
            }
            let pid = victim.load(Ordering::SeqCst);
            if at.is_multiple_of(2) { Fault::KillBefore(pid) } else { Fault::KillAfter(pid) }
        });
        let mut child: Child = shell.command(&["backup", "shop", "--quiet"]).spawn().unwrap();
        pid.store(child.id(), Ordering::SeqCst);
        let status = child.wait().unwrap();
        let calls = server.calls().len();
        server.script(|_| Fault::Pass);
        shell.ends(0, &["verify", "--all"]);
        if status.success() || calls <= at {
            break;
        }
        assert_eq!(status.code(), None, "it was killed, it did not end");
        at += 1;
        // What a killed run leaves costs later runs requests: without this the count would never settle.
        copy(&saved, &vault);
        copy(&saved_home, &home);
    }
    assert!(at > 8, "killed only {at} times");
    assert_sound(&server, &shell);
}

#[test]
fn passing_trouble_is_survived() {
    let (server, shell) = with_backup();
    server.script(|call| {
        if call.index.is_multiple_of(3) { Fault::Refuse(503, "SlowDown") } else { Fault::Pass }
    });
    shell.ends(0, &["backup", "shop"]);
    server
        .script(|call| if call.index.is_multiple_of(4) { Fault::DropBefore } else { Fault::Pass });
    shell.ends(0, &["backup", "shop"]);
    assert_sound(&server, &shell);
}

#[test]
fn lost_acknowledgement_of_the_manifest_is_no_failure_and_makes_no_second_backup() {
    let (server, shell) = with_backup();
    let lost = AtomicU32::new(0);
    server.script(move |call| {
        let first = call.path.ends_with("manifest.json")
            && call.method == Method::PUT
            && lost.fetch_add(1, Ordering::SeqCst) == 0;
        if first { Fault::DropAfter } else { Fault::Pass }
    });
    shell.ends(0, &["backup", "shop"]);
    server.script(|_| Fault::Pass);
    assert_eq!(shell.json(&["backups", "shop"]).as_array().unwrap().len(), 2);
    assert_sound(&server, &shell);
}

#[test]
fn storage_that_acknowledges_and_stores_nothing_is_found_out() {
    let (server, shell) = with_backup();
    server.script(|call| if is_put_of_part(call) { Fault::Swallow } else { Fault::Pass });
    let error = shell.complains(13, &["backup", "shop"]);
    assert!(error.contains("acknowledged the object but does not have it"), "{error}");
    server.script(|_| Fault::Pass);
    assert_eq!(shell.json(&["backups", "shop"]).as_array().unwrap().len(), 1);
    assert_sound(&server, &shell);
}

#[test]
fn refusals_say_what_is_wrong_and_what_to_do() {
    let cases = [
        (403, "AccessDenied", 14, "missing permission s3:PutObject"),
        (400, "ExpiredToken", 1, "the credentials are expired"),
        (403, "RequestTimeTooSkewed", 1, "correct this machine's clock"),
        (403, "InvalidAccessKeyId", 1, "does not know the access key id"),
        (403, "SignatureDoesNotMatch", 1, "the secret access key is wrong"),
        (404, "NoSuchBucket", 1, "the bucket does not exist"),
    ];
    let (server, shell) = with_backup();
    for (status, code, exit, text) in cases {
        server.script(
            move |call| {
                if is_put_of_part(call) { Fault::Refuse(status, code) } else { Fault::Pass }
            },
        );
        let error = shell.complains(exit, &["backup", "shop"]);
        assert!(error.contains(text), "{code}: {error}");
    }
    assert_sound(&server, &shell);
}

#[test]
fn wrong_secret_unknown_key_and_closed_port_are_told_apart() {
    let (server, shell) = with_backup();
    let mut wrong = shell.command(&["backups"]);
    let output = wrong.env("SECRET", "another-secret").output().unwrap();
    assert!(
        String::from_utf8_lossy(&output.stderr).contains("the secret access key is wrong"),
        "{output:?}"
    );
    shell.edit_config(&server.endpoint, "http://127.0.0.1:1");
    let error = shell.complains(1, &["backups"]);
    assert!(error.contains("nobody listens at the endpoint"), "{error}");
    shell.edit_config("http://127.0.0.1:1", &server.endpoint.replace("http:", "https:"));
    let error = shell.complains(1, &["backups"]);
    assert!(error.contains("needs an endpoint with http://"), "{error}");
}

#[test]
fn range_that_is_answered_with_200_is_understood() {
    let (server, shell) = with_backup();
    server.script(|_| Fault::MisspellRange);
    shell.ends(0, &["storage", "test", "main"]);
    shell.ends(0, &["backup", "shop"]);
    shell.ends(0, &["verify", "--all"]);
    assert_sound(&server, &shell);
}

#[test]
fn interrupted_backup_stops_cleanly() {
    let (server, shell) = with_backup();
    let pid = Arc::new(AtomicU32::new(0));
    let victim = pid.clone();
    server.script(move |call| {
        if is_put_of_part(call) {
            while victim.load(Ordering::SeqCst) == 0 {
                std::thread::yield_now();
            }
            let pid = rustix::process::Pid::from_raw(victim.load(Ordering::SeqCst).cast_signed())
                .unwrap();
            rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
            return Fault::DropBefore;
        }
        Fault::Pass
    });
    let mut child = shell.command(&["backup", "shop", "--quiet"]).spawn().unwrap();
    pid.store(child.id(), Ordering::SeqCst);
    assert_eq!(child.wait().unwrap().code(), Some(130));
    assert_sound(&server, &shell);
}

#[test]
fn listing_costs_three_requests_and_not_one_for_each_backup() {
    let (server, shell) = with_backup();
    for _ in 0..5 {
        shell.ends(0, &["backup", "shop"]);
    }
    server.script(|_| Fault::Pass);
    assert_eq!(shell.json(&["backups", "shop"]).as_array().unwrap().len(), 6);
    let calls = server.calls();
    // T39: the vault, the folders, the index.
    assert_eq!(calls.len(), 3, "{calls:?}");
}
