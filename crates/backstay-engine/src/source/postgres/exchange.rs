//! Databases change their names in one transaction: at every moment each name stands for one that is wholly old or wholly
//! new, and all of them for the same.

use std::time::Duration;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use tokio::sync::OnceCell;
use tokio_postgres::Client;
use tokio_postgres::error::SqlState;

use super::connection::PostgresConnection as _;
use super::error::{PostgresError, refused, statement};
use super::globals::identifier;
use super::{PostgresSource, in_place};
use crate::cx::Cx;
use crate::error::EngineError;
use crate::source::cause::Cause;
use crate::source::connection::Connection;
use crate::source::own_names;
use crate::swap::{self, Direction, Swapper, failed, foreign};

/// Databases that are there to be connected to while others are made, renamed and dropped.
const MAINTENANCE: [&str; 2] = ["postgres", "template1"];
/// Makes the end of a transaction wait for the disk, whatever the server or the role is set to. All that was committed
/// before without waiting is then on the disk, too: the log is written in its order.
pub(super) const DURABLE: &str = "SELECT set_config('synchronous_commit', 'local', true) WHERE current_setting('synchronous_commit') = 'off'";
/// The server waits five seconds for sessions to go before it gives a rename up.
const RENAME_TRIES: u32 = 6;
const TERMINATE_EVERY: Duration = Duration::from_millis(50);

/// Databases that were loaded, and those that they replace.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Replacement {
    /// Host and port.
    pub server: String,
    /// Each of them.
    pub databases: Vec<Loaded>,
}

/// A database that was loaded, and the one that it replaces.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Loaded {
    /// Its name in the backup.
    pub database: String,
    /// The name that is fought for. May be free.
    pub target: String,
    /// The name of what was loaded, while it is not in place.
    pub loaded: String,
    /// The name of what was replaced, while it is not in place. Nobody can connect to it.
    pub parked: String,
}

/// Changes of names, worked out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Swap {
    /// Of what.
    pub replacement: Replacement,
    /// In this order, all or none of them.
    renames: Vec<Rename>,
}

/// A change of a name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Rename {
    from: String,
    to: String,
}

impl From<Replacement> for swap::Replacement {
    fn from(databases: Replacement) -> Self {
        Self::Databases(databases)
    }
}

impl Replacement {
    /// Returns what was loaded of the database of this name, or of the only one.
    pub(super) fn named(&self, database: Option<&str>) -> Result<&str, PostgresError> {
        let found = match (database, self.databases.as_slice()) {
            (None, [only]) => Some(only),
            (None, _) => None,
            (Some(name), several) => {
                let is_named = |one: &&Loaded| one.database == name;
                several.iter().find(is_named)
            }
        };
        let asked = || {
            let names: Vec<&str> = self.databases.iter().map(|one| one.database.as_str()).collect();
            let names = names.join(", ");
            format!("say by `database = \"NAME\"` which one is asked, one of {names}")
        };
        found.map(|one| one.loaded.as_str()).ok_or_else(|| refused(asked()))
    }

    /// Returns the names that are fought for.
    pub(super) fn targets(&self) -> Vec<&str> {
        self.databases.iter().map(|one| one.target.as_str()).collect()
    }

    /// Returns the names that are fought for, for a person.
    pub fn target(&self) -> String {
        self.targets().join(", ")
    }

    /// Returns where the other state is kept, for a person.
    pub fn beside(&self) -> String {
        let names: Vec<&str> = self.databases.iter().map(|one| one.parked.as_str()).collect();
        names.join(", ")
    }
}

impl Swap {
    /// Says whether a database that is there gives up its name. If one comes later, the names do not change.
    pub(crate) fn puts_away(&self) -> bool {
        let targets = self.replacement.targets();
        self.renames.iter().any(|rename| targets.contains(&rename.from.as_str()))
    }

    /// Returns all of it as one transaction.
    fn transaction(&self) -> String {
        let mut steps = vec!["BEGIN".to_owned(), DURABLE.to_owned()];
        for Rename { from, to } in &self.renames {
            let name = identifier(to);
            steps.push(format!("ALTER DATABASE {} RENAME TO {name}", identifier(from)));
            // What is set aside must not be mistaken for what is in use.
            let is_used = self.replacement.targets().contains(&to.as_str());
            steps.push(format!("ALTER DATABASE {name} ALLOW_CONNECTIONS {is_used}"));
        }
        steps.push("COMMIT".to_owned());
        steps.join("; ")
    }

    /// Returns the way back.
    fn reversed(&self) -> Self {
        let back = |rename: &Rename| Rename { from: rename.to.clone(), to: rename.from.clone() };
        let renames = self.renames.iter().rev().map(back).collect();
        Self { replacement: self.replacement.clone(), renames }
    }
}

