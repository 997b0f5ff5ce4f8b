//! `[sources.NAME]` of kind `postgres`: how its server is reached.

use std::num::NonZero;
use std::path::{Path, PathBuf};
use std::time::Duration;

use backstay_engine::source::postgres::PostgresOptions;
use backstay_engine::source::{Connection, Databases, TlsMode};
use jiff::SignedDuration;
use toml::Spanned;

use super::raw::{Faults, RawSource};
use super::server::{self, Dialect};
use super::{Env, passfile};

const DIALECT: Dialect = Dialect {
    schemes: &[("postgres", TlsMode::Prefer), ("postgresql", TlsMode::Prefer)],
    port: 5432,
    usual: None,
    database: "postgres",
    parameter,
    parameters: "host, passfile, sslmode, sslrootcert, sslcert and sslkey",
};
/// More sessions than this make no server faster.
const MAX_RESTORE_JOBS: u32 = 64;
/// An app must not wait longer behind a dump for a table than this.
const DEFAULT_LOCK_TIMEOUT: Duration = Duration::from_secs(30);

/// A PostgreSQL database or several, checked.
#[derive(Debug, Clone)]
pub(crate) struct PostgresConfig {
    pub(crate) connection: Connection,
    pub(crate) databases: Option<Databases>,
    /// Whether the connection is to another server than the source's own.
    pub(crate) elsewhere: bool,
    pub(crate) options: PostgresOptions,
    /// What a person should know though it is legal.
    pub(crate) warning: Option<String>,
}

impl PostgresConfig {
    /// Makes a configuration of what [`PostgresConfig::location`] returned.
    pub(crate) fn of_location(location: &str, env: Env<'_>) -> Result<Self, String> {
        let (url, databases) = server::of_located(location)?;
        let options = PostgresOptions::new(DEFAULT_LOCK_TIMEOUT);
        let (connection, passfile) = server::of_url(url, &DIALECT)?;
        let mut config = Self { connection, databases, elsewhere: false, options, warning: None };
        config.find_password(passfile.as_deref(), env)?;
        Ok(config)
    }

    /// Returns where the databases are, without any secret.
    pub(crate) fn location(&self) -> String {
        server::located(self.connection.url("postgres"), self.databases.as_ref())
    }

    /// Aims at another server. Returns the database of the URL.
    pub(crate) fn aim(&mut self, url: &str, env: Env<'_>) -> Result<String, String> {
        let (connection, passfile) = server::of_reference(url, &DIALECT, env)?;
        self.connection = connection;
        self.elsewhere = true;
        self.find_password(passfile.as_deref(), env)?;
        Ok(self.connection.database.clone())
    }

    /// Looks for a password where none is given. A file that was not asked for is only warned of.
    fn find_password(&mut self, passfile: Option<&Path>, env: Env<'_>) -> Result<(), String> {
        if let Some(file) = passfile {
            let Connection { host, port, database, user, .. } = &self.connection;
            let missing = format!("has no line for {host}:{port}:{database}:{user}");
            let found = passfile::password(file, &self.connection)?;
            self.connection.password =
                Some(found.ok_or_else(|| format!("{} {missing}", file.display()))?);
        } else if self.connection.password.is_none()
            && let Some(file) = passfile::usual(env)
        {
            match passfile::password(&file, &self.connection) {
                Ok(found) => self.connection.password = found,
                Err(problem) => self.warning = Some(format!("no password is taken: {problem}")),
            }
        }
        Ok(())
    }
}

/// Refuses what would be ignored: what only this kind has.
pub(super) fn refuse_fields(raw: &RawSource, faults: &mut Faults<'_>) {
    let spans = [
        ("passfile", raw.passfile.as_ref().map(Spanned::span)),
        ("lock_timeout", raw.lock_timeout.as_ref().map(Spanned::span)),
        ("statement_timeout", raw.statement_timeout.as_ref().map(Spanned::span)),
        ("migrations", raw.migrations.as_ref().map(Spanned::span)),
        ("restore_jobs", raw.restore_jobs.as_ref().map(Spanned::span)),
    ];
    for (name, span) in spans {
        if let Some(span) = span {
            faults.add(name, span, "only a source of kind `postgres` has it");
        }
    }
}

