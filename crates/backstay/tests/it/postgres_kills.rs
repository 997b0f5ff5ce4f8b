//! Ourselves killed while a PostgreSQL database is backed up or restored, and servers without room (V7, V8, V50, V51).

use std::process::{Child, Stdio};

use backstay_testkit::postgres::{self, PostgresServer};
use backstay_testkit::proxy::{Network, Proxy};
use rustix::process::Signal;

use crate::faults::SmallDisk;
use crate::postgres::{made, move_to, with_database};
use crate::postgres_faults::with_program;
use crate::postgres_network::{ended, gate, send, sessions, start, wait_until};
use crate::shell::Shell;

const SIGNALS: [Signal; 2] = [Signal::KILL, Signal::TERM];
const DUMP_WAITS: &str = "SELECT count(*) FROM pg_stat_activity WHERE application_name ~ '^backstay dump' AND wait_event_type = 'Lock'";
const SESSION_WAITS: &str = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'backstay' AND wait_event_type = 'Lock'";
const DUMP_STUCK: &str = "SELECT count(*) FROM pg_stat_activity WHERE application_name ~ '^backstay dump' AND wait_event = 'ClientWrite'";

/// A session that holds a lock until it is dropped.
struct Holder(Child);

impl Holder {
    fn new(server: &PostgresServer, database: &str, lock: &str) -> Self {
        let mut command = server.command("psql", database);
        command.env("PGAPPNAME", "holder");
        let statements = format!("BEGIN; {lock}; SELECT pg_sleep(600)");
        command.args(["-X", "-c", &statements]).stdout(Stdio::null()).stderr(Stdio::null());
        let holder = Self(command.spawn().unwrap());
        let holds = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'holder' AND wait_event = 'PgSleep'";
        wait_until("the lock is held", || server.sql("postgres", holds) == "1");
        holder
    }

    fn release(self, server: &PostgresServer) {
        let release = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE application_name = 'holder'";
        server.sql("postgres", release);
        drop(self);
        let gone = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'holder'";
        wait_until("the lock is free", || server.sql("postgres", gone) == "0");
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

fn shop() -> (PostgresServer, Shell) {
    let server = PostgresServer::start();
    server.sql("postgres", "CREATE DATABASE shop");
    server.sql(
        "shop",
        "CREATE TABLE orders AS SELECT i, repeat(md5(i::text), 8) AS text FROM generate_series(1, 100000) i",
    );
    // Whoever waits for a lock after we are gone waits no longer than that.
    let shell = with_database(&server, "shop", "lock_timeout = '2s'");
    (server, shell)
}

/// Kills a command. One that is told to end does so by itself and says that it was interrupted.
fn kill(child: Child, signal: Signal, context: &str) -> Option<i32> {
    send(&child, signal);
    send(&child, Signal::CONT);
    let output = ended(child);
    if signal == Signal::TERM {
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.code().is_some_and(|code| code != 0), "{context}: {error}");
    }
    output.status.code()
}

/// Nothing of ours runs any more, here or on the server.
fn assert_gone(server: &PostgresServer, port: u16) {
    wait_until("our sessions end", || sessions(server) == "0");
    wait_until("our programs end", || !runs_program(port));
}

/// Does a program of PostgreSQL run that was started for a server?
fn runs_program(port: u16) -> bool {
    let wanted = format!("PGPORT={port}");
    std::fs::read_dir("/proc").unwrap().flatten().any(|process| {
        let program = process.path().join("exe").read_link().unwrap_or_default();
        let environment = std::fs::read(process.path().join("environ")).unwrap_or_default();
        (program.ends_with("pg_dump") || program.ends_with("pg_restore"))
            && environment.split(|byte| *byte == 0).any(|one| one == wanted.as_bytes())
    })
}

fn forget_programs(shell: &Shell, config: &str) {
    shell.set_config(config);
    for left in ["programs", "reached", "go"] {
        let path = shell.path(left);
        drop(std::fs::remove_dir_all(&path).or_else(|_| std::fs::remove_file(&path)));
    }
}

fn assert_backups(shell: &Shell, expected: usize, context: &str) {
    let listed = shell.json(&["backups", "db"]);
    assert_eq!(listed.as_array().map(Vec::len), Some(expected), "{context}: {listed}");
    shell.ends(0, &["verify", "--all"]);
}

#[test]
fn backup_that_is_killed_while_it_connects_leaves_nothing() {
    let (server, shell) = shop();
    made(&shell);
    let config = shell.config();
    for signal in SIGNALS {
        let proxy = Proxy::start(server.port);
        proxy.set(Network::Silent);
        move_to(&shell, server.port, proxy.port);
        let child = start(&shell, &["backup", "db"]);
        wait_until("it connects", || proxy.accepted() > 0);
        kill(child, signal, "connecting");
        shell.set_config(&config);
        assert_backups(&shell, 1, "connecting");
        assert_gone(&server, proxy.port);
    }
    made(&shell);
    assert_backups(&shell, 2, "after");
}

#[test]
fn backup_that_is_killed_while_its_dump_waits_for_a_lock_leaves_nothing() {
    let (server, shell) = shop();
    made(&shell);
    for (round, signal) in SIGNALS.into_iter().enumerate() {
        let holder = Holder::new(&server, "shop", "LOCK TABLE orders");
        // What comes before the dump is stored by then.
        let child = start(&shell, &["backup", "db"]);
        wait_until("the dump waits", || server.sql("postgres", DUMP_WAITS) == "1");
        kill(child, signal, "waiting");
        // While the lock is still held.
        assert_gone(&server, server.port);
        holder.release(&server);
        assert_backups(&shell, 1 + round, "waiting");
        made(&shell);
        assert_backups(&shell, 2 + round, "after");
    }
}

#[test]
fn backup_that_is_killed_in_the_middle_of_its_dump_leaves_nothing() {
    let (server, shell) = shop();
    made(&shell);
    for (round, signal) in SIGNALS.into_iter().enumerate() {
        let holder = Holder::new(&server, "shop", "LOCK TABLE orders");
        let child = start(&shell, &["backup", "db"]);
        wait_until("the dump waits", || server.sql("postgres", DUMP_WAITS) == "1");
        // Nobody reads what it writes now, so it is stuck half-way.
        send(&child, Signal::STOP);
        holder.release(&server);
        wait_until("the dump is stuck", || server.sql("postgres", DUMP_STUCK) == "1");
        kill(child, signal, "dumping");
        assert_gone(&server, server.port);
        assert_backups(&shell, 1 + round, "dumping");
        made(&shell);
        assert_backups(&shell, 2 + round, "after");
    }
}

#[test]
fn backup_that_is_killed_before_its_dump_is_known_to_be_whole_leaves_nothing() {
    let (server, shell) = shop();
    made(&shell);
    let config = shell.config();
    for (round, signal) in SIGNALS.into_iter().enumerate() {
        with_program(&server, &shell, "pg_dump", &format!("\"$REAL\" \"$@\"; {}", gate(&shell)));
        let child = start(&shell, &["backup", "db"]);
        wait_until("all is dumped", || shell.path("reached").exists());
        kill(child, signal, "before the commit");
        std::fs::write(shell.path("go"), "").unwrap();
        forget_programs(&shell, &config);
        assert_gone(&server, server.port);
        assert_backups(&shell, 1 + round, "before the commit");
        made(&shell);
        assert_backups(&shell, 2 + round, "after");
    }
}

/// Where a restore stands when it is killed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Prepare,
    Load,
    Compare,
    Safety,
    BeforeRenames,
    Renames,
    AfterRenames,
}

