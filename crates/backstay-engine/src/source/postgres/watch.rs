//! Watching a dump: the app matters more than its backup.

use std::time::Duration;

use tokio_postgres::Client;

use super::PostgresSource;
use super::connection::PostgresConnection as _;
use super::error::{PostgresError, statement};
use super::names::{self, bytes_of};
use crate::cx::Cx;

/// How often it is looked whether somebody waits behind the dump.
const WATCH_EVERY: Duration = Duration::from_secs(1);

/// Ends when the dump must: somebody has waited too long for a lock that it holds, since the app matters more than its
/// backup, or one of its statements takes too long.
pub(super) async fn behind(cx: &Cx, source: &PostgresSource, session: &str) -> PostgresError {
    let watch = async {
        // Most dumps are over before anybody could have waited long.
        tokio::time::sleep(WATCH_EVERY).await;
        let client = source.connection.connect(cx).await?;
        loop {
            if let Some(reason) = who_waits(&client, source, session).await? {
                return Ok::<_, PostgresError>(reason);
            }
            if let Some(reason) = what_lasts(&client, source, session).await? {
                return Ok(reason);
            }
            tokio::time::sleep(WATCH_EVERY).await;
        }
    };
    match watch.await {
        Ok(reason) => reason,
        // A dump that nobody can watch is still a dump.
        Err(_) => std::future::pending().await,
    }
}

async fn who_waits(
    client: &Client,
    source: &PostgresSource,
    session: &str,
) -> Result<Option<PostgresError>, PostgresError> {
    let limit = source.options.lock_timeout;
    let row = client
        .query_opt(
            &format!(
                "SELECT w.pid, {} FROM pg_locks w, pg_stat_activity d
                  WHERE d.application_name = $1 AND d.pid = ANY (pg_blocking_pids(w.pid))
                    AND NOT w.granted AND now() - w.waitstart > make_interval(secs => $2) LIMIT 1",
                bytes_of("coalesce(w.relation::regclass::text, w.locktype)")
            ),
            &[&session, &limit.as_secs_f64()],
        )
        .await
        .map_err(statement("look who waits behind the dump"))?;
    Ok(row.map(|row| PostgresError::GaveWay {
        finding: format!(
            "session {} waited longer than {} s behind the dump for a lock on {}, so the dump gave way; back up again when it is done, or raise lock_timeout",
            row.get::<_, i32>(0),
            limit.as_secs(),
            names::text(&row, 1),
        ),
    }))
}

/// The dump's program lifts the server's limit for itself, so it is kept here.
async fn what_lasts(
    client: &Client,
    source: &PostgresSource,
    session: &str,
) -> Result<Option<PostgresError>, PostgresError> {
    let Some(limit) = source.options.statement_timeout else { return Ok(None) };
    let row = client
        .query_opt(
            &format!(
                "SELECT {} FROM pg_stat_activity WHERE application_name = $1 AND state = 'active'
                    AND now() - query_start > make_interval(secs => $2) LIMIT 1",
                bytes_of("left(query, 200)")
            ),
            &[&session, &limit.as_secs_f64()],
        )
        .await
        .map_err(statement("look how long the dump takes"))?;
    Ok(row.map(|row| PostgresError::Refused {
        finding: format!(
            "a statement of the dump took longer than {} s, so the dump was ended; raise statement_timeout, or leave it out: {}",
            limit.as_secs(),
            names::text(&row, 0),
        ),
    }))
}
