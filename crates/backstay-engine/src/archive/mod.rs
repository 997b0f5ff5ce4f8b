//! Retention archives: old rows of a table to Parquet files, and, if asked, out of the table.
//!
//! An archive lies in a vault of its own; what a backup is to a source, a segment is to an archive (ADR 14). Nothing is
//! deleted that was not read back from the storage, and every deletion compares once more.

mod deletion;
mod digest;
mod file;
mod known;
mod partition;
mod prune;
mod restore;
mod segment;
mod slice;
mod verify;

use std::path::PathBuf;
use std::sync::Arc;

use backstay_format::{ARCHIVES, Slug};
use jiff::{SignedDuration, Timestamp};

use crate::cx::Cx;
use crate::error::EngineError;
use crate::event::{Event, Monitor};
use crate::source::table::{AT, TableSpec};
use crate::source::{Source, SourceError, with_causes};
use crate::store::Store;
use crate::vault::{Draft, Vault};

pub use known::{Known, Segment, segments};
pub use partition::Partition;
pub use prune::{PrunedArchive, plan_prune, prune};
pub use restore::{RestoredRows, Wanted, export, restore};
pub use segment::SegmentLog;
pub use verify::{VerifiedArchive, verify};

use deletion::{Which, delete_archived};
use slice::Slices;

/// A retention archive, as it is configured.
#[derive(Debug, Clone)]
pub struct ArchiveSpec {
    /// Whose.
    pub organisation: Slug,
    /// Its name.
    pub name: Slug,
    /// Which table, and which of its columns is the time.
    pub table: TableSpec,
    /// Rows of this age and more are archived.
    pub older_than: SignedDuration,
    /// How rows are divided into files.
    pub partition: Partition,
    /// Whether rows are deleted from the table once they are archived.
    pub delete: bool,
    /// Whether segments that are not sealed are refused: nothing proves who wrote them.
    pub expects_sealed: bool,
    /// How long archived rows are kept; for ever if left out.
    pub keep: Option<SignedDuration>,
    /// Where files are kept while they are read.
    pub spool: PathBuf,
}

/// What a run did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ArchiveReport {
    /// Rows before this time were archived.
    pub before: Timestamp,
    /// Rows that were archived.
    pub archived: u64,
    /// In so many new segments.
    pub segments: u64,
    /// Bytes of these on the storage.
    pub stored_bytes: u64,
    /// Rows that are archived as they are now, and were not again.
    pub already: u64,
    /// Rows that were deleted from the table.
    pub deleted: u64,
    /// Rows that stay in the table since they were changed after they were archived; the next run archives them anew.
    pub changed: u64,
    /// Why the rest of the archived rows is still in the table, if it is.
    pub not_deleted: Option<String>,
    /// Rows whose time cannot be read.
    pub unreadable: u64,
    /// What changed in the table's columns since the segment before.
    pub changes: Vec<String>,
}

/// What a run would do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ArchivePlan {
    /// Rows before this time would be archived.
    pub before: Timestamp,
    /// The table, as its database writes the name.
    pub table: String,
    /// The rows of each partition: in the table and old enough, and in the archive.
    pub partitions: Vec<(String, u64, u64)>,
    /// Rows whose time cannot be read.
    pub unreadable: u64,
    /// Why rows could not be deleted, if that is asked for.
    pub obstacles: Vec<String>,
}

/// Returns where the archives of a storage lie.
pub fn store_of(storage: &Store) -> Store {
    storage.below(ARCHIVES)
}

/// Says what a run would do; reads no rows and changes nothing.
pub async fn plan(
    cx: &Cx,
    source: &dyn Source,
    vault: Option<&Vault>,
    spec: &ArchiveSpec,
) -> Result<ArchivePlan, EngineError> {
    let known = match vault {
        Some(vault) => Known::read(cx, vault, spec).await?,
        None => Known::default(),
    };
    let mut table = source.table(cx, &known.table_spec(spec)).await?;
    let before = spec.before(cx.now());
    let obstacles = if spec.delete { table.obstacles(cx).await? } else { Vec::new() };
    let (days, unreadable) = table.days(cx, before.as_microsecond()).await?;
    let partitions = spec.partition.rows(&days).into_iter().map(|(name, tally)| {
        let archived = known.tally(&name).rows;
        (name, tally.rows, archived)
    });
    let plan = ArchivePlan {
        before,
        table: table.shape().table.clone(),
        partitions: partitions.collect(),
        unreadable,
        obstacles,
    };
    table.close(cx).await?;
    Ok(plan)
}

