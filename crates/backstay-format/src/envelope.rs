//! Manifests as bytes: readable JSON, closed by an authenticator over exactly those bytes.
//!
//! The file is one JSON document whose last member is `"mac"`. The authenticator covers every byte before that member,
//! as it lies in the file; of a backup that is not sealed it is a digest, which shows damage but no intent.

use aws_lc_rs::hmac;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde::{Deserialize, Serialize};

use crate::frame::{self, Binding, FrameError};
use crate::{
    BackupId, Details, DetailsSection, Encryption, FORMAT_VERSION, KeyError, KeyId, Keyring,
    Manifest, Sha256, Slug, VaultId, closing,
};

/// Larger files are not manifests.
pub const MAX_MANIFEST_BYTES: u64 = 64 << 20;

/// The last member of a manifest.
const MAC: &str = "mac";

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
    let signed = closing::signed_text(&manifest);
    Ok(match sealing {
        None => closing::close(&signed, MAC, Sha256::of(signed.as_bytes()).as_bytes()),
        Some(key) => {
            let mac = hmac::sign(&key.manifest_mac_key(), signed.as_bytes());
            closing::close(&signed, MAC, mac.as_ref())
        }
    })
}

impl ManifestFile {
    /// Reads a manifest's bytes. Believe nothing of it before [`ManifestFile::verify`].
    pub fn parse(bytes: &[u8]) -> Result<Self, ManifestError> {
        let malformed = |finding: &str| ManifestError::Malformed { finding: finding.to_owned() };
        let text = std::str::from_utf8(bytes).map_err(|_| malformed("it is not UTF-8"))?;
        refuse_newer(text)?;
        let (signed, mac) = closing::split(text, MAC).map_err(|finding| malformed(&finding))?;
        let manifest: Manifest = serde_json::from_str(&closing::document(signed))
            .map_err(|error| malformed(&error.to_string()))?;
        Ok(Self { manifest, signed: signed.as_bytes().to_vec(), mac })
    }

    /// Returns what it says, unproven: for listings without a key, and for asking which key is needed.
    pub fn unverified(&self) -> &Manifest {
        &self.manifest
    }

    /// Checks that it is authentic and lies at its own place.
    ///
    /// A manifest that is not sealed is only proven to be undamaged; callers decide whether they take one.
    pub fn verify(
        self,
        keyring: &Keyring,
        vault: &VaultId,
        place: (&Slug, &Slug, &BackupId),
    ) -> Result<Manifest, ManifestError> {
        match &self.manifest.encryption {
            Encryption::Sealed { key } => {
                let mac_key = keyring.get(key)?.manifest_mac_key();
                hmac::verify(&mac_key, &self.signed, &self.mac)
                    .map_err(|_| ManifestError::Altered { key: key.clone() })?;
            }
            Encryption::None if Sha256::of(&self.signed).as_bytes().as_slice() != self.mac => {
                let finding = "its bytes are not those that its own digest was made of".to_owned();
                return Err(ManifestError::Malformed { finding });
            }
            Encryption::None => {}
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
