//! Unpacking an archive that is not trusted: nothing is ever written outside of the new tree.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};

use backstay_format::PartName;
use rustix::fs::{AtFlags, CWD, Mode, OFlags};
use tar::EntryType;

use super::maker::{self, Maker, SMALL_BYTES, SmallFile};
use super::tar_read::{Announced, TarError, TarReader};
use super::tar_write::Member;
use super::walk::MAX_DEPTH;
use super::{Pattern, readable};
use crate::cx::Cx;
use crate::part::{PartError, PartReader};
use crate::replace::OWN_PREFIX;
use crate::source::{Applied, ApplyReport, SourceError};

/// What of a tree is unpacked.
#[derive(Debug, Clone, Default)]
pub(super) struct Choice {
    /// What is left out.
    pub(super) transient: Vec<Pattern>,
    /// Only these paths, with all below them. Empty means all.
    pub(super) only: Vec<PathBuf>,
}

/// An empty directory that an archive is unpacked into.
pub(super) struct Unpack {
    cx: Cx,
    beside: PathBuf,
    maker: Arc<Maker>,
    root: Arc<OwnedFd>,
    /// The directory that the last member went into: most members share it with the one before.
    parent: Option<(Vec<u8>, Arc<OwnedFd>)>,
    choice: Choice,
    matched: BTreeSet<PathBuf>,
    /// Directories get their metadata last: writing into them changes their times, and may need more rights.
    directories: Vec<(Vec<u8>, Member)>,
    /// Second names are made when all files are there.
    hard_links: Vec<(Vec<u8>, Member)>,
    /// Files of which a second name is wanted and the first, which is the key, is not: another reading makes them
    /// under the second.
    renamed: BTreeMap<Vec<u8>, Vec<u8>>,
    /// Directories that were made on the way to something in them, if others than us made the archive; ours describe all.
    undescribed: Option<BTreeSet<Vec<u8>>>,
    report: ApplyReport,
}

/// Where small files are handed over to the threads that make them.
struct Makers<'a> {
    files: SyncSender<SmallFile>,
    failure: &'a Mutex<Option<SourceError>>,
}

impl Makers<'_> {
    fn hand_over(&self, file: SmallFile) -> Result<(), SourceError> {
        if let Some(error) = take(self.failure) {
            return Err(error);
        }
        // They take files as long as this end is open.
        drop(self.files.send(file));
        Ok(())
    }
}

/// Makes a directory, if it is not there. Says whether it was not.
fn made(parent: &OwnedFd, name: &[u8], mode: Mode) -> rustix::io::Result<bool> {
    match rustix::fs::mkdirat(parent, name, mode) {
        Ok(()) => Ok(true),
        Err(rustix::io::Errno::EXIST) => Ok(false),
        Err(error) => Err(error),
    }
}

fn take(failure: &Mutex<Option<SourceError>>) -> Option<SourceError> {
    failure.lock().unwrap_or_else(PoisonError::into_inner).take()
}

/// Unpacks all of an archive of others into a new directory, which is like this one unless the archive says how it is. Blocks.
pub(super) fn unpack_foreign(
    cx: &Cx,
    data: PartReader,
    (root, like): (PathBuf, &Path),
) -> Result<Vec<String>, SourceError> {
    let made = std::fs::create_dir(&root).and_then(|()| match like.metadata() {
        Ok(meta) => {
            std::fs::set_permissions(&root, meta.permissions())?;
            // Only root can, and only root has to.
            drop(std::os::unix::fs::chown(&root, Some(meta.uid()), Some(meta.gid())));
            Ok(())
        }
        Err(_) => Ok(()),
    });
    made.map_err(|cause| SourceError::io("make", &root, cause))?;
    let mut unpack = Unpack::new(cx, data.spec.name.clone(), root.clone(), Choice::default())?;
    unpack.undescribed = Some(BTreeSet::new());
    // Nothing was chosen, so nothing has to be read again.
    unpack.read(data)?;
    let undescribed = unpack.undescribed.take().unwrap_or_default();
    let mut warnings = unpack.report().warnings;
    if let Some(first) = undescribed.first() {
        warnings.push(format!(
            "{} directories are not described in the archive, such as {}: they have the owner of whoever imports, and the mode 0755",
            undescribed.len(),
            readable(first)
        ));
    }
    let ours =
        std::fs::read_dir(&root).into_iter().flatten().flatten().map(|entry| entry.file_name());
    let ours = ours.filter(|name| name.as_bytes().starts_with(OWN_PREFIX.as_bytes()));
    warnings.extend(ours.map(|name| {
        format!("{} is a name that restores use, and is left out", readable(name.as_bytes()))
    }));
    Ok(warnings)
}

