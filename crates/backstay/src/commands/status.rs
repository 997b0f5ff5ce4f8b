//! `backstay status`: of each source whether it is protected (V29 to V32, V57 to V61).

use std::collections::{HashMap, HashSet};

use backstay_control::{Facts, Health, Job, JobSpec, JobState, Objectives, Seen, Since, Span};
use backstay_format::{IndexEntry, Trigger};
use backstay_server::{SourceStatus, StatusView};
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use jiff::{SignedDuration, Timestamp};

use super::elsewhere::nobody_takes;
use super::import;
use super::list::LISTED_AT_ONCE;
use crate::config::SourceConfig;
use crate::exit::Exit;
use crate::installation::Installation;
use crate::render;

/// What is said of a source.
struct Status<'a> {
    source: &'a SourceConfig,
    objectives: Objectives,
    newest_good: Option<IndexEntry>,
    last_job: Option<Job>,
    next: Option<Timestamp>,
    health: Health,
    /// What is wrong in words, the worst first: alarms, what went wrong though a backup was made, storages that do not answer.
    troubles: Vec<String>,
}

pub(super) async fn status(app: &Installation, check: bool, json: bool) -> anyhow::Result<Exit> {
    show(&view(app).await?, check, json)
}

/// Returns how well all sources are protected, as people see it.
pub(super) async fn view(app: &Installation) -> anyhow::Result<StatusView> {
    let slots = app.catalog.slots().await?;
    let at_work = app.catalog.sources_at_work(app.cx.now()).await?;
    let names: Vec<String> = app.config.sources.keys().cloned().collect();
    let looks = stream::iter(names)
        .map(async |name| look_at(app, &app.config.sources[&name], (&slots, &at_work)).await)
        .buffered(LISTED_AT_ONCE);
    let all: Vec<_> = looks.try_collect().await?;
    let unprotected = all.iter().filter(|status| status.newest_good.is_none());
    let mut warnings: Vec<String> =
        unprotected.filter_map(|status| super::archives::no_backup(app, status.source)).collect();
    warnings.extend(super::serve::nobody_serves(app).await?);
    let sources = all.iter().map(|status| status.view(app.cx.now())).collect();
    Ok(StatusView { sources, warnings })
}

/// Shows it; if somebody checks, the exit code says whether all is good.
pub(super) fn show(status: &StatusView, check: bool, json: bool) -> anyhow::Result<Exit> {
    let StatusView { sources, warnings } = status;
    for warning in warnings {
        render::say(&format!("warning: {warning}"));
    }
    if json {
        render::print_json(sources)?;
    } else if sources.is_empty() {
        render::print("nothing is backed up: the configuration has no sources")?;
    } else {
        let head =
            ["SOURCE", "HEALTH", "NEWEST GOOD BACKUP", "RPO", "RTO", "LAST JOB", "NEXT", "TROUBLE"];
        render::print(&render::table(&head, sources.iter().map(row).collect()))?;
    }
    // Where nothing is backed up, nothing is good.
    let is_good = warnings.is_empty()
        && !sources.is_empty()
        && sources.iter().all(|status| status.health == "good");
    Ok(if check && !is_good { Exit::Failed } else { Exit::Done })
}

fn row(status: &SourceStatus) -> Vec<String> {
    let span = |seconds| Span(SignedDuration::from_secs(seconds));
    let newest = match (&status.newest_good, status.age_seconds, status.newest_good_bytes) {
        (Some(id), Some(age), Some(bytes)) => {
            format!("{id} ({} ago, {})", span(age), render::size(bytes))
        }
        _ => "NONE".to_owned(),
    };
    let beside = |seen: Option<String>, expected| match seen {
        Some(seen) => format!("{seen} of {}", span(expected)),
        None => format!("? of {}", span(expected)),
    };
    let rto_seen =
        status.rto_seen_seconds.and_then(|seen| SignedDuration::try_from_secs_f64(seen).ok());
    vec![
        status.source.to_string(),
        status.health.clone(),
        newest,
        beside(status.rpo_seen_seconds.map(|seen| span(seen).to_string()), status.rpo_seconds),
        beside(rto_seen.map(render::seconds), status.rto_seconds),
        status.last_job.map_or("", JobState::as_str).to_owned(),
        render::time(status.next_at),
        status.troubles.join("; "),
    ]
}

