//! MariaDB, on real servers: what is backed up returns equal, and what is not whole is never called good (V1-V5, V47-V54).

use backstay_testkit::mysql::{MysqlServer, PASSWORD};
use serde_json::Value;

use crate::shell::Shell;

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
    assert_eq!(backup["warnings"].as_array().unwrap().len(), 1, "{backup}");
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
