//! Exporting a database, and proving that the export holds what the database does.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use async_trait::async_trait;
use backstay_format::{Content, DuckdbContent, DuckdbTable, MediaType};

use super::error::{DuckdbError, refused};
use super::session::{On, Row, Session, Tool, identifier, literal, number, text};
use super::statements::{self, Load, PARQUET};
use super::{DuckdbSource, LOAD, PART, SCHEMA, schema};
use crate::cx::Cx;
use crate::part::{CHUNK_BYTES, CaptureReport, PartError, PartReader, PartWriter, part_pipe};
use crate::source::one_file::existing;
use crate::source::sqlite::blocking;
use crate::source::{Capture, SourceError, fixed_part};
use crate::spool::{self, Spool, check_space};

/// Types whose values Parquet files of DuckDB hold as something smaller, alone or inside others.
const AS_TEXT: [&str; 3] = ["HUGEINT", "INTERVAL", "TIME WITH TIME ZONE"];
/// A type that is none of them and has the name of one in its own.
const NOT_AS_TEXT: &str = "TIMESTAMP WITH TIME ZONE";

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
        let spool = Spool::create(&source.spool)?;
        check_space(spool.path(), meta.len())?;
        let exported = cx.run(export(&tool, &source.path, spool.path())).await?;
        let Exported { tables, schema } =
            exported.map_err(|error| tool.explain(&source.path, error))?;
        let io = |cause| SourceError::io("write the export to", spool.path(), cause);
        let mut files = vec![spool.path().join(SCHEMA), spool.path().join(LOAD)];
        fs::write(&files[0], schema.script()).map_err(io)?;
        let mut load = String::new();
        let mut proven = Vec::new();
        for (index, (table, file)) in tables.into_iter().enumerate() {
            let name = format!("{:04}.parquet", index + 1);
            let (table_name, file_name) = (table.table.clone(), name.clone());
            let loading = Load { table: table_name, file: file_name, format: PARQUET.to_owned() };
            load.push_str(&statements::loading(&loading));
            files.push(spool.path().join(name));
            fs::rename(file, &files[index + 2]).map_err(io)?;
            proven.push(table);
        }
        fs::write(&files[1], load).map_err(io)?;
        let left_out = |view: &String| {
            format!(
                "a view cannot be made where its files are not, and does not come back by itself: {view}"
            )
        };
        Ok(Self {
            files: Some(files),
            warnings: schema.left_out.iter().map(left_out).collect(),
            content: DuckdbContent {
                engine: tool.engine(),
                tables: proven,
                left_out: schema.left_out,
            },
            _spool: spool,
        })
    }
}

struct Exported {
    tables: Vec<(DuckdbTable, PathBuf)>,
    schema: schema::Schema,
}

