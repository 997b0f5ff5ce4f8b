//! `backstay serve`: enqueues what is due, and does what waits (ADR 15). All that it knows lies in the catalog.

use std::collections::HashSet;
use std::future::pending;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use anyhow::Context as _;
use backstay_control::{Again, Holder, LeaseError, Since, WaitingJob};
use backstay_engine::cx::{CancelReason, Cx};
use backstay_engine::event::{Event, Monitor};
use backstay_format::Trigger;
use jiff::{SignedDuration, Timestamp};
use tokio::task::{JoinError, JoinSet};

use super::backup::{Made, Order, make, warn_without_kit};
use crate::cli::{Global, ServeArgs};
use crate::config::SourceConfig;
use crate::exit::Exit;
use crate::installation::{Installation, config_path, host, new_job_id};
use crate::lease::LeaseGuard;
use crate::render;

/// The pause between two looks at what is due.
const TURN: Duration = Duration::from_secs(5);
/// The pause between two looks at whether somebody cancelled a job.
const LOOK: Duration = Duration::from_secs(2);
/// A slot that lies further in the future says that a clock was set back.
const CLOCK_TOLERANCE: SignedDuration = SignedDuration::from_mins(10);
/// How often a server writes down that it is there.
const SEEN_EVERY: SignedDuration = SignedDuration::from_secs(30);
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
    let mut server = Server { stamp: stamp(global), app, seen: Timestamp::MIN, trouble: None };
    let scheduled = server.app.config.sources.values().filter(|source| source.policy.is_some());
    render::print(&format!("serving: {} sources have a schedule", scheduled.count()))?;
    warn_without_kit(&server.app).await?;
    let stop = server.app.cx.clone();
    let mut working = JoinSet::new();
    let mut sources = HashSet::new();
    while stop.cancelled().is_none() {
        let room = usize::from(args.jobs).saturating_sub(working.len());
        server.reload(global).await;
        for begun in server.turn(room, &sources).await {
            sources.insert(begun.source.name.to_string());
            working.spawn(work(begun));
        }
        tokio::select! {
            _ = stop.until_cancelled() => {}
            Some(ended) = working.join_next() => forget(&mut sources, ended),
            () = tokio::time::sleep(TURN) => {}
        }
    }
    while let Some(ended) = working.join_next().await {
        forget(&mut sources, ended);
    }
    Ok(Exit::Done)
}

fn forget(sources: &mut HashSet<String>, ended: Result<String, JoinError>) {
    match ended {
        Ok(source) => {
            sources.remove(&source);
        }
        // Which one is not known any more; those that run hold their leases.
        Err(_) => sources.clear(),
    }
}

/// What a server has in memory: nothing that matters.
struct Server {
    app: Installation,
    /// When the configuration was changed last, as far as it was read.
    stamp: Option<SystemTime>,
    seen: Timestamp,
    /// What was said last of what keeps turns from succeeding: once is enough.
    trouble: Option<String>,
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

fn stamp(global: &Global) -> Option<SystemTime> {
    std::fs::metadata(config_path(global)?).ok()?.modified().ok()
}

impl Server {
    /// Reads the configuration anew if it was changed. A wrong one is told, and the one before goes on.
    async fn reload(&mut self, global: &Global) {
        let stamp = stamp(global);
        let added = self.app.added().await.ok();
        if stamp == self.stamp && added.is_none_or(|added| added == self.app.additions) {
            return;
        }
        match self.app.reloaded(global).await {
            Ok(app) => {
                (self.app, self.stamp) = (app, stamp);
                self.say("the configuration was read anew");
            }
            Err(error) => self.trouble(
                &error
                    .context("the configuration was changed and is wrong; the one before goes on"),
            ),
        }
    }

    /// Does what is to be done now: ends what is lost, enqueues what is due, takes up what waits. What fails is tried again
    /// by the next turn.
    async fn turn(&mut self, room: usize, busy: &HashSet<String>) -> Vec<Begun> {
        match self.try_turn(room, busy).await {
            Ok(begun) => {
                self.trouble = None;
                begun
            }
            Err(error) => {
                self.trouble(&error.context("cannot look for what is due"));
                Vec::new()
            }
        }
    }

