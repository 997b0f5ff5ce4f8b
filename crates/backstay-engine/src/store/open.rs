//! From checked settings to a client.

use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use object_store::aws::{AmazonS3Builder, Checksum, S3ConditionalPut};
use object_store::local::LocalFileSystem;
use object_store::{BackoffConfig, Certificate, ClientOptions, RetryConfig};
use secrecy::{ExposeSecret as _, SecretString};

use super::credentials::Chain;
use super::http::{Connector, StorageClock};
use super::leftover::Unfinished;
use super::{Profile, Store, StoreError, StoreErrorKind, UploadCheck};

/// Where a storage is and how it is reached.
#[derive(Debug, Clone)]
pub enum StoreSpec {
    /// A bucket that is spoken to in the S3 protocol.
    S3(S3Spec),
    /// A directory of this machine.
    Local(LocalSpec),
}

/// A bucket.
#[derive(Debug, Clone)]
pub struct S3Spec {
    /// Its name.
    pub bucket: String,
    /// The folder of the vault in it.
    pub prefix: String,
    /// The provider's endpoint as a URL; `None` is AWS itself.
    pub endpoint: Option<String>,
    /// The region; `auto` at R2.
    pub region: String,
    /// Where the bucket's name stands in requests.
    pub addressing: Addressing,
    /// Who asks.
    pub credentials: S3Credentials,
    /// Certificates to trust besides the system's, in PEM.
    pub ca_pem: Option<Vec<u8>>,
}

/// Where the bucket's name stands in requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Addressing {
    /// In the path: works with every custom endpoint.
    Path,
    /// In the host's name: what AWS wants.
    VirtualHost,
}

/// Who asks.
#[derive(Debug, Clone)]
pub enum S3Credentials {
    /// Keys that somebody set.
    Static {
        /// The access key id.
        access_key_id: String,
        /// Its secret.
        secret_access_key: SecretString,
        /// The token of temporary credentials.
        session_token: Option<SecretString>,
    },
    /// What the machine has: environment, AWS profile, SSO, container or instance role (H6).
    Chain {
        /// The AWS profile to use.
        profile: Option<String>,
    },
}

/// A directory of this machine.
#[derive(Debug, Clone)]
pub struct LocalSpec {
    /// The directory. Its parent must exist: an unmounted disk must not fill the one below it.
    pub path: PathBuf,
    /// The folder of the vault in it.
    pub prefix: String,
}

impl StoreSpec {
    /// Returns where it is, for a person.
    pub fn location(&self) -> String {
        match self {
            Self::S3(spec) => {
                format!("s3://{}/{}", spec.bucket, spec.prefix).trim_end_matches('/').to_owned()
            }
            Self::Local(spec) => spec.path.join(&spec.prefix).display().to_string(),
        }
    }

    /// Returns what is assumed before a probe.
    pub fn documented_profile(&self) -> Profile {
        match self {
            Self::Local(_) => Profile::local(),
            Self::S3(spec) => {
                let endpoint: Option<http::Uri> =
                    spec.endpoint.as_ref().and_then(|url| url.parse().ok());
                Profile::documented(endpoint.as_ref().and_then(http::Uri::host))
            }
        }
    }
}

impl Store {
    /// Makes a store for a storage. Sends no request.
    pub fn open(spec: &StoreSpec, profile: Profile) -> Result<Self, StoreError> {
        Self::open_with(spec, profile, false)
    }

    /// Like [`Store::open`], with bodies corrupted on their way if `corrupting`.
    pub(super) fn open_with(
        spec: &StoreSpec,
        profile: Profile,
        corrupting: bool,
    ) -> Result<Self, StoreError> {
        match spec {
            StoreSpec::S3(s3) => open_s3(s3, &spec.location(), profile, corrupting),
            StoreSpec::Local(local) => open_local(local, &spec.location(), profile),
        }
    }
}

