//! What a restore of a database replaces, and putting it into place and back.

use async_trait::async_trait;
use mysql_async::Conn;
use serde::{Deserialize, Serialize};

use super::connection::MysqlConnection as _;
use super::error::{MysqlError, refused};
use super::moves::{Contents, Exchange, Side, drop_database};
use super::names::literal;
use super::{MysqlSource, describe};
use crate::cx::Cx;
use crate::error::EngineError;
use crate::source::own_names;
use crate::swap::{self, Direction, Swapper, failed, foreign};

/// Databases that were loaded, and those that they replace.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Replacement {
    /// Host and port.
    pub(super) server: String,
    /// Each of them; their names change one after the other.
    pub(super) databases: Vec<LoadedDatabase>,
}

/// A database that was loaded, and the one that it replaces.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct LoadedDatabase {
    /// Its name in the backup.
    pub(super) database: String,
    /// The name that is fought for. May be free.
    pub(super) target: String,
    /// Where the tables that were loaded are, while they are not in place.
    pub(super) loaded: String,
    /// Where the tables that were replaced are, while they are not in place.
    pub(super) parked: String,
    /// What was loaded.
    pub(super) arriving: Option<Contents>,
    /// What was replaced, if there was anything; known once a swap was worked out.
    pub(super) replaced: Option<Contents>,
}

/// A change of names, worked out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Swap {
    /// Of what.
    pub replacement: Replacement,
    direction: Direction,
}

impl Swap {
    /// Says whether a database that was there when it was worked out would be put away.
    pub(crate) fn puts_away(&self) -> bool {
        self.replacement.databases.iter().any(|one| one.replaced.is_some())
    }
}

impl Replacement {
    /// Returns the names that are fought for.
    pub fn target(&self) -> String {
        self.names(|one| &one.target)
    }

    /// Returns where the other state is kept, for a person.
    pub fn beside(&self) -> String {
        self.names(|one| &one.parked)
    }

    fn names(&self, name: impl Fn(&LoadedDatabase) -> &str) -> String {
        self.databases.iter().map(name).collect::<Vec<_>>().join(", ")
    }

    /// Returns where a database of the backup was loaded; if none is named, the only one.
    pub(super) fn named(&self, database: Option<&str>) -> Result<&str, MysqlError> {
        let mut found = self.databases.iter();
        let one = match database {
            Some(name) => found.find(|one| one.database == name),
            None => found.next().filter(|_| self.databases.len() == 1),
        };
        let known = self.names(|one| &one.database);
        let named = database.map_or("one of several databases".to_owned(), str::to_owned);
        one.map(|one| one.loaded.as_str()).ok_or_else(|| {
            refused(format!(
                "the backup is of {known}, and the check is of {named}; set its `database`"
            ))
        })
    }
}

impl LoadedDatabase {
    /// Returns what comes and what goes.
    fn sides(&self, direction: Direction) -> (Side<'_>, Side<'_>) {
        let new =
            Side { home: &self.loaded, contents: self.arriving.as_ref(), passing: own_names::NEW };
        let old =
            Side { home: &self.parked, contents: self.replaced.as_ref(), passing: own_names::OLD };
        match direction {
            Direction::Restore => (new, old),
            Direction::Undo => (old, new),
        }
    }
}

/// Swaps tables.
pub(super) struct TableSwapper {
    source: MysqlSource,
}

impl TableSwapper {
    pub(super) fn new(source: &MysqlSource) -> Self {
        Self { source: source.clone() }
    }

    /// Opens a session with the server that the names are on.
    async fn session(&self, cx: &Cx, replacement: &Replacement) -> Result<Conn, MysqlError> {
        self.source.connection.check_server(&replacement.server).map_err(refused)?;
        self.source.connection.session(cx).await
    }

    async fn work_out(
        &self,
        cx: &Cx,
        mut replacement: Replacement,
        direction: Direction,
    ) -> Result<Swap, MysqlError> {
        let mut session = self.session(cx, &replacement).await?;
        for one in &mut replacement.databases {
            let present = match describe::exists(&mut session, &one.target).await? {
                true => Some(Contents::of(&mut session, &one.target).await?),
                false => None,
            };
            match direction {
                Direction::Restore => one.replaced = present,
                Direction::Undo => one.arriving = present,
            }
        }
        Ok(Swap { replacement, direction })
    }

