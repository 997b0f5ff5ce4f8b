//! Dumps of MariaDB, Redis, SQLite and DuckDB, and tars, that others made become backups (V9, V41, H12).

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;

use backstay_testkit::mysql::MysqlServer;
use backstay_testkit::redis::RedisServer;
use backstay_testkit::{duckdb, tree};
use serde_json::Value;

use crate::imports::{imported, pack, text, warnings};
use crate::mysql::assert_same;
use crate::shell::Shell;
use crate::{mysql, redis};

fn id(backup: &Value) -> &str {
    backup["id"].as_str().unwrap()
}

/// Dumps a database by the server's own program.
fn dump(server: &MysqlServer, path: &Path, options: &[&str]) {
    let mut command = server.command("mariadb-dump");
    let output = command.args(options).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    std::fs::write(path, output.stdout).unwrap();
}

#[test]
fn scripts_of_mariadb_with_programs_and_triggers_bring_everything_back() {
    let server = MysqlServer::start();
    mysql::nasty(&server, "shop");
    // Events are left out, and said to be.
    server.sql("shop", "DROP EVENT soon");
    let events = "SELECT group_concat(event_name) FROM information_schema.events WHERE event_schema = 'shop'";
    for event in
        server.sql("", events).split(',').filter(|name| *name != "NULL" && !name.is_empty())
    {
        server.sql("shop", &format!("DROP EVENT `{event}`"));
    }
    let before = server.digest("shop");
    let shell = mysql::with_database(&server, "shop", "");
    let all = ["--routines", "--triggers", "--hex-blob", "--single-transaction", "--dump-history"];
    let alone = shell.path("alone.sql");
    dump(&server, &alone, &[&all[..], &["shop"]].concat());
    let entering = shell.path("entering.sql");
    dump(&server, &entering, &[&all[..], &["--databases", "shop", "--add-drop-database"]].concat());
    let packed = pack("zstd", &entering, "entering.sql.zst");
    server.sql("shop", "DROP VIEW by_another; DELETE FROM types; CREATE TABLE newer (n int)");
    let spoilt = server.digest("shop");
    for path in [&alone, &packed] {
        let backup = imported(&shell, path);
        assert_same(&server.digest("shop"), &spoilt);
        shell.ends(0, &["restore", "db", "--id", id(&backup), "--yes"]);
        assert_same(&server.digest("shop"), &before);
        shell.ends(0, &["undo", "db"]);
        shell.ends(0, &["confirm", "db"]);
    }
    let ours =
        "SELECT count(*) FROM information_schema.schemata WHERE schema_name LIKE 'backstay%'";
    assert_eq!(server.sql("", ours), "0");
    shell.ends(0, &["verify", "--all"]);
}

