//! Swapping what was loaded beside into the target's place, and back.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// What will be moved where to put a loaded restore into its place; serialisable, so that an interrupted swap can be
/// finished and a finished one undone by a later process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Replacement {
    /// The place to be replaced: a directory or a file. May not exist yet.
    pub target: PathBuf,
    /// What was loaded; on the same file system as the target. After the swap the old target lies here.
    pub beside: PathBuf,
    /// Files beside the target that belong to its old content and must go with it: `-wal`, `-shm`, `-journal`.
    pub companions: Vec<PathBuf>,
    /// How the swap is done.
    pub mode: ReplaceMode,
}

/// How a swap is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ReplaceMode {
    /// One atomic exchange of two names (or one rename, where there was nothing).
    Exchange,
    /// Entry by entry inside the directory: for a target that is a mount point and cannot be renamed.
    /// `beside` then lies inside the target.
    Entries,
    /// Only chosen paths inside an existing tree: each is exchanged alone. `beside` mirrors the tree.
    Chosen,
}
