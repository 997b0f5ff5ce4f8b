//! Sources that workers on other machines read: asking for what is to be done there, and whether anybody is there to do it (ADR 19).

use std::time::Duration;

use anyhow::Context as _;
use backstay_control::{
    BackupSpec, CatalogError, Holder, Job, JobId, JobSpec, JobState, Progress, RestoreSpec, Worker,
};
use backstay_engine::cx::Cx;
use backstay_engine::event::Event;
use backstay_engine::source::Probe;
use backstay_format::{BackupId, IndexEntry, Slug, Trigger};
use backstay_server::{RestoreWish, Work};
use jiff::{SignedDuration, Timestamp};
use serde_json::Value;

use super::backup::{HELD, Made};
use super::drill::DrillReport;
use super::restore::{Wanted, choose};
use crate::config::{RemoteConfig, SourceConfig};
use crate::exit::UsageError;
use crate::installation::{Installation, host, new_job_id};
use crate::{plain, render};

/// A worker that has not asked for work for this long is not there: it asks at least every half minute.
const GONE_AFTER: SignedDuration = SignedDuration::from_secs(90);
/// The pause between two looks at a job that somebody else does.
const LOOK: Duration = Duration::from_millis(500);

/// Says whether a worker asked for work lately, and did not say that it ends.
pub(super) fn is_there(worker: &Worker, now: Timestamp) -> bool {
    worker.left_at.is_none() && now.duration_since(worker.seen_at).abs() <= GONE_AFTER
}

/// Says why no worker would take a source's jobs now, or this one; none if somebody would, or if it is no worker's.
pub(super) async fn nobody_takes(
    app: &Installation,
    source: &SourceConfig,
    spec: Option<&JobSpec>,
) -> anyhow::Result<Option<String>> {
    let Some(remote) = source.remote() else { return Ok(None) };
    let bound_to = bound_to(app, source, spec).await?;
    let now = app.catalog.time(app.cx.now()).await?;
    let all = app.catalog.workers().await.context("cannot look for workers")?;
    let can = |worker: &&Worker| {
        remote.worker.takes(worker) && bound_to.as_ref().is_none_or(|name| *name == worker.name)
    };
    let known: Vec<&Worker> = all.iter().filter(can).collect();
    if known.iter().any(|worker| is_there(worker, now)) {
        return Ok(None);
    }
    let last = known.iter().max_by_key(|worker| worker.seen_at).map_or_else(
        || "there never was one; `backstay workers invite` makes a token for it".to_owned(),
        |worker| match worker.host.as_str() {
            "" => format!("{worker} has not asked since it was recovered"),
            host => match worker.left_at {
                Some(at) => format!("{worker} was ended at {at:.0}, on {host}"),
                None => format!("{worker} was there last at {:.0}, on {host}", worker.seen_at),
            },
        },
    );
    let wanted = bound_to.as_ref().map_or_else(
        || remote.worker.to_string(),
        |name| format!("worker {name}, which made the preview or keeps what was there before the last restore, until `backstay workers revoke {name}`"),
    );
    Ok(Some(format!("no worker is there for it: it wants {wanted}, and {last}")))
}

/// What a look at a source found, in words. Of one by a worker it is the job's log: the summary, then each warning.
pub(super) struct Look {
    /// How large it is, and of which engine.
    pub(super) summary: String,
    /// What a person should know before a backup.
    pub(super) warnings: Vec<String>,
}

impl Look {
    /// Reads it from the log of a job.
    pub(super) fn of_log(log: &str) -> Self {
        let mut lines = log.lines().map(str::to_owned);
        let summary = lines.next().unwrap_or_default();
        Self { summary, warnings: lines.collect() }
    }
}

/// Looks at a source as a backup would, here.
pub(super) async fn look_here(app: &Installation, source: &SourceConfig) -> anyhow::Result<Look> {
    let Probe { engine, size_bytes, mut warnings, .. } =
        app.engine_source(source)?.probe(&app.cx).await?;
    warnings.extend(app.hits_home(&source.kind, &[]));
    let engine = engine.map(|engine| format!(", {engine}")).unwrap_or_default();
    let summary = format!("can be read, about {}{engine}", render::size(size_bytes));
    Ok(Look { summary, warnings })
}

