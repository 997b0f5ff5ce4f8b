//! One writer for each source: a right that expires unless renewed.

use std::path::Path;
use std::sync::OnceLock;

use jiff::{SignedDuration, Timestamp};
use rustix::io::Errno;
use rustix::process::{Pid, test_kill_process};
use sea_orm::Value;
use serde::{Deserialize, Serialize};

use crate::catalog::column;
use crate::job::JobId;
use crate::{Catalog, CatalogError};

/// Who holds a lease: enough for another process of the same machine to see whether it still lives.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holder {
    /// The machine.
    pub host: String,
    /// Its own number, which it keeps; nothing where it has none, as in most containers.
    #[serde(default)]
    pub machine: String,
    /// Its boot; process ids mean nothing after another.
    pub boot: String,
    /// The namespace of its processes: containers of one machine number them by themselves.
    #[serde(default)]
    pub namespace: String,
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

impl Lease {
    /// Names a lease that somebody says to hold; whoever renews it finds out whether that is so.
    pub fn of(name: String, token: i64, holder: &Holder) -> Self {
        Self { source: name, token, holder: holder.to_json() }
    }

    /// Returns what it is the right to.
    pub fn name(&self) -> &str {
        &self.source
    }

    /// Returns its number, which grows with each holder.
    pub fn token(&self) -> i64 {
        self.token
    }

    /// Returns what it becomes in somebody else's hands.
    fn next(&self, holder: &Holder) -> Self {
        Self { source: self.source.clone(), token: self.token + 1, holder: holder.to_json() }
    }

    fn taking_over(&self, me: &Holder, now: Timestamp) -> (&'static str, [Value; 6]) {
        let update = "UPDATE leases SET token = token + 1, holder = $1, expires_at = $2 \
                      WHERE source = $3 AND token = $4 AND holder = $5 AND expires_at <> $6";
        let values = [
            me.to_json().into(),
            (now + TTL).as_microsecond().into(),
            self.source.clone().into(),
            self.token.into(),
            self.holder.clone().into(),
            RELEASED.into(),
        ];
        (update, values)
    }

    fn lost(&self) -> LeaseError {
        LeaseError::Lost { source_name: self.source.clone() }
    }
}

impl LeaseError {
    /// Says whether somebody else has it.
    pub fn is_held(&self) -> bool {
        matches!(self, Self::Held { .. })
    }
}

/// A lease that is not renewed for this long is free.
pub(crate) const TTL: SignedDuration = SignedDuration::from_secs(60);
/// When a lease ends that was given back.
pub(crate) const RELEASED: i64 = 0;

impl Holder {
    /// Describes this process.
    pub fn this_process(host: &str) -> Self {
        // The answers cannot change, and with too many open files there are none.
        static THIS: OnceLock<Holder> = OnceLock::new();
        let this = THIS.get().cloned().unwrap_or_else(|| {
            let this = Self::look();
            if this.started == 0 { this } else { THIS.get_or_init(|| this).clone() }
        });
        Self { host: host.to_owned(), ..this }
    }

    fn look() -> Self {
        let pid = std::process::id();
        Self {
            host: String::new(),
            machine: trimmed("/etc/machine-id"),
            boot: trimmed("/proc/sys/kernel/random/boot_id"),
            namespace: namespace(),
            pid,
            started: started(pid).ok().flatten().unwrap_or(0),
        }
    }

    fn holds(self, source: &str) -> LeaseError {
        LeaseError::Held { source_name: source.to_owned(), host: self.host, pid: self.pid }
    }

    /// Says whether a lease that ends then is its own still, as far as this process sees.
    fn keeps(&self, expires_at: i64, me: &Self, now: Timestamp) -> bool {
        if expires_at == RELEASED {
            return false;
        }
        // A machine that slept, or whose clock jumped: its process goes on where it was.
        self.is_alive(me) || expires_at >= now.as_microsecond() && !self.is_gone(me)
    }

    /// Returns it as the catalog keeps it.
    pub(crate) fn to_json(&self) -> String {
        serde_json::to_string(self).expect("a holder is plain values")
    }

    pub(crate) fn from_json(text: &str) -> Option<Self> {
        serde_json::from_str(text).ok()
    }

    /// Says whether this process is certainly gone: one that we would see, or one of this machine before it was started anew.
    pub(crate) fn is_gone(&self, me: &Self) -> bool {
        let is_of_this_machine =
            !me.machine.is_empty() && self.machine == me.machine && self.host == me.host;
        match self.boot == me.boot {
            true => {
                self.is_seen_by(me)
                    && matches!(started(self.pid), Ok(found) if found != Some(self.started))
            }
            false => is_of_this_machine,
        }
    }

    /// Says whether this process certainly lives.
    pub(crate) fn is_alive(&self, me: &Self) -> bool {
        self.is_seen_by(me) && matches!(started(self.pid), Ok(found) if found == Some(self.started))
    }

    fn is_seen_by(&self, me: &Self) -> bool {
        self.host == me.host && self.boot == me.boot && self.namespace == me.namespace
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
        self.lease_for(source, me, me, now).await
    }

