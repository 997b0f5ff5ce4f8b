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
/// backups which cannot be read, plans nothing.
pub async fn plan_forget(
    cx: &Cx,
    vault: &Vault,
    organisation: &Slug,
    source: &Slug,
    rules: &Rules,
) -> Result<ForgetPlan, EngineError> {
    let listing = vault.list(cx, organisation, source).await?;
    if let Some(unusable) = listing.unusable.into_iter().next() {
        return Err(unusable.error);
    }
    let verdicts = retention::plan(&listing.backups, rules, cx.now())?;
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

/// Finds the objects of an organisation that no manifest names.
pub async fn plan_prune(
    cx: &Cx,
    vault: &Vault,
    organisation: &Slug,
) -> Result<PrunePlan, EngineError> {
    Ok(unnamed(cx.now(), &folders(vault.objects(cx, organisation, None).await?)))
}

/// What lies in the folder of a backup.
#[derive(Debug, Default)]
struct Folder {
    has_manifest: bool,
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
        folder.objects.push(object);
    }
    folders
}

/// What lies beside a manifest is the manifest's business: a damaged one may name it.
fn unnamed(now: Timestamp, folders: &BTreeMap<BackupPlace, Folder>) -> PrunePlan {
    let mut plan = PrunePlan::default();
    for (place, folder) in folders.iter().filter(|(_, folder)| !folder.has_manifest) {
        for object in &folder.objects {
            if is_past_grace(now, &place.backup, object.modified_secs) {
                plan.objects.push((object.name.clone(), object.bytes));
            } else {
                plan.too_young += 1;
            }
        }
    }
    plan
}

/// What a source has in the vault that does not fit together.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Survey {
    /// What no manifest names.
    pub unnamed: PrunePlan,
    /// Backups of which objects are definitely gone.
    pub orphaned: BTreeSet<BackupId>,
}

/// Compares what lies in the vault with what manifests name, of one source (V36 to V38), and writes down which backups are
/// orphaned; those that came back are not any more. Only while nobody else works on the source.
pub async fn survey(
    cx: &Cx,
    vault: &Vault,
    organisation: &Slug,
    source: &Slug,
) -> Result<Survey, EngineError> {
    let folders = folders(vault.objects(cx, organisation, Some(source)).await?);
    let listing = vault.list(cx, organisation, source).await?;
    let mut survey = Survey { unnamed: unnamed(cx.now(), &folders), ..Survey::default() };
    let mut is_changed = false;
    for entry in &listing.backups {
        let place = BackupPlace {
            organisation: organisation.clone(),
            source: source.clone(),
            backup: entry.id.clone(),
        };
        let looks_whole = folders.get(&place).is_some_and(|folder| has_all(folder, entry));
        // A list may be behind: only what was asked for by name is definitely not there.
        let is_orphaned = !looks_whole && !vault.is_whole(cx, &place).await?;
        is_changed |= is_orphaned != entry.orphaned;
        if is_orphaned {
            survey.orphaned.insert(entry.id.clone());
        }
    }
    if is_changed {
        vault.mark_orphaned(cx, organisation, source, &survey.orphaned).await?;
    }
    Ok(survey)
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