/// Looks at a source as a backup would: here, or by its worker.
pub(super) async fn look(app: &Installation, source: &SourceConfig) -> anyhow::Result<Look> {
    let Some(remote) = source.remote() else { return look_here(app, source).await };
    let job = ask(app, (source, remote), &JobSpec::Test).await?;
    if let Some(error) = job.error {
        anyhow::bail!(error);
    }
    Ok(Look::of_log(&job.log.unwrap_or_default()))
}

/// Asks a worker for something, and waits for it. Whoever stops waiting cancels it.
async fn ask(
    app: &Installation,
    (source, remote): (&SourceConfig, &RemoteConfig),
    spec: &JobSpec,
) -> anyhow::Result<Job> {
    if let Some(nobody) = nobody_takes(app, source, Some(spec)).await? {
        anyhow::bail!(nobody);
    }
    let (now, me) = (app.catalog.time(app.cx.now()).await?, Holder::this_process(&host()));
    // A restore waits for its turn: the preview before it may not have given everything back yet.
    if !spec.is_of_restore()
        && let Some(held) = app.catalog.held(source.name.as_str(), &me, now).await?
    {
        return Err(held.into());
    }
    let mut job = app.catalog.enqueue((new_job_id(), source.as_job()), (spec, None), now).await?;
    app.cx.event(Event::Step { what: format!("waiting for {}", remote.worker) });
    let (ended, reason) = match app.cx.run(wait(app, source, &mut job)).await {
        Ok(ended) => (ended, "it was given up"),
        Err(cancelled) => (Err(cancelled.into()), "whoever asked for it was interrupted"),
    };
    // That the catalog did not answer for a moment stops nothing.
    if ended.as_ref().is_err_and(|error| !error.is::<CatalogError>()) {
        app.catalog.cancel_job(&job, reason, app.cx.now()).await?;
        if spec.is_change() {
            let text = how_far(job.as_str(), source.name.as_str(), spec.is_beside());
            app.cx.event(Event::Warning { text });
        }
    }
    ended
}

/// Says what to do about a restore that nobody waits for any more.
pub(super) fn how_far(job: &str, source: &str, is_beside: bool) -> String {
    let then = match is_beside {
        true => "it replaced nothing".to_owned(),
        false => format!("what it replaced `backstay undo {source}` puts back"),
    };
    format!(
        "job {job} is told to stop, and may have got further: `backstay jobs show {job}` says how it ended, and {then}"
    )
}

/// Has a backup made by a worker.
pub(super) async fn backup_elsewhere(
    app: &Installation,
    (source, remote): (&SourceConfig, &RemoteConfig),
    spec: &BackupSpec,
) -> anyhow::Result<Made> {
    let ended = ask(app, (source, remote), &JobSpec::Backup(spec.clone())).await?;
    let error = ended.error.map(|error| anyhow::anyhow!(error));
    let Some(backup) = ended.backup else {
        return Err(without_backup(error));
    };
    let vault = app.vault(app.storage(&source.storage)?).await?;
    let place = source.place(backup.parse()?);
    let manifest = vault.manifest(&app.cx, &place).await?;
    let hold = spec.hold.then(|| HELD.to_owned());
    let entry = IndexEntry::new(&manifest, vault.details(&manifest)?, hold);
    // What failed after it is told as the server wrote it down.
    let mut made = Made::new(source, &vault, (entry, None));
    made.afterwards = error;
    Ok(made)
}

/// Says why a job made no backup, as it said itself if it did.
pub(super) fn without_backup(error: Option<anyhow::Error>) -> anyhow::Error {
    error.unwrap_or_else(|| anyhow::anyhow!("it ended without a backup"))
}

/// Has a backup restored into a scratch place by a worker.
pub(super) async fn drill_elsewhere(
    app: &Installation,
    (source, remote): (&SourceConfig, &RemoteConfig),
    backup: &BackupId,
) -> anyhow::Result<DrillReport> {
    let spec = JobSpec::Drill { backup: backup.clone() };
    let ended = ask(app, (source, remote), &spec).await?;
    match (ended.result, ended.error) {
        // One whose checks failed shows what they found.
        (Some(result), _) => Ok(serde_json::from_str(&result)?),
        (None, Some(error)) => Err(anyhow::anyhow!(error)),
        (None, None) => Err(anyhow::anyhow!("it ended without a result")),
    }
}

