//! Below the client library: deadlines by size, and the storage's own word for what it refuses.

use std::cell::RefCell;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use futures_util::TryStreamExt as _;
use jiff::{SignedDuration, Timestamp};
use object_store::client::{
    HttpClient, HttpConnector, HttpError, HttpErrorKind, HttpRequest, HttpResponse, HttpService,
    ReqwestConnector,
};
use object_store::{ClientOptions, GetResult, GetResultPayload};
use tokio::time::error::Elapsed;
use tokio::time::timeout;

use super::StoreErrorKind;

/// Every request may take this long, whatever its size.
const BASE_DEADLINE: Duration = Duration::from_secs(30);
/// A body may be this slow: a bad DSL line.
const SLOWEST_BYTES_PER_SEC: u64 = 32 * 1024;
/// An answer's body may pause this long.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// Error documents are far smaller.
const MAX_REFUSAL_BYTES: usize = 64 * 1024;

tokio::task_local! {
    static REFUSAL: RefCell<Option<Refusal>>;
}

/// Runs a call of the client library, and returns beside its answer what the storage last said when it refused.
pub(super) async fn watched<T>(call: impl Future<Output = T>) -> (T, Option<Refusal>) {
    REFUSAL
        .scope(RefCell::new(None), async {
            let answer = call.await;
            (answer, REFUSAL.with(RefCell::take))
        })
        .await
}

/// Reads the body of an answer; one that stops coming is an error, not a wait for ever.
pub(super) async fn body(found: GetResult) -> object_store::Result<Bytes> {
    let expected = usize::try_from(found.range.end - found.range.start).unwrap_or(0);
    let mut chunks = match found.payload {
        GetResultPayload::Stream(chunks) => chunks,
        GetResultPayload::File(..) => return found.bytes().await,
    };
    let mut gathered = BytesMut::new();
    while let Some(chunk) = timeout(LONGEST_PAUSE, chunks.try_next()).await.map_err(stalled)?? {
        if gathered.is_empty() && chunk.len() == expected {
            return Ok(chunk);
        }
        gathered.extend_from_slice(&chunk);
    }
    Ok(gathered.freeze())
}

fn stalled(elapsed: Elapsed) -> object_store::Error {
    let source = Box::new(HttpError::new(HttpErrorKind::Timeout, elapsed));
    object_store::Error::Generic { store: "S3", source }
}

/// What the storage said when it refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Refusal {
    status: u16,
    code: Option<String>,
    message: Option<String>,
    /// What time it was at both ends.
    clocks: Option<String>,
}

impl Refusal {
    fn new(status: u16, body: &[u8]) -> Self {
        let text = String::from_utf8_lossy(body);
        let (code, message) = (element(&text, "Code"), element(&text, "Message"));
        Self { status, code, message, clocks: None }
    }

    /// Returns the kind, where the code or the status leaves no doubt.
    pub(super) fn kind(&self) -> Option<StoreErrorKind> {
        let kind = match self.code.as_deref() {
            Some("NoSuchBucket") => StoreErrorKind::NoSuchBucket,
            Some("NoSuchKey" | "NoSuchUpload") => StoreErrorKind::NotFound,
            Some(
                "PermanentRedirect"
                | "AuthorizationHeaderMalformed"
                | "IllegalLocationConstraintException",
            ) => StoreErrorKind::WrongRegion,
            Some("InvalidAccessKeyId") => StoreErrorKind::UnknownKey,
            Some("SignatureDoesNotMatch") => StoreErrorKind::WrongSecret,
            Some("ExpiredToken" | "TokenRefreshRequired" | "ExpiredTokenException") => {
                StoreErrorKind::Expired
            }
            Some("AccessDenied" | "AllAccessDisabled" | "UnauthorizedAccess") => {
                StoreErrorKind::Denied
            }
            Some("RequestTimeTooSkewed" | "RequestExpired") => StoreErrorKind::ClockSkew,
            Some("QuotaExceeded" | "StorageFull" | "XMinioStorageFull" | "InsufficientStorage") => {
                StoreErrorKind::NoSpace
            }
            Some("EntityTooLarge") => StoreErrorKind::TooLarge,
            Some(
                "BadDigest"
                | "XAmzContentSHA256Mismatch"
                | "XAmzContentChecksumMismatch"
                | "InvalidDigest",
            ) => StoreErrorKind::Corrupt,
            Some("SlowDown" | "ServiceUnavailable" | "InternalError" | "RequestTimeout") => {
                StoreErrorKind::Unavailable
            }
            Some("NotImplemented") => StoreErrorKind::Unsupported,
            _ => return self.kind_of_status(),
        };
        Some(kind)
    }

    fn kind_of_status(&self) -> Option<StoreErrorKind> {
        match self.status {
            301 | 307 => Some(StoreErrorKind::WrongRegion),
            403 => Some(StoreErrorKind::Denied),
            404 => Some(StoreErrorKind::NotFound),
            409 | 412 => Some(StoreErrorKind::AlreadyExists),
            501 => Some(StoreErrorKind::Unsupported),
            507 => Some(StoreErrorKind::NoSpace),
            429 | 500.. => Some(StoreErrorKind::Unavailable),
            _ => None,
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "status {}", self.status)?;
        for text in [&self.code, &self.message].into_iter().flatten() {
            write!(f, ", {text}")?;
        }
        match &self.clocks {
            Some(clocks) if self.kind() == Some(StoreErrorKind::ClockSkew) => {
                write!(f, ", {clocks}")
            }
            _ => Ok(()),
        }
    }
}

/// Returns the text of the first such element of a flat XML error document, without control characters.
fn element(xml: &str, name: &str) -> Option<String> {
    let (_, rest) = xml.split_once(&format!("<{name}>"))?;
    let (text, _) = rest.split_once(&format!("</{name}>"))?;
    Some(text.chars().filter(|c| !c.is_control()).take(300).collect())
}

