//! Putting what was loaded beside a target into its place, and back.
//!
//! A swap is a list of steps that is written down before the first is done. Every step can be done again without harm, so
//! a later process finishes what an interrupted one began.

mod swapper;

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{CWD, RenameFlags, renameat_with};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use crate::error::EngineError;
use crate::source::{How, Outlook};
use crate::swap::{self, Direction};

pub use swapper::PathSwapper;

/// Names in a target that begin so are ours: loaded or replaced data of a restore that waits to be confirmed.
pub(crate) const OWN_PREFIX: &str = ".backstay-";
/// While two names are exchanged in three steps, one of them is known by its own name and this.
const PARKED: &str = ".parked";

/// What was loaded, and what it replaces.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Replacement {
    /// The place to be replaced: a directory or a file. May not exist yet.
    pub target: PathBuf,
    /// A directory on the target's file system. What was loaded lies in it, and what was replaced goes into it.
    pub beside: PathBuf,
    /// What of the target is replaced.
    pub scope: Scope,
}

/// What of a target is replaced.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Scope {
    /// The target itself, in one atomic step, and with it the files that have its name and one of these suffixes.
    Whole {
        /// For example `-wal`.
        companions: Vec<String>,
    },
    /// Everything in the target, name by name; the directory stays: a mount point cannot be renamed.
    Entries,
    /// These paths below the target, each in one atomic step.
    Paths(Vec<PathBuf>),
}

/// A swap, worked out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Swap {
    /// Of what.
    pub replacement: Replacement,
    steps: Vec<Step>,
}

/// Something that is done, or is already.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Step {
    /// Two names change what they stand for. Done when `arrives` stands at `place`.
    Exchange { place: PathBuf, other: PathBuf, arrives: Identity },
    /// Done when nothing is at `from`.
    Move { from: PathBuf, to: PathBuf },
    /// A directory gets owner, mode and times of another.
    Dress { directory: PathBuf, like: PathBuf },
}

/// What a name stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Identity {
    device: u64,
    inode: u64,
}

impl Identity {
    fn of(path: &Path) -> Option<Self> {
        path.symlink_metadata().ok().map(|meta| Self { device: meta.dev(), inode: meta.ino() })
    }
}

impl From<Replacement> for swap::Replacement {
    fn from(paths: Replacement) -> Self {
        Self::Paths(paths)
    }
}

impl Replacement {
    /// Returns where data is loaded: what will be the target, or the directory of what goes into it.
    pub fn loaded(&self) -> PathBuf {
        let folder = self.folder("restored");
        match &self.scope {
            Scope::Whole { .. } => folder.join(self.name()),
            Scope::Entries | Scope::Paths(_) => folder,
        }
    }

    /// Makes the directories beside the target, closed to others.
    pub fn prepare(&self) -> io::Result<()> {
        use std::os::unix::fs::DirBuilderExt as _;
        for directory in [self.beside.clone(), self.folder("restored"), self.folder("replaced")] {
            fs::DirBuilder::new().mode(0o700).create(directory)?;
        }
        Ok(())
    }

    /// Says what it will do.
    pub(crate) fn outlook(&self) -> Outlook {
        Outlook {
            target: self.target.display().to_string(),
            replaces: is_there(&self.target),
            how: match self.scope {
                Scope::Whole { .. } => How::Swap,
                Scope::Entries => How::Entries,
                Scope::Paths(_) => How::Paths,
            },
            engine: None,
            present: None,
            warnings: Vec::new(),
        }
    }

    /// Removes what lies beside the target.
    pub fn discard(&self) -> io::Result<()> {
        match fs::remove_dir_all(&self.beside) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            removed => removed,
        }
    }

    /// Returns whether a swap replaced nothing that anybody could miss: no name, or one empty directory.
    pub fn replaced_nothing(&self) -> bool {
        let entries = |path: &Path| -> Vec<PathBuf> {
            fs::read_dir(path).into_iter().flatten().flatten().map(|entry| entry.path()).collect()
        };
        match entries(&self.folder("replaced")).as_slice() {
            [] => true,
            [one] => {
                one.is_dir() && !one.is_symlink() && entries(one).is_empty() && self.is_whole()
            }
            _ => false,
        }
    }

    fn is_whole(&self) -> bool {
        matches!(self.scope, Scope::Whole { .. })
    }

    fn folder(&self, name: &str) -> PathBuf {
        self.beside.join(name)
    }

    fn name(&self) -> &std::ffi::OsStr {
        self.target.file_name().unwrap_or_default()
    }
}

