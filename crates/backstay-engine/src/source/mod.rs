//! Sources: where data comes from, and where it goes back to.
//!
//! Each kind has probe, capture and apply in one folder, so that "can we restore what we back up?" is a question
//! about one folder. Sources know nothing of vaults and stores: named streams pass between them ([`crate::part`]).

mod cause;
pub mod command;
mod connection;
mod databases;
pub mod duckdb;
pub mod dump;
mod engine;
pub mod files;
pub(crate) mod imported;
pub mod mysql;
mod one_file;
mod own_names;
pub mod postgres;
pub(crate) mod program;
pub mod redis;
mod said;
pub mod set;
mod several;
pub mod sqlite;
pub mod table;
mod tls;
pub mod tunnel;
mod tunnelled;

use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};

use async_trait::async_trait;
use backstay_format::{Content, Details, MediaType, PartName};
use bytes::Bytes;

use crate::cx::{Cancelled, Cx};
use crate::error::Passing;
use crate::part::{CaptureReport, PartError, PartReader, PartSpec, part_pipe};
use crate::swap::{Replacement, Swapper};
use dump::Dump;

pub use cause::Cause;
pub use connection::{Connection, Tls, TlsMode};
pub use databases::{Databases, NoDatabases};
pub use program::ProgramError;
pub use table::{Table, TableSpec};

/// Opens one consistent view of the data.
#[async_trait]
pub trait Source: Send + Sync {
    /// Reports version, size estimate and what is missing. Reads no user data and changes nothing.
    async fn probe(&self, cx: &Cx) -> Result<Probe, SourceError>;

    /// Begins to read. What is made on the way (snapshots in the spool directory) goes away when the capture does.
    async fn capture(&self, cx: &Cx) -> Result<Box<dyn Capture>, SourceError>;

    /// Prepares a place to restore into. Nothing of the target is touched before the returned value is swapped in.
    fn target(&self, options: TargetOptions) -> Box<dyn Target>;

    /// Fails if a program holds the target open: it would go on writing to what was swapped out.
    fn check_free(&self, replacement: &Replacement) -> Result<(), SourceError>;

    /// Returns a place to try a restore in, which is there only for that; paths lie in `folder`. None where a drill needs no place
    /// of its own.
    fn scratch(&self, folder: &Path, tag: &str) -> Option<OsString>;

    /// Asks loaded data that was not swapped in: of several databases, the one of this name. Returns the first row as text,
    /// its columns divided by `|`.
    async fn ask(
        &self,
        cx: &Cx,
        loaded: &Replacement,
        database: Option<&str>,
        query: &str,
    ) -> Result<String, SourceError>;

    /// Returns what puts loaded data of this source into its place.
    fn swapper(&self) -> Box<dyn Swapper>;

    /// Loads what another program dumped into a scratch place, from where it can be backed up like the source itself. The tag
    /// is a name for what is made, unique to this import; made of `[0-9a-z]`.
    async fn import(
        &self,
        _cx: &Cx,
        dump: &Dump,
        _tag: &str,
    ) -> Result<Box<dyn Imported>, SourceError> {
        Err(dump.refused("a source of this kind takes no dumps of other programs"))
    }

    /// Opens one of its tables, for a retention archive, with a view of its own.
    async fn table(&self, _cx: &Cx, spec: &TableSpec) -> Result<Box<dyn Table>, SourceError> {
        let finding = format!("{} is no table of a database that this source is", spec.table);
        Err(SourceError::Table { finding })
    }
}

/// One consistent view of the data as named parts.
#[async_trait]
pub trait Capture: Send {
    /// Returns the next part, or `None` after the last. The part before must have been read to its end.
    async fn next_part(&mut self, cx: &Cx) -> Result<Option<PartReader>, SourceError>;

    /// Says whether the rest is worth having after a part was cut short; what is missing is then among the item errors.
    fn goes_on(&self) -> bool {
        false
    }

    /// Confirms that everything was read. The end of a stream proves nothing: a killed dump ends too.
    async fn finish(self: Box<Self>, cx: &Cx) -> Result<CaptureReport, SourceError>;
}

