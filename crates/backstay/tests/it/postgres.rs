//! PostgreSQL, on real servers: what is backed up returns equal, and what is not whole is never called good (V1-V5, V47-V54).

use std::os::unix::fs::PermissionsExt as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use backstay_testkit::postgres::{self, PASSWORD, PostgresServer, USER};
use serde_json::Value;

use crate::shell::Shell;

const NASTY: &str = include_str!("nasty.sql");
/// Waits that must end; nothing is asserted about how long they take.
const PATIENCE: Duration = Duration::from_secs(60);

/// A machine that backs up a database of a server to a directory.
pub(crate) fn with_database(server: &PostgresServer, database: &str, more: &str) -> Shell {
    let shell = Shell::bare();
    let url = server.url(database).replace(&format!(":{PASSWORD}"), "");
    let text = format!(
        "[storages.main]\nprovider = 'local'\npath = '{}'\n\n[sources.db]\nkind = 'postgres'\nurl = '{url}'\n\
         password = 'file:{}'\nstorage = 'main'\nprograms = '{}'\n{more}\n",
        shell.path("storage").display(),
        shell.path("secret").display(),
        server.programs().display(),
    );
    std::fs::write(shell.path("secret"), format!("{PASSWORD}\n")).unwrap();
    std::fs::write(shell.path("backstay.toml"), text).unwrap();
    shell
}

fn nasty(server: &PostgresServer, database: &str) {
    let quoted = database.replace('"', "\"\"");
    server.sql("postgres", &format!("CREATE DATABASE \"{quoted}\""));
    server.sql(database, NASTY);
    server.sql(
        "postgres",
        &format!(
            "ALTER DATABASE \"{quoted}\" SET search_path TO app, public; ALTER DATABASE \"{quoted}\" SET work_mem TO '7MB';
             ALTER ROLE readers IN DATABASE \"{quoted}\" SET statement_timeout TO '5s';
             ALTER DATABASE \"{quoted}\" CONNECTION LIMIT 40; COMMENT ON DATABASE \"{quoted}\" IS 'the shop''s';
             REVOKE CONNECT ON DATABASE \"{quoted}\" FROM PUBLIC; GRANT CONNECT ON DATABASE \"{quoted}\" TO readers;
             ALTER DATABASE \"{quoted}\" OWNER TO \"owner of things\""
        ),
    );
}

fn made(shell: &Shell) -> Value {
    shell.json(&["backup", "db"])
}

#[test]
fn nasty_database_returns_equal_and_undo_brings_back_what_was_there() {
    let installed = postgres::installed();
    let versions: Vec<u32> = installed.iter().map(|(major, _)| *major).collect();
    for needed in [15, 16, 18] {
        assert!(versions.contains(&needed), "{versions:?}: run the tests by `cargo xtask test`");
    }
    for (_, programs) in installed {
        returns_equal_and_undo_works(&PostgresServer::start_with(&programs));
    }
}

fn returns_equal_and_undo_works(server: &PostgresServer) {
    // A name that would be a connection string, an option and a quotation, were it not taken as data.
    let name = "-host=x dbname='y' \"z\"";
    nasty(server, name);
    let shell = with_database(server, "placeholder", "");
    let config = std::fs::read_to_string(shell.path("backstay.toml")).unwrap();
    let encoded = "-host%3Dx%20dbname%3D%27y%27%20%22z%22";
    std::fs::write(shell.path("backstay.toml"), config.replace("placeholder", encoded)).unwrap();
    // A single quote ends a literal string of TOML, so the URL has none: it is encoded.
    let before = server.digest(name);
    let backup = made(&shell);
    assert_eq!(backup["status"], "complete");
    shell.ends(0, &["verify", "--all"]);
    server.sql(name, "DELETE FROM app.types WHERE id > 100; DROP TABLE app.measured; CREATE TABLE app.newer (n int)");
    let spoilt = server.digest(name);
    let plan = shell.json(&["restore", "db", "--dry-run"]);
    let rows = |tables: &Value| {
        let tables = tables["tables"].as_array().unwrap();
        tables.iter().find(|t| t["table"] == "app.types").map(|t| t["rows"].as_u64().unwrap())
    };
    assert_eq!((rows(&plan["content"]), rows(&plan["present"])), (Some(501), Some(100)), "{plan}");
    assert_eq!(server.digest(name), spoilt, "a preview changes nothing");
    shell.ends(0, &["restore", "db", "--yes"]);
    assert_eq!(server.digest(name), before);
    shell.ends(0, &["undo", "db"]);
    assert_eq!(server.digest(name), spoilt);
    shell.ends(0, &["confirm", "db"]);
    let databases =
        server.sql("postgres", "SELECT count(*) FROM pg_database WHERE NOT datistemplate");
    assert_eq!(databases, "2", "nothing is left beside");
}

