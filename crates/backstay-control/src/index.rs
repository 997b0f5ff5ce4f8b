//! What backups were seen last in each vault (the column `storage` has its id), for the time when a storage does not answer.
//! Every listing writes it anew.

use backstay_format::IndexEntry;

use crate::catalog::column;
use crate::{Catalog, CatalogError};

impl Catalog {
    /// Keeps what a listing of a source found, newest first, in the place of what was known before.
    pub async fn keep_listing(
        &self,
        vault: &str,
        source: &str,
        backups: &[IndexEntry],
    ) -> Result<(), CatalogError> {
        let upsert = "INSERT INTO listings (storage, source, backups) VALUES ($1, $2, $3) \
                      ON CONFLICT (storage, source) DO UPDATE SET backups = excluded.backups";
        let text = serde_json::to_string(backups).expect("entries are plain values");
        self.execute("kept a listing", upsert, [vault.into(), source.into(), text.into()])
            .await
            .map(drop)
    }

    /// Drops what was known of a vault's sources where it cannot be read any more.
    pub async fn drop_unreadable_listings(&self, vault: &str) -> Result<(), CatalogError> {
        for source in self.listed_sources(vault).await? {
            if let Err(CatalogError::Unreadable { .. }) = self.known_backups(vault, &source).await {
                let delete = "DELETE FROM listings WHERE storage = $1 AND source = $2";
                self.execute("dropped a listing", delete, [vault.into(), source.into()]).await?;
            }
        }
        Ok(())
    }

    /// Adds a backup that was just made to what is known of its source.
    pub async fn add_to_listing(
        &self,
        (vault, source): (&str, &str),
        made: &IndexEntry,
    ) -> Result<(), CatalogError> {
        let mut known = self.known_backups(vault, source).await?;
        known.retain(|entry| entry.id != made.id);
        known.insert(0, made.clone());
        self.keep_listing(vault, source, &known).await
    }

    /// Returns the sources of which backups were seen in a vault.
    pub async fn listed_sources(&self, vault: &str) -> Result<Vec<String>, CatalogError> {
        let select = "SELECT source FROM listings WHERE storage = $1 \
                      UNION SELECT source FROM gone WHERE storage = $1 AND why = 'lost'";
        let rows = self.query_all("looked for sources", select, [vault.into()]).await?;
        rows.iter().map(|row| column(row, "listings", "source")).collect()
    }

    /// Returns the backups of a source as they were seen last, newest first.
    pub async fn known_backups(
        &self,
        vault: &str,
        source: &str,
    ) -> Result<Vec<IndexEntry>, CatalogError> {
        let select = "SELECT backups FROM listings WHERE storage = $1 AND source = $2";
        let row =
            self.query_one("looked for backups", select, [vault.into(), source.into()]).await?;
        let unreadable = || CatalogError::Unreadable { name: "listings".to_owned() };
        let Some(row) = row else { return Ok(Vec::new()) };
        let text: String = row.try_get("", "backups").map_err(|_| unreadable())?;
        serde_json::from_str(&text).map_err(|_| unreadable())
    }
}
