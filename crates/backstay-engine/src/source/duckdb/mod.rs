//! DuckDB databases: exported by DuckDB's own command line as Parquet, proven, imported beside and swapped in.

mod apply;
mod capture;
mod error;
mod foreign;
mod import;
mod rows;
mod schema;
mod session;
mod statements;
mod table;
mod table_columns;

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use async_trait::async_trait;

use super::dump::Dump;
use super::one_file::{self, existing};
use super::{
    Capture, Imported, Probe, Source, SourceError, Table, TableSpec, Target, TargetOptions,
};
use crate::cx::Cx;
use crate::replace::PathSwapper;
use crate::spool::Spool;
use crate::swap::{Replacement, Swapper};
use session::{On, Tool};

pub use error::DuckdbError;
pub(super) use foreign::warnings as export_warnings;

/// The one part of such a backup.
const PART: &str = "export.tar";
/// What makes everything but rows, and what reads the rows.
const SCHEMA: &str = "schema.sql";
const LOAD: &str = "load.sql";
/// What DuckDB keeps beside a database; never left beside another one.
const COMPANIONS: [&str; 3] = [WAL, ".wal.checkpoint", ".wal.recovery"];
/// Its log.
const WAL: &str = ".wal";

/// One DuckDB database.
#[derive(Debug, Clone)]
pub struct DuckdbSource {
    /// The database's file.
    pub path: PathBuf,
    /// The directory of the command line, if not the one on the path.
    pub programs: Option<PathBuf>,
    /// Where the export is kept while it is read.
    pub spool: PathBuf,
}

/// Makes a database of what another program exported, with the command line of this directory.
pub(super) async fn load_export(
    programs: Option<&Path>,
    export: &Path,
    into: &Path,
) -> Result<(), DuckdbError> {
    foreign::load(&Tool::find(programs).await?, export, into).await
}

impl DuckdbSource {
    async fn tool(&self) -> Result<Tool, DuckdbError> {
        Tool::find(self.programs.as_deref()).await
    }
}

#[async_trait]
impl Source for DuckdbSource {
    async fn probe(&self, cx: &Cx) -> Result<Probe, SourceError> {
        let size_bytes = existing(&self.path)?.len();
        let tool = self.tool().await?;
        let temporary = Spool::create(&self.spool)?;
        let look = async {
            let mut session = tool.open(On::Reading(&self.path), temporary.path()).await?;
            let catalog = schema::read(&mut session).await;
            catalog.map_err(|error| tool.explain(&self.path, error))
        };
        let items = cx.run(look).await??.iter().filter(|item| item.is_table()).count() as u64;
        Ok(Probe {
            engine: Some(tool.engine()),
            size_bytes,
            items: Some(items),
            ..Probe::default()
        })
    }

    async fn capture(&self, cx: &Cx) -> Result<Box<dyn Capture>, SourceError> {
        let tool = self.tool().await?;
        Ok(Box::new(capture::ExportCapture::begin(cx, self, tool).await?))
    }

    fn target(&self, options: TargetOptions) -> Box<dyn Target> {
        Box::new(apply::ImportTarget::new(self, &options))
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
        cx: &Cx,
        loaded: &Replacement,
        _database: Option<&str>,
        query: &str,
    ) -> Result<String, SourceError> {
        let Replacement::Paths(paths) = loaded else { return Ok(String::new()) };
        let tool = self.tool().await?;
        Ok(cx.run(tool.first_row(&paths.loaded(), query)).await??)
    }

    async fn import(
        &self,
        cx: &Cx,
        dump: &Dump,
        _tag: &str,
    ) -> Result<Box<dyn Imported>, SourceError> {
        foreign::import(cx, self, dump).await
    }

    fn swapper(&self) -> Box<dyn Swapper> {
        Box::new(PathSwapper { own: self.path.clone() })
    }

    async fn table(&self, cx: &Cx, spec: &TableSpec) -> Result<Box<dyn Table>, SourceError> {
        existing(&self.path)?;
        let tool = self.tool().await?;
        Ok(Box::new(table::DuckdbTable::open(cx, self, tool, spec).await?))
    }
}