#[test]
fn scripts_of_mariadb_that_are_not_whole_or_reach_beyond_make_no_backup() {
    let server = MysqlServer::start();
    server.sql("", "CREATE DATABASE shop; CREATE DATABASE other; CREATE TABLE other.kept (n int); CREATE TABLE shop.orders (id int, what varchar(100)); INSERT INTO shop.orders VALUES (1, 'one'), (2, 'two')");
    let shell = mysql::with_database(&server, "shop", "");
    let path = shell.path("shop.sql");
    dump(&server, &path, &["shop"]);
    let whole = std::fs::read(&path).unwrap();
    let script = shell.path("script");
    for length in [whole.len() / 2, whole.len() - 35] {
        std::fs::write(&script, &whole[..length]).unwrap();
        let error = shell.complains(1, &["import", "db", text(&script)]);
        assert!(error.contains("cut short"), "{error}");
    }
    // At the end of a statement.
    let script_text = String::from_utf8(whole.clone()).unwrap();
    let end = script_text.find("LOCK TABLES").unwrap();
    std::fs::write(&script, &script_text[..end]).unwrap();
    let error = shell.complains(1, &["import", "db", text(&script)]);
    assert!(error.contains("cut short"), "{error}");
    let both = shell.path("both.sql");
    dump(&server, &both, &["--databases", "shop", "other"]);
    assert!(shell.complains(1, &["import", "db", text(&both)]).contains("several databases"));
    for (text_of_script, finding) in [
        ("DROP TABLE `other`.`kept`;\n", "changes more"),
        ("CREATE USER intruder;\n", "changes more"),
        ("SET GLOBAL max_connections = 7;\n", "changes more"),
        ("\\! touch /nowhere\n", "command of the client"),
        (
            "CREATE TABLE t (n tinyint);\nSET sql_mode = '';\nINSERT INTO t VALUES (1000);\n",
            "does not take rows as they are",
        ),
        (
            "CREATE TABLE t (n tinyint);\nSET sql_mode = '';\n/*!40000 REPLACE INTO t VALUES (1000) */;\n",
            "does not take rows as they are",
        ),
        (
            "CREATE TABLE t (n int);\nDELIMITER //\nINSERT INTO t VALUES (1); INSERT INTO other.kept VALUES (1)//\n",
            "changes more",
        ),
        (
            "CREATE TABLE t (n int);\nALTER TABLE t ADD PRIMARY KEY (n), RENAME TO other.stolen;\n",
            "changes more",
        ),
        ("SELECT 1;\n-- Dump completed\n", "makes nothing"),
        ("SELEC 1;\n", "does not begin as SQL"),
        ("INSERT INTO nowhere VALUES (1);\n", "doesn't exist"),
    ] {
        std::fs::write(&script, text_of_script).unwrap();
        let error = shell.complains(1, &["import", "db", text(&script)]);
        assert!(error.contains(finding), "{text_of_script}: {error}");
    }
    assert_eq!(server.sql("", "SELECT count(*) FROM other.kept"), "0");
    assert_eq!(shell.json(&["backups", "db"]), Value::Array(Vec::new()));
    // Of two runs, one for what there is and one for the rows: the trigger is there before those.
    server.sql("shop", "CREATE TRIGGER kept AFTER INSERT ON orders FOR EACH ROW INSERT INTO other.kept VALUES (NEW.id)");
    let (first, second) = (shell.path("first.sql"), shell.path("second.sql"));
    dump(&server, &first, &["--no-data", "shop"]);
    dump(&server, &second, &["--no-create-info", "--skip-triggers", "shop"]);
    let two = [std::fs::read(&first).unwrap(), std::fs::read(&second).unwrap()].concat();
    std::fs::write(&script, two).unwrap();
    let backup = imported(&shell, &script);
    assert_eq!(server.sql("", "SELECT count(*) FROM other.kept"), "0");
    let shown = shell.json(&["show", id(&backup)]);
    assert_eq!(shown["content"]["tables"][0]["rows"], 2, "{shown}");
    assert_eq!(shown["content"]["objects"][0]["name"], "kept", "{shown}");
    shell.ends(0, &["delete", id(&backup), "--yes"]);
    let event = "CREATE TABLE t (n int);\nDELIMITER //\nCREATE EVENT e ON SCHEDULE EVERY 1 DAY DO BEGIN DELETE FROM t; END//\nDELIMITER ;\n";
    std::fs::write(&script, event).unwrap();
    let backup = imported(&shell, &script);
    assert!(warnings(&backup).contains("events were left out"), "{backup}");
}