/// Has a worker do something that has a result.
pub(super) async fn result(
    app: &Installation,
    (source, remote): (&SourceConfig, &RemoteConfig),
    work: Work,
) -> anyhow::Result<Did> {
    let spec = specify(app, source, work).await?;
    let ended = ask(app, (source, remote), &spec).await?;
    let result = ended.result.as_deref().map(serde_json::from_str).transpose()?;
    Did::of(result, ended.error, ended.worker)
}

/// What a job came to.
pub(super) struct Did {
    pub(super) result: Value,
    /// The worker that did it, if one did.
    pub(super) worker: Option<String>,
}

impl Did {
    /// Reads what a job came to, or what went wrong with it.
    pub(super) fn of(
        result: Option<Value>,
        error: Option<String>,
        worker: Option<String>,
    ) -> anyhow::Result<Self> {
        match (result, error) {
            (_, Some(error)) => Err(anyhow::anyhow!(error)),
            (Some(result), None) => Ok(Self { result, worker }),
            (None, None) => Err(anyhow::anyhow!("it ended without a result")),
        }
    }
}

/// Says in full what is to be done for a source.
pub(super) async fn specify(
    app: &Installation,
    source: &SourceConfig,
    work: Work,
) -> anyhow::Result<JobSpec> {
    Ok(match work {
        Work::Backup { trigger, note, hold } => {
            let may_start =
                [Trigger::Manual, Trigger::Scheduled, Trigger::PreDeploy, Trigger::PostDeploy];
            if !may_start.contains(&trigger) {
                let text = "expected manual, scheduled, pre-deploy or post-deploy as the trigger";
                return Err(UsageError(text.to_owned()).into());
            }
            let note = note.as_deref().map(plain::sentence);
            JobSpec::Backup(BackupSpec { trigger, note, hold })
        }
        Work::Drill { backup } => {
            JobSpec::Drill { backup: chosen(app, source, backup.as_deref(), None).await? }
        }
        Work::Test => JobSpec::Test,
        Work::Preview(wish) => {
            ensure_beside(source, wish.to.as_deref())?;
            let backup = chosen(app, source, wish.backup.as_deref(), wish.at).await?;
            JobSpec::Preview(restore_of(backup, wish))
        }
        Work::Restore(wish) => {
            if wish.at.is_some() {
                let text =
                    "a restore knows its backup by the id, and no time: ask for a preview first";
                return Err(UsageError(text.to_owned()).into());
            }
            ensure_beside(source, wish.to.as_deref())?;
            let id = wish.backup.as_deref().unwrap_or_default();
            let backup = whole(id).context("a restore needs to know which backup is meant")?;
            JobSpec::Restore(restore_of(backup, wish))
        }
        Work::Undo => JobSpec::Undo,
        Work::Confirm => JobSpec::Confirm,
    })
}

/// Refuses other places than the name of a new database: a job writes with the rights of the server or of a worker, and a URL may
/// have a password in it.
fn ensure_beside(source: &SourceConfig, to: Option<&str>) -> Result<(), UsageError> {
    let Some(to) = to.filter(|to| !source.kind.is_beside(to.as_ref())) else { return Ok(()) };
    let to = plain::name(to);
    Err(UsageError(format!(
        "--to {to}: by way of a server a restore goes to the source's own place, or to a new database by its name; to paths and to other servers \
         restore on the server's machine, without --server and BACKSTAY_SERVER"
    )))
}

async fn chosen(
    app: &Installation,
    source: &SourceConfig,
    id: Option<&str>,
    at: Option<Timestamp>,
) -> anyhow::Result<BackupId> {
    let vault = app.vault(app.storage(&source.storage)?).await?;
    choose(app, &vault, source, &Wanted { id, at }).await
}

