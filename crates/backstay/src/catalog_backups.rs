//! Backs the catalog up with the backups, so that what people set up outlives the machine (ADR 18).

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;

use backstay_engine::cx::Cx;
use backstay_engine::document;
use backstay_engine::error::EngineError;
use backstay_engine::event::{Event, Silent};
use backstay_engine::forget;
use backstay_engine::vault::{BackupPlace, Draft, Vault};
use backstay_format::retention::Rules;
use backstay_format::{BackupId, IndexEntry, MediaType, Sha256, Slug, Trigger};
use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

use crate::installation::{ADDITIONS, Installation, host, random};
use crate::lease::is_held;

/// The setting with the id of the catalog.
const CATALOG_ID: &str = "catalog id";
/// Settings that a new machine is to have. Of secrets it gets all but the keys.
const CARRIED: [&str; 2] = [ADDITIONS, CATALOG_ID];
/// What the names of secrets with configuration files begin with.
const CONFIGURATION: &str = "configuration ";
/// So many configuration files are remembered: servers that share a catalog come and go with their names.
const CONFIGURATIONS: usize = 50;
/// The only part of such a backup.
const PART: &str = "catalog.json";
/// How long a storage is believed to have what it had.
const BELIEVED: SignedDuration = SignedDuration::from_hours(20);
/// So many backups of a catalog are kept.
const KEPT: u32 = 30;
/// zstd's own default.
const COMPRESSION_LEVEL: i32 = 3;

/// A configuration file, as a machine used it last.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct KeptConfiguration {
    /// Which of the machines that share the catalog; none where it has one alone, whatever that is called.
    pub(crate) host: Option<String>,
    /// Absolute.
    pub(crate) path: PathBuf,
    /// References in it are not resolved.
    pub(crate) text: String,
    /// When it was seen first as it is.
    pub(crate) since: Timestamp,
}

/// What a vault has of the catalog.
#[derive(Debug, Serialize, Deserialize)]
struct KeptCatalog {
    digest: Sha256,
    backup: BackupId,
    /// When the vault was known to have it.
    seen: Timestamp,
}

impl Installation {
    /// Backs up the catalog into a vault, unless that has it as it is or somebody else does so. That it fails makes nothing
    /// worse, and is warned of.
    pub(crate) async fn back_up_catalog_too(&self, vault: &Vault) {
        if let Err(error) = self.back_up_catalog(vault).await {
            let text = format!("the catalog was not backed up to {}: {error:#}", vault.location());
            self.cx.event(Event::Warning { text });
        }
    }

    /// Backs up the catalog into a vault; none where that has it as it is, or somebody else does so now.
    pub(crate) async fn back_up_catalog(&self, vault: &Vault) -> anyhow::Result<Option<BackupId>> {
        let name = format!("catalog in vault {}", vault.id());
        self.keep_configuration().await?;
        let catalog = self.catalog_id().await?;
        let export = self.catalog.export(&CARRIED).await?;
        let digest = Sha256::of(export.as_bytes());
        let before: Option<KeptCatalog> = self.catalog.setting(&name).await?;
        // Whoever backs up a source hears of that.
        let cx = self.cx.heard_by(|_| Arc::new(Silent));
        if let Some(before) = before.filter(|before| before.digest == digest)
            && self.has_still(&cx, vault, (&catalog, &name), before).await?
        {
            return Ok(None);
        }
        let guard = match self.lease(&name).await {
            Err(error) if is_held(&error) => return Ok(None),
            guard => guard?,
        };
        let draft = draft(catalog.clone());
        let document = (PART, MediaType::Json, export.to_string());
        let made = document::back_up(&cx, vault, draft, document).await;
        let kept = match made {
            Ok(entry) => self.made(&cx, vault, (&catalog, &name), (digest, entry)).await.map(Some),
            Err(error) => Err(error.into()),
        };
        guard.release().await;
        kept
    }