    /// Takes the lease for somebody else: what is seen of other holders is what this process sees.
    pub async fn lease_for(
        &self,
        source: &str,
        holder: &Holder,
        me: &Holder,
        now: Timestamp,
    ) -> Result<Lease, LeaseError> {
        let now = self.time(now).await?;
        let holder = holder.to_json();
        let unreadable = || CatalogError::Unreadable { name: format!("lease of {source}") };
        let select = "SELECT token, holder, expires_at FROM leases WHERE source = $1";
        // Only as it was seen: whoever renews or takes it meanwhile keeps it.
        let take = "INSERT INTO leases (source, token, holder, expires_at) VALUES ($1, $2, $3, $4) \
             ON CONFLICT (source) DO UPDATE \
             SET token = excluded.token, holder = excluded.holder, expires_at = excluded.expires_at \
             WHERE leases.token = $5 AND leases.expires_at = $6";
        loop {
            let row = self.query_one("looked at a lease", select, [source.into()]).await?;
            let (seen, expires_at) = match row {
                None => (0, 0),
                Some(row) => {
                    let number = |name| row.try_get::<i64>("", name).map_err(|_| unreadable());
                    let text: String = row.try_get("", "holder").map_err(|_| unreadable())?;
                    let (seen, expires_at) = (number("token")?, number("expires_at")?);
                    match Holder::from_json(&text) {
                        Some(other) if other.keeps(expires_at, me, now) => {
                            return Err(other.holds(source));
                        }
                        None if expires_at != RELEASED && expires_at >= now.as_microsecond() => {
                            return Err(unreadable().into());
                        }
                        _ => {}
                    }
                    (seen, expires_at)
                }
            };
            let values = [
                source.into(),
                (seen + 1).into(),
                holder.clone().into(),
                (now + TTL).as_microsecond().into(),
                seen.into(),
                expires_at.into(),
            ];
            if self.execute("took a lease", take, values).await? == 1 {
                return Ok(Lease { source: source.to_owned(), token: seen + 1, holder });
            }
        }
    }

    /// Keeps a lease for another while.
    pub async fn renew(&self, lease: &Lease, now: Timestamp) -> Result<(), LeaseError> {
        let now = self.time(now).await?;
        let update = "UPDATE leases SET expires_at = $1 WHERE source = $2 AND token = $3 AND holder = $4 AND expires_at <> $5";
        let values = [
            (now + TTL).as_microsecond().into(),
            lease.source.clone().into(),
            lease.token.into(),
            lease.holder.clone().into(),
            // What was given back is nobody's any more.
            RELEASED.into(),
        ];
        match self.execute("renewed a lease", update, values).await? {
            1 => Ok(()),
            _ => Err(lease.lost()),
        }
    }

    /// Takes a lease over from whoever holds it, in his stead: from now on he holds it no more.
    pub async fn take_over(
        &self,
        lease: &Lease,
        me: &Holder,
        now: Timestamp,
    ) -> Result<Lease, LeaseError> {
        let now = self.time(now).await?;
        let (sql, values) = lease.taking_over(me, now);
        match self.execute("took a lease over", sql, values).await? {
            1 => Ok(lease.next(me)),
            _ => Err(lease.lost()),
        }
    }

    /// Takes a running job over together with the lease on its source: both or neither.
    pub async fn take_over_job(
        &self,
        job: &JobId,
        lease: &Lease,
        me: &Holder,
        now: Timestamp,
    ) -> Result<Lease, LeaseError> {
        let (now, next) = (self.time(now).await?, lease.next(me));
        let (sql, values) = lease.taking_over(me, now);
        let hand_over = "UPDATE jobs SET token = $1, holder = $2 WHERE id = $3 AND state = 'running' AND token = $4";
        let job = [
            next.token.into(),
            next.holder.clone().into(),
            job.0.clone().into(),
            lease.token.into(),
        ];
        let done = self
            .all_or_none("took a job over", vec![(sql, values.into()), (hand_over, job.into())]);
        if done.await? { Ok(next) } else { Err(lease.lost()) }
    }

    /// Says who holds a lease now, as the error that whoever wants it would get.
    pub async fn held(
        &self,
        source: &str,
        me: &Holder,
        now: Timestamp,
    ) -> Result<Option<LeaseError>, CatalogError> {
        let now = self.time(now).await?;
        let select = "SELECT holder, expires_at FROM leases WHERE source = $1";
        let row = self.query_one("looked at a lease", select, [source.into()]).await?;
        let Some(row) = row else { return Ok(None) };
        let holder = Holder::from_json(&column::<String>(&row, "leases", "holder")?);
        let expires_at = column(&row, "leases", "expires_at")?;
        let held = holder.filter(|holder| holder.keeps(expires_at, me, now));
        Ok(held.map(|holder| holder.holds(source)))
    }

    /// Gives a lease back. The row stays, so that its token goes on growing.
    pub async fn release(&self, lease: &Lease) -> Result<(), LeaseError> {
        let update = "UPDATE leases SET expires_at = $1 WHERE source = $2 AND token = $3";
        let values = [RELEASED.into(), lease.source.clone().into(), lease.token.into()];
        self.execute("gave a lease back", update, values).await?;
        Ok(())
    }
}

