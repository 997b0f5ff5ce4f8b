//! Opens the vaults at storages, and knows those that were seen: one that is gone is not one that never was.

use std::sync::Arc;

use anyhow::Context as _;
use backstay_engine::store::S3Credentials;
use backstay_engine::vault::Vault;
use backstay_format::{Slug, VaultId};
use serde::{Deserialize, Serialize};

use crate::config::{SourceConfig, SourceKind, StorageConfig};
use crate::exit::{Exit, UsageError};
use crate::installation::Installation;
use crate::opening::environment;

/// A vault that was seen on a storage.
#[derive(Debug, Serialize, Deserialize)]
struct KnownVault {
    id: VaultId,
    location: String,
}

impl Installation {
    /// Opens the vault at a storage for reading.
    pub(crate) async fn vault(&self, storage: &StorageConfig) -> anyhow::Result<Vault> {
        let store = self.store_for_reading(storage).await?;
        let keyring = self.keyring().await?;
        let vault = Vault::open(&self.cx, store, Arc::new(keyring)).await?;
        let whose: Option<Slug> = self.catalog.setting(&whose_name(&vault)).await?;
        ensure_its(storage, whose.as_ref())?;
        Ok(vault)
    }

    /// Opens the vault at a storage for reading; none where nobody ever made one.
    pub(crate) async fn vault_if_any(
        &self,
        storage: &StorageConfig,
    ) -> anyhow::Result<Option<Vault>> {
        let known = self.known_vault(storage).await?;
        match self.vault(storage).await {
            Ok(vault) => {
                self.know_vault(storage, &vault, known.as_ref()).await?;
                Ok(Some(vault))
            }
            Err(error) if Exit::of(&error) == Exit::NoVault && known.is_none() => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Makes a source of what its newest manifest says: on a bare machine there is no configuration.
    pub(crate) async fn remembered_source(
        &self,
        name: &str,
    ) -> anyhow::Result<Option<SourceConfig>> {
        let Ok(slug) = name.parse::<Slug>() else { return Ok(None) };
        let mut trouble = None;
        for storage in self.config.storages.values() {
            match self.remembered_on(storage, &slug).await {
                Ok(None) => {}
                Ok(found) => return Ok(found),
                Err(error) => {
                    self.cx.check()?;
                    trouble = Some(error.context(format!("storage {}", storage.name)));
                }
            }
        }
        match trouble {
            None => Ok(None),
            // Where sources are configured, the name is rather wrong than remembered.
            Some(error) if !self.config.sources.is_empty() => {
                let UsageError(text) = self.no_source(name);
                let text = format!("{text}; not all storages could be asked for others: {error:#}");
                Err(UsageError(text).into())
            }
            Some(error) => Err(error),
        }
    }

    async fn remembered_on(
        &self,
        storage: &StorageConfig,
        source: &Slug,
    ) -> anyhow::Result<Option<SourceConfig>> {
        let Some(vault) = self.vault_if_any(storage).await? else { return Ok(None) };
        let listing = vault.list(&self.cx, &storage.organisation, source).await?;
        let Some(newest) = listing.backups.first() else { return Ok(None) };
        let place = storage.place(source, newest.id.clone());
        let manifest = vault.manifest(&self.cx, &place).await?;
        let origin = vault.details(&manifest)?.origin;
        let kind = origin
            .and_then(|origin| SourceKind::bare(&manifest.source_kind, &origin, &environment()));
        Ok(kind.map(|kind| SourceConfig::bare(source.clone(), kind, storage)))
    }

    /// Opens the vault at a storage for writing: makes it, and the first key, if need be. One that is gone, such as with a disk
    /// that is not mounted, is not made anew.
    pub(crate) async fn vault_for_writing(&self, storage: &StorageConfig) -> anyhow::Result<Vault> {
        let store = self.store(storage).await?;
        let keyring = Arc::new(self.keyring_with_key().await?);
        let known = self.known_vault(storage).await?;
        let vault = match known {
            None => Vault::open_or_create(&self.cx, store, keyring).await?,
            Some(_) => {
                let name = &storage.name;
                let context = || {
                    format!(
                        "there was a vault on storage {name}, with all backups in it: is a disk not mounted? If a new one is meant, run `backstay storage test {name}` first"
                    )
                };
                match Vault::open(&self.cx, store, keyring).await.map_err(anyhow::Error::new) {
                    Err(error) if Exit::of(&error) == Exit::NoVault => {
                        return Err(error).with_context(context);
                    }
                    vault => vault?,
                }
            }
        };
        // Whose backups come first, by whatever name the place is reached: two organisations share no vault.
        let name = whose_name(&vault);
        let mut whose: Option<Slug> = self.catalog.setting(&name).await?;
        if whose.is_none() {
            self.catalog.replace_setting(&name, &None, &Some(&storage.organisation)).await?;
            whose = self.catalog.setting(&name).await?;
        }
        ensure_its(storage, whose.as_ref())?;
        self.know_vault(storage, &vault, known.as_ref()).await?;
        Ok(vault)
    }

    /// Returns the id of the vault that was seen where a storage is now, if one was.
    pub(crate) async fn known_vault(
        &self,
        storage: &StorageConfig,
    ) -> anyhow::Result<Option<VaultId>> {
        let known: Option<KnownVault> = self.catalog.setting(&vault_name(&storage.name)).await?;
        let location = location(storage)?;
        Ok(known.filter(|known| known.location == location).map(|known| known.id))
    }

    /// Remembers the vault that is where a storage is, unless that is the one that was known there.
    async fn know_vault(
        &self,
        storage: &StorageConfig,
        vault: &Vault,
        known: Option<&VaultId>,
    ) -> anyhow::Result<()> {
        if known == Some(vault.id()) {
            return Ok(());
        }
        let known = KnownVault { id: vault.id().clone(), location: location(storage)? };
        Ok(self.catalog.set_setting(&vault_name(&storage.name), &known).await?)
    }

    /// Takes a vault's id from whoever knows it, so that no other is written to.
    pub(crate) async fn expect_vault(
        &self,
        storage: &StorageConfig,
        id: &VaultId,
    ) -> anyhow::Result<()> {
        let known = KnownVault { id: id.clone(), location: location(storage)? };
        Ok(self.catalog.set_setting(&vault_name(&storage.name), &known).await?)
    }

    /// Forgets a vault that is gone, so that a new one can be made in its place. Returns whether there was one to forget.
    pub(crate) async fn forget_lost_vault(&self, storage: &StorageConfig) -> anyhow::Result<bool> {
        if self.known_vault(storage).await?.is_none() {
            return Ok(false);
        }
        match self.vault(storage).await {
            Err(error) if Exit::of(&error) == Exit::NoVault => {
                self.catalog.forget(&vault_name(&storage.name)).await?;
                Ok(true)
            }
            _ => Ok(false),
        }
    }
}

/// The setting with whose backups a vault has.
fn whose_name(vault: &Vault) -> String {
    format!("organisation of vault {}", vault.id())
}

fn ensure_its(storage: &StorageConfig, whose: Option<&Slug>) -> anyhow::Result<()> {
    let StorageConfig { name, organisation, .. } = storage;
    if let Some(whose) = whose.filter(|whose| *whose != organisation) {
        let text = format!(
            "the vault on storage {name} has the backups of organisation {whose}, and the storage is said to be of {organisation}: \
             take that back, or give {organisation} a prefix of its own"
        );
        return Err(UsageError(text).into());
    }
    Ok(())
}

/// Where a storage is, whoever asks.
pub(crate) fn location(storage: &StorageConfig) -> anyhow::Result<String> {
    Ok(storage.spec(S3Credentials::Chain { profile: None })?.location())
}

fn vault_name(storage: &str) -> String {
    format!("vault of storage {storage}")
}