#[test]
fn rdb_files_become_backups_without_a_server_and_logs_do_not() {
    let server = RedisServer::start();
    redis::nasty(&server);
    let before = server.digest();
    let shell = redis::with_server(&server, "");
    server.ask(0, &["SAVE"]);
    let path = shell.path("dump.rdb");
    std::fs::copy(server.dir().join("dump.rdb"), &path).unwrap();
    server.script(0, "FLUSHALL\nSET newer x\n");
    let packed = pack("gzip", &path, "dump.rdb.gz");
    let backup = imported(&shell, &packed);
    assert_eq!(backup["imported"]["time_from"], "dump");
    shell.ends(0, &["restore", "db", "--yes"]);
    shell.ends(0, &["confirm", "db"]);
    assert_same(&server.digest(), &before);
    let whole = std::fs::read(&path).unwrap();
    let broken = shell.path("broken");
    let base = whole.windows(8).position(|bytes| bytes == b"aof-base").unwrap();
    let mut based = whole.clone();
    based[base + 9] = 1;
    std::fs::write(&broken, based).unwrap();
    let error = shell.complains(1, &["import", "db", text(&broken)]);
    assert!(error.contains("the base of a log"), "{error}");
    let log = [&whole[..], b"*1\r\n$8\r\nFLUSHALL\r\n"].concat();
    let mut flipped = whole.clone();
    let at = flipped.len() / 2;
    flipped[at] ^= 1;
    for (bytes, finding) in [
        (&whole[..whole.len() - 9], ""),
        (&whole[..whole.len() / 2], ""),
        (&log, "more follows after its end"),
        (&flipped, ""),
    ] {
        std::fs::write(&broken, bytes).unwrap();
        let error = shell.complains(1, &["import", "db", text(&broken)]);
        assert!(error.contains("cannot be imported") && error.contains(finding), "{error}");
    }
    assert_eq!(
        shell.json(&["backups", "db"]).as_array().unwrap().len(),
        1 + 1,
        "and the safety backup"
    );
}

/// A machine with this source beside a directory.
fn with_source(source: &str) -> Shell {
    let shell = Shell::bare();
    let text = format!(
        "[storages.main]\nprovider = 'local'\npath = '{}'\n\n[sources.db]\nstorage = 'main'\n{}\n",
        shell.path("storage").display(),
        source.replace("HERE", text(&shell.path("")).trim_end_matches('/')),
    );
    shell.set_config(text);
    shell
}

#[test]
fn tars_of_other_programs_return_as_trees_that_are_equal() {
    let shell = with_source("kind = 'files'\npath = 'HERE/app'\nexclude = ['*.log']");
    let theirs = shell.path("theirs");
    tree::make(&theirs, 300).unwrap();
    std::fs::write(theirs.join("kept.log"), "all of it counts").unwrap();
    std::fs::write(theirs.join("n".repeat(180)), "a long name").unwrap();
    // Not all formats keep what is less than a second.
    let script = "find . -exec touch -h -d '2026-03-08 12:00:00' {} +";
    let touched = Command::new("sh").args(["-c", script]).current_dir(&theirs).status();
    assert!(touched.unwrap().success());
    let before = tree::walk(&theirs).unwrap();
    let tar = |name: &str, options: &[&str]| {
        let path = shell.path(name);
        let mut command = Command::new("tar");
        command.args(options).arg("-cf").arg(&path);
        let status = command.args(["-C", text(&theirs), "."]).status();
        assert!(status.unwrap().success());
        path
    };
    let gnu = tar("gnu.tar", &["--format=gnu", "--sparse"]);
    let pax = tar("pax.tar", &["--format=pax", "--xattrs"]);
    let (mut without_holes, mut without_attributes) = (before.clone(), before);
    without_holes.values_mut().for_each(|seen| seen.is_sparse = false);
    without_attributes.values_mut().for_each(|seen| seen.xattrs.clear());
    for (path, before) in [
        (pack("gzip", &pax, "pax.tgz"), without_holes),
        (pack("zstd", &gnu, "gnu.tar.zst"), without_attributes),
    ] {
        let backup = imported(&shell, &path);
        shell.ends(
            0,
            &["restore", "db", "--id", id(&backup), "--to", text(&shell.path("back")), "--yes"],
        );
        let after = tree::walk(&shell.path("back")).unwrap();
        assert_eq!(tree::differences(&before, &after), Vec::<String>::new(), "{}", path.display());
        std::fs::remove_dir_all(shell.path("back")).unwrap();
    }
    // Sparse files of this kind have their map in their bytes: unpacked as they are they would be other files.
    let sparse = tar("sparse.tar", &["--format=pax", "--sparse"]);
    let error = shell.complains(13, &["import", "db", text(&sparse)]);
    assert!(error.contains("sparse file in the format of pax"), "{error}");
    let twice = [std::fs::read(&gnu).unwrap(), std::fs::read(&gnu).unwrap()].concat();
    std::fs::write(shell.path("twice.tar"), twice).unwrap();
    let error = shell.complains(13, &["import", "db", text(&shell.path("twice.tar"))]);
    assert!(error.contains("more follows after its end"), "{error}");
    // Directories of which the archive says nothing, and a name of ours.
    std::fs::create_dir_all(theirs.join("up/on/way")).unwrap();
    std::fs::write(theirs.join("up/on/way/file"), "x").unwrap();
    std::fs::write(theirs.join(".backstay-kept"), "x").unwrap();
    let bare = shell.path("bare.tar");
    let mut command = Command::new("tar");
    command.arg("-cf").arg(&bare).args(["-C", text(&theirs)]);
    assert!(command.args(["up/on/way/file", ".backstay-kept"]).status().unwrap().success());
    std::fs::create_dir(shell.path("app")).unwrap();
    std::fs::set_permissions(shell.path("app"), std::fs::Permissions::from_mode(0o750)).unwrap();
    let backup = imported(&shell, &bare);
    assert!(warnings(&backup).contains("3 directories are not described"), "{backup}");
    assert!(warnings(&backup).contains(".backstay-kept is a name that restores use"), "{backup}");
    shell.ends(0, &["restore", "db", "--id", id(&backup), "--yes"]);
    let mode = |path: &str| shell.path(path).metadata().unwrap().permissions().mode() & 0o777;
    assert_eq!((mode("app"), mode("app/up"), mode("app/up/on/way")), (0o750, 0o755, 0o755));
    let whole = std::fs::read(&gnu).unwrap();
    std::fs::write(shell.path("cut.tar"), &whole[..whole.len() / 2]).unwrap();
    shell.complains(13, &["import", "db", text(&shell.path("cut.tar"))]);
    assert_eq!(std::fs::read_dir(shell.path("home/spool")).map_or(0, Iterator::count), 0);
}

