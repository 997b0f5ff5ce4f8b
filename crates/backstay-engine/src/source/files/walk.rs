//! Reading a tree: by directory handles, so that no link is followed and no path is too long.

use std::collections::{BTreeSet, HashMap};
use std::fs::File;
use std::io::{self, Read as _};
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, SeekFrom, Stat};
use tar::EntryType;

use super::tar_write::{Member, TarWriter};
use super::{FilesSource, Pattern, Written, readable};
use crate::cx::Cx;
use crate::part::{CHUNK_BYTES, PartWriter};
use crate::replace::OWN_PREFIX;
use crate::source::sqlite::{self, COMPANIONS};
use crate::source::{Probe, SourceError};
use crate::spool::Spool;

/// Directories inside each other; each holds a file descriptor open.
const MAX_DEPTH: usize = 500;
/// Entries that an estimate looks at before it guesses.
const MAX_ESTIMATED: u64 = 200_000;

/// Writes the tree as tar. Called in a blocking thread; the writer is ended or failed here.
pub(super) fn write_tree(
    cx: &Cx,
    source: &FilesSource,
    writer: PartWriter,
) -> Result<Written, SourceError> {
    let mut tree = Tree {
        cx,
        source,
        tar: TarWriter::new(writer),
        written: Written::default(),
        links: HashMap::new(),
        spool: None,
        buffer: vec![0; CHUNK_BYTES],
        device: 0,
    };
    let result = tree.write();
    let Tree { tar, written, .. } = tree;
    match result {
        Ok(()) => {
            // A reader that left has an error of its own.
            if let Ok(writer) = tar.finish() {
                writer.finish();
            }
            Ok(written)
        }
        // Dropping the writer without an end tells the reader that the part was cut short.
        Err(error) => Err(error),
    }
}

struct Tree<'a> {
    cx: &'a Cx,
    source: &'a FilesSource,
    tar: TarWriter<PartWriter>,
    written: Written,
    /// Paths of files with several names, by device and inode. The only thing here that grows with the tree.
    links: HashMap<(u64, u64), Vec<u8>>,
    spool: Option<Spool>,
    buffer: Vec<u8>,
    device: u64,
}

/// A name in a directory that is open.
struct Item<'a> {
    parent: BorrowedFd<'a>,
    name: &'a [u8],
    path: &'a [u8],
    stat: Stat,
}

