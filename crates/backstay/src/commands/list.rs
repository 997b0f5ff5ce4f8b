//! Listing backups, and what is done to one of them.

use backstay_format::{Content, IndexEntry};
use serde_json::json;

use super::{find_backup, orphans};
use crate::config::{SourceConfig, StorageConfig};
use crate::exit::Exit;
use crate::installation::Installation;
use crate::render;

/// A backup and where it lies.
pub(super) struct Listed {
    pub(super) entry: IndexEntry,
    pub(super) storage: String,
    pub(super) location: String,
    /// Objects of it were gone when somebody looked last.
    pub(super) is_orphaned: bool,
}

/// Lists the backups of one source or of all, newest first. Trouble with single ones goes to standard error.
pub(super) async fn all(
    app: &Installation,
    source: Option<&str>,
) -> anyhow::Result<(Vec<Listed>, Exit)> {
    let (mut listed, mut exit) = (Vec::new(), Exit::Done);
    for storage in app.config.storages.values() {
        let (found, of_storage) = on_storage(app, storage, source).await?;
        listed.extend(found);
        if of_storage != Exit::Done {
            exit = of_storage;
        }
    }
    sort(&mut listed);
    Ok((listed, exit))
}

fn sort(listed: &mut [Listed]) {
    listed
        .sort_by(|a, b| (b.entry.started_at, &b.entry.id).cmp(&(a.entry.started_at, &a.entry.id)));
}

async fn on_storage(
    app: &Installation,
    storage: &StorageConfig,
    source: Option<&str>,
) -> anyhow::Result<(Vec<Listed>, Exit)> {
    let (mut listed, mut exit) = (Vec::new(), Exit::Done);
    let Some(vault) = app.vault_if_any(storage).await? else { return Ok((listed, exit)) };
    let sources = match source {
        Some(name) => [app.source(name).await?.name].into(),
        None => orphans::sources(app, &vault).await?,
    };
    for source in sources {
        let (listing, orphans) = orphans::list(app, &vault, &source).await?;
        let location = format!("{}/{}/{source}", vault.location(), app.config.organisation);
        let there = listing.backups.into_iter().map(|entry| {
            let is_orphaned = orphans.damaged.contains(&entry.id);
            (entry, is_orphaned)
        });
        let lost = orphans.lost.iter().map(|entry| (entry.clone(), true));
        listed.extend(there.chain(lost).map(|(entry, is_orphaned)| Listed {
            entry,
            storage: storage.name.clone(),
            location: location.clone(),
            is_orphaned,
        }));
        for unusable in listing.unusable {
            let error = anyhow::Error::new(unusable.error);
            exit = Exit::of(&error);
            render::say(&format!(
                "error: backup {} of {source} cannot be used: {error:#}",
                unusable.id
            ));
        }
    }
    Ok((listed, exit))
}

/// What is known of the backups of a source.
pub(super) struct Known {
    /// Those that are whole as far as anybody knows, newest first.
    pub(super) backups: Vec<IndexEntry>,
    /// How many are orphaned.
    pub(super) orphaned: usize,
    /// Why more is not known, and what cannot be used.
    pub(super) error: Option<anyhow::Error>,
}

/// Returns the backups of a source, on whatever storage. If its own does not answer, what was seen there last is better than
/// nothing; others are not its business.
pub(super) async fn known(app: &Installation, source: &SourceConfig) -> anyhow::Result<Known> {
    let name = source.name.as_str();
    let (mut listed, mut orphaned, mut trouble) = (Vec::new(), 0, None);
    for storage in app.config.storages.values() {
        match on_storage(app, storage, Some(name)).await {
            Ok((found, exit)) => {
                listed.extend(found);
                let unusable =
                    || anyhow::anyhow!("a backup cannot be used: `backstay check` says why");
                trouble = trouble.or((exit != Exit::Done).then(unusable));
            }
            Err(error) if storage.name == source.storage => {
                trouble = Some(error);
                let Some(vault) = app.known_vault(storage).await? else { continue };
                let orphans = app.catalog.orphans(vault.as_str(), name).await?;
                orphaned += orphans.lost.len();
                let before = app.catalog.known_backups(vault.as_str(), name).await?;
                listed.extend(before.into_iter().map(|entry| Listed {
                    is_orphaned: orphans.damaged.contains(&entry.id),
                    entry,
                    storage: storage.name.clone(),
                    location: String::new(),
                }));
            }
            Err(_) => {}
        }
    }
    sort(&mut listed);
    let (gone, whole): (Vec<_>, Vec<_>) = listed.into_iter().partition(|one| one.is_orphaned);
    Ok(Known {
        backups: whole.into_iter().map(|listed| listed.entry).collect(),
        orphaned: orphaned + gone.len(),
        error: trouble,
    })
}

