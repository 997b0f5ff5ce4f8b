//! `backstay serve`: enqueues what is due, and does what waits (ADR 15). All that it knows lies in the catalog.

mod desk;
mod dispatch;
mod ending;
mod finish;
mod work;

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::Context as _;
use backstay_control::{Holder, JobSpec, Since, WaitingJob};
use backstay_engine::event::Event;
use backstay_server::{Listening, Refusal, Router, Tls, listen, router};
use jiff::{SignedDuration, Timestamp};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::task::TaskTracker;

use self::desk::FrontDesk;
use self::dispatch::Dispatch;
pub(super) use self::ending::passing;
use self::ending::{Taken, begin};
use self::work::{Begun, work};
use super::backup::warn_without_kit;
use super::elsewhere::nobody_takes;
use super::import;
use super::watched::{Watched, hear_job};
use crate::cli::{Global, ServeArgs};
use crate::config::{Config, SourceConfig};
use crate::exit::{Exit, UsageError};
use crate::installation::{Installation, host, new_job_id};
use crate::opening::config_path;
use crate::render;

/// The pause between two looks at what is due.
const TURN: Duration = Duration::from_secs(5);
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

pub(super) async fn serve(
    app: Installation,
    global: &Global,
    args: &ServeArgs,
) -> anyhow::Result<Exit> {
    // One that has another master key than the catalog would fail every job that it takes from others.
    app.keyring().await.context("the keys of the catalog do not open here")?;
    let (sources, own) = (&app.config.sources, &app.config.organisation);
    let whose = |source: &str| sources.get(source).map_or(own, |source| &source.organisation);
    app.catalog.adopt_jobs(|source| whose(source).as_str()).await?;
    render::print(&format!("serving: {} sources have a schedule", app.config.scheduled()))?;
    warn_without_kit(&app).await?;
    let stop = app.cx.clone();
    let file = config_path(global);
    let stamp = stamp(file.as_deref());
    let (seen, tidied) = (Timestamp::MIN, Timestamp::MIN);
    let shown = watch::Sender::new(app.clone());
    let dispatch = Arc::new(Dispatch::new(shown.subscribe()));
    let desk = Arc::new(FrontDesk::new(shown.subscribe()));
    let listening = listen_to_others(args, router(dispatch.clone(), desk.clone())).await?;
    let (told, imported) = (BTreeMap::new(), BTreeMap::new());
    let mut server = Server { app, shown, file, stamp, seen, tidied, told, imported };
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
            () = desk.was_asked() => {}
            () = tokio::time::sleep(TURN) => {}
        }
    }
    if let Some(listening) = listening {
        listening.end().await;
    }
    while working.join_next().await.is_some() {}
    dispatch.finish().await;
    desk.finish().await;
    Ok(Exit::Done)
}

/// Listens for workers and members, if that is wanted.
async fn listen_to_others(args: &ServeArgs, router: Router) -> anyhow::Result<Option<Listening>> {
    let Some(address) = args.listen else { return Ok(None) };
    let tls = match (&args.tls_certificate, &args.tls_key) {
        (Some(certificate), Some(key)) => {
            Some(Tls { certificate: certificate.clone(), key: key.clone() })
        }
        _ => None,
    };
    if tls.is_none() && !address.ip().is_loopback() && !args.behind_proxy {
        let text = "secrets go to workers, and members show their tokens: give --tls-certificate and --tls-key, or --behind-proxy if a proxy in front of it speaks TLS";
        return Err(UsageError(text.to_owned()).into());
    }
    let scheme = if tls.is_some() { "https" } else { "http" };
    let listening = listen(address, tls, router).await?;
    render::print(&format!(
        "workers and members are answered at {scheme}://{}",
        listening.address
    ))?;
    Ok(Some(listening))
}