impl Swap {
    /// Works out what is to be done. Changes nothing.
    pub fn plan(replacement: Replacement, direction: Direction) -> Result<Self, EngineError> {
        let (arriving, leaving) = match direction {
            Direction::Restore => ("restored", "replaced"),
            Direction::Undo => ("replaced", "restored"),
        };
        let way =
            Way { arriving: replacement.folder(arriving), leaving: replacement.folder(leaving) };
        // What a hook or somebody else took away would be no step at all, and the swap a success.
        let expected = match (&replacement.scope, direction) {
            (Scope::Whole { .. }, Direction::Restore) => replacement.loaded(),
            _ => replacement.beside.clone(),
        };
        expected.symlink_metadata().map_err(failed("find what was loaded at", &expected))?;
        let steps = match &replacement.scope {
            Scope::Whole { companions } => way.whole(&replacement.target, companions),
            Scope::Entries => way.entries(&replacement.target)?,
            Scope::Paths(paths) => way.paths(&replacement.target, paths)?,
        };
        Ok(Self { replacement, steps })
    }

    /// Says whether something that is there now, and that anybody could miss, would be put away.
    pub(crate) fn puts_away(&self) -> bool {
        let target = &self.replacement.target;
        !self.replacement.is_whole() || is_there(target) && !is_empty(target)
    }

    /// Does what is not done yet, and makes it durable.
    pub fn run(&self) -> Result<(), EngineError> {
        for step in &self.steps {
            step.run()?;
        }
        for parent in self.parents() {
            sync(&parent)?;
        }
        Ok(())
    }

    /// Takes back what was done of it.
    pub fn roll_back(&self) -> Result<(), EngineError> {
        for step in self.steps.iter().rev() {
            step.take_back()?;
        }
        for parent in self.parents() {
            sync(&parent)?;
        }
        Ok(())
    }

    fn parents(&self) -> Vec<PathBuf> {
        let touched = self.steps.iter().flat_map(|step| match step {
            Step::Exchange { place, other, .. } => vec![place, other],
            Step::Move { from, to } => vec![from, to],
            Step::Dress { .. } => Vec::new(),
        });
        let mut parents: Vec<PathBuf> =
            touched.filter_map(|path| path.parent()).map(Path::to_owned).collect();
        parents.sort();
        parents.dedup();
        parents
    }
}

/// Says whether a path is a directory or a file with nothing in it.
fn is_empty(path: &Path) -> bool {
    match path.symlink_metadata() {
        Ok(meta) if meta.is_dir() => path.read_dir().is_ok_and(|mut names| names.next().is_none()),
        Ok(meta) => meta.is_file() && meta.len() == 0,
        Err(_) => false,
    }
}

/// Where things come from, and where those in their places go.
struct Way {
    arriving: PathBuf,
    leaving: PathBuf,
}

impl Way {
    /// Companions leave before the target does and arrive after it: a write-ahead log that lies beside another database
    /// would be played into it.
    fn whole(&self, target: &Path, companions: &[String]) -> Vec<Step> {
        let name = PathBuf::from(target.file_name().unwrap_or_default());
        let mut steps = Vec::new();
        for suffix in companions {
            let (place, left) = (with(target, suffix), with(&self.leaving.join(&name), suffix));
            if is_there(&place) {
                steps.push(Step::Move { from: place, to: left });
            }
        }
        steps.extend(self.one(target, &name));
        for suffix in companions {
            let from = with(&self.arriving.join(&name), suffix);
            if is_there(&from) {
                steps.push(Step::Move { from, to: with(target, suffix) });
            }
        }
        steps
    }

    fn entries(&self, target: &Path) -> Result<Vec<Step>, EngineError> {
        let mut names = Vec::new();
        for directory in [target, &self.arriving] {
            let entries = fs::read_dir(directory).map_err(failed("list", directory))?;
            for entry in entries {
                names.push(entry.map_err(failed("list", directory))?.file_name());
            }
        }
        names.sort();
        names.dedup();
        names.retain(|name| !name.as_encoded_bytes().starts_with(OWN_PREFIX.as_bytes()));
        let mut steps: Vec<Step> = names
            .iter()
            .flat_map(|name| self.one(target.join(name).as_path(), Path::new(name)))
            .collect();
        let (directory, like) = (target.to_owned(), self.arriving.clone());
        steps.push(Step::Dress { directory, like });
        Ok(steps)
    }

    fn paths(&self, target: &Path, paths: &[PathBuf]) -> Result<Vec<Step>, EngineError> {
        let mut units = Vec::new();
        for path in paths {
            units.push(self.unit(target, path)?);
        }
        units.sort();
        units.dedup();
        Ok(units.iter().flat_map(|unit| self.one(&target.join(unit), unit)).collect())
    }

    /// Returns the path, or the first directory on the way to it that is missing in the target.
    fn unit(&self, target: &Path, path: &Path) -> Result<PathBuf, EngineError> {
        let mut unit = PathBuf::new();
        let mut rest = path.components().peekable();
        while let Some(component) = rest.next() {
            let Component::Normal(name) = component else { continue };
            unit.push(name);
            let place = target.join(&unit);
            match place.symlink_metadata() {
                _ if rest.peek().is_none() => break,
                Err(_) => break,
                Ok(meta) if meta.is_dir() => {}
                // What lies behind a link or in the place of a directory is not ours to replace.
                Ok(_) => {
                    return Err(failed("go through", &place)(io::ErrorKind::NotADirectory.into()));
                }
            }
        }
        Ok(unit)
    }

