//! Rows as Parquet files, written and read.

use std::fs::File;
use std::io::Write;
use std::path::Path;

use arrow_array::RecordBatch;
use arrow_schema::SchemaRef;
use parquet::arrow::ArrowWriter;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use parquet::basic::{Compression, ZstdLevel};
use parquet::errors::ParquetError;
use parquet::file::metadata::RowGroupMetaData;
use parquet::file::properties::WriterProperties;

use super::{BATCH_BYTES, Rows, RowsSender, refused, rows_pipe};
use crate::source::SourceError;

/// Rows of a row group: what a reader takes at a time, and what a writer holds.
const GROUP_ROWS: usize = 128 * 1024;

/// A row group is not held until it is larger than this.
const GROUP_BYTES: usize = 8 << 20;

/// Writes rows as a Parquet file.
pub(crate) fn write_parquet(
    schema: &SchemaRef,
    level: i32,
    batches: &[RecordBatch],
    out: impl Write + Send,
) -> Result<(), ParquetError> {
    let mut parquet = parquet_writer(schema, level, out)?;
    for batch in batches {
        parquet.write(batch)?;
        if parquet.in_progress_size() > GROUP_BYTES {
            parquet.flush()?;
        }
    }
    parquet.close().map(drop)
}

/// Begins a Parquet file.
pub(crate) fn parquet_writer<W: Write + Send>(
    schema: &SchemaRef,
    level: i32,
    out: W,
) -> Result<ArrowWriter<W>, ParquetError> {
    let properties = WriterProperties::builder()
        .set_created_by(concat!("backstay ", env!("CARGO_PKG_VERSION")).to_owned())
        .set_compression(Compression::ZSTD(ZstdLevel::try_new(level)?))
        .set_max_row_group_row_count(Some(GROUP_ROWS))
        .build();
    ArrowWriter::try_new(out, schema.clone(), Some(properties))
}

/// Begins to read the rows of a Parquet file, so many at a time, or fewer if they are large. The file must be there until they are read.
pub(crate) fn read_parquet(path: &Path, batch_rows: usize) -> Rows {
    let (sender, rows) = rows_pipe();
    let path = path.to_owned();
    // Ends by itself when the reader goes away.
    drop(tokio::task::spawn_blocking(move || {
        let last = send_parquet(&path, batch_rows, &sender).map(|()| None);
        drop(sender.blocking_send(last));
    }));
    rows
}

/// Sends the rows of a Parquet file, without saying that they are all.
pub(crate) fn send_parquet(
    path: &Path,
    batch_rows: usize,
    sender: &RowsSender,
) -> Result<(), SourceError> {
    let bad = |error: ParquetError| {
        refused(format!("a file of rows is no Parquet file that we can read: {error}"))
    };
    let file = File::open(path).map_err(|cause| SourceError::io("open", path, cause))?;
    let builder = ParquetRecordBatchReaderBuilder::try_new(file).map_err(bad)?;
    let groups = builder.metadata().row_groups();
    let row_bytes = |group: &RowGroupMetaData| group.total_byte_size() / group.num_rows().max(1);
    let largest = groups.iter().map(row_bytes).max().and_then(|bytes| usize::try_from(bytes).ok());
    let rows = (BATCH_BYTES / largest.unwrap_or(1).max(1)).clamp(1, batch_rows);
    for batch in builder.with_batch_size(rows).build().map_err(bad)? {
        let batch = batch.map_err(|error| bad(error.into()))?;
        if sender.blocking_send(Ok(Some(batch))).is_err() {
            return Ok(());
        }
    }
    Ok(())
}

/// Returns what the columns of a Parquet file are.
pub(crate) fn parquet_schema(path: &Path) -> Result<SchemaRef, SourceError> {
    let bad = |error: ParquetError| {
        refused(format!("a file of rows is no Parquet file that we can read: {error}"))
    };
    let file = File::open(path).map_err(|cause| SourceError::io("open", path, cause))?;
    Ok(ParquetRecordBatchReaderBuilder::try_new(file).map_err(bad)?.schema().clone())
}
