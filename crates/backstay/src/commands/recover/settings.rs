//! Bringing back what people had set up, from a backup of their catalog (ADR 18).

use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use backstay_control::{CatalogError, Imported};
use backstay_engine::document;
use backstay_engine::error::{EngineError, ErrorKind};
use backstay_engine::vault::{BackupPlace, Vault};
use backstay_format::IndexEntry;
use backstay_format::retention::CLOCK_TOLERANCE;

use super::tell;
use crate::catalog_backups::{
    CARRIED, CATALOG_ID, CONFIGURATION, CatalogBackups, KeptConfiguration, catalogs_in, place,
};
use crate::cli::{Global, RecoverArgs};
use crate::commands::members;
use crate::config::{Additions, Config, StorageConfig};
use crate::exit::UsageError;
use crate::installation::{ADDITIONS, Installation, host};
use crate::opening::{config_path, environment};
use crate::render;

/// Brings back what lies in the vault at a storage of a catalog. Returns the configuration file, if that is in its place.
pub(super) async fn bring_back(
    app: &Installation,
    storage: &StorageConfig,
    (args, global): (&RecoverArgs, &Global),
) -> anyhow::Result<Option<PathBuf>> {
    let wanted = (args.catalog.as_deref(), global.json);
    // Opened anew: with the kit's keys alone what was sealed since stays closed.
    let vault = app.vault(storage).await?;
    let Some(imported) = import(app, &vault, wanted).await? else { return Ok(None) };
    let named = global.config.as_deref().filter(|path| !path.as_os_str().is_empty());
    let given = (named, global.json);
    let written = write_configuration(app, &imported, given).await?;
    let file = written.clone().or_else(|| config_path(global));
    check_additions(app, file.as_deref()).await?;
    Ok(written)
}

/// Takes over what a vault has of the catalog that is wanted, where nothing is here yet. Returns what was found; none if nothing
/// was. Damaged backups are passed over; a storage that fails is an error, since an older one would stay for good.
async fn import(
    app: &Installation,
    vault: &Vault,
    (wanted, json): (Option<&str>, bool),
) -> anyhow::Result<Option<Imported>> {
    let Some(chosen) = choose(catalogs_in(&app.cx, vault).await?, wanted)? else {
        return Ok(None);
    };
    for unusable in chosen.unusable {
        warn(&format!("backup {} of the catalog is passed over: {}", unusable.id, unusable.error));
    }
    for backup in in_order(app, chosen.backups) {
        let place = place(&chosen.catalog, backup.id.clone());
        let read = document::read(&app.cx, vault, &place).await;
        let export = match read {
            Ok(export) => export,
            Err(error) if is_lost(app, vault, &place, &error).await? => {
                pass_over(&backup, &error);
                continue;
            }
            Err(error) => return Err(error.into()),
        };
        let imported = match app.catalog.import(&export, &CARRIED).await {
            Err(error @ (CatalogError::Newer { .. } | CatalogError::Unreadable { .. })) => {
                pass_over(&backup, &error);
                continue;
            }
            imported => imported?,
        };
        let since = backup.started_at.strftime("%Y-%m-%d %H:%M UTC");
        let (host, what) =
            (&backup.host, if imported.taken.is_empty() { "were here" } else { "are back" });
        tell(json, &format!("the settings of {host} of {since} {what}"))?;
        for name in imported.stayed.iter().filter(|name| *name != CATALOG_ID) {
            warn(&format!("{name} stays as it is here"));
        }
        tell_who_may_ask(app, json).await?;
        return Ok(Some(imported));
    }
    Ok(None)
}

/// Says whose tokens are worth something here: whoever was revoked after that backup comes back, too.
async fn tell_who_may_ask(app: &Installation, json: bool) -> anyhow::Result<()> {
    let members = members::all(app, None).await?;
    let members = members
        .iter()
        .map(|member| format!("{}/{} ({})", member.organisation, member.name, member.role));
    let workers = app.catalog.workers().await?;
    let workers = workers.iter().map(|worker| worker.name.to_string());
    for (what, names) in [("members", members.collect::<Vec<_>>()), ("workers", workers.collect())]
    {
        if !names.is_empty() {
            let names = names.join(", ");
            tell(
                json,
                &format!("{what}: {names}; `backstay {what} revoke` ends who should be none"),
            )?;
        }
    }
    Ok(())
}

/// Says whether a backup is of no use to anybody, rather than out of reach for now.
async fn is_lost(
    app: &Installation,
    vault: &Vault,
    place: &BackupPlace,
    error: &EngineError,
) -> Result<bool, EngineError> {
    let is_damaged = matches!(error.kind(), ErrorKind::Damaged | ErrorKind::Key);
    Ok(is_damaged || !vault.is_whole(&app.cx, place).await?)
}

fn pass_over(backup: &IndexEntry, error: &dyn std::error::Error) {
    warn(&format!("backup {} of the catalog is passed over: {error}", backup.id));
}

/// The newest first; those that a wrong clock made come last.
fn in_order(app: &Installation, backups: Vec<IndexEntry>) -> Vec<IndexEntry> {
    let now = app.cx.now();
    let is_past = |backup: &IndexEntry| backup.started_at.duration_since(now) <= CLOCK_TOLERANCE;
    let (mut past, future): (Vec<_>, Vec<_>) = backups.into_iter().partition(is_past);
    if !future.is_empty() {
        warn(
            "some backups of the catalog lie in the future, by a clock that was wrong; they come last",
        );
    }
    past.extend(future);
    past
}

