//! One job of a worker.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::Context as _;
use async_trait::async_trait;
use backstay_control::Progress;
use backstay_engine::cx::{CancelReason, Cx};
use backstay_engine::error::Passing;
use backstay_engine::event::Event;
use backstay_format::IndexEntry;
use backstay_server::{CallError, Grant, JobEnd, JobReport, LeaseRef, Outcome, Stop};
use serde_json::Value;
use tokio::time::{Instant, sleep};

use super::Worker;
use crate::commands::backup::{Tries, write};
use crate::commands::drill::{DrillReport, drill_here};
use crate::commands::elsewhere::{Look, look_here};
use crate::commands::restore::{preview_here, ready, restore_here};
use crate::commands::room::warn_of_little;
use crate::commands::serve::passing;
use crate::commands::undo::{confirm_here, ensure_settled, undo_here};
use crate::commands::watched::{Watched, hear_job};
use crate::installation::Installation;
use crate::lease::{Renew, Renewal, renew_until_lost};
use crate::opening::environment;
use crate::work_order::{Task, Use, WorkOrder};

/// The pause between two reports, each of which renews the leases and hears whether somebody cancelled the job.
const REPORT: Duration = Duration::from_secs(2);
/// How long a server that is away is told of the end of a job: it may still find that nobody else took it.
const TELL_FOR: Duration = Duration::from_mins(10);

/// What a job is to its worker.
struct Job {
    worker: Worker,
    id: String,
    source: String,
    leases: Vec<LeaseRef>,
    /// The job's own, which its end and its loss stop.
    cx: Cx,
    watched: Arc<Watched>,
    is_cancelled: AtomicBool,
}

/// What came of a job that went well.
enum Done {
    /// A backup, and what failed after it.
    Backup(Box<IndexEntry>, Option<anyhow::Error>),
    Drill(DrillReport),
    Look(Look),
    /// Something else, and what came of it.
    Other(Value),
}

/// Does a job and says what became of it.
pub(super) async fn work(worker: Worker, grant: Grant) {
    let Grant { job: id, source, leases, work } = grant;
    let watched = Arc::new(Watched::default());
    let cx = worker.cx.piece().heard_by(|screen| hear_job(&source, &watched, screen));
    let is_cancelled = AtomicBool::new(false);
    let job = Job { worker, id, source, leases, cx, watched, is_cancelled };
    let made = tokio::select! {
        made = Box::pin(job.make(work)) => made,
        never = job.report() => match never {},
    };
    let outcome = job.outcome(made);
    job.tell_end(outcome).await;
}

impl Job {
    async fn make(&self, work: serde_json::Value) -> anyhow::Result<Done> {
        let order: WorkOrder = serde_json::from_value(work)
            .context("the server sent a job that this program does not understand; install the same version on both")?;
        let place = (self.worker.home.clone(), self.worker.catalog.clone());
        let app = Installation::for_order(place, &order, self.cx.clone(), &environment())?;
        let source = app.source(order.source.as_str()).await?;
        match &order.task {
            Task::Backup(backup) => {
                ensure_settled(&app, &source).await?;
                warn_of_little(&app, &source);
                let vault = app.vault_of(&backup.access, Use::Write).await?;
                let tries = if backup.waits { Tries::Several } else { Tries::One };
                let (entry, trouble) = write(&app, &source, (&backup.spec, tries), &vault).await?;
                Ok(Done::Backup(Box::new(entry), trouble))
            }
            Task::Drill(drill) => {
                let vault = app.vault_of(&drill.access, Use::Read).await?;
                let report = drill_here(&app, &source, &vault, &drill.backup).await?;
                Ok(Done::Drill(report.cut()))
            }
            Task::Test => Ok(Done::Look(self.cx.run(look_here(&app, &source)).await??)),
            Task::Preview(order) => {
                let vault = app.vault_of(&order.access, Use::Read).await?;
                let wanted = (&order.spec, order.past.as_ref());
                Ok(Done::Other(preview_here(&app, &source, &vault, wanted).await?.into_json()))
            }
            Task::Restore(order) => {
                let what_for = if order.spec.wants_safety() { Use::Write } else { Use::Read };
                let vault = app.vault_of(&order.access, what_for).await?;
                // It sweeps nothing: what its own catalog does not know may be kept by another installation of that machine. And
                // whoever only wants something beside did not say that an interrupted restore is to be finished.
                if order.spec.to.is_none() {
                    ready(&app, &source).await?;
                }
                let report = restore_here(&app, &source, &vault, &order.spec).await?;
                Ok(Done::Other(report.into_json()))
            }
            Task::Undo => Ok(Done::Other(undo_here(&app, &source).await?.into())),
            Task::Confirm(access) => {
                app.vault_of(access, Use::Write).await?;
                Ok(Done::Other(confirm_here(&app, &source).await?.into()))
            }
        }
    }

