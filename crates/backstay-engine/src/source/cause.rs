//! Why a database server could not be reached.

use super::tunnel::TunnelError;
use crate::error::Passing;

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

impl Cause {
    /// Says why the same may work later, with nothing changed, if it may. A server that is started anew is not there either.
    pub(crate) fn passing(&self) -> Option<Passing> {
        matches!(self, Self::UnknownHost(_) | Self::Refused | Self::Timeout)
            .then_some(Passing::Outage)
    }
}

impl std::fmt::Display for Cause {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::UnknownHost(text) => {
                write!(f, "the host's name is not known ({text}); check `host`, and that this machine can resolve it")
            }
            Self::Refused => f.write_str(
                "connection refused: nobody listens there; check host and port, that the server runs, and the addresses that it listens at",
            ),
            Self::Timeout => f.write_str(
                "no answer in time: a firewall may drop what is sent; check that this machine may reach the server",
            ),
            Self::Tls(text) => write!(f, "TLS failed: {text}; check `tls`, `tls_ca_file` and `tls_certificate_file`"),
            Self::Login(text) => {
                write!(f, "login failed: {text}; check user and password, and whether the server lets this user in from here")
            }
            Self::NoDatabase(text) => write!(f, "{text}; check the database's name"),
            Self::Tunnel(error) => error.fmt(f),
            Self::Other(text) => f.write_str(text),
        }
    }
}
