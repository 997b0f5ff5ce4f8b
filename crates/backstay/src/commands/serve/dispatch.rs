//! Answers workers: gives them jobs, hears how far they are, and looks at what they made before it counts (ADR 19).

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use async_trait::async_trait;
use backstay_control::{
    Again, CatalogError, EnrolError, Enrolment, Holder, JobState, Lease, LeaseError, Token,
    TokenKind, WaitingJob, Worker,
};
use backstay_engine::cx::Cx;
use backstay_engine::error::Passing;
use backstay_engine::event::Event;
use backstay_format::{BackupId, IndexEntry, Sha256, Slug};
use backstay_server::{
    Dispatcher, EnrolRequest, Enrolled, Grant, JobEnd, JobReport, LeaseRef, Outcome, Process,
    Refusal, Stop, TakeRequest,
};
use jiff::{SignedDuration, Timestamp};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::task::TaskTracker;

use super::ending::{Kept, Taken, again_after, begin, end_failed, passing, why_again};
use super::{by_priority, may_not_begin};
use crate::commands::backup::{Made, end_made, settle};
use crate::commands::watched::{Watched, hear_job};
use crate::config::{RemoteConfig, SourceConfig};
use crate::installation::{Installation, host};

/// How long the storage of a job may take to show that it is there; the worker waits a little longer.
const LOOK_AT_STORAGE: Duration = Duration::from_secs(30);
/// How long a backup that a worker made is looked for, and the pause between two looks.
const LOOK_FOR_BACKUP: Duration = Duration::from_mins(10);
const LOOK_AGAIN: Duration = Duration::from_secs(10);
/// How long a worker may wait for a job at most, and the pause between two looks for one.
const LONGEST_WAIT: Duration = Duration::from_secs(25);
const LOOK_FOR_JOBS: Duration = Duration::from_secs(1);
/// How often it is written down that a worker is there.
const SEEN_EVERY: SignedDuration = SignedDuration::from_secs(15);

/// Answers workers on behalf of a server.
pub(super) struct Dispatch {
    /// As the server's last turn left it.
    app: watch::Receiver<Installation>,
    /// What is done after answers were given.
    settling: TaskTracker,
}

impl Dispatch {
    pub(super) fn new(app: watch::Receiver<Installation>) -> Self {
        Self { app, settling: TaskTracker::new() }
    }

    /// Waits for what is still being done.
    pub(super) async fn finish(&self) {
        self.settling.close();
        self.settling.wait().await;
    }

    fn app(&self) -> Installation {
        self.app.borrow().clone()
    }

    /// Gives the next job that waits for a worker like this, if there is one.
    async fn next(&self, worker: &Worker, process: &Process) -> Result<Option<Grant>, Refusal> {
        let app = self.app();
        let now = app.catalog.time(app.cx.now()).await.map_err(|error| away(&error))?;
        // It may have been revoked while it waited.
        if !app.catalog.is_worker(worker).await.map_err(|error| away(&error))? {
            return Err(Refusal::Unknown);
        }
        let waiting = app.catalog.waiting_jobs(now).await.map_err(|error| away(&error))?;
        for job in by_priority(&app.config, waiting) {
            let Some(source) = app.config.sources.get(&job.source) else { continue };
            let remote = source.remote().filter(|remote| remote.worker.takes(worker));
            let Some(remote) = remote else { continue };
            match self.grant((worker, process), (&job, source, remote), now).await {
                Ok(None) => {}
                Ok(grant) => return Ok(grant),
                // One that cannot be given keeps no other from it.
                Err(error) => {
                    let text = format!("{}: {error:#}", job.source);
                    app.cx.event(Event::Warning { text });
                }
            }
        }
        Ok(None)
    }

