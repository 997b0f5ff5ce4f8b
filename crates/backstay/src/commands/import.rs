//! `backstay import`: dumps of other programs become backups of a source (ADR 20).

mod once;

use std::collections::BTreeMap;

use anyhow::Context as _;
use backstay_control::{JobKind, JobState};
use backstay_engine::event::Event;
use backstay_engine::import::import;
use backstay_engine::source::dump::{self, Dump, Found};
use backstay_engine::vault::Vault;
use backstay_format::{BackupId, IndexEntry, Sha256, Status, TimeFrom, Trigger};
use jiff::Timestamp;
use serde_json::{Value, json};

pub(super) use self::once::{Imported, enqueue, import_here, trouble};
use super::backup::{hold_new, plan_to_forget, warn_without_kit, write_down};
use super::restore::hex_tag;
use super::room::warn_of_little;
use super::undo::{finish_interrupted, sweep};
use crate::cli::ImportArgs;
use crate::config::SourceConfig;
use crate::exit::{Exit, UsageError};
use crate::installation::Installation;
use crate::{plain, render};

/// Before this, ids of backups have another beginning (the year 2000).
const EARLIEST: Timestamp = Timestamp::constant(946_684_800, 0);

pub(super) async fn import_all(
    app: &Installation,
    args: &ImportArgs,
    json: bool,
) -> anyhow::Result<Exit> {
    let source = app.source(&args.source).await?;
    if source.remote().is_some() {
        let text = format!(
            "{} is read by a worker on another machine; import on a machine that reaches it, with a source of its own",
            source.name
        );
        return Err(UsageError(text).into());
    }
    let Found { dumps, skipped, failed } = find(app, args).await?;
    for error in skipped {
        render::say(&plain::sentence(&format!("skipped: {:#}", anyhow::Error::new(error))));
    }
    let mut exit = if dumps.is_empty() { Exit::Failed } else { Exit::Done };
    for error in failed {
        exit = exit.and(complain(&error.into()));
    }
    let storage = app.storage(&source.storage)?;
    let mut known = match app.vault_if_any(storage).await? {
        Some(vault) => imported_before(app, &source, &vault).await?,
        None => BTreeMap::new(),
    };
    if args.dry_run || dumps.is_empty() {
        show_plan(&dumps, &known, json)?;
        return Ok(exit);
    }
    warn_of_little(app, &source);
    let vault = app.vault_for_writing(storage).await?;
    let mut made = Vec::new();
    for dump in &dumps {
        if let Some(id) = known.get(&dump.sha256) {
            render::say(&format!("{}: imported before, as {id}", shown(dump)));
            continue;
        }
        match import_one(app, (&source, &vault), dump, args).await {
            Ok(entry) => {
                if entry.status == Status::Incomplete {
                    exit = exit.and(Exit::Incomplete);
                }
                known.insert(dump.sha256, entry.id.clone());
                made.push((dump, entry));
            }
            // One that is damaged must not keep the others from being imported.
            Err(error) => {
                exit = exit.and(complain(&named(dump, error)));
            }
        }
        if app.cx.cancelled().is_some() {
            exit = exit.and(Exit::Interrupted);
            break;
        }
    }
    let location = format!("{}/{}/{}", vault.location(), source.organisation, source.name);
    show_made(&made, (&source.storage, &location), json)?;
    if !made.is_empty() {
        warn_of_forgetting(app, &source, &vault, &made).await;
        app.back_up_catalog_too(&[source.storage.clone()].into()).await;
        warn_without_kit(app).await?;
    }
    Ok(exit)
}

