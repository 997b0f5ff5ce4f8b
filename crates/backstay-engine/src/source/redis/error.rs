//! Why a server of Redis' kind could not be reached, read or written.

use std::io;

use crate::cx::Cancelled;
use crate::source::cause::Cause;

/// Why something with a Redis or Valkey server failed.
#[derive(Debug, thiserror::Error)]
pub enum RedisError {
    /// No session could be had.
    #[error("cannot connect to {location}: {cause}")]
    Connect {
        /// Where, without secrets.
        location: String,
        /// Why, and what to do.
        cause: Cause,
    },
    /// A command was refused.
    #[error("cannot {action}: {finding}")]
    Statement {
        /// What was being done, in a verb.
        action: &'static str,
        /// What the server said.
        finding: String,
    },
    /// The session ended in the middle.
    #[error("cannot {action}: the connection broke: {cause}")]
    Broken {
        /// What was being done, in a verb.
        action: &'static str,
        /// How.
        cause: io::Error,
    },
    /// What the server sent is not whole.
    #[error("what the server sent is not a whole backup: {finding}")]
    Dump {
        /// What is wrong with it.
        finding: String,
    },
    /// What a restore had put aside is not there any more, so nothing can be swapped.
    #[error(
        "database {database} does not hold what the restore put there any more: somebody emptied it, or the server lost it"
    )]
    Gone {
        /// Where it was.
        database: u64,
    },
    /// The server cannot be backed up, or cannot take the backup, as it is.
    #[error("{finding}")]
    Refused {
        /// What stands against it, and what to do.
        finding: String,
    },
    /// Told to stop.
    #[error(transparent)]
    Cancelled(#[from] Cancelled),
}

/// Says what stands against something.
pub(super) fn refused(finding: impl Into<String>) -> RedisError {
    RedisError::Refused { finding: finding.into() }
}

/// Says what a refused command means.
pub(super) fn statement(action: &'static str, said: &str) -> RedisError {
    let hint = match said.split(' ').next().unwrap_or_default() {
        "NOPERM" => "; the user lacks this right: ACL SETUSER gives it",
        "OOM" => "; the server's memory does not suffice: raise maxmemory (CONFIG SET maxmemory)",
        "READONLY" => "; this is a replica: name its primary",
        "LOADING" => "; it is starting: try again when it is done",
        "NOMASTERLINK" => "; this replica has lost its primary, so what it has may be old",
        _ => "",
    };
    RedisError::Statement { action, finding: format!("{said}{hint}") }
}
