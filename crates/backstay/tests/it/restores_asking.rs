//! Restores that are asked for by way of a server (D7, T35, V47-V51, ADR 22).

use backstay_testkit::daemon::wait_until;
use backstay_testkit::postgres::PostgresServer;
use rustix::process::Signal;
use serde_json::{Value, json};

use crate::members::{Office, ends_on};
use crate::serve::states;
use crate::shell::Shell;

fn content(office: &Office) -> String {
    std::fs::read_to_string(office.server.path("shop/a.txt")).unwrap()
}

fn write(office: &Office, text: &str) {
    std::fs::write(office.server.path("shop/a.txt"), text).unwrap();
}

/// Asks for a job by hand, and waits for its end.
fn job(office: &Office, member: &str, request: &Value) -> Value {
    let token = office.token(member);
    let (status, said) = office.ask("POST", "/jobs", Some(&token), &request.to_string());
    assert_eq!(status, 200, "{request}: {said}");
    let body = said.split_once("\r\n\r\n").unwrap().1;
    let asked: Value = serde_json::from_str(body).unwrap();
    let id = asked["id"].as_str().unwrap().to_owned();
    let mut shown = Value::Null;
    wait_until("the job ends", || {
        shown = office.json("viewer", &["jobs", "show", &id]);
        !["queued", "leased", "running"].contains(&shown["state"].as_str().unwrap())
    });
    shown
}

#[test]
fn member_restores_a_source_of_a_server_and_takes_it_back() {
    let office = Office::new(Shell::with_tree(""));
    let _serving = office.serve(&[]);
    let made = office.json("operator", &["backup", "shop"]);
    write(&office, "after");
    // The preview is the same here and there, and changes nothing.
    let dry = ["restore", "shop", "--dry-run"];
    assert_eq!(office.json("operator", &dry), office.server.json(&dry));
    let told = office.ends(0, "operator", &dry);
    assert!(told.contains("Replaces ") && told.contains("Holds     1 file"), "{told}");
    assert_eq!(content(&office), "after");
    // Nobody is there who could type the word.
    let said = office.ends(2, "admin", &["restore", "shop"]);
    assert!(said.contains("give --yes if it is meant"), "{said}");
    assert_eq!(content(&office), "after");

    let report = office.json("admin", &["restore", "shop", "--yes"]);
    assert_eq!((&report["backup"], &report["kept"]), (&made["id"], &"beside".into()), "{report}");
    assert_eq!(content(&office), "before");
    let safety = report["safety_backup"].as_str().unwrap();
    let held = office.json("viewer", &["show", safety]);
    assert_eq!(held["trigger"], "pre-restore", "{held}");
    let said = office.ends(0, "admin", &["undo", "shop"]);
    assert!(said.contains("is as it was before the restore"), "{said}");
    assert_eq!(content(&office), "after");
    office.ends(0, "admin", &["confirm", "shop"]);
    let said = office.ends(0, "admin", &["restore", "shop", "--id", safety, "--yes"]);
    assert!(said.contains("backstay undo shop"), "{said}");
    office.ends(0, "admin", &["confirm", "shop"]);
    assert_eq!(content(&office), "after");
    let said = office.ends(1, "admin", &["undo", "shop"]);
    assert!(said.contains("there is no restore that waits"), "{said}");
    let left = std::fs::read_dir(office.server.dir.path()).unwrap();
    let left =
        left.filter(|entry| entry.as_ref().unwrap().file_name().to_string_lossy().contains("shop"));
    assert_eq!(left.count(), 1, "nothing is left beside");

    let jobs = office.json("viewer", &["jobs", "list", "shop"]);
    let restored = jobs.as_array().unwrap().iter().rev().find(|job| job["kind"] == "restore");
    let restored = restored.unwrap();
    assert_eq!((&restored["asked_by"], &restored["backup"]), (&"admin".into(), &made["id"]));
    let entry = ["admin", "restore", "shop"].map(str::to_owned);
    let audit = office.audit();
    let entry = audit.iter().rev().find(|one| one[..3] == entry).unwrap();
    assert_eq!(entry[3], format!("asked for as job {}", restored["id"].as_str().unwrap()));
    for action in ["undo", "confirm"] {
        assert!(audit.iter().any(|entry| entry[1] == action), "{audit:?}");
    }
    // How long it took is what the next one is expected to take.
    let dry = office.json("operator", &["restore", "shop", "--dry-run"]);
    assert!(dry["expected_seconds"].as_f64().is_some(), "{dry}");
}