/// Chooses the catalog that is meant: the only one, or the newest of this machine's name.
fn choose(
    mut catalogs: Vec<CatalogBackups>,
    wanted: Option<&str>,
) -> anyhow::Result<Option<CatalogBackups>> {
    catalogs.sort_by_key(|one| one.backups.first().map(|newest| newest.started_at));
    let known: String = catalogs.iter().rev().map(line).collect();
    if let Some(wanted) = wanted {
        catalogs.retain(|one| one.catalog.as_str().starts_with(wanted));
        if catalogs.len() != 1 {
            let text = format!("--catalog {wanted} means none of these, or several:{known}");
            return Err(UsageError(text).into());
        }
    }
    if catalogs.len() > 1 {
        let is_of_here =
            |one: &CatalogBackups| one.backups.first().is_some_and(|newest| newest.host == host());
        catalogs.retain(is_of_here);
        warn(&match catalogs.is_empty() {
            true => format!(
                "only the keys come back, since settings of several machines are there, and none has this one's name; say which with --catalog:{known}"
            ),
            false => format!(
                "of these the newest of this machine's name is taken; for another give --catalog:{known}"
            ),
        });
    } else if catalogs.is_empty() {
        warn(
            "no settings lie there: only the keys come back, and what the backups say of their sources",
        );
    }
    Ok(catalogs.pop())
}

fn line(one: &CatalogBackups) -> String {
    let of = one.backups.first().map_or_else(String::new, |newest| {
        format!(" of {}, {}", newest.host, newest.started_at.strftime("%Y-%m-%d %H:%M UTC"))
    });
    format!("\n  {}{of}", one.catalog)
}

/// Writes the configuration file where it is wanted, else where it was, unless something is there. Returns where it is now, if it
/// is in its place.
async fn write_configuration(
    app: &Installation,
    imported: &Imported,
    (given, json): (Option<&Path>, bool),
) -> anyhow::Result<Option<PathBuf>> {
    let found: Vec<&String> =
        [&imported.taken, &imported.same, &imported.stayed].into_iter().flatten().collect();
    let mut back = None;
    for (name, KeptConfiguration { path, text, .. }) in app.configurations().await? {
        if !found.contains(&&name) || app.catalog.is_shared() {
            continue;
        }
        if name != CONFIGURATION {
            let aside = aside(app, &format!("{}.toml", name.replace(' ', "-")), &text);
            warn(&format!(
                "the configuration that was {path} names a shared catalog, whose secrets cannot be opened here without that server's master.key: {aside}; take `catalog` out of it to use it without"
            ));
            continue;
        }
        let place = match given {
            Some(given) => std::path::absolute(given)?,
            None => PathBuf::from(&path),
        };
        match write_new(&place, &text) {
            Ok(()) => {
                tell(json, &format!("the configuration is back: {} (mode 0600)", place.display()))?;
                back = Some(place);
            }
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                if std::fs::read(&place).is_ok_and(|present| present == text.as_bytes()) {
                    back = Some(place);
                    continue;
                }
                let aside = aside(app, "backstay.toml", &text);
                warn(&format!(
                    "another configuration is in {}, which stays: {aside}",
                    place.display()
                ));
            }
            Err(error) => {
                let aside = aside(app, "backstay.toml", &text);
                let place = place.display();
                warn(&format!("the configuration cannot be written to {place} ({error}): {aside}"));
            }
        }
    }
    Ok(back)
}

/// Puts what commands had added aside, if it goes with no configuration that is here: no command would work any more.
async fn check_additions(app: &Installation, file: Option<&Path>) -> anyhow::Result<()> {
    let environment = environment();
    let Ok(additions) = app.added().await else {
        warn("what commands had added cannot be read by this program, and is left out");
        return Ok(app.catalog.forget(ADDITIONS).await?);
    };
    let is_right = |additions: &Additions| Config::load(file, additions, &environment).is_ok();
    if is_right(&additions) || !is_right(&Additions::default()) {
        return Ok(());
    }
    let aside = aside(app, "added.toml", &additions.to_text());
    warn(&format!(
        "what commands had added goes with a configuration that is not here: {aside}; take it in by `backstay config import` then"
    ));
    Ok(app.catalog.forget(ADDITIONS).await?)
}

/// Puts a text into the home directory, under a name that is free. Returns where it lies, for a person.
fn aside(app: &Installation, name: &str, text: &str) -> String {
    let folder = app.home.path().join("recovered");
    let names = std::iter::once(name.to_owned()).chain((1..100).map(|n| format!("{name}.{n}")));
    for name in names {
        let path = folder.join(name);
        let is_there = || std::fs::read(&path).is_ok_and(|present| present == text.as_bytes());
        match write_new(&path, text) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists && !is_there() => {}
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                return format!("it cannot be put aside either ({error})");
            }
            _ => return format!("as it was, it lies in {}", path.display()),
        }
    }
    format!("{} is full of others", folder.display())
}

/// Writes a file that only its owner reads; whole or not at all, and never over another.
fn write_new(path: &Path, text: &str) -> io::Result<()> {
    let folder = path.parent().ok_or(io::ErrorKind::InvalidInput)?;
    std::fs::create_dir_all(folder)?;
    let mut file = tempfile::NamedTempFile::new_in(folder)?;
    file.write_all(text.as_bytes())?;
    file.as_file().sync_all()?;
    file.persist_noclobber(path).map_err(|error| error.error)?;
    std::fs::File::open(folder)?.sync_all()
}

fn warn(what: &str) {
    render::say(&format!("warning: {what}"));
}
