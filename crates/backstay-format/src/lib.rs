//! What lies in a Backstay vault: names, sealing, keys, manifests, retention.
//!
//! Pure and synchronous: nothing here reads files, the clock or randomness; what is random comes as an argument. The
//! full text of the format is `docs/format.md`; what is serialised here is a promise to every later version.

#![cfg_attr(test, expect(clippy::unwrap_used, reason = "a test that cannot go on should stop"))]

mod archived;
mod closing;
mod content;
mod envelope;
mod file_databases;
mod frame;
mod ids;
mod index;
mod key;
mod kit;
mod manifest;
mod marks;
mod names;
pub mod retention;
mod sha;
mod slot;

pub use archived::{ArchivedColumn, ArchivedFile, ArchivedRows};
pub use content::{
    CommandContent, Content, DatabaseGrant, DatabaseProperties, DatabaseRole, DatabaseSetting,
    FilesContent, LargeValue, Membership, MysqlContent, MysqlProperties, MysqlServerContent,
    MysqlServerDatabase, ObjectKind, PostgresContent, PostgresServerContent, RedisContent,
    RedisDatabase, ServerDatabase, StoredObject, TableRows, Tablespace,
};
pub use envelope::{MAX_MANIFEST_BYTES, ManifestError, ManifestFile, encode_manifest};
pub use file_databases::{DuckdbContent, DuckdbTable, SetContent, SetMember, SqliteContent};
pub use frame::{
    Binding, FRAME_BYTES, FrameError, OpenReader, Role, SealWriter, open_bytes, seal_bytes,
};
pub use ids::{BackupId, KeyId, NameError, PartName, Slug, VaultId};
pub use index::{Index, IndexEntry, IndexError, IndexPart};
pub use key::{DataKey, KeyError, Keyring, KeyringEntry, RecoveryKey};
pub use kit::{Kit, KitCost, KitError, KitVault};
pub use manifest::{
    Codec, Details, DetailsSection, Encryption, ImportedFrom, ItemError, Manifest, MediaType, Part,
    Status, StoredPart, TimeFrom, Trigger,
};
pub use marks::{DeletedMark, Hold, MarkError, VaultFile};
pub use names::{ARCHIVES, BackupFile, ObjectName, ParsedName};
pub use sha::{Hasher, Sha256};
pub use slot::{SlotError, SlotFile};

/// The version of everything that this crate writes.
pub const FORMAT_VERSION: u32 = 1;
