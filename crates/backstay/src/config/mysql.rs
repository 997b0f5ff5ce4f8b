//! `[sources.NAME]` of kind `mysql`: a database of a MySQL or MariaDB server.

use std::path::PathBuf;

use backstay_engine::source::mysql::MysqlOptions;
use backstay_engine::source::{Connection, Databases, TlsMode};

use super::Env;
use super::raw::{Faults, RawSource};
use super::server::{self, Dialect};

const DIALECT: Dialect = Dialect {
    schemes: &[("mysql", TlsMode::Prefer), ("mariadb", TlsMode::Prefer)],
    port: 3306,
    usual: None,
    database: "mysql",
    parameter,
    parameters: "ssl-mode, ssl-ca, ssl-cert and ssl-key",
};

/// A MySQL or MariaDB database or several, checked.
#[derive(Debug, Clone)]
pub(crate) struct MysqlConfig {
    pub(crate) connection: Connection,
    pub(crate) databases: Option<Databases>,
    /// Whether the connection is to another server than the source's own.
    pub(crate) elsewhere: bool,
    pub(crate) options: MysqlOptions,
}

impl MysqlConfig {
    /// Makes a configuration of what [`MysqlConfig::location`] returned.
    pub(crate) fn of_location(location: &str) -> Result<Self, String> {
        let (url, databases) = server::of_located(location)?;
        let (connection, _) = server::of_url(url, &DIALECT)?;
        Ok(Self { connection, databases, elsewhere: false, options: MysqlOptions::default() })
    }

    /// Returns where the database is, without any secret.
    pub(crate) fn location(&self) -> String {
        server::located(self.connection.url("mysql"), self.databases.as_ref())
    }

    /// Aims at another server. Returns the database of the URL.
    pub(crate) fn aim(&mut self, url: &str, env: Env<'_>) -> Result<String, String> {
        let (connection, _) = server::of_reference(url, &DIALECT, env)?;
        self.connection = connection;
        self.elsewhere = true;
        Ok(self.connection.database.clone())
    }
}

/// Takes a parameter of a URL as the server's own programs name it.
fn parameter(
    connection: &mut Connection,
    _passfile: &mut Option<PathBuf>,
    name: &str,
    value: &str,
) -> Result<bool, String> {
    let tls = &mut connection.tls;
    match name {
        "ssl-mode" => {
            tls.mode = match value.to_ascii_uppercase().as_str() {
                "DISABLED" => TlsMode::Disable,
                "PREFERRED" => TlsMode::Prefer,
                "REQUIRED" => TlsMode::Require,
                "VERIFY_CA" => TlsMode::VerifyCa,
                "VERIFY_IDENTITY" => TlsMode::VerifyFull,
                _ => {
                    return Err(format!(
                        "has ssl-mode `{value}`, expected `DISABLED`, `PREFERRED`, `REQUIRED`, `VERIFY_CA` or `VERIFY_IDENTITY`"
                    ));
                }
            };
        }
        "ssl-ca" => tls.ca_file = Some(PathBuf::from(value)),
        "ssl-cert" => tls.certificate_file = Some(PathBuf::from(value)),
        "ssl-key" => tls.key_file = Some(PathBuf::from(value)),
        _ => return Ok(false),
    }
    Ok(true)
}

/// Refuses what would be ignored: what only this kind has.
pub(super) fn refuse_fields(raw: &RawSource, faults: &mut Faults<'_>) {
    if let Some(lock_tables) = &raw.lock_tables {
        faults.add("lock_tables", lock_tables.span(), "only a source of kind `mysql` has it");
    }
}

pub(super) fn check(raw: &RawSource, env: Env<'_>, faults: &mut Faults<'_>) -> Option<MysqlConfig> {
    let (connection, _) = server::check(raw, &DIALECT, env, faults)?;
    if let (Some(raw_ssh), TlsMode::VerifyFull) = (&raw.ssh, connection.tls.mode) {
        faults.add(
            "ssh",
            raw_ssh.span(),
            "the programs of MySQL and MariaDB cannot check a host's name through a tunnel; set tls = \"verify-ca\", which checks its certificate",
        );
    }
    let programs = match &raw.programs {
        Some(programs) => Some(PathBuf::from(faults.text("programs", programs, env)?)),
        None => None,
    };
    let lock_tables = raw.lock_tables.as_ref().is_some_and(|lock| *lock.get_ref());
    let options = MysqlOptions { programs, lock_tables, with_accounts: false };
    let databases = server::check_databases(raw, env, faults)?;
    Some(MysqlConfig { connection, databases, elsewhere: false, options })
}
