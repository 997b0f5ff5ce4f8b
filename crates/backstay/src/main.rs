//! Backstay: backs up databases and app data to object storage, and gives them back.

#![cfg_attr(test, expect(clippy::unwrap_used, reason = "a test that cannot go on should stop"))]

mod catalog_backups;
mod cli;
mod commands;
mod config;
mod exit;
mod installation;
mod lease;
mod opening;
mod past;
mod plain;
mod render;
mod sources;
mod uploads;
mod vaults;
mod work_order;

use std::process::ExitCode;
use std::sync::Arc;

use backstay_engine::cx::{CancelReason, Cx};
use clap::Parser as _;

use crate::cli::Cli;
use crate::exit::Exit;
use crate::render::Screen;

fn main() -> ExitCode {
    let cli = Cli::parse();
    // Before any client is made: two providers in one program would panic at the first connection.
    if rustls::crypto::aws_lc_rs::default_provider().install_default().is_err() {
        render::say("warning: another TLS provider was installed first");
    }
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            render::say(&format!("error: cannot start: {error}"));
            return ExitCode::from(Exit::Failed.code());
        }
    };
    let json = cli.global.json;
    let ended = runtime.block_on(run(cli));
    // Blocking threads that wait for nobody must not keep the program alive.
    runtime.shutdown_background();
    match ended {
        Ok(exit) => ExitCode::from(exit.code()),
        Err(error) => {
            let exit = Exit::of(&error);
            if json {
                render::say(&serde_json::json!({"event": "error", "error": format!("{error:#}"), "exit_code": exit.code()}).to_string());
            } else {
                render::say(&format!("error: {error:#}"));
            }
            ExitCode::from(exit.code())
        }
    }
}

async fn run(cli: Cli) -> anyhow::Result<Exit> {
    let cx = Cx::new(Arc::new(Screen::new(&cli.global)));
    // A guard hears signals by itself, since its command is to hear them.
    if !matches!(cli.command, cli::Command::Guard(_)) {
        stop_on_signals(&cx)?;
    }
    Box::pin(commands::run(cli, cx)).await
}

/// The first signal stops the work cleanly; the second ends the program at once.
fn stop_on_signals(cx: &Cx) -> anyhow::Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let cancel = cx.cancel_handle();
    drop(tokio::spawn(async move {
        for round in 0.. {
            let reason = tokio::select! {
                _ = interrupt.recv() => CancelReason::User,
                _ = terminate.recv() => CancelReason::Terminated,
            };
            if round > 0 {
                end_now();
            }
            render::say("stopping; once more to end at once");
            cancel.cancel(reason);
        }
    }));
    Ok(())
}

#[expect(clippy::exit, reason = "the user asked twice")]
fn end_now() -> ! {
    std::process::exit(i32::from(Exit::Interrupted.code()))
}
