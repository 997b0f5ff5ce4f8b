//! Whole PostgreSQL servers: all databases by pattern, roles and tablespaces once (D1, H20, X1).

use std::os::unix::fs::PermissionsExt as _;

use backstay_testkit::postgres::{self, PASSWORD, PostgresServer, USER};
use serde_json::Value;

use crate::postgres::{made, move_to, nasty, with_database};
use crate::postgres_faults::{with_program, with_real_programs};

/// Three databases with the same tables and other rows.
fn with_three(server: &PostgresServer) {
    for (name, rows) in [("crm", 3), ("Shop 1", 5), ("test_x", 7)] {
        server.sql("postgres", &format!("CREATE DATABASE \"{name}\""));
        server.sql(name, &format!("CREATE TABLE things AS SELECT i, 'of {name}' AS what FROM generate_series(1, {rows}) i"));
    }
}

fn names(backup: &Value) -> Vec<String> {
    let parts = backup["parts"].as_array().unwrap().iter();
    let names = parts.map(|part| part["name"].as_str().or(part.as_str()).unwrap().to_owned());
    names.filter(|name| name.ends_with(".dump")).collect()
}

#[test]
fn server_returns_whole_on_another_with_roles_once_and_databases_made_later() {
    for (_, programs) in postgres::installed() {
        let old = PostgresServer::start_with(&programs);
        with_three(&old);
        let shell = with_database(&old, "postgres", "databases = ['*', '!test_*', '!postgres']");
        let first = made(&shell);
        assert_eq!(
            names(&first),
            ["databases/x-53686f702031/database.dump", "databases/crm/database.dump"]
        );
        nasty(&old, "later");
        old.sql("postgres", "CREATE ROLE lonely LOGIN PASSWORD 'x'; GRANT readers TO lonely");
        let digests =
            |server: &PostgresServer| ["crm", "Shop 1", "later"].map(|name| server.digest(name));
        let before = digests(&old);
        let second = made(&shell);
        assert_eq!(second["status"], "complete", "{second}");
        assert_eq!(names(&second).len(), 3, "what was made later is found");
        let new = PostgresServer::start_with(&programs);
        move_to(&shell, old.port, new.port);
        drop(old);
        shell.ends(0, &["verify", "--all"]);
        shell.ends(0, &["restore", "db", "--yes"]);
        assert_eq!(digests(&new), before);
        let member = "SELECT pg_has_role('lonely', 'readers', 'MEMBER')";
        assert_eq!(new.sql("postgres", member), "t", "roles that no database needs return, too");
    }
}

#[test]
fn all_databases_are_swapped_in_one_step_and_go_back_in_one() {
    let server = PostgresServer::start();
    with_three(&server);
    let shell = with_database(&server, "postgres", "databases = ['crm', 'Shop*', 'test_x']");
    made(&shell);
    let state = || {
        ["crm", "Shop 1", "test_x"]
            .map(|name| server.psql(name, "SELECT count(*) FROM things").stdout)
    };
    let before = state();
    server.sql("crm", "DELETE FROM things");
    server.sql("Shop 1", "INSERT INTO things VALUES (9, 'newer')");
    server.sql("postgres", "DROP DATABASE test_x");
    let spoilt = state();
    let plan = shell.json(&["restore", "db", "--dry-run"]);
    let now = plan["present"]["databases"][0]["content"]["tables"][0]["rows"].as_u64();
    assert_eq!(now, Some(6), "{plan}");
    shell.ends(0, &["restore", "db", "--yes"]);
    assert_eq!(state(), before);
    shell.ends(0, &["undo", "db"]);
    assert_eq!(state(), spoilt);
    let there = "SELECT string_agg(datname, ' ' ORDER BY datname COLLATE \"C\") FROM pg_database WHERE NOT datistemplate AND datname !~ '^backstay_'";
    assert_eq!(server.sql("postgres", there), "Shop 1 crm postgres");
    shell.ends(0, &["confirm", "db"]);
    let ours = "SELECT count(*) FROM pg_database WHERE datname ~ '^backstay_'";
    assert_eq!(server.sql("postgres", ours), "0");
}

