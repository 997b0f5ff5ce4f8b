//! PostgreSQL when something breaks: what is not whole is never called good, and a database is old or new (V7, V8, V50, V51).

use std::os::unix::fs::PermissionsExt as _;
use std::time::{Duration, Instant};

use backstay_testkit::postgres::{self, PostgresServer};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::postgres::{made, nasty, with_database};
use crate::shell::Shell;

/// Waits that must end; nothing is asserted about how long they take.
const PATIENCE: Duration = Duration::from_secs(60);

/// A directory of programs in which one is a script.
pub(crate) fn with_program(server: &PostgresServer, shell: &Shell, name: &str, script: &str) {
    let programs = shell.path("programs");
    std::fs::create_dir(&programs).unwrap();
    for program in ["pg_dump", "pg_restore", "psql"] {
        let path = programs.join(program);
        let real = server.programs().join(program);
        let body = if program == name { script } else { "exec \"$REAL\" \"$@\"" };
        let head = format!(
            "#!/bin/sh\nREAL='{}'\n[ \"$1\" = --version ] && exec \"$REAL\" --version\n",
            real.display()
        );
        std::fs::write(&path, format!("{head}{body}\n")).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    }
    let config = shell.config();
    let real = format!("programs = '{}'", server.programs().display());
    let ours = format!("programs = '{}'", programs.display());
    shell.set_config(config.replace(&real, &ours));
}

/// Forgets a directory of programs in which one is a script.
pub(crate) fn with_real_programs(server: &PostgresServer, shell: &Shell) {
    let programs = shell.path("programs");
    std::fs::remove_dir_all(&programs).unwrap();
    let config = shell.config();
    let (ours, real) = (programs.display().to_string(), server.programs().display().to_string());
    shell.set_config(config.replace(&ours, &real));
}

#[test]
fn killed_restore_leaves_the_database_old_or_new_and_the_next_command_finishes() {
    let server = PostgresServer::start();
    server.sql("postgres", "CREATE DATABASE shop");
    server.sql(
        "shop",
        "CREATE TABLE state AS SELECT 'backed up' AS what, i FROM generate_series(1, 20000) i",
    );
    let shell = with_database(&server, "shop", "");
    made(&shell);
    server.sql("shop", "UPDATE state SET what = 'newer'");
    let state = || server.sql("shop", "SELECT what, count(*) FROM state GROUP BY 1");
    let mut seen = std::collections::BTreeSet::new();
    // Steps of a restore that are told on the way; after each, and a little later, the process is killed.
    for (round, step) in
        ["loading beside", "backing up what", "swapping", "swapping", "swapping"].iter().enumerate()
    {
        let mut restoring = shell
            .command(&["restore", "db", "--yes", "--json"])
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let lines =
            std::io::BufRead::lines(std::io::BufReader::new(restoring.stderr.take().unwrap()));
        let reached = lines.map_while(Result::ok).any(|line| line.contains(step));
        assert!(reached, "{step}");
        std::thread::sleep(Duration::from_millis(15 * round as u64));
        restoring.kill().unwrap();
        restoring.wait().unwrap();
        let now = state();
        assert!(["backed up|20000", "newer|20000"].contains(&now.as_str()), "{step}: {now}");
        seen.insert(now);
        // The next command finishes what was begun; the lease of the killed process is known to be free.
        shell.ends(0, &["restore", "db", "--yes"]);
        assert_eq!(state(), "backed up|20000", "{step}");
        shell.ends(0, &["undo", "db"]);
        while shell.run(&["confirm", "db"]).status.success() {}
        let ours = "SELECT count(*) FROM pg_database WHERE datname ~ '^backstay_'";
        assert_eq!(server.sql("postgres", ours), "0", "{step}: nothing is left beside");
        server.sql("shop", "UPDATE state SET what = 'newer'");
    }
    assert!(seen.contains("newer|20000"));
}

#[test]
fn dump_that_is_not_whole_is_no_backup_however_its_program_ends() {
    let server = PostgresServer::start();
    nasty(&server, "shop");
    let size =
        server.command("pg_dump", "shop").args(["-Fc", "-Z0"]).output().unwrap().stdout.len();
    let middle = format!("\"$REAL\" \"$@\" | head -c {}; exit 0", size / 2);
    let last = format!("\"$REAL\" \"$@\" | head -c {}; exit 0", size - 7);
    let scripts = [
        ("exit 0", "no whole archive"),
        (middle.as_str(), "no whole archive"),
        (last.as_str(), "no whole archive"),
        ("\"$REAL\" \"$@\"; echo 'late trouble' >&2; exit 1", "late trouble"),
        ("\"$REAL\" \"$@\" | head -c 5000; kill -9 $$", "pg_dump failed"),
        ("echo surprise; exit 0", "does not begin as one"),
    ];
    for (script, expected) in scripts {
        let shell = with_database(&server, "shop", "");
        with_program(&server, &shell, "pg_dump", script);
        let error = shell.complains(1, &["backup", "db"]);
        assert!(error.contains(expected), "{script}: {error}");
        assert_eq!(shell.json(&["backups", "db"]), Value::Array(Vec::new()), "{script}");
    }
}