/// Connects to a database that is none of the user's, and none of those that are to be renamed. No statement of the session
/// waits longer for a lock than the source's limit.
pub(super) async fn maintenance(
    cx: &Cx,
    source: &PostgresSource,
    renamed: &[&str],
) -> Result<Client, PostgresError> {
    let client = connect_beside(cx, &source.connection, renamed).await?;
    cx.run(limit_locks(&client, source.options.lock_timeout)).await??;
    Ok(client)
}

/// Limits how long the statements of a session wait for locks: a server does not notice that whoever asked is gone.
pub(super) async fn limit_locks(client: &Client, limit: Duration) -> Result<(), PostgresError> {
    let limit = format!("SET lock_timeout = {}", limit.as_millis());
    let limited = client.batch_execute(&limit).await;
    limited.map_err(statement("limit how long is waited for locks"))
}

async fn connect_beside(
    cx: &Cx,
    connection: &Connection,
    renamed: &[&str],
) -> Result<Client, PostgresError> {
    let mut failed = None;
    for name in MAINTENANCE.into_iter().filter(|name| !renamed.contains(name)) {
        match connection.with_database(name).connect(cx).await {
            Ok(client) => return Ok(client),
            // Who does not answer does not answer for the other database either.
            Err(error @ PostgresError::Connect { cause: Cause::Timeout, .. }) => return Err(error),
            Err(error) => failed = failed.or(Some(error)),
        }
    }
    Err(failed.unwrap_or_else(|| PostgresError::Refused {
        finding: format!("one of {} must stay while others are renamed", MAINTENANCE.join(", ")),
    }))
}

pub(super) async fn exists(server: &Client, database: &str) -> Result<bool, PostgresError> {
    let query = "SELECT EXISTS (SELECT FROM pg_database WHERE datname = $1)";
    let row = server.query_one(query, &[&database]).await;
    Ok(row.map_err(statement("look for a database"))?.get(0))
}

/// Drops a database that is ours, with whoever is connected to it.
pub(super) async fn drop_database(server: &Client, database: &str) -> Result<(), PostgresError> {
    let drop = format!("DROP DATABASE IF EXISTS {} WITH (FORCE)", identifier(database));
    server.batch_execute(&drop).await.map_err(statement("drop a database that was set aside"))
}

/// Swaps databases.
pub(super) struct DatabaseSwapper {
    source: PostgresSource,
    session: OnceCell<Client>,
}

impl DatabaseSwapper {
    pub(super) fn new(source: &PostgresSource) -> Self {
        Self { source: source.clone(), session: OnceCell::new() }
    }

    /// Returns a session with the server that the names are on.
    async fn server(&self, cx: &Cx, replacement: &Replacement) -> Result<&Client, PostgresError> {
        self.source.connection.check_server(&replacement.server).map_err(refused)?;
        let targets = replacement.targets();
        let connect = || maintenance(cx, &self.source, &targets);
        self.session.get_or_try_init(connect).await
    }

    async fn work_out(
        &self,
        cx: &Cx,
        replacement: Replacement,
        direction: Direction,
    ) -> Result<Swap, PostgresError> {
        let server = self.server(cx, &replacement).await?;
        let mut renames = Vec::new();
        for Loaded { target, loaded, parked, .. } in &replacement.databases {
            let (arriving, leaving) = match direction {
                Direction::Restore => (loaded, parked),
                Direction::Undo => (parked, loaded),
            };
            let moves = [(target, leaving), (arriving, target)];
            for (from, to) in moves {
                if exists(server, from).await? {
                    renames.push(Rename { from: from.clone(), to: to.clone() });
                }
            }
        }
        Ok(Swap { replacement, renames })
    }

    async fn change_names(&self, cx: &Cx, swap: &Swap) -> Result<(), PostgresError> {
        let server = self.server(cx, &swap.replacement).await?;
        // One transaction does all of it, so the last step tells of all.
        let Some(last) = swap.renames.last() else { return Ok(()) };
        if !exists(server, &last.from).await? {
            return Ok(());
        }
        let transaction = swap.transaction();
        for attempt in 1.. {
            // While the first rename waits for sessions to go, it keeps new ones from coming.
            let unstopped = cx.for_cleanup();
            // A wish to stop does not come between: how it went is only known when the server has answered.
            let mut renaming = std::pin::pin!(server.batch_execute(&transaction));
            let (renamed, failed) = tokio::select! {
                biased;
                renamed = &mut renaming => (renamed, None),
                failed = self.disconnect(&unstopped, swap) => (renaming.await, Some(failed)),
            };
            let Err(error) = renamed else { return Ok(()) };
            server.batch_execute("ROLLBACK").await.map_err(statement("end a transaction"))?;
            if let Some(failed) = failed {
                return Err(failed);
            }
            let is_busy = error.code() == Some(&SqlState::OBJECT_IN_USE);
            if !is_busy || attempt == RENAME_TRIES {
                return Err(statement("change the names of databases")(error));
            }
            cx.check()?;
        }
        Ok(())
    }

