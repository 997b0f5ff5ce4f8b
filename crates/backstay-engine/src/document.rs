//! Backups of one text that is in memory already, and reading it back.

use backstay_format::{Codec, Encryption, IndexEntry, MediaType, Part};
use zeroize::Zeroizing;

use crate::cx::Cx;
use crate::error::EngineError;
use crate::part::{CaptureReport, PartReader};
use crate::source::{SourceError, text_part};
use crate::vault::{BackupPlace, Draft, Vault};
use crate::verify::settle;

/// No document is larger, in bytes.
pub const MAX_BYTES: u64 = 64 << 20;

/// Makes a sealed backup with this text as its only part. When this returns, it is durable and proven to be readable.
pub async fn back_up(
    cx: &Cx,
    vault: &Vault,
    draft: Draft,
    (name, media_type, text): (&str, MediaType, String),
) -> Result<IndexEntry, EngineError> {
    let bytes = text.len() as u64;
    if bytes > MAX_BYTES {
        return Err(EngineError::TooLarge { bytes, most: MAX_BYTES });
    }
    let mut writer = vault.begin(cx, Draft { sealed: true, ..draft }).await?;
    match writer.write_part(cx, text_part(name, media_type, text)).await {
        Ok(()) => writer.commit(cx, CaptureReport::default()).await,
        Err(error) => {
            writer.discard(&cx.for_cleanup()).await;
            Err(error)
        }
    }
}

/// Reads the only part of a sealed backup; all of it is proven. What is not sealed anybody may have written.
pub async fn read(
    cx: &Cx,
    vault: &Vault,
    place: &BackupPlace,
) -> Result<Zeroizing<Vec<u8>>, EngineError> {
    let manifest = vault.manifest(cx, place).await?;
    let is_sealed = |part: &Part| part.codecs.contains(&Codec::Sealed);
    if manifest.encryption == Encryption::None || !manifest.parts.iter().all(is_sealed) {
        return Err(EngineError::Unsealed { backup: place.backup.clone() });
    }
    let details = vault.details(&manifest)?;
    if let Some(part) = manifest.parts.first().filter(|part| part.plain_bytes > MAX_BYTES) {
        return Err(EngineError::TooLarge { bytes: part.plain_bytes, most: MAX_BYTES });
    }
    let (plain, measuring) = vault.read_part(cx, &manifest, &details, 0)?;
    let gathered = gather(plain).await;
    Ok(settle(&manifest.backup, gathered, measuring).await?.0)
}

async fn gather(mut plain: PartReader) -> Result<Zeroizing<Vec<u8>>, SourceError> {
    let mut bytes = Zeroizing::new(Vec::new());
    while let Some(piece) = plain.next().await? {
        bytes.extend_from_slice(&piece);
    }
    Ok(bytes)
}