/// Returns the only worker that may do a job, where it is not any that takes the source: what changes that goes to the one that
/// keeps what a restore of it replaced, or may have been killed in one, until somebody confirms or it is revoked.
pub(super) async fn bound_to(
    app: &Installation,
    source: &SourceConfig,
    spec: Option<&JobSpec>,
) -> anyhow::Result<Option<Slug>> {
    if source.remote().is_none() || !spec.is_some_and(JobSpec::is_of_restore) {
        return Ok(None);
    }
    let keeper: Option<Slug> = app.catalog.setting(&keeper_name(&source.name)).await?;
    // Beside what is there, no matter what was before.
    if let Some(keeper) = keeper.filter(|_| !spec.is_some_and(JobSpec::is_beside)) {
        let workers = app.catalog.workers().await?;
        if workers.iter().any(|worker| worker.name == keeper) {
            return Ok(Some(keeper));
        }
    }
    // What one worker was seen to replace, another does not.
    Ok(match spec {
        Some(JobSpec::Restore(spec)) => spec.worker.clone(),
        _ => None,
    })
}

/// Remembers which worker keeps what a restore of a source replaced, if one does.
pub(super) async fn set_keeper(
    app: &Installation,
    source: &SourceConfig,
    worker: Option<&Slug>,
) -> anyhow::Result<()> {
    let name = keeper_name(&source.name);
    match worker {
        Some(worker) => app.catalog.set_setting(&name, worker).await?,
        None => app.catalog.forget(&name).await?,
    }
    Ok(())
}

fn keeper_name(source: &Slug) -> String {
    format!("worker that restored {source}")
}

/// Says in full what is to be restored of a backup.
pub(super) fn restore_of(backup: BackupId, wish: RestoreWish) -> RestoreSpec {
    let RestoreWish {
        to, only, in_place, accept_unsealed, safety_backup, replaces, worker, ..
    } = wish;
    RestoreSpec { backup, to, only, in_place, accept_unsealed, safety_backup, replaces, worker }
}

/// Reads the id of a backup: half of it may be another's.
pub(super) fn whole(id: &str) -> anyhow::Result<BackupId> {
    id.parse().map_err(|_| {
        let found = plain::name(id);
        UsageError(format!("found {found:?}, expected the whole id of a backup")).into()
    })
}

/// Waits for the end of a job and of its next tries, and tells how far it is. The id is that of the last one.
async fn wait(app: &Installation, source: &SourceConfig, id: &mut JobId) -> anyhow::Result<Job> {
    let mut told = Progress::default();
    loop {
        let job = app.catalog.job(id).await?.context("the job is gone from the catalog")?;
        if let Some(progress) = &job.progress {
            tell(&app.cx, &mut told, progress);
        }
        match job.state {
            // Nobody waits for ever for a worker that went away.
            JobState::Queued => {
                if let Some(nobody) = nobody_takes(app, source, job.spec.as_ref()).await? {
                    anyhow::bail!(nobody);
                }
            }
            // What is lost is ended by a server, if there is one.
            JobState::Leased | JobState::Running => {
                if let Some(unserved) = super::serve::unserved(app).await? {
                    anyhow::bail!("nobody knows what became of it: no server runs ({unserved})");
                }
            }
            JobState::Succeeded | JobState::Incomplete | JobState::Failed | JobState::Cancelled => {
                let Some(next) = job.next_try else { return Ok(job) };
                tell_again(&app.cx, job.error.as_deref(), next.as_str());
                *id = next;
            }
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// Tells that a job is done again by another one, and why.
pub(super) fn tell_again(cx: &Cx, error: Option<&str>, next: &str) {
    let why = error.unwrap_or("it was stopped");
    cx.event(Event::Warning { text: format!("{why}; job {next} does it again") });
}

/// Tells how far a job is that somebody else does, beside what was told before.
pub(super) fn tell(cx: &Cx, told: &mut Progress, progress: &Progress) {
    if told.part != progress.part {
        let (part, estimate_bytes) = (progress.part.clone(), progress.estimate_bytes);
        cx.event(Event::PartStarted { part, estimate_bytes });
        told.plain_bytes = 0;
    }
    let plain_bytes = progress.plain_bytes.saturating_sub(told.plain_bytes);
    cx.event(Event::Progress { plain_bytes });
    *told = progress.clone();
}
