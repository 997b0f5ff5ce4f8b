//! Unpacking a tree beside its target. The archive is not trusted: nothing is ever written outside of the new tree.

use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use backstay_format::PartName;
use rustix::fs::{
    Access, AtFlags, CWD, Gid, Mode, OFlags, StatxAttributes, StatxFlags, Timespec, Timestamps,
    Uid, XattrFlags,
};
use tar::EntryType;

use super::tar_read::{Announced, TarError, TarReader};
use super::tar_write::Member;
use super::{FilesSource, Pattern, readable};
use crate::cx::Cx;
use crate::part::{PartError, PartReader};
use crate::replace::{OWN_PREFIX, Replacement, Scope};
use crate::source::sqlite::blocking;
use crate::source::{ApplyReport, Loaded, SourceError, Target, TargetOptions, beside};
use crate::spool::check_space;

/// Warnings of one restore that are kept by name.
const LISTED_WARNINGS: usize = 20;

/// A place beside a tree, or in it.
pub(super) struct FilesTarget {
    replacement: Replacement,
    is_own_root: bool,
    transient: Vec<Pattern>,
    only: Vec<PathBuf>,
    report: ApplyReport,
}

impl FilesTarget {
    pub(super) fn new(source: &FilesSource, options: TargetOptions) -> Self {
        let is_own_root = options.to.as_ref().is_none_or(|to| *to == source.root);
        // A root that is a link stays one: what it points to is replaced.
        let root = source.root.canonicalize().unwrap_or_else(|_| source.root.clone());
        let target = options.to.filter(|_| !is_own_root).unwrap_or(root);
        let (transient, only) = (source.transient.clone(), options.only);
        let scope = if is_own_root && target.is_dir() && !only.is_empty() {
            Scope::Paths(only.clone())
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
        Self { replacement, is_own_root, transient, only, report: ApplyReport::default() }
    }
}

#[async_trait]
impl Target for FilesTarget {
    fn scope(&self) -> &Scope {
        &self.replacement.scope
    }

