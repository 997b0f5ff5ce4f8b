//! What a storage can do: data, found out by the probe, that the store obeys.

use serde::{Deserialize, Serialize};

/// What a storage can do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Profile {
    /// Whether a put can be made to fail if the name is taken.
    pub create_only_put: bool,
    /// How it is known that what was stored is what was sent.
    pub upload_check: UploadCheck,
    /// Whether all parts of an upload but the last must have one size.
    pub equal_parts: bool,
    /// Parts that an upload may have.
    pub max_parts: u32,
}

/// How it is known that what was stored is what was sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum UploadCheck {
    /// The storage refuses a body that is not the signed one; the probe tried it.
    SignedPayload,
    /// The storage refuses a body that does not fit the checksum in its header; the probe tried it.
    ChecksumHeader,
    /// The storage believes anything: everything is read back and compared.
    ReadBack,
    /// A local disk: written and flushed by this machine.
    Local,
}

impl Profile {
    /// What is assumed of a storage that was not probed: as little as possible.
    pub fn cautious() -> Self {
        Self {
            create_only_put: false,
            upload_check: UploadCheck::ReadBack,
            equal_parts: true,
            max_parts: 1_000,
        }
    }

    /// A directory of this machine.
    pub fn local() -> Self {
        Self {
            create_only_put: true,
            upload_check: UploadCheck::Local,
            equal_parts: false,
            max_parts: 10_000,
        }
    }

    /// What the providers document, by the last labels of the endpoint's host; the probe corrects the rest.
    ///
    /// Sources: the providers' pages on multipart limits, November 2026.
    pub fn documented(endpoint_host: Option<&str>) -> Self {
        let host = endpoint_host.unwrap_or("amazonaws.com");
        let known = PROVIDERS
            .iter()
            .find(|known| host == known.host || host.ends_with(&format!(".{}", known.host)));
        let mut profile = Self { max_parts: 10_000, equal_parts: false, ..Self::cautious() };
        if let Some(known) = known {
            profile.equal_parts = known.equal_parts;
            profile.max_parts = known.max_parts;
        }
        profile
    }
}

struct Provider {
    host: &'static str,
    equal_parts: bool,
    max_parts: u32,
}

const PROVIDERS: &[Provider] = &[
    Provider { host: "amazonaws.com", equal_parts: false, max_parts: 10_000 },
    Provider { host: "r2.cloudflarestorage.com", equal_parts: true, max_parts: 10_000 },
    Provider { host: "backblazeb2.com", equal_parts: false, max_parts: 10_000 },
    Provider { host: "wasabisys.com", equal_parts: false, max_parts: 10_000 },
    Provider { host: "digitaloceanspaces.com", equal_parts: false, max_parts: 10_000 },
    Provider { host: "your-objectstorage.com", equal_parts: false, max_parts: 10_000 },
    Provider { host: "scw.cloud", equal_parts: false, max_parts: 1_000 },
];
