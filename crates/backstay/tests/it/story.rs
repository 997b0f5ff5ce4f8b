//! What a user does, from the first backup to the day after the disk died.

use std::process::Command;

use backstay_testkit::ledger::{BusyWriter, check};
use backstay_testkit::s3::S3Server;
use backstay_testkit::tree;

use crate::shell::{PASSPHRASE, Shell, contains};

#[test]
fn quickstart_tells_the_whole_story() {
    let shell = Shell::bare();
    let out = shell.ends(0, &["quickstart"]);
    assert!(out.contains("all 40 uploads are as they were"), "{out}");
}

#[test]
fn backup_restore_undo_and_confirm_of_a_tree() {
    let shell = Shell::with_directory();
    tree::make(&shell.path("shop"), 200).unwrap();
    let before = tree::walk(&shell.path("shop")).unwrap();
    let made = shell.json(&["backup", "shop", "--note", "before the move"]);
    assert_eq!(made["status"], "complete", "{made}");
    assert_eq!(made["note"], "before the move");
    std::fs::write(shell.path("shop/newer"), "newer").unwrap();
    let changed = tree::walk(&shell.path("shop")).unwrap();
    let refused = shell.complains(2, &["restore", "shop"]);
    assert!(refused.contains("give --yes"), "{refused}");
    assert_eq!(
        tree::differences(&changed, &tree::walk(&shell.path("shop")).unwrap()),
        Vec::<String>::new()
    );
    shell.ends(0, &["restore", "shop", "--yes"]);
    assert_eq!(
        tree::differences(&before, &tree::walk(&shell.path("shop")).unwrap()),
        Vec::<String>::new()
    );
    shell.ends(0, &["undo", "shop"]);
    assert_eq!(
        tree::differences(&changed, &tree::walk(&shell.path("shop")).unwrap()),
        Vec::<String>::new()
    );
    // V51: what was replaced was backed up too, and is held until confirmed.
    let backups = shell.json(&["backups", "shop"]);
    assert_eq!(backups[0]["trigger"], "pre-restore");
    assert!(backups[0]["hold"].is_string(), "{backups}");
    shell.ends(0, &["confirm", "shop"]);
    assert!(shell.json(&["backups", "shop"])[0]["hold"].is_null());
    let left = std::fs::read_dir(shell.dir.path()).unwrap().flatten().map(|e| e.file_name());
    assert!(!left.into_iter().any(|name| name.to_string_lossy().contains(".backstay-")));
    shell.ends(0, &["verify", "--all"]);
    shell.ends(0, &["check"]);
}

#[test]
fn everything_returns_from_bucket_and_kit_alone() {
    let server = S3Server::start().unwrap();
    let shell = Shell::with_bucket(&server);
    tree::make(&shell.path("shop"), 100).unwrap();
    let writer = BusyWriter::start(&shell.path("crm.db")).unwrap();
    shell.ends(0, &["backup", "--all"]);
    shell.ends(0, &["keys", "kit", "--output", "kit.txt"]);
    // T29, T30: a later key opens with the older kit, and older backups with their older key.
    shell.ends(0, &["keys", "rotate"]);
    shell.ends(0, &["backup", "shop"]);
    writer.stop().unwrap();
    let before = tree::walk(&shell.path("shop")).unwrap();

    // The disk died: another machine, an empty home, the same paths.
    let fresh = Shell::bare();
    std::fs::copy(shell.path("kit.txt"), fresh.path("kit.txt")).unwrap();
    std::fs::remove_dir_all(shell.path("shop")).unwrap();
    std::fs::remove_file(shell.path("crm.db")).unwrap();
    let recover = [
        "recover",
        "--storage",
        "s3://app-backups/backstay",
        "--kit",
        "kit.txt",
        "--endpoint",
        &server.endpoint,
    ];
    let mut wrong = fresh.command(&recover);
    assert_eq!(
        wrong.env("BACKSTAY_KIT_PASSPHRASE", "wrong passphrase!").status().unwrap().code(),
        Some(12)
    );
    shell_says_nothing_of(PASSPHRASE, &fresh.ends(0, &recover));
    assert_eq!(fresh.json(&["backups"]).as_array().unwrap().len(), 3);
    fresh.ends(0, &["verify", "--all"]);
    fresh.ends(0, &["restore", "shop", "--yes"]);
    fresh.ends(0, &["restore", "crm", "--yes"]);
    assert_eq!(
        tree::differences(&before, &tree::walk(&shell.path("shop")).unwrap()),
        Vec::<String>::new()
    );
    assert!(check(&shell.path("crm.db")).unwrap() > 0);
}

fn shell_says_nothing_of(secret: &str, text: &str) {
    assert!(!text.contains(secret));
}

