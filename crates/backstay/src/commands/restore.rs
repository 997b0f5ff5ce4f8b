//! `backstay restore`, `undo` and `confirm`.

use std::io::{BufRead as _, IsTerminal as _};
use std::path::PathBuf;

use anyhow::Context as _;
use async_trait::async_trait;
use backstay_control::{Catalog, SwapRecord, SwapState};
use backstay_engine::event::Event;
use backstay_engine::replace::{self, Replacement};
use backstay_engine::restore::{
    Around, Journal, JournalError, RestoreOptions, RestorePlan, plan_restore,
};
use backstay_engine::source::TargetOptions;
use backstay_engine::vault::Vault;
use backstay_format::{BackupId, Content, Status, Trigger};
use jiff::Timestamp;
use serde_json::json;

use crate::cli::RestoreArgs;
use crate::config::SourceConfig;
use crate::exit::{Exit, UsageError};
use crate::installation::{Installation, random};
use crate::render;

pub(super) async fn restore(
    app: &Installation,
    args: RestoreArgs,
    json: bool,
) -> anyhow::Result<Exit> {
    let source = app.source(&args.source).await?;
    let vault = app.vault(app.storage(&source.storage)?).await?;
    let id = choose(app, &vault, &source, &args).await?;
    if let Some(file) = &args.to_file {
        return super::files::download_part(
            app,
            &vault,
            app.place(&source.name, id),
            None,
            file,
            false,
        )
        .await;
    }
    let tag = hex_tag();
    let to = args.to.as_ref().map(std::path::absolute).transpose()?;
    let options = RestoreOptions {
        target: TargetOptions { to, only: args.only.clone(), tag: tag.clone() },
        accept_unsealed: args.accept_unsealed,
        expects_sealed: source.sealed,
    };
    let place = app.place(&source.name, id);
    let plan = plan_restore(&app.cx, &vault, place, source.path.clone(), options).await?;
    show_plan(app, &plan, &args, json)?;
    if args.dry_run {
        return Ok(Exit::Done);
    }
    let what =
        if plan.replaces { "This replaces what is there now." } else { "This makes it anew." };
    ask(what, "RESTORE", args.yes)?;
    let lease = app.lease(&source.name).await?;
    let done = Box::pin(restore_leased(app, &source, &plan, &args, tag)).await;
    lease.release().await?;
    let done = done?;
    for warning in &done.report.warnings {
        render::say(&format!("warning: {warning}"));
    }
    if json {
        return render::print_json(&json!({
            "backup": plan.place.backup,
            "target": done.replacement.target,
            "items": done.report.items,
            "bytes": done.report.bytes,
            "safety_backup": done.safety,
            "warnings": done.report.warnings,
        }))
        .map(|()| Exit::Done);
    }
    render::print(&format!(
        "restored {} from {}: {} items, {}",
        done.replacement.target.display(),
        plan.place.backup,
        done.report.items,
        render::size(done.report.bytes),
    ))?;
    if plan.replaces && args.to.is_none() {
        render::print(&format!(
            "what was there is kept; `backstay undo {0}` brings it back, `backstay confirm {0}` lets it go",
            source.name
        ))?;
    }
    Ok(Exit::Done)
}

