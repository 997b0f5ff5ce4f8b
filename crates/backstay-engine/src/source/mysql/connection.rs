//! How a MySQL or MariaDB server is reached: by ourselves, and by its own programs.

use std::future::Future;
use std::path::Path;

use mysql_async::prelude::Queryable as _;
use mysql_async::{ClientIdentity, Conn, DriverError, Error, Opts, OptsBuilder, SslOpts};
use secrecy::ExposeSecret as _;
use tokio::process::Command;

use super::error::{MysqlError, cause_of, statement};
use super::tools::Flavour;
use crate::cx::Cx;
use crate::source::cause::Cause;
use crate::source::connection::{
    APPLICATION, CONNECT_TIMEOUT, Connection, KEEPALIVES_IDLE, NEAR_END, TlsMode,
};
use crate::source::tunnel::{Forward, TunnelCause};

/// What holds for every session of ours, before any work: our words mean the same on every server, long work is not cut
/// off, and no other session waits long for one of our locks.
pub(super) const SETUP: &str = "SET NAMES utf8mb4, SESSION sql_mode = 'NO_AUTO_VALUE_ON_ZERO', SESSION wait_timeout = 28800,
    SESSION net_read_timeout = 3600, SESSION net_write_timeout = 3600, SESSION time_zone = '+00:00'";

/// Whom the server need not be where only its certificate is checked. The client knows that only the name is wrong by the
/// word for it in the error's text, and that text has the expected name in the place of the word; so the name is the word.
const NO_NAME: &str = "NotValidForName.invalid";

/// A connection to a MySQL or MariaDB server.
pub(super) trait MysqlConnection {
    /// Returns where the database is, without any secret, as a URL.
    fn location(&self) -> String;

    /// Opens a session with the server, and no database chosen.
    fn session(&self, cx: &Cx) -> impl Future<Output = Result<Conn, MysqlError>> + Send;

    /// Prepares one of the server's own programs: how it is connected, and nothing else. The password stands in its
    /// environment, which only its own user can read.
    fn program(&self, program: &Path, flavour: Flavour) -> Result<Command, MysqlError>;
}

impl MysqlConnection for Connection {
    fn location(&self) -> String {
        self.url("mysql")
    }

    async fn session(&self, cx: &Cx) -> Result<Conn, MysqlError> {
        let failed = |cause| MysqlError::Connect { location: self.location(), cause };
        let way = self.way(cx).await?.map_err(failed)?;
        let forward = way.as_ref().map(|way| &*way.forward);
        let mut session = match (cx.run(dial(self, forward)).await?, &way) {
            (Ok(session), _) => session,
            (Err(cause), None) => return Err(failed(cause)),
            (Err(cause), Some(way)) => return Err(failed(way.explain(cause).await)),
        };
        session.query_drop(SETUP).await.map_err(statement("set up a session"))?;
        Ok(session)
    }

    fn program(&self, program: &Path, flavour: Flavour) -> Result<Command, MysqlError> {
        let mut command = Command::new(program);
        command.env_clear().kill_on_drop(true);
        for name in ["PATH", "HOME", "LD_LIBRARY_PATH"] {
            if let Some(value) = std::env::var_os(name) {
                command.env(name, value);
            }
        }
        command.env("LC_ALL", "C");
        // First: what the user of this machine has set for other work is not for this.
        command.arg("--no-defaults").arg(format!("--user={}", self.user));
        match &self.tunnel {
            _ if self.host.starts_with('/') => {
                command.arg("--protocol=socket").arg(format!("--socket={}", self.host));
            }
            None => {
                command.arg("--protocol=tcp").arg(format!("--host={}", self.host));
                command.arg(format!("--port={}", self.port));
            }
            Some(tunnel) => {
                let open = tunnel.present().ok_or_else(|| {
                    let end = TunnelCause::Ended("it is not there any more".to_owned());
                    let cause = Cause::Tunnel(tunnel.error(end));
                    MysqlError::Connect { location: self.location(), cause }
                })?;
                command.arg("--protocol=tcp").arg(format!("--host={NEAR_END}"));
                command.arg(format!("--port={}", open.port));
            }
        }
        if let Some(password) = &self.password {
            command.env("MYSQL_PWD", password.expose_secret());
        }
        command.args(self.tls_words(flavour));
        Ok(command)
    }
}