impl Tree<'_> {
    fn write(&mut self) -> Result<(), SourceError> {
        let root = open_root(&self.source.root)?;
        let stat = rustix::fs::fstat(&root)
            .map_err(|e| SourceError::io("look at", &self.source.root, e.into()))?;
        self.device = stat.st_dev;
        self.directory(&root, &stat, b"", 0)
    }

    fn directory(
        &mut self,
        directory: &OwnedFd,
        stat: &Stat,
        path: &[u8],
        depth: usize,
    ) -> Result<(), SourceError> {
        let shown = if path.is_empty() { b"./".to_vec() } else { [path, b"/"].concat() };
        let member = Member {
            path: shown,
            xattrs: xattrs(directory.as_fd()),
            ..member(EntryType::Directory, stat)
        };
        self.member(&member)?;
        self.written.content.directories += 1;
        let names = match names(directory) {
            Ok(names) => names,
            Err(error) => {
                self.written.item_error(
                    self.cx,
                    path,
                    format!("cannot list the directory: {error}"),
                );
                return Ok(());
            }
        };
        // Databases met in this directory: what SQLite keeps beside them must not be copied.
        let mut databases = BTreeSet::new();
        for name in &names {
            self.cx.check()?;
            let path = if path.is_empty() { name.clone() } else { [path, b"/", name].concat() };
            self.item(directory.as_fd(), name, &path, depth, &mut databases)?;
        }
        Ok(())
    }

    fn item(
        &mut self,
        parent: BorrowedFd<'_>,
        name: &[u8],
        path: &[u8],
        depth: usize,
        databases: &mut BTreeSet<Vec<u8>>,
    ) -> Result<(), SourceError> {
        let is_companion = COMPANIONS.iter().any(|suffix| {
            name.strip_suffix(suffix.as_bytes()).is_some_and(|base| databases.contains(base))
        });
        if is_companion {
            return Ok(());
        }
        let stat = match rustix::fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => stat,
            Err(error) => {
                self.written.item_error(
                    self.cx,
                    path,
                    format!("cannot look at it: {}", io::Error::from(error)),
                );
                return Ok(());
            }
        };
        let kind = FileType::from_raw_mode(stat.st_mode);
        if is_excluded(self.source, path, kind == FileType::Directory) {
            return Ok(());
        }
        if self.source.one_file_system && stat.st_dev != self.device {
            return Ok(());
        }
        let item = Item { parent, name, path, stat };
        match kind {
            FileType::Directory => self.subdirectory(&item, depth),
            FileType::Symlink => self.symlink(&item),
            FileType::RegularFile => self.file(&item, databases),
            FileType::Socket
            | FileType::Fifo
            | FileType::BlockDevice
            | FileType::CharacterDevice
            | FileType::Unknown => {
                self.written.content.skipped_special += 1;
                Ok(())
            }
        }
    }

    fn subdirectory(&mut self, item: &Item<'_>, depth: usize) -> Result<(), SourceError> {
        if depth >= MAX_DEPTH {
            let error = format!("lies more than {MAX_DEPTH} directories deep");
            self.written.item_error(self.cx, item.path, error);
            return Ok(());
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        match rustix::fs::openat(item.parent, item.name, flags, Mode::empty()) {
            Ok(directory) => self.directory(&directory, &item.stat, item.path, depth + 1),
            Err(error) => {
                let error = format!("cannot open the directory: {}", io::Error::from(error));
                self.written.item_error(self.cx, item.path, error);
                Ok(())
            }
        }
    }

    fn symlink(&mut self, item: &Item<'_>) -> Result<(), SourceError> {
        match rustix::fs::readlinkat(item.parent, item.name, Vec::new()) {
            Ok(link) => {
                let member = Member {
                    path: item.path.to_vec(),
                    link: link.into_bytes(),
                    ..member(EntryType::Symlink, &item.stat)
                };
                self.member(&member)?;
                self.written.content.symlinks += 1;
            }
            Err(error) => {
                self.written.item_error(
                    self.cx,
                    item.path,
                    format!("cannot read the link: {}", io::Error::from(error)),
                );
            }
        }
        Ok(())
    }

    fn file(
        &mut self,
        item: &Item<'_>,
        databases: &mut BTreeSet<Vec<u8>>,
    ) -> Result<(), SourceError> {
        let inode = (item.stat.st_dev, item.stat.st_ino);
        if item.stat.st_nlink > 1
            && let Some(first) = self.links.get(&inode)
        {
            let member = Member {
                path: item.path.to_vec(),
                link: first.clone(),
                ..member(EntryType::Link, &item.stat)
            };
            self.member(&member)?;
            self.written.content.hard_links += 1;
            return Ok(());
        }
        // Not blocking, in case somebody puts a FIFO in the file's place.
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let mut file = match rustix::fs::openat(item.parent, item.name, flags, Mode::empty()) {
            Ok(file) => File::from(file),
            Err(error) => {
                self.written.item_error(
                    self.cx,
                    item.path,
                    format!("cannot open it: {}", io::Error::from(error)),
                );
                return Ok(());
            }
        };
        let written = match self.contents(item, &mut file, databases) {
            Err(Trouble::Item(error)) => {
                self.written.item_error(self.cx, item.path, error);
                return Ok(());
            }
            Err(Trouble::Job(error)) => return Err(error),
            Ok(bytes) => bytes,
        };
        if item.stat.st_nlink > 1 {
            self.links.insert(inode, item.path.to_vec());
        }
        self.written.content.files += 1;
        self.written.content.bytes += written;
        Ok(())
    }

    /// Writes one file. An item error after the member began leaves a member filled with zeros, and named.
    fn contents(
        &mut self,
        item: &Item<'_>,
        file: &mut File,
        databases: &mut BTreeSet<Vec<u8>>,
    ) -> Result<u64, Trouble> {
        let cannot = |what: &str| {
            let what = what.to_owned();
            move |error: io::Error| Trouble::Item(format!("cannot {what} it: {error}"))
        };
        let stat = rustix::fs::fstat(&*file).map_err(|e| cannot("look at")(e.into()))?;
        let mut head = [0; 16];
        let read = file.read(&mut head).map_err(cannot("read"))?;
        let member = Member {
            path: item.path.to_vec(),
            xattrs: xattrs(file.as_fd()),
            ..member(EntryType::Regular, &stat)
        };
        if sqlite::is_database(&head[..read]) {
            databases.insert(item.name.to_vec());
            return self.database(item, &member);
        }
        let size = stat.st_size.cast_unsigned();
        let regions = regions(file, &stat).map_err(cannot("read"))?;
        match &regions {
            Some(regions) => self.tar.begin_sparse(&member, size, regions),
            None => self.tar.begin(&member, size),
        }
        .map_err(|cause| self.gone(cause))?;
        let whole = 0..size;
        for region in regions.as_deref().unwrap_or(std::slice::from_ref(&whole)) {
            self.region(file, region)?;
        }
        let missing = self.tar.end().map_err(|cause| self.gone(cause))?;
        let after = rustix::fs::fstat(&*file).map_err(|e| cannot("look at")(e.into()))?;
        if missing > 0 {
            return Err(Trouble::Item(format!(
                "it shrank while it was read: its last {missing} bytes are zeros now"
            )));
        }
        let touched = (after.st_mtime, after.st_mtime_nsec) != (stat.st_mtime, stat.st_mtime_nsec);
        // A file that only grew, like a log, was a whole file when it was opened.
        if touched && after.st_size <= stat.st_size {
            return Err(Trouble::Item("it changed while it was read".to_owned()));
        }
        Ok(size)
    }

    fn region(&mut self, file: &File, region: &Range<u64>) -> Result<(), Trouble> {
        let mut offset = region.start;
        while offset < region.end {
            self.cx.check().map_err(|cancelled| Trouble::Job(cancelled.into()))?;
            let wanted =
                usize::try_from(region.end - offset).unwrap_or(usize::MAX).min(self.buffer.len());
            let read = rustix::io::pread(file, &mut self.buffer[..wanted], offset)
                .map_err(|e| Trouble::Item(format!("cannot read it: {}", io::Error::from(e))));
            let read = match read {
                Ok(read) => read,
                Err(trouble) => {
                    // The member must be as long as announced, whatever is in it.
                    self.tar.end().map_err(|cause| self.gone(cause))?;
                    return Err(trouble);
                }
            };
            if read == 0 {
                return Ok(());
            }
            self.tar.data(&self.buffer[..read]).map_err(|cause| self.gone(cause))?;
            offset += read as u64;
        }
        Ok(())
    }

    /// Writes a SQLite database as its online backup gives it (T5): the app may be writing meanwhile.
    fn database(&mut self, item: &Item<'_>, member: &Member) -> Result<u64, Trouble> {
        let cx = self.cx;
        let spool = match self.spool.take() {
            Some(spool) => spool,
            None => Spool::create(&self.source.spool).map_err(Trouble::Job)?,
        };
        let copy =
            spool.file("snapshot.db", item.stat.st_size.cast_unsigned()).map_err(Trouble::Job)?;
        self.spool = Some(spool);
        let path = self.source.root.join(std::ffi::OsStr::from_bytes(item.path));
        let taken = sqlite::snapshot::snapshot(cx, &path, &copy);
        let sent = match taken {
            Ok(_) => self.send_copy(&copy, member),
            Err(SourceError::Cancelled(cancelled)) => Err(Trouble::Job(cancelled.into())),
            Err(SourceError::Damaged { finding, .. }) => Err(Trouble::Item(format!(
                "this SQLite database is damaged and was left out: {finding}"
            ))),
            Err(error) => {
                Err(Trouble::Item(format!("this SQLite database was left out: {}", chain(&error))))
            }
        };
        for leftover in sqlite::companions(&copy).into_iter().chain([copy]) {
            // Most of them are not there; what remains goes with the spool folder.
            drop(std::fs::remove_file(leftover));
        }
        if sent.is_ok() {
            self.written.content.sqlite_databases.push(readable(item.path));
        }
        sent
    }

    fn send_copy(&mut self, copy: &Path, member: &Member) -> Result<u64, Trouble> {
        let broken = |cause| Trouble::Job(SourceError::io("read", copy, cause));
        let file = File::open(copy).map_err(broken)?;
        let size = file.metadata().map_err(broken)?.len();
        self.tar.begin(member, size).map_err(|cause| self.gone(cause))?;
        self.region(&file, &(0..size))?;
        match self.tar.end().map_err(|cause| self.gone(cause))? {
            0 => Ok(size),
            _ => Err(broken(io::ErrorKind::UnexpectedEof.into())),
        }
    }

    fn member(&mut self, member: &Member) -> Result<(), SourceError> {
        let written = self.tar.begin(member, 0).and_then(|()| self.tar.end());
        written.map(drop).map_err(|cause| SourceError::io("pass on", &self.source.root, cause))
    }

    fn gone(&self, cause: io::Error) -> Trouble {
        Trouble::Job(SourceError::io("pass on", &self.source.root, cause))
    }
}

