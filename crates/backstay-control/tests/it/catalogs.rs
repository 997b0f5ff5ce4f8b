//! Catalogs to test on.

use std::sync::Arc;

use backstay_control::{Catalog, Home, MasterKey};
use backstay_testkit::postgres::PostgresServer;

/// A place for a catalog, opened as often as there are servers.
pub(crate) struct Place {
    home: Home,
    server: Option<Arc<PostgresServer>>,
    _dir: tempfile::TempDir,
}

impl Place {
    /// One in a home directory, and one in a database.
    pub(crate) fn both() -> [Self; 2] {
        let server = PostgresServer::start();
        server.sql("postgres", "CREATE DATABASE catalog");
        [Self::new(None), Self::new(Some(Arc::new(server)))]
    }

    fn new(server: Option<Arc<PostgresServer>>) -> Self {
        let dir = tempfile::tempdir().unwrap();
        Self { home: Home::open(&dir.path().join("home")).unwrap(), server, _dir: dir }
    }

    /// The same catalog for a server whose home directory has another master key.
    pub(crate) fn with_another_home(&self) -> Self {
        Self::new(self.server.clone())
    }

    pub(crate) fn name(&self) -> &'static str {
        if self.server.is_some() { "PostgreSQL" } else { "SQLite" }
    }

    /// Opens it as one more server.
    pub(crate) async fn open(&self) -> Result<Catalog, backstay_control::CatalogError> {
        let key = MasterKey::load(&self.home, None, None).unwrap();
        match &self.server {
            Some(server) => Catalog::open_shared(&server.url("catalog").into(), key).await,
            None => Catalog::open(&self.home, key).await,
        }
    }

    /// Executes SQL in it, past the program.
    pub(crate) fn sql(&self, statements: &str) {
        match &self.server {
            Some(server) => drop(server.sql("catalog", statements)),
            None => {
                let connection = rusqlite::Connection::open(self.home.catalog()).unwrap();
                connection.execute_batch(statements).unwrap();
            }
        }
    }
}
