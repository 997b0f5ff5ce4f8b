//! Retention archives: rows are in the table, in the archive, or on their way, and never lost or doubled (H1-H3, H13, H19).

use std::path::Path;
use std::time::Duration;

use backstay_testkit::duckdb;
use backstay_testkit::mysql::{MysqlServer, PASSWORD};
use backstay_testkit::postgres::{self, PostgresServer};
use backstay_testkit::s3::S3Server;
use rusqlite::Connection;

use crate::shell::{Shell, contains};

/// Rows of the day before yesterday and of a hundred days before, four for each hour; and some of today.
const OLD_ROWS: i64 = 9_600;

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
    let shell = Shell::bare();
    sqlite(&shell.path("app.db")).execute_batch(SQLITE).unwrap();
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

fn field(json: &serde_json::Value, name: &str) -> i64 {
    json[0][name].as_i64().unwrap_or_else(|| panic!("{name}: {json}"))
}

#[test]
fn rows_of_sqlite_go_out_of_the_table_and_come_back_equal() {
    let shell = with_sqlite("delete = true\nencryption = 'none'\npartition = 'day'");
    let database = shell.path("app.db");
    let before = sqlite_rows(&database, "events", "true");
    let planned = shell.json(&["archives", "run", "events", "--dry-run"]);
    assert_eq!(planned[0]["partitions"].as_array().unwrap().len(), 101);
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
    assert!(shell.complains(2, &["config", "check"]).contains("other than `keys` and `archives`"));
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

const POSTGRES: &str = "CREATE TYPE mood AS ENUM ('good', 'it''s bad'); CREATE DOMAIN positive AS int CHECK (VALUE > 0);
    CREATE TABLE \"Ev ents\" (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, created_at timestamptz NOT NULL, b bool, s smallint, i int, f real, d double precision,
      n numeric(20,4), free numeric, t text, v varchar(20), c char(7), j json, jb jsonb, u uuid, bin bytea, day date, tod time, ts timestamp, iv interval, m mood, pos positive, ip inet, rng int4range,
      a int[], ta text[], ua uuid[], tza timestamptz[], na numeric[], bits bit(5), pt point, tot int GENERATED ALWAYS AS (i * 2) STORED);
    INSERT INTO \"Ev ents\" (created_at, b, s, i, f, d, n, free, t, v, c, j, jb, u, bin, day, tod, ts, iv, m, pos, ip, rng, a, ta, ua, tza, na, bits, pt)
    SELECT now() - interval '2 days' - k * interval '15 minutes', k % 2 = 0, -32768 + k % 1000, -k, k / 3.0, CASE k % 5 WHEN 0 THEN 'NaN' WHEN 1 THEN '-Infinity' ELSE k / 7.0 END,
      (k - 5000) * 1.2345, CASE k % 3 WHEN 0 THEN 'NaN' ELSE k * 1e30 + 0.000001 END, CASE WHEN k % 4 > 0 THEN E'it''s \\\\ ' || k || E'\\nü' END, 'v' || k, 'c', json_build_object('k', k), jsonb_build_object('k', k, 'l', ARRAY[k]),
      md5(k::text)::uuid, decode(md5(k::text), 'hex'), '0044-03-15 BC'::date + k * 300, time '23:59:59.999999', timestamp '1969-12-31 23:59:59.5' + k * interval '1 day', k * interval '1 month 2 days 3.5 seconds',
      (ARRAY['good', 'it''s bad']::mood[])[1 + k % 2], k + 1, ('10.0.0.' || k % 255)::inet, int4range(k, k + 5), ARRAY[k, NULL, -k], ARRAY['a''b', NULL, E'c\\\\\"d'], ARRAY[md5(k::text)::uuid], ARRAY[now()::timestamptz(0)], ARRAY[k / 3.0], (k % 32)::bit(5), point(k, -k)
    FROM generate_series(0, 9599) k;
    INSERT INTO \"Ev ents\" (created_at, t) SELECT now(), 'young' FROM generate_series(1, 5)";

pub(crate) fn with_postgres(server: &PostgresServer, table: &str, more: &str) -> Shell {
    let shell = Shell::bare();
    let source = format!(
        "kind = 'postgres'\nurl = '{}'\nprograms = '{}'",
        server.url("shop"),
        server.programs().display()
    );
    configure(&shell, &source, table, more);
    shell
}

