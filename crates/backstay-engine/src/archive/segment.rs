//! Writing a segment: files first, each read back and compared, the manifest last.

use async_trait::async_trait;
use backstay_format::{ArchivedFile, ArchivedRows, Content, PartName};
use jiff::Timestamp;

use super::digest::{self, RowDigest};
use super::known::{Known, Segment, columns_of};
use super::slice::Slice;
use super::{ArchiveSpec, file};
use crate::cx::Cx;
use crate::error::EngineError;
use crate::part::CaptureReport;
use crate::source::SourceError;
use crate::source::table::{DAY_MICROS, Shape, refused};
use crate::vault::{BackupPlace, BackupWriter, Draft};

/// Writes down which segment is under way, so that a later run can remove what a killed one left.
#[async_trait]
pub trait SegmentLog: Send + Sync {
    /// A segment is about to be written.
    async fn begun(
        &self,
        place: &BackupPlace,
    ) -> Result<(), Box<dyn std::error::Error + Send + Sync>>;
}

/// Writes a slice of rows.
pub(super) async fn write(
    cx: &Cx,
    (vault, spec, draft, log): super::Destination<'_>,
    shape: &Shape,
    known: &Known,
    slice: Slice,
    before: Timestamp,
) -> Result<Segment, EngineError> {
    let mut writer = vault.begin(cx, draft.clone()).await?;
    log.begun(writer.place()).await.map_err(EngineError::Journal)?;
    let files = match write_files(cx, &mut writer, (spec, draft), shape, slice).await {
        Ok(files) => files,
        Err(error) => {
            writer.discard(&cx.for_cleanup()).await;
            return Err(error);
        }
    };
    let content = ArchivedRows {
        table: shape.table.clone(),
        column: spec.table.column.clone(),
        before,
        columns: columns_of(shape),
        key: shape.key.clone(),
        changes: known.changes(shape),
        files,
    };
    let place = writer.place().clone();
    let captured = CaptureReport {
        engine: Some(shape.engine.clone()),
        content: Some(Content::Archived(Box::new(content.clone()))),
        ..CaptureReport::default()
    };
    writer.commit(cx, captured).await?;
    let manifest = vault.manifest(cx, &place).await?;
    let details = vault.details(&manifest)?;
    Ok(Segment { place, manifest, details, content, deleted: None })
}

async fn write_files(
    cx: &Cx,
    writer: &mut BackupWriter,
    (spec, draft): (&ArchiveSpec, &Draft),
    shape: &Shape,
    slice: Slice,
) -> Result<Vec<ArchivedFile>, EngineError> {
    let mut files = Vec::new();
    for (partition, rows) in slice.by_partition(spec.partition) {
        let name: PartName =
            format!("{}={partition}/rows.parquet", shape.free_name(spec.partition.key()))
                .parse()
                .expect("a date is legal in a name");
        let (oldest, newest) = rows.range();
        let (count, mut sum, mut times) = (rows.rows(), RowDigest::default(), 0_i128);
        for piece in &rows.pieces {
            sum = sum.wrapping_add(digest::sum(&piece.digests));
            times += piece.at.iter().map(|at| i128::from(at.rem_euclid(DAY_MICROS))).sum::<i128>();
        }
        let batches = rows.pieces.into_iter().map(|piece| piece.batch).collect();
        let stream = file::stream(name, shape.schema(), draft.compression_level, batches);
        writer.write_part(cx, stream).await?;
        prove(cx, writer, spec, (count, sum)).await?;
        files.push(ArchivedFile {
            partition,
            rows: count,
            oldest: time(oldest)?,
            newest: time(newest)?,
            times: times.to_string(),
            digest: digest::text(sum),
        });
    }
    Ok(files)
}

/// Reads the file that was just written from the storage, and compares its rows with those of the table.
async fn prove(
    cx: &Cx,
    writer: &BackupWriter,
    spec: &ArchiveSpec,
    (rows, sum): (u64, RowDigest),
) -> Result<(), EngineError> {
    let fetched = file::fetch(&spec.spool, &writer.place().backup, writer.read_back(cx)?).await?;
    let found = fetched.own_digests(cx).await?;
    if found.len() as u64 == rows && digest::sum(&found) == sum {
        return Ok(());
    }
    let finding = format!(
        "the file that was written holds {} rows that are not the {rows} of the table; nothing was archived or deleted",
        found.len()
    );
    Err(SourceError::Table { finding }.into())
}

fn time(micros: i64) -> Result<Timestamp, SourceError> {
    let far = |_| refused(format!("a row is from a time too far away ({micros} us since 1970)"));
    Timestamp::from_microsecond(micros).map_err(far)
}