/// What a server has in memory: nothing that matters.
struct Server {
    app: Installation,
    /// Shows those who answer workers what the installation is now.
    shown: watch::Sender<Installation>,
    /// The configuration that it was started with, and stays with.
    file: Option<PathBuf>,
    /// When that was changed last, as far as it was looked at.
    stamp: Option<SystemTime>,
    /// When it wrote down last that it is there, and when it looked last for jobs to forget.
    seen: Timestamp,
    tidied: Timestamp,
    /// What keeps something from succeeding, by what that is: it is told once, and not each turn.
    told: BTreeMap<String, String>,
    /// What of each source was enqueued to be imported, as far as it was looked at.
    imported: BTreeMap<String, PathBuf>,
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
            let is_lost = app.config.sources.is_empty() && had > 0 && !is_added;
            anyhow::ensure!(
                !is_lost,
                "it has no sources any more; restart the server if that is meant"
            );
            Ok(app)
        });
        let read =
            read.context("the configuration was changed and is wrong; the one before goes on");
        if let Some(app) = self.tell("the configuration", read) {
            self.shown.send_replace(app.clone());
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
        for job in by_priority(&self.app.config, waiting) {
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
            catalog.tidy_audit(now).await?;
            self.tidied = now;
        }
        let me = Holder::this_process(&host());
        for lost in catalog.end_lost_jobs(None, &me, now, new_job_id).await? {
            let next = lost.next_try.map_or_else(
                || "not tried again".to_owned(),
                |next| format!("tried again at {next:.0}"),
            );
            self.say(&format!("{}: whoever worked on it died or was cut off; {next}", lost.source));
        }
        catalog.cancel_stale_changes(now).await?;
        self.enqueue(now).await?;
        self.enqueue_imports(now).await;
        Ok((now, self.app.catalog.waiting_jobs(now).await?))
    }

    /// Enqueues the slots that are due.
    async fn enqueue(&self, now: Timestamp) -> anyhow::Result<()> {
        let catalog = &self.app.catalog;
        let slots = catalog.slots().await?;
        for (name, source) in &self.app.config.sources {
            let Some(policy) = &source.policy else { continue };
            let is_past = |since: &Since| since.time().duration_since(now) <= CLOCK_TOLERANCE;
            let since = match slots.get(name).map(|seen| seen.since()).filter(is_past) {
                Some(since) => since,
                None => catalog.see(name, now, CLOCK_TOLERANCE).await?,
            };
            let Some(due) = policy.due(name, since, now) else { continue };
            if catalog.enqueue_slot((new_job_id(), source.as_job()), due, now).await? && due.is_late
            {
                self.say(&format!(
                    "{name}: catching up, since backups were missed before {:.0}",
                    due.slot
                ));
            }
        }
        Ok(())
    }

    /// Enqueues the imports of what other tools left behind. A directory that is not there is told once.
    async fn enqueue_imports(&mut self, now: Timestamp) {
        let app = self.app.clone();
        for source in app.config.sources.values() {
            let Some(from) = &source.import_from else { continue };
            if self.imported.get(source.name.as_str()) == Some(from) {
                continue;
            }
            let enqueued = import::enqueue(&app, (source, from), now).await;
            let what = format!("the import of {}", source.name);
            if self.tell(&what, enqueued.with_context(|| format!("{what} is not done"))).is_some() {
                self.imported.insert(source.name.to_string(), from.clone());
            }
        }
    }

    /// Takes up a job, unless somebody else works on its source, or nothing may begin now. Sources of other servers are
    /// theirs, and what workers read is left to them.
    async fn take_up(&self, job: WaitingJob, now: Timestamp) -> anyhow::Result<Option<Begun>> {
        let Some(source) = self.app.config.sources.get(&job.source).cloned() else {
            return Ok(None);
        };
        if source.remote().is_some() {
            // Whoever asked for it waits for nobody.
            if job.is_asked_for
                && let Some(nobody) = nobody_takes(&self.app, &source, Some(&job.spec)).await?
            {
                self.app.catalog.cancel_job(&job.id, &nobody, now).await?;
            }
            return Ok(None);
        }
        if may_not_begin(&source, &job, now) || is_elsewhere(&job) {
            return Ok(None);
        }
        let watched = Arc::new(Watched::default());
        let heard = |screen| hear_job(&job.source, &watched, screen);
        let app = self.app.with_cx(self.app.cx.piece().heard_by(heard));
        let me = Holder::this_process(&host());
        let Some(taken) = Taken::take(&app, (&source, &job), &me).await? else { return Ok(None) };
        let kept = taken.keep(&app);
        match begin(&app, &source, (&job, kept.source(), None), now).await {
            Ok(true) => {
                let whole = self.app.cx.clone();
                Ok(Some(Begun { app, source, job, kept, watched, whole }))
            }
            begun => {
                kept.give_back().await;
                begun.map(|_| None)
            }
        }
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

/// Returns jobs in the order in which they are begun: those first that matter most, and of these those that waited longest.
fn by_priority(config: &Config, mut waiting: Vec<WaitingJob>) -> Vec<WaitingJob> {
    let priority =
        |job: &WaitingJob| config.sources.get(&job.source).map_or(0, |source| source.priority);
    waiting.sort_by_key(|job| Reverse(priority(job)));
    waiting
}

/// Answers a request that is done to its end, though whoever asked may be gone by then.
async fn to_the_end<T: Send + 'static>(
    tasks: &TaskTracker,
    work: impl Future<Output = Result<T, Refusal>> + Send + 'static,
) -> Result<T, Refusal> {
    let done = tasks.spawn(work).await;
    done.unwrap_or_else(|_| Err(Refusal::Away("the server ends".to_owned())))
}

/// What is to be imported may lie on another server's machine.
fn is_elsewhere(job: &WaitingJob) -> bool {
    matches!(&job.spec, JobSpec::Import { from } if !from.is_dir())
}

/// Nothing begins in a blackout but what a person asks for.
fn may_not_begin(source: &SourceConfig, job: &WaitingJob, now: Timestamp) -> bool {
    !job.is_asked_for && source.policy.as_ref().is_some_and(|policy| policy.is_in_blackout(now))
}

/// Warns if sources have schedules and nobody backs them up by these.
pub(super) async fn nobody_serves(app: &Installation) -> anyhow::Result<Option<String>> {
    let scheduled = app.config.scheduled();
    if scheduled == 0 {
        return Ok(None);
    }
    let last = unserved(app).await?;
    Ok(last.map(|last| format!(
        "{scheduled} sources have a schedule, and no server runs that would back them up by it ({last}): run `backstay serve`"
    )))
}

/// Says when the last server was there, if none is.
pub(super) async fn unserved(app: &Installation) -> anyhow::Result<Option<String>> {
    let seen: Option<Timestamp> =
        app.catalog.setting(SEEN).await.context("cannot look for servers")?;
    let now = app.catalog.time(app.cx.now()).await?;
    Ok(match seen {
        Some(seen) if now.duration_since(seen).abs() <= GONE_AFTER => None,
        Some(seen) => Some(format!("the last was there at {seen:.0}")),
        None => Some("there never was one".to_owned()),
    })
}
