//! Finding the one backup that somebody names.

use backstay_engine::vault::Vault;
use backstay_format::{BackupId, IndexEntry, Slug};
use futures_util::{StreamExt as _, TryStreamExt as _, stream};

use super::list::LISTED_AT_ONCE;
use crate::config::StorageConfig;
use crate::exit::UsageError;
use crate::installation::Installation;

/// Finds the one backup whose id begins so, in whatever storage.
pub(super) async fn find_backup<'a>(
    app: &'a Installation,
    id: &str,
) -> anyhow::Result<(IndexEntry, &'a StorageConfig)> {
    if let Some(found) = where_seen(app, id).await? {
        return Ok(found);
    }
    let (mut found, mut trouble) = (Vec::new(), None);
    for storage in app.config.storages.values() {
        match on_storage(app, storage, id).await {
            Ok(entries) => found.extend(entries.into_iter().map(|entry| (entry, storage))),
            Err(error) => {
                app.cx.check()?;
                trouble = Some(error.context(format!("storage {} was not searched", storage.name)));
            }
        }
    }
    match trouble {
        Some(error) if found.is_empty() => Err(error),
        _ => the_one(found, id, ("backup", "backstay backups")),
    }
}

async fn on_storage(
    app: &Installation,
    storage: &StorageConfig,
    id: &str,
) -> anyhow::Result<Vec<IndexEntry>> {
    let Some(vault) = app.vault_if_any(storage).await? else { return Ok(Vec::new()) };
    let sources = vault.sources(&app.cx, &storage.organisation).await?;
    let listings = stream::iter(sources)
        .map(async |source| begun_so(app, (&vault, storage), &source, id).await)
        .buffered(LISTED_AT_ONCE);
    let listings: Vec<_> = listings.try_collect().await?;
    Ok(listings.into_iter().flatten().collect())
}

/// Looks for a backup by its whole id where it was seen last: nobody has to list thousands of sources for one.
async fn where_seen<'a>(
    app: &'a Installation,
    id: &str,
) -> anyhow::Result<Option<(IndexEntry, &'a StorageConfig)>> {
    let Ok(whole) = id.parse::<BackupId>() else { return Ok(None) };
    let seen = app.catalog.seen_of(&whole).await?;
    let [(vault_id, source)] = seen.as_slice() else { return Ok(None) };
    let Ok(source) = source.parse::<Slug>() else { return Ok(None) };
    for storage in app.config.storages.values() {
        if app.known_vault(storage).await?.is_none_or(|known| known.as_str() != vault_id) {
            continue;
        }
        let Some(vault) = app.vault_if_any(storage).await? else { continue };
        let mut found = begun_so(app, (&vault, storage), &source, id).await?;
        if let Some(entry) = found.pop() {
            return Ok(Some((entry, storage)));
        }
    }
    Ok(None)
}

/// Returns the backups of a source whose ids begin so.
async fn begun_so(
    app: &Installation,
    (vault, storage): (&Vault, &StorageConfig),
    source: &Slug,
    id: &str,
) -> anyhow::Result<Vec<IndexEntry>> {
    let listing = vault.list(&app.cx, &storage.organisation, source).await?;
    let unusable = listing.unusable.into_iter().find(|one| one.id.as_str().starts_with(id));
    if let Some(unusable) = unusable {
        return Err(unusable.error.into());
    }
    Ok(listing.backups.into_iter().filter(|entry| entry.id.as_str().starts_with(id)).collect())
}

/// Returns the only one of what was found by the beginning of an id, or says what to do: what it is, and what lists all.
pub(super) fn the_one<T>(
    mut found: Vec<T>,
    id: &str,
    (what, list): (&str, &str),
) -> anyhow::Result<T> {
    let text = match (found.pop(), found.is_empty()) {
        (Some(one), true) => return Ok(one),
        (None, _) => format!("there is no {what} {id:?}; list them with `{list}`"),
        (Some(_), false) => format!("{id:?} begins the ids of several {what}s; write more of it"),
    };
    Err(UsageError(text).into())
}
