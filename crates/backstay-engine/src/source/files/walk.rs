//! Reading a tree: by directory handles, so that no link is followed and no path is too long.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::sync::Arc;

use rustix::fs::{FileType, Stat};
use tar::EntryType;

use super::reader::{self, AHEAD, Answer, Looked, Opened, Readers};
use super::tar_write::{Member, TarWriter};
use super::{FilesSource, Written, look, readable};
use crate::cx::Cx;
use crate::part::{CHUNK_BYTES, PartWriter};
use crate::source::sqlite::{self, COMPANIONS};
use crate::source::{SourceError, with_causes};
use crate::spool::Spool;

/// Directories inside each other; each holds a file descriptor open.
pub(super) const MAX_DEPTH: usize = 500;

/// Writes the tree as tar. Called in a blocking thread; the writer is ended or failed here.
pub(super) fn write_tree(
    cx: &Cx,
    source: &FilesSource,
    writer: PartWriter,
) -> Result<Written, SourceError> {
    Readers::with(|readers| {
        let mut tree = Tree {
            cx,
            source,
            readers,
            tar: TarWriter::new(writer),
            written: Written::default(),
            links: HashMap::new(),
            spool: None,
            buffer: vec![0; CHUNK_BYTES],
            device: 0,
        };
        // After an error, dropping the writer without an end tells its reader that the part was cut short.
        tree.write()?;
        let Tree { tar, written, .. } = tree;
        // A reader that left has an error of its own.
        if let Ok(writer) = tar.finish() {
            writer.finish();
        }
        Ok(written)
    })
}

struct Tree<'a> {
    cx: &'a Cx,
    source: &'a FilesSource,
    readers: Readers,
    tar: TarWriter<PartWriter>,
    written: Written,
    /// Paths of files with several names, by device and inode. The only thing here that grows with the tree.
    links: HashMap<(u64, u64), Vec<u8>>,
    spool: Option<Spool>,
    buffer: Vec<u8>,
    device: u64,
}

/// A directory that is open.
struct Folder<'a> {
    handle: &'a Arc<OwnedFd>,
    path: &'a [u8],
    depth: usize,
}

/// A name in a directory that is open.
struct Item<'a> {
    folder: &'a Folder<'a>,
    name: &'a [u8],
    path: &'a [u8],
    stat: Stat,
}

impl Item<'_> {
    fn parent(&self) -> BorrowedFd<'_> {
        self.folder.handle.as_fd()
    }
}

