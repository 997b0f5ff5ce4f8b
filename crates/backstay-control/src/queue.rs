//! The queue: jobs that wait for somebody to do them, who does them, and what becomes of those whose worker died.
//!
//! Whoever holds the lease on a source works on it, and nobody else (ADR 15). So a job that is running under another lease
//! than its source has now is lost: its worker is gone, or about to notice.

use std::collections::HashMap;

use jiff::{SignedDuration, Timestamp};
use sea_orm::QueryResult;

use crate::catalog::{column, time_column, unreadable};
use crate::job::{JobId, JobKind, JobState, OfSource, Progress};
use crate::lease::RELEASED;
use crate::{Catalog, CatalogError, DueSlot, Holder, JobSpec, Lease, Seen, Since, Worker};

/// Tries of a job, at most, whose worker died each time: what kills workers must not go on for ever.
const MAX_ATTEMPTS: i64 = 3;
/// The pause before the second try of such a job; each further one is four times as long.
const FIRST_PAUSE: SignedDuration = SignedDuration::from_mins(1);
/// How often a job is tried again while something is out of order: with pauses that grow to an hour, for three hours and a half.
const OUTAGE_RETRIES: i64 = 6;
/// No job pauses for longer: one that says so has it from a clock that was set back.
const LONGEST_PAUSE: SignedDuration = SignedDuration::from_hours(1);
/// What changes a source is done soon or not at all: what somebody confirmed is not what he would confirm hours later.
const LONGEST_CONFIRMED: SignedDuration = SignedDuration::from_mins(15);
/// A job that nobody took up for so long is of a source that no server has.
const LONGEST_WAIT: SignedDuration = SignedDuration::from_hours(7 * 24);
/// How long the jobs are remembered that made backups, or did not.
const REMEMBERED: SignedDuration = SignedDuration::from_hours(90 * 24);

/// Tokens that no lease has: of a job that is being ended as lost, and of one that was begun without any.
const CONDEMNED: i64 = -1;
const NO_TOKEN: i64 = -2;

/// A job that waits for a worker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WaitingJob {
    /// Its id.
    pub id: JobId,
    /// Of which source.
    pub source: String,
    /// What is asked of it.
    pub spec: JobSpec,
    /// Whether a person asks, and waits for it; else the scheduler does.
    pub is_asked_for: bool,
}

/// A job that ended since its worker was gone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LostJob {
    /// Its id.
    pub id: JobId,
    /// Of which source.
    pub source: String,
    /// When the next try begins at the earliest; none if there were enough.
    pub next_try: Option<Timestamp>,
}

/// Why a job is tried again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Again {
    /// Its worker died.
    LeaseLost,
    /// Its worker was told to end, and nothing is wrong with the job: so much later.
    Interrupted {
        /// The pause: one on another machine may be told so again and again.
        after: SignedDuration,
    },
    /// It gave way to the app: so often at most, and so much later.
    GaveWay {
        /// How often a job is tried again.
        retries: u32,
        /// The pause before that.
        after: SignedDuration,
    },
    /// A storage, a server or the way to it is out of order: with pauses that grow, for some hours.
    Outage,
}

impl Catalog {
    /// Sees a source: one that nobody saw before is first seen now. So is one whose last slot lies in the future by more than
    /// this tolerance, which says that a clock was set back. Returns from where its slots are counted.
    pub async fn see(
        &self,
        source: &str,
        now: Timestamp,
        tolerance: SignedDuration,
    ) -> Result<Since, CatalogError> {
        let latest = now.checked_add(tolerance).unwrap_or(Timestamp::MAX).as_microsecond();
        let see = "INSERT INTO slots (source, first_seen) VALUES ($1, $2) ON CONFLICT (source) DO UPDATE \
                   SET first_seen = excluded.first_seen, last_slot = NULL WHERE slots.last_slot > $3 OR slots.first_seen > $3";
        let values = [source.into(), now.as_microsecond().into(), latest.into()];
        if self.execute("saw a source", see, values).await? == 1 {
            // What a wrong clock ran for slots that are still to come was not for these.
            let free = "UPDATE jobs SET slot = NULL WHERE source = $1 AND slot > $2";
            self.execute("freed slots", free, [source.into(), latest.into()]).await?;
        }
        let select = "SELECT first_seen, last_slot FROM slots WHERE source = $1";
        let row = self.query_one("looked for the last slot", select, [source.into()]).await?;
        Ok(seen(&row.ok_or_else(|| unreadable("slots", "source"))?)?.since())
    }

