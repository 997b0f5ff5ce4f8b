//! Jobs: what was asked for, what became of it. The ground that `status` stands on.

use std::collections::HashSet;

use jiff::{SignedDuration, Timestamp};
use sea_orm::QueryResult;
use serde::{Deserialize, Serialize};

use crate::catalog::{column, time_column, unreadable};
use crate::{Catalog, CatalogError, Holder, JobSpec};

/// Names a job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JobId(pub(crate) String);

impl JobId {
    /// Reads an id: a number of 64 bits, as it is written without anything before it.
    pub fn parse(text: &str) -> Option<Self> {
        let number = text.parse::<u64>().ok()?.to_string();
        (number == text).then_some(Self(number))
    }

    /// Returns it as the catalog and JSON have it.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Of what a job is: a source, and whose that is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OfSource<'a> {
    /// The organisation's name.
    pub organisation: &'a str,
    /// The source's name, which no other source of the catalog has.
    pub source: &'a str,
}

/// Whose jobs are meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Whose<'a> {
    /// All that there are.
    All,
    /// Those of an organisation.
    Organisation(&'a str),
    /// Those of a source.
    Source(&'a str),
}

/// What a job is to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum JobKind {
    /// A backup.
    Backup,
    /// A restore.
    Restore,
    /// A restore into a scratch place.
    Drill,
    /// A look at a source, by whoever would back it up.
    Test,
    /// A backup of what another program dumped.
    Import,
    /// A look at what a restore would do.
    Preview,
    /// Putting back what a restore replaced.
    Undo,
    /// Letting go of what a restore replaced.
    Confirm,
}

/// How far a job is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum JobState {
    /// It waits.
    Queued,
    /// Somebody has taken it.
    Leased,
    /// It is being done.
    Running,
    /// All went well.
    Succeeded,
    /// A backup was made, but items are missing from it.
    Incomplete,
    /// It failed.
    Failed,
    /// It was told to stop.
    Cancelled,
}

impl JobKind {
    /// Those that change what the source's app sees.
    pub(crate) const CHANGES: [Self; 3] = [Self::Restore, Self::Undo, Self::Confirm];

    /// Returns the word for it in the catalog and in JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Backup => "backup",
            Self::Restore => "restore",
            Self::Drill => "drill",
            Self::Test => "test",
            Self::Import => "import",
            Self::Preview => "preview",
            Self::Undo => "undo",
            Self::Confirm => "confirm",
        }
    }
}

impl JobState {
    const ALL: [Self; 7] = [
        Self::Queued,
        Self::Leased,
        Self::Running,
        Self::Succeeded,
        Self::Incomplete,
        Self::Failed,
        Self::Cancelled,
    ];

    /// Returns the word for it in the catalog and in JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Leased => "leased",
            Self::Running => "running",
            Self::Succeeded => "succeeded",
            Self::Incomplete => "incomplete",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
        }
    }

    /// The transition table: what a job may become. What has ended stays as it is.
    pub fn may_become(self, next: Self) -> bool {
        match self {
            Self::Queued => matches!(next, Self::Leased | Self::Cancelled),
            // A lease that is lost before the work began costs an attempt, too.
            Self::Leased => matches!(next, Self::Running | Self::Failed | Self::Cancelled),
            Self::Running => {
                matches!(next, Self::Succeeded | Self::Incomplete | Self::Failed | Self::Cancelled)
            }
            Self::Succeeded | Self::Incomplete | Self::Failed | Self::Cancelled => false,
        }
    }

    /// The states that may become this one, as a list for SQL.
    fn predecessors(self) -> String {
        let before = Self::ALL.into_iter().filter(|state| state.may_become(self));
        before.map(|state| format!("'{}'", state.as_str())).collect::<Vec<_>>().join(", ")
    }

    fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|state| state.as_str() == text)
    }
}