/// What was loaded of another program's dump.
#[async_trait]
pub trait Imported: Send + Sync {
    /// Begins to read it.
    async fn capture(&self, cx: &Cx) -> Result<Box<dyn Capture>, SourceError>;

    /// Compares what was read with what the dump says of itself, and adds what a person should know of it.
    fn prove(&self, captured: CaptureReport) -> Result<CaptureReport, SourceError>;

    /// Removes it.
    async fn discard(self: Box<Self>, cx: &Cx) -> Result<(), SourceError>;
}

/// A place beside the target into which parts are loaded.
#[async_trait]
pub trait Target: Send + Sync {
    /// Looks at what would be replaced by a backup of this content, and so how. Changes nothing.
    async fn outlook(&self, cx: &Cx, details: &Details) -> Result<Outlook, SourceError>;

    /// Makes the place beside the target, after checking rights and space. Leaves the target alone.
    async fn prepare(&mut self, cx: &Cx, details: &Details) -> Result<(), SourceError>;

    /// Says whether a part is needed at all, once all is prepared.
    fn wants(&self, _part: &PartName, _media_type: MediaType) -> bool {
        true
    }

    /// Loads one part. The bytes are not proven before their end: whatever is made of them stays beside the target.
    async fn apply(&mut self, cx: &Cx, data: PartReader) -> Result<Applied, SourceError>;

    /// Confirms that what was loaded is whole, and says how it replaces the target. After a failure nothing is left beside.
    async fn finish(self: Box<Self>, cx: &Cx) -> Result<Loaded, SourceError>;

    /// Removes what was loaded; called after a failure. The target was never touched.
    async fn discard(self: Box<Self>, cx: &Cx) -> Result<(), SourceError>;
}

/// Whether a part was loaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Applied {
    /// All of it that is wanted.
    Done,
    /// It must be given once more: what is wanted was told too late to be kept.
    Again,
}

/// What a restore would do to its target.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outlook {
    /// What will be replaced or made, for a person.
    pub target: String,
    /// Whether something is there that will be replaced.
    pub replaces: bool,
    /// How it will be replaced.
    pub how: How,
    /// The engine that it will be restored to, and its version, if there is one that runs.
    pub engine: Option<String>,
    /// What is there now, if that can be told cheaply.
    pub present: Option<Content>,
    /// What a person should know before saying yes.
    pub warnings: Vec<String>,
}

/// How a target is replaced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum How {
    /// Loaded beside and swapped in one atomic step.
    Swap,
    /// A directory's entries, name by name.
    Entries,
    /// Chosen paths, each in one atomic step.
    Paths,
    /// Loaded into new databases; databases change their names in one transaction.
    Databases,
    /// Loaded into a new database; tables change their names.
    Tables,
    /// Several files, each in one atomic step, one after the other.
    Members,
    /// Proven and kept aside; then dropped and loaded in place, in one transaction.
    Transaction,
    /// Proven and kept aside; then given to programs of the user's.
    Programs,
}

impl How {
    /// Says whether nothing is kept beside: what was there is only in its backup then.
    pub fn keeps_nothing(self) -> bool {
        matches!(self, Self::Transaction | Self::Programs)
    }
}

/// Where and what to restore.
#[derive(Debug, Clone, Default)]
pub struct TargetOptions {
    /// Another place than the source's own: an absolute path, or the name or URL of a database.
    pub to: Option<OsString>,
    /// Only these paths (relative to the tree, as raw bytes), with all below them, or these tables. Empty means all.
    pub only: Vec<PathBuf>,
    /// Whether a tree's entries are replaced one by one, where swapping the whole tree is not possible or not wanted.
    pub in_place: bool,
    /// A name for what lies beside the target, unique to this restore; made of `[0-9a-z-]`.
    pub tag: String,
    /// Whether it is only tried: what is loaded never comes into any place.
    pub is_drill: bool,
}