/// Looks at all paths. What was told of a dump can only be meant of a single one.
async fn find(app: &Installation, args: &ImportArgs) -> anyhow::Result<Found> {
    let expected: Option<Sha256> = match &args.sha256 {
        Some(text) => Some(text.to_lowercase().parse().map_err(UsageError)?),
        None => None,
    };
    if args.paths.len() > 1 && expected.is_some() {
        let text = "--sha256 is of one dump, and several paths were given".to_owned();
        return Err(UsageError(text).into());
    }
    let (cx, paths) = (app.cx.clone(), args.paths.clone());
    let finding = tokio::task::spawn_blocking(move || {
        let mut all = Found::default();
        for path in &paths {
            match dump::find(&cx, path, expected) {
                Ok(found) => {
                    all.dumps.extend(found.dumps);
                    all.skipped.extend(found.skipped);
                    all.failed.extend(found.failed);
                }
                Err(error) if error.is_cancelled() => return Err(error),
                Err(error) => all.failed.push(error),
            }
        }
        Ok(all)
    });
    let mut found = finding.await.context("the thread that looks for dumps died")??;
    if let Some(taken_at) = args.taken_at {
        let [dump] = found.dumps.as_mut_slice() else {
            let count = found.dumps.len();
            let text = format!("--taken-at is of one dump, and there are {count}");
            return Err(UsageError(text).into());
        };
        (dump.taken_at, dump.time_from) = (taken_at, TimeFrom::Told);
    }
    Ok(found)
}

/// Fails if a backup cannot be of the time of a dump.
fn check_time(dump: &Dump, now: Timestamp) -> anyhow::Result<()> {
    let wrong = if dump.taken_at > now {
        "which is in the future"
    } else if dump.taken_at < EARLIEST {
        "when nobody had such dumps"
    } else {
        return Ok(());
    };
    let text =
        format!("it was made at {:.0}, {wrong}; say by --taken-at when it was", dump.taken_at);
    Err(UsageError(text).into())
}

/// Returns the digests of what was imported before, with the backups that were made of it.
async fn imported_before(
    app: &Installation,
    source: &SourceConfig,
    vault: &Vault,
) -> anyhow::Result<BTreeMap<Sha256, BackupId>> {
    let listing = vault.list(&app.cx, &source.organisation, &source.name).await?;
    let mut known = BTreeMap::new();
    let orphans = app.catalog.orphans(vault.id().as_str(), source.name.as_str()).await?;
    // One that is not whole may be made anew.
    let whole = |entry: &&IndexEntry| {
        entry.trigger == Trigger::Imported
            && entry.status == Status::Complete
            && !orphans.damaged.contains(&entry.id)
    };
    for entry in listing.backups.iter().filter(whole) {
        let place = source.place(entry.id.clone());
        let read = vault.manifest(&app.cx, &place).await;
        match read.and_then(|manifest| vault.details(&manifest)) {
            Ok(details) => {
                known.extend(details.imported.map(|from| (from.sha256, entry.id.clone())));
            }
            Err(error) => {
                app.cx.check()?;
                let text = format!("what backup {} was made of cannot be read: {error}", entry.id);
                app.cx.event(Event::Warning { text });
            }
        }
    }
    Ok(known)
}

/// Imports a dump while nobody else works on the source.
async fn import_one(
    app: &Installation,
    (source, vault): (&SourceConfig, &Vault),
    dump: &Dump,
    args: &ImportArgs,
) -> anyhow::Result<IndexEntry> {
    let leased = async {
        finish_interrupted(app, source).await?;
        sweep(app, source).await?;
        let job = app.start_job(source, JobKind::Import).await?;
        let made = make(app, (source, vault), dump, args.note.clone()).await;
        let made = match made {
            Ok(entry) if args.hold => hold(app, (source, vault), entry).await,
            made => made,
        };
        let state = match &made {
            Ok(entry) if entry.status == Status::Incomplete => JobState::Incomplete,
            Ok(_) => JobState::Succeeded,
            Err(_) => app.failed(),
        };
        let backup = made.as_ref().ok().map(|entry| entry.id.to_string());
        app.end_job(&job, state, made.as_ref().err(), backup).await;
        made
    };
    app.under_lease(source.name.as_str(), Box::pin(leased)).await
}

/// Makes a backup of a dump, under the lease on the source.
async fn make(
    app: &Installation,
    (source, vault): (&SourceConfig, &Vault),
    dump: &Dump,
    note: Option<String>,
) -> anyhow::Result<IndexEntry> {
    check_time(dump, app.cx.now())?;
    let engine_source = app.engine_source(source)?;
    let mut draft = app.draft(source, Trigger::Imported, note.or_else(|| dump.note()));
    draft.imported = Some((Box::new(dump.provenance()), dump.taken_at));
    let tag = hex_tag();
    let made = import(&app.cx, engine_source.as_ref(), (dump, &tag), (vault, draft)).await;
    let entry = made?;
    write_down(app, vault, &entry).await;
    Ok(entry)
}

