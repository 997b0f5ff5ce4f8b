//! Deleting archived rows from their table: from the files of committed segments, row by row compared.

use std::collections::HashSet;

use arrow_array::{BooleanArray, RecordBatch};
use arrow_select::filter::filter_record_batch;
use backstay_format::{DeletedMark, FORMAT_VERSION};

use super::digest::Digester;
use super::known::{Known, Segment};
use super::{ArchiveReport, ArchiveSpec};
use crate::cx::Cx;
use crate::error::EngineError;
use crate::event::Event;
use crate::source::table::{Table, next_batch, refused};
use crate::source::{Source, SourceError, TableSpec};
use crate::vault::Vault;

/// Rows of one transaction: an app waits for no more than these.
const ROWS_AT_ONCE: usize = 2000;

/// Deletes the rows of all segments that wait for it.
pub(super) async fn delete_archived(
    cx: &Cx,
    source: &dyn Source,
    vault: &Vault,
    spec: &ArchiveSpec,
    known: &mut Known,
    report: &mut ArchiveReport,
) -> Result<(), EngineError> {
    let mut table: Option<Box<dyn Table>> = None;
    let table_spec = known.table_spec(spec);
    for segment in &mut known.segments {
        if segment.deleted.is_some() && !known.put_back.contains(&segment.place.backup) {
            continue;
        }
        let table = match &mut table {
            Some(table) => table,
            none => none.insert(open(cx, source, &table_spec).await?),
        };
        cx.event(Event::Step {
            what: format!("deleting the rows of segment {}", segment.place.backup),
        });
        let mut mark = DeletedMark { format: FORMAT_VERSION, at: cx.now(), deleted: 0, changed: 0 };
        delete_segment(cx, table.as_mut(), (vault, spec), segment, &mut mark).await?;
        mark.at = cx.now();
        vault.mark_deleted(cx, &segment.place, &mark).await?;
        report.deleted += mark.deleted;
        report.changed += mark.changed;
        segment.deleted = Some(mark);
    }
    known.put_back.clear();
    match table {
        Some(table) => Ok(table.close(cx).await?),
        None => Ok(()),
    }
}

async fn open(
    cx: &Cx,
    source: &dyn Source,
    spec: &TableSpec,
) -> Result<Box<dyn Table>, SourceError> {
    let mut table = source.table(cx, spec).await?;
    let obstacles = table.obstacles(cx).await?;
    if obstacles.is_empty() {
        return Ok(table);
    }
    Err(refused(format!(
        "the rows of {} are archived but not deleted, since deleting them would change other tables: {}",
        table.shape().table,
        obstacles.join("; ")
    )))
}

async fn delete_segment(
    cx: &Cx,
    table: &mut dyn Table,
    (vault, spec): (&Vault, &ArchiveSpec),
    segment: &Segment,
    mark: &mut DeletedMark,
) -> Result<(), EngineError> {
    let digester = Digester::new(&table.shape().schema())?;
    let key = table.shape().key.clone();
    for index in 0..segment.content.files.len() {
        let fetched = segment.fetch(cx, vault, spec, index).await?;
        let mut rows = fetched.rows(ROWS_AT_ONCE);
        while let Some(batch) = next_batch(cx, &mut rows).await? {
            let has_key = key.iter().all(|name| batch.column_by_name(name).is_some());
            let digests = digester.earlier_rows(&batch)?.filter(|_| has_key);
            let Some(digests) = digests else {
                // Columns were added since: what they hold is not in the file.
                mark.changed += batch.num_rows() as u64;
                continue;
            };
            let archived: HashSet<_> = digests.into_iter().collect();
            let now = table.lock(cx, &batch).await?;
            let same =
                digester.rows(&now)?.iter().map(|digest| archived.contains(digest)).collect();
            let gone = only(&now, same)?;
            mark.changed += (now.num_rows() - gone.num_rows()) as u64;
            table.delete(cx, &gone).await?;
            mark.deleted += gone.num_rows() as u64;
        }
    }
    Ok(())
}

fn only(batch: &RecordBatch, chosen: Vec<bool>) -> Result<RecordBatch, SourceError> {
    let chosen = filter_record_batch(batch, &BooleanArray::from(chosen));
    chosen.map_err(|error| refused(error.to_string()))
}
