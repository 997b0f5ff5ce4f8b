//! Redis, on real servers: what is backed up returns equal, and what is not whole is never called good (V1-V5, V47-V54).

use std::process::{Command, Stdio};

use backstay_testkit::redis::{PASSWORD, RedisServer};
use serde_json::Value;

use crate::mysql::assert_same;
use crate::postgres::Load;
use crate::postgres_network::wait_until;
use crate::shell::Shell;
use crate::size::assert_within_promise;

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

pub(crate) fn made(shell: &Shell) -> Value {
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
    server.ask(
        0,
        &[
            "FUNCTION",
            "LOAD",
            "#!lua name=newer\nredis.register_function('n', function() return 1 end)",
        ],
    );
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

#[test]
fn part_is_a_file_that_the_servers_own_programs_read() {
    let server = RedisServer::start();
    nasty(&server);
    let before = server.digest();
    let shell = with_server(&server, "encryption = 'none'");
    // What a restore has set aside is in no backup.
    shell.ends(0, &["backup", "db"]);
    shell.ends(0, &["restore", "db", "--yes", "--no-safety-backup"]);
    let id = made(&shell)["id"].as_str().unwrap().to_owned();
    let directory = tempfile::tempdir().unwrap();
    let part = shell.path("storage/backstay/default/db").join(id).join("dump.rdb.zst");
    let unpacked = Command::new("zstd")
        .args(["-q", "-d"])
        .arg(part)
        .arg("-o")
        .arg(directory.path().join("dump.rdb"))
        .status();
    assert!(unpacked.unwrap().success());
    let checked =
        Command::new("redis-check-rdb").arg(directory.path().join("dump.rdb")).output().unwrap();
    assert!(String::from_utf8_lossy(&checked.stdout).contains("Checksum OK"), "{checked:?}");
    let by_hand = RedisServer::start_in(directory, &[]);
    assert_same(&by_hand.digest(), &before);
}

#[test]
fn server_that_makes_replicas_wait_or_sends_them_a_file_is_backed_up_too() {
    for setting in ["repl-diskless-sync-delay 2", "repl-diskless-sync no"] {
        let server = RedisServer::start_as(&[setting, "repl-ping-replica-period 1"]);
        nasty(&server);
        let before = server.digest();
        let shell = with_server(&server, "");
        made(&shell);
        server.ask(0, &["FLUSHALL"]);
        shell.ends(0, &["restore", "db", "--yes"]);
        assert_same(&server.digest(), &before);
    }
}

#[test]
fn databases_return_elsewhere_alone_and_under_another_number() {
    let (server, other) = (RedisServer::start(), RedisServer::start_as(&["databases 10"]));
    nasty(&server);
    let before = server.digest();
    let shell = with_server(&server, "");
    made(&shell);
    std::fs::write(shell.path("url"), format!("redis://:{PASSWORD}@127.0.0.1:{}", other.port))
        .unwrap();
    let to = format!("file:{}", shell.path("url").display());
    other.ask(4, &["SET", "mine", "1"]);
    shell.ends(0, &["restore", "db", "--to", &to, "--yes"]);
    let error = shell.complains(1, &["restore", "db", "--to", &to, "--yes"]);
    assert!(error.contains("database 0 there is not empty"), "{error}");
    assert_eq!(other.ask(4, &["GET", "mine"]), "1");
    other.ask(4, &["FLUSHDB"]);
    // It has fewer databases, so only those that both have are compared.
    let sum = other.ask(0, &["DEBUG", "DIGEST"]);
    assert!(before.starts_with(&sum), "{sum}");
    server.script(3, "SET three spoilt\n");
    server.script(9, "SET nine spoilt\n");
    shell.ends(0, &["restore", "db", "--only", "3", "--yes"]);
    assert_eq!(
        (server.ask(3, &["GET", "three"]), server.ask(9, &["GET", "nine"])),
        ("3".to_owned(), "spoilt".to_owned())
    );
    shell.ends(0, &["restore", "db", "--only", "9", "--to", "12", "--yes"]);
    assert_eq!(
        (server.ask(12, &["GET", "nine"]), server.ask(9, &["GET", "nine"])),
        ("9".to_owned(), "spoilt".to_owned())
    );
    shell.ends(0, &["confirm", "db"]);
    for (words, expected) in [
        (&["--to", "7"][..], "choose one of them"),
        (&["--to", "12", "--only", "9"], "is not empty"),
        (&["--to", "99", "--only", "9"], "none of number 99"),
        (&["--only", "8"], "has no database 8"),
        (&["--only", "x"], "expected the number"),
        (&["--to", "x"], "expected the number"),
        (&["--in-place"], "not for this kind"),
    ] {
        let error = shell.complains(1, &[&["restore", "db", "--yes"], words].concat());
        assert!(error.contains(expected), "{words:?}: {error}");
    }
}

#[test]
fn server_with_a_single_database_that_is_empty_takes_a_backup_and_one_that_is_not_refuses_it() {
    let (server, small) = (RedisServer::start(), RedisServer::start_as(&["databases 1"]));
    server.script(0, include_str!("nasty_redis.txt"));
    let before = server.ask(0, &["DEBUG", "DIGEST"]);
    let shell = with_server(&server, "");
    made(&shell);
    move_to(&shell, &server, small.port);
    shell.ends(0, &["restore", "db", "--yes"]);
    assert_eq!(small.ask(0, &["DEBUG", "DIGEST"]), before);
    shell.complains(1, &["undo", "db"]);
    let error = shell.complains(1, &["restore", "db", "--yes"]);
    assert!(error.contains("no number is free"), "{error}");
    assert_eq!(small.ask(0, &["DEBUG", "DIGEST"]), before);
}

/// Aims a machine at another port.
pub(crate) fn move_to(shell: &Shell, from: &RedisServer, to: u16) {
    shell.edit_config(&format!(":{}'", from.port), &format!(":{to}'"));
}

#[test]
fn keys_that_expire_meanwhile_do_not_come_back_and_others_keep_their_time() {
    let server = RedisServer::start();
    server.script(0, "SET stays 1\nSET gone 1 PX 1500\nSET later 1 PX 100000000\n");
    let time = server.ask(0, &["PEXPIRETIME", "later"]);
    let shell = with_server(&server, "");
    let backup = made(&shell);
    let shown = shell.json(&["show", backup["id"].as_str().unwrap()]);
    assert_eq!(shown["content"]["databases"][0]["expiring"], 2, "{shown}");
    wait_until("the key expires", || server.ask(0, &["EXISTS", "gone"]) == "0");
    server.ask(0, &["FLUSHALL"]);
    shell.ends(0, &["restore", "db", "--yes"]);
    assert_eq!(server.ask(0, &["EXISTS", "gone", "stays", "later"]), "2");
    assert_eq!(server.ask(0, &["PEXPIRETIME", "later"]), time);
}

#[test]
fn backups_under_load_hold_one_consistent_state() {
    let server = RedisServer::start();
    // Every transaction keeps the sum and counts itself.
    let forever = "local i = tonumber(redis.call('GET', 'moved') or '0') + 1 redis.call('SET', 'moved', i)
        redis.call('HINCRBY', 'account:' .. i % 50, 'balance', -1) redis.call('HINCRBY', 'account:' .. (i + 7) % 50, 'balance', 1)
        redis.call('RPUSH', 'log', i) return i";
    let mut client = server.command();
    client.args(["-r", "-1", "EVAL", forever, "0"]).stdout(Stdio::null());
    let mut load = Load(client.spawn().unwrap());
    let moved = || server.ask(0, &["LLEN", "log"]).parse::<u64>().unwrap_or(0);
    let shell = with_server(&server, "");
    for number in 3..8 {
        let before = moved();
        let id = made(&shell)["id"].as_str().unwrap().to_owned();
        wait_until("the load goes on", || moved() > before);
        assert!(load.0.try_wait().unwrap().is_none(), "the load ended early");
        let number = number.to_string();
        shell.ends(0, &["restore", "db", "--id", &id, "--only", "0", "--to", &number, "--yes"]);
        let number = number.parse().unwrap();
        let sum = "local sum = 0 for i = 0, 49 do sum = sum + tonumber(redis.call('HGET', 'account:' .. i, 'balance') or '0') end
            return {sum, redis.call('LLEN', 'log') - tonumber(redis.call('GET', 'moved'))}";
        assert_eq!(server.ask(number, &["EVAL", sum, "0"]), "0\n0", "{number}");
        server.ask(number, &["FLUSHDB"]);
    }
}

#[test]
fn heavy_server_of_half_a_gigabyte_with_huge_values_returns_equal_within_the_memory_promised() {
    let (server, other) = (RedisServer::start_as(&["rdbcompression no"]), RedisServer::start());
    let fill = "for i = 1, 5000 do local n = ARGV[1] * 5000 + i local text = redis.sha1hex(n)
        redis.call('SET', 'text:' .. n, string.rep(text, 40)) redis.call('HSET', 'hash:' .. n, 'a', text, 'b', n, 'c', string.rep(text, 3))
        redis.call('ZADD', 'scores:' .. n % 1000, n, text) redis.call('PEXPIRE', 'text:' .. n, 100000000 + n) end";
    for round in 0..35 {
        server.ask(0, &["EVAL", fill, "0", &round.to_string()]);
    }
    // One that is larger than all that we may take.
    server.ask(0, &["EVAL", "redis.call('SETRANGE', 'huge', 209715200, 'end') for i = 0, 2000 do redis.call('SETRANGE', 'huge', i * 100000, redis.sha1hex(i)) end", "0"]);
    server.ask(
        0,
        &[
            "EVAL",
            "for i = 1, 600 do redis.call('RPUSH', 'wide', string.rep(redis.sha1hex(i), 5000)) end",
            "0",
        ],
    );
    let shell = with_server(&server, "");
    assert_within_promise(&shell, &["backup", "db"]);
    let id = shell.json(&["backups", "db"])[0]["id"].as_str().unwrap().to_owned();
    let shown = shell.json(&["show", &id]);
    assert!(shown["plain_bytes"].as_u64().unwrap() > 500 << 20, "{shown}");
    std::fs::write(shell.path("url"), format!("redis://:{PASSWORD}@127.0.0.1:{}", other.port))
        .unwrap();
    let to = format!("file:{}", shell.path("url").display());
    assert_within_promise(&shell, &["restore", "db", "--to", &to, "--yes"]);
    assert_same(&other.digest(), &server.digest());
}
