//! Retention archives: rows are in the table, in the archive, or on their way, and never lost or doubled (H1-H3, H13, H19).

use std::path::Path;
use std::time::Duration;

use backstay_testkit::duckdb;
use backstay_testkit::s3::S3Server;
use rusqlite::Connection;

use crate::shell::{Shell, contains};

/// Rows of the day before yesterday and of a hundred days before, four for each hour; and some of today.
pub(crate) const OLD_ROWS: i64 = 9_600;

const SQLITE: &str = "CREATE TABLE events (id INTEGER PRIMARY KEY, created_at TEXT, amount DECIMAL(10,2), note TEXT, data BLOB, odd, doubled INTEGER GENERATED ALWAYS AS (id * 2));
    CREATE TABLE other (n); INSERT INTO other VALUES (1);
    WITH RECURSIVE n(i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM n WHERE i < 9599)
    INSERT INTO events (id, created_at, amount, note, data, odd) SELECT i, datetime('now', '-2 days', (-15 * i) || ' minutes'), i % 7 + 0.5 * (i % 3), CASE WHEN i % 11 > 0 THEN 'it''s ' || i || char(10) || 'ü' END,
        CAST(char(i % 100, 0, 1) AS BLOB), CASE i % 7 WHEN 0 THEN i WHEN 1 THEN i / 3.0 WHEN 2 THEN 'x''; DROP TABLE other; --' WHEN 3 THEN NULL WHEN 4 THEN x'00ff' WHEN 5 THEN 1e300 * 1e300 ELSE '7' || char(0) || '8' END FROM n;
    INSERT INTO events (id, created_at, note) VALUES (20001, datetime('now'), 'young'), (20002, datetime('now', '-1 hour'), 'young'), (20003, NULL, 'no time'), (20004, 'soon', 'no time'), (20005, 'now', 'no time');";

pub(crate) fn sqlite(database: &Path) -> Connection {
    let connection = Connection::open(database).unwrap();
    connection.busy_timeout(Duration::from_secs(60)).unwrap();
    connection
}

/// All rows of a query, every value as SQLite writes it.
fn sqlite_rows(database: &Path, table: &str, condition: &str) -> Vec<String> {
    let connection = sqlite(database);
    let columns = "id, created_at, amount, note, data, odd".split(", ");
    let columns = columns.map(|name| format!("quote({name}) || typeof({name})"));
    let columns = columns.collect::<Vec<_>>().join(" || '|' || ");
    let query = format!("SELECT {columns} FROM {table} WHERE {condition} ORDER BY id");
    let mut statement = connection.prepare(&query).unwrap();
    let rows = statement.query_map([], |row| row.get(0)).unwrap();
    rows.map(Result::unwrap).collect()
}

/// A machine with a table in a SQLite database whose old rows are archived.
pub(crate) fn with_sqlite(more: &str) -> Shell {
    with_sqlite_of(SQLITE, more)
}

/// The same with a database of these statements.
pub(crate) fn with_sqlite_of(statements: &str, more: &str) -> Shell {
    let shell = Shell::bare();
    sqlite(&shell.path("app.db")).execute_batch(statements).unwrap();
    let source = format!("kind = 'sqlite'\npath = '{}'", shell.path("app.db").display());
    configure(&shell, &source, "events", more);
    shell
}

pub(crate) fn configure(shell: &Shell, source: &str, table: &str, more: &str) {
    shell.set_config(format!(
        "[storages.main]\nprovider = 'local'\npath = '{}'\n\n[sources.db]\nstorage = 'main'\n{source}\n\n\
         [archives.events]\nsource = 'db'\ntable = '{table}'\ncolumn = 'created_at'\nolder_than = '1d'\nstorage = 'main'\n{more}\n",
        shell.path("storage").display(),
    ));
}

/// What DuckDB says of the files as they lie.
pub(crate) fn read_by_duckdb(shell: &Shell, select: &str) -> String {
    let files = shell.path("storage/backstay/archives/default/events/*/*/*.parquet");
    let query = format!(
        "SELECT {select} FROM read_parquet('{}', hive_partitioning = true, union_by_name = true)",
        files.display()
    );
    duckdb::sql(&shell.path("nothing.duckdb"), &query)
}

pub(crate) fn field(json: &serde_json::Value, name: &str) -> i64 {
    json[0][name].as_i64().unwrap_or_else(|| panic!("{name}: {json}"))
}