#[test]
fn failing_or_missing_database_makes_the_backup_incomplete_and_is_named() {
    let server = PostgresServer::start();
    with_three(&server);
    let shell = with_database(&server, "postgres", "databases = ['crm', 'Shop*', 'gone']");
    // In the middle of one, and nothing of it is left among the parts.
    let script = "case \"$PGDATABASE\" in Shop*) \"$REAL\" \"$@\" | head -c 3000; exit 1;; esac; exec \"$REAL\" \"$@\"";
    with_program(&server, &shell, "pg_dump", script);
    let output = shell.run(&["backup", "db", "--json"]);
    assert_eq!(output.status.code(), Some(3), "{}", String::from_utf8_lossy(&output.stderr));
    let backup: Value = serde_json::from_slice(&output.stdout).unwrap();
    let missed: Vec<&str> = backup["item_errors"]
        .as_array()
        .unwrap()
        .iter()
        .map(|e| e["item"].as_str().unwrap())
        .collect();
    assert_eq!(missed, ["gone", "Shop 1"], "{backup}");
    assert_eq!(names(&backup), ["databases/crm/database.dump"]);
    shell.ends(0, &["verify", "--all"]);
    let id = backup["id"].as_str().unwrap();
    server.sql("crm", "DROP TABLE things");
    shell.ends(0, &["restore", "db", "--id", id, "--only", "crm", "--yes", "--no-safety-backup"]);
    assert_eq!(server.sql("crm", "SELECT count(*) FROM things"), "3");
    // Nothing that can be read is no backup at all.
    with_real_programs(&server, &shell);
    with_program(&server, &shell, "pg_dump", "exit 1");
    shell.complains(1, &["backup", "db"]);
    assert_eq!(shell.json(&["backups", "db"]).as_array().unwrap().len(), 1);
}

#[test]
fn one_database_of_a_server_returns_alone_and_its_safety_backup_is_of_it_alone() {
    let server = PostgresServer::start();
    with_three(&server);
    let shell = with_database(&server, "postgres", "databases = ['*']");
    made(&shell);
    for name in ["crm", "Shop 1"] {
        server.sql(name, "TRUNCATE things");
    }
    let done = shell.json(&["restore", "db", "--only", "crm", "--yes"]);
    let count = |name: &str| server.sql(name, "SELECT count(*) FROM things");
    assert_eq!((count("crm"), count("Shop 1")), ("3".to_owned(), "0".to_owned()));
    let safety = shell.json(&["show", done["safety_backup"].as_str().unwrap()]);
    assert_eq!(names(&safety), ["databases/crm/database.dump"]);
    // And under another name; the others are not even fetched.
    let oldest = shell.json(&["backups", "db"]).as_array().unwrap().last().unwrap()["id"].clone();
    let of_oldest = ["--id", oldest.as_str().unwrap(), "--only", "Shop 1"];
    let words = [&["restore", "db", "--to", "copy", "--yes"][..], &of_oldest].concat();
    shell.ends(0, &words);
    assert_eq!(count("copy"), "5");
    let error = shell.complains(1, &["restore", "db", "--only", "nothing", "--yes"]);
    assert!(error.contains("no database of the backup is like nothing"), "{error}");
}

#[test]
fn what_a_killed_restore_of_one_database_left_is_swept_by_a_restore_of_all() {
    let server = PostgresServer::start();
    with_three(&server);
    let shell = with_database(&server, "postgres", "databases = ['*']");
    made(&shell);
    let kill = "kill -9 \"$PPID\"; cat >/dev/null; exit 1";
    with_program(&server, &shell, "pg_restore", kill);
    let killed = shell.run(&["restore", "db", "--only", "crm", "--yes"]);
    assert_eq!(killed.status.code(), None, "{}", String::from_utf8_lossy(&killed.stderr));
    let ours = "SELECT count(*) FROM pg_database WHERE datname ~ '^backstay_'";
    assert_eq!(server.sql("postgres", ours), "1");
    with_real_programs(&server, &shell);
    shell.ends(0, &["restore", "db", "--yes"]);
    shell.ends(0, &["confirm", "db"]);
    assert_eq!(server.sql("crm", ours), "0");
}

