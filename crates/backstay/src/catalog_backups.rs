//! Backs the catalog up with the backups, so that what people set up outlives the machine (ADR 18).

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use backstay_engine::cx::Cx;
use backstay_engine::document;
use backstay_engine::error::EngineError;
use backstay_engine::event::{Event, Silent};
use backstay_engine::forget;
use backstay_engine::vault::{BackupPlace, Draft, Unusable, Vault};
use backstay_format::{BackupId, Encryption, IndexEntry, MediaType, Slug, Trigger};
use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};
use tokio::time::{sleep, timeout};

use crate::config::StorageConfig;
use crate::installation::{ADDITIONS, IMPORTED_FROM, Installation, host, random};
use crate::lease::is_held;

/// The setting with the id of the catalog.
pub(crate) const CATALOG_ID: &str = "catalog id";
/// Settings that a new machine is to have. Of secrets it gets all but the keys.
pub(crate) const CARRIED: [&str; 3] = [ADDITIONS, CATALOG_ID, IMPORTED_FROM];
/// The secret with the configuration file, and what its name begins with where servers share the catalog.
pub(crate) const CONFIGURATION: &str = "configuration";
/// So many configuration files of servers that share a catalog are remembered.
const CONFIGURATIONS: usize = 50;
/// Characters that tell these apart.
const FINGERPRINT_CHARS: usize = 12;
/// The only part of such a backup.
const PART: &str = "catalog.json";
/// How long a storage is believed to have what it had.
const BELIEVED: SignedDuration = SignedDuration::from_hours(20);
/// How long backing the catalog up may take, while somebody waits for a backup that is made.
const PATIENCE: Duration = Duration::from_secs(60);
/// The pause before it is tried again, where somebody else does it.
const BUSY_PAUSE: Duration = Duration::from_millis(200);
/// So many backups of a catalog are kept.
const KEPT: usize = 30;
/// zstd's own default.
const COMPRESSION_LEVEL: i32 = 3;

/// A configuration file, as it was used last.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct KeptConfiguration {
    /// Absolute.
    pub(crate) path: String,
    /// References in it are not resolved.
    pub(crate) text: String,
    /// When it was seen first as it is.
    since: Timestamp,
}

/// What a vault has of the catalog.
#[derive(Debug, Serialize, Deserialize)]
struct KeptCatalog {
    fingerprint: String,
    backup: BackupId,
    /// When the vault was known to have it.
    seen: Timestamp,
}

/// What became of backing up the catalog.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Kept {
    Made(BackupId),
    /// The vault has it as it is.
    Unchanged,
    /// Somebody else does it now.
    Busy,
    /// The storage has no vault yet.
    NoVault,
}

/// How much depends on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Urgency {
    /// What this misses, since somebody else does it just now, the next one has.
    Soon,
    /// It must have what is in the catalog now.
    Now,
}

impl Installation {
    /// Backs up the catalog to storages that backups were just written to, if it changed. That it fails makes nothing worse, and
    /// is warned of.
    pub(crate) async fn back_up_catalog_too(&self, storages: &BTreeSet<String>) {
        self.back_up_catalog_to(storages, Urgency::Soon).await;
    }

    /// Backs up the catalog to all storages that have a vault, after something that a loss must not bring back: whoever does it
    /// at this moment may have read the catalog before that.
    pub(crate) async fn back_up_catalog_now(&self) {
        let storages = self.config.storages.keys().cloned().collect();
        self.back_up_catalog_to(&storages, Urgency::Now).await;
    }

    async fn back_up_catalog_to(&self, storages: &BTreeSet<String>, urgency: Urgency) {
        // A stop of this piece is none of the whole.
        let app = self.with_cx(self.cx.piece());
        for name in storages {
            let kept = async {
                let storage = app.storage(name)?;
                let when = (Trigger::Scheduled, BELIEVED);
                if urgency == Urgency::Now {
                    // A machine that was recovered has not seen the vaults of all storages yet.
                    app.vault_if_any(storage).await?;
                }
                while app.back_up_catalog(storage, when).await? == Kept::Busy
                    && urgency == Urgency::Now
                {
                    sleep(BUSY_PAUSE).await;
                }
                anyhow::Ok(())
            };
            let late = || format!("it took longer than {} seconds", PATIENCE.as_secs());
            let kept = timeout(PATIENCE, Box::pin(kept)).await.with_context(late).flatten();
            if let Err(error) = kept {
                let text = format!("the catalog was not backed up to storage {name}: {error:#}");
                self.cx.event(Event::Warning { text });
            }
        }
    }