/// Exports into a folder of the spool directory, in one view of the database.
async fn export(tool: &Tool, database: &Path, spool: &Path) -> Result<Exported, DuckdbError> {
    let folder = spool.join("export");
    let mut session = tool.open(On::Reading(database), spool).await?;
    begin(&mut session, &folder).await?;
    let read = |name: &str| {
        fs::read_to_string(folder.join(name))
            .map_err(|error| refused(format!("the export's {name} cannot be read: {error}")))
    };
    let loads = statements::loads(&read(LOAD)?)
        .map_err(|finding| refused(format!("the export's {LOAD} cannot be read: {finding}")))?;
    let mut tables = Vec::new();
    for load in &loads {
        tables.push(prove(&mut session, load, &folder).await?);
    }
    let catalog = schema::read(&mut session).await?;
    let script = read(SCHEMA)?;
    let statements = schema::statements_of(&mut session, &catalog, &script).await?;
    session.close().await?;
    let files: Vec<(&str, &Path)> =
        tables.iter().map(|(table, file)| (table.table.as_str(), file.as_path())).collect();
    let schema = schema::prove(tool, spool, statements, &catalog, &files).await?;
    Ok(Exported { tables, schema })
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

/// Proves that a file holds the rows of a table; writes it again where the export's is none that can.
async fn prove(
    session: &mut Session,
    load: &Load,
    folder: &Path,
) -> Result<(DuckdbTable, PathBuf), DuckdbError> {
    // The rest of the path is ours.
    let exported = folder.join(Path::new(&load.file).file_name().unwrap_or_default());
    let file = exported.with_extension(PARQUET);
    let (table, path) = (&load.table, literal(&file.to_string_lossy()));
    let columns = if load.format == PARQUET {
        columns(session, table, &path).await?
    } else {
        let text = literal(&exported.to_string_lossy());
        let text = format!("read_csv({text}, header = true, all_varchar = true, delim = ',')");
        columns(session, table, &text).await?
    };
    if load.format != PARQUET || columns.iter().any(Column::must_be_text) {
        write(session, table, &columns, &path).await?;
    }
    let read: Vec<String> = columns.iter().map(|column| identifier(&column.name)).collect();
    let (rows, sum) = digest(session, &read, table).await?;
    let cast = |column: &Column| format!("CAST({} AS {})", identifier(&column.name), column.kind);
    let cast: Vec<String> = columns.iter().map(cast).collect();
    match digest(session, &cast, &path).await {
        Ok(found) if found == (rows, sum.clone()) => {
            Ok((DuckdbTable { table: table.clone(), rows, digest: sum }, file))
        }
        Err(error @ (DuckdbError::Program(_) | DuckdbError::Cancelled(_))) => Err(error),
        _ => Err(DuckdbError::NotEqual {
            finding: format!(
                "the rows of {table} are others when its file is read back; columns of unions and unusual types are known for it"
            ),
        }),
    }
}

/// Writes the rows of a table into a file, which is a literal.
async fn write(
    session: &mut Session,
    table: &str,
    columns: &[Column],
    file: &str,
) -> Result<(), DuckdbError> {
    let written = |column: &Column| match column.must_be_text() {
        true => format!("CAST({0} AS VARCHAR) AS {0}", identifier(&column.name)),
        false => identifier(&column.name),
    };
    let written: Vec<String> = columns.iter().map(written).collect();
    let copy = format!(
        "COPY (SELECT {} FROM {table}) TO {file} (FORMAT parquet, COMPRESSION zstd)",
        written.join(", ")
    );
    session.ask("export the database", &copy).await.map(drop)
}

/// A column of a table, as it is exported.
pub(super) struct Column {
    pub(super) name: String,
    kind: String,
}

impl Column {
    fn must_be_text(&self) -> bool {
        let kind = self.kind.replace(NOT_AS_TEXT, "");
        AS_TEXT.iter().any(|word| kind.contains(word))
    }
}

/// Returns the columns that are in a file, with their types in the table: generated ones are not in it.
pub(super) async fn columns(
    session: &mut Session,
    table: &str,
    file: &str,
) -> Result<Vec<Column>, DuckdbError> {
    const ACTION: &str = "read the columns of a table";
    let column =
        |row: &Row| Column { name: text(row, "column_name"), kind: text(row, "column_type") };
    let in_table = session.ask(ACTION, &format!("DESCRIBE {table}")).await?;
    let in_file = session.ask(ACTION, &format!("DESCRIBE SELECT * FROM {file}")).await?;
    let in_file: Vec<String> = in_file.iter().map(|row| text(row, "column_name")).collect();
    let columns = in_table.iter().map(column).filter(|column| in_file.contains(&column.name));
    Ok(columns.collect())
}

/// Returns how many rows there are, and a number that all of them together make.
pub(super) async fn digest(
    session: &mut Session,
    columns: &[String],
    of: &str,
) -> Result<(u64, String), DuckdbError> {
    let query = format!(
        "SELECT count(*) AS rows, CAST(coalesce(sum(hash(row({}))), 0) AS VARCHAR) AS digest FROM {of}",
        columns.join(", ")
    );
    let rows = session.ask("compare the rows of a table", &query).await?;
    let row = rows.first().ok_or_else(|| refused("a count has no answer"))?;
    Ok((number(row, "rows"), text(row, "digest")))
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
