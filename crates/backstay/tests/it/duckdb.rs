//! DuckDB: what is backed up returns equal, and an export that is not what the database holds is no backup (H2, H7, H12).

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use backstay_testkit::duckdb::{self, App};
use serde_json::Value;

use crate::faults::SmallDisk;
use crate::shell::Shell;
use crate::size::assert_within_promise;

/// A machine with a database of these statements that is backed up to a directory.
fn with_database(statements: &str) -> Shell {
    let shell = Shell::bare();
    duckdb::sql(&shell.path("app.db"), statements);
    shell.set_config(format!(
        "[storages.main]\nprovider = 'local'\npath = '{}'\n\n[sources.db]\nkind = 'duckdb'\npath = '{}'\n\
         programs = '{}'\nstorage = 'main'\n",
        shell.path("storage").display(),
        shell.path("app.db").display(),
        duckdb::programs().display(),
    ));
    shell
}

fn database(shell: &Shell) -> PathBuf {
    shell.path("app.db")
}

/// Puts a program in the place of DuckDB that does as it does, but for what this script makes of its input.
fn spoil(shell: &Shell, sed: &str) {
    let programs = shell.path("programs");
    std::fs::create_dir_all(&programs).unwrap();
    let real = duckdb::programs().join("duckdb").display().to_string();
    let script = format!(
        "#!/bin/sh\n[ \"$1\" = --version ] && exec {real} --version\nsed -u \"{sed}\" | {real} \"$@\"\n"
    );
    std::fs::write(programs.join("duckdb"), script).unwrap();
    let mode = std::fs::Permissions::from_mode(0o755);
    std::fs::set_permissions(programs.join("duckdb"), mode).unwrap();
    let present = duckdb::programs().display().to_string();
    shell.edit_config(&present, &programs.display().to_string());
}

fn count(shell: &Shell) -> usize {
    shell.json(&["backups", "db"]).as_array().unwrap().len()
}

const NASTY: &str = include_str!("nasty_duckdb.sql");

#[test]
fn database_with_everything_returns_equal_and_undo_brings_back_what_was_there() {
    let shell = with_database(NASTY);
    let before = duckdb::digest(&database(&shell));
    // Opened for reading only, it stays as it is to the byte.
    let bytes = std::fs::read(database(&shell)).unwrap();
    let backup = shell.json(&["backup", "db"]);
    assert_eq!(backup["warnings"].as_array().unwrap().len(), 0, "{backup}");
    assert!(std::fs::read(database(&shell)).unwrap() == bytes);
    duckdb::sql(
        &database(&shell),
        "DELETE FROM types; DROP VIEW a_last; CREATE TABLE newer (i INTEGER); SELECT nextval('seq')",
    );
    let spoilt = duckdb::digest(&database(&shell));
    shell.ends(0, &["restore", "db", "--yes"]);
    assert_eq!(duckdb::digest(&database(&shell)), before);
    shell.ends(0, &["undo", "db"]);
    assert_eq!(duckdb::digest(&database(&shell)), spoilt);
    shell.ends(0, &["restore", "db", "--id", backup["id"].as_str().unwrap(), "--yes"]);
    // What was undone waits, too.
    shell.ends(0, &["confirm", "db"]);
    shell.ends(0, &["confirm", "db"]);
    assert_eq!(duckdb::digest(&database(&shell)), before);
    // Where the sequence goes on.
    assert_eq!(duckdb::sql(&database(&shell), "SELECT nextval('seq') AS n"), "{\"n\":8}");
    let left: Vec<_> = std::fs::read_dir(shell.path("")).unwrap().flatten().collect();
    let left =
        left.iter().filter(|entry| entry.file_name().to_string_lossy().contains("backstay-"));
    assert_eq!(left.count(), 0);
}