    /// Ends the sessions of the databases that change their names, again and again. Ends only by a failure.
    async fn disconnect(&self, cx: &Cx, swap: &Swap) -> PostgresError {
        let databases: Vec<&str> = swap.renames.iter().map(|rename| rename.from.as_str()).collect();
        let query = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
                      WHERE datname = ANY ($1) AND pid <> pg_backend_pid()";
        // Where nobody is connected, the names have changed by then.
        tokio::time::sleep(TERMINATE_EVERY).await;
        let helper = match maintenance(cx, &self.source, &databases).await {
            Ok(helper) => helper,
            Err(error) => return error,
        };
        loop {
            if let Err(error) = helper.query(query, &[&databases.as_slice()]).await {
                return statement("end the sessions of the database")(error);
            }
            tokio::time::sleep(TERMINATE_EVERY).await;
        }
    }

    async fn drop_unknown(&self, cx: &Cx, known: &[&str]) -> Result<Vec<String>, PostgresError> {
        let server = maintenance(cx, &self.source, &[]).await?;
        let query = "SELECT datname::text FROM pg_database WHERE starts_with(datname::text, $1)";
        let ours = own_names::loaded_for(self.source.identity());
        let found = cx.run(server.query(query, &[&ours])).await?;
        let found = found.map_err(statement("look for what killed restores left"))?;
        let mut swept = Vec::new();
        for row in &found {
            let left: String = row.get(0);
            if !known.contains(&left.as_str()) {
                drop_database(&server, &left).await?;
                swept.push(left);
            }
        }
        Ok(swept)
    }

    async fn is_any_parked(
        &self,
        cx: &Cx,
        replacement: &Replacement,
    ) -> Result<bool, PostgresError> {
        let server = self.server(cx, replacement).await?;
        for one in &replacement.databases {
            if exists(server, &one.parked).await? {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

#[async_trait]
impl Swapper for DatabaseSwapper {
    async fn plan(
        &self,
        cx: &Cx,
        replacement: &swap::Replacement,
        direction: Direction,
    ) -> Result<swap::Swap, EngineError> {
        match replacement {
            swap::Replacement::Databases(databases) => {
                let swap = self.work_out(cx, databases.clone(), direction).await;
                swap.map(swap::Swap::Databases).map_err(failed)
            }
            swap::Replacement::InPlace(prepared) => Ok(swap::Swap::InPlace(prepared.clone())),
            other => Err(foreign(other)),
        }
    }

    async fn run(&self, cx: &Cx, swap: &swap::Swap) -> Result<(), EngineError> {
        match swap {
            swap::Swap::Databases(swap) => self.change_names(cx, swap).await.map_err(failed),
            swap::Swap::InPlace(prepared) => {
                in_place::run(cx, &self.source, prepared).await.map_err(failed)
            }
            other => Err(foreign(other)),
        }
    }

    async fn roll_back(&self, cx: &Cx, swap: &swap::Swap) -> Result<(), EngineError> {
        match swap {
            swap::Swap::Databases(swap) => {
                self.change_names(cx, &swap.reversed()).await.map_err(failed)
            }
            // The server has done that already.
            swap::Swap::InPlace(_) => Ok(()),
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
        match replacement {
            swap::Replacement::Databases(databases) => {
                self.is_any_parked(cx, databases).await.map_err(failed)
            }
            swap::Replacement::InPlace(_) => Ok(false),
            other => Err(foreign(other)),
        }
    }

    async fn discard(&self, cx: &Cx, replacement: &swap::Replacement) -> Result<(), EngineError> {
        match replacement {
            swap::Replacement::Databases(databases) => {
                let server = self.server(cx, databases).await.map_err(failed)?;
                for ours in databases.databases.iter().flat_map(|one| [&one.loaded, &one.parked]) {
                    drop_database(server, ours).await.map_err(failed)?;
                }
                Ok(())
            }
            swap::Replacement::InPlace(prepared) => prepared.discard().map_err(failed),
            other => Err(foreign(other)),
        }
    }

    async fn sweep(
        &self,
        cx: &Cx,
        known: &[swap::Replacement],
    ) -> Result<Vec<String>, EngineError> {
        let mut names = Vec::new();
        for one in known {
            if let swap::Replacement::Databases(databases) = one {
                let ours = databases.databases.iter();
                names.extend(ours.flat_map(|one| [one.loaded.as_str(), one.parked.as_str()]));
            }
        }
        self.drop_unknown(cx, &names).await.map_err(failed)
    }
}
