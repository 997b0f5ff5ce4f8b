//! Why the storage failed, and what to do about it.

use std::error::Error;
use std::fmt;
use std::io;

use super::http::Refusal;
use crate::cx::Cancelled;

/// Why the storage failed: one name for one cause, whatever the provider calls it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StoreErrorKind {
    /// The object is definitely not there.
    NotFound,
    /// Another object has the name.
    AlreadyExists,
    /// The bucket is not there.
    NoSuchBucket,
    /// The bucket lives in another region.
    WrongRegion,
    /// The storage does not know the access key id.
    UnknownKey,
    /// The secret does not belong to the access key id.
    WrongSecret,
    /// The credentials are expired.
    Expired,
    /// No credentials could be found.
    NoCredentials,
    /// The credentials may not do this.
    Denied,
    /// The clocks here and there differ too much.
    ClockSkew,
    /// The name of the host cannot be resolved.
    Dns,
    /// Nobody listens there.
    Refused,
    /// The server does not speak TLS, or its certificate is not trusted.
    Tls,
    /// No answer in time.
    Timeout,
    /// The storage, or the way to it, is out of order for now.
    Unavailable,
    /// There is no space left.
    NoSpace,
    /// Larger than it may be.
    TooLarge,
    /// The answer has fewer bytes than it should.
    CutShort,
    /// What the storage has is not what was sent.
    Corrupt,
    /// A name that may not be used.
    BadName,
    /// The storage does not offer this.
    Unsupported,
    /// Told to stop.
    Cancelled,
    /// Anything else.
    Other,
}

impl StoreErrorKind {
    /// Whether another try may go better.
    pub fn may_pass(self) -> bool {
        matches!(self, Self::Unavailable | Self::Timeout | Self::CutShort)
    }

    /// Whether the storage or the way to it is out of order: it may go better in an hour.
    pub fn is_outage(self) -> bool {
        self.may_pass() || matches!(self, Self::Dns | Self::Refused)
    }

    /// Says what a person can do, or nothing if there is nothing to add.
    fn hint(self) -> &'static str {
        match self {
            Self::NoSuchBucket => "make the bucket, or correct `bucket`",
            Self::WrongRegion => "set `region` to the bucket's region",
            Self::UnknownKey => {
                "correct the access key id with `backstay storage credentials NAME`"
            }
            Self::WrongSecret => {
                "correct the secret access key with `backstay storage credentials NAME`; if it is right, look at `region` and `addressing`"
            }
            Self::Expired => {
                "make new credentials and set them with `backstay storage credentials NAME`"
            }
            Self::NoCredentials => {
                "set access_key_id and secret_access_key, or give the machine a role or an AWS profile"
            }
            Self::ClockSkew => "correct this machine's clock (timedatectl set-ntp true)",
            Self::Dns => {
                "correct `endpoint` and `region`; for a storage of your own set addressing = \"path\""
            }
            Self::Refused => "correct `endpoint`, or start the storage",
            Self::Tls => {
                "a storage without TLS needs an endpoint with http://; one with a certificate of your own needs `ca_file`"
            }
            Self::Timeout | Self::Unavailable => {
                "try again later; look at the provider's status page"
            }
            Self::NoSpace => "make room on the storage, or shorten the retention",
            Self::Corrupt => "do not trust this storage before `backstay storage test NAME` passes",
            Self::NotFound
            | Self::AlreadyExists
            | Self::Denied
            | Self::TooLarge
            | Self::CutShort
            | Self::BadName
            | Self::Unsupported
            | Self::Cancelled
            | Self::Other => "",
        }
    }

    fn words(self) -> &'static str {
        match self {
            Self::NotFound => "it is not there",
            Self::AlreadyExists => "another object has that name",
            Self::NoSuchBucket => "the bucket does not exist",
            Self::WrongRegion => "the bucket is in another region",
            Self::UnknownKey => "the storage does not know the access key id",
            Self::WrongSecret => "the signature does not match: the secret access key is wrong",
            Self::Expired => "the credentials are expired",
            Self::NoCredentials => "no credentials were found",
            Self::Denied => "the credentials do not allow it",
            Self::ClockSkew => "the clocks here and at the storage differ too much",
            Self::Dns => "the host's name cannot be resolved",
            Self::Refused => "nobody listens at the endpoint",
            Self::Tls => "no trusted TLS connection could be made",
            Self::Timeout => "there was no answer in time",
            Self::Unavailable => "the storage is out of order for now",
            Self::NoSpace => "there is no space left",
            Self::TooLarge => "it is larger than it may be",
            Self::CutShort => "the answer was cut short",
            Self::Corrupt => "what the storage has is not what was sent",
            Self::BadName => "the name is not allowed",
            Self::Unsupported => "the storage does not offer this",
            Self::Cancelled => "stopped",
            Self::Other => "the storage refused",
        }
    }
}

/// A failed call to the storage.
#[derive(Debug)]
pub struct StoreError {
    kind: StoreErrorKind,
    action: &'static str,
    name: String,
    location: String,
    found: Option<String>,
    cause: Option<Box<dyn Error + Send + Sync>>,
}

impl StoreError {
    pub(super) fn new(
        kind: StoreErrorKind,
        action: &'static str,
        name: &str,
        location: &str,
        found: Option<String>,
    ) -> Self {
        Self {
            kind,
            action,
            name: name.to_owned(),
            location: location.to_owned(),
            found,
            cause: None,
        }
    }

    pub(super) fn cancelled(cancelled: Cancelled) -> Self {
        let mut error = Self::new(StoreErrorKind::Cancelled, "go on with", "", "the storage", None);
        error.cause = Some(Box::new(cancelled));
        error
    }

