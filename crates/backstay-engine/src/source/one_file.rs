//! What databases that are a single file have in common: who holds them, and how a new file takes the place of an old one.

use std::fs::{self, File, Metadata};
use std::io;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use super::{SourceError, TargetOptions, beside};
use crate::replace::{Replacement, Scope};

/// The place of a database file that a restore fights for.
#[derive(Debug)]
pub(super) struct Place {
    pub(super) replacement: Replacement,
    is_own: bool,
    in_place: bool,
}

impl Place {
    /// Takes the source's own place, or another; files with these suffixes belong to a database.
    pub(super) fn new(own: &Path, options: &TargetOptions, companions: &[&str]) -> Self {
        let to = options.to.as_ref().map(PathBuf::from);
        // Whoever names a place has no safety backup made of it: nothing is replaced there, not even by chance.
        let is_own = to.is_none();
        // A link stays one: what it points to is replaced, as with directories.
        let own = || own.canonicalize().unwrap_or_else(|_| own.to_owned());
        let target = to.unwrap_or_else(own);
        let beside = beside(&target, &options.tag);
        let companions = companions.iter().map(|suffix| (*suffix).to_owned()).collect();
        let scope = Scope::Whole { companions };
        let replacement = Replacement { target, beside, scope };
        Self { replacement, is_own, in_place: options.in_place }
    }

    /// Makes the folders beside it, after looking whether a file can go there.
    pub(super) fn prepare(&self) -> Result<(), SourceError> {
        let Replacement { target, beside, .. } = &self.replacement;
        let wrong = |expected| Err(SourceError::WrongKind { path: target.clone(), expected });
        let parent = parent(target);
        if !parent.is_dir() {
            return Err(SourceError::NotFound { path: parent.to_owned() });
        }
        if self.in_place {
            return wrong(
                "restored in place: a database is swapped in one step, without --in-place",
            );
        }
        match fs::metadata(target) {
            Ok(meta) if meta.is_dir() => return wrong("a file"),
            Ok(meta) if !self.is_own && meta.len() > 0 => return wrong("free: it exists already"),
            _ => {}
        }
        self.replacement.prepare().map_err(|cause| SourceError::io("make", beside, cause))
    }

    /// Makes a loaded file what the target is to be: its owner, its mode, on the disk.
    pub(super) fn complete(&self, file: &File) -> Result<Vec<String>, SourceError> {
        let loaded = self.replacement.loaded();
        let mut warnings = Vec::new();
        dress(file, &self.replacement.target, &mut warnings)
            .map_err(|cause| SourceError::io("set owner and mode of", &loaded, cause))?;
        file.sync_all().map_err(|cause| SourceError::io("write", &loaded, cause))?;
        Ok(warnings)
    }

    /// Removes what was made beside it.
    pub(super) fn discard(&self) -> Result<(), SourceError> {
        let Replacement { beside, .. } = &self.replacement;
        self.replacement.discard().map_err(|cause| SourceError::io("remove", beside, cause))
    }
}

/// Gives the new file the owner and mode of the present one, or the owner of its directory.
fn dress(file: &File, target: &Path, warnings: &mut Vec<String>) -> io::Result<()> {
    let (like, mode) = match fs::metadata(target) {
        Ok(meta) => (meta.clone(), meta.permissions().mode() & 0o7777),
        Err(_) => (fs::metadata(parent(target))?, 0o640),
    };
    let now = file.metadata()?;
    if (now.uid(), now.gid()) != (like.uid(), like.gid())
        && std::os::unix::fs::fchown(file, Some(like.uid()), Some(like.gid())).is_err()
    {
        warnings.push(format!(
            "the owner {}:{} could not be set without root's rights",
            like.uid(),
            like.gid()
        ));
    }
    file.set_permissions(fs::Permissions::from_mode(mode))
}

fn parent(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Returns the path of what belongs to a database and has its name and this suffix.
pub(super) fn companion(database: &Path, suffix: &str) -> PathBuf {
    let mut path = database.as_os_str().to_owned();
    path.push(suffix);
    PathBuf::from(path)
}

/// Returns what is known of a file that must be there.
pub(super) fn existing(path: &Path) -> Result<Metadata, SourceError> {
    match path.metadata() {
        Ok(meta) if meta.is_file() => Ok(meta),
        Ok(_) => Err(SourceError::WrongKind { path: path.to_owned(), expected: "a file" }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            Err(SourceError::NotFound { path: path.to_owned() })
        }
        Err(cause) => Err(SourceError::io("look at", path, cause)),
    }
}

/// Fails if a process has the target open, as far as this process may see others.
pub(super) fn check_free(target: &Path) -> Result<(), SourceError> {
    match holder(target) {
        Some(holder) => Err(SourceError::InUse { path: target.to_owned(), holder }),
        None => Ok(()),
    }
}

fn holder(database: &Path) -> Option<String> {
    let database = database.canonicalize().ok()?;
    for process in fs::read_dir("/proc").ok()?.flatten() {
        let Some(pid) = process.file_name().to_str().and_then(|name| name.parse::<u32>().ok())
        else {
            continue;
        };
        if pid == std::process::id() {
            continue;
        }
        let Ok(files) = fs::read_dir(process.path().join("fd")) else { continue };
        if files.flatten().any(|file| fs::read_link(file.path()).is_ok_and(|open| open == database))
        {
            let name = fs::read_to_string(process.path().join("comm")).unwrap_or_default();
            return Some(format!("process {pid} ({})", name.trim()));
        }
    }
    None
}
