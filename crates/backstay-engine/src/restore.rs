//! Restoring: load beside, save what is there, swap. A failure before the swap leaves the target as it was.

use async_trait::async_trait;
use backstay_format::{BackupId, Content, Details, Encryption, Manifest, Trigger};

use crate::backup::backup;
use crate::cx::Cx;
use crate::error::EngineError;
use crate::event::Event;
use crate::hook::{Hook, run_hook};
use crate::source::{Applied, ApplyReport, How, Loaded, Outlook, Source, Target, TargetOptions};
use crate::swap::{Direction, Replacement, Swap, Swapper};
use crate::vault::{BackupPlace, Draft, Vault};
use crate::verify::settle;

/// What a restore would do: to print, to show, to test.
#[derive(Debug, Clone)]
pub struct RestorePlan {
    /// Which backup.
    pub place: BackupPlace,
    /// Its description, proven to be authentic.
    pub manifest: Manifest,
    /// The sealed section of it.
    pub details: Details,
    /// What will be replaced or made, and how; with all warnings.
    pub outlook: Outlook,
    /// What to restore, and where to.
    pub options: TargetOptions,
}

impl RestorePlan {
    /// Returns what the backup holds, if its source said so.
    pub fn content(&self) -> Option<&Content> {
        self.details.content.as_ref()
    }
}

/// What the caller wants of a restore.
#[derive(Debug, Clone, Default)]
pub struct RestoreOptions {
    /// Another place, or only chosen paths.
    pub target: TargetOptions,
    /// Takes a backup that is not sealed although the source's backups should be.
    pub accept_unsealed: bool,
    /// Whether the source's backups should be sealed.
    pub expects_sealed: bool,
}

/// Works out what a restore would do. Reads the manifest and changes nothing.
pub async fn plan_restore(
    cx: &Cx,
    vault: &Vault,
    source: &dyn Source,
    place: BackupPlace,
    options: RestoreOptions,
) -> Result<RestorePlan, EngineError> {
    let manifest = vault.manifest(cx, &place).await?;
    if manifest.encryption == Encryption::None && options.expects_sealed && !options.accept_unsealed
    {
        return Err(EngineError::Unsealed { backup: place.backup });
    }
    let details = vault.details(&manifest)?;
    let mut outlook = source.target(options.target.clone()).outlook(cx, &details).await?;
    let warnings = &mut outlook.warnings;
    if manifest.item_error_count > 0 {
        warnings.push(format!(
            "the backup is incomplete: {} items are missing from it",
            manifest.item_error_count
        ));
    }
    warnings.extend(details.warnings.iter().cloned());
    Ok(RestorePlan { place, manifest, details, outlook, options: options.target })
}

/// Writes down what is about to be replaced, so that an interrupted swap can be finished and a finished one undone.
#[async_trait]
pub trait Journal: Send + Sync {
    /// Records a swap before it begins. If this fails, nothing is swapped.
    async fn before_swap(&self, swap: &Swap, safety: Option<&Saved>) -> Result<(), JournalError>;

    /// Records that the swap is done.
    async fn after_swap(&self) -> Result<(), JournalError>;

    /// Records that the swap is done, and that nothing was there before which anybody could miss.
    async fn replaced_nothing(&self) -> Result<(), JournalError>;

    /// Records that the swap failed and that all of it was taken back.
    async fn swap_taken_back(&self) -> Result<(), JournalError>;
}

/// The backup of what a restore replaces.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Saved {
    /// Which one.
    pub id: BackupId,
    /// How many items of what is there are not in it.
    pub missing: u64,
}

/// The journal could not be written.
pub type JournalError = Box<dyn std::error::Error + Send + Sync>;

/// What else happens around a restore.
pub struct Around<'a> {
    /// How the safety backup of what is there is described, unless none is wanted.
    pub safety: Option<Draft>,
    /// Stops the app.
    pub before: Option<&'a Hook>,
    /// Starts the app again; runs whatever happened since `before`.
    pub after: Option<&'a Hook>,
    /// Keeps what is needed for undoing.
    pub journal: &'a dyn Journal,
}

/// What a restore did.
#[derive(Debug)]
pub struct Restored {
    /// What happened while loading.
    pub report: ApplyReport,
    /// What was moved where; the old data lies beside until confirmed.
    pub replacement: Replacement,
    /// Whether there is anything to undo.
    pub can_be_undone: bool,
    /// The backup of what was there before.
    pub safety: Option<BackupId>,
}

