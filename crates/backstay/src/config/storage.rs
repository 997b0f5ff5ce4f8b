//! `[storages.NAME]`: where backups go.

use std::path::{Path, PathBuf};

use backstay_engine::store::{Addressing, LocalSpec, S3Credentials, S3Spec, StoreSpec};
use backstay_engine::vault::BackupPlace;
use backstay_format::{BackupId, Slug};
use jiff::Timestamp;
use secrecy::SecretString;
use serde::{Deserialize, Serialize};
use toml::Spanned;

use super::Env;
use super::raw::{Faults, RawStorage};

/// The folder of a vault in a bucket, unless another is set.
const DEFAULT_PREFIX: &str = "backstay";
/// What S3 itself takes for a region, and what most other providers ignore.
const DEFAULT_REGION: &str = "us-east-1";

/// A storage, checked. Credentials may come from elsewhere.
#[derive(Debug, Clone)]
pub(crate) struct StorageConfig {
    pub(crate) name: String,
    /// Whose it is, and so whose are the sources whose backups go there.
    pub(crate) organisation: Slug,
    pub(crate) kind: StorageKind,
    pub(crate) credentials: CredentialConfig,
    pub(crate) credentials_expire: Option<Timestamp>,
    /// How many jobs of servers write to it at a time, if that is limited.
    pub(crate) jobs: Option<u16>,
}

/// Where a storage is; without secrets, so that it can be written down.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "provider", rename_all = "kebab-case")]
pub(crate) enum StorageKind {
    S3 {
        bucket: String,
        prefix: String,
        endpoint: Option<String>,
        region: String,
        virtual_host: bool,
        ca_file: Option<PathBuf>,
    },
    Local {
        path: PathBuf,
        prefix: String,
    },
}

/// Who asks.
#[derive(Debug, Clone)]
pub(crate) enum CredentialConfig {
    /// What the file says, literally or by reference.
    Given {
        access_key_id: String,
        secret_access_key: SecretString,
        session_token: Option<SecretString>,
    },
    /// What `backstay storage credentials` sealed, else what the machine has.
    Elsewhere { profile: Option<String> },
}

impl StorageKind {
    /// Says whether both are the same place, or one of them lies in the other, as far as their names tell.
    pub(crate) fn overlaps(&self, other: &Self) -> bool {
        let within =
            |inner: &Path, outer: &Path| inner.starts_with(outer) || outer.starts_with(inner);
        match (self, other) {
            (
                Self::S3 { bucket, prefix, endpoint, .. },
                Self::S3 { bucket: b, prefix: p, endpoint: e, .. },
            ) => (bucket, endpoint) == (b, e) && within(Path::new(prefix), Path::new(p)),
            (Self::Local { path, prefix }, Self::Local { path: other, prefix: p }) => {
                within(&path.join(prefix), &other.join(p))
            }
            _ => false,
        }
    }

    /// Says whether both are the same place, however it is reached.
    pub(crate) fn is_same_place(&self, other: &Self) -> bool {
        match (self, other) {
            (
                Self::S3 { bucket, prefix, endpoint, .. },
                Self::S3 { bucket: b, prefix: p, endpoint: e, .. },
            ) => (bucket, prefix, endpoint) == (b, p, e),
            (Self::Local { path, prefix }, Self::Local { path: other, prefix: p }) => {
                path.join(prefix) == other.join(p)
            }
            _ => false,
        }
    }
}

impl StorageConfig {
    /// Returns where a backup of a source is in its vault.
    pub(crate) fn place(&self, source: &Slug, backup: BackupId) -> BackupPlace {
        let (organisation, source) = (self.organisation.clone(), source.clone());
        BackupPlace { organisation, source, backup }
    }

    pub(crate) fn warn(&self, warnings: &mut Vec<String>) {
        match &self.kind {
            StorageKind::Local { .. } => {
                warnings.push(format!(
                    "storage {} is not off-site: a lost machine loses its backups too",
                    self.name
                ));
            }
            StorageKind::S3 { endpoint: Some(endpoint), .. } if is_bare_http(endpoint) => {
                warnings.push(format!("storage {} is not encrypted in transit (http)", self.name));
            }
            StorageKind::S3 { .. } => {}
        }
    }