#[test]
fn rows_of_postgres_go_out_of_the_table_and_come_back_equal() {
    for (_, programs) in postgres::installed() {
        let server = PostgresServer::start_with(&programs);
        server.sql("postgres", "CREATE DATABASE shop");
        server.sql("shop", POSTGRES);
        let shell = with_postgres(&server, "Ev ents", "delete = true\nencryption = 'none'");
        let digest =
            "SELECT count(*), md5(string_agg(e::text, E'\\n' ORDER BY id)) FROM \"Ev ents\" e";
        let before = server.sql("shop", digest);
        let run = shell.json(&["archives", "run", "events"]);
        assert_eq!((field(&run, "archived"), field(&run, "deleted")), (OLD_ROWS, OLD_ROWS));
        assert_eq!(server.sql("shop", "SELECT count(*) FROM \"Ev ents\""), "5");
        let types = ["n", "created_at", "ts", "u", "bin", "day", "a", "ta", "j", "d", "tod"]
            .map(|name| format!("typeof(any_value({name})) AS {name}"));
        assert_eq!(
            read_by_duckdb(&shell, &types.join(", ")),
            "{\"n\":\"DECIMAL(20,4)\",\"created_at\":\"TIMESTAMP WITH TIME ZONE\",\"ts\":\"TIMESTAMP\",\"u\":\"UUID\",\"bin\":\"BLOB\",\"day\":\"DATE\",\"a\":\"INTEGER[]\",\"ta\":\"VARCHAR[]\",\"j\":\"JSON\",\"d\":\"DOUBLE\",\"tod\":\"TIME\"}"
        );
        // The same sums by two engines that know nothing of each other.
        let sums = "count(*) AS k, sum(n) AS n, count(t) AS t, sum(length(t)) AS l, min(day) AS day, CAST(max(ts) AS varchar) AS ts, min(CAST(u AS varchar)) AS u";
        let restored = shell.json(&["archives", "restore", "events", "--yes"]);
        assert_eq!(restored["inserted"], OLD_ROWS);
        assert_eq!(server.sql("shop", digest), before);
        let ours = server.sql("shop", &format!("SELECT row_to_json(s) FROM (SELECT {sums} FROM \"Ev ents\" WHERE t IS DISTINCT FROM 'young') s"));
        let (ours, theirs): (serde_json::Value, serde_json::Value) = (
            serde_json::from_str(&ours).unwrap(),
            serde_json::from_str(&read_by_duckdb(&shell, sums)).unwrap(),
        );
        let plain = |value: &serde_json::Value| {
            let text = value.to_string();
            text.trim_matches('"').trim_end_matches('0').to_owned()
        };
        for name in ["k", "n", "t", "l", "u"] {
            assert_eq!(plain(&theirs[name]), plain(&ours[name]), "{name}");
        }
    }
}