#[test]
fn rows_of_sqlite_go_out_of_the_table_and_come_back_equal() {
    let shell = with_sqlite("delete = true\nencryption = 'none'\npartition = 'day'");
    let database = shell.path("app.db");
    let before = sqlite_rows(&database, "events", "true");
    let planned = shell.json(&["archives", "run", "events", "--dry-run"]);
    // A hundred, or one more: what time of day it is decides.
    let days = "SELECT count(DISTINCT date(created_at)) FROM events WHERE id < 20000";
    let days: u32 = sqlite(&database).query_row(days, [], |row| row.get(0)).unwrap();
    assert_eq!(planned[0]["partitions"].as_array().unwrap().len(), days as usize);
    assert_eq!(sqlite_rows(&database, "events", "true"), before, "a dry run changes nothing");
    let run = shell.json(&["archives", "run", "events"]);
    assert_eq!(
        (field(&run, "archived"), field(&run, "deleted"), field(&run, "unreadable")),
        (OLD_ROWS, OLD_ROWS, 3)
    );
    let young = sqlite_rows(&database, "events", "true");
    assert_eq!(young, sqlite_rows(&database, "events", "id > 20000"));
    assert_eq!(young.len(), 5);
    // Somebody else's reader, on the files as they lie.
    let seen = read_by_duckdb(
        &shell,
        "count(*) AS n, count(DISTINCT id) AS d, sum(id) AS s, count(note) AS notes, bool_and(CAST(day AS DATE) = CAST(created_at AS DATE)) AS divided, typeof(any_value(amount)) AS amount",
    );
    let notes = (0..OLD_ROWS).filter(|i| i % 11 > 0).count();
    assert_eq!(
        seen,
        format!(
            "{{\"n\":9600,\"d\":9600,\"s\":\"{}\",\"notes\":{notes},\"divided\":true,\"amount\":\"DOUBLE\"}}",
            9599 * 4800
        )
    );
    shell.ends(0, &["archives", "verify"]);
    let restored = shell.json(&["archives", "restore", "events", "--yes"]);
    assert_eq!(restored["inserted"], OLD_ROWS);
    assert_eq!(sqlite_rows(&database, "events", "true"), before);
    assert_eq!(
        sqlite(&database)
            .query_row("SELECT count(*) FROM other", [], |row| row.get::<_, i64>(0))
            .unwrap(),
        1
    );
    // Again: they are there by key. The next run knows them, archives none twice, and deletes them.
    let restored = shell.json(&["archives", "restore", "events", "--yes"]);
    assert_eq!(restored["inserted"], 0);
    let run = shell.json(&["archives", "run", "events"]);
    assert_eq!(
        (field(&run, "archived"), field(&run, "already_archived"), field(&run, "deleted")),
        (0, OLD_ROWS, OLD_ROWS)
    );
    assert_eq!(sqlite_rows(&database, "events", "true"), young);
}

#[test]
fn rows_stay_unless_deletion_is_asked_for_and_none_is_archived_twice() {
    let shell = with_sqlite("encryption = 'none'");
    let database = shell.path("app.db");
    let before = sqlite_rows(&database, "events", "true");
    assert_eq!(field(&shell.json(&["archives", "run", "events"]), "archived"), OLD_ROWS);
    assert_eq!(sqlite_rows(&database, "events", "true"), before);
    let again = shell.json(&["archives", "run", "events"]);
    assert_eq!(
        (field(&again, "archived"), field(&again, "already_archived")),
        (0, 0),
        "counts say that nothing is new"
    );
    // Late rows of months that are archived, and a changed one.
    sqlite(&database).execute_batch("INSERT INTO events (id, created_at) VALUES (30001, datetime('now', '-9 days')), (30002, datetime('now', '-40 days'));").unwrap();
    assert_eq!(field(&shell.json(&["archives", "run", "events"]), "archived"), 2);
    assert_eq!(
        read_by_duckdb(&shell, "count(*) - count(DISTINCT id) AS twice, count(*) AS n"),
        "{\"twice\":0,\"n\":9602}"
    );
    sqlite(&database).execute_batch("UPDATE events SET note = 'changed' WHERE id = 17").unwrap();
    // What was archived of it is not what is there: it stays, and is archived as it is now.
    shell.edit_config("encryption = 'none'", "encryption = 'none'\ndelete = true");
    let run = shell.json(&["archives", "run", "events"]);
    assert_eq!(
        (field(&run, "archived"), field(&run, "changed"), field(&run, "deleted")),
        (1, 1, 9602)
    );
    assert_eq!(sqlite_rows(&database, "events", "id < 20000 OR id > 30000"), Vec::<String>::new());
    shell.ends(0, &["archives", "restore", "events", "--yes"]);
    assert_eq!(sqlite_rows(&database, "events", "id = 17").len(), 1);
    assert!(
        sqlite_rows(&database, "events", "id = 17")[0].contains("changed"),
        "the newest counts"
    );
}