    /// Puts one thing into its place, and what is there aside.
    fn one(&self, place: &Path, name: &Path) -> Vec<Step> {
        let (arriving, leaving) = (self.arriving.join(name), self.leaving.join(name));
        let place = place.to_owned();
        match (is_there(&place), Identity::of(&arriving)) {
            (true, Some(arrives)) => vec![
                Step::Exchange { place, other: arriving.clone(), arrives },
                Step::Move { from: arriving, to: leaving },
            ],
            (true, None) => vec![Step::Move { from: place, to: leaving }],
            (false, Some(_)) => vec![Step::Move { from: arriving, to: place }],
            (false, None) => Vec::new(),
        }
    }
}

impl Step {
    fn run(&self) -> Result<(), EngineError> {
        match self {
            Self::Exchange { place, other, arrives } => {
                if is_there(&with(other, PARKED)) {
                    return exchange_in_three(place, other);
                }
                if Identity::of(place) == Some(*arrives) {
                    return Ok(());
                }
                exchange(place, other)
            }
            Self::Move { from, to } => move_to(from, to),
            Self::Dress { directory, like } => dress(directory, like),
        }
    }

    fn take_back(&self) -> Result<(), EngineError> {
        match self {
            Self::Exchange { place, other, arrives } => {
                if is_there(&with(other, PARKED)) {
                    exchange_in_three(place, other)?;
                }
                if Identity::of(place) != Some(*arrives) {
                    return Ok(());
                }
                exchange(place, other)
            }
            Self::Move { from, to } if !is_there(from) => move_to(to, from),
            Self::Move { .. } | Self::Dress { .. } => Ok(()),
        }
    }
}

/// In one atomic step where the file system can: at every moment the place is wholly old or wholly new.
fn exchange(place: &Path, other: &Path) -> Result<(), EngineError> {
    match renameat_with(CWD, place, CWD, other, RenameFlags::EXCHANGE) {
        Err(Errno::INVAL | Errno::NOSYS | Errno::NOTSUP) => exchange_in_three(place, other),
        renamed => renamed.map_err(|errno| failed("exchange", place)(errno.into())),
    }
}

fn exchange_in_three(place: &Path, other: &Path) -> Result<(), EngineError> {
    let parked = with(other, PARKED);
    if is_there(other) {
        move_to(place, &parked)?;
    }
    if !is_there(place) {
        move_to(other, place)?;
    }
    move_to(&parked, other)
}

/// Moves a name to one that is free; does nothing if nothing is there.
fn move_to(from: &Path, to: &Path) -> Result<(), EngineError> {
    if !is_there(from) {
        return Ok(());
    }
    if let Some(parent) = to.parent() {
        fs::create_dir_all(parent).map_err(failed("make", parent))?;
    }
    let moved = match renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
        // A file system that cannot promise it; nobody else uses names beside a target.
        Err(Errno::INVAL | Errno::NOSYS | Errno::NOTSUP) if !is_there(to) => {
            rustix::fs::rename(from, to)
        }
        moved => moved,
    };
    moved.map_err(|errno| failed("move", from)(errno.into()))
}

fn dress(directory: &Path, like: &Path) -> Result<(), EngineError> {
    let cannot = || failed("set owner and mode of", directory);
    let meta = like.metadata().map_err(cannot())?;
    let now = directory.metadata().map_err(cannot())?;
    if (now.uid(), now.gid()) != (meta.uid(), meta.gid()) {
        std::os::unix::fs::chown(directory, Some(meta.uid()), Some(meta.gid())).map_err(cannot())?;
    }
    fs::set_permissions(directory, meta.permissions()).map_err(cannot())?;
    let time = rustix::fs::Timespec { tv_sec: meta.mtime(), tv_nsec: meta.mtime_nsec() };
    let times = rustix::fs::Timestamps { last_access: time, last_modification: time };
    rustix::fs::utimensat(CWD, directory, &times, rustix::fs::AtFlags::empty())
        .map_err(|errno| cannot()(errno.into()))
}

fn sync(directory: &Path) -> Result<(), EngineError> {
    match fs::File::open(directory).and_then(|directory| directory.sync_all()) {
        // Folders for what left may not be needed.
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(failed("make durable", directory)(error))
        }
        _ => Ok(()),
    }
}

fn is_there(path: &Path) -> bool {
    path.symlink_metadata().is_ok()
}

fn with(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}

pub(crate) fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> EngineError {
    let path = path.to_owned();
    move |cause| EngineError::Swap { action, path, cause }
}

#[cfg(test)]
mod tests;
