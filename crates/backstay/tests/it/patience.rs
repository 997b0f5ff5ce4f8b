//! How long a dump may take, and what happens to one that gave way (X8, X9).

use std::process::{Child, Output, Stdio};
use std::time::{Duration, Instant};

use backstay_testkit::postgres::PostgresServer;
use serde_json::Value;

use crate::postgres::with_database;
use crate::postgres_faults::with_program;
use crate::shell::Shell;

/// Waits that must end; nothing is asserted about how long they take.
const PATIENCE: Duration = Duration::from_secs(60);
const ORDERS: &str = "CREATE TABLE orders AS SELECT generate_series(1, 200000) AS n";

fn start(shell: &Shell) -> Child {
    let mut command = shell.command(&["backup", "db"]);
    command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap()
}

fn wait_for(what: &str, mut is_there: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !is_there() {
        assert!(Instant::now() < deadline, "{what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn error_of(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Returns what is written down of jobs, as `kind state`.
fn jobs(shell: &Shell) -> Vec<String> {
    let catalog = rusqlite::Connection::open(shell.path("home/catalog.db")).unwrap();
    let mut query = catalog.prepare("SELECT kind || ' ' || state FROM jobs").unwrap();
    query.query_map([], |row| row.get(0)).unwrap().map(Result::unwrap).collect()
}

#[test]
fn statement_of_a_dump_that_takes_too_long_ends_it() {
    let server = PostgresServer::start();
    server.sql("postgres", "CREATE DATABASE shop");
    // More than all the buffers on the way hold, so that the server cannot end its statement.
    server.sql(
        "shop",
        "CREATE TABLE orders AS SELECT repeat(md5(n::text), 30) FROM generate_series(1, 60000) n",
    );
    let shell = with_database(&server, "shop", "statement_timeout = '1s'");
    // Nobody takes what the server sends.
    with_program(&server, &shell, "pg_dump", "\"$REAL\" \"$@\" | (sleep 600; cat)");
    let error = shell.complains(1, &["backup", "db"]);
    assert!(error.contains("a statement of the dump took longer than 1 s"), "{error}");
    assert!(error.contains("COPY public.orders"), "{error}");
    assert!(!error.contains("trying again"), "what takes long takes long again: {error}");
    assert_eq!(shell.json(&["backups", "db"]), Value::Array(Vec::new()));
}

#[test]
fn dump_that_gave_way_is_tried_again_and_the_record_keeps_one_job() {
    let server = PostgresServer::start();
    server.sql("postgres", "CREATE DATABASE shop");
    server.sql("shop", ORDERS);
    let shell = with_database(&server, "shop", "lock_timeout = '1s'\nretry_after = '100ms'");
    let mark = shell.path("tried").display().to_string();
    let script = format!(
        "if [ -e '{mark}' ]; then exec \"$REAL\" \"$@\"; fi; touch '{mark}'; \"$REAL\" \"$@\" | (sleep 600; cat)"
    );
    with_program(&server, &shell, "pg_dump", &script);
    let backing_up = start(&shell);
    let locked = "SELECT count(*) FROM pg_locks WHERE relation = 'orders'::regclass AND granted";
    wait_for("the dump never locked its table", || server.sql("shop", locked) != "0");
    server.sql("shop", "ALTER TABLE orders ADD COLUMN m int");
    let output = backing_up.wait_with_output().unwrap();
    let error = error_of(&output);
    assert_eq!(output.status.code(), Some(0), "{error}");
    assert!(error.contains("trying again in 0.1 s: the backup of db: session "), "{error}");
    let backups = shell.json(&["backups", "db"]);
    assert_eq!(backups.as_array().unwrap().len(), 1, "{backups}");
    assert_eq!(jobs(&shell), ["backup succeeded"]);
    shell.ends(0, &["verify", "--all"]);
    shell.ends(0, &["restore", "db", "--to", "copy", "--yes"]);
    assert_eq!(server.data_digest("copy"), server.data_digest("shop"));
}

#[test]
fn backup_that_gives_way_every_time_says_how_often_it_was_tried() {
    let server = PostgresServer::start();
    server.sql("postgres", "CREATE DATABASE shop");
    server.sql("shop", ORDERS);
    let shell = with_database(
        &server,
        "shop",
        "lock_timeout = '1s'\nretries = 1\nretry_after = '100ms'\n\
         before_backup = { run = ['sh', '-c', 'echo before >> hooks'] }\n\
         after_backup = { run = ['sh', '-c', 'echo after >> hooks'] }",
    );
    let mut holder = server
        .command("psql", "shop")
        .args(["-X", "-q", "-c", "BEGIN; LOCK TABLE orders; SELECT pg_sleep(600)"])
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let locked = "SELECT count(*) FROM pg_locks WHERE relation = 'orders'::regclass AND granted";
    wait_for("the table was never locked", || server.sql("shop", locked) != "0");
    let error = shell.complains(1, &["backup", "db"]);
    holder.kill().unwrap();
    holder.wait().unwrap();
    assert!(error.contains("error: tried 2 times: pg_dump failed"), "{error}");
    assert!(error.contains("due to statement timeout"), "{error}");
    let hooks = std::fs::read_to_string(shell.path("hooks")).unwrap();
    assert_eq!(hooks, "before\nafter\nbefore\nafter\n", "the app runs while the next try waits");
    assert_eq!(jobs(&shell), ["backup failed"]);
}

#[test]
fn waiting_for_the_next_try_can_be_stopped() {
    let server = PostgresServer::start();
    server.sql("postgres", "CREATE DATABASE shop");
    server.sql("shop", ORDERS);
    let shell = with_database(&server, "shop", "lock_timeout = '1s'\nretry_after = '1h'");
    with_program(
        &server,
        &shell,
        "pg_dump",
        "echo 'canceling statement due to lock timeout' >&2; exit 1",
    );
    let mut child = start(&shell);
    let mut lines = std::io::BufRead::lines(std::io::BufReader::new(child.stderr.take().unwrap()));
    let waits = lines.any(|line| line.unwrap().contains("trying again in 3600.0 s"));
    assert!(waits);
    let pid = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(130));
    assert_eq!(jobs(&shell), ["backup cancelled"]);
}