    /// Gives a job to a worker, with all that it needs; none if it is not to begin now.
    async fn grant(
        &self,
        (worker, process): (&Worker, &Process),
        (job, source, remote): (&WaitingJob, &SourceConfig, &RemoteConfig),
        now: Timestamp,
    ) -> anyhow::Result<Option<Grant>> {
        if may_not_begin(source, job, now) {
            return Ok(None);
        }
        let app = self.app();
        let holder = worker.holder(&process.instance, process.pid);
        let Some(taken) = Taken::take(&app, (source, job), &holder).await? else { return Ok(None) };
        if !begin(&app, source, (job, &taken.source, Some(worker)), now).await? {
            taken.keep(&app).give_back().await;
            return Ok(None);
        }
        let order = timeout(LOOK_AT_STORAGE, app.work_order(source, remote, &job.spec)).await;
        let order = match order {
            Ok(order) => order.map_err(|error| (passing(&error), error)),
            Err(_) => {
                let error = anyhow::anyhow!("storage {} does not answer", source.storage);
                Err((Some(Passing::Outage), error))
            }
        };
        match order {
            Ok(order) => {
                app.cx.event(Event::Step { what: format!("{}: given to {worker}", job.source) });
                let leases = taken
                    .leases()
                    .map(|lease| LeaseRef { name: lease.name().to_owned(), token: lease.token() });
                Ok(Some(Grant {
                    job: job.id.as_str().to_owned(),
                    source: job.source.clone(),
                    leases: leases.collect(),
                    work: serde_json::to_value(order)?,
                }))
            }
            Err((passing, error)) => {
                let error = error.context("the job was not given to its worker");
                let again = passing.map(|passing| again_after(source, passing));
                end_failed(&app, job, again, &error).await;
                taken.keep(&app).give_back().await;
                Err(error)
            }
        }
    }
}

#[async_trait]
impl Dispatcher for Dispatch {
    async fn health(&self) -> Result<(), Refusal> {
        let app = self.app();
        // Whatever is read: that it can be.
        app.catalog.slots().await.map(drop).map_err(|error| away(&error))
    }

    async fn enrol(&self, request: EnrolRequest) -> Result<Enrolled, Refusal> {
        let malformed = |error: &dyn std::fmt::Display| Refusal::Malformed(error.to_string());
        let invitation = Token::parse(TokenKind::Invitation, &request.invitation)
            .map_err(|error| malformed(&error))?;
        let slug = |text: String| text.parse::<Slug>().map_err(|error| malformed(&error));
        let labels = request.labels.map(|labels| labels.into_iter().map(slug).collect());
        let wish = Enrolment {
            id: request.id,
            secret: request.secret.parse::<Sha256>().map_err(|error| malformed(&error))?,
            name: slug(request.name)?,
            labels: labels.transpose()?,
            host: request.host,
            version: request.version,
        };
        let app = self.app();
        let now = app.catalog.time(app.cx.now()).await.map_err(|error| away(&error))?;
        match app.catalog.enrol(&invitation, &wish, now).await {
            Ok(worker) => {
                let what = format!("{worker} on {} is one of ours now", worker.host);
                app.cx.event(Event::Step { what });
                let labels = worker.labels.iter().map(ToString::to_string).collect();
                Ok(Enrolled { name: worker.name.to_string(), labels })
            }
            Err(EnrolError::Catalog(error)) => Err(away(&error)),
            Err(error) => Err(Refusal::NotAllowed(error.to_string())),
        }
    }

    async fn worker_of(&self, token: &Token) -> Result<Option<Worker>, Refusal> {
        self.app().catalog.worker_of(token).await.map_err(|error| away(&error))
    }

