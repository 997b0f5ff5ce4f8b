//! `backstay guard`: a command that changes sources, such as a deploy, between checks and backups (T24 to T32, ADR 16).

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io::ErrorKind;
use std::os::unix::process::ExitStatusExt as _;
use std::process::ExitStatus;
use std::time::Duration;

use backstay_control::{BackupSpec, JobKind, JobState};
use backstay_engine::cx::{CancelReason, Cx};
use backstay_engine::event::Event;
use backstay_format::Trigger;
use jiff::SignedDuration;
use rustix::process::{Pid, Signal, getpgrp, kill_process};
use rustix::termios::tcgetpgrp;
use tokio::process::{Child, Command};
use tokio::signal::unix::SignalKind;
use tokio::time::Instant;

use super::backup::{Made, backup_one, chosen, warn_without_kit};
use super::elsewhere::look;
use crate::cli::GuardArgs;
use crate::config::SourceConfig;
use crate::exit::Exit;
use crate::installation::Installation;
use crate::lease::is_held;
use crate::render;

/// The pause between two looks at whether a source is free.
const LOOK: Duration = Duration::from_secs(2);
/// What shells answer of a command that is not there, or cannot be run.
const NOT_FOUND: u8 = 127;
const NOT_RUNNABLE: u8 = 126;

/// Everything but the command itself speaks on standard error: standard output is the command's.
pub(super) async fn guard(app: &Installation, args: &GuardArgs) -> anyhow::Result<Exit> {
    let mut signals = Signals::new()?;
    let sources = chosen(app, &args.sources, args.all).await?;
    let ready = signals.stop(&app.cx, Box::pin(before(app, &sources, args))).await?;
    if ready == Exit::Incomplete {
        return Ok(ready);
    }
    let code = run(app, &mut signals, &args.command).await?;
    if code == 0 {
        signals.stop(&app.cx, Box::pin(after(app, &sources, args.wait))).await;
    } else {
        let text = format!("the command ended with {code}: no backup is made after it");
        app.cx.event(Event::Warning { text });
    }
    Ok(Exit::Command(code))
}

/// Finds out whether the command may be run: all that a backup needs is well, and one is made if that is asked for.
async fn before(
    app: &Installation,
    sources: &[SourceConfig],
    args: &GuardArgs,
) -> anyhow::Result<Exit> {
    for warning in &app.config.warnings {
        app.cx.event(Event::Warning { text: warning.clone() });
    }
    check(app, sources).await.map_err(|error| error.context("the command was not run"))?;
    for source in sources.iter().filter(|_| args.before) {
        let refused = |error: anyhow::Error| {
            error.context(format!("source {}: the command was not run", source.name))
        };
        let made = back_up(app, source, (Trigger::PreDeploy, args.wait)).await.map_err(refused)?;
        let gap = made.gap();
        // The app may stand still that a hook stopped.
        if let Some(error) = made.afterwards {
            return Err(refused(error));
        }
        if let Some(gap) = gap {
            let name = &source.name;
            render::say(&format!("error: source {name}: the command was not run: {gap}"));
            return Ok(Exit::Incomplete);
        }
    }
    app.cx.check()?;
    Ok(Exit::Done)
}

/// Backs up what the command changed. What it did is done: that no backup was made of it must be told, and changes nothing.
async fn after(app: &Installation, sources: &[SourceConfig], wait: SignedDuration) {
    for source in sources {
        if let Some(text) = back_up_after(app, source, wait).await {
            render::say(&format!("error: source {}: {text}", source.name));
        }
    }
    app.back_up_catalog_too(&sources.iter().map(|source| source.storage.clone()).collect()).await;
    if let Err(error) = warn_without_kit(app).await {
        render::say(&format!("error: {error:#}"));
    }
}

/// Backs up a source after the command. Returns what is wrong with that.
async fn back_up_after(
    app: &Installation,
    source: &SourceConfig,
    wait: SignedDuration,
) -> Option<String> {
    match back_up(app, source, (Trigger::PostDeploy, wait)).await {
        Ok(made) => {
            let gap = made.gap();
            made.afterwards.map(|error| format!("{error:#}")).or(gap)
        }
        Err(error) => {
            if is_held(&error) {
                // No other job says so.
                if let Ok(job) = app.start_job(&source.name, JobKind::Backup).await {
                    app.end_job(&job, JobState::Failed, Some(&error), None).await;
                }
            }
            Some(format!("the command went well, but its backup did not: {error:#}"))
        }
    }
}

