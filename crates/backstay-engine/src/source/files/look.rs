//! What the system says of a tree's names and files, asked by handles, so that no link below the root is followed.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, SeekFrom, Stat};

use crate::source::SourceError;

/// Opens the root of a tree, which may itself be a symbolic link.
pub(super) fn open_root(root: &Path) -> Result<OwnedFd, SourceError> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::openat(CWD, root, flags, Mode::empty()).map_err(|error| match error {
        rustix::io::Errno::NOENT => SourceError::NotFound { path: root.to_owned() },
        rustix::io::Errno::NOTDIR => {
            SourceError::WrongKind { path: root.to_owned(), expected: "a directory" }
        }
        other => SourceError::io("open", root, other.into()),
    })
}

/// Looks at a name, and at a link itself.
pub(super) fn stat(parent: BorrowedFd<'_>, name: &[u8]) -> io::Result<Stat> {
    Ok(rustix::fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW)?)
}

/// Opens a directory in a directory.
pub(super) fn open_directory(parent: BorrowedFd<'_>, name: &[u8]) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(rustix::fs::openat(parent, name, flags, Mode::empty())?)
}

/// Opens a file in a directory; not blocking, in case somebody puts a FIFO in the file's place.
pub(super) fn open_file(parent: BorrowedFd<'_>, name: &[u8]) -> io::Result<File> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    Ok(File::from(rustix::fs::openat(parent, name, flags, Mode::empty())?))
}

/// Returns the path of a name in a directory, relative to the root, whose own path is empty.
pub(super) fn path_below(directory: &[u8], name: &[u8]) -> Vec<u8> {
    if directory.is_empty() { name.to_vec() } else { [directory, b"/", name].concat() }
}

/// The names in a directory.
#[derive(Debug, Default)]
pub(super) struct Names {
    pub(super) directories: Vec<Vec<u8>>,
    pub(super) others: Vec<Vec<u8>>,
}

/// Lists a directory in the order of the names' bytes, so that equal trees make equal archives.
pub(super) fn names(directory: &OwnedFd) -> io::Result<Names> {
    let mut names = Names::default();
    for entry in Dir::read_from(directory)? {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if name == b"." || name == b".." {
            continue;
        }
        let is_directory = match entry.file_type() {
            FileType::Directory => true,
            // Not every file system tells. What cannot be looked at is named when it is its turn.
            FileType::Unknown => stat(directory.as_fd(), name)
                .is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::Directory),
            _ => false,
        };
        let list = if is_directory { &mut names.directories } else { &mut names.others };
        list.push(name.to_vec());
    }
    names.directories.sort();
    names.others.sort();
    Ok(names)
}

/// Whether a file has fewer blocks than its size needs.
pub(super) fn may_have_holes(stat: &Stat) -> bool {
    stat.st_blocks.cast_unsigned() * 512 < stat.st_size.cast_unsigned()
}

/// Returns where a file with holes has bytes, or `None` for one without.
pub(super) fn regions(file: &File, stat: &Stat) -> io::Result<Option<Vec<Range<u64>>>> {
    if !may_have_holes(stat) {
        return Ok(None);
    }
    let size = stat.st_size.cast_unsigned();
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

/// Returns the extended attributes; where the file system knows none, nothing. One that goes away meanwhile was never there.
pub(super) fn xattrs(file: BorrowedFd<'_>) -> io::Result<Vec<(Vec<u8>, Vec<u8>)>> {
    let mut list = vec![0; 4096];
    let length = loop {
        match rustix::fs::flistxattr(file, &mut list[..]) {
            Ok(length) => break length,
            Err(rustix::io::Errno::RANGE) if list.len() < 1 << 20 => list.resize(list.len() * 4, 0),
            Err(rustix::io::Errno::NOTSUP) => return Ok(Vec::new()),
            Err(error) => return Err(error.into()),
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
        match rustix::fs::fgetxattr(file, name, &mut value[..]) {
            Ok(length) => value.truncate(length),
            Err(rustix::io::Errno::NODATA) => return None,
            Err(error) => return Some(Err(error.into())),
        }
        Some(Ok((name.to_vec(), value)))
    };
    names.filter_map(value).collect()
}
