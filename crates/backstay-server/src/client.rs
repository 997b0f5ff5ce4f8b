//! The side of whoever asks: a worker, or a member.

use std::error::Error as _;
use std::net::IpAddr;
use std::time::Duration;

use backstay_control::Token;
use reqwest::header::CONTENT_TYPE;
use reqwest::{Certificate, Method, RequestBuilder, Response, StatusCode};
use secrecy::ExposeSecret as _;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::time::timeout;
use url::{Host, Url};

use crate::download::Incoming;
use crate::wire::{
    EnrolRequest, Enrolled, JobEnd, JobReport, PROTOCOL, PROTOCOL_HEADER, ReportAnswer, TakeAnswer,
    TakeRequest,
};

/// How long a connection may take to come about, and an answer to arrive: a server waits for a job for a while, and opens its
/// storage before it gives it out.
const CONNECT: Duration = Duration::from_secs(10);
const ANSWER: Duration = Duration::from_secs(75);
/// A report that is not answered for so long is better sent anew: leases run out.
const REPORT_ANSWER: Duration = Duration::from_secs(15);
/// How long a part of a backup may take to arrive.
const LONGEST_DOWNLOAD: Duration = Duration::from_hours(7 * 24);

/// Speaks to a server.
#[derive(Debug, Clone)]
pub struct Client {
    http: reqwest::Client,
    base: Url,
}

/// Why a server did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// Its address is none.
    #[error("found the server `{found}`, expected {expected}")]
    Address {
        /// What was given.
        found: String,
        /// What it should be.
        expected: &'static str,
    },
    /// The certificates to trust cannot be used.
    #[error("the certificates to trust cannot be used")]
    Certificates(#[source] reqwest::Error),
    /// There are none.
    #[error(
        "the file with the certificates to trust holds none, expected PEM that begins with -----BEGIN CERTIFICATE-----"
    )]
    NoCertificates,
    /// No answer came.
    #[error("the server does not answer: {0}")]
    Unreachable(String),
    /// It does not know who asks.
    #[error("the server refuses: {0}")]
    Unknown(String),
    /// The job belongs to somebody else by now, or has ended.
    #[error("the job is lost: {0}")]
    Lost(String),
    /// It cannot for now.
    #[error("the server cannot do it now: {0}")]
    Away(String),
    /// It tried, and failed.
    #[error("{text}")]
    Failed {
        /// Why.
        text: String,
        /// The exit code of a command that would have tried it where the server is.
        exit_code: Option<u8>,
    },
    /// It refuses, and asking again will not help.
    #[error("the server refuses ({status}): {text}")]
    Refused {
        /// HTTP's number for it.
        status: u16,
        /// Why.
        text: String,
    },
}

#[derive(Deserialize)]
struct ErrorBody {
    error: String,
    /// That it is a server of ours that says so, and not a proxy in between.
    #[serde(default)]
    backstay: bool,
    #[serde(default)]
    exit_code: Option<u8>,
}

impl Client {
    /// Makes a client of a server, which is spoken to by TLS unless it is on this machine. `ca_pem` is trusted besides what
    /// the system trusts.
    pub fn new(server: &str, ca_pem: Option<&[u8]>) -> Result<Self, CallError> {
        // It may have a password in it.
        let shown = server.rsplit_once('@').map_or(server, |(_, host)| host);
        let wrong = |expected| CallError::Address { found: shown.to_owned(), expected };
        let url =
            Url::parse(server).map_err(|_| wrong("a URL such as https://backup.example.com"))?;
        let is_plain = match url.scheme() {
            "https" => false,
            "http" => true,
            _ => return Err(wrong("a URL that begins with https://")),
        };
        if is_plain && !is_here(&url) {
            return Err(wrong(
                "https://: secrets go to workers, so only a server on this machine is spoken to without TLS",
            ));
        }
        if !url.username().is_empty() || url.password().is_some() || url.query().is_some() {
            return Err(wrong(
                "a URL without a user, a password and a query: the token says who asks",
            ));
        }
        let mut builder = reqwest::Client::builder()
            .connect_timeout(CONNECT)
            .timeout(ANSWER)
            // A token is for the server that was named, and for no other.
            .redirect(reqwest::redirect::Policy::none());
        if is_plain {
            builder = builder.no_proxy();
        }
        if let Some(pem) = ca_pem {
            let trusted = Certificate::from_pem_bundle(pem).map_err(CallError::Certificates)?;
            if trusted.is_empty() {
                return Err(CallError::NoCertificates);
            }
            builder = builder.tls_certs_merge(trusted);
        }
        let http = builder.build().map_err(CallError::Certificates)?;
        let mut base = url;
        base.set_path(&format!("{}/api/v1/", base.path().trim_end_matches('/')));
        Ok(Self { http, base })
    }

