//! Files of passwords in the format of libpq: `host:port:database:user:password`, `*` for anything.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use backstay_engine::source::Connection;
use secrecy::SecretString;

use super::Env;

/// Where a socket lies that libpq calls `localhost` in these files.
const USUAL_SOCKETS: [&str; 2] = ["/var/run/postgresql", "/tmp"];

/// Returns the file that libpq reads if it is told of none.
pub(super) fn usual(env: Env<'_>) -> Option<PathBuf> {
    let set = |name: &str| env.get(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    set("PGPASSFILE").or_else(|| Some(set("HOME")?.join(".pgpass"))).filter(|file| file.exists())
}

/// Finds the password of a connection. Says what is wrong with the file, and never what stands in it.
pub(super) fn password(file: &Path, wanted: &Connection) -> Result<Option<SecretString>, String> {
    let unreadable = |error| format!("{} cannot be read: {error}", file.display());
    let meta = std::fs::metadata(file).map_err(unreadable)?;
    if !meta.is_file() {
        return Err(format!("{} is no plain file", file.display()));
    }
    if meta.permissions().mode() & 0o077 != 0 {
        return Err(format!("others may read or change {0}; do `chmod 0600 {0}`", file.display()));
    }
    let text = std::fs::read_to_string(file).map_err(unreadable)?;
    Ok(text.lines().find_map(|line| password_in(line, wanted)).map(SecretString::from))
}

/// Returns the password of a line that is for this connection.
fn password_in(line: &str, wanted: &Connection) -> Option<String> {
    if line.starts_with('#') {
        return None;
    }
    let host = match wanted.host.as_str() {
        socket if USUAL_SOCKETS.contains(&socket) => "localhost",
        host => host,
    };
    let port = wanted.port.to_string();
    let mut rest = line;
    for value in [host, &port, &wanted.database, &wanted.user] {
        let (field, behind) = split(rest)?;
        if field != "*" && plain(field) != value {
            return None;
        }
        rest = behind;
    }
    Some(plain(rest))
}

/// Splits at the first `:` that no `\` stands before.
fn split(text: &str) -> Option<(&str, &str)> {
    let mut is_escaped = false;
    let end = text.find(|c| {
        let ends = c == ':' && !is_escaped;
        is_escaped = c == '\\' && !is_escaped;
        ends
    })?;
    Some((&text[..end], &text[end + 1..]))
}

/// Takes the character behind each `\` as it stands.
fn plain(text: &str) -> String {
    let mut out = String::new();
    let mut characters = text.chars();
    while let Some(character) = characters.next() {
        out.extend(if character == '\\' { characters.next() } else { Some(character) });
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_line_that_fits_counts_and_escapes_are_taken_as_they_stand() {
        let connection = |host: &str, database: &str| Connection {
            host: host.to_owned(),
            port: 5432,
            user: "me".to_owned(),
            password: None,
            database: database.to_owned(),
            tls: Default::default(),
            tunnel: None,
        };
        let wanted = connection("db", "a:b");
        let found = |line: &str| password_in(line, &wanted);
        assert_eq!(found(r"db:5432:a\:b:me:se\:c\\ret"), Some(r"se:c\ret".to_owned()));
        assert_eq!(found("*:*:*:*:x:y"), Some("x:y".to_owned()));
        assert_eq!(found("*:*:*:me:"), Some(String::new()));
        for other in [
            "db:5432:a:b:me:x",
            "db:5433:*:me:x",
            "db:*:*:you:x",
            "dc:*:*:*:x",
            r"\*:*:*:*:x",
            "#*:*:*:*:x",
            "",
            "db:5432",
            "*:*:*:me",
        ] {
            assert_eq!(found(other), None, "{other}");
        }
        let socket = connection("/var/run/postgresql", "d");
        assert_eq!(password_in("localhost:*:*:*:x", &socket), Some("x".to_owned()));
        let socket = connection("/run/pg", "d");
        assert_eq!(password_in("localhost:*:*:*:x", &socket), None);
        assert_eq!(password_in("/run/pg:*:*:*:x", &socket), Some("x".to_owned()));
    }
}
