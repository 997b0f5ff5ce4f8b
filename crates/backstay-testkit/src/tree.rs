//! Trees full of oddities, and an independent look at them.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileExt as _, MetadataExt as _, PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use rustix::fs::{AtFlags, CWD, Timespec, Timestamps, XattrFlags};
use sha2::{Digest as _, Sha256};

/// All that a restore must give back of one name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    /// Type and mode bits.
    pub mode: u32,
    /// Owner and group.
    pub owner: (u32, u32),
    /// Modification time, but of the root's own parents nothing.
    pub mtime: (i64, i64),
    /// Size of a file.
    pub bytes: u64,
    /// SHA-256 of a file, target of a link.
    pub content: String,
    /// Extended attributes, as text.
    pub xattrs: String,
    /// The first name with the same inode, if there are several.
    pub same_as: Option<Vec<u8>>,
    /// Whether it takes much less space than its size.
    pub is_sparse: bool,
}

/// Looks at everything below a directory, and at the directory.
pub fn walk(root: &Path) -> anyhow::Result<BTreeMap<Vec<u8>, Seen>> {
    let mut seen = BTreeMap::new();
    let mut inodes = BTreeMap::new();
    let mut waiting = vec![root.to_owned()];
    let mut paths = Vec::new();
    while let Some(path) = waiting.pop() {
        if path.symlink_metadata()?.is_dir() {
            for entry in fs::read_dir(&path)? {
                waiting.push(entry?.path());
            }
        }
        paths.push(path);
    }
    paths.sort();
    for path in paths {
        let name = path.strip_prefix(root)?.as_os_str().as_bytes().to_vec();
        let look = look(&path, &name, &mut inodes)
            .with_context(|| format!("cannot look at {}", path.display()))?;
        seen.insert(name, look);
    }
    Ok(seen)
}

fn look(path: &Path, name: &[u8], inodes: &mut BTreeMap<u64, Vec<u8>>) -> anyhow::Result<Seen> {
    let meta = path.symlink_metadata()?;
    let content = if meta.is_file() {
        hex::encode(Sha256::digest(fs::read(path)?))
    } else if meta.is_symlink() {
        hex::encode(fs::read_link(path)?.as_os_str().as_bytes())
    } else {
        String::new()
    };
    let has_names = meta.is_file() && meta.nlink() > 1;
    let same_as =
        has_names.then(|| inodes.entry(meta.ino()).or_insert_with(|| name.to_vec()).clone());
    Ok(Seen {
        mode: meta.mode(),
        owner: (meta.uid(), meta.gid()),
        mtime: (meta.mtime(), meta.mtime_nsec()),
        bytes: if meta.is_file() { meta.len() } else { 0 },
        content,
        xattrs: if meta.is_symlink() { String::new() } else { xattrs(path)? },
        same_as,
        is_sparse: meta.is_file() && meta.len() > 1 << 20 && meta.blocks() * 512 * 4 < meta.len(),
    })
}

fn xattrs(path: &Path) -> anyhow::Result<String> {
    let mut list = vec![0; 65536];
    let length = rustix::fs::llistxattr(path, &mut list[..])?;
    let mut names: Vec<&[u8]> =
        list[..length].split(|b| *b == 0).filter(|n| !n.is_empty()).collect();
    names.sort_unstable();
    let mut pairs = Vec::new();
    for name in names {
        let mut value = vec![0; 65536];
        let length = rustix::fs::lgetxattr(path, name, &mut value[..])?;
        pairs.push(format!("{}={}", hex::encode(name), hex::encode(&value[..length])));
    }
    Ok(pairs.join(";"))
}

/// Says what differs between two looks, for a person.
pub fn differences(
    before: &BTreeMap<Vec<u8>, Seen>,
    after: &BTreeMap<Vec<u8>, Seen>,
) -> Vec<String> {
    let mut lines = Vec::new();
    for (name, was) in before {
        let shown = String::from_utf8_lossy(name);
        match after.get(name) {
            None => lines.push(format!("{shown}: gone")),
            Some(is) if is != was => lines.push(format!("{shown}: was {was:?}, is {is:?}")),
            Some(_) => {}
        }
    }
    lines.extend(
        after
            .keys()
            .filter(|n| !before.contains_key(*n))
            .map(|n| format!("{}: new", String::from_utf8_lossy(n))),
    );
    lines
}

