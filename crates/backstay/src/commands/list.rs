//! Listing backups, and what is done to one of them.

use backstay_format::{Content, IndexEntry, Slug};
use backstay_server::{BackupsView, WhichBackups};
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use serde_json::{Value, json};

use super::{find_backup, orphans};
use crate::config::{SourceConfig, StorageConfig};
use crate::exit::Exit;
use crate::installation::Installation;
use crate::render;
use crate::vaults::location;

/// Sources that are listed at once: a storage answers each in its own time.
pub(super) const LISTED_AT_ONCE: usize = 16;

/// A backup and where it lies.
pub(super) struct Listed {
    pub(super) entry: IndexEntry,
    pub(super) storage: String,
    pub(super) location: String,
    /// Objects of it were gone when somebody looked last.
    pub(super) is_orphaned: bool,
}

/// Backups, and what is wrong with single ones.
pub(super) struct All {
    pub(super) listed: Vec<Listed>,
    /// Which cannot be used, and why.
    pub(super) errors: Vec<String>,
    /// How a command ends that shows them.
    pub(super) exit: Exit,
}

impl All {
    fn none() -> Self {
        Self { listed: Vec::new(), errors: Vec::new(), exit: Exit::Done }
    }

    /// Takes up what a storage holds. One that does not answer hides nothing of the others.
    fn add(&mut self, storage: &StorageConfig, found: anyhow::Result<Self>) {
        let Self { listed, errors, exit } = found.unwrap_or_else(|error| {
            let text = format!("storage {} was not listed: {error:#}", storage.name);
            Self { errors: vec![text], exit: Exit::of(&error), ..Self::none() }
        });
        self.listed.extend(listed);
        self.errors.extend(errors);
        self.exit = self.exit.and(exit);
    }
}

/// Returns the storages that a source's backups may be on: those of its organisation; all if nobody knows whose it is.
fn storages_of<'a>(
    app: &'a Installation,
    source: Option<&str>,
) -> impl Iterator<Item = &'a StorageConfig> {
    let known = source.and_then(|name| app.config.sources.get(name));
    let whose = known.map(|source| &source.organisation);
    let all = app.config.storages.values();
    all.filter(move |storage| whose.is_none_or(|whose| storage.organisation == *whose))
}

/// Lists the backups of one source or of all, newest first.
pub(super) async fn all(app: &Installation, source: Option<&str>) -> anyhow::Result<All> {
    let named = match source {
        Some(name) => Some(app.source(name).await?.name),
        None => None,
    };
    let mut all = All::none();
    for storage in storages_of(app, source) {
        let found = on_storage(app, storage, named.as_ref()).await;
        app.cx.check()?;
        all.add(storage, found);
    }
    sort(&mut all.listed);
    Ok(all)
}

fn sort(listed: &mut [Listed]) {
    listed
        .sort_by(|a, b| (b.entry.started_at, &b.entry.id).cmp(&(a.entry.started_at, &a.entry.id)));
}