/// After loading, somebody holds a lock on what was loaded.
const LOCKED: &str = r#""$REAL" "$@" || exit 1; export PGAPPNAME=other; db=$1
    ask() { "$(dirname "$REAL")/psql" -X -A -t "$db" -c "$1" </dev/null 2>/dev/null; }
    (ask 'BEGIN; LOCK TABLE orders; SELECT pg_sleep(600)' >/dev/null &)
    holds="SELECT count(*) FROM pg_locks WHERE mode = 'AccessExclusiveLock' AND granted AND relation = 'orders'::regclass"
    until [ "$(ask "$holds")" = 1 ]; do sleep 0.02; done"#;

/// Brings a restore to a stage, where it stays.
fn bring_to(
    stage: Stage,
    server: &PostgresServer,
    shell: &Shell,
    id: &str,
) -> (Child, Option<Holder>) {
    let config = shell.path("backstay.toml");
    let hook = |name: &str| {
        let text = std::fs::read_to_string(&config).unwrap();
        let run = gate(shell).replace('\'', "\\\"");
        std::fs::write(
            &config,
            format!("{text}\n{name} = {{ run = [\"sh\", \"-c\", \"{run}\"], timeout = '5m' }}\n"),
        )
        .unwrap();
    };
    let gated = format!("{}; exec \"$REAL\" \"$@\"", gate(shell));
    let mut holder = None;
    match stage {
        Stage::Prepare => {
            holder =
                Some(Holder::new(server, "postgres", "COMMENT ON DATABASE template0 IS 'held'"));
        }
        Stage::Load => with_program(server, shell, "pg_restore", &gated),
        Stage::Compare => with_program(server, shell, "pg_restore", LOCKED),
        Stage::Safety => with_program(server, shell, "pg_dump", &gated),
        Stage::BeforeRenames => hook("before_restore"),
        Stage::Renames => {
            holder = Some(Holder::new(server, "postgres", "COMMENT ON DATABASE shop IS 'held'"));
        }
        Stage::AfterRenames => hook("after_restore"),
    }
    let child = start(shell, &["restore", "db", "--id", id, "--yes"]);
    match stage {
        Stage::Prepare | Stage::Compare | Stage::Renames => {
            wait_until("it waits for a lock", || server.sql("postgres", SESSION_WAITS) == "1");
        }
        _ => wait_until("it is reached", || shell.path("reached").exists()),
    }
    (child, holder)
}

