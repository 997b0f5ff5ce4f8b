//! How a PostgreSQL server is reached: by ourselves, and by its own programs.

use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::time::Duration;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use secrecy::{ExposeSecret as _, SecretString};
use tokio::process::Command;
use tokio_postgres::config::SslMode;
use tokio_postgres::{Client, NoTls};
use tokio_postgres_rustls::MakeRustlsConnect;

use super::error::{Cause, PostgresError};
use super::tls;
use crate::cx::Cx;
use crate::source::tunnel::{Forward, Tunnel, TunnelCause};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(15);
/// Where tunnels begin.
const NEAR_END: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
/// A peer that is gone without a word is noticed after two minutes; the system's own default is two hours. Keepalives say
/// nothing about a server that is busy: its system answers them.
const KEEPALIVES_IDLE: Duration = Duration::from_secs(60);
const KEEPALIVES_INTERVAL: Duration = Duration::from_secs(10);
const KEEPALIVES_RETRIES: u32 = 6;
/// The same for the server's own programs, which take it in a connection string only.
pub(super) const KEEPALIVES: &str =
    "keepalives=1 keepalives_idle=60 keepalives_interval=10 keepalives_count=6";
/// What the server's list of sessions calls us.
const APPLICATION: &str = "backstay";

/// What stands for something else in a URL.
const ENCODED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~');

/// Where a database is, and as whom it is asked.
#[derive(Debug, Clone)]
pub struct Connection {
    /// A name, an address, or the directory of a Unix socket.
    pub host: String,
    /// Usually 5432.
    pub port: u16,
    /// The role.
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
    fn system_roots(&self) -> Option<PathBuf> {
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
    pub fn location(&self) -> String {
        let encoded = |text| utf8_percent_encode(text, ENCODED);
        let host = if self.host.contains(':') {
            format!("[{}]", self.host)
        } else {
            encoded(&self.host).to_string()
        };
        let (user, database) = (encoded(&self.user), encoded(&self.database));
        format!("postgres://{user}@{host}:{}/{database}", self.port)
    }

    /// Returns the same server with another database.
    pub fn with_database(&self, database: &str) -> Self {
        Self { database: database.to_owned(), ..self.clone() }
    }

    /// Connects. The returned client's connection runs until the client is dropped.
    pub async fn connect(&self, cx: &Cx) -> Result<Client, PostgresError> {
        let failed = |cause| PostgresError::Connect { location: self.location(), cause };
        let Some(tunnel) = &self.tunnel else {
            return cx.run(self.connect_to(None)).await?.map_err(failed);
        };
        let forward = cx.run(tunnel.open()).await?.map_err(|error| failed(Cause::Tunnel(error)))?;
        let mark = forward.mark();
        let connected = cx.run(self.connect_to(Some(&forward))).await?;
        let Err(cause) = connected else { return connected.map_err(failed) };
        // Whatever goes wrong behind the near end looks like a connection that is closed or that nobody answers.
        let of_tunnel = match &cause {
            Cause::Login(_) | Cause::NoDatabase(_) => None,
            Cause::Timeout => Some(TunnelCause::Unreachable("no answer in time".to_owned())),
            _ => forward.refusal(mark).await,
        };
        let of_tunnel = match of_tunnel {
            Some(cause) => Some(tunnel.error(cause)),
            None => tunnel.end().await,
        };
        Err(failed(of_tunnel.map_or(cause, Cause::Tunnel)))
    }

    /// Connects to the near end of a tunnel, or directly. The host stays who the server must prove to be.
    async fn connect_to(&self, forward: Option<&Forward>) -> Result<Client, Cause> {
        let mut config = tokio_postgres::Config::new();
        config.host(&self.host).user(&self.user).dbname(&self.database);
        match forward {
            None => config.port(self.port),
            Some(forward) => config.hostaddr(NEAR_END).port(forward.port),
        };
        config.application_name(APPLICATION).connect_timeout(CONNECT_TIMEOUT);
        config.keepalives_idle(KEEPALIVES_IDLE).keepalives_interval(KEEPALIVES_INTERVAL);
        config.keepalives_retries(KEEPALIVES_RETRIES);
        if let Some(password) = &self.password {
            config.password(password.expose_secret());
        }
        let is_local = self.host.starts_with('/');
        config.ssl_mode(match self.tls.mode {
            TlsMode::Disable => SslMode::Disable,
            _ if is_local => SslMode::Disable,
            TlsMode::Prefer => SslMode::Prefer,
            TlsMode::Require | TlsMode::VerifyCa | TlsMode::VerifyFull => SslMode::Require,
        });
        // Boxed: a session that is sealed is a large future, and everything waits for sessions.
        let connecting = Box::pin(async {
            if config.get_ssl_mode() == SslMode::Disable {
                let (client, connection) =
                    config.connect(NoTls).await.map_err(|error| Cause::of(&error))?;
                drop(tokio::spawn(connection));
                return Ok(client);
            }
            let tls = MakeRustlsConnect::new(tls::client_config(&self.tls)?);
            let (client, connection) =
                config.connect(tls).await.map_err(|error| Cause::of(&error))?;
            drop(tokio::spawn(connection));
            Ok(client)
        });
        let limited = tokio::time::timeout(CONNECT_TIMEOUT, connecting);
        limited.await.unwrap_or(Err(Cause::Timeout))
    }

    /// Prepares one of the server's own programs. What it needs stands in its environment, which only its own user can
    /// read, and never in its arguments. The database is not among it: each program is told in its own way.
    pub(super) fn program(&self, program: PathBuf) -> Result<Command, PostgresError> {
        let mut command = Command::new(program);
        command.env_clear().kill_on_drop(true);
        for name in ["PATH", "HOME", "LD_LIBRARY_PATH"] {
            if let Some(value) = std::env::var_os(name) {
                command.env(name, value);
            }
        }
        command.envs([("LC_ALL", "C"), ("PGAPPNAME", APPLICATION)]);
        command.env("PGCONNECT_TIMEOUT", CONNECT_TIMEOUT.as_secs().to_string());
        command.env("PGHOST", &self.host);
        let port = match &self.tunnel {
            None => self.port,
            Some(tunnel) => {
                let open = tunnel.present().ok_or_else(|| self.tunnel_is_gone(tunnel))?;
                command.env("PGHOSTADDR", NEAR_END.to_string());
                open.port
            }
        };
        command.env("PGPORT", port.to_string()).env("PGUSER", &self.user);
        command.env("PGSSLMODE", self.tls.mode.as_str());
        let roots = self.tls.ca_file.clone().or_else(|| self.tls.system_roots());
        let files = [
            ("PGSSLROOTCERT", &roots),
            ("PGSSLCERT", &self.tls.certificate_file),
            ("PGSSLKEY", &self.tls.key_file),
        ];
        for (name, file) in files {
            if let Some(file) = file {
                command.env(name, file);
            }
        }
        if let Some(password) = &self.password {
            command.env("PGPASSWORD", password.expose_secret());
        }
        Ok(command)
    }

    fn tunnel_is_gone(&self, tunnel: &Tunnel) -> PostgresError {
        let end = TunnelCause::Ended("it is not there any more".to_owned());
        let cause = Cause::Tunnel(tunnel.error(end));
        PostgresError::Connect { location: self.location(), cause }
    }
}
