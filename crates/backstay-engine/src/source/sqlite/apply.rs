//! Putting a database back: loaded beside, checked, then swapped with all that belongs to the old one.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use async_trait::async_trait;
use backstay_format::Details;
use rusqlite::Connection;

use super::{COMPANIONS, blocking, snapshot};
use crate::cx::Cx;
use crate::part::{PartError, PartReader};
use crate::replace::{Replacement, Scope};
use crate::source::{
    Applied, ApplyReport, Loaded, Outlook, SourceError, Target, TargetOptions, beside,
};
use crate::spool::{check_space, write_part};

/// A place beside a database file.
#[derive(Debug)]
pub(super) struct SqliteTarget {
    replacement: Replacement,
    is_own: bool,
    in_place: bool,
    report: ApplyReport,
}

impl SqliteTarget {
    pub(super) fn new(own: &Path, options: TargetOptions) -> Self {
        let to = options.to.map(PathBuf::from);
        let is_own = to.as_ref().is_none_or(|to| to == own);
        let target = to.unwrap_or_else(|| own.to_owned());
        let beside = beside(&target, &options.tag);
        let scope = Scope::Whole { companions: COMPANIONS.map(str::to_owned).to_vec() };
        let replacement = Replacement { target, beside, scope };
        let in_place = options.in_place;
        Self { replacement, is_own, in_place, report: ApplyReport::default() }
    }
}

#[async_trait]
impl Target for SqliteTarget {
    async fn outlook(&self, _cx: &Cx, _details: &Details) -> Result<Outlook, SourceError> {
        Ok(self.replacement.outlook())
    }

    async fn prepare(&mut self, _cx: &Cx, _details: &Details) -> Result<(), SourceError> {
        let Replacement { target, beside, .. } = &self.replacement;
        let wrong = |expected| Err(SourceError::WrongKind { path: target.clone(), expected });
        let parent = parent(target);
        if !parent.is_dir() {
            return Err(SourceError::NotFound { path: parent.to_owned() });
        }
        if self.in_place {
            return wrong(
                "restored in place: a database is swapped in one step, without --in-place",
            );
        }
        match fs::metadata(target) {
            Ok(meta) if meta.is_dir() => return wrong("a file"),
            Ok(meta) if !self.is_own && meta.len() > 0 => return wrong("free: it exists already"),
            _ => {}
        }
        self.replacement.prepare().map_err(|cause| SourceError::io("make", beside, cause))
    }

    async fn apply(&mut self, cx: &Cx, data: PartReader) -> Result<Applied, SourceError> {
        let Replacement { target, beside, .. } = &self.replacement;
        check_space(beside, data.spec.estimate_bytes.unwrap_or(0))?;
        let (cx, loaded, target) = (cx.clone(), self.replacement.loaded(), target.clone());
        self.report = blocking(move || load(&cx, data, &loaded, &target)).await?;
        Ok(Applied::Done)
    }

    async fn finish(self: Box<Self>, _cx: &Cx) -> Result<Loaded, SourceError> {
        Ok(Loaded { report: self.report, replacement: self.replacement.into() })
    }

    async fn discard(self: Box<Self>, _cx: &Cx) -> Result<(), SourceError> {
        let Replacement { beside, .. } = &self.replacement;
        self.replacement.discard().map_err(|cause| SourceError::io("remove", beside, cause))
    }
}

fn load(
    cx: &Cx,
    data: PartReader,
    beside: &Path,
    target: &Path,
) -> Result<ApplyReport, SourceError> {
    let part = data.spec.name.clone();
    let (file, bytes) = write_part(data, beside)?;
    cx.check()?;
    let copy =
        Connection::open(beside).map_err(|cause| snapshot::explain("open", beside, cause))?;
    let content = snapshot::examine(&copy, beside).map_err(|error| match error {
        // The stream was proven, so it is the database in the backup that is bad.
        SourceError::Damaged { finding, .. } => PartError::Refused { part, finding }.into(),
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
