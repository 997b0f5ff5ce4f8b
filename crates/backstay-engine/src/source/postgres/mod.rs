//! PostgreSQL databases: dumped by the server's own programs in one snapshot with all that belongs to them, loaded into a
//! new database and swapped in by name.

mod apply;
mod archive;
mod capture;
mod connection;
mod describe;
mod error;
mod exchange;
mod globals;
mod names;
mod program;
mod tls;
mod tools;

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;

use async_trait::async_trait;

use super::{Capture, Probe, Source, SourceError, Target, TargetOptions};
use crate::cx::Cx;
use crate::swap;

pub use connection::{Connection, Tls, TlsMode};
pub use error::{Cause, PostgresError};
pub use exchange::{Replacement, Swap};

/// One PostgreSQL database.
#[derive(Debug, Clone)]
pub struct PostgresSource {
    /// Where it is.
    pub connection: Connection,
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
        }
    }
}

#[async_trait]
impl Source for PostgresSource {
    async fn probe(&self, cx: &Cx) -> Result<Probe, SourceError> {
        Ok(cx.run(capture::open(cx, self)).await??.probe)
    }

    async fn capture(&self, cx: &Cx) -> Result<Box<dyn Capture>, SourceError> {
        Ok(Box::new(cx.run(capture::DatabaseCapture::begin(cx, self)).await??))
    }

    fn target(&self, options: TargetOptions) -> Box<dyn Target> {
        Box::new(apply::DatabaseTarget::new(self, options))
    }

    /// Whoever is connected is disconnected by the swap.
    fn check_free(&self, _replacement: &swap::Replacement) -> Result<(), SourceError> {
        Ok(())
    }

    fn scratch(&self, _folder: &Path, tag: &str) -> OsString {
        format!("backstay_drill_{tag}").into()
    }

    async fn ask(
        &self,
        cx: &Cx,
        loaded: &swap::Replacement,
        query: &str,
    ) -> Result<String, SourceError> {
        let swap::Replacement::Database(database) = loaded else { return Ok(String::new()) };
        let client = self.connection.with_database(&database.loaded).connect(cx).await?;
        Ok(cx.run(describe::first_row(&client, query)).await??)
    }

    fn swapper(&self) -> Box<dyn swap::Swapper> {
        Box::new(exchange::DatabaseSwapper::new(self.connection.clone(), self.options.lock_timeout))
    }
}
