//! How the tables came to be: each step in words that SQLite and PostgreSQL both understand, all or none.

use sea_orm::{
    ConnectionTrait as _, DatabaseBackend, DatabaseConnection, DbErr, SqliteTransactionMode,
    TransactionOptions, TransactionTrait as _,
};

/// The steps; the version of a catalog is how many of them were taken. Never changed, only added to.
const STEPS: [&str; 10] = [
    // Also where a program without steps made them.
    "CREATE TABLE IF NOT EXISTS secrets (name TEXT PRIMARY KEY, sealed TEXT NOT NULL);
     CREATE TABLE IF NOT EXISTS settings (name TEXT PRIMARY KEY, value TEXT NOT NULL);
     CREATE TABLE IF NOT EXISTS leases (
         source TEXT PRIMARY KEY, token BIGINT NOT NULL, holder TEXT NOT NULL, expires_at BIGINT NOT NULL);
     CREATE TABLE IF NOT EXISTS swaps (
         id TEXT PRIMARY KEY, source TEXT NOT NULL, storage TEXT NOT NULL, state TEXT NOT NULL, made_at BIGINT NOT NULL,
         undo_until BIGINT NOT NULL, swap TEXT NOT NULL, safety TEXT);
     CREATE TABLE IF NOT EXISTS jobs (
         id TEXT PRIMARY KEY, source TEXT NOT NULL, kind TEXT NOT NULL, state TEXT NOT NULL, queued_at BIGINT NOT NULL,
         finished_at BIGINT, holder TEXT NOT NULL, error TEXT, backup TEXT);
     CREATE INDEX IF NOT EXISTS jobs_by_source ON jobs (source, queued_at);
     CREATE TABLE IF NOT EXISTS uploads (
         storage TEXT NOT NULL, object TEXT NOT NULL, upload TEXT NOT NULL, holder TEXT NOT NULL,
         PRIMARY KEY (storage, object, upload));
     CREATE TABLE IF NOT EXISTS listings (
         storage TEXT NOT NULL, source TEXT NOT NULL, backups TEXT NOT NULL, PRIMARY KEY (storage, source));",
    // The queue (ADR 15).
    "CREATE TABLE slots (source TEXT PRIMARY KEY, first_seen BIGINT NOT NULL, last_slot BIGINT);
     ALTER TABLE jobs ADD COLUMN slot BIGINT;
     ALTER TABLE jobs ADD COLUMN attempt BIGINT NOT NULL DEFAULT 1;
     ALTER TABLE jobs ADD COLUMN lost BIGINT NOT NULL DEFAULT 0;
     ALTER TABLE jobs ADD COLUMN not_before BIGINT NOT NULL DEFAULT 0;
     ALTER TABLE jobs ADD COLUMN started_at BIGINT;
     ALTER TABLE jobs ADD COLUMN token BIGINT;
     ALTER TABLE jobs ADD COLUMN cancel TEXT;
     ALTER TABLE jobs ADD COLUMN log TEXT;
     CREATE UNIQUE INDEX jobs_by_slot ON jobs (source, slot, attempt);
     CREATE INDEX jobs_by_state ON jobs (state, not_before);",
    // How far a job is, how often it was tried again; backups that are not there any more, or not wholly (ADR 17).
    "ALTER TABLE jobs ADD COLUMN retries BIGINT NOT NULL DEFAULT 0;
     ALTER TABLE jobs ADD COLUMN progress TEXT;
     CREATE TABLE gone (
         storage TEXT NOT NULL, source TEXT NOT NULL, backup TEXT NOT NULL, why TEXT NOT NULL, since BIGINT NOT NULL, entry TEXT,
         PRIMARY KEY (storage, source, backup));",
    // Lists of all jobs, and forgetting old ones.
    "CREATE INDEX jobs_by_time ON jobs (queued_at, attempt);
     CREATE INDEX jobs_by_end ON jobs (finished_at);",
    // Workers on other machines, and what is asked of a job by hand (ADR 19).
    "CREATE TABLE invitations (
         id TEXT PRIMARY KEY, secret TEXT NOT NULL, name TEXT, labels TEXT NOT NULL, expires_at BIGINT NOT NULL, worker TEXT);
     CREATE TABLE workers (
         id TEXT PRIMARY KEY, secret TEXT NOT NULL, name TEXT NOT NULL, labels TEXT NOT NULL, host TEXT NOT NULL,
         version TEXT NOT NULL, enrolled_at BIGINT NOT NULL, seen_at BIGINT NOT NULL, revoked_at BIGINT);
     CREATE UNIQUE INDEX workers_by_name ON workers (name) WHERE revoked_at IS NULL;
     ALTER TABLE jobs ADD COLUMN spec TEXT;
     ALTER TABLE jobs ADD COLUMN worker TEXT;",
    // What a job found that a worker did for somebody who waits.
    "ALTER TABLE jobs ADD COLUMN result TEXT;",
    // People who ask by way of a server, and what was changed by whom (ADR 21).
    "CREATE TABLE members (
         id TEXT PRIMARY KEY, secret TEXT NOT NULL, organisation TEXT NOT NULL, name TEXT NOT NULL, role TEXT NOT NULL,
         created_at BIGINT NOT NULL, expires_at BIGINT, seen_at BIGINT, revoked_at BIGINT);
     CREATE UNIQUE INDEX members_by_name ON members (organisation, name) WHERE revoked_at IS NULL;
     CREATE TABLE audit (
         id TEXT PRIMARY KEY, at BIGINT NOT NULL, organisation TEXT NOT NULL, actor TEXT NOT NULL, action TEXT NOT NULL,
         subject TEXT NOT NULL, outcome TEXT NOT NULL);
     CREATE INDEX audit_by_organisation ON audit (organisation, at);
     CREATE INDEX audit_by_time ON audit (at);
     ALTER TABLE jobs ADD COLUMN asked_by TEXT;
     ALTER TABLE jobs ADD COLUMN organisation TEXT NOT NULL DEFAULT '';
     CREATE INDEX jobs_by_organisation ON jobs (organisation, queued_at, attempt);",
    // Of each backup a row (ADR 24). What was listed before is listed again by the next command that looks.
    "DROP TABLE listings;
     CREATE TABLE backups (
         storage TEXT NOT NULL, source TEXT NOT NULL, backup TEXT NOT NULL, started_at BIGINT NOT NULL, entry TEXT NOT NULL,
         PRIMARY KEY (storage, source, backup));
     CREATE INDEX backups_by_time ON backups (storage, started_at, backup);
     CREATE INDEX backups_by_id ON backups (backup);",
    // Since when a worker that said so is not there.
    "ALTER TABLE workers ADD COLUMN left_at BIGINT;",
    // The job that does again what this one did not come to.
    "ALTER TABLE jobs ADD COLUMN next_try TEXT;",
];

