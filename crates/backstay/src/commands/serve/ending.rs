//! What a job holds while it is done, and how it ends.

use backstay_control::{Again, Holder, JobSpec, JobState, Lease, WaitingJob, Worker};
use backstay_engine::cx::{CancelReason, Cx};
use backstay_engine::error::{EngineError, Passing};
use backstay_engine::event::Event;
use backstay_engine::source::SourceError;
use backstay_engine::store::StoreError;
use backstay_format::BackupId;
use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};

use super::CLOCK_TOLERANCE;
use crate::commands::backup::{Made, end_made};
use crate::commands::drill::{DrillReport, end_drill};
use crate::commands::import::Imported;
use crate::commands::watched::Watched;
use crate::config::SourceConfig;
use crate::installation::{Installation, host, new_job_id};
use crate::lease::LeaseGuard;

/// The leases of a job: the right to its source, and a place at the storage where these are counted.
pub(super) struct Taken {
    pub(super) source: Lease,
    pub(super) place: Option<Lease>,
}

/// The same, renewed by this process.
pub(super) struct Kept {
    source: LeaseGuard,
    place: Option<LeaseGuard>,
}

impl Taken {
    /// Takes them for somebody; none if somebody else has them. First the place: a source whose storage has none is left to
    /// whoever wants it.
    pub(super) async fn take(
        app: &Installation,
        (source, job): (&SourceConfig, &WaitingJob),
        holder: &Holder,
    ) -> anyhow::Result<Option<Self>> {
        let me = Holder::this_process(&host());
        let places = match job.spec {
            JobSpec::Backup(_) | JobSpec::Import { .. } => app.storage(&source.storage)?.jobs,
            _ => None,
        };
        let place = match places {
            None => None,
            Some(places) => match take_place(app, &source.storage, places, holder).await? {
                None => return Ok(None),
                place => place,
            },
        };
        match app.catalog.lease_for(source.name.as_str(), holder, &me, app.cx.now()).await {
            Ok(source) => Ok(Some(Self { source, place })),
            Err(error) => {
                if let Some(place) = place {
                    keep(app, place).release().await;
                }
                if error.is_held() { Ok(None) } else { Err(error.into()) }
            }
        }
    }

    /// Returns all of them, that of the source first.
    pub(super) fn leases(&self) -> impl Iterator<Item = &Lease> {
        std::iter::once(&self.source).chain(&self.place)
    }

    /// Renews them from now on.
    pub(super) fn keep(self, app: &Installation) -> Kept {
        Kept { source: keep(app, self.source), place: self.place.map(|place| keep(app, place)) }
    }
}

fn keep(app: &Installation, lease: Lease) -> LeaseGuard {
    LeaseGuard::keep(app.catalog.clone(), lease, app.cx.clone())
}

/// Begins a job under the lease on its source, and says whether it still waited. A backup counts for all slots that are due by
/// now.
pub(super) async fn begin(
    app: &Installation,
    source: &SourceConfig,
    (job, lease, worker): (&WaitingJob, &Lease, Option<&Worker>),
    now: Timestamp,
) -> anyhow::Result<bool> {
    if !app.catalog.begin_job(job, lease, worker, now).await? {
        return Ok(false);
    }
    if let (JobSpec::Backup(_), Some(policy)) = (&job.spec, &source.policy) {
        let since = app.catalog.see(&job.source, now, CLOCK_TOLERANCE).await?;
        if let Some(due) = policy.due(&job.source, since, now) {
            app.catalog.cover_slots(&job.source, due.slot).await?;
        }
    }
    Ok(true)
}

impl Kept {
    /// Adds a place at the storage.
    pub(super) fn add_place(&mut self, app: &Installation, place: Lease) {
        self.place = Some(keep(app, place));
    }

    /// Returns the right to the source.
    pub(super) fn source(&self) -> &Lease {
        self.source.lease()
    }

    pub(super) async fn give_back(self) {
        if let Some(place) = self.place {
            place.release().await;
        }
        self.source.release().await;
    }
}

