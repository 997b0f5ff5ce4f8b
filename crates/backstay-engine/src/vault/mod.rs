//! What Backstay keeps under a storage's prefix; knows the layout.
//!
//! **Invariants.** A backup exists if and only if its manifest does. The manifest is written last, and removed before
//! anything that it names. The index is a cache: every listing compares it with the folders that are there.

mod listing;
mod parts;
mod writer;

use std::sync::Arc;

use backstay_format::{
    BackupFile, BackupId, DeletedMark, Details, FORMAT_VERSION, Hold, KeyId, Keyring,
    MAX_MANIFEST_BYTES, Manifest, ManifestFile, ObjectName, ParsedName, SlotError, SlotFile, Slug,
    StoredPart, VaultFile, VaultId,
};
use bytes::Bytes;
use rand::RngCore as _;

pub use listing::{Listing, Unusable};
pub use writer::{BackupWriter, Draft};

use crate::cx::Cx;
use crate::error::EngineError;
use crate::event::Event;
use crate::store::{ObjectInfo, Store, StoreErrorKind};

/// Vault files, key slots and holds are far smaller.
const MAX_SMALL_OBJECT_BYTES: u64 = 1 << 20;

/// An open vault.
#[derive(Debug, Clone)]
pub struct Vault {
    store: Store,
    id: VaultId,
    keyring: Arc<Keyring>,
}

/// Names one backup in a vault.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct BackupPlace {
    /// Whose source.
    pub organisation: Slug,
    /// Which source.
    pub source: Slug,
    /// Which backup.
    pub backup: BackupId,
}

impl BackupPlace {
    /// Returns the name of one of its files.
    pub fn file(&self, file: &BackupFile) -> ObjectName {
        ObjectName::of_backup(&self.organisation, &self.source, &self.backup, file)
    }

    /// Returns the prefix of all its files.
    pub fn folder(&self) -> String {
        ObjectName::backup_folder(&self.organisation, &self.source, &self.backup)
    }
}

/// Whose keys have slots in a vault.
#[derive(Debug)]
pub struct SlotsFound {
    /// How many are in the keyring, or open with its recovery key.
    pub known: usize,
    /// Those that are and do neither.
    pub foreign: Vec<KeyId>,
}

impl Vault {
    /// Opens the vault at a storage.
    pub async fn open(cx: &Cx, store: Store, keyring: Arc<Keyring>) -> Result<Self, EngineError> {
        // Asked for whole, since a refused HEAD has no body that says why.
        let bytes = match store.get(cx, ObjectName::vault().as_str(), MAX_SMALL_OBJECT_BYTES).await
        {
            Err(error) if error.kind() == StoreErrorKind::NotFound => {
                return Err(EngineError::NoVault { location: store.location().to_owned() });
            }
            bytes => bytes?,
        };
        let unusable = |finding: String| EngineError::UnusableVault {
            location: store.location().to_owned(),
            finding,
        };
        let file = VaultFile::decode(&bytes).map_err(|error| unusable(error.to_string()))?;
        Ok(Self { id: file.vault, store, keyring })
    }

    /// Opens the vault at a storage, making it if there is none.
    pub async fn open_or_create(
        cx: &Cx,
        store: Store,
        keyring: Arc<Keyring>,
    ) -> Result<Self, EngineError> {
        match Self::open(cx, store.clone(), keyring.clone()).await {
            Err(EngineError::NoVault { .. }) => {}
            other => return other,
        }
        let file = VaultFile {
            format: FORMAT_VERSION,
            vault: VaultId::new(random()),
            created_at: cx.now(),
        };
        let created = store.create(cx, ObjectName::vault().as_str(), file.encode().into()).await;
        match created {
            // Somebody else made it in between: theirs is the vault.
            Err(error) if error.kind() == StoreErrorKind::AlreadyExists => {}
            other => other?,
        }
        Self::open(cx, store, keyring).await
    }

    /// Returns the vault's id.
    pub fn id(&self) -> &VaultId {
        &self.id
    }

    /// Returns where the vault is, for a person.
    pub fn location(&self) -> &str {
        self.store.location()
    }