#[test]
fn maintenance_database_itself_returns_and_drills_ask_the_database_that_is_named() {
    let server = PostgresServer::start();
    with_three(&server);
    server.sql("postgres", "CREATE TABLE own AS SELECT 1 AS n");
    let checks = "databases = ['postgres', 'crm']\nchecks = [{ name = 'crm', database = 'crm', query = 'SELECT count(*) FROM things', expect = '3' },\n\
                  { name = 'own', database = 'postgres', query = 'SELECT n FROM own', expect = '1' }]";
    let shell = with_database(&server, "postgres", checks);
    made(&shell);
    server.sql("postgres", "DROP TABLE own");
    let drill = shell.json(&["drill", "db"]);
    assert_eq!(drill["passed"], true, "{drill}");
    shell.ends(0, &["restore", "db", "--yes"]);
    assert_eq!(server.sql("postgres", "SELECT n FROM own"), "1");
    shell.ends(0, &["confirm", "db"]);
    let ours = "SELECT count(*) FROM pg_database WHERE datname ~ '^backstay_'";
    assert_eq!(server.sql("crm", ours), "0");
}

#[test]
fn databases_go_to_another_server_by_url_and_nothing_there_is_replaced() {
    let (old, new) = (PostgresServer::start(), PostgresServer::start());
    with_three(&old);
    let shell = with_database(&old, "crm", "");
    made(&shell);
    let url = new.url("crm_copy");
    let error = shell.complains(2, &["restore", "db", "--to", &url, "--yes"]);
    assert!(
        error.contains("everybody on this machine can read") && !error.contains(PASSWORD),
        "{error}"
    );
    std::fs::write(shell.path("url"), &url).unwrap();
    let to = format!("file:{}", shell.path("url").display());
    shell.ends(0, &["restore", "db", "--to", &to, "--yes"]);
    assert_eq!(new.data_digest("crm_copy"), old.data_digest("crm"));
    let error = shell.complains(1, &["restore", "db", "--to", &to, "--yes"]);
    assert!(error.contains("is there already"), "{error}");
    // All of a server, by an environment variable.
    let shell = with_database(&old, "postgres", "databases = ['*', '!postgres']");
    made(&shell);
    let mut command = shell.command(&["restore", "db", "--to", "${ELSEWHERE}", "--yes"]);
    let output = command.env("ELSEWHERE", new.url("postgres")).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    for name in ["crm", "Shop 1", "test_x"] {
        assert_eq!(new.data_digest(name), old.data_digest(name), "{name}");
    }
    assert!(shell.complains(1, &["undo", "db"]).contains("no restore"));
}

#[test]
fn tablespace_that_a_server_lacks_is_told_and_its_tables_return_elsewhere() {
    let (old, new) = (PostgresServer::start(), PostgresServer::start());
    let space = old.folder("space");
    old.sql("postgres", &format!("CREATE TABLESPACE fast LOCATION '{}'", space.display()));
    old.sql("postgres", "CREATE DATABASE shop TABLESPACE fast");
    old.sql("shop", "CREATE TABLE t (n int); INSERT INTO t VALUES (1)");
    let shell = with_database(&old, "postgres", "databases = ['shop']\nencryption = 'none'");
    let before = old.data_digest("shop");
    let backup = made(&shell);
    let folder = shell.path("storage/backstay/default/db").join(backup["id"].as_str().unwrap());
    let file = folder.join("tablespaces.sql.zst");
    assert!(file.metadata().unwrap().permissions().mode() & 0o400 != 0);
    let text = std::process::Command::new("zstd").args(["-dc"]).arg(&file).output().unwrap().stdout;
    let expected =
        format!("CREATE TABLESPACE \"fast\" OWNER \"{USER}\" LOCATION '{}';\n", space.display());
    assert_eq!(String::from_utf8_lossy(&text), expected);
    // Where it is, it is used again.
    shell.ends(0, &["restore", "db", "--yes"]);
    let lies = "SELECT spcname FROM pg_database d JOIN pg_tablespace t ON t.oid = dattablespace WHERE datname = 'shop'";
    assert_eq!(old.sql("postgres", lies), "fast");
    move_to(&shell, old.port, new.port);
    let plan = shell.json(&["restore", "db", "--dry-run"]);
    assert!(plan["warnings"][0].as_str().unwrap().contains("lacks the tablespace fast"), "{plan}");
    shell.ends(0, &["restore", "db", "--yes"]);
    assert_eq!(new.data_digest("shop"), before);
}
