//! Restores by workers on other machines, asked for on the server's (D7, D26, V47-V51, ADR 22).

use backstay_testkit::daemon::wait_until;
use backstay_testkit::postgres::PostgresServer;
use serde_json::{Value, json};

use crate::serve::{set_clock, under_clock};
use crate::shell::{Shell, contains};
use crate::workers::{Fleet, log, start};
use crate::workers_by_hand::Hand;

const ORDERS: &str =
    "CREATE TABLE orders AS SELECT i AS id, md5(i::text) AS note FROM generate_series(1, 1000) i";
const DATABASES: &str = "SELECT count(*) FROM pg_database WHERE NOT datistemplate";

/// A fleet with a database whose address only the workers' machines know. `FOLDER` is the first worker's.
fn with_database(server: &PostgresServer, chosen: &str) -> Fleet {
    server.sql("postgres", "CREATE DATABASE shop");
    server.sql("shop", ORDERS);
    let fleet = Fleet::new("worker = 'db1'");
    std::fs::write(fleet.worker.path("url"), server.url("shop")).unwrap();
    let config = fleet.server.config();
    let chosen = chosen.replace("FOLDER", &fleet.worker.dir.path().to_string_lossy());
    fleet.server.set_config(format!(
        "{config}\n[sources.orders]\nkind = 'postgres'\nurl = 'file:{}'\nprograms = '{}'\nstorage = 'main'\n{chosen}\n",
        fleet.worker.path("url").display(),
        server.programs().display(),
    ));
    fleet
}

#[test]
fn source_of_a_worker_is_restored_from_the_server_and_put_back() {
    let server = PostgresServer::start();
    let fleet = with_database(&server, "worker = 'db1'");
    let _serving = fleet.serve();
    fleet.invite(&["--name", "db1"]);
    let working = fleet.work(&["--name", "db1"]);
    wait_until("the worker is there", || fleet.worker_is_there());
    let backed_up = server.digest("shop");
    let made = fleet.server.json(&["backup", "orders"]);
    // The backup was sealed with another key than the safety backup will be.
    fleet.server.ends(0, &["keys", "rotate"]);
    server.sql("shop", "DELETE FROM orders WHERE id > 400; CREATE TABLE newer (id int)");
    let changed = server.digest("shop");
    let preview = fleet.server.json(&["restore", "orders", "--dry-run"]);
    assert_eq!(
        (&preview["backup"], &preview["replaces"]),
        (&made["id"], &true.into()),
        "{preview}"
    );
    let error = fleet.server.complains(2, &["undo"]);
    assert!(error.contains("of which source"), "{error}");
    let told = fleet.server.run(&["restore", "orders", "--dry-run"]).stderr;
    let told = String::from_utf8(told).unwrap();
    assert!(told.contains("1000 rows, 400 now"), "{told}");
    assert!(server.digest("shop") == changed, "a preview changes nothing");

    let report = fleet.server.json(&["restore", "orders", "--yes"]);
    assert!(server.digest("shop") == backed_up, "{report}");
    assert_eq!(report["kept"], "beside", "{report}");
    let safety = report["safety_backup"].as_str().unwrap();
    let kept = fleet.server.json(&["show", safety]);
    assert_eq!((&kept["trigger"], &kept["status"]), (&"pre-restore".into(), &"complete".into()));
    assert_ne!(kept["encryption"], made["encryption"], "it is sealed with the newest key");
    fleet.server.ends(0, &["verify", safety]);
    let job = &fleet.jobs("orders")[0];
    assert_eq!((&job["kind"], &job["worker"]), (&"restore".into(), &"db1".into()), "{job}");
    assert_eq!(job["backup"], made["id"]);
    fleet.server.ends(0, &["undo", "orders"]);
    assert!(server.digest("shop") == changed);
    fleet.server.ends(0, &["confirm", "orders"]);
    assert_eq!(server.sql("postgres", DATABASES), "2", "nothing is left");
    let released = fleet.server.json(&["show", safety]);
    assert_eq!(released["hold"], Value::Null, "confirmed, so nothing needs it");
    // Chosen tables, and the way back through the safety backup.
    let some = ["restore", "orders", "--id", made["id"].as_str().unwrap()];
    let report = fleet.server.json(&[&some[..], &["--only", "public.orders", "--yes"]].concat());
    assert_eq!(report["kept"], "in-backup-in-place", "{report}");
    assert_eq!(server.sql("shop", "SELECT count(*) FROM orders"), "1000");
    assert_eq!(server.sql("shop", "SELECT count(*) FROM newer"), "0", "it was not chosen");
    fleet.server.ends(0, &["restore", "orders", "--id", safety, "--yes"]);
    assert!(server.digest("shop") == changed);
    fleet.server.ends(0, &["confirm", "orders"]);
    let error = fleet.server.complains(1, &["undo", "orders"]);
    assert!(error.contains("worker db1") && error.contains("no restore that waits"), "{error}");
    let seen = &fleet.server.json(&["status"]).as_array().unwrap().clone();
    let orders = seen.iter().find(|one| one["source"] == "orders").unwrap();
    assert!(orders["rto_seen_seconds"].as_f64().unwrap() > 0.0, "{orders}");

    // Trees come back in the same way.
    fleet.server.ends(0, &["backup", "shop"]);
    std::fs::write(fleet.worker.path("shop/a.txt"), "changed").unwrap();
    fleet.server.ends(0, &["restore", "shop", "--yes"]);
    assert_eq!(std::fs::read_to_string(fleet.worker.path("shop/a.txt")).unwrap(), "content");
    assert_eq!(working.end(), 0);
    assert!(!contains(&fleet.worker.path("home"), backstay_testkit::s3::SECRET_KEY.as_bytes()));
}

