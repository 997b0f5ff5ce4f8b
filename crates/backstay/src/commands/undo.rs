//! `backstay undo` and `confirm`, and what becomes of swaps that nobody finished or confirmed.

use anyhow::Context as _;
use async_trait::async_trait;
use backstay_control::{Catalog, SwapRecord, SwapState};
use backstay_engine::cx::Cx;
use backstay_engine::error::ErrorKind;
use backstay_engine::event::Event;
use backstay_engine::hook::run_hook;
use backstay_engine::restore::{Journal, JournalError, Saved};
use backstay_engine::swap::{Direction, Swap};
use backstay_format::BackupId;
use backstay_server::Work;
use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

use super::elsewhere;
use crate::config::SourceConfig;
use crate::exit::UsageError;
use crate::installation::Installation;

/// An interrupted restore that is older is finished by nobody who did not ask for it.
const OLD_NEWS: SignedDuration = SignedDuration::from_hours(1);

/// When nobody lets go of anything any more (the year 3000).
const FOR_GOOD: Timestamp = Timestamp::constant(32_503_680_000, 0);

/// Writes swaps into the catalog.
pub(super) struct CatalogJournal {
    pub(super) catalog: Catalog,
    pub(super) source: SourceConfig,
    pub(super) id: String,
    pub(super) cx: Cx,
    /// Whether the target is the source itself: a restore to a new place has nothing to undo.
    pub(super) keep: bool,
}

#[async_trait]
impl Journal for CatalogJournal {
    async fn before_swap(&self, swap: &Swap, safety: Option<&Saved>) -> Result<(), JournalError> {
        if !self.keep || !swap.can_be_interrupted() {
            return Ok(());
        }
        // What is in no backup goes when a person says so.
        let is_saved = safety.is_none_or(|safety| safety.missing == 0);
        // Not from when the restore began: loading may take longer than what was there is to be kept.
        let now = self.cx.now();
        let undo_until = if is_saved { now + self.source.undo_for } else { FOR_GOOD };
        let record = SwapRecord {
            id: self.id.clone(),
            source: self.source.name.to_string(),
            storage: self.source.storage.clone(),
            state: SwapState::Begun,
            made_at: now,
            undo_until,
            swap: serde_json::to_string(swap)?,
            safety: safety.map(|safety| safety.id.to_string()),
        };
        Ok(self.catalog.begin_swap(&record).await?)
    }

    async fn after_swap(&self) -> Result<(), JournalError> {
        if !self.keep {
            return Ok(());
        }
        Ok(self.catalog.set_swap_state(&self.id, SwapState::Swapped).await?)
    }

    async fn replaced_nothing(&self) -> Result<(), JournalError> {
        self.swap_taken_back().await
    }

    async fn swap_taken_back(&self) -> Result<(), JournalError> {
        if !self.keep {
            return Ok(());
        }
        Ok(self.catalog.end_swap(&self.id).await?)
    }
}

/// Puts back what the newest restore replaced: of a source of this machine, or by its worker.
pub(super) async fn undo(app: &Installation, name: Option<&str>) -> anyhow::Result<String> {
    if let Some(said) = said_by_worker(app, name, Work::Undo).await? {
        return Ok(said);
    }
    let source = app.source(&newest(app, name, |_| true).await?.source).await?;
    app.under_lease(source.name.as_str(), undo_here(app, &source)).await
}

/// A restore after which nothing was kept beside: only the backup of what was there brings that back.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct ForGood {
    at: Timestamp,
    safety: Option<BackupId>,
}

/// Remembers that the newest restore of a source is one that nobody can undo.
pub(super) async fn remember_for_good(
    app: &Installation,
    source: &SourceConfig,
    safety: Option<BackupId>,
) -> anyhow::Result<()> {
    let done = ForGood { at: app.cx.now(), safety };
    Ok(app.catalog.set_setting(&for_good_name(source), &done).await?)
}

