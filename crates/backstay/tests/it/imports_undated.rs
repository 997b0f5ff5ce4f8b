//! A dump of which nobody knows when it was made is a backup, and hides none whose time is known.

use backstay_testkit::daemon::wait_until;
use backstay_testkit::postgres::PostgresServer;

use crate::imports::{dump, imported, text, with_orders};
use crate::shell::Shell;

/// Imports a script that was written a moment ago, of data that is older than whatever else there is.
fn copy_of_old_data(server: &PostgresServer, shell: &Shell, before: impl Fn()) -> String {
    let script = dump(server, shell, "copy.sql", &[]);
    before();
    // Times of dumps are in whole seconds.
    let seconds = || jiff::Timestamp::now().as_second();
    let made = seconds();
    wait_until("it is a second later", || seconds() > made);
    let now = std::time::SystemTime::now();
    std::fs::File::open(&script).unwrap().set_modified(now).unwrap();
    imported(shell, &script)["id"].as_str().unwrap().to_owned()
}

/// V9, V29, V41.
#[test]
fn copy_of_an_old_dump_is_neither_the_newest_backup_nor_taken_by_default() {
    let (server, shell) = with_orders();
    let id = copy_of_old_data(&server, &shell, || {
        server.sql("shop", "CREATE TABLE newer (n int); INSERT INTO newer VALUES (1)");
        shell.ends(0, &["backup", "db"]);
    });
    let listed = shell.json(&["backups", "db"]);
    assert_eq!((&listed[0]["id"], &listed[0]["undated"]), (&id.as_str().into(), &true.into()));
    let ours = listed[1]["id"].as_str().unwrap();
    assert!(shell.ends(0, &["backups", "db"]).contains("its time is not known; 1 warning"));
    let status = shell.json(&["status"]);
    assert_eq!(status[0]["newest_good"], ours, "{status}");
    let preview = shell.json(&["restore", "db", "--dry-run"]);
    assert_eq!(preview["backup"], ours, "{preview}");
    let preview = shell.complains(0, &["restore", "db", "--id", &id, "--dry-run"]);
    for said in [
        "copy.sql (a script of SQL statements); its time is only that of the file",
        "since it was made,",
        "there now, and not in the backup: public.newer (1 row)",
    ] {
        assert!(preview.contains(said), "{said}: {preview}");
    }
    // What the vault keeps of it is enough.
    shell.ends(0, &["check"]);
    assert_eq!(shell.json(&["restore", "db", "--dry-run"])["backup"], ours);
}

#[test]
fn only_backup_of_an_unknown_time_is_no_protection_and_is_restored_all_the_same() {
    let (server, shell) = with_orders();
    let id = copy_of_old_data(&server, &shell, || ());
    let status = shell.json(&["status"]);
    assert_eq!(status[0]["health"], "unprotected", "{status}");
    server.sql("shop", "DELETE FROM orders");
    let report = shell.json(&["restore", "db", "--yes"]);
    assert_eq!(report["backup"], id.as_str(), "{report}");
    assert_eq!(server.sql("shop", "SELECT count(*) FROM orders"), "1000");
    let script = shell.path("copy.sql");
    shell.ends(0, &["import", "db", text(&script), "--dry-run"]);
}
