//! Forgetting backups by rule, and pruning what no manifest names.

use std::collections::{BTreeMap, BTreeSet};

use backstay_format::retention::{self, Rules, Verdict};
use backstay_format::{BackupFile, BackupId, ParsedName, Slug};
use jiff::{SignedDuration, Timestamp};

use crate::cx::Cx;
use crate::error::EngineError;
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
    let objects = vault.objects(cx, organisation).await?;
    let mut folders: BTreeMap<BackupPlace, Vec<(String, u64, i64)>> = BTreeMap::new();
    let mut committed = BTreeSet::new();
    for object in objects {
        let ParsedName::Backup { organisation, source, backup, file } =
            ParsedName::parse(&object.name)
        else {
            continue;
        };
        let place = BackupPlace { organisation, source, backup };
        if file == BackupFile::Manifest {
            committed.insert(place.clone());
        }
        folders.entry(place).or_default().push((object.name, object.bytes, object.modified_secs));
    }
    let mut plan = PrunePlan::default();
    for (place, objects) in folders {
        // What lies beside a manifest is the manifest's business: a damaged one may name it.
        if committed.contains(&place) {
            continue;
        }
        for (name, bytes, modified_secs) in objects {
            if is_past_grace(cx.now(), &place.backup, modified_secs) {
                plan.objects.push((name, bytes));
            } else {
                plan.too_young += 1;
            }
        }
    }
    Ok(plan)
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
