//! Passwords of PostgreSQL from the files that libpq reads (X6).

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use backstay_testkit::postgres::{PASSWORD, PostgresServer};

use crate::postgres::with_database;
use crate::shell::Shell;

/// A machine whose configuration names no password, with more lines.
fn without_password(server: &PostgresServer, query: &str, more: &str) -> Shell {
    let shell = with_database(server, "shop", more);
    let config = shell.config();
    let config = config.replace("/shop'", &format!("/shop{query}'"));
    let lines: Vec<&str> = config.lines().filter(|line| !line.starts_with("password")).collect();
    shell.set_config(lines.join("\n"));
    shell
}

fn write(file: &Path, mode: u32, server: &PostgresServer) {
    let lines = format!(
        "# the shop\n127.0.0.1:{0}:other:*:wrong\n*:{0}:shop:postgres:{PASSWORD}\n*:*:*:*:later\n",
        server.port
    );
    std::fs::write(file, lines).unwrap();
    std::fs::set_permissions(file, std::fs::Permissions::from_mode(mode)).unwrap();
}

#[test]
fn password_is_found_in_the_files_that_libpq_reads_and_not_where_others_can_read_it() {
    let server = PostgresServer::start();
    server.sql("postgres", "CREATE DATABASE shop");
    server.sql("shop", "CREATE TABLE orders AS SELECT generate_series(1, 100) AS n");
    let dir = tempfile::tempdir().unwrap();
    let (good, open) = (dir.path().join("good"), dir.path().join("open"));
    write(&good, 0o600, &server);
    write(&open, 0o640, &server);
    let parameter = |file: &Path| format!("?passfile={}", file.display());
    let field = |file: &Path| format!("passfile = '{}'", file.display());
    for shell in [
        without_password(&server, "", &field(&good)),
        without_password(&server, &parameter(&good), ""),
    ] {
        shell.ends(0, &["backup", "db"]);
        shell.ends(0, &["restore", "db", "--yes"]);
    }
    // Somebody asked for it, so it is an error; nothing is read or made.
    for shell in [
        without_password(&server, "", &field(&open)),
        without_password(&server, &parameter(&open), ""),
    ] {
        let error = shell.complains(2, &["backup", "db"]);
        assert!(error.contains("others may read or change"), "{error}");
        assert!(!error.contains(PASSWORD), "{error}");
    }
    let other = dir.path().join("other");
    std::fs::write(&other, "elsewhere:*:*:*:x\n").unwrap();
    std::fs::set_permissions(&other, std::fs::Permissions::from_mode(0o600)).unwrap();
    let shell = without_password(&server, "", &field(&other));
    let error = shell.complains(2, &["backup", "db"]);
    let missing = format!("has no line for 127.0.0.1:{}:shop:postgres", server.port);
    assert!(error.contains(&missing), "{error}");
}

#[test]
fn usual_file_of_passwords_counts_where_nothing_is_said() {
    let server = PostgresServer::start();
    server.sql("postgres", "CREATE DATABASE shop");
    let shell = without_password(&server, "", "");
    let error = shell.complains(1, &["backup", "db"]);
    assert!(error.contains("login failed"), "{error}");
    write(&shell.path(".pgpass"), 0o600, &server);
    shell.ends(0, &["backup", "db"]);
    // As libpq has it: one that others can read is not read, and that is said.
    write(&shell.path(".pgpass"), 0o604, &server);
    let error = shell.complains(1, &["backup", "db"]);
    assert!(error.contains("warning: source db: no password is taken: others may"), "{error}");
    assert!(error.contains("login failed"), "{error}");
    let elsewhere = shell.path("elsewhere");
    write(&elsewhere, 0o600, &server);
    let output = shell.command(&["backup", "db"]).env("PGPASSFILE", &elsewhere).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}
