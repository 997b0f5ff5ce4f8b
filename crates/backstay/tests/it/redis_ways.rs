//! Ways to a Redis server: sealed connections and bastions, users and their rights, drills (X1-X9, V64).

use std::process::Stdio;

use backstay_testkit::certificates::Authority;
use backstay_testkit::redis::{PASSWORD, RedisServer};
use backstay_testkit::ssh::SshServer;

use crate::mysql::assert_same;
use crate::redis::{made, nasty, with_server};
use crate::tunnels::ssh;

#[test]
fn causes_of_a_connection_that_fails_are_told_apart() {
    let server = RedisServer::start();
    server.ask(0, &["SET", "a", "1"]);
    server.script(0, &format!("ACL SETUSER poor on >{PASSWORD} +ping +info\nACL SETUSER known on >{PASSWORD} +ping +info +acl|dryrun ~* +get +select\nACL SETUSER right_one on >{PASSWORD} ~backstay:* +ping +info +select +get +psync +replconf +acl|list\n"));
    let cluster = RedisServer::start_as(&["cluster-enabled yes"]);
    let replica = RedisServer::start_as(&[
        &format!("replicaof 127.0.0.1 {}", server.port),
        &format!("masterauth {PASSWORD}"),
    ]);
    let shell = with_server(&server, "");
    shell.set_config(shell.config().replace("redis://", "redis://right_one@"));
    shell.ends(0, &["source", "test", "db"]);
    shell.ends(0, &["backup", "db"]);
    let error = shell.complains(1, &["restore", "db", "--yes"]);
    assert!(error.contains("NOPERM") && error.contains("ACL SETUSER"), "{error}");
    let port = format!(":{}'", server.port);
    let (of_cluster, of_replica) = (format!(":{}'", cluster.port), format!(":{}'", replica.port));
    let cases = [
        ("source test", PASSWORD, "wrong", "login failed"),
        ("source test", "redis://", "redis://nobody@", "login failed"),
        ("source test", "127.0.0.1", "no.such.host.invalid", "name is not known"),
        ("source test", &port, ":1'", "connection refused"),
        ("source test", "redis://", "rediss://", "TLS failed"),
        ("source test", "redis://", "redis://known@", "psync"),
        ("backup", "redis://", "redis://poor@", "NOPERM"),
        ("source test", &port, &of_cluster, "node of a cluster"),
        ("restore", &port, &of_replica, "is a replica"),
    ];
    for (verb, from, to, expected) in cases {
        let shell = with_server(&server, "");
        made(&shell);
        if from == PASSWORD {
            std::fs::write(shell.path("secret"), to).unwrap();
        } else {
            shell.edit_config(from, to);
        }
        let words: &[&str] = match verb {
            "source test" => &["source", "test", "db"],
            "backup" => &["backup", "db"],
            _ => &["restore", "db", "--yes"],
        };
        let error = shell.complains(1, words);
        assert!(error.contains(expected), "{expected}: {error}");
        assert!(!error.contains(PASSWORD), "{error}");
    }
}

