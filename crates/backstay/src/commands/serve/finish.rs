//! What a worker says that it made is looked at before it counts (ADR 19).

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use backstay_control::{Again, BackupSpec, JobSpec, WaitingJob, Worker};
use backstay_engine::cx::Cx;
use backstay_engine::error::Passing;
use backstay_engine::event::Event;
use backstay_engine::vault::{BackupPlace, Vault};
use backstay_format::{BackupId, IndexEntry, Trigger};
use backstay_server::{JobEnd, Outcome, Stop};
use jiff::SignedDuration;
use serde_json::Value;
use tokio::time::{Instant, sleep};

use super::ending::{Ended, Kept, Wrong, again_after, close, end_failed, passing, why_again};
use crate::commands::backup::{Made, settle};
use crate::commands::drill::DrillReport;
use crate::commands::elsewhere::set_keeper;
use crate::commands::preview::Preview;
use crate::commands::restore::RestoreReport;
use crate::commands::watched::Watched;
use crate::config::{RemoteConfig, SourceConfig};
use crate::installation::Installation;
use crate::plain;

/// How long a backup that a worker made is looked for, and the pause between two looks.
const LOOK_FOR_BACKUP: Duration = Duration::from_mins(10);
const LOOK_AGAIN: Duration = Duration::from_secs(10);
/// The pause before a job is given out again whose worker was told to end: it may be started anew, to the same end.
const AFTER_A_WORKER_ENDED: SignedDuration = SignedDuration::from_secs(10);

/// A job that a worker says has ended.
pub(super) struct Ending {
    /// Of this job alone; the server's own `whole` says whether all of it ends.
    pub(super) app: Installation,
    pub(super) whole: Cx,
    pub(super) job: WaitingJob,
    pub(super) worker: Worker,
    pub(super) kept: Kept,
    pub(super) end: JobEnd,
    pub(super) watched: Arc<Watched>,
}

/// Looks at what came of a job, does what is to be done after it, and writes it down.
pub(super) async fn finish(ending: Ending) {
    let Ending { app, whole, job, worker, kept, end, watched } = ending;
    let Some(source) = app.config.sources.get(&job.source) else {
        let error = anyhow::anyhow!("the source is not in the configuration any more");
        end_failed(&app, &job, None, &error).await;
        return kept.give_back().await;
    };
    if job.spec.is_change()
        && let Some(keeps) = end.keeps
        && let Err(error) = set_keeper(&app, source, keeps.then_some(&worker.name)).await
    {
        let text = format!("who keeps what was there could not be written down: {error:#}");
        app.cx.event(Event::Warning { text });
    }
    let ended = judge((&app, &whole), source, (&job, &worker), end.outcome).await;
    let theirs = plain::lines(&end.log);
    Box::pin(close(&app, source, (&job, kept), (&theirs, &watched), ended)).await;
}

/// Says what became of a job: what went well, or what went wrong and how it is tried again.
async fn judge(
    (app, whole): (&Installation, &Cx),
    source: &SourceConfig,
    (job, worker): (&WaitingJob, &Worker),
    outcome: Outcome,
) -> Result<Ended, Wrong> {
    let theirs = |error: &str| anyhow::anyhow!(plain::sentence(error)).context(worker.to_string());
    match (outcome, &job.spec) {
        (Outcome::Tested { summary, warnings }, JobSpec::Test) => {
            let lines = std::iter::once(&summary).chain(&warnings);
            Ok(Ended::Tested(lines.map(|line| plain::sentence(line)).collect()))
        }
        (Outcome::Made { backup, trouble }, JobSpec::Backup(spec)) => {
            let trouble = trouble.map(|trouble| theirs(&trouble));
            match look_at(app, source, (&backup, spec)).await {
                Ok((vault, entry)) => {
                    settle(app, source, &vault, &entry).await;
                    Ok(Ended::Made(Box::new(Made::new(source, &vault, (entry, trouble)))))
                }
                Err(error) => Err((why_again(app, source, &error, whole), error)),
            }
        }
        (Outcome::Drilled { report }, JobSpec::Drill { backup }) => {
            let checks = source.remote().map_or(0, RemoteConfig::checks);
            match DrillReport::of_worker(report, checks) {
                Ok(report) => Ok(Ended::Drilled(backup.clone(), report)),
                Err(error) => Err((None, error.context(worker.to_string()))),
            }
        }
        (Outcome::Done { answer }, spec) => match checked(app, source, (spec, answer)).await {
            Ok(result) => Ok(Ended::Done(result)),
            Err(error) => Err((None, error.context(worker.to_string()))),
        },
        (Outcome::Tested { .. } | Outcome::Drilled { .. } | Outcome::Made { .. }, _) => {
            Err((None, theirs("it did something else than it was asked for")))
        }
        (Outcome::Failed { error, passing }, _) => {
            let passing = passing.map(|passing| match passing {
                backstay_server::Passing::GaveWay => Passing::GaveWay,
                backstay_server::Passing::Outage => Passing::Outage,
            });
            Err((passing.map(|passing| again_after(source, passing)), theirs(&error)))
        }
        (Outcome::Stopped { error, by }, _) => {
            let again = Again::Interrupted { after: AFTER_A_WORKER_ENDED };
            Err(((by == Stop::WorkerEnds).then_some(again), theirs(&error)))
        }
    }
}