fn for_good_name(source: &SourceConfig) -> String {
    format!("restore for good of source {}", source.name)
}

/// Fails if there was a restore since that nobody can undo: whoever says undo means that one.
async fn ensure_newest(
    app: &Installation,
    source: &SourceConfig,
    record: &SwapRecord,
) -> anyhow::Result<()> {
    let done: Option<ForGood> = app.catalog.setting(&for_good_name(source)).await?;
    let Some(ForGood { at, safety }) = done.filter(|done| done.at > record.made_at) else {
        return Ok(());
    };
    let safety = safety.map_or_else(|| "another one".to_owned(), |id| format!("--id {id}"));
    anyhow::bail!(
        "the newest restore of {0}, at {at:.0}, kept nothing beside: restore what was there before it (`backstay restore {0} {safety}`). What \
         the restore at {1:.0} replaced is still kept, until `backstay confirm {0}`",
        source.name,
        record.made_at
    )
}

/// Has the worker of a source do something, if it is one of a worker. Returns what that said.
async fn said_by_worker(
    app: &Installation,
    name: Option<&str>,
    work: Work,
) -> anyhow::Result<Option<String>> {
    let Some(name) = name else {
        if app.config.sources.values().any(|source| source.remote().is_some()) {
            let text = "of which source? name it: workers restore some of them";
            return Err(UsageError(text.to_owned()).into());
        }
        return Ok(None);
    };
    let Some(source) = app.config.sources.get(name) else { return Ok(None) };
    let Some(remote) = source.remote() else { return Ok(None) };
    let did = elsewhere::result(app, (source, remote), work).await?;
    Ok(Some(serde_json::from_value(did.result)?))
}

/// Puts it back on this machine, under the lease on the source. The restored data is kept beside until confirmed.
pub(super) async fn undo_here(app: &Installation, source: &SourceConfig) -> anyhow::Result<String> {
    if let Some(undone) = finish_interrupted(app, source).await? {
        // That was it: the restore before it is none of this one's business.
        return Ok(format!("{undone} is as it was before the restore"));
    }
    let name = Some(source.name.as_str());
    let record = newest(app, name, |record| record.state == SwapState::Swapped).await?;
    ensure_newest(app, source, &record).await?;
    let done: Swap = parse(&record)?;
    let replacement = done.replacement();
    let engine_source = app.engine_source(source)?;
    let swapper = engine_source.swapper();
    anyhow::ensure!(
        swapper.can_go_back(&app.cx, &replacement).await?,
        "{} is gone, so nothing can be put back; restore the safety backup {} instead",
        replacement.beside(),
        record.safety.as_deref().unwrap_or("(none was made)")
    );
    let undone = async {
        if let Some(hook) = &source.before_restore {
            run_hook(&app.cx, "before_restore", hook).await?;
        }
        engine_source.check_free(&replacement)?;
        let swap = swapper.plan(&app.cx, &replacement, Direction::Undo).await?;
        app.cx.check()?;
        // What was written since the restore is kept as long as what that replaced would have been.
        let undoing = (SwapState::Undoing, serde_json::to_string(&swap)?);
        app.catalog.turn_swap(&record.id, undoing, kept_until(app, source, &record)).await?;
        // Once begun, it is brought to its end, or back to its beginning.
        let unstopped = app.cx.for_cleanup();
        if let Err(error) = swapper.run(&unstopped, &swap).await {
            if swapper.roll_back(&unstopped, &swap).await.is_ok() {
                let as_it_was = (SwapState::Swapped, record.swap.clone());
                app.catalog.turn_swap(&record.id, as_it_was, record.undo_until).await?;
            }
            return Err(error.into());
        }
        app.catalog.set_swap_state(&record.id, SwapState::Undone).await?;
        anyhow::Ok(())
    };
    let undone = undone.await;
    restart(app, source).await?;
    undone?;
    Ok(format!("{} is as it was before the restore", replacement.target()))
}