#[test]
fn source_of_a_worker_is_restored_beside_it_and_nothing_that_is_there_changes() {
    let server = PostgresServer::start();
    let hook = "before_restore = { run = ['sh', '-c', 'touch FOLDER/hook'] }";
    let fleet = with_database(&server, &format!("worker = 'db1'\n{hook}"));
    let _serving = fleet.serve();
    fleet.invite(&["--name", "db1"]);
    let working = fleet.work(&["--name", "db1"]);
    wait_until("the worker is there", || fleet.worker_is_there());
    let made = fleet.server.json(&["backup", "orders"]);
    let backed_up = server.digest("shop");
    server.sql("shop", "DELETE FROM orders WHERE id > 400");
    let changed = server.digest("shop");

    let beside = ["restore", "orders", "--to", "as_it_was"];
    let preview = fleet.server.json(&[&beside[..], &["--dry-run"]].concat());
    assert_eq!(preview["replaces"], false, "{preview}");
    let report = fleet.server.json(&[&beside[..], &["--yes"]].concat());
    assert_eq!((&report["kept"], &report["safety_backup"]), (&"nothing".into(), &Value::Null));
    assert_eq!(server.digest("as_it_was").replace("as_it_was", "shop"), backed_up);
    assert!(server.digest("shop") == changed);
    assert!(!fleet.worker.path("hook").exists(), "the app goes on");
    assert_eq!(server.sql("postgres", DATABASES), "3", "nothing else was made");
    let error = fleet.server.complains(1, &["undo", "orders"]);
    assert!(error.contains("no restore that waits"), "{error}");
    let error = fleet.server.complains(1, &[&beside[..], &["--yes"]].concat());
    assert!(error.contains("as_it_was is there already"), "{error}");
    let states = fleet.states("orders");
    assert_eq!(states[..2], ["failed", "failed"], "refused by the preview: {states:?}");
    let some = ["restore", "orders", "--only", "public.orders", "--to", "some", "--yes"];
    fleet.server.ends(0, &some);
    assert_eq!(server.sql("some", "SELECT count(*) FROM orders"), "1000");
    // Paths are those of the machine where the command runs.
    fleet.server.ends(0, &["backup", "shop"]);
    fleet.server.ends(0, &["restore", "shop", "--to", "copy", "--yes"]);
    assert_eq!(std::fs::read_to_string(fleet.server.path("copy/a.txt")).unwrap(), "content");

    // It needs no key that seals, since nothing is backed up before.
    assert_eq!(working.end(), 0);
    fleet.server.ends(0, &["workers", "revoke", "db1"]);
    let hand = Hand::enrol(&fleet, "db1", "elsewhere");
    std::thread::scope(|scope| {
        let restore = scope.spawn(|| fleet.server.run(&[&beside[..], &["--yes"]].concat()));
        let answer = json!({"result": "done", "answer": {"backup": made["id"], "target": "x", "replaces": false, "lines": [], "facts": {}}});
        assert_eq!(hand.end(&hand.take(), &answer), 202);
        let job = hand.take();
        let order = &job["work"]["task"]["restore"];
        assert_eq!(
            (&order["spec"]["to"], &order["seals_with"]),
            (&"as_it_was".into(), &Value::Null)
        );
        assert!(order["key"].is_object(), "{order}");
        let error = json!({"result": "failed", "error": "no", "passing": null});
        assert_eq!(hand.end(&job, &error), 202);
        assert_eq!(restore.join().unwrap().status.code(), Some(1));
    });
}