    /// Returns what the engine needs, with these credentials.
    pub(crate) fn spec(&self, credentials: S3Credentials) -> std::io::Result<StoreSpec> {
        Ok(match &self.kind {
            StorageKind::Local { path, prefix } => {
                StoreSpec::Local(LocalSpec { path: path.clone(), prefix: prefix.clone() })
            }
            StorageKind::S3 { bucket, prefix, endpoint, region, virtual_host, ca_file } => {
                StoreSpec::S3(S3Spec {
                    bucket: bucket.clone(),
                    prefix: prefix.clone(),
                    endpoint: endpoint.clone(),
                    region: region.clone(),
                    addressing: if *virtual_host {
                        Addressing::VirtualHost
                    } else {
                        Addressing::Path
                    },
                    credentials,
                    ca_pem: ca_file.as_ref().map(std::fs::read).transpose()?,
                })
            }
        })
    }
}

fn is_bare_http(endpoint: &str) -> bool {
    let host =
        endpoint.strip_prefix("http://").map(|rest| rest.split(['/', ':']).next().unwrap_or(rest));
    host.is_some_and(|host| !matches!(host, "localhost" | "127.0.0.1" | "["))
}

/// Reads `s3://bucket/prefix` or a directory, as `recover` takes it.
pub(crate) fn parse_location(
    location: &str,
    endpoint: Option<&str>,
    region: &str,
) -> Result<StorageKind, String> {
    if let Some(rest) = location.strip_prefix("s3://") {
        let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, DEFAULT_PREFIX));
        check_bucket(bucket)?;
        let endpoint = endpoint.map(|endpoint| normal_endpoint(endpoint, None)).transpose()?;
        return Ok(StorageKind::S3 {
            bucket: bucket.to_owned(),
            prefix: check_prefix(prefix.trim_end_matches('/'))?,
            virtual_host: endpoint.is_none(),
            endpoint,
            region: region.to_owned(),
            ca_file: None,
        });
    }
    let path = std::path::absolute(location).map_err(|error| format!("{location}: {error}"))?;
    // A person names the directory that holds vault.json, or the one above it.
    if path.join("vault.json").exists() {
        let name =
            path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        let parent = path.parent().ok_or("the root directory is no vault")?;
        return Ok(StorageKind::Local { path: parent.to_owned(), prefix: name });
    }
    Ok(StorageKind::Local { path, prefix: DEFAULT_PREFIX.to_owned() })
}

