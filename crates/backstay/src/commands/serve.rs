//! `backstay serve`: enqueues what is due, and does what waits (ADR 15). All that it knows lies in the catalog.

use std::collections::BTreeMap;
use std::future::pending;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use anyhow::Context as _;
use backstay_control::{Again, Holder, JobState, Since, WaitingJob};
use backstay_engine::cx::{CancelReason, Cx};
use backstay_engine::event::{Event, Monitor};
use backstay_format::Trigger;
use jiff::{SignedDuration, Timestamp};
use tokio::task::JoinSet;

use super::backup::{Made, Order, end_made, make, warn_without_kit};
use crate::cli::{Global, ServeArgs};
use crate::config::SourceConfig;
use crate::exit::Exit;
use crate::installation::{Installation, host, new_job_id};
use crate::lease::{LeaseGuard, is_held};
use crate::opening::config_path;
use crate::render;

/// The pause between two looks at what is due.
const TURN: Duration = Duration::from_secs(5);
/// The pause between two looks at whether somebody cancelled a job.
const LOOK: Duration = Duration::from_secs(2);
/// A slot that lies further in the future says that a clock was set back.
const CLOCK_TOLERANCE: SignedDuration = SignedDuration::from_mins(10);
/// How often a server writes down that it is there.
const SEEN_EVERY: SignedDuration = SignedDuration::from_secs(30);
/// How often jobs are looked for that nobody takes up, or that are old enough to be forgotten.
const TIDY_EVERY: SignedDuration = SignedDuration::from_hours(1);
/// A server that was not seen for this long is none.
const GONE_AFTER: SignedDuration = SignedDuration::from_mins(2);
/// The setting with when a server was seen last.
const SEEN: &str = "a server was seen";
/// Lines of a job's log that are kept, the newest.
const LOG_LINES: usize = 200;

pub(super) async fn serve(
    app: Installation,
    global: &Global,
    args: &ServeArgs,
) -> anyhow::Result<Exit> {
    // One that has another master key than the catalog would fail every job that it takes from others.
    app.keyring().await.context("the keys of the catalog do not open here")?;
    render::print(&format!("serving: {} sources have a schedule", app.config.scheduled()))?;
    warn_without_kit(&app).await?;
    let stop = app.cx.clone();
    let file = config_path(global);
    let stamp = stamp(file.as_deref());
    let (seen, tidied) = (Timestamp::MIN, Timestamp::MIN);
    let mut server = Server { app, file, stamp, seen, tidied, told: BTreeMap::new() };
    // One that panics leaves its job to the next turn, which finds it lost.
    let mut working = JoinSet::new();
    while stop.cancelled().is_none() {
        let room = usize::from(args.jobs).saturating_sub(working.len());
        server.reload().await;
        for begun in server.turn(room).await {
            working.spawn(work(begun));
        }
        tokio::select! {
            _ = stop.until_cancelled() => {}
            Some(_) = working.join_next() => {}
            () = tokio::time::sleep(TURN) => {}
        }
    }
    while working.join_next().await.is_some() {}
    Ok(Exit::Done)
}

/// What a server has in memory: nothing that matters.
struct Server {
    app: Installation,
    /// The configuration that it was started with, and stays with.
    file: Option<PathBuf>,
    /// When that was changed last, as far as it was looked at.
    stamp: Option<SystemTime>,
    /// When it wrote down last that it is there, and when it looked last for jobs to forget.
    seen: Timestamp,
    tidied: Timestamp,
    /// What keeps something from succeeding, by what that is: it is told once, and not each turn.
    told: BTreeMap<String, String>,
}

/// A job that was taken up.
struct Begun {
    app: Installation,
    source: SourceConfig,
    job: WaitingJob,
    guard: LeaseGuard,
    log: Arc<Log>,
    /// The server's own, which says whether all of it ends.
    whole: Cx,
}

fn stamp(file: Option<&Path>) -> Option<SystemTime> {
    std::fs::metadata(file?).ok()?.modified().ok()
}

impl Server {
    /// Reads the configuration anew if it was changed. A wrong one is told, and the one before goes on.
    async fn reload(&mut self) {
        let stamp = stamp(self.file.as_deref());
        let added = self.app.added().await.ok();
        let is_added = added.is_some_and(|added| added != self.app.additions);
        if stamp == self.stamp && !is_added {
            return;
        }
        let had = self.app.config.sources.len();
        let read = self.app.reloaded(self.file.as_deref()).await.and_then(|app| {
            // An editor that empties a file before it writes it.
            let is_lost = app.config.sources.is_empty() && had > 0;
            anyhow::ensure!(
                !is_lost,
                "it has no sources any more; restart the server if that is meant"
            );
            Ok(app)
        });
        let read =
            read.context("the configuration was changed and is wrong; the one before goes on");
        if let Some(app) = self.tell("the configuration", read) {
            (self.app, self.stamp) = (app, stamp);
            self.say("the configuration was read anew");
        }
    }

