//! What backups there are: the index, mended by what lies in the vault.

use std::collections::{BTreeMap, BTreeSet};

use backstay_format::{
    BackupFile, BackupId, Index, IndexEntry, MAX_MANIFEST_BYTES, ObjectName, Slug,
};
use futures_util::{StreamExt as _, TryStreamExt as _};

use super::{BackupPlace, Vault, random};
use crate::cx::Cx;
use crate::error::EngineError;
use crate::event::Event;

/// Manifests read at a time when the index does not know them.
const PARALLEL_READS: usize = 8;
/// 100,000 backups with a full set of warnings stay below.
const MAX_INDEX_BYTES: u64 = 256 << 20;

/// The backups of a source.
#[derive(Debug, Default)]
pub struct Listing {
    /// Those that exist, newest first.
    pub backups: Vec<IndexEntry>,
    /// Those whose manifest cannot be used: damaged, or sealed with a key that is not at hand.
    pub unusable: Vec<Unusable>,
    /// Folders without a manifest: runs that are going on or were broken off. Not backups.
    pub unfinished: Vec<BackupId>,
}

/// A backup whose manifest cannot be used.
#[derive(Debug)]
pub struct Unusable {
    /// Which backup.
    pub id: BackupId,
    /// Why.
    pub error: EngineError,
}

/// What became of a folder that the index does not know.
enum Found {
    Backup(Box<IndexEntry>),
    Unusable(Unusable),
    Unfinished(BackupId),
}

impl Vault {
    /// Returns the sources that have something in the vault.
    pub async fn sources(&self, cx: &Cx, organisation: &Slug) -> Result<Vec<Slug>, EngineError> {
        let folders = self.store.list_folders(cx, &organisation.to_string(), "").await?;
        Ok(folders.iter().filter_map(|name| name.parse().ok()).collect())
    }

    /// Lists the backups of a source: one request for the index, one for each thousand folders, and one more for each
    /// backup that the index does not know.
    pub async fn list(
        &self,
        cx: &Cx,
        organisation: &Slug,
        source: &Slug,
    ) -> Result<Listing, EngineError> {
        let (index, folders) = tokio::join!(
            self.read_index(cx, organisation, source),
            self.folders(cx, organisation, source)
        );
        self.reconcile(cx, (organisation, source), index?.unwrap_or_default(), folders?).await
    }

    /// Lists the backups of a source from their manifests alone, and writes the index anew.
    pub async fn rebuild_index(
        &self,
        cx: &Cx,
        organisation: &Slug,
        source: &Slug,
    ) -> Result<Listing, EngineError> {
        let folders = self.folders(cx, organisation, source).await?;
        let listing = self.reconcile(cx, (organisation, source), Vec::new(), folders).await?;
        self.write_index(cx, (organisation, source), listing.backups.clone()).await?;
        Ok(listing)
    }

    /// Reads the index, changes it, and writes it back.
    ///
    /// Only a cache is at stake, and only one process writes a source at a time.
    pub(super) async fn change_index(
        &self,
        cx: &Cx,
        organisation: &Slug,
        source: &Slug,
        change: impl FnOnce(&mut Vec<IndexEntry>),
    ) -> Result<(), EngineError> {
        let mut backups = self.list(cx, organisation, source).await?.backups;
        change(&mut backups);
        self.write_index(cx, (organisation, source), backups).await
    }

    /// Adds to the index a backup that was just made: what it is need not be read again.
    pub(super) async fn add_to_index(
        &self,
        cx: &Cx,
        place: &BackupPlace,
        made: IndexEntry,
    ) -> Result<(), EngineError> {
        let (organisation, source) = (&place.organisation, &place.source);
        let (index, folders) = tokio::join!(
            self.read_index(cx, organisation, source),
            self.folders(cx, organisation, source)
        );
        let (mut index, mut folders) = (index?.unwrap_or_default(), folders?);
        folders.insert(made.id.clone());
        index.push(made);
        let listing = self.reconcile(cx, (organisation, source), index, folders).await?;
        self.write_index(cx, (organisation, source), listing.backups).await
    }

