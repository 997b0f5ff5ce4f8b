//! `backstay catalog`: backups of the catalog itself, and its index of backups made anew.

use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Component, Path, PathBuf};

use backstay_control::CatalogError;
use backstay_engine::document;
use backstay_engine::vault::Vault;
use backstay_format::{IndexEntry, Slug};
use serde_json::json;

use super::orphans;
use crate::catalog_backups::{KeptConfiguration, catalogs_in, place};
use crate::cli::CatalogCommand;
use crate::config::StorageConfig;
use crate::exit::{Exit, UsageError};
use crate::installation::{Installation, host};
use crate::render;

pub(super) async fn catalog(
    app: &Installation,
    command: CatalogCommand,
    json: bool,
) -> anyhow::Result<Exit> {
    match command {
        CatalogCommand::List => list(app, json).await,
        CatalogCommand::Backup => back_up(app).await,
        CatalogCommand::Rebuild => rebuild(app).await,
    }
}

async fn list(app: &Installation, json: bool) -> anyhow::Result<Exit> {
    let own = app.catalog_id().await?;
    let mut found = Vec::new();
    for storage in app.config.storages.values() {
        let Some(vault) = app.vault_if_any(storage).await? else { continue };
        for (catalog, backups) in catalogs_in(&app.cx, &vault).await? {
            found.push((storage, catalog, backups));
        }
    }
    if json {
        let as_json = |(storage, catalog, backups): &(&StorageConfig, Slug, Vec<IndexEntry>)| {
            json!({
                "catalog": catalog,
                "own": *catalog == own,
                "storage": storage.name,
                "host": backups.first().map(|newest| &newest.host),
                "newest": backups.first().map(|newest| newest.started_at),
                "backups": backups.iter().map(|backup| &backup.id).collect::<Vec<_>>(),
            })
        };
        render::print_json(&found.iter().map(as_json).collect::<Vec<_>>().into())?;
    } else if found.is_empty() {
        render::print(
            "no catalog was backed up yet: the next backup does, or `backstay catalog backup`",
        )?;
    } else {
        let row = |(storage, catalog, backups): &(&StorageConfig, Slug, Vec<IndexEntry>)| {
            let newest = backups.first();
            vec![
                catalog.to_string(),
                if *catalog == own { "this one" } else { "" }.to_owned(),
                newest.map(|newest| newest.host.clone()).unwrap_or_default(),
                storage.name.clone(),
                backups.len().to_string(),
                render::time(newest.map(|newest| newest.started_at)),
            ]
        };
        let head = ["CATALOG", "", "MACHINE", "STORAGE", "BACKUPS", "NEWEST"];
        render::print(&render::table(&head, found.iter().map(row).collect()))?;
    }
    Ok(Exit::Done)
}

/// Backs the catalog up to every storage that has a vault.
async fn back_up(app: &Installation) -> anyhow::Result<Exit> {
    let (mut exit, mut vaults) = (Exit::Done, 0);
    for storage in app.config.storages.values() {
        let name = &storage.name;
        let made = async {
            if app.vault_if_any(storage).await?.is_none() {
                return Ok(None);
            }
            let vault = app.vault_for_writing(storage).await?;
            anyhow::Ok(Some(app.back_up_catalog(&vault).await?))
        };
        match made.await {
            Ok(None) => continue,
            Ok(Some(Some(id))) => render::print(&format!("{name}: backup {id} of the catalog"))?,
            Ok(Some(None)) => render::print(&format!("{name} has the catalog as it is"))?,
            Err(error) => {
                exit = exit.and(Exit::of(&error));
                render::say(&format!("error: storage {name}: {error:#}"));
            }
        }
        vaults += 1;
    }
    if vaults == 0 {
        render::print("no storage has a vault yet: the first backup of a source makes one")?;
    }
    Ok(exit)
}

/// Writes the index of backups anew from what the vaults hold.
async fn rebuild(app: &Installation) -> anyhow::Result<Exit> {
    let mut exit = Exit::Done;
    for storage in app.config.storages.values() {
        let name = &storage.name;
        match rebuild_of(app, storage).await {
            Ok(None) => render::print(&format!("{name} has no vault yet"))?,
            Ok(Some((sources, backups))) => {
                render::print(&format!("{name}: {backups} backups of {sources} sources"))?;
            }
            Err(error) => {
                exit = exit.and(Exit::of(&error));
                render::say(&format!("error: storage {name}: {error:#}"));
            }
        }
    }
    Ok(exit)
}

/// Returns how many sources and backups a storage has; none without a vault.
async fn rebuild_of(
    app: &Installation,
    storage: &StorageConfig,
) -> anyhow::Result<Option<(usize, usize)>> {
    let Some(vault) = app.vault_if_any(storage).await? else { return Ok(None) };
    app.catalog.drop_unreadable_listings(vault.id().as_str()).await?;
    let sources = orphans::sources(app, &vault).await?;
    let mut backups = 0;
    for source in &sources {
        backups += orphans::list(app, &vault, source).await?.0.backups.len();
    }
    Ok(Some((sources.len(), backups)))
}

