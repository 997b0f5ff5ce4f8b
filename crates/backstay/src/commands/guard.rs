//! `backstay guard`: a command that changes sources, such as a deploy, between checks and backups (T24 to T32, ADR 16).

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io::ErrorKind;
use std::os::unix::process::ExitStatusExt as _;
use std::process::ExitStatus;
use std::time::Duration;

use backstay_engine::cx::CancelReason;
use backstay_engine::event::Event;
use backstay_format::{Status, Trigger};
use jiff::SignedDuration;
use rustix::process::{Pid, Signal, kill_process};
use tokio::process::{Child, Command};
use tokio::time::Instant;

use super::backup::{Made, Order, backup_one, chosen, warn_without_kit};
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
    let sources = chosen(app, &args.sources, args.all).await?;
    for warning in &app.config.warnings {
        app.cx.event(Event::Warning { text: warning.clone() });
    }
    check(app, &sources).await.map_err(|error| error.context("the command was not run"))?;
    if args.before {
        for source in &sources {
            let made = back_up(app, source, (Trigger::PreDeploy, args.wait)).await;
            let made = made.map_err(|error| {
                error.context(format!("source {}: the command was not run", source.name))
            })?;
            if made.entry.status == Status::Incomplete {
                render::say(&format!(
                    "error: source {}: the command was not run: backup {} is incomplete, without {} of its items",
                    source.name, made.entry.id, made.entry.item_error_count
                ));
                return Ok(Exit::Incomplete);
            }
        }
    }
    app.cx.check()?;
    let code = run(app, &args.command).await?;
    if code != 0 {
        let text = format!("the command ended with {code}: no backup is made after it");
        app.cx.event(Event::Warning { text });
        return Ok(Exit::Command(code));
    }
    for source in &sources {
        // What the command did is done: that no backup was made of it must be told, and changes nothing.
        if let Err(error) = back_up(app, source, (Trigger::PostDeploy, args.wait)).await {
            render::say(&format!(
                "error: source {}: the command went well, but its backup did not: {error:#}",
                source.name
            ));
        }
    }
    warn_without_kit(app).await?;
    Ok(Exit::Command(code))
}

/// Checks all that a backup needs, and tells all that is wrong. The only fault keeps its exit code.
async fn check(app: &Installation, sources: &[SourceConfig]) -> anyhow::Result<()> {
    let mut faults = Vec::new();
    let mut storages = BTreeMap::new();
    for source in sources {
        match app.engine_source(source).probe(&app.cx).await {
            Ok(probe) => {
                for text in probe.warnings {
                    let text = format!("source {}: {text}", source.name);
                    app.cx.event(Event::Warning { text });
                }
            }
            Err(error) => {
                let error = anyhow::Error::new(error).context(format!("source {}", source.name));
                faults.push(error);
            }
        }
        storages.insert(source.storage.as_str(), app.storage(&source.storage)?);
    }
    for (name, storage) in storages {
        let tested = async {
            app.test_storage(storage).await?;
            match app.vault(storage).await {
                // The first backup makes it.
                Err(error) if Exit::of(&error) == Exit::NoVault => Ok(()),
                vault => vault.map(drop),
            }
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
    let order = Order { trigger, note: None, hold: false };
    let patience = Instant::now() + wait.unsigned_abs();
    let mut is_told = false;
    loop {
        let backup = backup_one(app, source, &order);
        let mut made = match app.under_lease(source.name.as_str(), backup).await {
            Ok(made) => made,
            Err(error) if is_held(&error) && Instant::now() < patience => {
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
        return made.afterwards.take().map_or(Ok(made), Err);
    }
}

/// Runs the command with our own input, output and environment. Returns its exit code, as a shell would.
async fn run(app: &Installation, command: &[OsString]) -> anyhow::Result<u8> {
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
    let stopped = tokio::select! {
        ended = child.wait() => return Ok(shell_code(ended?)),
        stopped = app.cx.until_cancelled() => stopped,
    };
    // A terminal's Ctrl-C reaches the command by itself; what is sent to us alone does not.
    if stopped.0 == CancelReason::Terminated {
        terminate(&child);
    }
    Ok(shell_code(child.wait().await?))
}

fn terminate(child: &Child) {
    let pid = child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw);
    // One that has just ended needs no signal.
    if let Some(Ok(()) | Err(_)) = pid.map(|pid| kill_process(pid, Signal::TERM)) {}
}

fn shell_code(status: ExitStatus) -> u8 {
    let code = status.code().or_else(|| status.signal().map(|signal| 128 + signal));
    code.and_then(|code| u8::try_from(code).ok()).unwrap_or(u8::MAX)
}
