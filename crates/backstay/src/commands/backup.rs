//! `backstay backup`.

use anyhow::Context as _;
use backstay_control::{JobKind, JobState};
use backstay_engine::backup::backup;
use backstay_engine::error::{EngineError, ErrorKind};
use backstay_engine::forget;
use backstay_engine::hook::run_hook;
use backstay_engine::vault::Vault;
use backstay_format::{IndexEntry, Status, Trigger};

use super::undo::{finish_interrupted, let_go_of_expired};
use crate::cli::BackupArgs;
use crate::config::SourceConfig;
use crate::exit::Exit;
use crate::installation::Installation;
use crate::render;

pub(super) async fn backup_all(
    app: &Installation,
    args: BackupArgs,
    json: bool,
) -> anyhow::Result<Exit> {
    let trigger = match args.trigger.as_str() {
        "scheduled" => Trigger::Scheduled,
        "pre-deploy" => Trigger::PreDeploy,
        "post-deploy" => Trigger::PostDeploy,
        _ => Trigger::Manual,
    };
    let names = if args.all { app.source_names(false).await? } else { args.sources.clone() };
    let mut sources = Vec::new();
    for name in &names {
        // A misspelt name must be told before an hour of work.
        sources.push(app.source(name).await?);
    }
    for warning in &app.config.warnings {
        app.cx.event(backstay_engine::event::Event::Warning { text: warning.clone() });
    }
    let mut exit = Exit::Done;
    let mut made = Vec::new();
    for source in &sources {
        match backup_one(app, source, trigger, &args).await {
            Ok((entry, location)) => {
                if entry.status == Status::Incomplete && exit == Exit::Done {
                    exit = Exit::Incomplete;
                }
                made.push((entry, source.storage.clone(), location));
            }
            // One that failed must not keep the others from being made.
            Err(error) if sources.len() > 1 && app.cx.cancelled().is_none() => {
                render::say(&format!("error: source {}: {error:#}", source.name));
                exit = Exit::of(&error);
            }
            Err(error) => return Err(error),
        }
    }
    show_made(&made, json)?;
    warn_without_kit(app).await?;
    Ok(exit)
}

fn show_made(made: &[(IndexEntry, String, String)], json: bool) -> anyhow::Result<()> {
    if json {
        let all: Vec<_> = made
            .iter()
            .map(|(b, storage, location)| render::backup_json(b, storage, location))
            .collect();
        return match all.as_slice() {
            [one] => render::print_json(one),
            _ => render::print_json(&all.into()),
        };
    }
    for (backup, _, location) in made {
        render::print(&format!(
            "{} {} {}: {} read, {} stored at {location}/{}",
            backup.source,
            backup.id,
            render::word(backup.status),
            render::size(backup.plain_bytes),
            render::size(backup.stored_bytes),
            backup.id,
        ))?;
        for error in &backup.item_errors {
            render::print(&format!("  missing: {}: {}", error.item, error.error))?;
        }
    }
    Ok(())
}

/// Backs up one source under its lease, with its hooks around, and forgets what its rules forget.
async fn backup_one(
    app: &Installation,
    source: &SourceConfig,
    trigger: Trigger,
    args: &BackupArgs,
) -> anyhow::Result<(IndexEntry, String)> {
    let lease = app.lease(&source.name).await?;
    let job = app.start_job(&source.name, JobKind::Backup).await?;
    let made = Box::pin(make(app, source, trigger, args)).await;
    let (state, backup) = match &made {
        Ok((entry, _)) if entry.status == Status::Complete => {
            (JobState::Succeeded, Some(entry.id.to_string()))
        }
        Ok((entry, _)) => (JobState::Incomplete, Some(entry.id.to_string())),
        Err(_) => (JobState::Failed, None),
    };
    app.end_job(&job, (made.as_ref().err(), state), backup).await?;
    lease.release().await?;
    made
}

async fn make(
    app: &Installation,
    source: &SourceConfig,
    trigger: Trigger,
    args: &BackupArgs,
) -> anyhow::Result<(IndexEntry, String)> {
    let storage = app.storage(&source.storage)?;
    finish_interrupted(app, source).await?;
    let vault = app.vault_for_writing(storage).await?;
    let_go_of_expired(app, source).await;
    let before = match &source.before_backup {
        Some(hook) => run_hook(&app.cx, "before_backup", hook).await,
        None => Ok(()),
    };
    let made = match before {
        Ok(()) => {
            let draft = app.draft(source, trigger, args.note.clone());
            backup(&app.cx, app.engine_source(source).as_ref(), &vault, draft).await
        }
        Err(error) => Err(error),
    };
    if let Some(hook) = &source.after_backup {
        let ran = run_hook(&app.cx.for_cleanup(), "after_backup", hook).await;
        // The backup's own error matters more.
        if made.is_ok() {
            ran?;
        }
    }
    let mut entry = made.map_err(explain)?;
    if args.hold {
        let reason = "held when it was made";
        vault.hold(&app.cx, &app.place(&source.name, entry.id.clone()), reason).await?;
        entry.hold = Some(reason.to_owned());
    }
    if entry.status == Status::Complete {
        forget_old(app, source, &vault).await;
    }
    let location = format!("{}/{}/{}", vault.location(), app.config.organisation, source.name);
    Ok((entry, location))
}

/// A stop that reached a part of the engine as a failed stream is a stop all the same.
fn explain(error: EngineError) -> anyhow::Error {
    match error.kind() {
        ErrorKind::Interrupted(reason) => {
            anyhow::Error::new(backstay_engine::cx::Cancelled(reason))
        }
        _ => error.into(),
    }
}

/// Retention after a success. That it failed does not make the backup worse.
async fn forget_old(app: &Installation, source: &SourceConfig, vault: &Vault) {
    let forgotten = async {
        let plan = forget::plan_forget(
            &app.cx,
            vault,
            &app.config.organisation,
            &source.name,
            &source.keep,
        )
        .await?;
        forget::forget(&app.cx, vault, &plan).await
    };
    if let Err(error) = forgotten.await {
        let text = format!("old backups of {} were not forgotten: {error}", source.name);
        app.cx.event(backstay_engine::event::Event::Warning { text });
    }
}

/// Sealed backups without a kit are lost with this machine.
async fn warn_without_kit(app: &Installation) -> anyhow::Result<()> {
    let exported: Option<bool> =
        app.catalog.setting(super::keys::KIT_EXPORTED).await.context("cannot ask for the kit")?;
    if exported != Some(true) && app.config.sources.values().any(|source| source.sealed) {
        let text = "there is no recovery kit yet: if this machine dies, nobody can open its backups; make one with \
                    `backstay keys kit --output kit.txt` and keep it elsewhere";
        app.cx.event(backstay_engine::event::Event::Warning { text: text.to_owned() });
    }
    Ok(())
}