/// A job as the catalog remembers it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Job {
    /// Its id.
    pub id: JobId,
    /// Of which organisation; empty of one that is older than organisations, until a server has seen it.
    pub organisation: String,
    /// Of which source.
    pub source: String,
    /// The word for what it does.
    pub kind: String,
    /// How far it is, or how it ended.
    pub state: JobState,
    /// Which slot of the schedule it is for, if it is.
    pub slot: Option<Timestamp>,
    /// Which try it is, from 1.
    pub attempt: u32,
    /// The job that is the next try, if there is one.
    pub next_try: Option<JobId>,
    /// When it was asked for.
    pub queued_at: Timestamp,
    /// It does not begin before.
    pub not_before: Timestamp,
    /// When it began.
    pub started_at: Option<Timestamp>,
    /// When it ended.
    pub finished_at: Option<Timestamp>,
    /// What went wrong.
    pub error: Option<String>,
    /// The backup that it made or restored.
    pub backup: Option<String>,
    /// What was said meanwhile, line by line.
    pub log: Option<String>,
    /// What it found, in JSON for whoever asked.
    pub result: Option<String>,
    /// How far it is, or was when somebody wrote it down last.
    pub progress: Option<Progress>,
    /// The name of the worker on another machine that it was given to, if it was.
    pub worker: Option<String>,
    /// The member who asked for it by way of a server, if one did.
    pub asked_by: Option<String>,
    /// Whether it was put into the queue, for whoever takes it up; else a command does it.
    pub is_queued_work: bool,
    /// What was asked of it, if somebody asked, as far as this program understands it.
    pub spec: Option<JobSpec>,
}

/// How far a job is: which part it is at.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    /// The name of the part.
    pub part: String,
    /// Plain bytes of it that went through.
    pub plain_bytes: u64,
    /// Plain bytes that are expected, if anybody knows.
    pub estimate_bytes: Option<u64>,
}

/// A restore that went well.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PastRestore {
    /// Of which backup.
    pub backup: String,
    /// From the moment that a person had said yes.
    pub took: SignedDuration,
}

impl Job {
    /// Returns of what it is.
    pub fn of(&self) -> OfSource<'_> {
        OfSource { organisation: &self.organisation, source: &self.source }
    }
}

