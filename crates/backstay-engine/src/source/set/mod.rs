//! Several databases that are files, as one source: what they share and those of the tenants.

mod apply;
mod capture;
mod exchange;
mod import;
mod members;

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use async_trait::async_trait;

use super::duckdb::DuckdbSource;
use super::dump::Dump;
use super::one_file;
use super::sqlite::SqliteSource;
use super::{Capture, Imported, Probe, Source, SourceError, Target, TargetOptions};
use crate::cx::Cx;
use crate::swap::{Replacement, Swapper};

pub use exchange::{Replacement as SetReplacement, Swap as SetSwap};
pub use members::{Members, MembersError};

/// What the members of a set are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MemberKind {
    /// SQLite databases.
    Sqlite,
    /// DuckDB databases.
    Duckdb {
        /// The directory of the command line, if not the one on the path.
        programs: Option<PathBuf>,
    },
}

/// Database files of one kind below a directory.
#[derive(Debug, Clone)]
pub struct SetSource {
    /// The directory.
    pub root: PathBuf,
    /// Which files below it.
    pub members: Members,
    /// What they are.
    pub kind: MemberKind,
    /// Where copies are kept while they are read.
    pub spool: PathBuf,
}

impl SetSource {
    /// Returns a member as a source of its own.
    fn member(&self, path: PathBuf) -> Box<dyn Source> {
        let spool = self.spool.clone();
        match &self.kind {
            MemberKind::Sqlite => Box::new(SqliteSource { path, spool }),
            MemberKind::Duckdb { programs } => {
                Box::new(DuckdbSource { path, programs: programs.clone(), spool })
            }
        }
    }
}

#[async_trait]
impl Source for SetSource {
    async fn probe(&self, cx: &Cx) -> Result<Probe, SourceError> {
        let found = self.members.find(&self.root);
        let mut all = Probe { warnings: found.warnings(), ..Probe::default() };
        let unread = found.errors.into_iter().map(|one| format!("{}: {}", one.item, one.error));
        all.warnings.extend(unread);
        let (mut read, mut last) = (0, None);
        for member in found.members {
            cx.check()?;
            match self.member(member.path).probe(cx).await {
                Ok(probe) => {
                    read += 1;
                    all.engine = probe.engine;
                    all.size_bytes += probe.size_bytes;
                    all.warnings.extend(probe.warnings);
                }
                Err(error) if error.is_cancelled() => return Err(error),
                Err(error) => {
                    all.warnings.push(format!("{}: {error}", member.name));
                    last = Some(error);
                }
            }
        }
        all.items = Some(read);
        match last {
            Some(error) if read == 0 => Err(error),
            _ => Ok(all),
        }
    }

    async fn capture(&self, _cx: &Cx) -> Result<Box<dyn Capture>, SourceError> {
        capture::begin(self)
    }

    fn target(&self, options: TargetOptions) -> Box<dyn Target> {
        Box::new(apply::SetTarget::new(self, options))
    }

    fn check_free(&self, replacement: &Replacement) -> Result<(), SourceError> {
        let Replacement::Set(set) = replacement else { return Ok(()) };
        set.members.iter().try_for_each(|(_, paths)| one_file::check_free(&paths.target))
    }

    fn scratch(&self, folder: &Path, _tag: &str) -> Option<OsString> {
        Some(folder.join("data").into())
    }

    async fn ask(
        &self,
        cx: &Cx,
        loaded: &Replacement,
        database: Option<&str>,
        query: &str,
    ) -> Result<String, SourceError> {
        let Replacement::Set(set) = loaded else { return Ok(String::new()) };
        let named =
            |(name, _): &&(String, crate::replace::Replacement)| Some(name.as_str()) == database;
        let Some((_, paths)) = set.members.iter().find(named) else {
            let names: Vec<&str> = set.members.iter().map(|(name, _)| name.as_str()).collect();
            let expected = format!("one of the members {}", names.join(", "));
            return Err(SourceError::NoMember {
                name: database.unwrap_or_default().to_owned(),
                expected,
            });
        };
        let member = self.member(paths.target.clone());
        member.ask(cx, &Replacement::Paths(paths.clone()), None, query).await
    }

    async fn import(
        &self,
        cx: &Cx,
        dump: &Dump,
        _tag: &str,
    ) -> Result<Box<dyn Imported>, SourceError> {
        import::import(cx, self, dump).await
    }

    fn swapper(&self) -> Box<dyn Swapper> {
        Box::new(exchange::SetSwapper { source: self.clone() })
    }
}
