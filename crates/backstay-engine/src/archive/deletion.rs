//! Deleting archived rows from their table: from the files of committed segments, row by row compared.

use std::collections::HashSet;

use backstay_format::{DeletedMark, FORMAT_VERSION};

use super::digest::Digester;
use super::known::{Known, Segment};
use super::{ArchiveReport, ArchiveSpec};
use crate::cx::Cx;
use crate::error::EngineError;
use crate::event::Event;
use crate::source::table::{Table, next_batch, only, refused, times};
use crate::source::{Source, SourceError};
use crate::vault::Vault;

/// Rows of one transaction: an app waits for no more than these.
const ROWS_AT_ONCE: usize = 2000;

/// Which segments are looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Which {
    /// Those of whose rows no other segment can hold a newer version.
    Newest,
    All,
}

/// Deletes the rows of all segments that wait for it, and that are old enough by the configuration as it is now.
pub(super) async fn delete_archived(
    cx: &Cx,
    source: &dyn Source,
    (vault, spec, which): (&Vault, &ArchiveSpec, Which),
    known: &mut Known,
    report: &mut ArchiveReport,
) -> Result<(), EngineError> {
    let mut table = None;
    let deleted =
        delete_segments(cx, source, (vault, spec, which), known, report, &mut table).await;
    // Whatever came of it: who opens the database next must find it free.
    let closed = match table {
        Some(table) => table.close(cx).await,
        None => Ok(()),
    };
    deleted?;
    Ok(closed?)
}

async fn delete_segments(
    cx: &Cx,
    source: &dyn Source,
    (vault, spec, which): (&Vault, &ArchiveSpec, Which),
    known: &mut Known,
    report: &mut ArchiveReport,
    table: &mut Option<Box<dyn Table>>,
) -> Result<(), EngineError> {
    for index in 0..known.segments.len() {
        let segment = &known.segments[index];
        let waits = segment.deleted.is_none() || known.put_back.contains(&segment.place.backup);
        if !waits || which == Which::Newest && !known.is_newest(index) {
            continue;
        }
        let table = match &mut *table {
            Some(table) => table,
            none => none.insert(open(cx, source, known, spec).await?),
        };
        cx.event(Event::Step {
            what: format!("deleting the rows of segment {}", segment.place.backup),
        });
        let mut mark = DeletedMark { format: FORMAT_VERSION, at: cx.now(), deleted: 0, changed: 0 };
        let before = report.before.as_microsecond();
        let deleted =
            delete_segment(cx, table.as_mut(), (vault, spec, before), segment, &mut mark).await;
        report.deleted += mark.deleted;
        report.changed += mark.changed;
        deleted?;
        mark.at = cx.now();
        vault.mark_deleted(cx, &segment.place, &mark).await?;
        known.segments[index].deleted = Some(mark);
    }
    Ok(())
}

async fn open(
    cx: &Cx,
    source: &dyn Source,
    known: &Known,
    spec: &ArchiveSpec,
) -> Result<Box<dyn Table>, SourceError> {
    let mut table = source.table(cx, &known.table_spec(spec)).await?;
    known.check(spec, table.shape())?;
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
    (vault, spec, before): (&Vault, &ArchiveSpec, i64),
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
            let digests = digester.rows(&now)?;
            let is_same: Vec<bool> =
                digests.iter().map(|digest| archived.contains(digest)).collect();
            mark.changed += is_same.iter().filter(|same| !**same).count() as u64;
            let is_old = times(&now)?.into_iter().map(|at| at < before);
            let chosen = is_same.iter().zip(is_old).map(|(same, old)| *same && old);
            let gone = only(&now, chosen.collect())?;
            table.delete(cx, &gone).await?;
            mark.deleted += gone.num_rows() as u64;
        }
    }
    Ok(())
}
