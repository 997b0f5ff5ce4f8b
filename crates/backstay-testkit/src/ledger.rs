//! A SQLite app that never rests, and proof of what a copy of its database holds.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;

use anyhow::ensure;
use rusqlite::Connection;

/// Transfers after which old entries are turned round instead of new ones made: the database must not outgrow a slow
/// machine's test.
const LARGEST: u64 = 2000;

/// Books transfers of two entries each that sum to zero, and keeps a counter of them in the same transaction.
#[derive(Debug)]
pub struct BusyWriter {
    stop: Arc<AtomicBool>,
    committed: Arc<AtomicU64>,
    thread: Option<JoinHandle<rusqlite::Result<()>>>,
}

impl BusyWriter {
    /// Makes the database and begins to write to it. Returns after the first commit.
    pub fn start(database: &Path) -> anyhow::Result<Self> {
        let mut connection = Connection::open(database)?;
        connection.busy_timeout(std::time::Duration::from_secs(30))?;
        connection.pragma_update(None, "journal_mode", "wal")?;
        connection.execute_batch(
            "CREATE TABLE entries (amount INTEGER NOT NULL, filler BLOB NOT NULL);
             CREATE TABLE counter (transfers INTEGER NOT NULL);
             INSERT INTO counter VALUES (0);",
        )?;
        let (stop, committed) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (stopping, counting) = (stop.clone(), committed.clone());
        let thread = std::thread::spawn(move || {
            while !stopping.load(Ordering::Relaxed) {
                let transfer = connection.transaction()?;
                let done = counting.load(Ordering::SeqCst);
                if done < LARGEST {
                    transfer.execute(
                        "INSERT INTO entries VALUES (7, randomblob(200)), (-7, zeroblob(200))",
                        [],
                    )?;
                } else {
                    let first = (2 * (done % LARGEST) + 1).cast_signed();
                    transfer.execute(
                        "UPDATE entries SET amount = -amount, filler = randomblob(200) WHERE rowid IN (?1, ?1 + 1)",
                        [first],
                    )?;
                }
                transfer.execute("UPDATE counter SET transfers = transfers + 1", [])?;
                transfer.commit()?;
                counting.fetch_add(1, Ordering::SeqCst);
            }
            Ok(())
        });
        let writer = Self { stop, committed, thread: Some(thread) };
        while writer.committed() == 0 {
            ensure!(
                !writer.thread.as_ref().is_some_and(JoinHandle::is_finished),
                "the writer failed at once"
            );
            std::thread::yield_now();
        }
        Ok(writer)
    }

    /// Returns how many transfers were committed for certain.
    pub fn committed(&self) -> u64 {
        self.committed.load(Ordering::SeqCst)
    }

    /// Ends the writing. Returns how many transfers were committed.
    pub fn stop(mut self) -> anyhow::Result<u64> {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.join().map_err(|_| anyhow::anyhow!("the writer panicked"))??;
        }
        Ok(self.committed())
    }
}

/// Proves that a database is sound and holds one committed state. Returns how many transfers are in it.
pub fn check(database: &Path) -> anyhow::Result<u64> {
    let connection = Connection::open(database)?;
    let sound: String = connection.query_row("PRAGMA integrity_check", [], |row| row.get(0))?;
    ensure!(sound == "ok", "integrity_check says {sound}");
    let number = |sql: &str| connection.query_row(sql, [], |row| row.get::<_, i64>(0));
    let (entries, sum) = (
        number("SELECT count(*) FROM entries")?,
        number("SELECT coalesce(sum(amount), 0) FROM entries")?,
    );
    let transfers = number("SELECT transfers FROM counter")?;
    ensure!(
        sum == 0 && entries == 2 * transfers.min(LARGEST.cast_signed()),
        "half a transaction: {entries} entries, sum {sum}, {transfers} transfers"
    );
    Ok(transfers.unsigned_abs())
}