    /// Becomes a worker.
    pub async fn enrol(&self, request: &EnrolRequest) -> Result<Enrolled, CallError> {
        self.call("worker/enrol", None, request).await
    }

    /// Says that the worker is there, and asks for work.
    pub async fn take(
        &self,
        token: &Token,
        request: &TakeRequest,
    ) -> Result<TakeAnswer, CallError> {
        self.call("worker/take", Some(token), request).await
    }

    /// Says how far a job is.
    pub async fn report(
        &self,
        token: &Token,
        report: &JobReport,
    ) -> Result<ReportAnswer, CallError> {
        let call = self.call("worker/report", Some(token), report);
        let answered = timeout(REPORT_ANSWER, call).await;
        answered.unwrap_or_else(|_| {
            let text = format!("no answer to a report in {} s", REPORT_ANSWER.as_secs());
            Err(CallError::Unreachable(text))
        })
    }

    /// Gives a job back.
    pub async fn end(&self, token: &Token, end: &JobEnd) -> Result<(), CallError> {
        let answer: Option<serde_json::Value> = self.call("worker/end", Some(token), end).await?;
        drop(answer);
        Ok(())
    }

    async fn call<T: DeserializeOwned>(
        &self,
        what: &str,
        token: Option<&Token>,
        body: &(impl Serialize + Sync),
    ) -> Result<T, CallError> {
        let url = self.base.join(what).expect("words are a path");
        let request = self.http.post(url).header(PROTOCOL_HEADER, PROTOCOL);
        send(with_body(request, token, Some(body))).await
    }

    /// Asks for something as a member: where it is, word by word below the API, and what of it.
    pub(crate) async fn ask<T: DeserializeOwned>(
        &self,
        asked: (Method, &[&str]),
        query: &[(&str, &str)],
        token: &Token,
        body: Option<&(impl Serialize + Sync)>,
    ) -> Result<T, CallError> {
        send(self.request(asked, query, token, body)?).await
    }

    /// The same for what arrives piece by piece.
    pub(crate) async fn fetch(
        &self,
        path: &[&str],
        query: &[(&str, &str)],
        token: &Token,
    ) -> Result<Incoming, CallError> {
        let request = self.request((Method::GET, path), query, token, None::<&()>)?;
        // This time is for the whole; the beginning may take no longer than any other answer, and no piece too long.
        let answered = answered(request.timeout(LONGEST_DOWNLOAD));
        let late = || CallError::Unreachable(format!("no answer in {} s", ANSWER.as_secs()));
        Incoming::of(timeout(ANSWER, answered).await.map_err(|_| late())??)
    }

    fn request(
        &self,
        (method, path): (Method, &[&str]),
        query: &[(&str, &str)],
        token: &Token,
        body: Option<&(impl Serialize + Sync)>,
    ) -> Result<RequestBuilder, CallError> {
        // Such words are no names, and would make another path.
        if let Some(word) = path.iter().find(|word| ["", ".", ".."].contains(word)) {
            let text = format!("found {word:?}, expected a name or an id");
            return Err(CallError::Refused { status: 400, text });
        }
        let mut url = self.base.clone();
        // Names of people's are words of the path, and never more.
        url.path_segments_mut().expect("an HTTP URL has a path").pop_if_empty().extend(path);
        if !query.is_empty() {
            url.query_pairs_mut().extend_pairs(query);
        }
        Ok(with_body(self.http.request(method, url), Some(token), body))
    }
}