fn trimmed(path: &str) -> String {
    std::fs::read_to_string(path).unwrap_or_default().trim().to_owned()
}

fn namespace() -> String {
    let link = std::fs::read_link("/proc/self/ns/pid");
    link.map(|link| link.display().to_string()).unwrap_or_default()
}

/// Returns when a process started, or `None` if there is none. Fails if that cannot be seen now, such as with too many open
/// files: that tells nothing of the process.
fn started(pid: u32) -> std::io::Result<Option<u64>> {
    started_in(Path::new("/proc"), pid)
}

fn started_in(proc: &Path, pid: u32) -> std::io::Result<Option<u64>> {
    let stat = match std::fs::read_to_string(proc.join(pid.to_string()).join("stat")) {
        // The processes of other users may be hidden there (`hidepid`, systemd's `ProtectProc=`); from a signal they are not.
        Err(error) if error.kind() == std::io::ErrorKind::NotFound && !exists(pid) => {
            return Ok(None);
        }
        stat => stat?,
    };
    // The name in parentheses may hold anything; the start time is the 22nd field, the 20th behind it.
    let time = stat.rsplit_once(')').and_then(|(_, rest)| rest.split_whitespace().nth(19));
    Ok(time.and_then(|time| time.parse().ok()))
}

fn exists(pid: u32) -> bool {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw);
    pid.is_some_and(|pid| test_kill_process(pid) != Err(Errno::SRCH))
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
        catalog.release(&second).await.unwrap();
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
        let here = Holder { machine: "4711".to_owned(), ..here };
        let rebooted = Holder { boot: "other".to_owned(), ..here.clone() };
        catalog.lease("files", &rebooted, now()).await.unwrap();
        catalog.lease("files", &here, now()).await.unwrap();
    }

    #[tokio::test]
    async fn process_that_is_not_seen_from_here_keeps_its_lease_until_its_time_is_up() {
        let dir = tempfile::tempdir().unwrap();
        let catalog = catalog(dir.path()).await;
        let here = Holder { machine: "4711".to_owned(), ..Holder::this_process("web") };
        let dead = Holder { started: here.started + 1, ..here.clone() };
        // A container beside ours, a machine that has our name, a container without a number.
        let beside = Holder { namespace: "pid:[1]".to_owned(), ..dead.clone() };
        let namesake = Holder { machine: "0815".to_owned(), boot: "b".to_owned(), ..dead.clone() };
        let nameless = Holder { machine: String::new(), boot: "c".to_owned(), ..dead };
        for (source, other) in [("a", beside), ("b", namesake), ("c", nameless)] {
            catalog.lease(source, &other, now()).await.unwrap();
            assert!(catalog.lease(source, &here, now()).await.unwrap_err().is_held(), "{source}");
            let later = now() + TTL + SignedDuration::from_secs(1);
            catalog.lease(source, &here, later).await.unwrap();
        }
    }

    #[test]
    fn process_that_is_hidden_is_not_taken_for_one_that_ended() {
        let hiding = tempfile::tempdir().unwrap();
        assert!(started_in(hiding.path(), std::process::id()).is_err());
        let mut child = std::process::Command::new("true").spawn().unwrap();
        child.wait().unwrap();
        assert_eq!(started_in(hiding.path(), child.id()).unwrap(), None);
    }

    #[tokio::test]
    async fn process_that_lives_keeps_its_lease_though_the_clock_jumped() {
        let dir = tempfile::tempdir().unwrap();
        let catalog = catalog(dir.path()).await;
        let here = Holder::this_process("a");
        let lease = catalog.lease("shop", &here, now()).await.unwrap();
        let in_an_hour = now() + SignedDuration::from_hours(1);
        let other = Holder { pid: 1, ..here };
        assert!(catalog.lease("shop", &other, in_an_hour).await.unwrap_err().is_held());
        catalog.renew(&lease, in_an_hour).await.unwrap();
        catalog.release(&lease).await.unwrap();
        catalog.lease("shop", &other, in_an_hour).await.unwrap();
    }

    #[tokio::test]
    async fn lease_that_a_process_elsewhere_has_is_not_given_to_it_again() {
        let dir = tempfile::tempdir().unwrap();
        let catalog = catalog(dir.path()).await;
        let me = Holder::this_process("here");
        let worker = Holder {
            host: "db1".to_owned(),
            boot: "worker 1".to_owned(),
            started: 0,
            ..me.clone()
        };
        let lease = catalog.lease_for("shop", &worker, &me, now()).await.unwrap();
        let again = catalog.lease_for("shop", &worker, &me, now()).await;
        assert!(again.unwrap_err().is_held());
        assert!(catalog.held("shop", &me, now()).await.unwrap().is_some());
        catalog.release(&lease).await.unwrap();
        assert!(catalog.held("shop", &me, now()).await.unwrap().is_none());
        // What was given back does not come to life again.
        assert!(matches!(catalog.renew(&lease, now()).await, Err(LeaseError::Lost { .. })));
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
