//! Answers workers: gives them jobs, and hears how far they are (ADR 19).

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use backstay_control::{
    CatalogError, EnrolError, Enrolment, Holder, JobSpec, Lease, LeaseError, Token, TokenKind,
    WaitingJob, Worker,
};
use backstay_engine::error::Passing;
use backstay_engine::event::Event;
use backstay_format::{Sha256, Slug};
use backstay_server::{
    Dispatcher, EnrolRequest, Enrolled, Grant, JobEnd, JobReport, LeaseRef, Process, Refusal,
    TakeRequest,
};
use jiff::{SignedDuration, Timestamp};
use tokio::sync::{oneshot, watch};
use tokio::time::{Instant, sleep, timeout};
use tokio_util::task::TaskTracker;

use super::ending::{Taken, again_after, begin, end_failed, passing};
use super::finish::{Ending, finish};
use super::{by_priority, may_not_begin, to_the_end};
use crate::commands::elsewhere::{bound_to, set_keeper};
use crate::commands::watched::{Watched, hear_job};
use crate::config::{RemoteConfig, SourceConfig, WorkerChoice};
use crate::installation::{Installation, host};
use crate::plain;

/// How long the storage of a job may take to show that it is there, and how long one that did not is left alone.
const LOOK_AT_STORAGE: Duration = Duration::from_secs(20);
const REST: Duration = Duration::from_mins(1);
/// How long a worker may wait for a job at most, and the pause between two looks for one.
const LONGEST_WAIT: Duration = Duration::from_secs(25);
const LOOK_FOR_JOBS: Duration = Duration::from_secs(1);
/// How often it is written down that a worker is there.
const SEEN_EVERY: SignedDuration = SignedDuration::from_secs(15);

/// Answers workers on behalf of a server.
#[derive(Clone)]
pub(super) struct Dispatch {
    /// As the server's last turn left it.
    app: watch::Receiver<Installation>,
    /// What goes on though nobody waits for its answer any more.
    tasks: TaskTracker,
    /// Storages that did not answer, and since when.
    resting: Arc<Mutex<HashMap<String, Instant>>>,
    /// What kept the catalog from answering, as it was told last.
    told: Arc<Mutex<String>>,
}

/// Marks that a storage did not answer in time.
#[derive(Debug, thiserror::Error)]
#[error("no answer in {} s", LOOK_AT_STORAGE.as_secs())]
struct Silent;

impl Dispatch {
    pub(super) fn new(app: watch::Receiver<Installation>) -> Self {
        let (tasks, resting, told) = (TaskTracker::new(), Arc::default(), Arc::default());
        Self { app, tasks, resting, told }
    }

    /// Waits for what is still being done.
    pub(super) async fn finish(&self) {
        self.tasks.close();
        self.tasks.wait().await;
    }

    fn app(&self) -> Installation {
        self.app.borrow().clone()
    }

    /// The worker hears that it is to ask again; why is for whoever looks after the server, once.
    fn away(&self, error: &CatalogError) -> Refusal {
        let text = format!("workers cannot be answered: {error:#}");
        let mut told = locked(&self.told);
        if *told != text {
            self.app().cx.event(Event::Warning { text: text.clone() });
            *told = text;
        }
        Refusal::Away(error.to_string())
    }

    fn not_renewed(&self, error: &LeaseError) -> Refusal {
        match error {
            LeaseError::Catalog(error) => self.away(error),
            LeaseError::Held { .. } | LeaseError::Lost { .. } => Refusal::Lost,
        }
    }

    /// Says whether a storage is left alone for now.
    fn rests(&self, storage: &str) -> bool {
        let mut resting = locked(&self.resting);
        resting.retain(|_, since| since.elapsed() < REST);
        resting.contains_key(storage)
    }

    /// Waits for a job for a worker, as long as it waits for the answer.
    async fn wait(
        &self,
        worker: &Worker,
        request: &TakeRequest,
        answer: &oneshot::Sender<Result<Option<Grant>, Refusal>>,
    ) -> Result<Option<Grant>, Refusal> {
        let until = Instant::now() + Duration::from_secs(request.patience).min(LONGEST_WAIT);
        loop {
            let grant = self.next(worker, &request.process).await?;
            let is_over = Instant::now() >= until || self.app().cx.cancelled().is_some();
            if grant.is_some() || is_over || answer.is_closed() {
                return Ok(grant);
            }
            sleep(LOOK_FOR_JOBS).await;
        }
    }