/// What a probe found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Probe {
    /// The engine and its version, if there is one.
    pub engine: Option<String>,
    /// Plain bytes expected; a guess good to a factor of two.
    pub size_bytes: u64,
    /// Items (files, tables) expected, if known cheaply.
    pub items: Option<u64>,
    /// What a person should know before it starts: unreadable folders, no right to keep owners, ….
    pub warnings: Vec<String>,
}

/// A target loaded beside, ready to be swapped in.
#[derive(Debug)]
pub struct Loaded {
    /// What happened on the way.
    pub report: ApplyReport,
    /// What will be moved where.
    pub replacement: Replacement,
}

/// What happened while parts were applied.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ApplyReport {
    /// Files, tables or other items written.
    pub items: u64,
    /// Plain bytes written.
    pub bytes: u64,
    /// What could not be given back exactly (an owner without the right to chown), for a person to read.
    pub warnings: Vec<String>,
}

/// Why a source could not be read or restored.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// The source's path is not there.
    #[error("{path} does not exist; check the source's path")]
    NotFound {
        /// The path in the configuration.
        path: PathBuf,
    },
    /// Something else lies at the path.
    #[error("{path} is not {expected}")]
    WrongKind {
        /// The path in the configuration.
        path: PathBuf,
        /// What was expected, with its article.
        expected: &'static str,
    },
    /// A system call failed.
    #[error("cannot {action} {path}")]
    Io {
        /// What was being done, in a verb.
        action: &'static str,
        /// To what.
        path: PathBuf,
        /// What the system said.
        #[source]
        cause: io::Error,
    },
    /// The database engine refused.
    #[error("cannot {action} {database}")]
    Database {
        /// What was being done, in a verb.
        action: &'static str,
        /// To which database.
        database: PathBuf,
        /// What the engine said.
        #[source]
        cause: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The database fails its own checks.
    #[error(
        "{database} is damaged: {finding}; restore it from a backup, or repair it with `sqlite3 … .recover`"
    )]
    Damaged {
        /// Which database.
        database: PathBuf,
        /// The first thing that its check said.
        finding: String,
    },
    /// The database or file is held by a program that must be stopped first.
    #[error(
        "{path} is in use by {holder}; stop it, or set before_restore and after_restore hooks that do"
    )]
    InUse {
        /// What is held.
        path: PathBuf,
        /// Who holds it, for a person.
        holder: String,
    },
    /// Too little space for what is needed.
    #[error("{path} has {available_bytes} bytes free, but {needed_bytes} are needed")]
    NoSpace {
        /// Where.
        path: PathBuf,
        /// Free bytes there.
        available_bytes: u64,
        /// Needed bytes.
        needed_bytes: u64,
    },
    /// The stream of a part is not whole, or not what the source takes.
    #[error(transparent)]
    Part(#[from] PartError),
    /// Nothing in the backup matches what was chosen.
    #[error("nothing in the backup matches {path}; list what it holds with `backstay show ID`")]
    NothingMatches {
        /// What was chosen.
        path: PathBuf,
    },
    /// The backup holds no part that this source can take.
    #[error("part {part} is of a kind that this source cannot restore")]
    UnknownPart {
        /// Which part.
        part: PartName,
    },
    /// The way to the server ended in the middle of the work.
    #[error("{end}")]
    TunnelEnded {
        /// How.
        end: tunnel::TunnelError,
        /// What failed by it.
        #[source]
        cause: Box<SourceError>,
    },
    /// Something is no member of a set, or no set.
    #[error("{name} is not {expected}")]
    NoMember {
        /// What was found.
        name: String,
        /// What was expected, with its article.
        expected: String,
    },
    /// A program of a database engine failed.
    #[error(transparent)]
    Program(#[from] ProgramError),
    /// What a program of the user's did does not count.
    #[error(transparent)]
    Command(#[from] command::CommandError),
    /// What another program dumped cannot be taken over.
    #[error("{path} cannot be imported: {finding}", path = path.display())]
    Dump {
        /// The file or the directory.
        path: PathBuf,
        /// What stands against it, and what to do.
        finding: String,
    },
    /// A table's rows cannot be archived or put back.
    #[error("{finding}")]
    Table {
        /// What stands against it, and what to do.
        finding: String,
    },
    /// Something with a PostgreSQL server failed.
    #[error("{0}")]
    Postgres(postgres::PostgresError),
    /// Something with a MySQL or MariaDB server failed.
    #[error("{0}")]
    Mysql(mysql::MysqlError),
    /// Something with a Redis or Valkey server failed.
    #[error("{0}")]
    Redis(redis::RedisError),
    /// Something with a DuckDB database failed.
    #[error("{0}")]
    Duckdb(duckdb::DuckdbError),
    /// Told to stop.
    #[error(transparent)]
    Cancelled(#[from] Cancelled),
}

impl From<duckdb::DuckdbError> for SourceError {
    fn from(error: duckdb::DuckdbError) -> Self {
        match error {
            duckdb::DuckdbError::Cancelled(cancelled) => Self::Cancelled(cancelled),
            error => Self::Duckdb(error),
        }
    }
}

impl From<redis::RedisError> for SourceError {
    fn from(error: redis::RedisError) -> Self {
        match error {
            redis::RedisError::Cancelled(cancelled) => Self::Cancelled(cancelled),
            error => Self::Redis(error),
        }
    }
}

impl From<mysql::MysqlError> for SourceError {
    fn from(error: mysql::MysqlError) -> Self {
        match error {
            mysql::MysqlError::Cancelled(cancelled) => Self::Cancelled(cancelled),
            error => Self::Mysql(error),
        }
    }
}

impl From<postgres::PostgresError> for SourceError {
    fn from(error: postgres::PostgresError) -> Self {
        match error {
            postgres::PostgresError::Cancelled(cancelled) => Self::Cancelled(cancelled),
            error => Self::Postgres(error),
        }
    }
}

impl SourceError {
    /// Says whether it only means that the work was told to stop.
    pub fn is_cancelled(&self) -> bool {
        matches!(self, Self::Cancelled(_))
    }

    /// Says why the same may work later, with nothing changed, if it may.
    pub fn passing(&self) -> Option<Passing> {
        match self {
            Self::Postgres(error) => error.passing(),
            Self::Mysql(mysql::MysqlError::Connect { cause, .. })
            | Self::Redis(redis::RedisError::Connect { cause, .. }) => cause.passing(),
            Self::Program(error) => error.passing(),
            Self::TunnelEnded { .. } => Some(Passing::Outage),
            _ => None,
        }
    }

    /// Makes an [`SourceError::Io`].
    pub fn io(action: &'static str, path: impl Into<PathBuf>, cause: io::Error) -> Self {
        Self::Io { action, path: path.into(), cause }
    }
}

/// Writes an error with its causes, for a line that a person reads.
pub(crate) fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        next = cause.source();
    }
    text
}

/// Makes the spec of a part whose name is fixed in the code.
pub(crate) fn fixed_part(name: &str, media_type: MediaType, estimate: Option<u64>) -> PartSpec {
    let name = name.parse().expect("part names in the code are valid");
    PartSpec { name, media_type, estimate_bytes: estimate }
}

/// Returns where a restore is loaded before it replaces `target`: a hidden sibling.
pub(crate) fn beside(target: &Path, tag: &str) -> PathBuf {
    let mut name = std::ffi::OsString::from(".");
    name.push(target.file_name().unwrap_or_default());
    name.push(format!(".backstay-{tag}"));
    target.with_file_name(name)
}

/// Makes a part of a text.
pub(crate) fn text_part(name: &str, media_type: MediaType, text: String) -> PartReader {
    let (mut writer, reader) = part_pipe(fixed_part(name, media_type, Some(text.len() as u64)));
    // Ends by itself when the reader goes away.
    drop(tokio::spawn(async move {
        if writer.send(Bytes::from(text)).await.is_ok() {
            writer.finish_async().await;
        }
    }));
    reader
}