    /// Says whether a vault has what it had, asking it now and then.
    async fn has_still(
        &self,
        cx: &Cx,
        vault: &Vault,
        (catalog, name): (&Slug, &str),
        before: KeptCatalog,
    ) -> anyhow::Result<bool> {
        if cx.now().duration_since(before.seen).abs() < BELIEVED {
            return Ok(true);
        }
        if !vault.is_whole(cx, &place(catalog, before.backup.clone())).await? {
            return Ok(false);
        }
        self.catalog.set_setting(name, &KeptCatalog { seen: cx.now(), ..before }).await?;
        Ok(true)
    }

    /// Remembers what was made, and forgets the oldest.
    async fn made(
        &self,
        cx: &Cx,
        vault: &Vault,
        (catalog, name): (&Slug, &str),
        (digest, entry): (Sha256, IndexEntry),
    ) -> anyhow::Result<BackupId> {
        let kept = KeptCatalog { digest, backup: entry.id.clone(), seen: cx.now() };
        self.catalog.set_setting(name, &kept).await?;
        let rules = Rules { last: KEPT, days: 0, ..Rules::default() };
        let named = (&Slug::catalogs(), catalog);
        let plan = forget::plan_forget(cx, vault, named, &rules, &BTreeSet::new()).await?;
        forget::forget(cx, vault, &plan).await?;
        Ok(entry.id)
    }

    /// Returns the id of the catalog; the first who asks gives it one.
    pub(crate) async fn catalog_id(&self) -> anyhow::Result<Slug> {
        let made = format!("c{:016x}", u64::from_be_bytes(random()));
        self.catalog.replace_setting(CATALOG_ID, &String::new(), &made).await?;
        let id: Option<String> = self.catalog.setting(CATALOG_ID).await?;
        Ok(id.unwrap_or(made).parse()?)
    }

    /// Remembers the configuration file as it is used, sealed: secrets may stand in it.
    async fn keep_configuration(&self) -> anyhow::Result<()> {
        let Some(file) = &self.config.file else { return Ok(()) };
        let host = self.catalog.is_shared().then(host);
        let of_host = host.as_ref().map(|host| format!(" of {host}")).unwrap_or_default();
        let name = format!("{CONFIGURATION}{}{of_host}", file.path.display());
        let mut kept = self.configurations().await?;
        if kept.iter().any(|(known, kept)| *known == name && kept.text == file.text) {
            return Ok(());
        }
        let (path, text) = (file.path.clone(), file.text.clone());
        let new = KeptConfiguration { host, path, text, since: self.cx.now() };
        self.catalog.set_secret(&name, &serde_json::to_vec(&new)?).await?;
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
            let Some(secret) = self.catalog.secret(&name).await? else { continue };
            if let Ok(configuration) = serde_json::from_slice(&secret) {
                kept.push((name, configuration));
            }
        }
        Ok(kept)
    }
}

/// Returns the catalogs of which a vault has backups, each with them, newest first.
pub(crate) async fn catalogs_in(
    cx: &Cx,
    vault: &Vault,
) -> Result<Vec<(Slug, Vec<IndexEntry>)>, EngineError> {
    let mut catalogs = Vec::new();
    for catalog in vault.sources(cx, &Slug::catalogs()).await? {
        let listing = vault.list(cx, &Slug::catalogs(), &catalog).await?;
        if !listing.backups.is_empty() {
            catalogs.push((catalog, listing.backups));
        }
    }
    Ok(catalogs)
}

/// Returns where a backup of a catalog lies.
pub(crate) fn place(catalog: &Slug, backup: BackupId) -> BackupPlace {
    BackupPlace { organisation: Slug::catalogs(), source: catalog.clone(), backup }
}

fn draft(catalog: Slug) -> Draft {
    Draft {
        organisation: Slug::catalogs(),
        source: catalog,
        source_kind: "catalog",
        trigger: Trigger::Scheduled,
        note: None,
        host: host(),
        app: None,
        environment: None,
        sealed: true,
        origin: None,
        compression_level: COMPRESSION_LEVEL,
    }
}
