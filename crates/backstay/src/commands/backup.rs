//! `backstay backup`.

use std::sync::Arc;

use anyhow::Context as _;
use backstay_control::{BackupSpec, JobId, JobKind, JobState};
use backstay_engine::backup::backup;
use backstay_engine::error::{EngineError, ErrorKind, Passing};
use backstay_engine::event::Event;
use backstay_engine::forget::{self, ForgetPlan};
use backstay_engine::hook::run_hook;
use backstay_engine::source::Source;
use backstay_engine::vault::{Draft, Vault};
use backstay_format::{BackupId, IndexEntry, Status, Trigger};
use backstay_server::BackupView;
use tokio::time::Instant;

use super::elsewhere::backup_elsewhere;
use super::orphans::survey_if_due;
use super::room::warn_of_little;
use super::undo::{finish_recent, let_go_of_expired};
use super::watched::{LOOK, Watched, hear_own, watch};
use crate::cli::BackupArgs;
use crate::config::SourceConfig;
use crate::exit::{Exit, UsageError};
use crate::installation::Installation;
use crate::render;

pub(super) async fn backup_all(
    app: &Installation,
    args: BackupArgs,
    json: bool,
) -> anyhow::Result<Exit> {
    let trigger = trigger(&args.trigger);
    let spec = BackupSpec { trigger, note: args.note.clone(), hold: args.hold };
    let sources = chosen(app, &args.sources, args.all).await?;
    for warning in &app.config.warnings {
        app.cx.event(Event::Warning { text: warning.clone() });
    }
    let is_single = sources.len() == 1;
    let mut exit = Exit::Done;
    let (mut made, mut only_error) = (Vec::new(), None);
    for source in &sources {
        let error = match backup_one(app, source, &spec).await {
            Ok(mut one) => {
                if one.entry.status == Status::Incomplete {
                    exit = exit.and(Exit::Incomplete);
                }
                let afterwards = one.afterwards.take();
                made.push(one);
                afterwards
            }
            Err(error) => Some(error),
        };
        // One that failed must not keep the others from being made.
        if let Some(error) = error {
            exit = exit.and(Exit::of(&error));
            if is_single {
                only_error = Some(error);
            } else {
                render::say(&format!("error: source {}: {error:#}", source.name));
            }
        }
        if app.cx.cancelled().is_some() {
            // Nobody is to believe that the rest was backed up.
            if sources.last().is_some_and(|last| last.name != source.name) {
                exit = exit.and(Exit::Interrupted);
            }
            break;
        }
    }
    let views: Vec<BackupView> = made.iter().map(Made::view).collect();
    show_made(&views, is_single, json)?;
    app.back_up_catalog_too(&made.iter().map(|one| one.storage.clone()).collect()).await;
    warn_without_kit(app).await?;
    only_error.map_or(Ok(exit), Err)
}

/// Returns what is meant by the word of `--trigger`.
pub(super) fn trigger(word: &str) -> Trigger {
    match word {
        "scheduled" => Trigger::Scheduled,
        "pre-deploy" => Trigger::PreDeploy,
        "post-deploy" => Trigger::PostDeploy,
        _ => Trigger::Manual,
    }
}

/// Returns the sources of these names, or all of the configuration. A misspelt name must be told before an hour of work.
pub(super) async fn chosen(
    app: &Installation,
    names: &[String],
    all: bool,
) -> anyhow::Result<Vec<SourceConfig>> {
    let names = if all { app.source_names(false).await? } else { names.to_vec() };
    if names.is_empty() {
        let text = "the configuration has no sources: there is nothing to back up";
        return Err(UsageError(text.to_owned()).into());
    }
    let mut sources: Vec<SourceConfig> = Vec::new();
    for name in &names {
        let source = app.source(name).await?;
        if sources.iter().all(|chosen| chosen.name != source.name) {
            sources.push(source);
        }
    }
    Ok(sources)
}

/// Shows backups that were made. Several sources make a list, however many of them could be backed up.
pub(super) fn show_made(made: &[BackupView], is_single: bool, json: bool) -> anyhow::Result<()> {
    if json {
        return match made {
            [] if is_single => Ok(()),
            [one] if is_single => render::print_json(one),
            _ => render::print_json(&made),
        };
    }
    for backup in made {
        render::print(&format!(
            "{} {} {}: {} read, {} stored at {}",
            backup.source,
            backup.id,
            backup.status,
            render::size(backup.plain_bytes),
            render::size(backup.stored_bytes),
            backup.location,
        ))?;
        for error in &backup.item_errors {
            render::print(&format!("  missing: {}: {}", error.item, error.error))?;
        }
        for warning in &backup.warnings {
            render::print(&format!("  warning: {warning}"))?;
        }
    }
    Ok(())
}

/// Why a backup is held that was asked for so.
pub(super) const HELD: &str = "held when it was made";

/// A backup that was made.
pub(super) struct Made {
    pub(super) entry: IndexEntry,
    storage: String,
    location: String,
    /// What failed after it was made: the backup is good, and the command is not.
    pub(super) afterwards: Option<anyhow::Error>,
}