/// What can go wrong with one file: it alone, or everything.
enum Trouble {
    Item(String),
    Job(SourceError),
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        next = cause.source();
    }
    text
}

fn member(kind: EntryType, stat: &Stat) -> Member {
    Member {
        path: Vec::new(),
        kind,
        mode: stat.st_mode & 0o7777,
        uid: stat.st_uid,
        gid: stat.st_gid,
        mtime: (stat.st_mtime, u32::try_from(stat.st_mtime_nsec).unwrap_or(0)),
        link: Vec::new(),
        xattrs: Vec::new(),
    }
}

/// Returns where a file with holes has bytes, or `None` for one without.
fn regions(file: &File, stat: &Stat) -> io::Result<Option<Vec<Range<u64>>>> {
    let size = stat.st_size.cast_unsigned();
    if stat.st_blocks.cast_unsigned() * 512 >= size {
        return Ok(None);
    }
    let mut regions = Vec::new();
    let mut at = 0;
    while at < size {
        let start = match rustix::fs::seek(file, SeekFrom::Data(at)) {
            Ok(start) => start,
            // Nothing but holes from here on.
            Err(rustix::io::Errno::NXIO) => break,
            // A file system that does not tell.
            Err(rustix::io::Errno::INVAL) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let end = rustix::fs::seek(file, SeekFrom::Hole(start))?.min(size);
        if start >= end {
            break;
        }
        regions.push(start..end);
        at = end;
    }
    Ok(Some(regions))
}

/// Returns the extended attributes; where there are none, or the file system knows none, nothing.
fn xattrs(file: BorrowedFd<'_>) -> Vec<(Vec<u8>, Vec<u8>)> {
    let mut list = vec![0; 4096];
    let length = loop {
        match rustix::fs::flistxattr(file, &mut list[..]) {
            Ok(length) => break length,
            Err(rustix::io::Errno::RANGE) if list.len() < 1 << 20 => list.resize(list.len() * 4, 0),
            Err(_) => return Vec::new(),
        }
    };
    let names = list
        .get(..length)
        .unwrap_or_default()
        .split(|byte| *byte == 0)
        .filter(|name| !name.is_empty());
    let value = |name: &[u8]| {
        // The kernel's own limit of a value.
        let mut value = vec![0; 64 * 1024];
        let length = rustix::fs::fgetxattr(file, name, &mut value[..]).ok()?;
        value.truncate(length);
        Some((name.to_vec(), value))
    };
    names.filter_map(value).collect()
}

fn names(directory: &OwnedFd) -> io::Result<Vec<Vec<u8>>> {
    let mut names = Vec::new();
    for entry in Dir::read_from(directory)? {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if name != b"." && name != b".." {
            names.push(name.to_vec());
        }
    }
    names.sort();
    Ok(names)
}

fn is_excluded(source: &FilesSource, path: &[u8], is_directory: bool) -> bool {
    let meant =
        |patterns: &[Pattern]| patterns.iter().any(|pattern| pattern.matches(path, is_directory));
    // What a restore that waits to be confirmed keeps in the root is no data of the app.
    path.starts_with(OWN_PREFIX.as_bytes()) || meant(&source.exclude) || meant(&source.transient)
}

fn open_root(root: &Path) -> Result<OwnedFd, SourceError> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::openat(CWD, root, flags, Mode::empty()).map_err(|error| match error {
        rustix::io::Errno::NOENT => SourceError::NotFound { path: root.to_owned() },
        rustix::io::Errno::NOTDIR => {
            SourceError::WrongKind { path: root.to_owned(), expected: "a directory" }
        }
        other => SourceError::io("open", root, other.into()),
    })
}

