//! Where an installation keeps its state.

use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

/// The home directory of an installation.
#[derive(Debug, Clone)]
pub struct Home {
    path: PathBuf,
}

/// Why a home directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum HomeError {
    /// It could not be made or looked at.
    #[error("cannot use the home directory {path}; choose another with --home or BACKSTAY_HOME")]
    Io {
        /// Which directory.
        path: PathBuf,
        /// What the system said.
        #[source]
        cause: io::Error,
    },
    /// Others may write to it.
    #[error(
        "others may write to the home directory {path} (mode {mode:o}); run `chmod go-w {path}`"
    )]
    Open {
        /// Which directory.
        path: PathBuf,
        /// Its mode.
        mode: u32,
    },
}

impl Home {
    /// Makes the directory, for its owner alone, unless it is there.
    pub fn open(path: &Path) -> Result<Self, HomeError> {
        let failed = |cause| HomeError::Io { path: path.to_owned(), cause };
        fs::DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(failed)?;
        let meta = fs::metadata(path).map_err(failed)?;
        let mode = meta.permissions().mode() & 0o7777;
        // The sticky bit does not help: files could still be put here under names that we trust.
        if mode & 0o022 != 0 && meta.uid() == rustix::process::geteuid().as_raw()
            || mode & 0o002 != 0
        {
            return Err(HomeError::Open { path: path.to_owned(), mode });
        }
        Ok(Self { path: path.to_owned() })
    }

    /// Returns the directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the catalog's file.
    pub fn catalog(&self) -> PathBuf {
        self.path.join("catalog.db")
    }

    /// Returns the master key's file.
    pub fn master_key(&self) -> PathBuf {
        self.path.join("master.key")
    }

    /// Returns the directory for snapshots that are being read.
    pub fn spool(&self) -> PathBuf {
        self.path.join("spool")
    }
}