pub(super) async fn backups(
    app: &Installation,
    source: Option<&str>,
    json: bool,
) -> anyhow::Result<Exit> {
    let (listed, exit) = all(app, source).await?;
    if json {
        let all = listed.iter().map(|l| {
            let mut value = render::backup_json(&l.entry, &l.storage, &l.location);
            if l.is_orphaned {
                value["status"] = json!("orphaned");
            }
            value
        });
        render::print_json(&all.collect::<Vec<_>>().into())?;
    } else if listed.is_empty() {
        render::print("there are no backups yet; make one with `backstay backup SOURCE`")?;
    } else {
        let row = |l: &Listed| {
            let status = l.is_orphaned.then_some("orphaned");
            render::backup_row(&l.entry, &l.storage, status)
        };
        let rows = listed.iter().map(row).collect();
        render::print(&render::table(&render::BACKUP_HEAD, rows))?;
    }
    Ok(exit)
}

pub(super) async fn show(app: &Installation, id: &str, json: bool) -> anyhow::Result<Exit> {
    let (entry, storage) = find_backup(app, id).await?;
    let vault = app.vault(storage).await?;
    let manifest = vault.manifest(&app.cx, &app.place(&entry.source, entry.id.clone())).await?;
    let details = vault.details(&manifest)?;
    let location = format!("{}/{}/{}", vault.location(), app.config.organisation, entry.source);
    let mut value = render::backup_json(&entry, &storage.name, &location);
    value["item_errors"] = json!(details.item_errors);
    value["content"] = json!(details.content.map(Content::without_secrets));
    value["origin"] = json!(details.origin);
    value["imported"] = json!(details.imported);
    value["engine"] = json!(manifest.engine);
    value["consistency_point"] = json!(manifest.consistency_point);
    value["tool"] = json!(manifest.tool);
    value["stored"] = json!(manifest.parts);
    if json {
        render::print_json(&value)?;
        return Ok(Exit::Done);
    }
    for (name, value) in value.as_object().into_iter().flatten() {
        let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        render::print(&format!("{name:16} {text}"))?;
    }
    Ok(Exit::Done)
}

pub(super) async fn hold(app: &Installation, id: &str, reason: &str) -> anyhow::Result<Exit> {
    let (entry, storage) = find_backup(app, id).await?;
    let vault = app.vault_for_writing(storage).await?;
    vault.hold(&app.cx, &app.place(&entry.source, entry.id.clone()), reason).await?;
    render::print(&format!("{} is held: {reason}", entry.id))?;
    Ok(Exit::Done)
}

pub(super) async fn release(app: &Installation, id: &str) -> anyhow::Result<Exit> {
    let (entry, storage) = find_backup(app, id).await?;
    let vault = app.vault_for_writing(storage).await?;
    vault.release(&app.cx, &app.place(&entry.source, entry.id.clone())).await?;
    render::print(&format!("{} is no longer held", entry.id))?;
    Ok(Exit::Done)
}

pub(super) async fn delete(app: &Installation, id: &str, yes: bool) -> anyhow::Result<Exit> {
    let (entry, storage) = match orphan(app, id).await? {
        Some(orphan) => orphan,
        None => find_backup(app, id).await?,
    };
    let what = format!("This deletes backup {} of {}, for good.", entry.id, entry.source);
    super::restore::ask(&what, "DELETE", yes)?;
    let removal = Box::pin(async {
        let vault = app.vault_for_writing(storage).await?;
        let place = app.place(&entry.source, entry.id.clone());
        if vault.hold_of(&app.cx, &place).await?.is_some() {
            return Ok(vault.remove(&app.cx, &place).await?);
        }
        let named = (vault.id().as_str(), entry.source.as_str());
        let backup = std::slice::from_ref(&entry.id);
        app.catalog.will_remove(named, backup, app.cx.now()).await?;
        let removed = vault.remove(&app.cx, &place).await;
        if removed.is_err() {
            app.catalog.still_there(named, backup).await?;
        }
        Ok(removed?)
    });
    app.under_lease(entry.source.as_str(), removal).await?;
    render::print(&format!("{} is deleted", entry.id))?;
    Ok(Exit::Done)
}

/// Finds an orphaned backup by the beginning of its id: of some nothing is left but what is remembered here.
async fn orphan<'a>(
    app: &'a Installation,
    id: &str,
) -> anyhow::Result<Option<(IndexEntry, &'a StorageConfig)>> {
    let mut found = Vec::new();
    for storage in app.config.storages.values() {
        // One that does not answer is no reason to delete nothing on another.
        let Ok((listed, _)) = on_storage(app, storage, None).await else { continue };
        let meant = listed.into_iter().filter(|one| one.entry.id.as_str().starts_with(id));
        found.extend(meant.map(|one| (one, storage)));
    }
    Ok(match (found.pop(), found.is_empty()) {
        (Some((one, storage)), true) if one.is_orphaned => Some((one.entry, storage)),
        _ => None,
    })
}
