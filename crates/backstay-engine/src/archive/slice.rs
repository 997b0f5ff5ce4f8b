//! Rows as they come from a table, gathered into slices that fit into memory; each slice becomes a segment.

use arrow_array::RecordBatch;

use super::digest::{Digester, RowDigest};
use super::partition::Partition;
use crate::cx::Cx;
use crate::source::SourceError;
use crate::source::table::{Rows, next_batch, only, refused, times};

/// As many rows as a segment has at most.
const MAX_ROWS: u64 = 1_000_000;
/// As much memory as the rows of a segment take; several copies of parts of them are under way at a time.
const MAX_BYTES: usize = 24 << 20;

/// Gathers slices.
pub(super) struct Slices {
    rows: Rows,
    is_at_end: bool,
}

impl Slices {
    pub(super) fn new(rows: Rows) -> Self {
        Self { rows, is_at_end: false }
    }

    /// Returns the next slice, or `None` after the last row.
    pub(super) async fn next(&mut self, cx: &Cx) -> Result<Option<Slice>, SourceError> {
        let mut slice = Slice::default();
        let mut bytes = 0;
        while !self.is_at_end && slice.rows() < MAX_ROWS && bytes < MAX_BYTES {
            match next_batch(cx, &mut self.rows).await? {
                None => self.is_at_end = true,
                Some(batch) => {
                    bytes += batch.get_array_memory_size();
                    slice.push(&batch)?;
                }
            }
        }
        Ok((!slice.is_empty()).then_some(slice))
    }
}

/// Rows in the order of their time, with the time and the digest of each.
#[derive(Default)]
pub(super) struct Slice {
    pub(super) pieces: Vec<Piece>,
}

/// A batch of a slice.
pub(super) struct Piece {
    pub(super) batch: RecordBatch,
    pub(super) at: Vec<i64>,
    pub(super) digests: Vec<RowDigest>,
}

impl Slice {
    fn push(&mut self, batch: &RecordBatch) -> Result<(), SourceError> {
        if batch.num_rows() == 0 {
            return Ok(());
        }
        let at = times(batch)?;
        let columns: Vec<usize> = (0..batch.num_columns() - 1).collect();
        let batch = batch.project(&columns).map_err(|error| refused(error.to_string()))?;
        let digests = Digester::new(batch.schema_ref())?.rows(&batch)?;
        self.pieces.push(Piece { batch, at, digests });
        Ok(())
    }

    pub(super) fn rows(&self) -> u64 {
        self.pieces.iter().map(|piece| piece.at.len() as u64).sum()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.pieces.is_empty()
    }

    /// Returns the first and the last time.
    pub(super) fn range(&self) -> (i64, i64) {
        let times = || self.pieces.iter().flat_map(|piece| piece.at.iter().copied());
        (times().min().unwrap_or(i64::MAX), times().max().unwrap_or(i64::MIN))
    }

    /// Leaves the rows whose digests are not said to be known.
    pub(super) fn without(
        self,
        mut is_known: impl FnMut(RowDigest) -> bool,
    ) -> Result<Self, SourceError> {
        let mut left = Self::default();
        for piece in self.pieces {
            let keep: Vec<bool> = piece.digests.iter().map(|digest| !is_known(*digest)).collect();
            if keep.iter().all(|keep| *keep) {
                left.pieces.push(piece);
                continue;
            }
            let batch = only(&piece.batch, keep.clone())?;
            if batch.num_rows() > 0 {
                left.pieces.push(Piece {
                    batch,
                    at: kept(&piece.at, &keep),
                    digests: kept(&piece.digests, &keep),
                });
            }
        }
        Ok(left)
    }

    /// Divides the rows by partition.
    pub(super) fn by_partition(self, partition: Partition) -> Vec<(String, Self)> {
        let mut divided: Vec<(String, Self)> = Vec::new();
        for piece in self.pieces {
            let mut from = 0;
            while let Some(at) = piece.at.get(from) {
                let name = partition.of(*at);
                let (first, before) = partition.span(*at);
                let is_here = |at: &i64| (first..before).contains(at);
                let length = piece.at[from..].iter().take_while(|at| is_here(at)).count();
                let part = Piece {
                    batch: piece.batch.slice(from, length),
                    at: piece.at[from..from + length].to_vec(),
                    digests: piece.digests[from..from + length].to_vec(),
                };
                match divided.iter_mut().find(|(other, _)| *other == name) {
                    Some((_, slice)) => slice.pieces.push(part),
                    None => divided.push((name, Self { pieces: vec![part] })),
                }
                from += length;
            }
        }
        divided
    }
}

fn kept<T: Copy>(values: &[T], keep: &[bool]) -> Vec<T> {
    values.iter().zip(keep).filter(|(_, keep)| **keep).map(|(value, _)| *value).collect()
}
