//! `backstay jobs`: what waits, what is being done, what became of the rest.

use backstay_control::{Job, JobKind, JobState, Progress, Whose};
use backstay_server::JobView;
use jiff::Timestamp;

use crate::cli::JobsCommand;
use crate::exit::{Exit, UsageError};
use crate::installation::Installation;
use crate::render;

pub(super) async fn jobs(
    app: &Installation,
    command: JobsCommand,
    json: bool,
) -> anyhow::Result<Exit> {
    match command {
        JobsCommand::List { source, limit } => {
            let whose = source.as_deref().map_or(Whose::All, Whose::Source);
            show_list(&newest(app, whose, limit).await?, json)
        }
        JobsCommand::Show { id } => show(&view(&one(app, (&id, None)).await?), json),
        JobsCommand::Cancel { id, reason } => {
            render::print(&cancel(app, &one(app, (&id, None)).await?, &reason).await?)?;
            Ok(Exit::Done)
        }
        JobsCommand::Delete { ids } => {
            let mut jobs = Vec::new();
            for id in &ids {
                jobs.push(one(app, (id, None)).await?);
            }
            for said in delete(app, jobs).await? {
                render::print(&said)?;
            }
            Ok(Exit::Done)
        }
    }
}

/// Finds the one job, of an organisation or of all, whose id begins so.
pub(super) async fn one(
    app: &Installation,
    (id, organisation): (&str, Option<&str>),
) -> anyhow::Result<Job> {
    let mut found = app.catalog.jobs_by_id(id, organisation).await?;
    // Whose id is the whole of it is meant, though it may begin another's.
    if found.first().is_some_and(|first| first.id.as_str() == id) {
        found.truncate(1);
    }
    super::the_one(found, id, ("job", "backstay jobs list"))
}

/// Returns the newest jobs as people see them.
pub(super) async fn newest(
    app: &Installation,
    whose: Whose<'_>,
    limit: u32,
) -> anyhow::Result<Vec<JobView>> {
    Ok(app.catalog.jobs(whose, limit).await?.iter().map(view).collect())
}

pub(super) fn show_list(jobs: &[JobView], json: bool) -> anyhow::Result<Exit> {
    if json {
        render::print_json(&jobs)?;
    } else if jobs.is_empty() {
        render::print("there are no jobs yet")?;
    } else {
        let row = |job: &JobView| {
            vec![
                job.id.clone(),
                job.source.clone(),
                job.kind.clone(),
                job.state.as_str().to_owned(),
                cause(job),
                render::time(job.started_at),
                render::time(job.finished_at),
                result(job),
            ]
        };
        let head = ["JOB", "SOURCE", "KIND", "STATE", "FOR", "BEGAN", "ENDED", "RESULT"];
        render::print(&render::table(&head, jobs.iter().map(row).collect()))?;
    }
    Ok(Exit::Done)
}

/// What a job is for: a slot of the schedule, and which try, or the member who asked; nothing where a command did.
fn cause(job: &JobView) -> String {
    let slot = job.slot.map(|slot| render::time(Some(slot)));
    let try_no = (job.attempt > 1).then(|| format!("try {}", job.attempt));
    let parts = [slot.or_else(|| job.asked_by.clone()), try_no];
    parts.into_iter().flatten().collect::<Vec<_>>().join(", ")
}

/// What came of a job, or how far it is.
fn result(job: &JobView) -> String {
    let ended = job.error.clone().or_else(|| job.backup.clone());
    ended.or_else(|| job.progress.as_ref().map(how_far)).unwrap_or_default()
}

fn how_far(progress: &Progress) -> String {
    let read = render::size(progress.plain_bytes);
    match progress.estimate_bytes {
        Some(bytes) => format!("{}: {read} of about {}", progress.part, render::size(bytes)),
        None => format!("{}: {read}", progress.part),
    }
}