/// Counts what a backup will read; stops counting, not guessing, at a few hundred thousand entries.
pub(super) fn estimate(cx: &Cx, source: &FilesSource) -> Result<Probe, SourceError> {
    let mut probe = Probe { items: Some(0), ..Probe::default() };
    let mut waiting = vec![(open_root(&source.root)?, Vec::new())];
    while let Some((directory, path)) = waiting.pop() {
        cx.check()?;
        for name in names(&directory).unwrap_or_default() {
            let path: Vec<u8> = if path.is_empty() {
                name.clone()
            } else {
                [path.as_slice(), b"/", &name].concat()
            };
            let Ok(stat) =
                rustix::fs::statat(&directory, name.as_slice(), AtFlags::SYMLINK_NOFOLLOW)
            else {
                continue;
            };
            let is_directory = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
            if is_excluded(source, &path, is_directory) {
                continue;
            }
            probe.items = probe.items.map(|items| items + 1);
            // A header, and data in blocks; holes are not read.
            probe.size_bytes += 512 + stat.st_size.min(stat.st_blocks * 512).max(0).cast_unsigned();
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            if is_directory
                && waiting.len() < MAX_DEPTH
                && let Ok(below) =
                    rustix::fs::openat(&directory, name.as_slice(), flags, Mode::empty())
            {
                waiting.push((below, path));
            }
        }
        if probe.items.is_some_and(|items| items > MAX_ESTIMATED) {
            probe.items = None;
            break;
        }
    }
    Ok(probe)
}
