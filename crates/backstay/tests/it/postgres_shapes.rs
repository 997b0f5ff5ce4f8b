//! PostgreSQL databases of odd shapes: other encodings, no tables or very many, names that are hard to write, roles (V1-V5, V47).

use std::process::Command;

use backstay_testkit::postgres::{self, PostgresServer};
use serde_json::Value;

use crate::postgres::{made, move_to, with_database};
use crate::shell::Shell;

/// Returns a server of a major version.
fn server_of(wanted: u32) -> PostgresServer {
    let installed = postgres::installed();
    let programs = &installed.iter().find(|(major, _)| *major == wanted).unwrap().1;
    PostgresServer::start_with(programs)
}

/// Makes a database with an encoding of its own.
fn create(server: &PostgresServer, database: &str, encoding: &str) {
    server.sql(
        "postgres",
        &format!(
            "CREATE DATABASE {} TEMPLATE template0 ENCODING '{encoding}' LC_COLLATE 'C' LC_CTYPE 'C'",
            quoted(database)
        ),
    );
}

fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// Runs statements that are written in UTF-8, whatever the database's encoding is.
fn sql_in_utf8(server: &PostgresServer, database: &str, statements: &str) -> String {
    let mut command: Command = server.command("psql", database);
    command.env("PGCLIENTENCODING", "UTF8");
    let words = ["-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-c", statements];
    let output = command.args(words).output().unwrap();
    assert!(output.status.success(), "{statements}\n{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().trim_end().to_owned()
}

/// A machine that backs up a database whose name may be anything.
fn with_odd_database(server: &PostgresServer, database: &str) -> Shell {
    let shell = with_database(server, "placeholder", "");
    let encoded: String = database.bytes().map(|byte| format!("%{byte:02X}")).collect();
    shell.edit_config("placeholder", &encoded);
    shell
}

/// Everything that a database is; less where `pg_dump` writes no script for a database of this name.
fn digest(server: &PostgresServer, database: &str) -> String {
    if database.contains('\n') { server.data_digest(database) } else { server.digest(database) }
}

fn assert_equal(found: &str, expected: &str) {
    let lines = found.lines().zip(expected.lines());
    let differing: Vec<_> = lines.filter(|(found, expected)| found != expected).take(5).collect();
    assert!(found == expected, "found, expected: {differing:#?}");
}

/// Backs a database up, spoils it, and restores it in its place and to another name.
fn returns_equal(server: &PostgresServer, database: &str, spoil: &str) -> (Shell, Value) {
    let shell = with_odd_database(server, database);
    let (before, data) = (digest(server, database), server.data_digest(database));
    let backup = made(&shell);
    assert_eq!(backup["status"], "complete", "{backup}");
    shell.ends(0, &["verify", "--all"]);
    server.sql(database, spoil);
    assert!(digest(server, database) != before, "nothing was spoilt");
    shell.ends(0, &["restore", "db", "--yes"]);
    assert_equal(&digest(server, database), &before);
    let copy = format!("{}'\\ c", database.get(..40).unwrap_or(database));
    shell.ends(0, &["restore", "db", &format!("--to={copy}"), "--yes"]);
    assert_equal(&server.data_digest(&copy), &data);
    shell.ends(0, &["verify", "--all"]);
    (shell, backup)
}

/// Returns the tables of a backup, with their rows.
fn tables(shell: &Shell, backup: &Value) -> Vec<(String, u64)> {
    let shown = shell.json(&["show", backup["id"].as_str().unwrap()]);
    let tables = shown["content"]["tables"].as_array().unwrap();
    let table =
        |one: &Value| (one["table"].as_str().unwrap().to_owned(), one["rows"].as_u64().unwrap());
    tables.iter().map(table).collect()
}

#[test]
fn database_without_encoding_returns_equal_with_bytes_that_are_no_text() {
    for major in [15, 18] {
        let server = server_of(major);
        create(&server, "raw", "SQL_ASCII");
        // Two names that differ only in a byte that is no text, and rows of all bytes.
        server.sql(
            "raw",
            "DO $$ DECLARE byte int; BEGIN
               EXECUTE format('CREATE SCHEMA %I', 's' || chr(252));
               FOREACH byte IN ARRAY ARRAY[223, 228] LOOP
                 EXECUTE format('CREATE TABLE %I.%I (%I text)', 's' || chr(252), 'stra' || chr(byte) || 'e', 'w' || chr(246));
                 EXECUTE format('INSERT INTO %I.%I SELECT repeat(chr(i), 3) FROM generate_series(%s, 255) i', 's' || chr(252), 'stra' || chr(byte) || 'e', byte);
               END LOOP;
             END $$;
             CREATE TABLE \"größe\" AS SELECT 'größe \\ ' || chr(255) AS words; CREATE TABLE \"a\\b\" (n int)",
        );
        let (shell, backup) =
            returns_equal(&server, "raw", "DROP TABLE \"größe\"; CREATE TABLE newer (n int)");
        let expected = [
            (r#"public."a\b""#, 0),
            ("public.\"größe\"", 1),
            (r#""s\xfc"."stra\xdfe""#, 33),
            (r#""s\xfc"."stra\xe4e""#, 28),
        ];
        let mut shown = tables(&shell, &backup);
        shown.sort_by_key(|(table, _)| table.trim_start_matches('"').to_owned());
        assert_eq!(shown, expected.map(|(table, rows)| (table.to_owned(), rows)));
    }
}

#[test]
fn rows_that_are_lost_are_noticed_in_tables_whose_names_are_no_text() {
    let server = server_of(15);
    create(&server, "raw", "SQL_ASCII");
    server.sql(
        "raw",
        "DO $$ BEGIN EXECUTE format('CREATE TABLE %I AS SELECT 1 AS n', 't' || chr(228)); END $$",
    );
    let shell = with_database(&server, "raw", "");
    made(&shell);
    let script = "\"$REAL\" \"$@\" && exec \"$(dirname \"$REAL\")/psql\" -X -q \"$1\" -c \"DO 'BEGIN EXECUTE format(\\$x\\$TRUNCATE %I\\$x\\$, \\$x\\$t\\$x\\$ || chr(228)); END'\"";
    crate::postgres_faults::with_program(&server, &shell, "pg_restore", script);
    let error = shell.complains(1, &["restore", "db", "--yes"]);
    assert!(error.contains(r#"public."t\xe4" should have 1 rows"#), "{error}");
}

#[test]
fn database_in_latin1_returns_equal_with_umlauts_in_names_and_roles() {
    for (major, client_encoding) in [(15, None), (15, Some("UTF8")), (18, None)] {
        let server = server_of(major);
        create(&server, "alt", "LATIN1");
        // In the bytes of this encoding, the last name is a text in UTF-8 too, and another one.
        sql_in_utf8(
            &server,
            "alt",
            "CREATE ROLE \"Prüfer\"; CREATE SCHEMA \"Größen\" AUTHORIZATION \"Prüfer\";
             CREATE TABLE \"Größen\".\"straße\" (\"wörter\" text); INSERT INTO \"Größen\".\"straße\" VALUES ('ä\\ö'), ('ü'), (NULL);
             CREATE TABLE \"Ã¤\" AS SELECT 'Ã¤' AS words; ALTER TABLE \"Ã¤\" OWNER TO \"Prüfer\";
             CREATE TABLE \"ä\" AS SELECT generate_series(1, 7) AS n;
             COMMENT ON TABLE \"ä\" IS 'Übung'",
        );
        if let Some(encoding) = client_encoding {
            server.sql("alt", &format!("ALTER DATABASE alt SET client_encoding TO '{encoding}'"));
        }
        let (shell, backup) = returns_equal(
            &server,
            "alt",
            "CREATE TABLE newer (n int); ALTER SCHEMA public RENAME TO p",
        );
        let shown = tables(&shell, &backup);
        for expected in [("\"Größen\".\"straße\"", 3), ("public.\"Ã¤\"", 1), ("public.\"ä\"", 7)]
        {
            assert!(
                shown.contains(&(expected.0.to_owned(), expected.1)),
                "{expected:?}: {shown:?}"
            );
        }
        // A server that never saw them gets the same role.
        let new = server_of(major);
        move_to(&shell, server.port, new.port);
        shell.ends(0, &["restore", "db", "--yes"]);
        assert_equal(&new.digest("alt"), &server.digest("alt"));
        let owner = "SELECT nspowner::regrole FROM pg_namespace WHERE nspname ~ '^Gr'";
        assert_eq!(sql_in_utf8(&new, "alt", owner), "\"Prüfer\"");
    }
}

#[test]
fn role_whose_name_is_no_text_here_stops_no_backup_and_no_restore_of_another_database() {
    let server = server_of(15);
    create(&server, "alt", "LATIN1");
    sql_in_utf8(
        &server,
        "alt",
        "CREATE ROLE \"Prüfer\"; CREATE ROLE member; GRANT \"Prüfer\" TO member",
    );
    for encoding in ["UTF8", "SQL_ASCII"] {
        let name = format!("shop_{}", encoding.to_lowercase());
        create(&server, &name, encoding);
        server.sql(&name, "CREATE TABLE orders AS SELECT generate_series(1, 5) AS n");
        returns_equal(&server, &name, "DROP TABLE orders");
    }
}

#[test]
fn database_without_tables_returns_equal() {
    for major in [15, 18] {
        let server = server_of(major);
        create(&server, "empty", "UTF8");
        let (shell, backup) = returns_equal(&server, "empty", "CREATE TABLE newer (n int)");
        assert_eq!(tables(&shell, &backup), []);
        create(&server, "bare", "UTF8");
        server.sql("bare", "DROP SCHEMA public");
        returns_equal(&server, "bare", "CREATE SCHEMA public; CREATE TABLE newer (n int)");
    }
}

#[test]
fn database_of_ten_thousand_tables_returns_equal_and_a_setting_that_is_too_small_is_named() {
    let mut server = server_of(15);
    create(&server, "many", "UTF8");
    server.sql(
        "many",
        "DO $$ BEGIN FOR i IN 1..10000 LOOP
           EXECUTE format('CREATE TABLE %I AS SELECT %s AS n', 'table ' || i, i);
           IF i % 200 = 0 THEN COMMIT; END IF;
         END LOOP; END $$",
    );
    let shell = with_database(&server, "many", "");
    let error = shell.complains(1, &["backup", "db"]);
    assert!(error.contains("max_locks_per_transaction"), "{error}");
    assert_eq!(shell.json(&["backups", "db"]), Value::Array(Vec::new()));
    server.sql("postgres", "ALTER SYSTEM SET max_locks_per_transaction = 512");
    server.sql("postgres", "CHECKPOINT");
    let stop = format!("kill -QUIT {}", server.pid());
    assert!(Command::new("sh").args(["-c", &stop]).status().unwrap().success());
    server.revive();
    let before = server.digest("many");
    let backup = made(&shell);
    assert_eq!(tables(&shell, &backup).len(), 10_000);
    server.sql("many", "DROP TABLE \"table 1\"; UPDATE \"table 2\" SET n = 0");
    shell.ends(0, &["restore", "db", "--yes"]);
    assert_equal(&server.digest("many"), &before);
    shell.ends(0, &["verify", "--all"]);
}

/// Names that some quoting, option, format or line gets wrong.
const ODD: [&str; 9] = [
    "new\nline; DROP TABLE x;\n\\connect postgres\n--",
    "tab\there",
    "quote's \"and\" 'more'",
    "back\\slash\\",
    "--file=/dev/null",
    "percent%20%s %I%%",
    "$HOME `id` $(id) $$ $1",
    // The longest that there are, of letters of one byte and of two.
    "xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx",
    "äääääääääääääääääääääääääääääää!",
];

#[test]
fn names_that_are_hard_to_write_return_equal() {
    for major in [15, 18] {
        let server = server_of(major);
        create(&server, "odd", "UTF8");
        for name in ODD {
            let (name, text) = (quoted(name), name.replace('\'', "''").replace('\\', "\\\\"));
            server.sql(
                "odd",
                &format!(
                    "CREATE ROLE {name}; GRANT CREATE ON DATABASE odd TO {name}; CREATE SCHEMA {name} AUTHORIZATION {name};
                     SET ROLE {name}; CREATE TABLE {name}.{name} ({name} text DEFAULT E'{text}', CONSTRAINT {name} CHECK ({name} <> ''));
                     INSERT INTO {name}.{name} VALUES (E'{text}'), (NULL); COMMENT ON TABLE {name}.{name} IS E'{text}';
                     CREATE TYPE {name}.kind AS ENUM (E'{text}'); CREATE SEQUENCE {name}.counter OWNED BY {name}.{name}.{name};
                     CREATE FUNCTION {name}.noted() RETURNS event_trigger LANGUAGE plpgsql AS $f$ BEGIN NULL; END $f$;
                     RESET ROLE; CREATE EVENT TRIGGER {name} ON ddl_command_end EXECUTE FUNCTION {name}.noted();
                     GRANT SELECT ON {name}.{name} TO PUBLIC; ALTER ROLE {name} IN DATABASE odd SET search_path TO {name}"
                )
            );
        }
        returns_equal(
            &server,
            "odd",
            "DROP EVENT TRIGGER \"tab\there\"; CREATE TABLE newer (n int)",
        );
    }
}

#[test]
fn databases_whose_names_are_hard_to_write_return_equal() {
    let server = server_of(15);
    for name in ODD {
        create(&server, name, "UTF8");
        server.sql(name, "CREATE TABLE orders AS SELECT generate_series(1, 5) AS n");
        let set = format!("ALTER DATABASE {} SET work_mem TO '7MB'", quoted(name));
        server.sql("postgres", &set);
        returns_equal(&server, name, "DROP TABLE orders");
    }
}

#[test]
fn options_of_memberships_return_on_a_server_that_never_saw_them() {
    for major in [16, 18] {
        let old = server_of(major);
        create(&old, "shop", "UTF8");
        for (number, options) in [
            "INHERIT FALSE",
            "SET FALSE",
            "INHERIT TRUE, SET FALSE, ADMIN TRUE",
            "ADMIN TRUE",
            "INHERIT FALSE, SET FALSE",
        ]
        .iter()
        .enumerate()
        {
            let inherits = if number % 2 == 0 { "INHERIT" } else { "NOINHERIT" };
            old.sql(
                "shop",
                &format!(
                    "CREATE ROLE \"group {number}\"; CREATE ROLE \"member {number}\" {inherits};
                     GRANT \"group {number}\" TO \"member {number}\" WITH {options};
                     CREATE TABLE t{number} (n int); ALTER TABLE t{number} OWNER TO \"member {number}\""
                ),
            );
        }
        let options =
            "SELECT roleid::regrole, member::regrole, admin_option, inherit_option, set_option
                         FROM pg_auth_members WHERE roleid >= 16384 ORDER BY 1, 2";
        let before = old.sql("shop", options);
        assert_eq!(before.lines().count(), 5);
        let shell = with_database(&old, "shop", "");
        made(&shell);
        let new = server_of(major);
        move_to(&shell, old.port, new.port);
        shell.ends(0, &["restore", "db", "--yes"]);
        assert_eq!(new.sql("shop", options), before);
    }
}