/// Makes a tree of about `files` small files and of every oddity that a backup must give back.
pub fn make(root: &Path, files: usize) -> anyhow::Result<()> {
    for i in 0..files {
        let directory = root.join(format!("d{}/s{}", i / 1000, i / 50));
        fs::create_dir_all(&directory)?;
        fs::write(directory.join(format!("f{i}")), format!("file {i}\n").repeat(i % 40))?;
    }
    let odd = root.join("odd");
    fs::create_dir_all(&odd)?;
    let names: [&[u8]; 9] = [
        b"-rf",
        b"--",
        b"a=b",
        b"per%cent",
        b"quo\"te'",
        b"new\nline",
        b"not-utf8-\xff\xfe",
        b" blank ",
        b"\\x41",
    ];
    for name in names {
        fs::write(odd.join(OsStr::from_bytes(name)), name)?;
    }
    fs::write(odd.join("n".repeat(255)), "long")?;
    let deep = (0..12).fold(odd.clone(), |path, _| path.join("d".repeat(100)));
    fs::create_dir_all(&deep)?;
    fs::write(deep.join("bottom"), "deep")?;
    fs::create_dir(odd.join("empty"))?;
    fs::write(odd.join("nothing"), "")?;
    symlink("/etc/passwd", odd.join("absolute"))?;
    symlink("does/not/exist", odd.join("dangling"))?;
    symlink("loop", odd.join("loop"))?;
    symlink("l".repeat(300), odd.join("long-link"))?;
    fs::hard_link(odd.join("a=b"), odd.join("z-second"))?;
    fs::hard_link(odd.join("a=b"), root.join("third"))?;
    let sparse = fs::File::create(odd.join("sparse"))?;
    sparse.write_all_at(b"head", 0)?;
    for i in 1..60_u64 {
        sparse.write_all_at(b"island", i << 20)?;
    }
    sparse.set_len(200 << 20)?;
    let only_hole = fs::File::create(odd.join("hole"))?;
    only_hole.set_len(8 << 20)?;
    fs::write(odd.join("attributes"), "x")?;
    rustix::fs::setxattr(odd.join("attributes"), "user.binary", b"\0\xff=\n", XattrFlags::empty())?;
    rustix::fs::setxattr(&odd, "user.on.directory", b"yes", XattrFlags::empty())?;
    for (name, mode) in [("m000", 0o000), ("m4755", 0o4755), ("m1777", 0o1777), ("m640", 0o640)] {
        fs::write(odd.join(name), name)?;
        fs::set_permissions(odd.join(name), fs::Permissions::from_mode(mode))?;
    }
    if rustix::process::geteuid().is_root() {
        std::os::unix::fs::chown(odd.join("-rf"), Some(12345), Some(54321))?;
        std::os::unix::fs::lchown(odd.join("dangling"), Some(7), Some(8))?;
    }
    set_time(&odd.join("--"), (-1_000_000, 250_000_000))?;
    set_time(&odd.join("nothing"), (4_102_444_800, 999_999_999))?;
    set_time(&odd.join("loop"), (1, 1))?;
    set_time(&odd.join("empty"), (1_000_000_000, 5))
}

/// Returns bytes that cannot be compressed, the same at every call.
pub fn noise(bytes: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let words = (0..bytes.div_ceil(8)).flat_map(|_| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    });
    words.take(bytes).collect()
}

fn set_time(path: &Path, (tv_sec, tv_nsec): (i64, i64)) -> anyhow::Result<()> {
    let time = Timespec { tv_sec, tv_nsec };
    let times = Timestamps { last_access: time, last_modification: time };
    Ok(rustix::fs::utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW)?)
}