/// D8, V25.
#[test]
fn restores_need_an_admin_and_previews_an_operator() {
    let office = Office::new(Shell::with_tree(""));
    let _serving = office.serve(&[]);
    let made = office.json("operator", &["backup", "shop"]);
    write(&office, "after");
    for (kind, least) in
        [("preview", "operator"), ("restore", "admin"), ("undo", "admin"), ("confirm", "admin")]
    {
        let request = json!({"source": "shop", "kind": kind, "backup": made["id"]}).to_string();
        for role in ["viewer", "operator", "admin", "owner"] {
            let order = ["viewer", "operator", "admin", "owner"];
            let rank = |role| order.iter().position(|one| *one == role);
            let expected = if rank(role) < rank(least) { 403 } else { 200 };
            let (status, said) = office.ask("POST", "/jobs", Some(&office.token(role)), &request);
            assert_eq!(status, expected, "{role} {kind}: {said}");
        }
    }
    office.ends(14, "operator", &["restore", "shop", "--yes"]);
    let ended = |state: String| state == "succeeded" || state == "failed";
    wait_until("all is done", || states(&office.server).into_iter().all(ended));
    assert_eq!(content(&office), "after", "nobody said yes to replacing it");
}

/// To a new database by its name; to paths and other servers only on the machine itself.
#[test]
fn member_restores_beside_a_database_and_nowhere_else() {
    let server = PostgresServer::start();
    server.sql("postgres", "CREATE DATABASE shop");
    server.sql("shop", "CREATE TABLE orders AS SELECT i AS id FROM generate_series(1, 100) i");
    let office = Office::new(Shell::with_tree(""));
    let config = office.server.config();
    office.server.set_config(format!(
        "{config}\n[sources.db]\nkind = 'postgres'\nurl = '{}'\nprograms = '{}'\nstorage = 'main'\n",
        server.url("shop"),
        server.programs().display(),
    ));
    let _serving = office.serve(&[]);
    office.ends(0, "operator", &["backup", "db", "shop"]);
    let backed_up = server.digest("shop");
    server.sql("shop", "DELETE FROM orders");
    let changed = server.digest("shop");

    let beside = ["restore", "db", "--to", "as_it_was"];
    let dry = [&beside[..], &["--dry-run"]].concat();
    assert_eq!(office.json("operator", &dry), office.server.json(&dry));
    office.ends(14, "operator", &[&beside[..], &["--yes"]].concat());
    let report = office.json("admin", &[&beside[..], &["--yes"]].concat());
    assert_eq!((&report["kept"], &report["safety_backup"]), (&"nothing".into(), &Value::Null));
    assert_eq!(server.digest("as_it_was").replace("as_it_was", "shop"), backed_up);
    let beside_it =
        office.audit().into_iter().filter(|entry| entry[3].contains("to as_it_was beside it"));
    assert_eq!(beside_it.count(), 1);
    assert!(server.digest("shop") == changed);
    let said = office.ends(1, "admin", &["undo", "db"]);
    assert!(said.contains("there is no restore that waits"), "{said}");

    let path = office.server.path("elsewhere");
    let url = server.url("elsewhere");
    for (source, to) in [
        ("shop", path.to_str().unwrap()),
        ("db", &url),
        ("db", "file:/etc/hostname"),
        ("db", "${HOME}"),
    ] {
        let said = office.ends(2, "owner", &["restore", source, "--to", to, "--yes"]);
        assert!(said.contains("on the server's machine"), "{said}");
        let job = json!({"source": source, "kind": "restore", "backup": "x", "to": to}).to_string();
        let (status, said) = office.ask("POST", "/jobs", Some(&office.token("owner")), &job);
        assert!(status == 400 && said.contains("on the server's machine"), "{to}: {said}");
    }
    assert!(!path.exists());
    let databases = "SELECT count(*) FROM pg_database WHERE NOT datistemplate";
    assert_eq!(server.sql("postgres", databases), "3");
}

