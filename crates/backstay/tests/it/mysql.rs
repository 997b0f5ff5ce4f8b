//! MariaDB, on real servers: what is backed up returns equal, and what is not whole is never called good (V1-V5, V47-V54).

use std::process::Stdio;

use backstay_testkit::mysql::{MysqlServer, PASSWORD};
use serde_json::Value;

use crate::postgres::{Load, tells_no_password};
use crate::shell::Shell;
use crate::size::assert_within_promise;

/// Makes a database with all that there can be.
pub(crate) fn nasty(server: &MysqlServer, database: &str) {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/nasty_mysql.sql");
    let name = database.replace('`', "``");
    server.sql("", &format!("CREATE DATABASE `{name}` CHARACTER SET utf8mb4 COLLATE utf8mb4_bin COMMENT 'it''s ours'"));
    server.script(database, script.as_ref());
}

/// A machine that backs up a database of a server to a directory.
pub(crate) fn with_database(server: &MysqlServer, database: &str, more: &str) -> Shell {
    let shell = Shell::bare();
    std::fs::write(shell.path("secret"), PASSWORD).unwrap();
    let text = format!(
        "[storages.main]\nprovider = 'local'\npath = '{}'\n\n[sources.db]\nkind = 'mysql'\nurl = '{}'\n\
         password = 'file:{}'\nstorage = 'main'\n{more}\n",
        shell.path("storage").display(),
        server.url(database),
        shell.path("secret").display(),
    );
    shell.set_config(text);
    shell
}

pub(crate) fn made(shell: &Shell) -> Value {
    shell.json(&["backup", "db"])
}

/// Fails with the first lines that differ: a digest is long.
pub(crate) fn assert_same(found: &str, expected: &str) {
    let differing = found.lines().zip(expected.lines()).find(|(found, expected)| found != expected);
    assert_eq!(differing, None);
    assert_eq!(found.len(), expected.len());
}

#[test]
fn database_with_everything_returns_equal_and_undo_brings_back_what_was_there() {
    let server = MysqlServer::start();
    nasty(&server, "shop");
    let before = server.digest("shop");
    let shell = with_database(&server, "shop", "");
    let backup = made(&shell);
    assert_eq!(backup["warnings"].as_array().unwrap().len(), 2, "{backup}");
    assert!(backup["warnings"][1].as_str().unwrap().contains("types.single"), "{backup}");
    assert!(backup["warnings"][0].as_str().unwrap().contains("plain_aria, plain_isam"), "{backup}");
    let shown = shell.json(&["show", backup["id"].as_str().unwrap()]);
    let position = shown["consistency_point"].as_str();
    assert!(position.is_some_and(|position| position.starts_with("log.00000")), "{position:?}");
    server.sql(
        "shop",
        "DROP VIEW by_another; DROP TRIGGER t_second; DELETE FROM types; CREATE TABLE newer (n int); DROP TABLE nothing;
         CREATE TRIGGER t_new BEFORE INSERT ON newer FOR EACH ROW SET NEW.n = 1; DROP EVENT soon;
         ALTER DATABASE shop CHARACTER SET latin1 COMMENT ''; INSERT INTO log (what) VALUES ('newer')",
    );
    let spoilt = server.digest("shop");
    shell.ends(0, &["restore", "db", "--yes"]);
    assert_same(&server.digest("shop"), &before);
    shell.ends(0, &["undo", "db"]);
    assert_same(&server.digest("shop"), &spoilt);
    shell.ends(0, &["confirm", "db"]);
    let ours =
        "SELECT count(*) FROM information_schema.schemata WHERE schema_name LIKE 'backstay%'";
    assert_eq!(server.sql("", ours), "0");
    // And to another name beside it.
    shell.ends(
        0,
        &["restore", "db", "--to", "copy", "--id", backup["id"].as_str().unwrap(), "--yes"],
    );
    assert_same(&server.digest("copy"), &before);
}