    async fn exchange(
        &self,
        cx: &Cx,
        replacement: &Replacement,
        direction: Direction,
    ) -> Result<(), MysqlError> {
        let mut session = self.session(cx, replacement).await?;
        for one in &replacement.databases {
            let (arriving, leaving) = one.sides(direction);
            let exchange = Exchange { session: &mut session, target: &one.target };
            exchange.run(arriving, leaving).await?;
        }
        Ok(())
    }

    async fn is_parked(&self, cx: &Cx, replacement: &Replacement) -> Result<bool, MysqlError> {
        let mut session = self.session(cx, replacement).await?;
        for one in &replacement.databases {
            if describe::exists(&mut session, &one.parked).await? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    async fn drop_both(&self, cx: &Cx, replacement: &Replacement) -> Result<(), MysqlError> {
        let mut session = self.session(cx, replacement).await?;
        for ours in replacement.databases.iter().flat_map(|one| [&one.loaded, &one.parked]) {
            drop_database(&mut session, ours).await?;
        }
        Ok(())
    }

    async fn drop_unknown(&self, cx: &Cx, known: &[&str]) -> Result<Vec<String>, MysqlError> {
        let mut session = self.source.connection.session(cx).await?;
        let ours = own_names::loaded_for(self.source.identity());
        let query = format!(
            "SELECT schema_name FROM information_schema.schemata WHERE left(schema_name, {}) = {}",
            ours.len(),
            literal(&ours)
        );
        let found = describe::texts(&mut session, &query, "look for what killed restores left");
        let mut swept = Vec::new();
        for left in found.await? {
            if !known.contains(&left.as_str()) {
                drop_database(&mut session, &left).await?;
                swept.push(left);
            }
        }
        Ok(swept)
    }
}

fn ours(replacement: &swap::Replacement) -> Result<&Replacement, EngineError> {
    match replacement {
        swap::Replacement::Mysql(replacement) => Ok(replacement),
        other => Err(foreign(other)),
    }
}

#[async_trait]
impl Swapper for TableSwapper {
    async fn plan(
        &self,
        cx: &Cx,
        replacement: &swap::Replacement,
        direction: Direction,
    ) -> Result<swap::Swap, EngineError> {
        let swap = self.work_out(cx, ours(replacement)?.clone(), direction).await;
        swap.map(|swap| swap::Swap::Mysql(Box::new(swap))).map_err(failed)
    }

    async fn run(&self, cx: &Cx, swap: &swap::Swap) -> Result<(), EngineError> {
        match swap {
            swap::Swap::Mysql(swap) => {
                self.exchange(cx, &swap.replacement, swap.direction).await.map_err(failed)
            }
            other => Err(foreign(other)),
        }
    }

    async fn roll_back(&self, cx: &Cx, swap: &swap::Swap) -> Result<(), EngineError> {
        match swap {
            swap::Swap::Mysql(swap) => {
                let back = swap.direction.reversed();
                self.exchange(cx, &swap.replacement, back).await.map_err(failed)
            }
            other => Err(foreign(other)),
        }
    }

    async fn replaced_nothing(
        &self,
        cx: &Cx,
        replacement: &swap::Replacement,
    ) -> Result<bool, EngineError> {
        Ok(!self.can_go_back(cx, replacement).await?)
    }

    async fn can_go_back(
        &self,
        cx: &Cx,
        replacement: &swap::Replacement,
    ) -> Result<bool, EngineError> {
        self.is_parked(cx, ours(replacement)?).await.map_err(failed)
    }

    async fn discard(&self, cx: &Cx, replacement: &swap::Replacement) -> Result<(), EngineError> {
        self.drop_both(cx, ours(replacement)?).await.map_err(failed)
    }

    async fn sweep(
        &self,
        cx: &Cx,
        known: &[swap::Replacement],
    ) -> Result<Vec<String>, EngineError> {
        let known = known.iter().filter_map(|one| ours(one).ok());
        let known = known.flat_map(|replacement| &replacement.databases);
        let names: Vec<&str> =
            known.flat_map(|one| [one.loaded.as_str(), one.parked.as_str()]).collect();
        self.drop_unknown(cx, &names).await.map_err(failed)
    }
}
