//! A PostgreSQL database of a size that users have, within the memory that we promise.

use backstay_testkit::postgres::{self, PostgresServer};

use crate::postgres::with_database;
use crate::shell::Shell;
use crate::size::assert_within_promise;

/// Every row of every table, in whatever order they lie.
fn sums(server: &PostgresServer, database: &str) -> String {
    let tables = r"SELECT format('SELECT %L, count(*), sum(hashtextextended(t::text, 0)) FROM %I t', relname, relname)
          FROM pg_class WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace ORDER BY relname \gexec";
    server.script(database, tables)
}

#[test]
fn heavy_database_of_a_gigabyte_returns_equal_within_the_memory_promised() {
    for (_, programs) in postgres::installed() {
        returns_equal(&PostgresServer::start_with(&programs));
    }
}

fn returns_equal(server: &PostgresServer) {
    server.sql("postgres", "CREATE DATABASE shop");
    let mut pgbench = server.command("pgbench", "shop");
    let made = pgbench.args(["--initialize", "--quiet", "--scale", "40"]).output().unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    server.sql(
        "shop",
        "CREATE TABLE words AS SELECT i, repeat(md5(i::text), 10) AS text FROM generate_series(1, 800000) i;
         CREATE TABLE documents AS SELECT i, jsonb_build_object('id', i, 'tags', ARRAY[md5(i::text), 'x'], 'more', repeat('y', i % 200)) AS document
           FROM generate_series(1, 500000) i;
         CREATE TABLE large AS SELECT i, string_agg(md5((i * j)::text), '') AS text FROM generate_series(1, 20) i, generate_series(1, 100000) j GROUP BY 1",
    );
    let bytes: u64 = server.sql("shop", "SELECT pg_database_size('shop')").parse().unwrap();
    assert!(bytes > 1 << 30, "{bytes}");
    let shell: Shell = with_database(server, "shop", "");
    assert_within_promise(&shell, &["backup", "db"]);
    assert_within_promise(&shell, &["restore", "db", "--to", "copy", "--yes"]);
    assert_eq!(sums(server, "copy"), sums(server, "shop"));
}
