//! What stands for and against a restore: looked at before anything is touched.

use std::collections::BTreeMap;
use std::time::Duration;

use backstay_format::{DatabaseRole, PostgresContent, TableRows};
use tokio_postgres::{Client, Row};

use super::connection::PostgresConnection as _;
use super::describe;
use super::error::{PostgresError, refused, statement};
use super::names::{self, TableName, bytes_of};
use crate::cx::Cx;
use crate::source::connection::Connection;

/// A preview must not keep a person waiting: what is not counted by then is not shown.
const COUNTING: Duration = Duration::from_secs(10);

/// What is there now.
pub(super) struct Present {
    pub(super) migrations: Option<Vec<String>>,
    /// Left out where counting takes too long.
    pub(super) tables: Option<Vec<TableRows>>,
    /// Slots that subscribers of this database read from.
    pub(super) subscribed_slots: i64,
}

/// Looks at a database that will be replaced.
pub(super) async fn at_present(
    cx: &Cx,
    target: &Connection,
    migrations: Option<&str>,
) -> Result<Present, PostgresError> {
    let client = target.connect(cx).await?;
    let limit = format!("SET statement_timeout = {}", COUNTING.as_millis());
    client.batch_execute(&limit).await.map_err(statement("look at what is there"))?;
    let migrations = match migrations {
        Some(query) => Some(describe::migrations(&client, query).await?),
        None => None,
    };
    let slots = "SELECT count(*) FROM pg_replication_slots WHERE database = current_database()";
    let slots = client.query_one(slots, &[]).await.map_err(statement("look for subscribers"))?;
    let counted = tokio::time::timeout(COUNTING, count_all(&client)).await;
    // A database that is too large to be counted for a preview is one all the same.
    let tables = counted.ok().and_then(Result::ok);
    Ok(Present { migrations, tables, subscribed_slots: slots.get(0) })
}

/// The app that is there must be able to work with what comes back (V54).
pub(super) fn compare_migrations(
    then: Option<&[String]>,
    now: Option<&[String]>,
    warnings: &mut Vec<String>,
) -> Result<(), PostgresError> {
    let (Some(then), Some(now)) = (then, now) else { return Ok(()) };
    let ahead: Vec<&String> = then.iter().filter(|one| !now.contains(one)).collect();
    if let Some(last) = ahead.last() {
        return Err(refused(format!(
            "the backup is {} migrations ahead of the app that is there, up to {last}; upgrade the app first, or restore to another database with --to",
            ahead.len()
        )));
    }
    let behind = now.iter().filter(|one| !then.contains(one)).count();
    if behind > 0 {
        warnings.push(format!(
            "the backup is {behind} migrations behind what is there; the app has to run them again"
        ));
    }
    Ok(())
}

/// Fails if the backup is of a newer server; warns if it is of an older one.
pub(super) fn compare_versions(
    backed_up: &str,
    server: u32,
    warnings: &mut Vec<String>,
) -> Result<(), PostgresError> {
    let backed_up = major_of(backed_up);
    if backed_up > server {
        return Err(refused(format!(
            "the backup is of PostgreSQL {backed_up} and the server is {server}; restore it to a server of {backed_up} or newer"
        )));
    }
    if backed_up < server {
        warnings
            .push(format!("the backup is of PostgreSQL {backed_up} and the server is {server}"));
    }
    Ok(())
}

fn major_of(version: &str) -> u32 {
    version.split(|c: char| !c.is_ascii_digit()).next().and_then(|n| n.parse().ok()).unwrap_or(0)
}

/// Says whether we may create databases.
pub(super) async fn may_create(server: &Client) -> Result<bool, PostgresError> {
    let query = "SELECT rolcreatedb OR rolsuper FROM pg_roles WHERE rolname = current_user";
    let row = server.query_one(query, &[]).await.map_err(statement("ask for our rights"))?;
    Ok(row.get(0))
}

/// Returns the roles that the server lacks.
pub(super) async fn missing_roles<'a>(
    server: &Client,
    roles: impl Iterator<Item = &'a DatabaseRole>,
) -> Result<Vec<&'a DatabaseRole>, PostgresError> {
    let query = format!("SELECT {} FROM pg_roles", bytes_of("rolname"));
    let known = names::read(server, &query, "read the roles").await?;
    let mut missing: Vec<&DatabaseRole> = roles.filter(|r| !known.contains(&r.name)).collect();
    missing.sort_by(|a, b| a.name.cmp(&b.name));
    missing.dedup_by(|a, b| a.name == b.name);
    Ok(missing)
}

/// Fails if the server lacks extensions.
pub(super) async fn missing_extensions(
    server: &Client,
    content: &PostgresContent,
) -> Result<(), PostgresError> {
    let query = format!("SELECT {} FROM pg_available_extensions", bytes_of("name"));
    let known = names::read(server, &query, "read the extensions").await?;
    let missing: Vec<&str> =
        content.extensions.iter().filter(|e| !known.contains(e)).map(String::as_str).collect();
    if missing.is_empty() {
        return Ok(());
    }
    Err(refused(format!(
        "the server lacks the extensions {}; install their packages there first",
        missing.join(", ")
    )))
}

/// Returns the tablespaces that the server has.
pub(super) async fn tablespaces(server: &Client) -> Result<Vec<String>, PostgresError> {
    let query = format!("SELECT {} FROM pg_tablespace", bytes_of("spcname"));
    names::read(server, &query, "read the tablespaces").await
}

/// Returns those of a database's tablespaces that are not among the server's.
pub(super) fn missing_tablespaces<'a>(
    present: &[String],
    content: &'a PostgresContent,
) -> Vec<&'a str> {
    let needed = content.tablespaces.iter().filter(|name| !present.contains(name));
    needed.map(String::as_str).collect()
}

/// Counts the rows of every table that has data of its own.
pub(super) async fn count_all(client: &Client) -> Result<Vec<TableRows>, PostgresError> {
    let counting = || statement("count rows");
    let tables = format!(
        "SELECT c.oid, {}, {} FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
          WHERE c.relkind = 'r' AND n.nspname !~ '^pg_' AND n.nspname <> 'information_schema'",
        bytes_of("n.nspname"),
        bytes_of("c.relname")
    );
    let tables = client.query(&tables, &[]).await.map_err(counting())?;
    let mut counted = Vec::with_capacity(tables.len());
    for row in &tables {
        let name = TableName { schema: row.get(1), table: row.get(2) };
        let counting_rows = name.counting(row.get(0));
        let rows = client.query_one(&counting_rows, &[]).await.map_err(counting())?;
        let rows = rows.get::<_, i64>(0).unsigned_abs();
        counted.push(TableRows { table: name.shown(), rows });
    }
    counted.sort_by(|a, b| a.table.cmp(&b.table));
    Ok(counted)
}

/// Returns the roots of all tables that are partitions, by the tables' names.
pub(super) async fn partition_roots(
    client: &Client,
) -> Result<BTreeMap<String, String>, PostgresError> {
    let query = format!(
        "SELECT {}, {}, pg_partition_root(c.oid)::oid::text FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
          WHERE c.relkind = 'r' AND c.relispartition",
        bytes_of("n.nspname"),
        bytes_of("c.relname")
    );
    let rows = client.query(&query, &[]).await.map_err(statement("ask for partitions"))?;
    let leaf = |row: &Row| {
        let name = TableName { schema: row.get(0), table: row.get(1) };
        (name.shown(), row.get(2))
    };
    Ok(rows.iter().map(leaf).collect())
}
