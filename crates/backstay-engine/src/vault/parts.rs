//! Reading parts back: many ranged requests ahead, one authenticated stream out.

use backstay_format::{BackupFile, Binding, Details, Manifest, Part, Sha256, StoredPart};
use futures_util::{StreamExt as _, TryStreamExt as _};

use super::{BackupPlace, Vault};
use crate::cx::Cx;
use crate::error::EngineError;
use crate::event::Event;
use crate::part::{PartError, PartReader, PartSpec, PartWriter, part_pipe};
use crate::pipeline::{self, Expected, Measured, Measuring};
use crate::store::Store;

/// Bytes asked for at a time.
const RANGE_BYTES: u64 = 4 << 20;
/// Requests under way at a time: with [`RANGE_BYTES`], 16 MiB.
const RANGES_AHEAD: usize = 4;

impl Vault {
    /// Opens a part: its plain bytes, which end cleanly only if all of them are proven.
    pub fn read_part(
        &self,
        cx: &Cx,
        manifest: &Manifest,
        details: &Details,
        index: usize,
    ) -> Result<(PartReader, Measuring), EngineError> {
        let damaged = |finding: &str| EngineError::DamagedPart {
            backup: manifest.backup.clone(),
            part: "manifest".parse().expect("a legal part name"),
            finding: finding.to_owned(),
        };
        let part = manifest
            .parts
            .get(index)
            .ok_or_else(|| damaged("it has fewer parts than asked for"))?;
        let plain_sha256 = *details
            .plain_sha256
            .get(index)
            .ok_or_else(|| damaged("a digest of a part's plain bytes is missing"))?;
        Ok(self.open_part(cx, &place_of(manifest), part, plain_sha256))
    }

    /// Opens a part as its description says, wherever that comes from.
    pub(super) fn open_part(
        &self,
        cx: &Cx,
        place: &BackupPlace,
        part: &Part,
        plain_sha256: Sha256,
    ) -> (PartReader, Measuring) {
        let StoredPart::Whole { object, stored_bytes, stored_sha256 } = &part.stored;
        let measured = Measured {
            plain_bytes: part.plain_bytes,
            plain_sha256,
            stored_bytes: *stored_bytes,
            stored_sha256: *stored_sha256,
        };
        let binding = Binding::part(&self.id, &place.backup, object);
        let expected = Expected { codecs: part.codecs.clone(), binding, measured };
        let stored = self.stored(cx, place, part);
        pipeline::decode(cx, stored, self.keyring(), expected)
    }

    /// Opens a part as it lies in the vault; nothing is proven but its length.
    pub fn read_stored(&self, cx: &Cx, manifest: &Manifest, part: &Part) -> PartReader {
        self.stored(cx, &place_of(manifest), part)
    }

    fn stored(&self, cx: &Cx, place: &BackupPlace, part: &Part) -> PartReader {
        let StoredPart::Whole { object, stored_bytes, .. } = part.stored.clone();
        let spec = PartSpec {
            name: part.name.clone(),
            media_type: part.media_type,
            estimate_bytes: Some(part.plain_bytes),
        };
        let (writer, reader) = part_pipe(spec);
        let name = place.file(&BackupFile::Object(object)).to_string();
        let (store, cx) = (self.store.clone(), cx.clone());
        // Ends by itself when the reader goes away, and tells the reader how it ended.
        drop(tokio::spawn(async move { fetch(&cx, &store, (&name, stored_bytes), writer).await }));
        reader
    }
}

/// Reads an object in ranges, several ahead, in order.
async fn fetch(cx: &Cx, store: &Store, (name, bytes): (&str, u64), mut out: PartWriter) {
    let starts = (0..bytes).step_by(RANGE_BYTES as usize);
    let mut ranges = futures_util::stream::iter(starts)
        .map(|start| store.range(cx, name, start..(start + RANGE_BYTES).min(bytes)))
        .buffered(RANGES_AHEAD);
    loop {
        match ranges.try_next().await {
            Ok(Some(chunk)) => {
                cx.event(Event::Transferred { stored_bytes: chunk.len() as u64 });
                // A reader that left has an error of its own.
                if out.send(chunk).await.is_err() {
                    return;
                }
            }
            Ok(None) => return out.finish_async().await,
            Err(error) => {
                let part = out.part_name();
                let cause = Box::new(EngineError::from(error));
                return out.fail_async(PartError::Failed { part, cause }).await;
            }
        }
    }
}

/// Returns where the backup of a manifest lies.
pub(crate) fn place_of(manifest: &Manifest) -> BackupPlace {
    BackupPlace {
        organisation: manifest.organisation.clone(),
        source: manifest.source.clone(),
        backup: manifest.backup.clone(),
    }
}
