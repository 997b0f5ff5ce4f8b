//! PostgreSQL over TLS with certificates on both sides: who may be talked to, and who may talk (V52, V53).

use backstay_testkit::certificates::{Authority, Identity};
use backstay_testkit::postgres::PostgresServer;

use crate::postgres::with_database;
use crate::shell::Shell;

/// Signs in as a role by its certificate, if it has one.
fn with_certificate(server: &PostgresServer, trusted: &str, identity: Option<&Identity>) -> Shell {
    let shell = with_database(server, "shop", "");
    let config = shell.config();
    let lines = config.lines().filter(|line| !line.starts_with("password"));
    let lines: Vec<&str> = lines.collect();
    let config = lines.join("\n").replace("postgres@127.0.0.1", "backer@localhost");
    std::fs::write(shell.path("ca.crt"), trusted).unwrap();
    let ca = shell.path("ca.crt").display().to_string();
    let mut more = vec![config, "tls = 'verify-full'".to_owned(), format!("tls_ca_file = '{ca}'")];
    if let Some(identity) = identity {
        let (certificate, key) = (shell.path("ours.crt"), shell.path("ours.key"));
        std::fs::write(&certificate, &identity.certificate).unwrap();
        std::fs::write(&key, &identity.key).unwrap();
        // The server's own programs insist on it.
        let secret = std::os::unix::fs::PermissionsExt::from_mode(0o600);
        std::fs::set_permissions(&key, secret).unwrap();
        more.push(format!("tls_certificate_file = '{}'", certificate.display()));
        more.push(format!("tls_key_file = '{}'", key.display()));
    }
    let config = more.join("\n") + "\n";
    shell.set_config(config);
    shell
}

fn shop() -> PostgresServer {
    let server = PostgresServer::start();
    server.sql("postgres", "CREATE DATABASE shop; ");
    server.sql("postgres", "CREATE ROLE backer SUPERUSER LOGIN");
    server.sql("shop", "CREATE TABLE orders AS SELECT generate_series(1, 1000) AS n");
    server
}

#[test]
fn server_that_demands_certificates_takes_ours_for_everything_and_refuses_all_others() {
    let (authority, stranger) = (Authority::new("ours"), Authority::new("strange"));
    let server = shop();
    let sealed = authority.sign("localhost");
    server.seal_as(&sealed.certificate, &sealed.key);
    server.demand_certificate("backer", &authority.certificate);
    let before = server.digest("shop");
    let shell = with_certificate(&server, &authority.certificate, Some(&authority.sign("backer")));
    // Our sessions, pg_dump and pg_restore all need it.
    shell.ends(0, &["backup", "db"]);
    server.sql("shop", "DROP TABLE orders");
    shell.ends(0, &["restore", "db", "--yes"]);
    assert_eq!(server.digest("shop"), before);
    let refused = [None, Some(stranger.sign("backer")), Some(authority.sign("somebody"))];
    for identity in refused {
        let shell = with_certificate(&server, &authority.certificate, identity.as_ref());
        let error = shell.complains(1, &["source", "test", "db"]);
        assert!(error.contains("login failed") || error.contains("TLS failed"), "{error}");
        shell.complains(1, &["backup", "db"]);
    }
}

#[test]
fn man_in_the_middle_is_refused() {
    let (authority, stranger) = (Authority::new("ours"), Authority::new("strange"));
    // In the place of the server: somebody whose certificate says the right name but is signed by another authority, and
    // somebody who has a good certificate of another name.
    for (identity, mode, is_refused) in [
        (stranger.sign("localhost"), "verify-full", true),
        (stranger.sign("localhost"), "verify-ca", true),
        (authority.sign("elsewhere.example"), "verify-full", true),
        (authority.sign("elsewhere.example"), "verify-ca", false),
    ] {
        let server = shop();
        server.seal_as(&identity.certificate, &identity.key);
        server.sql("postgres", "ALTER ROLE backer PASSWORD 'pg-secret-q8Zr'");
        let shell = with_certificate(&server, &authority.certificate, None);
        let config = shell.config();
        let password = shell.path("secret").display().to_string();
        let config =
            config.replace("verify-full", mode) + &format!("password = 'file:{password}'\n");
        shell.set_config(config);
        if is_refused {
            let error = shell.complains(1, &["backup", "db"]);
            assert!(error.contains("TLS failed"), "{mode}: {error}");
        } else {
            shell.ends(0, &["backup", "db"]);
        }
    }
}

#[test]
fn certificates_that_the_system_trusts_are_trusted_by_the_programs_of_postgres_too() {
    let authority = Authority::new("public");
    let server = shop();
    let sealed = authority.sign("localhost");
    server.seal_as(&sealed.certificate, &sealed.key);
    server.demand_certificate("backer", &authority.certificate);
    let shell = with_certificate(&server, &authority.certificate, Some(&authority.sign("backer")));
    let config = shell.config();
    let lines = config.lines().filter(|line| !line.starts_with("tls_ca_file"));
    let config: Vec<&str> = lines.collect();
    shell.set_config(config.join("\n"));
    let mut command = shell.command(&["backup", "db"]);
    let output = command.env("SSL_CERT_FILE", shell.path("ca.crt")).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    // Without it, nobody would trust that authority.
    let error = shell.complains(1, &["backup", "db"]);
    assert!(error.contains("TLS failed"), "{error}");
}
