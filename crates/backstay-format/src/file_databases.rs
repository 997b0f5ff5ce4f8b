//! What the parts of a backup hold of databases that are files.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::content::{Content, TableRows};

/// What a SQLite database holds.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SqliteContent {
    /// `PRAGMA user_version`, which apps use for their schema version.
    pub user_version: i64,
    /// `PRAGMA application_id`.
    pub application_id: i64,
    /// Bytes of a page.
    pub page_bytes: u32,
    /// Pages of the database.
    pub pages: u64,
    /// Tables with their rows, by name.
    pub tables: Vec<TableRows>,
}

/// What a set of databases holds.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SetContent {
    /// The members that could be read, in the order in which they were.
    pub members: Vec<SetMember>,
}

/// A database of a set.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SetMember {
    /// The name of its group, and of itself where the group has several: `tenants/42`.
    pub name: String,
    /// The folder of its parts in the backup.
    pub folder: String,
    /// When its view was taken: every member has one of its own.
    pub taken_at: Timestamp,
    /// What it holds.
    pub content: Box<Content>,
}

/// What a DuckDB database holds.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DuckdbContent {
    /// The engine and its version, for example `DuckDB 1.5.6`.
    pub engine: String,
    /// The version of its file's format, for example `v1.0.0`.
    pub storage_version: Option<String>,
    /// Its tables, in the order in which they are loaded.
    pub tables: Vec<DuckdbTable>,
    /// Statements of views that could not be made again without files that are elsewhere.
    pub left_out: Vec<String>,
}

/// A table of a DuckDB database.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DuckdbTable {
    /// Its name as SQL writes it, with its schema where that is not `main`.
    pub table: String,
    /// How many rows it has.
    pub rows: u64,
    /// The sum of the hashes of all its rows, as DuckDB of the backup's version computes them.
    pub digest: String,
}
