//! `backstay catalog`: backups of the catalog itself, and its index of backups made anew.

use backstay_engine::vault::Vault;
use backstay_engine::verify;
use backstay_format::Trigger;
use jiff::SignedDuration;
use serde_json::{Value, json};

use super::orphans;
use crate::catalog_backups::{CATALOG_ID, CatalogBackups, Kept, catalogs_in, place};
use crate::cli::CatalogCommand;
use crate::config::StorageConfig;
use crate::exit::Exit;
use crate::installation::Installation;
use crate::render;

pub(super) async fn catalog(
    app: &Installation,
    command: CatalogCommand,
    json: bool,
) -> anyhow::Result<Exit> {
    match command {
        CatalogCommand::List => list(app, json).await,
        CatalogCommand::Backup => back_up(app, json).await,
        CatalogCommand::Rebuild => rebuild(app, json).await,
    }
}

/// Tells what is wrong with a storage. What is wrong with one must not hide the others.
fn told(storage: &StorageConfig, error: &anyhow::Error) -> Exit {
    render::say(&format!("error: storage {}: {error:#}", storage.name));
    Exit::of(error)
}

async fn list(app: &Installation, json: bool) -> anyhow::Result<Exit> {
    let own: Option<String> = app.catalog.setting(CATALOG_ID).await?;
    let is_own = |one: &CatalogBackups| own.as_deref() == Some(one.catalog.as_str());
    let (mut found, mut exit) = (Vec::new(), Exit::Done);
    for storage in app.config.storages.values() {
        let catalogs = async {
            match app.vault_if_any(storage).await? {
                Some(vault) => Ok(catalogs_in(&app.cx, &vault).await?),
                None => anyhow::Ok(Vec::new()),
            }
        };
        match catalogs.await {
            Ok(catalogs) => found.extend(catalogs.into_iter().map(|one| (storage, one))),
            Err(error) => exit = exit.and(told(storage, &error)),
        }
    }
    for (storage, one) in &mut found {
        for unusable in std::mem::take(&mut one.unusable) {
            let error = anyhow::Error::new(unusable.error);
            exit = exit.and(told(storage, &error.context(format!("backup {}", unusable.id))));
        }
    }
    if json {
        let as_json = |(storage, one): &(&StorageConfig, CatalogBackups)| {
            json!({
                "catalog": one.catalog,
                "own": is_own(one),
                "storage": storage.name,
                "host": one.backups.first().map(|newest| &newest.host),
                "newest": one.backups.first().map(|newest| newest.started_at),
                "backups": one.backups.iter().map(|backup| &backup.id).collect::<Vec<_>>(),
            })
        };
        render::print_json(&found.iter().map(as_json).collect::<Vec<_>>())?;
    } else if found.is_empty() {
        render::print(
            "no catalog was backed up yet: the next backup does, or `backstay catalog backup`",
        )?;
    } else {
        let row = |(storage, one): &(&StorageConfig, CatalogBackups)| {
            let newest = one.backups.first();
            vec![
                one.catalog.to_string(),
                if is_own(one) { "this one" } else { "" }.to_owned(),
                newest.map(|newest| newest.host.clone()).unwrap_or_default(),
                storage.name.clone(),
                one.backups.len().to_string(),
                render::time(newest.map(|newest| newest.started_at)),
            ]
        };
        let head = ["CATALOG", "", "MACHINE", "STORAGE", "BACKUPS", "NEWEST"];
        render::print(&render::table(&head, found.iter().map(row).collect()))?;
    }
    Ok(exit)
}

/// Backs the catalog up to every storage that has a vault.
async fn back_up(app: &Installation, json: bool) -> anyhow::Result<Exit> {
    let (mut exit, mut results) = (Exit::Done, Vec::new());
    for storage in app.config.storages.values() {
        let made = async {
            // Which also finds out whether there is one.
            app.vault_if_any(storage).await?;
            app.back_up_catalog(storage, (Trigger::Manual, SignedDuration::ZERO)).await
        };
        let kept = match made.await {
            Ok(kept) => kept,
            Err(error) => {
                exit = exit.and(told(storage, &error));
                continue;
            }
        };
        let (state, text) = match &kept {
            Kept::Made(id) => ("made", format!("backup {id} of the catalog")),
            Kept::Unchanged => ("unchanged", "has the catalog as it is".to_owned()),
            Kept::Busy => ("busy", "somebody else backs the catalog up just now".to_owned()),
            Kept::NoVault => {
                ("no vault", "no vault yet, the first backup of a source makes one".to_owned())
            }
        };
        results.push(json!({"storage": storage.name, "state": state}));
        if !json {
            render::print(&format!("{}: {text}", storage.name))?;
        }
    }
    if json {
        render::print_json(&results)?;
    }
    Ok(exit)
}

/// Writes the index of backups anew from what the vaults hold.
async fn rebuild(app: &Installation, json: bool) -> anyhow::Result<Exit> {
    let (mut exit, mut results) = (Exit::Done, Vec::new());
    for storage in app.config.storages.values() {
        match rebuild_of(app, storage).await {
            Ok((sources, backups)) => {
                results
                    .push(json!({"storage": storage.name, "sources": sources, "backups": backups}));
                if !json {
                    let name = &storage.name;
                    render::print(&format!("{name}: sources {sources}, backups {backups}"))?;
                }
            }
            Err(error) => exit = exit.and(told(storage, &error)),
        }
    }
    if json {
        render::print_json(&results)?;
    }
    Ok(exit)
}

/// Returns how many sources and backups a storage has.
async fn rebuild_of(app: &Installation, storage: &StorageConfig) -> anyhow::Result<(usize, usize)> {
    let Some(vault) = app.vault_if_any(storage).await? else { return Ok((0, 0)) };
    app.catalog.drop_unreadable_listings(vault.id().as_str()).await?;
    let sources = orphans::sources(app, &vault, &storage.organisation).await?;
    let mut backups = 0;
    for source in &sources {
        backups +=
            orphans::list(app, &vault, (&storage.organisation, source)).await?.0.backups.len();
    }
    Ok((sources.len(), backups))
}

/// Reads every byte of the backups of catalogs in a vault. Returns what `verify` tells of each, and what is wrong.
pub(super) async fn verify_all(
    app: &Installation,
    vault: &Vault,
) -> anyhow::Result<Vec<(Value, Option<anyhow::Error>)>> {
    let mut results = Vec::new();
    for CatalogBackups { catalog, backups, unusable } in catalogs_in(&app.cx, vault).await? {
        let mut verified = Vec::new();
        for backup in backups {
            let place = place(&catalog, backup.id.clone());
            let error = verify::verify(&app.cx, vault, &place).await.err();
            verified.push((backup.id, error));
        }
        verified.extend(unusable.into_iter().map(|one| (one.id, Some(one.error))));
        for (id, error) in verified {
            let error = error.map(anyhow::Error::new);
            let text = error.as_ref().map(|error| format!("{error:#}"));
            let told = json!({"id": id, "catalog": catalog, "good": text.is_none(), "error": text});
            results.push((told, error));
        }
    }
    Ok(results)
}