#[test]
fn copies_of_sqlite_databases_are_imported_with_what_is_in_their_logs() {
    let shell = with_source("kind = 'sqlite'\npath = 'HERE/app.db'");
    let theirs = shell.path("theirs.db");
    let app = rusqlite::Connection::open(&theirs).unwrap();
    app.execute_batch(
        "PRAGMA journal_mode = wal; CREATE TABLE t (n INTEGER); INSERT INTO t VALUES (1), (2), (3)",
    )
    .unwrap();
    std::fs::copy(&theirs, shell.path("copy.db")).unwrap();
    std::fs::copy(shell.path("theirs.db-wal"), shell.path("copy.db-wal")).unwrap();
    drop(app);
    let count = |path: &Path| -> i64 {
        let database = rusqlite::Connection::open(path).unwrap();
        database.query_row("SELECT count(*) FROM t", [], |row| row.get(0)).unwrap()
    };
    let seen = std::fs::read(shell.path("copy.db-wal")).unwrap();
    for path in [shell.path("copy.db"), pack("gzip", &theirs, "theirs.db.gz")] {
        let backup = imported(&shell, &path);
        let to = shell.path("back.db");
        shell.ends(0, &["restore", "db", "--id", id(&backup), "--to", text(&to), "--yes"]);
        assert_eq!(count(&to), 3);
        std::fs::remove_file(&to).unwrap();
    }
    assert!(
        std::fs::read(shell.path("copy.db-wal")).unwrap() == seen,
        "what is others' stays as it is"
    );
    // Another night: the database is as it was, and its log is not.
    let app = rusqlite::Connection::open(&theirs).unwrap();
    app.execute_batch("INSERT INTO t VALUES (4)").unwrap();
    let log = std::fs::read(shell.path("theirs.db-wal")).unwrap();
    drop(app);
    std::fs::write(shell.path("copy.db-wal"), log).unwrap();
    imported(&shell, &shell.path("copy.db"));
    std::fs::write(shell.path("dump.sql"), "CREATE TABLE t (n INTEGER);").unwrap();
    let error = shell.complains(1, &["import", "db", text(&shell.path("dump.sql"))]);
    assert!(error.contains("sqlite3 new.db <"), "{error}");
    let mut broken = std::fs::read(&theirs).unwrap();
    broken.truncate(4096 + 100);
    std::fs::write(shell.path("broken.db"), broken).unwrap();
    shell.complains(13, &["import", "db", text(&shell.path("broken.db"))]);
}

