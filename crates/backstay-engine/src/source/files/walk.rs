//! Reading a tree: by directory handles, so that no link is followed and no path is too long.

use std::collections::{BTreeSet, HashMap};
use std::fs::File;
use std::io::{self, Read as _};
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use rustix::fs::{FileType, Stat};
use tar::EntryType;

use super::tar_write::{Member, TarWriter};
use super::{FilesSource, Written, look, readable};
use crate::cx::Cx;
use crate::part::{CHUNK_BYTES, PartWriter};
use crate::source::SourceError;
use crate::source::sqlite::{self, COMPANIONS};
use crate::spool::Spool;

/// Directories inside each other; each holds a file descriptor open.
pub(super) const MAX_DEPTH: usize = 500;

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
        let root = look::open_root(&self.source.root)?;
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
            xattrs: self.xattrs(directory.as_fd(), path),
            ..member(EntryType::Directory, stat)
        };
        self.member(&member)?;
        self.written.content.directories += 1;
        let names = match look::names(directory) {
            Ok(names) => names,
            Err(error) if path.is_empty() => {
                return Err(SourceError::io("list", &self.source.root, error));
            }
            Err(error) => {
                let error = format!("cannot list the directory: {error}");
                self.written.item_error(self.cx, path, error);
                return Ok(());
            }
        };
        // Databases met in this directory: what SQLite keeps beside them must not be copied.
        let mut databases = BTreeSet::new();
        for name in &names {
            self.cx.check()?;
            let path = look::path_below(path, name);
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
        let stat = match look::stat(parent, name) {
            Ok(stat) => stat,
            Err(error) => {
                self.written.item_error(self.cx, path, format!("cannot look at it: {error}"));
                return Ok(());
            }
        };
        let kind = FileType::from_raw_mode(stat.st_mode);
        if self.source.leaves_out(path, kind == FileType::Directory) {
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
        match look::open_directory(item.parent, item.name) {
            Ok(directory) => self.directory(&directory, &item.stat, item.path, depth + 1),
            Err(error) => {
                let error = format!("cannot open the directory: {error}");
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
        let mut file = match look::open_file(item.parent, item.name) {
            Ok(file) => file,
            Err(error) => {
                self.written.item_error(self.cx, item.path, format!("cannot open it: {error}"));
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
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Err(Trouble::Item("it was replaced by something that is no file".to_owned()));
        }
        let mut head = [0; 16];
        let read = file.read(&mut head).map_err(cannot("read"))?;
        let member = Member {
            path: item.path.to_vec(),
            xattrs: self.xattrs(file.as_fd(), item.path),
            ..member(EntryType::Regular, &stat)
        };
        if sqlite::is_database(&head[..read]) {
            databases.insert(item.name.to_vec());
            return self.database(item, &member);
        }
        let size = stat.st_size.cast_unsigned();
        let regions = look::regions(file, &stat).map_err(cannot("read"))?;
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

    /// Attributes that cannot be read are no reason to leave the file out.
    fn xattrs(&mut self, file: BorrowedFd<'_>, path: &[u8]) -> Vec<(Vec<u8>, Vec<u8>)> {
        look::xattrs(file).unwrap_or_else(|error| {
            let path = if path.is_empty() { "the root".to_owned() } else { readable(path) };
            let text = format!("{path}: its extended attributes cannot be read: {error}");
            self.written.warnings.add(text);
            Vec::new()
        })
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