/// Lets go of what the newest restore left beside, and releases its safety backup: here, or by the source's worker.
pub(super) async fn confirm(app: &Installation, name: Option<&str>) -> anyhow::Result<String> {
    if let Some(said) = said_by_worker(app, name, Work::Confirm).await? {
        return Ok(said);
    }
    let source = app.source(&newest(app, name, |_| true).await?.source).await?;
    app.under_lease(source.name.as_str(), Box::pin(confirm_here(app, &source))).await
}

/// Lets go of it on this machine, under the lease on the source.
pub(super) async fn confirm_here(
    app: &Installation,
    source: &SourceConfig,
) -> anyhow::Result<String> {
    finish_interrupted(app, source).await?;
    let record = newest(app, Some(source.name.as_str()), |_| true).await?;
    Ok(format!("confirmed; {} is gone", let_go(app, &record).await?))
}

/// Removes what a restore replaced, and releases the backup of it. Returns where it lay.
async fn let_go(app: &Installation, record: &SwapRecord) -> anyhow::Result<String> {
    let swap: Swap = parse(record)?;
    let source = app.source(&record.source).await?;
    let replacement = swap.replacement();
    let beside = replacement.beside();
    // All that is needed afterwards is found first: what is gone cannot be let go of once more.
    let held = match &record.safety {
        Some(safety) => {
            // It may have another name by now.
            let storage = app.storage(&record.storage).or_else(|_| app.storage(&source.storage))?;
            let place = storage.place(&record.source.parse()?, safety.parse()?);
            Some((app.vault_for_writing(storage).await?, place))
        }
        None => None,
    };
    let discarded = app.engine_source(&source)?.swapper().discard(&app.cx, &replacement).await;
    discarded.with_context(|| format!("cannot remove {beside}"))?;
    if let Some((vault, place)) = held {
        vault.release(&app.cx, &place).await?;
    }
    app.catalog.end_swap(&record.id).await?;
    Ok(beside)
}

/// Brings to its end what a killed process began: the loaded data was proven before, and every step can be done again.
///
/// Called under the source's lease, so no living process is at it. Returns what is as it was before a restore, if it was an undo
/// that was interrupted.
pub(super) async fn finish_interrupted(
    app: &Installation,
    source: &SourceConfig,
) -> anyhow::Result<Option<String>> {
    let mut undone = None;
    for record in app.catalog.swaps(Some(source.name.as_str())).await? {
        let (after, what) = match record.state {
            SwapState::Begun => (SwapState::Swapped, "restore"),
            SwapState::Undoing => (SwapState::Undone, "undo"),
            SwapState::Swapped | SwapState::Undone => continue,
        };
        let swap: Swap = parse(&record)?;
        let text = format!(
            "the {what} of {} was interrupted while {} was swapped; it is finished now",
            source.name,
            swap.replacement().target()
        );
        app.cx.event(Event::Warning { text });
        match app.engine_source(source)?.swapper().run(&app.cx, &swap).await {
            Ok(()) => {
                let until = kept_until(app, source, &record);
                app.catalog.finish_swap(&record.id, after, until).await?;
                if after == SwapState::Undone {
                    undone = Some(swap.replacement().target().to_string());
                }
            }
            Err(error) if error.is_gone() => {
                let text = format!("it cannot be finished: {error}; what is there stays as it is");
                app.cx.event(Event::Warning { text });
                app.catalog.end_swap(&record.id).await?;
            }
            Err(error) => return Err(error.into()),
        }
        restart(app, source).await?;
    }
    Ok(undone)
}

/// Until when what is put away now is kept: its time begins now, whenever that of the restore began.
fn kept_until(app: &Installation, source: &SourceConfig, record: &SwapRecord) -> Timestamp {
    record.undo_until.max(app.cx.now() + source.undo_for)
}