    async fn write_index(
        &self,
        cx: &Cx,
        (organisation, source): (&Slug, &Slug),
        backups: Vec<IndexEntry>,
    ) -> Result<(), EngineError> {
        let bytes =
            Index::new(backups).encode(&self.keyring, (&self.id, organisation, source), random());
        self.put_index(cx, &ObjectName::index(organisation, source), bytes).await
    }

    /// Returns `None` if there is no usable index: then the manifests are read.
    async fn read_index(
        &self,
        cx: &Cx,
        organisation: &Slug,
        source: &Slug,
    ) -> Result<Option<Vec<IndexEntry>>, EngineError> {
        let name = ObjectName::index(organisation, source);
        let bytes = match self.store.get(cx, name.as_str(), MAX_INDEX_BYTES).await {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == crate::store::StoreErrorKind::NotFound => {
                return Ok(None);
            }
            Err(error) => return Err(error.into()),
        };
        match Index::decode(&bytes, &self.keyring, (&self.id, organisation, source)) {
            Ok(index) => Ok(Some(index.backups)),
            Err(error) => {
                let text = format!(
                    "the index of {source} is not used, its manifests are read instead: {error}"
                );
                cx.event(Event::Warning { text });
                Ok(None)
            }
        }
    }

    async fn folders(
        &self,
        cx: &Cx,
        organisation: &Slug,
        source: &Slug,
    ) -> Result<BTreeSet<BackupId>, EngineError> {
        let place = format!("{organisation}/{source}");
        let folders = self.store.list_folders(cx, &place, BackupId::BEGINNING).await?;
        Ok(folders.iter().filter_map(|name| name.parse().ok()).collect())
    }

    async fn reconcile(
        &self,
        cx: &Cx,
        (organisation, source): (&Slug, &Slug),
        index: Vec<IndexEntry>,
        folders: BTreeSet<BackupId>,
    ) -> Result<Listing, EngineError> {
        let mut known: BTreeMap<BackupId, IndexEntry> = index
            .into_iter()
            .filter(|entry| folders.contains(&entry.id))
            .map(|entry| (entry.id.clone(), entry))
            .collect();
        let unknown: Vec<BackupId> =
            folders.into_iter().filter(|id| !known.contains_key(id)).collect();
        let places = unknown.into_iter().map(|backup| BackupPlace {
            organisation: organisation.clone(),
            source: source.clone(),
            backup,
        });
        let found: Vec<Found> = futures_util::stream::iter(places)
            .map(|place| async move { self.find(cx, place).await })
            .buffered(PARALLEL_READS)
            .try_collect()
            .await?;
        let mut listing = Listing::default();
        for found in found {
            match found {
                Found::Backup(entry) => drop(known.insert(entry.id.clone(), *entry)),
                Found::Unusable(unusable) => listing.unusable.push(unusable),
                Found::Unfinished(id) => listing.unfinished.push(id),
            }
        }
        listing.backups = known.into_values().collect();
        // By time, not by id: of two backups in one second the ids sort by chance.
        listing.backups.sort_by(|a, b| (b.started_at, &b.id).cmp(&(a.started_at, &a.id)));
        Ok(listing)
    }

    /// Reads what lies in a folder. Trouble with the bytes makes one backup unusable; trouble with the storage is an error.
    async fn find(&self, cx: &Cx, place: BackupPlace) -> Result<Found, EngineError> {
        let name = place.file(&BackupFile::Manifest);
        let bytes = match self.store.get(cx, name.as_str(), MAX_MANIFEST_BYTES).await {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == crate::store::StoreErrorKind::NotFound => {
                return Ok(Found::Unfinished(place.backup));
            }
            Err(error) => return Err(error.into()),
        };
        let opened = self.believe(&place, &bytes).and_then(|manifest| {
            let details = self.details(&manifest)?;
            Ok((manifest, details))
        });
        match opened {
            Ok((manifest, details)) => {
                let hold = self.hold_of(cx, &place).await?;
                Ok(Found::Backup(Box::new(IndexEntry::new(&manifest, details, hold))))
            }
            Err(error) => Ok(Found::Unusable(Unusable { id: place.backup, error })),
        }
    }
}
