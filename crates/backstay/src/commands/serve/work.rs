//! Doing a job that was taken up: heard, watched, written down.

use std::future::pending;
use std::sync::Arc;
use std::time::Duration;

use backstay_control::{BackupSpec, Progress, WaitingJob};
use backstay_engine::cx::{CancelReason, Cx};
use backstay_engine::event::Event;

use super::ending::{Kept, end_failed, why_again};
use crate::commands::backup::{Made, Tries, end_made, make};
use crate::commands::watched::Watched;
use crate::config::SourceConfig;
use crate::installation::Installation;

/// The pause between two looks at whether somebody cancelled a job, and at how far it is.
const LOOK: Duration = Duration::from_secs(2);

/// A job that was taken up.
pub(super) struct Begun {
    pub(super) app: Installation,
    pub(super) source: SourceConfig,
    pub(super) job: WaitingJob,
    pub(super) spec: BackupSpec,
    pub(super) kept: Kept,
    pub(super) watched: Arc<Watched>,
    /// The server's own, which says whether all of it ends.
    pub(super) whole: Cx,
}

/// Does a job, and writes down what became of it.
pub(super) async fn work(begun: Begun) {
    let Begun { app, source, job, spec, kept, watched, whole } = begun;
    app.cx.event(Event::Step { what: "the scheduled backup begins".to_owned() });
    let made = tokio::select! {
        made = Box::pin(make(&app, &source, &spec, Tries::One)) => made,
        never = watch(&app, &job, &watched) => match never {},
    };
    say_end(&app, &made);
    if let Err(error) = app.catalog.keep_log(&job.id, &watched.log()).await {
        app.cx.event(Event::Warning { text: format!("the log could not be kept: {error}") });
    }
    match &made {
        Ok(made) => end_made(&app, &job.id, made).await,
        Err(error) => {
            let again = why_again(&app, &source, error, &whole);
            end_failed(&app, &job, again, error).await;
        }
    }
    kept.give_back().await;
    if made.is_ok() {
        app.back_up_catalog_too(&[source.storage].into()).await;
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
