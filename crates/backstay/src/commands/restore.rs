//! `backstay restore`, `undo` and `confirm`.

use std::ffi::OsString;
use std::io::{BufRead as _, IsTerminal as _};
use std::path::PathBuf;

use backstay_control::{JobKind, JobState};
use backstay_engine::restore::{Around, RestoreOptions, RestorePlan, plan_restore};
use backstay_engine::source::{How, TargetOptions};
use backstay_engine::vault::Vault;
use backstay_format::{BackupId, IndexEntry, Trigger};
use serde_json::json;

use super::preview;
use super::undo::{CatalogJournal, finish_interrupted, let_go_of_expired, sweep};
use crate::cli::RestoreArgs;
use crate::config::SourceConfig;
use crate::exit::{Exit, UsageError};
use crate::installation::{Installation, random};
use crate::opening::environment;
use crate::render;

pub(super) async fn restore(
    app: &Installation,
    args: RestoreArgs,
    json: bool,
) -> anyhow::Result<Exit> {
    let source = match app.source(&args.source).await? {
        // Elsewhere it is as its backup says: where it was is another machine's.
        source if source.remote().is_some() && args.to.is_some() => {
            app.remembered_source(&args.source).await?.unwrap_or(source)
        }
        source => source,
    };
    let vault = app.vault(app.storage(&source.storage)?).await?;
    let wanted = Wanted { id: args.id.as_deref(), at: args.at };
    let id = choose(app, &vault, &source, &wanted).await?;
    if let Some(file) = &args.to_file {
        return super::files::download_part(app, &vault, source.place(id), None, file, false).await;
    }
    let tag = hex_tag();
    let (aimed, to, only) = aim(&source, &args)?;
    let options = RestoreOptions {
        target: TargetOptions { to, only, in_place: args.in_place, tag: tag.clone() },
        accept_unsealed: args.accept_unsealed,
        expects_sealed: source.sealed,
    };
    let place = source.place(id);
    let engine_source = app.engine_source(&aimed)?;
    let plan = plan_restore(&app.cx, &vault, engine_source.as_ref(), place, options).await?;
    preview::show(app, &vault, &plan, &args, json).await?;
    if args.dry_run {
        return Ok(Exit::Done);
    }
    if args.no_safety_backup && plan.outlook.replaces && plan.outlook.how == How::Transaction {
        let text = "in place nothing is kept beside, so the safety backup would be the only copy of what is there; leave --no-safety-backup out, or restore to another place with --to";
        return Err(UsageError(text.to_owned()).into());
    }
    let what = if plan.outlook.replaces {
        "This replaces what is there now."
    } else {
        "This makes it anew."
    };
    ask(what, "RESTORE", args.yes)?;
    let restoring = async {
        let job = app.start_job(&source, JobKind::Restore).await?;
        let done = Box::pin(restore_leased(app, (&source, &aimed), &plan, &args, tag)).await;
        let state = if done.is_ok() { JobState::Succeeded } else { app.failed() };
        let backup = plan.place.backup.to_string();
        app.end_job(&job, state, done.as_ref().err(), Some(backup)).await;
        done
    };
    let done = app.under_lease(source.name.as_str(), restoring).await?;
    for warning in &done.report.warnings {
        render::say(&format!("warning: {warning}"));
    }
    if json {
        return render::print_json(&json!({
            "backup": plan.place.backup,
            "target": done.replacement.target(),
            "items": done.report.items,
            "bytes": done.report.bytes,
            "safety_backup": done.safety,
            "warnings": done.report.warnings,
        }))
        .map(|()| Exit::Done);
    }
    render::print(&format!(
        "restored {} from {}: {} items, {}",
        done.replacement.target(),
        plan.place.backup,
        done.report.items,
        render::size(done.report.bytes),
    ))?;
    if plan.outlook.how.keeps_nothing()
        && let Some(safety) = &done.safety
    {
        let in_place = if plan.outlook.how == How::Transaction { " --in-place" } else { "" };
        render::print(&format!(
            "what was there is held as backup {safety}; `backstay restore {} --id {safety}{in_place}` brings it back, `backstay release {safety}` lets it go",
            source.name
        ))?;
    } else if done.can_be_undone && args.to.is_none() {
        render::print(&format!(
            "what was there is kept; `backstay undo {0}` brings it back, `backstay confirm {0}` lets it go",
            source.name
        ))?;
    }
    Ok(Exit::Done)
}

/// Turns the source towards where the restore goes, and to what of it is chosen. Returns the rest of both choices.
fn aim(
    source: &SourceConfig,
    args: &RestoreArgs,
) -> anyhow::Result<(SourceConfig, Option<OsString>, Vec<PathBuf>)> {
    let (mut aimed, mut only) = (source.clone(), args.only.clone());
    if aimed.kind.narrow(&only)? {
        only.clear();
    }
    let to = match &args.to {
        Some(to) => aimed.kind.aim(to, &environment())?,
        None => None,
    };
    Ok((aimed, to, only))
}