    /// Backs up the catalog to a storage, unless that has it as it is. It is believed for so long to have what it had.
    pub(crate) async fn back_up_catalog(
        &self,
        storage: &StorageConfig,
        (trigger, believed): (Trigger, SignedDuration),
    ) -> anyhow::Result<Kept> {
        let Some(vault) = self.known_vault(storage).await? else { return Ok(Kept::NoVault) };
        self.keep_configuration().await?;
        let catalog = self.catalog_id().await?;
        let name = format!("catalog in vault {vault}");
        if let Some(before) = self.catalog.setting::<KeptCatalog>(&name).await?
            && self.cx.now().duration_since(before.seen).abs() < believed
            && before.fingerprint == self.export().await?.1
        {
            return Ok(Kept::Unchanged);
        }
        let vault = self.vault_for_writing(storage).await?;
        let guard = match self.lease(&name).await {
            Err(error) if is_held(&error) => return Ok(Kept::Busy),
            guard => guard?,
        };
        let kept = self.back_up_under_lease(&vault, &name, draft(catalog, trigger)).await;
        guard.release().await;
        kept
    }

    async fn back_up_under_lease(
        &self,
        vault: &Vault,
        name: &str,
        draft: Draft,
    ) -> anyhow::Result<Kept> {
        // Whoever backs up a source hears of that.
        let cx = self.cx.heard_by(|_| Arc::new(Silent));
        let catalog = draft.source.clone();
        let (export, fingerprint) = self.export().await?;
        let before: Option<KeptCatalog> = self.catalog.setting(name).await?;
        if let Some(before) = before.filter(|before| before.fingerprint == fingerprint) {
            let there = document::read(&cx, vault, &place(&catalog, before.backup.clone())).await;
            if there.is_ok_and(|there| *there == export.as_bytes()) {
                let seen = cx.now();
                self.catalog.set_setting(name, &KeptCatalog { seen, ..before }).await?;
                return Ok(Kept::Unchanged);
            }
        }
        let document = (PART, MediaType::Json, export.to_string());
        let made = document::back_up(&cx, vault, draft, document).await?;
        let kept = KeptCatalog { fingerprint, backup: made.id.clone(), seen: cx.now() };
        self.catalog.set_setting(name, &kept).await?;
        if let Err(error) = forget_old(&cx, vault, &catalog).await {
            let text = format!("old backups of the catalog were not forgotten: {error}");
            self.cx.event(Event::Warning { text });
        }
        Ok(Kept::Made(made.id))
    }

    /// Returns what is to be backed up of the catalog, and what tells it apart.
    async fn export(&self) -> anyhow::Result<(zeroize::Zeroizing<String>, String)> {
        let export = self.catalog.export(&CARRIED).await?;
        let fingerprint = self.catalog.fingerprint(export.as_bytes());
        Ok((export, fingerprint))
    }

    /// Returns the id of the catalog; the first who asks gives it one.
    async fn catalog_id(&self) -> anyhow::Result<Slug> {
        let mut id: Option<String> = self.catalog.setting(CATALOG_ID).await?;
        if id.is_none() {
            let made = format!("c{:016x}", u64::from_be_bytes(random()));
            self.catalog.replace_setting(CATALOG_ID, &String::new(), &made).await?;
            id = self.catalog.setting(CATALOG_ID).await?;
        }
        Ok(id.unwrap_or_default().parse()?)
    }

