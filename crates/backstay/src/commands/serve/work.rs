//! Doing a job that was taken up: heard, watched, written down.

use std::collections::VecDeque;
use std::future::pending;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use backstay_control::{Again, JobState, Progress, WaitingJob};
use backstay_engine::cx::{CancelReason, Cx};
use backstay_engine::error::{EngineError, Passing};
use backstay_engine::event::{Event, Monitor};
use backstay_engine::source::SourceError;
use backstay_engine::store::StoreError;
use backstay_format::Trigger;
use jiff::SignedDuration;

use super::Place;
use crate::commands::backup::{Made, Order, end_made, make};
use crate::config::SourceConfig;
use crate::installation::{Installation, new_job_id};
use crate::lease::LeaseGuard;
use crate::render;

/// The pause between two looks at whether somebody cancelled a job, and at how far it is.
const LOOK: Duration = Duration::from_secs(2);
/// Lines of a job's log that are kept, the newest.
const LOG_LINES: usize = 200;

/// A job that was taken up.
pub(super) struct Begun {
    pub(super) app: Installation,
    pub(super) source: SourceConfig,
    pub(super) job: WaitingJob,
    pub(super) guard: LeaseGuard,
    pub(super) place: Place,
    pub(super) watched: Arc<Watched>,
    /// The server's own, which says whether all of it ends.
    pub(super) whole: Cx,
}

/// Does a job, and writes down what became of it.
pub(super) async fn work(begun: Begun) {
    let Begun { app, source, job, guard, place, watched, whole } = begun;
    app.cx.event(Event::Step { what: "the scheduled backup begins".to_owned() });
    let order = Order { trigger: Trigger::Scheduled, note: None, hold: false, waits: false };
    let made = tokio::select! {
        made = Box::pin(make(&app, &source, &order)) => made,
        never = watch(&app, &job, &watched) => match never {},
    };
    say_end(&app, &made);
    if let Err(error) = app.catalog.keep_log(&job.id, &watched.log()).await {
        app.cx.event(Event::Warning { text: format!("the log could not be kept: {error}") });
    }
    match &made {
        Ok(made) => end_made(&app, &job.id, made).await,
        Err(error) => end_failed((&app, &source), &job, error, &whole).await,
    }
    place.give_back().await;
    guard.release().await;
    if made.is_ok() {
        app.back_up_catalog_too(&[source.storage].into()).await;
    }
}

/// Writes down that a job failed or was stopped, and enqueues it again where another try may go better.
async fn end_failed(
    (app, source): (&Installation, &SourceConfig),
    job: &WaitingJob,
    error: &anyhow::Error,
    whole: &Cx,
) {
    let wish = app.catalog.wish_to_cancel(&job.id).await.ok().flatten();
    let again = match (&wish, app.cx.cancelled()) {
        (Some(_), _) => None,
        (None, None) => again_after(source, error),
        (None, Some(CancelReason::LeaseLost)) => Some(Again::LeaseLost),
        (None, Some(_)) => whole.cancelled().map(|_| Again::Interrupted),
    };
    if let Some(again) = again {
        // First: a job that ended has no next try.
        let now = app.catalog.time(whole.now()).await.unwrap_or_else(|_| whole.now());
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
        (Some(reason), _) => (JobState::Cancelled, &anyhow::anyhow!("cancelled: {reason}")),
        (None, Some(Again::Interrupted)) => (JobState::Cancelled, error),
        (None, _) => (JobState::Failed, error),
    };
    app.end_job(&job.id, state, Some(error), None).await;
}

/// Says how a job is tried again that failed by itself.
fn again_after(source: &SourceConfig, error: &anyhow::Error) -> Option<Again> {
    let passing = |cause: &(dyn std::error::Error + 'static)| {
        let of_engine = cause.downcast_ref::<EngineError>().and_then(EngineError::passing);
        let of_source = || cause.downcast_ref::<SourceError>().and_then(SourceError::passing);
        let is_outage = |error: &StoreError| error.kind().is_outage();
        let of_storage = || cause.downcast_ref().is_some_and(is_outage).then_some(Passing::Outage);
        of_engine.or_else(of_source).or_else(of_storage)
    };
    match error.chain().find_map(passing)? {
        Passing::GaveWay => {
            let after = SignedDuration::try_from(source.retry_after).unwrap_or(SignedDuration::MAX);
            Some(Again::GaveWay { retries: source.retries, after })
        }
        Passing::Outage => Some(Again::Outage),
    }
}

fn say_end(app: &Installation, made: &anyhow::Result<Made>) {
    let event = match made {
        Ok(made) => {
            let what = made.summary();
            match &made.afterwards {
                None => Event::Step { what },
                Some(error) => Event::Warning { text: format!("{what}; {error:#}") },
            }
        }
        Err(error) => Event::Warning { text: format!("no backup was made: {error:#}") },
    };
    app.cx.event(event);
}

/// Writes down how far a job is, and stops it if somebody cancels it. Never ends.
async fn watch(
    app: &Installation,
    job: &WaitingJob,
    watched: &Watched,
) -> std::convert::Infallible {
    let mut written = Progress::default();
    loop {
        tokio::time::sleep(LOOK).await;
        // A catalog that does not answer is the business of the lease.
        if let Ok(Some(reason)) = app.catalog.wish_to_cancel(&job.id).await {
            app.cx.event(Event::Step { what: format!("cancelled: {reason}") });
            app.cx.cancel_handle().cancel(CancelReason::User);
            return pending().await;
        }
        let progress = watched.progress();
        if progress != written && app.catalog.keep_progress(&job.id, &progress).await.is_ok() {
            written = progress;
        }
    }
}

/// What was heard while a job was done.
#[derive(Default)]
pub(super) struct Watched(Mutex<Heard>);

#[derive(Default)]
struct Heard {
    /// What was said, line by line.
    lines: VecDeque<String>,
    progress: Progress,
}

impl Watched {
    fn heard(&self) -> MutexGuard<'_, Heard> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn hear(&self, event: &Event) {
        let mut heard = self.heard();
        match event {
            Event::PartStarted { part, estimate_bytes } => {
                let estimate_bytes = *estimate_bytes;
                heard.progress = Progress { part: part.clone(), plain_bytes: 0, estimate_bytes };
            }
            Event::Progress { plain_bytes } => heard.progress.plain_bytes += plain_bytes,
            _ => {}
        }
        let Some(line) = render::event_line(event) else { return };
        if heard.lines.len() == LOG_LINES {
            heard.lines.pop_front();
        }
        heard.lines.push_back(line);
    }

    fn progress(&self) -> Progress {
        self.heard().progress.clone()
    }

    fn log(&self) -> String {
        Vec::from(self.heard().lines.clone()).join("\n")
    }
}

/// Keeps what is said of a job, and passes it on under the name of its source.
struct JobMonitor {
    source: String,
    watched: Arc<Watched>,
    screen: Arc<dyn Monitor>,
}

/// Makes a listener of a job, between it and the screen.
pub(super) fn listen(
    source: &str,
    watched: &Arc<Watched>,
    screen: Arc<dyn Monitor>,
) -> Arc<dyn Monitor> {
    Arc::new(JobMonitor { source: source.to_owned(), watched: watched.clone(), screen })
}

impl Monitor for JobMonitor {
    fn event(&self, event: Event) {
        self.watched.hear(&event);
        let Some(line) = render::event_line(&event) else { return };
        let source = &self.source;
        self.screen.event(match event {
            Event::Warning { text } => Event::Warning { text: format!("{source}: {text}") },
            _ => Event::Step { what: format!("{source}: {line}") },
        });
    }
}
