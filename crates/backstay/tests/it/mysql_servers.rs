//! Several databases of a MariaDB server in one backup: by name and by pattern, together and alone (V3, V15, V50).

use backstay_testkit::gate::Gate;
use backstay_testkit::mysql::{MysqlServer, PASSWORD};
use serde_json::Value;

use crate::mysql::{assert_same, made, nasty};
use crate::postgres::move_to;
use crate::postgres_network::start;
use crate::shell::Shell;

/// A machine that backs up several databases of a server to a directory.
fn with_databases(server: &MysqlServer, patterns: &str, more: &str) -> Shell {
    let shell = Shell::bare();
    std::fs::write(shell.path("secret"), PASSWORD).unwrap();
    let text = format!(
        "[storages.main]\nprovider = 'local'\npath = '{}'\n\n[sources.db]\nkind = 'mysql'\nurl = '{}'\n\
         password = 'file:{}'\nstorage = 'main'\ndatabases = [{patterns}]\n{more}\n",
        shell.path("storage").display(),
        server.url("mysql"),
        shell.path("secret").display(),
    );
    shell.set_config(text);
    shell
}

/// A server with databases of odd names, and a role of its own for each.
fn server() -> MysqlServer {
    let server = MysqlServer::start();
    nasty(&server, "shop");
    nasty(&server, "größe x");
    server.sql("", "CREATE DATABASE shop_test; CREATE TABLE shop_test.t (n int); CREATE DATABASE `1/..`; CREATE TABLE `1/..`.t (n int); INSERT INTO `1/..`.t VALUES (1)");
    server
}

fn ours(server: &MysqlServer) -> String {
    server.sql(
        "",
        "SELECT count(*) FROM information_schema.schemata WHERE schema_name LIKE 'backstay%'",
    )
}

#[test]
fn all_databases_return_together_and_alone() {
    let server = server();
    let names = ["shop", "größe x", "1/.."];
    let before = names.map(|name| server.digest(name));
    let shell = with_databases(&server, "'*', '!*_test'", "");
    shell.ends(0, &["source", "test", "db"]);
    let backup = made(&shell);
    assert_eq!(backup["status"], "complete", "{backup}");
    let shown = shell.json(&["show", backup["id"].as_str().unwrap()]);
    let databases = shown["content"]["databases"].as_array().unwrap();
    let found: Vec<&Value> = databases.iter().map(|one| &one["content"]["database"]).collect();
    assert_eq!(found, ["1/..", "größe x", "shop"], "{shown}");
    assert!(databases[0]["consistency_point"].as_str().unwrap().starts_with("log."), "{shown}");
    server.sql("", "DROP DATABASE `größe x`; DELETE FROM shop.types; DROP VIEW shop.by_another; INSERT INTO `1/..`.t VALUES (2)");
    let spoilt = ["shop", "1/.."].map(|name| server.digest(name));
    shell.ends(0, &["restore", "db", "--yes"]);
    assert_eq!(names.map(|name| server.digest(name)), before);
    shell.ends(0, &["undo", "db"]);
    assert_eq!(["shop", "1/.."].map(|name| server.digest(name)), spoilt);
    assert_eq!(
        server.sql(
            "",
            "SELECT count(*) FROM information_schema.schemata WHERE schema_name = 'größe x'"
        ),
        "0"
    );
    shell.ends(0, &["confirm", "db"]);
    assert_eq!(ours(&server), "0");
    let id = backup["id"].as_str().unwrap();
    shell.ends(0, &["restore", "db", "--id", id, "--only", "1/..", "--yes"]);
    assert_same(&server.digest("1/.."), &before[2]);
    assert_same(&server.digest("shop"), &spoilt[0]);
    shell.ends(0, &["confirm", "db"]);
    shell.ends(0, &["restore", "db", "--id", id, "--to", "copy", "--yes"]);
    assert_same(&server.digest("copy_shop"), &before[0]);
    shell.ends(0, &["restore", "db", "--id", id, "--only", "shop", "--to", "alone", "--yes"]);
    assert_same(&server.digest("alone"), &before[0]);
    let error = shell.complains(1, &["restore", "db", "--only", "shop_test", "--yes"]);
    assert!(error.contains("no database of the backup is like shop_test"), "{error}");
}