async fn hold(
    app: &Installation,
    (source, vault): (&SourceConfig, &Vault),
    mut entry: IndexEntry,
) -> anyhow::Result<IndexEntry> {
    let held = hold_new(app, source, vault, &mut entry).await;
    held.with_context(|| format!("backup {} was made, and then", entry.id))?;
    Ok(entry)
}

/// Says which of the new backups the source's rules would forget at once.
async fn warn_of_forgetting(
    app: &Installation,
    source: &SourceConfig,
    vault: &Vault,
    made: &[(&Dump, IndexEntry)],
) {
    // That it cannot be told now makes the backups no worse.
    let Ok(plan) = plan_to_forget(app, source, vault).await else { return };
    let gone = |entry: &IndexEntry| {
        plan.verdicts.iter().any(|verdict| verdict.id == entry.id && !verdict.keep)
    };
    let gone: Vec<&str> =
        made.iter().filter(|(_, entry)| gone(entry)).map(|(_, entry)| entry.id.as_str()).collect();
    if !gone.is_empty() {
        let text = format!(
            "the rules of {} forget {} of these at its next backup, since they are old: {}; `backstay hold ID` keeps one",
            source.name,
            gone.len(),
            gone.join(", ")
        );
        app.cx.event(Event::Warning { text });
    }
}

/// Returns the path of a dump for a person.
fn shown(dump: &Dump) -> String {
    plain::sentence(&dump.path.display().to_string())
}

/// Names the dump that an error is of, where its own does not.
fn named(dump: &Dump, error: anyhow::Error) -> anyhow::Error {
    let is_named = error.chain().any(|cause| cause.to_string().contains(&shown(dump)));
    if is_named { error } else { error.context(shown(dump)) }
}

/// Says what was wrong with one of several. Returns what that means for the end of the command.
fn complain(error: &anyhow::Error) -> Exit {
    render::say(&plain::sentence(&format!("error: {error:#}")));
    Exit::of(error)
}

fn time_of(dump: &Dump) -> String {
    let from = match dump.time_from {
        TimeFrom::Told => "as was said",
        TimeFrom::Name => "as its name says",
        TimeFrom::Dump => "as it says itself",
        TimeFrom::File => "when the file was written",
    };
    format!("{:.0}, {from}", dump.taken_at)
}

fn dump_json(dump: &Dump) -> Value {
    let mut value = json!(dump.provenance());
    value["taken_at"] = json!(dump.taken_at);
    value
}

fn show_plan(dumps: &[Dump], known: &BTreeMap<Sha256, BackupId>, json: bool) -> anyhow::Result<()> {
    if json {
        let all = dumps.iter().map(|dump| {
            let mut value = dump_json(dump);
            value["imported_before"] = json!(known.get(&dump.sha256));
            value
        });
        return render::print_json(&all.collect::<Vec<_>>());
    }
    for dump in dumps {
        let before = known.get(&dump.sha256).map(|id| format!("; imported before, as {id}"));
        render::print(&format!(
            "{}: {}, {}, of {}{}",
            shown(dump),
            dump.label(),
            render::size(dump.bytes),
            time_of(dump),
            before.unwrap_or_default()
        ))?;
    }
    Ok(())
}

fn show_made(
    made: &[(&Dump, IndexEntry)],
    (storage, location): (&str, &str),
    json: bool,
) -> anyhow::Result<()> {
    if json {
        let all = made.iter().map(|(dump, entry)| {
            let backup = render::backup_view(entry, (storage, location), false);
            let mut value = json!(backup);
            value["imported"] = dump_json(dump);
            value
        });
        return render::print_json(&all.collect::<Vec<_>>());
    }
    for (dump, entry) in made {
        render::print(&format!(
            "{} {} {}: {} of {} ({}), {} read, {} stored",
            entry.source,
            entry.id,
            render::word(entry.status),
            shown(dump),
            time_of(dump),
            dump.label(),
            render::size(entry.plain_bytes),
            render::size(entry.stored_bytes),
        ))?;
        for warning in &entry.warnings {
            render::print(&format!("  warning: {warning}"))?;
        }
        for error in &entry.item_errors {
            render::print(&format!("  missing: {}: {}", error.item, error.error))?;
        }
    }
    Ok(())
}