impl Catalog {
    /// Takes up a job that this process does at once: queued, leased and running in one go.
    pub async fn start_job(
        &self,
        (id, of): (String, OfSource<'_>),
        kind: JobKind,
        holder: &Holder,
        now: Timestamp,
    ) -> Result<JobId, CatalogError> {
        let insert = "INSERT INTO jobs (id, source, kind, state, queued_at, started_at, holder, organisation) VALUES ($1, $2, $3, $4, $5, $5, $6, $7)";
        let values = [
            id.clone().into(),
            of.source.into(),
            kind.as_str().into(),
            JobState::Running.as_str().into(),
            now.as_microsecond().into(),
            holder.to_json().into(),
            of.organisation.into(),
        ];
        // Written once: each write waits for the disk, and nobody sees the states in between.
        self.execute("began a job", insert, values).await?;
        Ok(JobId(id))
    }

    /// Moves a job on, as the transition table allows. One that has ended meanwhile stays as it is; returns whether it moved.
    pub async fn advance_job(
        &self,
        job: &JobId,
        state: JobState,
        now: Timestamp,
        (error, backup): (Option<String>, Option<String>),
    ) -> Result<bool, CatalogError> {
        let update = format!(
            "UPDATE jobs SET state = $1, finished_at = $2, error = $3, backup = $4 WHERE id = $5 AND state IN ({})",
            state.predecessors()
        );
        let values = [
            state.as_str().into(),
            now.as_microsecond().into(),
            error.into(),
            backup.into(),
            job.0.clone().into(),
        ];
        Ok(self.execute("moved a job on", &update, values).await? == 1)
    }

    /// Returns the newest restore of a source that went well, in earnest or as a drill.
    pub async fn last_restore(
        &self,
        of: OfSource<'_>,
    ) -> Result<Option<PastRestore>, CatalogError> {
        // One that a worker did waited for it first.
        let select = "SELECT backup, coalesce(started_at, queued_at) AS begun_at, finished_at FROM jobs \
                      WHERE source = $1 AND organisation IN ($2, '') AND kind IN ('restore', 'drill') \
                      AND state = 'succeeded' AND backup IS NOT NULL ORDER BY queued_at DESC LIMIT 1";
        let Some(row) = self
            .query_one("looked for jobs", select, [of.source.into(), of.organisation.into()])
            .await?
        else {
            return Ok(None);
        };
        let unreadable = |_| CatalogError::Unreadable { name: "jobs".to_owned() };
        let micros = |name| row.try_get::<i64>("", name).map_err(unreadable);
        let took = SignedDuration::from_micros(micros("finished_at")? - micros("begun_at")?);
        Ok(Some(PastRestore { backup: row.try_get("", "backup").map_err(unreadable)?, took }))
    }

    /// Returns the newest backup job of a source that was begun.
    pub async fn last_backup_job(&self, of: OfSource<'_>) -> Result<Option<Job>, CatalogError> {
        self.last(of, JobKind::Backup, "state <> 'queued' ORDER BY queued_at DESC, attempt DESC")
            .await
    }

    /// Returns the newest backup job of a source that ended by itself, well or not.
    pub async fn last_run(&self, of: OfSource<'_>) -> Result<Option<Job>, CatalogError> {
        let ended = "state IN ('succeeded', 'incomplete', 'failed') ORDER BY finished_at DESC";
        self.last(of, JobKind::Backup, ended).await
    }

    /// Returns the newest job of a source that imports, or is to.
    pub async fn last_import(&self, of: OfSource<'_>) -> Result<Option<Job>, CatalogError> {
        self.last(of, JobKind::Import, "1 = 1 ORDER BY queued_at DESC, attempt DESC").await
    }

    /// Returns the first job of a source and of this kind in this order.
    async fn last(
        &self,
        of: OfSource<'_>,
        kind: JobKind,
        which: &str,
    ) -> Result<Option<Job>, CatalogError> {
        let select = format!(
            "SELECT {COLUMNS} FROM jobs WHERE source = $1 AND organisation IN ($2, '') AND kind = $3 AND {which} LIMIT 1"
        );
        let values = [of.source.into(), of.organisation.into(), kind.as_str().into()];
        let row = self.query_one("looked for jobs", &select, values).await?;
        row.as_ref().map(read).transpose()
    }

    /// Returns the sources whose backups wait, or are under way under a lease that has not run out.
    pub async fn sources_at_work(&self, now: Timestamp) -> Result<HashSet<String>, CatalogError> {
        let select = "SELECT DISTINCT j.source FROM jobs j LEFT JOIN leases l ON l.source = j.source WHERE j.kind = 'backup' \
                      AND (j.state = 'queued' OR j.state IN ('leased', 'running') AND l.expires_at >= $1)";
        let values = [self.time(now).await?.as_microsecond().into()];
        let rows = self.query_all("looked for jobs", select, values).await?;
        rows.iter().map(|row| column(row, "jobs", "source")).collect()
    }

    /// Returns the newest jobs of somebody.
    pub async fn jobs(&self, whose: Whose<'_>, limit: u32) -> Result<Vec<Job>, CatalogError> {
        // Several questions: the database chooses the way to one that is two by what is worse.
        let (which, name) = match whose {
            Whose::All => ("$1 = ''", ""),
            Whose::Organisation(name) => ("organisation = $1", name),
            Whose::Source(name) => ("source = $1", name),
        };
        let select = format!(
            "SELECT {COLUMNS} FROM jobs WHERE {which} ORDER BY queued_at DESC, attempt DESC, id LIMIT $2"
        );
        let values = [name.into(), i64::from(limit).into()];
        self.query_all("looked for jobs", &select, values).await?.iter().map(read).collect()
    }

    /// Gives jobs that are older than organisations to those of their sources.
    pub async fn adopt_jobs<'a>(
        &self,
        whose: impl Fn(&str) -> &'a str,
    ) -> Result<(), CatalogError> {
        let select = "SELECT DISTINCT source FROM jobs WHERE organisation = ''";
        for row in self.query_all("looked for jobs", select, []).await? {
            let source: String = column(&row, "jobs", "source")?;
            let update =
                "UPDATE jobs SET organisation = $1 WHERE organisation = '' AND source = $2";
            let values = [whose(&source).into(), source.into()];
            self.execute("adopted jobs", update, values).await?;
        }
        Ok(())
    }

    /// Returns a job; none if it was forgotten.
    pub async fn job(&self, id: &JobId) -> Result<Option<Job>, CatalogError> {
        let select = format!("SELECT {COLUMNS} FROM jobs WHERE id = $1");
        let row = self.query_one("looked for a job", &select, [id.0.clone().into()]).await?;
        row.as_ref().map(read).transpose()
    }

    /// Returns the jobs of an organisation, or of all, whose ids begin so, that with this very id first; two are enough to say
    /// that there are several.
    pub async fn jobs_by_id(
        &self,
        beginning: &str,
        organisation: Option<&str>,
    ) -> Result<Vec<Job>, CatalogError> {
        if !beginning.bytes().all(|digit| digit.is_ascii_digit()) {
            return Ok(Vec::new());
        }
        // Digits have the same order in every language, so that the key finds them.
        let select = format!(
            "SELECT {COLUMNS} FROM jobs WHERE id >= $1 AND id <= $2 AND (organisation = $3 OR $3 = '') ORDER BY id LIMIT 2"
        );
        let last = format!("{beginning:9<20}");
        let whose = organisation.unwrap_or_default();
        let values = [beginning.into(), last.into(), whose.into()];
        let rows = self.query_all("looked for jobs", &select, values).await?;
        rows.iter().map(read).collect()
    }
}