/// Takes a free place among the jobs that a storage takes at a time: a lease of its own, which goes with its holder.
async fn take_place(
    app: &Installation,
    storage: &str,
    places: u16,
    holder: &Holder,
) -> anyhow::Result<Option<Lease>> {
    let me = Holder::this_process(&host());
    for place in 1..=places {
        // No source has such a name.
        let name = format!("storage {storage}, place {place}");
        match app.catalog.lease_for(&name, holder, &me, app.cx.now()).await {
            Ok(lease) => return Ok(Some(lease)),
            Err(error) if error.is_held() => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(None)
}

/// What became of a job that went well.
pub(super) enum Ended {
    Made(Box<Made>),
    /// Of which backup, and what that showed.
    Drilled(BackupId, DrillReport),
    /// Line by line.
    Tested(Vec<String>),
    Imported(Imported),
    /// Something else, and what came of it.
    Done(Value),
}

/// What went wrong with a job, and how it is tried again.
pub(super) type Wrong = (Option<Again>, anyhow::Error);

/// Tells and writes down what became of a job, for whoever waits for it, and gives its leases back.
pub(super) async fn close(
    app: &Installation,
    source: &SourceConfig,
    (job, kept): (&WaitingJob, Kept),
    (theirs, watched): (&str, &Watched),
    ended: Result<Ended, Wrong>,
) {
    tell(app, &ended);
    let mut log = [theirs.to_owned(), watched.log()].join("\n");
    match &ended {
        Ok(Ended::Drilled(backup, report)) => {
            log = [log, report.as_text(&source.name, backup)].join("\n");
        }
        Ok(Ended::Tested(lines)) => log = lines.join("\n"),
        Ok(Ended::Made(_) | Ended::Imported(_) | Ended::Done(_)) | Err(_) => {}
    }
    app.keep_log(&job.id, log.trim()).await;
    match &ended {
        Ok(Ended::Made(made)) => {
            if job.is_asked_for {
                keep_result(app, job, &json!(made.view())).await;
            }
            end_made(app, &job.id, made).await;
        }
        Ok(Ended::Drilled(backup, report)) => end_drilled(app, job, backup, report).await,
        Ok(Ended::Tested(_)) => app.end_job(&job.id, JobState::Succeeded, None, None).await,
        Ok(Ended::Imported(imported)) => {
            let (state, error) = imported.outcome();
            app.end_job(&job.id, state, error.as_ref(), None).await;
        }
        Ok(Ended::Done(result)) => {
            keep_result(app, job, result).await;
            let backup = job.spec.backup().map(ToString::to_string);
            app.end_job(&job.id, JobState::Succeeded, None, backup).await;
        }
        Err((again, error)) => end_failed(app, job, *again, error).await,
    }
    kept.give_back().await;
    if let Ok(Ended::Made(_) | Ended::Imported(_)) = ended {
        app.back_up_catalog_too(&[source.storage.clone()].into()).await;
    }
}

fn tell(app: &Installation, ended: &Result<Ended, Wrong>) {
    let event = match ended {
        Ok(Ended::Made(made)) => {
            let what = made.summary();
            match &made.afterwards {
                None => Event::Step { what },
                Some(error) => Event::Warning { text: format!("{what}; {error:#}") },
            }
        }
        Ok(Ended::Imported(imported)) => Event::Step { what: imported.summary() },
        Ok(Ended::Drilled(..) | Ended::Tested(_) | Ended::Done(_)) => return,
        Err((_, error)) => Event::Warning { text: format!("it went wrong: {error:#}") },
    };
    app.cx.event(event);
}

/// Writes down what a drill showed, for whoever waits for it.
async fn end_drilled(
    app: &Installation,
    job: &WaitingJob,
    backup: &BackupId,
    report: &DrillReport,
) {
    keep_result(app, job, &report.to_json()).await;
    end_drill(app, &job.id, backup, Ok(report)).await;
}

/// Keeps what a job came to, for whoever asked for it.
async fn keep_result(app: &Installation, job: &WaitingJob, result: &Value) {
    if let Err(error) = app.catalog.keep_result(&job.id, &result.to_string()).await {
        app.cx.event(Event::Warning { text: format!("the result could not be kept: {error}") });
    }
}

/// Writes down that a job failed or was stopped, and enqueues it again where another try may go better. One that somebody
/// wished to cancel is cancelled, whatever it died of.
pub(super) async fn end_failed(
    app: &Installation,
    job: &WaitingJob,
    again: Option<Again>,
    error: &anyhow::Error,
) {
    let wish = app.catalog.wish_to_cancel(&job.id).await.ok().flatten();
    if let (None, Some(again)) = (&wish, again) {
        // First: a job that ended has no next try.
        let now = app.catalog.time(app.cx.now()).await.unwrap_or_else(|_| app.cx.now());
        match app.catalog.try_again((new_job_id(), &job.id), again, now).await {
            Ok(None) => {}
            Ok(Some(next)) => {
                app.cx.event(Event::Step { what: format!("tried again at {next:.0}") });
            }
            Err(error) => {
                let text = format!("the job could not be enqueued again: {error}");
                app.cx.event(Event::Warning { text });
            }
        }
    }
    let (state, error) = match (wish, again) {
        // What a restore was at when it was stopped is told: it may have been more than half done.
        (Some(reason), _) if job.spec.is_change() => {
            (JobState::Cancelled, &anyhow::anyhow!("cancelled: {reason}; {error:#}"))
        }
        (Some(reason), _) => (JobState::Cancelled, &anyhow::anyhow!("cancelled: {reason}")),
        (None, Some(Again::Interrupted { .. })) => (JobState::Cancelled, error),
        (None, _) => (JobState::Failed, error),
    };
    let backup = job.spec.backup().map(ToString::to_string);
    app.end_job(&job.id, state, Some(error), backup).await;
}

/// Says why a job is tried again that failed or was stopped here, if it is.
pub(super) fn why_again(
    app: &Installation,
    source: &SourceConfig,
    error: &anyhow::Error,
    whole: &Cx,
) -> Option<Again> {
    match app.cx.cancelled() {
        None => passing(error).map(|passing| again_after(source, passing)),
        Some(CancelReason::LeaseLost) => Some(Again::LeaseLost),
        Some(_) => whole.cancelled().map(|_| Again::Interrupted { after: SignedDuration::ZERO }),
    }
}

/// Says whether what went wrong passes by itself.
pub(crate) fn passing(error: &anyhow::Error) -> Option<Passing> {
    let passing = |cause: &(dyn std::error::Error + 'static)| {
        let of_engine = cause.downcast_ref::<EngineError>().and_then(EngineError::passing);
        let of_source = || cause.downcast_ref::<SourceError>().and_then(SourceError::passing);
        let is_outage = |error: &StoreError| error.kind().is_outage();
        let of_storage = || cause.downcast_ref().is_some_and(is_outage).then_some(Passing::Outage);
        of_engine.or_else(of_source).or_else(of_storage)
    };
    error.chain().find_map(passing)
}

/// Says how a job is tried again after something that passes.
pub(super) fn again_after(source: &SourceConfig, passing: Passing) -> Again {
    match passing {
        Passing::GaveWay => {
            let after = SignedDuration::try_from(source.retry_after).unwrap_or(SignedDuration::MAX);
            Again::GaveWay { retries: source.retries, after }
        }
        Passing::Outage => Again::Outage,
    }
}
