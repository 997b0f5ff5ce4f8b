//! SQLite databases: taken whole and consistent while the app writes, put back beside and swapped in.

mod apply;
mod import;
pub(crate) mod snapshot;
mod table;
mod table_columns;
mod table_value;

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use async_trait::async_trait;
use backstay_format::{Content, MediaType, SqliteContent};

use super::dump::Dump;
use super::one_file::{self, existing};
use super::{
    Capture, Imported, Probe, Source, SourceError, Table, TableSpec, Target, TargetOptions,
    fixed_part,
};
use crate::cx::Cx;
use crate::part::{CHUNK_BYTES, CaptureReport, PartError, PartReader, PartWriter, part_pipe};
use crate::replace::PathSwapper;
use crate::spool::Spool;
use crate::swap::{Replacement, Swapper};

/// The one part of such a backup.
const PART: &str = "database.db";
/// What SQLite keeps beside a database; never copied (T6), and never left beside another one.
pub(crate) const COMPANIONS: [&str; 3] = ["-wal", "-shm", "-journal"];
/// The first bytes of every SQLite database that is not empty.
const MAGIC: &[u8; 16] = b"SQLite format 3\0";

/// Returns whether bytes at the beginning of a file are those of a SQLite database.
pub(crate) fn is_database(head: &[u8]) -> bool {
    head.starts_with(MAGIC)
}

/// Returns the paths of what SQLite may keep beside a database.
pub(crate) fn companions(database: &Path) -> Vec<PathBuf> {
    COMPANIONS.iter().map(|suffix| one_file::companion(database, suffix)).collect()
}

/// One SQLite database.
#[derive(Debug, Clone)]
pub struct SqliteSource {
    /// The database's file.
    pub path: PathBuf,
    /// Where the snapshot is kept while it is read.
    pub spool: PathBuf,
}

#[async_trait]
impl Source for SqliteSource {
    async fn probe(&self, _cx: &Cx) -> Result<Probe, SourceError> {
        let meta = existing(&self.path)?;
        let mut head = [0; 16];
        let file =
            File::open(&self.path).map_err(|cause| SourceError::io("open", &self.path, cause))?;
        let read = file
            .take(16)
            .read(&mut head)
            .map_err(|cause| SourceError::io("read", &self.path, cause))?;
        if read > 0 && !is_database(&head) {
            let expected = "a SQLite database: it begins with other bytes (an encrypted one is backed up as a file)";
            return Err(SourceError::WrongKind { path: self.path.clone(), expected });
        }
        Ok(Probe { engine: Some(engine()), size_bytes: meta.len(), ..Probe::default() })
    }

    async fn capture(&self, cx: &Cx) -> Result<Box<dyn Capture>, SourceError> {
        let meta = existing(&self.path)?;
        let spool = Spool::create(&self.spool)?;
        let wal = companions(&self.path)
            .first()
            .and_then(|wal| wal.metadata().ok())
            .map_or(0, |wal| wal.len());
        let copy = spool.file("snapshot.db", meta.len() + wal)?;
        let (cx, path) = (cx.clone(), self.path.clone());
        let into = copy.clone();
        let content = blocking(move || snapshot::snapshot(&cx, &path, &into)).await?;
        Ok(Box::new(SqliteCapture { copy: Some(copy), content, _spool: spool }))
    }

    fn target(&self, options: TargetOptions) -> Box<dyn Target> {
        Box::new(apply::SqliteTarget::new(&self.path, &options))
    }

    fn check_free(&self, replacement: &Replacement) -> Result<(), SourceError> {
        let Replacement::Paths(paths) = replacement else { return Ok(()) };
        one_file::check_free(&paths.target)
    }

    fn scratch(&self, folder: &Path, _tag: &str) -> Option<OsString> {
        Some(folder.join("data").into())
    }

    async fn ask(
        &self,
        _cx: &Cx,
        loaded: &Replacement,
        _database: Option<&str>,
        query: &str,
    ) -> Result<String, SourceError> {
        let Replacement::Paths(paths) = loaded else { return Ok(String::new()) };
        let (path, query) = (paths.loaded(), query.to_owned());
        blocking(move || snapshot::first_row(&path, &query)).await
    }

    async fn import(
        &self,
        cx: &Cx,
        dump: &Dump,
        _tag: &str,
    ) -> Result<Box<dyn Imported>, SourceError> {
        import::import(cx, self, dump).await
    }

    fn swapper(&self) -> Box<dyn Swapper> {
        Box::new(PathSwapper { own: self.path.clone() })
    }

    async fn table(&self, _cx: &Cx, spec: &TableSpec) -> Result<Box<dyn Table>, SourceError> {
        existing(&self.path)?;
        let (path, spool, spec) = (self.path.clone(), self.spool.clone(), spec.clone());
        blocking(move || {
            Ok(Box::new(table::SqliteTable::open(&path, &spool, &spec)?) as Box<dyn Table>)
        })
        .await
    }
}

#[derive(Debug)]
struct SqliteCapture {
    copy: Option<PathBuf>,
    content: SqliteContent,
    _spool: Spool,
}

#[async_trait]
impl Capture for SqliteCapture {
    async fn next_part(&mut self, _cx: &Cx) -> Result<Option<PartReader>, SourceError> {
        let Some(copy) = self.copy.take() else { return Ok(None) };
        let bytes = copy.metadata().map_err(|cause| SourceError::io("read", &copy, cause))?.len();
        let (writer, reader) = part_pipe(fixed_part(PART, MediaType::Sqlite, Some(bytes)));
        // Ends by itself when the reader goes away.
        drop(tokio::task::spawn_blocking(move || send_file(&copy, writer)));
        Ok(Some(reader))
    }

    async fn finish(self: Box<Self>, _cx: &Cx) -> Result<CaptureReport, SourceError> {
        Ok(CaptureReport {
            engine: Some(engine()),
            content: Some(Content::Sqlite(self.content)),
            ..CaptureReport::default()
        })
    }
}

/// Sends a file as a part.
pub(super) fn send_file(path: &Path, mut writer: PartWriter) {
    let copied = File::open(path).and_then(|file| {
        let mut file = io::BufReader::with_capacity(CHUNK_BYTES, file);
        io::copy(&mut file, &mut writer)
    });
    match copied {
        Ok(_) => writer.finish(),
        Err(cause) => {
            let part = writer.part_name();
            let cause = Box::new(SourceError::io("read", path, cause));
            writer.fail(PartError::Failed { part, cause });
        }
    }
}

fn engine() -> String {
    format!("SQLite {}", rusqlite::version())
}

/// Runs work that blocks.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, SourceError> + Send + 'static,
) -> Result<T, SourceError> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|died| {
        Err(SourceError::Io {
            action: "finish the work on",
            path: PathBuf::new(),
            cause: io::Error::other(died),
        })
    })
}