#[test]
fn backup_is_opened_by_hand_with_tar_and_duckdb() {
    let shell = with_database(NASTY);
    shell.ends(0, &["backup", "db"]);
    let id = shell.json(&["backups", "db"])[0]["id"].as_str().unwrap().to_owned();
    let export = shell.path("export.tar");
    shell.ends(0, &["download", &id, "--output", export.to_str().unwrap()]);
    let folder = shell.path("by-hand");
    std::fs::create_dir(&folder).unwrap();
    let unpacked = Command::new("tar").arg("xf").arg(&export).arg("-C").arg(&folder).status();
    assert!(unpacked.unwrap().success());
    let copy = shell.path("copy.db");
    duckdb::sql(&copy, &format!("IMPORT DATABASE '{}'", folder.display()));
    assert_eq!(duckdb::digest(&copy), duckdb::digest(&database(&shell)));
}

#[test]
fn app_that_writes_is_named_with_the_ways_out_and_one_that_reads_is_no_hindrance() {
    let shell = with_database("CREATE TABLE t (i INTEGER); INSERT INTO t VALUES (1)");
    let mut app = App::writing(&database(&shell));
    for words in [["source", "test", "db"].as_slice(), &["backup", "db"]] {
        let error = shell.complains(1, words);
        assert!(error.contains(&format!("PID {}", app.pid())), "{error}");
        assert!(error.contains("before_backup") && error.contains("reading only"), "{error}");
    }
    assert_eq!(count(&shell), 0);
    // It crashes with rows that are in its log alone.
    app.run("SET checkpoint_threshold = '1GB'; INSERT INTO t VALUES (2); SELECT 'there'");
    let log = database(&shell).with_extension("db.wal");
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(60);
    while log.metadata().map_or(0, |meta| meta.len()) == 0 && std::time::Instant::now() < deadline {
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    drop(app);
    let before = std::fs::read(&log).unwrap();
    assert!(!before.is_empty());
    let reader = App::reading(&database(&shell));
    shell.ends(0, &["backup", "db"]);
    assert_eq!(std::fs::read(&log).unwrap(), before, "the log is the app's");
    let error = shell.complains(1, &["restore", "db", "--yes"]);
    assert!(error.contains(&format!("process {}", reader.pid())), "{error}");
    drop(reader);
    shell.ends(0, &["restore", "db", "--yes"]);
    assert!(!log.exists(), "the log of another database lies beside what was restored");
    assert_eq!(duckdb::sql(&database(&shell), "SELECT sum(i) AS sum FROM t"), "{\"sum\":\"3\"}");
}

#[test]
fn export_that_is_not_what_the_database_holds_is_no_backup() {
    let statements = "CREATE TABLE t (i INTEGER, n VARCHAR); INSERT INTO t SELECT range, 'x' FROM range(100); CREATE VIEW v AS SELECT i FROM t";
    let overwrite = |select: &str| {
        format!(
            "s/^EXPORT DATABASE '\\(.*\\)' (.*/&\\nCOPY ({select}) TO '\\1\\/t.parquet' (FORMAT parquet);/"
        )
    };
    for (sed, finding) in [
        (overwrite("FROM t LIMIT 99"), "t should have 100 rows and has 99"),
        (
            overwrite("SELECT i, CASE i WHEN 7 THEN 'y' ELSE n END AS n FROM t"),
            "t should have 100 rows and has 100, with other values",
        ),
        (overwrite("SELECT i FROM t"), "the file of t does not fit it"),
        // A view that an import does not make.
        (
            "s/^IMPORT DATABASE.*/&\\nDROP VIEW v;/".to_owned(),
            "the view \"main\".\"v\" is not made again as it is",
        ),
    ] {
        let shell = with_database(statements);
        spoil(&shell, &sed);
        let error = shell.complains(1, &["backup", "db"]);
        assert!(error.contains(finding), "{sed}: {error}");
        assert_eq!(count(&shell), 0, "{sed}");
    }
    // And the same without any harm done.
    let shell = with_database(statements);
    spoil(&shell, "s/x/x/");
    shell.ends(0, &["backup", "db"]);
}

#[test]
fn database_of_a_newer_format_with_warnings_and_large_keys_returns() {
    let shell = with_database("CREATE TABLE t (i INTEGER)");
    std::fs::remove_file(database(&shell)).unwrap();
    // Only the newest format of files has these; the old way to write a lambda makes DuckDB warn each time it is read; the key's
    // index must fit into memory.
    let attach = format!(
        "ATTACH '{}' AS app (STORAGE_VERSION 'latest'); USE app",
        database(&shell).display()
    );
    let statements = "CREATE TABLE v (k INTEGER, v VARIANT); INSERT INTO v VALUES (1, 'x'::VARIANT), (2, [1, 2]::VARIANT), (3, NULL);
        CREATE MACRO typed(a INTEGER) AS a + 1; SET lambda_syntax = 'ENABLE_SINGLE_ARROW';
        CREATE VIEW lambdas AS SELECT list_transform([1, 2], x -> x + 1) AS l;
        CREATE TABLE keys (id VARCHAR PRIMARY KEY); INSERT INTO keys SELECT md5(range::VARCHAR) FROM range(200000);
        CREATE TABLE gone (i INTEGER); CREATE VIEW of_gone AS SELECT * FROM gone; COMMENT ON VIEW of_gone IS 'x'; DROP TABLE gone;
        CREATE TABLE lists (l INTEGER[]); INSERT INTO lists VALUES (NULL), ([]), ([NULL])";
    duckdb::sql(Path::new(":memory:"), &format!("{attach}; {statements}"));
    let before = duckdb::digest(&database(&shell));
    let backup = shell.json(&["backup", "db"]);
    assert_eq!(backup["status"], "complete", "{backup}");
    assert!(backup["warnings"].to_string().contains("of_gone"), "{backup}");
    shell.ends(0, &["restore", "db", "--yes"]);
    let after = duckdb::digest(&database(&shell));
    let kept = |digest: &str| -> Vec<String> {
        digest.lines().filter(|line| !line.contains("of_gone")).map(str::to_owned).collect()
    };
    assert_eq!(kept(&after), kept(&before));
}

#[test]
fn restore_that_would_bring_other_rows_leaves_what_is_there() {
    let shell =
        with_database("CREATE TABLE t (i INTEGER); INSERT INTO t SELECT range FROM range(100)");
    shell.ends(0, &["backup", "db"]);
    duckdb::sql(&database(&shell), "INSERT INTO t VALUES (1000)");
    let before = duckdb::digest(&database(&shell));
    for (statement, finding) in [
        ("DELETE FROM t WHERE i = 5", "should have 100 rows and has 99"),
        ("UPDATE t SET i = 0 WHERE i = 5", "should have 100 rows and has 100, with other values"),
    ] {
        spoil(&shell, &format!("s/^IMPORT DATABASE.*/&\\n{statement};/"));
        let error = shell.complains(1, &["restore", "db", "--yes", "--no-safety-backup"]);
        assert!(error.contains(finding), "{error}");
        assert_eq!(duckdb::digest(&database(&shell)), before);
        shell.edit_config(
            &shell.path("programs").display().to_string(),
            &duckdb::programs().display().to_string(),
        );
    }
}

#[test]
fn view_of_a_file_that_is_elsewhere_is_told_and_everything_else_returns() {
    let shell = with_database("CREATE TABLE t (i INTEGER)");
    let file = shell.path("rows.csv");
    std::fs::write(&file, "a,b\n1,2\n").unwrap();
    duckdb::sql(
        &database(&shell),
        &format!(
            "CREATE VIEW outside AS FROM read_csv('{}'); CREATE VIEW inside AS SELECT * FROM t",
            file.display()
        ),
    );
    let backup: Value = shell.json(&["backup", "db"]);
    assert!(backup["warnings"].to_string().contains("CREATE VIEW outside"), "{backup}");
    assert_eq!(backup["status"], "complete", "{backup}");
    shell.ends(0, &["restore", "db", "--yes"]);
    let views =
        duckdb::sql(&database(&shell), "SELECT view_name FROM duckdb_views() WHERE NOT internal");
    assert_eq!(views, "{\"view_name\":\"inside\"}");
}

#[test]
fn what_stands_in_the_way_is_told_apart_and_nothing_is_stored() {
    let shell = with_database(
        "CREATE TABLE t AS SELECT range AS i, md5(range::VARCHAR) AS n FROM range(200000)",
    );
    let whole = std::fs::read(database(&shell)).unwrap();
    let cases: [(&str, Vec<u8>, &str); 4] = [
        ("cut", whole[..whole.len() / 2].to_vec(), "is damaged"),
        ("spoilt", spoilt(&whole), "is damaged"),
        (
            "other",
            b"SQLite format 3\0 and more of another kind".repeat(500),
            "cannot be opened by DuckDB",
        ),
        ("empty", Vec::new(), "cannot be opened by DuckDB"),
    ];
    for (case, bytes, finding) in cases {
        std::fs::write(database(&shell), bytes).unwrap();
        let error = shell.complains(1, &["backup", "db"]);
        assert!(error.contains(finding), "{case}: {error}");
    }
    std::fs::remove_file(database(&shell)).unwrap();
    let error = shell.complains(1, &["backup", "db"]);
    assert!(error.contains("does not exist"), "{error}");
    std::fs::write(database(&shell), &whole).unwrap();
    let present = duckdb::programs().display().to_string();
    shell.edit_config(&present, "/nowhere");
    let error = shell.complains(1, &["backup", "db"]);
    assert!(error.contains("install DuckDB's command line"), "{error}");
    shell.edit_config("/nowhere", &present);
    assert_eq!(count(&shell), 0);
    shell.ends(0, &["backup", "db"]);
}

/// Flips bits in every block of a database but its headers.
fn spoilt(whole: &[u8]) -> Vec<u8> {
    let mut bytes = whole.to_vec();
    for byte in bytes.iter_mut().skip(20_000).step_by(50_000) {
        *byte ^= 0x55;
    }
    bytes
}

#[test]
fn spool_that_is_full_is_said_so_and_the_next_run_is_good() {
    let shell = with_database(
        "CREATE TABLE t AS SELECT range AS i, md5(random()::VARCHAR) AS n FROM range(600000)",
    );
    shell.ends(0, &["source", "test", "db"]);
    let spool = shell.path("home/spool");
    std::fs::create_dir_all(&spool).unwrap();
    let disk = SmallDisk::mount(&spool, 10);
    let error = shell.complains(14, &["backup", "db"]);
    assert!(error.contains("bytes free, but") && error.contains("are needed"), "{error}");
    assert_eq!(count(&shell), 0);
    disk.grow(200);
    shell.ends(0, &["backup", "db"]);
    let before = duckdb::digest(&database(&shell));
    shell.ends(0, &["restore", "db", "--yes"]);
    assert_eq!(duckdb::digest(&database(&shell)), before);
    assert_eq!(std::fs::read_dir(&spool).unwrap().count(), 0);
}

#[test]
fn drill_asks_what_was_imported() {
    let shell = with_database("CREATE TABLE t AS SELECT range AS i FROM range(10)");
    let checks = "checks = [{ name = 'rows', query = 'SELECT count(*), max(i) FROM t', expect = '10|9' }, { name = 'none', query = 'SELECT count(*) = 0 FROM t', expect = 'false' }]";
    shell.set_config(shell.config() + checks + "\n");
    shell.ends(0, &["backup", "db"]);
    duckdb::sql(&database(&shell), "DELETE FROM t");
    shell.ends(0, &["drill", "db"]);
    shell.edit_config("'10|9'", "'11|9'");
    let said = shell.ends(1, &["drill", "db"]);
    assert!(said.contains("11|9") && said.contains("10|9"), "{said}");
}

#[test]
fn heavy_database_of_half_a_gigabyte_with_everything_returns_equal_within_the_memory_promised() {
    let large = "
        CREATE TABLE words AS SELECT range AS id, md5(range::VARCHAR) || md5((range + 1)::VARCHAR) AS text, random() AS n FROM range(12000000);
        CREATE TABLE documents AS SELECT range AS id, {'a': range, 'b': [md5(range::VARCHAR), 'x']} AS nested, (range * 7)::HUGEINT AS huge FROM range(6000000)";
    let shell = with_database(&format!("{NASTY};{large}"));
    let bytes = database(&shell).metadata().unwrap().len();
    assert!(bytes > 500 << 20, "{bytes}");
    let before = duckdb::digest(&database(&shell));
    assert_within_promise(&shell, &["backup", "db"]);
    let copy = shell.path("copy.db");
    assert_within_promise(&shell, &["restore", "db", "--to", copy.to_str().unwrap(), "--yes"]);
    assert_eq!(duckdb::digest(&copy), before);
}
