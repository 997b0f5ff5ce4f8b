//! `backstay guard`: a command that changes sources, such as a deploy, between checks and backups (T24 to T32, ADR 16).

mod ground;

use std::ffi::OsString;
use std::io::ErrorKind;
use std::os::unix::process::ExitStatusExt as _;
use std::process::ExitStatus;

use backstay_engine::cx::{CancelReason, Cx};
use backstay_engine::event::Event;
use backstay_format::Trigger;
use jiff::SignedDuration;
use rustix::process::{Pid, Signal, getpgrp, kill_process};
use rustix::termios::tcgetpgrp;
use tokio::process::{Child, Command};
use tokio::signal::unix::SignalKind;

use self::ground::{Asked, Ground, Guarded, Here};
use super::asking::Asking;
use super::backup::chosen;
use crate::cli::GuardArgs;
use crate::exit::Exit;
use crate::installation::Installation;
use crate::render;

/// What shells answer of a command that is not there, or cannot be run.
const NOT_FOUND: u8 = 127;
const NOT_RUNNABLE: u8 = 126;

/// Guards a command with checks and backups of this machine's own.
pub(super) async fn guard(app: &Installation, args: &GuardArgs) -> anyhow::Result<Exit> {
    let signals = Signals::new()?;
    let sources = chosen(app, &args.sources, args.all).await?;
    for warning in &app.config.warnings {
        app.cx.event(Event::Warning { text: warning.clone() });
    }
    guarded(&Here { app, sources }, &app.cx, (args, signals)).await
}

/// Guards a command here with checks and backups by a server.
pub(super) async fn guard_asking(asking: &Asking, args: &GuardArgs) -> anyhow::Result<Exit> {
    let mut signals = Signals::new()?;
    let chosen = asking.cx.run(asking.chosen(&args.sources, args.all));
    let sources = signals.stop(&asking.cx, Box::pin(chosen)).await?;
    let sources = sources.map_err(|error| error.context("the command was not run"))?;
    guarded(&Asked { asking, sources }, &asking.cx, (args, signals)).await
}

/// Everything but the command itself speaks on standard error: standard output is the command's.
async fn guarded(
    ground: &impl Ground,
    cx: &Cx,
    (args, mut signals): (&GuardArgs, Signals),
) -> anyhow::Result<Exit> {
    let ready = signals.stop(cx, Box::pin(before(ground, cx, args))).await?;
    if ready == Exit::Incomplete {
        return Ok(ready);
    }
    let code = run(cx, &mut signals, &args.command).await?;
    if code == 0 {
        signals.stop(cx, Box::pin(after(ground, cx, args.wait))).await;
    } else {
        let text = format!("the command ended with {code}: no backup is made after it");
        cx.event(Event::Warning { text });
    }
    Ok(Exit::Command(code))
}

/// Finds out whether the command may be run: all that a backup needs is well, and one is made if that is asked for.
async fn before(ground: &impl Ground, cx: &Cx, args: &GuardArgs) -> anyhow::Result<Exit> {
    let checked = check(ground, cx, args.wait).await;
    cx.check()?;
    checked.map_err(|error| error.context("the command was not run"))?;
    for source in ground.sources().iter().filter(|_| args.before) {
        let refused = |error: anyhow::Error| {
            error.context(format!("source {source}: the command was not run"))
        };
        let made = ground.back_up(source, (Trigger::PreDeploy, args.wait)).await;
        let Guarded { summary, gap, afterwards } = made.map_err(refused)?;
        cx.event(Event::Step { what: format!("{source}: {summary}") });
        // The app may stand still that a hook stopped.
        if let Some(error) = afterwards {
            return Err(refused(error));
        }
        if let Some(gap) = gap {
            render::say(&format!("error: source {source}: the command was not run: {gap}"));
            return Ok(Exit::Incomplete);
        }
    }
    cx.check()?;
    Ok(Exit::Done)
}

/// Checks all that a backup needs, and tells all that is wrong. The only fault keeps its exit code.
async fn check(ground: &impl Ground, cx: &Cx, wait: SignedDuration) -> anyhow::Result<()> {
    let mut faults = Vec::new();
    for source in ground.sources() {
        cx.check()?;
        match ground.look_at(&source, wait).await {
            Ok(look) => {
                for text in look.warnings {
                    cx.event(Event::Warning { text: format!("source {source}: {text}") });
                }
            }
            Err(error) => faults.push(error.context(format!("source {source}"))),
        }
    }
    for storage in ground.storages().await? {
        cx.check()?;
        match ground.test(&storage).await {
            Ok(warnings) => {
                for text in warnings {
                    cx.event(Event::Warning { text });
                }
            }
            Err(error) => faults.push(error.context(format!("storage {storage}"))),
        }
    }
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

/// Backs up what the command changed. What it did is done: that no backup was made of it must be told, and changes nothing.
async fn after(ground: &impl Ground, cx: &Cx, wait: SignedDuration) {
    for source in &ground.sources() {
        let wrong = match ground.back_up(source, (Trigger::PostDeploy, wait)).await {
            Ok(Guarded { summary, gap, afterwards }) => {
                cx.event(Event::Step { what: format!("{source}: {summary}") });
                afterwards.map(|error| format!("{error:#}")).or(gap)
            }
            Err(error) => {
                ground.not_made(source, &error).await;
                Some(format!("the command went well, but its backup did not: {error:#}"))
            }
        };
        if let Some(text) = wrong {
            render::say(&format!("error: source {source}: {text}"));
        }
    }
    if let Err(error) = ground.settle().await {
        render::say(&format!("error: {error:#}"));
    }
}

/// Runs the command with our own input, output and environment. Returns its exit code, as a shell would.
async fn run(cx: &Cx, signals: &mut Signals, command: &[OsString]) -> anyhow::Result<u8> {
    let Some((program, arguments)) = command.split_first() else { return Ok(NOT_FOUND) };
    cx.event(Event::Step { what: format!("running {}", program.display()) });
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