#[test]
fn restore_whose_worker_is_killed_behind_the_swap_is_told_as_lost_and_can_be_put_back() {
    let server = PostgresServer::start();
    let hook = "after_restore = { run = ['sh', '-c', 'cd FOLDER; touch reached; while [ -e wait ]; do sleep 0.05; done'] }";
    let fleet = with_database(&server, &format!("worker = 'db1'\n{hook}"));
    let _serving = fleet.serve();
    fleet.invite(&["--name", "db1"]);
    let mut working = fleet.work(&["--name", "db1"]);
    wait_until("the worker is there", || fleet.worker_is_there());
    fleet.server.ends(0, &["backup", "orders"]);
    let backed_up = server.digest("shop");
    server.sql("shop", "DELETE FROM orders WHERE id > 400");
    let changed = server.digest("shop");
    std::fs::write(fleet.worker.path("wait"), "").unwrap();
    let restoring = start(&fleet.server, &["restore", "orders", "--yes"], &[]);
    wait_until("the swap is done", || fleet.worker.path("reached").exists());
    working.kill();
    set_clock(&fleet.server, 61);
    wait_until("the job is lost", || fleet.states("orders")[0] == "failed");
    assert_eq!(restoring.wait(), 1);
    assert!(fleet.jobs("orders")[0]["error"].as_str().unwrap().contains("it may have been done"));
    std::fs::remove_file(fleet.worker.path("wait")).unwrap();
    assert!(server.digest("shop") == backed_up);
    // As if it had been killed a moment before: nobody but a person says what becomes of it.
    let kept = rusqlite::Connection::open(fleet.worker.path("home/catalog.db")).unwrap();
    assert_eq!(kept.execute("UPDATE swaps SET state = 'begun'", []).unwrap(), 1);
    let _working = fleet.work(&["--name", "db1"]);
    wait_until("the worker is there again", || fleet.worker_is_there());
    let run = |words: &[&str]| {
        let mut command = fleet.server.command(words);
        under_clock(&fleet.server, &mut command);
        let output = command.output().unwrap();
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let (code, said) = run(&["backup", "orders"]);
    assert!(code == Some(1) && said.contains("was interrupted"), "{said}");
    assert!(said.contains("`backstay undo orders` puts back what was there"), "{said}");
    // Whoever wants to look at the backup beside it has said nothing of that.
    let (code, said) = run(&["restore", "orders", "--to", "beside", "--yes"]);
    assert_eq!(code, Some(0), "{said}");
    let state = || kept.query_row("SELECT state FROM swaps", [], |row| row.get::<_, String>(0));
    assert_eq!(state().unwrap(), "begun");
    server.sql("postgres", "DROP DATABASE beside");
    let (code, said) = run(&["undo", "orders"]);
    assert_eq!(code, Some(0), "{said}");
    assert!(server.digest("shop") == changed, "{}", log(&fleet.worker));
    let states = fleet.states("orders");
    let ended = ["succeeded", "succeeded", "succeeded", "failed", "failed", "succeeded"];
    assert_eq!(states[..ended.len()], ended, "{states:?}");
    fleet.server.ends(0, &["confirm", "orders"]);
    assert_eq!(server.sql("postgres", DATABASES), "2", "nothing is left");
}

#[test]
fn restore_that_is_cancelled_leaves_the_target_as_it_was_and_is_not_tried_again() {
    let server = PostgresServer::start();
    let hook = "before_restore = { run = ['sh', '-c', 'cd FOLDER; touch reached; sleep 600'] }";
    let fleet = with_database(&server, &format!("worker = 'db1'\n{hook}"));
    let _serving = fleet.serve();
    fleet.invite(&["--name", "db1"]);
    let working = fleet.work(&["--name", "db1"]);
    wait_until("the worker is there", || fleet.worker_is_there());
    fleet.server.ends(0, &["backup", "orders"]);
    server.sql("shop", "DELETE FROM orders WHERE id > 400");
    let changed = server.digest("shop");
    let reached = fleet.worker.path("reached");
    let restoring = start(&fleet.server, &["restore", "orders", "--yes"], &[]);
    wait_until("the restore is about to swap", || reached.exists());
    let id = fleet.jobs("orders")[0]["id"].as_str().unwrap().to_owned();
    fleet.server.ends(0, &["jobs", "cancel", &id]);
    assert_eq!(restoring.wait(), 1);
    assert_eq!(fleet.states("orders")[0], "cancelled");
    assert!(server.digest("shop") == changed);
    // The same of a worker that is told to end.
    std::fs::remove_file(&reached).unwrap();
    let restoring = start(&fleet.server, &["restore", "orders", "--yes"], &[]);
    wait_until("the restore is about to swap", || reached.exists());
    assert_eq!(working.end(), 0);
    assert_eq!(restoring.wait(), 1, "{}", log(&fleet.server));
    assert!(server.digest("shop") == changed);
    assert_eq!(server.sql("postgres", DATABASES), "2", "nothing is left");
    let restores = fleet.jobs("orders").into_iter().filter(|job| job["kind"] == "restore");
    assert!(restores.clone().all(|job| job["state"] == "cancelled"), "{restores:?}");
    assert_eq!(restores.count(), 2, "none is tried again");
}

#[test]
fn what_a_restore_replaced_is_put_back_by_the_worker_that_knows_where_it_is() {
    let server = PostgresServer::start();
    let fleet = with_database(&server, "worker_labels = ['db']");
    let _serving = fleet.serve();
    let second = Shell::bare();
    std::fs::copy(fleet.worker.path("url"), second.path("url")).unwrap();
    let url = format!("http://127.0.0.1:{}", fleet.port);
    let begin = |shell: &Shell, name: &str| {
        let token = fleet.server.ends(0, &["workers", "invite", "--labels", "db"]);
        std::fs::write(shell.path("token"), token).unwrap();
        let words = ["worker", "--server", &url, "--token-file", "token", "--name", name];
        start(shell, &words, &["KEY_ID", "SECRET"])
    };
    let mut workers = vec![("one", begin(&fleet.worker, "one")), ("two", begin(&second, "two"))];
    let there = || fleet.workers().iter().filter(|worker| worker["there"] == true).count() == 2;
    wait_until("both are there", there);
    fleet.server.ends(0, &["backup", "orders"]);
    let backed_up = server.digest("shop");
    server.sql("shop", "DELETE FROM orders WHERE id > 400");
    let changed = server.digest("shop");
    for round in 0..2 {
        fleet.server.ends(0, &["restore", "orders", "--yes"]);
        assert!(server.digest("shop") == backed_up, "{round}");
        fleet.server.ends(0, &["undo", "orders"]);
        assert!(server.digest("shop") == changed, "{round}");
        fleet.server.ends(0, &["confirm", "orders"]);
    }
    fleet.server.ends(0, &["restore", "orders", "--yes"]);
    let restorer = fleet.jobs("orders")[0]["worker"].as_str().unwrap().to_owned();
    let place = workers.iter().position(|(name, _)| *name == restorer).unwrap();
    workers.remove(place).1.kill();
    // That the other one is there helps nobody.
    set_clock(&fleet.server, 120);
    let run = |words: &[&str]| {
        let mut command = fleet.server.command(words);
        under_clock(&fleet.server, &mut command);
        let output = command.output().unwrap();
        let said = [output.stdout, output.stderr].concat();
        (output.status.code(), String::from_utf8_lossy(&said).into_owned())
    };
    let there = || run(&["--json", "workers", "list"]).1.matches("\"there\": true").count();
    wait_until("only one is there", || there() == 1);
    for words in [&["undo", "orders"][..], &["restore", "orders", "--yes"]] {
        let (code, error) = run(words);
        let wanted = format!("it wants worker {restorer}");
        assert!(code == Some(1) && error.contains(&wanted), "{words:?}: {error}");
    }
    // A look at the backup beside it needs nothing of what the other keeps.
    let (code, error) = run(&["restore", "orders", "--to", "beside", "--yes"]);
    assert_eq!(code, Some(0), "{error}");
    server.sql("postgres", "DROP DATABASE beside");
    // Unless it will never come back.
    fleet.server.ends(0, &["workers", "revoke", &restorer]);
    let (code, error) = run(&["undo", "orders"]);
    assert!(code == Some(1) && error.contains("no restore that waits"), "{error}");
    let (code, error) = run(&["restore", "orders", "--yes"]);
    assert_eq!(code, Some(0), "{error}");
}

#[test]
fn restore_of_a_worker_that_says_nonsense_fails() {
    let fleet = Fleet::new("worker = 'db1'");
    let _serving = fleet.serve();
    fleet.invite(&["--name", "db1"]);
    let working = fleet.work(&["--name", "db1"]);
    wait_until("the worker is there", || fleet.worker_is_there());
    let made = fleet.server.json(&["backup", "shop"]);
    working.end();
    fleet.server.ends(0, &["workers", "revoke", "db1"]);
    let hand = Hand::enrol(&fleet, "db1", "elsewhere");
    let other = format!("2020{}", &made["id"].as_str().unwrap()[4..]);
    let preview = |backup: &Value| json!({"result": "done", "answer": {"backup": backup, "target": "x", "replaces": false, "lines": ["\u{1b}[2Jgood"], "facts": {}}});
    let report = |backup: &Value| json!({"result": "done", "answer": {"backup": backup, "target": "x", "items": 1, "bytes": 1, "kept": "nothing"}});
    for (answer, said) in [
        (preview(&json!(other)), "it looked at another backup"),
        (json!({"result": "done", "answer": "well"}), "cannot be understood"),
        (
            json!({"result": "done", "answer": {"backup": made["id"], "target": "x", "replaces": false, "lines": [], "facts": "x"}}),
            "cannot be understood",
        ),
        (report(&made["id"]), "cannot be understood"),
        (json!({"result": "tested", "summary": "fine"}), "something else than it was asked for"),
    ] {
        std::thread::scope(|scope| {
            let restore = scope.spawn(|| fleet.server.run(&["restore", "shop", "--yes"]));
            let job = hand.take();
            let order = &job["work"]["task"]["preview"];
            assert_eq!(order["spec"]["backup"], made["id"], "{job}");
            assert!(order["seals_with"].is_null(), "a look needs no key that seals");
            assert_eq!(hand.end(&job, &answer), 202);
            assert_eq!(restore.join().unwrap().status.code(), Some(1));
        });
        let job = &fleet.jobs("shop")[0];
        assert!(job["state"] == "failed" && job["error"].as_str().unwrap().contains(said), "{job}");
    }
    std::thread::scope(|scope| {
        let restore = scope.spawn(|| fleet.server.run(&["restore", "shop", "--yes"]));
        assert_eq!(hand.end(&hand.take(), &preview(&made["id"])), 202);
        let job = hand.take();
        let spec = &job["work"]["task"]["restore"]["spec"];
        assert_eq!(
            (&spec["backup"], &spec["replaces"], &spec["worker"]),
            (&made["id"], &Value::Null, &"db1".into()),
            "{job}"
        );
        assert_eq!(hand.end(&job, &preview(&made["id"])), 202);
        let output = restore.join().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(said.contains("\n [2Jgood") && !said.contains('\u{1b}'), "{said}");
    });
    assert_eq!(fleet.states("shop")[0], "failed");
}
