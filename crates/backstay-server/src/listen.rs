//! Listening for workers, by TLS or not.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::time::Duration;

use axum::Router;
use axum_server::Handle;
use axum_server::tls_rustls::RustlsConfig;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval};

use crate::limit::Limited;

/// Requests that are being answered when the server ends may take this long.
const GRACE: Duration = Duration::from_secs(10);
/// How long the headers of a request may take, and a connection may stand still between two.
const HEADERS: Duration = Duration::from_secs(30);
/// How often a certificate is read anew: those that are renewed by themselves last for weeks.
const CERTIFICATE_AGE: Duration = Duration::from_hours(1);

/// A certificate with its chain, and its key; both PEM.
#[derive(Debug, Clone)]
pub struct Tls {
    /// The file of the certificate.
    pub certificate: PathBuf,
    /// The file of the key.
    pub key: PathBuf,
}

/// Why nobody listens.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// The address cannot be listened on.
    #[error("cannot listen on {address}")]
    Address {
        /// Which.
        address: SocketAddr,
        /// What the system said.
        #[source]
        cause: io::Error,
    },
    /// The certificate or its key is wrong.
    #[error("cannot use the certificate {certificate} with the key {key}")]
    Certificate {
        /// Its file.
        certificate: String,
        /// The key's file.
        key: String,
        /// What is wrong.
        #[source]
        cause: io::Error,
    },
}

/// Somebody listens, until this is ended or dropped.
#[derive(Debug)]
pub struct Listening {
    /// Where; the port is one that was free if 0 was asked for.
    pub address: SocketAddr,
    handle: Handle<SocketAddr>,
    tasks: JoinSet<io::Result<()>>,
}

impl Listening {
    /// Stops listening, after answering what was asked.
    pub async fn end(mut self) {
        self.handle.graceful_shutdown(Some(GRACE));
        // One task ends with the listener; the other reads certificates for ever.
        let _ended = self.tasks.join_next().await;
    }
}

/// Begins to listen.
pub async fn listen(
    address: SocketAddr,
    tls: Option<Tls>,
    router: Router,
) -> Result<Listening, ListenError> {
    let failed = |cause| ListenError::Address { address, cause };
    let listener = TcpListener::bind(address).map_err(failed)?;
    listener.set_nonblocking(true).map_err(failed)?;
    let address = listener.local_addr().map_err(failed)?;
    let handle = Handle::new();
    let service = router.into_make_service();
    let mut tasks = JoinSet::new();
    match tls {
        None => {
            let server = axum_server::from_tcp(listener).map_err(failed)?;
            let mut server = server.map(Limited::new).handle(handle.clone());
            bound(server.http_builder());
            tasks.spawn(server.serve(service));
        }
        Some(tls) => {
            let config = RustlsConfig::from_pem_file(&tls.certificate, &tls.key).await;
            let config = config.map_err(|cause| ListenError::Certificate {
                certificate: tls.certificate.display().to_string(),
                key: tls.key.display().to_string(),
                cause,
            })?;
            let server = axum_server::from_tcp_rustls(listener, config.clone()).map_err(failed)?;
            let mut server = server.map(Limited::new).handle(handle.clone());
            bound(server.http_builder());
            tasks.spawn(server.serve(service));
            tasks.spawn(read_anew(config, tls));
        }
    }
    Ok(Listening { address, handle, tasks })
}

/// Whoever says nothing is not waited for.
fn bound(builder: &mut Builder<TokioExecutor>) {
    builder.http1().timer(TokioTimer::new()).header_read_timeout(HEADERS);
    builder.http2().timer(TokioTimer::new()).keep_alive_interval(HEADERS);
}

/// Reads the certificate again and again. One that is wrong is not taken: the one before goes on.
async fn read_anew(config: RustlsConfig, tls: Tls) -> io::Result<()> {
    let mut ticks = interval(CERTIFICATE_AGE);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let _kept = config.reload_from_pem_file(&tls.certificate, &tls.key).await;
    }
}
