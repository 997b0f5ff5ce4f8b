//! The description that makes a backup.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::{BackupId, Content, KeyId, PartName, Sha256, Slug, VaultId};

/// The description of one backup: enough to restore it with the key and nothing else.
///
/// What would leak content (paths, table names, row counts, digests of plain bytes, the note) stands in `details`,
/// which is sealed where the backup is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// Version of the format; 1.
    pub format: u32,
    /// Name and version of the program that wrote it.
    pub tool: String,
    /// The vault that it was written into.
    pub vault: VaultId,
    /// The tenant that it belongs to.
    pub organisation: Slug,
    /// The source that it was made of.
    pub source: Slug,
    /// The kind of that source: `files`, `sqlite`.
    pub source_kind: String,
    /// The backup's id.
    pub backup: BackupId,
    /// What started it.
    pub trigger: Trigger,
    /// Whether everything was read.
    pub status: Status,
    /// When the run began; of an import, when the dump was taken.
    pub started_at: Timestamp,
    /// When the last byte was durable.
    pub finished_at: Timestamp,
    /// The machine that it was made on.
    pub host: String,
    /// The label of the app, if the source has one.
    pub app: Option<String>,
    /// The label of the environment, if the source has one.
    pub environment: Option<String>,
    /// The engine and its version, if there is one.
    pub engine: Option<String>,
    /// The point of the engine's log that the data is consistent with (LSN, GTID), if there is one.
    pub consistency_point: Option<String>,
    /// Whether and with which key the parts are sealed.
    pub encryption: Encryption,
    /// The parts, in the order in which they are restored.
    pub parts: Vec<Part>,
    /// How many items could not be read; `details` names them.
    pub item_error_count: u64,
    /// How many warnings there are in `details`.
    pub warning_count: u64,
    /// What would leak content.
    pub details: DetailsSection,
}

impl Manifest {
    /// Returns the plain bytes of all parts.
    pub fn plain_bytes(&self) -> u64 {
        self.parts.iter().map(|part| part.plain_bytes).sum()
    }

    /// Returns the bytes of all parts on the storage.
    pub fn stored_bytes(&self) -> u64 {
        self.parts.iter().map(|part| part.stored.bytes()).sum()
    }
}

/// What started a backup.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Trigger {
    /// A person.
    Manual,
    /// The schedule.
    Scheduled,
    /// A restore, to save what it replaces.
    PreRestore,
    /// A deploy that is about to begin.
    PreDeploy,
    /// A deploy that succeeded.
    PostDeploy,
    /// An import of somebody else's dump.
    Imported,
    /// A drill.
    Drill,
}

/// Whether everything was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Status {
    /// Everything was.
    Complete,
    /// Some items could not be read; they are named in the details.
    Incomplete,
}

/// Whether and with which key the parts are sealed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "mode", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Encryption {
    /// Parts are standard files that anybody can read.
    None,
    /// Parts are sealed.
    Sealed {
        /// The key that opens them.
        key: KeyId,
    },
}

/// A named stream inside a backup.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Part {
    /// Its name.
    pub name: PartName,
    /// What its plain bytes are.
    pub media_type: MediaType,
    /// What was done to the plain bytes, in that order.
    pub codecs: Vec<Codec>,
    /// How many plain bytes it has.
    pub plain_bytes: u64,
    /// How it lies in the vault.
    pub stored: StoredPart,
}

/// What the plain bytes of a part are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum MediaType {
    /// A tar stream (POSIX pax with GNU sparse members).
    #[serde(rename = "application/x-tar")]
    Tar,
    /// A whole SQLite database file.
    #[serde(rename = "application/vnd.sqlite3")]
    Sqlite,
    /// An archive of `pg_dump` in its custom format, not compressed by it.
    #[serde(rename = "application/vnd.postgresql.dump")]
    PostgresDump,
    /// What `mariadb-dump` or `mysqldump` writes of a database's tables.
    #[serde(rename = "application/vnd.mysql.dump")]
    MysqlDump,
    /// What a Redis or Valkey server writes of its data: an RDB file.
    #[serde(rename = "application/vnd.redis.rdb")]
    RedisDump,
    /// An export of a DuckDB database: a tar of `schema.sql`, `load.sql` and Parquet files.
    #[serde(rename = "application/vnd.duckdb.export")]
    DuckdbExport,
    /// Rows of a retention archive: a Parquet file.
    #[serde(rename = "application/vnd.apache.parquet")]
    Parquet,
    /// What a program of the user's writes.
    #[serde(rename = "application/octet-stream")]
    Output,
    /// Text for people.
    #[serde(rename = "text/plain")]
    Text,
    /// Statements.
    #[serde(rename = "application/sql")]
    Sql,
    /// Values.
    #[serde(rename = "application/json")]
    Json,
}

