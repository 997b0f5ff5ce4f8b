//! Restores to a place that is free: nothing is replaced, whatever comes there meanwhile (V48, V50, ADR 22).

use std::process::{Child, Stdio};

use backstay_testkit::daemon::wait_until;
use backstay_testkit::mysql::MysqlServer;
use backstay_testkit::postgres::PostgresServer;
use backstay_testkit::redis::RedisServer;

use crate::postgres_faults::with_program;
use crate::serve::with_program as with_command;
use crate::shell::Shell;
use crate::{mysql, postgres, redis};

/// Begins a restore to another place.
fn restoring(shell: &Shell, to: &str) -> Child {
    let mut command = shell.command(&["restore", "db", "--to", to, "--yes"]);
    command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

/// Ends as one that was refused since something is there by now.
fn refused(restoring: Child) {
    let output = restoring.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("is there by now; nothing was replaced"), "{said}");
}

#[test]
fn postgres_database_that_is_made_while_another_is_loaded_keeps_its_name() {
    let server = PostgresServer::start();
    server.sql("postgres", "CREATE DATABASE shop");
    server.sql("shop", "CREATE TABLE orders AS SELECT generate_series(1, 100) AS id");
    let shell = postgres::with_database(&server, "shop", "");
    postgres::made(&shell);
    let psql = "\"$(dirname \"$REAL\")/psql\" -X -q -v ON_ERROR_STOP=1";
    let make = format!(
        "{psql} --dbname=postgres -c 'CREATE DATABASE look' && {psql} --dbname=look -c 'CREATE TABLE theirs ()'"
    );
    with_program(&server, &shell, "pg_restore", &format!("{make}; exec \"$REAL\" \"$@\""));
    refused(restoring(&shell, "look"));
    assert_eq!(server.sql("look", "SELECT count(*) FROM theirs"), "0");
    let databases = "SELECT count(*) FROM pg_database WHERE NOT datistemplate";
    assert_eq!(server.sql("postgres", databases), "3", "nothing is left");
}

#[test]
fn mysql_database_that_is_made_while_another_is_loaded_keeps_its_name() {
    let server = MysqlServer::start();
    server.sql("", "CREATE DATABASE shop");
    server.sql(
        "shop",
        "CREATE TABLE orders (id int PRIMARY KEY, text text);
         INSERT INTO orders SELECT seq, repeat(md5(seq), 20) FROM seq_1_to_100000",
    );
    let shell = mysql::with_database(&server, "shop", "");
    mysql::made(&shell);
    let restoring = restoring(&shell, "look");
    let loaded =
        "SELECT count(*) FROM information_schema.tables WHERE table_schema LIKE 'backstay%'";
    wait_until("it is being loaded", || server.sql("", loaded) != "0");
    server.sql("", "CREATE DATABASE look; CREATE TABLE look.theirs (id int); CREATE VIEW look.view AS SELECT 1");
    refused(restoring);
    assert_eq!(server.sql("look", "SELECT count(*) FROM view"), "1");
    let databases =
        "SELECT count(*) FROM information_schema.schemata WHERE schema_name LIKE 'backstay%'";
    assert_eq!(server.sql("", databases), "0", "nothing is left");
}

#[test]
fn redis_database_that_gets_keys_while_another_is_loaded_keeps_them() {
    let server = RedisServer::start();
    server.ask(0, &["DEBUG", "POPULATE", "1000000"]);
    let shell = redis::with_server(&server, "");
    redis::made(&shell);
    let restoring = restoring(&shell, "5");
    let databases = || server.ask(0, &["INFO", "keyspace"]).matches("keys=").count();
    wait_until("it is being loaded", || databases() > 1);
    server.ask(5, &["SET", "theirs", "1"]);
    refused(restoring);
    assert_eq!(server.ask(5, &["GET", "theirs"]).trim(), "1");
    assert_eq!(databases(), 2, "nothing is left");
}

/// A drill has a place of its own, and nobody can name it.
#[test]
fn scratch_is_a_name_like_any_other() {
    let server = RedisServer::start();
    server.ask(0, &["SET", "a", "then"]);
    let shell = redis::with_server(&server, "");
    redis::made(&shell);
    server.ask(0, &["SET", "a", "now"]);
    let said = shell.complains(1, &["restore", "db", "--to", "scratch", "--yes"]);
    assert!(said.contains("expected the number of a free database"), "{said}");
    assert_eq!(server.ask(0, &["GET", "a"]).trim(), "now");
    shell.ends(0, &["drill", "db"]);
    assert_eq!(server.ask(0, &["GET", "a"]).trim(), "now");

    let shell = with_command("");
    shell.ends(0, &["backup", "db"]);
    let said = shell.complains(1, &["restore", "db", "--to", "scratch", "--yes"]);
    assert!(said.contains("only the restore command knows where it writes to"), "{said}");
}