    /// Gives the next job that waits for a worker like this, if there is one.
    async fn next(&self, worker: &Worker, process: &Process) -> Result<Option<Grant>, Refusal> {
        let app = self.app();
        let away = |error: CatalogError| self.away(&error);
        let now = app.catalog.time(app.cx.now()).await.map_err(away)?;
        // It may have been revoked while it waited.
        if !app.catalog.is_worker(worker).await.map_err(away)? {
            return Err(Refusal::Unknown);
        }
        let waiting = app.catalog.waiting_jobs(now).await.map_err(away)?;
        for job in by_priority(&app.config, waiting) {
            let Some(source) = app.config.sources.get(&job.source) else { continue };
            let remote = source.remote().filter(|remote| remote.worker.takes(worker));
            let Some(remote) = remote else { continue };
            if may_not_begin(source, &job, now) || self.rests(&source.storage) {
                continue;
            }
            let granted = async {
                let bound = bound_to(&app, source, Some(&job.spec)).await?;
                if bound.is_some_and(|name| name != worker.name) {
                    return Ok(None);
                }
                self.grant(&app, (worker, process), (&job, source, remote), now).await
            };
            match granted.await {
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

    /// Gives a job to a worker, with all that it needs; none if somebody else is at it.
    async fn grant(
        &self,
        app: &Installation,
        (worker, process): (&Worker, &Process),
        (job, source, remote): (&WaitingJob, &SourceConfig, &RemoteConfig),
        now: Timestamp,
    ) -> anyhow::Result<Option<Grant>> {
        let me = Holder::this_process(&host());
        if app.catalog.held(&job.source, &me, now).await?.is_some() {
            return Ok(None);
        }
        // Before anything is taken: a storage takes its time to answer, and leases run.
        let order = timeout(LOOK_AT_STORAGE, app.work_order(source, remote, job)).await;
        let order = order.unwrap_or_else(|_| {
            Err(anyhow::Error::new(Silent).context(format!("storage {}", source.storage)))
        });
        let holder = worker.holder(&process.instance, process.pid);
        let Some(taken) = Taken::take(app, (source, job), &holder).await? else { return Ok(None) };
        let begun = begin(app, source, (job, &taken.source, Some(worker)), now).await;
        let order = match order {
            // From here on it may keep what was there.
            Ok(order)
                if matches!((&begun, &job.spec), (Ok(true), JobSpec::Restore(_)))
                    && !job.spec.is_beside() =>
            {
                set_keeper(app, source, Some(&worker.name)).await.map(|()| order)
            }
            order => order,
        };
        match (begun, order) {
            (Ok(true), Ok(order)) => {
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
            (Ok(true), Err(error)) => {
                let is_silent = error.chain().any(|cause| cause.is::<Silent>());
                let passing = passing(&error).or(is_silent.then_some(Passing::Outage));
                if passing == Some(Passing::Outage) {
                    locked(&self.resting).insert(source.storage.clone(), Instant::now());
                }
                let error = error.context("the job was not given to its worker");
                let again = passing.map(|passing| again_after(source, passing));
                end_failed(app, job, again, &error).await;
                taken.keep(app).give_back().await;
                Err(error)
            }
            (begun, _) => {
                taken.keep(app).give_back().await;
                begun.map(|_| None)
            }
        }
    }

    /// Takes a job back that nobody was there to hear of: it waits again, for whoever asks next.
    async fn recall(&self, worker: &Worker, process: &Process, grant: &Grant) {
        let app = self.app();
        let holder = worker.holder(&process.instance, process.pid);
        let Ok((lease, _)) = leases(&grant.leases, &holder) else { return };
        if let Ok(Some(job)) = app.catalog.job_under(&grant.job, &lease).await
            && let Err(error) = app.catalog.recall_job(&job.id, &lease).await
        {
            self.away(&error);
        }
        for lease in &grant.leases {
            let lease = Lease::of(lease.name.clone(), lease.token, &holder);
            // Else it runs out by itself.
            if let Err(error) = app.catalog.release(&lease).await {
                self.not_renewed(&error);
            }
        }
    }

    /// Takes over a job that a worker says has ended, and finds out beside all else whether that is so.
    async fn take_back(&self, worker: Worker, end: JobEnd) -> Result<(), Refusal> {
        let app = self.app();
        let holder = worker.holder(&end.process.instance, end.process.pid);
        let (lease, place) = leases(&end.leases, &holder)?;
        let job = app.catalog.job_under(&end.job, &lease).await;
        let job = job.map_err(|error| self.away(&error))?.ok_or(Refusal::Lost)?;
        // From here on the worker has no say in it, however often it asks.
        let me = Holder::this_process(&host());
        let source = app.catalog.take_over_job(&job.id, &lease, &me, app.cx.now()).await;
        let source = source.map_err(|error| self.not_renewed(&error))?;
        let watched = Arc::new(Watched::default());
        let whole = app.cx.clone();
        let heard = |screen| hear_job(&job.source, &watched, screen);
        let app = app.with_cx(whole.piece().heard_by(heard));
        // Kept before anything else is asked: as long as this process lives, nobody takes it from here.
        let mut kept = Taken { source, place: None }.keep(&app);
        if let Some(place) = place
            && let Ok(place) = app.catalog.take_over(&place, &me, app.cx.now()).await
        {
            kept.add_place(&app, place);
        }
        self.tasks.spawn(finish(Ending { app, whole, job, worker, kept, end, watched }));
        Ok(())
    }
}

#[async_trait]
impl Dispatcher for Dispatch {
    async fn health(&self) -> Result<(), Refusal> {
        let app = self.app();
        // Whatever is read: that it can be.
        app.catalog.slots().await.map(drop).map_err(|error| self.away(&error))
    }

    async fn enrol(&self, request: EnrolRequest) -> Result<Enrolled, Refusal> {
        let malformed = |error: &dyn std::fmt::Display| Refusal::Malformed(error.to_string());
        let invitation = Token::parse(TokenKind::Invitation, &request.invitation)
            .map_err(|error| malformed(&error))?;
        if !Token::is_id(&request.id) {
            return Err(malformed(&"expected an id of 16 hexadecimal digits"));
        }
        let slug = |text: String| text.parse::<Slug>().map_err(|error| malformed(&error));
        let labels = request.labels.map(|labels| labels.into_iter().map(slug).collect());
        let wish = Enrolment {
            id: request.id,
            secret: request.secret.parse::<Sha256>().map_err(|error| malformed(&error))?,
            name: slug(request.name)?,
            labels: labels.transpose()?,
            host: plain::name(&request.host),
            version: plain::name(&request.version),
        };
        let app = self.app();
        let now = app.catalog.time(app.cx.now()).await.map_err(|error| self.away(&error))?;
        let named = WorkerChoice::Named(wish.name.clone());
        let mut remotes = app.config.sources.values().filter_map(SourceConfig::remote);
        let is_asked_for = remotes.any(|remote| remote.worker == named);
        match app.catalog.enrol(&invitation, &wish, is_asked_for, now).await {
            Ok(worker) => {
                let what = format!("{worker} on {} is one of ours now", worker.host);
                app.cx.event(Event::Step { what });
                let labels = worker.labels.iter().map(ToString::to_string).collect();
                Ok(Enrolled { name: worker.name.to_string(), labels })
            }
            Err(EnrolError::Catalog(error)) => Err(self.away(&error)),
            Err(error) => Err(Refusal::NotAllowed(error.to_string())),
        }
    }

    async fn worker_of(&self, token: &Token) -> Result<Option<Worker>, Refusal> {
        self.app().catalog.worker_of(token).await.map_err(|error| self.away(&error))
    }

    async fn take(&self, worker: &Worker, request: TakeRequest) -> Result<Option<Grant>, Refusal> {
        let app = self.app();
        let away = |error: CatalogError| self.away(&error);
        let now = app.catalog.time(app.cx.now()).await.map_err(away)?;
        if request.leaves {
            app.catalog.worker_left(worker, now).await.map_err(away)?;
            return Ok(None);
        }
        let is_back = worker.left_at.is_some();
        if is_back || now.duration_since(worker.seen_at).abs() >= SEEN_EVERY {
            let (host, version) = (plain::name(&request.host), plain::name(&request.version));
            app.catalog.see_worker(worker, (&host, &version), now).await.map_err(away)?;
        }
        if !request.has_room {
            return Ok(None);
        }
        // A worker that goes away in the middle leaves nothing half done: a job that it does not hear of is recalled.
        let (dispatch, worker) = (self.clone(), worker.clone());
        let (answer, heard) = oneshot::channel();
        self.tasks.spawn(async move {
            let granted = dispatch.wait(&worker, &request, &answer).await;
            if let Err(Ok(Some(grant))) = answer.send(granted) {
                dispatch.recall(&worker, &request.process, &grant).await;
            }
        });
        heard.await.unwrap_or_else(|_| Err(Refusal::Away("the server ends".to_owned())))
    }

    async fn report(&self, worker: &Worker, report: JobReport) -> Result<Option<String>, Refusal> {
        let app = self.app();
        let away = |error: CatalogError| self.away(&error);
        let holder = worker.holder(&report.process.instance, report.process.pid);
        let (lease, place) = leases(&report.leases, &holder)?;
        let job = app.catalog.job_under(&report.job, &lease).await.map_err(away)?;
        let job = job.ok_or(Refusal::Lost)?;
        let now = app.cx.now();
        app.catalog.renew(&lease, now).await.map_err(|error| self.not_renewed(&error))?;
        if let Some(place) = place {
            // One that went to somebody else is no reason to stop: the storage takes one more.
            if let Err(LeaseError::Catalog(error)) = app.catalog.renew(&place, now).await {
                return Err(self.away(&error));
            }
        }
        if let Some(mut progress) = report.progress {
            progress.part = plain::name(&progress.part);
            app.catalog.keep_progress(&job.id, &progress).await.map_err(away)?;
        }
        app.catalog.wish_to_cancel(&job.id).await.map_err(away)
    }

    async fn end(&self, worker: &Worker, end: JobEnd) -> Result<(), Refusal> {
        // A worker that goes away in the middle leaves no lease that nobody gives back.
        let (dispatch, worker) = (self.clone(), worker.clone());
        to_the_end(&self.tasks, async move { dispatch.take_back(worker, end).await }).await
    }
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

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