pub(super) fn show(job: &JobView, json: bool) -> anyhow::Result<Exit> {
    if json {
        render::print_json(job)?;
        return Ok(Exit::Done);
    }
    let rows = [
        ("job", job.id.clone()),
        ("source", job.source.clone()),
        ("kind", job.kind.clone()),
        ("state", job.state.as_str().to_owned()),
        ("worker", job.worker.clone().unwrap_or_default()),
        ("for", cause(job)),
        ("queued", render::time(Some(job.queued_at))),
        ("began", render::time(job.started_at)),
        ("ended", render::time(job.finished_at)),
        ("at", job.progress.as_ref().map(how_far).unwrap_or_default()),
        ("backup", job.backup.clone().unwrap_or_default()),
        ("error", job.error.clone().unwrap_or_default()),
        ("next", job.next_try.clone().unwrap_or_default()),
    ];
    for (name, value) in rows.into_iter().filter(|(_, value)| !value.is_empty()) {
        render::print(&format!("{name:8}{value}"))?;
    }
    if let Some(log) = &job.log {
        render::print(&format!("\n{log}"))?;
    }
    Ok(Exit::Done)
}

/// Returns a job as people see it.
pub(super) fn view(job: &Job) -> JobView {
    JobView {
        id: job.id.as_str().to_owned(),
        organisation: job.organisation.clone(),
        source: job.source.clone(),
        kind: job.kind.clone(),
        state: job.state,
        worker: job.worker.clone(),
        asked_by: job.asked_by.clone(),
        slot: job.slot,
        attempt: job.attempt,
        next_try: job.next_try.as_ref().map(|next| next.as_str().to_owned()),
        queued_at: job.queued_at,
        not_before: Some(job.not_before).filter(|time| *time > Timestamp::UNIX_EPOCH),
        started_at: job.started_at,
        finished_at: job.finished_at,
        backup: job.backup.clone(),
        error: job.error.clone(),
        progress: job.progress.clone(),
        log: job.log.clone(),
        result: job.result.as_ref().and_then(|text| serde_json::from_str(text).ok()),
    }
}

/// Cancels a job; says what that comes to.
pub(super) async fn cancel(app: &Installation, job: &Job, reason: &str) -> anyhow::Result<String> {
    let what = format!("the {} of {}", job.kind, job.source);
    // Commands look whether somebody cancels theirs.
    let is_backup = job.kind == JobKind::Backup.as_str();
    let done = match job.state {
        JobState::Queued => "is cancelled",
        JobState::Leased | JobState::Running if job.is_queued_work || is_backup => {
            "is told to stop"
        }
        JobState::Leased | JobState::Running => {
            let text = format!("{what} is done by a command; interrupt it where it was started");
            return Err(UsageError(text).into());
        }
        ended => {
            let text = format!("{what} has ended already: {}", ended.as_str());
            return Err(UsageError(text).into());
        }
    };
    app.catalog.cancel_job(&job.id, reason, app.cx.now()).await?;
    Ok(format!("{what} {done}"))
}

/// Deletes jobs from the list (V33), once all of them are known to be such as may be; says so of each.
pub(super) async fn delete(app: &Installation, chosen: Vec<Job>) -> anyhow::Result<Vec<String>> {
    let mut jobs: Vec<Job> = Vec::new();
    for job in chosen {
        if jobs.iter().any(|chosen| chosen.id == job.id) {
            continue;
        }
        if !matches!(job.state, JobState::Failed | JobState::Cancelled) {
            let text = format!(
                "the {} of {} is {}: only jobs that failed or were cancelled are deleted",
                job.kind,
                job.source,
                job.state.as_str()
            );
            return Err(UsageError(text).into());
        }
        let newest = app.catalog.last_run(job.of()).await?;
        if newest.is_some_and(|newest| newest.id == job.id) {
            let text = format!(
                "the newest run of {} is what `status` tells of it; it can be deleted when a later one has ended",
                job.source
            );
            return Err(UsageError(text).into());
        }
        jobs.push(job);
    }
    let mut said = Vec::new();
    for job in &jobs {
        app.catalog.delete_job(&job.id).await?;
        said.push(format!("the {} {} of {} is deleted", job.state.as_str(), job.kind, job.source));
    }
    Ok(said)
}
