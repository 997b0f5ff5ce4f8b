//! How much a backup of a tree will read.

use std::os::fd::{AsFd as _, OwnedFd};

use rustix::fs::{FileType, Stat};

use super::walk::MAX_DEPTH;
use super::{FilesSource, look};
use crate::cx::Cx;
use crate::source::{Probe, SourceError};

/// Entries that a quick estimate looks at before it stops.
const MAX_QUICK: u64 = 200_000;
/// A member's header.
const HEADER_BYTES: u64 = 512;

/// How exact an estimate should be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Exactness {
    /// Good enough to show: ends early in a large tree.
    Quick,
    /// The size of an upload's parts comes from it, and so the largest size that the upload may have.
    Full,
}

/// Counts what a backup will read.
pub(super) fn estimate(
    cx: &Cx,
    source: &FilesSource,
    exactness: Exactness,
) -> Result<Probe, SourceError> {
    let limit = if exactness == Exactness::Quick { MAX_QUICK } else { u64::MAX };
    let root = look::open_root(&source.root)?;
    let device = rustix::fs::fstat(&root)
        .map_err(|e| SourceError::io("look at", &source.root, e.into()))?
        .st_dev;
    let mut counted = Counted { items: 0, bytes: 0, limit, device };
    counted.directory(cx, source, &root, b"", 0)?;
    let is_whole = counted.items < limit;
    Ok(Probe {
        size_bytes: counted.bytes,
        items: is_whole.then_some(counted.items),
        ..Probe::default()
    })
}

struct Counted {
    items: u64,
    bytes: u64,
    limit: u64,
    device: u64,
}

impl Counted {
    fn directory(
        &mut self,
        cx: &Cx,
        source: &FilesSource,
        directory: &OwnedFd,
        path: &[u8],
        depth: usize,
    ) -> Result<(), SourceError> {
        cx.check()?;
        // What cannot be looked at here is named by the backup itself.
        let look::Names { directories, others } = look::names(directory).unwrap_or_default();
        for name in others.into_iter().chain(directories) {
            if self.items >= self.limit {
                break;
            }
            let path = look::path_below(path, &name);
            let Ok(stat) = look::stat(directory.as_fd(), &name) else { continue };
            let kind = FileType::from_raw_mode(stat.st_mode);
            let is_directory = kind == FileType::Directory;
            let is_elsewhere = source.one_file_system && stat.st_dev != self.device;
            if is_elsewhere || source.leaves_out(&path, is_directory) {
                continue;
            }
            self.items += 1;
            self.bytes += HEADER_BYTES;
            if kind == FileType::RegularFile {
                self.bytes += data_bytes(&stat);
            } else if is_directory
                && depth < MAX_DEPTH
                && let Ok(below) = look::open_directory(directory.as_fd(), &name)
            {
                self.directory(cx, source, &below, &path, depth + 1)?;
            }
        }
        Ok(())
    }
}

/// Returns how much of a file is read: holes are not.
fn data_bytes(stat: &Stat) -> u64 {
    stat.st_size.min(stat.st_blocks * 512).max(0).cast_unsigned()
}