pub(super) fn check(
    name: &str,
    raw: &RawStorage,
    (env, default): (Env<'_>, &Slug),
    faults: &mut Faults<'_>,
) -> Option<StorageConfig> {
    let organisation = organisation(raw.organisation.as_ref(), default, faults);
    if let Some(url) = &raw.public_base_url {
        faults.add(
            "public_base_url",
            url.span(),
            "backups are private: a storage for them has no public address; remove it",
        );
    }
    let kind = match raw.provider.get_ref().as_str() {
        "s3" => check_s3(raw, env, faults),
        "local" => check_local(raw, env, faults),
        other => {
            faults.add(
                "provider",
                raw.provider.span(),
                format!("found `{other}`, expected `s3` or `local`"),
            );
            None
        }
    };
    let credentials = check_credentials(raw, env, faults);
    let jobs = raw.jobs.as_ref().map(|jobs| {
        if *jobs.get_ref() == 0 {
            faults.add(
                "jobs",
                jobs.span(),
                "found 0, expected how many jobs write to it at a time",
            );
        }
        *jobs.get_ref()
    });
    let credentials_expire = raw.credentials_expire.as_ref().and_then(|text| {
        let time = text.get_ref().parse::<Timestamp>().ok().or_else(|| {
            let date: jiff::civil::Date = text.get_ref().parse().ok()?;
            date.to_zoned(jiff::tz::TimeZone::UTC).ok().map(|zoned| zoned.timestamp())
        });
        if time.is_none() {
            faults.add("credentials_expire", text.span(), "expected a date such as 2027-01-31");
        }
        time
    });
    Some(StorageConfig {
        name: name.to_owned(),
        organisation: organisation?,
        kind: kind?,
        credentials: credentials?,
        credentials_expire,
        jobs,
    })
}

/// Reads whose something is: what else is said, if nothing is said here.
pub(super) fn organisation(
    name: Option<&Spanned<String>>,
    default: &Slug,
    faults: &mut Faults<'_>,
) -> Option<Slug> {
    let Some(name) = name else { return Some(default.clone()) };
    let slug = name.get_ref().parse().ok().filter(Slug::is_free_for_organisations);
    if slug.is_none() {
        let problem = "expected a name of a-z, 0-9, '-', '_', '.', other than `keys`, `archives` and `catalogs`";
        faults.add("organisation", name.span(), problem);
    }
    slug
}

fn check_s3(raw: &RawStorage, env: Env<'_>, faults: &mut Faults<'_>) -> Option<StorageKind> {
    if let Some(path) = &raw.path {
        faults.add(
            "path",
            path.span(),
            "only a storage with provider = \"local\" has a path; an S3 storage has a prefix",
        );
    }
    let Some(raw_bucket) = &raw.bucket else {
        faults.add("bucket", raw.provider.span(), "is missing: the name of the bucket");
        return None;
    };
    let bucket = faults.text("bucket", raw_bucket, env)?;
    if let Err(problem) = check_bucket(&bucket) {
        faults.add("bucket", raw_bucket.span(), problem);
    }
    let endpoint = match &raw.endpoint {
        None => None,
        Some(endpoint) => {
            let text = faults.text("endpoint", endpoint, env)?;
            match normal_endpoint(&text, raw.use_ssl) {
                Ok(endpoint) => Some(endpoint),
                Err(problem) => {
                    faults.add("endpoint", endpoint.span(), problem);
                    return None;
                }
            }
        }
    };
    // Custom endpoints want the bucket in the path (D22, V23).
    let virtual_host = match raw.addressing.as_ref().map(|a| (a.get_ref().as_str(), a.span())) {
        None => endpoint.is_none(),
        Some(("path", _)) => false,
        Some(("virtual", _)) => true,
        Some((other, span)) => {
            faults.add(
                "addressing",
                span,
                format!("found `{other}`, expected `path` or `virtual`"),
            );
            return None;
        }
    };
    let region = match &raw.region {
        None => DEFAULT_REGION.to_owned(),
        Some(region) => faults.text("region", region, env)?,
    };
    let ca_file = match &raw.ca_file {
        None => None,
        Some(file) => {
            let path = PathBuf::from(faults.text("ca_file", file, env)?);
            if let Err(error) = std::fs::metadata(&path) {
                faults.add(
                    "ca_file",
                    file.span(),
                    format!("{} cannot be read: {error}", path.display()),
                );
            }
            Some(path)
        }
    };
    let prefix = prefix(raw, env, faults)?;
    Some(StorageKind::S3 { bucket, prefix, endpoint, region, virtual_host, ca_file })
}

fn check_local(raw: &RawStorage, env: Env<'_>, faults: &mut Faults<'_>) -> Option<StorageKind> {
    let Some(raw_path) = &raw.path else {
        faults.add("path", raw.provider.span(), "is missing: the directory for the backups");
        return None;
    };
    let path = faults.absolute_path("path", raw_path, env);
    let prefix = prefix(raw, env, faults);
    Some(StorageKind::Local { path: path?, prefix: prefix? })
}

fn prefix(raw: &RawStorage, env: Env<'_>, faults: &mut Faults<'_>) -> Option<String> {
    let Some(prefix) = &raw.prefix else { return Some(DEFAULT_PREFIX.to_owned()) };
    let text = faults.text("prefix", prefix, env)?;
    check_prefix(&text).map_err(|problem| faults.add("prefix", prefix.span(), problem)).ok()
}

fn check_prefix(prefix: &str) -> Result<String, String> {
    let legal = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    let good = prefix
        .split('/')
        .all(|s| !s.is_empty() && s.chars().all(legal) && s.chars().any(|c| c != '.'));
    if good && prefix.len() <= 200 {
        return Ok(prefix.to_owned());
    }
    Err(format!(
        "found `{prefix}`, expected folders of letters, digits, '-', '_', '.', without a slash at either end"
    ))
}

fn check_bucket(bucket: &str) -> Result<(), String> {
    let legal = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "-._".contains(c);
    if (3..=63).contains(&bucket.len()) && bucket.chars().all(legal) {
        return Ok(());
    }
    let advice =
        if bucket.contains('/') { "; what follows the slash belongs into `prefix`" } else { "" };
    Err(format!(
        "found `{bucket}`, expected a bucket's name of 3 to 63 characters a-z, 0-9, '-', '.'{advice}"
    ))
}

/// Takes a URL, or host and port with `use_ssl` beside them (H10, H11), and returns a URL.
fn normal_endpoint(text: &str, use_ssl: Option<bool>) -> Result<String, String> {
    let (scheme, rest) = match text.split_once("://") {
        Some((scheme @ ("http" | "https"), rest)) => (scheme, rest),
        Some((scheme, _)) => {
            return Err(format!("found the scheme `{scheme}`, expected http or https"));
        }
        None => (if use_ssl == Some(false) { "http" } else { "https" }, text),
    };
    let authority = rest.strip_suffix('/').unwrap_or(rest);
    if authority.contains('/') {
        return Err(format!(
            "found a path in `{text}`, expected only host and port; the bucket's name belongs into `bucket`"
        ));
    }
    let (host, port) = match authority.rsplit_once(':') {
        Some((host, port)) if !port.ends_with(']') => (host, Some(port)),
        _ => (authority, None),
    };
    if let Some(port) = port
        && port.parse::<u16>().is_err()
    {
        return Err(format!("found the port `{port}`, expected a number up to 65535"));
    }
    if host.is_empty() || host.contains(|c: char| c.is_whitespace() || c == '@') {
        return Err(format!(
            "found `{text}`, expected a host such as s3.example.org or s3.example.org:9000"
        ));
    }
    Ok(format!("{scheme}://{authority}"))
}

fn check_credentials(
    raw: &RawStorage,
    env: Env<'_>,
    faults: &mut Faults<'_>,
) -> Option<CredentialConfig> {
    let mut secret = |name, value: &Option<toml::Spanned<String>>| match value {
        None => Some(None),
        Some(value) => {
            let text = faults.text(name, value, env)?;
            match resolve_file(&text) {
                Ok(text) if !text.trim().is_empty() => Some(Some((text, value.span()))),
                // Blank credentials must not become somebody else's.
                Ok(_) => {
                    faults.add(
                        name,
                        value.span(),
                        "is blank; remove it to use the machine's own credentials",
                    );
                    None
                }
                Err(problem) => {
                    faults.add(name, value.span(), problem);
                    None
                }
            }
        }
    };
    let id = secret("access_key_id", &raw.access_key_id)?;
    let key = secret("secret_access_key", &raw.secret_access_key)?;
    let token = secret("session_token", &raw.session_token)?;
    match (id, key) {
        (Some((access_key_id, _)), Some((key, _))) => Some(CredentialConfig::Given {
            access_key_id,
            secret_access_key: key.into(),
            session_token: token.map(|(token, _)| token.into()),
        }),
        (None, None) => {
            let profile = match &raw.profile {
                None => None,
                Some(profile) => Some(faults.text("profile", profile, env)?),
            };
            Some(CredentialConfig::Elsewhere { profile })
        }
        (Some((_, span)), None) => {
            faults.add("secret_access_key", span, "is missing beside access_key_id");
            None
        }
        (None, Some((_, span))) => {
            faults.add("access_key_id", span, "is missing beside secret_access_key");
            None
        }
    }
}

/// Reads a secret that stands in a file of its own.
pub(super) fn resolve_file(text: &str) -> Result<String, String> {
    match text.strip_prefix("file:") {
        None => Ok(text.to_owned()),
        Some(path) => std::fs::read_to_string(path)
            .map(|content| content.trim_end_matches(['\r', '\n']).to_owned())
            .map_err(|error| format!("{path} cannot be read: {error}")),
    }
}