#[test]
fn exports_of_duckdb_are_imported_from_wherever_they_lie_now() {
    let source = format!(
        "kind = 'duckdb'\npath = 'HERE/app.db'\nprograms = '{}'",
        duckdb::programs().display()
    );
    let shell = with_source(&source);
    let theirs = shell.path("theirs.db");
    // Not the nastiest: what DuckDB itself exports wrongly nobody can import.
    duckdb::sql(
        &theirs,
        "CREATE SCHEMA \"S 2\"; CREATE TYPE mood AS ENUM ('ok', 'größe'); CREATE SEQUENCE seq START 5; SELECT nextval('seq');
         CREATE TABLE \"S 2\".\"odd \"\"n;ame\" (\"se lect\" INTEGER PRIMARY KEY, t VARCHAR DEFAULT 'x;''y', m mood);
         INSERT INTO \"S 2\".\"odd \"\"n;ame\" VALUES (1, e'line\nline', 'ok'), (2, '', 'größe'), (3, NULL, NULL);
         CREATE TABLE hits AS SELECT n, n / 7.0 AS x, 'text ' || n AS t FROM range(5000) r(n); CREATE INDEX by_n ON hits (n);
         CREATE VIEW z_first AS SELECT n FROM hits; CREATE VIEW a_last AS SELECT * FROM z_first",
    );
    let before = duckdb::digest(&theirs);
    for format in ["csv", "parquet"] {
        let there = shell.path("elsewhere");
        duckdb::sql(&theirs, &format!("EXPORT DATABASE '{}' (FORMAT {format})", there.display()));
        let here = shell.path(&format!("2026-03-08T12000{}Z", format.len() % 10));
        std::fs::rename(&there, &here).unwrap();
        let backup = imported(&shell, &here);
        assert_eq!(backup["imported"]["time_from"], "name");
        let to = shell.path("back.db");
        shell.ends(0, &["restore", "db", "--id", id(&backup), "--to", text(&to), "--yes"]);
        assert_eq!(duckdb::digest(&to), before, "{format}");
        std::fs::remove_file(&to).unwrap();
        // A table's file that is gone.
        let gone = std::fs::read_dir(&here)
            .unwrap()
            .flatten()
            .find(|entry| entry.path().extension().is_some_and(|extension| extension == format));
        std::fs::remove_file(gone.unwrap().path()).unwrap();
        let error = shell.complains(1, &["import", "db", text(&here)]);
        assert!(error.contains("which is not there"), "{error}");
    }
    let export = shell.path("export");
    duckdb::sql(&theirs, &format!("EXPORT DATABASE '{}' (FORMAT csv)", export.display()));
    let load = std::fs::read_to_string(export.join("load.sql")).unwrap();
    let first = load.find(";").unwrap() + 1;
    std::fs::write(export.join("load.sql"), &load[..first]).unwrap();
    let error = shell.complains(1, &["import", "db", text(&export)]);
    assert!(error.contains("its load.sql has nothing for the table"), "{error}");
    std::fs::write(export.join("load.sql"), load).unwrap();
    let hits = std::fs::read(export.join("hits.csv")).unwrap();
    std::fs::write(export.join("hits.csv"), &hits[..hits.len() - 3]).unwrap();
    let error = shell.complains(1, &["import", "db", text(&export)]);
    assert!(error.contains("cut short in the middle of a line"), "{error}");
    let hostile = shell.path("hostile");
    std::fs::create_dir(&hostile).unwrap();
    std::fs::write(hostile.join("schema.sql"), "CREATE TABLE t(a VARCHAR);COPY t TO '/tmp/x';")
        .unwrap();
    std::fs::write(hostile.join("load.sql"), "").unwrap();
    let error = shell.complains(1, &["import", "db", text(&hostile)]);
    assert!(error.contains("no export has a statement"), "{error}");
}

