//! `[sources.NAME]` of kind `postgres`: how its server is reached.

use std::num::NonZero;
use std::path::{Path, PathBuf};
use std::time::Duration;

use backstay_engine::source::postgres::PostgresOptions;
use backstay_engine::source::tunnel::Tunnel;
use backstay_engine::source::{Connection, Databases, Tls, TlsMode};
use jiff::SignedDuration;
use secrecy::SecretString;
use toml::Spanned;
use url::Url;

use super::raw::{Faults, RawSource, expand};
use super::ssh;
use super::storage::resolve_file;
use super::{Env, passfile};

const DEFAULT_PORT: u16 = 5432;
/// Between where a server is and which of its databases are meant.
const PATTERNS: &str = ", databases like ";
/// A database that every server has.
const DEFAULT_DATABASE: &str = "postgres";
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
        let (url, patterns) = match location.split_once(PATTERNS) {
            Some((url, patterns)) => (url, patterns.split(", ").map(str::to_owned).collect()),
            None => (location, Vec::new()),
        };
        let databases = match patterns.is_empty() {
            true => None,
            false => Some(Databases::new(patterns).map_err(|error| error.to_string())?),
        };
        let options = PostgresOptions::new(DEFAULT_LOCK_TIMEOUT);
        let (connection, passfile) = of_url(url)?;
        let mut config = Self { connection, databases, elsewhere: false, options, warning: None };
        config.find_password(passfile.as_deref(), env)?;
        Ok(config)
    }

    /// Returns where the databases are, without any secret.
    pub(crate) fn location(&self) -> String {
        let url = self.connection.url("postgres");
        match &self.databases {
            None => url,
            Some(databases) => format!("{url}{PATTERNS}{databases}"),
        }
    }

    /// Aims at another server. Returns the database of the URL.
    ///
    /// The URL may be a reference, `${NAME}` or `file:/path`: what stands on a command line, everybody on the machine can
    /// read.
    pub(crate) fn aim(&mut self, url: &str, env: Env<'_>) -> Result<String, String> {
        let is_reference = url.starts_with("file:") || url.contains("${");
        let resolved = resolve_file(&expand(url, env)?)?;
        let (connection, passfile) = of_url(&resolved)?;
        if connection.password.is_some() && !is_reference {
            return Err("holds a password, which everybody on this machine can read on a command line; give --to 'file:/path' or --to '${NAME}' with the URL in the file or variable".to_owned());
        }
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

/// The fields that only this kind has.
fn own_fields(raw: &RawSource) -> [(&'static str, Option<&Spanned<String>>); 14] {
    [
        ("url", raw.url.as_ref()),
        ("host", raw.host.as_ref()),
        ("user", raw.user.as_ref()),
        ("password", raw.password.as_ref()),
        ("passfile", raw.passfile.as_ref()),
        ("database", raw.database.as_ref()),
        ("tls", raw.tls.as_ref()),
        ("tls_ca_file", raw.tls_ca_file.as_ref()),
        ("tls_certificate_file", raw.tls_certificate_file.as_ref()),
        ("tls_key_file", raw.tls_key_file.as_ref()),
        ("lock_timeout", raw.lock_timeout.as_ref()),
        ("statement_timeout", raw.statement_timeout.as_ref()),
        ("migrations", raw.migrations.as_ref()),
        ("programs", raw.programs.as_ref()),
    ]
}

/// Refuses what would be ignored.
pub(super) fn refuse_fields(raw: &RawSource, faults: &mut Faults<'_>) {
    for (name, value) in own_fields(raw) {
        if let Some(value) = value {
            faults.add(name, value.span(), "only a source of kind `postgres` has it");
        }
    }
    let not_text = [
        ("port", raw.port.as_ref().map(Spanned::span)),
        ("restore_jobs", raw.restore_jobs.as_ref().map(Spanned::span)),
        ("databases", raw.databases.first().map(Spanned::span)),
    ];
    for (name, span) in not_text {
        if let Some(span) = span {
            faults.add(name, span, "only a source of kind `postgres` has it");
        }
    }
    if let Some(ssh) = &raw.ssh {
        faults.add("ssh", ssh.span(), "only a source of kind `postgres` has it");
    }
}

pub(super) fn check(
    raw: &RawSource,
    env: Env<'_>,
    faults: &mut Faults<'_>,
) -> Option<PostgresConfig> {
    if let Some(path) = &raw.path {
        faults.add("path", path.span(), "a source of kind `postgres` has `url` or `host` instead");
    }
    let (mut connection, of_url) = match &raw.url {
        Some(raw_url) => {
            let url = text_or_file("url", raw_url, env, faults)?;
            match of_url(&url) {
                Ok(found) => found,
                Err(problem) => {
                    faults.add("url", raw_url.span(), problem);
                    return None;
                }
            }
        }
        None => (separate_fields(raw, env, faults)?, None),
    };
    if raw.url.is_some() {
        for (name, value) in
            own_fields(raw).iter().filter(|(name, _)| ["host", "user", "database"].contains(name))
        {
            if let Some(value) = value {
                faults.add(name, value.span(), "stands in `url` already; give one of both");
            }
        }
    }
    if let Some(password) = &raw.password {
        connection.password =
            Some(SecretString::from(text_or_file("password", password, env, faults)?));
    }
    let passfile = check_passfile(raw, connection.password.is_some(), of_url, env, faults);
    check_tls(raw, &mut connection.tls, env, faults);
    if let Some(raw_ssh) = &raw.ssh {
        let bastion = ssh::check(raw_ssh, &connection.host, env, faults)?;
        connection.tunnel = Some(Tunnel::new(bastion, &connection.host, connection.port));
    }
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
    let databases = check_databases(raw, env, faults)?;
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

fn check_databases(
    raw: &RawSource,
    env: Env<'_>,
    faults: &mut Faults<'_>,
) -> Option<Option<Databases>> {
    let Some(first) = raw.databases.first() else { return Some(None) };
    let patterns: Option<Vec<String>> =
        raw.databases.iter().map(|text| faults.text("databases", text, env)).collect();
    match Databases::new(patterns?) {
        Ok(databases) => Some(Some(databases)),
        Err(error) => {
            faults.add("databases", first.span(), error.to_string());
            None
        }
    }
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
    let file = PathBuf::from(faults.text("passfile", raw_file, env)?);
    if file.is_absolute() {
        return Some(file);
    }
    let problem = format!("found `{}`, expected an absolute path", file.display());
    faults.add("passfile", raw_file.span(), problem);
    None
}

fn separate_fields(raw: &RawSource, env: Env<'_>, faults: &mut Faults<'_>) -> Option<Connection> {
    let mut needed = |name: &str, value: &Option<Spanned<String>>| match value {
        Some(value) => faults.text(name, value, env),
        None => {
            let problem = "is missing: give `url`, or `host`, `user` and `database`";
            faults.add(name, raw.kind.span(), problem);
            None
        }
    };
    let (host, user, database) = (
        needed("host", &raw.host),
        needed("user", &raw.user),
        match &raw.database {
            // Only to look around from.
            None if !raw.databases.is_empty() => Some(DEFAULT_DATABASE.to_owned()),
            database => needed("database", database),
        },
    );
    let port = match &raw.port {
        None => DEFAULT_PORT,
        Some(port) => match u16::try_from(*port.get_ref()) {
            Ok(number) if number > 0 => number,
            _ => {
                let problem = format!("found {}, expected a port, 1 to 65535", port.get_ref());
                faults.add("port", port.span(), problem);
                return None;
            }
        },
    };
    Some(Connection {
        host: host?,
        port,
        user: user?,
        password: None,
        database: database?,
        tls: Tls::default(),
        tunnel: None,
    })
}

fn check_tls(raw: &RawSource, tls: &mut Tls, env: Env<'_>, faults: &mut Faults<'_>) {
    if let Some(word) = &raw.tls {
        match TlsMode::parse(word.get_ref()) {
            Some(mode) => tls.mode = mode,
            None => faults.add(
                "tls",
                word.span(),
                format!(
                    "found `{}`, expected `disable`, `prefer`, `require`, `verify-ca` or `verify-full`",
                    word.get_ref()
                ),
            ),
        }
    }
    let mut file = |name: &str, raw: &Option<Spanned<String>>, file: &mut Option<PathBuf>| {
        if let Some(raw) = raw
            && let Some(path) = faults.text(name, raw, env)
        {
            *file = Some(PathBuf::from(path));
        }
    };
    file("tls_ca_file", &raw.tls_ca_file, &mut tls.ca_file);
    file("tls_certificate_file", &raw.tls_certificate_file, &mut tls.certificate_file);
    file("tls_key_file", &raw.tls_key_file, &mut tls.key_file);
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

/// Reads a value that may be a reference to the environment, or to a file of its own.
fn text_or_file(
    name: &str,
    value: &Spanned<String>,
    env: Env<'_>,
    faults: &mut Faults<'_>,
) -> Option<String> {
    let text = faults.text(name, value, env)?;
    match resolve_file(&text) {
        Ok(secret) => Some(secret),
        Err(problem) => {
            faults.add(name, value.span(), problem);
            None
        }
    }
}

/// Reads `postgres://user:password@host:port/database?sslmode=…`. Returns the file of passwords that it names, too.
fn of_url(text: &str) -> Result<(Connection, Option<PathBuf>), String> {
    // Never repeat what was found: a password may stand in it.
    let url = Url::parse(text).map_err(|error| {
        format!("is no URL ({error}); expected postgres://user:password@host:5432/database, special characters as %XX")
    })?;
    if !["postgres", "postgresql"].contains(&url.scheme()) {
        return Err(format!("begins with `{}:`, expected `postgres:`", url.scheme()));
    }
    let decoded = |what: &str, text: &str| {
        let bytes = percent_encoding::percent_decode_str(text);
        bytes.decode_utf8().map(String::from).map_err(|_| format!("has a {what} that is no UTF-8"))
    };
    let database = decoded("database", url.path().strip_prefix('/').unwrap_or_default())?;
    let user = decoded("user", url.username())?;
    if database.is_empty() || user.is_empty() {
        let missing = if user.is_empty() { "user" } else { "database" };
        return Err(format!("names no {missing}; expected postgres://user@host:5432/database"));
    }
    let password = url.password().map(|text| decoded("password", text)).transpose()?;
    let host = url.host_str().unwrap_or_default();
    let host = decoded("host", host.trim_start_matches('[').trim_end_matches(']'))?;
    let mut connection = Connection {
        host,
        port: url.port().unwrap_or(DEFAULT_PORT),
        user,
        password: password.map(SecretString::from),
        database,
        tls: Tls::default(),
        tunnel: None,
    };
    let mut passfile = None;
    for (name, value) in url.query_pairs() {
        let tls = &mut connection.tls;
        match name.as_ref() {
            "host" => connection.host = value.into_owned(),
            "sslmode" => {
                tls.mode = TlsMode::parse(&value).ok_or_else(|| {
                    format!("has sslmode `{value}`, expected `disable`, `prefer`, `require`, `verify-ca` or `verify-full`")
                })?;
            }
            "sslrootcert" => tls.ca_file = Some(PathBuf::from(value.as_ref())),
            "sslcert" => tls.certificate_file = Some(PathBuf::from(value.as_ref())),
            "passfile" => passfile = Some(PathBuf::from(value.as_ref())),
            "sslkey" => tls.key_file = Some(PathBuf::from(value.as_ref())),
            other => {
                return Err(format!(
                    "has the parameter `{other}`, which is not known; known are host, passfile, sslmode, sslrootcert, sslcert and sslkey"
                ));
            }
        }
    }
    if connection.host.is_empty() {
        return Err("names no host; expected postgres://user@host:5432/database".to_owned());
    }
    Ok((connection, passfile))
}
