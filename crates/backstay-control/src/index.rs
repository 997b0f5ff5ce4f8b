//! What backups were seen last in each vault (the column `storage` has its id): for the time when a storage does not answer, and
//! for lists of all that there is. Every listing of a source corrects it.

use std::collections::BTreeMap;

use backstay_format::{BackupId, IndexEntry};
use sea_orm::{QueryResult, Value};

use crate::catalog::{column, unreadable};
use crate::{Catalog, CatalogError};

const UPSERT: &str = "INSERT INTO backups (storage, source, backup, started_at, entry) VALUES ($1, $2, $3, $4, $5) \
     ON CONFLICT (storage, source, backup) DO UPDATE SET started_at = excluded.started_at, entry = excluded.entry";
const DELETE: &str = "DELETE FROM backups WHERE storage = $1 AND source = $2 AND backup = $3";

impl Catalog {
    /// Keeps what a listing of a source found, in the place of what was known before.
    pub async fn keep_listing(
        &self,
        (vault, source): (&str, &str),
        backups: &[IndexEntry],
    ) -> Result<(), CatalogError> {
        let select = "SELECT backup, entry FROM backups WHERE storage = $1 AND source = $2";
        let rows =
            self.query_all("looked for backups", select, [vault.into(), source.into()]).await?;
        // What is there and what is to be, of each: two that do this at once go through them in the same order.
        let mut both: BTreeMap<String, (Option<String>, Option<&IndexEntry>)> = BTreeMap::new();
        for row in &rows {
            both.entry(text(row, "backup")?).or_default().0 = Some(text(row, "entry")?);
        }
        for entry in backups {
            both.entry(entry.id.to_string()).or_default().1 = Some(entry);
        }
        let change = |(backup, (before, now)): (String, (Option<String>, Option<&IndexEntry>))| {
            let Some(entry) = now else {
                return Some((DELETE, vec![vault.into(), source.into(), backup.into()]));
            };
            let is_known = before.is_some_and(|before| before == as_text(entry));
            (!is_known).then(|| (UPSERT, row_of((vault, source), entry)))
        };
        let changes: Vec<_> = both.into_iter().filter_map(change).collect();
        if changes.is_empty() {
            return Ok(());
        }
        self.together("kept a listing", changes).await
    }

    /// Adds a backup that was just made to what is known of its source.
    pub async fn add_to_listing(
        &self,
        named: (&str, &str),
        made: &IndexEntry,
    ) -> Result<(), CatalogError> {
        self.together("kept a listing", vec![(UPSERT, row_of(named, made))]).await
    }

    /// Drops what was known of a vault where it cannot be read any more.
    pub async fn drop_unreadable_listings(&self, vault: &str) -> Result<(), CatalogError> {
        let select = "SELECT source, backup, entry FROM backups WHERE storage = $1";
        let rows = self.query_all("looked for backups", select, [vault.into()]).await?;
        for row in rows.iter().filter(|row| entry(row).is_err()) {
            let values = [vault.into(), text(row, "source")?.into(), text(row, "backup")?.into()];
            self.execute("dropped what it knew of a backup", DELETE, values).await?;
        }
        Ok(())
    }

    /// Returns the sources of which backups were seen in a vault, by name.
    pub async fn listed_sources(&self, vault: &str) -> Result<Vec<String>, CatalogError> {
        // From one source to the next by the index: each may have thousands of backups.
        let select = "WITH RECURSIVE seen(source) AS ( \
                          SELECT MIN(source) FROM backups WHERE storage = $1 \
                          UNION ALL SELECT (SELECT MIN(source) FROM backups WHERE storage = $1 AND source > seen.source) \
                          FROM seen WHERE seen.source IS NOT NULL) \
                      SELECT source FROM seen WHERE source IS NOT NULL \
                      UNION SELECT source FROM gone WHERE storage = $1 AND why = 'lost'";
        let rows = self.query_all("looked for sources", select, [vault.into()]).await?;
        let mut sources: Vec<String> =
            rows.iter().map(|row| text(row, "source")).collect::<Result<_, _>>()?;
        // Not by the database: a union has no order, and a collation of its own would not be that of names.
        sources.sort_unstable();
        Ok(sources)
    }

    /// Returns the backups of a source as they were seen last, newest first.
    pub async fn known_backups(
        &self,
        vault: &str,
        source: &str,
    ) -> Result<Vec<IndexEntry>, CatalogError> {
        let select = "SELECT entry FROM backups WHERE storage = $1 AND source = $2 \
                      ORDER BY started_at DESC, backup DESC";
        let rows =
            self.query_all("looked for backups", select, [vault.into(), source.into()]).await?;
        rows.iter().map(entry).collect()
    }

    /// Returns the newest backups of all sources in a vault as they were seen last, newest first, and of each whether objects of
    /// it were gone then.
    pub async fn newest_backups(
        &self,
        vault: &str,
        limit: u32,
    ) -> Result<Vec<(IndexEntry, bool)>, CatalogError> {
        let select = "SELECT entry, EXISTS (SELECT 1 FROM gone WHERE gone.storage = backups.storage AND gone.source = backups.source \
                      AND gone.backup = backups.backup AND why = 'damaged') AS is_damaged \
                      FROM backups WHERE storage = $1 ORDER BY started_at DESC, backup DESC LIMIT $2";
        let values = [vault.into(), i64::from(limit).into()];
        let rows = self.query_all("looked for backups", select, values).await?;
        rows.iter().map(|row| Ok((entry(row)?, column(row, "backups", "is_damaged")?))).collect()
    }

    /// Returns of which sources a backup of this id was seen last, and in which vaults.
    pub async fn seen_of(&self, id: &BackupId) -> Result<Vec<(String, String)>, CatalogError> {
        let select = "SELECT storage, source FROM backups WHERE backup = $1";
        let rows = self.query_all("looked for a backup", select, [id.as_str().into()]).await?;
        rows.iter().map(|row| Ok((text(row, "storage")?, text(row, "source")?))).collect()
    }
}

fn row_of((vault, source): (&str, &str), entry: &IndexEntry) -> Vec<Value> {
    vec![
        vault.into(),
        source.into(),
        entry.id.as_str().into(),
        entry.started_at.as_microsecond().into(),
        as_text(entry).into(),
    ]
}

fn as_text(entry: &IndexEntry) -> String {
    serde_json::to_string(entry).expect("entries are plain values")
}

fn text(row: &QueryResult, name: &str) -> Result<String, CatalogError> {
    column(row, "backups", name)
}

fn entry(row: &QueryResult) -> Result<IndexEntry, CatalogError> {
    serde_json::from_str(&text(row, "entry")?).map_err(|_| unreadable("backups", "entry"))
}