fn open_s3(
    spec: &S3Spec,
    location: &str,
    profile: Profile,
    corrupting: bool,
) -> Result<Store, StoreError> {
    let failed = |cause| StoreError::explain("open", "", location, cause, None);
    let clock = StorageClock::default();
    let mut builder = AmazonS3Builder::new()
        .with_bucket_name(&spec.bucket)
        .with_region(&spec.region)
        .with_virtual_hosted_style_request(spec.addressing == Addressing::VirtualHost)
        .with_client_options(client_options(spec).map_err(failed)?)
        .with_http_connector(Connector { corrupting, clock: clock.clone() })
        .with_retry(retries())
        // Needs s3:DeleteObject only, and no checksum of a request body.
        .with_disable_bulk_delete(true)
        .with_conditional_put(if profile.create_only_put {
            S3ConditionalPut::ETagMatch
        } else {
            S3ConditionalPut::Disabled
        })
        .with_unsigned_payload(profile.upload_check != UploadCheck::SignedPayload);
    if profile.upload_check == UploadCheck::ChecksumHeader {
        builder = builder.with_checksum_algorithm(Checksum::SHA256);
    }
    if let Some(endpoint) = &spec.endpoint {
        builder = builder.with_endpoint(endpoint).with_allow_http(endpoint.starts_with("http://"));
    }
    builder = match &spec.credentials {
        S3Credentials::Static { access_key_id, secret_access_key, session_token } => {
            let blank = access_key_id.trim().is_empty()
                || secret_access_key.expose_secret().trim().is_empty();
            if blank {
                return Err(StoreError::new(
                    StoreErrorKind::NoCredentials,
                    "open",
                    "",
                    location,
                    None,
                ));
            }
            let builder = builder
                .with_access_key_id(access_key_id)
                .with_secret_access_key(secret_access_key.expose_secret());
            match session_token {
                Some(token) => builder.with_token(token.expose_secret()),
                None => builder,
            }
        }
        S3Credentials::Chain { profile } => {
            builder.with_credentials(Arc::new(Chain::new(profile.as_deref())))
        }
    };
    let backend = Arc::new(builder.build().map_err(failed)?);
    let (unfinished, pages) = (Unfinished::Ids(backend.clone()), Some(backend.clone() as _));
    let store = Store::over(backend, location, &spec.prefix, profile);
    Ok(Store { unfinished, pages, clock, ..store })
}

fn client_options(spec: &S3Spec) -> object_store::Result<ClientOptions> {
    let is_plain = spec.endpoint.as_ref().is_some_and(|endpoint| endpoint.starts_with("http://"));
    // The library's deadline of 30 s is for request and body together; ours grow with the body.
    let mut options = ClientOptions::new()
        .with_timeout_disabled()
        .with_connect_timeout(Duration::from_secs(10))
        .with_http1_only()
        .with_allow_http(is_plain)
        // Reading all of the system's takes longer than a small backup's requests, and here none is asked for.
        .with_no_system_certificates(is_plain);
    if let Some(pem) = &spec.ca_pem {
        for certificate in Certificate::from_pem_bundle(pem)? {
            options = options.with_root_certificate(certificate);
        }
    }
    Ok(options)
}

fn retries() -> RetryConfig {
    RetryConfig {
        backoff: BackoffConfig {
            init_backoff: Duration::from_millis(200),
            max_backoff: Duration::from_secs(15),
            base: 2.0,
        },
        max_retries: 5,
        retry_timeout: Duration::from_mins(5),
    }
}

fn open_local(spec: &LocalSpec, location: &str, profile: Profile) -> Result<Store, StoreError> {
    let refuse = |error: &io::Error| {
        let kind = match error.kind() {
            io::ErrorKind::PermissionDenied => StoreErrorKind::Denied,
            io::ErrorKind::StorageFull => StoreErrorKind::NoSpace,
            _ => StoreErrorKind::Other,
        };
        let found = format!("{}: {error}; its parent directory must exist", spec.path.display());
        StoreError::new(kind, "open", "", location, Some(found))
    };
    // Others of this machine have no business in backups.
    match std::fs::DirBuilder::new().mode(0o700).create(&spec.path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(refuse(&error)),
        _ => {}
    }
    let backend = LocalFileSystem::new_with_prefix(&spec.path)
        .map_err(|cause| StoreError::explain("open", "", location, cause, None))?
        .with_fsync(true)
        .with_automatic_cleanup(true);
    let unfinished = Unfinished::Files(spec.path.clone());
    Ok(Store { unfinished, ..Store::over(Arc::new(backend), location, &spec.prefix, profile) })
}
