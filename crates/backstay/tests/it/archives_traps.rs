//! Traps that an archive of rows must not fall into: what deleting takes along, what is not the value that it was, what is
//! not the row that it was (H13).

use std::path::Path;

use backstay_testkit::duckdb;
use backstay_testkit::mysql::MysqlServer;
use backstay_testkit::postgres::PostgresServer;

use crate::archives::{sqlite, sqlite_rows_of, with_sqlite_of};
use crate::archives_engines::{with_duckdb, with_mariadb, with_postgres};
use crate::shell::Shell;

fn postgres(statements: &str, table: &str) -> (PostgresServer, Shell) {
    let server = PostgresServer::start();
    server.sql("postgres", "CREATE DATABASE shop");
    server.sql("shop", statements);
    let shell = with_postgres(&server, table, "delete = true\nencryption = 'none'");
    (server, shell)
}

fn mariadb(statements: &str) -> (MysqlServer, Shell) {
    let server = MysqlServer::start();
    server.sql("", "CREATE DATABASE shop CHARACTER SET utf8mb4");
    server.sql("shop", statements);
    let shell = with_mariadb(&server);
    (server, shell)
}

fn run(shell: &Shell) -> serde_json::Value {
    shell.json(&["archives", "run", "events"])[0].clone()
}

fn restore(shell: &Shell) {
    shell.ends(0, &["archives", "restore", "events", "--yes"]);
}

fn all(database: &Path, columns: &str) -> String {
    sqlite_rows_of(
        database,
        &format!("SELECT group_concat({columns}, ';' ORDER BY id) FROM events"),
    )
}

#[test]
fn rows_of_tables_that_inherit_are_neither_archived_nor_deleted() {
    let (server, shell) = postgres(
        "CREATE TABLE events (id int PRIMARY KEY, created_at timestamptz, v text); CREATE TABLE child (extra text) INHERITS (events);
         INSERT INTO events VALUES (1, '2020-01-01', 'p'); INSERT INTO child VALUES (2, '2020-01-02', 'c', 'precious')",
        "events",
    );
    let run = run(&shell);
    assert_eq!((&run["archived"], &run["deleted"]), (&1.into(), &1.into()), "{run}");
    assert_eq!(server.sql("shop", "SELECT id, extra FROM child"), "2|precious");
    assert_eq!(server.sql("shop", "SELECT count(*) FROM ONLY events"), "0");
}

#[test]
fn references_to_a_partition_and_rules_keep_rows_from_being_deleted() {
    let (server, shell) = postgres(
        "CREATE TABLE events (id int, created_at timestamptz, PRIMARY KEY (id, created_at)) PARTITION BY RANGE (created_at);
         CREATE TABLE e20 PARTITION OF events FOR VALUES FROM ('2020-01-01') TO ('2021-01-01');
         CREATE TABLE det (a int, b timestamptz, FOREIGN KEY (a, b) REFERENCES e20 (id, created_at) ON DELETE CASCADE);
         INSERT INTO events VALUES (1, '2020-05-05'); INSERT INTO det VALUES (1, '2020-05-05')",
        "events",
    );
    let error = shell.complains(1, &["archives", "run", "events"]);
    assert!(error.contains("changes rows of public.det"), "{error}");
    assert_eq!(server.sql("shop", "SELECT count(*) FROM det"), "1");
    server.sql("shop", "DROP TABLE det; CREATE TABLE log (n int); CREATE RULE r AS ON DELETE TO events DO ALSO DELETE FROM log");
    let error = shell.complains(1, &["archives", "run", "events"]);
    assert!(error.contains("the rule r does something else"), "{error}");
    server.sql("shop", "DROP RULE r ON events");
    assert_eq!(run(&shell)["deleted"], 1);
    restore(&shell);
    assert_eq!(server.sql("shop", "SELECT id FROM e20"), "1");
}