    /// Returns the keys that it is opened with.
    pub fn keyring(&self) -> &Keyring {
        &self.keyring
    }

    /// Makes sure that the newest key lies in the vault, wrapped, so that a recovery kit opens what it seals.
    ///
    /// A slot that does not open is written anew: the key is at hand, and without its slot the kit would be worthless. That of
    /// another recovery key stays beside it: another installation's kit needs it. Whoever lent a key has seen to its slot, and
    /// whoever was lent it could not.
    pub async fn ensure_key_slot(&self, cx: &Cx) -> Result<(), EngineError> {
        let newest = self.keyring.newest()?;
        let Ok(recovery) = self.keyring.recovery() else { return Ok(()) };
        let name = ObjectName::key_slots(&newest.id);
        let wrapped = || SlotFile::new(&newest.key, newest.created_at, recovery, random());
        let found = match self.key_slot(cx, &newest.id).await {
            Ok(slot) => match slot.open(recovery) {
                Ok(_) => return Ok(()),
                Err(SlotError::OtherRecoveryKey { .. }) => {
                    Ok(slot.with(&newest.key, recovery, random()))
                }
                Err(error) => Err(error.into()),
            },
            Err(error) => Err(error),
        };
        let slot = match found {
            Ok(shared) => shared,
            Err(EngineError::Slot(_)) => {
                let (key, location) = (&newest.id, self.location());
                let text =
                    format!("the key slot of {key} in {location} was damaged; it is written anew");
                cx.event(Event::Warning { text });
                wrapped()
            }
            Err(EngineError::Store(error)) if error.kind() == StoreErrorKind::NotFound => {
                self.ensure_known(cx).await?;
                wrapped()
            }
            Err(other) => return Err(other),
        };
        self.store.put(cx, name.as_str(), slot.encode().into()).await?;
        // Without it the recovery kit opens nothing: it must be there as it was sent.
        self.key_slot(cx, &newest.id).await?.open(recovery)?;
        Ok(())
    }

    /// Fails if the vault has keys and none of them is known here: installations that seal with different keys in one vault
    /// read each other's backups as damaged, and neither's retention goes on.
    async fn ensure_known(&self, cx: &Cx) -> Result<(), EngineError> {
        let SlotsFound { known, foreign } = self.slots_found(cx).await?;
        if known > 0 || foreign.is_empty() {
            return Ok(());
        }
        Err(EngineError::ForeignKeys { location: self.location().to_owned(), keys: foreign })
    }

    /// Finds out which of the keys whose slots lie in the vault are known here.
    pub async fn slots_found(&self, cx: &Cx) -> Result<SlotsFound, EngineError> {
        let mut found = SlotsFound { known: 0, foreign: Vec::new() };
        for name in self.key_slot_names(cx).await? {
            let ParsedName::KeySlots(key) = ParsedName::parse(&name) else { continue };
            let is_ours = self.keyring.get(&key).is_ok()
                || match self.key_slot(cx, &key).await {
                    Ok(slot) => slot.open(self.keyring.recovery()?).is_ok(),
                    Err(EngineError::Slot(_)) => false,
                    Err(other) => return Err(other),
                };
            if is_ours {
                found.known += 1;
            } else {
                found.foreign.push(key);
            }
        }
        Ok(found)
    }

    /// Reads the slots of a key.
    pub async fn key_slot(&self, cx: &Cx, key: &KeyId) -> Result<SlotFile, EngineError> {
        let bytes =
            self.store.get(cx, ObjectName::key_slots(key).as_str(), MAX_SMALL_OBJECT_BYTES).await?;
        Ok(SlotFile::decode(&bytes)?)
    }

    /// Reads a manifest and proves that it is authentic and at its own place.
    pub async fn manifest(&self, cx: &Cx, place: &BackupPlace) -> Result<Manifest, EngineError> {
        let name = place.file(&BackupFile::Manifest);
        let bytes = self.store.get(cx, name.as_str(), MAX_MANIFEST_BYTES).await?;
        self.believe(place, &bytes)
    }

