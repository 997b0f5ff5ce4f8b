//! Two databases change their names in one transaction: at every moment the name stands for one that is wholly old or
//! wholly new.

use std::time::Duration;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use tokio::sync::OnceCell;
use tokio_postgres::Client;
use tokio_postgres::error::SqlState;

use super::connection::Connection;
use super::error::{Cause, PostgresError, statement};
use super::globals::{comment_database, identifier};
use crate::cx::Cx;
use crate::error::EngineError;
use crate::source::SourceError;
use crate::swap::{self, Direction, Swapper, foreign};

/// Databases that are there to be connected to while others are made, renamed and dropped.
const MAINTENANCE: [&str; 2] = ["postgres", "template1"];
/// The server waits five seconds for sessions to go before it gives a rename up.
const RENAME_TRIES: u32 = 6;
const TERMINATE_EVERY: Duration = Duration::from_millis(50);

/// A database that was loaded, and the one that it replaces.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Replacement {
    /// Host and port.
    pub server: String,
    /// The name that is fought for. May be free.
    pub target: String,
    /// The name of what was loaded, while it is not in place.
    pub loaded: String,
    /// The name of what was replaced, while it is not in place. Nobody can connect to it.
    pub parked: String,
    /// The comment that the loaded database gets in place of our mark.
    pub comment: Option<String>,
}

/// A change of names, worked out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Swap {
    /// Of what.
    pub replacement: Replacement,
    direction: Direction,
}

impl From<Replacement> for swap::Replacement {
    fn from(database: Replacement) -> Self {
        Self::Database(database)
    }
}

impl Swap {
    /// Returns the name that comes into place, and the name that what is there gets.
    fn names(&self) -> (&str, &str) {
        let Replacement { loaded, parked, .. } = &self.replacement;
        match self.direction {
            Direction::Restore => (loaded, parked),
            Direction::Undo => (parked, loaded),
        }
    }
}

/// Says which server a connection is to.
pub(super) fn server_of(connection: &Connection) -> String {
    format!("{}:{}", connection.host, connection.port)
}

/// Connects to a database that is none of the user's. No statement of the session waits longer for a lock.
pub(super) async fn maintenance(
    cx: &Cx,
    connection: &Connection,
    lock_timeout: Duration,
) -> Result<Client, PostgresError> {
    let client = connect_beside(cx, connection).await?;
    cx.run(limit_locks(&client, lock_timeout)).await??;
    Ok(client)
}

/// Limits how long the statements of a session wait for locks: a server does not notice that whoever asked is gone.
pub(super) async fn limit_locks(client: &Client, limit: Duration) -> Result<(), PostgresError> {
    let limit = format!("SET lock_timeout = {}", limit.as_millis());
    let limited = client.batch_execute(&limit).await;
    limited.map_err(statement("limit how long is waited for locks"))
}

async fn connect_beside(cx: &Cx, connection: &Connection) -> Result<Client, PostgresError> {
    let [first, second] = MAINTENANCE;
    match connection.with_database(first).connect(cx).await {
        // Who does not answer does not answer for the other database either.
        Err(error) if !matches!(error, PostgresError::Connect { cause: Cause::Timeout, .. }) => {
            connection.with_database(second).connect(cx).await.map_err(|_| error)
        }
        connected => connected,
    }
}

/// The comment of a database that is being loaded: whose place it will take, if it is finished.
pub(super) fn mark(target: &str) -> String {
    format!("Backstay loads this to replace {target}")
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
    connection: Connection,
    lock_timeout: Duration,
    session: OnceCell<Client>,
}

impl DatabaseSwapper {
    pub(super) fn new(connection: Connection, lock_timeout: Duration) -> Self {
        Self { connection, lock_timeout, session: OnceCell::new() }
    }

    async fn connect(&self, cx: &Cx) -> Result<Client, PostgresError> {
        maintenance(cx, &self.connection, self.lock_timeout).await
    }

    /// Returns a session with the server that the names are on.
    async fn server(&self, cx: &Cx, replacement: &Replacement) -> Result<&Client, PostgresError> {
        let server = server_of(&self.connection);
        if server == replacement.server {
            return self.session.get_or_try_init(|| self.connect(cx)).await;
        }
        let finding = format!(
            "the restore was on the server {}, and the source is on {server} now",
            replacement.server
        );
        Err(PostgresError::Refused { finding })
    }

