//! The database of this program's own catalog: no backup holds it, and no restore replaces it (ADR 25).

use serde::{Deserialize, Serialize};
use tokio_postgres::Client;

use super::error::{PostgresError, refused, statement};
use super::{PostgresSource, exchange};
use crate::cx::Cx;
use crate::source::databases::OWN_CATALOG;

/// A database that is known again by whatever address its server is reached.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OwnDatabase {
    /// The server's `system_identifier`; its standbys have the same.
    pub system: String,
    /// Its name there.
    pub database: String,
}

impl PostgresSource {
    /// Returns the name of the database that is to be spared on this server, if it is there.
    pub(super) async fn spared_on(&self, server: &Client) -> Result<Option<&str>, PostgresError> {
        let Some(own) = &self.options.spared else { return Ok(None) };
        let is_there = system_of(server).await?.as_ref() == Some(&own.system);
        Ok(is_there.then_some(own.database.as_str()))
    }

    /// Returns the source without the database that is to be spared, asking its server. Fails if it is nothing else.
    pub(super) async fn sparing(&self, cx: &Cx) -> Result<Self, PostgresError> {
        if self.options.spared.is_none() {
            return Ok(self.clone());
        }
        let server = exchange::maintenance(cx, self, &[]).await?;
        let Some(databases) = &self.databases else {
            self.ensure_not_spared(&server).await?;
            return Ok(self.clone());
        };
        let databases = Some(databases.sparing(self.spared_on(&server).await?));
        Ok(Self { databases, ..self.clone() })
    }

    /// Fails if the source is one database, and that is to be spared.
    pub(super) async fn ensure_not_spared(&self, server: &Client) -> Result<(), PostgresError> {
        let database = &self.connection.database;
        if self.spared_on(server).await? == Some(database.as_str()) {
            return Err(refused(format!(
                "the database {database} is {OWN_CATALOG}, and no restore replaces it; take this source out of the configuration"
            )));
        }
        Ok(())
    }
}

/// Returns what a server calls itself; nothing where we may not ask.
async fn system_of(server: &Client) -> Result<Option<String>, PostgresError> {
    let asking = || statement("ask which server it is");
    let may = "SELECT coalesce(has_function_privilege(to_regprocedure('pg_control_system()'), 'EXECUTE'), false)";
    if !server.query_one(may, &[]).await.map_err(asking())?.get::<_, bool>(0) {
        return Ok(None);
    }
    let query = "SELECT system_identifier::text FROM pg_control_system()";
    Ok(Some(server.query_one(query, &[]).await.map_err(asking())?.get(0)))
}
