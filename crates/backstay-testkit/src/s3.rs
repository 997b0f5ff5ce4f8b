//! An S3 server in this process, with faults by script: s3s over a directory that tests can look into.

use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::{Arc, Mutex};

use http::{Method, Request, Response, StatusCode};
use hyper::body::Incoming;
use hyper::service::Service;
use hyper_util::rt::TokioIo;
use s3s::auth::SimpleAuth;
use s3s::service::{S3Service, S3ServiceBuilder};

use crate::spoil;

/// The bucket that is there from the start.
pub const BUCKET: &str = "app-backups";
/// Who may use it.
pub const ACCESS_KEY: &str = "test-key";
/// The secret of the one who may.
pub const SECRET_KEY: &str = "test-secret-of-some-length";

/// What a request is about to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Call {
    /// Which one, from 0.
    pub index: usize,
    /// Its method.
    pub method: Method,
    /// Its path, with the bucket.
    pub path: String,
    /// Its query.
    pub query: String,
}

/// What happens to a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// Nothing special.
    Pass,
    /// It is answered with this error, and nothing is done.
    Refuse(u16, &'static str),
    /// The connection is closed before anything is done.
    DropBefore,
    /// It is done, but nobody hears of it.
    DropAfter,
    /// It is answered as done, and nothing is done.
    Swallow,
    /// It is done, but its answer ends in the middle.
    CutAnswer,
    /// It is done, but one bit of its answer is another one.
    FlipAnswer,
    /// One bit of what it sends is another one when it arrives.
    FlipRequest,
    /// It is done after this many milliseconds.
    Delay(u64),
    /// It is done, and a range is answered with status 200, as rclone's server does.
    MisspellRange,
    /// The process is killed before it is done.
    KillBefore(u32),
    /// The process is killed after it was done.
    KillAfter(u32),
}

type Script = Box<dyn Fn(&Call) -> Fault + Send + Sync>;

/// A server that stops when it is dropped.
pub struct S3Server {
    /// Its URL.
    pub endpoint: String,
    root: tempfile::TempDir,
    state: Arc<State>,
    runtime: Option<tokio::runtime::Runtime>,
}

struct State {
    calls: Mutex<Vec<Call>>,
    script: Mutex<Script>,
}

impl S3Server {
    /// Starts a server on a free port of the loopback interface.
    pub fn start() -> anyhow::Result<Self> {
        let root = tempfile::tempdir()?;
        std::fs::create_dir(root.path().join(BUCKET))?;
        let state = Arc::new(State {
            calls: Mutex::default(),
            script: Mutex::new(Box::new(|_| Fault::Pass)),
        });
        let files =
            s3s_fs::FileSystem::new(root.path()).map_err(|error| anyhow::anyhow!("{error:?}"))?;
        let mut builder = S3ServiceBuilder::new(files);
        builder.set_auth(SimpleAuth::from_single(ACCESS_KEY, SECRET_KEY));
        let service = Faulty { inner: builder.build(), state: state.clone() };
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
        let listener = runtime.block_on(tokio::net::TcpListener::bind(("127.0.0.1", 0)))?;
        let endpoint = format!("http://{}", listener.local_addr()?);
        drop(runtime.spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                // Headers and body go out apart: without this each answer would wait 40 ms for an acknowledgement.
                drop(stream.set_nodelay(true));
                let service = service.clone();
                drop(tokio::spawn(async move {
                    let connection = hyper::server::conn::http1::Builder::new();
                    // Connections that end in the middle are what this server is for.
                    drop(connection.serve_connection(TokioIo::new(stream), service).await);
                }));
            }
        }));
        Ok(Self { endpoint, root, state, runtime: Some(runtime) })
    }

    /// Decides from now on what happens to each request; the first is number 0 again.
    pub fn script(&self, script: impl Fn(&Call) -> Fault + Send + Sync + 'static) {
        lock(&self.state.calls).clear();
        *lock(&self.state.script) = Box::new(script);
    }

    /// Lets everything pass, and returns the calls since the last script.
    pub fn calls(&self) -> Vec<Call> {
        lock(&self.state.calls).clone()
    }

    /// Returns the directory of the bucket.
    pub fn bucket(&self) -> PathBuf {
        self.root.path().join(BUCKET)
    }

    /// Returns what uploads in parts have left behind.
    pub fn unfinished_uploads(&self) -> Vec<PathBuf> {
        let name = |path: &Path| {
            path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default()
        };
        let entries =
            std::fs::read_dir(self.root.path()).into_iter().flatten().flatten().map(|e| e.path());
        entries.filter(|path| name(path).contains("upload")).collect()
    }
}