#[test]
fn downloaded_sealed_object_opens_offline_with_the_kit_and_standard_tools_do_the_rest() {
    let shell = Shell::with_directory();
    std::fs::create_dir(shell.path("shop")).unwrap();
    std::fs::write(shell.path("shop/hello"), "hello").unwrap();
    let made = shell.json(&["backup", "shop"]);
    let id = made["id"].as_str().unwrap();
    shell.ends(0, &["keys", "kit", "--output", "kit.txt"]);
    shell.ends(0, &["download", id, "--sealed", "--output", "sealed.bks"]);
    let fresh = Shell::bare();
    for name in ["kit.txt", "sealed.bks"] {
        std::fs::copy(shell.path(name), fresh.path(name)).unwrap();
    }
    fresh.ends(0, &["decrypt", "sealed.bks", "--kit", "kit.txt", "--output", "files.tar.zst"]);
    let extract = |archive: &str, into: &str| {
        let command = format!("mkdir {into} && zstd -dc {archive} | tar -xf - -C {into}");
        assert!(
            Command::new("sh")
                .args(["-c", &command])
                .current_dir(fresh.dir.path())
                .status()
                .unwrap()
                .success()
        );
        assert_eq!(std::fs::read_to_string(fresh.path(into).join("hello")).unwrap(), "hello");
    };
    extract("files.tar.zst", "sealed");
    // encryption = "none" leaves standard files.
    shell.edit_config("kind = 'files'", "kind = 'files'\nencryption = 'none'");
    let plain = shell.json(&["backup", "shop"]);
    let location = plain["location"].as_str().unwrap();
    extract(&format!("{location}/files.tar.zst"), "plain");
    shell.ends(0, &["restore", "shop", "--yes"]);
}

#[test]
fn retention_keeps_what_it_should_and_says_why() {
    let shell = Shell::with_directory();
    std::fs::create_dir(shell.path("shop")).unwrap();
    shell.edit_config("kind = 'files'", "kind = 'files'\nkeep = { last = 2, days = 0 }");
    let held = shell.json(&["backup", "shop", "--hold"]);
    assert_eq!(held["hold"], "held when it was made", "{held}");
    for _ in 0..3 {
        shell.ends(0, &["backup", "shop"]);
    }
    let backups = shell.json(&["backups", "shop"]);
    assert_eq!(backups.as_array().unwrap().len(), 3, "{backups}");
    assert_eq!(backups[2]["id"], held["id"]);
    let plan = shell.json(&["forget", "--dry-run"]);
    assert!(plan.as_array().unwrap().iter().all(|verdict| verdict["keep"] == true), "{plan}");
    let id = held["id"].as_str().unwrap();
    assert!(shell.complains(1, &["delete", id, "--yes"]).contains("is held"));
    shell.ends(0, &["release", id]);
    shell.ends(0, &["delete", id, "--yes"]);
    assert_eq!(shell.json(&["backups", "shop"]).as_array().unwrap().len(), 2);
}

#[test]
fn unreadable_items_make_the_backup_incomplete_and_are_named() {
    let shell = Shell::with_directory();
    std::fs::create_dir(shell.path("shop")).unwrap();
    std::fs::write(shell.path("shop/good"), "good").unwrap();
    // A database that is none is left out even for root, who may read everything else.
    let mut bad = b"SQLite format 3\0".to_vec();
    bad.resize(9000, 0x55);
    std::fs::write(shell.path("shop/-bad=%\n.db"), bad).unwrap();
    let output = shell.run(&["backup", "shop", "--json"]);
    assert_eq!(output.status.code(), Some(3));
    let made: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(
        (made["status"].as_str(), made["item_errors"][0]["item"].as_str()),
        (Some("incomplete"), Some("-bad=%\\x0a.db"))
    );
    let refused = shell.complains(1, &["restore", "shop", "--yes"]);
    assert!(refused.contains("no complete backup"), "{refused}");
}

#[test]
fn wrong_configuration_makes_nothing() {
    let shell = Shell::with_directory();
    shell.edit_config("kind = 'sqlite'", "kind = 'sqlight'");
    let error = shell.complains(2, &["backup", "--all"]);
    assert!(error.contains("backstay.toml:11: sources.crm.kind: found `sqlight`"), "{error}");
    assert!(!shell.path("home").exists() && !shell.path("storage").exists());
    assert!(shell.complains(2, &["backup"]).contains("required"));
    assert_eq!(Shell::bare().run(&["backup", "--all"]).status.code(), Some(2));
}

#[test]
fn nothing_readable_and_no_secret_is_stored() {
    let server = S3Server::start().unwrap();
    let shell = Shell::with_bucket(&server);
    std::fs::create_dir(shell.path("shop")).unwrap();
    std::fs::write(shell.path("shop/file"), "plain text of a user").unwrap();
    shell.ends(0, &["backup", "shop"]);
    assert!(!contains(&server.bucket(), b"plain text"));
    assert!(!contains(&shell.path("home"), backstay_testkit::s3::SECRET_KEY.as_bytes()));
}
