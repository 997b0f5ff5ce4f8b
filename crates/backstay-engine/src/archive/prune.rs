//! Removing what an archive does not need: leftovers of killed runs, and rows that were kept long enough.

use std::collections::BTreeSet;

use backstay_format::BackupId;

use super::ArchiveSpec;
use super::known::segments;
use crate::cx::Cx;
use crate::error::EngineError;
use crate::forget;
use crate::vault::{BackupPlace, Vault};

/// What pruning would remove, or removed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PrunedArchive {
    /// Segments whose newest row was kept long enough, with their rows.
    pub expired: Vec<(BackupId, u64)>,
    /// Objects that no segment names, with their sizes.
    pub objects: Vec<(String, u64)>,
}

/// Works out what is to be removed.
pub async fn plan_prune(
    cx: &Cx,
    vault: &Vault,
    spec: &ArchiveSpec,
) -> Result<PrunedArchive, EngineError> {
    let mut plan = PrunedArchive::default();
    if let Some(oldest) = spec.keep.and_then(|keep| cx.now().checked_sub(keep).ok()) {
        for segment in segments(cx, vault, &spec.organisation, &spec.name).await? {
            if segment.content.files.iter().all(|file| file.newest < oldest) {
                plan.expired.push((segment.place.backup.clone(), segment.content.rows()));
            }
        }
    }
    let place = (&spec.organisation, &spec.name);
    plan.objects = forget::plan_prune(cx, vault, place, &BTreeSet::new()).await?.objects;
    Ok(plan)
}

/// Removes what the plan says.
pub async fn prune(
    cx: &Cx,
    vault: &Vault,
    spec: &ArchiveSpec,
    plan: &PrunedArchive,
) -> Result<(), EngineError> {
    for (segment, _) in &plan.expired {
        cx.check()?;
        vault.remove(cx, &place(spec, segment)).await?;
    }
    for (name, _) in &plan.objects {
        cx.check()?;
        vault.delete_orphan(cx, name).await?;
    }
    Ok(())
}

fn place(spec: &ArchiveSpec, segment: &BackupId) -> BackupPlace {
    BackupPlace {
        organisation: spec.organisation.clone(),
        source: spec.name.clone(),
        backup: segment.clone(),
    }
}
