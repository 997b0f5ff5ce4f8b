//! The database of an installation. SQL stands here and in the files of the tables, in words that SQLite and PostgreSQL
//! both understand; times are microseconds since 1970.

use std::str::FromStr as _;
use std::sync::Arc;
use std::time::Duration;

use backstay_format::{Keyring, Sha256};
use jiff::Timestamp;
use sea_orm::{
    ConnectOptions, ConnectionTrait as _, Database, DatabaseBackend, DatabaseConnection, DbErr,
    QueryResult, RuntimeErr, Statement, TransactionTrait as _, TryGetable, Value,
};
use secrecy::{ExposeSecret as _, SecretString};
use serde::Serialize;
use serde::de::DeserializeOwned;
use sqlx::Connection as _;
use sqlx::postgres::{PgConnectOptions, PgConnection};
use tokio::time::{sleep, timeout};
use zeroize::Zeroizing;

use crate::Home;
use crate::master_key::{MasterKey, MasterKeyError};
use crate::migrations::{Migrated, migrate};

/// Connections to a shared catalog: of a server's turns, its jobs and their leases.
const SHARED_CONNECTIONS: u32 = 5;
/// Tries to open a catalog that others make at the same time, and the pause between two.
const FIRST_TRIES: u32 = 100;
const FIRST_PAUSE: Duration = Duration::from_millis(50);
/// How long a shared catalog may take to answer a new connection.
const PATIENCE: Duration = Duration::from_secs(10);
/// The name of the keyring among the secrets.
pub(crate) const KEYRING: &str = "keyring";

/// The database of an installation.
#[derive(Debug, Clone)]
pub struct Catalog {
    db: DatabaseConnection,
    master_key: MasterKey,
}

