//! Forgetting backups by rule, and pruning what no manifest names.

use std::collections::{BTreeMap, BTreeSet};

use backstay_format::retention::{self, Rules, Verdict};
use backstay_format::{BackupFile, BackupId, IndexEntry, ParsedName, Slug};
use jiff::{SignedDuration, Timestamp};

use crate::cx::Cx;
use crate::error::EngineError;
use crate::store::ObjectInfo;
use crate::vault::{BackupPlace, Vault};

/// Nothing younger is pruned: it may belong to a backup that is being written.
pub const GRACE: SignedDuration = SignedDuration::from_hours(24);

/// What forgetting would do.
#[derive(Debug, Clone)]
pub struct ForgetPlan {
    /// Whose source.
    pub organisation: Slug,
    /// Which source.
    pub source: Slug,
    /// What the rules say of each backup, newest first.
    pub verdicts: Vec<Verdict>,
}

/// Works out which backups of a source are forgotten. Does nothing by halves: a listing that failed, or that shows
/// backups which cannot be read, plans nothing. Orphaned backups, of which somebody found objects missing, are no good ones: no
/// rule counts them, and they stay for people to see.
pub async fn plan_forget(
    cx: &Cx,
    vault: &Vault,
    (organisation, source): (&Slug, &Slug),
    rules: &Rules,
    orphaned: &BTreeSet<BackupId>,
) -> Result<ForgetPlan, EngineError> {
    let listing = vault.list(cx, organisation, source).await?;
    if let Some(unusable) = listing.unusable.into_iter().next() {
        return Err(unusable.error);
    }
    let (gone, whole): (Vec<_>, Vec<_>) =
        listing.backups.into_iter().partition(|entry| orphaned.contains(&entry.id));
    let mut verdicts = retention::plan(&whole, rules, cx.now())?;
    verdicts.extend(gone.into_iter().map(|entry| Verdict {
        id: entry.id,
        keep: true,
        reasons: vec!["orphaned: objects of it are gone".to_owned()],
    }));
    Ok(ForgetPlan { organisation: organisation.clone(), source: source.clone(), verdicts })
}

/// Removes what the plan says. Returns the backups that are gone.
pub async fn forget(
    cx: &Cx,
    vault: &Vault,
    plan: &ForgetPlan,
) -> Result<Vec<BackupId>, EngineError> {
    let mut gone = Vec::new();
    // The oldest first: stopped in between, the newest are still there.
    for verdict in plan.verdicts.iter().rev().filter(|verdict| !verdict.keep) {
        cx.check()?;
        let place = BackupPlace {
            organisation: plan.organisation.clone(),
            source: plan.source.clone(),
            backup: verdict.id.clone(),
        };
        match vault.remove(cx, &place).await {
            // Held since the plan was made.
            Err(EngineError::Held { .. }) => {}
            removed => {
                removed?;
                gone.push(verdict.id.clone());
            }
        }
    }
    Ok(gone)
}

/// What pruning would remove.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PrunePlan {
    /// Objects that no manifest names, with their sizes.
    pub objects: Vec<(String, u64)>,
    /// How many more are too young to be touched.
    pub too_young: usize,
}

/// Finds the objects of a source that no manifest names, but for those of backups that somebody knows: their manifests may come
/// back. Nobody may be writing there for longer than the grace period.
pub async fn plan_prune(
    cx: &Cx,
    vault: &Vault,
    (organisation, source): (&Slug, &Slug),
    known: &BTreeSet<BackupId>,
) -> Result<PrunePlan, EngineError> {
    let folders = folders(vault.objects(cx, organisation, source).await?);
    unnamed(cx, vault, &folders, known).await
}

/// What lies in the folder of a backup.
#[derive(Debug, Default)]
struct Folder {
    has_manifest: bool,
    is_held: bool,
    objects: Vec<ObjectInfo>,
}

