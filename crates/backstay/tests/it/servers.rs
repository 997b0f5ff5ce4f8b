//! S3 servers that other people wrote: everything a user does, and permissions that are just enough or one too few.

use std::process::Command;

use backstay_testkit::ledger::{BusyWriter, check};
use backstay_testkit::servers::{self, Server};
use backstay_testkit::tree;

use crate::shell::Shell;

/// What backups need, and all that they need.
const ACTIONS: [&str; 4] = ["s3:PutObject", "s3:GetObject", "s3:DeleteObject", "s3:ListBucket"];

/// From the first test of the storage to the day after the disk died.
fn lives_through_everything(server: &Server) {
    let shell = Shell::with_server(server);
    shell.ends(0, &["storage", "test", "main"]);
    tree::make(&shell.path("shop"), 100).unwrap();
    // Large enough for an upload in parts, and of bytes that do not shrink.
    let random = "head -c 18000000 /dev/urandom > shop/large";
    assert!(
        Command::new("sh")
            .args(["-c", random])
            .current_dir(shell.dir.path())
            .status()
            .unwrap()
            .success()
    );
    let writer = BusyWriter::start(&shell.path("crm.db")).unwrap();
    shell.ends(0, &["backup", "--all"]);
    writer.stop().unwrap();
    shell.ends(0, &["keys", "kit", "--output", "kit.txt"]);
    let before = tree::walk(&shell.path("shop")).unwrap();

    // One is deleted, one is left unfinished as by a killed run: prune finds nothing that is old enough.
    let extra = shell.json(&["backup", "crm"]);
    shell.ends(0, &["delete", extra["id"].as_str().unwrap(), "--yes"]);
    shell.ends(0, &["forget"]);
    shell.ends(0, &["prune"]);
    shell.ends(0, &["check"]);
    shell.ends(0, &["verify", "--all"]);

    let fresh = Shell::bare();
    std::fs::copy(shell.path("kit.txt"), fresh.path("kit.txt")).unwrap();
    std::fs::remove_dir_all(shell.path("shop")).unwrap();
    std::fs::remove_file(shell.path("crm.db")).unwrap();
    let location = format!("s3://{}/backstay", servers::BUCKET);
    let recover =
        ["recover", "--storage", &location, "--kit", "kit.txt", "--endpoint", &server.endpoint];
    let words = [recover.as_slice(), &[]].concat();
    let with_keys = |words: &[&str]| {
        let mut command = fresh.command(words);
        command.env("AWS_ACCESS_KEY_ID", &server.access_key);
        command.env("AWS_SECRET_ACCESS_KEY", &server.secret_key);
        let output = command.output().unwrap();
        assert!(output.status.success(), "{words:?}: {output:?}");
    };
    with_keys(&words);
    with_keys(&["restore", "shop", "--yes"]);
    with_keys(&["restore", "crm", "--yes"]);
    let after = tree::walk(&shell.path("shop")).unwrap();
    assert_eq!(tree::differences(&before, &after), Vec::<String>::new());
    assert!(check(&shell.path("crm.db")).unwrap() > 0);
}

#[test]
fn rclone_serves_everything() {
    let server = Server::rclone().unwrap();
    lives_through_everything(&server);
    assert!(!crate::shell::contains(&server.bucket(), b"SQLite format 3"));
}

#[test]
fn moto_serves_everything_with_exactly_four_permissions() {
    lives_through_everything(&Server::moto(&ACTIONS).unwrap());
}

#[test]
fn each_missing_permission_is_named() {
    for missing in ACTIONS {
        let others: Vec<&str> = ACTIONS.into_iter().filter(|action| *action != missing).collect();
        let server = Server::moto(&others).unwrap();
        let shell = Shell::with_server(&server);
        std::fs::create_dir(shell.path("shop")).unwrap();
        let error = shell.complains(14, &["storage", "test", "main"]);
        assert!(error.contains(&format!("missing permission {missing}")), "{error}");
        shell.ends(14, &["backup", "shop"]);
        assert_eq!(shell.json(&["storage", "list"])[0]["status"], "failed");
    }
}

#[test]
fn key_that_moto_does_not_know_is_said_so() {
    let mut server = Server::moto(&ACTIONS).unwrap();
    server.access_key = "AKIAIOSFODNN7EXAMPLE".to_owned();
    let error = Shell::with_server(&server).complains(1, &["storage", "test", "main"]);
    assert!(error.contains("does not know the access key id"), "{error}");
}
