//! PostgreSQL databases: dumped by the server's own programs in one snapshot with all that belongs to them, loaded into a
//! new database and swapped in by name.

mod apply;
mod archive;
mod archive_files;
mod archive_rows;
mod capture;
mod connection;
mod describe;
mod error;
mod exchange;
mod globals;
mod import;
mod in_place;
mod lexer;
mod load;
mod look;
mod member;
mod names;
mod script;
mod selection;
mod server;
mod spared;
mod statements;
mod table;
mod table_value;
mod tools;
mod watch;

use std::ffi::OsString;
use std::num::NonZero;
use std::path::{Path, PathBuf};
use std::time::Duration;

use async_trait::async_trait;

use connection::PostgresConnection as _;

use super::connection::Connection;
use super::databases::Databases;
use super::dump::Dump;
use super::{
    Capture, Imported, Probe, Source, SourceError, Table, TableSpec, Target, TargetOptions,
    tunnelled,
};
use crate::cx::Cx;
use crate::swap;

pub(super) use archive::made_at as dumped_at;

pub use error::PostgresError;
pub use exchange::{Replacement, Swap};
pub use in_place::InPlace;
pub use spared::OwnDatabase;

/// A PostgreSQL database, or several of one server.
#[derive(Debug, Clone)]
pub struct PostgresSource {
    /// Where it is; of several, the one that is asked for the others.
    pub connection: Connection,
    /// Which ones, if it is not just that one.
    pub databases: Option<Databases>,
    /// Whether the connection is to another server than the source's own: nothing that is there may be replaced.
    pub elsewhere: bool,
    /// How it is dumped.
    pub options: PostgresOptions,
}

/// How a database is dumped and restored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PostgresOptions {
    /// How long the dump waits for a lock, and how long others may wait for one of the dump's.
    pub lock_timeout: Duration,
    /// How long each of our own questions may take.
    pub statement_timeout: Option<Duration>,
    /// A query whose first column lists the app's applied migrations, in their order.
    pub migrations: Option<String>,
    /// The directory of the server's programs, instead of those that are found.
    pub programs: Option<PathBuf>,
    /// Whether the hashes of the roles' passwords are taken along; for sealed backups only.
    pub with_passwords: bool,
    /// How many tables are loaded at once; more than one needs room for the dump in the spool directory.
    pub load_jobs: NonZero<u32>,
    /// The spool directory.
    pub spool: PathBuf,
    /// That of this program's own catalog, if it is on a server.
    pub spared: Option<OwnDatabase>,
}

impl PostgresOptions {
    /// Returns the usual options.
    pub fn new(lock_timeout: Duration) -> Self {
        Self {
            lock_timeout,
            statement_timeout: None,
            migrations: None,
            programs: None,
            with_passwords: false,
            load_jobs: NonZero::<u32>::MIN,
            spool: PathBuf::new(),
            spared: None,
        }
    }
}

impl PostgresSource {
    /// Returns the source of one of its databases.
    fn of_database(&self, name: &str) -> Self {
        let connection = self.connection.with_database(name);
        Self { connection, databases: None, ..self.clone() }
    }

    /// Says whether a database of this name belongs to the source.
    fn is_meant(&self, name: &str) -> bool {
        match &self.databases {
            None => name == self.connection.database,
            Some(databases) => databases.matches(name),
        }
    }

    /// Returns what tells the source from others of the same server, whatever is chosen of it.
    fn identity(&self) -> &str {
        match &self.databases {
            None => &self.connection.database,
            Some(databases) => databases.declared(),
        }
    }

    /// Returns what the source is of, for a person.
    fn label(&self) -> String {
        match &self.databases {
            None => self.connection.database.clone(),
            Some(databases) => databases.to_string(),
        }
    }
}

#[async_trait]
impl Source for PostgresSource {
    async fn probe(&self, cx: &Cx) -> Result<Probe, SourceError> {
        match &self.databases {
            None => Ok(cx.run(capture::probe(cx, self)).await??),
            Some(databases) => cx.run(server::probe(cx, self, databases)).await?,
        }
    }

    async fn capture(&self, cx: &Cx) -> Result<Box<dyn Capture>, SourceError> {
        let connection = &self.connection;
        Ok(match &self.databases {
            None => {
                let begun = Box::pin(capture::DatabaseCapture::begin(cx, self, None));
                tunnelled::capture(connection, cx.run(begun).await??)
            }
            Some(databases) => {
                let begun = server::begin(cx, self, databases);
                tunnelled::capture(connection, cx.run(begun).await??)
            }
        })
    }

    fn target(&self, options: TargetOptions) -> Box<dyn Target> {
        tunnelled::target(&self.connection, apply::DatabaseTarget::new(self, options))
    }

    /// Whoever is connected is disconnected by the swap.
    fn check_free(&self, _replacement: &swap::Replacement) -> Result<(), SourceError> {
        Ok(())
    }

    fn scratch(&self, _folder: &Path, tag: &str) -> Option<OsString> {
        Some(format!("backstay_drill_{tag}").into())
    }

    async fn ask(
        &self,
        cx: &Cx,
        loaded: &swap::Replacement,
        database: Option<&str>,
        query: &str,
    ) -> Result<String, SourceError> {
        let swap::Replacement::Databases(loaded) = loaded else { return Ok(String::new()) };
        let client = self.connection.with_database(loaded.named(database)?).connect(cx).await?;
        Ok(cx.run(describe::first_row(&client, query)).await??)
    }

    fn swapper(&self) -> Box<dyn swap::Swapper> {
        tunnelled::swapper(&self.connection, exchange::DatabaseSwapper::new(self))
    }

    async fn import(
        &self,
        cx: &Cx,
        dump: &Dump,
        tag: &str,
    ) -> Result<Box<dyn Imported>, SourceError> {
        Box::pin(import::import(cx, self, dump, tag)).await
    }

    async fn table(&self, cx: &Cx, spec: &TableSpec) -> Result<Box<dyn Table>, SourceError> {
        if let Some(databases) = &self.databases {
            let finding = format!(
                "a table is of one database, and this source is of {databases}; make a source of that database"
            );
            return Err(SourceError::Table { finding });
        }
        let opened = Box::pin(table::PostgresTable::open(cx, &self.connection, spec));
        Ok(Box::new(cx.run(opened).await??))
    }
}
