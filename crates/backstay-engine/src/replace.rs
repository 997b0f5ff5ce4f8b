//! Swapping what was loaded beside into the target's place, and back.

use std::io;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, RenameFlags, renameat_with};
use serde::{Deserialize, Serialize};

use crate::error::EngineError;

/// What will be moved where to put a loaded restore into its place; serialisable, so that an interrupted swap can be
/// finished and a finished one undone by a later process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Replacement {
    /// The place to be replaced: a directory or a file. May not exist yet.
    pub target: PathBuf,
    /// What was loaded; on the same file system as the target. After the swap the old target lies here.
    pub beside: PathBuf,
    /// Files beside the target that belong to its content and must go with it: `-wal`, `-shm`, `-journal`.
    pub companions: Vec<PathBuf>,
}

/// Exchanges the target with what lies beside it. Doing it twice restores the state before.
///
/// One atomic exchange of two names, so that at every moment the target is wholly old or wholly new. Companions are
/// moved away first: a write-ahead log that is left beside another database would be played into it.
pub fn swap(replacement: &Replacement) -> Result<(), EngineError> {
    let Replacement { target, beside, companions } = replacement;
    for companion in companions {
        exchange(companion, &moved(companion, target, beside))?;
    }
    exchange(target, beside)?;
    for path in [target, beside] {
        sync_parent(path)?;
    }
    Ok(())
}

/// Removes what a swap left beside the target.
pub fn discard(replacement: &Replacement) -> Result<(), EngineError> {
    let Replacement { target, beside, companions } = replacement;
    for companion in companions {
        remove(&moved(companion, target, beside))?;
    }
    remove(beside)
}

/// Returns where a companion goes: beside the old content, under the name that belongs to it there.
fn moved(companion: &Path, target: &Path, beside: &Path) -> PathBuf {
    let suffix = companion
        .as_os_str()
        .as_encoded_bytes()
        .strip_prefix(target.as_os_str().as_encoded_bytes())
        .map(String::from_utf8_lossy)
        .unwrap_or_default();
    let mut name = beside.as_os_str().to_owned();
    name.push(suffix.as_ref());
    PathBuf::from(name)
}

/// Exchanges two names, either of which may stand for nothing.
fn exchange(a: &Path, b: &Path) -> Result<(), EngineError> {
    let there = |path: &Path| path.symlink_metadata().is_ok();
    let renamed = match (there(a), there(b)) {
        (true, true) => renameat_with(CWD, a, CWD, b, RenameFlags::EXCHANGE),
        (true, false) => renameat_with(CWD, a, CWD, b, RenameFlags::NOREPLACE),
        (false, true) => renameat_with(CWD, b, CWD, a, RenameFlags::NOREPLACE),
        (false, false) => Ok(()),
    };
    renamed.map_err(|errno| EngineError::Swap {
        action: "exchange",
        path: a.to_owned(),
        cause: errno.into(),
    })
}

fn sync_parent(path: &Path) -> Result<(), EngineError> {
    let Some(parent) = path.parent() else { return Ok(()) };
    std::fs::File::open(parent).and_then(|directory| directory.sync_all()).map_err(|cause| {
        EngineError::Swap { action: "make durable", path: parent.to_owned(), cause }
    })
}

fn remove(path: &Path) -> Result<(), EngineError> {
    let removed = match path.symlink_metadata() {
        Ok(meta) if meta.is_dir() => std::fs::remove_dir_all(path),
        Ok(_) => std::fs::remove_file(path),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    };
    removed.map_err(|cause| EngineError::Swap { action: "remove", path: path.to_owned(), cause })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn swap_moves_companions_with_their_database_and_swapping_again_brings_all_back() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        std::fs::write(path("app.db"), "old").unwrap();
        std::fs::write(path("app.db-wal"), "old log").unwrap();
        std::fs::write(path(".app.db.backstay-1"), "new").unwrap();
        let replacement = Replacement {
            target: path("app.db"),
            beside: path(".app.db.backstay-1"),
            companions: vec![path("app.db-wal"), path("app.db-shm")],
        };
        let read = |name: &str| std::fs::read_to_string(path(name)).ok();
        swap(&replacement).unwrap();
        assert_eq!((read("app.db").as_deref(), read("app.db-wal")), (Some("new"), None));
        assert_eq!(read(".app.db.backstay-1-wal").as_deref(), Some("old log"));
        swap(&replacement).unwrap();
        assert_eq!(
            (read("app.db").as_deref(), read("app.db-wal").as_deref()),
            (Some("old"), Some("old log"))
        );
        swap(&replacement).unwrap();
        discard(&replacement).unwrap();
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}
