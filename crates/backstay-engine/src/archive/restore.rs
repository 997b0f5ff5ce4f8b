//! Bringing archived rows back: into a table, or as files.

use std::collections::HashSet;
use std::path::Path;

use arrow_array::RecordBatch;
use backstay_format::ArchivedFile;

use super::ArchiveSpec;
use super::digest::{Digester, RowDigest};
use super::known::{Known, Segment};
use super::verify::verify;
use crate::cx::Cx;
use crate::error::EngineError;
use crate::event::Event;
use crate::source::table::{Table, next_batch, refused};
use crate::source::{Source, SourceError};
use crate::vault::Vault;

/// Rows that are inserted and looked at together.
const ROWS_AT_ONCE: usize = 2000;

/// Which partitions are wanted: from the first, to the last, both by their names; all if left out.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Wanted {
    /// `2026-01-03` or `2026-01`.
    pub from: Option<String>,
    /// The last one that is wanted.
    pub until: Option<String>,
}

impl Wanted {
    /// Says whether a file's partition is wanted. A month holds its days, and the other way round.
    pub fn takes(&self, file: &ArchivedFile) -> bool {
        let name = file.partition.as_str();
        let is_from =
            self.from.as_deref().is_none_or(|from| name >= from || from.starts_with(name));
        let is_until = self.until.as_deref();
        let is_until = is_until.is_none_or(|last| name <= last || name.starts_with(last));
        is_from && is_until
    }
}

/// What was brought back.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RestoredRows {
    /// Rows of the files.
    pub rows: u64,
    /// Rows that were inserted; the others are there already, by key.
    pub inserted: u64,
}

/// Inserts archived rows into a table, all or none. Rows that are there by key stay as they are, and of a row that was
/// archived several times, the newest counts.
pub async fn restore(
    cx: &Cx,
    source: &dyn Source,
    vault: &Vault,
    spec: &ArchiveSpec,
    wanted: &Wanted,
) -> Result<RestoredRows, EngineError> {
    let known = Known::read(cx, vault, spec).await?;
    let chosen: Vec<&Segment> =
        known.segments.iter().filter(|segment| segment.has(wanted)).collect();
    cx.event(Event::Step { what: "proving every file".to_owned() });
    for segment in &chosen {
        verify(cx, vault, spec, segment).await?;
    }
    let mut table = source.table(cx, &known.table_spec(spec)).await?;
    let mut restored = RestoredRows::default();
    for segment in chosen.into_iter().rev() {
        cx.event(Event::Step {
            what: format!("inserting the rows of segment {}", segment.place.backup),
        });
        for (index, file) in segment.content.files.iter().enumerate() {
            if !wanted.takes(file) {
                continue;
            }
            let fetched = segment.fetch(cx, vault, spec, index).await?;
            let mut rows = fetched.rows(ROWS_AT_ONCE);
            while let Some(batch) = next_batch(cx, &mut rows).await? {
                restored.rows += batch.num_rows() as u64;
                restored.inserted += insert(cx, table.as_mut(), &batch).await?;
            }
        }
    }
    table.end(cx).await?;
    table.close(cx).await?;
    Ok(restored)
}

/// Inserts rows, and looks whether what came into the table is what was archived: a trigger or a narrower type may have made
/// something else of it.
async fn insert(cx: &Cx, table: &mut dyn Table, rows: &RecordBatch) -> Result<u64, SourceError> {
    let names: Vec<String> =
        table.shape().written(rows)?.iter().map(|column| column.field.name().clone()).collect();
    let digester = Digester::of_columns(&table.shape().schema(), &names)?;
    let Some(archived) = digester.earlier_rows(rows)? else {
        return Err(refused(format!(
            "a column of {} is of another type than when its rows were archived; restore with --to-file",
            table.shape().table
        )));
    };
    let there: HashSet<RowDigest> =
        digester.rows(&table.lock(cx, rows).await?)?.into_iter().collect();
    let inserted = table.insert(cx, rows).await?;
    let now = digester.rows(&table.lock(cx, rows).await?)?;
    let archived: HashSet<RowDigest> = archived.into_iter().collect();
    let new = now.iter().filter(|digest| !there.contains(digest));
    if now.len() as u64 != there.len() as u64 + inserted
        || !new.into_iter().all(|digest| archived.contains(digest))
    {
        return Err(refused(format!(
            "rows that were inserted into {} are not as they were archived: a trigger or a type of its columns changes them; nothing was restored, use --to-file or another table with --to",
            table.shape().table
        )));
    }
    Ok(inserted)
}

/// Writes the files, plain, below a directory that must not exist, as Hive partitions. Returns how many rows they have.
pub async fn export(
    cx: &Cx,
    vault: &Vault,
    spec: &ArchiveSpec,
    wanted: &Wanted,
    directory: &Path,
) -> Result<u64, EngineError> {
    let known = Known::read(cx, vault, spec).await?;
    std::fs::create_dir(directory).map_err(|cause| SourceError::io("make", directory, cause))?;
    let mut written = 0;
    for segment in &known.segments {
        for (index, (file, part)) in
            segment.content.files.iter().zip(&segment.manifest.parts).enumerate()
        {
            if !wanted.takes(file) {
                continue;
            }
            let (partition, _) = part
                .name
                .as_str()
                .split_once('/')
                .ok_or_else(|| refused(format!("file {} lies in no partition", part.name)))?;
            let folder = directory.join(partition);
            std::fs::create_dir_all(&folder)
                .map_err(|cause| SourceError::io("make", &folder, cause))?;
            let fetched = segment.fetch(cx, vault, spec, index).await?;
            fetched.keep(&folder.join(format!("{}.parquet", segment.place.backup)))?;
            written += file.rows;
        }
    }
    Ok(written)
}

impl Segment {
    /// Says whether any of its files is wanted.
    pub fn has(&self, wanted: &Wanted) -> bool {
        self.content.files.iter().any(|file| wanted.takes(file))
    }
}
