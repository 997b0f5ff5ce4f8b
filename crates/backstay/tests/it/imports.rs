//! Dumps of PostgreSQL that others made become backups that restore what was dumped (V9, V41), and what is not whole does not.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use backstay_testkit::postgres::{self, PostgresServer};
use serde_json::Value;

use crate::postgres::{nasty, with_database};
use crate::postgres_faults::{with_program, with_real_programs};
use crate::shell::{Shell, kill_after};

/// Dumps a database by the server's own program. Returns where to.
pub(crate) fn dump(
    server: &PostgresServer,
    shell: &Shell,
    name: &str,
    options: &[&str],
) -> PathBuf {
    let path = shell.path(name);
    let mut command = server.command("pg_dump", "shop");
    let output = command.args(options).arg("--file").arg(&path).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    path
}

/// Packs a file by a program. Returns where to.
pub(crate) fn pack(program: &str, path: &Path, name: &str) -> PathBuf {
    let packed = path.with_file_name(name);
    let file = std::fs::File::create(&packed).unwrap();
    let mut command = Command::new(program);
    let status = command.arg("-c").arg(path).stdout(file).stderr(Stdio::null()).status();
    assert!(status.unwrap().success());
    packed
}

pub(crate) fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Imports a dump that is taken. Returns the backup that was made of it.
pub(crate) fn imported(shell: &Shell, path: &Path) -> Value {
    let made = shell.json(&["import", "db", text(path)]);
    let [backup] = made.as_array().unwrap().as_slice() else { panic!("{made}") };
    assert_eq!((&backup["status"], &backup["trigger"]), (&"complete".into(), &"imported".into()));
    backup.clone()
}

pub(crate) fn warnings(backup: &Value) -> String {
    backup["warnings"].to_string()
}

fn databases(server: &PostgresServer) -> String {
    server.sql(
        "postgres",
        "SELECT string_agg(datname, ' ' ORDER BY datname) FROM pg_database WHERE NOT datistemplate",
    )
}

/// What a server with a database that has everything looks like once that was spoilt.
fn spoil(server: &PostgresServer) {
    server.sql("shop", "DELETE FROM app.types WHERE id > 100; DROP TABLE app.measured; CREATE TABLE app.newer (n int)");
}

#[test]
fn dumps_in_all_formats_become_backups_that_bring_everything_back() {
    for (_, programs) in postgres::installed() {
        let server = PostgresServer::start_with(&programs);
        nasty(&server, "shop");
        let before = server.digest("shop");
        let shell = with_database(&server, "shop", "");
        let script = dump(&server, &shell, "plain.sql", &[]);
        let dumps = [
            dump(&server, &shell, "packed.dump", &["-Fc"]),
            dump(&server, &shell, "inserts.dump", &["-Fc", "--inserts"]),
            dump(&server, &shell, "tar", &["-Ft"]),
            dump(&server, &shell, "directory", &["-Fd"]),
            pack("gzip", &script, "plain.sql.gz"),
            pack("zstd", &dump(&server, &shell, "created.sql", &["-C", "-c"]), "whatever"),
        ];
        spoil(&server);
        let spoilt = server.digest("shop");
        for path in dumps {
            let backup = imported(&shell, &path);
            assert_eq!(server.digest("shop"), spoilt, "an import changes nothing");
            assert_eq!(databases(&server), "postgres shop", "nothing is left beside");
            let shown = shell.json(&["show", backup["id"].as_str().unwrap()]);
            let tables = shown["content"]["tables"].as_array().unwrap();
            assert!(
                tables.iter().any(|t| t["table"] == "app.types" && t["rows"] == 501),
                "{shown}"
            );
            assert_eq!(shown["imported"]["path"], text(&path));
            shell.ends(0, &["restore", "db", "--id", backup["id"].as_str().unwrap(), "--yes"]);
            assert_eq!(server.digest("shop"), before, "{}", path.display());
            shell.ends(0, &["undo", "db"]);
            shell.ends(0, &["confirm", "db"]);
        }
        shell.ends(0, &["verify", "--all"]);
    }
}