/// Whether one that gave way to the app is tried again here, later; else its error is told at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Tries {
    /// As often as the source says.
    Several,
    /// Whoever asks tries again.
    One,
}

impl Made {
    pub(super) fn new(
        source: &SourceConfig,
        vault: &Vault,
        (entry, afterwards): (IndexEntry, Option<anyhow::Error>),
    ) -> Self {
        let location = format!("{}/{}/{}", vault.location(), source.organisation, source.name);
        let context = format!("backup {} was made, and then", entry.id);
        let afterwards = afterwards.map(|error| error.context(context));
        Self { entry, storage: source.storage.clone(), location, afterwards }
    }

    /// Returns it as people see it.
    pub(super) fn view(&self) -> BackupView {
        render::backup_view(&self.entry, (&self.storage, &self.location), false)
    }

    /// Says in a line what was made.
    pub(super) fn summary(&self) -> String {
        let entry = &self.entry;
        format!(
            "backup {} is {}: {} read, {} stored",
            entry.id,
            render::word(entry.status),
            render::size(entry.plain_bytes),
            render::size(entry.stored_bytes)
        )
    }

    /// Says what is missing from it, if anything is.
    pub(super) fn gap(&self) -> Option<String> {
        let IndexEntry { id, status, item_error_count, .. } = &self.entry;
        (*status == Status::Incomplete)
            .then(|| format!("backup {id} is incomplete, without {item_error_count} of its items"))
    }
}

/// Writes down that a job made a backup.
pub(super) async fn end_made(app: &Installation, job: &JobId, made: &Made) {
    let state = match made.entry.status {
        Status::Complete => JobState::Succeeded,
        Status::Incomplete => JobState::Incomplete,
    };
    app.end_job(job, state, made.afterwards.as_ref(), Some(made.entry.id.to_string())).await;
}

/// Backs up one source, here or by its worker, while nobody else works on it, and forgets what its rules forget.
pub(super) async fn backup_one(
    app: &Installation,
    source: &SourceConfig,
    spec: &BackupSpec,
) -> anyhow::Result<Made> {
    if let Some(remote) = source.remote() {
        return backup_elsewhere(app, (source, remote), spec).await;
    }
    let watched = Arc::new(Watched::default());
    // Others see how far it is, and may cancel it: this one, and not what the command does besides.
    let app = &app.with_cx(app.cx.piece().heard_by(|screen| hear_own(&watched, screen)));
    let leased = async {
        let (job, begun) = (app.start_job(source, JobKind::Backup).await?, Instant::now());
        let made = tokio::select! {
            made = Box::pin(make(app, source, spec, Tries::Several)) => made,
            never = watch(app, &job, &watched) => match never {},
        };
        match &made {
            Ok(made) => end_made(app, &job, made).await,
            Err(error) => app.end_job(&job, app.failed(), Some(error), None).await,
        }
        // What went well in a moment has told whoever waited for it.
        if made.is_err() || begun.elapsed() >= LOOK {
            app.keep_log(&job, &watched.log()).await;
        }
        made
    };
    app.under_lease(source.name.as_str(), leased).await
}

/// Makes a backup, under the lease on its source, and does what is to be done after one.
pub(super) async fn make(
    app: &Installation,
    source: &SourceConfig,
    spec: &BackupSpec,
    tries: Tries,
) -> anyhow::Result<Made> {
    let storage = app.storage(&source.storage)?;
    warn_of_little(app, source);
    finish_recent(app, source).await?;
    let vault = app.vault_for_writing(storage).await?;
    let written = write(app, source, (spec, tries), &vault).await?;
    settle(app, source, &vault, &written.0).await;
    Ok(Made::new(source, &vault, written))
}

/// Writes a backup into a vault. Returns what failed after it was made, too.
pub(super) async fn write(
    app: &Installation,
    source: &SourceConfig,
    (spec, tries): (&BackupSpec, Tries),
    vault: &Vault,
) -> anyhow::Result<(IndexEntry, Option<anyhow::Error>)> {
    let_go_of_expired(app, source).await;
    let (mut entry, mut afterwards) = try_until_made(app, source, (spec, tries), vault).await?;
    if spec.hold {
        afterwards = afterwards.or(hold_new(app, source, vault, &mut entry).await.err());
    }
    Ok((entry, afterwards.map(anyhow::Error::new)))
}

/// Holds a backup that was just made.
pub(super) async fn hold_new(
    app: &Installation,
    source: &SourceConfig,
    vault: &Vault,
    entry: &mut IndexEntry,
) -> Result<(), EngineError> {
    let place = source.place(entry.id.clone());
    vault.hold(&app.cx, &place, HELD).await?;
    entry.hold = Some(HELD.to_owned());
    Ok(())
}

/// Writes down here that there is a backup, before anybody lists it: what was never seen cannot be missed.
pub(super) async fn write_down(app: &Installation, vault: &Vault, entry: &IndexEntry) {
    let named = (vault.id().as_str(), entry.source.as_str());
    if let Err(error) = app.catalog.add_to_listing(named, entry).await {
        let text = format!("the backup is made, and could not be written down here: {error}");
        app.cx.event(Event::Warning { text });
    }
}

