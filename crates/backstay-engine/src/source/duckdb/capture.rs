//! Exporting a database, and proving that the export holds what the database does.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use async_trait::async_trait;
use backstay_format::{Content, DuckdbContent, DuckdbTable, MediaType};

use super::error::{DuckdbError, refused};
use super::rows::{Column, columns, digest};
use super::session::{On, Session, Tool, identifier, literal};
use super::statements::{self, Load, PARQUET};
use super::{DuckdbSource, LOAD, PART, SCHEMA, WAL, import, schema};
use crate::cx::Cx;
use crate::part::{CHUNK_BYTES, CaptureReport, PartError, PartReader, PartWriter, part_pipe};
use crate::source::one_file::{companion, existing};
use crate::source::sqlite::blocking;
use crate::source::{Capture, SourceError, fixed_part};
use crate::spool::{self, Spool, check_space};

/// An export in the spool directory.
pub(super) struct ExportCapture {
    /// The files of the archive, in their order, until it is sent.
    files: Option<Vec<PathBuf>>,
    content: DuckdbContent,
    warnings: Vec<String>,
    _spool: Spool,
}

impl ExportCapture {
    /// Exports a database, and proves the export.
    pub(super) async fn begin(
        cx: &Cx,
        source: &DuckdbSource,
        tool: Tool,
    ) -> Result<Self, SourceError> {
        let meta = existing(&source.path)?;
        let log = companion(&source.path, WAL).metadata().map_or(0, |log| log.len());
        let spool = Spool::create(&source.spool)?;
        // The export, and the database that it is imported into for its proof.
        check_space(spool.path(), (meta.len() + log).saturating_mul(2))?;
        let exported = cx.run(Box::pin(export(&tool, &source.path, spool.path()))).await?;
        let Exported { files, content } =
            exported.map_err(|error| tool.explain(&source.path, error))?;
        let left_out = |statement: &String| {
            format!(
                "cannot be made without files that are elsewhere, and does not come back by itself: {statement}"
            )
        };
        let warnings = content.left_out.iter().map(left_out).collect();
        Ok(Self { files: Some(files), content, warnings, _spool: spool })
    }
}

struct Exported {
    /// In the order of the archive.
    files: Vec<PathBuf>,
    content: DuckdbContent,
}

/// Exports into a folder of the spool directory, in one view of the database, and proves the export by importing it.
async fn export(tool: &Tool, database: &Path, spool: &Path) -> Result<Exported, DuckdbError> {
    // Two folders: what DuckDB calls a table's file may be what we call another's.
    let (theirs, folder) = (spool.join("exported"), spool.join("export"));
    fs::create_dir(&folder)
        .map_err(|error| refused(format!("cannot make {}: {error}", folder.display())))?;
    let mut session = tool.open(On::Reading(database), spool).await?;
    begin(&mut session, &theirs).await?;
    let unreadable = |finding| refused(format!("the export cannot be read: {finding}"));
    let exported = import::script(&theirs, LOAD).and_then(|script| statements::loads(&script));
    let (mut tables, mut loads) = (Vec::new(), Vec::new());
    let mut files = vec![folder.join(SCHEMA), folder.join(LOAD)];
    for (index, load) in exported.map_err(unreadable)?.iter().enumerate() {
        let name = format!("{:04}.parquet", index + 1);
        tables.push(write_table(&mut session, load, &theirs, &folder.join(&name)).await?);
        files.push(folder.join(&name));
        let format = PARQUET.to_owned();
        loads.push(Load { table: load.table.clone(), file: name, format });
    }
    let catalog = schema::read(&mut session).await?;
    let script = import::script(&theirs, SCHEMA).map_err(unreadable)?;
    let statements = schema::statements_of(&mut session, &catalog, &script).await?;
    let storage_version = schema::storage_version(&mut session).await?;
    session.close().await?;
    let schema = schema::order(tool, (&folder, &loads), statements).await?;
    let load: String = loads.iter().map(statements::loading).collect();
    for (file, text) in files.iter().zip([schema.script(), load]) {
        let written = fs::write(file, text);
        written.map_err(|error| refused(format!("cannot write {}: {error}", file.display())))?;
    }
    let left_out = schema.left_out;
    let content = DuckdbContent { engine: tool.engine(), storage_version, tables, left_out };
    let proof = spool.join("proof.db");
    let made = import::run(tool, &folder, &proof, &content).await?;
    schema::compare(&catalog, &made, &content)?;
    fs::remove_file(&proof)
        .map_err(|error| refused(format!("cannot remove {}: {error}", proof.display())))?;
    Ok(Exported { files, content })
}