#[test]
fn row_that_went_back_to_what_it_was_is_archived_again_as_the_newest() {
    let shell = with_sqlite_of(
        "CREATE TABLE events (id INTEGER PRIMARY KEY, created_at TEXT, v TEXT); INSERT INTO events VALUES (1, '2020-01-01', 'A')",
        "encryption = 'none'",
    );
    let database = shell.path("app.db");
    for value in ["A", "B", "A"] {
        sqlite(&database)
            .execute("UPDATE events SET v = ?1, created_at = created_at || ' 00:00:00'", [value])
            .unwrap();
        sqlite(&database)
            .execute_batch("UPDATE events SET created_at = substr(created_at, 1, 10)")
            .unwrap();
        // Numbers and times are those of before; only who looks sees the change.
        shell.edit_config("encryption = 'none'", "encryption = 'none'\ndelete = true");
        shell.json(&["archives", "run", "events"]);
        restore(&shell);
        assert_eq!(all(&database, "v"), value);
        shell.edit_config("encryption = 'none'\ndelete = true", "encryption = 'none'");
    }
}

#[test]
fn deletion_follows_the_configuration_of_today() {
    let shell = with_sqlite_of(
        "CREATE TABLE events (id INTEGER PRIMARY KEY, created_at TEXT); INSERT INTO events VALUES (1, '2020-01-01'), (2, datetime('now', '-3 days'));
         CREATE TABLE others (id INTEGER PRIMARY KEY, created_at TEXT); INSERT INTO others SELECT * FROM events",
        "encryption = 'none'",
    );
    let database = shell.path("app.db");
    assert_eq!(run(&shell)["archived"], 2);
    shell.edit_config("older_than = '1d'", "older_than = '365d'\ndelete = true");
    assert_eq!(run(&shell)["deleted"], 1);
    assert_eq!(all(&database, "id"), "2", "it is archived, but young");
    shell.edit_config("older_than = '365d'", "older_than = '1d'");
    assert_eq!(run(&shell)["deleted"], 1);
    // Another table is another archive.
    shell.edit_config("table = 'events'", "table = 'others'");
    let error = shell.complains(1, &["archives", "run", "events"]);
    assert!(error.contains("holds rows of events by created_at, and not of others"), "{error}");
    assert_eq!(sqlite_rows_of(&database, "SELECT count(*) FROM others"), "2");
}

#[test]
fn numbers_and_texts_of_sqlite_return_to_the_bit() {
    let shell = with_sqlite_of(
        "PRAGMA encoding = 'UTF-16le'; CREATE TABLE events (id INTEGER PRIMARY KEY, created_at TEXT, r REAL, n NUMERIC, t TEXT, x)",
        "delete = true",
    );
    let database = shell.path("app.db");
    let connection = sqlite(&database);
    let mut bits: u64 = 0x9e37_79b9_7f4a_7c15;
    for id in 0..3000_i64 {
        bits = bits.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let double = f64::from_bits(bits);
        let double = if double.is_nan() { 0.1 } else { double };
        connection
            .execute(
                "INSERT INTO events VALUES (?1, '2020-01-01', ?2, ?3, ?4, CASE ?1 % 2 WHEN 0 THEN ?2 ELSE 'x' || char(0) || 'y' END)",
                (id, double, id * 1_000_000_007, format!("ab\0{id}")),
            )
            .unwrap();
    }
    drop(connection);
    let bits = || {
        let connection = sqlite(&database);
        let mut rows = connection.prepare("SELECT r, n, t, x FROM events ORDER BY id").unwrap();
        let row = |row: &rusqlite::Row<'_>| {
            let values = (0..4).map(|i| row.get::<_, rusqlite::types::Value>(i).unwrap());
            let shown = values.map(|value| match value {
                rusqlite::types::Value::Real(number) => format!("{:x}", number.to_bits()),
                other => format!("{other:?}"),
            });
            Ok(shown.collect::<Vec<_>>().join("|"))
        };
        rows.query_map([], row).unwrap().map(Result::unwrap).collect::<Vec<_>>()
    };
    let before = bits();
    assert_eq!(run(&shell)["deleted"], 3000);
    restore(&shell);
    let after = bits();
    let differing = before.iter().zip(&after).find(|(before, after)| before != after);
    assert_eq!(differing, None);
    assert_eq!(after.len(), before.len());
}