#[test]
fn archive_is_never_a_backup_and_without_one_it_is_said_loudly() {
    let shell = with_sqlite("");
    let status = |shell: &Shell| shell.complains(0, &["status"]);
    assert!(status(&shell).contains("BACKUPS ARE OFF for db"));
    shell.ends(0, &["archives", "run", "--all"]);
    assert!(shell.complains(0, &["archives", "list"]).contains("BACKUPS ARE OFF"));
    assert!(status(&shell).contains("BACKUPS ARE OFF for db"));
    let doctor = shell.ends(1, &["doctor"]);
    assert!(doctor.contains("FAIL  archives: BACKUPS ARE OFF for db"), "{doctor}");
    assert_eq!(shell.json(&["backups"]), serde_json::json!([]));
    assert_eq!(shell.json(&["verify", "--all"]), serde_json::json!([]));
    let error = shell.complains(10, &["restore", "db", "--yes"]);
    assert!(error.contains("no vault"), "{error}");
    shell.ends(0, &["prune"]);
    assert_eq!(
        shell.json(&["archives", "list"])[0]["rows"],
        OLD_ROWS,
        "prune of the backups left it alone"
    );
    shell.ends(0, &["backup", "db"]);
    assert_eq!(shell.json(&["backups"]).as_array().unwrap().len(), 1);
    assert!(!status(&shell).contains("OFF"));
    let doctor = shell.run(&["doctor"]);
    assert!(!String::from_utf8_lossy(&doctor.stdout).contains("OFF"));
}

#[test]
fn sealed_archive_shows_nothing_and_comes_back_as_files() {
    let shell = with_sqlite("delete = true");
    shell.ends(0, &["archives", "run", "events"]);
    let storage = shell.path("storage");
    for secret in [&b"amount"[..], b"PAR1", b"it's 1"] {
        assert!(!contains(&storage, secret), "{}", String::from_utf8_lossy(secret));
    }
    shell.ends(0, &["archives", "restore", "events", "--to-file", "plain"]);
    let files = shell.path("plain/*/*.parquet");
    let query = format!(
        "SELECT count(*) AS n, sum(id) AS s FROM read_parquet('{}', hive_partitioning = true)",
        files.display()
    );
    assert_eq!(
        duckdb::sql(&shell.path("nothing.duckdb"), &query),
        format!("{{\"n\":9600,\"s\":\"{}\"}}", 9599 * 4800)
    );
    // One flipped byte in one file.
    let first =
        backstay_testkit::tree::files_below(&storage.join("backstay/archives/default/events"))
            .unwrap();
    let first = first.iter().find(|file| file.to_string_lossy().ends_with(".parquet.bks")).unwrap();
    let mut bytes = std::fs::read(first).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(first, bytes).unwrap();
    assert!(shell.ends(13, &["archives", "verify", "events"]).contains("NOT GOOD"));
    let count = sqlite_rows(&shell.path("app.db"), "events", "true").len();
    shell.ends(13, &["archives", "restore", "events", "--yes"]);
    assert_eq!(sqlite_rows(&shell.path("app.db"), "events", "true").len(), count, "all or none");
}

