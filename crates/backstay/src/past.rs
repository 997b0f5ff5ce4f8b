//! The newest restore of a source, and how long another should take.

use backstay_engine::vault::Vault;
use jiff::SignedDuration;
use serde::{Deserialize, Serialize};

use crate::config::SourceConfig;
use crate::installation::Installation;

/// The newest restore of a source that went well.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Past {
    /// Of which backup.
    pub(crate) backup: String,
    pub(crate) took: SignedDuration,
    /// Of that backup.
    plain_bytes: u64,
}

impl Past {
    /// Looks for it; none as well if its backup is gone.
    pub(crate) async fn of(
        app: &Installation,
        source: &SourceConfig,
        vault: &Vault,
    ) -> anyhow::Result<Option<Self>> {
        let Some(past) = app.catalog.last_restore(source.as_job()).await? else { return Ok(None) };
        let listing = vault.list(&app.cx, &source.organisation, &source.name).await?;
        let then = listing.backups.into_iter().find(|entry| entry.id.as_str() == past.backup);
        Ok(then.map(|then| Self {
            backup: past.backup,
            took: past.took,
            plain_bytes: then.plain_bytes,
        }))
    }

    /// Says how long a restore should take of a backup with so many plain bytes.
    pub(crate) fn expected(&self, plain_bytes: u64) -> SignedDuration {
        // What takes time grows with the bytes; a small backup has its fixed costs all the same.
        let growth = plain_bytes.max(1) as f64 / self.plain_bytes.max(1) as f64;
        let takes = self.took.as_secs_f64() * growth.max(1.0);
        SignedDuration::try_from_secs_f64(takes).unwrap_or(self.took)
    }
}