impl Connection {
    /// Returns what tells a program how the connection is sealed.
    fn tls_words(&self, flavour: Flavour) -> Vec<String> {
        let mode = if self.host.starts_with('/') { TlsMode::Disable } else { self.tls.mode };
        let words: &[&str] = match (flavour, mode) {
            (Flavour::Mysql, TlsMode::Disable) => &["--ssl-mode=DISABLED"],
            (Flavour::Mysql, TlsMode::Prefer) => &["--ssl-mode=PREFERRED"],
            (Flavour::Mysql, TlsMode::Require) => &["--ssl-mode=REQUIRED"],
            (Flavour::Mysql, TlsMode::VerifyCa) => &["--ssl-mode=VERIFY_CA"],
            (Flavour::Mysql, TlsMode::VerifyFull) => &["--ssl-mode=VERIFY_IDENTITY"],
            (Flavour::Mariadb, TlsMode::Disable) => &["--skip-ssl"],
            // Whether the server can is known from our own session by now.
            (Flavour::Mariadb, TlsMode::Prefer) => &["--disable-ssl-verify-server-cert"],
            (Flavour::Mariadb, TlsMode::Require | TlsMode::VerifyCa) => {
                &["--ssl", "--disable-ssl-verify-server-cert"]
            }
            (Flavour::Mariadb, TlsMode::VerifyFull) => &["--ssl", "--ssl-verify-server-cert"],
        };
        let mut words: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
        let mut file = |option: &str, path: Option<&Path>| {
            words.extend(path.map(|path| format!("--ssl-{option}={}", path.display())));
        };
        if mode != TlsMode::Disable {
            let roots = self.tls.ca_file.clone().or_else(|| self.tls.system_roots());
            file("ca", roots.as_deref());
            file("cert", self.tls.certificate_file.as_deref());
            file("key", self.tls.key_file.as_deref());
        }
        words
    }
}

/// Connects to the near end of a tunnel, or directly. The host stays who the server must prove to be.
async fn dial(connection: &Connection, forward: Option<&Forward>) -> Result<Conn, Cause> {
    let mut builder = OptsBuilder::default()
        .user(Some(&connection.user))
        .pass(connection.password.as_ref().map(|password| password.expose_secret().to_owned()))
        .prefer_socket(false)
        .stmt_cache_size(0)
        .tcp_keepalive(Some(KEEPALIVES_IDLE))
        .connect_attribute("program_name", APPLICATION);
    builder = match forward {
        _ if connection.host.starts_with('/') => builder.socket(Some(&connection.host)),
        None => builder.ip_or_hostname(&connection.host).tcp_port(connection.port),
        Some(forward) => builder.ip_or_hostname(NEAR_END.to_string()).tcp_port(forward.port),
    };
    let is_local = connection.host.starts_with('/');
    let mode = if is_local { TlsMode::Disable } else { connection.tls.mode };
    let sealed = match mode {
        TlsMode::Disable => None,
        _ => Some(seal(connection)?),
    };
    let opened = open(builder.clone().ssl_opts(sealed).into()).await;
    match opened {
        Err(Error::Driver(DriverError::NoClientSslFlagFromServer)) if mode == TlsMode::Prefer => {
            let open_one = open(builder.ssl_opts(None).into()).await;
            open_one.map_err(|error| cause_of(&error))
        }
        opened => opened.map_err(|error| cause_of(&error)),
    }
}

async fn open(opts: Opts) -> Result<Conn, Error> {
    let limited = tokio::time::timeout(CONNECT_TIMEOUT, Conn::new(opts)).await;
    let timed_out = || std::io::Error::from(std::io::ErrorKind::TimedOut);
    limited.unwrap_or_else(|_elapsed| Err(timed_out().into()))
}

/// Says how a session is sealed.
fn seal(connection: &Connection) -> Result<SslOpts, Cause> {
    let tls = &connection.tls;
    let expected = match tls.mode {
        TlsMode::VerifyCa => NO_NAME.to_owned(),
        _ => connection.host.clone(),
    };
    let mut sealed = SslOpts::default().with_danger_tls_hostname_override(Some(expected));
    match tls.mode {
        TlsMode::Disable | TlsMode::Prefer | TlsMode::Require => {
            sealed = sealed
                .with_danger_accept_invalid_certs(true)
                .with_danger_skip_domain_validation(true);
        }
        TlsMode::VerifyCa | TlsMode::VerifyFull => {
            let trusted = tls.ca_file.clone().or_else(|| tls.system_roots());
            let nothing = || Cause::Tls("there is no certificate to trust".to_owned());
            sealed = sealed
                .with_disable_built_in_roots(true)
                .with_root_certs(vec![trusted.ok_or_else(nothing)?.into()])
                .with_danger_skip_domain_validation(tls.mode == TlsMode::VerifyCa);
        }
    }
    match (&tls.certificate_file, &tls.key_file) {
        (Some(certificate), Some(key)) => {
            let identity = ClientIdentity::new(certificate.clone().into(), key.clone().into());
            Ok(sealed.with_client_identity(Some(identity)))
        }
        (None, None) => Ok(sealed),
        _ => Err(Cause::Tls("a certificate and its key come together".to_owned())),
    }
}
