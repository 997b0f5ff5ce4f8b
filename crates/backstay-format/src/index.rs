//! The index of a source: a cache of its manifests for fast listing. Always rebuildable, never trusted over them.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::frame::{self, Binding, FrameError};
use crate::{
    BackupId, Details, Encryption, FORMAT_VERSION, ImportedFrom, ItemError, Keyring, Manifest,
    PartName, Slug, Status, TimeFrom, Trigger, VaultId,
};

/// Item errors that an entry lists; the manifest lists more.
const LISTED_ITEM_ERRORS: usize = 20;

/// All backups of a source that somebody saw.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Index {
    /// Version of the format; 1.
    pub format: u32,
    /// The entries, oldest first.
    pub backups: Vec<IndexEntry>,
}

/// What a listing shows of a backup.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct IndexEntry {
    /// Its id.
    pub id: BackupId,
    /// The source that it was made of.
    pub source: Slug,
    /// The kind of that source.
    pub source_kind: String,
    /// Whether everything was read.
    pub status: Status,
    /// What started it.
    pub trigger: Trigger,
    /// When the run began; of an import, when the dump was taken.
    pub started_at: Timestamp,
    /// When the last byte was durable.
    pub finished_at: Timestamp,
    /// The machine that it was made on.
    pub host: String,
    /// Plain bytes of all parts.
    pub plain_bytes: u64,
    /// Bytes of all parts on the storage.
    pub stored_bytes: u64,
    /// Whether and with which key it is sealed.
    pub encryption: Encryption,
    /// Its parts.
    pub parts: Vec<IndexPart>,
    /// The note of the person who made it.
    pub note: Option<String>,
    /// What a person should know.
    pub warnings: Vec<String>,
    /// The first items that could not be read.
    pub item_errors: Vec<ItemError>,
    /// How many items could not be read.
    pub item_error_count: u64,
    /// Why it must not be forgotten, if it is held.
    pub hold: Option<String>,
    /// Whether [`IndexEntry::started_at`] is only when a file was written that was imported: what is in it may be of any age.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub is_undated: bool,
}

impl IndexEntry {
    /// Says whether it is what somebody means by a good backup of the source: all was read, and it is more than what a
    /// restore put aside.
    pub fn is_good(&self) -> bool {
        self.status == Status::Complete && self.trigger != Trigger::PreRestore
    }

    /// Says whether it is a good backup of a time that is known: how old the newest data is, only these tell.
    pub fn is_good_and_dated(&self) -> bool {
        self.is_good() && !self.is_undated
    }
}

/// A part in a listing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct IndexPart {
    /// Its name.
    pub name: PartName,
    /// Its plain bytes.
    pub plain_bytes: u64,
    /// Its bytes on the storage.
    pub stored_bytes: u64,
}

/// Why an index could not be used; its manifests still can.
#[derive(Debug, thiserror::Error)]
pub enum IndexError {
    /// The bytes are not an index.
    #[error("the index cannot be read: {finding}")]
    Malformed {
        /// What was found.
        finding: String,
    },
    /// It is sealed and does not open.
    #[error("the index does not open")]
    Sealed(#[source] FrameError),
}

impl IndexEntry {
    /// Makes the entry of a backup.
    pub fn new(manifest: &Manifest, details: Details, hold: Option<String>) -> Self {
        let mut item_errors = details.item_errors;
        item_errors.truncate(LISTED_ITEM_ERRORS);
        let from_file = |from: &ImportedFrom| from.time_from == TimeFrom::File;
        let part = |part: &crate::Part| IndexPart {
            name: part.name.clone(),
            plain_bytes: part.plain_bytes,
            stored_bytes: part.stored.bytes(),
        };
        Self {
            id: manifest.backup.clone(),
            source: manifest.source.clone(),
            source_kind: manifest.source_kind.clone(),
            status: manifest.status,
            trigger: manifest.trigger,
            started_at: manifest.started_at,
            finished_at: manifest.finished_at,
            host: manifest.host.clone(),
            plain_bytes: manifest.plain_bytes(),
            stored_bytes: manifest.stored_bytes(),
            encryption: manifest.encryption.clone(),
            parts: manifest.parts.iter().map(part).collect(),
            note: details.note,
            warnings: details.warnings,
            item_errors,
            item_error_count: manifest.item_error_count,
            hold,
            is_undated: details.imported.as_deref().is_some_and(from_file),
        }
    }
}

impl Index {
    /// Makes an index of entries in any order.
    pub fn new(mut backups: Vec<IndexEntry>) -> Self {
        backups.sort_by(|a, b| a.id.cmp(&b.id));
        backups.dedup_by(|a, b| a.id == b.id);
        Self { format: FORMAT_VERSION, backups }
    }

    /// Turns the index into the bytes of its object: sealed if there is a key, since entries name files and notes.
    pub fn encode(
        &self,
        keyring: &Keyring,
        place: (&VaultId, &Slug, &Slug),
        salt: [u8; 32],
    ) -> Vec<u8> {
        let plain = serde_json::to_vec(self).expect("an index is plain values");
        match keyring.newest() {
            Ok(newest) => frame::seal_bytes(
                &newest.key,
                &Binding::index(place.0, place.1, place.2),
                salt,
                &plain,
            ),
            Err(_) => plain,
        }
    }

    /// Reads the bytes of an index.
    pub fn decode(
        bytes: &[u8],
        keyring: &Keyring,
        place: (&VaultId, &Slug, &Slug),
    ) -> Result<Self, IndexError> {
        let opened;
        let plain = if bytes.starts_with(b"{") {
            // An index in clear beside sealed ones was not written by us: anybody could have.
            if keyring.newest().is_ok() {
                return Err(IndexError::Malformed { finding: "it is not sealed".to_owned() });
            }
            bytes
        } else {
            let binding = Binding::index(place.0, place.1, place.2);
            opened =
                frame::open_bytes(bytes, keyring, Some(&binding)).map_err(IndexError::Sealed)?;
            &opened
        };
        let index: Self = serde_json::from_slice(plain)
            .map_err(|error| IndexError::Malformed { finding: error.to_string() })?;
        if index.format != FORMAT_VERSION {
            return Err(IndexError::Malformed { finding: format!("format {}", index.format) });
        }
        Ok(index)
    }
}
