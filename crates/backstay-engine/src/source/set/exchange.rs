//! Members of a set take their places: one record of many swaps, done all or taken back.

use std::fs;
use std::path::{Path, PathBuf};

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

use super::SetSource;
use crate::cx::Cx;
use crate::error::EngineError;
use crate::replace::{self, PathSwapper};
use crate::swap::{self, Direction, Swapper, foreign};

/// Members that were loaded, and what they replace.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Replacement {
    /// The directory that they lie below.
    pub(super) root: PathBuf,
    /// Each by its name.
    pub(super) members: Vec<(String, replace::Replacement)>,
    /// Directories that were made for them, the innermost last.
    pub(super) made: Vec<PathBuf>,
}

/// Removes those of the directories that are empty.
pub(super) fn remove_empty(made: &[PathBuf]) {
    for directory in made.iter().rev() {
        if let Err(error) = fs::remove_dir(directory) {
            // What came into it is the app's.
            tracing::debug!(path = %directory.display(), %error, "a new directory stays");
        }
    }
}

/// Swaps of members, worked out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Swap {
    /// Of what.
    pub replacement: Replacement,
    swaps: Vec<replace::Swap>,
}

impl Swap {
    pub(crate) fn puts_away(&self) -> bool {
        self.swaps.iter().any(replace::Swap::puts_away)
    }
}

impl Replacement {
    /// Returns the folders beside the members.
    pub(crate) fn besides(&self) -> impl Iterator<Item = &Path> {
        self.members.iter().map(|(_, paths)| paths.beside.as_path())
    }

    /// Returns what is replaced, for a person.
    pub fn target(&self) -> String {
        format!("{} databases below {}", self.members.len(), self.root.display())
    }

    /// Returns where the other state lies, for a person.
    pub fn beside(&self) -> String {
        let first = self.members.first().map(|(_, paths)| paths.beside.display().to_string());
        match (first, self.members.len()) {
            (Some(first), 1) => first,
            (Some(first), several) => format!("{first} and beside {} more", several - 1),
            (None, _) => String::new(),
        }
    }
}

/// Swaps members.
pub(super) struct SetSwapper {
    pub(super) source: SetSource,
}

fn ours(replacement: &swap::Replacement) -> Result<&Replacement, EngineError> {
    match replacement {
        swap::Replacement::Set(set) => Ok(set),
        other => Err(foreign(other)),
    }
}

fn swaps(swap: &swap::Swap) -> Result<&[replace::Swap], EngineError> {
    match swap {
        swap::Swap::Set(swap) => Ok(&swap.swaps),
        other => Err(foreign(other)),
    }
}

#[async_trait]
impl Swapper for SetSwapper {
    async fn plan(
        &self,
        _cx: &Cx,
        replacement: &swap::Replacement,
        direction: Direction,
    ) -> Result<swap::Swap, EngineError> {
        let replacement = ours(replacement)?.clone();
        let plan = |(_, paths): &(String, replace::Replacement)| {
            replace::Swap::plan(paths.clone(), direction)
        };
        let swaps = replacement.members.iter().map(plan).collect::<Result<_, _>>()?;
        Ok(swap::Swap::Set(Swap { replacement, swaps }))
    }

    async fn run(&self, _cx: &Cx, swap: &swap::Swap) -> Result<(), EngineError> {
        swaps(swap)?.iter().try_for_each(replace::Swap::run)
    }

    async fn roll_back(&self, _cx: &Cx, swap: &swap::Swap) -> Result<(), EngineError> {
        swaps(swap)?.iter().rev().try_for_each(replace::Swap::roll_back)
    }

    async fn replaced_nothing(
        &self,
        _cx: &Cx,
        replacement: &swap::Replacement,
    ) -> Result<bool, EngineError> {
        Ok(ours(replacement)?.members.iter().all(|(_, paths)| paths.replaced_nothing()))
    }

    async fn can_go_back(
        &self,
        _cx: &Cx,
        replacement: &swap::Replacement,
    ) -> Result<bool, EngineError> {
        Ok(ours(replacement)?.members.iter().all(|(_, paths)| paths.beside.exists()))
    }

    async fn discard(&self, _cx: &Cx, replacement: &swap::Replacement) -> Result<(), EngineError> {
        for (_, paths) in &ours(replacement)?.members {
            paths.discard().map_err(replace::failed("remove", &paths.beside))?;
        }
        remove_empty(&ours(replacement)?.made);
        Ok(())
    }

    async fn sweep(
        &self,
        cx: &Cx,
        known: &[swap::Replacement],
    ) -> Result<Vec<String>, EngineError> {
        let found = self.source.members.find(&self.source.root);
        let places = found.members.into_iter().map(|member| member.path).chain(found.empty);
        let mut swept = Vec::new();
        for own in places {
            swept.extend(PathSwapper { own }.sweep(cx, known).await?);
        }
        Ok(swept)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::event::Silent;
    use crate::replace::Scope;
    use crate::source::beside;
    use crate::source::set::{MemberKind, Members};

    #[tokio::test]
    async fn swaps_that_were_begun_are_finished_and_all_of_them_taken_back() {
        let root = tempfile::tempdir().unwrap();
        let names = ["1", "2", "3"];
        let place = |name: &str| root.path().join(name).join("app.db");
        let loaded = |name: &&str| {
            fs::create_dir(root.path().join(name)).unwrap();
            // The last one is of a tenant that is gone.
            if *name != "3" {
                fs::write(place(name), "old").unwrap();
            }
            let scope = Scope::Whole { companions: vec!["-wal".to_owned()] };
            let beside = beside(&place(name), "tag");
            let paths = replace::Replacement { target: place(name), beside, scope };
            paths.prepare().unwrap();
            fs::write(paths.loaded(), "new").unwrap();
            (format!("tenants/{name}"), paths)
        };
        let members = names.iter().map(loaded).collect();
        let made = vec![root.path().join("3")];
        let set = Replacement { root: root.path().to_owned(), members, made };
        let groups = [("tenants".to_owned(), "*/app.db".to_owned())];
        let source = SetSource {
            root: root.path().to_owned(),
            members: Members::new(groups).unwrap(),
            kind: MemberKind::Sqlite,
            spool: root.path().join("spool"),
        };
        let (swapper, cx) = (SetSwapper { source }, Cx::new(Arc::new(Silent)));
        let replacement = swap::Replacement::Set(set);
        let held = || names.map(|name| fs::read_to_string(place(name)).unwrap_or_default());
        let swap = swapper.plan(&cx, &replacement, Direction::Restore).await.unwrap();
        // Killed after the second of three.
        swaps(&swap).unwrap()[..2].iter().for_each(|one| one.run().unwrap());
        assert_eq!(held(), ["new", "new", ""]);
        swapper.run(&cx, &swap).await.unwrap();
        assert_eq!(held(), ["new", "new", "new"]);
        assert!(swapper.can_go_back(&cx, &replacement).await.unwrap());
        swapper.roll_back(&cx, &swap).await.unwrap();
        assert_eq!(held(), ["old", "old", ""]);
        swapper.discard(&cx, &replacement).await.unwrap();
        assert!(!root.path().join("3").exists(), "a directory that was made for nothing");
        assert_eq!(root.path().join("1").read_dir().unwrap().count(), 1);
    }
}
