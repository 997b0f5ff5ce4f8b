//! Loading a dump into a database that is there and empty: its statements are executed one by one.

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;

use backstay_format::MysqlContent;
use mysql_async::Conn;
use mysql_async::prelude::Queryable as _;

use super::describe;
use super::error::{MysqlError, refused, statement};
use super::scan::{Chosen, Found, Statements};
use crate::cx::Cx;
use crate::part::PartReader;
use crate::source::SourceError;

/// One commit for each table: the next `CREATE TABLE` makes it. Empty tables are filled in bulk where nothing is checked.
/// All warnings are kept.
const BEGIN: &str = "SET SESSION autocommit = 0, SESSION unique_checks = 0, SESSION foreign_key_checks = 0, SESSION max_error_count = 65535";
/// The server computes generated columns itself, and says so of each value that a dump of MariaDB gives it for one.
pub(super) const GENERATED: &str = "1906";
/// Tables that differ are named up to this number.
const SHOWN_DIFFERENCES: usize = 10;

/// Executes the statements of these tables, or all, in the session's database. Returns the bytes of the dump.
pub(super) async fn run(
    cx: &Cx,
    session: &mut Conn,
    mut data: PartReader,
    tables: Option<&BTreeSet<String>>,
) -> Result<u64, SourceError> {
    let mut chosen = Chosen::new(tables);
    session.query_drop(BEGIN).await.map_err(statement("begin to load"))?;
    let mut statements = Statements::default();
    let mut bytes = 0;
    while let Some(piece) = data.next().await? {
        bytes += piece.len() as u64;
        let mut complete = Vec::new();
        let pushed = statements.push(&piece, |found| {
            if let Found::Statement(statement) = found
                && chosen.wants(statement)
            {
                complete.push(statement.to_vec());
            }
            Ok::<(), Infallible>(())
        });
        let Ok(()) = pushed;
        for text in complete.into_iter().filter(|text| !text.is_empty()) {
            if leaves_the_database(&text) {
                return Err(
                    refused("the dump names a database of its own, so it is none of ours").into()
                );
            }
            let inserts = text.starts_with(b"INSERT INTO ");
            cx.run(session.query_drop(text)).await?.map_err(statement("load the dump"))?;
            if inserts && session.get_warnings() > 0 {
                check_unchanged(session).await?;
            }
        }
    }
    if !statements.rest().is_empty() {
        return Err(refused("the last statement of the dump has no end").into());
    }
    let ended = cx.run(session.query_drop("COMMIT")).await?;
    ended.map_err(statement("load the dump"))?;
    Ok(bytes)
}

/// Fails if the server did not take rows as they were.
async fn check_unchanged(session: &mut Conn) -> Result<(), MysqlError> {
    let warnings = describe::rows(session, "SHOW WARNINGS", "ask what was changed").await?;
    let changed = warnings.iter().find(|row| describe::text(row, 1) != GENERATED);
    changed.map_or(Ok(()), |row| {
        let said = describe::text(row, 2);
        Err(refused(format!("the server does not take rows as they were backed up: {said}")))
    })
}

/// Says whether a statement would take what follows to another database.
fn leaves_the_database(statement: &[u8]) -> bool {
    let begins = |word: &[u8]| {
        statement.get(..word.len()).is_some_and(|begin| begin.eq_ignore_ascii_case(word))
    };
    begins(b"USE ") || begins(b"CREATE DATABASE") || begins(b"CREATE SCHEMA")
}

/// Fails unless every table has the rows that were backed up. Returns how many tables there are.
pub(super) async fn compare_rows(
    session: &mut Conn,
    database: &str,
    content: &MysqlContent,
) -> Result<u64, MysqlError> {
    let counted = describe::count_all(session, database).await?;
    let found: BTreeMap<&str, u64> =
        counted.iter().map(|table| (table.table.as_str(), table.rows)).collect();
    let differing = content.tables.iter().filter_map(|table| {
        let found = found.get(table.table.as_str());
        let shown = found.map_or("is not there".to_owned(), |rows| format!("has {rows}"));
        (found != Some(&table.rows))
            .then(|| format!("{} should have {} rows and {shown}", table.table, table.rows))
    });
    let differing: Vec<String> = differing.take(SHOWN_DIFFERENCES).collect();
    if differing.is_empty() {
        return Ok(content.tables.len() as u64);
    }
    Err(refused(format!("what was loaded is not what was backed up: {}", differing.join(", "))))
}