    /// Opens the section of a manifest that would leak content.
    pub fn details(&self, manifest: &Manifest) -> Result<Details, EngineError> {
        manifest
            .open_details(&self.keyring)
            .map_err(|cause| EngineError::Manifest { backup: manifest.backup.clone(), cause })
    }

    fn believe(&self, place: &BackupPlace, bytes: &[u8]) -> Result<Manifest, EngineError> {
        ManifestFile::parse(bytes)
            .and_then(|file| {
                file.verify(
                    &self.keyring,
                    &self.id,
                    (&place.organisation, &place.source, &place.backup),
                )
            })
            .map_err(|cause| EngineError::Manifest { backup: place.backup.clone(), cause })
    }

    /// Keeps a backup from being forgotten until it is released.
    pub async fn hold(
        &self,
        cx: &Cx,
        place: &BackupPlace,
        reason: &str,
    ) -> Result<(), EngineError> {
        self.manifest(cx, place).await?;
        let hold = Hold { format: FORMAT_VERSION, reason: reason.to_owned(), since: cx.now() };
        self.store.put(cx, place.file(&BackupFile::Hold).as_str(), hold.encode().into()).await?;
        self.change_index(cx, &place.organisation, &place.source, |backups| {
            for entry in backups.iter_mut().filter(|entry| entry.id == place.backup) {
                entry.hold = Some(reason.to_owned());
            }
        })
        .await
    }

    /// Lets a held backup be forgotten again. Does nothing if it is not held.
    pub async fn release(&self, cx: &Cx, place: &BackupPlace) -> Result<(), EngineError> {
        self.store.delete(cx, place.file(&BackupFile::Hold).as_str()).await?;
        self.change_index(cx, &place.organisation, &place.source, |backups| {
            for entry in backups.iter_mut().filter(|entry| entry.id == place.backup) {
                entry.hold = None;
            }
        })
        .await
    }

    /// Returns why a backup is held, if it is.
    pub async fn hold_of(
        &self,
        cx: &Cx,
        place: &BackupPlace,
    ) -> Result<Option<String>, EngineError> {
        let name = place.file(&BackupFile::Hold);
        let bytes = match self.store.get(cx, name.as_str(), MAX_SMALL_OBJECT_BYTES).await {
            Err(error) if error.kind() == StoreErrorKind::NotFound => return Ok(None),
            bytes => bytes?,
        };
        // A mark that cannot be read still holds: forgetting is what cannot be undone.
        let reason = Hold::decode(&bytes)
            .map_or_else(|_| "the mark cannot be read".to_owned(), |hold| hold.reason);
        Ok(Some(reason))
    }

    /// Writes down that the rows of a segment of an archive are out of their table.
    pub async fn mark_deleted(
        &self,
        cx: &Cx,
        place: &BackupPlace,
        mark: &DeletedMark,
    ) -> Result<(), EngineError> {
        let name = place.file(&BackupFile::Deleted);
        Ok(self.store.put(cx, name.as_str(), mark.encode().into()).await?)
    }

    /// Returns the mark of a segment of an archive, if its rows are out of their table. One that cannot be read does not
    /// count: trying to delete once more does no harm.
    pub async fn deleted_mark(
        &self,
        cx: &Cx,
        place: &BackupPlace,
    ) -> Result<Option<DeletedMark>, EngineError> {
        let name = place.file(&BackupFile::Deleted);
        match self.store.get(cx, name.as_str(), MAX_SMALL_OBJECT_BYTES).await {
            Err(error) if error.kind() == StoreErrorKind::NotFound => Ok(None),
            bytes => Ok(DeletedMark::decode(&bytes?).ok()),
        }
    }