#[test]
fn restore_by_hand_replaces_nothing_that_nobody_said_yes_to() {
    let office = Office::new(Shell::with_tree(""));
    let _serving = office.serve(&[]);
    let made = office.json("operator", &["backup", "shop"]);
    write(&office, "after");
    let wish = |more: Value| {
        let mut wish = json!({"source": "shop", "kind": "restore", "backup": made["id"]});
        wish.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        wish
    };
    let shop = office.json("operator", &["restore", "shop", "--dry-run"])["target"].clone();
    let refused = job(&office, "admin", &wish(json!({})));
    let error = refused["error"].as_str().unwrap();
    assert!(refused["state"] == "failed" && error.contains("said yes to is nothing"), "{refused}");
    assert_eq!(content(&office), "after");
    // Half an id may be another's, and none is none.
    let half = &made["id"].as_str().unwrap()[..10];
    for backup in [json!(half), Value::Null, json!("../shop")] {
        let asked = wish(json!({"backup": backup, "replaces": shop})).to_string();
        let (status, said) = office.ask("POST", "/jobs", Some(&office.token("admin")), &asked);
        assert!(status == 400 && said.contains("whole id"), "{said}");
    }
    // What was seen is not what would be replaced.
    let refused = job(&office, "admin", &wish(json!({"replaces": "/srv/other"})));
    let error = refused["error"].as_str().unwrap();
    assert!(refused["state"] == "failed" && error.contains("/srv/other"), "{refused}");
    // A word that nobody knows restores nothing, and no more than was meant.
    for word in ["olny", "to", "safety-backup"] {
        let asked = wish(json!({"replaces": shop, word: "a.txt"})).to_string();
        let (status, said) = office.ask("POST", "/jobs", Some(&office.token("admin")), &asked);
        assert!(status == 400 && said.contains(word), "{said}");
    }
    assert_eq!(content(&office), "after");
    // What is not below the tree is nobody's to restore.
    for only in ["../storage", "/etc", ""] {
        let asked = wish(json!({"only": [only], "replaces": shop}));
        let failed = job(&office, "admin", &asked);
        assert_eq!(failed["state"], "failed", "{only}: {failed}");
    }
    assert_eq!(content(&office), "after");
    // Where nothing is, nothing is replaced.
    std::fs::rename(office.server.path("shop"), office.server.path("gone")).unwrap();
    let done = job(&office, "admin", &wish(json!({})));
    assert_eq!((&done["state"], &done["result"]["kept"]), (&"succeeded".into(), &"nothing".into()));
    assert_eq!(content(&office), "before");
    write(&office, "after");
    let done = job(&office, "admin", &wish(json!({"replaces": shop, "safety_backup": false})));
    assert_eq!(
        (&done["state"], &done["result"]["safety_backup"]),
        (&"succeeded".into(), &Value::Null)
    );
    assert_eq!(content(&office), "before");
    // The same id again is the same job, and another wish under it is refused.
    let id = done["id"].as_str().unwrap();
    let again = wish(json!({"replaces": shop, "safety_backup": false, "id": id}));
    assert_eq!(job(&office, "admin", &again)["id"], id);
    let mine = json!({"replaces": shop, "safety_backup": false, "id": id});
    let another = office.json("operator", &["backup", "shop"])["id"].clone();
    for (name, value) in [("safety_backup", json!(true)), ("backup", another)] {
        let mut other = mine.clone();
        other[name] = value;
        let other = wish(other).to_string();
        assert_eq!(office.ask("POST", "/jobs", Some(&office.token("admin")), &other).0, 400);
    }
}

#[test]
fn restore_whose_command_is_interrupted_leaves_the_target_as_it_was() {
    let hook = "before_restore = { run = ['sh', '-c', 'touch reached; sleep 600'] }";
    let office = Office::new(Shell::with_tree(hook));
    let serving = office.serve(&[]);
    office.json("operator", &["backup", "shop"]);
    write(&office, "after");
    let restoring = office.start("admin", &["restore", "shop", "--yes"]);
    let reached = office.server.path("reached");
    wait_until("the restore is about to swap", || reached.exists());
    assert_eq!(ends_on(Signal::INT, restoring), Some(130), "{}", office.log());
    let state = || office.json("viewer", &["jobs", "list"])[0]["state"].clone();
    wait_until("the job is cancelled", || state() == "cancelled");
    assert_eq!(content(&office), "after");
    // The same of a server that is told to end.
    std::fs::remove_file(&reached).unwrap();
    let restoring = office.start("admin", &["restore", "shop", "--yes"]);
    wait_until("the restore is about to swap", || reached.exists());
    serving.end();
    let _serving = office.serve(&[]);
    assert_eq!(restoring.wait_with_output().unwrap().status.code(), Some(1), "{}", office.log());
    assert_eq!(content(&office), "after");
    assert_eq!(state(), "cancelled");
}

