//! How long a restore should take.

use backstay_control::OfSource;
use backstay_engine::vault::{BackupPlace, Vault};
use jiff::SignedDuration;
use serde::{Deserialize, Serialize};

use crate::installation::Installation;

/// How long a restore should take, from the one before.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Expected {
    pub(crate) takes: SignedDuration,
    /// Of which backup that was, and how long it took.
    pub(crate) backup: String,
    pub(crate) took: SignedDuration,
}

/// Says how long a restore of a backup should take that has so many plain bytes.
pub(crate) async fn expected(
    app: &Installation,
    vault: &Vault,
    place: &BackupPlace,
    plain_bytes: u64,
) -> anyhow::Result<Option<Expected>> {
    let (organisation, source) = (&place.organisation, &place.source);
    let of = OfSource { organisation: organisation.as_str(), source: source.as_str() };
    let Some(past) = app.catalog.last_restore(of).await? else { return Ok(None) };
    let listing = vault.list(&app.cx, organisation, source).await?;
    let Some(then) = listing.backups.iter().find(|entry| entry.id.as_str() == past.backup) else {
        return Ok(None);
    };
    // What takes time grows with the bytes; a small backup has its fixed costs all the same.
    let growth = plain_bytes.max(1) as f64 / then.plain_bytes.max(1) as f64;
    let takes = past.took.as_secs_f64() * growth.max(1.0);
    let takes = SignedDuration::try_from_secs_f64(takes).unwrap_or(past.took);
    Ok(Some(Expected { takes, backup: past.backup, took: past.took }))
}