const COLUMNS: &str = "id, source, kind, state, slot, attempt, queued_at, not_before, started_at, finished_at, error, backup, log, result, progress, worker, asked_by, spec, organisation, \
    (SELECT n.id FROM jobs n WHERE n.id = jobs.next_try) AS next_try";

fn read(row: &QueryResult) -> Result<Job, CatalogError> {
    let text = |name| column::<String>(row, "jobs", name);
    let perhaps = |name| column::<Option<String>>(row, "jobs", name);
    let time = |name| time_column(row, "jobs", name);
    let attempt: i64 = column(row, "jobs", "attempt")?;
    Ok(Job {
        id: JobId(text("id")?),
        organisation: text("organisation")?,
        source: text("source")?,
        kind: text("kind")?,
        state: JobState::parse(&text("state")?).ok_or_else(|| unreadable("jobs", "state"))?,
        slot: time("slot")?,
        attempt: u32::try_from(attempt).unwrap_or(1),
        next_try: perhaps("next_try")?.map(JobId),
        queued_at: time("queued_at")?.ok_or_else(|| unreadable("jobs", "queued_at"))?,
        not_before: time("not_before")?.unwrap_or_default(),
        started_at: time("started_at")?,
        finished_at: time("finished_at")?,
        error: perhaps("error")?,
        backup: perhaps("backup")?,
        log: perhaps("log")?,
        result: perhaps("result")?,
        // What a newer program wrote there is no reason to show no job.
        progress: perhaps("progress")?.and_then(|text| serde_json::from_str(&text).ok()),
        worker: perhaps("worker")?,
        asked_by: perhaps("asked_by")?,
        is_queued_work: time("slot")?.is_some() || perhaps("spec")?.is_some(),
        spec: perhaps("spec")?.and_then(|text| serde_json::from_str(&text).ok()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Home, MasterKey};

    #[tokio::test]
    async fn job_moves_only_by_the_table_and_a_dead_process_fails_it() {
        let dir = tempfile::tempdir().unwrap();
        let home = Home::open(&dir.path().join("home")).unwrap();
        let catalog =
            Catalog::open(&home, MasterKey::load(&home, None, None).unwrap()).await.unwrap();
        let (me, now) = (Holder::this_process("a"), "2026-01-01T00:00:00Z".parse().unwrap());
        let shop = OfSource { organisation: "default", source: "shop" };
        let start = async |id: &str, holder: &Holder| {
            let name = (id.to_owned(), shop);
            catalog.start_job(name, JobKind::Backup, holder, now).await.unwrap()
        };
        let state = async || catalog.last_backup_job(shop).await.unwrap().unwrap().state;
        let job = start("1", &me).await;
        assert_eq!(state().await, JobState::Running);
        catalog.advance_job(&job, JobState::Succeeded, now, (None, None)).await.unwrap();
        catalog.advance_job(&job, JobState::Failed, now, (None, None)).await.unwrap();
        assert_eq!(state().await, JobState::Succeeded);

        let later = now + jiff::SignedDuration::from_secs(1);
        let dead = Holder { started: me.started + 1, ..me.clone() };
        let name = ("2".to_owned(), shop);
        catalog.start_job(name, JobKind::Backup, &dead, later).await.unwrap();
        catalog.end_lost_jobs(Some("shop"), &me, later, || "3".to_owned()).await.unwrap();
        let last = catalog.last_backup_job(shop).await.unwrap().unwrap();
        assert_eq!(last.state, JobState::Failed);
        assert!(last.error.unwrap().contains("lease lost"));
    }

    #[test]
    fn every_state_can_be_reached_and_ends_are_ends() {
        for state in JobState::ALL {
            let reached = JobState::ALL.iter().any(|before| before.may_become(state));
            assert_eq!(reached, state != JobState::Queued, "{state:?}");
            let goes_on = JobState::ALL.iter().any(|next| state.may_become(*next));
            let open = matches!(state, JobState::Queued | JobState::Leased | JobState::Running);
            assert_eq!(goes_on, open, "{state:?}");
        }
    }
}