/// Brings to its end what was interrupted a moment ago. What lies there for longer may be old news, and a backup by schedule is
/// not who decides over it.
pub(super) async fn finish_recent(app: &Installation, source: &SourceConfig) -> anyhow::Result<()> {
    let name = &source.name;
    for record in app.catalog.swaps(Some(name.as_str())).await? {
        let is_open = matches!(record.state, SwapState::Begun | SwapState::Undoing);
        if is_open && app.cx.now().duration_since(record.made_at) > OLD_NEWS {
            anyhow::bail!(
                "a restore of {name} was interrupted at {:.0}, and what it would replace may be newer by now: `backstay confirm {name}` \
                 finishes it for good, `backstay undo {name}` keeps what was there",
                record.made_at
            );
        }
    }
    finish_interrupted(app, source).await.map(drop)
}

/// Refuses where somebody must say first what becomes of an interrupted restore: it may be old news, and what it would replace
/// newer.
pub(super) async fn ensure_settled(
    app: &Installation,
    source: &SourceConfig,
) -> anyhow::Result<()> {
    let name = &source.name;
    for record in app.catalog.swaps(Some(name.as_str())).await? {
        let what = match record.state {
            SwapState::Begun => "restore",
            SwapState::Undoing => "undo",
            SwapState::Swapped | SwapState::Undone => continue,
        };
        anyhow::bail!(
            "the {what} of {name} was interrupted, and may be half done: `backstay undo {name}` puts back what was there, another `backstay restore {name}` comes after it"
        );
    }
    Ok(())
}

/// Lets go of what could have been undone until a time that is past. Called under the source's lease.
pub(super) async fn let_go_of_expired(app: &Installation, source: &SourceConfig) {
    let sweep = async {
        for record in app.catalog.swaps(Some(source.name.as_str())).await? {
            let settled = matches!(record.state, SwapState::Swapped | SwapState::Undone);
            if settled && record.undo_until < app.cx.now() {
                let gone = let_go(app, &record).await?;
                let what = format!("the time to undo a restore is up; {gone} is gone");
                app.cx.event(Event::Step { what });
            }
        }
        anyhow::Ok(())
    };
    if let Err(error) = sweep.await {
        let text = format!("what an older restore replaced could not be let go: {error:#}");
        app.cx.event(Event::Warning { text });
    }
}

/// Removes what restores that were killed while they loaded left behind. Called under the source's lease.
pub(super) async fn sweep(app: &Installation, source: &SourceConfig) -> anyhow::Result<()> {
    // Of all sources: several may be of one place, or a source had another name.
    let records = app.catalog.swaps(None).await?;
    let known: Vec<_> =
        records.iter().filter_map(|record| Some(parse(record).ok()?.replacement())).collect();
    match app.engine_source(source)?.swapper().sweep(&app.cx, &known).await {
        Ok(swept) => {
            for left in swept {
                let what = format!(
                    "{left} was left by a restore or an import that was killed; it is gone"
                );
                app.cx.event(Event::Step { what });
            }
        }
        Err(error) if matches!(error.kind(), ErrorKind::Interrupted(_)) => return Err(error.into()),
        // What is left over takes room, and must not keep anybody from a restore.
        Err(error) => {
            let text =
                format!("what a killed restore or import left could not be removed: {error}");
            app.cx.event(Event::Warning { text });
        }
    }
    Ok(())
}

async fn restart(app: &Installation, source: &SourceConfig) -> anyhow::Result<()> {
    match &source.after_restore {
        Some(hook) => Ok(run_hook(&app.cx.for_cleanup(), "after_restore", hook).await?),
        None => Ok(()),
    }
}

async fn newest(
    app: &Installation,
    source: Option<&str>,
    wanted: impl Fn(&SwapRecord) -> bool,
) -> anyhow::Result<SwapRecord> {
    let swaps = app.catalog.swaps(source).await?;
    let found = swaps.into_iter().find(wanted);
    found.context("there is no restore that waits for undo or confirm")
}

fn parse(record: &SwapRecord) -> anyhow::Result<Swap> {
    serde_json::from_str(&record.swap).context("the record of the swap cannot be read")
}
