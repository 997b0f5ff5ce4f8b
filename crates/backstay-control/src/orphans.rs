//! Backups that are not on their storage any more, or not wholly: removed by somebody here, or orphaned.

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

/// The orphaned backups of a source on a storage.
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
        (storage, source): (&str, &str),
        backups: &[BackupId],
        now: Timestamp,
    ) -> Result<(), CatalogError> {
        let upsert = "INSERT INTO gone (storage, source, backup, why, since) VALUES ($1, $2, $3, $4, $5) \
                      ON CONFLICT (storage, source, backup) DO UPDATE SET why = excluded.why, since = excluded.since, entry = NULL";
        for backup in backups {
            let values = [
                storage.into(),
                source.into(),
                backup.as_str().into(),
                REMOVED.into(),
                now.as_microsecond().into(),
            ];
            self.execute("remembered what is removed", upsert, values).await?;
        }
        Ok(())
    }

    /// Returns which of these backups nobody here removed.
    pub async fn not_removed(
        &self,
        (storage, source): (&str, &str),
        mut backups: Vec<IndexEntry>,
    ) -> Result<Vec<IndexEntry>, CatalogError> {
        let select = "SELECT backup FROM gone WHERE storage = $1 AND source = $2 AND why = $3";
        let values = [storage.into(), source.into(), REMOVED.into()];
        let rows = self.query_all("looked for what was removed", select, values).await?;
        let removed: BTreeSet<String> =
            rows.iter().map(|row| column(row, "gone", "backup")).collect::<Result<_, _>>()?;
        backups.retain(|entry| !removed.contains(entry.id.as_str()));
        Ok(backups)
    }

    /// Remembers a backup that was listed, is definitely not there any more, and was removed by nobody here.
    pub async fn mark_lost(
        &self,
        (storage, source): (&str, &str),
        entry: &IndexEntry,
        now: Timestamp,
    ) -> Result<(), CatalogError> {
        let upsert = "INSERT INTO gone (storage, source, backup, why, since, entry) VALUES ($1, $2, $3, $4, $5, $6) \
                      ON CONFLICT (storage, source, backup) DO UPDATE SET why = excluded.why, entry = excluded.entry \
                      WHERE gone.why = 'damaged'";
        let text = serde_json::to_string(entry).expect("entries are plain values");
        let values = [
            storage.into(),
            source.into(),
            entry.id.as_str().into(),
            LOST.into(),
            now.as_microsecond().into(),
            text.into(),
        ];
        self.execute("remembered a lost backup", upsert, values).await.map(drop)
    }

    /// Remembers which backups that are there lack objects; of the others that are there, none does any more.
    pub async fn mark_damaged(
        &self,
        (storage, source): (&str, &str),
        damaged: &BTreeSet<BackupId>,
        now: Timestamp,
    ) -> Result<(), CatalogError> {
        let delete = "DELETE FROM gone WHERE storage = $1 AND source = $2 AND why = $3";
        let values = [storage.into(), source.into(), DAMAGED.into()];
        self.execute("forgot what came back", delete, values).await?;
        let upsert = "INSERT INTO gone (storage, source, backup, why, since) VALUES ($1, $2, $3, $4, $5) \
                      ON CONFLICT (storage, source, backup) DO NOTHING";
        for backup in damaged {
            let values = [
                storage.into(),
                source.into(),
                backup.as_str().into(),
                DAMAGED.into(),
                now.as_microsecond().into(),
            ];
            self.execute("remembered a damaged backup", upsert, values).await?;
        }
        Ok(())
    }

    /// Forgets that backups were gone that are listed again.
    pub async fn came_back(
        &self,
        (storage, source): (&str, &str),
        backups: &[IndexEntry],
    ) -> Result<(), CatalogError> {
        let delete =
            "DELETE FROM gone WHERE storage = $1 AND source = $2 AND backup = $3 AND why = $4";
        for entry in backups {
            let values = [storage.into(), source.into(), entry.id.as_str().into(), LOST.into()];
            self.execute("forgot what came back", delete, values).await?;
        }
        Ok(())
    }

    /// Returns the orphaned backups of a source on a storage.
    pub async fn orphans(&self, storage: &str, source: &str) -> Result<Orphans, CatalogError> {
        let select =
            "SELECT backup, why, entry FROM gone WHERE storage = $1 AND source = $2 AND why <> $3";
        let values = [storage.into(), source.into(), REMOVED.into()];
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
