//! Disks that are nearly full (V55).

use std::path::Path;

use backstay_engine::event::Event;

use crate::config::{SourceConfig, StorageKind};
use crate::installation::Installation;
use crate::render;

/// Returns what is left for us on the disk of a path.
pub(super) fn free_bytes(path: &Path) -> Option<u64> {
    let room = rustix::fs::statvfs(path).ok()?;
    Some(room.f_bavail.saturating_mul(room.f_frsize))
}

/// Warns before a backup of disks that it writes to and that have little room left. Whether it fits is found out by writing.
pub(super) fn warn_of_little(app: &Installation, source: &SourceConfig) {
    let local = app.config.storages.get(&source.storage).and_then(|storage| match &storage.kind {
        StorageKind::Local { path, .. } => Some(path.as_path()),
        StorageKind::S3 { .. } => None,
    });
    for path in std::iter::once(app.home.path()).chain(local) {
        // The first backup makes the directory of its storage.
        let free = path.ancestors().find_map(free_bytes);
        if let Some(free) = free.filter(|free| *free < app.config.disk_warn) {
            let text =
                format!("the disk of {} has only {} left", path.display(), render::size(free));
            app.cx.event(Event::Warning { text });
        }
    }
}