/// A server with a table of a thousand rows in `shop`, and a machine that backs that up.
pub(crate) fn with_orders() -> (PostgresServer, Shell) {
    let server = PostgresServer::start();
    server.sql("postgres", "CREATE DATABASE shop");
    server.sql("shop", "CREATE TABLE orders (id int PRIMARY KEY, what text); INSERT INTO orders SELECT n, repeat(n::text, 50) FROM generate_series(1, 1000) n; CREATE TABLE notes (n int); INSERT INTO notes VALUES (1)");
    let shell = with_database(&server, "shop", "");
    (server, shell)
}

#[test]
fn dumps_that_are_cut_short_or_spoilt_make_no_backup_and_leave_nothing() {
    let (server, shell) = with_orders();
    let packed = dump(&server, &shell, "packed.dump", &["-Fc"]);
    let plain = dump(&server, &shell, "plain.dump", &["-Fc", "-Z0"]);
    let script = dump(&server, &shell, "plain.sql", &[]);
    let gzip = pack("gzip", &script, "plain.sql.gz");
    let zstd = pack("zstd", &script, "plain.sql.zst");
    for path in [&packed, &plain, &script, &gzip, &zstd] {
        let whole = std::fs::read(path).unwrap();
        // In the middle of rows, and just before what would end it.
        for length in [whole.len() / 3, whole.len() * 2 / 3, whole.len() - 150] {
            let cut = shell.path("cut");
            std::fs::write(&cut, &whole[..length]).unwrap();
            let error = shell.complains(1, &["import", "db", text(&cut)]);
            assert!(error.contains("cannot be imported"), "{}: {error}", path.display());
        }
    }
    assert_eq!(databases(&server), "postgres shop");
    assert_eq!(shell.json(&["backups", "db"]), Value::Array(Vec::new()));
    // Whole statements, and not all of them.
    let whole = std::fs::read_to_string(&script).unwrap();
    let end = whole.find("--\n-- PostgreSQL database dump complete").unwrap();
    std::fs::write(shell.path("cut"), &whole[..end]).unwrap();
    let error = shell.complains(1, &["import", "db", text(&shell.path("cut"))]);
    assert!(error.contains("cut short: the last line is missing"), "{error}");
    let jobs = shell.json(&["jobs", "list"]);
    assert!(jobs.as_array().unwrap().iter().all(|job| job["state"] == "failed"), "{jobs}");
}

#[test]
fn dump_of_which_not_all_was_loaded_or_that_changed_meanwhile_is_no_backup() {
    let (server, shell) = with_orders();
    let path = dump(&server, &shell, "orders.dump", &["-Fc"]);
    // The database is told by a connection string, of which psql knows the same.
    let psql = server.programs().join("psql").display().to_string();
    let losing = format!(
        "\"$REAL\" \"$@\" || exit; for word; do case $word in --dbname=*) {psql} -q \"${{word#--dbname=}}\" -c 'DELETE FROM orders WHERE id = 77' ;; esac; done"
    );
    with_program(&server, &shell, "pg_restore", &losing);
    let error = shell.complains(1, &["import", "db", text(&path)]);
    assert!(error.contains("public.orders should have 1000 rows and has 999"), "{error}");
    with_real_programs(&server, &shell);
    let growing = format!("echo >> '{}'; exec \"$REAL\" \"$@\"", path.display());
    with_program(&server, &shell, "pg_restore", &growing);
    let error = shell.complains(1, &["import", "db", text(&path)]);
    assert!(error.contains("changed while it was read"), "{error}");
    assert_eq!(databases(&server), "postgres shop");
    assert_eq!(shell.json(&["backups", "db"]), Value::Array(Vec::new()));
}

#[test]
fn owners_that_the_server_lacks_are_told_and_the_rest_comes() {
    let (old, shell) = with_orders();
    old.sql("shop", "CREATE ROLE gone; CREATE ROLE reader; ALTER TABLE orders OWNER TO gone; GRANT SELECT ON notes TO reader");
    let archive = dump(&old, &shell, "orders.dump", &["-Fc"]);
    let script = dump(&old, &shell, "orders.sql", &[]);
    old.sql("shop", "ALTER TABLE orders OWNER TO CURRENT_USER");
    let of_rights = dump(&old, &shell, "rights.dump", &["-Fc"]);
    let before = old.data_digest("shop");
    let new = PostgresServer::start();
    crate::postgres::move_to(&shell, old.port, new.port);
    drop(old);
    for (path, role) in [(&archive, "gone"), (&script, "gone"), (&of_rights, "reader")] {
        let backup = imported(&shell, path);
        assert!(warnings(&backup).contains(role), "{backup}");
        shell.ends(0, &["restore", "db", "--id", backup["id"].as_str().unwrap(), "--yes"]);
        assert_eq!(new.data_digest("shop"), before);
    }
}