impl Drop for S3Server {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

#[derive(Clone)]
struct Faulty {
    inner: S3Service,
    state: Arc<State>,
}

/// Closes the connection without an answer.
#[derive(Debug)]
struct Closed;

impl std::fmt::Display for Closed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("closed by the test's script")
    }
}

impl std::error::Error for Closed {}

type Answer = Result<Response<s3s::Body>, Box<dyn std::error::Error + Send + Sync>>;

impl Service<Request<Incoming>> for Faulty {
    type Response = Response<s3s::Body>;
    type Error = Box<dyn std::error::Error + Send + Sync>;
    type Future = Pin<Box<dyn Future<Output = Answer> + Send>>;

    fn call(&self, request: Request<Incoming>) -> Self::Future {
        let call = {
            let mut calls = lock(&self.state.calls);
            let call = Call {
                index: calls.len(),
                method: request.method().clone(),
                path: request.uri().path().to_owned(),
                query: request.uri().query().unwrap_or_default().to_owned(),
            };
            calls.push(call.clone());
            call
        };
        let fault = (lock(&self.state.script))(&call);
        let inner = self.inner.clone();
        Box::pin(async move {
            if fault == Fault::Swallow {
                return Ok(swallowed(request).await);
            }
            let request = match fault {
                Fault::FlipRequest => request.map(spoil::flip),
                _ => request.map(s3s::Body::from),
            };
            let run = |request: Request<s3s::Body>| async move {
                inner.call(request).await.map_err(|e| format!("{e:?}").into())
            };
            match fault {
                Fault::Pass | Fault::FlipRequest | Fault::Swallow => run(request).await,
                Fault::Refuse(status, code) => Ok(refusal(status, code)),
                Fault::DropBefore => Err(Closed.into()),
                Fault::DropAfter => run(request).await.and_then(|_| Err(Closed.into())),
                Fault::MisspellRange => run(request).await.map(|mut response| {
                    if response.status() == StatusCode::PARTIAL_CONTENT {
                        *response.status_mut() = StatusCode::OK;
                    }
                    response
                }),
                Fault::CutAnswer => run(request).await.map(|answer| answer.map(spoil::cut)),
                Fault::FlipAnswer => run(request).await.map(|answer| answer.map(spoil::flip)),
                Fault::Delay(millis) => {
                    tokio::time::sleep(std::time::Duration::from_millis(millis)).await;
                    run(request).await
                }
                Fault::KillBefore(pid) => {
                    kill(pid);
                    Err(Closed.into())
                }
                Fault::KillAfter(pid) => {
                    let done = run(request).await;
                    kill(pid);
                    done
                }
            }
        })
    }
}

async fn swallowed(request: Request<Incoming>) -> Response<s3s::Body> {
    let mut body = request.into_body();
    while let Some(Ok(_)) =
        std::future::poll_fn(|cx| hyper::body::Body::poll_frame(Pin::new(&mut body), cx)).await
    {
    }
    let mut response = Response::new(s3s::Body::empty());
    response
        .headers_mut()
        .insert("etag", http::HeaderValue::from_static("\"00000000000000000000000000000000\""));
    response
}

fn refusal(status: u16, code: &str) -> Response<s3s::Body> {
    let xml = format!(
        "<?xml version=\"1.0\"?><Error><Code>{code}</Code><Message>by script</Message></Error>"
    );
    let mut response = Response::new(s3s::Body::from(xml));
    *response.status_mut() =
        StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    response
}

fn kill(pid: u32) {
    let pid = i32::try_from(pid).ok().and_then(rustix::process::Pid::from_raw);
    // It may be gone already: then there is nothing to do.
    let _gone = pid.map(|pid| rustix::process::kill_process(pid, rustix::process::Signal::KILL));
}