    /// Removes a backup: out of the index, then the manifest, then all else. A held one is refused.
    ///
    /// Stopped in between, it is either still listed and whole, or leaves objects that no manifest names, for prune.
    pub async fn remove(&self, cx: &Cx, place: &BackupPlace) -> Result<(), EngineError> {
        if let Some(reason) = self.hold_of(cx, place).await? {
            return Err(EngineError::Held { backup: place.backup.clone(), reason });
        }
        self.change_index(cx, &place.organisation, &place.source, |backups| {
            backups.retain(|entry| entry.id != place.backup);
        })
        .await?;
        self.store.delete(cx, place.file(&BackupFile::Manifest).as_str()).await?;
        for object in self.store.list(cx, &place.folder()).await? {
            self.store.delete(cx, &object.name).await?;
        }
        Ok(())
    }

    /// Removes what lies in a folder that has no manifest. Nobody may be writing there.
    pub async fn remove_unfinished(&self, cx: &Cx, place: &BackupPlace) -> Result<(), EngineError> {
        let objects = self.store.list(cx, &place.folder()).await?;
        let manifest = place.file(&BackupFile::Manifest);
        if objects.iter().any(|object| object.name == manifest.as_str()) {
            return Ok(());
        }
        for object in objects {
            self.store.delete(cx, &object.name).await?;
        }
        Ok(())
    }

    /// Lists the names of the key slots.
    pub(crate) async fn key_slot_names(&self, cx: &Cx) -> Result<Vec<String>, EngineError> {
        let slots = self.store.list(cx, "keys/").await?;
        Ok(slots.into_iter().map(|slot| slot.name).collect())
    }

    /// Fails if an object that a manifest names is missing or has another size.
    pub async fn check_objects(&self, cx: &Cx, manifest: &Manifest) -> Result<(), EngineError> {
        for part in &manifest.parts {
            let StoredPart::Whole { object, stored_bytes, .. } = &part.stored;
            let damaged = |finding: String| EngineError::DamagedPart {
                backup: manifest.backup.clone(),
                part: part.name.clone(),
                finding,
            };
            let name = parts::place_of(manifest).file(&BackupFile::Object(object.clone()));
            let there = self.store.head(cx, name.as_str()).await?;
            let there = there.ok_or_else(|| damaged("its object is missing".to_owned()))?;
            if there.bytes != *stored_bytes {
                return Err(damaged(format!(
                    "its object has {} bytes of {stored_bytes}",
                    there.bytes
                )));
            }
        }
        Ok(())
    }

    /// Says whether a manifest is there. Trouble with the storage is an error.
    pub async fn has_manifest(&self, cx: &Cx, place: &BackupPlace) -> Result<bool, EngineError> {
        Ok(self.store.head(cx, place.file(&BackupFile::Manifest).as_str()).await?.is_some())
    }

    /// Says whether a manifest is there, and every object that it names, in its size. Trouble with the storage is an error.
    pub async fn is_whole(&self, cx: &Cx, place: &BackupPlace) -> Result<bool, EngineError> {
        if !self.has_manifest(cx, place).await? {
            return Ok(false);
        }
        let manifest = match self.manifest(cx, place).await {
            // Damaged, and there: that is something else, and told elsewhere.
            Err(EngineError::Manifest { .. }) => return Ok(true),
            manifest => manifest?,
        };
        match self.check_objects(cx, &manifest).await {
            Err(EngineError::DamagedPart { .. }) => Ok(false),
            checked => checked.map(|()| true),
        }
    }

    /// Lists everything that a source has in the vault.
    pub(crate) async fn objects(
        &self,
        cx: &Cx,
        organisation: &Slug,
        source: &Slug,
    ) -> Result<Vec<ObjectInfo>, EngineError> {
        Ok(self.store.list(cx, &format!("{organisation}/{source}/")).await?)
    }

    /// Removes an object that no manifest names.
    pub(crate) async fn delete_orphan(&self, cx: &Cx, name: &str) -> Result<(), EngineError> {
        Ok(self.store.delete(cx, name).await?)
    }

    async fn put_index(
        &self,
        cx: &Cx,
        name: &ObjectName,
        bytes: Vec<u8>,
    ) -> Result<(), EngineError> {
        Ok(self.store.put(cx, name.as_str(), Bytes::from(bytes)).await?)
    }
}

/// Returns random bytes of the operating system.
pub(crate) fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    rand::rng().fill_bytes(&mut bytes);
    bytes
}