async fn look_at<'a>(
    app: &Installation,
    source: &'a SourceConfig,
    (slots, at_work): (&HashMap<String, Seen>, &HashSet<String>),
) -> anyhow::Result<Status<'a>> {
    let (name, now) = (source.name.as_str(), app.cx.now());
    let policy = source.policy.as_ref();
    let known = super::list::known(app, source).await?;
    let (seen, is_at_work) = (slots.get(name).copied(), at_work.contains(name));
    let last_run = app.catalog.last_run(source.as_job()).await?;
    let last_restore = app.catalog.last_restore(source.as_job()).await?;
    let objectives = Objectives::new((source.rpo, source.rto), (name, policy), now);
    let health = Health::of(&Facts {
        source: name,
        objectives,
        policy,
        backups: &known.backups,
        last_run: last_run.as_ref(),
        is_at_work,
        orphaned: known.orphaned,
        seen,
        last_restore: last_restore.as_ref(),
        now,
    });
    let last_job = app.catalog.last_backup_job(source.as_job()).await?;
    let mut troubles: Vec<String> = health.alarms.iter().map(ToString::to_string).collect();
    troubles.extend(last_job.as_ref().and_then(|job| trouble_of(job, is_at_work)));
    troubles.extend(known.error.map(|error| format!("{error:#}")));
    troubles.extend(nobody_takes(app, source, None).await?);
    troubles.extend(import::trouble(app, source).await?);
    let since = seen.map_or(Since::FirstSeen(now), Seen::since);
    Ok(Status {
        source,
        objectives,
        newest_good: known.backups.into_iter().find(IndexEntry::is_good_and_dated),
        last_job,
        next: policy.and_then(|policy| policy.next_start(name, since, now)),
        health,
        troubles,
    })
}

/// What a job says beside the backups that there are.
fn trouble_of(job: &Job, is_at_work: bool) -> Option<String> {
    match job.state {
        // A backup was made, and then something else failed.
        JobState::Succeeded | JobState::Incomplete => job.error.clone(),
        JobState::Cancelled if is_after_deploy(job) => {
            let error = job.error.as_deref().unwrap_or("it was cancelled");
            Some(format!("no backup was made after a deploy: {error}"))
        }
        JobState::Leased | JobState::Running if !is_at_work => {
            Some("the process that worked on it died".to_owned())
        }
        _ => None,
    }
}

/// Nobody asks again for a backup that a guard gave up.
fn is_after_deploy(job: &Job) -> bool {
    matches!(&job.spec, Some(JobSpec::Backup(spec)) if spec.trigger == Trigger::PostDeploy)
}

impl Status<'_> {
    /// The word for it: that of its worst alarm. Other trouble deserves a look.
    fn word(&self) -> &'static str {
        match self.health.word() {
            "good" if !self.troubles.is_empty() => "attention",
            word => word,
        }
    }

    fn view(&self, now: Timestamp) -> SourceStatus {
        let (health, newest) = (&self.health, self.newest_good.as_ref());
        SourceStatus {
            source: self.source.name.clone(),
            health: self.word().to_owned(),
            newest_good: newest.map(|newest| newest.id.clone()),
            newest_good_at: newest.map(|newest| newest.started_at),
            newest_good_bytes: newest.map(|newest| newest.stored_bytes),
            age_seconds: newest.map(|newest| now.duration_since(newest.started_at).as_secs()),
            rpo_seconds: self.objectives.rpo.as_secs(),
            rpo_seen_seconds: health.rpo_seen.map(|seen| seen.as_secs()),
            rto_seconds: self.objectives.rto.as_secs(),
            rto_seen_seconds: health.rto_seen.map(|seen| seen.as_secs_f64()),
            missed_runs: health.missed,
            last_job: self.last_job.as_ref().map(|job| job.state),
            last_job_at: self.last_job.as_ref().map(|job| job.queued_at),
            next_at: self.next,
            troubles: self.troubles.clone(),
        }
    }
}
