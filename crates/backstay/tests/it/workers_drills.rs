//! Drills by workers on other machines (V57, V64, ADR 19).

use backstay_testkit::daemon::wait_until;
use backstay_testkit::postgres::PostgresServer;
use serde_json::{Value, json};

use crate::shell::Shell;
use crate::workers::{Fleet, log, start};
use crate::workers_by_hand::Hand;

const CHECKS: &str = "checks = [\n  { name = 'orders', query = 'SELECT count(*), max(note) FROM orders', expect = '3|third' },\n\
                      { name = 'sound', query = 'SELECT count(*) = 0 FROM orders WHERE id < 0', expect = 't' },\n]";
const ORDERS: &str = "CREATE TABLE orders (id int, note text); INSERT INTO orders VALUES (1, 'first'), (2, 'second'), (3, 'third')";
const DATABASES: &str = "SELECT count(*) FROM pg_database WHERE NOT datistemplate";

/// A fleet with a database whose address only the worker's machine knows.
fn with_database(server: &PostgresServer) -> Fleet {
    server.sql("postgres", "CREATE DATABASE shop");
    server.sql("shop", ORDERS);
    let fleet = Fleet::new("worker = 'db1'");
    let url = fleet.worker.path("url");
    std::fs::write(&url, server.url("shop")).unwrap();
    let config = fleet.server.config();
    fleet.server.set_config(format!(
        "{config}\n[sources.orders]\nkind = 'postgres'\nurl = 'file:{}'\nprograms = '{}'\nstorage = 'main'\nworker = 'db1'\nrto = '1h'\n{CHECKS}\n\n\
         [sources.open]\nkind = 'files'\npath = '${{DATA}}/shop'\nstorage = 'main'\nworker = 'db1'\nencryption = 'none'\n",
        url.display(),
        server.programs().display(),
    ));
    fleet
}

#[test]
fn drill_is_done_by_the_worker_of_a_source_with_the_key_of_that_backup() {
    let server = PostgresServer::start();
    let fleet = with_database(&server);
    let serving = fleet.serve();
    fleet.invite(&["--name", "db1"]);
    let _working = fleet.work(&["--name", "db1"]);
    wait_until("the worker is there", || fleet.worker_is_there());
    let made = fleet.server.json(&["backup", "orders"]);
    // What happens to the database itself is nothing to the drill, and neither is a newer key.
    server.sql("shop", "DROP TABLE orders");
    fleet.server.ends(0, &["keys", "rotate"]);
    let drilled = fleet.server.json(&["drill", "orders"]);
    assert_eq!((&drilled["passed"], &drilled["backup"]), (&true.into(), &made["id"]), "{drilled}");
    assert_eq!((&drilled["checks"][0]["found"], &drilled["items"]), (&"3|third".into(), &1.into()));
    assert!(drilled["rto_seconds"].as_f64().unwrap() > 0.0, "{drilled}");
    assert_eq!(server.sql("postgres", DATABASES), "2", "nothing is left");
    let job = &fleet.jobs("orders")[0];
    assert_eq!((&job["kind"], &job["worker"]), (&"drill".into(), &"db1".into()), "{job}");
    assert_eq!(job["result"]["checks"], drilled["checks"], "{job}");
    let said = job["log"].as_str().unwrap();
    assert!(said.contains("pass  orders: expected 3|third, found 3|third"), "{said}");
    // It counts as a recovery time that was seen.
    let status = fleet.server.json(&["status"]);
    let orders = status.as_array().unwrap().iter().find(|one| one["source"] == "orders");
    let seen = orders.unwrap()["rto_seen_seconds"].as_f64().unwrap();
    assert!(seen > 0.0 && seen < 3600.0, "{status}");

    // What is not sealed needs no key.
    fleet.server.ends(0, &["backup", "open"]);
    assert_eq!(fleet.server.json(&["drill", "open"])["items"], 2);
    fleet.server.edit_config("3|third", "4|fourth");
    assert_eq!(serving.end(), 0);
    let _serving = fleet.serve();
    let told = fleet.server.ends(1, &["drill", "orders"]);
    assert!(told.contains("FAIL  orders: expected 4|fourth, found 3|third"), "{told}");
    assert_eq!(fleet.states("orders")[0], "failed");
    assert_eq!(server.sql("postgres", DATABASES), "2", "nothing is left");
}

#[test]
fn drill_of_a_damaged_backup_by_a_worker_fails_and_tells_why() {
    let server = PostgresServer::start();
    let fleet = with_database(&server);
    let _serving = fleet.serve();
    fleet.invite(&["--name", "db1"]);
    let _working = fleet.work(&["--name", "db1"]);
    wait_until("the worker is there", || fleet.worker_is_there());
    fleet.server.ends(0, &["backup", "orders"]);
    let place = fleet.bucket.bucket().join("backstay/default/orders");
    let objects = backstay_testkit::tree::files_below(&place).unwrap();
    let parts = objects.iter().filter(|path| path.to_string_lossy().ends_with(".bks"));
    let largest = parts.max_by_key(|path| path.metadata().unwrap().len()).unwrap();
    let mut bytes = std::fs::read(largest).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(largest, bytes).unwrap();
    let error = fleet.server.complains(1, &["drill", "orders"]);
    assert!(error.contains("worker db1") && error.contains("is damaged"), "{error}");
    assert_eq!(fleet.states("orders")[0], "failed");
    assert_eq!(server.sql("postgres", DATABASES), "2", "nothing is left: {}", log(&fleet.worker));
}

