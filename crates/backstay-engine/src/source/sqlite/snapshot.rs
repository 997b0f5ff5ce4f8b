//! A consistent copy of a database that an app may be writing to, and proof that the copy is sound.

use std::path::Path;
use std::time::Duration;

use backstay_format::{SqliteContent, TableRows};
use rusqlite::backup::{Backup, StepResult};
use rusqlite::config::DbConfig;
use rusqlite::types::ValueRef;
use rusqlite::{Connection, ErrorCode, OpenFlags};

use super::SourceError;
use crate::cx::Cx;

/// Pages between two looks at the wish to stop: 16 MiB at the usual page size.
const PAGES_PER_STEP: i32 = 4096;
/// How long an app may keep the database to itself before we give way.
const BUSY: Duration = Duration::from_secs(30);

/// Copies a database with SQLite's online backup, checks the copy, and says what it holds.
///
/// The read transaction on the source holds one state for the whole copy: without it every commit of another process
/// would begin the copy anew, and a busy app would never be backed up. In rollback-journal mode writers wait meanwhile.
pub(crate) fn snapshot(
    cx: &Cx,
    database: &Path,
    into: &Path,
) -> Result<SqliteContent, SourceError> {
    let failed = |cause| explain("read", database, cause);
    let source = open(database)?;
    source.execute_batch("BEGIN").map_err(failed)?;
    source.query_row("SELECT count(*) FROM sqlite_schema", [], |_| Ok(())).map_err(failed)?;
    let mut copy =
        Connection::open(into).map_err(|cause| explain("write a copy of", database, cause))?;
    copy_pages(cx, &source, &mut copy).map_err(|error| match error {
        CopyError::Sqlite(cause) => explain("copy", database, cause),
        CopyError::Cancelled(cancelled) => cancelled.into(),
    })?;
    let content = examine(&copy, database)?;
    copy.close().map_err(|(_, cause)| explain("close the copy of", database, cause))?;
    Ok(content)
}

/// Opens a database of an app.
pub(super) fn open(database: &Path) -> Result<Connection, SourceError> {
    let failed = |cause| explain("open", database, cause);
    // Not created if missing, and no URI: names with '?' or '%' are names.
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(database, flags).map_err(failed)?;
    connection.busy_timeout(BUSY).map_err(failed)?;
    // The app's WAL is the app's to checkpoint.
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true).map_err(failed)?;
    Ok(connection)
}

/// Writes a name as SQL does.
pub(super) fn identifier(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

enum CopyError {
    Sqlite(rusqlite::Error),
    Cancelled(crate::cx::Cancelled),
}

fn copy_pages(cx: &Cx, source: &Connection, copy: &mut Connection) -> Result<(), CopyError> {
    let backup = Backup::new(source, copy).map_err(CopyError::Sqlite)?;
    loop {
        cx.check().map_err(CopyError::Cancelled)?;
        // Busy and locked were waited for by the busy handler; the read transaction is ours.
        if backup.step(PAGES_PER_STEP).map_err(CopyError::Sqlite)? == StepResult::Done {
            return Ok(());
        }
    }
}

/// Checks a database that nobody else has open, and says what it holds.
pub(crate) fn examine(copy: &Connection, named: &Path) -> Result<SqliteContent, SourceError> {
    let failed = |cause| explain("check", named, cause);
    let finding: String =
        copy.query_row("PRAGMA integrity_check(1)", [], |row| row.get(0)).map_err(failed)?;
    if finding != "ok" {
        return Err(SourceError::Damaged { database: named.to_owned(), finding });
    }
    let number =
        |pragma: &str| copy.query_row(&format!("PRAGMA {pragma}"), [], |row| row.get::<_, i64>(0));
    Ok(SqliteContent {
        user_version: number("user_version").map_err(failed)?,
        application_id: number("application_id").map_err(failed)?,
        page_bytes: u32::try_from(number("page_size").map_err(failed)?).unwrap_or(0),
        pages: u64::try_from(number("page_count").map_err(failed)?).unwrap_or(0),
        tables: tables(copy).map_err(failed)?,
    })
}

fn tables(copy: &Connection) -> rusqlite::Result<Vec<TableRows>> {
    // Virtual tables are left out: their module may not be here, and their rows stand in shadow tables.
    let mut names = copy.prepare(
        "SELECT name FROM sqlite_schema WHERE type = 'table' AND name NOT LIKE 'sqlite!_%' ESCAPE '!' \
         AND sql NOT LIKE 'CREATE VIRTUAL %' ORDER BY name",
    )?;
    let names: Vec<String> =
        names.query_map([], |row| row.get(0))?.collect::<rusqlite::Result<_>>()?;
    let count = |table: String| {
        let query = format!("SELECT count(*) FROM {}", identifier(&table));
        let rows: i64 = copy.query_row(&query, [], |row| row.get(0))?;
        Ok(TableRows { table, rows: u64::try_from(rows).unwrap_or(0) })
    };
    names.into_iter().map(count).collect()
}

/// Says what SQLite's trouble means for a backup.
pub(crate) fn explain(
    action: &'static str,
    database: &Path,
    cause: rusqlite::Error,
) -> SourceError {
    let code = match &cause {
        rusqlite::Error::SqliteFailure(failure, _) => Some(failure.code),
        _ => None,
    };
    match code {
        Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => {
            SourceError::Damaged { database: database.to_owned(), finding: cause.to_string() }
        }
        Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => {
            let holder = format!("a program that kept it locked for {} s", BUSY.as_secs());
            SourceError::InUse { path: database.to_owned(), holder }
        }
        _ => {
            SourceError::Database { action, database: database.to_owned(), cause: Box::new(cause) }
        }
    }
}

/// Asks a database that nobody uses. Returns the first row as text, its columns divided by `|`.
pub(crate) fn first_row(database: &Path, query: &str) -> Result<String, SourceError> {
    let failed = |cause| explain("run a check on", database, cause);
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(database, flags).map_err(failed)?;
    let mut statement = connection.prepare(query).map_err(failed)?;
    let columns = statement.column_count();
    let mut rows = statement.query([]).map_err(failed)?;
    let Some(row) = rows.next().map_err(failed)? else { return Ok(String::new()) };
    let mut texts = Vec::with_capacity(columns);
    for column in 0..columns {
        texts.push(match row.get_ref(column).map_err(failed)? {
            ValueRef::Null => String::new(),
            ValueRef::Integer(number) => number.to_string(),
            ValueRef::Real(number) => number.to_string(),
            ValueRef::Text(text) | ValueRef::Blob(text) => {
                String::from_utf8_lossy(text).into_owned()
            }
        });
    }
    Ok(texts.join("|"))
}