fn restores_are_killed(stages: &[Stage]) {
    let (server, shell) = shop();
    let old = server.digest("shop");
    let id = made(&shell)["id"].as_str().unwrap().to_owned();
    server.sql("shop", "UPDATE orders SET i = -i");
    let newer = server.digest("shop");
    let config = shell.config();
    for (stage, signal) in stages.iter().flat_map(|stage| SIGNALS.map(|signal| (*stage, signal))) {
        if (stage, signal) == (Stage::AfterRenames, Signal::TERM) {
            // What starts the app again is never interrupted.
            continue;
        }
        let context = format!("{stage:?} {signal:?}");
        let (child, holder) = bring_to(stage, &server, &shell, &id);
        kill(child, signal, &context);
        std::fs::write(shell.path("go"), "").unwrap();
        // While locks are still held.
        assert_gone(&server, server.port);
        if let Some(holder) = holder {
            holder.release(&server);
        }
        forget_programs(&shell, &config);
        let expected = if stage == Stage::AfterRenames { &old } else { &newer };
        assert!(server.digest("shop") == *expected, "{context}: neither old nor new");
        let new = "SELECT count(*) FROM pg_database WHERE datname ~ '^backstay_new_'";
        if signal == Signal::TERM {
            assert_eq!(server.sql("postgres", new), "0", "{context}: left beside");
        }
        shell.ends(0, &["verify", "--all"]);
        shell.ends(0, &["restore", "db", "--id", &id, "--yes"]);
        assert!(server.digest("shop") == old, "{context}: the next restore is not good");
        while shell.run(&["confirm", "db"]).status.success() {}
        let ours = "SELECT string_agg(datname, ' ') FROM pg_database WHERE datname ~ '^backstay_'";
        assert_eq!(server.sql("postgres", ours), "", "{context}: nothing is left beside");
        server.sql("shop", "UPDATE orders SET i = -i");
    }
}

#[test]
fn restore_that_is_killed_while_it_loads_leaves_the_database_as_it_was() {
    restores_are_killed(&[Stage::Prepare, Stage::Load, Stage::Compare]);
}

#[test]
fn restore_that_is_killed_around_the_swap_leaves_the_database_old_or_new() {
    restores_are_killed(&[
        Stage::Safety,
        Stage::BeforeRenames,
        Stage::Renames,
        Stage::AfterRenames,
    ]);
}

#[test]
fn restore_to_a_server_without_room_says_so_and_leaves_the_database_as_it_was() {
    let place = tempfile::tempdir().unwrap();
    // The server's own user must come to it.
    let anybody = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(place.path(), anybody).unwrap();
    let small = place.path().join("small");
    let disk = SmallDisk::mount(&small, 75);
    std::os::unix::fs::chown(&small, Some(65534), Some(65534)).unwrap();
    let (_, programs) = postgres::installed().swap_remove(0);
    // What the test itself sorts takes memory, and no room.
    let server = PostgresServer::start_as(&programs, &["work_mem=256MB"]);
    // All new databases lie there; the server's own files do not, so that it lives on.
    server.sql("postgres", &format!("CREATE TABLESPACE small LOCATION '{}'", small.display()));
    server.sql("postgres", "ALTER DATABASE template0 SET TABLESPACE small");
    server.sql("postgres", "CREATE DATABASE shop TEMPLATE template0");
    server.sql(
        "shop",
        "CREATE TABLE orders AS SELECT i, repeat(md5(i::text), 8) AS text FROM generate_series(1, 130000) i; CHECKPOINT",
    );
    let before = server.digest("shop");
    let shell = with_database(&server, "shop", "");
    made(&shell);
    let error = shell.complains(1, &["restore", "db", "--yes"]);
    assert!(error.contains("No space left on device"), "{error}");
    assert!(server.digest("shop") == before);
    let ours = "SELECT count(*) FROM pg_database WHERE datname ~ '^backstay_'";
    assert_eq!(server.sql("postgres", ours), "0");
    disk.grow(400);
    server.sql("shop", "TRUNCATE orders");
    shell.ends(0, &["restore", "db", "--yes"]);
    assert!(server.digest("shop") == before);
    drop((server, disk));
}
