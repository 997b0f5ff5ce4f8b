//! Why a PostgreSQL server could not be reached, read or written.

use std::error::Error as _;
use std::io;

use tokio_postgres::error::SqlState;

use crate::cx::Cancelled;
use crate::source::tunnel::TunnelError;
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
    #[error("{program} failed ({status}): {finding}")]
    Program {
        /// Which one.
        program: &'static str,
        /// How it ended.
        status: String,
        /// What it said; its first complaints.
        finding: String,
    },
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
    /// Says whether the same may work a little later, with nothing changed.
    pub(crate) fn is_passing(&self) -> bool {
        match self {
            Self::GaveWay { .. } => true,
            // No code comes with it: where the server speaks another language, this is not tried again. Only while it waits
            // for its locks does a dump have a limit, and pg_dump sets it as one for statements.
            Self::Program { finding, .. } => {
                finding.contains("due to statement timeout")
                    || finding.contains("due to lock timeout")
            }
            _ => false,
        }
    }
}

/// Why no session could be had.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Cause {
    /// The name is not known.
    UnknownHost(String),
    /// Nobody listens.
    Refused,
    /// Nobody answers.
    Timeout,
    /// The sealed connection failed.
    Tls(String),
    /// The server does not know the role, or not by this password.
    Login(String),
    /// There is no such database.
    NoDatabase(String),
    /// There is no way through the bastion.
    Tunnel(TunnelError),
    /// The server says something else.
    Other(String),
}

impl std::fmt::Display for Cause {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::UnknownHost(text) => {
                write!(f, "the host's name is not known ({text}); check `host`, and that this machine can resolve it")
            }
            Self::Refused => f.write_str(
                "connection refused: nobody listens there; check host and port, that the server runs, and its listen_addresses",
            ),
            Self::Timeout => f.write_str(
                "no answer in time: a firewall may drop what is sent; check that this machine may reach the server",
            ),
            Self::Tls(text) => write!(f, "TLS failed: {text}; check `tls`, `tls_ca_file` and `tls_certificate_file`"),
            Self::Login(text) => {
                write!(f, "login failed: {text}; check user and password, and the server's pg_hba.conf")
            }
            Self::NoDatabase(text) => write!(f, "{text}; check the database's name"),
            Self::Tunnel(error) => error.fmt(f),
            Self::Other(text) => f.write_str(text),
        }
    }
}

impl Cause {
    /// Finds the cause in what the client says.
    pub(super) fn of(error: &tokio_postgres::Error) -> Self {
        if let Some(server) = error.as_db_error() {
            let text = server.message().to_owned();
            return match *server.code() {
                SqlState::INVALID_PASSWORD | SqlState::INVALID_AUTHORIZATION_SPECIFICATION => {
                    Self::Login(text)
                }
                SqlState::INVALID_CATALOG_NAME => Self::NoDatabase(text),
                _ => Self::Other(text),
            };
        }
        let text = with_causes(error);
        let io = error.source().and_then(|cause| cause.downcast_ref::<io::Error>());
        match io.map(io::Error::kind) {
            Some(io::ErrorKind::ConnectionRefused | io::ErrorKind::NotFound) => Self::Refused,
            Some(io::ErrorKind::TimedOut) => Self::Timeout,
            // What the other side says about our certificate.
            _ if io
                .and_then(io::Error::get_ref)
                .is_some_and(|cause| cause.is::<rustls::Error>()) =>
            {
                Self::Tls(text)
            }
            _ if text.contains("lookup") => Self::UnknownHost(text),
            _ if text.contains("TLS") || text.contains("certificate") => Self::Tls(text),
            _ if text.contains("password") => Self::Login(text),
            _ => Self::Other(text),
        }
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
