//! The day of disaster by hand, what a preview promises, and extensions that must be told (V48, V53, V57, V63).

use std::path::Path;
use std::process::Command;

use backstay_testkit::postgres::{self, PostgresServer};

use crate::postgres::{made, nasty, with_database};
use crate::postgres_faults::{with_program, with_real_programs};
use crate::shell::PASSPHRASE;

#[test]
fn sealed_parts_are_opened_by_a_kit_alone_and_restored_with_standard_tools() {
    let server = PostgresServer::start();
    nasty(&server, "shop");
    let before = server.digest("shop");
    let shell = with_database(&server, "shop", "");
    let id = made(&shell)["id"].as_str().unwrap().to_owned();
    let kit = shell.path("kit");
    shell.ends(0, &["keys", "kit", "--output", kit.to_str().unwrap()]);
    drop(server);
    // Another machine: nothing is left but the objects, the kit and its passphrase.
    let elsewhere = crate::shell::Shell::bare();
    let folder = shell.path("storage/backstay/default/db").join(id);
    let parts = ["roles.sql", "properties.sql", "database.dump"];
    for part in parts {
        let sealed = folder.join(format!("{part}.zst.bks"));
        let opened = elsewhere.path(&format!("{part}.zst"));
        let words =
            ["decrypt", sealed.to_str().unwrap(), "--kit", kit.to_str().unwrap(), "--output"];
        let mut command = elsewhere.command(&[&words[..], &[opened.to_str().unwrap()]].concat());
        let output = command.env("BACKSTAY_KIT_PASSPHRASE", PASSPHRASE).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
    let new = PostgresServer::start();
    by_hand(&new, elsewhere.dir.path());
    assert_eq!(new.digest("shop"), before);
}

#[test]
fn parts_that_are_not_sealed_are_restored_with_standard_tools() {
    let server = PostgresServer::start();
    nasty(&server, "shop");
    let before = server.digest("shop");
    let shell = with_database(&server, "shop", "encryption = 'none'");
    let id = made(&shell)["id"].as_str().unwrap().to_owned();
    let folder = shell.path("storage/backstay/default/db").join(id);
    assert!(!crate::shell::contains(&folder, b"SCRAM-SHA-256"), "a hash lies open");
    let new = PostgresServer::start();
    by_hand(&new, &folder);
    assert_eq!(new.digest("shop"), before);
}

#[test]
fn restore_to_a_file_writes_what_pg_restore_takes() {
    let server = PostgresServer::start();
    nasty(&server, "shop");
    let shell = with_database(&server, "shop", "");
    made(&shell);
    shell.ends(0, &["restore", "db", "--to-file", "shop.dump"]);
    server.sql("postgres", "CREATE DATABASE copy TEMPLATE template0");
    let mut program = server.command("pg_restore", "copy");
    let output = program.args(["--dbname", "copy"]).arg(shell.path("shop.dump")).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(server.data_digest("copy"), server.data_digest("shop"));
    // Several databases make no one file.
    let shell = with_database(&server, "postgres", "databases = ['*']");
    made(&shell);
    let error = shell.complains(2, &["restore", "db", "--to-file", "all.dump"]);
    assert!(
        error.contains("--part PART") && error.contains("databases/shop/database.dump"),
        "{error}"
    );
}

/// What the documentation tells a person to type.
fn by_hand(server: &PostgresServer, folder: &Path) {
    let script = "set -e; for part in roles.sql properties.sql; do zstd -dc $part.zst | psql -X -q postgres; done
                  zstd -dc database.dump.zst | pg_restore --dbname shop";
    let client = server.command("psql", "postgres");
    let environment = client.get_envs().filter_map(|(name, value)| Some((name, value?)));
    let output = Command::new("sh")
        .args(["-c", script])
        .current_dir(folder)
        .envs(environment)
        .env("PATH", format!("{}:/usr/bin:/bin", server.programs().display()))
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn preview_says_how_long_it_should_take_once_a_restore_or_drill_has_shown_it() {
    let server = PostgresServer::start();
    server.sql("postgres", "CREATE DATABASE shop");
    server.sql(
        "shop",
        "CREATE TABLE orders AS SELECT i, md5(i::text) FROM generate_series(1, 1000) i",
    );
    let shell = with_database(&server, "shop", "");
    let small = made(&shell);
    assert!(shell.json(&["restore", "db", "--dry-run"])["expected_seconds"].is_null());
    shell.ends(0, &["drill", "db"]);
    let first = shell.json(&["restore", "db", "--dry-run"])["expected_seconds"].as_f64().unwrap();
    assert!(first > 0.0);
    server.sql("shop", "INSERT INTO orders SELECT i, md5(i::text) FROM generate_series(1, 9000) i");
    let large = made(&shell);
    let growth = |backup: &serde_json::Value| backup["plain_bytes"].as_f64().unwrap();
    let expected =
        shell.json(&["restore", "db", "--dry-run"])["expected_seconds"].as_f64().unwrap();
    let wanted = first * growth(&large) / growth(&small);
    assert!((expected - wanted).abs() < 1e-3 * wanted, "{expected} {wanted}");
    let told = shell.complains(0, &["restore", "db", "--dry-run"]);
    assert!(told.contains("Expected  "), "{told}");
}

/// A stand-in: an extension of that name which writes down when it was told of what. TimescaleDB itself is not in this test.
#[test]
fn extension_named_timescaledb_is_told_before_and_after_its_tables_return() {
    let installed = postgres::installed();
    let (_, programs) = installed.iter().find(|(major, _)| *major == 18).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let extensions = folder.path().join("extension");
    std::fs::create_dir(&extensions).unwrap();
    let told = |when: &str| {
        format!(
            "CREATE FUNCTION timescaledb_{when}_restore() RETURNS boolean LANGUAGE plpgsql AS $$ BEGIN
               INSERT INTO told SELECT '{when}', count(*) FROM pg_class WHERE relname = 'metrics'; RETURN true; END $$;\n"
        )
    };
    let script =
        format!("CREATE TABLE told (what text, tables bigint);\n{}{}", told("pre"), told("post"));
    std::fs::write(extensions.join("timescaledb--1.sql"), script).unwrap();
    let control = "default_version = '1'\nrelocatable = true\n";
    std::fs::write(extensions.join("timescaledb.control"), control).unwrap();
    let everybody = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(folder.path(), everybody).unwrap();
    let setting = format!("extension_control_path={}:$system", folder.path().display());
    let server = PostgresServer::start_as(programs, &[&setting]);
    server.sql("postgres", "CREATE DATABASE shop");
    server.sql("shop", "CREATE EXTENSION timescaledb; CREATE TABLE metrics AS SELECT i FROM generate_series(1, 100) i");
    let shell = with_database(&server, "shop", "");
    made(&shell);
    server.sql("shop", "DELETE FROM metrics");
    shell.ends(0, &["restore", "db", "--yes"]);
    assert_eq!(server.sql("shop", "SELECT count(*) FROM metrics"), "100");
    assert_eq!(
        server.sql("shop", "SELECT what, tables FROM told ORDER BY tables"),
        "pre|0\npost|1"
    );
}

#[test]
fn restore_in_place_that_is_killed_leaves_the_database_old_or_new_and_nothing_to_finish() {
    let server = PostgresServer::start();
    server.sql("postgres", "CREATE DATABASE shop");
    server.sql(
        "shop",
        "CREATE TABLE state AS SELECT 'backed up' AS what, i FROM generate_series(1, 20000) i",
    );
    let shell = with_database(&server, "shop", "");
    let id = made(&shell)["id"].as_str().unwrap().to_owned();
    server.sql("shop", "UPDATE state SET what = 'newer'; CREATE TABLE newer (n int)");
    let before = server.data_digest("shop");
    // Half of the statements are there when it happens.
    let script =
        "\"$REAL\" \"$@\" | { head -c 200000; kill -9 \"$(cat \"$(dirname \"$0\")/pid\")\"; cat; }";
    with_program(&server, &shell, "pg_restore", script);
    let words = ["restore", "db", "--id", &id, "--in-place", "--yes"];
    let mut restoring = Command::new("sh");
    let told = shell.command(&words);
    let environment = told.get_envs().filter_map(|(name, value)| Some((name, value?)));
    restoring.env_clear().envs(environment).current_dir(shell.dir.path());
    restoring.args(["-c", "echo $$ > programs/pid; exec \"$@\"", "sh"]).arg(told.get_program());
    let output = restoring.args(told.get_args()).output().unwrap();
    assert!(output.status.code().is_none(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(server.data_digest("shop"), before);
    with_real_programs(&server, &shell);
    shell.ends(0, &["restore", "db", "--id", &id, "--in-place", "--yes"]);
    assert_eq!(
        server.sql("shop", "SELECT what, count(*) FROM state GROUP BY 1"),
        "backed up|20000"
    );
    assert_eq!(server.sql("shop", "SELECT to_regclass('newer') IS NULL"), "t");
    assert!(
        std::fs::read_dir(shell.path("home/spool")).unwrap().next().is_none(),
        "no dump is left"
    );
    shell.ends(0, &["verify", "--all"]);
}