    /// Says what a failure means: by the storage's own code where there is one, else by the kind of trouble.
    pub(super) fn explain(
        action: &'static str,
        name: &str,
        location: &str,
        cause: object_store::Error,
        refusal: Option<Refusal>,
    ) -> Self {
        let kind = kind_of(&cause, refusal.as_ref());
        let found = refusal.map(|refusal| refusal.to_string());
        let mut error = Self::new(kind, action, name, location, found);
        if kind == StoreErrorKind::Denied {
            error.found = Some(format!("missing permission {}", action_name(action)));
        }
        error.cause = Some(Box::new(cause));
        error
    }

    /// Says which cause it was.
    pub fn kind(&self) -> StoreErrorKind {
        self.kind
    }

    pub(super) fn action(&self) -> &'static str {
        self.action
    }

    /// Returns the reason of the cancellation, if it was one.
    pub fn cancellation(&self) -> Option<Cancelled> {
        self.cause.as_ref()?.downcast_ref().copied()
    }
}

impl fmt::Display for StoreError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cannot {} {}", self.action, self.location)?;
        if !self.name.is_empty() {
            write!(f, "/{}", self.name)?;
        }
        write!(f, ": {}", self.kind.words())?;
        if let Some(found) = &self.found {
            write!(f, " ({found})")?;
        }
        match self.kind.hint() {
            "" => Ok(()),
            hint => write!(f, "; {hint}"),
        }
    }
}

impl Error for StoreError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        // The storage's answer stands in the text already; only trouble on the way adds something.
        let cause = self.cause.as_ref().filter(|_| self.found.is_none())?;
        // Each of the layers in between says all that is below it once more.
        Some(root(cause.as_ref()))
    }
}

fn root<'a>(mut error: &'a (dyn Error + 'static)) -> &'a (dyn Error + 'static) {
    while let Some(cause) = error.source() {
        error = cause;
    }
    error
}

/// The permission that an action needs, in the words of AWS policies.
fn action_name(action: &str) -> &'static str {
    match action {
        "write" | "create" | "upload" | "finish" => "s3:PutObject",
        "delete" => "s3:DeleteObject",
        "list" => "s3:ListBucket",
        "abort" => "s3:AbortMultipartUpload",
        _ => "s3:GetObject (and s3:ListBucket, to tell what is missing from what is forbidden)",
    }
}

fn kind_of(cause: &object_store::Error, refusal: Option<&Refusal>) -> StoreErrorKind {
    if let Some(kind) = refusal.and_then(Refusal::kind) {
        return kind;
    }
    match cause {
        object_store::Error::NotFound { .. } => StoreErrorKind::NotFound,
        object_store::Error::AlreadyExists { .. } | object_store::Error::Precondition { .. } => {
            StoreErrorKind::AlreadyExists
        }
        object_store::Error::PermissionDenied { .. } => StoreErrorKind::Denied,
        object_store::Error::Unauthenticated { .. } => StoreErrorKind::NoCredentials,
        object_store::Error::NotSupported { .. } | object_store::Error::NotImplemented { .. } => {
            StoreErrorKind::Unsupported
        }
        other => kind_of_chain(other),
    }
}

/// Looks through the causes for one that says what it is.
fn kind_of_chain(error: &(dyn Error + 'static)) -> StoreErrorKind {
    let mut kind = StoreErrorKind::Other;
    let mut next = Some(error);
    while let Some(error) = next {
        if error.is::<rustls::Error>() {
            return StoreErrorKind::Tls;
        }
        if error.is::<super::credentials::NoCredentials>() {
            return StoreErrorKind::NoCredentials;
        }
        if error.is::<super::http::NotResolved>() {
            return StoreErrorKind::Dns;
        }
        if let Some(http) = error.downcast_ref::<object_store::client::HttpError>() {
            kind = kind_of_http(http.kind());
        }
        if let Some(io) = error.downcast_ref::<io::Error>() {
            // An io::Error hides what it wraps from `source`.
            if let Some(inner) = io.get_ref() {
                match kind_of_chain(inner) {
                    StoreErrorKind::Other => {}
                    found => return found,
                }
            }
            kind = kind_of_io(io.kind()).unwrap_or(kind);
        }
        next = error.source();
    }
    kind
}

fn kind_of_http(kind: object_store::client::HttpErrorKind) -> StoreErrorKind {
    use object_store::client::HttpErrorKind as Http;
    match kind {
        Http::Connect | Http::Request | Http::Interrupted => StoreErrorKind::Unavailable,
        Http::Timeout => StoreErrorKind::Timeout,
        // An answer that ends before its length comes as a broken body.
        Http::Decode => StoreErrorKind::CutShort,
        _ => StoreErrorKind::Unavailable,
    }
}

fn kind_of_io(kind: io::ErrorKind) -> Option<StoreErrorKind> {
    match kind {
        io::ErrorKind::NotFound => Some(StoreErrorKind::NotFound),
        io::ErrorKind::ConnectionRefused => Some(StoreErrorKind::Refused),
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Some(StoreErrorKind::NoSpace),
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
            Some(StoreErrorKind::Denied)
        }
        io::ErrorKind::TimedOut => Some(StoreErrorKind::Timeout),
        io::ErrorKind::UnexpectedEof => Some(StoreErrorKind::CutShort),
        io::ErrorKind::ConnectionReset
        | io::ErrorKind::ConnectionAborted
        | io::ErrorKind::BrokenPipe => Some(StoreErrorKind::Unavailable),
        _ => None,
    }
}
