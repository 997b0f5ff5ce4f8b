//! `[sources.NAME]` of kind `redis`: a Redis or Valkey server.

use std::path::PathBuf;

use backstay_engine::source::redis::DEFAULT_USER;
use backstay_engine::source::{Connection, TlsMode};

use super::Env;
use super::raw::{Faults, RawSource};
use super::server::{self, Dialect};

const DIALECT: Dialect = Dialect {
    schemes: &[
        ("redis", TlsMode::Disable),
        ("rediss", TlsMode::VerifyFull),
        ("valkey", TlsMode::Disable),
        ("valkeys", TlsMode::VerifyFull),
    ],
    port: 6379,
    usual: Some((DEFAULT_USER, "0")),
    database: "0",
    parameter,
    parameters: "none",
};

/// A Redis or Valkey server, checked.
#[derive(Debug, Clone)]
pub(crate) struct RedisConfig {
    pub(crate) connection: Connection,
    /// Whether the connection is to another server than the source's own.
    pub(crate) elsewhere: bool,
}

impl RedisConfig {
    /// Makes a configuration of what [`RedisConfig::location`] returned.
    pub(crate) fn of_location(location: &str) -> Result<Self, String> {
        let (connection, _) = server::of_url(location, &DIALECT)?;
        Ok(Self { connection, elsewhere: false })
    }

    /// Returns where the server is, without any secret.
    pub(crate) fn location(&self) -> String {
        self.connection.url(match self.connection.tls.mode {
            TlsMode::Disable => "redis",
            _ => "rediss",
        })
    }

    /// Aims at another server. Returns the database of the URL.
    pub(crate) fn aim(&mut self, url: &str, env: Env<'_>) -> Result<String, String> {
        let (connection, _) = server::of_reference(url, &DIALECT, env)?;
        self.connection = connection;
        self.elsewhere = true;
        Ok(self.connection.database.clone())
    }
}

/// No parameter of a URL is common to the clients of these servers.
fn parameter(
    _connection: &mut Connection,
    _passfile: &mut Option<PathBuf>,
    _name: &str,
    _value: &str,
) -> Result<bool, String> {
    Ok(false)
}

pub(super) fn check(raw: &RawSource, env: Env<'_>, faults: &mut Faults<'_>) -> Option<RedisConfig> {
    let (connection, _) = server::check(raw, &DIALECT, env, faults)?;
    if let Some(mode) = raw.tls.as_ref().filter(|_| connection.tls.mode == TlsMode::Prefer) {
        let problem = "found `prefer`, expected `disable`, `require`, `verify-ca` or `verify-full`: a port of these servers is either sealed or not";
        faults.add("tls", mode.span(), problem);
    }
    if connection.database.parse::<u64>().is_err() {
        let span = raw.database.as_ref().or(raw.url.as_ref()).unwrap_or(&raw.kind).span();
        let problem = format!("found the database `{}`, expected a number", connection.database);
        faults.add("database", span, problem);
    }
    Some(RedisConfig { connection, elsewhere: false })
}
