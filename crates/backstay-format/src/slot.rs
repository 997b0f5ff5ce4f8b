//! Key slots: a data key, wrapped, beside the backups that it seals.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::{DataKey, FORMAT_VERSION, KeyError, KeyId, RecoveryKey};

/// The file `keys/<key-id>.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SlotFile {
    /// Version of the format; 1.
    pub format: u32,
    /// The key in the slots.
    pub key: KeyId,
    /// When the key was made.
    pub created_at: Timestamp,
    slots: Vec<Slot>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
enum Slot {
    /// Wrapped under the recovery key that recovery kits hold.
    Recovery { fingerprint: String, wrapped: String },
}

/// Why a slot file could not be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SlotError {
    /// The bytes are not a slot file.
    #[error("the key slots cannot be read: {finding}")]
    Malformed {
        /// What was found.
        finding: String,
    },
    /// No slot is for this recovery key.
    #[error(
        "no slot of key {key} is for recovery key {fingerprint}: the kit is of another installation"
    )]
    OtherRecoveryKey {
        /// The key in the slots.
        key: KeyId,
        /// The recovery key at hand.
        fingerprint: String,
    },
    /// The slot does not open.
    #[error(transparent)]
    Key(#[from] KeyError),
}

impl SlotFile {
    /// Wraps a key under the recovery key; `nonce` must be random.
    pub fn new(
        key: &DataKey,
        created_at: Timestamp,
        recovery: &RecoveryKey,
        nonce: [u8; 12],
    ) -> Self {
        let file = Self { format: FORMAT_VERSION, key: key.id(), created_at, slots: Vec::new() };
        file.with(key, recovery, nonce)
    }

    /// Wraps the key under one more recovery key; `nonce` must be random.
    #[must_use]
    pub fn with(mut self, key: &DataKey, recovery: &RecoveryKey, nonce: [u8; 12]) -> Self {
        let wrapped = BASE64.encode(recovery.wrap(key, nonce));
        self.slots.push(Slot::Recovery { fingerprint: recovery.fingerprint(), wrapped });
        self
    }

    /// Turns the file into bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = serde_json::to_vec_pretty(self).expect("slots are plain values");
        bytes.push(b'\n');
        bytes
    }

    /// Reads a file's bytes.
    pub fn decode(bytes: &[u8]) -> Result<Self, SlotError> {
        let malformed = |finding: String| SlotError::Malformed { finding };
        let file: Self =
            serde_json::from_slice(bytes).map_err(|error| malformed(error.to_string()))?;
        if file.format != FORMAT_VERSION {
            return Err(malformed(format!(
                "format {}, this program reads {FORMAT_VERSION}",
                file.format
            )));
        }
        Ok(file)
    }

    /// Opens the key, and checks that it is the one that the file is named for.
    pub fn open(&self, recovery: &RecoveryKey) -> Result<DataKey, SlotError> {
        let fingerprint = recovery.fingerprint();
        let wrapped = self.slots.iter().find_map(|slot| match slot {
            Slot::Recovery { fingerprint: of, wrapped } => (*of == fingerprint).then_some(wrapped),
        });
        let wrapped =
            wrapped.ok_or(SlotError::OtherRecoveryKey { key: self.key.clone(), fingerprint })?;
        let bytes = BASE64.decode(wrapped).map_err(|_| SlotError::Malformed {
            finding: "a wrapped key that is not base64".to_owned(),
        })?;
        Ok(recovery.unwrap(&bytes, &self.key)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slot_opens_under_its_recovery_key_only_and_notices_flipped_bits() {
        let (key, recovery) = (DataKey::new([1; 32]), RecoveryKey::new([2; 32]));
        let file = SlotFile::new(&key, "2026-01-01T00:00:00Z".parse().unwrap(), &recovery, [3; 12]);
        let bytes = file.encode();
        assert_eq!(SlotFile::decode(&bytes).unwrap().open(&recovery).unwrap().id(), key.id());
        let other = file.open(&RecoveryKey::new([9; 32])).unwrap_err();
        assert!(matches!(other, SlotError::OtherRecoveryKey { .. }));
        let at = bytes.windows(9).position(|w| w == b"\"wrapped\"").unwrap() + 14;
        for i in at..at + 60 {
            let mut bad = bytes.clone();
            bad[i] = if bad[i] == b'A' { b'B' } else { b'A' };
            assert!(
                SlotFile::decode(&bad).and_then(|file| file.open(&recovery)).is_err(),
                "byte {i}"
            );
        }
    }
}
