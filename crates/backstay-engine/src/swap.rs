//! What a restore loaded, and how it comes into its place: paths change their names, or databases do.
//!
//! A [`Swap`] is written down before it begins. Whoever can reach the source finishes it, however far it came.

use std::fmt;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

use crate::cx::Cx;
use crate::error::EngineError;
use crate::replace;
use crate::source::{SourceError, command, mysql, postgres, redis, set};

/// What was loaded, and what it replaces.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Replacement {
    /// Of a directory, a file, or some paths.
    Paths(replace::Replacement),
    /// Of databases on a server.
    Databases(postgres::Replacement),
    /// Of what is in a database, in one transaction.
    InPlace(postgres::InPlace),
    /// Of the tables of a database, and of what stands beside them.
    Mysql(Box<mysql::Replacement>),
    /// Of databases of a Redis or Valkey server.
    Redis(Box<redis::Replacement>),
    /// Of several files.
    Set(set::SetReplacement),
    /// Of what programs of the user's replace.
    Command(command::Kept),
}

/// A swap, worked out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Swap {
    /// Of paths.
    Paths(replace::Swap),
    /// Of databases.
    Databases(postgres::Swap),
    /// Of what is in a database.
    InPlace(postgres::InPlace),
    /// Of tables.
    Mysql(Box<mysql::Swap>),
    /// Of the numbers of databases.
    Redis(Box<redis::Swap>),
    /// Of several files.
    Set(set::SetSwap),
    /// Of what programs of the user's replace.
    Command(command::Kept),
}

/// Which way a swap goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Direction {
    /// What was loaded comes, what was there goes.
    Restore,
    /// What was there before comes back.
    Undo,
}

impl Replacement {
    /// Returns what is replaced, for a person.
    pub fn target(&self) -> String {
        match self {
            Self::Paths(paths) => paths.target.display().to_string(),
            Self::Databases(databases) => databases.target(),
            Self::InPlace(prepared) => prepared.target(),
            Self::Mysql(database) => database.target(),
            Self::Redis(databases) => databases.target(),
            Self::Set(set) => set.target(),
            Self::Command(kept) => kept.target(),
        }
    }

    /// Returns where the other state lies until it is confirmed, for a person.
    pub fn beside(&self) -> String {
        match self {
            Self::Paths(paths) => paths.beside.display().to_string(),
            Self::Databases(databases) => databases.beside(),
            Self::InPlace(prepared) => prepared.beside(),
            Self::Mysql(database) => database.beside(),
            Self::Redis(databases) => databases.beside(),
            Self::Set(set) => set.beside(),
            Self::Command(kept) => kept.beside(),
        }
    }
}

impl Swap {
    /// Says whether whoever comes after a kill has to finish it. What is one transaction of a server never is half done, and
    /// programs of the user's go on alone.
    pub fn can_be_interrupted(&self) -> bool {
        !matches!(self, Self::InPlace(_) | Self::Command(_))
    }

    /// Says whether something that is there now would be put away, where it was not begun yet.
    pub(crate) fn puts_away(&self) -> bool {
        match self {
            Self::Paths(swap) => swap.puts_away(),
            Self::Databases(swap) => swap.puts_away(),
            Self::Mysql(swap) => swap.puts_away(),
            Self::Redis(swap) => swap.puts_away,
            Self::Set(swap) => swap.puts_away(),
            Self::InPlace(_) | Self::Command(_) => true,
        }
    }

    /// Says whether a failure leaves what was there before.
    pub(crate) fn can_be_taken_back(&self) -> bool {
        !matches!(self, Self::Command(_))
    }

    /// Returns what it is a swap of.
    pub fn replacement(&self) -> Replacement {
        match self {
            Self::Paths(swap) => Replacement::Paths(swap.replacement.clone()),
            Self::Databases(swap) => Replacement::Databases(swap.replacement.clone()),
            Self::InPlace(prepared) => Replacement::InPlace(prepared.clone()),
            Self::Mysql(swap) => Replacement::Mysql(Box::new(swap.replacement.clone())),
            Self::Redis(swap) => Replacement::Redis(Box::new(swap.replacement.clone())),
            Self::Set(swap) => Replacement::Set(swap.replacement.clone()),
            Self::Command(kept) => Replacement::Command(kept.clone()),
        }
    }
}

/// Puts loaded data into its place, and back.
#[async_trait]
pub trait Swapper: Send + Sync {
    /// Works out what is to be done. Changes nothing.
    async fn plan(
        &self,
        cx: &Cx,
        replacement: &Replacement,
        direction: Direction,
    ) -> Result<Swap, EngineError>;

    /// Does what is not done yet, and makes it durable.
    async fn run(&self, cx: &Cx, swap: &Swap) -> Result<(), EngineError>;

    /// Takes back what was done of it.
    async fn roll_back(&self, cx: &Cx, swap: &Swap) -> Result<(), EngineError>;

    /// Says whether a finished swap replaced nothing that anybody could miss.
    async fn replaced_nothing(
        &self,
        cx: &Cx,
        replacement: &Replacement,
    ) -> Result<bool, EngineError>;

    /// Says whether what was replaced is still there.
    async fn can_go_back(&self, cx: &Cx, replacement: &Replacement) -> Result<bool, EngineError>;

    /// Removes what is not in place.
    async fn discard(&self, cx: &Cx, replacement: &Replacement) -> Result<(), EngineError>;

    /// Removes what killed restores to the source's own place left beside it; not what is `known`. Returns what that was,
    /// for a person. Called under the source's lease, so no living restore is at it.
    async fn sweep(&self, cx: &Cx, known: &[Replacement]) -> Result<Vec<String>, EngineError>;
}

impl Direction {
    /// Returns the other way.
    pub(crate) fn reversed(self) -> Self {
        match self {
            Self::Restore => Self::Undo,
            Self::Undo => Self::Restore,
        }
    }
}

/// Something failed at the source.
pub(crate) fn failed(error: impl Into<SourceError>) -> EngineError {
    EngineError::Source(error.into())
}

/// The record of a swap is of another kind than the source.
pub(crate) fn foreign(what: impl fmt::Debug) -> EngineError {
    EngineError::ForeignSwap { found: format!("{what:?}") }
}