#[test]
fn values_whose_text_is_not_their_value_are_refused() {
    for (column, value) in [
        ("x UNION(a INTEGER, b VARCHAR)", "union_value(a := 1)"),
        ("x STRUCT(u UNION(a INTEGER, b VARCHAR))", "{'u': union_value(a := 1)}"),
        ("x MAP(VARCHAR, VARCHAR)", "MAP {'\\': 'a\"b'}"),
    ] {
        let shell = with_duckdb(
            &format!(
                "CREATE TABLE events (id INTEGER PRIMARY KEY, created_at TIMESTAMP, {column}); INSERT INTO events VALUES (1, '2020-01-01', {value})"
            ),
            "delete = true",
        );
        let error = shell.complains(1, &["archives", "run", "events"]);
        assert!(error.contains("cannot be archived"), "{column}: {error}");
        assert_eq!(
            duckdb::sql(&shell.path("app.duckdb"), "SELECT count(*) AS n FROM events"),
            "{\"n\":1}"
        );
    }
    let (server, shell) = mariadb(
        "CREATE TABLE events (id INT PRIMARY KEY, created_at DATETIME, b BLOB, e ENUM('a')); INSERT INTO events VALUES (1, '2020-01-01', X'FF00FE', 'a');
         SET sql_mode = ''; INSERT INTO events VALUES (2, '2020-01-01', X'00', 'bogus')",
    );
    let error = shell.complains(1, &["archives", "run", "events"]);
    assert!(error.contains("column e holds a value that its list does not have"), "{error}");
    shell.edit_config("delete = true", "as_text = ['b']\ndelete = true");
    let error = shell.complains(1, &["archives", "run", "events"]);
    assert!(error.contains("whose text is not its value"), "{error}");
    assert_eq!(server.sql("shop", "SELECT count(*) FROM events"), "2");
}

#[test]
fn types_that_only_share_a_name_and_columns_beside_generated_ones_return() {
    let (server, shell) = postgres(
        "CREATE SCHEMA x; CREATE TYPE x.json AS (a int, b text); CREATE TABLE events (id int PRIMARY KEY, created_at int, j x.json, js x.json[]);
         INSERT INTO events VALUES (1, 1577836800, ROW(7, 'seven')::x.json, ARRAY[ROW(8, 'it''s')::x.json])",
        "events",
    );
    shell.edit_config("column = 'created_at'", "column = 'created_at'\ncolumn_unit = 's'");
    let before = server.sql("shop", "SELECT e::text FROM events e");
    assert_eq!(run(&shell)["deleted"], 1);
    restore(&shell);
    assert_eq!(server.sql("shop", "SELECT e::text FROM events e"), before);
    let shell = with_duckdb(
        "CREATE TABLE events (id INTEGER PRIMARY KEY, created_at TIMESTAMP, amount INTEGER, total_amount INTEGER GENERATED ALWAYS AS (id * 2));
         INSERT INTO events (id, created_at, amount) VALUES (1, '2020-01-01', 42)",
        "delete = true",
    );
    assert_eq!(run(&shell)["deleted"], 1);
    restore(&shell);
    let row = "SELECT amount AS a, total_amount AS t FROM events";
    assert_eq!(duckdb::sql(&shell.path("app.duckdb"), row), "{\"a\":42,\"t\":2}");
}