    async fn take(&self, worker: &Worker, request: TakeRequest) -> Result<Option<Grant>, Refusal> {
        let app = self.app();
        let now = app.catalog.time(app.cx.now()).await.map_err(|error| away(&error))?;
        if now.duration_since(worker.seen_at).abs() >= SEEN_EVERY {
            let about = (request.host.as_str(), request.version.as_str());
            app.catalog.see_worker(worker, about, now).await.map_err(|error| away(&error))?;
        }
        if !request.has_room {
            return Ok(None);
        }
        let patience = Duration::from_secs(request.patience).min(LONGEST_WAIT);
        let until = Instant::now() + patience;
        loop {
            let grant = self.next(worker, &request.process).await?;
            if grant.is_some() || Instant::now() >= until || app.cx.cancelled().is_some() {
                return Ok(grant);
            }
            sleep(LOOK_FOR_JOBS).await;
        }
    }

    async fn report(&self, worker: &Worker, report: JobReport) -> Result<Option<String>, Refusal> {
        let app = self.app();
        let holder = worker.holder(&report.process.instance, report.process.pid);
        let (lease, place) = leases(&report.leases, &holder)?;
        let job = app.catalog.job_under(&report.job, &lease).await.map_err(|error| away(&error))?;
        let job = job.ok_or(Refusal::Lost)?;
        let now = app.cx.now();
        app.catalog.renew(&lease, now).await.map_err(not_renewed)?;
        if let Some(place) = place {
            // One that went to somebody else is no reason to stop: the storage takes one more.
            if let Err(LeaseError::Catalog(error)) = app.catalog.renew(&place, now).await {
                return Err(away(&error));
            }
        }
        if let Some(progress) = &report.progress {
            app.catalog.keep_progress(&job.id, progress).await.map_err(|error| away(&error))?;
        }
        app.catalog.wish_to_cancel(&job.id).await.map_err(|error| away(&error))
    }

    async fn end(&self, worker: &Worker, end: JobEnd) -> Result<(), Refusal> {
        let app = self.app();
        let holder = worker.holder(&end.process.instance, end.process.pid);
        let (lease, place) = leases(&end.leases, &holder)?;
        let job = app.catalog.job_under(&end.job, &lease).await.map_err(|error| away(&error))?;
        let job = job.ok_or(Refusal::Lost)?;
        // From here on the worker has no say in it, however often it asks.
        let me = Holder::this_process(&host());
        let source = app.catalog.take_over(&lease, &me, app.cx.now()).await.map_err(not_renewed)?;
        let place = match place {
            Some(place) => app.catalog.take_over(&place, &me, app.cx.now()).await.ok(),
            None => None,
        };
        let watched = Arc::new(Watched::default());
        let whole = app.cx.clone();
        let heard = |screen| hear_job(&job.source, &watched, screen);
        let app = app.with_cx(whole.piece().heard_by(heard));
        let kept = Taken { source, place }.keep(&app);
        app.catalog.hand_over(&job.id, kept.source()).await.map_err(|error| away(&error))?;
        self.settling.spawn(finish((app, whole), job, kept, (end, watched)));
        Ok(())
    }
}

/// What became of a job that went well.
enum Ended {
    Made(Box<Made>),
    /// Line by line.
    Tested(Vec<String>),
}

