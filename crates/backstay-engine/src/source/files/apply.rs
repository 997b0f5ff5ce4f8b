//! Preparing a place beside a tree, or in it, for what is unpacked.

use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use async_trait::async_trait;
use backstay_format::Details;
use rustix::fs::{Access, AtFlags, CWD, StatxAttributes, StatxFlags};

use super::FilesSource;
use super::unpack::{Choice, Unpack};
use crate::cx::Cx;
use crate::part::PartReader;
use crate::replace::{OWN_PREFIX, Replacement, Scope};
use crate::source::sqlite::blocking;
use crate::source::{Applied, Loaded, Outlook, SourceError, Target, TargetOptions, beside};
use crate::spool::check_space;

/// A place beside a tree, or in it.
pub(super) struct FilesTarget {
    replacement: Replacement,
    is_own_root: bool,
    choice: Choice,
    /// What was unpacked so far.
    unpack: Option<Unpack>,
}

impl FilesTarget {
    pub(super) fn new(source: &FilesSource, options: TargetOptions) -> Self {
        let to = options.to.map(PathBuf::from);
        let is_own_root = to.as_ref().is_none_or(|to| *to == source.root);
        // A root that is a link stays one: what it points to is replaced.
        let root = source.root.canonicalize().unwrap_or_else(|_| source.root.clone());
        let target = to.filter(|_| !is_own_root).unwrap_or(root);
        let choice = Choice { transient: source.transient.clone(), only: options.only };
        let scope = if is_own_root && target.is_dir() && !choice.only.is_empty() {
            Scope::Paths(choice.only.clone())
        } else if target.is_dir() && (options.in_place || !can_be_renamed(&target)) {
            Scope::Entries
        } else {
            Scope::Whole { companions: Vec::new() }
        };
        let beside = match scope {
            Scope::Whole { .. } => beside(&target, &options.tag),
            Scope::Entries | Scope::Paths(_) => target.join(format!("{OWN_PREFIX}{}", options.tag)),
        };
        let replacement = Replacement { target, beside, scope };
        Self { replacement, is_own_root, choice, unpack: None }
    }
}

#[async_trait]
impl Target for FilesTarget {
    async fn outlook(&self, _cx: &Cx, _details: &Details) -> Result<Outlook, SourceError> {
        Ok(self.replacement.outlook())
    }

    async fn prepare(&mut self, _cx: &Cx, _details: &Details) -> Result<(), SourceError> {
        let Replacement { target, beside, scope } = &self.replacement;
        let parent = target.parent().unwrap_or(Path::new("/"));
        if !parent.is_dir() {
            return Err(SourceError::NotFound { path: parent.to_owned() });
        }
        let wrong = |expected| Err(SourceError::WrongKind { path: target.clone(), expected });
        if target.exists() && !target.is_dir() {
            return wrong("a directory");
        }
        if !self.is_own_root && target.read_dir().is_ok_and(|mut entries| entries.next().is_some())
        {
            return wrong("an empty directory");
        }
        self.replacement.prepare().map_err(|cause| SourceError::io("make", beside, cause))?;
        if matches!(scope, Scope::Whole { .. }) {
            let loaded = self.replacement.loaded();
            std::fs::DirBuilder::new()
                .mode(0o700)
                .create(&loaded)
                .map_err(|cause| SourceError::io("make", &loaded, cause))?;
        }
        Ok(())
    }

    async fn apply(&mut self, cx: &Cx, data: PartReader) -> Result<Applied, SourceError> {
        let loaded = self.replacement.loaded();
        check_space(&loaded, data.spec.estimate_bytes.unwrap_or(0))?;
        let unpack = self.unpack.take();
        let mut unpack = unpack.map_or_else(
            || Unpack::new(cx, data.spec.name.clone(), loaded, self.choice.clone()),
            Ok,
        )?;
        let (unpack, applied) = blocking(move || {
            let applied = unpack.read(data)?;
            Ok((unpack, applied))
        })
        .await?;
        self.unpack = Some(unpack);
        Ok(applied)
    }

    async fn finish(self: Box<Self>, _cx: &Cx) -> Result<Loaded, SourceError> {
        let report = self.unpack.map(Unpack::report).unwrap_or_default();
        Ok(Loaded { report, replacement: self.replacement.into() })
    }

    async fn discard(self: Box<Self>, _cx: &Cx) -> Result<(), SourceError> {
        let Replacement { beside, .. } = &self.replacement;
        self.replacement.discard().map_err(|cause| SourceError::io("remove", beside, cause))
    }
}

/// Whether a directory can be swapped with a sibling: it is no mount point, and its parent may be written.
fn can_be_renamed(directory: &Path) -> bool {
    let flags = StatxFlags::BASIC_STATS;
    let is_mount_point = rustix::fs::statx(CWD, directory, AtFlags::empty(), flags)
        .is_ok_and(|stat| stat.stx_attributes.contains(StatxAttributes::MOUNT_ROOT));
    let parent = directory.parent().unwrap_or(directory);
    let may_write = rustix::fs::access(parent, Access::WRITE_OK | Access::EXEC_OK).is_ok();
    !is_mount_point && may_write
}