/// Restores as planned.
pub async fn restore(
    cx: &Cx,
    vault: &Vault,
    source: &dyn Source,
    plan: &RestorePlan,
    around: Around<'_>,
) -> Result<Restored, EngineError> {
    cx.event(Event::Step { what: "loading beside the target, and proving every byte".to_owned() });
    let loaded = load(cx, vault, plan, source.target(plan.options.clone())).await?;
    let swapper = source.swapper();
    let replaced =
        put_in_place(cx, vault, (source, swapper.as_ref()), plan, &around, &loaded).await;
    let Loaded { report, replacement } = loaded;
    match replaced {
        Ok(safety) => {
            // What is done is done: if that cannot be asked now, it is taken for something that can be undone.
            let can_be_undone = !swapper.replaced_nothing(cx, &replacement).await.unwrap_or(false);
            if !can_be_undone {
                discard(cx, swapper.as_ref(), &replacement).await;
                around.journal.replaced_nothing().await.map_err(EngineError::Journal)?;
            }
            let safety = safety.map(|safety| safety.id);
            Ok(Restored { report, replacement, can_be_undone, safety })
        }
        Err(Failure { error, swapped: true }) => Err(error),
        Err(Failure { error, swapped: false }) => {
            // The target is as it was: what was loaded beside it is of no use.
            discard(cx, swapper.as_ref(), &replacement).await;
            Err(error)
        }
    }
}

async fn discard(cx: &Cx, swapper: &dyn Swapper, replacement: &Replacement) {
    if let Err(left) = swapper.discard(&cx.for_cleanup(), replacement).await {
        let text = format!("{} could not be removed: {left}", replacement.beside());
        cx.event(Event::Warning { text });
    }
}

/// A failure, and whether the target is already the restored one.
struct Failure {
    error: EngineError,
    swapped: bool,
}

impl<E: Into<EngineError>> From<E> for Failure {
    fn from(error: E) -> Self {
        Self { error: error.into(), swapped: false }
    }
}

async fn put_in_place(
    cx: &Cx,
    vault: &Vault,
    (source, swapper): (&dyn Source, &dyn Swapper),
    plan: &RestorePlan,
    around: &Around<'_>,
    loaded: &Loaded,
) -> Result<Option<Saved>, Failure> {
    // What is put aside loses nothing that the app writes while the rest of it is backed up, and the app stands still for a moment
    // only. Where the transaction replaces it for good, the backup must be of what there is when the app has stopped.
    let stops_first = plan.outlook.how == How::Transaction;
    let mut safety = None;
    if !stops_first {
        safety = save_present(cx, vault, source, around, plan).await?;
    }
    cx.check().map_err(EngineError::from)?;
    let swapping = async {
        if let Some(hook) = around.before {
            run_hook(cx, "before_restore", hook).await?;
        }
        if stops_first {
            safety = save_present(cx, vault, source, around, plan).await?;
            cx.check().map_err(EngineError::from)?;
        }
        // Who names a place for it did not say that anything may be replaced there.
        let replaces = plan.outlook.replaces && plan.options.to.is_none();
        let loaded = (loaded, replaces);
        swap_journaled(cx, (source, swapper), around, loaded, safety.as_ref()).await
    };
    let swapped = swapping.await;
    if let Some(hook) = around.after {
        let started = run_hook(&cx.for_cleanup(), "after_restore", hook).await;
        // The swap's own error matters more than the app's failure to start.
        if let (Ok(()), Err(error)) = (&swapped, started) {
            return Err(Failure { error, swapped: true });
        }
    }
    swapped.map(|()| safety)
}

