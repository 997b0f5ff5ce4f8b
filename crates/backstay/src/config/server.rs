//! `[sources.NAME]` of a database server: how it is reached.

use std::path::PathBuf;

use backstay_engine::source::tunnel::Tunnel;
use backstay_engine::source::{Connection, Databases, Tls, TlsMode};
use secrecy::SecretString;
use toml::Spanned;
use url::Url;

use super::raw::{Faults, RawSource, expand};
use super::storage::resolve_file;
use super::{Env, ssh};

/// Takes a parameter of a URL. Returns whether it is known.
type Parameter = fn(&mut Connection, &mut Option<PathBuf>, &str, &str) -> Result<bool, String>;

/// What differs between kinds of servers.
pub(super) struct Dialect {
    /// With what each says of sealing; the first is the one to write.
    pub(super) schemes: &'static [(&'static str, TlsMode)],
    pub(super) port: u16,
    /// The user and the database where none is named, if they need not be.
    pub(super) usual: Option<(&'static str, &'static str)>,
    /// A database that every server has.
    pub(super) database: &'static str,
    pub(super) parameter: Parameter,
    /// The known ones, for a person.
    pub(super) parameters: &'static str,
}

impl Dialect {
    fn scheme(&self) -> &'static str {
        self.schemes[0].0
    }
}

