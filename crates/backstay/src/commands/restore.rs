//! `backstay restore`, `undo` and `confirm`.

use std::collections::BTreeMap;
use std::io::{BufRead as _, IsTerminal as _};

use backstay_control::{JobKind, JobState};
use backstay_engine::event::Event;
use backstay_engine::restore::{Around, RestoreOptions, RestorePlan, plan_restore};
use backstay_engine::source::{How, Outlook, TargetOptions};
use backstay_engine::vault::Vault;
use backstay_format::{BackupId, Content, PostgresContent, Status, Trigger};
use serde_json::json;

use super::undo::{CatalogJournal, finish_interrupted, let_go_of_expired, sweep};

use crate::cli::RestoreArgs;
use crate::config::SourceConfig;
use crate::exit::{Exit, UsageError};
use crate::installation::{Installation, random};
use crate::render;

/// Tables that a preview names.
const SHOWN_TABLES: usize = 20;

pub(super) async fn restore(
    app: &Installation,
    args: RestoreArgs,
    json: bool,
) -> anyhow::Result<Exit> {
    let source = app.source(&args.source).await?;
    let vault = app.vault(app.storage(&source.storage)?).await?;
    let wanted = Wanted { id: args.id.as_deref(), at: args.at };
    let id = choose(app, &vault, &source, &wanted).await?;
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
    let to = args.to.as_ref().map(|to| source.kind.place(to)).transpose()?;
    let options = RestoreOptions {
        target: TargetOptions {
            to,
            only: args.only.clone(),
            in_place: args.in_place,
            tag: tag.clone(),
        },
        accept_unsealed: args.accept_unsealed,
        expects_sealed: source.sealed,
    };
    let place = app.place(&source.name, id);
    let engine_source = app.engine_source(&source);
    let plan = plan_restore(&app.cx, &vault, engine_source.as_ref(), place, options).await?;
    show_plan(app, &plan, &args, json)?;
    if args.dry_run {
        return Ok(Exit::Done);
    }
    let what = if plan.outlook.replaces {
        "This replaces what is there now."
    } else {
        "This makes it anew."
    };
    ask(what, "RESTORE", args.yes)?;
    let restoring = async {
        let job = app.start_job(&source.name, JobKind::Restore).await?;
        let done = Box::pin(restore_leased(app, &source, &plan, &args, tag)).await;
        let state = if done.is_ok() { JobState::Succeeded } else { app.failed() };
        let backup = plan.place.backup.to_string();
        app.end_job(&job, state, done.as_ref().err(), Some(backup)).await;
        done
    };
    let done = app.under_lease(&source.name, restoring).await?;
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
    if done.can_be_undone && args.to.is_none() {
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
    let engine_source = app.engine_source(source);
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
    let listing = vault.list(&app.cx, &app.config.organisation, &source.name).await?;
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
    let newest = listing.backups.iter().find(|backup| {
        backup.status == Status::Complete
            && backup.trigger != Trigger::PreRestore
            && wanted.at.is_none_or(|at| backup.started_at <= at)
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
    let (manifest, outlook, now) = (&plan.manifest, &plan.outlook, app.cx.now());
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
            "target": outlook.target,
            "replaces": outlook.replaces,
            "how": how(outlook.how),
            "content": plan.content().cloned().map(Content::without_secrets),
            "present": outlook.present,
            "warnings": outlook.warnings,
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
        Some(Content::Postgres(database)) => lines.extend(rows_then_and_now(database, outlook)),
        None => {}
    }
    let verb = if outlook.replaces { "Replaces " } else { "Makes    " };
    lines.push(format!("{verb} {}", outlook.target));
    if outlook.replaces {
        lines.push(format!(
            "Loses     what was changed there in the last {}, unless undone",
            render::age(manifest.started_at, now)
        ));
        lines.push(format!("How       {}", how(outlook.how)));
    }
    lines.extend(outlook.warnings.iter().map(|warning| format!("Warning   {warning}")));
    let preview = lines.join("\n");
    if args.yes {
        // Nobody is asked, so --quiet may keep it back.
        app.cx.event(Event::Step { what: preview });
    } else {
        render::say(&preview);
    }
    Ok(())
}

/// Shows the tables with their rows in the backup, and now: what would be lost.
fn rows_then_and_now(database: &PostgresContent, outlook: &Outlook) -> Vec<String> {
    let now: BTreeMap<&str, u64> = match &outlook.present {
        Some(Content::Postgres(now)) => {
            now.tables.iter().map(|table| (table.table.as_str(), table.rows)).collect()
        }
        _ => BTreeMap::new(),
    };
    let total: u64 = database.tables.iter().map(|table| table.rows).sum();
    let mut lines = vec![format!(
        "Holds     {} tables with {total} rows, {} large objects",
        database.tables.len(),
        database.large_objects
    )];
    let mut tables: Vec<_> = database.tables.iter().collect();
    tables.sort_by_key(|table| std::cmp::Reverse(table.rows));
    for table in tables.iter().take(SHOWN_TABLES) {
        let now = now.get(table.table.as_str()).map(|rows| format!(", {rows} now"));
        let (name, rows) = (&table.table, table.rows);
        lines.push(format!("          {name}: {rows} rows{}", now.unwrap_or_default()));
    }
    let more = tables.len().saturating_sub(SHOWN_TABLES);
    if more > 0 {
        lines.push(format!("          and {more} more tables; --dry-run --json lists all"));
    }
    lines
}

fn how(how: How) -> &'static str {
    match how {
        How::Swap => {
            "loaded beside, every byte proven, present data backed up, then swapped in one step"
        }
        How::Entries => {
            "in place: loaded into the directory, every byte proven, present data backed up, then swapped name by name, \
             since the directory itself cannot be renamed or --in-place was given"
        }
        How::Paths => {
            "only the chosen paths: loaded beside, every byte proven, present data backed up, then each swapped in one step"
        }
        How::Databases => {
            "loaded into a new database, every byte proven, rows counted, present data backed up, then both databases change \
             their names in one transaction"
        }
    }
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