    /// Returns what is known of the slots of all sources that somebody saw.
    pub async fn slots(&self) -> Result<HashMap<String, Seen>, CatalogError> {
        let select = "SELECT source, first_seen, last_slot FROM slots";
        let rows = self.query_all("looked for the last slots", select, []).await?;
        rows.iter().map(|row| Ok((column(row, "slots", "source")?, seen(row)?))).collect()
    }

    /// Enqueues the backup of a slot, once, whoever else does; returns whether it was this call.
    pub async fn enqueue_slot(
        &self,
        (id, OfSource { organisation, source }): (String, OfSource<'_>),
        due: DueSlot,
        now: Timestamp,
    ) -> Result<bool, CatalogError> {
        let insert = "INSERT INTO jobs (id, source, kind, state, queued_at, holder, slot, organisation) \
                      SELECT $1, $2, $3, $4, $5, '', $6, $7 WHERE NOT EXISTS \
                      (SELECT 1 FROM jobs WHERE source = $2 AND state = $4 AND slot IS NOT NULL) \
                      ON CONFLICT (source, slot, attempt) DO NOTHING";
        let slot = due.slot.as_microsecond();
        let values = [
            id.into(),
            source.into(),
            JobKind::Backup.as_str().into(),
            JobState::Queued.as_str().into(),
            now.as_microsecond().into(),
            slot.into(),
            organisation.into(),
        ];
        let inserted = self.execute("enqueued a slot", insert, values).await?;
        // A retry that pauses need not pause any longer: another run is due.
        let hurry = "UPDATE jobs SET not_before = $1 WHERE source = $2 AND state = 'queued' AND slot < $3 AND not_before > $1";
        let values = [now.as_microsecond().into(), source.into(), slot.into()];
        self.execute("hurried a retry", hurry, values).await?;
        // Killed in between, the next turn inserts nothing and comes here again.
        let update = "UPDATE slots SET last_slot = $1 WHERE source = $2 AND (last_slot IS NULL OR last_slot < $1) \
                      AND EXISTS (SELECT 1 FROM jobs WHERE source = $2 AND slot = $1)";
        self.execute("kept the last slot", update, [slot.into(), source.into()]).await?;
        Ok(inserted == 1)
    }

    /// Enqueues what a person asks for: a member by way of a server, or a command. The same id again changes nothing.
    pub async fn enqueue(
        &self,
        (id, of): (String, OfSource<'_>),
        (spec, asked_by): (&JobSpec, Option<&str>),
        now: Timestamp,
    ) -> Result<JobId, CatalogError> {
        let insert = "INSERT INTO jobs (id, source, kind, state, queued_at, holder, spec, asked_by, organisation) \
                      VALUES ($1, $2, $3, $4, $5, '', $6, $7, $8) ON CONFLICT (id) DO NOTHING";
        let values = [
            id.clone().into(),
            of.source.into(),
            spec.kind().as_str().into(),
            JobState::Queued.as_str().into(),
            now.as_microsecond().into(),
            serde_json::to_string(spec).expect("a specification is plain values").into(),
            asked_by.into(),
            of.organisation.into(),
        ];
        self.execute("enqueued a job", insert, values).await?;
        Ok(JobId(id))
    }

    /// Returns jobs that may begin now, those first that waited longest.
    pub async fn waiting_jobs(&self, now: Timestamp) -> Result<Vec<WaitingJob>, CatalogError> {
        let changes = changes();
        let select = format!(
            "SELECT id, source, spec FROM jobs WHERE state = 'queued' AND (not_before <= $1 OR not_before > $2) \
             AND (kind NOT IN ({changes}) OR queued_at >= $3) ORDER BY queued_at, id"
        );
        let latest = now.checked_add(LONGEST_PAUSE).unwrap_or(Timestamp::MAX);
        let oldest = now.checked_sub(LONGEST_CONFIRMED).unwrap_or(Timestamp::MIN);
        let times = [now, latest, oldest].map(|time| time.as_microsecond().into());
        let rows = self.query_all("looked for waiting jobs", &select, times).await?;
        let jobs = rows.iter().map(waiting);
        // What a newer server is asked for waits for that one, and holds up nothing else.
        let is_newer = |error: &CatalogError| matches!(error, CatalogError::Unreadable { name } if name == "jobs.spec");
        jobs.filter(|job| !job.as_ref().is_err_and(is_newer)).collect()
    }

    /// Cancels what was to change a source and waited for too long.
    pub async fn cancel_stale_changes(&self, now: Timestamp) -> Result<(), CatalogError> {
        let changes = changes();
        let update = format!(
            "UPDATE jobs SET state = 'cancelled', finished_at = $1, error = 'it did not begin within 15 minutes, and nothing was changed; ask again' \
             WHERE state = 'queued' AND kind IN ({changes}) AND queued_at < $2"
        );
        let oldest = now.checked_sub(LONGEST_CONFIRMED).unwrap_or(Timestamp::MIN);
        let times = [now, oldest].map(|time| time.as_microsecond().into());
        self.execute("cancelled old jobs", &update, times).await.map(drop)
    }

    /// Takes a waiting job up, under the lease on its source. Returns whether it still waited.
    pub async fn begin_job(
        &self,
        job: &WaitingJob,
        lease: &Lease,
        worker: Option<&Worker>,
        now: Timestamp,
    ) -> Result<bool, CatalogError> {
        let update = "UPDATE jobs SET state = $1, holder = $2, token = $3, started_at = $4, worker = $7 \
                      WHERE id = $5 AND source = $6 AND state = 'queued'";
        let values = [
            JobState::Running.as_str().into(),
            lease.holder.clone().into(),
            lease.token.into(),
            now.as_microsecond().into(),
            job.id.0.clone().into(),
            lease.source.clone().into(),
            worker.map(|worker| worker.name.to_string()).into(),
        ];
        Ok(self.execute("began a job", update, values).await? == 1)
    }

    /// Returns a job that is running under this lease, and still counts as that.
    pub async fn job_under(
        &self,
        id: &str,
        lease: &Lease,
    ) -> Result<Option<WaitingJob>, CatalogError> {
        let select = "SELECT id, source, spec FROM jobs \
                      WHERE id = $1 AND source = $2 AND token = $3 AND holder = $4 AND state = 'running'";
        let values = [
            id.into(),
            lease.source.clone().into(),
            lease.token.into(),
            lease.holder.clone().into(),
        ];
        let row = self.query_one("looked for a job", select, values).await?;
        row.as_ref().map(waiting).transpose()
    }

    /// Puts a job back that was given out and that nobody heard of: it was never begun. Returns whether it still was given out.
    pub async fn recall_job(&self, job: &JobId, lease: &Lease) -> Result<bool, CatalogError> {
        let update = "UPDATE jobs SET state = 'queued', holder = '', token = NULL, started_at = NULL, worker = NULL \
                      WHERE id = $1 AND state = 'running' AND token = $2 AND holder = $3";
        let values = [job.0.clone().into(), lease.token.into(), lease.holder.clone().into()];
        Ok(self.execute("recalled a job", update, values).await? == 1)
    }

    /// Ends jobs that nobody took up, and forgets those that ended long ago, but for the newest of each source.
    pub async fn tidy_jobs(&self, now: Timestamp) -> Result<(), CatalogError> {
        let before =
            |age: SignedDuration| now.checked_sub(age).unwrap_or(Timestamp::MIN).as_microsecond();
        let end = "UPDATE jobs SET state = 'failed', finished_at = $1, error = 'no server took it up in a week: none has this source, or others went before it' \
                   WHERE state = 'queued' AND queued_at < $2";
        let values = [now.as_microsecond().into(), before(LONGEST_WAIT).into()];
        self.execute("ended jobs that nobody took up", end, values).await?;
        // The newest drill that went well says how long a restore takes.
        let delete = "DELETE FROM jobs WHERE kind IN ('backup', 'test', 'preview', 'drill') AND finished_at < $1 AND (kind IN ('test', 'preview') OR EXISTS \
                      (SELECT 1 FROM jobs n WHERE n.source = jobs.source AND n.kind = jobs.kind AND n.queued_at > jobs.queued_at \
                       AND (n.kind = 'backup' OR n.state = 'succeeded')))";
        self.execute("forgot old jobs", delete, [before(REMEMBERED).into()]).await.map(drop)
    }

    /// Ends the jobs whose workers are gone, and enqueues their next tries. Of a source whose lease the caller has just taken,
    /// those are all that run.
    pub async fn end_lost_jobs(
        &self,
        leased: Option<&str>,
        me: &Holder,
        now: Timestamp,
        mut id: impl FnMut() -> String,
    ) -> Result<Vec<LostJob>, CatalogError> {
        let select = "SELECT j.id, j.source, j.kind, j.spec, j.token, j.holder, j.cancel, l.token AS lease, l.expires_at FROM jobs j \
                      LEFT JOIN leases l ON l.source = j.source WHERE j.state IN ('leased', 'running') AND (j.source = $1 OR $1 = '')";
        let values = [leased.unwrap_or_default().into()];
        let mut lost = Vec::new();
        for row in self.query_all("looked for lost jobs", select, values).await? {
            if leased.is_none() && !is_lost(&row, me, now)? {
                continue;
            }
            let job = JobId(column(&row, "jobs", "id")?);
            let source: String = column(&row, "jobs", "source")?;
            if !self.condemn(&job, column(&row, "jobs", "token")?).await? {
                continue;
            }
            let wish: Option<String> = column(&row, "jobs", "cancel")?;
            let (state, error, next_try) = match wish {
                Some(reason) => (JobState::Cancelled, format!("cancelled: {reason}"), None),
                None => {
                    let next_try = self.try_again((id(), &job), Again::LeaseLost, now).await?;
                    let error = "lease lost: whoever worked on it died or was cut off".to_owned()
                        + &advice(&row, &source)?;
                    (JobState::Failed, error, next_try)
                }
            };
            if self.advance_job(&job, state, now, (Some(error), None)).await? {
                lost.push(LostJob { id: job, source, next_try });
            }
        }
        Ok(lost)
    }

    /// Takes a job out of the hands of whoever has it, unless somebody took it over since it was looked at. Killed behind this, it
    /// is lost all the same.
    async fn condemn(&self, job: &JobId, token: Option<i64>) -> Result<bool, CatalogError> {
        let update = "UPDATE jobs SET token = $1 WHERE id = $2 AND state IN ('leased', 'running') AND coalesce(token, $3) = $4";
        let values = [
            CONDEMNED.into(),
            job.0.clone().into(),
            NO_TOKEN.into(),
            token.unwrap_or(NO_TOKEN).into(),
        ];
        Ok(self.execute("condemned a job", update, values).await? == 1)
    }

    /// Enqueues the next try of a job that was in the queue and that was not ended yet: killed in between, the job is ended
    /// later, and has its next try already. Returns when that may begin; none if there is none. Whoever asked for a job hears of
    /// what is wrong with the source and decides himself; but that its worker died or ended says nothing about it.
    pub async fn try_again(
        &self,
        (id, job): (String, &JobId),
        why: Again,
        now: Timestamp,
    ) -> Result<Option<Timestamp>, CatalogError> {
        let kinds = match why {
            Again::LeaseLost | Again::Interrupted { .. } => "'backup', 'drill', 'import'",
            // Nobody waits for these.
            Again::GaveWay { .. } | Again::Outage => "'import'",
        };
        let select = format!(
            "SELECT lost, retries FROM jobs WHERE id = $1 AND (slot IS NOT NULL OR spec IS NOT NULL AND kind IN ({kinds}))"
        );
        let row = self.query_one("looked for a job", &select, [job.0.clone().into()]).await?;
        let Some(row) = row else { return Ok(None) };
        let (lost, retries) = (column(&row, "jobs", "lost")?, column(&row, "jobs", "retries")?);
        let Some((lost, retries, pause)) = next_try(why, lost, retries) else { return Ok(None) };
        let start = now.checked_add(pause).unwrap_or(now);
        // First its name, which stays whoever else comes here: so there is one next try.
        let name = "UPDATE jobs SET next_try = $1 WHERE id = $2 AND next_try IS NULL";
        self.execute("named another try", name, [id.into(), job.0.clone().into()]).await?;
        let insert = "INSERT INTO jobs (id, source, kind, state, queued_at, holder, slot, attempt, lost, retries, not_before, organisation, spec, asked_by) \
                      SELECT next_try, source, kind, $1, $2, '', slot, attempt + 1, $3, $4, $5, organisation, spec, asked_by FROM jobs \
                      WHERE id = $6 AND state IN ('leased', 'running') ON CONFLICT DO NOTHING";
        let values = [
            JobState::Queued.as_str().into(),
            now.as_microsecond().into(),
            lost.into(),
            retries.into(),
            start.as_microsecond().into(),
            job.0.clone().into(),
        ];
        self.execute("enqueued another try", insert, values).await?;
        Ok(Some(start))
    }

    /// Lets a run count for all slots up to this one.
    pub async fn cover_slots(&self, source: &str, slot: Timestamp) -> Result<(), CatalogError> {
        let update = "UPDATE slots SET last_slot = $1 WHERE source = $2 AND last_slot < $1";
        let values = [slot.as_microsecond().into(), source.into()];
        self.execute("kept the last slot", update, values).await.map(drop)
    }

    /// Cancels a job: at once if it waits, else by asking its worker.
    pub async fn cancel_job(
        &self,
        job: &JobId,
        reason: &str,
        now: Timestamp,
    ) -> Result<(), CatalogError> {
        let ask = "UPDATE jobs SET cancel = $1 WHERE id = $2 AND state IN ('queued', 'leased', 'running')";
        self.execute("cancelled a job", ask, [reason.into(), job.0.clone().into()]).await?;
        let end = "UPDATE jobs SET state = 'cancelled', finished_at = $1, error = $2 WHERE id = $3 AND state = 'queued'";
        let values = [now.as_microsecond().into(), reason.into(), job.0.clone().into()];
        self.execute("cancelled a job", end, values).await.map(drop)
    }

    /// Deletes a job that failed or was cancelled; any other stays.
    pub async fn delete_job(&self, job: &JobId) -> Result<(), CatalogError> {
        let delete = "DELETE FROM jobs WHERE id = $1 AND state IN ('failed', 'cancelled')";
        self.execute("deleted a job", delete, [job.0.clone().into()]).await.map(drop)
    }

    /// Returns why a job is to be cancelled, if it is.
    pub async fn wish_to_cancel(&self, job: &JobId) -> Result<Option<String>, CatalogError> {
        let select = "SELECT cancel FROM jobs WHERE id = $1";
        let row = self.query_one("looked at a job", select, [job.0.clone().into()]).await?;
        row.map_or(Ok(None), |row| column(&row, "jobs", "cancel"))
    }

    /// Keeps how far a job is.
    pub async fn keep_progress(
        &self,
        job: &JobId,
        progress: &Progress,
    ) -> Result<(), CatalogError> {
        let update = "UPDATE jobs SET progress = $1 WHERE id = $2";
        let text = serde_json::to_string(progress).expect("progress is plain values");
        self.execute("kept progress", update, [text.into(), job.0.clone().into()]).await.map(drop)
    }

    /// Keeps what was said while a job was done.
    pub async fn keep_log(&self, job: &JobId, log: &str) -> Result<(), CatalogError> {
        let update = "UPDATE jobs SET log = $1 WHERE id = $2";
        self.execute("kept a log", update, [log.into(), job.0.clone().into()]).await.map(drop)
    }

    /// Keeps what a job found, as JSON.
    pub async fn keep_result(&self, job: &JobId, result: &str) -> Result<(), CatalogError> {
        let update = "UPDATE jobs SET result = $1 WHERE id = $2";
        self.execute("kept a result", update, [result.into(), job.0.clone().into()]).await.map(drop)
    }
}

/// The kinds of jobs that change a source, as a list for SQL.
fn changes() -> String {
    JobKind::CHANGES.map(|kind| format!("'{}'", kind.as_str())).join(", ")
}

/// Says what to do about a change that was lost, from its row.
fn advice(row: &QueryResult, source: &str) -> Result<String, CatalogError> {
    let kind: String = column(row, "jobs", "kind")?;
    let spec: Option<String> = column(row, "jobs", "spec")?;
    let spec = spec.and_then(|spec| serde_json::from_str::<JobSpec>(&spec).ok());
    Ok(match spec {
        _ if JobKind::CHANGES.iter().all(|change| change.as_str() != kind) => String::new(),
        Some(spec) if spec.is_beside() => {
            "; nothing was replaced, and what it made beside may not be whole".to_owned()
        }
        _ => format!("; it may have been done: `backstay undo {source}` puts back what was there"),
    })
}

/// Returns how often it was lost and tried again by then, and the pause; none if it was tried often enough.
fn next_try(why: Again, lost: i64, retries: i64) -> Option<(i64, i64, SignedDuration)> {
    let growing = |tries: i64| {
        let factor = 4_i32.saturating_pow(u32::try_from(tries).unwrap_or(0));
        FIRST_PAUSE.saturating_mul(factor).min(LONGEST_PAUSE)
    };
    match why {
        Again::Interrupted { after } => Some((lost, retries, after)),
        Again::LeaseLost => (lost + 1 < MAX_ATTEMPTS).then(|| (lost + 1, retries, growing(lost))),
        Again::GaveWay { retries: most, after } => {
            (retries < i64::from(most)).then(|| (lost, retries + 1, after.min(LONGEST_PAUSE)))
        }
        Again::Outage => (retries < OUTAGE_RETRIES).then(|| (lost, retries + 1, growing(retries))),
    }
}

fn waiting(row: &QueryResult) -> Result<WaitingJob, CatalogError> {
    let text = |name| column(row, "jobs", name);
    let spec: Option<String> = column(row, "jobs", "spec")?;
    let parse = |text: String| serde_json::from_str(&text);
    let spec = spec.map(parse).transpose().map_err(|_| unreadable("jobs", "spec"))?;
    Ok(WaitingJob {
        id: JobId(text("id")?),
        source: text("source")?,
        is_asked_for: spec.as_ref().is_some_and(|spec: &JobSpec| !spec.is_of_server()),
        spec: spec.unwrap_or_default(),
    })
}

fn is_lost(row: &QueryResult, me: &Holder, now: Timestamp) -> Result<bool, CatalogError> {
    let number = |name| column::<Option<i64>>(row, "jobs", name);
    let holder = Holder::from_json(&column::<String>(row, "jobs", "holder")?);
    let (token, lease) = (number("token")?, number("lease")?);
    let expires_at = number("expires_at")?;
    let is_expired = expires_at.is_none_or(|until| until < now.as_microsecond());
    Ok(match holder {
        // Given back without a word of how the job ended.
        _ if expires_at == Some(RELEASED) => true,
        // Whatever the clock says: it goes on.
        Some(holder) if holder.is_alive(me) => token.is_some() && token != lease,
        Some(holder) if holder.is_gone(me) => true,
        _ => is_expired || token.is_some() && token != lease,
    })
}

fn seen(row: &QueryResult) -> Result<Seen, CatalogError> {
    let time = |name| time_column(row, "slots", name);
    let first = time("first_seen")?.ok_or_else(|| unreadable("slots", "first_seen"))?;
    Ok(Seen { first, last_slot: time("last_slot")? })
}
