//! Redis and Valkey servers: what they send a new replica is kept; keys are loaded into free databases, which then change
//! their numbers.

mod apply;
mod capture;
mod connection;
mod describe;
mod error;
mod exchange;
mod import;
mod load;
mod mark;
mod rdb;
#[cfg(test)]
mod rdb_tests;
mod tally;
mod value;
mod wire;

use std::ffi::OsString;
use std::path::Path;

use async_trait::async_trait;

use super::connection::Connection;
use super::dump::Dump;
use super::{Capture, Imported, Probe, Source, SourceError, Target, TargetOptions, tunnelled};
use crate::cx::Cx;
use crate::swap;

use connection::RedisConnection as _;

pub use connection::DEFAULT_USER;
pub use error::RedisError;
pub use exchange::{Replacement, Swap};
pub(super) use import::saved_at;

/// A Redis or Valkey server, with all of its databases.
#[derive(Debug, Clone)]
pub struct RedisSource {
    /// Where it is. The database is the one that checks are asked of.
    pub connection: Connection,
    /// Whether the connection is to another server than the source's own: nothing that is there may be replaced.
    pub elsewhere: bool,
    /// Who restores: of two sources of a server, each removes only what its own restores left. One word.
    pub owner: String,
    /// Whether the users, with the hashes of their passwords, are taken along; for sealed backups only.
    pub with_users: bool,
}

#[async_trait]
impl Source for RedisSource {
    async fn probe(&self, cx: &Cx) -> Result<Probe, SourceError> {
        Ok(cx.run(capture::probe(cx, self)).await??)
    }

    async fn capture(&self, cx: &Cx) -> Result<Box<dyn Capture>, SourceError> {
        let begun = Box::pin(capture::ServerCapture::begin(cx, self));
        Ok(tunnelled::capture(&self.connection, cx.run(begun).await??))
    }

    fn target(&self, options: TargetOptions) -> Box<dyn Target> {
        tunnelled::target(&self.connection, apply::ServerTarget::new(self, options))
    }

    /// Whoever is connected goes on with what has come.
    fn check_free(&self, _replacement: &swap::Replacement) -> Result<(), SourceError> {
        Ok(())
    }

    fn scratch(&self, _folder: &Path, _tag: &str) -> Option<OsString> {
        None
    }

    async fn ask(
        &self,
        cx: &Cx,
        loaded: &swap::Replacement,
        database: Option<&str>,
        query: &str,
    ) -> Result<String, SourceError> {
        let swap::Replacement::Redis(loaded) = loaded else { return Ok(String::new()) };
        let asked = database.unwrap_or(&self.connection.database);
        let place = asked.parse().ok().and_then(|number| loaded.place_of(number));
        let place =
            place.ok_or_else(|| error::refused(format!("the backup has no database {asked}")))?;
        let mut session = self.connection.session(cx).await?;
        Ok(cx.run(exchange::ask(&mut session, place, query)).await??)
    }

    async fn import(
        &self,
        _cx: &Cx,
        dump: &Dump,
        _tag: &str,
    ) -> Result<Box<dyn Imported>, SourceError> {
        Ok(Box::new(import::ImportedRdb::new(dump)?))
    }

    fn swapper(&self) -> Box<dyn swap::Swapper> {
        tunnelled::swapper(&self.connection, exchange::DatabaseSwapper::new(self))
    }
}