    /// Says how far it is, again and again. Ends never: a loss stops the work, which ends by itself.
    async fn report(&self) -> Infallible {
        let mut reports = Reports { job: self, told: Progress::default() };
        renew_until_lost(&self.cx, REPORT, &mut reports).await;
        std::future::pending().await
    }

    fn cancel(&self, reason: &str) {
        if !self.is_cancelled.swap(true, Ordering::Relaxed) {
            self.cx.event(Event::Step { what: format!("cancelled: {reason}") });
            self.cx.cancel_handle().cancel(CancelReason::User);
        }
    }

    fn outcome(&self, done: anyhow::Result<Done>) -> Outcome {
        let error = match done {
            Ok(Done::Look(Look { summary, warnings })) => {
                return Outcome::Tested { summary, warnings };
            }
            Ok(Done::Other(answer)) => return Outcome::Done { answer },
            Ok(Done::Drill(report)) => return Outcome::Drilled { report: report.to_json() },
            Ok(Done::Backup(entry, trouble)) => {
                self.cx.event(Event::Step { what: format!("backup {} is written", entry.id) });
                let trouble = trouble.map(|error| format!("{error:#}"));
                return Outcome::Made { backup: entry.id.to_string(), trouble };
            }
            Err(error) => error,
        };
        let text = format!("{error:#}");
        self.cx.event(Event::Warning { text: text.clone() });
        if self.is_cancelled.load(Ordering::Relaxed) {
            return Outcome::Stopped { error: text, by: Stop::Cancelled };
        }
        let passing = match self.cx.cancelled() {
            // Whoever has it now does not ask; if nobody has, the way to the server was out of order.
            Some(CancelReason::LeaseLost) => Some(Passing::Outage),
            Some(_) => return Outcome::Stopped { error: text, by: Stop::WorkerEnds },
            None => passing(&error),
        };
        let passing = passing.map(|passing| match passing {
            Passing::GaveWay => backstay_server::Passing::GaveWay,
            Passing::Outage => backstay_server::Passing::Outage,
        });
        Outcome::Failed { error: text, passing }
    }

    /// Says whether this machine keeps what a restore of the source replaced, or may have been stopped in one.
    async fn keeps(&self) -> Option<bool> {
        let swaps = self.worker.catalog.swaps(Some(&self.source)).await;
        swaps.ok().map(|swaps| !swaps.is_empty())
    }

    /// Tells the server, which may be away for a while.
    async fn tell_end(&self, outcome: Outcome) {
        let end = JobEnd {
            process: self.worker.process.clone(),
            job: self.id.clone(),
            leases: self.leases.clone(),
            outcome,
            log: self.watched.log(),
            keeps: self.keeps().await,
        };
        let until = Instant::now() + TELL_FOR;
        loop {
            let error = match self.worker.client.end(&self.worker.token, &end).await {
                Ok(()) => return,
                Err(error) => error,
            };
            let is_ending = self.worker.cx.cancelled().is_some();
            if !error.is_passing() || is_ending || Instant::now() > until {
                let text = format!("the server was not told of the end: {error}");
                return self.cx.event(Event::Warning { text });
            }
            sleep(REPORT).await;
        }
    }
}

/// Reports of a job, each of which renews its leases.
struct Reports<'a> {
    job: &'a Job,
    told: Progress,
}

#[async_trait]
impl Renew for Reports<'_> {
    async fn renew(&mut self) -> Renewal {
        let (job, progress) = (self.job, self.job.watched.progress());
        let report = JobReport {
            process: job.worker.process.clone(),
            job: job.id.clone(),
            leases: job.leases.clone(),
            progress: (progress != self.told).then(|| progress.clone()),
        };
        match job.worker.client.report(&job.worker.token, &report).await {
            Ok(answer) => {
                self.told = progress;
                if let Some(reason) = answer.cancel {
                    job.cancel(&reason);
                }
                Renewal::Renewed
            }
            Err(CallError::Lost(_) | CallError::Unknown(_)) => Renewal::Lost,
            Err(_) => Renewal::Unknown,
        }
    }
}