#[test]
fn values_that_no_parquet_type_holds_are_told_and_pass_as_text() {
    let server = PostgresServer::start();
    server.sql("postgres", "CREATE DATABASE shop");
    server.sql("shop", "CREATE TABLE e (id int PRIMARY KEY, created_at timestamp, until timestamptz, n numeric(5,2), a int[]);
        INSERT INTO e VALUES (1, '2020-01-01', 'infinity', 1, '{1}'), (2, '2020-01-02', '-infinity', 'NaN', '{{1,2},{3,4}}'), (3, 'infinity', NULL, NULL, NULL), (4, NULL, NULL, NULL, NULL)");
    let shell = with_postgres(&server, "public.e", "delete = true");
    let digest = "SELECT md5(string_agg(e::text, E'\\n' ORDER BY id)) FROM e";
    let before = server.sql("shop", digest);
    for name in ["until", "n", "a"] {
        let error = shell.complains(1, &["archives", "run", "events"]);
        assert!(
            error.contains(&format!("column {name} holds")) && error.contains("as_text"),
            "{error}"
        );
        assert_eq!(server.sql("shop", digest), before);
        let config = shell.config();
        let line = config.lines().find(|line| line.starts_with("as_text"));
        match line {
            None => {
                shell.edit_config("delete = true", &format!("as_text = ['{name}']\ndelete = true"));
            }
            Some(line) => shell.edit_config(line, &line.replace(']', &format!(", '{name}']"))),
        }
    }
    let run = shell.json(&["archives", "run", "events"]);
    assert_eq!(
        (field(&run, "archived"), field(&run, "deleted"), field(&run, "unreadable")),
        (2, 2, 2)
    );
    shell.ends(0, &["archives", "restore", "events", "--yes"]);
    assert_eq!(server.sql("shop", digest), before);
}

#[test]
fn row_that_is_changed_between_archive_and_deletion_stays() {
    let server = PostgresServer::start();
    server.sql("postgres", "CREATE DATABASE shop");
    server.sql(
        "shop",
        "CREATE TABLE e (id int PRIMARY KEY, created_at date, n int, parent int REFERENCES e (id));
        INSERT INTO e SELECT i, '2020-01-01', i, NULL FROM generate_series(1, 3000) i",
    );
    let shell = with_postgres(&server, "e", "");
    shell.ends(0, &["archives", "run", "events"]);
    server.sql("shop", "UPDATE e SET n = -n WHERE id % 1000 = 0; DELETE FROM e WHERE id = 7; CREATE TABLE seen (id int);
        CREATE FUNCTION see() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN INSERT INTO seen VALUES (OLD.id); RETURN OLD; END';
        CREATE TRIGGER see BEFORE DELETE ON e FOR EACH ROW EXECUTE FUNCTION see()");
    shell.edit_config("older_than = '1d'", "older_than = '1d'\ndelete = true");
    let run = shell.json(&["archives", "run", "events"]);
    // The three are archived anew as they are now, and then go.
    assert_eq!(
        (field(&run, "changed"), field(&run, "archived"), field(&run, "deleted")),
        (3, 3, 2999)
    );
    assert_eq!(server.sql("shop", "SELECT count(*) FROM e"), "0");
    assert_eq!(server.sql("shop", "SELECT count(*), count(DISTINCT id) FROM seen"), "2999|2999");
}

pub(crate) fn with_duckdb(statements: &str, more: &str) -> Shell {
    let shell = Shell::bare();
    duckdb::sql(&shell.path("app.duckdb"), statements);
    let source = format!(
        "kind = 'duckdb'\npath = '{}'\nprograms = '{}'",
        shell.path("app.duckdb").display(),
        duckdb::programs().display()
    );
    configure(&shell, &source, "events", more);
    shell
}

#[test]
fn rows_of_duckdb_go_out_of_the_table_and_come_back_equal() {
    let shell = with_duckdb(
        "CREATE TYPE mood AS ENUM ('good', 'bad');
         CREATE TABLE events (id BIGINT, part VARCHAR, created_at TIMESTAMP WITH TIME ZONE, h HUGEINT, i INTERVAL, u UUID, d DECIMAL(30,5), l INTEGER[], s STRUCT(a INTEGER, b VARCHAR[]), mp MAP(VARCHAR, INTEGER),
           b BLOB, bit BIT, m mood, f FLOAT, t TIME, ns TIMESTAMP_NS, arr INTEGER[3], j JSON, g BIGINT GENERATED ALWAYS AS (id + 1), tt TIMETZ, PRIMARY KEY (id, part));
         INSERT INTO events (id, part, created_at, h, i, u, d, l, s, mp, b, bit, m, f, t, ns, arr, j, tt)
           SELECT k, 'p''' || k % 3, now() - INTERVAL 2 DAY - k * INTERVAL 15 MINUTE, 170141183460469231731687303715884105727 - k, k * INTERVAL '1 month 3 days', uuid(), k * 1.00001, [k, NULL], {'a': k, 'b': ['x', NULL]}, MAP {'a': k}, encode('ü' || k), '0101', CASE WHEN k % 2 = 0 THEN 'good' ELSE 'bad' END, CASE k % 3 WHEN 0 THEN 'nan' ELSE k / 3 END,
             TIME '23:59:59.999999', TIMESTAMP_NS '2020-01-01 00:00:00.123456789', [k, k, NULL], '{\"k\": 1}', '12:00:00+05:30' FROM range(9600) r(k);
         INSERT INTO events (id, part, created_at) SELECT 20000 + k, '', now() FROM range(5) r(k)",
        "delete = true\nencryption = 'none'",
    );
    let database = shell.path("app.duckdb");
    let before = duckdb::digest(&database);
    let run = shell.json(&["archives", "run", "events"]);
    assert_eq!((field(&run, "archived"), field(&run, "deleted")), (OLD_ROWS, OLD_ROWS));
    assert_eq!(duckdb::sql(&database, "SELECT count(*) AS n FROM events"), "{\"n\":5}");
    let restored = shell.json(&["archives", "restore", "events", "--yes"]);
    assert_eq!(restored["inserted"], OLD_ROWS);
    assert_eq!(duckdb::digest(&database), before);
}

#[test]
fn rows_of_mariadb_go_out_of_the_table_and_come_back_equal() {
    let server = MysqlServer::start();
    server.sql("", "CREATE DATABASE shop CHARACTER SET utf8mb4");
    server.sql("shop", "CREATE TABLE events (id BIGINT UNSIGNED, part VARCHAR(20) CHARACTER SET latin1, created_at TIMESTAMP(6) NOT NULL, ti TINYINT, bu BIGINT UNSIGNED, f FLOAT, d DOUBLE, n DECIMAL(38,10), big DECIMAL(65,5), t LONGTEXT, vb VARBINARY(20), bl BLOB, j JSON,
        e ENUM('a','it''s'), st SET('x','y'), bt BIT(10), dt DATE, dtm DATETIME(3), tm TIME(6), y YEAR, ip INET6, u UUID, g GEOMETRY, gen INT AS (ti * 2) STORED, PRIMARY KEY (part, id)) ENGINE=InnoDB");
    server.sql("shop", "SET time_zone = '+03:00'; INSERT INTO events (id, part, created_at, ti, bu, f, d, n, big, t, vb, bl, j, e, st, bt, dt, dtm, tm, y, ip, u, g)
        SELECT 18446744073709551615 - seq, CONCAT('pä', seq % 3), UTC_TIMESTAMP(6) - INTERVAL 2 DAY - INTERVAL 15 * seq MINUTE, CAST(seq AS SIGNED) % 60 - 30, 18446744073709551615 - seq, seq / 3, seq / 7, seq * 1.0000000001, seq * 1e50, IF(seq % 4, CONCAT('it''s \\\\ ', seq, '\\nü😀'), NULL),
          UNHEX(MD5(seq)), REPEAT(CHAR(0), 3), JSON_OBJECT('k', seq), IF(seq % 2, 'a', 'it''s'), 'x,y', seq % 1024, '1000-01-01' + INTERVAL seq DAY, '9999-12-31 23:59:59.999', '-838:59:59.5', 2155, '::1', UUID(), POINT(seq, 1) FROM seq_0_to_9599");
    server.sql(
        "shop",
        "INSERT INTO events (id, part, created_at) SELECT seq, '', UTC_TIMESTAMP() FROM seq_1_to_5",
    );
    let shell = Shell::bare();
    std::fs::write(shell.path("secret"), PASSWORD).unwrap();
    let source = format!(
        "kind = 'mysql'\nurl = '{}'\npassword = 'file:{}'",
        server.url("shop"),
        shell.path("secret").display()
    );
    configure(&shell, &source, "events", "delete = true\nencryption = 'none'");
    let before = server.digest("shop");
    let run = shell.json(&["archives", "run", "events"]);
    assert_eq!((field(&run, "archived"), field(&run, "deleted")), (OLD_ROWS, OLD_ROWS));
    assert_eq!(server.sql("shop", "SELECT count(*) FROM events"), "5");
    let seen = read_by_duckdb(
        &shell,
        "count(*) AS n, count(DISTINCT id) AS d, min(id) AS least, typeof(any_value(n)) AS t, max(length(t)) > 8 AS long",
    );
    assert_eq!(
        seen,
        "{\"n\":9600,\"d\":9600,\"least\":\"18446744073709542016\",\"t\":\"DECIMAL(38,10)\",\"long\":true}"
    );
    let restored = shell.json(&["archives", "restore", "events", "--yes"]);
    assert_eq!(restored["inserted"], OLD_ROWS);
    assert_eq!(shell.json(&["archives", "restore", "events", "--yes"])["inserted"], 0);
    assert_eq!(server.digest("shop"), before);
    // Rows of tables that others follow stay.
    server.sql("shop", "CREATE TABLE parts (id INT PRIMARY KEY, part VARCHAR(20) CHARACTER SET latin1, event BIGINT UNSIGNED, FOREIGN KEY (part, event) REFERENCES events (part, id) ON DELETE SET NULL)");
    let error = shell.complains(1, &["archives", "run", "events"]);
    assert!(error.contains("ON DELETE SET NULL"), "{error}");
    assert_eq!(server.sql("shop", "SELECT count(*) FROM events"), (OLD_ROWS + 5).to_string());
}
