//! Giving kept outputs to the programs that restore them.

use std::path::PathBuf;

use async_trait::async_trait;
use backstay_format::PartName;
use serde::{Deserialize, Serialize};

use super::{CommandSource, refused, run};
use crate::cx::Cx;
use crate::error::EngineError;
use crate::event::Event;
use crate::source::SourceError;
use crate::spool;
use crate::swap::{Direction, Replacement, Swap, Swapper, failed, foreign};

/// Outputs that were proven, and wait to be given to their programs. Nothing of them is needed any more afterwards.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Kept {
    /// The spool folder.
    pub(super) folder: PathBuf,
    pub(super) outputs: Vec<KeptOutput>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct KeptOutput {
    pub(super) name: PartName,
    pub(super) file: PathBuf,
}

impl Kept {
    /// Returns what is restored, for a person.
    pub fn target(&self) -> String {
        self.outputs.iter().map(|kept| kept.name.as_str()).collect::<Vec<_>>().join(", ")
    }

    /// Returns where it is kept, for a person.
    pub fn beside(&self) -> String {
        self.folder.display().to_string()
    }

    fn discard(&self) -> Result<(), SourceError> {
        spool::remove(&self.folder)
    }
}

/// Runs restore programs.
pub(super) struct CommandSwapper {
    source: CommandSource,
}

impl CommandSwapper {
    pub(super) fn new(source: &CommandSource) -> Self {
        Self { source: source.clone() }
    }

    async fn give_back(&self, cx: &Cx, kept: &Kept) -> Result<(), SourceError> {
        for one in &kept.outputs {
            let output = self.source.output(&one.name);
            let Some((output, restore)) =
                output.and_then(|output| Some((output, output.restore.as_ref()?)))
            else {
                return Err(refused(format!("there is no restore command for {}", one.name)));
            };
            cx.event(Event::Step { what: format!("restoring {} by {restore}", one.name) });
            run::take(cx, &self.source, (restore, output.timeout), &one.file).await?;
        }
        Ok(())
    }
}

fn ours(replacement: &Replacement) -> Result<&Kept, EngineError> {
    match replacement {
        Replacement::Command(kept) => Ok(kept),
        other => Err(foreign(other)),
    }
}

#[async_trait]
impl Swapper for CommandSwapper {
    async fn plan(
        &self,
        _cx: &Cx,
        replacement: &Replacement,
        _direction: Direction,
    ) -> Result<Swap, EngineError> {
        Ok(Swap::Command(ours(replacement)?.clone()))
    }

    async fn run(&self, cx: &Cx, swap: &Swap) -> Result<(), EngineError> {
        match swap {
            Swap::Command(kept) => self.give_back(cx, kept).await.map_err(failed),
            other => Err(foreign(other)),
        }
    }

    /// Nobody can.
    async fn roll_back(&self, _cx: &Cx, _swap: &Swap) -> Result<(), EngineError> {
        Ok(())
    }

    async fn replaced_nothing(
        &self,
        cx: &Cx,
        replacement: &Replacement,
    ) -> Result<bool, EngineError> {
        Ok(!self.can_go_back(cx, replacement).await?)
    }

    async fn can_go_back(&self, _cx: &Cx, _replacement: &Replacement) -> Result<bool, EngineError> {
        Ok(false)
    }

    async fn discard(&self, _cx: &Cx, replacement: &Replacement) -> Result<(), EngineError> {
        ours(replacement)?.discard().map_err(failed)
    }

    /// The spool directory is cleaned by itself.
    async fn sweep(&self, _cx: &Cx, _known: &[Replacement]) -> Result<Vec<String>, EngineError> {
        Ok(Vec::new())
    }
}
