//! Doing a job that was taken up: heard, watched, written down.

use std::sync::Arc;

use backstay_control::{JobSpec, WaitingJob};
use backstay_engine::cx::Cx;
use backstay_engine::event::Event;

use super::ending::{Ended, Kept, close, why_again};
use crate::commands::backup::{Tries, make};
use crate::commands::drill::drill_here;
use crate::commands::elsewhere::{Look, look_here};
use crate::commands::import::import_here;
use crate::commands::restore::{preview_here, ready, restore_here};
use crate::commands::undo::{confirm_here, sweep, undo_here};
use crate::commands::watched::{Watched, watch};
use crate::config::SourceConfig;
use crate::installation::Installation;
use crate::past::Past;

/// A job that was taken up.
pub(super) struct Begun {
    pub(super) app: Installation,
    pub(super) source: SourceConfig,
    pub(super) job: WaitingJob,
    pub(super) kept: Kept,
    pub(super) watched: Arc<Watched>,
    /// The server's own, which says whether all of it ends.
    pub(super) whole: Cx,
}

/// Does a job, and writes down what became of it.
pub(super) async fn work(begun: Begun) {
    let Begun { app, source, job, kept, watched, whole } = begun;
    let done = tokio::select! {
        done = Box::pin(act(&app, &source, &job)) => done,
        never = watch(&app, &job.id, &watched) => match never {},
    };
    let ended = done.map_err(|error| (why_again(&app, &source, &error, &whole), error));
    Box::pin(close(&app, &source, (&job, kept), ("", &watched), ended)).await;
}

/// Does what is asked of a job, under the lease on its source.
async fn act(app: &Installation, source: &SourceConfig, job: &WaitingJob) -> anyhow::Result<Ended> {
    let begins = |what: &str| app.cx.event(Event::Step { what: format!("the {what} begins") });
    match &job.spec {
        JobSpec::Backup(spec) => {
            begins(if job.is_asked_for { "backup" } else { "scheduled backup" });
            // Whoever asks does not ask again by himself.
            let tries = if job.is_asked_for { Tries::Several } else { Tries::One };
            let made = Box::pin(make(app, source, spec, tries)).await?;
            Ok(Ended::Made(Box::new(made)))
        }
        JobSpec::Drill { backup } => {
            begins("drill");
            sweep(app, source).await?;
            let vault = app.vault(app.storage(&source.storage)?).await?;
            let report = Box::pin(drill_here(app, source, &vault, backup)).await?;
            Ok(Ended::Drilled(backup.clone(), report))
        }
        JobSpec::Preview(spec) => {
            let vault = app.vault(app.storage(&source.storage)?).await?;
            let past = Past::of(app, source, &vault).await?;
            let wanted = (spec, past.as_ref());
            Ok(Ended::Done(preview_here(app, source, &vault, wanted).await?.into_json()))
        }
        JobSpec::Restore(spec) => {
            begins("restore");
            // Who only wants something beside did not say that an interrupted restore is to be finished.
            if spec.to.is_none() {
                ready(app, source).await?;
                sweep(app, source).await?;
            }
            let storage = app.storage(&source.storage)?;
            let vault = match spec.wants_safety() {
                true => app.vault_for_writing(storage).await?,
                false => app.vault(storage).await?,
            };
            let report = Box::pin(restore_here(app, source, &vault, spec)).await?;
            Ok(Ended::Done(report.into_json()))
        }
        JobSpec::Import { from } => {
            begins("import");
            Ok(Ended::Imported(Box::pin(import_here(app, source, from)).await?))
        }
        JobSpec::Undo => Ok(Ended::Done(undo_here(app, source).await?.into())),
        JobSpec::Confirm => Ok(Ended::Done(confirm_here(app, source).await?.into())),
        JobSpec::Test => {
            let Look { summary, warnings } = look_here(app, source).await?;
            Ok(Ended::Tested(std::iter::once(summary).chain(warnings).collect()))
        }
    }
}