async fn swap_journaled(
    cx: &Cx,
    (source, swapper): (&dyn Source, &dyn Swapper),
    around: &Around<'_>,
    (loaded, replaces): (&Loaded, bool),
    safety: Option<&Saved>,
) -> Result<(), Failure> {
    cx.event(Event::Step { what: "swapping".to_owned() });
    source.check_free(&loaded.replacement).map_err(EngineError::from)?;
    let swap = swapper.plan(cx, &loaded.replacement, Direction::Restore).await?;
    // Loading takes its time. What nobody saw when he said yes is not replaced.
    if !replaces && swap.puts_away() {
        return Err(EngineError::CameMeanwhile { target: loaded.replacement.target() }.into());
    }
    if let Some(Saved { id, missing }) = safety.filter(|safety| safety.missing > 0) {
        if !swap.can_be_interrupted() {
            let (backup, missing) = (id.clone(), *missing);
            let cause = Box::new(EngineError::NotAllSaved { backup, missing });
            return Err(EngineError::SafetyBackup(cause).into());
        }
        let text = format!(
            "{missing} items of what is there could not be backed up ({id} says which): what is replaced is kept beside until it is confirmed"
        );
        cx.event(Event::Warning { text });
    }
    around.journal.before_swap(&swap, safety).await.map_err(EngineError::Journal)?;
    let after_swap = |error| Failure { error, swapped: true };
    if let Err(error) = swapper.run(cx, &swap).await {
        if !swap.can_be_taken_back() {
            discard(cx, swapper, &loaded.replacement).await;
            let (safety, cause) = (safety.map(|safety| safety.id.clone()), Box::new(error));
            return Err(after_swap(EngineError::HalfDone { safety, cause }));
        }
        // The first error says what is wrong; if going back fails too, the journal still knows how to.
        swapper.roll_back(&cx.for_cleanup(), &swap).await.map_err(after_swap)?;
        around.journal.swap_taken_back().await.map_err(EngineError::Journal)?;
        return Err(error.into());
    }
    around.journal.after_swap().await.map_err(|error| after_swap(EngineError::Journal(error)))
}

pub(crate) async fn load(
    cx: &Cx,
    vault: &Vault,
    plan: &RestorePlan,
    mut target: Box<dyn Target>,
) -> Result<Loaded, EngineError> {
    let prepared = target.prepare(cx, &plan.details).await;
    let loaded = match prepared {
        Ok(()) => load_parts(cx, vault, plan, target.as_mut()).await,
        Err(error) => Err(error.into()),
    };
    match loaded {
        Ok(()) => Ok(target.finish(cx).await?),
        Err(error) => {
            if let Err(left) = target.discard(&cx.for_cleanup()).await {
                cx.event(Event::Warning {
                    text: format!("what was loaded could not be removed: {left}"),
                });
            }
            Err(error)
        }
    }
}

async fn load_parts(
    cx: &Cx,
    vault: &Vault,
    plan: &RestorePlan,
    target: &mut dyn Target,
) -> Result<(), EngineError> {
    for (index, part) in plan.manifest.parts.iter().enumerate() {
        if !target.wants(&part.name, part.media_type) {
            continue;
        }
        cx.event(Event::PartStarted {
            part: part.name.to_string(),
            estimate_bytes: Some(part.plain_bytes),
        });
        let mut applied = Applied::Again;
        while applied == Applied::Again {
            let (plain, measuring) = vault.read_part(cx, &plan.manifest, &plan.details, index)?;
            let result = target.apply(cx, plain).await;
            (applied, _) = settle(&plan.manifest.backup, result, measuring).await?;
        }
    }
    Ok(cx.check()?)
}

/// Backs up what a restore will replace, if that is wanted, and holds it until the restore is confirmed.
async fn save_present(
    cx: &Cx,
    vault: &Vault,
    source: &dyn Source,
    around: &Around<'_>,
    plan: &RestorePlan,
) -> Result<Option<Saved>, EngineError> {
    let Some(draft) = around.safety.clone().filter(|_| plan.outlook.replaces) else {
        return Ok(None);
    };
    cx.event(Event::Step { what: "backing up what will be replaced".to_owned() });
    let saving = async {
        let draft = Draft { trigger: Trigger::PreRestore, ..draft };
        let saved = backup(cx, source, vault, draft).await?;
        let place = BackupPlace { backup: saved.id.clone(), ..plan.place.clone() };
        let reason = format!("what the restore of {} replaced", plan.place.backup);
        vault.hold(cx, &place, &reason).await?;
        crate::verify::verify(cx, vault, &place).await?;
        Ok(Saved { id: saved.id, missing: saved.item_error_count })
    };
    let saved: Result<Saved, EngineError> = saving.await;
    saved.map(Some).map_err(|cause| EngineError::SafetyBackup(Box::new(cause)))
}
