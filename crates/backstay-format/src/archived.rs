//! What a segment of a retention archive holds.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// The rows of one segment, in files that are the parts of its manifest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ArchivedRows {
    /// The table that they were read from, as its database writes the name.
    pub table: String,
    /// The column that says how old a row is.
    pub column: String,
    /// Rows before this time were archived.
    pub before: Timestamp,
    /// The columns of the table at that time.
    pub columns: Vec<ArchivedColumn>,
    /// The columns that tell one row from all others.
    pub key: Vec<String>,
    /// What changed in the columns since the segment before, for a person.
    pub changes: Vec<String>,
    /// The files, in the order of the parts.
    pub files: Vec<ArchivedFile>,
}

impl ArchivedRows {
    /// Counts the rows of all files.
    pub fn rows(&self) -> u64 {
        self.files.iter().map(|file| file.rows).sum()
    }
}

/// A column of an archived table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ArchivedColumn {
    /// Its name.
    pub name: String,
    /// Its type, as its database writes it.
    pub declared: String,
    /// What its values are in the files, as Arrow names the type.
    pub stored: String,
}

/// One file of a segment: rows of one partition.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ArchivedFile {
    /// Which: `2026-01-03` or `2026-01`.
    pub partition: String,
    /// How many rows it has.
    pub rows: u64,
    /// The time of its oldest row.
    pub oldest: Timestamp,
    /// The time of its newest row.
    pub newest: Timestamp,
    /// The sum of its rows' times of day, in microseconds, as a decimal number.
    pub times: String,
    /// The sum of the digests of its rows, as 32 hexadecimal digits.
    pub digest: String,
}
