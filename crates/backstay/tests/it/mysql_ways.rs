//! Ways to a MariaDB server: sealed connections and bastions (X1-X9).

use std::os::unix::fs::PermissionsExt as _;

use backstay_testkit::certificates::Authority;
use backstay_testkit::mysql::{MysqlServer, USER};
use backstay_testkit::ssh::SshServer;

use crate::faults::SmallDisk;
use crate::mysql::{assert_same, made, nasty, with_database};
use crate::postgres::move_to;
use crate::tunnels::ssh;

#[test]
fn sealed_connections_are_checked_as_much_as_is_asked() {
    let (ours, theirs) = (Authority::new("ours"), Authority::new("theirs"));
    let server = MysqlServer::start_sealed(&ours.sign("localhost"), &ours.certificate);
    server.sql("", "CREATE DATABASE shop; CREATE TABLE shop.t (n int)");
    // Whoever comes without TLS is refused by the server from here on.
    let accounts = "CREATE USER sealed@'127.0.0.1' IDENTIFIED BY 'my-secret-w3Kp' REQUIRE SSL; GRANT ALL ON *.* TO sealed@'127.0.0.1';
                    CREATE USER known@'127.0.0.1' IDENTIFIED BY 'my-secret-w3Kp' REQUIRE X509; GRANT ALL ON *.* TO known@'127.0.0.1'";
    server.sql("", accounts);
    let me = ours.sign("known");
    let cases = [
        ("sealed", "localhost", "require", None, false, None),
        ("sealed", "localhost", "prefer", None, false, None),
        ("sealed", "localhost", "disable", None, false, Some("login failed")),
        ("sealed", "localhost", "verify-full", Some(&ours), false, None),
        ("sealed", "127.0.0.1", "verify-ca", Some(&ours), false, None),
        ("sealed", "127.0.0.1", "verify-full", Some(&ours), false, Some("TLS failed")),
        ("sealed", "localhost", "verify-ca", Some(&theirs), false, Some("TLS failed")),
        ("sealed", "localhost", "verify-full", None, false, Some("TLS failed")),
        ("known", "localhost", "verify-full", Some(&ours), false, Some("login failed")),
        ("known", "localhost", "verify-full", Some(&ours), true, None),
    ];
    for (user, host, mode, authority, shows_itself, expected) in cases {
        let context = format!("{user} {host} {mode} {shows_itself}");
        let shell = with_database(&server, "shop", "");
        shell.edit_config(&format!("{USER}@127.0.0.1"), &format!("{user}@{host}"));
        let file = |name: &str, text: &str| {
            std::fs::write(shell.path(name), text).unwrap();
            shell.path(name).display().to_string()
        };
        let mut more = vec![format!("tls = '{mode}'")];
        more.extend(authority.map(|authority| {
            format!("tls_ca_file = '{}'", file("ca.pem", &authority.certificate))
        }));
        if shows_itself {
            more.push(format!("tls_certificate_file = '{}'", file("me.pem", &me.certificate)));
            more.push(format!("tls_key_file = '{}'", file("me.key", &me.key)));
        }
        shell.set_config(shell.config() + &more.join("\n"));
        match expected {
            None => {
                // The program of the server is connected in the same way.
                shell.ends(0, &["backup", "db"]);
                shell.ends(0, &["restore", "db", "--yes"]);
            }
            Some(expected) => {
                let error = shell.complains(1, &["source", "test", "db"]);
                assert!(error.contains(expected), "{context}: {error}");
                shell.complains(1, &["backup", "db"]);
            }
        }
    }
}

#[test]
fn database_behind_a_bastion_is_backed_up_restored_and_brought_back() {
    let (server, bastion) = (MysqlServer::start(), SshServer::start());
    nasty(&server, "shop");
    let before = server.digest("shop");
    let shell = with_database(&server, "shop", &ssh(&bastion));
    made(&shell);
    server.sql("shop", "DELETE FROM types; DROP VIEW by_another");
    let spoilt = server.digest("shop");
    shell.ends(0, &["restore", "db", "--yes"]);
    assert_same(&server.digest("shop"), &before);
    shell.ends(0, &["undo", "db"]);
    assert_same(&server.digest("shop"), &spoilt);
    shell.set_config(shell.config() + "tls = 'verify-full'\n");
    let error = shell.complains(2, &["backup", "db"]);
    assert!(error.contains("cannot check a host's name through a tunnel"), "{error}");
}

#[test]
fn table_whose_default_is_a_sequence_returns_to_its_place() {
    let server = MysqlServer::start();
    server.sql("", "CREATE DATABASE shop");
    server.sql("shop", "CREATE SEQUENCE s; CREATE TABLE t (id int PRIMARY KEY DEFAULT nextval(s), n int); INSERT INTO t (n) VALUES (1), (2)");
    let shell = with_database(&server, "shop", "");
    made(&shell);
    let before = server.digest("shop");
    server.sql("shop", "DELETE FROM t");
    shell.ends(0, &["restore", "db", "--yes"]);
    assert_same(&server.digest("shop"), &before);
    shell.ends(0, &["confirm", "db"]);
    server.sql("shop", "INSERT INTO t (n) VALUES (3)");
    assert_eq!(server.sql("shop", "SELECT count(*) FROM t"), "3");
}

#[test]
fn server_whose_disk_is_full_takes_no_restore_and_keeps_what_it_has() {
    let place = tempfile::tempdir().unwrap();
    std::fs::set_permissions(place.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    let disk = SmallDisk::mount(place.path(), 260);
    std::fs::set_permissions(place.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    let (server, full) = (
        MysqlServer::start(),
        MysqlServer::start_in(tempfile::tempdir_in(place.path()).unwrap(), &[]),
    );
    server.sql("", "CREATE DATABASE shop; USE shop; CREATE TABLE t (id int PRIMARY KEY, text text) SELECT seq AS id, repeat(md5(seq), 40) AS text FROM seq_1_to_150000");
    full.sql(
        "",
        "CREATE DATABASE shop; CREATE TABLE shop.mine (n int); INSERT INTO shop.mine VALUES (1)",
    );
    let before = full.digest("shop");
    let shell = with_database(&server, "shop", "");
    made(&shell);
    move_to(&shell, server.port, full.port);
    let error = shell.complains(1, &["restore", "db", "--yes"]);
    assert!(error.contains("is full") || error.contains("No space"), "{error}");
    assert_same(&full.digest("shop"), &before);
    disk.grow(1000);
    shell.ends(0, &["restore", "db", "--yes"]);
    assert_eq!(full.sums("shop"), server.sums("shop"));
    drop(full);
}