#[test]
fn archive_in_a_bucket_comes_back_with_the_kit_alone() {
    let server = S3Server::start().unwrap();
    let shell = Shell::with_bucket(&server);
    sqlite(&shell.path("crm.db")).execute_batch(SQLITE).unwrap();
    let archive = "[archives.events]\nsource = 'crm'\ntable = 'events'\ncolumn = 'created_at'\nolder_than = '1d'\nstorage = 'main'\ndelete = true\npartition = 'day'\n";
    shell.set_config(format!("{}\n{archive}", shell.config()));
    let before = sqlite_rows(&shell.path("crm.db"), "events", "true");
    assert_eq!(field(&shell.json(&["archives", "run", "events"]), "deleted"), OLD_ROWS);
    shell.ends(0, &["keys", "kit", "--output", "kit.txt"]);
    // Another machine, with nothing but the kit, the configuration and what the app has now.
    let fresh = Shell::bare();
    for file in ["kit.txt", "crm.db"] {
        std::fs::copy(shell.path(file), fresh.path(file)).unwrap();
    }
    let location = "s3://app-backups/backstay/archives";
    fresh.ends(
        0,
        &["recover", "--storage", location, "--kit", "kit.txt", "--endpoint", &server.endpoint],
    );
    let (there, here) =
        (shell.path("").display().to_string(), fresh.path("").display().to_string());
    fresh.set_config(shell.config().replace(&there, &here));
    fresh.ends(0, &["archives", "verify"]);
    let planned = ["archives", "restore", "events", "--to-file", "plain", "--dry-run"];
    fresh.ends(0, &planned);
    assert!(!fresh.path("plain").exists());
    fresh.ends(0, &["archives", "restore", "events", "--yes"]);
    assert_eq!(sqlite_rows(&fresh.path("crm.db"), "events", "true"), before);
}

