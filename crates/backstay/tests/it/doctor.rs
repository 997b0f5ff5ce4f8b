//! What `doctor` and `status` say, in text and in JSON.

use backstay_testkit::s3::S3Server;

use crate::shell::Shell;

#[test]
fn doctor_says_what_is_wrong_and_what_to_do() {
    let server = S3Server::start().unwrap();
    let shell = Shell::with_bucket(&server);
    std::fs::create_dir(shell.path("shop")).unwrap();
    // The database of source `crm` is not there.
    let out = shell.ends(1, &["doctor"]);
    assert!(out.contains("ok    storage main: "), "{out}");
    assert!(out.contains("ok    clock beside storage main: "), "{out}");
    assert!(out.contains("FAIL  source crm: ") && out.contains("check the source's path"), "{out}");
    backstay_testkit::ledger::BusyWriter::start(&shell.path("crm.db")).unwrap().stop().unwrap();
    shell.ends(0, &["backup", "--all"]);
    let out = shell.ends(1, &["doctor"]);
    assert!(out.contains("FAIL  keys: no recovery kit was made: `backstay keys kit"), "{out}");
    shell.ends(0, &["keys", "kit", "--output", "kit.txt"]);
    let all = shell.json(&["doctor"]);
    let findings = all["findings"].as_array().unwrap();
    assert!(findings.len() >= 7 && findings.iter().all(|finding| finding["good"] == true), "{all}");
    use std::os::unix::fs::PermissionsExt as _;
    let open = std::fs::Permissions::from_mode(0o755);
    std::fs::set_permissions(shell.path("home"), open).unwrap();
    let out = shell.run(&["doctor"]);
    let text =
        String::from_utf8_lossy(&out.stdout).into_owned() + &String::from_utf8_lossy(&out.stderr);
    assert!(!out.status.success() && text.contains("chmod 700"), "{text}");
}

#[test]
fn status_knows_the_newest_good_backup_even_if_the_storage_does_not_answer() {
    let server = S3Server::start().unwrap();
    let shell = Shell::with_bucket(&server);
    std::fs::create_dir(shell.path("shop")).unwrap();
    assert!(shell.json(&["status"])[1]["newest_good"].is_null());
    let made = shell.json(&["backup", "shop"]);
    let status = shell.json(&["status"]);
    let shop = &status[1];
    assert_eq!((&shop["source"], &shop["newest_good"]), (&"shop".into(), &made["id"]), "{status}");
    assert!(shop["age_seconds"].as_u64().is_some() && shop["last_job"] == "succeeded", "{status}");
    // The next one fails, and later the storage is gone altogether.
    std::fs::remove_dir(shell.path("shop")).unwrap();
    shell.ends(1, &["backup", "shop"]);
    let status = shell.json(&["status"]);
    assert_eq!(
        (&status[1]["newest_good"], &status[1]["last_job"]),
        (&made["id"], &"failed".into())
    );
    assert!(status[1]["troubles"].to_string().contains("does not exist"), "{status}");
    drop(server);
    let status = shell.json(&["status"]);
    assert_eq!(status[1]["newest_good"], made["id"], "{status}");
    assert!(status[1]["troubles"].to_string().contains("endpoint"), "{status}");
}