#[test]
fn restored_rows_that_are_not_what_was_archived_are_taken_back() {
    let (server, shell) = postgres(
        "CREATE TABLE events (id int PRIMARY KEY, created_at timestamptz, v text, n numeric(20,4));
         INSERT INTO events VALUES (1, '2020-01-01', 'abcdefgh', 1.2345), (2, '2020-01-02', 'abc', 1)",
        "events",
    );
    assert_eq!(run(&shell)["deleted"], 2);
    server.sql("shop", "ALTER TABLE events ALTER v TYPE varchar(3)");
    let refused = |expected: &str| {
        let error = shell.complains(1, &["archives", "restore", "events", "--yes"]);
        assert!(error.contains(expected) && error.contains("--to-file"), "{error}");
        assert_eq!(server.sql("shop", "SELECT count(*) FROM events"), "0");
    };
    refused("are not as they were archived");
    server.sql("shop", "ALTER TABLE events ALTER v TYPE text, ALTER n TYPE numeric(10,2)");
    refused("is of another type");
    server.sql("shop", "ALTER TABLE events ALTER n TYPE numeric(20,4); CREATE FUNCTION f() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN NEW.v = ''other''; RETURN NEW; END';
        CREATE TRIGGER t BEFORE INSERT ON events FOR EACH ROW EXECUTE FUNCTION f()");
    refused("are not as they were archived");
    server.sql("shop", "DROP TRIGGER t ON events; INSERT INTO events VALUES (2, now(), 'mine', 5)");
    restore(&shell);
    assert_eq!(
        server.sql("shop", "SELECT string_agg(v, ',' ORDER BY id) FROM events"),
        "abcdefgh,mine",
        "what is there stays"
    );
}

#[test]
fn text_of_a_storage_is_never_a_statement() {
    let shell = with_sqlite_of(
        "CREATE TABLE events (id INTEGER PRIMARY KEY, created_at TEXT, x); INSERT INTO events VALUES (1, '2020-01-01', 5), (2, '2020-01-01', '\\''); DROP TABLE shop.victims; -- ')",
        "encryption = 'none'",
    );
    assert_eq!(run(&shell)["archived"], 2);
    let (server, other) = mariadb(
        "CREATE TABLE events (id INT PRIMARY KEY, created_at DATETIME, x LONGTEXT); CREATE TABLE victims (n INT)",
    );
    let config = other.config();
    let source = config.split("[sources.db]").nth(1).unwrap().split("[archives").next().unwrap();
    let ours = shell.config();
    let present = ours.split("[sources.db]").nth(1).unwrap().split("[archives").next().unwrap();
    shell.edit_config(present, source);
    let error = shell.complains(1, &["archives", "restore", "events", "--yes"]);
    assert!(error.contains("another type") || error.contains("as SQLite writes them"), "{error}");
    assert_eq!(server.sql("shop", "SHOW TABLES LIKE 'victims'"), "victims");
}

#[test]
fn keys_that_a_server_takes_for_equal_and_large_values_return() {
    let (server, shell) = mariadb(
        "CREATE TABLE events (id VARCHAR(20) COLLATE utf8mb4_general_ci PRIMARY KEY, created_at DATETIME, b LONGBLOB);
         INSERT INTO events VALUES ('abc', '2020-01-01', NULL), ('large', '2020-01-01', REPEAT('x', 9000000)), ('large 2', '2020-01-01', REPEAT('y', 9000000))",
    );
    assert_eq!(run(&shell)["deleted"], 3);
    server.sql("shop", "INSERT INTO events VALUES ('ABC ', '2020-02-02', 'newer')");
    restore(&shell);
    assert_eq!(
        server.sql("shop", "SELECT GROUP_CONCAT(id ORDER BY id), SUM(LENGTH(b)) FROM events"),
        "ABC ,large,large 2\t18000005"
    );
}

#[test]
fn row_that_cannot_be_deleted_keeps_none_from_being_archived() {
    let shell = with_sqlite_of(
        "CREATE TABLE events (id INTEGER PRIMARY KEY, created_at TEXT); INSERT INTO events VALUES (1, '2020-01-01');
         CREATE TABLE parts (event INTEGER REFERENCES events (id)); INSERT INTO parts VALUES (1)",
        "delete = true\nencryption = 'none'",
    );
    let database = shell.path("app.db");
    let error = shell.complains(1, &["archives", "run", "events"]);
    assert!(error.contains("archived but not deleted") && error.contains("FOREIGN KEY"), "{error}");
    sqlite(&database).execute_batch("INSERT INTO events VALUES (2, '2020-01-05')").unwrap();
    shell.complains(1, &["archives", "run", "events"]);
    assert_eq!(shell.json(&["archives", "list"])[0]["rows"], 2);
    assert_eq!(all(&database, "id"), "1;2");
    sqlite(&database).execute_batch("DELETE FROM parts").unwrap();
    assert_eq!(run(&shell)["deleted"], 2);
}

#[test]
fn odd_times_and_columns_are_counted_or_refused() {
    let shell = with_sqlite_of(
        "CREATE TABLE events (id INTEGER PRIMARY KEY, created_at INTEGER); INSERT INTO events VALUES (1, 1577836800), (2, 9223372036854775807), (3, -9223372036854775808), (4, 1e300), (5, NULL)",
        "delete = true\ncolumn_unit = 's'",
    );
    let ran = run(&shell);
    assert_eq!((&ran["deleted"], &ran["unreadable"]), (&1.into(), &4.into()), "{ran}");
    // A replaced row is seen by its time, though their number is the same.
    let shell = with_sqlite_of(
        "CREATE TABLE events (id INTEGER PRIMARY KEY, created_at TEXT); INSERT INTO events VALUES (1, '2020-01-01'), (2, '2020-01-02')",
        "encryption = 'none'",
    );
    let database = shell.path("app.db");
    run(&shell);
    sqlite(&database)
        .execute_batch(
            "DELETE FROM events WHERE id = 1; INSERT INTO events VALUES (3, '2020-01-01 00:00:05')",
        )
        .unwrap();
    assert_eq!(run(&shell)["archived"], 1);
    let columns: Vec<String> = (0..700).map(|i| format!("c{i}")).collect();
    let shell = with_sqlite_of(
        &format!(
            "CREATE TABLE events (id TEXT PRIMARY KEY, created_at TEXT, {}); INSERT INTO events (id, created_at) VALUES ('a', '2020-01-01')",
            columns.join(", ")
        ),
        "delete = true",
    );
    let database = shell.path("app.db");
    assert_eq!(run(&shell)["deleted"], 1);
    sqlite(&database)
        .execute_batch("INSERT INTO events (created_at) VALUES ('2020-01-01')")
        .unwrap();
    let error = shell.complains(1, &["archives", "run", "events"]);
    assert!(error.contains("rows without a key"), "{error}");
    let shell = with_sqlite_of(
        "CREATE TABLE events (id INTEGER PRIMARY KEY, created_at TEXT, \"backstay.at\" TEXT); INSERT INTO events VALUES (1, '2020-01-01', 'x')",
        "delete = true",
    );
    assert!(shell.complains(1, &["archives", "run", "events"]).contains("a column backstay.at"));
    assert_eq!(all(&shell.path("app.db"), "id"), "1");
}

#[test]
fn rows_that_prune_lets_go_are_not_archived_again() {
    let shell = with_sqlite_of(
        "CREATE TABLE events (id INTEGER PRIMARY KEY, created_at TEXT); INSERT INTO events SELECT i, datetime('now', '-' || i || ' days') FROM (WITH RECURSIVE n(i) AS (SELECT 2 UNION ALL SELECT i + 1 FROM n WHERE i < 80) SELECT i FROM n)",
        "encryption = 'none'\nkeep = '30d'",
    );
    assert!(run(&shell)["archived"].as_i64().unwrap() <= 29);
    shell.ends(0, &["archives", "prune"]);
    assert!(shell.json(&["archives", "list"])[0]["rows"].as_i64().unwrap() >= 27);
    assert_eq!(run(&shell)["archived"], 0);
}
