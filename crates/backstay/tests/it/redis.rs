//! Redis, on real servers: what is backed up returns equal, and what is not whole is never called good (V1-V5, V47-V54).

use backstay_testkit::redis::{PASSWORD, RedisServer};
use serde_json::Value;

use crate::mysql::assert_same;
use crate::shell::Shell;

/// Fills a server with all that there can be.
pub(crate) fn nasty(server: &RedisServer) {
    server.script(0, include_str!("nasty_redis.txt"));
    server.script(3, "SET three 3\nRPUSH list a b c\n");
    server.ask(9, &["SET", "nine", "9"]);
}

/// A machine that backs up a server to a directory.
pub(crate) fn with_server(server: &RedisServer, more: &str) -> Shell {
    let shell = Shell::bare();
    std::fs::write(shell.path("secret"), PASSWORD).unwrap();
    let text = format!(
        "[storages.main]\nprovider = 'local'\npath = '{}'\n\n[sources.db]\nkind = 'redis'\nurl = '{}'\n\
         password = 'file:{}'\nstorage = 'main'\n{more}\n",
        shell.path("storage").display(),
        server.url(),
        shell.path("secret").display(),
    );
    shell.set_config(text);
    shell
}

fn made(shell: &Shell) -> Value {
    shell.json(&["backup", "db"])
}

#[test]
fn server_with_everything_returns_equal_and_undo_brings_back_what_was_there() {
    let server = RedisServer::start();
    nasty(&server);
    let before = server.digest();
    let shell = with_server(&server, "");
    let backup = made(&shell);
    assert_eq!(backup["warnings"], Value::Array(Vec::new()), "{backup}");
    server.script(0, "DEL stream\nSET text spoilt\nSET newer x\nFUNCTION DELETE ours\n");
    server.script(3, "FLUSHDB\n");
    server.script(5, "SET unknown before\n");
    server.ask(0, &["FUNCTION", "LOAD", "#!lua name=newer\nredis.register_function('n', function() return 1 end)"]);
    let spoilt = server.digest();
    shell.ends(0, &["restore", "db", "--yes"]);
    assert_eq!(server.ask(0, &["GET", "text"]), "plain");
    assert_eq!(server.ask(5, &["DBSIZE"]), "0");
    shell.ends(0, &["undo", "db"]);
    shell.ends(0, &["confirm", "db"]);
    assert_same(&server.digest(), &spoilt);
    shell.ends(0, &["restore", "db", "--yes", "--id", backup["id"].as_str().unwrap()]);
    shell.ends(0, &["confirm", "db"]);
    assert_same(&server.digest(), &before);
}