#[test]
fn names_with_everything_in_them_are_names() {
    let server = MysqlServer::start();
    // Quotation marks in a database's name are more than mariadb-dump itself can take.
    for name in ["-its `a` db; --", "with.dot", "größe", "%_"] {
        nasty(&server, name);
        let before = server.digest(name);
        let shell = with_database(&server, "placeholder", "");
        let encoded: String = name.bytes().map(|byte| format!("%{byte:02X}")).collect();
        shell.edit_config("placeholder", &encoded);
        made(&shell);
        server.sql(name, "DROP TABLE log; DROP VIEW b");
        shell.ends(0, &["restore", "db", "--yes"]);
        assert_same(&server.digest(name), &before);
        shell.ends(0, &["confirm", "db"]);
    }
}

#[test]
fn database_without_tables_and_one_that_is_gone_return() {
    let server = MysqlServer::start();
    server.sql("", "CREATE DATABASE bare; CREATE VIEW bare.v AS SELECT 1 AS n; CREATE DATABASE shop; CREATE TABLE shop.t (n int)");
    for name in ["bare", "shop"] {
        let before = server.digest(name);
        let shell = with_database(&server, name, "");
        made(&shell);
        server.sql("", &format!("DROP DATABASE {name}"));
        shell.ends(0, &["restore", "db", "--yes"]);
        assert_same(&server.digest(name), &before);
    }
}

#[test]
fn broken_view_is_told_and_everything_else_returns() {
    let server = MysqlServer::start();
    server.sql("", "CREATE DATABASE shop; CREATE TABLE shop.t (n int); CREATE TABLE shop.gone (n int); CREATE VIEW shop.v AS SELECT * FROM shop.gone; DROP TABLE shop.gone; INSERT INTO shop.t VALUES (1)");
    let shell = with_database(&server, "shop", "");
    let backup = made(&shell);
    assert_eq!(backup["status"], "complete", "{backup}");
    assert!(
        backup["warnings"].to_string().contains("the view v is of something that is gone"),
        "{backup}"
    );
    shell.ends(0, &["restore", "db", "--to", "copy", "--yes"]);
    assert_eq!(server.sql("copy", "SELECT n FROM t"), "1");
}

#[test]
fn backups_under_load_hold_one_consistent_state() {
    let server = MysqlServer::start();
    server.sql("", "CREATE DATABASE bank");
    server.sql(
        "bank",
        "CREATE TABLE account (id int PRIMARY KEY, balance int); INSERT INTO account SELECT seq, 100 FROM seq_1_to_50;
         CREATE TABLE moved (n int) ENGINE=InnoDB; CREATE TABLE total (n int); INSERT INTO total VALUES (0)",
    );
    let mut client = server.command("mariadb");
    let forever = "DELIMITER //
        BEGIN NOT ATOMIC DECLARE i int DEFAULT 0; LOOP SET i = i + 1; START TRANSACTION;
          UPDATE account SET balance = balance - 1 WHERE id = 1 + i % 50; INSERT INTO moved VALUES (i); UPDATE total SET n = n + 1;
          UPDATE account SET balance = balance + 1 WHERE id = 1 + (i + 7) % 50; COMMIT; END LOOP; END //";
    client.args(["--database=bank", "--execute", forever]).stdout(Stdio::null());
    let mut load = Load(client.spawn().unwrap());
    let moved = || server.sql("bank", "SELECT count(*) FROM moved").parse::<u64>().unwrap();
    let shell = with_database(&server, "bank", "");
    for round in 0..6 {
        let before = moved();
        let id = made(&shell)["id"].as_str().unwrap().to_owned();
        while moved() == before {
            assert!(load.0.try_wait().unwrap().is_none(), "the load ended early");
        }
        let copy = format!("copy{round}");
        shell.ends(0, &["restore", "db", "--id", &id, "--to", &copy, "--yes"]);
        let sound = "SELECT (SELECT sum(balance) FROM account), (SELECT count(*) FROM moved) = (SELECT n FROM total)";
        assert_eq!(server.sql(&copy, sound), "5000\t1", "round {round}");
    }
}

