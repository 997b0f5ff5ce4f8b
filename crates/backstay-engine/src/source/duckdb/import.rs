//! Importing an export into a new file: what a restore does, and what proves a backup.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use backstay_format::{DuckdbContent, DuckdbTable};

use super::error::{DuckdbError, refused};
use super::rows::{columns, count, digest};
use super::schema::{self, Item};
use super::session::{On, Session, Tool, identifier, literal};
use super::statements::{self, Load, PARQUET};
use super::{LOAD, SCHEMA};

/// Imports the export in a folder into a new file, and compares all tables with what was backed up. Returns the new catalog.
pub(super) async fn run(
    tool: &Tool,
    folder: &Path,
    into: &Path,
    content: &DuckdbContent,
) -> Result<BTreeSet<Item>, DuckdbError> {
    let loads = loads(folder).map_err(refused)?;
    let storage = content.storage_version.as_deref();
    let mut session = tool.open(On::Making(into, storage), folder).await?;
    let place = literal(&folder.to_string_lossy());
    // The scripts may come from outside: whatever they say, nothing else can be read or written.
    let closed = format!(
        "SET allowed_directories = [{place}]; SET enable_external_access = false; SET lock_configuration = true"
    );
    session.ask("open the new database", &closed).await?;
    session.ask("import the backup", &format!("IMPORT DATABASE {place}")).await?;
    session.ask("write the new database", "CHECKPOINT").await?;
    session.close().await?;
    // What is in the file counts, and not what that session knew.
    let mut session = tool.open(On::Reading(into), folder).await?;
    let is_same = content.engine == tool.engine();
    for expected in &content.tables {
        let load = loads.iter().find(|load| load.table == expected.table);
        let load = load.ok_or_else(|| refused(format!("{} has no file", expected.table)))?;
        let file = literal(&folder.join(&load.file).to_string_lossy());
        compare(&mut session, expected, is_same.then_some(file)).await?;
    }
    let catalog = schema::read(&mut session).await?;
    session.close().await?;
    Ok(catalog)
}

/// Fails unless a table has the rows that were backed up; what they hash to is the same in one version only, and is of the
/// columns that are in its file.
async fn compare(
    session: &mut Session,
    expected: &DuckdbTable,
    file: Option<String>,
) -> Result<(), DuckdbError> {
    let name = &expected.table;
    let (rows, digest) = match file {
        Some(file) => {
            let columns = columns(session, name, &file).await?;
            let columns: Vec<String> =
                columns.iter().map(|column| identifier(&column.name)).collect();
            digest(session, &columns, name).await?
        }
        None => (count(session, name).await?, expected.digest.clone()),
    };
    if (rows, &digest) == (expected.rows, &expected.digest) {
        return Ok(());
    }
    let values = if rows == expected.rows { ", with other values" } else { "" };
    let expected = expected.rows;
    Err(DuckdbError::NotEqual {
        finding: format!("{name} should have {expected} rows and has {rows}{values}"),
    })
}

/// Says whether a file of this name belongs to an export.
pub(super) fn is_of_an_export(name: &str) -> bool {
    let is_number = |text: &str| text.len() >= 4 && text.bytes().all(|byte| byte.is_ascii_digit());
    [SCHEMA, LOAD].contains(&name) || name.strip_suffix(".parquet").is_some_and(is_number)
}

/// Fails if the scripts in a folder hold more than an export does.
pub(super) fn check_scripts(folder: &Path) -> Result<(), String> {
    statements::split(&script(folder, SCHEMA)?)?
        .iter()
        .try_for_each(|one| statements::check(one))?;
    loads(folder).map(drop)
}

/// Returns which table is read from which file of an export.
fn loads(folder: &Path) -> Result<Vec<Load>, String> {
    let loads = statements::loads(&script(folder, LOAD)?)?;
    let is_there = |load: &Load| {
        is_of_an_export(&load.file) && load.format == PARQUET && folder.join(&load.file).is_file()
    };
    match loads.iter().find(|load| !is_there(load)) {
        Some(load) => Err(format!("its {LOAD} reads {}, which it does not hold", load.file)),
        None => Ok(loads),
    }
}

/// Reads a script of an export.
pub(super) fn script(folder: &Path, name: &str) -> Result<String, String> {
    let read = fs::read_to_string(folder.join(name));
    read.map_err(|error| format!("its {name} cannot be read: {error}"))
}