#[test]
fn database_returns_with_its_roles_on_a_server_that_never_saw_it() {
    let old = PostgresServer::start();
    nasty(&old, "shop");
    let before = old.digest("shop");
    let hash = "SELECT rolpassword FROM pg_authid WHERE rolname = 'owner of things'";
    let password = old.sql("postgres", hash);
    let shell = with_database(&old, "shop", "");
    made(&shell);
    let new = PostgresServer::start();
    let config = std::fs::read_to_string(shell.path("backstay.toml")).unwrap();
    let moved = config.replace(&format!(":{}/", old.port), &format!(":{}/", new.port));
    std::fs::write(shell.path("backstay.toml"), moved).unwrap();
    drop(old);
    shell.ends(0, &["restore", "db", "--yes"]);
    assert_eq!(new.digest("shop"), before);
    assert_eq!(new.sql("postgres", hash), password);
    let member = "SELECT pg_has_role('owner of things', 'readers', 'MEMBER')";
    assert_eq!(new.sql("postgres", member), "t");
    // And to another name beside it.
    shell.ends(0, &["restore", "db", "--to", "shop_copy", "--yes"]);
    assert_eq!(new.digest("shop_copy").replace("shop_copy", "shop"), before);
    let error = shell.complains(1, &["restore", "db", "--to", "shop_copy", "--yes"]);
    assert!(error.contains("is there already"), "{error}");
}

