//! The spool directory: for what an engine can only give as a file.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::mem::ManuallyDrop;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use rand::RngCore as _;

use crate::part::{PartError, PartReader};
use crate::source::SourceError;

/// A folder of one capture in the spool directory, named for the process that made it.
///
/// Removed with all in it when dropped: a snapshot left behind is a full disk on one of the next nights. What a killed
/// process leaves is removed by [`clean`].
#[derive(Debug)]
pub(crate) struct Spool {
    path: PathBuf,
}

impl Spool {
    /// Makes a folder for a capture.
    pub(crate) fn create(root: &Path) -> Result<Self, SourceError> {
        let mut tail = [0; 6];
        rand::rng().fill_bytes(&mut tail);
        let path = root.join(format!("{}-{}", std::process::id(), hex::encode(tail)));
        let made =
            fs::create_dir_all(root).and_then(|()| fs::DirBuilder::new().mode(0o700).create(&path));
        made.map_err(|cause| SourceError::io("make the spool folder", &path, cause))?;
        Ok(Self { path })
    }

    /// Returns the folder.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the path of a file in it, after checking that there is room for it.
    pub(crate) fn file(&self, name: &str, needed_bytes: u64) -> Result<PathBuf, SourceError> {
        check_space(&self.path, needed_bytes)?;
        Ok(self.path.join(name))
    }

    /// Leaves the folder to whoever takes its path; should the process be killed, [`clean`] removes it.
    pub(crate) fn keep(self) -> PathBuf {
        ManuallyDrop::new(self).path.clone()
    }
}

impl Drop for Spool {
    fn drop(&mut self) {
        if let Err(error) = remove_tree(&self.path) {
            tracing::warn!(path = %self.path.display(), %error, "cannot remove the spool folder");
        }
    }
}

/// Removes a folder, also where what lies in it may not be written to.
fn remove_tree(folder: &Path) -> io::Result<()> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {}
        removed => return removed,
    }
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        fs::set_permissions(&folder, fs::Permissions::from_mode(0o700))?;
        for entry in fs::read_dir(&folder)? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                folders.push(entry.path());
            }
        }
    }
    fs::remove_dir_all(folder)
}

/// Removes a folder that was kept, if it is still there.
pub(crate) fn remove(folder: &Path) -> Result<(), SourceError> {
    match remove_tree(folder) {
        Err(cause) if cause.kind() != io::ErrorKind::NotFound => {
            Err(SourceError::io("remove", folder, cause))
        }
        _ => Ok(()),
    }
}

/// Writes a part into a new file that only its owner can read. Returns the file and its bytes. Blocks.
pub(crate) fn write_part(data: PartReader, path: &Path) -> Result<(File, u64), SourceError> {
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
        .map_err(|cause| SourceError::io("make", path, cause))?;
    let bytes = io::copy(&mut data.into_read(), &mut file).map_err(|error| {
        match error.downcast::<PartError>() {
            Ok(part) => part.into(),
            Err(cause) => SourceError::io("write", path, cause),
        }
    })?;
    Ok((file, bytes))
}

/// Fails if the file system of a directory has less room than needed.
pub(crate) fn check_space(path: &Path, needed_bytes: u64) -> Result<(), SourceError> {
    let room = rustix::fs::statvfs(path)
        .map_err(|e| SourceError::io("look at the free space of", path, e.into()))?;
    let available_bytes = room.f_bavail.saturating_mul(room.f_frsize);
    if available_bytes < needed_bytes {
        return Err(SourceError::NoSpace { path: path.to_owned(), available_bytes, needed_bytes });
    }
    Ok(())
}

/// Removes what processes that no longer live left in the spool directory.
pub fn clean(root: &Path) -> std::io::Result<()> {
    let entries = match fs::read_dir(root) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        entries => entries?,
    };
    for entry in entries {
        let entry = entry?;
        let name = entry.file_name();
        let pid = name
            .to_str()
            .and_then(|name| name.split_once('-'))
            .and_then(|(pid, _)| pid.parse::<u32>().ok());
        // Nothing of ours has another form.
        let Some(pid) = pid else { continue };
        if pid != std::process::id() && !Path::new("/proc").join(pid.to_string()).exists() {
            // What cannot be removed takes room, and must not keep anybody from a restore.
            if let Err(error) = remove_tree(&entry.path()) {
                let path = entry.path();
                tracing::warn!(path = %path.display(), %error, "cannot remove what a killed process left");
            }
        }
    }
    Ok(())
}
