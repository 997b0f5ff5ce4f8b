//! The small files of a vault that are neither sealed nor secret.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::{FORMAT_VERSION, Sha256, VaultId, closing};

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

/// The mark that all rows of a segment were tried to be deleted from the table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DeletedMark {
    /// Version of the format; 1.
    pub format: u32,
    /// When the last batch was done.
    pub at: Timestamp,
    /// How many rows were deleted since the work was begun for the last time.
    pub deleted: u64,
    /// How many stayed since they are not as they were archived.
    pub changed: u64,
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

impl DeletedMark {
    /// Turns the file into bytes.
    pub fn encode(&self) -> Vec<u8> {
        encode(self)
    }

    /// Reads a file's bytes.
    pub fn decode(bytes: &[u8]) -> Result<Self, MarkError> {
        decode(bytes)
    }
}

/// The last member of such a file: one flipped bit in a vault's id would bind every later backup to another vault.
const DIGEST: &str = "sha256";

fn encode(file: &impl Serialize) -> Vec<u8> {
    let signed = closing::signed_text(file);
    closing::close(&signed, DIGEST, Sha256::of(signed.as_bytes()).as_bytes())
}

fn decode<T: for<'a> Deserialize<'a>>(bytes: &[u8]) -> Result<T, MarkError> {
    #[derive(Deserialize)]
    struct Versioned {
        format: u64,
    }
    let malformed = |finding: String| MarkError::Malformed { finding };
    let text = std::str::from_utf8(bytes).map_err(|_| malformed("it is not UTF-8".to_owned()))?;
    // Newer formats may have other fields, so the version is looked at before anything else.
    let versioned: Versioned =
        serde_json::from_str(text).map_err(|error| malformed(error.to_string()))?;
    if versioned.format > u64::from(FORMAT_VERSION) {
        return Err(MarkError::Newer { found: versioned.format });
    }
    let (signed, digest) = closing::split(text, DIGEST).map_err(malformed)?;
    if Sha256::of(signed.as_bytes()).as_bytes().as_slice() != digest {
        return Err(malformed("its bytes are not those that its digest was made of".to_owned()));
    }
    serde_json::from_str(&closing::document(signed)).map_err(|error| malformed(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_flipped_bit_of_a_vault_file_is_noticed() {
        let file = VaultFile {
            format: 1,
            vault: VaultId::new([7; 16]),
            created_at: "2026-01-01T00:00:00Z".parse().unwrap(),
        };
        let bytes = file.encode();
        assert_eq!(VaultFile::decode(&bytes).as_ref(), Ok(&file));
        for bit in 0..bytes.len() * 8 {
            let mut spoilt = bytes.clone();
            spoilt[bit / 8] ^= 1 << (bit % 8);
            // Digits may be written large; nothing else may change.
            let read = VaultFile::decode(&spoilt);
            assert!(read.is_err() || read.as_ref() == Ok(&file), "bit {bit}");
        }
    }
}
