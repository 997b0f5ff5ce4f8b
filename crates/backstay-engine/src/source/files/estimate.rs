//! How much a backup of a tree will read.

use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::FileType;

use super::walk::MAX_DEPTH;
use super::{FilesSource, look};
use crate::cx::Cx;
use crate::source::{Probe, SourceError};

/// Entries that an estimate looks at before it stops.
const MAX_ESTIMATED: u64 = 200_000;

/// Counts what a backup will read; stops counting, not guessing, at a few hundred thousand entries.
pub(super) fn estimate(cx: &Cx, source: &FilesSource) -> Result<Probe, SourceError> {
    let mut probe = Probe { items: Some(0), ..Probe::default() };
    let mut waiting = vec![(look::open_root(&source.root)?, Vec::new())];
    while let Some((directory, path)) = waiting.pop() {
        cx.check()?;
        count(source, &directory, &path, &mut probe, &mut waiting);
        if probe.items.is_some_and(|items| items > MAX_ESTIMATED) {
            probe.items = None;
            break;
        }
    }
    Ok(probe)
}

/// Counts the names in one directory, and opens the directories among them for later.
fn count(
    source: &FilesSource,
    directory: &OwnedFd,
    path: &[u8],
    probe: &mut Probe,
    waiting: &mut Vec<(OwnedFd, Vec<u8>)>,
) {
    // What cannot be looked at here is named by the backup itself.
    for name in look::names(directory).unwrap_or_default() {
        let path = look::path_below(path, &name);
        let Ok(stat) = look::stat(directory.as_fd(), &name) else { continue };
        let is_directory = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
        if source.leaves_out(&path, is_directory) {
            continue;
        }
        probe.items = probe.items.map(|items| items + 1);
        // A header, and data in blocks; holes are not read.
        probe.size_bytes += 512 + stat.st_size.min(stat.st_blocks * 512).max(0).cast_unsigned();
        if is_directory
            && waiting.len() < MAX_DEPTH
            && let Ok(below) = look::open_directory(directory.as_fd(), &name)
        {
            waiting.push((below, path));
        }
    }
}