/// The fields that say where a server is and how it is reached.
fn fields(raw: &RawSource) -> [(&'static str, Option<&Spanned<String>>); 8] {
    [
        ("url", raw.url.as_ref()),
        ("host", raw.host.as_ref()),
        ("user", raw.user.as_ref()),
        ("password", raw.password.as_ref()),
        ("database", raw.database.as_ref()),
        ("tls", raw.tls.as_ref()),
        ("tls_ca_file", raw.tls_ca_file.as_ref()),
        ("tls_certificate_file", raw.tls_certificate_file.as_ref()),
    ]
}

/// Refuses what would be ignored: no server is asked.
pub(super) fn refuse_fields(raw: &RawSource, faults: &mut Faults<'_>) {
    const PROBLEM: &str = "only a source of kind `postgres`, `mysql` or `redis` has it";
    let more = [("tls_key_file", raw.tls_key_file.as_ref())];
    for (name, value) in fields(raw).into_iter().chain(more) {
        if let Some(value) = value {
            faults.add(name, value.span(), PROBLEM);
        }
    }
    if let Some(port) = &raw.port {
        faults.add("port", port.span(), PROBLEM);
    }
    if let Some(ssh) = &raw.ssh {
        faults.add("ssh", ssh.span(), PROBLEM);
    }
}

/// Refuses what would be ignored: none of the server's programs is run.
pub(super) fn refuse_programs(raw: &RawSource, faults: &mut Faults<'_>) {
    if let Some(programs) = &raw.programs {
        let problem = "only a source of kind `postgres`, `mysql` or `duckdb` has it";
        faults.add("programs", programs.span(), problem);
    }
}

/// Between where a server is and which of its databases are meant.
const PATTERNS: &str = ", databases like ";

/// Says where databases are, without any secret.
pub(super) fn located(url: String, databases: Option<&Databases>) -> String {
    match databases {
        None => url,
        Some(databases) => format!("{url}{PATTERNS}{databases}"),
    }
}

/// Divides what [`located`] returned.
pub(super) fn of_located(location: &str) -> Result<(&str, Option<Databases>), String> {
    let Some((url, patterns)) = location.split_once(PATTERNS) else { return Ok((location, None)) };
    let databases = Databases::new(patterns.split(", ").map(str::to_owned));
    Ok((url, Some(databases.map_err(|error| error.to_string())?)))
}

/// Reads which databases of a server are meant, if it is not just one.
pub(super) fn check_databases(
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

/// Refuses what would be ignored: there is nothing to choose from.
pub(super) fn refuse_databases(raw: &RawSource, faults: &mut Faults<'_>) {
    if let Some(first) = raw.databases.first() {
        let problem = "only a source of kind `postgres` or `mysql` has it";
        faults.add("databases", first.span(), problem);
    }
}

/// Reads how a server is reached, and the file of passwords that its URL names.
pub(super) fn check(
    raw: &RawSource,
    dialect: &Dialect,
    env: Env<'_>,
    faults: &mut Faults<'_>,
) -> Option<(Connection, Option<PathBuf>)> {
    if let Some(path) = &raw.path {
        let kind = raw.kind.get_ref();
        let problem = format!("a source of kind `{kind}` has `url` or `host` instead");
        faults.add("path", path.span(), problem);
    }
    let (mut connection, passfile) = match &raw.url {
        Some(raw_url) => {
            let url = text_or_file("url", raw_url, env, faults)?;
            match of_url(&url, dialect) {
                Ok(found) => found,
                Err(problem) => {
                    faults.add("url", raw_url.span(), problem);
                    return None;
                }
            }
        }
        None => (separate_fields(raw, dialect, env, faults)?, None),
    };
    if raw.url.is_some() {
        for (name, value) in
            fields(raw).iter().filter(|(name, _)| ["host", "user", "database"].contains(name))
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
    check_tls(raw, &mut connection.tls, env, faults);
    if let Some(raw_ssh) = &raw.ssh {
        let bastion = ssh::check(raw_ssh, &connection.host, env, faults)?;
        connection.tunnel = Some(Tunnel::new(bastion, &connection.host, connection.port));
    }
    Some((connection, passfile))
}

fn separate_fields(
    raw: &RawSource,
    dialect: &Dialect,
    env: Env<'_>,
    faults: &mut Faults<'_>,
) -> Option<Connection> {
    let mut needed = |name: &str, value: &Option<Spanned<String>>| match value {
        Some(value) => faults.text(name, value, env),
        None => {
            let problem = "is missing: give `url`, or `host`, `user` and `database`";
            faults.add(name, raw.kind.span(), problem);
            None
        }
    };
    let (usual_user, usual_database) = dialect.usual.unzip();
    let (host, user, database) = (
        needed("host", &raw.host),
        match (&raw.user, usual_user) {
            (None, Some(usual)) => Some(usual.to_owned()),
            (user, _) => needed("user", user),
        },
        match (&raw.database, usual_database) {
            (None, Some(usual)) => Some(usual.to_owned()),
            // Only to look around from.
            (None, _) if !raw.databases.is_empty() => Some(dialect.database.to_owned()),
            (database, _) => needed("database", database),
        },
    );
    let port = match &raw.port {
        None => dialect.port,
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
        tls: Tls { mode: dialect.schemes[0].1, ..Tls::default() },
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

/// Reads a value that may be a reference to the environment, or to a file of its own.
pub(super) fn text_or_file(
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

/// Reads `scheme://user:password@host:port/database?parameter=…`. Returns the file of passwords that it names, too.
pub(super) fn of_url(
    text: &str,
    dialect: &Dialect,
) -> Result<(Connection, Option<PathBuf>), String> {
    // Never repeat what was found: a password may stand in it.
    let url = Url::parse(text).map_err(|error| {
        format!(
            "is no URL ({error}); expected {}://user:password@host:{}/database, special characters as %XX",
            dialect.scheme(), dialect.port
        )
    })?;
    let expected = dialect.scheme();
    let Some((_, mode)) = dialect.schemes.iter().find(|(scheme, _)| *scheme == url.scheme()) else {
        return Err(format!("begins with `{}:`, expected `{expected}:`", url.scheme()));
    };
    let decoded = |what: &str, text: &str| {
        let bytes = percent_encoding::percent_decode_str(text);
        bytes.decode_utf8().map(String::from).map_err(|_| format!("has a {what} that is no UTF-8"))
    };
    let mut database = decoded("database", url.path().strip_prefix('/').unwrap_or_default())?;
    let mut user = decoded("user", url.username())?;
    if let Some((usual_user, usual_database)) = dialect.usual {
        for (found, usual) in [(&mut user, usual_user), (&mut database, usual_database)] {
            if found.is_empty() {
                usual.clone_into(found);
            }
        }
    }
    if database.is_empty() || user.is_empty() {
        let missing = if user.is_empty() { "user" } else { "database" };
        return Err(format!(
            "names no {missing}; expected {expected}://user@host:{}/database",
            dialect.port
        ));
    }
    let password = url.password().map(|text| decoded("password", text)).transpose()?;
    let host = url.host_str().unwrap_or_default();
    let host = decoded("host", host.trim_start_matches('[').trim_end_matches(']'))?;
    let mut connection = Connection {
        host,
        port: url.port().unwrap_or(dialect.port),
        user,
        password: password.map(SecretString::from),
        database,
        tls: Tls { mode: *mode, ..Tls::default() },
        tunnel: None,
    };
    let mut passfile = None;
    for (name, value) in url.query_pairs() {
        if !(dialect.parameter)(&mut connection, &mut passfile, &name, &value)? {
            return Err(format!(
                "has the parameter `{name}`, which is not known; known are {}",
                dialect.parameters
            ));
        }
    }
    if connection.host.is_empty() {
        return Err(format!(
            "names no host; expected {expected}://user@host:{}/database",
            dialect.port
        ));
    }
    Ok((connection, passfile))
}

/// Reads the URL of another server, and the file of passwords that it names.
///
/// The URL may be a reference, `${NAME}` or `file:/path`: what stands on a command line, everybody on the machine can read.
pub(super) fn of_reference(
    given: &str,
    dialect: &Dialect,
    env: Env<'_>,
) -> Result<(Connection, Option<PathBuf>), String> {
    let (connection, passfile) = of_url(&resolve_file(&expand(given, env)?)?, dialect)?;
    refuse_open_password(&connection, given)?;
    Ok((connection, passfile))
}

/// Refuses a password that everybody on this machine can read on a command line.
fn refuse_open_password(connection: &Connection, given: &str) -> Result<(), String> {
    let is_reference = given.starts_with("file:") || given.contains("${");
    if connection.password.is_none() || is_reference {
        return Ok(());
    }
    Err("holds a password, which everybody on this machine can read on a command line; give --to 'file:/path' or --to '${NAME}' with the URL in the file or variable".to_owned())
}