impl Unpack {
    pub(super) fn new(
        cx: &Cx,
        part: PartName,
        root: PathBuf,
        choice: Choice,
    ) -> Result<Self, SourceError> {
        Ok(Self {
            cx: cx.clone(),
            maker: Arc::new(Maker::new(part, root.clone())),
            root: Arc::new(open_directory(&root)?),
            beside: root,
            parent: None,
            choice,
            matched: BTreeSet::new(),
            directories: Vec::new(),
            hard_links: Vec::new(),
            renamed: BTreeMap::new(),
            undescribed: None,
            report: ApplyReport::default(),
        })
    }

    pub(super) fn report(self) -> ApplyReport {
        self.report
    }

    /// Unpacks what is wanted of an archive, or says that the same archive must be read once more.
    pub(super) fn read(&mut self, data: PartReader) -> Result<Applied, SourceError> {
        let is_first_reading = self.renamed.is_empty();
        self.make_members(data)?;
        if let Some(missing) = self.choice.only.iter().find(|path| !self.matched.contains(*path)) {
            return Err(SourceError::NothingMatches { path: missing.clone() });
        }
        if is_first_reading {
            self.find_renamed()?;
            if !self.renamed.is_empty() {
                return Ok(Applied::Again);
            }
        }
        self.finish()?;
        Ok(Applied::Done)
    }

    fn make_members(&mut self, data: PartReader) -> Result<(), SourceError> {
        let maker = self.maker.clone();
        let (files, waiting) = sync_channel(maker::WAITING);
        let (waiting, failure) = (Mutex::new(waiting), Mutex::new(None));
        std::thread::scope(|scope| {
            for _ in 0..maker::threads() {
                scope.spawn(|| maker.make_all(&waiting, &failure));
            }
            self.members(data, &Makers { files, failure: &failure })
        })?;
        take(&failure).map_or(Ok(()), Err)
    }

    /// Finds the files that are wanted only under a second name.
    fn find_renamed(&mut self) -> Result<(), SourceError> {
        for (path, member) in &self.hard_links {
            let first = self.checked_path(&member.link)?;
            if !self.choice.wants(&first, false) {
                self.renamed.entry(first).or_insert_with(|| path.clone());
            }
        }
        Ok(())
    }

    fn finish(&mut self) -> Result<(), SourceError> {
        for (path, member) in std::mem::take(&mut self.hard_links) {
            self.hard_link(&path, &member)?;
        }
        self.parent = None;
        while let Some((path, member)) = self.directories.pop() {
            let directory = if path.is_empty() { self.root.clone() } else { self.open(&path)? };
            self.maker.dress(directory.as_fd(), &path, &member)?;
        }
        // Everything must be on the disk before it replaces what is there.
        rustix::fs::syncfs(&self.root)
            .map_err(|e| SourceError::io("make durable", &self.beside, e.into()))?;
        self.report.warnings = self.maker.warnings();
        Ok(())
    }

    fn members(&mut self, data: PartReader, makers: &Makers<'_>) -> Result<(), SourceError> {
        let mut tar = TarReader::new(data.into_read());
        while let Some(announced) = tar.next().map_err(|error| self.explain(error))? {
            self.cx.check()?;
            self.member(&mut tar, announced, makers)?;
        }
        tar.finish().map_err(|error| self.explain(error))
    }