/// Archives the rows that are old enough and not archived yet, and deletes what is archived if that is asked for.
///
/// Killed at any moment, it leaves every row in the table, in a segment, or in both; the next run goes on.
pub async fn run(
    cx: &Cx,
    source: &dyn Source,
    vault: &Vault,
    spec: &ArchiveSpec,
    draft: &Draft,
    log: &dyn SegmentLog,
) -> Result<ArchiveReport, EngineError> {
    let cx = &cx.heard_by(|listener| Arc::new(WithoutFiles(listener)));
    let mut known = Known::read(cx, vault, spec).await?;
    let before = spec.before(cx.now());
    let mut report = ArchiveReport { before, ..ArchiveReport::default() };
    if spec.delete {
        // What a killed run left first: it is no longer there to be read. But of rows that were archived several times, the
        // newest must be known before the others count.
        let which = (vault, spec, Which::Newest);
        let deleted = delete_archived(cx, source, which, &mut known, &mut report).await;
        settle(deleted, &mut report)?;
    }
    archive_rows(cx, source, (vault, spec, draft, log), &mut known, &mut report).await?;
    if spec.delete && report.not_deleted.is_none() {
        let which = (vault, spec, Which::All);
        let deleted = delete_archived(cx, source, which, &mut known, &mut report).await;
        settle(deleted, &mut report)?;
    }
    Ok(report)
}

/// A row that cannot be deleted keeps none from being archived; it is told at the end.
fn settle(deleted: Result<(), EngineError>, report: &mut ArchiveReport) -> Result<(), EngineError> {
    match deleted {
        Err(EngineError::Source(error)) if !error.is_cancelled() => {
            report.not_deleted = Some(with_causes(&error));
            Ok(())
        }
        other => other,
    }
}

/// Passes on all but that single files are written and read: a segment may have hundreds.
struct WithoutFiles(Arc<dyn Monitor>);

impl Monitor for WithoutFiles {
    fn event(&self, event: Event) {
        if !matches!(event, Event::PartStarted { .. } | Event::PartFinished { .. }) {
            self.0.event(event);
        }
    }
}

/// Where rows go, and what is written down of them.
type Destination<'a> = (&'a Vault, &'a ArchiveSpec, &'a Draft, &'a dyn SegmentLog);

async fn archive_rows(
    cx: &Cx,
    source: &dyn Source,
    (vault, spec, draft, log): Destination<'_>,
    known: &mut Known,
    report: &mut ArchiveReport,
) -> Result<(), EngineError> {
    let mut table = source.table(cx, &known.table_spec(spec)).await?;
    let (days, unreadable) = table.days(cx, report.before.as_microsecond()).await?;
    report.unreadable = unreadable;
    let spans = known.spans(cx, spec, &days, report.before.as_microsecond());
    if spans.is_empty() {
        return Ok(table.close(cx).await?);
    }
    let shape = table.shape().clone();
    if shape.columns.iter().any(|column| column.field.name() == AT) {
        let finding =
            format!("table {} has a column {AT}, a name that rows pass with here", shape.table);
        return Err(SourceError::Table { finding }.into());
    }
    known.check(spec, &shape)?;
    report.changes = known.changes(&shape);
    let mut slices = Slices::new(table.read(cx, &spans).await?);
    while let Some(slice) = slices.next(cx).await? {
        let rows = slice.rows();
        let fresh = known.without_archived(cx, vault, spec, (slice, &shape.key)).await?;
        report.already += rows - fresh.rows();
        if fresh.is_empty() {
            continue;
        }
        let written =
            segment::write(cx, (vault, spec, draft, log), &shape, known, fresh, report.before);
        let segment = written.await?;
        report.archived += segment.content.rows();
        report.segments += 1;
        report.stored_bytes += segment.manifest.stored_bytes();
        cx.event(Event::Step {
            what: format!(
                "segment {}: {} rows archived",
                segment.place.backup,
                segment.content.rows()
            ),
        });
        known.add(segment);
    }
    Ok(table.close(cx).await?)
}

impl ArchiveSpec {
    fn before(&self, now: Timestamp) -> Timestamp {
        now.checked_sub(self.older_than).unwrap_or(Timestamp::MIN)
    }
}
