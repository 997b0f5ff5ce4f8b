//! Making the files of a tree. Small ones are made by several threads: what the system does for each costs more than its
//! bytes.

use std::fs::File;
use std::io;
use std::num::NonZero;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::PathBuf;
use std::sync::mpsc::Receiver;
use std::sync::{Arc, Mutex, PoisonError};

use backstay_format::PartName;
use rustix::fs::{Gid, Mode, OFlags, Timespec, Timestamps, Uid, XattrFlags};

use super::tar_write::Member;
use super::{Warnings, readable};
use crate::part::PartError;
use crate::source::SourceError;

/// Larger files are written as they come; so many bytes are held for each of [`WAITING`] small ones.
pub(super) const SMALL_BYTES: u64 = 128 * 1024;
/// Small files that may wait to be made: with [`SMALL_BYTES`], 4 MiB.
pub(super) const WAITING: usize = 32;
/// More threads than this only wait for each other in the file system.
const MAX_THREADS: usize = 4;

/// Makes files below one directory and gives them what the archive says of them.
pub(super) struct Maker {
    part: PartName,
    beside: PathBuf,
    is_root: bool,
    warnings: Mutex<Warnings>,
}

/// A file that is small enough to wait with all its bytes.
pub(super) struct SmallFile {
    pub(super) parent: Arc<OwnedFd>,
    pub(super) name: Vec<u8>,
    pub(super) path: Vec<u8>,
    pub(super) member: Member,
    pub(super) bytes: Vec<u8>,
}

/// How many threads make small files.
pub(super) fn threads() -> usize {
    std::thread::available_parallelism().map_or(1, NonZero::get).min(MAX_THREADS)
}

impl Maker {
    pub(super) fn new(part: PartName, beside: PathBuf) -> Self {
        let is_root = rustix::process::geteuid().is_root();
        Self { part, beside, is_root, warnings: Mutex::default() }
    }

    /// Makes small files until no more come. After a failure, which the first one keeps, they are only taken away, so that
    /// whoever sends them never waits for ever.
    pub(super) fn make_all(
        &self,
        files: &Mutex<Receiver<SmallFile>>,
        failure: &Mutex<Option<SourceError>>,
    ) {
        let mut working = true;
        loop {
            let next = files.lock().unwrap_or_else(PoisonError::into_inner).recv();
            let Ok(file) = next else { return };
            if !working {
                continue;
            }
            if let Err(error) = self.make_small(&file) {
                working = false;
                failure.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
            }
        }
    }

    fn make_small(&self, small: &SmallFile) -> Result<(), SourceError> {
        let file = self.create(&small.parent, &small.name, &small.path)?;
        self.write(&file, &small.bytes, 0, &small.path)?;
        self.dress(file.as_fd(), &small.path, &small.member)
    }

    /// Makes a file that must not be there yet.
    pub(super) fn create(
        &self,
        parent: &OwnedFd,
        name: &[u8],
        path: &[u8],
    ) -> Result<File, SourceError> {
        let flags =
            OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        rustix::fs::openat(parent, name, flags, Mode::RUSR | Mode::WUSR)
            .map(File::from)
            .map_err(|error| self.clash("make", path, error))
    }

    pub(super) fn write(
        &self,
        file: &File,
        mut bytes: &[u8],
        mut at: u64,
        path: &[u8],
    ) -> Result<(), SourceError> {
        while !bytes.is_empty() {
            let written =
                rustix::io::pwrite(file, bytes, at).map_err(|e| self.io("write", path, e))?;
            bytes = bytes.get(written..).unwrap_or_default();
            at += written as u64;
        }
        Ok(())
    }

    /// Gives a file or directory its owner, mode, attributes and times, in the order in which one does not undo another.
    pub(super) fn dress(
        &self,
        file: BorrowedFd<'_>,
        path: &[u8],
        member: &Member,
    ) -> Result<(), SourceError> {
        if self.is_root {
            let (uid, gid) = owner(member);
            rustix::fs::fchown(file, Some(uid), Some(gid))
                .map_err(|e| self.io("set the owner of", path, e))?;
        } else if member.uid != rustix::process::geteuid().as_raw() {
            let (shown, uid, gid) = (readable(path), member.uid, member.gid);
            self.warn(format!("{shown} belonged to {uid}:{gid}; only root can give it back"));
        }
        for (name, value) in &member.xattrs {
            let set = rustix::fs::fsetxattr(file, name.as_slice(), value, XattrFlags::empty());
            if let Err(error) = set {
                let (shown, name) = (readable(path), readable(name));
                let error = io::Error::from(error);
                self.warn(format!("{shown}: attribute {name} could not be set: {error}"));
            }
        }
        rustix::fs::fchmod(file, Mode::from_raw_mode(member.mode))
            .map_err(|e| self.io("set the mode of", path, e))?;
        rustix::fs::futimens(file, &times(member)).map_err(|e| self.io("set the time of", path, e))
    }

    /// Gives a symbolic link itself its owner and times.
    pub(super) fn dress_link(
        &self,
        parent: &OwnedFd,
        name: &[u8],
        path: &[u8],
        member: &Member,
    ) -> Result<(), SourceError> {
        let itself = rustix::fs::AtFlags::SYMLINK_NOFOLLOW;
        if self.is_root {
            let (uid, gid) = owner(member);
            rustix::fs::chownat(parent, name, Some(uid), Some(gid), itself)
                .map_err(|error| self.io("set the owner of", path, error))?;
        }
        rustix::fs::utimensat(parent, name, &times(member), itself)
            .map_err(|error| self.io("set the time of", path, error))
    }

    pub(super) fn warn(&self, text: String) {
        self.warnings.lock().unwrap_or_else(PoisonError::into_inner).add(text);
    }

    /// Returns the warnings so far, the first of them by name.
    pub(super) fn warnings(&self) -> Vec<String> {
        self.warnings.lock().unwrap_or_else(PoisonError::into_inner).list()
    }

    pub(super) fn hostile(&self, finding: String) -> SourceError {
        PartError::Refused { part: self.part.clone(), finding }.into()
    }

    /// A name that exists already was in the archive twice, or is a link that something should be written through.
    pub(super) fn clash(
        &self,
        action: &'static str,
        path: &[u8],
        error: rustix::io::Errno,
    ) -> SourceError {
        match error {
            rustix::io::Errno::EXIST => self.hostile(format!("{} is in it twice", readable(path))),
            other => self.io(action, path, other),
        }
    }

    pub(super) fn io(
        &self,
        action: &'static str,
        path: &[u8],
        error: rustix::io::Errno,
    ) -> SourceError {
        SourceError::io(action, self.beside.join(std::ffi::OsStr::from_bytes(path)), error.into())
    }
}

fn owner(member: &Member) -> (Uid, Gid) {
    (Uid::from_raw(member.uid), Gid::from_raw(member.gid))
}

fn times(member: &Member) -> Timestamps {
    let time = Timespec { tv_sec: member.mtime.0, tv_nsec: i64::from(member.mtime.1) };
    Timestamps { last_access: time, last_modification: time }
}