async fn restore_leased(
    app: &Installation,
    (source, aimed): (&SourceConfig, &SourceConfig),
    plan: &RestorePlan,
    args: &RestoreArgs,
    tag: String,
) -> anyhow::Result<backstay_engine::restore::Restored> {
    let own_place = args.to.is_none();
    let storage = app.storage(&source.storage)?;
    let vault = if own_place && !args.no_safety_backup {
        app.vault_for_writing(storage).await?
    } else {
        app.vault(storage).await?
    };
    finish_interrupted(app, source).await?;
    let_go_of_expired(app, source).await;
    if own_place {
        sweep(app, source).await?;
    }
    let journal = CatalogJournal {
        catalog: app.catalog.clone(),
        source: source.clone(),
        id: tag,
        now: app.cx.now(),
        keep: own_place,
    };
    let safety = (own_place && !args.no_safety_backup).then(|| {
        app.draft(
            source,
            Trigger::PreRestore,
            Some(format!("before restoring {}", plan.place.backup)),
        )
    });
    let around = Around {
        safety,
        before: source.before_restore.as_ref().filter(|_| own_place),
        after: source.after_restore.as_ref().filter(|_| own_place),
        journal: &journal,
    };
    let engine_source = app.engine_source(aimed)?;
    Ok(backstay_engine::restore::restore(&app.cx, &vault, engine_source.as_ref(), plan, around)
        .await?)
}

/// Which backup is meant; the newest if nothing is said.
pub(super) struct Wanted<'a> {
    pub(super) id: Option<&'a str>,
    pub(super) at: Option<jiff::Timestamp>,
}

/// Finds the backup that is meant: by id, by time, or the newest complete one (H17, H23).
pub(super) async fn choose(
    app: &Installation,
    vault: &Vault,
    source: &SourceConfig,
    wanted: &Wanted<'_>,
) -> anyhow::Result<BackupId> {
    let listing = vault.list(&app.cx, &source.organisation, &source.name).await?;
    if let Some(id) = wanted.id {
        let mut found = listing.backups.iter().filter(|b| b.id.as_str().starts_with(id));
        return match (found.next(), found.next()) {
            (Some(one), None) => Ok(one.id.clone()),
            (None, _) => {
                match listing.unusable.into_iter().find(|u| u.id.as_str().starts_with(id)) {
                    Some(unusable) => Err(unusable.error.into()),
                    None => {
                        Err(UsageError(format!("source {} has no backup {id:?}", source.name))
                            .into())
                    }
                }
            }
            (Some(_), Some(_)) => {
                Err(UsageError(format!("{id:?} begins several ids; write more of it")).into())
            }
        };
    }
    for unusable in &listing.unusable {
        render::say(&format!(
            "warning: backup {} cannot be used and is passed over: {}",
            unusable.id, unusable.error
        ));
    }
    let damaged = app.catalog.orphans(vault.id().as_str(), source.name.as_str()).await?.damaged;
    let wanted = |backup: &&IndexEntry| {
        backup.is_good() && wanted.at.is_none_or(|at| backup.started_at <= at)
    };
    let mut newest = None;
    for backup in listing.backups.iter().filter(wanted) {
        let place = source.place(backup.id.clone());
        // What was gone when somebody looked last may be there again.
        if damaged.contains(&backup.id) && !vault.is_whole(&app.cx, &place).await? {
            render::say(&format!(
                "warning: backup {} is orphaned and is passed over: objects of it are gone",
                backup.id
            ));
            continue;
        }
        newest = Some(backup);
        break;
    }
    let none = || {
        let text = format!(
            "source {} has no complete backup that fits; see `backstay backups {0}`",
            source.name
        );
        anyhow::anyhow!(text)
    };
    newest.map(|backup| backup.id.clone()).ok_or_else(none)
}

/// Asks for a typed word, unless `--yes` was given.
pub(super) fn ask(what: &str, word: &str, yes: bool) -> anyhow::Result<()> {
    if yes {
        return Ok(());
    }
    if !std::io::stdin().is_terminal() {
        let text = format!("{what} Nobody is there to confirm it; give --yes if it is meant");
        return Err(UsageError(text).into());
    }
    render::say(&format!("{what} Type {word} to go on:"));
    let mut typed = String::new();
    std::io::stdin().lock().read_line(&mut typed)?;
    if typed.trim() == word {
        return Ok(());
    }
    Err(UsageError("nothing was done".to_owned()).into())
}

pub(super) fn hex_tag() -> String {
    random::<6>().iter().map(|byte| format!("{byte:02x}")).collect()
}