#[test]
fn databases_move_to_another_server_and_a_drill_asks_each() {
    let (server, other) = (server(), MysqlServer::start());
    let before = ["shop", "1/.."].map(|name| server.digest(name));
    let checks =
        "checks = [{ name = 'one', database = '1/..', query = 'SELECT n FROM t', expect = '1' }]";
    let shell = with_databases(&server, "'shop', '1*'", checks);
    made(&shell);
    shell.ends(0, &["drill", "db"]);
    assert_eq!(ours(&server), "0");
    std::fs::write(shell.path("url"), other.url("mysql").replace("@", &format!(":{PASSWORD}@")))
        .unwrap();
    shell.ends(
        0,
        &["restore", "db", "--to", &format!("file:{}", shell.path("url").display()), "--yes"],
    );
    assert_eq!(["shop", "1/.."].map(|name| other.digest(name)), before);
}

#[test]
fn database_that_is_missing_or_cannot_be_read_leaves_an_incomplete_backup_of_the_others() {
    let server = server();
    let shell = with_databases(&server, "'shop', 'gone', 'shop_test'", "");
    server.sql("", "CREATE USER modest@'127.0.0.1' IDENTIFIED BY 'my-secret-w3Kp'; GRANT SELECT, SHOW VIEW, TRIGGER, EVENT ON shop.* TO modest@'127.0.0.1'; GRANT SELECT ON mysql.* TO modest@'127.0.0.1'; GRANT INSERT ON shop_test.* TO modest@'127.0.0.1'");
    shell.edit_config("keeper@", "modest@");
    let output = shell.run(&["backup", "db", "--json"]);
    assert_eq!(output.status.code(), Some(3), "{output:?}");
    let backup: Value = serde_json::from_slice(&output.stdout).unwrap();
    let errors = backup["item_errors"].to_string();
    assert!(errors.contains("gone") && errors.contains("may not see all of shop_test"), "{errors}");
    let shell = with_databases(&server, "'nothing*'", "");
    let error = shell.complains(1, &["backup", "db"]);
    assert!(error.contains("no database like nothing*"), "{error}");
}

#[test]
fn restore_of_several_that_is_killed_anywhere_is_finished_by_the_next_command() {
    let server = MysqlServer::start();
    server.sql("", "CREATE DATABASE a; CREATE TABLE a.t (n int); INSERT INTO a.t VALUES (1); CREATE DATABASE b; CREATE TABLE b.t (n int); CREATE VIEW b.v AS SELECT * FROM b.t; INSERT INTO b.t VALUES (1)");
    let both = || ["a", "b"].map(|name| server.digest(name));
    let shell = with_databases(&server, "'a', 'b'", "");
    let first = (both(), made(&shell)["id"].as_str().unwrap().to_owned());
    server.sql("", "UPDATE a.t SET n = 2; UPDATE b.t SET n = 2; DROP VIEW b.v");
    let second = (both(), made(&shell)["id"].as_str().unwrap().to_owned());
    let gate = Gate::open(server.port);
    move_to(&shell, server.port, gate.port);
    let (mut old, mut new) = (second, first);
    for n in 0.. {
        let mut restoring =
            start(&shell, &["restore", "db", "--id", &new.1, "--yes", "--no-safety-backup"]);
        gate.kill_before(n, restoring.id());
        let ended = restoring.wait().unwrap();
        gate.disarm();
        while shell.run(&["confirm", "db"]).status.success() {}
        if ended.code().is_some() {
            assert!(ended.success() && n > 10, "{n}");
            break;
        }
        let now = both();
        assert!(now == old.0 || now == new.0, "{n}: one is old and one is new");
        if now == new.0 {
            std::mem::swap(&mut old, &mut new);
        }
    }
    assert_eq!(both(), new.0);
}
