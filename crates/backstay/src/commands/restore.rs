//! `backstay restore`: here, or by whoever does jobs for the source.

mod here;

use std::ffi::OsStr;
use std::io::{BufRead as _, IsTerminal as _};

use backstay_control::{JobKind, JobState};
use backstay_engine::cx::Cx;
use backstay_engine::vault::Vault;
use backstay_format::{BackupId, IndexEntry};
use backstay_server::{RestoreWish, Work};

use self::here::{Choice, Planned};
pub(super) use self::here::{RestoreReport, preview_here, ready, restore_here};
use super::elsewhere::{self, Did};
use super::preview::Preview;
use super::undo::sweep;
use crate::cli::RestoreArgs;
use crate::config::SourceConfig;
use crate::exit::{Exit, UsageError};
use crate::installation::{Installation, random};
use crate::past::Past;
use crate::render;

pub(super) async fn restore(
    app: &Installation,
    args: RestoreArgs,
    json: bool,
) -> anyhow::Result<Exit> {
    let mut source = app.source(&args.source).await?;
    if let Some(remote) = source.remote() {
        let is_there = args.to.as_ref().is_none_or(|to| source.kind.is_beside(to));
        if is_there && args.to_file.is_none() {
            let have_done = async |work| elsewhere::result(app, (&source, remote), work).await;
            return restore_by(&app.cx, &args, json, have_done).await;
        }
        // Elsewhere it is as its backup says: where it was is another machine's.
        if args.to.is_some() {
            source = app.remembered_source(&args.source).await?.unwrap_or(source);
        }
    }
    let vault = app.vault(app.storage(&source.storage)?).await?;
    let wanted = Wanted { id: args.id.as_deref(), at: args.at };
    let id = choose(app, &vault, &source, &wanted).await?;
    if let Some(file) = &args.to_file {
        return super::files::download_part(app, &vault, source.place(id), None, file, false).await;
    }
    let planned = Planned::new(app, &vault, &source, (id, Choice::of(&args))).await?;
    let past = Past::of(app, &source, &vault).await?;
    let planned_so = (planned.plan(), planned.wants_safety());
    let preview = Preview::new(planned_so, past.as_ref(), app.cx.now());
    preview.show(&app.cx, &args, json)?;
    if args.dry_run {
        return Ok(Exit::Done);
    }
    planned.ensure_kept()?;
    preview.confirm(args.yes)?;
    let restoring = async {
        let job = app.start_job(&source, JobKind::Restore).await?;
        let done = Box::pin(restore_leased(app, &planned)).await;
        let state = if done.is_ok() { JobState::Succeeded } else { app.failed() };
        let backup = preview.backup.to_string();
        app.end_job(&job, state, done.as_ref().err(), Some(backup)).await;
        done
    };
    let report = app.under_lease(source.name.as_str(), restoring).await?;
    report.show(&args.source, json)
}

async fn restore_leased(app: &Installation, planned: &Planned) -> anyhow::Result<RestoreReport> {
    let source = planned.source();
    let storage = app.storage(&source.storage)?;
    let vault = if planned.wants_safety() {
        app.vault_for_writing(storage).await?
    } else {
        app.vault(storage).await?
    };
    // Who only wants something elsewhere did not say that an interrupted restore is to be finished.
    if planned.is_own_place() {
        ready(app, source).await?;
        sweep(app, source).await?;
    }
    planned.run(app, &vault).await
}

/// Has a source restored by whoever does jobs: asks for a preview, shows it, and asks for the restore that
/// was confirmed (ADR 22).
pub(super) async fn restore_by(
    cx: &Cx,
    args: &RestoreArgs,
    json: bool,
    have_done: impl AsyncFn(Work) -> anyhow::Result<Did>,
) -> anyhow::Result<Exit> {
    let wish = wish(args)?;
    let Did { result, worker } = have_done(Work::Preview(wish.clone())).await?;
    let preview = Preview::read(result)?;
    preview.show(cx, args, json)?;
    if args.dry_run {
        return Ok(Exit::Done);
    }
    preview.confirm(args.yes)?;
    let confirmed = RestoreWish {
        backup: Some(preview.backup.to_string()),
        at: None,
        replaces: preview.replaces.then_some(preview.target),
        worker: worker.map(|name| name.parse()).transpose()?,
        ..wish
    };
    let report = RestoreReport::read(have_done(Work::Restore(confirmed)).await?.result)?;
    report.show(&args.source, json)
}

/// Says what is wanted in the words that others are asked with.
fn wish(args: &RestoreArgs) -> anyhow::Result<RestoreWish> {
    let text = |given: &OsStr| {
        let text = given.to_str().map(str::to_owned);
        text.ok_or_else(|| {
            let given = given.display();
            UsageError(format!("{given} cannot be asked for: it is not UTF-8"))
        })
    };
    let only = args.only.iter().map(|only| text(only.as_os_str()));
    Ok(RestoreWish {
        backup: args.id.clone(),
        at: args.at,
        to: args.to.as_deref().map(text).transpose()?,
        only: only.collect::<Result<_, _>>()?,
        in_place: args.in_place,
        accept_unsealed: args.accept_unsealed,
        safety_backup: !args.no_safety_backup,
        replaces: None,
        worker: None,
    })
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
    // Of one whose time is not known nobody can say that it is the newest: it comes last.
    let (dated, undated): (Vec<_>, Vec<_>) =
        listing.backups.iter().filter(wanted).partition(|backup| !backup.is_undated);
    for backup in dated.into_iter().chain(undated) {
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