fn with_body(
    mut request: RequestBuilder,
    token: Option<&Token>,
    body: Option<&(impl Serialize + Sync)>,
) -> RequestBuilder {
    if let Some(token) = token {
        request = request.bearer_auth(token.to_text().expose_secret());
    }
    let Some(body) = body else { return request };
    let body = serde_json::to_vec(body).expect("plain values serialise");
    request.header(CONTENT_TYPE, "application/json").body(body)
}

/// Sends a request, and reads its answer.
async fn send<T: DeserializeOwned>(request: RequestBuilder) -> Result<T, CallError> {
    let answer = answered(request).await?;
    let bytes = answer.bytes().await.map_err(|error| unreachable(&error))?;
    let bytes: &[u8] = if bytes.is_empty() { b"null" } else { &bytes };
    serde_json::from_slice(bytes).map_err(|error| {
        // What a proxy in between says may be anything.
        CallError::Away(format!("found an answer that cannot be understood: {error}"))
    })
}

/// Sends a request, and returns what begins to arrive; what is refused is an error.
async fn answered(request: RequestBuilder) -> Result<Response, CallError> {
    let answer = request.send().await.map_err(|error| unreachable(&error))?;
    let status = answer.status();
    if status.is_success() {
        return Ok(answer);
    }
    let bytes = answer.bytes().await.map_err(|error| unreachable(&error))?;
    // A proxy in between has words of its own, and those are not the server's.
    let said = serde_json::from_slice(&bytes).ok().filter(|body: &ErrorBody| body.backstay);
    let Some(ErrorBody { error: text, exit_code, .. }) = said else {
        return Err(CallError::Away(format!("HTTP status {status}, and not by a backstay")));
    };
    Err(match status {
        StatusCode::UNAUTHORIZED => CallError::Unknown(text),
        StatusCode::CONFLICT => CallError::Lost(text),
        StatusCode::INTERNAL_SERVER_ERROR => CallError::Failed { text, exit_code },
        StatusCode::SERVICE_UNAVAILABLE
        | StatusCode::BAD_GATEWAY
        | StatusCode::GATEWAY_TIMEOUT
        | StatusCode::TOO_MANY_REQUESTS => CallError::Away(text),
        _ => CallError::Refused { status: status.as_u16(), text },
    })
}

impl CallError {
    /// Says whether asking again later may help.
    pub fn is_passing(&self) -> bool {
        matches!(self, Self::Unreachable(_) | Self::Away(_))
    }
}

fn is_here(url: &Url) -> bool {
    match url.host() {
        Some(Host::Domain(name)) => name == "localhost",
        Some(Host::Ipv4(address)) => IpAddr::V4(address).is_loopback(),
        Some(Host::Ipv6(address)) => IpAddr::V6(address).is_loopback(),
        None => false,
    }
}

/// The client's own error says which URL; what it is stands in its causes.
pub(crate) fn unreachable(error: &reqwest::Error) -> CallError {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(next) = cause {
        text = format!("{text}: {next}");
        cause = next.source();
    }
    let hint = HINTS.iter().find(|(said, _)| text.contains(said)).map_or("", |(_, hint)| hint);
    CallError::Unreachable(format!("{text}{hint}"))
}

/// What libraries say where the way to the server is configured wrongly, and what to do about it.
const HINTS: [(&str, &str); 3] = [
    (
        "CaUsedAsEndEntity",
        "; its certificate is that of an authority: sign one for the server with it (basicConstraints CA:FALSE), and name the authority by --ca-file",
    ),
    ("UnknownIssuer", "; name the file with the certificate of whoever signed its by --ca-file"),
    ("invalid HTTP version", "; if it speaks TLS, its URL begins with https://"),
];