#[test]
fn no_password_stands_where_others_can_read_it() {
    let server = MysqlServer::start();
    server.sql("", "CREATE DATABASE shop");
    server.sql("shop", "CREATE TABLE t AS SELECT seq, md5(seq) FROM seq_1_to_1000000");
    let shell = with_database(&server, "shop", "encryption = 'none'");
    tells_no_password(&shell, &["backup", "db", "--json"], ("--hex-blob", PASSWORD));
    assert!(!crate::shell::contains(&shell.path("storage"), PASSWORD.as_bytes()));
}

#[test]
fn heavy_database_of_half_a_gigabyte_returns_equal_within_the_memory_promised() {
    let server = MysqlServer::start_as(&["max-allowed-packet=256M"]);
    server.sql("", "CREATE DATABASE shop");
    server.sql(
        "shop",
        "CREATE TABLE words (id int PRIMARY KEY, text text, KEY (text(20))) SELECT seq AS id, repeat(md5(seq), 10) AS text FROM seq_1_to_1000000;
         CREATE TABLE documents (id int PRIMARY KEY, document json) SELECT seq AS id, json_object('id', seq, 'tags', json_array(md5(seq), 'x'), 'more', repeat('y', seq % 200)) AS document FROM seq_1_to_700000;
         CREATE TABLE large (id int PRIMARY KEY, data longblob) SELECT seq AS id, repeat(unhex(md5(seq)), 262144) AS data FROM seq_1_to_20",
    );
    let bytes = "SELECT sum(length(text)) + (SELECT sum(length(document)) FROM documents) + (SELECT sum(length(data)) FROM large) FROM words";
    let bytes: f64 = server.sql("shop", bytes).parse().unwrap();
    assert!(bytes > f64::from(500 << 20), "{bytes}");
    let shell = with_database(&server, "shop", "");
    assert_within_promise(&shell, &["backup", "db"]);
    assert_within_promise(&shell, &["restore", "db", "--to", "copy", "--yes"]);
    assert_eq!(server.sums("copy"), server.sums("shop"));
}

#[test]
fn chosen_tables_return_with_their_rows_and_triggers_to_another_database() {
    let server = MysqlServer::start();
    nasty(&server, "shop");
    let tables = ["types", "it's a \"name\"; -- with `` everything; DROP", "aged", "parts", "log"];
    let checksums = |database: &str| {
        let one = |table: &&str| {
            let quoted = table.replace("``", "`").replace('`', "``");
            let of = format!("`{database}`.`{quoted}`");
            let sum = server.sql("", &format!("CHECKSUM TABLE {of} EXTENDED"));
            sum.rsplit('\t').next().unwrap().to_owned()
                + &server.sql(database, &format!("SHOW CREATE TABLE {of}"))
        };
        tables.iter().map(one).collect::<Vec<_>>()
    };
    let before = checksums("shop");
    let shell = with_database(&server, "shop", "");
    made(&shell);
    let digest = server.digest("shop");
    let some = [
        "--only", "types", "--only", "it's*", "--only", "aged", "--only", "parts", "--only", "log",
    ];
    let restore = [["restore", "db", "--to", "some", "--yes"].as_slice(), &some].concat();
    shell.ends(0, &restore);
    assert_eq!(checksums("some"), before);
    let beside = "SELECT group_concat(table_name ORDER BY 1) FROM information_schema.tables WHERE table_schema = 'some' AND table_type <> 'SEQUENCE'";
    assert_eq!(
        server.sql("", beside),
        "aged,it's a \"name\"; -- with `` everything; DROP,log,parts,types".replace("``", "`")
    );
    let triggers = "SELECT group_concat(trigger_name ORDER BY action_order) FROM information_schema.triggers WHERE trigger_schema = 'some'";
    assert_eq!(server.sql("", triggers), "t_before,t_first,t_second");
    let error = shell.complains(1, &["restore", "db", "--only", "types", "--yes"]);
    assert!(error.contains("name it with --to"), "{error}");
    let unknown = ["restore", "db", "--only", "nobody", "--to", "x", "--yes"];
    let error = shell.complains(1, &unknown);
    assert!(error.contains("has no table nobody"), "{error}");
    assert_eq!(server.digest("shop"), digest);
}
