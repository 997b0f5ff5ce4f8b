//! What a dump is, told by its bytes: names lie.

use std::fmt;
use std::path::{Path, PathBuf};

use super::packing::Packing;
use super::script::BYTE_ORDER_MARK;
use super::{head, refused, with_suffix};
use crate::source::SourceError;
use crate::source::sqlite;

/// So many bytes tell what a file is: a tar has its first header in them.
const HEAD_BYTES: usize = 64 << 10;
/// The table of contents of archives of `pg_dump` that are a directory or a tar.
pub(crate) const POSTGRES_CONTENTS: &str = "toc.dat";
const POSTGRES_MAGIC: &[u8] = b"PGDMP";
/// The scripts of an export of DuckDB.
const DUCKDB_SCRIPTS: [&str; 2] = ["schema.sql", "load.sql"];
/// Of a DuckDB database, and where it stands.
const DUCKDB_MAGIC: &[u8] = b"DUCK";
const DUCKDB_MAGIC_AT: usize = 8;
const TAR_MAGIC: &[u8] = b"ustar";
const TAR_MAGIC_AT: usize = 257;

/// What a dump is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Form {
    /// An archive of `pg_dump --format=custom`.
    PostgresCustom,
    /// An archive of `pg_dump --format=tar`.
    PostgresTar,
    /// An archive of `pg_dump --format=directory`.
    PostgresDirectory,
    /// SQL statements.
    Script,
    /// What a Redis or Valkey server writes.
    Rdb,
    /// A tar of files.
    Tar,
    /// A SQLite database.
    Sqlite,
    /// A DuckDB database.
    Duckdb,
    /// A directory that DuckDB's `EXPORT DATABASE` made.
    DuckdbExport,
    /// Several of those, of one moment: the names of the databases, and their directories.
    DuckdbExports(Vec<(String, PathBuf)>),
}

impl fmt::Display for Form {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::PostgresCustom => "an archive of pg_dump",
            Self::PostgresTar => "an archive of pg_dump in the tar format",
            Self::PostgresDirectory => "an archive of pg_dump in the directory format",
            Self::Script => "a script of SQL statements",
            Self::Rdb => "an RDB file",
            Self::Tar => "a tar of files",
            Self::Sqlite => "a SQLite database",
            Self::Duckdb => "a DuckDB database",
            Self::DuckdbExport => "an export of DuckDB",
            Self::DuckdbExports(members) => {
                return write!(f, "exports of {} DuckDB databases", members.len());
            }
        })
    }
}

impl Form {
    /// Returns the files and directories that a dump of this form is made of, itself first.
    pub(super) fn roots(&self, path: &Path, packing: Packing) -> Vec<PathBuf> {
        if let Self::DuckdbExports(members) = self {
            return members.iter().map(|(_, root)| root.clone()).collect();
        }
        let companions = self.companions(path, packing).into_iter().map(|(_, beside)| beside);
        std::iter::once(path.to_owned()).chain(companions).collect()
    }

    /// Returns what lies beside a database and has what is not in it yet, by its suffix.
    pub(super) fn companions(&self, path: &Path, packing: Packing) -> Vec<(&'static str, PathBuf)> {
        let suffixes: &[&str] = match self {
            Self::Sqlite if packing == Packing::None => &["-wal", "-journal"],
            Self::Duckdb if packing == Packing::None => &[".wal"],
            _ => &[],
        };
        let beside = suffixes.iter().map(|suffix| (*suffix, with_suffix(path, suffix)));
        beside.filter(|(_, path)| path.is_file()).collect()
    }
}

/// Says what lies at a path. Blocks.
pub(super) fn recognise(path: &Path) -> Result<(Form, Packing), SourceError> {
    let meta = path.metadata().map_err(|cause| SourceError::io("look at", path, cause))?;
    if meta.is_dir() {
        let form = directory(path);
        let form = form.ok_or_else(|| refused(path, "it is a directory, and no dump"))?;
        return Ok((form, Packing::None));
    }
    if !meta.is_file() {
        return Err(refused(path, "it is neither a file nor a directory"));
    }
    let read = |packing: Packing| {
        let begin = head(&mut packing.open(path)?, HEAD_BYTES);
        begin.map_err(|cause| refused(path, format!("its begin cannot be read: {cause}")))
    };
    let packing = Packing::of(path, &read(Packing::None)?)?;
    Ok((file(path, &read(packing)?)?, packing))
}

/// Says which dump a directory is, if it is one.
pub(super) fn directory(path: &Path) -> Option<Form> {
    let has = |name: &str| path.join(name).is_file();
    if has(POSTGRES_CONTENTS) {
        return Some(Form::PostgresDirectory);
    }
    DUCKDB_SCRIPTS.iter().all(|name| has(name)).then_some(Form::DuckdbExport)
}

/// Words that scripts begin with; of a note beside dumps nobody expects them.
const FIRST_WORDS: [&str; 26] = [
    "alter",
    "analyze",
    "begin",
    "call",
    "comment",
    "copy",
    "create",
    "delete",
    "delimiter",
    "do",
    "drop",
    "grant",
    "insert",
    "lock",
    "pragma",
    "refresh",
    "replace",
    "revoke",
    "security",
    "select",
    "set",
    "start",
    "truncate",
    "update",
    "use",
    "with",
];

/// Says whether a text begins with a remark, with a command of a client, or with a word that begins statements.
fn begins_as_sql(begin: &[u8]) -> bool {
    let begin = begin.strip_prefix(BYTE_ORDER_MARK).unwrap_or(begin).trim_ascii_start();
    let word: String = begin
        .iter()
        .take_while(|byte| byte.is_ascii_alphabetic())
        .map(|byte| char::from(byte.to_ascii_lowercase()))
        .collect();
    [&b"--"[..], b"/*", b"#", b"\\"].iter().any(|mark| begin.starts_with(mark))
        || FIRST_WORDS.contains(&word.as_str())
}

fn file(path: &Path, begin: &[u8]) -> Result<Form, SourceError> {
    let at =
        |place: usize, magic: &[u8]| begin.get(place..).is_some_and(|rest| rest.starts_with(magic));
    if begin.is_empty() {
        return Err(refused(path, "it is empty"));
    }
    if at(0, POSTGRES_MAGIC) {
        return Ok(Form::PostgresCustom);
    }
    if at(0, b"REDIS0") || at(0, b"VALKEY") {
        return Ok(Form::Rdb);
    }
    if sqlite::is_database(begin) {
        return Ok(Form::Sqlite);
    }
    if at(DUCKDB_MAGIC_AT, DUCKDB_MAGIC) {
        return Ok(Form::Duckdb);
    }
    if at(TAR_MAGIC_AT, TAR_MAGIC) {
        let is_contents = at(0, POSTGRES_CONTENTS.as_bytes()) && at(POSTGRES_CONTENTS.len(), &[0]);
        return Ok(if is_contents { Form::PostgresTar } else { Form::Tar });
    }
    if !begin.contains(&0) {
        return match begins_as_sql(begin) {
            true => Ok(Form::Script),
            false => Err(refused(path, "it is text, and does not begin as SQL statements do")),
        };
    }
    let shown: String = begin.iter().take(16).map(|byte| format!("{byte:02x}")).collect();
    Err(refused(
        path,
        format!(
            "it begins with the bytes {shown}; expected an archive of pg_dump, SQL statements, an RDB file, a tar, or a database of SQLite or DuckDB, as it is or packed by gzip or zstd"
        ),
    ))
}