    fn member<R: io::BufRead>(
        &mut self,
        tar: &mut TarReader<R>,
        announced: Announced,
        makers: &Makers<'_>,
    ) -> Result<(), SourceError> {
        let kind = announced.member.kind;
        let path = self.checked_path(&announced.member.path)?;
        let path = if self.renamed.is_empty() {
            self.matched.extend(self.choice.chosen(&path).cloned());
            self.choice.wants(&path, kind == EntryType::Directory).then_some(path)
        } else {
            let is_file = !matches!(kind, EntryType::Directory | EntryType::Link);
            self.renamed.get(&path).filter(|_| is_file).cloned()
        };
        let Some(path) = path else { return Ok(()) };
        match kind {
            EntryType::Directory => self.directory(path, announced.member),
            EntryType::Regular if announced.size <= SMALL_BYTES && !announced.is_sparse() => {
                self.small_file(tar, path, announced, makers)
            }
            EntryType::Regular => self.file(tar, &path, &announced),
            EntryType::Symlink => self.symlink(&path, &announced.member),
            EntryType::Link => {
                self.hard_links.push((path, announced.member));
                Ok(())
            }
            other => Err(self.maker.hostile(format!(
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
                Err(error) => return Err(self.maker.io("make", &path, error)),
            }
            // Proves that what is there is a directory, and no link to one.
            self.open(&path)?;
        }
        if let Some(undescribed) = &mut self.undescribed {
            undescribed.remove(&path);
        }
        self.directories.push((path, member));
        self.report.items += 1;
        Ok(())
    }

    fn small_file<R: io::BufRead>(
        &mut self,
        tar: &mut TarReader<R>,
        path: Vec<u8>,
        announced: Announced,
        makers: &Makers<'_>,
    ) -> Result<(), SourceError> {
        let (parent, name) = self.place(&path)?;
        let mut bytes = Vec::with_capacity(announced.size as usize);
        while (bytes.len() as u64) < announced.size {
            let left = announced.size - bytes.len() as u64;
            let read = tar.data(left).map_err(|error| self.explain(error))?;
            bytes.extend_from_slice(read);
            let read = read.len();
            tar.consume(read);
        }
        self.report.items += 1;
        self.report.bytes += announced.size;
        makers.hand_over(SmallFile { parent, name, path, member: announced.member, bytes })
    }

    fn file<R: io::BufRead>(
        &mut self,
        tar: &mut TarReader<R>,
        path: &[u8],
        announced: &Announced,
    ) -> Result<(), SourceError> {
        let (parent, name) = self.place(path)?;
        let file = self.maker.create(&parent, &name, path)?;
        for region in &announced.regions {
            let mut at = region.start;
            while at < region.end {
                let bytes = tar.data(region.end - at).map_err(|error| self.explain(error))?;
                self.maker.write(&file, bytes, at, path)?;
                let written = bytes.len();
                tar.consume(written);
                at += written as u64;
                self.cx.check()?;
            }
        }
        let written = announced.regions.iter().rfind(|region| !region.is_empty());
        if written.map_or(0, |last| last.end) < announced.size {
            // It ends in a hole.
            rustix::fs::ftruncate(&file, announced.size)
                .map_err(|e| self.maker.io("write", path, e))?;
        }
        self.maker.dress(file.as_fd(), path, &announced.member)?;
        self.report.items += 1;
        self.report.bytes += announced.size;
        Ok(())
    }

    fn symlink(&mut self, path: &[u8], member: &Member) -> Result<(), SourceError> {
        let (parent, name) = self.place(path)?;
        rustix::fs::symlinkat(member.link.as_slice(), &parent, name.as_slice())
            .map_err(|error| self.maker.clash("make", path, error))?;
        self.maker.dress_link(&parent, &name, path, member)?;
        self.report.items += 1;
        Ok(())
    }

    fn hard_link(&mut self, path: &[u8], member: &Member) -> Result<(), SourceError> {
        let first = self.checked_path(&member.link)?;
        let first = self.renamed.get(&first).cloned().unwrap_or(first);
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
            // The second reading made it.
            Err(rustix::io::Errno::EXIST) if first == path => return Ok(()),
            Err(rustix::io::Errno::NOENT) => {
                return Err(self.maker.hostile(format!(
                    "{} is a link to {}, which is not in it",
                    readable(path),
                    readable(&first)
                )));
            }
            Err(error) => return Err(self.maker.clash("link", path, error)),
        }
        self.report.items += 1;
        Ok(())
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
            return Err(self
                .maker
                .hostile(format!("the name {} leaves the tree or is no name", readable(raw))));
        }
        if trimmed.split(|byte| *byte == b'/').count() > MAX_DEPTH {
            return Err(self
                .maker
                .hostile(format!("a name is deeper than {MAX_DEPTH} directories")));
        }
        Ok(trimmed.to_vec())
    }

