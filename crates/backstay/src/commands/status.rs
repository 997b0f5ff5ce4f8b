//! `backstay status`: of each source whether it is protected (V29 to V32, V57 to V61).

use std::collections::{HashMap, HashSet};

use backstay_control::{Facts, Health, Job, JobState, Objectives, Seen, Since, Span};
use backstay_format::IndexEntry;
use jiff::Timestamp;
use serde_json::{Value, json};

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
    let slots = app.catalog.slots().await?;
    let at_work = app.catalog.sources_at_work(app.cx.now()).await?;
    let mut all = Vec::new();
    for source in app.config.sources.values() {
        all.push(look_at(app, source, (&slots, &at_work)).await?);
    }
    let unprotected = all.iter().filter(|status| status.newest_good.is_none());
    let mut warnings: Vec<String> =
        unprotected.filter_map(|status| super::archives::no_backup(app, status.source)).collect();
    warnings.extend(super::serve::nobody_serves(app).await?);
    warnings.extend(super::elsewhere::without_worker(app).await?);
    for warning in &warnings {
        render::say(&format!("warning: {warning}"));
    }
    if json {
        render::print_json(&all.iter().map(|status| status.to_json(app.cx.now())).collect())?;
    } else if all.is_empty() {
        render::print("nothing is backed up: the configuration has no sources")?;
    } else {
        let head =
            ["SOURCE", "HEALTH", "NEWEST GOOD BACKUP", "RPO", "RTO", "LAST JOB", "NEXT", "TROUBLE"];
        let rows = all.iter().map(|status| status.to_row(app.cx.now())).collect();
        render::print(&render::table(&head, rows))?;
    }
    // Where nothing is backed up, nothing is good.
    let is_good =
        warnings.is_empty() && !all.is_empty() && all.iter().all(|status| status.word() == "good");
    Ok(if check && !is_good { Exit::Failed } else { Exit::Done })
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
    let last_run = app.catalog.last_run(name).await?;
    let last_restore = app.catalog.last_restore(name).await?;
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
    let last_job = app.catalog.last_backup_job(name).await?;
    let mut troubles: Vec<String> = health.alarms.iter().map(ToString::to_string).collect();
    troubles.extend(last_job.as_ref().and_then(|job| trouble_of(job, is_at_work)));
    troubles.extend(known.error.map(|error| format!("{error:#}")));
    let since = seen.map_or(Since::FirstSeen(now), Seen::since);
    Ok(Status {
        source,
        objectives,
        newest_good: known.backups.into_iter().find(IndexEntry::is_good),
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
        JobState::Leased | JobState::Running if !is_at_work => {
            Some("the process that worked on it died".to_owned())
        }
        _ => None,
    }
}

impl Status<'_> {
    /// The word for it: that of its worst alarm. Other trouble deserves a look.
    fn word(&self) -> &'static str {
        match self.health.word() {
            "good" if !self.troubles.is_empty() => "attention",
            word => word,
        }
    }

    fn to_json(&self, now: Timestamp) -> Value {
        let (health, newest) = (&self.health, self.newest_good.as_ref());
        json!({
            "source": self.source.name,
            "health": self.word(),
            "newest_good": newest.map(|newest| &newest.id),
            "newest_good_at": newest.map(|newest| newest.started_at),
            "newest_good_bytes": newest.map(|newest| newest.stored_bytes),
            "age_seconds": newest.map(|newest| now.duration_since(newest.started_at).as_secs()),
            "rpo_seconds": self.objectives.rpo.as_secs(),
            "rpo_seen_seconds": health.rpo_seen.map(|seen| seen.as_secs()),
            "rto_seconds": self.objectives.rto.as_secs(),
            "rto_seen_seconds": health.rto_seen.map(|seen| seen.as_secs_f64()),
            "missed_runs": health.missed,
            "last_job": self.last_job.as_ref().map(|job| job.state.as_str()),
            "last_job_at": self.last_job.as_ref().map(|job| job.queued_at),
            "next_at": self.next,
            "troubles": self.troubles,
        })
    }

    fn to_row(&self, now: Timestamp) -> Vec<String> {
        let newest = self.newest_good.as_ref().map_or_else(
            || "NONE".to_owned(),
            |newest| {
                let age = render::age(newest.started_at, now);
                format!("{} ({age} ago, {})", newest.id, render::size(newest.stored_bytes))
            },
        );
        let beside = |seen: Option<String>, expected| match seen {
            Some(seen) => format!("{seen} of {}", Span(expected)),
            None => format!("? of {}", Span(expected)),
        };
        vec![
            self.source.name.to_string(),
            self.word().to_owned(),
            newest,
            beside(self.health.rpo_seen.map(|seen| Span(seen).to_string()), self.objectives.rpo),
            beside(self.health.rto_seen.map(render::seconds), self.objectives.rto),
            self.last_job.as_ref().map_or("", |job| job.state.as_str()).to_owned(),
            render::time(self.next),
            self.troubles.join("; "),
        ]
    }
}
