//! Drills: a restore into a scratch place that says how long it took and what the data answers (V64).

use backstay_testkit::postgres::PostgresServer;

use crate::postgres::with_database;
use crate::shell::Shell;

const CHECKS: &str = "checks = [\n  { name = 'orders', query = 'SELECT count(*), max(note) FROM orders', expect = '3|third' },\n\
                      { name = 'sound', query = 'SELECT count(*) = 0 FROM orders WHERE id < 0', expect = 'TRUE' },\n]";
const ORDERS: &str = "CREATE TABLE orders (id int, note text); INSERT INTO orders VALUES (1, 'first'), (2, 'second'), (3, 'third')";

#[test]
fn drill_of_a_postgres_database_answers_its_checks_and_leaves_nothing() {
    let server = PostgresServer::start();
    server.sql("postgres", "CREATE DATABASE shop");
    server.sql("shop", ORDERS);
    let shell = with_database(&server, "shop", &CHECKS.replace("TRUE", "t"));
    shell.ends(0, &["backup", "db"]);
    // What happens to the database itself is nothing to the drill.
    server.sql("shop", "DROP TABLE orders");
    let drilled = shell.json(&["drill", "db"]);
    assert_eq!(drilled["passed"], true, "{drilled}");
    assert_eq!(drilled["checks"][0]["found"], "3|third");
    let steps = drilled["steps"].as_array().unwrap();
    let sum: f64 = steps.iter().map(|step| step["seconds"].as_f64().unwrap()).sum();
    assert!(sum > 0.0 && (drilled["rto_seconds"].as_f64().unwrap() - sum).abs() < 1e-6);
    let databases = "SELECT count(*) FROM pg_database WHERE NOT datistemplate";
    assert_eq!(server.sql("postgres", databases), "2", "nothing is left");
    shell.edit_config("3|third", "4|fourth");
    let told = shell.ends(1, &["drill", "db"]);
    assert!(told.contains("FAIL  orders: expected 4|fourth, found 3|third"), "{told}");
    assert!(told.contains("pass  sound"), "{told}");
    shell.edit_config("4|fourth", "3|third");
    shell.edit_config("max(note)", "max(nothing)");
    let told = shell.ends(1, &["drill", "db"]);
    assert!(told.contains("FAIL  orders") && told.contains("\"nothing\" does not exist"), "{told}");
    assert_eq!(server.sql("postgres", databases), "2", "nothing is left");
}

#[test]
fn drills_of_files_and_sqlite_need_no_room_beside_the_app() {
    let shell = Shell::with_directory();
    std::fs::create_dir(shell.path("shop")).unwrap();
    std::fs::write(shell.path("shop/one"), "one").unwrap();
    let database = rusqlite::Connection::open(shell.path("crm.db")).unwrap();
    database.execute_batch(ORDERS).unwrap();
    drop(database);
    let config = shell.config();
    shell.set_config(config + &CHECKS.replace("TRUE", "1"));
    shell.ends(0, &["backup", "shop", "crm"]);
    std::fs::remove_dir_all(shell.path("shop")).unwrap();
    std::fs::remove_file(shell.path("crm.db")).unwrap();
    let before = std::fs::read_dir(shell.dir.path()).unwrap().count();
    assert_eq!(shell.json(&["drill", "shop"])["items"], 2);
    let drilled = shell.json(&["drill", "crm"]);
    assert_eq!((&drilled["passed"], &drilled["checks"][1]["found"]), (&true.into(), &"1".into()));
    assert_eq!(std::fs::read_dir(shell.dir.path()).unwrap().count(), before);
    let left = std::fs::read_dir(shell.path("home/spool")).unwrap().count();
    assert_eq!(left, 0, "nothing is left");
    // A backup that cannot be restored fails the drill, whatever its checks say.
    let parts =
        backstay_testkit::tree::files_below(&shell.path("storage/backstay/default/crm")).unwrap();
    let part = parts.iter().find(|path| path.to_string_lossy().ends_with(".bks")).unwrap();
    let mut bytes = std::fs::read(part).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(part, bytes).unwrap();
    let error = shell.complains(13, &["drill", "crm"]);
    assert!(error.contains("is damaged"), "{error}");
}

#[test]
fn checks_of_a_tree_are_refused() {
    let shell = Shell::with_directory();
    shell.edit_config(
        "kind = 'files'",
        "kind = 'files'\nchecks = [{ name = 'x', query = 'SELECT 1' }]",
    );
    let error = shell.complains(2, &["status"]);
    assert!(
        error.contains("sources.shop.checks") && error.contains("answers no queries"),
        "{error}"
    );
}
