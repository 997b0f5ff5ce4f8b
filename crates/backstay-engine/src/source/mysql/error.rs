//! Why a MySQL or MariaDB server could not be reached, read or written.

use mysql_async::{DriverError, Error, IoError};

use crate::cx::Cancelled;
use crate::source::cause::Cause;
use crate::source::program::ProgramError;
use crate::source::with_causes;

/// `ER_DBACCESS_DENIED_ERROR`, `ER_ACCESS_DENIED_ERROR`, `ER_HOST_NOT_PRIVILEGED`, `ER_HOST_IS_BLOCKED`,
/// `ER_ACCESS_DENIED_NO_PASSWORD_ERROR`: the server does not let us in.
const LOGIN_CODES: [u16; 5] = [1044, 1045, 1130, 1129, 1698];
/// `ER_BAD_DB_ERROR`.
const NO_DATABASE: u16 = 1049;
/// `ER_SECURE_TRANSPORT_REQUIRED`.
const TLS_REQUIRED: u16 = 3159;

/// Why something with a MySQL or MariaDB server failed.
#[derive(Debug, thiserror::Error)]
pub enum MysqlError {
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
    /// A program of the server failed.
    #[error(transparent)]
    Program(#[from] ProgramError),
    /// What a program wrote is not whole.
    #[error("{finding}")]
    Dump {
        /// What is wrong with it.
        finding: String,
    },
    /// No installed program fits the server.
    #[error(
        "no {program} fits a server of {needed} ({found}); install the package {package}, or set `programs` to the directory of its programs"
    )]
    NoProgram {
        /// Which one.
        program: &'static str,
        /// The server's engine and version.
        needed: String,
        /// What is installed.
        found: String,
        /// What Debian calls its package.
        package: &'static str,
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

/// Finds the cause in what the client says.
pub(super) fn cause_of(error: &Error) -> Cause {
    let text = with_causes(error);
    match error {
        Error::Server(server) if LOGIN_CODES.contains(&server.code) => {
            Cause::Login(server.message.clone())
        }
        Error::Server(server) if server.code == NO_DATABASE => {
            Cause::NoDatabase(server.message.clone())
        }
        Error::Server(server) if server.code == TLS_REQUIRED => Cause::Tls(server.message.clone()),
        Error::Driver(DriverError::NoClientSslFlagFromServer) => {
            Cause::Tls("the server offers no sealed connection".to_owned())
        }
        Error::Io(IoError::Tls(_)) => Cause::Tls(text),
        Error::Io(IoError::Io(io)) => match io.kind() {
            std::io::ErrorKind::ConnectionRefused | std::io::ErrorKind::NotFound => Cause::Refused,
            std::io::ErrorKind::TimedOut => Cause::Timeout,
            _ if io.get_ref().is_some_and(|cause| cause.is::<rustls::Error>()) => Cause::Tls(text),
            _ if text.contains("lookup") => Cause::UnknownHost(text),
            _ => Cause::Other(text),
        },
        _ => Cause::Other(text),
    }
}

/// Says what stands against something.
pub(super) fn refused(finding: impl Into<String>) -> MysqlError {
    MysqlError::Refused { finding: finding.into() }
}

/// Says what a failed statement means.
pub(super) fn statement(action: &'static str) -> impl FnOnce(Error) -> MysqlError {
    move |error| {
        let finding = match &error {
            Error::Server(server) => format!("{} ({})", server.message, server.code),
            _ => with_causes(&error),
        };
        MysqlError::Statement { action, finding }
    }
}
