//! One file for each group of commands; here is which is which.

mod add;
mod archives;
mod asking;
mod audit;
mod backup;
mod catalog;
mod config;
mod doctor;
mod drill;
mod elsewhere;
mod files;
mod find;
mod guard;
mod holdings;
mod import;
mod jobs;
mod keys;
mod list;
mod look;
mod members;
mod orphans;
mod preview;
mod quickstart;
mod recover;
mod restore;
mod retention;
mod room;
mod serve;
mod settings;
mod status;
mod undo;
mod watched;
mod worker;
mod workers;

use std::path::Path;

use anyhow::Context as _;
use backstay_engine::cx::Cx;
use backstay_server::{Done, WhichBackups};
use clap::CommandFactory as _;

use self::find::{find_backup, the_one};
use crate::cli::{Cli, Command};
use crate::exit::{Exit, UsageError};
use crate::installation::Installation;
use crate::render;

pub(crate) async fn run(cli: Cli, cx: Cx) -> anyhow::Result<Exit> {
    let mut global = cli.global;
    // A variable that is empty names no server.
    global.server = global.server.filter(|server| !server.is_empty());
    match cli.command {
        Command::Quickstart => return quickstart::quickstart(&cx).await,
        Command::Init { file } => return look::init(&file),
        Command::Completions { shell } => return completions(shell),
        Command::Man { directory } => return man(&directory),
        Command::Worker(args) => return Box::pin(worker::worker(&global, cx, &args)).await,
        Command::Decrypt { file, output, kit } => {
            return files::decrypt(&global, &file, &output, kit).await;
        }
        _ => {}
    }
    if global.server.is_some() {
        return Box::pin(asking::ask(&global, cx, cli.command)).await;
    }
    if global.token_file.is_some() {
        let text = "--token-file is shown to a server: name that with --server URL";
        return Err(UsageError(text.to_owned()).into());
    }
    match cli.command {
        Command::Config(command) => config::config(&global, cx, command).await,
        Command::Recover(args) => recover::recover(&global, cx, args).await,
        Command::Serve(args) => {
            let installation = Installation::open_patiently(&global, cx).await?;
            Box::pin(serve::serve(installation, &global, &args)).await
        }
        command => {
            let mut app = match &command {
                Command::Source(_) | Command::Storage(_) => {
                    Installation::open_even_empty(&global, cx).await?
                }
                _ => Installation::open(&global, cx).await?,
            };
            let change = audit::change_of(&command);
            let done = Box::pin(run_here(&mut app, global.json, command)).await;
            if let Some(change) = change {
                let done = done.as_ref().map(|exit| *exit);
                app.write_audit(audit::user(), change, done).await;
            }
            done
        }
    }
}

/// Runs a command on this machine's installation.
async fn run_here(app: &mut Installation, json: bool, command: Command) -> anyhow::Result<Exit> {
    if let Some(change) = add::change_of(&command)? {
        return show_done(&settings::change(app, change, settings::By::Machine).await?);
    }
    let app = &*app;
    match command {
        Command::Doctor => doctor::doctor(app, json).await,
        Command::Status { check } => status::status(app, check, json).await,
        Command::Source(command) => look::source(app, command, json).await,
        Command::Storage(command) => look::storage(app, command, json).await,
        Command::Backup(args) => Box::pin(backup::backup_all(app, args, json)).await,
        Command::Import(args) => Box::pin(import::import_all(app, &args, json)).await,
        Command::Backups { source, newest } => {
            list::backups(app, &WhichBackups { source, newest }, json).await
        }
        Command::Show { id } => list::show(app, &id, json).await,
        Command::Hold { id, reason } => said(list::hold(app, &id, &reason).await),
        Command::Release { id } => said(list::release(app, &id).await),
        Command::Delete { id, yes } => {
            let confirm = |what: &str| restore::ask(what, "DELETE", yes);
            said(list::delete(app, &id, confirm).await)
        }
        Command::Restore(args) => restore::restore(app, args, json).await,
        Command::Drill { source, id } => {
            drill::drill_source(app, &source, id.as_deref(), json).await
        }
        Command::Undo { source } => said(undo::undo(app, source.as_deref()).await),
        Command::Confirm { source } => said(undo::confirm(app, source.as_deref()).await),
        Command::Verify { what, all } => files::verify(app, what.as_deref(), all, json).await,
        Command::Check => files::check(app, json).await,
        Command::Download { id, part, output, sealed } => {
            files::download(app, &id, part.as_deref(), &output, sealed).await
        }
        Command::Forget { source, dry_run } => {
            retention::forget(app, source.as_deref(), dry_run, json).await
        }
        Command::Prune { dry_run } => retention::prune(app, dry_run, json).await,
        Command::Archives(command) => archives::archives(app, command, json).await,
        Command::Catalog(command) => catalog::catalog(app, command, json).await,
        Command::Keys(command) => keys::keys(app, command, json).await,
        Command::Guard(args) => Box::pin(guard::guard(app, &args)).await,
        Command::Jobs(command) => jobs::jobs(app, command, json).await,
        Command::Workers(command) => Box::pin(workers::workers(app, command, json)).await,
        Command::Members(command) => Box::pin(members::members(app, command, json)).await,
        Command::Audit { limit } => {
            members::show_audit(&members::entries(app, None, limit).await?, json)
        }
        Command::Quickstart
        | Command::Init { .. }
        | Command::Config(_)
        | Command::Completions { .. }
        | Command::Man { .. }
        | Command::Recover(_)
        | Command::Serve(_)
        | Command::Worker(_)
        | Command::Decrypt { .. } => Ok(Exit::Done),
    }
}

/// Tells what was changed.
fn show_done(done: &Done) -> anyhow::Result<Exit> {
    for warning in &done.warnings {
        render::say(&format!("warning: {warning}"));
    }
    render::print(&done.said)?;
    Ok(Exit::Done)
}

/// Tells what was done.
fn said(done: anyhow::Result<String>) -> anyhow::Result<Exit> {
    render::print(&done?)?;
    Ok(Exit::Done)
}

fn completions(shell: clap_complete::Shell) -> anyhow::Result<Exit> {
    // Not straight to standard output: the generator panics when nobody reads it.
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "backstay", &mut script);
    render::print(&String::from_utf8(script)?)?;
    Ok(Exit::Done)
}

fn man(directory: &Path) -> anyhow::Result<Exit> {
    std::fs::create_dir_all(directory)
        .and_then(|()| clap_mangen::generate_to(Cli::command(), directory))
        .with_context(|| format!("cannot write man pages into {}", directory.display()))?;
    Ok(Exit::Done)
}