/// Does what is to be done after a backup: it is written down here, orphans are looked for, old ones are forgotten.
pub(super) async fn settle(
    app: &Installation,
    source: &SourceConfig,
    vault: &Vault,
    entry: &IndexEntry,
) {
    write_down(app, vault, entry).await;
    survey_if_due(app, source, vault, entry.trigger).await;
    if entry.status == Status::Complete {
        forget_old(app, source, vault).await;
    }
}

/// Backs up, and once more a while later if that may help. Returns what failed after the backup was made, too.
async fn try_until_made(
    app: &Installation,
    source: &SourceConfig,
    (spec, tries): (&BackupSpec, Tries),
    vault: &Vault,
) -> anyhow::Result<(IndexEntry, Option<EngineError>)> {
    let engine_source = app.engine_source(source)?;
    let mut tried = 0;
    loop {
        tried += 1;
        let draft = app.draft(source, spec.trigger, spec.note.clone());
        let (made, afterwards) =
            try_once(app, (source, engine_source.as_ref()), vault, draft).await;
        let error = match made {
            Ok(entry) => return Ok((entry, afterwards)),
            Err(error) => error,
        };
        let gave_way = error.passing() == Some(Passing::GaveWay);
        if !gave_way || tries == Tries::One || tried > source.retries {
            let error = explain(error);
            let tries = format!("tried {tried} times");
            return Err(if tried > 1 { error.context(tries) } else { error });
        }
        let (what, after) = (format!("the backup of {}", source.name), source.retry_after);
        app.cx.event(Event::Retrying { what, error: error.to_string(), after });
        app.cx.run(tokio::time::sleep(after)).await?;
    }
}

/// Backs up, with the hooks around: an app that they stop must not stand still between two tries.
async fn try_once(
    app: &Installation,
    (source, engine_source): (&SourceConfig, &dyn Source),
    vault: &Vault,
    draft: Draft,
) -> (Result<IndexEntry, EngineError>, Option<EngineError>) {
    let before = match &source.before_backup {
        Some(hook) => run_hook(&app.cx, "before_backup", hook).await,
        None => Ok(()),
    };
    let made = match before {
        Ok(()) => backup(&app.cx, engine_source, vault, draft).await,
        Err(error) => Err(error),
    };
    let mut afterwards = None;
    if let Some(hook) = &source.after_backup {
        afterwards = run_hook(&app.cx.for_cleanup(), "after_backup", hook).await.err();
    }
    // The backup's own error matters more.
    (made, afterwards)
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
        let plan = plan_to_forget(app, source, vault).await?;
        remove(app, vault, &plan).await
    };
    if let Err(error) = forgotten.await {
        let text = format!("old backups of {} were not forgotten: {error:#}", source.name);
        app.cx.event(Event::Warning { text });
    }
}

/// Works out which backups of a source its rules forget. What is orphaned counts for none.
pub(super) async fn plan_to_forget(
    app: &Installation,
    source: &SourceConfig,
    vault: &Vault,
) -> anyhow::Result<ForgetPlan> {
    let orphans = app.catalog.orphans(vault.id().as_str(), source.name.as_str()).await?;
    let place = (&source.organisation, &source.name);
    Ok(forget::plan_forget(&app.cx, vault, place, &source.keep, &orphans.damaged).await?)
}

/// Does what a plan to forget says, and remembers that what is gone is no loss.
pub(super) async fn remove(
    app: &Installation,
    vault: &Vault,
    plan: &ForgetPlan,
) -> anyhow::Result<()> {
    let removed = plan.verdicts.iter().filter(|verdict| !verdict.keep);
    let ids: Vec<BackupId> = removed.map(|verdict| verdict.id.clone()).collect();
    if ids.is_empty() {
        return Ok(());
    }
    let named = (vault.id().as_str(), plan.source.as_str());
    app.catalog.will_remove(named, &ids, app.cx.now()).await?;
    let gone = forget::forget(&app.cx, vault, plan).await?;
    // Held since the plan was made. Whatever was stopped half-way is found out by the next survey.
    let rest: Vec<BackupId> = ids.into_iter().filter(|id| !gone.contains(id)).collect();
    Ok(app.catalog.still_there(named, &rest).await?)
}

/// Without a kit sealed backups are lost with this machine, and so are its settings, which are always sealed.
pub(super) async fn warn_without_kit(app: &Installation) -> anyhow::Result<()> {
    let exported: Option<bool> =
        app.catalog.setting(super::keys::KIT_EXPORTED).await.context("cannot ask for the kit")?;
    if exported != Some(true) {
        let is_sealed = app.config.sources.values().any(|source| source.sealed);
        let lost = if is_sealed { "open its backups" } else { "bring its settings back" };
        let text = format!(
            "there is no recovery kit yet: if this machine dies, nobody can {lost}; make one with `backstay keys kit --output kit.txt` and keep it elsewhere"
        );
        app.cx.event(Event::Warning { text });
    }
    Ok(())
}
