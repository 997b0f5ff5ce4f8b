//! Writing a backup: parts first, the manifest last.

use backstay_format::{
    BackupFile, BackupId, Binding, Codec, Details, DetailsSection, Encryption, FORMAT_VERSION,
    ImportedFrom, IndexEntry, Manifest, Part, PartName, Slug, Status, StoredPart, Trigger,
    encode_manifest,
};
use jiff::{SignedDuration, Timestamp};

use super::{BackupPlace, Vault, random};
use crate::cx::Cx;
use crate::error::EngineError;
use crate::event::Event;
use crate::part::{CaptureReport, PartReader};
use crate::pipeline::{self, Encoding, Measuring};

/// Half of the time after which prune takes parts without a manifest for leftovers.
const LONG: SignedDuration = SignedDuration::from_hours(12);

/// What is known of a backup before it is read.
#[derive(Debug, Clone)]
pub struct Draft {
    /// Whose source.
    pub organisation: Slug,
    /// Which source.
    pub source: Slug,
    /// Its kind.
    pub source_kind: &'static str,
    /// What started the backup.
    pub trigger: Trigger,
    /// What the person who started it wrote.
    pub note: Option<String>,
    /// The machine.
    pub host: String,
    /// The label of the app.
    pub app: Option<String>,
    /// The label of the environment.
    pub environment: Option<String>,
    /// Whether it is sealed with the newest key.
    pub sealed: bool,
    /// Where the source is, for a restore on a bare machine.
    pub origin: Option<String>,
    /// zstd level.
    pub compression_level: i32,
    /// The dump of another program that the backup is made of, and when that was taken.
    pub imported: Option<(Box<ImportedFrom>, Timestamp)>,
}

/// A backup that is being written. Dropped without [`BackupWriter::commit`] it does not exist.
#[must_use = "a backup that is not committed does not exist"]
#[derive(Debug)]
pub struct BackupWriter {
    vault: Vault,
    draft: Draft,
    place: BackupPlace,
    encryption: Encryption,
    started_at: Timestamp,
    parts: Vec<Part>,
    details: Details,
}

impl Vault {
    /// Begins a backup. Nothing is written yet but the key's slot.
    pub async fn begin(&self, cx: &Cx, draft: Draft) -> Result<BackupWriter, EngineError> {
        let imported = draft.imported.clone();
        let started_at = imported.as_ref().map_or_else(|| cx.now(), |(_, taken_at)| *taken_at);
        let id = BackupId::new(started_at, random());
        if !id.as_str().starts_with(BackupId::BEGINNING) {
            return Err(EngineError::WrongClock { now: started_at });
        }
        let encryption = if draft.sealed {
            self.ensure_key_slot(cx).await?;
            Encryption::Sealed { key: self.keyring.newest()?.id.clone() }
        } else {
            Encryption::None
        };
        let place = BackupPlace {
            organisation: draft.organisation.clone(),
            source: draft.source.clone(),
            backup: id,
        };
        let details = Details {
            note: draft.note.clone(),
            origin: draft.origin.clone(),
            imported: imported.map(|(from, _)| from),
            ..Details::default()
        };
        Ok(BackupWriter {
            vault: self.clone(),
            draft,
            place,
            encryption,
            started_at,
            parts: Vec::new(),
            details,
        })
    }
}

impl Vault {
    /// Removes a backup that was not finished: the manifest first, should there be one.
    async fn take_back(&self, cx: &Cx, place: &BackupPlace) {
        let manifest = place.file(&BackupFile::Manifest);
        if self.store.delete(cx, manifest.as_str()).await.is_err() {
            // As long as it may be there, what it names must be, too.
            return;
        }
        let Ok(rest) = self.store.list(cx, &place.folder()).await else { return };
        for object in rest {
            drop(self.store.delete(cx, &object.name).await);
        }
    }
}

impl BackupWriter {
    /// Returns where the backup will lie.
    pub fn place(&self) -> &BackupPlace {
        &self.place
    }

    /// Writes one part and proves that it arrived.
    pub async fn write_part(&mut self, cx: &Cx, part: PartReader) -> Result<(), EngineError> {
        let spec = part.spec.clone();
        cx.event(Event::PartStarted {
            part: spec.name.to_string(),
            estimate_bytes: spec.estimate_bytes,
        });
        let level = (!spec.media_type.is_compressed()).then_some(self.draft.compression_level);
        let mut codecs = Vec::from_iter(level.map(|_| Codec::Zstd));
        if let Encryption::Sealed { .. } = self.encryption {
            codecs.push(Codec::Sealed);
        }
        let object = object_name(&spec.name, &codecs);
        let mut encoding = Encoding { level, sealing: None };
        if codecs.contains(&Codec::Sealed) {
            let binding = Binding::part(&self.vault.id, &self.place.backup, &object);
            encoding.sealing = Some((self.vault.keyring.newest()?.key.clone(), binding, random()));
        }
        let (stored, measuring) = pipeline::encode(cx, part, encoding);
        let name = self.place.file(&BackupFile::Object(object.clone())).to_string();
        let uploaded = self.upload(cx, &name, stored, spec.estimate_bytes).await;
        // The encoder knows best why a stream ended early.
        let measured = pipeline::join("encoder", measuring).await;
        let measured = match (uploaded, measured) {
            (Err(EngineError::Part(_)), Err(cause)) => return Err(cause),
            (Err(error), _) => return Err(error),
            (Ok(_), Err(cause)) => return Err(cause),
            (Ok(_), Ok(measured)) => measured,
        };
        cx.event(Event::PartFinished {
            part: spec.name.to_string(),
            plain_bytes: measured.plain_bytes,
            stored_bytes: measured.stored_bytes,
        });
        self.details.plain_sha256.push(measured.plain_sha256);
        self.parts.push(Part {
            name: spec.name,
            media_type: spec.media_type,
            codecs,
            plain_bytes: measured.plain_bytes,
            stored: StoredPart::Whole {
                object,
                stored_bytes: measured.stored_bytes,
                stored_sha256: measured.stored_sha256,
            },
        });
        Ok(())
    }

