//! A server whose machine is lost, and whose workers and members go on with the next (V65, ADR 18).

use std::process::Output;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use backstay_testkit::daemon::wait_until;
use backstay_testkit::s3::BUCKET;

use crate::shell::Shell;
use crate::workers::Fleet;

/// Loses all that the server's machine had, and recovers it from the bucket. Returns what that said.
fn lose_and_recover(fleet: &Fleet) -> String {
    std::fs::remove_dir_all(fleet.server.path("home")).unwrap();
    std::fs::remove_file(fleet.server.path("backstay.toml")).unwrap();
    let storage = format!("s3://{BUCKET}");
    let recover = ["recover", "--storage", &storage, "--kit", "kit.txt"];
    fleet.server.ends(0, &[&recover[..], &["--endpoint", &fleet.bucket.endpoint]].concat())
}

/// Asks the server as a member.
fn ask(fleet: &Fleet, token: &str, words: &[&str]) -> Output {
    let mut command = fleet.worker.command(words);
    command.env("BACKSTAY_SERVER", format!("http://127.0.0.1:{}", fleet.port));
    command.env("BACKSTAY_TOKEN", token.trim());
    command.env("BACKSTAY_HOME", fleet.worker.path("of nobody"));
    command.output().unwrap()
}

#[test]
fn server_that_was_lost_and_recovered_goes_on_with_its_workers_and_members() {
    let fleet = Fleet::new("worker = 'db1'");
    let mut serving = fleet.serve();
    let add = |name, role| fleet.server.ends(0, &["members", "add", name, "--role", role]);
    let (ops, left) = (add("ops", "operator"), add("left", "owner"));
    fleet.invite(&["--name", "db1"]);
    let _working = fleet.work(&["--name", "db1"]);
    wait_until("the worker is there", || fleet.worker_is_there());
    fleet.server.ends(0, &["backup", "shop"]);
    fleet.server.ends(0, &["keys", "kit", "--output", "kit.txt"]);
    assert!(ask(&fleet, &left, &["backups"]).status.success());
    // No backup is made after this.
    fleet.server.ends(0, &["members", "revoke", "left"]);
    serving.kill();

    let told = lose_and_recover(&fleet);
    assert!(told.contains("members: default/ops (operator);"), "{told}");
    assert!(told.contains("workers: db1;"), "{told}");
    let mut serving = fleet.serve();
    // The same process, which nobody invited anew.
    wait_until("the worker is there", || fleet.worker_is_there());
    let made = ask(&fleet, &ops, &["--json", "backup", "shop"]);
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let made: serde_json::Value = serde_json::from_slice(&made.stdout).unwrap();
    assert_eq!(fleet.jobs("shop")[0]["worker"], "db1");
    fleet.server.ends(0, &["verify", made["id"].as_str().unwrap()]);
    let refused = ask(&fleet, &left, &["backups"]);
    assert!(!refused.status.success(), "revoked is revoked");

    fleet.server.ends(0, &["workers", "revoke", "db1"]);
    serving.kill();
    let told = lose_and_recover(&fleet);
    assert!(told.contains("members: default/ops") && !told.contains("workers:"), "{told}");
    assert!(fleet.workers().is_empty());
}

#[test]
fn revocation_waits_for_whoever_backs_the_catalog_up_since_before_it() {
    let shell = Shell::with_tree("");
    shell.ends(0, &["members", "add", "left", "--role", "owner"]);
    shell.ends(0, &["backup", "shop"]);
    // Another machine does, as far as anybody here can see, for two seconds more.
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    let until = i64::try_from((now + Duration::from_secs(2)).as_micros()).unwrap();
    let held = "UPDATE leases SET expires_at = ?1, holder = '{\"host\": \"elsewhere\", \"boot\": \"1\", \"pid\": 1, \"started\": 1}' \
                WHERE source LIKE 'catalog in vault %'";
    let catalog = rusqlite::Connection::open(shell.path("home/catalog.db")).unwrap();
    assert_eq!(catalog.execute(held, [until]).unwrap(), 1);

    shell.ends(0, &["members", "revoke", "left"]);
    let kept = shell.json(&["catalog", "backup"]);
    assert_eq!(kept[0]["state"], "unchanged", "the revocation was in it: {kept}");
}

#[test]
fn revocation_on_a_recovered_machine_reaches_storages_that_it_has_not_used_yet() {
    let shell = Shell::with_tree("");
    let config = shell.config();
    let offsite = shell.path("offsite");
    shell.set_config(format!(
        "{config}\n[storages.offsite]\nprovider = 'local'\npath = '{}'\n\n[sources.notes]\nkind = 'files'\npath = '{}'\nstorage = 'offsite'\n",
        offsite.display(),
        shell.path("shop").display(),
    ));
    shell.ends(0, &["members", "add", "left", "--role", "owner"]);
    shell.ends(0, &["backup", "--all"]);
    shell.ends(0, &["keys", "kit", "--output", "kit.txt"]);
    let lose_and_recover = |storage: &str| {
        std::fs::remove_dir_all(shell.path("home")).unwrap();
        std::fs::remove_file(shell.path("backstay.toml")).unwrap();
        let storage = shell.path(storage).display().to_string();
        shell.ends(0, &["recover", "--storage", &storage, "--kit", "kit.txt"])
    };
    assert!(lose_and_recover("storage").contains("default/left"));
    shell.ends(0, &["members", "revoke", "left"]);
    let told = lose_and_recover("offsite");
    assert!(!told.contains("default/left"), "{told}");
}