#[test]
fn scripts_that_reach_beyond_their_database_are_refused() {
    let (server, shell) = with_orders();
    let mut all = server.command("pg_dumpall", "postgres");
    let all = String::from_utf8(all.output().unwrap().stdout).unwrap();
    let mark = shell.path("executed");
    for (script, finding) in [
        (all.as_str(), "pg_dumpall"),
        ("CREATE ROLE intruder SUPERUSER;\n", "changes more than its own database"),
        ("ALTER SYSTEM SET work_mem = '1GB';\n", "changes more than its own database"),
        (&format!("\\! touch {}\n", mark.display()), "meta command"),
        (&format!("SELECT 1 \\g | touch {}\n;", mark.display()), "meta command"),
        (
            &format!("CREATE TABLE t (a text);\nCOPY t TO PROGRAM 'touch {}';\n", mark.display()),
            "COPY",
        ),
        ("\\connect postgres\nSELECT 1;\n\\connect shop\nSELECT 1;\n", "several databases"),
        ("SELECT * FROM nowhere;\n", "does not exist"),
    ] {
        std::fs::write(shell.path("script"), script).unwrap();
        let error = shell.complains(1, &["import", "db", text(&shell.path("script"))]);
        assert!(error.contains(finding), "{script}: {error}");
    }
    assert!(!mark.exists());
    assert_eq!(
        server.sql("postgres", "SELECT count(*) FROM pg_roles WHERE rolname = 'intruder'"),
        "0"
    );
    // What drops and enters the living database does neither.
    let script = "DROP DATABASE shop;\nCREATE DATABASE shop;\n\\connect shop\nCREATE TABLE other (n int);\nCOMMENT ON DATABASE shop IS 'theirs';\n";
    std::fs::write(shell.path("script"), script).unwrap();
    let backup = imported(&shell, &shell.path("script"));
    assert!(warnings(&backup).contains("left out"), "{backup}");
    assert!(warnings(&backup).contains("does not say of itself that it is whole"), "{backup}");
    assert_eq!(server.sql("shop", "SELECT count(*) FROM orders"), "1000");
    assert_eq!(databases(&server), "postgres shop");
}

#[test]
fn archives_of_several_files_are_read_to_their_end_too() {
    let (server, shell) = with_orders();
    let tar = dump(&server, &shell, "orders.tar", &["-Ft"]);
    let whole = std::fs::read(&tar).unwrap();
    for length in [whole.len() / 2, whole.len() - 1024] {
        std::fs::write(shell.path("cut.tar"), &whole[..length]).unwrap();
        shell.complains(1, &["import", "db", text(&shell.path("cut.tar"))]);
    }
    let folder = dump(&server, &shell, "orders.d", &["-Fd", "-Z0"]);
    let rows = std::fs::read_dir(&folder).unwrap().flatten().map(|entry| entry.path());
    let rows = rows.max_by_key(|path| path.metadata().unwrap().len()).unwrap();
    let whole = std::fs::read_to_string(&rows).unwrap();
    // At the end of a line, where `pg_restore` sees nothing wrong.
    let half = whole[..whole.len() / 2].rfind('\n').unwrap() + 1;
    std::fs::write(&rows, &whole[..half]).unwrap();
    let error = shell.complains(1, &["import", "db", text(&folder)]);
    assert!(error.contains("the rows of public.orders have no end"), "{error}");
    std::fs::remove_file(&rows).unwrap();
    let error = shell.complains(1, &["import", "db", text(&folder)]);
    assert!(error.contains("the data of public.orders is missing"), "{error}");
    assert_eq!(shell.json(&["backups", "db"]), Value::Array(Vec::new()));
    assert_eq!(databases(&server), "postgres shop");
}