/// Looks at what a worker says that it made, does what is to be done after it, and writes down what became of the job.
async fn finish(
    (app, whole): (Installation, Cx),
    job: WaitingJob,
    kept: Kept,
    (end, watched): (JobEnd, Arc<Watched>),
) {
    let Some(source) = app.config.sources.get(&job.source) else {
        let error = anyhow::anyhow!("the source is not in the configuration any more");
        end_failed(&app, &job, None, &error).await;
        return kept.give_back().await;
    };
    let ended = match end.outcome {
        Outcome::Tested { summary, warnings } => {
            Ok(Ended::Tested([vec![summary], warnings].concat()))
        }
        Outcome::Made { backup, trouble } => look_at(&app, source, &backup, trouble)
            .await
            .map(|made| Ended::Made(Box::new(made)))
            .map_err(|error| (why_again(&app, source, &error, &whole), error)),
        Outcome::Failed { error, passing } => {
            let passing = passing.map(|passing| match passing {
                backstay_server::Passing::GaveWay => Passing::GaveWay,
                backstay_server::Passing::Outage => Passing::Outage,
            });
            Err((passing.map(|passing| again_after(source, passing)), anyhow::anyhow!(error)))
        }
        Outcome::Stopped { error, by } => {
            let again = (by == Stop::WorkerEnds).then_some(Again::Interrupted);
            Err((again, anyhow::anyhow!(error)))
        }
    };
    // Theirs, and what was said here.
    let mut log = [end.log, watched.log()].join("\n");
    match &ended {
        Ok(Ended::Made(made)) => app.cx.event(Event::Step { what: made.summary() }),
        Ok(Ended::Tested(lines)) => log = lines.join("\n"),
        Err((_, error)) => app.cx.event(Event::Warning { text: format!("{error:#}") }),
    }
    if let Err(error) = app.catalog.keep_log(&job.id, log.trim()).await {
        app.cx.event(Event::Warning { text: format!("the log could not be kept: {error}") });
    }
    match &ended {
        Ok(Ended::Made(made)) => end_made(&app, &job.id, made).await,
        Ok(Ended::Tested(_)) => app.end_job(&job.id, JobState::Succeeded, None, None).await,
        Err((again, error)) => end_failed(&app, &job, *again, error).await,
    }
    kept.give_back().await;
    if let Ok(Ended::Made(_)) = ended {
        app.back_up_catalog_too(&[source.storage.clone()].into()).await;
    }
}

/// Reads the manifest of a backup that a worker says to have made: nothing is called good without proof.
async fn look_at(
    app: &Installation,
    source: &SourceConfig,
    backup: &str,
    trouble: Option<String>,
) -> anyhow::Result<Made> {
    let id: BackupId = backup.parse().context("the worker named a backup that cannot be one")?;
    let place = app.place(&source.name, id);
    let until = Instant::now() + LOOK_FOR_BACKUP;
    let (vault, entry) = loop {
        let looked = async {
            let vault = app.vault(app.storage(&source.storage)?).await?;
            let manifest = vault.manifest(&app.cx, &place).await?;
            vault.check_objects(&app.cx, &manifest).await?;
            let hold = vault.hold_of(&app.cx, &place).await?;
            let entry = IndexEntry::new(&manifest, vault.details(&manifest)?, hold);
            anyhow::Ok((vault, entry))
        };
        match looked.await {
            Ok(found) => break found,
            Err(error) if passing(&error).is_some() && Instant::now() < until => {
                app.cx.event(Event::Retrying {
                    what: format!("looking at backup {backup}"),
                    error: format!("{error:#}"),
                    after: LOOK_AGAIN,
                });
                app.cx.run(sleep(LOOK_AGAIN)).await?;
            }
            Err(error) => {
                let context =
                    format!("the worker made backup {backup}, and the server cannot read it");
                return Err(error.context(context));
            }
        }
    };
    settle(app, source, &vault, &entry).await;
    Ok(Made::new(app, source, &vault, (entry, trouble.map(|text| anyhow::anyhow!(text)))))
}

/// Reads which leases a worker means: that of the source, and that of a place at its storage, if it has one.
fn leases(named: &[LeaseRef], holder: &Holder) -> Result<(Lease, Option<Lease>), Refusal> {
    let lease = |named: &LeaseRef| Lease::of(named.name.clone(), named.token, holder);
    match named {
        [source] => Ok((lease(source), None)),
        [source, place] => Ok((lease(source), Some(lease(place)))),
        _ => Err(Refusal::Malformed("expected the leases that came with the job".to_owned())),
    }
}

fn not_renewed(error: LeaseError) -> Refusal {
    match error {
        LeaseError::Catalog(error) => away(&error),
        LeaseError::Held { .. } | LeaseError::Lost { .. } => Refusal::Lost,
    }
}

/// The details are for whoever looks after the server.
fn away(error: &CatalogError) -> Refusal {
    Refusal::Away(error.to_string())
}