/// Takes over what a vault has of a catalog, of the one that is wanted, where nothing is here yet; the configuration goes to where
/// it is given, else to where it was. Returns where it was written, if it was. Whatever fails is told: the keys are back, and that is what counts.
pub(super) async fn bring_back(
    app: &Installation,
    vault: &Vault,
    (wanted, given): (Option<&str>, Option<&Path>),
) -> anyhow::Result<Option<PathBuf>> {
    let catalogs = match catalogs_in(&app.cx, vault).await {
        Ok(catalogs) => catalogs,
        Err(error) => {
            warn(&format!("the backups of catalogs cannot be listed: {error}"));
            return Ok(None);
        }
    };
    let Some((catalog, backups)) = choose(catalogs, wanted)? else { return Ok(None) };
    for backup in backups {
        let read = document::read(&app.cx, vault, &place(&catalog, backup.id.clone())).await;
        let imported = match read {
            Ok(export) => app.catalog.import(&export).await,
            Err(error) => {
                warn(&format!("backup {} of the catalog is passed over: {error}", backup.id));
                continue;
            }
        };
        let imported = match imported {
            Err(error @ (CatalogError::Newer { .. } | CatalogError::Unreadable { .. })) => {
                warn(&format!("backup {} of the catalog is passed over: {error}", backup.id));
                continue;
            }
            imported => imported?,
        };
        let since = backup.started_at.strftime("%Y-%m-%d %H:%M UTC");
        render::print(&format!("the settings of {} of {since} are back", backup.host))?;
        for name in imported.stayed {
            warn(&format!("{name} was here already and stays as it is"));
        }
        return bring_back_configurations(app, given).await;
    }
    Ok(None)
}

/// Chooses the catalog that is meant: the only one, or that of this machine.
fn choose(
    mut catalogs: Vec<(Slug, Vec<IndexEntry>)>,
    wanted: Option<&str>,
) -> anyhow::Result<Option<(Slug, Vec<IndexEntry>)>> {
    let lines = |catalogs: &[(Slug, Vec<IndexEntry>)]| {
        let line = |(catalog, backups): &(Slug, Vec<IndexEntry>)| {
            let newest = backups.first();
            let of = newest.map(|newest| format!("{} at {:.0}", newest.host, newest.started_at));
            format!("\n  {catalog} of {}", of.unwrap_or_default())
        };
        catalogs.iter().map(line).collect::<String>()
    };
    if let Some(wanted) = wanted {
        let known = lines(&catalogs);
        catalogs.retain(|(catalog, _)| catalog.as_str().starts_with(wanted));
        if catalogs.len() != 1 {
            let text = format!("--catalog {wanted} means none of these, or several:{known}");
            return Err(UsageError(text).into());
        }
    }
    if catalogs.len() > 1 {
        let of_here = |(_, backups): &(Slug, Vec<IndexEntry>)| {
            backups.first().is_some_and(|newest| newest.host == host())
        };
        if catalogs.iter().filter(|one| of_here(one)).count() != 1 {
            let known = lines(&catalogs);
            warn(&format!(
                "only the keys come back, since settings of several machines are there; for those of one, say which with --catalog:{known}"
            ));
            return Ok(None);
        }
        catalogs.retain(of_here);
    }
    if catalogs.is_empty() {
        warn(
            "no settings lie there: only the keys come back, and what the backups say of their sources",
        );
    }
    Ok(catalogs.pop())
}

/// Writes configuration files where they were, unless something is there. Returns the one that counts from now on, if that is
/// clear.
async fn bring_back_configurations(
    app: &Installation,
    given: Option<&Path>,
) -> anyhow::Result<Option<PathBuf>> {
    let kept = app.configurations().await?;
    let (is_only, mut written) = (kept.len() == 1, Vec::new());
    for (_, KeptConfiguration { host, path, text, .. }) in kept {
        let whose = host.as_deref().unwrap_or("this installation");
        let aside = aside(app.home.path(), whose, &path);
        if let Some(host) = &host {
            write_new(&aside, &text)?;
            warn(&format!(
                "the configuration of {host} names a shared catalog, whose secrets cannot be opened here without that server's master.key: it lies in {}; take `catalog` out of it to use it without",
                aside.display()
            ));
            continue;
        }
        let place = given.filter(|_| is_only).map_or(path, Path::to_owned);
        // Whoever has our keys still may not have every file of this machine written.
        let is_configuration = place.extension().is_some_and(|extension| extension == "toml");
        let written_there = if is_configuration && place.is_absolute() {
            write_new(&place, &text)
        } else {
            Err(io::Error::other("it is no .toml file"))
        };
        match written_there {
            Ok(()) => {
                render::print(&format!("the configuration is back: {}", place.display()))?;
                written.push(place);
            }
            Err(error) => {
                write_new(&aside, &text)?;
                warn(&format!(
                    "the configuration was not written to {} ({error}); as it was, it lies in {}",
                    place.display(),
                    aside.display()
                ));
            }
        }
    }
    Ok(written.pop().filter(|_| written.is_empty()))
}

/// Where a file lies that is not put into its place: below the home directory, by machine and path.
fn aside(home: &Path, whose: &str, path: &Path) -> PathBuf {
    let named = |part| if let Component::Normal(name) = part { Some(name) } else { None };
    let below: PathBuf = path.components().filter_map(named).collect();
    home.join("recovered").join(whose.replace(['/', ' '], "-")).join(below)
}

/// Writes a file that nobody else reads. One that is there and has another text is an error.
fn write_new(path: &Path, text: &str) -> io::Result<()> {
    if std::fs::read(path).is_ok_and(|present| present == text.as_bytes()) {
        return Ok(());
    }
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent)?;
    }
    let mut file =
        std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()
}

fn warn(what: &str) {
    render::say(&format!("warning: {what}"));
}