#[test]
fn texts_in_no_encoding_are_refused_where_no_restore_would_take_them() {
    let (server, shell) = with_orders();
    server.sql(
        "postgres",
        "CREATE DATABASE raw ENCODING 'SQL_ASCII' LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0",
    );
    server.sql("raw", "CREATE TABLE t (x text); INSERT INTO t VALUES (E'\\xe4')");
    for format in ["-Fc", "-Fp", "-Ft", "-Fd"] {
        let path = shell.path(&format!("raw{format}"));
        let mut command = server.command("pg_dump", "raw");
        let output = command.args([format, "-f"]).arg(&path).output().unwrap();
        assert!(output.status.success());
        shell.complains(1, &["import", "db", text(&path)]);
    }
    assert_eq!(shell.json(&["backups", "db"]), Value::Array(Vec::new()));
}

#[test]
fn scripts_of_all_kinds_are_taken_as_psql_takes_them_and_half_ones_are_not() {
    let (server, shell) = with_orders();
    let script = shell.path("script");
    let refused = |text_of_it: &str, finding: &str| {
        std::fs::write(&script, text_of_it).unwrap();
        let error = shell.complains(1, &["import", "db", text(&script)]);
        assert!(error.contains(finding), "{text_of_it}: {error}");
    };
    refused("BEGIN;\nCREATE TABLE t (n int);\nINSERT INTO t VALUES (1);\n", "no COMMIT");
    refused("-- nothing at all\n", "it makes nothing");
    refused("SELECT 1;\n", "it makes nothing");
    server.sql("shop", "CREATE VIEW v AS SELECT * FROM orders; CREATE FUNCTION notice() RETURNS event_trigger LANGUAGE plpgsql AS 'BEGIN END'; CREATE EVENT TRIGGER et ON ddl_command_end EXECUTE FUNCTION notice()");
    server.sql("shop", "CREATE FUNCTION f(x int) RETURNS bigint LANGUAGE sql BEGIN ATOMIC SELECT sum(CASE WHEN x > 1 THEN 1 ELSE 0 END) AS s; SELECT 2; END");
    // Removes first what was never in the new database.
    imported(&shell, &dump(&server, &shell, "clean.sql", &["-c"]));
    for text_of_it in [
        "\u{feff}CREATE TABLE t (n int);\n",
        "CREATE TABLE t (n int); -- it's done",
        "/* it's; */ CREATE TABLE t (n int);\n/* the end */",
        "BEGIN;\nCREATE TABLE t (n int);\nGRANT SELECT ON t TO nobody_here;\nDROP TABLE nothing;\nINSERT INTO t VALUES (1);\nCOMMIT;\n",
    ] {
        std::fs::write(&script, text_of_it).unwrap();
        let backup = imported(&shell, &script);
        let shown = shell.json(&["show", backup["id"].as_str().unwrap()]);
        assert_eq!(shown["content"]["tables"][0]["table"], "public.t", "{shown}");
    }
}

#[test]
fn subscriptions_of_a_dump_are_left_out_and_partitions_by_a_hash_come_back() {
    let (server, shell) = with_orders();
    server.sql("shop", "CREATE SUBSCRIPTION s CONNECTION 'host=nowhere' PUBLICATION p WITH (connect = false, slot_name = 'theirs')");
    // The numbers of an enum's values are others in each database, and so are the partitions of their rows.
    server.sql("shop", "CREATE TYPE mood AS ENUM ('a', 'b', 'c', 'd', 'e', 'f', 'g', 'h'); CREATE TABLE h (m mood) PARTITION BY HASH (m); CREATE TABLE h0 PARTITION OF h FOR VALUES WITH (MODULUS 2, REMAINDER 0); CREATE TABLE h1 PARTITION OF h FOR VALUES WITH (MODULUS 2, REMAINDER 1); INSERT INTO h SELECT m FROM unnest(enum_range(NULL::mood)) m, generate_series(1, 9)");
    let path = dump(&server, &shell, "shop.dump", &["-Fc", "--load-via-partition-root"]);
    let backup = imported(&shell, &path);
    assert!(warnings(&backup).contains("subscriptions"), "{backup}");
    assert_eq!(databases(&server), "postgres shop");
    server.sql("shop", "ALTER SUBSCRIPTION s SET (slot_name = NONE); DROP SUBSCRIPTION s");
    shell.ends(0, &["restore", "db", "--id", backup["id"].as_str().unwrap(), "--yes"]);
    assert_eq!(server.sql("shop", "SELECT count(*) FROM h"), "72");
}