async fn on_storage(
    app: &Installation,
    storage: &StorageConfig,
    source: Option<&Slug>,
) -> anyhow::Result<All> {
    let mut all = All::none();
    let Some(vault) = app.vault_if_any(storage).await? else { return Ok(all) };
    let organisation = &storage.organisation;
    let sources = match source {
        Some(name) => [name.clone()].into(),
        None => orphans::sources(app, &vault, organisation).await?,
    };
    let listings = stream::iter(sources)
        .map(async |source| {
            let listed = orphans::list(app, &vault, (organisation, &source)).await?;
            anyhow::Ok((source, listed))
        })
        .buffered(LISTED_AT_ONCE);
    let listings: Vec<_> = listings.try_collect().await?;
    for (source, (listing, orphans)) in listings {
        let location = place_of(vault.location(), (organisation, &source));
        let there = listing.backups.into_iter().map(|entry| {
            let is_orphaned = orphans.damaged.contains(&entry.id);
            (entry, is_orphaned)
        });
        let lost = orphans.lost.iter().map(|entry| (entry.clone(), true));
        all.listed.extend(there.chain(lost).map(|(entry, is_orphaned)| Listed {
            entry,
            storage: storage.name.clone(),
            location: location.clone(),
            is_orphaned,
        }));
        for unusable in listing.unusable {
            let error = anyhow::Error::new(unusable.error);
            all.exit = all.exit.and(Exit::of(&error));
            let text = format!("backup {} of {source} cannot be used: {error:#}", unusable.id);
            all.errors.push(text);
        }
    }
    Ok(all)
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
    for storage in storages_of(app, Some(name)) {
        match on_storage(app, storage, Some(&source.name)).await {
            Ok(found) => {
                listed.extend(found.listed);
                let unusable =
                    || anyhow::anyhow!("a backup cannot be used: `backstay check` says why");
                trouble = trouble.or((found.exit != Exit::Done).then(unusable));
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

/// Returns the newest backups of all sources as they were seen last: nobody asks the storages for them.
async fn newest(app: &Installation, limit: u32) -> anyhow::Result<Vec<Listed>> {
    let mut listed = Vec::new();
    for storage in app.config.storages.values() {
        let Some(vault) = app.known_vault(storage).await? else { continue };
        let above = location(storage)?;
        let newest = app.catalog.newest_backups(vault.as_str(), limit).await?;
        listed.extend(newest.into_iter().map(|(entry, is_orphaned)| Listed {
            location: place_of(&above, (&storage.organisation, &entry.source)),
            storage: storage.name.clone(),
            entry,
            is_orphaned,
        }));
    }
    sort(&mut listed);
    listed.truncate(usize::try_from(limit).unwrap_or(usize::MAX));
    Ok(listed)
}

/// Returns where the backups of a source are.
fn place_of(vault: &str, (organisation, source): (&Slug, &Slug)) -> String {
    format!("{vault}/{organisation}/{source}")
}

/// Returns backups as people see them.
pub(super) async fn backups_view(
    app: &Installation,
    which: &WhichBackups,
) -> anyhow::Result<BackupsView> {
    let All { listed, errors, exit } = match which.newest {
        Some(limit) => All { listed: newest(app, limit).await?, ..All::none() },
        None => all(app, which.source.as_deref()).await?,
    };
    let view = |one: &Listed| {
        render::backup_view(&one.entry, (&one.storage, &one.location), one.is_orphaned)
    };
    Ok(BackupsView { backups: listed.iter().map(view).collect(), errors, exit_code: exit.code() })
}

pub(super) async fn backups(
    app: &Installation,
    which: &WhichBackups,
    json: bool,
) -> anyhow::Result<Exit> {
    show_backups(&backups_view(app, which).await?, json)
}

/// Shows backups. Trouble with single ones goes to standard error.
pub(super) fn show_backups(view: &BackupsView, json: bool) -> anyhow::Result<Exit> {
    for error in &view.errors {
        render::say(&format!("error: {error}"));
    }
    if json {
        render::print_json(&view.backups)?;
    } else if view.backups.is_empty() {
        // Where somebody did not answer, nobody knows.
        if view.errors.is_empty() {
            render::print("there are no backups yet; make one with `backstay backup SOURCE`")?;
        }
    } else {
        let rows = view.backups.iter().map(render::backup_row).collect();
        render::print(&render::table(&render::BACKUP_HEAD, rows))?;
    }
    Ok(Exit::of_code(view.exit_code))
}

/// Returns all that is known of a backup, as people see it.
pub(super) async fn backup_value(app: &Installation, id: &str) -> anyhow::Result<Value> {
    let (entry, storage) = match find_backup(app, id).await {
        Ok(found) => found,
        // Of one that is gone from its storage there is still what was seen of it.
        Err(error) => return lost_value(app, id).await?.ok_or(error),
    };
    let vault = app.vault(storage).await?;
    let manifest = vault.manifest(&app.cx, &storage.place(&entry.source, entry.id.clone())).await?;
    let details = vault.details(&manifest)?;
    let location = place_of(vault.location(), (&storage.organisation, &entry.source));
    let mut value = json!(render::backup_view(&entry, (&storage.name, &location), false));
    value["item_errors"] = json!(details.item_errors);
    value["content"] = json!(details.content.map(Content::without_secrets));
    value["origin"] = json!(details.origin);
    value["imported"] = json!(details.imported);
    value["engine"] = json!(manifest.engine);
    value["consistency_point"] = json!(manifest.consistency_point);
    value["tool"] = json!(manifest.tool);
    value["stored"] = json!(manifest.parts);
    Ok(value)
}

async fn lost_value(app: &Installation, id: &str) -> anyhow::Result<Option<Value>> {
    let Some((entry, storage)) = orphan(app, id).await? else { return Ok(None) };
    let location = place_of(&location(storage)?, (&storage.organisation, &entry.source));
    Ok(Some(json!(render::backup_view(&entry, (&storage.name, &location), true))))
}

pub(super) async fn show(app: &Installation, id: &str, json: bool) -> anyhow::Result<Exit> {
    show_backup(&backup_value(app, id).await?, json)
}

pub(super) fn show_backup(value: &Value, json: bool) -> anyhow::Result<Exit> {
    if json {
        render::print_json(value)?;
        return Ok(Exit::Done);
    }
    for (name, value) in value.as_object().into_iter().flatten() {
        let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        render::print(&format!("{name:16} {text}"))?;
    }
    Ok(Exit::Done)
}

/// Holds a backup; says so.
pub(super) async fn hold(app: &Installation, id: &str, reason: &str) -> anyhow::Result<String> {
    let (entry, storage) = find_backup(app, id).await?;
    let vault = app.vault_for_writing(storage).await?;
    vault.hold(&app.cx, &storage.place(&entry.source, entry.id.clone()), reason).await?;
    Ok(format!("{} is held: {reason}", entry.id))
}

/// Releases a backup; says so.
pub(super) async fn release(app: &Installation, id: &str) -> anyhow::Result<String> {
    let (entry, storage) = find_backup(app, id).await?;
    let vault = app.vault_for_writing(storage).await?;
    vault.release(&app.cx, &storage.place(&entry.source, entry.id.clone())).await?;
    Ok(format!("{} is no longer held", entry.id))
}

/// Deletes a backup, once whoever asks has said yes to it; says so.
pub(super) async fn delete(
    app: &Installation,
    id: &str,
    confirm: impl FnOnce(&str) -> anyhow::Result<()>,
) -> anyhow::Result<String> {
    let (entry, storage) = match orphan(app, id).await? {
        Some(orphan) => orphan,
        None => find_backup(app, id).await?,
    };
    confirm(&format!("This deletes backup {} of {}, for good.", entry.id, entry.source))?;
    let removal = Box::pin(async {
        let vault = app.vault_for_writing(storage).await?;
        let place = storage.place(&entry.source, entry.id.clone());
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
    Ok(format!("{} is deleted", entry.id))
}

/// Finds an orphaned backup by the beginning of its id: of some nothing is left but what is remembered here.
async fn orphan<'a>(
    app: &'a Installation,
    id: &str,
) -> anyhow::Result<Option<(IndexEntry, &'a StorageConfig)>> {
    let mut found = Vec::new();
    for storage in app.config.storages.values() {
        // One that does not answer is no reason to delete nothing on another.
        let Ok(all) = on_storage(app, storage, None).await else { continue };
        let meant = all.listed.into_iter().filter(|one| one.entry.id.as_str().starts_with(id));
        found.extend(meant.map(|one| (one, storage)));
    }
    Ok(match (found.pop(), found.is_empty()) {
        (Some((one, storage)), true) if one.is_orphaned => Some((one.entry, storage)),
        _ => None,
    })
}