#[test]
fn undo_that_is_interrupted_before_the_swap_starts_the_app_again() {
    let stop = "before_restore = { run = ['sh', '-c', 'if [ -e hang ]; then touch reached; sleep 600; fi'] }";
    let begin = "after_restore = { run = ['sh', '-c', 'touch started'] }";
    let office = Office::new(Shell::with_tree(&format!("{stop}\n{begin}")));
    let _serving = office.serve(&[]);
    office.json("operator", &["backup", "shop"]);
    write(&office, "after");
    office.ends(0, "admin", &["restore", "shop", "--yes"]);
    let (started, hang) = (office.server.path("started"), office.server.path("hang"));
    std::fs::remove_file(&started).unwrap();
    std::fs::write(&hang, "").unwrap();
    let undoing = office.start("admin", &["undo", "shop"]);
    wait_until("the app is stopped", || office.server.path("reached").exists());
    assert_eq!(ends_on(Signal::INT, undoing), Some(130), "{}", office.log());
    wait_until("the app is started again", || started.exists());
    assert_eq!(content(&office), "before", "nothing was put back");
    std::fs::remove_file(&hang).unwrap();
    office.ends(0, "admin", &["undo", "shop"]);
    assert_eq!(content(&office), "after");
}

#[test]
fn undo_that_was_killed_behind_the_swap_is_finished_and_undoes_nothing_older() {
    let office = Office::new(Shell::with_tree(""));
    let _serving = office.serve(&[]);
    let first = office.json("operator", &["backup", "shop"])["id"].clone();
    write(&office, "second");
    let second = office.json("operator", &["backup", "shop"])["id"].clone();
    write(&office, "third");
    for id in [&first, &second] {
        office.ends(0, "admin", &["restore", "shop", "--id", id.as_str().unwrap(), "--yes"]);
    }
    let catalog = rusqlite::Connection::open(office.server.path("home/catalog.db")).unwrap();
    let killed = "CREATE TRIGGER killed BEFORE UPDATE ON swaps WHEN new.state = 'undone' BEGIN SELECT raise(ABORT, 'killed'); END";
    catalog.execute_batch(killed).unwrap();
    office.ends(1, "admin", &["undo", "shop"]);
    assert_eq!(content(&office), "before");
    catalog.execute_batch("DROP TRIGGER killed").unwrap();
    let said = office.ends(0, "admin", &["undo", "shop"]);
    assert!(said.contains("is as it was before the restore"), "{said}");
    assert_eq!(content(&office), "before", "as after the first restore");
    office.ends(0, "admin", &["undo", "shop"]);
    assert_eq!(content(&office), "third");
}

#[test]
fn preview_of_very_many_tables_says_all_the_same_what_is_replaced() {
    let shell = Shell::bare();
    let path = shell.path("app.db");
    let app = rusqlite::Connection::open(&path).unwrap();
    app.execute_batch("BEGIN; CREATE TABLE \"esc\u{1b}[31m\" (id)").unwrap();
    for n in 0..1000 {
        app.execute_batch(&format!("CREATE TABLE t{n} (id)")).unwrap();
    }
    app.execute_batch("COMMIT").unwrap();
    shell.set_config(format!(
        "[storages.main]\nprovider = 'local'\npath = '{}'\n\n[sources.app]\nkind = 'sqlite'\npath = '{}'\nstorage = 'main'\n",
        shell.path("storage").display(),
        path.display(),
    ));
    let office = Office::new(shell);
    let _serving = office.serve(&[]);
    office.json("operator", &["backup", "app"]);
    let there = office.ends(0, "operator", &["restore", "app", "--dry-run"]);
    let here = office.server.run(&["restore", "app", "--dry-run"]).stderr;
    for told in [there, String::from_utf8(here).unwrap()] {
        assert!(told.contains("Replaces ") && told.contains("How  "), "{told}");
        assert!(told.contains("more lines; --dry-run --json lists all"), "{told}");
        assert!(!told.contains('\u{1b}'), "{told}");
    }
}