#[test]
fn exports_of_all_tenants_become_backups_of_a_set_by_their_moments() {
    let source = format!(
        "kind = 'duckdb'\npath = 'HERE/app'\nprograms = '{}'\nmembers = {{ shared = 'hitkeep.db', tenants = 'tenants/*/hitkeep.db' }}",
        duckdb::programs().display()
    );
    let shell = with_source(&source);
    let backups = shell.path("backups");
    let export = |name: &str, moment: &str, rows: u32| {
        let database = shell.path("theirs.db");
        drop(std::fs::remove_file(&database));
        duckdb::sql(
            &database,
            &format!("CREATE TABLE hits AS SELECT '{name}' AS who, n FROM range({rows}) t(n)"),
        );
        let folder = backups.join(name).join(moment);
        std::fs::create_dir_all(folder.parent().unwrap()).unwrap();
        duckdb::sql(&database, &format!("EXPORT DATABASE '{}' (FORMAT parquet)", folder.display()));
    };
    for (moment, rows) in [("2026-03-08T120000Z", 10), ("2026-03-08T130000Z", 20)] {
        export("shared", moment, rows);
        export("tenants/1f0c", moment, rows + 1);
    }
    export("tenants/9d2e", "2026-03-08T130000Z", 5);
    let made = shell.json(&["import", "db", text(&backups)]);
    let made = made.as_array().unwrap();
    let times: Vec<&str> = made.iter().map(|b| b["started_at"].as_str().unwrap()).collect();
    assert_eq!(times, ["2026-03-08T12:00:00Z", "2026-03-08T13:00:00Z"]);
    std::fs::remove_file(backups.join("tenants/9d2e/2026-03-08T130000Z/load.sql")).unwrap();
    let error = shell.complains(1, &["import", "db", text(&backups)]);
    assert!(error.contains("it is no whole export"), "{error}");
    std::fs::create_dir(shell.path("app")).unwrap();
    shell.ends(0, &["restore", "db", "--at", "2026-03-08T12:30:00Z", "--yes"]);
    let count = |path: &str| duckdb::sql(&shell.path(path), "SELECT count(*) AS n FROM hits");
    assert_eq!(count("app/hitkeep.db"), "{\"n\":10}");
    assert_eq!(count("app/tenants/1f0c/hitkeep.db"), "{\"n\":11}");
    shell.ends(0, &["restore", "db", "--id", id(&made[1]), "--yes"]);
    assert_eq!(count("app/tenants/9d2e/hitkeep.db"), "{\"n\":5}");
}

#[test]
fn dumps_of_another_kind_are_refused_with_what_was_found_and_expected() {
    let shell = with_source("kind = 'files'\npath = 'HERE/app'");
    std::fs::write(shell.path("x.tar"), "SELECT 1;").unwrap();
    let error = shell.complains(1, &["import", "db", text(&shell.path("x.tar"))]);
    assert!(
        error.contains("it is a script of SQL statements, and a source of kind files takes tars"),
        "{error}"
    );
    std::fs::write(shell.path("x.bz2"), "BZh91AY").unwrap();
    assert!(shell.complains(1, &["import", "db", text(&shell.path("x.bz2"))]).contains("bunzip2"));
    std::fs::write(shell.path("empty"), "").unwrap();
    assert!(
        shell.complains(1, &["import", "db", text(&shell.path("empty"))]).contains("it is empty")
    );
    shell.complains(1, &["import", "db", text(&shell.path("nowhere"))]);
    shell.complains(2, &["import", "nothing", text(&shell.path("empty"))]);
}