impl Tree<'_> {
    fn write(&mut self) -> Result<(), SourceError> {
        let root = Arc::new(look::open_root(&self.source.root)?);
        let stat = rustix::fs::fstat(&root)
            .map_err(|e| SourceError::io("look at", &self.source.root, e.into()))?;
        self.device = stat.st_dev;
        self.directory(&Folder { handle: &root, path: b"", depth: 0 }, &stat)
    }

    fn directory(&mut self, folder: &Folder<'_>, stat: &Stat) -> Result<(), SourceError> {
        let &Folder { handle, path, .. } = folder;
        let shown = if path.is_empty() { b"./".to_vec() } else { [path, b"/"].concat() };
        let member = Member {
            path: shown,
            xattrs: self.xattrs(handle.as_fd(), path),
            ..member(EntryType::Directory, stat)
        };
        self.member(&member)?;
        self.written.content.directories += 1;
        let names = match look::names(handle) {
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
        self.others(folder, names.others)?;
        for name in names.directories {
            self.cx.check()?;
            let path = look::path_below(path, &name);
            match look::stat(handle.as_fd(), &name) {
                Ok(stat) => {
                    self.item(&Item { folder, name: &name, path: &path, stat }, None)?;
                }
                Err(error) => self.unseen(&path, &error),
            }
        }
        Ok(())
    }

    /// Writes what is no directory, while the next names are looked at.
    fn others(&mut self, folder: &Folder<'_>, mut names: Vec<Vec<u8>>) -> Result<(), SourceError> {
        names.retain(|name| !self.source.leaves_out(&look::path_below(folder.path, name), false));
        // Databases met in this directory: what SQLite keeps beside them must not be copied.
        let mut databases = BTreeSet::new();
        let mut ahead = names.iter();
        let mut answers = VecDeque::new();
        for name in &names {
            self.cx.check()?;
            for next in ahead.by_ref().take(AHEAD - answers.len()) {
                answers.push_back(self.readers.ask(folder.handle, next));
            }
            let answer = answers.pop_front().map(Answer::wait);
            let is_companion = COMPANIONS.iter().any(|suffix| {
                name.strip_suffix(suffix.as_bytes()).is_some_and(|base| databases.contains(base))
            });
            let path = look::path_below(folder.path, name);
            let (stat, opened) = match answer {
                None => break,
                Some(_) if is_companion => continue,
                Some(Ok(Looked { stat, opened })) => (stat, opened),
                Some(Err(error)) => {
                    self.unseen(&path, &error);
                    continue;
                }
            };
            let item = Item { folder, name, path: &path, stat };
            if self.item(&item, opened)? == Met::Database {
                databases.insert(name.clone());
            }
        }
        Ok(())
    }

    fn unseen(&mut self, path: &[u8], error: &io::Error) {
        self.written.item_error(self.cx, path, format!("cannot look at it: {error}"));
    }

    fn item(
        &mut self,
        item: &Item<'_>,
        opened: Option<io::Result<Opened>>,
    ) -> Result<Met, SourceError> {
        let kind = FileType::from_raw_mode(item.stat.st_mode);
        let is_elsewhere = self.source.one_file_system && item.stat.st_dev != self.device;
        if is_elsewhere || self.source.leaves_out(item.path, kind == FileType::Directory) {
            return Ok(Met::Other);
        }
        match kind {
            FileType::Directory => self.subdirectory(item)?,
            FileType::Symlink => self.symlink(item)?,
            FileType::RegularFile => return self.file(item, opened),
            FileType::Socket
            | FileType::Fifo
            | FileType::BlockDevice
            | FileType::CharacterDevice
            | FileType::Unknown => self.written.content.skipped_special += 1,
        }
        Ok(Met::Other)
    }

    fn subdirectory(&mut self, item: &Item<'_>) -> Result<(), SourceError> {
        let depth = item.folder.depth + 1;
        if depth > MAX_DEPTH {
            let error = format!("lies more than {MAX_DEPTH} directories deep");
            self.written.item_error(self.cx, item.path, error);
            return Ok(());
        }
        match look::open_directory(item.parent(), item.name) {
            Ok(directory) => {
                let handle = &Arc::new(directory);
                self.directory(&Folder { handle, path: item.path, depth }, &item.stat)
            }
            Err(error) => {
                let error = format!("cannot open the directory: {error}");
                self.written.item_error(self.cx, item.path, error);
                Ok(())
            }
        }
    }

    fn symlink(&mut self, item: &Item<'_>) -> Result<(), SourceError> {
        match rustix::fs::readlinkat(item.parent(), item.name, Vec::new()) {
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
        opened: Option<io::Result<Opened>>,
    ) -> Result<Met, SourceError> {
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
            return Ok(Met::Other);
        }
        let opened = opened.unwrap_or_else(|| reader::open(item.parent(), item.name));
        let opened = match opened {
            Ok(opened) => opened,
            Err(error) => {
                self.written.item_error(self.cx, item.path, format!("cannot open it: {error}"));
                return Ok(Met::Other);
            }
        };
        let (met, written) = self.contents(item, opened);
        match written {
            Err(Trouble::Item(error)) => self.written.item_error(self.cx, item.path, error),
            Err(Trouble::Job(error)) => return Err(error),
            Ok(bytes) => {
                if item.stat.st_nlink > 1 {
                    self.links.insert(inode, item.path.to_vec());
                }
                self.written.content.files += 1;
                self.written.content.bytes += bytes;
            }
        }
        Ok(met)
    }

    /// Writes one file, and says what it was.
    fn contents(&mut self, item: &Item<'_>, mut opened: Opened) -> (Met, Result<u64, Trouble>) {
        if FileType::from_raw_mode(opened.stat.st_mode) != FileType::RegularFile {
            let text = "it was replaced by something that is no file".to_owned();
            return (Met::Other, Err(Trouble::Item(text)));
        }
        let head = match opened.head() {
            Ok(head) => head,
            Err(error) => {
                return (Met::Other, Err(Trouble::Item(format!("cannot read it: {error}"))));
            }
        };
        let member = Member {
            path: item.path.to_vec(),
            xattrs: self.xattrs(opened.file.as_fd(), item.path),
            ..member(EntryType::Regular, &opened.stat)
        };
        if sqlite::is_database(&head) {
            (Met::Database, self.database(item, &member))
        } else {
            (Met::Other, self.bytes(&member, &opened))
        }
    }

    /// Writes a file as it is. An item error after the member began leaves a member filled with zeros, and named.
    fn bytes(&mut self, member: &Member, opened: &Opened) -> Result<u64, Trouble> {
        let size = opened.stat.st_size.cast_unsigned();
        let touched_at = |stat: &Stat| (stat.st_mtime, stat.st_mtime_nsec);
        let after = match &opened.contents {
            Some((bytes, after)) => {
                self.tar.begin(member, size).map_err(|cause| self.gone(cause))?;
                self.tar.data(bytes).map_err(|cause| self.gone(cause))?;
                *after
            }
            None => self.streamed(member, opened)?,
        };
        let missing = self.tar.end().map_err(|cause| self.gone(cause))?;
        if missing > 0 {
            return Err(Trouble::Item(format!(
                "it shrank while it was read: its last {missing} bytes are zeros now"
            )));
        }
        let is_touched = touched_at(&after) != touched_at(&opened.stat);
        // A file that only grew, like a log, was a whole file when it was opened.
        if is_touched && after.st_size <= opened.stat.st_size {
            return Err(Trouble::Item("it changed while it was read".to_owned()));
        }
        Ok(size)
    }

    /// Writes a large file, or one with holes, while it is read. Returns what the system says of it afterwards.
    fn streamed(&mut self, member: &Member, opened: &Opened) -> Result<Stat, Trouble> {
        let Opened { file, stat, .. } = opened;
        let size = stat.st_size.cast_unsigned();
        let regions = look::regions(file, stat)
            .map_err(|error| Trouble::Item(format!("cannot read it: {error}")))?;
        match &regions {
            Some(regions) => self.tar.begin_sparse(member, size, regions),
            None => self.tar.begin(member, size),
        }
        .map_err(|cause| self.gone(cause))?;
        let whole = 0..size;
        for region in regions.as_deref().unwrap_or(std::slice::from_ref(&whole)) {
            self.region(file, region)?;
        }
        let after = rustix::fs::fstat(file).map_err(io::Error::from);
        after.or_else(|error| {
            self.tar.end().map_err(|cause| self.gone(cause))?;
            Err(Trouble::Item(format!("cannot look at it again: {error}")))
        })
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
            Err(error) => Err(Trouble::Item(format!(
                "this SQLite database was left out: {}",
                with_causes(&error)
            ))),
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

/// What an item turned out to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Met {
    Database,
    Other,
}

/// What can go wrong with one file: it alone, or everything.
enum Trouble {
    Item(String),
    Job(SourceError),
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
