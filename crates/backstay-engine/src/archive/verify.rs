//! Proving that an archive holds what it says: every file is read, opened, and its rows compared.

use super::ArchiveSpec;
use super::digest;
use super::known::Segment;
use crate::cx::Cx;
use crate::error::EngineError;
use crate::vault::Vault;

/// What a verification read.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct VerifiedArchive {
    /// Files.
    pub files: usize,
    /// Their rows.
    pub rows: u64,
    /// Their bytes on the storage.
    pub stored_bytes: u64,
}

/// Reads and compares all files of a segment.
pub async fn verify(
    cx: &Cx,
    vault: &Vault,
    spec: &ArchiveSpec,
    segment: &Segment,
) -> Result<VerifiedArchive, EngineError> {
    let mut verified = VerifiedArchive::default();
    for (index, (file, part)) in
        segment.content.files.iter().zip(&segment.manifest.parts).enumerate()
    {
        let fetched = segment.fetch(cx, vault, spec, index).await?;
        let damaged = |finding: String| EngineError::DamagedPart {
            backup: segment.place.backup.clone(),
            part: part.name.clone(),
            finding,
        };
        let found = fetched.own_digests(cx).await.map_err(|error| damaged(error.to_string()))?;
        if found.len() as u64 != file.rows {
            return Err(damaged(format!("it has {} rows of {}", found.len(), file.rows)));
        }
        if digest::text(digest::sum(&found)) != file.digest {
            return Err(damaged("its rows are not those that were archived".to_owned()));
        }
        verified.files += 1;
        verified.rows += file.rows;
        verified.stored_bytes += part.stored.bytes();
    }
    Ok(verified)
}
