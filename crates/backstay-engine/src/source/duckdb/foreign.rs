//! Exports and databases of others: made into a new file, and read from there.

use std::path::Path;

use super::error::{DuckdbError, refused};
use super::session::{On, Tool, literal};
use super::{DuckdbSource, LOAD, SCHEMA, import, statements};
use crate::cx::Cx;
use crate::source::dump::{Dump, Form};
use crate::source::imported::Unpacked;
use crate::source::sqlite::blocking;
use crate::source::{Imported, SourceError};
use crate::spool::Spool;

/// Says what cannot be known of exports: rows in CSV files do not show where they end.
pub(in crate::source) fn warnings<'a>(exports: impl IntoIterator<Item = &'a Path>) -> Vec<String> {
    let has_text = |export: &Path| {
        let files = export.read_dir().into_iter().flatten().flatten();
        files.map(|entry| entry.path()).any(|file| file.extension().is_some_and(|e| e == "csv"))
    };
    let warning = "rows of the export are in CSV files, which do not show whether lines were missing from them already";
    Vec::from_iter(exports.into_iter().any(has_text).then(|| warning.to_owned()))
}

/// Makes a database in the spool directory of what others exported or copied.
pub(super) async fn import(
    cx: &Cx,
    source: &DuckdbSource,
    dump: &Dump,
) -> Result<Box<dyn Imported>, SourceError> {
    let spool = Spool::create(&source.spool)?;
    let path = spool.file("data.db", dump.bytes)?;
    match dump.form {
        Form::DuckdbExport => {
            let tool = source.tool().await?;
            let made = cx.run(Box::pin(load(&tool, &dump.path, &path))).await?;
            made.map_err(|error| dump.refused(error.to_string()))?;
        }
        Form::Duckdb => {
            let (cx, dump, copy) = (cx.clone(), dump.clone(), path.clone());
            blocking(move || dump.copy_with_companions(&cx, &copy)).await?;
        }
        _ => return Err(dump.is_not_for("duckdb", "exports and databases of DuckDB")),
    }
    let source = DuckdbSource { path, ..source.clone() };
    let warnings = warnings([dump.path.as_path()]);
    Ok(Box::new(Unpacked::new(spool, source, warnings)))
}

/// Makes a database of an export.
///
/// `IMPORT DATABASE` does not do: its script names the files where they were when they were written.
pub(super) async fn load(tool: &Tool, export: &Path, into: &Path) -> Result<(), DuckdbError> {
    let unreadable = |finding| refused(format!("it cannot be read: {finding}"));
    let schema = import::script(export, SCHEMA).and_then(|script| statements::split(&script));
    let (schema, script) =
        (schema.map_err(unreadable)?, import::script(export, LOAD).map_err(unreadable)?);
    for statement in &schema {
        statements::check(statement).map_err(unreadable)?;
    }
    statements::check_loads(&schema, &script).map_err(unreadable)?;
    let loads = statements::moved(&script, export).map_err(unreadable)?;
    let temporary = into.parent().unwrap_or(into);
    let mut session = tool.open(On::Making(into, None), temporary).await?;
    let place = literal(&export.to_string_lossy());
    // The scripts come from outside: whatever they say, nothing else can be read or written.
    let closed = format!(
        "SET allowed_directories = [{place}]; SET enable_external_access = false; SET lock_configuration = true"
    );
    session.ask("open the new database", &closed).await?;
    // Exports name some things before what those need.
    let mut waiting = schema;
    while !waiting.is_empty() {
        let (before, mut failed) = (waiting.len(), None);
        let mut left = Vec::new();
        for statement in waiting {
            if let Err(error) = session.ask("make what the export describes", &statement).await {
                failed = failed.or(Some(error));
                left.push(statement);
            }
        }
        match failed {
            Some(error) if left.len() == before => return Err(error),
            _ => waiting = left,
        }
    }
    for load in loads {
        session.ask("load the rows of the export", &load).await?;
    }
    session.ask("write the new database", "CHECKPOINT").await?;
    session.close().await
}
