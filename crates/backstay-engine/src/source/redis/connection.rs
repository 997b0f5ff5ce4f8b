//! How a server of Redis' kind is reached.

use std::future::Future;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::ServerName;
use secrecy::ExposeSecret as _;
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::TlsConnector;

use super::error::RedisError;
use super::wire::{Reply, Session, Stream};
use crate::cx::Cx;
use crate::source::cause::Cause;
use crate::source::connection::{
    APPLICATION, CONNECT_TIMEOUT, Connection, KEEPALIVES_IDLE, KEEPALIVES_INTERVAL,
    KEEPALIVES_RETRIES, NEAR_END, TlsMode,
};
use crate::source::{tls, with_causes};

/// Less than for a whole connection, so that it is known what was waited for.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(8);
/// The user that every server has.
pub const DEFAULT_USER: &str = "default";

/// A connection to a Redis or Valkey server.
pub(super) trait RedisConnection {
    /// Returns where the server is, without any secret, as a URL.
    fn location(&self) -> String;

    /// Opens a session, logged in.
    fn session(&self, cx: &Cx) -> impl Future<Output = Result<Session, RedisError>> + Send;
}

impl RedisConnection for Connection {
    fn location(&self) -> String {
        self.url(if self.tls.mode == TlsMode::Disable { "redis" } else { "rediss" })
    }

    async fn session(&self, cx: &Cx) -> Result<Session, RedisError> {
        let failed = |cause| RedisError::Connect { location: self.location(), cause };
        let way = self.way(cx).await?.map_err(failed)?;
        let port = way.as_ref().map(|way| way.forward.port);
        let opening = tokio::time::timeout(CONNECT_TIMEOUT, open(self, port));
        match (cx.run(opening).await?.unwrap_or(Err(Cause::Timeout)), &way) {
            (Ok(session), _) => Ok(session),
            (Err(cause), None) => Err(failed(cause)),
            (Err(cause), Some(way)) => Err(failed(way.explain(cause).await)),
        }
    }
}

/// Connects to the near end of a tunnel, or directly, and logs in.
async fn open(connection: &Connection, near_end: Option<u16>) -> Result<Session, Cause> {
    let stream: Box<dyn Stream> = match near_end {
        None if connection.host.starts_with('/') => {
            Box::new(UnixStream::connect(&connection.host).await.map_err(|error| cause_of(&error))?)
        }
        near_end => sealed(connection, dial(connection, near_end).await?).await?,
    };
    let mut session = Session::new(stream);
    log_in(connection, &mut session).await?;
    Ok(session)
}

async fn dial(connection: &Connection, near_end: Option<u16>) -> Result<TcpStream, Cause> {
    let dialled = match near_end {
        Some(port) => TcpStream::connect((NEAR_END, port)).await,
        None => {
            let place = (connection.host.as_str(), connection.port);
            let found = tokio::net::lookup_host(place).await;
            let found: Vec<_> =
                found.map_err(|error| Cause::UnknownHost(error.to_string()))?.collect();
            TcpStream::connect(found.as_slice()).await
        }
    };
    let stream = dialled.map_err(|error| cause_of(&error))?;
    let kept = stream.set_nodelay(true).and_then(|()| keep_alive(&stream));
    kept.map_err(|error| cause_of(&error))?;
    Ok(stream)
}

fn keep_alive(stream: &TcpStream) -> io::Result<()> {
    use rustix::net::sockopt;
    sockopt::set_socket_keepalive(stream, true)?;
    sockopt::set_tcp_keepidle(stream, KEEPALIVES_IDLE)?;
    sockopt::set_tcp_keepintvl(stream, KEEPALIVES_INTERVAL)?;
    sockopt::set_tcp_keepcnt(stream, KEEPALIVES_RETRIES)?;
    Ok(())
}

async fn sealed(connection: &Connection, stream: TcpStream) -> Result<Box<dyn Stream>, Cause> {
    if connection.tls.mode == TlsMode::Disable {
        return Ok(Box::new(stream));
    }
    let connector = TlsConnector::from(Arc::new(tls::client_config(&connection.tls)?));
    // The host stays who the server must prove to be, through a tunnel too.
    let name = ServerName::try_from(connection.host.clone());
    let name = name.map_err(|error| Cause::Tls(format!("{}: {error}", connection.host)))?;
    // A server that seals nothing waits for the end of what it takes for a line.
    let sealed = tokio::time::timeout(HANDSHAKE_TIMEOUT, connector.connect(name, stream)).await;
    let not_sealed = |_| {
        Cause::Tls("the server does not answer to it: it may not be sealed at this port".to_owned())
    };
    Ok(Box::new(sealed.map_err(not_sealed)?.map_err(|error| match error.kind() {
        io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset => Cause::Tls(
            "the server closed the connection: it may not be sealed at this port".to_owned(),
        ),
        _ => Cause::Tls(with_causes(&error)),
    })?))
}

async fn log_in(connection: &Connection, session: &mut Session) -> Result<(), Cause> {
    if let Some(password) = &connection.password {
        let password = password.expose_secret().as_bytes();
        let user = connection.user.as_bytes();
        let reply = match connection.user.as_str() {
            // Servers before Redis 6 know no users.
            DEFAULT_USER => session.exchange(&[b"AUTH", password]).await,
            _ => session.exchange(&[b"AUTH", user, password]).await,
        };
        check(connection, reply)?;
    }
    // What it is called is for people; whoever may not say it still may come in.
    let named = session.exchange(&[b"CLIENT", b"SETNAME", APPLICATION.as_bytes()]).await;
    match check(connection, named) {
        Ok(()) | Err(Cause::Other(_)) => {}
        Err(cause) => return Err(cause),
    }
    check(connection, session.exchange(&[b"PING"]).await)
}

/// Says what an answer to a login means.
fn check(connection: &Connection, reply: io::Result<Reply>) -> Result<(), Cause> {
    let text = match reply {
        Ok(Reply::Error(text)) => text,
        Ok(_) => return Ok(()),
        Err(error)
            if connection.tls.mode == TlsMode::Disable
                && error.kind() != io::ErrorKind::TimedOut =>
        {
            return Err(Cause::Other(format!(
                "the server closed the connection ({error}); if its port is sealed, write rediss:// or set `tls`"
            )));
        }
        // Servers refuse a client's certificate only after the handshake.
        Err(error) => return Err(Cause::Tls(with_causes(&error))),
    };
    match text.split(' ').next().unwrap_or_default() {
        // Such an answer repeats what it was given, and that may be the password.
        "ERR" if text.contains("unknown command") => {
            Err(Cause::Other("the server does not know a command that a login needs".to_owned()))
        }
        "NOAUTH" | "WRONGPASS" | "DENIED" => Err(Cause::Login(text)),
        "ERR" if text.contains("AUTH") || text.contains("password") => Err(Cause::Login(text)),
        // Only the right to ask is missing.
        "NOPERM" => Ok(()),
        _ => Err(Cause::Other(text)),
    }
}

fn cause_of(error: &io::Error) -> Cause {
    match error.kind() {
        io::ErrorKind::ConnectionRefused | io::ErrorKind::NotFound => Cause::Refused,
        io::ErrorKind::TimedOut => Cause::Timeout,
        _ => Cause::Other(error.to_string()),
    }
}
