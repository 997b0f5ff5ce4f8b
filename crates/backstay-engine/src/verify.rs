//! Proving that a backup can be restored: every byte is read, authenticated and compared.

use backstay_format::BackupId;

use crate::cx::Cx;
use crate::error::EngineError;
use crate::event::Event;
use crate::part::{PartError, PartReader};
use crate::pipeline::{self, Measuring};
use crate::source::SourceError;
use crate::vault::{BackupPlace, Vault};

/// What a verification read.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Verified {
    /// Parts.
    pub parts: usize,
    /// Plain bytes of all parts.
    pub plain_bytes: u64,
    /// Their bytes on the storage.
    pub stored_bytes: u64,
}

/// Reads and authenticates every byte of a backup.
pub async fn verify(cx: &Cx, vault: &Vault, place: &BackupPlace) -> Result<Verified, EngineError> {
    let manifest = vault.manifest(cx, place).await?;
    let details = vault.details(&manifest)?;
    let mut verified = Verified::default();
    for (index, part) in manifest.parts.iter().enumerate() {
        cx.event(Event::PartStarted {
            part: part.name.to_string(),
            estimate_bytes: Some(part.plain_bytes),
        });
        let (plain, measuring) = vault.read_part(cx, &manifest, &details, index)?;
        let drained = drain(plain).await;
        let ((), measured) = settle(&manifest.backup, drained, measuring).await?;
        verified.parts += 1;
        verified.plain_bytes += measured.plain_bytes;
        verified.stored_bytes += measured.stored_bytes;
    }
    Ok(verified)
}

async fn drain(mut plain: PartReader) -> Result<(), SourceError> {
    while plain.next().await?.is_some() {}
    Ok(())
}

/// Waits for both ends of a part that is read: the decoder knows best what is wrong with its bytes.
pub(crate) async fn settle<T>(
    backup: &BackupId,
    taken: Result<T, SourceError>,
    measuring: Measuring,
) -> Result<(T, pipeline::Measured), EngineError> {
    let measured = pipeline::join("decoder", measuring).await.map_err(|error| match error {
        EngineError::Part(PartError::Refused { part, finding }) => {
            EngineError::DamagedPart { backup: backup.clone(), part, finding }
        }
        other => other,
    });
    match (taken, measured) {
        (_, Err(error)) if !matches!(error, EngineError::ReaderGone) => Err(error),
        (Err(error), _) => Err(error.into()),
        (Ok(taken), measured) => Ok((taken, measured?)),
    }
}