    /// Opens the directory that a path goes into, making what is missing on the way, and returns its last name.
    fn place(&mut self, path: &[u8]) -> Result<(Arc<OwnedFd>, Vec<u8>), SourceError> {
        let at = path.iter().rposition(|byte| *byte == b'/');
        let (above, name) = at.map_or((&[][..], path), |at| (&path[..at], &path[at + 1..]));
        if name.is_empty() {
            return Err(self.maker.hostile("a member without a name".to_owned()));
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

    fn open_or_make(&mut self, path: &[u8]) -> Result<Arc<OwnedFd>, SourceError> {
        let Some(mut undescribed) = self.undescribed.take() else {
            return self.descend(path, |parent, name| made(parent, name, Mode::RWXU).map(drop));
        };
        let mode = Mode::from_raw_mode(0o755);
        let mut at = Vec::new();
        let opened = self.descend(path, |parent, name| {
            if !at.is_empty() {
                at.push(b'/');
            }
            at.extend_from_slice(name);
            if made(parent, name, mode)? {
                undescribed.insert(at.clone());
            }
            Ok(())
        });
        self.undescribed = Some(undescribed);
        opened
    }

    fn open(&self, path: &[u8]) -> Result<Arc<OwnedFd>, SourceError> {
        self.descend(path, |_, _| Ok(()))
    }

    /// Goes down segment by segment, never through a link.
    fn descend(
        &self,
        path: &[u8],
        mut before: impl FnMut(&OwnedFd, &[u8]) -> rustix::io::Result<()>,
    ) -> Result<Arc<OwnedFd>, SourceError> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mut here = self.root.clone();
        for segment in path.split(|byte| *byte == b'/') {
            let next = before(&here, segment)
                .and_then(|()| rustix::fs::openat(&here, segment, flags, Mode::empty()));
            let next = next.map_err(|error| match error {
                rustix::io::Errno::LOOP | rustix::io::Errno::NOTDIR => self.maker.hostile(format!(
                    "{} goes through something that is no directory",
                    readable(path)
                )),
                other => self.maker.io("open", path, other),
            })?;
            here = Arc::new(next);
        }
        Ok(here)
    }

    fn explain(&self, error: TarError) -> SourceError {
        match error {
            TarError::Bad(finding) => self.maker.hostile(finding),
            TarError::Read(error) => match error.downcast::<PartError>() {
                Ok(part) => part.into(),
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                    self.maker.hostile("the archive is cut short".to_owned())
                }
                Err(cause) => SourceError::io("read the archive for", &self.beside, cause),
            },
        }
    }
}

impl Choice {
    fn wants(&self, path: &[u8], is_directory: bool) -> bool {
        let above = path
            .iter()
            .enumerate()
            .filter(|(_, byte)| **byte == b'/')
            .map(|(i, _)| (&path[..i], true));
        let mut all = above.chain([(path, is_directory)]);
        if all.any(|(path, dir)| self.transient.iter().any(|pattern| pattern.matches(path, dir))) {
            return false;
        }
        if self.only.is_empty() || path.is_empty() || self.chosen(path).is_some() {
            return true;
        }
        // Directories on the way to what was chosen keep their metadata.
        let path = as_path(path);
        is_directory && self.only.iter().any(|only| only.starts_with(path))
    }

    /// Returns what was chosen, if a path is that or lies below it.
    fn chosen(&self, path: &[u8]) -> Option<&PathBuf> {
        self.only.iter().find(|only| as_path(path).starts_with(only))
    }
}

fn as_path(path: &[u8]) -> &Path {
    Path::new(std::ffi::OsStr::from_bytes(path))
}

fn open_directory(path: &Path) -> Result<OwnedFd, SourceError> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(CWD, path, flags, Mode::empty())
        .map_err(|e| SourceError::io("open", path, e.into()))
}
