//! Manifests as bytes: readable JSON, closed by an authenticator over exactly those bytes.
//!
//! The file is one JSON document whose last member is `"mac"`. The authenticator covers every byte before that member,
//! as it lies in the file: no canonical form is needed, and none can be got wrong.

use aws_lc_rs::hmac;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde::{Deserialize, Serialize};

use crate::frame::{self, Binding, FrameError};
use crate::{
    BackupId, Details, DetailsSection, Encryption, FORMAT_VERSION, KeyError, KeyId, Keyring,
    Manifest, Slug, VaultId,
};

/// Larger files are not manifests.
pub const MAX_MANIFEST_BYTES: u64 = 64 << 20;

/// What stands between the authenticated bytes and the authenticator.
const MAC_OPENING: &str = ",\n  \"mac\": \"";
const MAC_CLOSING: &str = "\"\n}\n";
const MAC_DIGITS: usize = 64;

/// Why a manifest could not be used.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// The bytes are not a manifest.
    #[error("the manifest cannot be read: {finding}")]
    Malformed {
        /// What was found.
        finding: String,
    },
    /// Written by a newer program.
    #[error(
        "the manifest has format {found}, this program reads {FORMAT_VERSION}; use a newer backstay"
    )]
    Newer {
        /// The version found.
        found: u64,
    },
    /// The key is missing.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// The bytes are not those that were written.
    #[error("the manifest does not authenticate under key {key}: it was altered")]
    Altered {
        /// The key that it names.
        key: KeyId,
    },
    /// It is the manifest of another backup.
    #[error("this is the manifest of {found}, it lies at the place of {expected}")]
    WrongPlace {
        /// Whose place it lies at.
        expected: String,
        /// Whose it is.
        found: String,
    },
    /// The sealed section does not open.
    #[error("the sealed section of the manifest does not open")]
    Details(#[source] FrameError),
}

/// A manifest that was read but not yet believed.
#[derive(Debug, Clone)]
pub struct ManifestFile {
    manifest: Manifest,
    signed: Vec<u8>,
    mac: Vec<u8>,
}

/// Turns a manifest into the bytes of its file. `salt` must be random; it seals the details.
pub fn encode_manifest(
    mut manifest: Manifest,
    details: Details,
    keyring: &Keyring,
    salt: [u8; 32],
) -> Result<Vec<u8>, ManifestError> {
    manifest.item_error_count = manifest.item_error_count.max(details.item_errors.len() as u64);
    manifest.warning_count = details.warnings.len() as u64;
    let sealing = match &manifest.encryption {
        Encryption::None => None,
        Encryption::Sealed { key } => Some(keyring.get(key)?),
    };
    manifest.details = match sealing {
        None => DetailsSection::Plain(Box::new(details)),
        Some(key) => {
            let plain = serde_json::to_vec(&details).expect("details are plain values");
            let binding = Binding::manifest_details(&manifest.vault, &manifest.backup);
            DetailsSection::Sealed(BASE64.encode(frame::seal_bytes(key, &binding, salt, &plain)))
        }
    };
    let text = serde_json::to_string_pretty(&manifest).expect("a manifest is plain values");
    let signed = text.strip_suffix("\n}").expect("pretty JSON of a struct ends so").to_owned();
    let mac = match sealing {
        None => String::new(),
        Some(key) => hex::encode(hmac::sign(&key.manifest_mac_key(), signed.as_bytes())),
    };
    Ok([signed.as_str(), MAC_OPENING, &mac, MAC_CLOSING].concat().into_bytes())
}

impl ManifestFile {
    /// Reads a manifest's bytes. Believe nothing of it before [`ManifestFile::verify`].
    pub fn parse(bytes: &[u8]) -> Result<Self, ManifestError> {
        let malformed = |finding: &str| ManifestError::Malformed { finding: finding.to_owned() };
        let text = std::str::from_utf8(bytes).map_err(|_| malformed("it is not UTF-8"))?;
        refuse_newer(text)?;
        let body = text
            .strip_suffix(MAC_CLOSING)
            .ok_or_else(|| malformed("it does not end as a manifest"))?;
        let at = body.rfind(MAC_OPENING).ok_or_else(|| malformed("it has no authenticator"))?;
        let (signed, mac) = body.split_at(at);
        let mac = mac.strip_prefix(MAC_OPENING).expect("it was found there");
        let document = [signed, "\n}"].concat();
        let manifest: Manifest =
            serde_json::from_str(&document).map_err(|error| malformed(&error.to_string()))?;
        let mac_digits = match manifest.encryption {
            Encryption::None => 0,
            Encryption::Sealed { .. } => MAC_DIGITS,
        };
        let mac_bytes = hex::decode(mac).ok().filter(|_| mac.len() == mac_digits);
        let mac = mac_bytes.ok_or_else(|| malformed("its authenticator has the wrong form"))?;
        Ok(Self { manifest, signed: signed.as_bytes().to_vec(), mac })
    }

    /// Returns what it says, unproven: for listings without a key, and for asking which key is needed.
    pub fn unverified(&self) -> &Manifest {
        &self.manifest
    }

    /// Checks that it is authentic and lies at its own place.
    ///
    /// A manifest that is not sealed has nothing to authenticate it; callers decide whether they take one.
    pub fn verify(
        self,
        keyring: &Keyring,
        vault: &VaultId,
        place: (&Slug, &Slug, &BackupId),
    ) -> Result<Manifest, ManifestError> {
        if let Encryption::Sealed { key } = &self.manifest.encryption {
            let mac_key = keyring.get(key)?.manifest_mac_key();
            hmac::verify(&mac_key, &self.signed, &self.mac)
                .map_err(|_| ManifestError::Altered { key: key.clone() })?;
        }
        let name = |v: &VaultId, org: &Slug, source: &Slug, id: &BackupId| {
            format!("{v}/{org}/{source}/{id}")
        };
        let manifest = self.manifest;
        let expected = name(vault, place.0, place.1, place.2);
        let found =
            name(&manifest.vault, &manifest.organisation, &manifest.source, &manifest.backup);
        if found != expected {
            return Err(ManifestError::WrongPlace { expected, found });
        }
        Ok(manifest)
    }
}

impl Manifest {
    /// Opens the section that would leak content.
    pub fn open_details(&self, keyring: &Keyring) -> Result<Details, ManifestError> {
        let sealed = match &self.details {
            DetailsSection::Plain(details) => return Ok((**details).clone()),
            DetailsSection::Sealed(text) => BASE64.decode(text),
        };
        let sealed = sealed.map_err(|_| ManifestError::Malformed {
            finding: "its sealed section is not base64".to_owned(),
        })?;
        let binding = Binding::manifest_details(&self.vault, &self.backup);
        let plain =
            frame::open_bytes(&sealed, keyring, Some(&binding)).map_err(ManifestError::Details)?;
        serde_json::from_slice(&plain)
            .map_err(|error| ManifestError::Malformed { finding: error.to_string() })
    }
}

/// Newer formats may have other fields, so the version is looked at before anything else.
fn refuse_newer(text: &str) -> Result<(), ManifestError> {
    #[derive(Serialize, Deserialize)]
    struct Versioned {
        format: u64,
    }
    let versioned: Versioned = serde_json::from_str(text)
        .map_err(|error| ManifestError::Malformed { finding: error.to_string() })?;
    if versioned.format > u64::from(FORMAT_VERSION) {
        return Err(ManifestError::Newer { found: versioned.format });
    }
    Ok(())
}

#[cfg(test)]
mod tests;
