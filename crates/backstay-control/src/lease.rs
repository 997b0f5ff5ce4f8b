//! One writer for each source: a right that expires unless renewed.

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

use crate::{Catalog, CatalogError};

/// Who holds a lease: enough for another process of the same machine to see whether it still lives.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holder {
    /// The machine.
    pub host: String,
    /// Its boot; process ids mean nothing after another.
    pub boot: String,
    /// The process.
    pub pid: u32,
    /// When it started, in the kernel's ticks: process ids are used again.
    pub started: u64,
}

/// The right to write backups of a source.
#[derive(Debug)]
pub struct Lease {
    pub(crate) source: String,
    /// Grows with each holder.
    pub(crate) token: i64,
    pub(crate) holder: String,
}

/// Why a lease was not given or kept.
#[derive(Debug, thiserror::Error)]
pub enum LeaseError {
    /// Somebody else holds it.
    #[error(
        "source {source_name} is being worked on by process {pid} on {host}; wait for it to end"
    )]
    Held {
        /// Which source.
        source_name: String,
        /// Whose machine.
        host: String,
        /// Which process.
        pid: u32,
    },
    /// It went to somebody else.
    #[error("the lease on source {source_name} was lost")]
    Lost {
        /// Which source.
        source_name: String,
    },
    /// The catalog failed.
    #[error(transparent)]
    Catalog(#[from] CatalogError),
}

impl LeaseError {
    /// Says whether somebody else has it.
    pub fn is_held(&self) -> bool {
        matches!(self, Self::Held { .. })
    }
}

/// A lease that is not renewed for this long is free.
pub(crate) const TTL: SignedDuration = SignedDuration::from_secs(60);

impl Holder {
    /// Describes this process.
    pub fn this_process(host: &str) -> Self {
        let pid = std::process::id();
        Self { host: host.to_owned(), boot: boot_id(), pid, started: started(pid).unwrap_or(0) }
    }

    /// Returns it as the catalog keeps it.
    pub(crate) fn to_json(&self) -> String {
        serde_json::to_string(self).expect("a holder is plain values")
    }

    pub(crate) fn from_json(text: &str) -> Option<Self> {
        serde_json::from_str(text).ok()
    }

    /// Returns whether this holder is certainly gone: a process of this machine that ended.
    pub(crate) fn is_gone(&self, me: &Self) -> bool {
        self.host == me.host && (self.boot != me.boot || started(self.pid) != Some(self.started))
    }
}

impl Catalog {
    /// Takes the lease on a source, or says who has it. One that a dead process held is free at once.
    pub async fn lease(
        &self,
        source: &str,
        me: &Holder,
        now: Timestamp,
    ) -> Result<Lease, LeaseError> {
        let now = self.time(now).await?;
        let holder = me.to_json();
        let until = (now + TTL).as_microsecond();
        // Free if nobody has it, if its time is up, or if the one that was seen to be gone still has it.
        let take = "INSERT INTO leases (source, token, holder, expires_at) VALUES ($1, 1, $2, $3) \
             ON CONFLICT (source) DO UPDATE \
             SET token = leases.token + 1, holder = excluded.holder, expires_at = excluded.expires_at \
             WHERE leases.expires_at < $4 OR leases.holder = $5";
        let mut gone = String::new();
        loop {
            let values = [
                source.into(),
                holder.clone().into(),
                until.into(),
                now.as_microsecond().into(),
                gone.clone().into(),
            ];
            let taken = self.execute("took a lease", take, values).await?;
            let select = "SELECT token, holder FROM leases WHERE source = $1";
            let row = self.query_one("looked at a lease", select, [source.into()]).await?;
            let unreadable = || CatalogError::Unreadable { name: format!("lease of {source}") };
            let row = row.ok_or_else(unreadable)?;
            let text: String = row.try_get("", "holder").map_err(|_| unreadable())?;
            if taken == 1 && text == holder {
                let token = row.try_get("", "token").map_err(|_| unreadable())?;
                return Ok(Lease { source: source.to_owned(), token, holder });
            }
            let other = Holder::from_json(&text).ok_or_else(unreadable)?;
            if text == gone || !other.is_gone(me) {
                return Err(LeaseError::Held {
                    source_name: source.to_owned(),
                    host: other.host,
                    pid: other.pid,
                });
            }
            gone = text;
        }
    }

