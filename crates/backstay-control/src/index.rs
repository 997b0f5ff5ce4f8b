//! What backups were seen last, for the time when a storage does not answer. Every listing writes it anew.

use backstay_format::IndexEntry;

use crate::{Catalog, CatalogError};

impl Catalog {
    /// Keeps what a listing of a source found, newest first, in the place of what was known before.
    pub async fn keep_listing(
        &self,
        storage: &str,
        source: &str,
        backups: &[IndexEntry],
    ) -> Result<(), CatalogError> {
        let upsert = "INSERT INTO listings (storage, source, backups) VALUES ($1, $2, $3) \
                      ON CONFLICT (storage, source) DO UPDATE SET backups = excluded.backups";
        let text = serde_json::to_string(backups).expect("entries are plain values");
        self.execute("kept a listing", upsert, [storage.into(), source.into(), text.into()])
            .await
            .map(drop)
    }

    /// Forgets what was seen on a storage: another vault has its name now.
    pub async fn forget_listings(&self, storage: &str) -> Result<(), CatalogError> {
        for delete in
            ["DELETE FROM listings WHERE storage = $1", "DELETE FROM gone WHERE storage = $1"]
        {
            self.execute("forgot listings", delete, [storage.into()]).await?;
        }
        Ok(())
    }

    /// Returns the backups of a source as they were seen last, newest first.
    pub async fn known_backups(
        &self,
        storage: &str,
        source: &str,
    ) -> Result<Vec<IndexEntry>, CatalogError> {
        let select = "SELECT backups FROM listings WHERE storage = $1 AND source = $2";
        let row =
            self.query_one("looked for backups", select, [storage.into(), source.into()]).await?;
        let unreadable = || CatalogError::Unreadable { name: "listings".to_owned() };
        let Some(row) = row else { return Ok(Vec::new()) };
        let text: String = row.try_get("", "backups").map_err(|_| unreadable())?;
        serde_json::from_str(&text).map_err(|_| unreadable())
    }
}