/// Reads what a worker says that it did, as far as that can be told from afar. Returns it for whoever waits.
async fn checked(
    app: &Installation,
    source: &SourceConfig,
    (spec, answer): (&JobSpec, Value),
) -> anyhow::Result<Value> {
    match spec {
        JobSpec::Preview(spec) => {
            let preview = Preview::read(answer)?;
            ensure!(preview.backup == spec.backup, "it looked at another backup");
            Ok(preview.into_json())
        }
        JobSpec::Restore(spec) => {
            let mut report = RestoreReport::read(answer)?;
            ensure!(report.backup == spec.backup, "it restored another backup");
            match &report.safety_backup {
                Some(safety) => {
                    if let Err(error) = look_at_safety(app, source, safety).await {
                        let text = format!("the safety backup {safety} cannot be seen: {error:#}");
                        report.warn(text);
                    }
                }
                None if spec.wants_safety() && report.replaced() => {
                    report.warn("the worker made no backup of what was there".to_owned());
                }
                None => {}
            }
            Ok(report.into_json())
        }
        JobSpec::Undo | JobSpec::Confirm => {
            let said: String = serde_json::from_value(answer).context("expected a sentence")?;
            Ok(plain::sentence(&said).into())
        }
        JobSpec::Backup(_) | JobSpec::Drill { .. } | JobSpec::Test | JobSpec::Import { .. } => {
            bail!("it did something else than it was asked for")
        }
    }
}

/// Sees that what a restore replaced was backed up, and that all of it is there.
async fn look_at_safety(
    app: &Installation,
    source: &SourceConfig,
    backup: &BackupId,
) -> anyhow::Result<()> {
    let vault = app.vault(app.storage(&source.storage)?).await?;
    let manifest = vault.manifest(&app.cx, &source.place(backup.clone())).await?;
    ensure!(manifest.trigger == Trigger::PreRestore, "it was made for something else");
    Ok(vault.check_objects(&app.cx, &manifest).await?)
}

/// Reads the manifest of a backup that a worker says to have made: nothing is called good without proof. A storage that does
/// not answer is asked again for a while.
async fn look_at(
    app: &Installation,
    source: &SourceConfig,
    (backup, spec): (&str, &BackupSpec),
) -> anyhow::Result<(Vault, IndexEntry)> {
    let id: BackupId = backup.parse().context("the worker named a backup that cannot be one")?;
    let place = source.place(id);
    let until = Instant::now() + LOOK_FOR_BACKUP;
    loop {
        let error = match look_once(app, source, &place, spec).await {
            Ok(found) => return Ok(found),
            Err(error) => error,
        };
        if passing(&error).is_none() || Instant::now() >= until {
            let id = &place.backup;
            let text =
                format!("the worker made backup {id}, and the server cannot take it for good");
            return Err(error.context(text));
        }
        app.cx.event(Event::Retrying {
            what: format!("looking at backup {}", place.backup),
            error: format!("{error:#}"),
            after: LOOK_AGAIN,
        });
        app.cx.run(sleep(LOOK_AGAIN)).await?;
    }
}

async fn look_once(
    app: &Installation,
    source: &SourceConfig,
    place: &BackupPlace,
    spec: &BackupSpec,
) -> anyhow::Result<(Vault, IndexEntry)> {
    let vault = app.vault(app.storage(&source.storage)?).await?;
    let known = app.catalog.known_backups(vault.id().as_str(), source.name.as_str()).await?;
    ensure!(known.iter().all(|entry| entry.id != place.backup), "it was there before");
    let manifest = vault.manifest(&app.cx, place).await?;
    ensure!(manifest.trigger == spec.trigger, "it was made for something else");
    vault.check_objects(&app.cx, &manifest).await?;
    let hold = vault.hold_of(&app.cx, place).await?;
    let entry = IndexEntry::new(&manifest, vault.details(&manifest)?, hold);
    Ok((vault, entry))
}
