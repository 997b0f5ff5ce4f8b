//! Backups of one text that is in memory already, and reading it back.

use backstay_format::{IndexEntry, MediaType};

use crate::cx::Cx;
use crate::error::EngineError;
use crate::part::{CaptureReport, PartReader};
use crate::source::{SourceError, text_part};
use crate::vault::{BackupPlace, Draft, Vault};
use crate::verify::settle;

/// No document is larger, in bytes.
pub const MAX_BYTES: u64 = 64 << 20;

/// Makes a backup with this text as its only part. When this returns, it is durable and proven to be readable.
pub async fn back_up(
    cx: &Cx,
    vault: &Vault,
    draft: Draft,
    (name, media_type, text): (&str, MediaType, String),
) -> Result<IndexEntry, EngineError> {
    let mut writer = vault.begin(cx, draft).await?;
    match writer.write_part(cx, text_part(name, media_type, text)).await {
        Ok(()) => writer.commit(cx, CaptureReport::default()).await,
        Err(error) => {
            writer.discard(&cx.for_cleanup()).await;
            Err(error)
        }
    }
}

/// Reads the only part of a backup; all of it is proven.
pub async fn read(cx: &Cx, vault: &Vault, place: &BackupPlace) -> Result<Vec<u8>, EngineError> {
    let manifest = vault.manifest(cx, place).await?;
    let details = vault.details(&manifest)?;
    if let Some(part) = manifest.parts.first().filter(|part| part.plain_bytes > MAX_BYTES) {
        let finding = format!("it has {} bytes, more than {MAX_BYTES}", part.plain_bytes);
        let (backup, part) = (manifest.backup.clone(), part.name.clone());
        return Err(EngineError::DamagedPart { backup, part, finding });
    }
    let (plain, measuring) = vault.read_part(cx, &manifest, &details, 0)?;
    let gathered = gather(plain).await;
    Ok(settle(&manifest.backup, gathered, measuring).await?.0)
}

async fn gather(mut plain: PartReader) -> Result<Vec<u8>, SourceError> {
    let mut bytes = Vec::new();
    while let Some(piece) = plain.next().await? {
        bytes.extend_from_slice(&piece);
    }
    Ok(bytes)
}