    /// Opens the part that was written last, as any later reader would.
    pub fn read_back(&self, cx: &Cx) -> Result<(PartReader, Measuring), EngineError> {
        let (part, plain_sha256) = self
            .parts
            .last()
            .zip(self.details.plain_sha256.last())
            .ok_or(EngineError::ReaderGone)?;
        Ok(self.vault.open_part(cx, &self.place, part, *plain_sha256))
    }

    async fn upload(
        &self,
        cx: &Cx,
        name: &str,
        mut stored: PartReader,
        estimate: Option<u64>,
    ) -> Result<u64, EngineError> {
        let mut upload = self.vault.store.upload(cx, name, estimate).await?;
        loop {
            let chunk = match cx.run(stored.next()).await {
                Ok(Ok(Some(chunk))) => chunk,
                Ok(Ok(None)) => break,
                Ok(Err(error)) => return self.give_up(cx, upload, error.into()).await,
                Err(cancelled) => return self.give_up(cx, upload, cancelled.into()).await,
            };
            let bytes = chunk.len() as u64;
            if let Err(error) = upload.write(cx, chunk).await {
                return self.give_up(cx, upload, error.into()).await;
            }
            cx.event(Event::Transferred { stored_bytes: bytes });
        }
        Ok(upload.finish(cx).await?)
    }

    async fn give_up(
        &self,
        cx: &Cx,
        upload: crate::store::Upload,
        error: EngineError,
    ) -> Result<u64, EngineError> {
        if let Err(abort) = upload.abort(&cx.for_cleanup()).await {
            cx.event(Event::Warning {
                text: format!("an unfinished upload may be left behind: {abort}"),
            });
        }
        Err(error)
    }

    /// Writes the manifest: from here on the backup exists. Then the index.
    ///
    /// If the manifest cannot be proven, it is taken back with all that it names.
    pub async fn commit(self, cx: &Cx, captured: CaptureReport) -> Result<IndexEntry, EngineError> {
        let (vault, place) = (self.vault.clone(), self.place.clone());
        match self.write_manifest(cx, captured).await {
            Ok(entry) => {
                add_to_index(cx, &vault, &place, &entry).await;
                Ok(entry)
            }
            Err(error) => {
                vault.take_back(&cx.for_cleanup(), &place).await;
                Err(error)
            }
        }
    }

    async fn write_manifest(
        mut self,
        cx: &Cx,
        captured: CaptureReport,
    ) -> Result<IndexEntry, EngineError> {
        let item_error_count = captured.item_errors.count();
        let status = if item_error_count == 0 { Status::Complete } else { Status::Incomplete };
        self.details.item_errors = captured.item_errors.into_listed();
        self.details.warnings = captured.warnings;
        self.details.content = captured.content;
        self.details.schema_version = captured.schema_version;
        let manifest = Manifest {
            format: FORMAT_VERSION,
            tool: format!("backstay {}", env!("CARGO_PKG_VERSION")),
            vault: self.vault.id.clone(),
            organisation: self.place.organisation.clone(),
            source: self.place.source.clone(),
            source_kind: self.draft.source_kind.to_owned(),
            backup: self.place.backup.clone(),
            trigger: self.draft.trigger,
            status,
            started_at: self.started_at,
            finished_at: cx.now(),
            host: self.draft.host,
            app: self.draft.app,
            environment: self.draft.environment,
            engine: captured.engine,
            consistency_point: captured.consistency_point,
            encryption: self.encryption,
            parts: self.parts,
            item_error_count,
            warning_count: 0,
            details: DetailsSection::Sealed(String::new()),
        };
        // What took so long may have looked like a leftover to somebody.
        if cx.now().duration_since(self.started_at) > LONG {
            self.vault.check_objects(cx, &manifest).await?;
        }
        let damaged = |cause| EngineError::Manifest { backup: self.place.backup.clone(), cause };
        let bytes = encode_manifest(manifest, self.details, &self.vault.keyring, random())
            .map_err(damaged)?;
        let name = self.place.file(&BackupFile::Manifest);
        self.vault.store.create(cx, name.as_str(), bytes.clone().into()).await?;
        // Read back, and as any later reader would: what cannot be read now is no backup.
        let manifest = self.vault.manifest(cx, &self.place).await?;
        let details = manifest.open_details(&self.vault.keyring).map_err(damaged)?;
        Ok(IndexEntry::new(&manifest, details, None))
    }

    /// Removes what was written, as far as the storage lets us; prune finds the rest.
    pub async fn discard(self, cx: &Cx) {
        self.vault.take_back(cx, &self.place).await;
    }
}

/// A backup whose index entry could not be written is a backup all the same: listings find it.
async fn add_to_index(cx: &Cx, vault: &Vault, place: &BackupPlace, entry: &IndexEntry) {
    if let Err(error) = vault.add_to_index(cx, place, entry.clone()).await {
        cx.event(Event::Warning {
            text: format!("the index of {} could not be written: {error}", place.source),
        });
    }
}

/// Says by suffixes what was done to a part, outermost last.
fn object_name(part: &PartName, codecs: &[Codec]) -> PartName {
    let suffixes: String = codecs.iter().map(|codec| format!(".{}", codec.suffix())).collect();
    format!("{part}{suffixes}").parse().expect("suffixes of a checked name keep it legal")
}