/// Returns all regular files below a directory.
pub fn files_below(root: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    let mut waiting = vec![root.to_owned()];
    while let Some(path) = waiting.pop() {
        if path.is_dir() {
            for entry in fs::read_dir(&path)? {
                waiting.push(entry?.path());
            }
        } else {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Does something to a tree, with all times as they were, and says of which names a difference is told.
    fn told(change: impl FnOnce(&Path) -> anyhow::Result<()>) -> anyhow::Result<Vec<String>> {
        let dir = tempfile::tempdir()?;
        let root = dir.path();
        for name in ["file", "first"] {
            fs::write(root.join(name), name)?;
        }
        fs::hard_link(root.join("first"), root.join("second"))?;
        symlink("file", root.join("link"))?;
        fs::File::create(root.join("holes"))?.set_len(4 << 20)?;
        let before = walk(root)?;
        assert_eq!(differences(&before, &walk(root)?), Vec::<String>::new());
        change(root)?;
        for (name, seen) in &before {
            let path = root.join(OsStr::from_bytes(name));
            if path.symlink_metadata().is_ok() {
                set_time(&path, seen.mtime)?;
            }
        }
        let lines = differences(&before, &walk(root)?);
        Ok(lines.iter().filter_map(|line| line.split(':').next().map(str::to_owned)).collect())
    }

    #[test]
    fn each_kind_of_difference_is_told() -> anyhow::Result<()> {
        assert_eq!(told(|_| Ok(()))?, Vec::<String>::new());
        let mode = |root: &Path| -> anyhow::Result<()> {
            Ok(fs::set_permissions(root.join("file"), fs::Permissions::from_mode(0o4711))?)
        };
        assert_eq!(told(mode)?, ["file"]);
        assert_eq!(told(|root| Ok(fs::write(root.join("file"), "fill")?))?, ["file"], "content");
        assert_eq!(told(|root| Ok(fs::write(root.join("file"), "longer")?))?, ["file"], "size");
        let xattr = |root: &Path| -> anyhow::Result<()> {
            let flags = XattrFlags::empty();
            Ok(rustix::fs::setxattr(root.join("file"), "user.x", b"", flags)?)
        };
        assert_eq!(told(xattr)?, ["file"]);
        let link = |root: &Path| -> anyhow::Result<()> {
            fs::remove_file(root.join("link"))?;
            Ok(symlink("elif", root.join("link"))?)
        };
        assert_eq!(told(link)?, ["link"]);
        let hard_link = |root: &Path| -> anyhow::Result<()> {
            fs::remove_file(root.join("second"))?;
            fs::copy(root.join("first"), root.join("second"))?;
            Ok(())
        };
        assert_eq!(told(hard_link)?, ["first", "second"]);
        let filled = |root: &Path| Ok(fs::write(root.join("holes"), vec![0; 4 << 20])?);
        assert_eq!(told(filled)?, ["holes"]);
        assert_eq!(told(|root| Ok(fs::remove_file(root.join("file"))?))?, ["file"], "gone");
        assert_eq!(told(|root| Ok(fs::write(root.join("more"), "")?))?, ["more"], "new");
        Ok(())
    }

    #[test]
    fn times_and_owners_are_told() -> anyhow::Result<()> {
        let dir = tempfile::tempdir()?;
        fs::write(dir.path().join("file"), "")?;
        let before = walk(dir.path())?;
        set_time(&dir.path().join("file"), (5, 1))?;
        let first = walk(dir.path())?;
        assert_eq!(differences(&before, &first).len(), 1);
        set_time(&dir.path().join("file"), (5, 2))?;
        assert_eq!(differences(&first, &walk(dir.path())?).len(), 1, "a nanosecond");
        // Only root could give a file away, so the look itself is changed.
        let mut given_away = first.clone();
        for seen in given_away.values_mut() {
            seen.owner.1 += 1;
        }
        assert_eq!(differences(&first, &given_away).len(), 2);
        Ok(())
    }
}
