//! Rows as Parquet files, written and read.

use std::fs::File;
use std::path::{Path, PathBuf};

use arrow_array::RecordBatch;
use arrow_schema::SchemaRef;
use backstay_format::{BackupId, MediaType, PartName};

use super::digest::{Digester, RowDigest};
use crate::cx::Cx;
use crate::error::EngineError;
use crate::part::{PartError, PartReader, PartSpec, PartWriter, part_pipe};
use crate::pipeline::Measuring;
use crate::source::SourceError;
use crate::source::table::{BATCH_ROWS, Rows, next_batch, read_parquet, write_parquet};
use crate::spool::{self, Spool};
use crate::verify::settle;

/// Gives rows as the stream of a Parquet file.
pub(super) fn stream(
    name: PartName,
    schema: SchemaRef,
    level: i32,
    batches: Vec<RecordBatch>,
) -> PartReader {
    let spec = PartSpec { name, media_type: MediaType::Parquet, estimate_bytes: None };
    let (writer, reader) = part_pipe(spec);
    // Ends by itself when the reader goes away.
    drop(tokio::task::spawn_blocking(move || write(&schema, level, &batches, writer)));
    reader
}

fn write(schema: &SchemaRef, level: i32, batches: &[RecordBatch], writer: PartWriter) {
    let part = writer.part_name();
    let mut writer = writer;
    match write_parquet(schema, level, batches, &mut writer) {
        Ok(()) => writer.finish(),
        Err(cause) => writer.fail(PartError::Failed { part, cause: Box::new(cause) }),
    }
}

/// A file of a segment on this machine: all of it, and proven to be what was stored.
#[derive(Debug)]
pub(super) struct Fetched {
    path: PathBuf,
    _spool: Spool,
}

/// Takes a part of a segment into the spool directory.
pub(super) async fn fetch(
    spool: &Path,
    segment: &BackupId,
    (plain, measuring): (PartReader, Measuring),
) -> Result<Fetched, EngineError> {
    let spool = Spool::create(spool)?;
    let path = spool.file("rows.parquet", plain.spec.estimate_bytes.unwrap_or(0))?;
    let into = path.clone();
    let taken = tokio::task::spawn_blocking(move || spool::write_part(plain, &into)).await;
    let taken = taken.map_err(|_| EngineError::ThreadDied { thread: "spool" })?;
    settle(segment, taken.map(drop), measuring).await?;
    Ok(Fetched { path, _spool: spool })
}

impl Fetched {
    /// Begins to read its rows, so many at a time. The file must be there until they are read.
    pub(super) fn rows(&self, batch_rows: usize) -> Rows {
        read_parquet(&self.path, batch_rows)
    }

    /// Returns of each row its digest, where it can be compared, and that of its key.
    pub(super) async fn digests(
        &self,
        cx: &Cx,
        (digester, keys): &(Digester, Digester),
    ) -> Result<Vec<(Option<RowDigest>, RowDigest)>, SourceError> {
        let mut digests = Vec::new();
        let mut rows = self.rows(BATCH_ROWS);
        while let Some(batch) = next_batch(cx, &mut rows).await? {
            // A key that it lacks is the key of nothing.
            let Some(keys) = keys.earlier_rows(&batch)? else { continue };
            match digester.earlier_rows(&batch)? {
                Some(rows) => digests.extend(rows.into_iter().map(Some).zip(keys)),
                None => digests.extend(keys.into_iter().map(|key| (None, key))),
            }
        }
        Ok(digests)
    }

    /// Returns the digests of all rows by the file's own columns.
    pub(super) async fn own_digests(&self, cx: &Cx) -> Result<Vec<RowDigest>, SourceError> {
        let mut digests = Vec::new();
        let mut rows = self.rows(BATCH_ROWS);
        while let Some(batch) = next_batch(cx, &mut rows).await? {
            digests.extend(Digester::new(batch.schema_ref())?.rows(&batch)?);
        }
        Ok(digests)
    }

    /// Takes the file to a place of its own, which must not exist.
    pub(super) fn keep(self, path: &Path) -> Result<(), SourceError> {
        let copied = File::create_new(path).and_then(|mut to| {
            std::io::copy(&mut File::open(&self.path)?, &mut to)?;
            to.sync_all()
        });
        copied.map_err(|cause| SourceError::io("write", path, cause))
    }
}
