//! Putting a database back: loaded beside, checked, then swapped with all that belongs to the old one.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use async_trait::async_trait;
use rusqlite::Connection;

use super::{blocking, companions, snapshot};
use crate::cx::Cx;
use crate::part::PartReader;
use crate::replace::Replacement;
use crate::source::{ApplyReport, Loaded, SourceError, Target, beside};
use crate::spool::check_space;

/// A place beside a database file.
#[derive(Debug)]
pub(super) struct SqliteTarget {
    target: PathBuf,
    beside: PathBuf,
    report: ApplyReport,
}

impl SqliteTarget {
    pub(super) fn new(target: PathBuf, tag: &str) -> Self {
        let beside = beside(&target, tag);
        Self { target, beside, report: ApplyReport::default() }
    }
}

#[async_trait]
impl Target for SqliteTarget {
    async fn prepare(&mut self, _cx: &Cx) -> Result<(), SourceError> {
        let parent = parent(&self.target);
        if !parent.is_dir() {
            return Err(SourceError::NotFound { path: parent.to_owned() });
        }
        if self.target.is_dir() {
            return Err(SourceError::WrongKind { path: self.target.clone(), expected: "a file" });
        }
        check_space(parent, 0)
    }

    async fn apply(&mut self, cx: &Cx, data: PartReader) -> Result<(), SourceError> {
        check_space(parent(&self.target), data.spec.estimate_bytes.unwrap_or(0))?;
        let (cx, beside, target) = (cx.clone(), self.beside.clone(), self.target.clone());
        self.report = blocking(move || load(&cx, data, &beside, &target)).await?;
        Ok(())
    }

    async fn finish(self: Box<Self>, _cx: &Cx) -> Result<Loaded, SourceError> {
        let replacement = Replacement {
            companions: companions(&self.target),
            target: self.target,
            beside: self.beside,
        };
        Ok(Loaded { report: self.report, replacement })
    }

    async fn discard(self: Box<Self>, _cx: &Cx) -> Result<(), SourceError> {
        for path in companions(&self.beside).into_iter().chain([self.beside]) {
            match fs::remove_file(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(SourceError::io("remove", path, error));
                }
                _ => {}
            }
        }
        Ok(())
    }
}

fn load(
    cx: &Cx,
    data: PartReader,
    beside: &Path,
    target: &Path,
) -> Result<ApplyReport, SourceError> {
    let part = data.spec.name.clone();
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(beside)
        .map_err(|cause| SourceError::io("make", beside, cause))?;
    let bytes = io::copy(&mut data.into_read(), &mut file).map_err(|error| {
        match error.downcast::<SourceError>() {
            Ok(source) => source,
            Err(cause) => SourceError::io("write", beside, cause),
        }
    })?;
    cx.check()?;
    let copy =
        Connection::open(beside).map_err(|cause| snapshot::explain("open", beside, cause))?;
    let content = snapshot::examine(&copy, beside).map_err(|error| match error {
        // The stream was proven, so it is the database in the backup that is bad.
        SourceError::Damaged { finding, .. } => SourceError::Hostile { part, finding },
        other => other,
    })?;
    copy.close().map_err(|(_, cause)| snapshot::explain("close", beside, cause))?;
    let mut warnings = Vec::new();
    dress(&file, target, &mut warnings)
        .map_err(|cause| SourceError::io("set owner and mode of", beside, cause))?;
    file.sync_all().map_err(|cause| SourceError::io("write", beside, cause))?;
    Ok(ApplyReport { items: content.tables.len() as u64, bytes, warnings })
}

/// Gives the new file the owner and mode of the present one, or the owner of its directory.
fn dress(file: &File, target: &Path, warnings: &mut Vec<String>) -> io::Result<()> {
    let (like, mode) = match fs::metadata(target) {
        Ok(meta) => (meta.clone(), meta.permissions().mode() & 0o7777),
        Err(_) => (fs::metadata(parent(target))?, 0o640),
    };
    let now = file.metadata()?;
    if (now.uid(), now.gid()) != (like.uid(), like.gid())
        && std::os::unix::fs::fchown(file, Some(like.uid()), Some(like.gid())).is_err()
    {
        warnings.push(format!(
            "the owner {}:{} could not be set without root's rights",
            like.uid(),
            like.gid()
        ));
    }
    file.set_permissions(fs::Permissions::from_mode(mode))
}

fn parent(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}