/// A number that nothing else of the database's locks by: it is the beginning of "backstay".
const POSTGRES_LOCK: i64 = 0x6261_636b_7374;

/// What a catalog's tables are.
pub(crate) enum Migrated {
    /// As this program wants them.
    Ready,
    /// Of a newer program: its version, and the newest that this one knows.
    Newer(i64, i64),
}

/// Brings the tables to where this program wants them.
pub(crate) async fn migrate(db: &DatabaseConnection) -> Result<Migrated, DbErr> {
    // By far the most often there is nothing to do, and nothing to wait for.
    if let Ok(found) = version(db).await
        && let Some(done) = compare(found)
    {
        return Ok(done);
    }
    let options = TransactionOptions {
        // Others that come at the same time wait here, and find the steps taken.
        sqlite_transaction_mode: Some(SqliteTransactionMode::Immediate),
        ..TransactionOptions::default()
    };
    let transaction = db.begin_with_options(options).await?;
    if db.get_database_backend() == DatabaseBackend::Postgres {
        let lock = format!("SELECT pg_advisory_xact_lock({POSTGRES_LOCK})");
        transaction.execute_unprepared(&lock).await?;
    }
    let table = "CREATE TABLE IF NOT EXISTS schema_version (version BIGINT NOT NULL)";
    transaction.execute_unprepared(table).await?;
    let found = version(&transaction).await?;
    if let Some(done) = compare(found) {
        transaction.rollback().await?;
        return Ok(done);
    }
    for step in STEPS.iter().skip(usize::try_from(found).unwrap_or(0)) {
        transaction.execute_unprepared(step).await?;
    }
    transaction.execute_unprepared("DELETE FROM schema_version").await?;
    let insert = format!("INSERT INTO schema_version (version) VALUES ({})", STEPS.len());
    transaction.execute_unprepared(&insert).await?;
    transaction.commit().await?;
    Ok(Migrated::Ready)
}

fn compare(found: i64) -> Option<Migrated> {
    let known = i64::try_from(STEPS.len()).expect("few steps");
    match found.cmp(&known) {
        std::cmp::Ordering::Less => None,
        std::cmp::Ordering::Equal => Some(Migrated::Ready),
        std::cmp::Ordering::Greater => Some(Migrated::Newer(found, known)),
    }
}

async fn version(db: &impl sea_orm::ConnectionTrait) -> Result<i64, DbErr> {
    let backend = db.get_database_backend();
    let select = sea_orm::Statement::from_string(backend, "SELECT version FROM schema_version");
    let row = db.query_one_raw(select).await?;
    row.map_or(Ok(0), |row| row.try_get("", "version"))
}
