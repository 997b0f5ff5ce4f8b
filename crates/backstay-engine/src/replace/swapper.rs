//! What a source of paths gives a restore: swaps, and the way back.

use std::ffi::OsStr;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use async_trait::async_trait;

use super::{OWN_PREFIX, Replacement, Swap, failed, is_there};
use crate::cx::Cx;
use crate::error::EngineError;
use crate::source::beside;
use crate::swap::{self, Direction, Swapper, foreign};

/// Swaps paths.
#[derive(Debug, Clone)]
pub struct PathSwapper {
    /// The source's own place.
    pub own: PathBuf,
}

impl PathSwapper {
    /// Returns all directories of ours beside the source's own place, and in it.
    fn besides(&self) -> Vec<PathBuf> {
        // A root that is a link stays one: what it points to is replaced.
        let own = self.own.canonicalize().unwrap_or_else(|_| self.own.clone());
        let sibling = beside(&own, "");
        let mut found = Vec::new();
        for (directory, beginning) in [
            (own.parent(), sibling.file_name().unwrap_or_default()),
            (Some(own.as_path()), OsStr::new(OWN_PREFIX)),
        ] {
            let entries = directory.and_then(|directory| directory.read_dir().ok());
            let names = entries.into_iter().flatten().flatten().filter(|entry| {
                let tag = entry.file_name();
                let tag = tag.as_encoded_bytes().strip_prefix(beginning.as_encoded_bytes());
                let is_tag = tag.is_some_and(|tag| {
                    !tag.is_empty() && tag.iter().all(u8::is_ascii_alphanumeric)
                });
                is_tag && entry.file_type().is_ok_and(|kind| kind.is_dir())
            });
            found.extend(names.map(|entry| entry.path()));
        }
        found
    }
}

/// Says whether no restore has put anything away there.
fn replaced_nothing_in(beside: &Path) -> bool {
    match beside.join("replaced").read_dir() {
        Ok(mut names) => names.next().is_none(),
        Err(error) => error.kind() == ErrorKind::NotFound,
    }
}

fn paths_of(replacement: &swap::Replacement) -> Result<&Replacement, EngineError> {
    match replacement {
        swap::Replacement::Paths(paths) => Ok(paths),
        other => Err(foreign(other)),
    }
}

fn swap_of(swap: &swap::Swap) -> Result<&Swap, EngineError> {
    match swap {
        swap::Swap::Paths(swap) => Ok(swap),
        other => Err(foreign(other)),
    }
}

#[async_trait]
impl Swapper for PathSwapper {
    async fn plan(
        &self,
        _cx: &Cx,
        replacement: &swap::Replacement,
        direction: Direction,
    ) -> Result<swap::Swap, EngineError> {
        Swap::plan(paths_of(replacement)?.clone(), direction).map(swap::Swap::Paths)
    }

    async fn run(&self, _cx: &Cx, swap: &swap::Swap) -> Result<(), EngineError> {
        swap_of(swap)?.run()
    }

    async fn roll_back(&self, _cx: &Cx, swap: &swap::Swap) -> Result<(), EngineError> {
        swap_of(swap)?.roll_back()
    }

    async fn replaced_nothing(
        &self,
        _cx: &Cx,
        replacement: &swap::Replacement,
    ) -> Result<bool, EngineError> {
        Ok(paths_of(replacement)?.replaced_nothing())
    }

    async fn can_go_back(
        &self,
        _cx: &Cx,
        replacement: &swap::Replacement,
    ) -> Result<bool, EngineError> {
        Ok(is_there(&paths_of(replacement)?.beside))
    }

    async fn discard(&self, _cx: &Cx, replacement: &swap::Replacement) -> Result<(), EngineError> {
        let paths = paths_of(replacement)?;
        paths.discard().map_err(failed("remove", &paths.beside))
    }

    async fn sweep(
        &self,
        _cx: &Cx,
        known: &[swap::Replacement],
    ) -> Result<Vec<String>, EngineError> {
        let mut swept = Vec::new();
        for left in self.besides() {
            // A source may have been a set before, or not yet.
            let is_known = |one: &swap::Replacement| match one {
                swap::Replacement::Paths(paths) => paths.beside == left,
                swap::Replacement::Set(set) => set.besides().any(|beside| beside == left),
                _ => false,
            };
            // What was put away is somebody's data, whoever knows of it.
            let has_replaced = !replaced_nothing_in(&left);
            if !known.iter().any(is_known) && !has_replaced {
                fs::remove_dir_all(&left).map_err(failed("remove", &left))?;
                swept.push(left.display().to_string());
            }
        }
        Ok(swept)
    }
}
