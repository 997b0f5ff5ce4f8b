//! Programs of the user's: what one writes is a part, and another takes it back.

mod apply;
mod capture;
mod exchange;
mod run;

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;

use async_trait::async_trait;
use backstay_format::PartName;
use secrecy::SecretString;

use super::{Capture, Probe, Source, SourceError, Target, TargetOptions};
use crate::cx::Cx;
use crate::swap;

pub use exchange::Kept;

/// Programs that write and take what they call their data.
#[derive(Debug, Clone)]
pub struct CommandSource {
    /// What is written, in this order; at least one, no name twice.
    pub outputs: Vec<Output>,
    /// What the programs find in their environment, beside what every program needs.
    pub variables: Vec<(String, SecretString)>,
    /// The spool directory.
    pub spool: PathBuf,
}

/// What a program writes, and what is done with it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Output {
    /// The part that it becomes.
    pub name: PartName,
    /// Writes it to its standard output.
    pub dump: Argv,
    /// Takes it on its standard input, and replaces what is there.
    pub restore: Option<Argv>,
    /// Reads it on its standard input, and ends well only if it is whole.
    pub check: Option<Argv>,
    /// Less than this is no output.
    pub min_bytes: u64,
    /// How long each of the programs may take; then it is killed.
    pub timeout: Duration,
}

/// A program and its arguments; no shell reads them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Argv {
    /// A path, or a name to look for where programs are.
    pub program: String,
    /// Its arguments.
    pub arguments: Vec<String>,
}

/// Only the program: in what was a reference in its arguments, a secret may stand now.
impl std::fmt::Display for Argv {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.program)
    }
}

/// Why a program's work does not count.
#[derive(Debug, thiserror::Error)]
pub enum CommandError {
    /// There is no such program.
    #[error("{program} is not found ({of}); install it, or write its whole path")]
    NoProgram {
        /// What was looked for.
        program: String,
        /// What it is for.
        of: String,
    },
    /// It wrote too little.
    #[error(
        "{name} has {bytes} bytes, expected at least {min_bytes}; look whether its program works, or set min_bytes"
    )]
    TooSmall {
        /// The output.
        name: PartName,
        /// How many were written.
        bytes: u64,
        /// How many were expected.
        min_bytes: u64,
    },
    /// It took too long.
    #[error("{program} took longer than {} s; set a longer timeout if it needs more", limit.as_secs())]
    Timeout {
        /// Which one.
        program: String,
        /// How long it had.
        limit: Duration,
    },
    /// It cannot be done.
    #[error("{finding}")]
    Refused {
        /// What stands against it, and what to do.
        finding: String,
    },
}

fn refused(finding: impl Into<String>) -> SourceError {
    CommandError::Refused { finding: finding.into() }.into()
}

#[async_trait]
impl Source for CommandSource {
    async fn probe(&self, _cx: &Cx) -> Result<Probe, SourceError> {
        let mut warnings = Vec::new();
        for output in &self.outputs {
            let programs = [Some(&output.dump), output.check.as_ref(), output.restore.as_ref()];
            for argv in programs.into_iter().flatten() {
                run::find(argv, &output.name)?;
            }
            if output.restore.is_none() {
                warnings.push(format!(
                    "{} has no restore command: only --to-file gives it back",
                    output.name
                ));
            }
        }
        let items = Some(self.outputs.len() as u64);
        Ok(Probe { warnings, items, ..Probe::default() })
    }

    async fn capture(&self, cx: &Cx) -> Result<Box<dyn Capture>, SourceError> {
        if self.outputs.is_empty() {
            return Err(refused("no programs are known that write it; set its `outputs`"));
        }
        for output in &self.outputs {
            run::find(&output.dump, &output.name)?;
        }
        Ok(Box::new(capture::OutputCapture::new(cx, self)))
    }

    fn target(&self, options: TargetOptions) -> Box<dyn Target> {
        Box::new(apply::CommandTarget::new(self, options))
    }

    /// Only the restore programs know.
    fn check_free(&self, _replacement: &swap::Replacement) -> Result<(), SourceError> {
        Ok(())
    }

    fn scratch(&self, _folder: &Path, _tag: &str) -> Option<OsString> {
        None
    }

    async fn ask(
        &self,
        _cx: &Cx,
        _loaded: &swap::Replacement,
        _database: Option<&str>,
        _query: &str,
    ) -> Result<String, SourceError> {
        Err(refused("programs answer no queries; set a check at the output instead"))
    }

    fn swapper(&self) -> Box<dyn swap::Swapper> {
        Box::new(exchange::CommandSwapper::new(self))
    }
}

impl CommandSource {
    /// Returns the output of a name.
    fn output(&self, name: &PartName) -> Option<&Output> {
        self.outputs.iter().find(|output| output.name == *name)
    }
}