#[test]
fn restore_that_fails_leaves_the_database_as_it_was() {
    let server = PostgresServer::start();
    nasty(&server, "shop");
    let before = server.digest("shop");
    let fewer_rows = "\"$REAL\" \"$@\" && exec \"$(dirname \"$REAL\")/psql\" -X -q \"$1\" -c 'TRUNCATE app.secret_rows'";
    let scripts = [
        ("cat >/dev/null; echo 'pg_restore: error: it broke' >&2; exit 1", "it broke"),
        (fewer_rows, "app.secret_rows should have 2 rows"),
        ("head -c 1000 >/dev/null; kill -9 $$", "pg_restore failed"),
    ];
    for (script, expected) in scripts {
        let shell = with_database(&server, "shop", "");
        made(&shell);
        with_program(&server, &shell, "pg_restore", script);
        let error = shell.complains(1, &["restore", "db", "--yes"]);
        assert!(error.contains(expected), "{script}: {error}");
        assert_eq!(server.digest("shop"), before, "{script}");
        let databases =
            server.sql("postgres", "SELECT count(*) FROM pg_database WHERE NOT datistemplate");
        assert_eq!(databases, "2", "{script}: nothing is left beside");
    }
}

#[test]
fn dump_gives_way_to_whoever_waits_behind_it() {
    let server = PostgresServer::start();
    server.sql("postgres", "CREATE DATABASE shop");
    server.sql("shop", "CREATE TABLE orders (n int); INSERT INTO orders VALUES (1)");
    let shell = with_database(&server, "shop", "lock_timeout = '1s'\nretries = 0");
    // The dump has its locks and takes its time.
    with_program(&server, &shell, "pg_dump", "\"$REAL\" \"$@\" | (sleep 60; cat)");
    server.sql("shop", "INSERT INTO orders SELECT generate_series(1, 200000)");
    let backing_up = shell
        .command(&["backup", "db"])
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let locked = "SELECT count(*) FROM pg_locks WHERE relation = 'orders'::regclass AND granted";
    let deadline = Instant::now() + PATIENCE;
    while server.sql("shop", locked) == "0" {
        assert!(Instant::now() < deadline, "the dump never locked its table");
        std::thread::sleep(Duration::from_millis(20));
    }
    // Would wait for ever if the dump did.
    server.sql("shop", "ALTER TABLE orders ADD COLUMN m int");
    let output = backing_up.wait_with_output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{error}");
    assert!(error.contains("so the dump gave way"), "{error}");
}

#[test]
fn server_that_dies_during_backup_or_restore_makes_no_false_success() {
    let mut server = PostgresServer::start();
    nasty(&server, "shop");
    server.sql(
        "shop",
        "CREATE TABLE public.large AS SELECT i, md5(i::text) FROM generate_series(1, 50000) i",
    );
    // Sequences jump ahead when a server recovers what no checkpoint has.
    server.sql("shop", "CHECKPOINT");
    let before = server.digest("shop");
    let shell = with_database(&server, "shop", "");
    let id = made(&shell)["id"].as_str().unwrap().to_owned();
    let die = format!("kill -QUIT {}", server.pid());
    with_program(
        &server,
        &shell,
        "pg_dump",
        &format!("\"$REAL\" \"$@\" | {{ head -c 300000; {die}; cat; }}"),
    );
    shell.complains(1, &["backup", "db"]);
    assert_eq!(shell.json(&["backups", "db"]).as_array().unwrap().len(), 1);
    server.revive();
    assert_eq!(server.digest("shop"), before);
    for script in
        ["{die}; exec \"$REAL\" \"$@\"", "{ head -c 300000; {die}; cat; } | \"$REAL\" \"$@\""]
    {
        with_real_programs(&server, &shell);
        let script = script.replace("{die}", &format!("kill -QUIT {}", server.pid()));
        with_program(&server, &shell, "pg_restore", &script);
        shell.complains(1, &["restore", "db", "--id", &id, "--yes"]);
        server.revive();
        assert_eq!(server.digest("shop"), before, "{script}");
    }
    with_real_programs(&server, &shell);
    made(&shell);
    shell.ends(0, &["restore", "db", "--id", &id, "--yes"]);
    assert_eq!(server.digest("shop"), before);
    shell.ends(0, &["confirm", "db"]);
    let ours = "SELECT count(*) FROM pg_database WHERE datname ~ '^backstay_'";
    assert_eq!(server.sql("postgres", ours), "0", "what the failed restores left is swept");
}

#[test]
fn restored_database_outlives_a_crash_right_after_on_a_server_that_does_not_wait_for_its_disk() {
    let (_, programs) = postgres::installed().swap_remove(0);
    // Whatever is not written by itself within this time is lost in a crash.
    let settings = ["synchronous_commit=off", "wal_writer_delay=10s"];
    let mut server = PostgresServer::start_as(&programs, &settings);
    server.sql("postgres", "CREATE DATABASE shop");
    server.sql("shop", "CREATE TABLE orders AS SELECT i FROM generate_series(1, 1000) i");
    let before = server.digest("shop");
    let shell = with_database(&server, "shop", "");
    made(&shell);
    server.sql("shop", "DELETE FROM orders; CHECKPOINT");
    shell.ends(0, &["restore", "db", "--yes"]);
    let pid = Pid::from_raw(server.pid().cast_signed()).unwrap();
    kill_process(pid, Signal::QUIT).unwrap();
    server.revive();
    assert_eq!(server.digest("shop"), before);
    assert_eq!(server.sql("postgres", "SHOW synchronous_commit"), "off");
    shell.ends(0, &["undo", "db"]);
    assert_eq!(server.sql("shop", "SELECT count(*) FROM orders"), "0");
}