    async fn prepare(&mut self, _cx: &Cx) -> Result<(), SourceError> {
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

    async fn apply(&mut self, cx: &Cx, data: PartReader) -> Result<(), SourceError> {
        let loaded = self.replacement.loaded();
        check_space(&loaded, data.spec.estimate_bytes.unwrap_or(0))?;
        let mut unpack = Unpack {
            cx: cx.clone(),
            part: data.spec.name.clone(),
            root: Arc::new(open_directory(&loaded)?),
            beside: loaded,
            parent: None,
            transient: self.transient.clone(),
            only: self.only.clone(),
            matched: BTreeSet::new(),
            directories: Vec::new(),
            is_root: rustix::process::geteuid().is_root(),
            refused: 0,
            report: ApplyReport::default(),
        };
        self.report = blocking(move || {
            unpack.all(data)?;
            Ok(unpack.report)
        })
        .await?;
        Ok(())
    }

    async fn finish(self: Box<Self>, _cx: &Cx) -> Result<Loaded, SourceError> {
        Ok(Loaded { report: self.report, replacement: self.replacement })
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

struct Unpack {
    cx: Cx,
    part: PartName,
    beside: PathBuf,
    root: Arc<OwnedFd>,
    /// The directory that the last member went into: most members share it with the one before.
    parent: Option<(Vec<u8>, Arc<OwnedFd>)>,
    transient: Vec<Pattern>,
    only: Vec<PathBuf>,
    matched: BTreeSet<PathBuf>,
    /// Directories get their metadata last: writing into them changes their times, and may need more rights.
    directories: Vec<(Vec<u8>, Member)>,
    is_root: bool,
    refused: usize,
    report: ApplyReport,
}

impl Unpack {
    fn all(&mut self, data: PartReader) -> Result<(), SourceError> {
        let mut tar = TarReader::new(data.into_read());
        while let Some(announced) = tar.next().map_err(|error| self.explain(error))? {
            self.cx.check()?;
            self.member(&mut tar, announced)?;
        }
        tar.finish().map_err(|error| self.explain(error))?;
        if let Some(missing) = self.only.iter().find(|path| !self.matched.contains(*path)) {
            return Err(SourceError::NothingMatches { path: missing.clone() });
        }
        self.parent = None;
        while let Some((path, member)) = self.directories.pop() {
            let directory = if path.is_empty() { self.root.clone() } else { self.open(&path)? };
            self.dress(directory.as_fd(), &path, &member)?;
        }
        // Everything must be on the disk before it replaces what is there.
        rustix::fs::syncfs(&self.root)
            .map_err(|e| SourceError::io("make durable", &self.beside, e.into()))?;
        if self.refused > LISTED_WARNINGS {
            let rest = self.refused - LISTED_WARNINGS;
            self.report.warnings.push(format!("and {rest} more such warnings"));
        }
        Ok(())
    }

    fn member<R: io::BufRead>(
        &mut self,
        tar: &mut TarReader<R>,
        announced: Announced,
    ) -> Result<(), SourceError> {
        let path = self.checked_path(&announced.member.path)?;
        let is_directory = announced.member.kind == EntryType::Directory;
        if !self.is_wanted(&path, is_directory) {
            return Ok(());
        }
        match announced.member.kind {
            EntryType::Directory => self.directory(path, announced.member),
            EntryType::Regular => self.file(tar, &path, &announced),
            EntryType::Symlink => self.symlink(&path, &announced.member),
            EntryType::Link => self.hard_link(&path, &announced.member),
            other => Err(self.hostile(format!(
                "{} is of kind {other:?}, which is never restored",
                readable(&path)
            ))),
        }
    }

    fn directory(&mut self, path: Vec<u8>, member: Member) -> Result<(), SourceError> {
        if !path.is_empty() {
            let (parent, name) = self.place(&path)?;
            match rustix::fs::mkdirat(&parent, name.as_slice(), Mode::RWXU) {
                // Made on the way to something in it.
                Ok(()) | Err(rustix::io::Errno::EXIST) => {}
                Err(error) => return Err(self.io("make", &path, error)),
            }
            // Proves that what is there is a directory, and no link to one.
            self.open(&path)?;
        }
        self.directories.push((path, member));
        self.report.items += 1;
        Ok(())
    }

    fn file<R: io::BufRead>(
        &mut self,
        tar: &mut TarReader<R>,
        path: &[u8],
        announced: &Announced,
    ) -> Result<(), SourceError> {
        let (parent, name) = self.place(path)?;
        let flags =
            OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = rustix::fs::openat(&parent, name.as_slice(), flags, Mode::RUSR | Mode::WUSR)
            .map_err(|error| self.clash("make", path, error))?;
        let file = File::from(file);
        for region in &announced.regions {
            let mut at = region.start;
            while at < region.end {
                let bytes = tar.data(region.end - at).map_err(|error| self.explain(error))?;
                write_all_at(&file, bytes, at).map_err(|e| self.io("write", path, e))?;
                let written = bytes.len();
                tar.consume(written);
                at += written as u64;
                self.cx.check()?;
            }
        }
        let written = announced.regions.iter().rfind(|region| !region.is_empty());
        if written.map_or(0, |last| last.end) < announced.size {
            // It ends in a hole.
            rustix::fs::ftruncate(&file, announced.size).map_err(|e| self.io("write", path, e))?;
        }
        self.dress(file.as_fd(), path, &announced.member)?;
        self.report.items += 1;
        self.report.bytes += announced.size;
        Ok(())
    }

    fn symlink(&mut self, path: &[u8], member: &Member) -> Result<(), SourceError> {
        let (parent, name) = self.place(path)?;
        rustix::fs::symlinkat(member.link.as_slice(), &parent, name.as_slice())
            .map_err(|error| self.clash("make", path, error))?;
        if self.is_root {
            let (uid, gid) = owner(member);
            rustix::fs::chownat(
                &parent,
                name.as_slice(),
                Some(uid),
                Some(gid),
                AtFlags::SYMLINK_NOFOLLOW,
            )
            .map_err(|error| self.io("set the owner of", path, error))?;
        }
        rustix::fs::utimensat(&parent, name.as_slice(), &times(member), AtFlags::SYMLINK_NOFOLLOW)
            .map_err(|error| self.io("set the time of", path, error))?;
        self.report.items += 1;
        Ok(())
    }

    fn hard_link(&mut self, path: &[u8], member: &Member) -> Result<(), SourceError> {
        let first = self.checked_path(&member.link)?;
        let (from, from_name) = self.place(&first)?;
        let (parent, name) = self.place(path)?;
        // Both ends are reached without following links, so both lie in the new tree.
        match rustix::fs::linkat(
            &from,
            from_name.as_slice(),
            &parent,
            name.as_slice(),
            AtFlags::empty(),
        ) {
            Ok(()) => {}
            Err(rustix::io::Errno::NOENT) if !self.only.is_empty() => {
                let text = format!(
                    "{} is a second name of {}, which was not chosen",
                    readable(path),
                    readable(&first)
                );
                self.warn(text);
            }
            Err(rustix::io::Errno::NOENT) => {
                return Err(self.hostile(format!(
                    "{} is a link to {}, which is not in it",
                    readable(path),
                    readable(&first)
                )));
            }
            Err(error) => return Err(self.clash("link", path, error)),
        }
        self.report.items += 1;
        Ok(())
    }

    /// Gives a file or directory its owner, mode, attributes and times, in the order in which one does not undo another.
    fn dress(
        &mut self,
        file: std::os::fd::BorrowedFd<'_>,
        path: &[u8],
        member: &Member,
    ) -> Result<(), SourceError> {
        let (uid, gid) = owner(member);
        if self.is_root {
            rustix::fs::fchown(file, Some(uid), Some(gid))
                .map_err(|e| self.io("set the owner of", path, e))?;
        } else if member.uid != rustix::process::geteuid().as_raw() {
            self.warn(format!(
                "{} belonged to {}:{}; only root can give it back",
                readable(path),
                member.uid,
                member.gid
            ));
        }
        for (name, value) in &member.xattrs {
            if let Err(error) =
                rustix::fs::fsetxattr(file, name.as_slice(), value, XattrFlags::empty())
            {
                let error = io::Error::from(error);
                self.warn(format!(
                    "{}: attribute {} could not be set: {error}",
                    readable(path),
                    readable(name)
                ));
            }
        }
        rustix::fs::fchmod(file, Mode::from_raw_mode(member.mode))
            .map_err(|e| self.io("set the mode of", path, e))?;
        rustix::fs::futimens(file, &times(member)).map_err(|e| self.io("set the time of", path, e))
    }

    /// Returns the path relative to the root, or refuses one that leaves it. The root itself is empty.
    fn checked_path(&self, raw: &[u8]) -> Result<Vec<u8>, SourceError> {
        let trimmed = raw.strip_prefix(b"./").unwrap_or(raw);
        let trimmed = trimmed.strip_suffix(b"/").unwrap_or(trimmed);
        if trimmed.is_empty() && (raw == b"./" || raw == b".") {
            return Ok(Vec::new());
        }
        let bad = |segment: &[u8]| {
            segment.is_empty() || segment == b"." || segment == b".." || segment.contains(&0)
        };
        if raw.starts_with(b"/") || trimmed.split(|byte| *byte == b'/').any(bad) {
            return Err(
                self.hostile(format!("the name {} leaves the tree or is no name", readable(raw)))
            );
        }
        Ok(trimmed.to_vec())
    }

    fn is_wanted(&mut self, path: &[u8], is_directory: bool) -> bool {
        let above = path
            .iter()
            .enumerate()
            .filter(|(_, byte)| **byte == b'/')
            .map(|(i, _)| (&path[..i], true));
        let mut all = above.chain([(path, is_directory)]);
        if all.any(|(path, dir)| self.transient.iter().any(|pattern| pattern.matches(path, dir))) {
            return false;
        }
        if self.only.is_empty() || path.is_empty() {
            return true;
        }
        let path = Path::new(std::ffi::OsStr::from_bytes(path));
        let chosen = self.only.iter().find(|only| path.starts_with(only)).cloned();
        let is_chosen = chosen.is_some();
        self.matched.extend(chosen);
        // Directories on the way to what was chosen keep their metadata.
        is_chosen || is_directory && self.only.iter().any(|only| only.starts_with(path))
    }

    /// Opens the directory that a path goes into, making what is missing on the way, and returns its last name.
    fn place(&mut self, path: &[u8]) -> Result<(Arc<OwnedFd>, Vec<u8>), SourceError> {
        let at = path.iter().rposition(|byte| *byte == b'/');
        let (above, name) = at.map_or((&[][..], path), |at| (&path[..at], &path[at + 1..]));
        if name.is_empty() {
            return Err(self.hostile("a member without a name".to_owned()));
        }
        let known = self.parent.as_ref().filter(|(known, _)| known == above);
        let parent = match known {
            Some((_, parent)) => parent.clone(),
            None => {
                let parent =
                    if above.is_empty() { self.root.clone() } else { self.open_or_make(above)? };
                self.parent = Some((above.to_vec(), parent.clone()));
                parent
            }
        };
        Ok((parent, name.to_vec()))
    }

    fn open_or_make(&self, path: &[u8]) -> Result<Arc<OwnedFd>, SourceError> {
        self.descend(path, |parent, name| match rustix::fs::mkdirat(parent, name, Mode::RWXU) {
            Err(error) if error != rustix::io::Errno::EXIST => Err(error),
            _ => Ok(()),
        })
    }

    fn open(&self, path: &[u8]) -> Result<Arc<OwnedFd>, SourceError> {
        self.descend(path, |_, _| Ok(()))
    }

    /// Goes down segment by segment, never through a link.
    fn descend(
        &self,
        path: &[u8],
        before: impl Fn(&OwnedFd, &[u8]) -> rustix::io::Result<()>,
    ) -> Result<Arc<OwnedFd>, SourceError> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mut here = self.root.clone();
        for segment in path.split(|byte| *byte == b'/') {
            let next = before(&here, segment)
                .and_then(|()| rustix::fs::openat(&here, segment, flags, Mode::empty()));
            let next = next.map_err(|error| match error {
                rustix::io::Errno::LOOP | rustix::io::Errno::NOTDIR => self.hostile(format!(
                    "{} goes through something that is no directory",
                    readable(path)
                )),
                other => self.io("open", path, other),
            })?;
            here = Arc::new(next);
        }
        Ok(here)
    }

    fn warn(&mut self, text: String) {
        self.refused += 1;
        if self.refused <= LISTED_WARNINGS {
            self.report.warnings.push(text);
        }
    }

    fn hostile(&self, finding: String) -> SourceError {
        PartError::Refused { part: self.part.clone(), finding }.into()
    }

    /// A name that exists already was in the archive twice, or is a link that something should be written through.
    fn clash(&self, action: &'static str, path: &[u8], error: rustix::io::Errno) -> SourceError {
        match error {
            rustix::io::Errno::EXIST => self.hostile(format!("{} is in it twice", readable(path))),
            other => self.io(action, path, other),
        }
    }

    fn io(&self, action: &'static str, path: &[u8], error: rustix::io::Errno) -> SourceError {
        SourceError::io(action, self.beside.join(std::ffi::OsStr::from_bytes(path)), error.into())
    }

    fn explain(&self, error: TarError) -> SourceError {
        match error {
            TarError::Bad(finding) => self.hostile(finding),
            TarError::Read(error) => match error.downcast::<PartError>() {
                Ok(part) => part.into(),
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                    self.hostile("the archive is cut short".to_owned())
                }
                Err(cause) => SourceError::io("read the archive for", &self.beside, cause),
            },
        }
    }
}

fn write_all_at(file: &File, mut bytes: &[u8], mut at: u64) -> rustix::io::Result<()> {
    while !bytes.is_empty() {
        let written = rustix::io::pwrite(file, bytes, at)?;
        bytes = bytes.get(written..).unwrap_or_default();
        at += written as u64;
    }
    Ok(())
}

fn owner(member: &Member) -> (Uid, Gid) {
    (Uid::from_raw(member.uid), Gid::from_raw(member.gid))
}

fn times(member: &Member) -> Timestamps {
    let time = Timespec { tv_sec: member.mtime.0, tv_nsec: i64::from(member.mtime.1) };
    Timestamps { last_access: time, last_modification: time }
}

fn open_directory(path: &Path) -> Result<OwnedFd, SourceError> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(CWD, path, flags, Mode::empty())
        .map_err(|e| SourceError::io("open", path, e.into()))
}