/// Exports as Parquet; where a value is none that DuckDB writes so (an interval before zero), as text, for the sake of its scripts.
async fn begin(session: &mut Session, folder: &Path) -> Result<(), DuckdbError> {
    const ACTION: &str = "export the database";
    let export = |options: &str| {
        format!("EXPORT DATABASE {} ({options})", literal(&folder.to_string_lossy()))
    };
    session.ask("begin to read", "BEGIN").await?;
    let exported = session.ask(ACTION, &export("FORMAT parquet, COMPRESSION zstd")).await;
    let Err(DuckdbError::Statement { finding, .. }) = exported else { return exported.map(drop) };
    tracing::debug!(finding, "exported as text first");
    session.ask(ACTION, "ROLLBACK; BEGIN").await?;
    spool::remove(folder).map_err(|error| refused(error.to_string()))?;
    session.ask(ACTION, &export("FORMAT csv")).await.map(drop)
}

/// Moves a table's file to where it is wanted, or writes it where the export's is none that holds its values. Returns what the table
/// holds.
async fn write_table(
    session: &mut Session,
    load: &Load,
    theirs: &Path,
    file: &Path,
) -> Result<DuckdbTable, DuckdbError> {
    // The rest of the path is ours.
    let exported = theirs.join(Path::new(&load.file).file_name().unwrap_or_default());
    let table = &load.table;
    let is_parquet = load.format == PARQUET;
    let source = literal(&exported.to_string_lossy());
    let source = match is_parquet {
        true => source,
        false => format!("read_csv({source}, header = true, all_varchar = true, delim = ',')"),
    };
    let columns = columns(session, table, &source).await?;
    let moved = if is_parquet && !columns.iter().any(Column::must_be_text) {
        fs::rename(&exported, file)
    } else {
        let written = |column: &Column| match column.must_be_text() {
            true => format!("CAST({0} AS VARCHAR) AS {0}", identifier(&column.name)),
            false => identifier(&column.name),
        };
        let written: Vec<String> = columns.iter().map(written).collect();
        let (written, to) = (written.join(", "), literal(&file.to_string_lossy()));
        let copy = format!(
            "COPY (SELECT {written} FROM {table}) TO {to} (FORMAT parquet, COMPRESSION zstd)"
        );
        session.ask("export the database", &copy).await?;
        fs::remove_file(&exported)
    };
    moved.map_err(|error| refused(format!("cannot put {} in order: {error}", theirs.display())))?;
    let columns: Vec<String> = columns.iter().map(|column| identifier(&column.name)).collect();
    let (rows, digest) = digest(session, &columns, table).await?;
    Ok(DuckdbTable { table: table.clone(), rows, digest })
}

#[async_trait]
impl Capture for ExportCapture {
    async fn next_part(&mut self, _cx: &Cx) -> Result<Option<PartReader>, SourceError> {
        let Some(files) = self.files.take() else { return Ok(None) };
        let sizes = blocking({
            let files = files.clone();
            move || files.iter().map(|file| Ok(existing(file)?.len())).sum()
        });
        let bytes: u64 = sizes.await?;
        let (writer, reader) = part_pipe(fixed_part(PART, MediaType::DuckdbExport, Some(bytes)));
        // Ends by itself when the reader goes away.
        drop(tokio::task::spawn_blocking(move || send(&files, writer)));
        Ok(Some(reader))
    }

    async fn finish(self: Box<Self>, _cx: &Cx) -> Result<CaptureReport, SourceError> {
        Ok(CaptureReport {
            engine: Some(self.content.engine.clone()),
            content: Some(Content::Duckdb(Box::new(self.content))),
            warnings: self.warnings,
            ..CaptureReport::default()
        })
    }
}

/// Sends files as an archive.
fn send(files: &[PathBuf], mut writer: PartWriter) {
    match archive(files, &mut writer) {
        Ok(()) => writer.finish(),
        Err((path, cause)) => {
            let part = writer.part_name();
            let cause = Box::new(SourceError::io("read", path, cause));
            writer.fail(PartError::Failed { part, cause });
        }
    }
}

fn archive(files: &[PathBuf], writer: &mut PartWriter) -> Result<(), (PathBuf, io::Error)> {
    let mut archive = tar::Builder::new(io::BufWriter::with_capacity(CHUNK_BYTES, writer));
    archive.mode(tar::HeaderMode::Deterministic);
    for path in files {
        let name = path.file_name().unwrap_or_default();
        let appended = File::open(path).and_then(|mut file| archive.append_file(name, &mut file));
        appended.map_err(|cause| (path.clone(), cause))?;
    }
    let last = files.last().cloned().unwrap_or_default();
    let ended =
        archive.into_inner().and_then(|out| out.into_inner().map_err(|error| error.into_error()));
    ended.map(|_| ()).map_err(|cause| (last, cause))
}