#[test]
fn table_that_changes_its_columns_goes_on_being_archived() {
    let shell = with_sqlite("delete = true\nencryption = 'none'");
    let database = shell.path("app.db");
    let before = sqlite_rows(&database, "events", "id < 20000");
    shell.ends(0, &["archives", "run", "events"]);
    sqlite(&database).execute_batch("ALTER TABLE events ADD COLUMN colour TEXT DEFAULT 'red'; ALTER TABLE events RENAME COLUMN data TO bytes;
        INSERT INTO events (id, created_at, colour, bytes) VALUES (30001, datetime('now', '-9 days'), 'blue', x'01')").unwrap();
    let run = shell.json(&["archives", "run", "events"]);
    let changes = run[0]["schema_changes"].to_string();
    for change in
        ["column colour (TEXT) is new", "column bytes (BLOB) is new", "column data (BLOB) is gone"]
    {
        assert!(changes.contains(change), "{changes}");
    }
    assert_eq!((field(&run, "archived"), field(&run, "deleted")), (1, 1));
    assert_eq!(
        read_by_duckdb(&shell, "count(*) AS n, count(colour) AS c, count(bytes) AS b"),
        "{\"n\":9601,\"c\":1,\"b\":1}"
    );
    let error = shell.complains(1, &["archives", "restore", "events", "--yes"]);
    assert!(error.contains("has no column data") && error.contains("--to-file"), "{error}");
    assert_eq!(sqlite_rows_of(&database, "SELECT count(*) FROM events"), "5", "all or none");
    sqlite(&database).execute_batch("ALTER TABLE events ADD COLUMN data BLOB").unwrap();
    shell.ends(0, &["archives", "restore", "events", "--yes"]);
    assert_eq!(sqlite_rows(&database, "events", "id < 20000"), before);
    assert_eq!(
        sqlite_rows_of(&database, "SELECT colour || hex(bytes) FROM events WHERE id = 30001"),
        "blue01"
    );
}

pub(crate) fn sqlite_rows_of(database: &Path, query: &str) -> String {
    let value: rusqlite::types::Value =
        sqlite(database).query_row(query, [], |row| row.get(0)).unwrap();
    match value {
        rusqlite::types::Value::Integer(number) => number.to_string(),
        rusqlite::types::Value::Text(text) => text,
        other => format!("{other:?}"),
    }
}

#[test]
fn what_cannot_be_archived_safely_is_refused_with_what_to_do() {
    let shell = with_sqlite("delete = true");
    let database = shell.path("app.db");
    sqlite(&database).execute_batch("CREATE TABLE keyless (created_at TEXT, n INT); CREATE TABLE parts (n INT, event INT REFERENCES events (id) ON DELETE CASCADE);
        CREATE TABLE counted (id INTEGER PRIMARY KEY, created_at INT); INSERT INTO counted VALUES (1, 1700000000)").unwrap();
    shell.edit_config("table = 'events'", "table = 'keyless'");
    let error = shell.complains(1, &["archives", "run", "events"]);
    assert!(error.contains("no primary key") && error.contains("ADD PRIMARY KEY"), "{error}");
    shell.edit_config("table = 'keyless'", "table = 'nothing'");
    let error = shell.complains(1, &["archives", "run", "events"]);
    assert!(error.contains("has no table nothing"), "{error}");
    // Its rows would take others with them.
    shell.edit_config("table = 'nothing'", "table = 'events'");
    let error = shell.complains(1, &["archives", "run", "events"]);
    assert!(error.contains("archived but not deleted") && error.contains("CASCADE"), "{error}");
    assert_eq!(shell.json(&["archives", "list"])[0]["rows"], OLD_ROWS);
    assert_eq!(sqlite_rows(&database, "events", "id < 20000").len() as i64, OLD_ROWS);
    // Numbers are times only if somebody says of what.
    shell.edit_config("table = 'events'", "table = 'counted'");
    shell.edit_config("[archives.events]", "[archives.counted]");
    let run = shell.json(&["archives", "run", "counted"]);
    assert_eq!((field(&run, "archived"), field(&run, "unreadable")), (0, 1));
    shell.edit_config("column = 'created_at'", "column = 'created_at'\ncolumn_unit = 's'");
    let run = shell.json(&["archives", "run", "counted"]);
    assert_eq!((field(&run, "archived"), field(&run, "unreadable")), (1, 0));
}

#[test]
fn configuration_of_an_archive_is_checked_with_line_and_advice() {
    let shell = with_sqlite("");
    for (from, to, expected) in [
        (
            "source = 'db'",
            "source = 'dbx'",
            "archives.events.source: found `dbx`, expected one of the sources: db",
        ),
        ("older_than = '1d'", "older_than = 'soon'", "archives.events.older_than"),
        ("older_than = '1d'", "older_than = '0d'", "expected more than nothing"),
        ("older_than = '1d'", "older_than = '9d'\nkeep = '2d'", "is not more than older_than"),
        (
            "older_than = '1d'",
            "older_than = '9d'\npartition = 'week'",
            "expected one of: month, day",
        ),
        ("older_than = '1d'", "older_than = '9d'\ncolumn_unit = 'h'", "expected one of: s, ms, us"),
        ("older_than = '1d'", "older_then = '9d'", "did you mean `older_than`?"),
        (
            "kind = 'sqlite'",
            "kind = 'files'",
            "expected one database of `postgres`, `mysql`, `sqlite` or `duckdb`",
        ),
    ] {
        let config = shell.config();
        shell.edit_config(from, to);
        let error = shell.complains(2, &["config", "check"]);
        assert!(error.contains(expected), "{error}");
        shell.set_config(config);
    }
    let shown = shell.json(&["config", "show"]);
    assert_eq!(shown["archives"]["events"]["partition"], "month");
    shell.set_config(format!("organisation = 'archives'\n{}", shell.config()));
    assert!(
        shell
            .complains(2, &["config", "check"])
            .contains("other than `keys`, `archives` and `catalogs`")
    );
}

#[test]
fn rows_that_were_kept_long_enough_are_pruned_and_not_archived_again() {
    let shell = with_sqlite("partition = 'day'\nencryption = 'none'");
    shell.ends(0, &["archives", "run", "events"]);
    shell.edit_config("older_than = '1d'", "older_than = '1d'\nkeep = '90d'");
    // All of it is one segment, whose newest rows are young.
    shell.ends(0, &["archives", "prune", "events"]);
    assert_eq!(shell.json(&["archives", "list"])[0]["rows"], OLD_ROWS);
    shell.edit_config("keep = '90d'", "keep = '37h'");
    let planned = shell.json(&["archives", "prune", "--dry-run"]);
    assert_eq!(planned[0]["expired"].as_array().unwrap().len(), 1, "{planned}");
    shell.ends(0, &["archives", "prune", "events"]);
    assert_eq!(shell.json(&["archives", "list"])[0]["rows"], 0);
    let run = shell.json(&["archives", "run", "events"]);
    assert!(field(&run, "archived") <= 2 * 96, "{run}");
    // What a killed run left has no manifest.
    let left = shell
        .path("storage/backstay/archives/default/events/20200101T000000Z-bcdfghjk/day=2020-01-01");
    std::fs::create_dir_all(&left).unwrap();
    std::fs::write(left.join("rows.parquet"), "half").unwrap();
    filetime(&left.join("rows.parquet"));
    shell.ends(0, &["archives", "prune"]);
    assert!(!left.join("rows.parquet").exists());
}

/// Makes a file look two days old.
fn filetime(path: &Path) {
    let then = std::time::SystemTime::now() - Duration::from_secs(2 * 86_400);
    std::fs::File::options().write(true).open(path).unwrap().set_modified(then).unwrap();
}
