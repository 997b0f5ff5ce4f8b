//! What an archive holds already.

use std::collections::{BTreeMap, HashSet};

use backstay_format::{
    ArchivedColumn, ArchivedRows, BackupId, Content, DeletedMark, Details, Encryption, Manifest,
    Slug,
};
use futures_util::{StreamExt as _, TryStreamExt as _};

use super::ArchiveSpec;
use super::digest::{Digester, RowDigest};
use super::file::{self, Fetched};
use super::partition::Tally;
use super::slice::Slice;
use crate::cx::Cx;
use crate::error::EngineError;
use crate::source::SourceError;
use crate::source::table::{DayRows, Shape, Span, TableSpec, refused, stored_word};
use crate::vault::{BackupPlace, Vault};

/// Manifests read at a time.
const PARALLEL_READS: usize = 8;
/// More spans make a statement longer than it saves.
const MAX_SPANS: usize = 100;

/// A segment of an archive.
#[derive(Debug, Clone)]
pub struct Segment {
    /// Where it lies in the vault of archives.
    pub place: BackupPlace,
    /// Its manifest.
    pub manifest: Manifest,
    /// What would leak content.
    pub details: Details,
    /// What it holds.
    pub content: ArchivedRows,
    /// Whether its rows are out of their table.
    pub deleted: Option<DeletedMark>,
}

impl Segment {
    /// Takes one of its files into the spool directory, proven.
    pub(super) async fn fetch(
        &self,
        cx: &Cx,
        vault: &Vault,
        spec: &ArchiveSpec,
        index: usize,
    ) -> Result<Fetched, EngineError> {
        let part = vault.read_part(cx, &self.manifest, &self.details, index)?;
        file::fetch(&spec.spool, &self.place.backup, part).await
    }
}

/// Reads the segments of an archive, the oldest first. One that cannot be used is an error: what it holds is not known.
pub async fn segments(
    cx: &Cx,
    vault: &Vault,
    organisation: &Slug,
    archive: &Slug,
) -> Result<Vec<Segment>, EngineError> {
    let listing = vault.list(cx, organisation, archive).await?;
    if let Some(unusable) = listing.unusable.into_iter().next() {
        return Err(unusable.error);
    }
    let ids = listing.backups.into_iter().rev().map(|entry| entry.id);
    futures_util::stream::iter(ids)
        .map(|id| read(cx, vault, organisation, archive, id))
        .buffered(PARALLEL_READS)
        .try_collect()
        .await
}

async fn read(
    cx: &Cx,
    vault: &Vault,
    organisation: &Slug,
    archive: &Slug,
    backup: BackupId,
) -> Result<Segment, EngineError> {
    let place = BackupPlace { organisation: organisation.clone(), source: archive.clone(), backup };
    let manifest = vault.manifest(cx, &place).await?;
    let details = vault.details(&manifest)?;
    let foreign = || EngineError::DamagedPart {
        backup: place.backup.clone(),
        part: "manifest".parse().expect("a legal part name"),
        finding: "it describes no rows of an archive".to_owned(),
    };
    let content = match &details.content {
        Some(Content::Archived(content)) => (**content).clone(),
        _ => return Err(foreign()),
    };
    if content.files.len() != manifest.parts.len() {
        return Err(foreign());
    }
    let deleted = vault.deleted_mark(cx, &place).await?;
    Ok(Segment { place, manifest, details, content, deleted })
}

/// The segments of an archive, and which of them wait for their rows to be deleted.
#[derive(Debug, Default)]
pub struct Known {
    pub(super) segments: Vec<Segment>,
    /// Those with rows that are in the table although they were deleted once: somebody put them back.
    pub(super) put_back: HashSet<BackupId>,
}

impl Known {
    pub(super) async fn read(
        cx: &Cx,
        vault: &Vault,
        spec: &ArchiveSpec,
    ) -> Result<Self, EngineError> {
        let segments = segments(cx, vault, &spec.organisation, &spec.name).await?;
        let is_open = |segment: &&Segment| segment.manifest.encryption == Encryption::None;
        if let Some(open) = segments.iter().find(is_open).filter(|_| spec.expects_sealed) {
            return Err(EngineError::Unsealed { backup: open.place.backup.clone() });
        }
        Ok(Self { segments, put_back: HashSet::new() })
    }

    pub(super) fn add(&mut self, segment: Segment) {
        self.segments.push(segment);
    }

    /// Returns which table is meant, with what earlier segments have of its columns.
    pub(super) fn table_spec(&self, spec: &ArchiveSpec) -> TableSpec {
        let mut earlier: BTreeMap<String, ArchivedColumn> = BTreeMap::new();
        for column in self.segments.iter().flat_map(|segment| &segment.content.columns) {
            earlier.insert(column.name.clone(), column.clone());
        }
        TableSpec { earlier: earlier.into_values().collect(), ..spec.table.clone() }
    }

    /// Adds up the archived rows of a partition.
    pub(super) fn tally(&self, partition: &str) -> Tally {
        let mut tally = Tally::default();
        let files = self.segments.iter().flat_map(|segment| &segment.content.files);
        for file in files.filter(|file| file.partition == partition) {
            tally.add(file.rows, file.times.parse().unwrap_or(0));
        }
        tally
    }