/// Checks all that a backup needs, and tells all that is wrong. The only fault keeps its exit code.
async fn check(app: &Installation, sources: &[SourceConfig]) -> anyhow::Result<()> {
    let mut faults = Vec::new();
    let mut storages = BTreeMap::new();
    for source in sources {
        match look(app, source).await {
            Ok(look) => {
                for text in look.warnings {
                    let text = format!("source {}: {text}", source.name);
                    app.cx.event(Event::Warning { text });
                }
            }
            Err(error) => faults.push(error.context(format!("source {}", source.name))),
        }
        storages.insert(source.storage.as_str(), app.storage(&source.storage)?);
    }
    for (name, storage) in storages {
        let tested = async {
            app.test_storage(storage).await?;
            // The first backup makes one where there never was any.
            app.vault_if_any(storage).await.map(drop)
        };
        if let Err(error) = tested.await {
            faults.push(error.context(format!("storage {name}")));
        }
    }
    app.cx.check()?;
    match (faults.pop(), faults.is_empty()) {
        (None, _) => Ok(()),
        (Some(only), true) => Err(only),
        (Some(last), false) => {
            faults.push(last);
            for fault in &faults {
                render::say(&format!("error: {fault:#}"));
            }
            Err(anyhow::anyhow!("{} checks failed", faults.len()))
        }
    }
}

/// Backs up a source, waiting for whoever works on it.
async fn back_up(
    app: &Installation,
    source: &SourceConfig,
    (trigger, wait): (Trigger, SignedDuration),
) -> anyhow::Result<Made> {
    let spec = BackupSpec { trigger, note: None, hold: false };
    // Longer than anybody waits, where it cannot be counted.
    let patience = Instant::now().checked_add(wait.unsigned_abs());
    let mut is_told = false;
    loop {
        let made = match backup_one(app, source, &spec).await {
            Ok(made) => made,
            Err(error) if is_held(&error) && patience.is_none_or(|end| Instant::now() < end) => {
                if !is_told {
                    let what = format!("waiting, since {error:#}");
                    app.cx.event(Event::Step { what });
                    is_told = true;
                }
                app.cx.run(tokio::time::sleep(LOOK)).await?;
                continue;
            }
            Err(error) => return Err(error),
        };
        app.cx.event(Event::Step { what: format!("{}: {}", source.name, made.summary()) });
        return Ok(made);
    }
}

/// Runs the command with our own input, output and environment. Returns its exit code, as a shell would.
async fn run(
    app: &Installation,
    signals: &mut Signals,
    command: &[OsString],
) -> anyhow::Result<u8> {
    let Some((program, arguments)) = command.split_first() else { return Ok(NOT_FOUND) };
    app.cx.event(Event::Step { what: format!("running {}", program.display()) });
    let mut child = match Command::new(program).args(arguments).spawn() {
        Ok(child) => child,
        Err(error) => {
            render::say(&format!("error: cannot start {}: {error}", program.display()));
            let is_missing = error.kind() == ErrorKind::NotFound;
            return Ok(if is_missing { NOT_FOUND } else { NOT_RUNNABLE });
        }
    };
    loop {
        let signal = tokio::select! {
            ended = child.wait() => return Ok(shell_code(ended?)),
            signal = signals.next() => signal,
        };
        pass_on(&child, signal);
    }
}

/// The signals that end programs: what is sent to us is meant for what we do.
struct Signals([(Signal, tokio::signal::unix::Signal); 4]);

impl Signals {
    fn new() -> anyhow::Result<Self> {
        let hear = |kind, signal| anyhow::Ok((signal, tokio::signal::unix::signal(kind)?));
        Ok(Self([
            hear(SignalKind::interrupt(), Signal::INT)?,
            hear(SignalKind::quit(), Signal::QUIT)?,
            hear(SignalKind::terminate(), Signal::TERM)?,
            hear(SignalKind::hangup(), Signal::HUP)?,
        ]))
    }

    async fn next(&mut self) -> Signal {
        let [(int, ints), (quit, quits), (term, terms), (hup, hups)] = &mut self.0;
        tokio::select! {
            _ = ints.recv() => *int,
            _ = quits.recv() => *quit,
            _ = terms.recv() => *term,
            _ = hups.recv() => *hup,
        }
    }

    /// Does work that a signal stops cleanly.
    async fn stop<T>(&mut self, cx: &Cx, work: impl Future<Output = T>) -> T {
        let mut work = std::pin::pin!(work);
        loop {
            let signal = tokio::select! {
                done = &mut work => return done,
                signal = self.next() => signal,
            };
            render::say("stopping");
            let is_key = matches!(signal, Signal::INT | Signal::QUIT);
            let reason = if is_key { CancelReason::User } else { CancelReason::Terminated };
            cx.cancel_handle().cancel(reason);
        }
    }
}

fn pass_on(child: &Child, signal: Signal) {
    // What a terminal's keys send, it sends to the command, too.
    if matches!(signal, Signal::INT | Signal::QUIT) && is_in_foreground() {
        return;
    }
    let pid = child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw);
    // One that has just ended needs no signal.
    if let Some(Ok(()) | Err(_)) = pid.map(|pid| kill_process(pid, signal)) {}
}

/// Says whether we are what a terminal's keys speak to.
fn is_in_foreground() -> bool {
    let terminal = std::fs::File::open("/dev/tty");
    terminal.is_ok_and(|terminal| tcgetpgrp(terminal).is_ok_and(|group| group == getpgrp()))
}

fn shell_code(status: ExitStatus) -> u8 {
    let code = status.code().or_else(|| status.signal().map(|signal| 128 + signal));
    code.and_then(|code| u8::try_from(code).ok()).unwrap_or(u8::MAX)
}