impl MediaType {
    /// Returns the suffix of a file of this kind, without the dot.
    pub fn suffix(self) -> &'static str {
        match self {
            Self::Tar | Self::DuckdbExport => "tar",
            Self::Sqlite => "db",
            Self::PostgresDump => "dump",
            Self::MysqlDump | Self::Sql => "sql",
            Self::RedisDump => "rdb",
            Self::Parquet => "parquet",
            Self::Text => "txt",
            Self::Json => "json",
            Self::Output => "bin",
        }
    }

    /// Says whether it is compressed as it is: doing that once more would only cost, and keep others from reading it.
    pub fn is_compressed(self) -> bool {
        self == Self::Parquet
    }
}

/// One step between plain and stored bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Codec {
    /// Zstandard; file suffix `.zst`.
    Zstd,
    /// Sealed in frames; file suffix `.bks`.
    Sealed,
}

impl Codec {
    /// Returns the suffix of a file that was so treated, without the dot.
    pub fn suffix(self) -> &'static str {
        match self {
            Self::Zstd => "zst",
            Self::Sealed => "bks",
        }
    }
}

/// How a part lies in the vault. An enum, because not every layout keeps a part in one object.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "layout", rename_all = "kebab-case", deny_unknown_fields)]
pub enum StoredPart {
    /// One object in a standard format.
    Whole {
        /// The object's name below the backup's folder.
        object: PartName,
        /// The object's size.
        stored_bytes: u64,
        /// The object's digest.
        stored_sha256: Sha256,
    },
}

impl StoredPart {
    /// Returns the bytes on the storage.
    pub fn bytes(&self) -> u64 {
        match self {
            Self::Whole { stored_bytes, .. } => *stored_bytes,
        }
    }
}

/// The part of a manifest that would leak content.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DetailsSection {
    /// Readable, in a backup that is not sealed.
    Plain(Box<Details>),
    /// Sealed under the backup's key: base64 of a sealed object with the role of manifest details.
    Sealed(String),
}

/// What would leak content.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Details {
    /// What the person who made the backup wrote about it.
    pub note: Option<String>,
    /// Where the source was: the place that a restore on a bare machine goes to. Bytes that are not UTF-8 are replaced.
    pub origin: Option<String>,
    /// Digests of the plain bytes, in the order of the parts.
    pub plain_sha256: Vec<Sha256>,
    /// The items that could not be read; at most [`Details::LISTED_ITEM_ERRORS`].
    pub item_errors: Vec<ItemError>,
    /// What a person should know.
    pub warnings: Vec<String>,
    /// Schema version of the app: the list of its applied migrations, if a query for it is set.
    pub schema_version: Option<Vec<String>>,
    /// What the parts hold.
    pub content: Option<Content>,
    /// What it was made of, if another program had dumped that before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub imported: Option<Box<ImportedFrom>>,
}

/// The dump that a backup was made of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ImportedFrom {
    /// The file or directory. Bytes that are not UTF-8 are replaced.
    pub path: String,
    /// What it was, for a person.
    pub form: String,
    /// Its bytes; of a directory, those of its files.
    pub bytes: u64,
    /// Its digest; of a directory, that of the names and digests of its files.
    pub sha256: Sha256,
    /// How it is known when it was made.
    pub time_from: TimeFrom,
}

/// How it is known when a dump was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TimeFrom {
    /// Somebody said so.
    Told,
    /// It stands in the name.
    Name,
    /// It stands in the dump.
    Dump,
    /// The file was written then.
    File,
}

impl Details {
    /// How many item errors are listed by name; the count in the manifest is of all.
    pub const LISTED_ITEM_ERRORS: usize = 1000;
}

/// One item that could not be read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ItemError {
    /// Which item; bytes that are not UTF-8 are escaped as `\xNN`.
    pub item: String,
    /// What was wrong with it.
    pub error: String,
}
