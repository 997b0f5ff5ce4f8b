//! Why a PostgreSQL server could not be reached, read or written.

use std::error::Error as _;
use std::io;

use tokio_postgres::error::SqlState;

use crate::cx::Cancelled;
use crate::error::Passing;
use crate::source::cause::Cause;
use crate::source::program::ProgramError;
use crate::source::with_causes;

/// Why something with a PostgreSQL server failed.
#[derive(Debug, thiserror::Error)]
pub enum PostgresError {
    /// No session could be had.
    #[error("cannot connect to {location}: {cause}")]
    Connect {
        /// Where, without secrets.
        location: String,
        /// Why, and what to do.
        cause: Cause,
    },
    /// A statement failed.
    #[error("cannot {action}: {finding}")]
    Statement {
        /// What was being done, in a verb.
        action: &'static str,
        /// What the server said.
        finding: String,
    },
    /// A program of PostgreSQL failed.
    #[error(transparent)]
    Program(#[from] ProgramError),
    /// What a program wrote is not whole.
    #[error("{finding}")]
    Archive {
        /// What is wrong with it.
        finding: String,
    },
    /// No installed program fits the server.
    #[error(
        "no pg_dump fits a server of PostgreSQL {needed} ({found}); install the package postgresql-client-{needed}, or set `programs` to the directory of its programs"
    )]
    NoProgram {
        /// The server's major version.
        needed: u32,
        /// What is installed.
        found: String,
    },
    /// The dump stood in somebody's way.
    #[error("{finding}")]
    GaveWay {
        /// In whose, and what to do.
        finding: String,
    },
    /// The server cannot take the backup as it is.
    #[error("{finding}")]
    Refused {
        /// What stands against it, and what to do.
        finding: String,
    },
    /// Told to stop.
    #[error(transparent)]
    Cancelled(#[from] Cancelled),
}

impl PostgresError {
    /// Says why the same may work later, with nothing changed, if it may.
    pub(crate) fn passing(&self) -> Option<Passing> {
        match self {
            Self::GaveWay { .. } => Some(Passing::GaveWay),
            Self::Connect { cause, .. } => cause.passing(),
            Self::Program(error) => error.passing(),
            _ => None,
        }
    }
}

/// Finds the cause in what the client says.
pub(super) fn cause_of(error: &tokio_postgres::Error) -> Cause {
    if let Some(server) = error.as_db_error() {
        let text = server.message().to_owned();
        return match *server.code() {
            SqlState::INVALID_PASSWORD | SqlState::INVALID_AUTHORIZATION_SPECIFICATION => {
                Cause::Login(text)
            }
            SqlState::INVALID_CATALOG_NAME => Cause::NoDatabase(text),
            _ => Cause::Other(text),
        };
    }
    let text = with_causes(error);
    let io = error.source().and_then(|cause| cause.downcast_ref::<io::Error>());
    match io.map(io::Error::kind) {
        Some(io::ErrorKind::ConnectionRefused | io::ErrorKind::NotFound) => Cause::Refused,
        Some(io::ErrorKind::TimedOut) => Cause::Timeout,
        // What the other side says about our certificate.
        _ if io.and_then(io::Error::get_ref).is_some_and(|cause| cause.is::<rustls::Error>()) => {
            Cause::Tls(text)
        }
        _ if text.contains("lookup") => Cause::UnknownHost(text),
        _ if text.contains("TLS") || text.contains("certificate") => Cause::Tls(text),
        _ if text.contains("password") => Cause::Login(text),
        _ => Cause::Other(text),
    }
}

/// Says what stands against something.
pub(super) fn refused(finding: impl Into<String>) -> PostgresError {
    PostgresError::Refused { finding: finding.into() }
}

/// Says what a failed statement means.
pub(super) fn statement(
    action: &'static str,
) -> impl FnOnce(tokio_postgres::Error) -> PostgresError {
    move |error| {
        let finding = match error.as_db_error() {
            Some(server) => match server.hint() {
                Some(hint) => format!("{} ({hint})", server.message()),
                None => server.message().to_owned(),
            },
            None => with_causes(&error),
        };
        PostgresError::Statement { action, finding }
    }
}