async fn restore_leased(
    app: &Installation,
    source: &SourceConfig,
    plan: &RestorePlan,
    args: &RestoreArgs,
    tag: String,
) -> anyhow::Result<backstay_engine::restore::Restored> {
    let vault = app.vault_for_writing(app.storage(&source.storage)?).await?;
    let own_place = args.to.is_none();
    let journal = CatalogJournal {
        catalog: app.catalog.clone(),
        source: source.clone(),
        id: tag,
        now: app.cx.now(),
        keep: own_place && plan.replaces,
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
    let engine_source = app.engine_source(source);
    Ok(backstay_engine::restore::restore(&app.cx, &vault, engine_source.as_ref(), plan, around)
        .await?)
}

/// Finds the backup that is meant: by id, by time, or the newest complete one (H17, H23).
async fn choose(
    app: &Installation,
    vault: &Vault,
    source: &SourceConfig,
    args: &RestoreArgs,
) -> anyhow::Result<BackupId> {
    let listing = vault.list(&app.cx, &app.config.organisation, &source.name).await?;
    if let Some(id) = &args.id {
        let mut found = listing.backups.iter().filter(|b| b.id.as_str().starts_with(id.as_str()));
        return match (found.next(), found.next()) {
            (Some(one), None) => Ok(one.id.clone()),
            (None, _) => {
                match listing.unusable.into_iter().find(|u| u.id.as_str().starts_with(id.as_str()))
                {
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
    let newest = listing.backups.iter().find(|backup| {
        backup.status == Status::Complete
            && backup.trigger != Trigger::PreRestore
            && args.at.is_none_or(|at| backup.started_at <= at)
    });
    let none = || {
        let text = format!(
            "source {} has no complete backup that fits; see `backstay backups {0}`",
            source.name
        );
        anyhow::anyhow!(text)
    };
    newest.map(|backup| backup.id.clone()).ok_or_else(none)
}

fn show_plan(
    app: &Installation,
    plan: &RestorePlan,
    args: &RestoreArgs,
    json: bool,
) -> anyhow::Result<()> {
    let (manifest, now) = (&plan.manifest, app.cx.now());
    if json {
        if !args.dry_run {
            return Ok(());
        }
        return render::print_json(&json!({
            "backup": plan.place.backup,
            "source": plan.place.source,
            "started_at": manifest.started_at,
            "tool": manifest.tool,
            "engine": manifest.engine,
            "plain_bytes": manifest.plain_bytes(),
            "target": plan.target,
            "replaces": plan.replaces,
            "content": plan.content(),
            "warnings": plan.warnings,
        }));
    }
    let mut lines = vec![
        format!(
            "Backup    {} of {}, made {} ago by {}",
            plan.place.backup,
            plan.place.source,
            render::age(manifest.started_at, now),
            manifest.tool
        ),
        format!(
            "Size      {} ({} to fetch)",
            render::size(manifest.plain_bytes()),
            render::size(manifest.stored_bytes())
        ),
    ];
    lines.extend(manifest.engine.as_ref().map(|engine| format!("Engine    {engine}")));
    match plan.content() {
        Some(Content::Files(files)) => lines.push(format!(
            "Holds     {} files, {} directories, {} links, {} SQLite databases",
            files.files,
            files.directories,
            files.symlinks + files.hard_links,
            files.sqlite_databases.len()
        )),
        Some(Content::Sqlite(database)) => {
            lines
                .push(format!("Holds     schema version {} (user_version)", database.user_version));
            lines.extend(
                database.tables.iter().map(|t| format!("          {}: {} rows", t.table, t.rows)),
            );
        }
        None => {}
    }
    let verb = if plan.replaces { "Replaces " } else { "Makes    " };
    lines.push(format!("{verb} {}", plan.target.display()));
    if plan.replaces {
        lines.push(format!(
            "Loses     what was changed there in the last {}, unless undone",
            render::age(manifest.started_at, now)
        ));
        lines.push("How       loaded beside, every byte proven, present data backed up, then swapped in one step".to_owned());
    }
    lines.extend(plan.warnings.iter().map(|warning| format!("Warning   {warning}")));
    let preview = lines.join("\n");
    if args.yes {
        // Nobody is asked, so --quiet may keep it back.
        app.cx.event(Event::Step { what: preview });
    } else {
        render::say(&preview);
    }
    Ok(())
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

/// Writes swaps into the catalog.
struct CatalogJournal {
    catalog: Catalog,
    source: SourceConfig,
    id: String,
    now: Timestamp,
    /// A restore to a new place has nothing to undo.
    keep: bool,
}

#[async_trait]
impl Journal for CatalogJournal {
    async fn before_swap(
        &self,
        replacement: &Replacement,
        safety: Option<&BackupId>,
    ) -> Result<(), JournalError> {
        if !self.keep {
            return Ok(());
        }
        let record = SwapRecord {
            id: self.id.clone(),
            source: self.source.name.to_string(),
            storage: self.source.storage.clone(),
            state: SwapState::Begun,
            made_at: self.now,
            undo_until: self.now + self.source.undo_for,
            replacement: serde_json::to_string(replacement)?,
            safety: safety.map(ToString::to_string),
        };
        Ok(self.catalog.begin_swap(&record).await?)
    }

    async fn after_swap(&self) -> Result<(), JournalError> {
        if !self.keep {
            return Ok(());
        }
        Ok(self.catalog.set_swap_state(&self.id, SwapState::Swapped).await?)
    }
}

/// Puts back what the newest restore replaced. The restored data is kept beside until confirmed.
pub(super) async fn undo(app: &Installation, source: Option<&str>) -> anyhow::Result<Exit> {
    let swap = newest_swap(app, source).await?;
    let replacement: Replacement =
        serde_json::from_str(&swap.replacement).context("the swap cannot be read")?;
    anyhow::ensure!(
        swap.state == SwapState::Swapped,
        "the last restore of {} is {}; nothing to undo. The old data, if any, lies at {}",
        swap.source,
        swap.state.as_str(),
        replacement.beside.display()
    );
    anyhow::ensure!(
        replacement.beside.symlink_metadata().is_ok(),
        "{} is gone, so nothing can be put back; restore the safety backup {} instead",
        replacement.beside.display(),
        swap.safety.as_deref().unwrap_or("(none was made)")
    );
    let config = app.source(&swap.source).await?;
    if let Some(hook) = &config.before_restore {
        backstay_engine::hook::run_hook(&app.cx, "before_restore", hook).await?;
    }
    let swapped = replace::swap(&replacement);
    if let Some(hook) = &config.after_restore {
        backstay_engine::hook::run_hook(&app.cx, "after_restore", hook).await?;
    }
    swapped?;
    app.catalog.set_swap_state(&swap.id, SwapState::Undone).await?;
    render::print(&format!("{} is as it was before the restore", replacement.target.display()))?;
    Ok(Exit::Done)
}

/// Lets go of what the newest restore left beside, and releases its safety backup.
pub(super) async fn confirm(app: &Installation, source: Option<&str>) -> anyhow::Result<Exit> {
    let swap = newest_swap(app, source).await?;
    let replacement: Replacement =
        serde_json::from_str(&swap.replacement).context("the swap cannot be read")?;
    replace::discard(&replacement)?;
    if let Some(safety) = &swap.safety {
        let vault = app.vault_for_writing(app.storage(&swap.storage)?).await?;
        vault.release(&app.cx, &app.place(&swap.source.parse()?, safety.parse()?)).await?;
    }
    app.catalog.end_swap(&swap.id).await?;
    let gone: PathBuf = replacement.beside;
    render::print(&format!("confirmed; {} is gone", gone.display()))?;
    Ok(Exit::Done)
}

async fn newest_swap(app: &Installation, source: Option<&str>) -> anyhow::Result<SwapRecord> {
    let mut swaps = app.catalog.swaps(source).await?;
    anyhow::ensure!(!swaps.is_empty(), "there is no restore that waits for undo or confirm");
    Ok(swaps.swap_remove(0))
}

fn hex_tag() -> String {
    random::<6>().iter().map(|byte| format!("{byte:02x}")).collect()
}