/// Why the catalog could not be used. Backups are not affected.
#[derive(Debug, thiserror::Error)]
pub enum CatalogError {
    /// The database failed.
    #[error(
        "the catalog {place} cannot be used; backups are not affected: `backstay recover` with a kit makes a new installation in another home"
    )]
    Database {
        /// Its file.
        place: String,
        /// What the database said.
        #[source]
        cause: DbErr,
    },
    /// The same of one that servers share.
    #[error(
        "the catalog {place} cannot be used; backups are not affected: if it is gone, take `catalog` out of the configuration, and `backstay recover` with a kit makes a new installation"
    )]
    Shared {
        /// Its server and database, without the password.
        place: String,
        /// What the database said.
        #[source]
        cause: DbErr,
    },
    /// A newer program's.
    #[error("the catalog has version {found}, this program knows {known}; use a newer backstay")]
    Newer {
        /// The version found.
        found: i64,
        /// The newest that this program knows.
        known: i64,
    },
    /// It is none of the databases that a catalog can be in.
    #[error("found `{scheme}:` as the catalog, expected postgres://user:password@host/database")]
    NoPostgres {
        /// What its address begins with.
        scheme: String,
    },
    /// A query failed.
    #[error("the catalog failed while it {action}")]
    Query {
        /// What was being done.
        action: &'static str,
        /// What the database said.
        #[source]
        cause: DbErr,
    },
    /// What was stored cannot be read.
    #[error("the catalog holds something unreadable under {name}")]
    Unreadable {
        /// Where.
        name: String,
    },
    /// A secret does not open.
    #[error(transparent)]
    MasterKey(#[from] MasterKeyError),
    /// The keyring is no keyring.
    #[error(transparent)]
    Keyring(#[from] backstay_format::KeyError),
}

impl CatalogError {
    /// Says whether the disk that it lies on is full.
    pub fn is_full(&self) -> bool {
        let cause = match self {
            Self::Database { cause, .. }
            | Self::Shared { cause, .. }
            | Self::Query { cause, .. } => cause,
            _ => return false,
        };
        // SQLite's and PostgreSQL's.
        code(cause).is_some_and(|code| ["13", "53100"].contains(&&*code))
    }

    /// Says whether a shared catalog is only away, as while its server is started anew.
    pub fn is_outage(&self) -> bool {
        let Self::Shared { cause: DbErr::Conn(RuntimeErr::SqlxError(cause)), .. } = self else {
            return false;
        };
        match &**cause {
            // A connection that ends while it begins is an answer of the wrong kind.
            sqlx::Error::Io(_) | sqlx::Error::Protocol(_) | sqlx::Error::PoolTimedOut => true,
            // It starts, it ends, or it has no connection left.
            sqlx::Error::Database(error) => error
                .code()
                .is_some_and(|code| ["57P01", "57P02", "57P03", "53300"].contains(&code.as_ref())),
            _ => false,
        }
    }
}

/// Asks once more without a pool, which only says that its patience ran out. Returns what is really wrong, if it still is.
async fn explained(url: &str) -> Option<DbErr> {
    let options = PgConnectOptions::from_str(url).ok()?;
    let tried = timeout(PATIENCE, PgConnection::connect_with(&options)).await.ok()?;
    Some(DbErr::Conn(RuntimeErr::SqlxError(Arc::new(tried.err()?))))
}

impl Catalog {
    /// Opens the catalog in a home directory, making it if there is none.
    pub async fn open(home: &Home, master_key: MasterKey) -> Result<Self, CatalogError> {
        let place = home.catalog().display().to_string();
        let mut options = ConnectOptions::new(format!("sqlite://{}?mode=rwc", escaped(&place)));
        options.max_connections(2).sqlx_logging(false);
        options.map_sqlx_sqlite_opts(|options| {
            options
                .journal_mode(sqlx::sqlite::SqliteJournalMode::Wal)
                .synchronous(sqlx::sqlite::SqliteSynchronous::Full)
                .busy_timeout(Duration::from_secs(10))
        });
        let failed = |cause| CatalogError::Database { place: place.clone(), cause };
        Self::connect(options, failed, master_key).await
    }

    /// Opens a catalog that several servers share, in a PostgreSQL database, making its tables if there are none.
    pub async fn open_shared(
        url: &SecretString,
        master_key: MasterKey,
    ) -> Result<Self, CatalogError> {
        let url = url.expose_secret();
        let schemes = ["postgres://", "postgresql://"];
        let Some(rest) = schemes.iter().find_map(|scheme| url.strip_prefix(scheme)) else {
            let scheme = url.split(':').next().unwrap_or_default().to_owned();
            return Err(CatalogError::NoPostgres { scheme });
        };
        // What stands before the last @ has the password, and what stands behind a question mark may.
        let address = rest.split('?').next().unwrap_or_default();
        let host = address.rsplit_once('@').map_or(address, |(_, host)| host);
        let place = format!("postgres://{host}");
        let mut options = ConnectOptions::new(url);
        options.max_connections(SHARED_CONNECTIONS).sqlx_logging(false);
        options.connect_timeout(PATIENCE).acquire_timeout(PATIENCE);
        let failed = |cause| CatalogError::Shared { place: place.clone(), cause };
        match Self::connect(options, failed, master_key).await {
            Err(error) if error.is_outage() => Err(explained(url).await.map_or(error, failed)),
            opened => opened,
        }
    }

    async fn connect(
        options: ConnectOptions,
        failed: impl Fn(DbErr) -> CatalogError,
        master_key: MasterKey,
    ) -> Result<Self, CatalogError> {
        let mut tries = 0;
        let db = loop {
            tries += 1;
            match Database::connect(options.clone()).await {
                Err(error) if is_busy(&error) && tries < FIRST_TRIES => sleep(FIRST_PAUSE).await,
                connected => break connected.map_err(&failed)?,
            }
        };
        match migrate(&db).await.map_err(&failed)? {
            Migrated::Ready => Ok(Self { db, master_key }),
            Migrated::Newer(found, known) => Err(CatalogError::Newer { found, known }),
        }
    }

    /// Says whether several servers may share it.
    pub fn is_shared(&self) -> bool {
        self.db.get_database_backend() == DatabaseBackend::Postgres
    }

    /// Returns what the server of a shared catalog calls itself, and the database that this is there; nothing of one that is not
    /// shared, or where we may not ask.
    pub async fn own_database(&self) -> Result<Option<(String, String)>, CatalogError> {
        if !self.is_shared() {
            return Ok(None);
        }
        let what = "asked which database it is";
        let may = "SELECT coalesce(has_function_privilege(to_regprocedure('pg_control_system()'), 'EXECUTE'), false) AS may";
        let unreadable = || CatalogError::Unreadable { name: "server".to_owned() };
        let row = self.query_one(what, may, []).await?.ok_or_else(unreadable)?;
        if !row.try_get::<bool>("", "may").map_err(|_| unreadable())? {
            return Ok(None);
        }
        let select = "SELECT system_identifier::text AS system, current_database()::text AS database FROM pg_control_system()";
        let row = self.query_one(what, select, []).await?.ok_or_else(unreadable)?;
        let text = |name: &str| row.try_get::<String>("", name).map_err(|_| unreadable());
        Ok(Some((text("system")?, text("database")?)))
    }

    /// Returns what time it is for leases and slots: where servers share a catalog, its own clock counts and not theirs.
    pub async fn time(&self, now: Timestamp) -> Result<Timestamp, CatalogError> {
        if !self.is_shared() {
            return Ok(now);
        }
        let select = "SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint AS now";
        let row = self.query_one("asked for the time", select, []).await?;
        let unreadable = || CatalogError::Unreadable { name: "clock".to_owned() };
        let micros =
            row.and_then(|row| row.try_get::<i64>("", "now").ok()).ok_or_else(unreadable)?;
        Timestamp::from_microsecond(micros).map_err(|_| unreadable())
    }

    /// Returns the keys, or `None` before the first were made.
    pub async fn keyring(&self) -> Result<Option<Keyring>, CatalogError> {
        let bytes = self.secret(KEYRING).await?;
        bytes
            .map(|bytes| Keyring::from_secret_bytes(&bytes))
            .transpose()
            .map_err(CatalogError::from)
    }

    /// Keeps the keys.
    pub async fn set_keyring(&self, keyring: &Keyring) -> Result<(), CatalogError> {
        self.set_secret(KEYRING, &keyring.to_secret_bytes()?).await
    }

    /// Keeps the first keys, unless others did meanwhile. Returns the keys that are kept.
    pub async fn first_keyring(&self, made: &Keyring) -> Result<Keyring, CatalogError> {
        self.first_secret(KEYRING, &made.to_secret_bytes()?).await?;
        let kept = self.keyring().await?;
        kept.ok_or(CatalogError::Unreadable { name: KEYRING.to_owned() })
    }

    /// Returns a secret.
    pub async fn secret(&self, name: &str) -> Result<Option<Zeroizing<Vec<u8>>>, CatalogError> {
        let select = "SELECT sealed FROM secrets WHERE name = $1";
        let Some(row) = self.query_one("looked for a secret", select, [name.into()]).await? else {
            return Ok(None);
        };
        let unreadable = || CatalogError::Unreadable { name: name.to_owned() };
        let sealed: String = row.try_get("", "sealed").map_err(|_| unreadable())?;
        let sealed = hex::decode(&sealed).map_err(|_| unreadable())?;
        Ok(Some(self.master_key.open(name, &sealed)?))
    }

    /// Returns what tells texts apart, and tells nothing of them without the master key.
    pub fn fingerprint(&self, text: &[u8]) -> String {
        hex::encode(self.master_key.fingerprint(text))
    }

    /// Returns the names of all secrets but the keys.
    pub async fn secret_names(&self) -> Result<Vec<String>, CatalogError> {
        let select = "SELECT name FROM secrets WHERE name <> $1 ORDER BY name";
        let rows = self.query_all("looked for secrets", select, [KEYRING.into()]).await?;
        rows.iter().map(|row| column(row, "secrets", "name")).collect()
    }

    /// Keeps a secret, sealed.
    pub async fn set_secret(&self, name: &str, secret: &[u8]) -> Result<(), CatalogError> {
        let sealed = hex::encode(self.master_key.seal(name, secret));
        let upsert = "INSERT INTO secrets (name, sealed) VALUES ($1, $2) \
                      ON CONFLICT (name) DO UPDATE SET sealed = excluded.sealed";
        self.execute("kept a secret", upsert, [name.into(), sealed.into()]).await.map(drop)
    }

    /// Keeps a secret, sealed, where there is none of this name. Returns whether there was none.
    pub(crate) async fn first_secret(
        &self,
        name: &str,
        secret: &[u8],
    ) -> Result<bool, CatalogError> {
        let sealed = hex::encode(self.master_key.seal(name, secret));
        let insert =
            "INSERT INTO secrets (name, sealed) VALUES ($1, $2) ON CONFLICT (name) DO NOTHING";
        Ok(self.execute("kept a secret", insert, [name.into(), sealed.into()]).await? == 1)
    }

    /// Returns a setting.
    pub async fn setting<T: DeserializeOwned>(
        &self,
        name: &str,
    ) -> Result<Option<T>, CatalogError> {
        let Some(text) = self.setting_text(name).await? else { return Ok(None) };
        let unreadable = |_| CatalogError::Unreadable { name: name.to_owned() };
        serde_json::from_str(&text).map(Some).map_err(unreadable)
    }

    pub(crate) async fn setting_text(&self, name: &str) -> Result<Option<String>, CatalogError> {
        let select = "SELECT value FROM settings WHERE name = $1";
        let row = self.query_one("looked for a setting", select, [name.into()]).await?;
        row.map(|row| column(&row, "settings", "value")).transpose()
    }

    /// Keeps a setting where there is none of this name. Returns whether there was none.
    pub(crate) async fn first_setting_text(
        &self,
        name: &str,
        text: &str,
    ) -> Result<bool, CatalogError> {
        let insert =
            "INSERT INTO settings (name, value) VALUES ($1, $2) ON CONFLICT (name) DO NOTHING";
        Ok(self.execute("kept a setting", insert, [name.into(), text.into()]).await? == 1)
    }

    /// Keeps a setting if it still is what it was, or the default where it was never set. Returns whether it was.
    pub async fn replace_setting<T: Serialize + Default + PartialEq + Sync>(
        &self,
        name: &str,
        before: &T,
        value: &T,
    ) -> Result<bool, CatalogError> {
        let text = |value: &T| {
            serde_json::to_string(value)
                .map_err(|_| CatalogError::Unreadable { name: name.to_owned() })
        };
        let (old, new) = (text(before)?, text(value)?);
        let update = "UPDATE settings SET value = $1 WHERE name = $2 AND value = $3";
        let values = [new.clone().into(), name.into(), old.into()];
        if self.execute("replaced a setting", update, values).await? == 1 {
            return Ok(true);
        }
        if *before != T::default() {
            return Ok(false);
        }
        self.first_setting_text(name, &new).await
    }

    /// Keeps a setting.
    pub async fn set_setting<T: Serialize + Sync>(
        &self,
        name: &str,
        value: &T,
    ) -> Result<(), CatalogError> {
        let text = serde_json::to_string(value)
            .map_err(|_| CatalogError::Unreadable { name: name.to_owned() })?;
        let upsert = "INSERT INTO settings (name, value) VALUES ($1, $2) \
                      ON CONFLICT (name) DO UPDATE SET value = excluded.value";
        self.execute("kept a setting", upsert, [name.into(), text.into()]).await.map(drop)
    }

    /// Drops a setting, and a secret of the same name. What is not there is dropped already.
    pub async fn forget(&self, name: &str) -> Result<(), CatalogError> {
        for table in ["settings", "secrets"] {
            let delete = format!("DELETE FROM {table} WHERE name = $1");
            self.execute("dropped a setting", &delete, [name.into()]).await?;
        }
        Ok(())
    }

    /// Runs a statement; returns how many rows it changed.
    pub(crate) async fn execute<const N: usize>(
        &self,
        action: &'static str,
        sql: &str,
        values: [Value; N],
    ) -> Result<u64, CatalogError> {
        let statement = Statement::from_sql_and_values(self.db.get_database_backend(), sql, values);
        let done = self.db.execute_raw(statement).await;
        done.map(|done| done.rows_affected()).map_err(|cause| CatalogError::Query { action, cause })
    }

    /// Runs statements in one transaction, each of which must change one row. Returns whether all did; else nothing is changed.
    pub(crate) async fn all_or_none(
        &self,
        action: &'static str,
        statements: Vec<(&'static str, Vec<Value>)>,
    ) -> Result<bool, CatalogError> {
        self.transact(action, statements, |changed| changed == 1).await
    }

    /// Runs statements in one transaction, whatever each of them finds to change.
    pub(crate) async fn together(
        &self,
        action: &'static str,
        statements: Vec<(&'static str, Vec<Value>)>,
    ) -> Result<(), CatalogError> {
        self.transact(action, statements, |_| true).await.map(drop)
    }

    async fn transact(
        &self,
        action: &'static str,
        statements: Vec<(&'static str, Vec<Value>)>,
        is_right: impl Fn(u64) -> bool + Send,
    ) -> Result<bool, CatalogError> {
        let failed = |cause| CatalogError::Query { action, cause };
        let transaction = self.db.begin().await.map_err(failed)?;
        for (sql, values) in statements {
            let statement =
                Statement::from_sql_and_values(self.db.get_database_backend(), sql, values);
            let done = transaction.execute_raw(statement).await.map_err(failed)?;
            if !is_right(done.rows_affected()) {
                transaction.rollback().await.map_err(failed)?;
                return Ok(false);
            }
        }
        transaction.commit().await.map_err(failed)?;
        Ok(true)
    }

    pub(crate) async fn query_one<const N: usize>(
        &self,
        action: &'static str,
        sql: &str,
        values: [Value; N],
    ) -> Result<Option<QueryResult>, CatalogError> {
        let statement = Statement::from_sql_and_values(self.db.get_database_backend(), sql, values);
        self.db
            .query_one_raw(statement)
            .await
            .map_err(|cause| CatalogError::Query { action, cause })
    }

    pub(crate) async fn query_all<const N: usize>(
        &self,
        action: &'static str,
        sql: &str,
        values: [Value; N],
    ) -> Result<Vec<QueryResult>, CatalogError> {
        let statement = Statement::from_sql_and_values(self.db.get_database_backend(), sql, values);
        self.db
            .query_all_raw(statement)
            .await
            .map_err(|cause| CatalogError::Query { action, cause })
    }
}

/// Reads a column of a row. What cannot be read is told by its table and name.
pub(crate) fn column<T: TryGetable>(
    row: &QueryResult,
    table: &str,
    name: &str,
) -> Result<T, CatalogError> {
    row.try_get("", name).map_err(|_| unreadable(table, name))
}

/// Reads the digest of a token's secret.
pub(crate) fn digest_column(row: &QueryResult, table: &str) -> Result<Sha256, CatalogError> {
    column::<String>(row, table, "secret")?.parse().map_err(|_| unreadable(table, "secret"))
}

/// Reads a column that holds a time, if it holds one.
pub(crate) fn time_column(
    row: &QueryResult,
    table: &str,
    name: &str,
) -> Result<Option<Timestamp>, CatalogError> {
    let micros: Option<i64> = column(row, table, name)?;
    micros.map(Timestamp::from_microsecond).transpose().map_err(|_| unreadable(table, name))
}

pub(crate) fn unreadable(table: &str, name: &str) -> CatalogError {
    CatalogError::Unreadable { name: format!("{table}.{name}") }
}

/// Says whether a database of SQLite is being made by somebody else: of that its busy timeout takes no notice.
fn is_busy(error: &DbErr) -> bool {
    matches!(error, DbErr::Conn(_)) && code(error).is_some_and(|code| code == "5")
}

/// Returns the database's own code of an error.
fn code(error: &DbErr) -> Option<String> {
    let (DbErr::Conn(cause) | DbErr::Exec(cause) | DbErr::Query(cause)) = error else {
        return None;
    };
    let RuntimeErr::SqlxError(cause) = cause else { return None };
    cause.as_database_error()?.code().map(std::borrow::Cow::into_owned)
}

/// Percent-encodes what would end the path of a database URL.
fn escaped(path: &str) -> String {
    path.replace('%', "%25").replace('?', "%3F").replace('#', "%23")
}
