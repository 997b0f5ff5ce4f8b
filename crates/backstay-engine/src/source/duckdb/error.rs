//! Why a DuckDB database could not be read or written.

use std::path::{Path, PathBuf};

use crate::cx::Cancelled;
use crate::source::ProgramError;

/// Why something with a DuckDB database failed.
#[derive(Debug, thiserror::Error)]
pub enum DuckdbError {
    /// The command line is not installed.
    #[error(
        "the program duckdb is not there; install DuckDB's command line (https://duckdb.org, or PyPI's duckdb-cli), or set `programs` to its directory"
    )]
    NoProgram,
    /// Another process keeps everybody else out.
    #[error(
        "{path} is open in {holder}, and DuckDB lets nobody in beside a writer; stop it around the backup by the hooks before_backup and after_backup, or have it open the database for reading only"
    )]
    Locked {
        /// The database.
        path: PathBuf,
        /// The program and its number.
        holder: String,
    },
    /// The file is no database, or one that the program does not know.
    #[error(
        "{path} cannot be opened by {program}: {finding}; a newer program may read it (an encrypted database is backed up as a file)"
    )]
    NotReadable {
        /// The database.
        path: PathBuf,
        /// The program and its version.
        program: String,
        /// What it said.
        finding: String,
    },
    /// The file's own checks fail.
    #[error("{path} is damaged: {finding}; restore it from a backup")]
    Damaged {
        /// The database.
        path: PathBuf,
        /// What DuckDB said.
        finding: String,
    },
    /// A statement failed.
    #[error("cannot {action}: {finding}")]
    Statement {
        /// What was being done, in a verb.
        action: &'static str,
        /// What DuckDB said.
        finding: String,
    },
    /// What was imported is not what was exported.
    #[error("what DuckDB makes of the export is not what was there: {finding}")]
    NotEqual {
        /// What differs.
        finding: String,
    },
    /// The database cannot take the backup, or the backup is not one of a database.
    #[error("{finding}")]
    Refused {
        /// What stands against it, and what to do.
        finding: String,
    },
    /// The program could not be run, or ended in the middle.
    #[error(transparent)]
    Program(#[from] ProgramError),
    /// Told to stop.
    #[error(transparent)]
    Cancelled(#[from] Cancelled),
}

/// Says what stands against something.
pub(super) fn refused(finding: impl Into<String>) -> DuckdbError {
    DuckdbError::Refused { finding: finding.into() }
}

/// Says what a failure to open a database, or to read it, means.
pub(super) fn explain(
    action: &'static str,
    (path, program): (&Path, &str),
    finding: String,
) -> DuckdbError {
    let path = path.to_owned();
    if let Some((_, holder)) = finding.split_once("Conflicting lock is held in ") {
        let holder = holder.split(')').next().unwrap_or_default();
        return DuckdbError::Locked { path, holder: format!("{holder})") };
    }
    if ["not a valid DuckDB database", "version number", "encrypt"]
        .iter()
        .any(|word| finding.contains(word))
    {
        return DuckdbError::NotReadable { path, program: program.to_owned(), finding };
    }
    if ["Corrupt", "checksum", "Could not read enough bytes"]
        .iter()
        .any(|word| finding.contains(word))
    {
        return DuckdbError::Damaged { path, finding };
    }
    DuckdbError::Statement { action, finding }
}