#[test]
fn role_that_may_only_make_databases_imports_what_others_own() {
    let (server, shell) = with_orders();
    server.sql("postgres", "CREATE ROLE app; CREATE ROLE limited LOGIN CREATEDB PASSWORD 'limited'; ALTER DATABASE shop OWNER TO limited");
    server.sql("shop", "ALTER TABLE orders OWNER TO app; GRANT pg_read_all_data TO limited");
    let path = dump(&server, &shell, "orders.dump", &["-Fc"]);
    std::fs::write(shell.path("secret"), "limited\n").unwrap();
    shell.edit_config("postgres://postgres@", "postgres://limited@");
    let backup = imported(&shell, &path);
    assert!(warnings(&backup).contains("owners and rights did not come along"), "{backup}");
}

#[test]
fn directory_of_another_tool_is_imported_once_with_its_times_and_notes() {
    let (server, shell) = with_orders();
    let folder = shell.path("vectorflow");
    std::fs::create_dir(&folder).unwrap();
    for (day, rows) in [(15, 1000), (16, 500), (17, 250)] {
        server.sql("shop", &format!("DELETE FROM orders WHERE id > {rows}"));
        let name = format!("vectorflow/vectorflow-2025-01-{day}T02-00-00-000Z");
        dump(&server, &shell, &format!("{name}.dump"), &["-Fc"]);
        let meta = format!("{{\n  \"version\": \"1.1.{day}\", \"migrations\": 12\n}}\n");
        std::fs::write(shell.path(&format!("{name}.meta.json")), meta).unwrap();
    }
    std::fs::write(folder.join("README"), b"\0\x01not a dump").unwrap();
    std::fs::write(folder.join("README.txt"), "These are the nightly dumps.\n").unwrap();
    let plan = shell.json(&["import", "db", text(&folder), "--dry-run"]);
    assert_eq!(plan.as_array().unwrap().len(), 3, "{plan}");
    assert_eq!(plan[0]["taken_at"], "2025-01-15T02:00:00Z");
    assert_eq!(shell.json(&["backups", "db"]).as_array().unwrap().len(), 0);

    let output = shell.run(&["import", "db", text(&folder), "--json"]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(0), "{said}");
    assert!(said.contains("README") && said.contains("it begins with the bytes 00016e"), "{said}");
    assert!(said.contains("README.txt cannot be imported: it is text"), "{said}");
    // The default rules keep a month.
    assert!(said.contains("forget"), "{said}");
    let listed = shell.json(&["backups", "db"]);
    let times: Vec<&str> =
        listed.as_array().unwrap().iter().map(|b| b["started_at"].as_str().unwrap()).collect();
    assert_eq!(times, ["2025-01-17T02:00:00Z", "2025-01-16T02:00:00Z", "2025-01-15T02:00:00Z"]);
    assert_eq!(listed[1]["note"], r#"{"migrations":12,"version":"1.1.16"}"#);
    // Once more, nothing is new.
    let again = shell.json(&["import", "db", text(&folder)]);
    assert_eq!(again, Value::Array(Vec::new()));
    assert_eq!(shell.json(&["backups", "db"]).as_array().unwrap().len(), 3);
    // A restore to a point in time finds what was there then.
    shell.ends(0, &["restore", "db", "--at", "2025-01-16T12:00:00Z", "--yes"]);
    assert_eq!(server.sql("shop", "SELECT count(*) FROM orders"), "500");
    // Old data is no protection now, and says nothing of runs.
    let status = shell.json(&["status"]);
    let source = &status[0];
    assert_eq!(source["health"], "late", "{status}");
    assert_eq!(source["rpo_seen_seconds"], Value::Null, "{status}");
}

#[test]
fn wrong_checksums_and_times_are_refused_and_right_ones_are_heeded() {
    let (server, shell) = with_orders();
    let path = dump(&server, &shell, "orders.dump", &["-Fc"]);
    let sum = Command::new("sha256sum").arg(&path).output().unwrap();
    let sum = String::from_utf8(sum.stdout).unwrap();
    let right = sum.split_whitespace().next().unwrap();
    let wrong = right.replace(['a', 'b', '1'], "0");
    let error = shell.complains(1, &["import", "db", text(&path), "--sha256", &wrong]);
    assert!(error.contains(right) && error.contains(&wrong), "{error}");
    let beside = shell.path("orders.dump.sha256");
    std::fs::write(&beside, format!("{wrong}  orders.dump\n")).unwrap();
    let error = shell.complains(1, &["import", "db", text(&path)]);
    assert!(error.contains("was expected"), "{error}");
    std::fs::write(&beside, &sum).unwrap();
    let future = ["import", "db", text(&path), "--taken-at", "2999-01-01T00:00:00Z"];
    assert!(shell.complains(2, &future).contains("in the future"));
    let past = ["import", "db", text(&path), "--taken-at", "1999-01-01T00:00:00Z"];
    assert!(shell.complains(2, &past).contains("--taken-at"));
    for words in [
        ["import", "db", text(&path), text(&path), "--taken-at", "2024-01-01T00:00:00Z"],
        ["import", "db", text(&path), text(&path), "--sha256", right],
    ] {
        shell.complains(2, &words);
    }
    // One that is damaged is a failure, and keeps no other from being imported.
    let folder = shell.path("folder");
    std::fs::create_dir(&folder).unwrap();
    std::fs::copy(&path, folder.join("good.dump")).unwrap();
    std::fs::write(folder.join("bad.dump"), &std::fs::read(&path).unwrap()[..2000]).unwrap();
    std::fs::write(folder.join("bad.dump.sha256"), &sum).unwrap();
    let error = shell.complains(1, &["import", "db", text(&folder), text(&shell.path("nowhere"))]);
    assert!(error.contains("bad.dump") && error.contains("nowhere"), "{error}");
    let backups = shell.json(&["backups", "db"]);
    assert_eq!(backups.as_array().unwrap().len(), 1, "{backups}");
    shell.ends(0, &["delete", backups[0]["id"].as_str().unwrap(), "--yes"]);
    let words = [
        "import",
        "db",
        text(&path),
        "--taken-at",
        "2024-02-29T12:00:00Z",
        "--hold",
        "--note",
        "leap",
    ];
    let backup = &shell.json(&words)[0];
    assert_eq!(backup["started_at"], "2024-02-29T12:00:00Z");
    assert_eq!(
        (&backup["note"], &backup["imported"]["time_from"]),
        (&"leap".into(), &"told".into())
    );
    assert!(backup["id"].as_str().unwrap().starts_with("20240229T120000Z-"), "{backup}");
    // Without a time of its own the dump's is taken: local time, as pg_dump writes it.
    shell.ends(0, &["backup", "db"]);
    shell.ends(0, &["forget", "db"]);
    assert_eq!(shell.json(&["backups", "db"]).as_array().unwrap().len(), 2, "it is held");
    // What was made of it is gone: nobody has it, so it is imported once more.
    let id = backup["id"].as_str().unwrap();
    let lost = shell.path(&format!("storage/backstay/default/db/{id}/database.dump.zst.bks"));
    std::fs::remove_file(lost).unwrap();
    shell.run(&["backup", "db", "--trigger", "scheduled"]);
    assert_eq!(shell.json(&["import", "db", text(&path)]).as_array().unwrap().len(), 1);
}

#[test]
fn killed_import_leaves_nothing_that_the_next_does_not_remove() {
    let (server, shell) = with_orders();
    server.sql(
        "shop",
        "INSERT INTO orders SELECT n, repeat(n::text, 50) FROM generate_series(1001, 60000) n",
    );
    let path = dump(&server, &shell, "orders.sql", &[]);
    let mut killed = 0;
    for round in 1..=8 {
        let mut child = shell
            .command(&["import", "db", text(&path)])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        killed += u32::from(kill_after(&mut child, Duration::from_millis(60 * round)));
        assert_eq!(server.sql("shop", "SELECT count(*) FROM orders"), "60000");
    }
    assert!(killed > 0, "{killed}");
    let before = shell.json(&["backups", "db"]).as_array().unwrap().len();
    imported(&shell, &dump(&server, &shell, "other.sql", &["-x"]));
    assert_eq!(databases(&server), "postgres shop");
    assert_eq!(shell.json(&["backups", "db"]).as_array().unwrap().len(), before + 1);
    let spool = shell.path("home/spool");
    assert_eq!(std::fs::read_dir(spool).map_or(0, Iterator::count), 0);
    shell.ends(0, &["verify", "--all"]);
    shell.ends(0, &["check"]);
}
