//! Backups that are not in their vault any more, or not wholly: removed by somebody here, or orphaned. Vaults are named by their
//! ids (in the column `storage`): storages of one name may be different places for different servers.

use std::collections::BTreeSet;

use backstay_format::{BackupId, IndexEntry};
use jiff::{SignedDuration, Timestamp};

use crate::catalog::column;
use crate::{Catalog, CatalogError};

/// How long this is remembered of what is gone altogether.
const REMEMBERED: SignedDuration = SignedDuration::from_hours(90 * 24);
/// Why something is not there: somebody here removed it; all of it is gone; objects of it are gone.
const REMOVED: &str = "removed";
const LOST: &str = "lost";
const DAMAGED: &str = "damaged";

/// The orphaned backups of a source in a vault.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Orphans {
    /// Those of which nothing is listed any more, as they were listed last.
    pub lost: Vec<IndexEntry>,
    /// Those of which objects are gone.
    pub damaged: BTreeSet<BackupId>,
}

impl Catalog {
    /// Remembers that backups are about to be removed: that they are not there any more is no loss.
    pub async fn will_remove(
        &self,
        named: (&str, &str),
        backups: &[BackupId],
        now: Timestamp,
    ) -> Result<(), CatalogError> {
        let instead = "UPDATE SET why = excluded.why, since = excluded.since, entry = NULL";
        for backup in backups {
            self.remember(named, backup, (REMOVED, None, now), instead).await?;
        }
        Ok(())
    }

    /// Remembers a backup that is gone, and what is done instead if it is remembered already.
    async fn remember(
        &self,
        (vault, source): (&str, &str),
        backup: &BackupId,
        (why, entry, since): (&str, Option<String>, Timestamp),
        instead: &str,
    ) -> Result<(), CatalogError> {
        let upsert = format!(
            "INSERT INTO gone (storage, source, backup, why, since, entry) VALUES ($1, $2, $3, $4, $5, $6) \
             ON CONFLICT (storage, source, backup) DO {instead}"
        );
        let values = [
            vault.into(),
            source.into(),
            backup.as_str().into(),
            why.into(),
            since.as_microsecond().into(),
            entry.into(),
        ];
        self.execute("remembered what is gone", &upsert, values).await.map(drop)
    }

    /// Returns which of these backups nobody here removed.
    pub async fn not_removed(
        &self,
        named: (&str, &str),
        mut backups: Vec<IndexEntry>,
    ) -> Result<Vec<IndexEntry>, CatalogError> {
        let removed = self.gone(named, REMOVED).await?;
        backups.retain(|entry| !removed.contains(entry.id.as_str()));
        Ok(backups)
    }

    /// Returns what is gone of a source for this reason.
    async fn gone(
        &self,
        (vault, source): (&str, &str),
        why: &str,
    ) -> Result<BTreeSet<String>, CatalogError> {
        let select = "SELECT backup FROM gone WHERE storage = $1 AND source = $2 AND why = $3";
        let values = [vault.into(), source.into(), why.into()];
        let rows = self.query_all("looked for what is gone", select, values).await?;
        rows.iter().map(|row| column(row, "gone", "backup")).collect()
    }

    /// Remembers a backup that was listed, is definitely not there any more, and was removed by nobody here.
    pub async fn mark_lost(
        &self,
        named: (&str, &str),
        entry: &IndexEntry,
        now: Timestamp,
    ) -> Result<(), CatalogError> {
        let text = serde_json::to_string(entry).expect("entries are plain values");
        let instead = "UPDATE SET why = excluded.why, entry = excluded.entry, since = excluded.since WHERE gone.why = 'damaged'";
        self.remember(named, &entry.id, (LOST, Some(text), now), instead).await
    }

    /// Remembers which backups that are there lack objects, and of which somebody saw that they do not.
    pub async fn mark_damaged(
        &self,
        named: (&str, &str),
        (damaged, whole): (&BTreeSet<BackupId>, &[BackupId]),
        now: Timestamp,
    ) -> Result<(), CatalogError> {
        for backup in damaged {
            self.remember(named, backup, (DAMAGED, None, now), "NOTHING").await?;
        }
        self.forget_gone(named, whole, DAMAGED).await
    }

    /// Forgets that backups were to be removed that are still there.
    pub async fn still_there(
        &self,
        named: (&str, &str),
        backups: &[BackupId],
    ) -> Result<(), CatalogError> {
        self.forget_gone(named, backups, REMOVED).await
    }

    /// Forgets that backups were gone that are listed again.
    pub async fn came_back(
        &self,
        named: (&str, &str),
        backups: &[BackupId],
    ) -> Result<(), CatalogError> {
        self.forget_gone(named, backups, LOST).await
    }

    async fn forget_gone(
        &self,
        (vault, source): (&str, &str),
        backups: &[BackupId],
        why: &str,
    ) -> Result<(), CatalogError> {
        let delete =
            "DELETE FROM gone WHERE storage = $1 AND source = $2 AND backup = $3 AND why = $4";
        let gone = self.gone((vault, source), why).await?;
        for backup in backups.iter().filter(|backup| gone.contains(backup.as_str())) {
            let values = [vault.into(), source.into(), backup.as_str().into(), why.into()];
            self.execute("forgot what is there", delete, values).await?;
        }
        Ok(())
    }

    /// Returns the orphaned backups of a source in a vault.
    pub async fn orphans(&self, vault: &str, source: &str) -> Result<Orphans, CatalogError> {
        let select =
            "SELECT backup, why, entry FROM gone WHERE storage = $1 AND source = $2 AND why <> $3";
        let values = [vault.into(), source.into(), REMOVED.into()];
        let mut orphans = Orphans::default();
        for row in self.query_all("looked for orphans", select, values).await? {
            let unreadable = || crate::catalog::unreadable("gone", "backup");
            let backup: String = column(&row, "gone", "backup")?;
            let entry: Option<String> = column(&row, "gone", "entry")?;
            match entry {
                Some(entry) => {
                    orphans.lost.push(serde_json::from_str(&entry).map_err(|_| unreadable())?);
                }
                None => drop(orphans.damaged.insert(backup.parse().map_err(|_| unreadable())?)),
            }
        }
        Ok(orphans)
    }

    /// Forgets what was gone for long enough.
    pub async fn tidy_orphans(&self, now: Timestamp) -> Result<(), CatalogError> {
        let delete = "DELETE FROM gone WHERE since < $1 AND why <> $2";
        let before = now.checked_sub(REMEMBERED).unwrap_or(Timestamp::MIN).as_microsecond();
        let values = [before.into(), DAMAGED.into()];
        self.execute("forgot what was gone for long", delete, values).await.map(drop)
    }
}
