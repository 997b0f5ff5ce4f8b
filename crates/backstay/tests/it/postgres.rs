//! PostgreSQL, on real servers: what is backed up returns equal, and what is not whole is never called good (V1-V5, V47-V54).

use std::os::unix::fs::PermissionsExt as _;
use std::process::{Child, Stdio};

use backstay_testkit::postgres::{self, PASSWORD, PostgresServer, USER};
use serde_json::Value;

use crate::postgres_faults::{with_program, with_real_programs};
use crate::shell::Shell;

const NASTY: &str = include_str!("nasty.sql");
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
    shell.set_config(text);
    shell
}

pub(crate) fn nasty(server: &PostgresServer, database: &str) {
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

pub(crate) fn made(shell: &Shell) -> Value {
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

/// Aims a machine at another server, or at a proxy before it.
pub(crate) fn move_to(shell: &Shell, from: u16, to: u16) {
    shell.edit_config(&format!(":{from}/"), &format!(":{to}/"));
}

fn returns_equal_and_undo_works(server: &PostgresServer) {
    // A name that would be a connection string, an option and a quotation, were it not taken as data.
    let name = "-host=x dbname='y' \"z\"";
    nasty(server, name);
    let shell = with_database(server, "placeholder", "");
    // A single quote ends a literal string of TOML, so the URL has none: it is encoded.
    shell.edit_config("placeholder", "-host%3Dx%20dbname%3D%27y%27%20%22z%22");
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
    move_to(&shell, old.port, new.port);
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
    let config = shell.config();
    move_to(&shell, old.port, new.port);
    let programs = old.programs().display().to_string();
    shell.edit_config(&programs, &new.programs().display().to_string());
    let plan = shell.json(&["restore", "db", "--dry-run"]);
    assert!(
        plan["warnings"][0].as_str().unwrap().contains("PostgreSQL 15 and the server is 18"),
        "{plan}"
    );
    shell.ends(0, &["restore", "db", "--yes"]);
    assert_eq!(new.data_digest("shop"), before);
    made(&shell);
    shell.set_config(config);
    let error = shell.complains(1, &["restore", "db", "--yes"]);
    assert!(error.contains("of PostgreSQL 18 and the server is 15"), "{error}");
    assert_eq!(old.data_digest("shop"), before);
    // All that there can be; the definitions as the newer program writes them of both.
    nasty(&old, "odd");
    // What the newer server does not have.
    old.sql("odd", "DROP EXTENSION pg_trgm CASCADE; UPDATE app.types SET xml = NULL");
    let nasty_shell = with_database(&old, "odd", "");
    made(&nasty_shell);
    move_to(&nasty_shell, old.port, new.port);
    nasty_shell.edit_config(&programs, &new.programs().display().to_string());
    nasty_shell.ends(0, &["restore", "db", "--yes"]);
    assert_eq!(new.data_digest("odd"), old.data_digest("odd"));
    let defined = |server: &PostgresServer| {
        let port = server.port.to_string();
        let mut dump = new.command("pg_dump", "odd");
        let dump =
            dump.env("PGPORT", port).args(["--schema-only", "--no-comments"]).output().unwrap();
        assert!(dump.status.success(), "{}", String::from_utf8_lossy(&dump.stderr));
        // In views, newer servers leave out the name of the only table.
        let text = String::from_utf8_lossy(&dump.stdout).replace(" types.", " ");
        let lines = text.lines().filter(|line| !line.starts_with("--") && !line.starts_with('\\'));
        lines.map(|line| format!("{line}\n")).collect::<String>()
    };
    assert_eq!(defined(&new), defined(&old));
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
        let config = shell.config();
        let lines = config.lines().filter(|line| !line.starts_with("password"));
        let lines: Vec<String> =
            lines
                .map(|line| {
                    if line.starts_with("url") { format!("url = '{url}'") } else { line.to_owned() }
                })
                .collect();
        shell.set_config(lines.join("\n"));
        let error = shell.complains(1, &["source", "test", "db"]);
        assert!(error.contains(expected), "{expected}: {error}");
        assert!(!error.contains(PASSWORD), "{error}");
    }
}

/// A program that works against the server until the test ends, however it ends.
pub(crate) struct Load(pub(crate) Child);

impl Drop for Load {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

#[test]
fn backups_under_load_hold_one_consistent_state() {
    for (major, programs) in postgres::installed() {
        let server = PostgresServer::start_with(&programs);
        server.sql("postgres", "CREATE DATABASE bank");
        let initialized =
            server.command("pgbench", "bank").args(["--initialize", "--quiet"]).output().unwrap();
        assert!(initialized.status.success(), "{initialized:?}");
        let shell = with_database(&server, "bank", "");
        let mut pgbench = server.command("pgbench", "bank");
        pgbench.args(["--client=4", "--time=600", "--no-vacuum"]);
        let mut load = Load(pgbench.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap());
        let transactions = || -> u64 {
            server.sql("bank", "SELECT count(*) FROM pgbench_history").parse().unwrap()
        };
        for round in 0..4 {
            let before = transactions();
            let id = made(&shell)["id"].as_str().unwrap().to_owned();
            assert!(transactions() > before, "{major}: there was no load");
            let copy = format!("copy{round}");
            shell.ends(0, &["restore", "db", "--id", &id, "--to", &copy, "--yes"]);
            // What every transaction of this load adds to all four.
            let sums = "SELECT sum(abalance) FROM pgbench_accounts UNION SELECT sum(bbalance) FROM pgbench_branches
                        UNION SELECT sum(tbalance) FROM pgbench_tellers UNION SELECT coalesce(sum(delta), 0) FROM pgbench_history";
            let distinct = format!("SELECT count(*) FROM ({sums}) s");
            assert_eq!(server.sql(&copy, &distinct), "1", "{major}, round {round}");
        }
        assert!(load.0.try_wait().unwrap().is_none(), "{major}: the load ended early");
    }
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
    let told = shell.complains(0, &["restore", "db", "--dry-run"]);
    assert!(told.contains("Schema    2 migrations, up to 002"), "{told}");
    let plan = shell.json(&["restore", "db", "--dry-run"]);
    assert!(plan["engine_now"].as_str().unwrap().starts_with("PostgreSQL "), "{plan}");
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
fn password_is_seen_in_no_argument_no_output_and_no_part() {
    let server = PostgresServer::start();
    nasty(&server, "shop");
    let shell = with_database(&server, "shop", "encryption = 'none'");
    // Long enough for several looks.
    with_program(&server, &shell, "pg_dump", "\"$REAL\" \"$@\" | { sleep 1; cat; }");
    tells_no_password(&shell, &["backup", "db", "--json"], ("--format=custom", PASSWORD));
    assert!(!crate::shell::contains(&shell.path("storage"), PASSWORD.as_bytes()));
    let zstd = "find \"$1\" -name '*.zst' -exec zstd -dc {} + | grep -c \"$2\"";
    let found = std::process::Command::new("sh")
        .args(["-c", zstd, "sh"])
        .arg(shell.path("storage"))
        .arg(PASSWORD)
        .output()
        .unwrap();
    assert_eq!(String::from_utf8_lossy(&found.stdout).trim(), "0");
    for words in [&["restore", "db", "--yes"][..], &["restore", "db", "--in-place", "--yes"]] {
        with_real_programs(&server, &shell);
        with_program(&server, &shell, "pg_restore", "{ sleep 1; cat; } | \"$REAL\" \"$@\"");
        tells_no_password(&shell, words, ("--format=custom", PASSWORD));
    }
}

/// Runs a command, and looks all the while at what every process shows of itself.
pub(crate) fn tells_no_password(
    shell: &Shell,
    words: &[&str],
    (of_program, password): (&str, &str),
) {
    let mut child = shell
        .command(words)
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut seen_program = false;
    while child.try_wait().unwrap().is_none() {
        for process in std::fs::read_dir("/proc").unwrap().flatten() {
            let arguments = std::fs::read(process.path().join("cmdline")).unwrap_or_default();
            let arguments = String::from_utf8_lossy(&arguments).into_owned();
            assert!(!arguments.contains(password), "{arguments}");
            let is_program = arguments.contains(of_program);
            seen_program |= is_program;
            if is_program && let Ok(meta) = process.path().join("environ").metadata() {
                assert_eq!(meta.permissions().mode() & 0o077, 0, "others can read its environment");
            }
        }
    }
    assert!(seen_program);
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    for text in [output.stdout, output.stderr] {
        assert!(!String::from_utf8_lossy(&text).contains(password));
    }
}

#[test]
fn sealed_connections_are_checked_as_much_as_is_asked() {
    let server = PostgresServer::start();
    server.sql("postgres", "CREATE DATABASE shop");
    server.sql("shop", "CREATE TABLE orders (n int)");
    let certificate = server.seal(&["localhost"]);
    // A certificate that the server does not have.
    let another = PostgresServer::start();
    let other = another.seal(&["localhost"]);
    let url = server.url("shop");
    let named = url.replace("127.0.0.1", "localhost");
    let (ours, theirs) = (certificate.display().to_string(), other.display().to_string());
    let cases = [
        (&url, "require", None, None),
        (&url, "prefer", None, None),
        (&url, "verify-ca", Some(&ours), None),
        (&named, "verify-full", Some(&ours), None),
        (&url, "verify-full", Some(&ours), Some("TLS failed")),
        (&url, "verify-ca", Some(&theirs), Some("TLS failed")),
        (&named, "verify-full", Some(&theirs), Some("TLS failed")),
    ];
    for (url, mode, ca, expected) in cases {
        let shell = with_database(&server, "shop", "");
        let config = shell.config();
        let mut lines: Vec<String> = config
            .lines()
            .filter(|line| !line.starts_with("url") && !line.starts_with("password"))
            .map(str::to_owned)
            .collect();
        lines.push(format!("url = '{url}'\ntls = '{mode}'"));
        lines.extend(ca.map(|ca| format!("tls_ca_file = '{ca}'")));
        shell.set_config(lines.join("\n"));
        match expected {
            // The dump is made by a program of the server's, which reads the same.
            None => drop(shell.ends(0, &["backup", "db"])),
            Some(expected) => {
                let error = shell.complains(1, &["source", "test", "db"]);
                assert!(error.contains(expected), "{mode}: {error}");
            }
        }
    }
}
