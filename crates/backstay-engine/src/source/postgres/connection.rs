//! How a PostgreSQL server is reached: by ourselves, and by its own programs.

use std::future::Future;
use std::path::PathBuf;

use secrecy::ExposeSecret as _;
use tokio::process::Command;
use tokio_postgres::config::SslMode;
use tokio_postgres::{Client, NoTls};
use tokio_postgres_rustls::MakeRustlsConnect;

use super::error::{PostgresError, cause_of};
use crate::cx::Cx;
use crate::source::cause::Cause;
use crate::source::connection::{
    APPLICATION, CONNECT_TIMEOUT, Connection, KEEPALIVES_IDLE, KEEPALIVES_INTERVAL,
    KEEPALIVES_RETRIES, NEAR_END, TlsMode,
};
use crate::source::tls;
use crate::source::tunnel::{Forward, Tunnel, TunnelCause};

/// What the server's own programs take in a connection string only.
pub(super) const KEEPALIVES: &str =
    "keepalives=1 keepalives_idle=60 keepalives_interval=10 keepalives_count=6";

/// A connection to a PostgreSQL server.
pub(super) trait PostgresConnection {
    /// Returns where the database is, without any secret, as a URL.
    fn location(&self) -> String;

    /// Connects. The returned client's connection runs until the client is dropped.
    fn connect(&self, cx: &Cx) -> impl Future<Output = Result<Client, PostgresError>> + Send;

    /// Prepares one of the server's own programs. What it needs stands in its environment, which only its own user can
    /// read, and never in its arguments. The database is not among it: each program is told in its own way.
    fn program(&self, program: PathBuf) -> Result<Command, PostgresError>;
}

impl PostgresConnection for Connection {
    fn location(&self) -> String {
        self.url("postgres")
    }

    async fn connect(&self, cx: &Cx) -> Result<Client, PostgresError> {
        let failed = |cause| PostgresError::Connect { location: self.location(), cause };
        let way = self.way(cx).await?.map_err(failed)?;
        let forward = way.as_ref().map(|way| &*way.forward);
        match (cx.run(dial(self, forward)).await?, &way) {
            (Ok(client), _) => Ok(client),
            (Err(cause), None) => Err(failed(cause)),
            (Err(cause), Some(way)) => Err(failed(way.explain(cause).await)),
        }
    }

    fn program(&self, program: PathBuf) -> Result<Command, PostgresError> {
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
                let open = tunnel.present().ok_or_else(|| tunnel_is_gone(self, tunnel))?;
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
}

/// Connects to the near end of a tunnel, or directly. The host stays who the server must prove to be.
async fn dial(connection: &Connection, forward: Option<&Forward>) -> Result<Client, Cause> {
    let mut config = tokio_postgres::Config::new();
    config.host(&connection.host).user(&connection.user).dbname(&connection.database);
    match forward {
        None => config.port(connection.port),
        Some(forward) => config.hostaddr(NEAR_END).port(forward.port),
    };
    config.application_name(APPLICATION).connect_timeout(CONNECT_TIMEOUT);
    config.keepalives_idle(KEEPALIVES_IDLE).keepalives_interval(KEEPALIVES_INTERVAL);
    config.keepalives_retries(KEEPALIVES_RETRIES);
    if let Some(password) = &connection.password {
        config.password(password.expose_secret());
    }
    let is_local = connection.host.starts_with('/');
    config.ssl_mode(match connection.tls.mode {
        TlsMode::Disable => SslMode::Disable,
        _ if is_local => SslMode::Disable,
        TlsMode::Prefer => SslMode::Prefer,
        TlsMode::Require | TlsMode::VerifyCa | TlsMode::VerifyFull => SslMode::Require,
    });
    // Boxed: a session that is sealed is a large future, and everything waits for sessions.
    let connecting = Box::pin(async {
        if config.get_ssl_mode() == SslMode::Disable {
            let (client, session) =
                config.connect(NoTls).await.map_err(|error| cause_of(&error))?;
            drop(tokio::spawn(session));
            return Ok(client);
        }
        let tls = MakeRustlsConnect::new(tls::client_config(&connection.tls)?);
        let (client, session) = config.connect(tls).await.map_err(|error| cause_of(&error))?;
        drop(tokio::spawn(session));
        Ok(client)
    });
    let limited = tokio::time::timeout(CONNECT_TIMEOUT, connecting);
    limited.await.unwrap_or(Err(Cause::Timeout))
}

fn tunnel_is_gone(connection: &Connection, tunnel: &Tunnel) -> PostgresError {
    let end = TunnelCause::Ended("it is not there any more".to_owned());
    let cause = Cause::Tunnel(tunnel.error(end));
    PostgresError::Connect { location: connection.location(), cause }
}