#[test]
fn database_moves_to_a_newer_server_and_not_to_an_older() {
    let installed = postgres::installed();
    let of = |wanted: u32| &installed.iter().find(|(major, _)| *major == wanted).unwrap().1;
    let (old, new) = (PostgresServer::start_with(of(15)), PostgresServer::start_with(of(18)));
    old.sql("postgres", "CREATE DATABASE shop");
    old.sql("shop", "CREATE TABLE orders (id int PRIMARY KEY, note text); INSERT INTO orders SELECT i, md5(i::text) FROM generate_series(1, 1000) i");
    let before = old.data_digest("shop");
    let shell = with_database(&old, "shop", "");
    made(&shell);
    let config = std::fs::read_to_string(shell.path("backstay.toml")).unwrap();
    let moved = config.replace(&format!(":{}/", old.port), &format!(":{}/", new.port)).replace(
        &format!("{}", old.programs().display()),
        &format!("{}", new.programs().display()),
    );
    std::fs::write(shell.path("backstay.toml"), moved).unwrap();
    let plan = shell.json(&["restore", "db", "--dry-run"]);
    assert!(
        plan["warnings"][0].as_str().unwrap().contains("PostgreSQL 15 and the server is 18"),
        "{plan}"
    );
    shell.ends(0, &["restore", "db", "--yes"]);
    assert_eq!(new.data_digest("shop"), before);
    made(&shell);
    std::fs::write(shell.path("backstay.toml"), config).unwrap();
    let error = shell.complains(1, &["restore", "db", "--yes"]);
    assert!(error.contains("of PostgreSQL 18 and the server is 15"), "{error}");
    assert_eq!(old.data_digest("shop"), before);
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
fn parts_that_are_not_sealed_are_restored_with_standard_tools() {
    let server = PostgresServer::start();
    nasty(&server, "shop");
    let before = server.digest("shop");
    let shell = with_database(&server, "shop", "encryption = 'none'");
    let id = made(&shell)["id"].as_str().unwrap().to_owned();
    let folder = shell.path("storage/backstay/default/db").join(id);
    assert!(!crate::shell::contains(&folder, b"SCRAM-SHA-256"), "a hash lies open");
    let new = PostgresServer::start();
    let script = "set -e; cd \"$1\"; for part in roles.sql properties.sql; do zstd -dc $part.zst | psql -X -q -v ON_ERROR_STOP=0 postgres; done
                  zstd -dc database.dump.zst | pg_restore -d shop";
    let mut shell_command = new.command("psql", "postgres");
    let environment: Vec<_> =
        shell_command.get_envs().map(|(k, v)| (k.to_owned(), v.unwrap().to_owned())).collect();
    shell_command = std::process::Command::new("sh");
    let path = format!("{}:/usr/bin:/bin", new.programs().display());
    let output = shell_command
        .args(["-c", script, "sh"])
        .arg(&folder)
        .envs(environment)
        .env("PATH", path)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(new.digest("shop"), before);
}

/// A directory of programs in which one is a script.
fn with_program(server: &PostgresServer, shell: &Shell, name: &str, script: &str) {
    let programs = shell.path("programs");
    std::fs::create_dir(&programs).unwrap();
    for program in ["pg_dump", "pg_restore"] {
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
    let config = std::fs::read_to_string(shell.path("backstay.toml")).unwrap();
    let real = format!("programs = '{}'", server.programs().display());
    let ours = format!("programs = '{}'", programs.display());
    std::fs::write(shell.path("backstay.toml"), config.replace(&real, &ours)).unwrap();
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
fn causes_of_a_connection_that_fails_are_told_apart() {
    let server = PostgresServer::start();
    server.sql("postgres", "CREATE DATABASE shop");
    server.sql("postgres", "CREATE ROLE weak LOGIN PASSWORD 'weak'");
    server.sql("shop", "CREATE TABLE mine (n int)");
    let port = format!(":{}/", server.port);
    let url = |from: &str, to: &str| server.url("shop").replace(from, to);
    let cases = [
        (url(PASSWORD, "wrong"), "login failed"),
        (url("shop", "shoq"), "check the database's name"),
        (url("127.0.0.1", "no.such.host.invalid"), "name is not known"),
        (url(&port, ":1/"), "connection refused"),
        (format!("{}?sslmode=require", server.url("shop")), "TLS failed"),
        (url(&format!("{USER}:{PASSWORD}"), "weak:weak"), "may not read mine"),
    ];
    for (url, expected) in cases {
        let shell = with_database(&server, "shop", "");
        let config = std::fs::read_to_string(shell.path("backstay.toml")).unwrap();
        let lines = config.lines().filter(|line| !line.starts_with("password"));
        let lines: Vec<String> =
            lines
                .map(|line| {
                    if line.starts_with("url") { format!("url = '{url}'") } else { line.to_owned() }
                })
                .collect();
        std::fs::write(shell.path("backstay.toml"), lines.join("\n")).unwrap();
        let error = shell.complains(1, &["source", "test", "db"]);
        assert!(error.contains(expected), "{expected}: {error}");
        assert!(!error.contains(PASSWORD), "{error}");
    }
}

#[test]
fn dump_gives_way_to_whoever_waits_behind_it() {
    let server = PostgresServer::start();
    server.sql("postgres", "CREATE DATABASE shop");
    server.sql("shop", "CREATE TABLE orders (n int); INSERT INTO orders VALUES (1)");
    let shell = with_database(&server, "shop", "lock_timeout = '1s'");
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

struct StopOnDrop(Arc<AtomicBool>);

impl Drop for StopOnDrop {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn backups_under_load_hold_one_consistent_state() {
    let server = PostgresServer::start();
    server.sql("postgres", "CREATE DATABASE bank");
    server.sql(
        "bank",
        "CREATE TABLE account (id int PRIMARY KEY, balance int); INSERT INTO account SELECT i, 100 FROM generate_series(1, 50) i;
         CREATE TABLE moved (n int); CREATE TABLE total AS SELECT 0 AS n",
    );
    let shell = with_database(&server, "bank", "");
    let stop = Arc::new(AtomicBool::new(false));
    let transfers = std::thread::scope(|scope| {
        let stopping = stop.clone();
        let server = &server;
        // A test that fails must not wait for a writer that nobody stops.
        let _stopped = StopOnDrop(stop.clone());
        let writer = scope.spawn(move || {
            let mut transfers = 0;
            while !stopping.load(Ordering::Relaxed) {
                server.sql(
                    "bank",
                    "DO $$ BEGIN FOR i IN 1..50 LOOP
                       UPDATE account SET balance = balance - 1 WHERE id = 1 + i % 50;
                       INSERT INTO moved VALUES (i); UPDATE total SET n = n + 1;
                       UPDATE account SET balance = balance + 1 WHERE id = 1 + (i + 7) % 50;
                       COMMIT; END LOOP; END $$",
                );
                transfers += 50;
            }
            transfers
        });
        for round in 0..8 {
            let id = made(&shell)["id"].as_str().unwrap().to_owned();
            let copy = format!("copy{round}");
            shell.ends(0, &["restore", "db", "--id", &id, "--to", &copy, "--yes"]);
            let sound = "SELECT (SELECT sum(balance) FROM account), (SELECT count(*) FROM moved) = (SELECT n FROM total)";
            assert_eq!(server.sql(&copy, sound), "5000|t", "round {round}");
        }
        stop.store(true, Ordering::Relaxed);
        writer.join().unwrap()
    });
    assert!(transfers > 0);
}

#[test]
fn backup_ahead_of_the_app_is_refused_one_behind_is_warned_of_and_a_broken_database_is_restored() {
    let server = PostgresServer::start();
    server.sql("postgres", "CREATE DATABASE shop");
    server.sql(
        "shop",
        "CREATE TABLE migrations (version text); INSERT INTO migrations VALUES ('001'), ('002')",
    );
    let shell =
        with_database(&server, "shop", "migrations = 'SELECT version FROM migrations ORDER BY 1'");
    made(&shell);
    server.sql("shop", "INSERT INTO migrations VALUES ('003')");
    let plan = shell.json(&["restore", "db", "--dry-run"]);
    assert!(plan["warnings"][0].as_str().unwrap().contains("1 migrations behind"), "{plan}");
    server.sql("shop", "DELETE FROM migrations WHERE version > '001'");
    let error = shell.complains(1, &["restore", "db", "--yes"]);
    assert!(error.contains("1 migrations ahead of the app that is there, up to 002"), "{error}");
    // Beside it, nothing stands against it.
    shell.ends(0, &["restore", "db", "--to", "beside", "--yes"]);
    assert_eq!(server.sql("beside", "SELECT count(*) FROM migrations"), "2");
    // Somebody dropped everything: then of all times it must work.
    server.sql("shop", "DROP TABLE migrations");
    let plan = shell.json(&["restore", "db", "--dry-run"]);
    assert!(plan["warnings"][0].as_str().unwrap().contains("cannot be looked at"), "{plan}");
    shell.ends(0, &["restore", "db", "--yes"]);
    assert_eq!(server.sql("shop", "SELECT count(*) FROM migrations"), "2");
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
    let config = std::fs::read_to_string(shell.path("backstay.toml")).unwrap();
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
        std::fs::write(shell.path("backstay.toml"), &config).unwrap();
        std::fs::remove_dir_all(shell.path("programs")).unwrap();
        let script = script.replace("{die}", &format!("kill -QUIT {}", server.pid()));
        with_program(&server, &shell, "pg_restore", &script);
        shell.complains(1, &["restore", "db", "--id", &id, "--yes"]);
        server.revive();
        assert_eq!(server.digest("shop"), before, "{script}");
    }
    std::fs::write(shell.path("backstay.toml"), &config).unwrap();
    made(&shell);
    shell.ends(0, &["restore", "db", "--id", &id, "--yes"]);
    assert_eq!(server.digest("shop"), before);
    shell.ends(0, &["confirm", "db"]);
    let ours = "SELECT count(*) FROM pg_database WHERE datname ~ '^backstay_'";
    assert_eq!(server.sql("postgres", ours), "0", "what the failed restores left is swept");
}

#[test]
fn password_is_seen_in_no_argument_no_output_and_no_part() {
    let server = PostgresServer::start();
    nasty(&server, "shop");
    let shell = with_database(&server, "shop", "encryption = 'none'");
    // Long enough for several looks.
    with_program(&server, &shell, "pg_dump", "\"$REAL\" \"$@\" | { sleep 1; cat; }");
    let mut child = shell
        .command(&["backup", "db", "--json"])
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut seen_dump = false;
    while child.try_wait().unwrap().is_none() {
        for process in std::fs::read_dir("/proc").unwrap().flatten() {
            let arguments = std::fs::read(process.path().join("cmdline")).unwrap_or_default();
            let arguments = String::from_utf8_lossy(&arguments).into_owned();
            assert!(!arguments.contains(PASSWORD), "{arguments}");
            let is_dump = arguments.contains("--format=custom");
            seen_dump |= is_dump;
            if is_dump && let Ok(meta) = process.path().join("environ").metadata() {
                assert_eq!(meta.permissions().mode() & 0o077, 0, "others can read its environment");
            }
        }
    }
    assert!(seen_dump);
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success());
    for text in [output.stdout, output.stderr] {
        assert!(!String::from_utf8_lossy(&text).contains(PASSWORD));
    }
    assert!(!crate::shell::contains(&shell.path("storage"), PASSWORD.as_bytes()));
    let zstd = "find \"$1\" -name '*.zst' -exec zstd -dc {} + | grep -c \"$2\"";
    let found = std::process::Command::new("sh")
        .args(["-c", zstd, "sh"])
        .arg(shell.path("storage"))
        .arg(PASSWORD)
        .output()
        .unwrap();
    assert_eq!(String::from_utf8_lossy(&found.stdout).trim(), "0");
}
