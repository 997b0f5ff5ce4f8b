//! How a database server is reached: where it is, as whom, how sealed, and through whom.

use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use secrecy::SecretString;

use super::cause::Cause;
use super::tunnel::{Forward, Tunnel, TunnelCause};
use crate::cx::{Cancelled, Cx};

pub(super) const CONNECT_TIMEOUT: Duration = Duration::from_secs(15);
/// Where tunnels begin.
pub(super) const NEAR_END: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
/// A peer that is gone without a word is noticed after two minutes; the system's own default is two hours. Keepalives say
/// nothing about a server that is busy: its system answers them.
pub(super) const KEEPALIVES_IDLE: Duration = Duration::from_secs(60);
pub(super) const KEEPALIVES_INTERVAL: Duration = Duration::from_secs(10);
pub(super) const KEEPALIVES_RETRIES: u32 = 6;
/// What servers' lists of sessions call us.
pub(super) const APPLICATION: &str = "backstay";

/// What stands for something else in a URL.
const ENCODED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~');

/// Where a database is, and as whom it is asked.
#[derive(Debug, Clone)]
pub struct Connection {
    /// A name, an address, or the directory of a Unix socket.
    pub host: String,
    /// Usually 5432 for PostgreSQL, 3306 for MySQL and MariaDB.
    pub port: u16,
    /// The role or user.
    pub user: String,
    /// Left out where the server needs none.
    pub password: Option<SecretString>,
    /// The database.
    pub database: String,
    /// Whether and how the connection is sealed.
    pub tls: Tls,
    /// The way there, if it leads through another machine.
    pub tunnel: Option<Tunnel>,
}

/// Whether and how a connection is sealed; the words are those of `sslmode`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tls {
    /// How much is asked of the server.
    pub mode: TlsMode,
    /// Certificates to trust, in PEM; the system's if left out.
    pub ca_file: Option<PathBuf>,
    /// Our certificate, in PEM.
    pub certificate_file: Option<PathBuf>,
    /// The key of our certificate, in PEM.
    pub key_file: Option<PathBuf>,
}

/// How much is asked of the server.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum TlsMode {
    /// Never sealed.
    Disable,
    /// Sealed if the server can; nobody is checked.
    #[default]
    Prefer,
    /// Sealed; nobody is checked.
    Require,
    /// Sealed, and its certificate is trusted.
    VerifyCa,
    /// Sealed, its certificate is trusted, and it is for this host.
    VerifyFull,
}

/// Where systems keep the certificates that they trust, in one file: Debian, Red Hat, SUSE, and BSDs and Alpine.
const SYSTEM_ROOTS: [&str; 4] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
];

impl Tls {
    /// Returns the system's certificates for the server's programs, if a certificate is asked for: left alone, they trust
    /// what lies in their user's home, and we trust the system.
    pub(super) fn system_roots(&self) -> Option<PathBuf> {
        let asks = matches!(self.mode, TlsMode::VerifyCa | TlsMode::VerifyFull);
        let set = std::env::var_os("SSL_CERT_FILE").map(PathBuf::from);
        let mut known = set.into_iter().chain(SYSTEM_ROOTS.map(PathBuf::from));
        known.find(|file| asks && file.is_file())
    }
}

impl TlsMode {
    /// Returns the word for it in `sslmode`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Disable => "disable",
            Self::Prefer => "prefer",
            Self::Require => "require",
            Self::VerifyCa => "verify-ca",
            Self::VerifyFull => "verify-full",
        }
    }

    /// Returns the mode of that word.
    pub fn parse(word: &str) -> Option<Self> {
        [Self::Disable, Self::Prefer, Self::Require, Self::VerifyCa, Self::VerifyFull]
            .into_iter()
            .find(|mode| mode.as_str() == word)
    }
}

impl Connection {
    /// Returns where the database is, without any secret, as a URL.
    pub fn url(&self, scheme: &str) -> String {
        let encoded = |text| utf8_percent_encode(text, ENCODED);
        let host = if self.host.contains(':') {
            format!("[{}]", self.host)
        } else {
            encoded(&self.host).to_string()
        };
        let (user, database) = (encoded(&self.user), encoded(&self.database));
        format!("{scheme}://{user}@{host}:{}/{database}", self.port)
    }

    /// Returns which server it is to.
    pub(super) fn server(&self) -> String {
        format!("{}:{}", self.host, self.port)
    }

    /// Fails, with words for a person, if a restore was on another server than this.
    pub(super) fn check_server(&self, of_restore: &str) -> Result<(), String> {
        let server = self.server();
        if server == of_restore {
            return Ok(());
        }
        Err(format!(
            "the restore was on the server {of_restore}, and the source is on {server} now: give the source that address again for as long as it takes to undo or confirm the restore"
        ))
    }

    /// Returns the same server with another database.
    pub fn with_database(&self, database: &str) -> Self {
        Self { database: database.to_owned(), ..self.clone() }
    }

    /// Opens the tunnel, if the way leads through one.
    pub(super) async fn way(&self, cx: &Cx) -> Result<Result<Option<Way>, Cause>, Cancelled> {
        let Some(tunnel) = &self.tunnel else { return Ok(Ok(None)) };
        let opened = cx.run(tunnel.open()).await?;
        Ok(opened.map_err(Cause::Tunnel).map(|forward| {
            let mark = forward.mark();
            Some(Way { tunnel: tunnel.clone(), forward, mark })
        }))
    }
}

/// A tunnel that is open, from a moment on.
pub(super) struct Way {
    tunnel: Tunnel,
    pub(super) forward: Arc<Forward>,
    mark: u64,
}

impl Way {
    /// Says why a connection through it failed: whatever goes wrong behind the near end looks like one that is closed or
    /// that nobody answers.
    pub(super) async fn explain(&self, cause: Cause) -> Cause {
        let of_tunnel = match &cause {
            Cause::Login(_) | Cause::NoDatabase(_) => None,
            Cause::Timeout => Some(TunnelCause::Unreachable("no answer in time".to_owned())),
            _ => self.forward.refusal(self.mark).await,
        };
        let of_tunnel = match of_tunnel {
            Some(cause) => Some(self.tunnel.error(cause)),
            None => self.tunnel.end().await,
        };
        of_tunnel.map_or(cause, Cause::Tunnel)
    }
}