/// The endpoint's host has no address.
#[derive(Debug, thiserror::Error)]
#[error("{host} cannot be resolved")]
pub(super) struct NotResolved {
    host: String,
}

/// How far the storage's clock is from ours, by the date in its last answer.
#[derive(Debug, Clone, Default)]
pub(super) struct StorageClock(Arc<Mutex<Option<SignedDuration>>>);

impl StorageClock {
    pub(super) fn skew(&self) -> Option<SignedDuration> {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes the date of an answer; returns both clocks in words.
    #[expect(clippy::disallowed_methods, reason = "signatures are made with the machine's clock")]
    fn hear(&self, headers: &http::HeaderMap) -> Option<String> {
        let date = headers.get(http::header::DATE)?.to_str().ok()?;
        let there = jiff::fmt::rfc2822::parse(date).ok()?.timestamp();
        let here = Timestamp::now();
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(there.duration_since(here));
        Some(format!("it is {there} there and {here:.0} here"))
    }
}

/// Makes clients whose requests have deadlines by size.
#[derive(Debug, Default)]
pub(super) struct Connector {
    /// Flips one bit of each body on its way: for finding out whether the storage notices.
    pub(super) corrupting: bool,
    /// Where to note what time it is at the storage.
    pub(super) clock: StorageClock,
}

impl HttpConnector for Connector {
    fn connect(&self, options: &ClientOptions) -> object_store::Result<HttpClient> {
        let inner = ReqwestConnector::default().connect(options)?;
        Ok(HttpClient::new(Watch { inner, corrupting: self.corrupting, clock: self.clock.clone() }))
    }
}

#[derive(Debug)]
struct Watch {
    inner: HttpClient,
    corrupting: bool,
    clock: StorageClock,
}

#[async_trait]
impl HttpService for Watch {
    async fn call(&self, request: HttpRequest) -> Result<HttpResponse, HttpError> {
        let host = request.uri().host().map(str::to_owned);
        let port = request.uri().port_u16().unwrap_or(443);
        let bytes = request.body().content_length() as u64;
        let deadline = BASE_DEADLINE + Duration::from_secs(bytes / SLOWEST_BYTES_PER_SEC);
        let request = if self.corrupting { corrupted(request) } else { request };
        let response = match timeout(deadline, self.inner.execute(request)).await {
            Ok(Ok(response)) => response,
            Ok(Err(error)) => return Err(unresolved(error, host, port).await),
            Err(elapsed) => return Err(HttpError::new(HttpErrorKind::Timeout, elapsed)),
        };
        // A status of success may still carry an error document (CompleteMultipartUpload does that); the client
        // library reads those.
        let clocks = self.clock.hear(response.headers());
        if response.status().as_u16() < 300 {
            return Ok(range_spelt_right(response));
        }
        let (parts, body) = response.into_parts();
        let body = tokio::time::timeout(BASE_DEADLINE, body.bytes())
            .await
            .map_err(|elapsed| HttpError::new(HttpErrorKind::Timeout, elapsed))??;
        let head = body.slice(..body.len().min(MAX_REFUSAL_BYTES));
        let refusal = Refusal { clocks, ..Refusal::new(parts.status.as_u16(), &head) };
        // Outside of `watched` nobody asks.
        drop(REFUSAL.try_with(|slot| slot.replace(Some(refusal))));
        Ok(HttpResponse::from_parts(parts, body.into()))
    }
}

/// Says of a failed connection whether the name was to blame: the client below does not.
async fn unresolved(error: HttpError, host: Option<String>, port: u16) -> HttpError {
    let Some(host) = host.filter(|_| error.kind() == HttpErrorKind::Connect) else { return error };
    let resolved = tokio::net::lookup_host((host.trim_matches(['[', ']']), port))
        .await
        .is_ok_and(|mut addresses| addresses.next().is_some());
    if resolved { error } else { HttpError::new(HttpErrorKind::Unknown, NotResolved { host }) }
}

/// Some servers (rclone's) answer a range with status 200 and say in `Content-Range` alone that it is one; the client
/// library would refuse that. Length and digests are checked behind it in any case.
fn range_spelt_right(mut response: HttpResponse) -> HttpResponse {
    if response.status() == http::StatusCode::OK
        && response.headers().contains_key(http::header::CONTENT_RANGE)
    {
        *response.status_mut() = http::StatusCode::PARTIAL_CONTENT;
    }
    response
}

fn corrupted(request: HttpRequest) -> HttpRequest {
    let (parts, body) = request.into_parts();
    let flipped = body.as_bytes().map(|bytes| {
        let mut bytes = bytes.to_vec();
        if let Some(byte) = bytes.first_mut() {
            *byte ^= 1;
        }
        Bytes::from(bytes)
    });
    match flipped {
        Some(bytes) => HttpRequest::from_parts(parts, bytes.into()),
        None => HttpRequest::from_parts(parts, body),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_storages_own_code_decides() {
        let denied =
            Refusal::new(403, b"<Error><Code>AccessDenied</Code><Message>no\n</Message></Error>");
        assert_eq!(denied.kind(), Some(StoreErrorKind::Denied));
        assert_eq!(denied.to_string(), "status 403, AccessDenied, no");
        let skew = Refusal::new(403, b"<Error><Code>RequestTimeTooSkewed</Code></Error>");
        assert_eq!(skew.kind(), Some(StoreErrorKind::ClockSkew));
        assert_eq!(Refusal::new(503, b"oops").kind(), Some(StoreErrorKind::Unavailable));
        assert_eq!(Refusal::new(400, b"").kind(), None);
    }
}