    /// Does what is to be done now: ends what is lost, enqueues what is due, takes up what waits. What fails is tried again
    /// by the next turn.
    async fn turn(&mut self, room: usize) -> Vec<Begun> {
        let looked = self.look_around().await.context("cannot look for what is due");
        let Some((now, waiting)) = self.tell("the catalog", looked) else { return Vec::new() };
        let mut begun = Vec::new();
        for job in waiting {
            if begun.len() == room {
                break;
            }
            // One that cannot be begun keeps no other from it.
            let source = job.source.clone();
            let taken = self.take_up(job, now).await.context(source.clone());
            begun.extend(self.tell(&source, taken).flatten());
        }
        begun
    }

    async fn look_around(&mut self) -> anyhow::Result<(Timestamp, Vec<WaitingJob>)> {
        let catalog = &self.app.catalog;
        let now = catalog.time(self.app.cx.now()).await?;
        if now.duration_since(self.seen).abs() >= SEEN_EVERY {
            catalog.set_setting(SEEN, &now).await?;
            self.seen = now;
        }
        if now.duration_since(self.tidied).abs() >= TIDY_EVERY {
            catalog.tidy_jobs(now).await?;
            self.tidied = now;
        }
        let me = Holder::this_process(&host());
        for lost in catalog.end_lost_jobs(None, &me, now, new_job_id).await? {
            let next = lost.next_try.map_or_else(
                || "not tried again".to_owned(),
                |next| format!("tried again at {next:.0}"),
            );
            self.say(&format!("{}: the process that worked on it died; {next}", lost.source));
        }
        self.enqueue(now).await?;
        Ok((now, self.app.catalog.waiting_jobs(now).await?))
    }

    /// Enqueues the slots that are due.
    async fn enqueue(&self, now: Timestamp) -> anyhow::Result<()> {
        let catalog = &self.app.catalog;
        let slots = catalog.slots().await?;
        for (name, source) in &self.app.config.sources {
            let Some(policy) = &source.policy else { continue };
            let is_past = |since: &Since| since.time().duration_since(now) <= CLOCK_TOLERANCE;
            let since = match slots.get(name).copied().filter(is_past) {
                Some(since) => since,
                None => catalog.see(name, now, CLOCK_TOLERANCE).await?,
            };
            let Some(due) = policy.due(name, since, now) else { continue };
            if catalog.enqueue_slot((new_job_id(), name), due, now).await? && due.is_late {
                self.say(&format!(
                    "{name}: catching up, since backups were missed before {:.0}",
                    due.slot
                ));
            }
        }
        Ok(())
    }

    /// Takes up a job, unless somebody else works on its source, or nothing may begin now. Sources of other servers are
    /// theirs.
    async fn take_up(&self, job: WaitingJob, now: Timestamp) -> anyhow::Result<Option<Begun>> {
        let Some(source) = self.app.config.sources.get(&job.source).cloned() else {
            return Ok(None);
        };
        if source.policy.as_ref().is_some_and(|policy| policy.is_in_blackout(now)) {
            return Ok(None);
        }
        let log = Arc::new(Log::default());
        let heard = |screen| {
            Arc::new(JobMonitor { source: job.source.clone(), log: log.clone(), screen })
                as Arc<dyn Monitor>
        };
        let app = self.app.with_cx(self.app.cx.piece().heard_by(heard));
        let guard = match app.lease(&job.source).await {
            Ok(guard) => guard,
            Err(error) if is_held(&error) => return Ok(None),
            Err(error) => return Err(error),
        };
        let begun = begin(&app, &source, (&job, &guard), now).await;
        if !matches!(begun, Ok(true)) {
            guard.release().await;
            return begun.map(|_| None);
        }
        let whole = self.app.cx.clone();
        Ok(Some(Begun { app, source, job, guard, log, whole }))
    }

    /// Returns what succeeded; tells once what did not.
    fn tell<T>(&mut self, what: &str, done: anyhow::Result<T>) -> Option<T> {
        match done {
            Ok(done) => {
                self.told.remove(what);
                Some(done)
            }
            Err(error) => {
                let text = format!("{error:#}");
                if self.told.insert(what.to_owned(), text.clone()).as_ref() != Some(&text) {
                    self.app.cx.event(Event::Warning { text });
                }
                None
            }
        }
    }

    fn say(&self, what: &str) {
        self.app.cx.event(Event::Step { what: what.to_owned() });
    }
}