    async fn try_turn(
        &mut self,
        room: usize,
        busy: &HashSet<String>,
    ) -> anyhow::Result<Vec<Begun>> {
        let catalog = &self.app.catalog;
        let now = catalog.time(self.app.cx.now()).await?;
        if now.duration_since(self.seen).abs() >= SEEN_EVERY {
            catalog.set_setting(SEEN, &now).await?;
            self.seen = now;
        }
        let me = Holder::this_process(&host());
        for lost in catalog.end_lost_jobs(&me, now, new_job_id).await? {
            let next = lost.next_try.map_or_else(
                || "not tried again".to_owned(),
                |next| format!("tried again at {next:.0}"),
            );
            self.say(&format!("{}: the process that worked on it died; {next}", lost.source));
        }
        self.enqueue(now).await?;
        let mut begun = Vec::new();
        if room == 0 {
            return Ok(begun);
        }
        for job in self.app.catalog.waiting_jobs(now).await? {
            if begun.len() == room {
                break;
            }
            let is_ours = |begun: &Begun| begun.source.name.as_str() == job.source;
            if !busy.contains(&job.source) && !begun.iter().any(is_ours) {
                begun.extend(self.take_up(job, now).await?);
            }
        }
        Ok(begun)
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

    /// Takes up a job, unless somebody else works on its source. Sources of other servers are theirs.
    async fn take_up(&self, job: WaitingJob, now: Timestamp) -> anyhow::Result<Option<Begun>> {
        let Some(source) = self.app.config.sources.get(&job.source).cloned() else {
            return Ok(None);
        };
        let log = Arc::new(Log::default());
        let heard = |screen| {
            Arc::new(JobMonitor { source: job.source.clone(), log: log.clone(), screen })
                as Arc<dyn Monitor>
        };
        let app = self.app.with_cx(self.app.cx.piece().heard_by(heard));
        let guard = match app.lease(&job.source).await {
            Ok(guard) => guard,
            Err(error) if error.downcast_ref::<LeaseError>().is_some_and(LeaseError::is_held) => {
                return Ok(None);
            }
            Err(error) => return Err(error),
        };
        let begun = app.catalog.begin_job(&job, guard.lease(), now).await;
        if !matches!(begun, Ok(true)) {
            guard.release().await;
            return begun.map(|_| None).map_err(Into::into);
        }
        let whole = self.app.cx.clone();
        Ok(Some(Begun { app, source, job, guard, log, whole }))
    }

    fn say(&self, what: &str) {
        self.app.cx.event(Event::Step { what: what.to_owned() });
    }

    fn trouble(&mut self, error: &anyhow::Error) {
        let text = format!("{error:#}");
        if self.trouble.as_ref() != Some(&text) {
            self.app.cx.event(Event::Warning { text: text.clone() });
            self.trouble = Some(text);
        }
    }
}

/// Does a job, and writes down what became of it. Returns the source.
async fn work(begun: Begun) -> String {
    let Begun { app, source, job, guard, log, whole } = begun;
    app.cx.event(Event::Step { what: "the scheduled backup begins".to_owned() });
    let order = Order { trigger: Trigger::Scheduled, note: None, hold: false };
    let made = tokio::select! {
        made = Box::pin(make(&app, &source, &order)) => made,
        never = watch(&app, &job) => match never {},
    };
    say_end(&app, &made);
    let kept = app.catalog.keep_log(&job.id, &log.text()).await;
    if let Err(error) = kept {
        app.cx.event(Event::Warning { text: format!("the log could not be kept: {error}") });
    }
    match &made {
        Ok(made) => {
            let backup = Some(made.entry.id.to_string());
            app.end_job(&job.id, made.state(), made.afterwards.as_ref(), backup).await;
        }
        Err(error) => app.end_job(&job.id, app.failed(), Some(error), None).await,
    }
    if made.is_err() && whole.cancelled().is_some() {
        let again = app.catalog.try_again((new_job_id(), &job.id), Again::Interrupted, whole.now());
        if let Err(error) = again.await {
            let text = format!("the job could not be enqueued again: {error}");
            app.cx.event(Event::Warning { text });
        }
    }
    guard.release().await;
    job.source
}

fn say_end(app: &Installation, made: &anyhow::Result<Made>) {
    let event = match made {
        Ok(Made { entry, afterwards, .. }) => {
            let what = format!(
                "backup {} is {}: {} read, {} stored",
                entry.id,
                render::word(entry.status),
                render::size(entry.plain_bytes),
                render::size(entry.stored_bytes)
            );
            match afterwards {
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
    let scheduled = app.config.sources.values().filter(|source| source.policy.is_some()).count();
    if scheduled == 0 {
        return Ok(None);
    }
    let seen: Option<Timestamp> =
        app.catalog.setting(SEEN).await.context("cannot look for servers")?;
    let now = app.catalog.time(app.cx.now()).await?;
    let last = match seen {
        Some(seen) if now.duration_since(seen) <= GONE_AFTER => return Ok(None),
        Some(seen) => format!("the last was there at {seen:.0}"),
        None => "there never was one".to_owned(),
    };
    Ok(Some(format!(
        "{scheduled} sources have a schedule, and no server runs that would back them up by it ({last}): run `backstay serve`"
    )))
}
