//! The small files of a vault that are neither sealed nor secret.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::{FORMAT_VERSION, VaultId};

/// The file `vault.json`, which makes a prefix a vault. Written once.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VaultFile {
    /// Version of the format; 1.
    pub format: u32,
    /// The vault's id.
    pub vault: VaultId,
    /// When it was made.
    pub created_at: Timestamp,
}

/// The file `hold.json` in a backup's folder: while it is there, the backup is not forgotten.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Hold {
    /// Version of the format; 1.
    pub format: u32,
    /// Why, for a person.
    pub reason: String,
    /// Since when.
    pub since: Timestamp,
}

/// Why such a file could not be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MarkError {
    /// The bytes are not such a file.
    #[error("it cannot be read: {finding}")]
    Malformed {
        /// What was found.
        finding: String,
    },
    /// Written by a newer program.
    #[error("it has format {found}, this program knows {FORMAT_VERSION}; use a newer backstay")]
    Newer {
        /// The version found.
        found: u64,
    },
}

impl VaultFile {
    /// Turns the file into bytes.
    pub fn encode(&self) -> Vec<u8> {
        encode(self)
    }

    /// Reads a file's bytes.
    pub fn decode(bytes: &[u8]) -> Result<Self, MarkError> {
        decode(bytes)
    }
}

impl Hold {
    /// Turns the file into bytes.
    pub fn encode(&self) -> Vec<u8> {
        encode(self)
    }

    /// Reads a file's bytes.
    pub fn decode(bytes: &[u8]) -> Result<Self, MarkError> {
        decode(bytes)
    }
}

fn encode(file: &impl Serialize) -> Vec<u8> {
    let mut bytes = serde_json::to_vec_pretty(file).expect("plain values serialise");
    bytes.push(b'\n');
    bytes
}

fn decode<T: for<'a> Deserialize<'a>>(bytes: &[u8]) -> Result<T, MarkError> {
    #[derive(Deserialize)]
    struct Versioned {
        format: u64,
    }
    let malformed = |error: serde_json::Error| MarkError::Malformed { finding: error.to_string() };
    // Newer formats may have other fields, so the version is looked at before anything else.
    let versioned: Versioned = serde_json::from_slice(bytes).map_err(malformed)?;
    if versioned.format > u64::from(FORMAT_VERSION) {
        return Err(MarkError::Newer { found: versioned.format });
    }
    serde_json::from_slice(bytes).map_err(malformed)
}