fn folders(objects: Vec<ObjectInfo>) -> BTreeMap<BackupPlace, Folder> {
    let mut folders: BTreeMap<BackupPlace, Folder> = BTreeMap::new();
    for object in objects {
        let ParsedName::Backup { organisation, source, backup, file } =
            ParsedName::parse(&object.name)
        else {
            continue;
        };
        let folder = folders.entry(BackupPlace { organisation, source, backup }).or_default();
        folder.has_manifest |= file == BackupFile::Manifest;
        folder.is_held |= file == BackupFile::Hold;
        folder.objects.push(object);
    }
    folders
}

async fn unnamed(
    cx: &Cx,
    vault: &Vault,
    folders: &BTreeMap<BackupPlace, Folder>,
    known: &BTreeSet<BackupId>,
) -> Result<PrunePlan, EngineError> {
    let mut plan = PrunePlan::default();
    for (place, folder) in folders {
        // What lies beside a manifest is the manifest's business: a damaged one may name it.
        if folder.has_manifest || folder.is_held || known.contains(&place.backup) {
            continue;
        }
        let is_old =
            |object: &&ObjectInfo| is_past_grace(cx.now(), &place.backup, object.modified_secs);
        let (old, young): (Vec<_>, Vec<_>) = folder.objects.iter().partition(is_old);
        plan.too_young += young.len();
        // A list may be behind: only what was asked for by name is definitely not there.
        if !old.is_empty() && !vault.has_manifest(cx, place).await? {
            plan.objects.extend(old.iter().map(|object| (object.name.clone(), object.bytes)));
        }
    }
    Ok(plan)
}

/// What a source has in the vault that does not fit together.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Survey {
    /// What no manifest names.
    pub unnamed: PrunePlan,
    /// Backups with a manifest that names objects which are definitely gone.
    pub damaged: BTreeSet<BackupId>,
}

/// Compares what lies in the vault with what manifests name, of one source and its backups as they were just listed (V36 to V38).
/// Only while nobody else works on it.
pub async fn survey(
    cx: &Cx,
    vault: &Vault,
    (organisation, source): (&Slug, &Slug),
    listed: &[IndexEntry],
    known: &BTreeSet<BackupId>,
) -> Result<Survey, EngineError> {
    let folders = folders(vault.objects(cx, organisation, source).await?);
    let unnamed = unnamed(cx, vault, &folders, known).await?;
    let mut damaged = BTreeSet::new();
    for entry in listed {
        let place = BackupPlace {
            organisation: organisation.clone(),
            source: source.clone(),
            backup: entry.id.clone(),
        };
        let looks_whole = folders.get(&place).is_some_and(|folder| has_all(folder, entry));
        if !looks_whole && !vault.is_whole(cx, &place).await? {
            damaged.insert(entry.id.clone());
        }
    }
    Ok(Survey { unnamed, damaged })
}

/// Says whether a folder has an object of the size of each part.
fn has_all(folder: &Folder, entry: &IndexEntry) -> bool {
    let mut sizes: Vec<u64> = folder.objects.iter().map(|object| object.bytes).collect();
    folder.has_manifest
        && entry.parts.iter().all(|part| {
            let found = sizes.iter().position(|size| *size == part.stored_bytes);
            found.map(|found| sizes.swap_remove(found)).is_some()
        })
}

/// By the storage's clock and by the time in the id: either alone may be wrong.
fn is_past_grace(now: Timestamp, backup: &BackupId, modified_secs: i64) -> bool {
    let age = now.duration_since(backup.time());
    let stored_age = SignedDuration::from_secs(now.as_second() - modified_secs);
    age > GRACE && stored_age > GRACE
}

/// Removes what the plan says. Returns how many bytes that was.
pub async fn prune(cx: &Cx, vault: &Vault, plan: &PrunePlan) -> Result<u64, EngineError> {
    let mut bytes = 0;
    for (name, size) in &plan.objects {
        cx.check()?;
        vault.delete_orphan(cx, name).await?;
        bytes += size;
    }
    Ok(bytes)
}