/// Begins a job under the lease on its source. Its run counts for all slots that are due by now.
async fn begin(
    app: &Installation,
    source: &SourceConfig,
    (job, guard): (&WaitingJob, &LeaseGuard),
    now: Timestamp,
) -> anyhow::Result<bool> {
    if !app.catalog.begin_job(job, guard.lease(), now).await? {
        return Ok(false);
    }
    if let Some(policy) = &source.policy {
        let since = app.catalog.see(&job.source, now, CLOCK_TOLERANCE).await?;
        if let Some(due) = policy.due(&job.source, since, now) {
            app.catalog.cover_slots(&job.source, due.slot).await?;
        }
    }
    Ok(true)
}

/// Does a job, and writes down what became of it.
async fn work(begun: Begun) {
    let Begun { app, source, job, guard, log, whole } = begun;
    app.cx.event(Event::Step { what: "the scheduled backup begins".to_owned() });
    let order = Order { trigger: Trigger::Scheduled, note: None, hold: false };
    let made = tokio::select! {
        made = Box::pin(make(&app, &source, &order)) => made,
        never = watch(&app, &job) => match never {},
    };
    say_end(&app, &made);
    if let Err(error) = app.catalog.keep_log(&job.id, &log.text()).await {
        app.cx.event(Event::Warning { text: format!("the log could not be kept: {error}") });
    }
    match &made {
        Ok(made) => end_made(&app, &job.id, made).await,
        Err(error) => end_failed(&app, &job, error, &whole).await,
    }
    guard.release().await;
}

/// Writes down that a job failed or was stopped, and enqueues it again where that was not its own doing.
async fn end_failed(app: &Installation, job: &WaitingJob, error: &anyhow::Error, whole: &Cx) {
    let wish = app.catalog.wish_to_cancel(&job.id).await.ok().flatten();
    let again = match (&wish, app.cx.cancelled()) {
        (Some(_), _) | (None, None) => None,
        (None, Some(CancelReason::LeaseLost)) => Some(Again::LeaseLost),
        (None, Some(_)) => whole.cancelled().map(|_| Again::Interrupted),
    };
    if let Some(again) = again {
        // First: a job that ended has no next try.
        let now = app.catalog.time(whole.now()).await.unwrap_or_else(|_| whole.now());
        if let Err(error) = app.catalog.try_again((new_job_id(), &job.id), again, now).await {
            let text = format!("the job could not be enqueued again: {error}");
            app.cx.event(Event::Warning { text });
        }
    }
    let (state, error) = match (wish, again) {
        (Some(reason), _) => (JobState::Cancelled, &anyhow::anyhow!("cancelled: {reason}")),
        (None, Some(Again::Interrupted)) => (JobState::Cancelled, error),
        (None, _) => (JobState::Failed, error),
    };
    app.end_job(&job.id, state, Some(error), None).await;
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

/// Stops a job that somebody cancels. Never ends.
async fn watch(app: &Installation, job: &WaitingJob) -> std::convert::Infallible {
    loop {
        tokio::time::sleep(LOOK).await;
        // A catalog that does not answer is the business of the lease.
        if let Ok(Some(reason)) = app.catalog.wish_to_cancel(&job.id).await {
            app.cx.event(Event::Step { what: format!("cancelled: {reason}") });
            app.cx.cancel_handle().cancel(CancelReason::User);
            return pending().await;
        }
    }
}

/// What was said while a job was done, line by line.
#[derive(Default)]
struct Log(Mutex<Vec<String>>);

impl Log {
    fn push(&self, line: String) {
        let mut lines = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if lines.len() == LOG_LINES {
            lines.remove(0);
        }
        lines.push(line);
    }

    fn text(&self) -> String {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).join("\n")
    }
}

/// Keeps what is said of a job, and passes it on under the name of its source.
struct JobMonitor {
    source: String,
    log: Arc<Log>,
    screen: Arc<dyn Monitor>,
}

impl Monitor for JobMonitor {
    fn event(&self, event: Event) {
        let Some(line) = render::event_line(&event) else { return };
        self.log.push(line.clone());
        let source = &self.source;
        self.screen.event(match event {
            Event::Warning { text } => Event::Warning { text: format!("{source}: {text}") },
            _ => Event::Step { what: format!("{source}: {line}") },
        });
    }
}

/// Warns if sources have schedules and nobody backs them up by these.
pub(super) async fn nobody_serves(app: &Installation) -> anyhow::Result<Option<String>> {
    let scheduled = app.config.scheduled();
    if scheduled == 0 {
        return Ok(None);
    }
    let seen: Option<Timestamp> =
        app.catalog.setting(SEEN).await.context("cannot look for servers")?;
    let now = app.catalog.time(app.cx.now()).await?;
    let last = match seen {
        Some(seen) if now.duration_since(seen).abs() <= GONE_AFTER => return Ok(None),
        Some(seen) => format!("the last was there at {seen:.0}"),
        None => "there never was one".to_owned(),
    };
    Ok(Some(format!(
        "{scheduled} sources have a schedule, and no server runs that would back them up by it ({last}): run `backstay serve`"
    )))
}