#[test]
fn sealed_connections_are_checked_as_much_as_is_asked() {
    let (ours, theirs) = (Authority::new("ours"), Authority::new("theirs"));
    let server = RedisServer::start_sealed(&ours.sign("localhost"), &ours.certificate);
    nasty(&server);
    let before = server.digest();
    let me = ours.sign("known");
    let cases = [
        ("localhost", None, None, Some("TLS failed")),
        ("localhost", Some("require"), None, None),
        ("localhost", Some("disable"), None, Some("the server closed the connection")),
        ("localhost", None, Some(&ours), None),
        ("127.0.0.1", Some("verify-ca"), Some(&ours), None),
        ("127.0.0.1", None, Some(&ours), Some("TLS failed")),
        ("localhost", Some("verify-ca"), Some(&theirs), Some("TLS failed")),
    ];
    let set_up = |host: &str, mode: Option<&str>, authority: Option<&Authority>| {
        let shell = with_server(&server, "");
        shell.edit_config("127.0.0.1", host);
        let mut more: Vec<String> = mode.iter().map(|mode| format!("tls = '{mode}'\n")).collect();
        if let Some(authority) = authority {
            std::fs::write(shell.path("ca.pem"), &authority.certificate).unwrap();
            more.push(format!("tls_ca_file = '{}'\n", shell.path("ca.pem").display()));
        }
        shell.set_config(shell.config() + &more.concat());
        shell
    };
    for (host, mode, authority, expected) in cases {
        let shell = set_up(host, mode, authority);
        match expected {
            None => {
                shell.ends(0, &["backup", "db"]);
                shell.ends(0, &["restore", "db", "--yes"]);
                shell.ends(0, &["confirm", "db"]);
                assert_same(&server.digest(), &before);
            }
            Some(expected) => {
                let error = shell.complains(1, &["source", "test", "db"]);
                assert!(error.contains(expected), "{host} {mode:?}: {error}");
            }
        }
    }
    server.ask(0, &["CONFIG", "SET", "tls-auth-clients", "yes"]);
    let shell = set_up("localhost", None, Some(&ours));
    let error = shell.complains(1, &["source", "test", "db"]);
    assert!(error.contains("TLS failed"), "{error}");
    std::fs::write(shell.path("me.pem"), &me.certificate).unwrap();
    std::fs::write(shell.path("me.key"), &me.key).unwrap();
    let files = format!(
        "tls_certificate_file = '{}'\ntls_key_file = '{}'\n",
        shell.path("me.pem").display(),
        shell.path("me.key").display()
    );
    shell.set_config(shell.config() + &files);
    shell.ends(0, &["backup", "db"]);
}

#[test]
fn server_behind_a_bastion_is_backed_up_restored_and_brought_back() {
    let (server, bastion) = (RedisServer::start(), SshServer::start());
    nasty(&server);
    let before = server.digest();
    let shell = with_server(&server, &ssh(&bastion));
    made(&shell);
    server.script(0, "DEL list\nSET text spoilt\n");
    let spoilt = server.digest();
    shell.ends(0, &["restore", "db", "--yes"]);
    shell.ends(0, &["undo", "db"]);
    shell.ends(0, &["confirm", "db"]);
    assert_same(&server.digest(), &spoilt);
    shell.ends(0, &["restore", "db", "--yes"]);
    shell.ends(0, &["confirm", "db"]);
    assert_same(&server.digest(), &before);
}

#[test]
fn drill_asks_what_was_loaded_and_leaves_nothing() {
    let server = RedisServer::start();
    nasty(&server);
    let before = server.digest();
    let checks = "checks = [{ name = 'text', query = 'GET text', expect = 'plain' }, { name = 'three', database = '3', query = 'DBSIZE', expect = '2' }]";
    let shell = with_server(&server, checks);
    made(&shell);
    shell.ends(0, &["drill", "db"]);
    assert_same(&server.digest(), &before);
    shell.edit_config("'plain'", "'other'");
    let told = shell.ends(1, &["drill", "db"]);
    assert!(told.contains("plain"), "{told}");
    assert_same(&server.digest(), &before);
}

#[test]
fn no_password_lies_in_a_backup_that_is_not_sealed() {
    let server = RedisServer::start();
    server.ask(0, &["SET", "a", "1"]);
    let shell = with_server(&server, "encryption = 'none'");
    let backup = made(&shell);
    assert!(backup["warnings"].to_string().contains("users are not taken along"), "{backup}");
    assert_eq!(backup["parts"].as_array().unwrap().len(), 1, "{backup}");
    let sealed = with_server(&server, "");
    let mut command = sealed.command(&["backup", "db"]);
    assert!(command.stdout(Stdio::null()).status().unwrap().success());
    let id = sealed.json(&["backups", "db"])[0]["id"].as_str().unwrap().to_owned();
    let file = sealed.path("users");
    sealed.ends(0, &["download", &id, "--part", "users.acl", "--output", file.to_str().unwrap()]);
    assert!(std::fs::read_to_string(file).unwrap().starts_with("user default on #"));
}