#[test]
fn drill_of_a_worker_that_says_nonsense_fails() {
    let server = PostgresServer::start();
    let fleet = with_database(&server);
    let _serving = fleet.serve();
    fleet.invite(&["--name", "db1"]);
    let working = fleet.work(&["--name", "db1"]);
    wait_until("the worker is there", || fleet.worker_is_there());
    fleet.server.ends(0, &["backup", "orders"]);
    working.end();
    fleet.server.ends(0, &["workers", "revoke", "db1"]);
    let hand = Hand::enrol(&fleet, "db1", "elsewhere");
    let check = |passed: bool| json!({"name": "orders\u{1b}[2J", "expected": "3|third", "found": "2|second", "passed": passed});
    let report =
        json!({"items": 1, "bytes": 1, "steps": [], "checks": [check(true)], "unknown": 1});
    let both = json!({"items": 1, "bytes": 1, "steps": [], "checks": [check(false), check(true)]});
    let outcomes = [
        (json!({"result": "drilled", "report": report}), "it asked 1 checks, and the source has 2"),
        (json!({"result": "drilled", "report": both}), "checks failed: orders [2J"),
        (json!({"result": "drilled", "report": {"items": "many"}}), "cannot be read"),
        (json!({"result": "tested", "summary": "fine"}), "something else than it was asked for"),
    ];
    for (outcome, said) in outcomes {
        std::thread::scope(|scope| {
            let drill = scope.spawn(|| fleet.server.run(&["drill", "orders"]));
            let job = hand.take();
            assert_eq!(job["work"]["task"]["drill"]["backup"], newest(&fleet), "{job}");
            assert_eq!(hand.end(&job, &outcome), 202);
            assert_eq!(drill.join().unwrap().status.code(), Some(1));
        });
        let job = &fleet.jobs("orders")[0];
        let error = job["error"].as_str().unwrap();
        assert!(job["state"] == "failed" && error.contains(said), "{job}");
        assert_eq!(job["backup"], newest(&fleet));
    }
}

#[test]
fn drill_that_is_cancelled_in_its_checks_says_nothing_of_the_backup() {
    let server = PostgresServer::start();
    let fleet = with_database(&server);
    fleet.server.edit_config("SELECT count(*) = 0 FROM orders WHERE id < 0", "SELECT pg_sleep(60)");
    let _serving = fleet.serve();
    fleet.invite(&["--name", "db1"]);
    let _working = fleet.work(&["--name", "db1"]);
    wait_until("the worker is there", || fleet.worker_is_there());
    fleet.server.ends(0, &["backup", "orders"]);
    let drill = start(&fleet.server, &["drill", "orders"], &[]);
    let asked = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%pg_sleep%' AND pid <> pg_backend_pid()";
    wait_until("the check is asked", || server.sql("postgres", asked) == "1");
    let id = fleet.jobs("orders")[0]["id"].as_str().unwrap().to_owned();
    fleet.server.ends(0, &["jobs", "cancel", &id]);
    assert_eq!(drill.wait(), 1);
    assert_eq!(fleet.states("orders"), ["cancelled", "succeeded"]);
    assert_eq!(server.sql("postgres", DATABASES), "2", "nothing is left");
}

#[test]
fn drill_by_a_worker_leaves_what_a_restore_of_another_installation_keeps() {
    let fleet = Fleet::new("worker = 'db1'");
    let _serving = fleet.serve();
    fleet.invite(&["--name", "db1"]);
    let _working = fleet.work(&["--name", "db1"]);
    wait_until("the worker is there", || fleet.worker_is_there());
    fleet.server.ends(0, &["backup", "shop"]);
    let other = Shell::with_directory();
    let path = fleet.worker.path("shop");
    other.set_config(format!(
        "[storages.main]\nprovider = 'local'\npath = '{}'\n\n[sources.shop]\nkind = 'files'\npath = '{}'\nstorage = 'main'\n",
        other.path("storage").display(),
        path.display()
    ));
    other.ends(0, &["backup", "shop"]);
    std::fs::write(path.join("a.txt"), "newer").unwrap();
    other.ends(0, &["restore", "shop", "--yes"]);
    fleet.server.ends(0, &["drill", "shop"]);
    other.ends(0, &["undo", "shop"]);
    assert_eq!(std::fs::read_to_string(path.join("a.txt")).unwrap(), "newer");
}

#[test]
fn drill_of_a_source_that_becomes_the_servers_own_meanwhile_is_done_by_that() {
    let server = PostgresServer::start();
    let fleet = with_database(&server);
    let serving = fleet.serve();
    fleet.invite(&["--name", "db1"]);
    let mut working = fleet.work(&["--name", "db1"]);
    wait_until("the worker is there", || fleet.worker_is_there());
    fleet.server.ends(0, &["backup", "orders"]);
    working.kill();
    serving.end();
    let drill = start(&fleet.server, &["drill", "orders"], &[]);
    wait_until("it waits", || fleet.states("orders")[0] == "queued");
    fleet.server.edit_config("worker = 'db1'\nrto", "rto");
    let _serving = fleet.serve();
    assert_eq!(drill.wait(), 0);
    let job = &fleet.jobs("orders")[0];
    assert_eq!((&job["state"], &job["worker"]), (&"succeeded".into(), &Value::Null), "{job}");
}

fn newest(fleet: &Fleet) -> Value {
    fleet.server.json(&["backups", "orders"])[0]["id"].clone()
}
