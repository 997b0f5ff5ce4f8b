//! Runs of retention archives that are killed at any moment: no row is lost, none is doubled (H13).

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use backstay_testkit::postgres::PostgresServer;

use crate::archives::{read_by_duckdb, sqlite, sqlite_rows_of, with_sqlite};
use crate::archives_engines::with_postgres;
use crate::shell::{Shell, kill_after};
use crate::size::peak_kib;

/// How many rows the runs that are killed have; a few seconds' worth, or what somebody asks for.
fn many() -> i64 {
    std::env::var("BACKSTAY_ARCHIVE_ROWS")
        .ok()
        .and_then(|rows| rows.parse().ok())
        .unwrap_or(150_000)
}

/// Rows that the app writes meanwhile have ids from here on, and are young.
const YOUNG: i64 = 1_000_000_000;

/// An app that goes on writing: one row after the other, each changed once.
struct App {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<i64>,
}

impl App {
    fn writing(mut write: impl FnMut(i64) + Send + 'static) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let told = stop.clone();
        let thread = std::thread::spawn(move || {
            let mut written = 0;
            while !told.load(Ordering::Relaxed) {
                write(YOUNG + written);
                written += 1;
                // An app leaves its database alone between two writes.
                std::thread::sleep(Duration::from_millis(2));
            }
            written
        });
        Self { stop, thread }
    }

    /// Returns how many rows it wrote.
    fn stop(self) -> i64 {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap()
    }
}

/// Kills run after run, each at another moment, and looks after each that no row is lost; then lets one end.
fn kill_runs(shell: &Shell, left: impl Fn() -> i64) {
    let kills = std::env::var("BACKSTAY_ARCHIVE_KILLS")
        .ok()
        .and_then(|kills| kills.parse().ok())
        .unwrap_or(12_u32);
    let mut killed = 0;
    for kill in 0..kills {
        // Here and there over the whole of a run.
        let longest = 300.0 + many() as f64 * 0.0004;
        let after =
            Duration::from_secs_f64(f64::from(kill * 7919 % 101) / 101.0 * longest / 1000.0);
        let mut run = shell.command(&["archives", "run", "events", "--quiet"]).spawn().unwrap();
        if !kill_after(&mut run, after) {
            break;
        }
        killed += 1;
        let archived = shell.json(&["archives", "list", "events"]);
        let archived: i64 = archived
            .as_array()
            .unwrap()
            .iter()
            .map(|segment| segment["rows"].as_i64().unwrap())
            .sum();
        let in_table = left();
        assert!(
            archived + in_table >= many(),
            "after kill {kill}: {archived} archived, {in_table} in the table"
        );
        assert!(archived <= many(), "after kill {kill}: {archived} archived");
    }
    assert!(
        killed > kills / 4,
        "only {killed} of {kills} runs were killed: more rows make them longer"
    );
    shell.ends(0, &["archives", "run", "events", "--quiet"]);
    assert_eq!(left(), 0);
    shell.ends(0, &["archives", "verify"]);
    // With what the killed runs left gone, anybody's reader sees each row once.
    let seen = read_by_duckdb(
        shell,
        "count(*) AS n, count(DISTINCT id) AS d, sum(id) AS s, sum(length(note)) AS l",
    );
    let (rows, length) = (many(), many() * 40);
    assert_eq!(
        seen,
        format!(
            "{{\"n\":{rows},\"d\":{rows},\"s\":\"{}\",\"l\":\"{length}\"}}",
            rows * (rows - 1) / 2
        )
    );
}

#[test]
fn heavy_runs_that_are_killed_again_and_again_lose_no_row_of_sqlite_and_double_none() {
    let shell = with_sqlite("delete = true\nencryption = 'none'");
    let database: PathBuf = shell.path("app.db");
    sqlite(&database)
        .execute_batch(&format!(
            "DROP TABLE events; PRAGMA journal_mode = wal; CREATE TABLE events (id INTEGER PRIMARY KEY, created_at INTEGER, note TEXT);
             WITH RECURSIVE n(i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM n WHERE i < {} - 1) INSERT INTO events SELECT i, 1700000000 + i, printf('%040d', i) FROM n;
             CREATE INDEX by_time ON events (created_at)",
            many()
        ))
        .unwrap();
    shell.edit_config("column = 'created_at'", "column = 'created_at'\ncolumn_unit = 's'");
    let count = |condition: &str| -> i64 {
        let query = format!("SELECT count(*) FROM events WHERE id {condition} {YOUNG}");
        sqlite_rows_of(&database, &query).parse().unwrap()
    };
    let connection = sqlite(&database);
    let app = App::writing(move |id| {
        let insert = "INSERT INTO events VALUES (?1, unixepoch(), 'young')";
        connection.execute(insert, [id]).unwrap();
        connection.execute("UPDATE events SET note = 'changed' WHERE id = ?1", [id]).unwrap();
    });
    kill_runs(&shell, || count("<"));
    let written = app.stop();
    assert!(written > 0);
    assert_eq!(count(">="), written, "what the app writes is its own");
}

#[test]
fn heavy_runs_that_are_killed_again_and_again_lose_no_row_of_postgres_and_double_none() {
    let server = PostgresServer::start();
    server.sql("postgres", "CREATE DATABASE shop");
    server.sql("shop", &format!(
        "CREATE TABLE events (id bigint PRIMARY KEY, created_at timestamptz, note text);
         INSERT INTO events SELECT i, timestamptz '2023-11-14 22:13:20+00' + i * interval '1 second', lpad(i::text, 40, '0') FROM generate_series(0, {} - 1) i;
         CREATE INDEX ON events (created_at); ANALYZE events",
        many()
    ));
    let shell = with_postgres(&server, "events", "delete = true\nencryption = 'none'");
    let server = Arc::new(server);
    let count = |condition: &str| -> i64 {
        let query = format!("SELECT count(*) FROM events WHERE id {condition} {YOUNG}");
        server.sql("shop", &query).parse().unwrap()
    };
    let writer = server.clone();
    let app = App::writing(move |id| {
        writer.sql("shop", &format!("INSERT INTO events VALUES ({id}, now(), 'young'); UPDATE events SET note = 'changed' WHERE id = {id}"));
    });
    kill_runs(&shell, || count("<"));
    let written = app.stop();
    assert!(written > 0);
    assert_eq!(count(">="), written, "what the app writes is its own");
}

/// What an archive may take, whatever its rows are.
const PROMISED_KIB: u64 = 256 * 1024;

#[test]
fn heavy_archive_of_large_and_of_many_rows_stays_within_the_memory_promised() {
    for rows in [
        // A gigabyte, and half a million small ones.
        "SELECT i, 1700000000 + i, hex(randomblob(50000)) FROM n WHERE i < 10000",
        "SELECT i, 1700000000 + i, printf('%040d', i) FROM n WHERE i < 500000",
    ] {
        let shell = with_sqlite("delete = true\ncolumn_unit = 's'");
        let database = shell.path("app.db");
        sqlite(&database)
            .execute_batch(&format!(
                "DROP TABLE events; PRAGMA journal_mode = wal; CREATE TABLE events (id INTEGER PRIMARY KEY, created_at INTEGER, note TEXT);
                 WITH RECURSIVE n(i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM n WHERE i < 499999) INSERT INTO events {rows}"
            ))
            .unwrap();
        for words in [
            &["archives", "run", "events"][..],
            &["archives", "verify"],
            &["archives", "restore", "events", "--yes"],
        ] {
            let peak = peak_kib(&shell, words);
            assert!(peak <= PROMISED_KIB, "{words:?} took {} MiB", peak / 1024);
        }
    }
}