    /// Keeps a lease for another while.
    pub async fn renew(&self, lease: &Lease, now: Timestamp) -> Result<(), LeaseError> {
        let now = self.time(now).await?;
        let update =
            "UPDATE leases SET expires_at = $1 WHERE source = $2 AND token = $3 AND holder = $4";
        let values = [
            (now + TTL).as_microsecond().into(),
            lease.source.clone().into(),
            lease.token.into(),
            lease.holder.clone().into(),
        ];
        match self.execute("renewed a lease", update, values).await? {
            1 => Ok(()),
            _ => Err(LeaseError::Lost { source_name: lease.source.clone() }),
        }
    }

    /// Gives a lease back. The row stays, so that its token goes on growing.
    pub async fn release(&self, lease: Lease) -> Result<(), LeaseError> {
        let update = "UPDATE leases SET expires_at = 0 WHERE source = $1 AND token = $2";
        self.execute("gave a lease back", update, [lease.source.into(), lease.token.into()])
            .await?;
        Ok(())
    }
}

fn boot_id() -> String {
    std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned()
}

/// Returns when a process started, or `None` if there is none.
fn started(pid: u32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name in parentheses may hold anything; the start time is the 22nd field, the 20th behind it.
    stat.rsplit_once(')')?.1.split_whitespace().nth(19)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Home, MasterKey};

    async fn catalog(dir: &std::path::Path) -> Catalog {
        let home = Home::open(&dir.join("home")).unwrap();
        let key = MasterKey::load(&home, None, None).unwrap();
        Catalog::open(&home, key).await.unwrap()
    }

    fn now() -> Timestamp {
        "2026-01-01T00:00:00Z".parse().unwrap()
    }

    #[tokio::test]
    async fn living_holder_keeps_its_lease_until_its_time_is_up_and_tokens_grow() {
        let dir = tempfile::tempdir().unwrap();
        let catalog = catalog(dir.path()).await;
        let here = Holder::this_process("a");
        let elsewhere = Holder { host: "b".to_owned(), ..here.clone() };
        let first = catalog.lease("shop", &elsewhere, now()).await.unwrap();
        let held = catalog.lease("shop", &here, now()).await.unwrap_err();
        assert!(matches!(held, LeaseError::Held { ref host, .. } if host == "b"), "{held}");
        let second =
            catalog.lease("shop", &here, now() + SignedDuration::from_secs(61)).await.unwrap();
        assert!(second.token > first.token);
        assert!(matches!(catalog.renew(&first, now()).await, Err(LeaseError::Lost { .. })));
        catalog.renew(&second, now()).await.unwrap();
        catalog.release(second).await.unwrap();
        catalog.lease("shop", &elsewhere, now()).await.unwrap();
    }

    #[tokio::test]
    async fn dead_process_of_this_machine_holds_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let catalog = catalog(dir.path()).await;
        let here = Holder::this_process("a");
        let dead = Holder { started: here.started + 1, ..here.clone() };
        catalog.lease("shop", &dead, now()).await.unwrap();
        catalog.lease("shop", &here, now()).await.unwrap();
        let rebooted = Holder { boot: "other".to_owned(), ..here.clone() };
        catalog.lease("files", &rebooted, now()).await.unwrap();
        catalog.lease("files", &here, now()).await.unwrap();
    }

    #[tokio::test]
    async fn of_many_who_ask_at_once_one_gets_the_lease() {
        let dir = tempfile::tempdir().unwrap();
        let catalog = catalog(dir.path()).await;
        let asking = (0..8).map(|i| {
            let (catalog, me) =
                (catalog.clone(), Holder { pid: i, ..Holder::this_process(&format!("host{i}")) });
            tokio::spawn(async move { catalog.lease("shop", &me, now()).await.is_ok() })
        });
        let mut winners = 0;
        for asked in asking.collect::<Vec<_>>() {
            winners += u32::from(asked.await.unwrap());
        }
        assert_eq!(winners, 1);
    }
}