    async fn change_names(&self, cx: &Cx, swap: &Swap) -> Result<(), PostgresError> {
        let Replacement { target, .. } = &swap.replacement;
        let (arriving, leaving) = swap.names();
        let server = self.server(cx, &swap.replacement).await?;
        if !exists(server, arriving).await? {
            // It is in place already: both names change in one transaction.
            return Ok(());
        }
        let mut steps = Vec::new();
        let replaces = exists(server, target).await?;
        if replaces {
            steps.push(rename(target, leaving));
        }
        steps.push(rename(arriving, target));
        steps.push(format!("ALTER DATABASE {} ALLOW_CONNECTIONS true", identifier(target)));
        if replaces {
            steps.push(format!("ALTER DATABASE {} ALLOW_CONNECTIONS false", identifier(leaving)));
        }
        if swap.direction == Direction::Restore {
            // Until now it was marked, so that it would be swept if nobody finished it.
            steps.push(comment_database(target, swap.replacement.comment.as_deref()));
        }
        let transaction = format!("BEGIN; {}; COMMIT", steps.join("; "));
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
}

impl DatabaseSwapper {
    /// Ends the sessions of the databases that change their names, again and again. Ends only by a failure.
    async fn disconnect(&self, cx: &Cx, swap: &Swap) -> PostgresError {
        let Replacement { target, .. } = &swap.replacement;
        let databases = [target.as_str(), swap.names().0];
        let query = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
                      WHERE datname = ANY ($1) AND pid <> pg_backend_pid()";
        // Where nobody is connected, the names have changed by then.
        tokio::time::sleep(TERMINATE_EVERY).await;
        let helper = match self.connect(cx).await {
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
        let server = self.connect(cx).await?;
        let query = "SELECT datname::text FROM pg_database
                      WHERE starts_with(datname::text, 'backstay_new_') AND shobj_description(oid, 'pg_database') = $1";
        let mark = mark(&self.connection.database);
        let found = cx.run(server.query(query, &[&mark])).await?;
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

    async fn change_back(&self, cx: &Cx, swap: &Swap) -> Result<(), PostgresError> {
        let Swap { replacement, direction } = swap;
        let (arriving, leaving) = swap.names();
        let server = self.server(cx, replacement).await?;
        if exists(server, arriving).await? {
            // What should have come is still waiting: nothing was changed.
            return Ok(());
        }
        if exists(server, leaving).await? {
            let direction = match direction {
                Direction::Restore => Direction::Undo,
                Direction::Undo => Direction::Restore,
            };
            let back = Swap { replacement: replacement.clone(), direction };
            return self.change_names(cx, &back).await;
        }
        let back = rename(&replacement.target, arriving);
        server.batch_execute(&back).await.map_err(statement("change the name of a database back"))
    }
}

fn rename(from: &str, to: &str) -> String {
    format!("ALTER DATABASE {} RENAME TO {}", identifier(from), identifier(to))
}

fn database_of(replacement: &swap::Replacement) -> Result<&Replacement, EngineError> {
    match replacement {
        swap::Replacement::Database(database) => Ok(database),
        other => Err(foreign(other)),
    }
}

fn swap_of(swap: &swap::Swap) -> Result<&Swap, EngineError> {
    match swap {
        swap::Swap::Database(swap) => Ok(swap),
        other => Err(foreign(other)),
    }
}

fn failed(error: PostgresError) -> EngineError {
    EngineError::Source(SourceError::from(error))
}

#[async_trait]
impl Swapper for DatabaseSwapper {
    async fn plan(
        &self,
        _cx: &Cx,
        replacement: &swap::Replacement,
        direction: Direction,
    ) -> Result<swap::Swap, EngineError> {
        let replacement = database_of(replacement)?.clone();
        Ok(swap::Swap::Database(Swap { replacement, direction }))
    }

    async fn run(&self, cx: &Cx, swap: &swap::Swap) -> Result<(), EngineError> {
        self.change_names(cx, swap_of(swap)?).await.map_err(failed)
    }

    async fn roll_back(&self, cx: &Cx, swap: &swap::Swap) -> Result<(), EngineError> {
        self.change_back(cx, swap_of(swap)?).await.map_err(failed)
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
        let replacement = database_of(replacement)?;
        let server = self.server(cx, replacement).await.map_err(failed)?;
        exists(server, &replacement.parked).await.map_err(failed)
    }

    async fn discard(&self, cx: &Cx, replacement: &swap::Replacement) -> Result<(), EngineError> {
        let replacement = database_of(replacement)?;
        let server = self.server(cx, replacement).await.map_err(failed)?;
        for ours in [&replacement.loaded, &replacement.parked] {
            drop_database(server, ours).await.map_err(failed)?;
        }
        Ok(())
    }

    async fn sweep(
        &self,
        cx: &Cx,
        known: &[swap::Replacement],
    ) -> Result<Vec<String>, EngineError> {
        let known: Vec<&str> = known
            .iter()
            .filter_map(|one| database_of(one).ok())
            .flat_map(|one| [one.loaded.as_str(), one.parked.as_str()])
            .collect();
        self.drop_unknown(cx, &known).await.map_err(failed)
    }
}