    /// Remembers the configuration file as it is used, sealed: secrets may stand in it. A catalog of servers has one for each text
    /// that they use, whatever they are called; any other has one.
    async fn keep_configuration(&self) -> anyhow::Result<()> {
        let Some(file) = self.config.file.as_ref().filter(|file| file.path.is_file()) else {
            return Ok(());
        };
        let (path, text) = (file.path.display().to_string(), file.text.clone());
        let mut name = CONFIGURATION.to_owned();
        if self.catalog.is_shared() {
            let fingerprint = self.catalog.fingerprint(text.as_bytes());
            name = format!("{CONFIGURATION} {}", &fingerprint[..FINGERPRINT_CHARS]);
        }
        let is_kept = |kept: KeptConfiguration| kept.text == text && kept.path == path;
        if self.configuration(&name).await?.is_some_and(is_kept) {
            return Ok(());
        }
        let new = KeptConfiguration { path, text, since: self.cx.now() };
        self.catalog.set_secret(&name, &serde_json::to_vec(&new)?).await?;
        let mut kept = self.configurations().await?;
        kept.retain(|(known, _)| *known != name);
        kept.sort_by_key(|(_, kept)| kept.since);
        for (oldest, _) in kept.iter().take((kept.len() + 1).saturating_sub(CONFIGURATIONS)) {
            self.catalog.forget(oldest).await?;
        }
        Ok(())
    }

    /// Returns the configuration files that are remembered, with the names that they have among the secrets.
    pub(crate) async fn configurations(&self) -> anyhow::Result<Vec<(String, KeptConfiguration)>> {
        let mut kept = Vec::new();
        for name in self.catalog.secret_names().await? {
            if !name.starts_with(CONFIGURATION) {
                continue;
            }
            if let Some(configuration) = self.configuration(&name).await? {
                kept.push((name, configuration));
            }
        }
        Ok(kept)
    }

    /// Returns a configuration file by its name among the secrets; none that cannot be read.
    async fn configuration(&self, name: &str) -> anyhow::Result<Option<KeptConfiguration>> {
        let secret = self.catalog.secret(name).await?;
        Ok(secret.and_then(|secret| serde_json::from_slice(&secret).ok()))
    }
}

/// What a vault has of a catalog.
pub(crate) struct CatalogBackups {
    pub(crate) catalog: Slug,
    /// Newest first; those that are not sealed are not among them, since anybody may have written them.
    pub(crate) backups: Vec<IndexEntry>,
    pub(crate) unusable: Vec<Unusable>,
}

/// Returns the catalogs of which a vault has backups.
pub(crate) async fn catalogs_in(
    cx: &Cx,
    vault: &Vault,
) -> Result<Vec<CatalogBackups>, EngineError> {
    let mut catalogs = Vec::new();
    for catalog in vault.sources(cx, &Slug::catalogs()).await? {
        let listing = vault.list(cx, &Slug::catalogs(), &catalog).await?;
        let (mut backups, unusable) = (listing.backups, listing.unusable);
        backups.retain(|backup| backup.encryption != Encryption::None);
        if !backups.is_empty() || !unusable.is_empty() {
            catalogs.push(CatalogBackups { catalog, backups, unusable });
        }
    }
    Ok(catalogs)
}

/// Removes all but the newest, by their ids and whatever clocks said, and what interrupted runs left.
async fn forget_old(cx: &Cx, vault: &Vault, catalog: &Slug) -> Result<(), EngineError> {
    let listing = vault.list(cx, &Slug::catalogs(), catalog).await?;
    for old in listing.backups.iter().skip(KEPT) {
        vault.remove(cx, &place(catalog, old.id.clone())).await?;
    }
    let known = listing.backups.into_iter().map(|entry| entry.id);
    let known = known.chain(listing.unusable.into_iter().map(|unusable| unusable.id)).collect();
    let plan = forget::plan_prune(cx, vault, (&Slug::catalogs(), catalog), &known).await?;
    forget::prune(cx, vault, &plan).await.map(drop)
}

/// Returns where a backup of a catalog lies.
pub(crate) fn place(catalog: &Slug, backup: BackupId) -> BackupPlace {
    BackupPlace { organisation: Slug::catalogs(), source: catalog.clone(), backup }
}

fn draft(catalog: Slug, trigger: Trigger) -> Draft {
    Draft {
        organisation: Slug::catalogs(),
        source: catalog,
        source_kind: "catalog",
        trigger,
        note: None,
        host: host(),
        app: None,
        environment: None,
        sealed: true,
        origin: None,
        compression_level: COMPRESSION_LEVEL,
        imported: None,
    }
}
