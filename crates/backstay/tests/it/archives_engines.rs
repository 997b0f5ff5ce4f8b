//! Rows of each kind of database in archives: all their types come back as they were (H13).

use backstay_testkit::duckdb;
use backstay_testkit::mysql::{MysqlServer, PASSWORD};
use backstay_testkit::postgres::{self, PostgresServer};

use crate::archives::{OLD_ROWS, configure, field, read_by_duckdb};
use crate::shell::Shell;

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

/// A machine with a table of a MariaDB server whose old rows are archived and deleted.
pub(crate) fn with_mariadb(server: &MysqlServer) -> Shell {
    let shell = Shell::bare();
    std::fs::write(shell.path("secret"), PASSWORD).unwrap();
    let source = format!(
        "kind = 'mysql'\nurl = '{}'\npassword = 'file:{}'",
        server.url("shop"),
        shell.path("secret").display()
    );
    configure(&shell, &source, "events", "delete = true\nencryption = 'none'");
    shell
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
    let shell = with_mariadb(&server);
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