/// Takes a parameter of a URL as libpq does.
fn parameter(
    connection: &mut Connection,
    passfile: &mut Option<PathBuf>,
    name: &str,
    value: &str,
) -> Result<bool, String> {
    let tls = &mut connection.tls;
    match name {
        "host" => value.clone_into(&mut connection.host),
        "sslmode" => {
            tls.mode = TlsMode::parse(value).ok_or_else(|| {
                format!("has sslmode `{value}`, expected `disable`, `prefer`, `require`, `verify-ca` or `verify-full`")
            })?;
        }
        "sslrootcert" => tls.ca_file = Some(PathBuf::from(value)),
        "sslcert" => tls.certificate_file = Some(PathBuf::from(value)),
        "sslkey" => tls.key_file = Some(PathBuf::from(value)),
        "passfile" => *passfile = Some(PathBuf::from(value)),
        _ => return Ok(false),
    }
    Ok(true)
}

pub(super) fn check(
    raw: &RawSource,
    env: Env<'_>,
    faults: &mut Faults<'_>,
) -> Option<PostgresConfig> {
    let (connection, of_url) = server::check(raw, &DIALECT, env, faults)?;
    let passfile = check_passfile(raw, connection.password.is_some(), of_url, env, faults);
    let lock_timeout = match &raw.lock_timeout {
        Some(text) => timeout("lock_timeout", text, faults)?,
        None => DEFAULT_LOCK_TIMEOUT,
    };
    let mut options = PostgresOptions::new(lock_timeout);
    if let Some(text) = &raw.statement_timeout {
        options.statement_timeout = Some(timeout("statement_timeout", text, faults)?);
    }
    if let Some(query) = &raw.migrations {
        options.migrations = Some(faults.text("migrations", query, env)?);
    }
    if let Some(programs) = &raw.programs {
        options.programs = Some(PathBuf::from(faults.text("programs", programs, env)?));
    }
    if let Some(jobs) = &raw.restore_jobs {
        match NonZero::new(*jobs.get_ref()).filter(|jobs| jobs.get() <= MAX_RESTORE_JOBS) {
            Some(jobs) => options.load_jobs = jobs,
            None => {
                let problem = format!("found {}, expected 1 to {MAX_RESTORE_JOBS}", jobs.get_ref());
                faults.add("restore_jobs", jobs.span(), problem);
            }
        }
    }
    let databases = server::check_databases(raw, env, faults)?;
    let mut config =
        PostgresConfig { connection, databases, elsewhere: false, options, warning: None };
    if let Err(problem) = config.find_password(passfile.as_deref(), env) {
        let place =
            raw.passfile.as_ref().or(raw.url.as_ref()).map_or(raw.kind.span(), Spanned::span);
        faults.add("passfile", place, problem);
        return None;
    }
    Some(config)
}

/// Returns the file of passwords that was asked for, in a field of its own or in the URL.
fn check_passfile(
    raw: &RawSource,
    has_password: bool,
    of_url: Option<PathBuf>,
    env: Env<'_>,
    faults: &mut Faults<'_>,
) -> Option<PathBuf> {
    let Some(raw_file) = &raw.passfile else {
        // As libpq has it, a password that is given counts more.
        return of_url.filter(|_| !has_password);
    };
    if has_password || of_url.is_some() {
        faults.add("passfile", raw_file.span(), "there is a password already; give one of both");
        return None;
    }
    faults.absolute_path("passfile", raw_file, env)
}

fn timeout(name: &str, text: &Spanned<String>, faults: &mut Faults<'_>) -> Option<Duration> {
    let parsed = text.get_ref().parse::<SignedDuration>().ok();
    let timeout = parsed.and_then(|d| Duration::try_from(d).ok()).filter(|d| !d.is_zero());
    if timeout.is_none() {
        let found = text.get_ref();
        faults.add(name, text.span(), format!("found `{found}`, expected a time such as \"30s\""));
    }
    timeout
}