    /// Returns what of a table is to be read. Where rows are deleted, all that is there; else the partitions whose rows in the
    /// archive are not, by number and times, those in the table.
    pub(super) fn spans(
        &self,
        cx: &Cx,
        spec: &ArchiveSpec,
        days: &[DayRows],
        before: i64,
    ) -> Vec<Span> {
        let oldest_kept =
            spec.keep.filter(|_| !spec.delete).and_then(|keep| cx.now().checked_sub(keep).ok());
        let oldest_kept = oldest_kept.map_or(i64::MIN, |oldest| oldest.as_microsecond());
        let in_table = spec.partition.rows(days);
        let mut spans: Vec<Span> = Vec::new();
        let mut days: Vec<i64> = days.iter().map(|day| day.day).collect();
        days.sort_unstable();
        for day in days {
            let name = spec.partition.of(day);
            if !spec.delete && in_table.get(&name) == Some(&self.tally(&name)) {
                continue;
            }
            let (from, until) = spec.partition.span(day);
            // What would be let go by the next prune is not archived again.
            let (from, until) = (from.max(oldest_kept), until.min(before));
            if from >= until {
                continue;
            }
            match spans.last_mut() {
                Some((_, last)) if *last >= from => *last = until,
                _ => spans.push((from, until)),
            }
        }
        match (spans.first(), spans.last()) {
            (Some((from, _)), Some((_, until))) if spans.len() > MAX_SPANS => vec![(*from, *until)],
            _ => spans,
        }
    }

    /// Says what changed in a table's columns since the newest segment.
    pub(super) fn changes(&self, shape: &Shape) -> Vec<String> {
        let Some(newest) = self.segments.last() else { return Vec::new() };
        let now = columns_of(shape);
        let before = &newest.content.columns;
        let find = |columns: &[ArchivedColumn], name: &str| {
            columns.iter().find(|column| column.name == name).cloned()
        };
        let mut changes = Vec::new();
        for column in &now {
            match find(before, &column.name) {
                None => {
                    changes.push(format!("column {} ({}) is new", column.name, column.declared));
                }
                Some(was) if was.declared != column.declared || was.stored != column.stored => {
                    changes.push(format!(
                        "column {} was {} and is {}",
                        column.name,
                        described(&was),
                        described(column)
                    ));
                }
                Some(_) => {}
            }
        }
        let gone = before.iter().filter(|column| find(&now, &column.name).is_none());
        changes.extend(
            gone.map(|column| format!("column {} ({}) is gone", column.name, column.declared)),
        );
        if newest.content.key != shape.key {
            let key = |key: &[String]| key.join(", ");
            changes.push(format!(
                "the key was ({}) and is ({})",
                key(&newest.content.key),
                key(&shape.key)
            ));
        }
        changes
    }

    /// Leaves of a slice the rows that the archive does not hold as they are now: of a row that it holds several times, the
    /// newest counts, since that is what a restore gives back.
    pub(super) async fn without_archived(
        &mut self,
        cx: &Cx,
        vault: &Vault,
        spec: &ArchiveSpec,
        (slice, key): (Slice, &[String]),
    ) -> Result<Slice, EngineError> {
        let Some(first) = slice.pieces.first() else { return Ok(slice) };
        let (oldest, newest) = slice.range();
        let schema = first.batch.schema();
        let digesters = (Digester::new(&schema)?, Digester::of_columns(&schema, key)?);
        let mut left = slice;
        // Keys that a newer segment has: what an older one holds of them does not count.
        let mut seen: HashSet<RowDigest> = HashSet::new();
        for segment in self.segments.iter().rev() {
            for (index, file) in segment.content.files.iter().enumerate() {
                let span = (file.oldest.as_microsecond(), file.newest.as_microsecond());
                if span.1 < oldest || span.0 > newest || left.is_empty() {
                    continue;
                }
                let fetched = segment.fetch(cx, vault, spec, index).await?;
                let rows = fetched.digests(cx, &digesters).await?;
                let newest = rows.iter().filter(|(_, key)| !seen.contains(key));
                let archived: HashSet<RowDigest> = newest.filter_map(|(row, _)| *row).collect();
                seen.extend(rows.iter().map(|(_, key)| *key));
                let before = left.rows();
                left = left.without(|digest| archived.contains(&digest))?;
                if left.rows() < before {
                    self.put_back.insert(segment.place.backup.clone());
                }
            }
        }
        Ok(left)
    }

    /// Fails if what is archived is not of this table and this time.
    pub(super) fn check(&self, spec: &ArchiveSpec, shape: &Shape) -> Result<(), SourceError> {
        let is_other = |segment: &&Segment| {
            segment.content.table != shape.table || segment.content.column != spec.table.column
        };
        match self.segments.iter().find(is_other) {
            None => Ok(()),
            Some(Segment { content, .. }) => Err(refused(format!(
                "archive {} holds rows of {} by {}, and not of {} by {}; give what is another table or column an archive of another name",
                spec.name, content.table, content.column, shape.table, spec.table.column
            ))),
        }
    }

    /// Says whether no newer segment holds rows of the same time as one: then it holds the newest of its rows.
    pub(super) fn is_newest(&self, index: usize) -> bool {
        let span = |segment: &Segment| {
            let files = || segment.content.files.iter();
            (files().map(|file| file.oldest).min(), files().map(|file| file.newest).max())
        };
        let Some((oldest, newest)) = self.segments.get(index).map(span) else { return false };
        self.segments
            .iter()
            .skip(index + 1)
            .map(span)
            .all(|(from, to)| to < oldest || from > newest)
    }
}

fn described(column: &ArchivedColumn) -> String {
    format!("{} (stored as {})", column.declared, column.stored)
}

/// Describes a table's columns for a manifest.
pub(super) fn columns_of(shape: &Shape) -> Vec<ArchivedColumn> {
    let column = |column: &crate::source::table::TableColumn| ArchivedColumn {
        name: column.field.name().clone(),
        declared: column.declared.clone(),
        stored: stored_word(&column.field),
    };
    shape.columns.iter().map(column).collect()
}
