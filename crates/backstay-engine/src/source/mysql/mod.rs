//! MySQL and MariaDB databases: tables are dumped by the server's own program in one transaction, everything beside them is
//! described; both are loaded into a new database, whose tables then change their names.

mod apply;
mod capture;
mod connection;
mod describe;
mod error;
mod exchange;
mod import;
mod load;
mod member;
mod moves;
mod names;
mod objects;
mod reach;
mod scan;
mod server;
mod table;
mod table_value;
mod tools;

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use async_trait::async_trait;

use super::connection::Connection;
use super::databases::Databases;
use super::dump::Dump;
use super::{
    Capture, Imported, Probe, Source, SourceError, Table, TableSpec, Target, TargetOptions,
    tunnelled,
};
use crate::cx::Cx;
use crate::swap;

use connection::MysqlConnection as _;

pub use error::MysqlError;
pub use exchange::{Replacement, Swap};

/// A database of a MySQL or MariaDB server, or several of one.
#[derive(Debug, Clone)]
pub struct MysqlSource {
    /// Where it is.
    pub connection: Connection,
    /// Which ones, if it is not just that one.
    pub databases: Option<Databases>,
    /// Whether the connection is to another server than the source's own: nothing that is there may be replaced.
    pub elsewhere: bool,
    /// How it is dumped.
    pub options: MysqlOptions,
}

/// How a database is dumped.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct MysqlOptions {
    /// The directory of the server's programs, instead of those that are found.
    pub programs: Option<PathBuf>,
    /// Whether writers wait while tables are read, instead of reading in a transaction.
    pub lock_tables: bool,
    /// Whether the accounts, with the hashes of their passwords, are taken along; for sealed backups only.
    pub with_accounts: bool,
}

impl MysqlSource {
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
impl Source for MysqlSource {
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

    /// Whoever writes meanwhile finds no table for a moment.
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
        let swap::Replacement::Mysql(loaded) = loaded else { return Ok(String::new()) };
        let asked = loaded.named(database)?;
        let mut session = self.connection.session(cx).await?;
        Ok(cx.run(describe::first_row(&mut session, asked, query)).await??)
    }

    fn swapper(&self) -> Box<dyn swap::Swapper> {
        tunnelled::swapper(&self.connection, exchange::TableSwapper::new(self))
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
        let opened = Box::pin(table::MysqlTable::open(cx, &self.connection, spec));
        Ok(Box::new(cx.run(opened).await??))
    }
}
