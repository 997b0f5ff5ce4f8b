//! Restoring on the machine that has the source: for its own command, for a server, for a worker (ADR 22).

use std::ffi::OsString;
use std::path::PathBuf;

use anyhow::Context as _;
use backstay_control::RestoreSpec;
use backstay_engine::event::Event;
use backstay_engine::restore::{Around, RestoreOptions, RestorePlan, Restored, plan_restore};
use backstay_engine::source::{How, TargetOptions};
use backstay_engine::vault::Vault;
use backstay_format::{BackupId, Trigger};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::hex_tag;
use crate::cli::RestoreArgs;
use crate::commands::preview::Preview;
use crate::commands::undo::{self, CatalogJournal, finish_interrupted, let_go_of_expired};
use crate::config::SourceConfig;
use crate::exit::{Exit, UsageError};
use crate::installation::Installation;
use crate::opening::environment;
use crate::past::Past;
use crate::{plain, render};

/// Of the warnings of others so many are told.
const MOST_WARNINGS: usize = 100;

/// What of a backup is restored, and how.
pub(super) struct Choice {
    /// Another place than the source's own.
    to: Option<OsString>,
    /// Only these paths or tables; all if empty.
    only: Vec<PathBuf>,
    in_place: bool,
    accept_unsealed: bool,
    safety_backup: bool,
}

impl Choice {
    pub(super) fn of(args: &RestoreArgs) -> Self {
        Self {
            to: args.to.clone(),
            only: args.only.clone(),
            in_place: args.in_place,
            accept_unsealed: args.accept_unsealed,
            safety_backup: !args.no_safety_backup,
        }
    }
}

impl From<&RestoreSpec> for Choice {
    fn from(spec: &RestoreSpec) -> Self {
        Self {
            to: spec.to.as_ref().map(Into::into),
            only: spec.only.iter().map(PathBuf::from).collect(),
            in_place: spec.in_place,
            accept_unsealed: spec.accept_unsealed,
            safety_backup: spec.safety_backup,
        }
    }
}

/// A restore that is planned, and not done yet.
pub(super) struct Planned {
    source: SourceConfig,
    /// The source, turned towards where the restore goes.
    aimed: SourceConfig,
    plan: RestorePlan,
    is_own_place: bool,
    safety_backup: bool,
    /// Its name among restores.
    tag: String,
}

impl Planned {
    /// Works out what a restore would do, and changes nothing.
    pub(super) async fn new(
        app: &Installation,
        vault: &Vault,
        source: &SourceConfig,
        (backup, choice): (BackupId, Choice),
    ) -> anyhow::Result<Self> {
        let Choice { to, mut only, in_place, accept_unsealed, safety_backup } = choice;
        let (tag, is_own_place) = (hex_tag(), to.is_none());
        let mut aimed = source.clone();
        if aimed.kind.narrow(&only)? {
            only.clear();
        }
        if let Some(text) = app.hits_home(&aimed.kind, &only).filter(|_| is_own_place) {
            return Err(UsageError(text).into());
        }
        let to = match to {
            Some(to) => aimed.kind.aim(&to, &environment())?,
            None => None,
        };
        let options = RestoreOptions {
            target: TargetOptions { to, only, in_place, tag: tag.clone(), is_drill: false },
            accept_unsealed,
            expects_sealed: source.sealed,
        };
        let (engine_source, place) = (app.engine_source(&aimed)?, source.place(backup));
        let plan = plan_restore(&app.cx, vault, engine_source.as_ref(), place, options).await?;
        Ok(Self { source: source.clone(), aimed, plan, is_own_place, safety_backup, tag })
    }

    pub(super) fn plan(&self) -> &RestorePlan {
        &self.plan
    }

    pub(super) fn source(&self) -> &SourceConfig {
        &self.source
    }

    pub(super) fn is_own_place(&self) -> bool {
        self.is_own_place
    }

    /// Says whether what is there is backed up before.
    pub(super) fn wants_safety(&self) -> bool {
        self.is_own_place && self.safety_backup
    }

    /// Refuses what would leave no copy of what is there.
    pub(super) fn ensure_kept(&self) -> anyhow::Result<()> {
        let outlook = &self.plan.outlook;
        if !self.safety_backup && outlook.replaces && outlook.how == How::Transaction {
            let text = "in place nothing is kept beside, so the safety backup would be the only copy of what is there; leave --no-safety-backup out, or restore to another place with --to";
            return Err(UsageError(text.to_owned()).into());
        }
        Ok(())
    }

    /// Restores as planned, under the lease on the source.
    pub(super) async fn run(
        &self,
        app: &Installation,
        vault: &Vault,
    ) -> anyhow::Result<RestoreReport> {
        let Self { source, aimed, plan, is_own_place, tag, .. } = self;
        let journal = CatalogJournal {
            catalog: app.catalog.clone(),
            source: source.clone(),
            id: tag.clone(),
            cx: app.cx.clone(),
            keep: *is_own_place,
        };
        let note = format!("before restoring {}", plan.place.backup);
        let safety =
            self.wants_safety().then(|| app.draft(source, Trigger::PreRestore, Some(note)));
        let around = Around {
            safety,
            before: source.before_restore.as_ref().filter(|_| *is_own_place),
            after: source.after_restore.as_ref().filter(|_| *is_own_place),
            journal: &journal,
        };
        let engine_source = app.engine_source(aimed)?;
        let restored =
            backstay_engine::restore::restore(&app.cx, vault, engine_source.as_ref(), plan, around);
        let report = RestoreReport::new(self, restored.await?);
        if matches!(report.kept, Kept::InBackup | Kept::InBackupInPlace) {
            let backup = report.safety_backup.clone();
            undo::remember_for_good(app, source, backup).await?;
        }
        Ok(report)
    }
}

/// Finishes and lets go of what earlier restores of a source left, before the next one. Called under the source's lease.
pub(crate) async fn ready(app: &Installation, source: &SourceConfig) -> anyhow::Result<()> {
    finish_interrupted(app, source).await?;
    let_go_of_expired(app, source).await;
    Ok(())
}

/// Looks at what a restore would do.
pub(crate) async fn preview_here(
    app: &Installation,
    source: &SourceConfig,
    vault: &Vault,
    (spec, past): (&RestoreSpec, Option<&Past>),
) -> anyhow::Result<Preview> {
    let planned = Planned::new(app, vault, source, (spec.backup.clone(), spec.into())).await?;
    Ok(Preview::new((&planned.plan, planned.wants_safety()), past, app.cx.now()))
}

/// Restores a source as somebody confirmed who saw a preview.
pub(crate) async fn restore_here(
    app: &Installation,
    source: &SourceConfig,
    vault: &Vault,
    spec: &RestoreSpec,
) -> anyhow::Result<RestoreReport> {
    let planned = Planned::new(app, vault, source, (spec.backup.clone(), spec.into())).await?;
    planned.ensure_kept()?;
    let outlook = &planned.plan.outlook;
    let target = outlook.target.to_string();
    anyhow::ensure!(
        !outlook.replaces || spec.replaces.as_ref() == Some(&target),
        "this would replace {target}, and what somebody said yes to is {}: look at a preview first",
        spec.replaces.as_deref().unwrap_or("nothing")
    );
    let report = planned.run(app, vault).await?;
    for text in &report.warnings {
        app.cx.event(Event::Warning { text: text.clone() });
    }
    app.cx.event(Event::Step { what: report.summary() });
    Ok(report)
}

/// What a restore did, as whoever waits for it hears it.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct RestoreReport {
    pub(crate) backup: BackupId,
    target: String,
    items: u64,
    bytes: u64,
    pub(crate) safety_backup: Option<BackupId>,
    #[serde(default)]
    warnings: Vec<String>,
    kept: Kept,
}

/// Where what was there before is now.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Kept {
    /// There was nothing, or the restore went to another place.
    Nothing,
    /// Beside the target, for `undo`.
    Beside,
    /// In its backup only.
    InBackup,
    /// The same, and it goes back in place.
    InBackupInPlace,
}

impl RestoreReport {
    fn new(planned: &Planned, restored: Restored) -> Self {
        let Restored { report, replacement, can_be_undone, safety } = restored;
        let how = planned.plan.outlook.how;
        let kept = match how {
            How::Transaction if safety.is_some() => Kept::InBackupInPlace,
            _ if how.keeps_nothing() && safety.is_some() => Kept::InBackup,
            _ if can_be_undone && planned.is_own_place => Kept::Beside,
            _ => Kept::Nothing,
        };
        Self {
            backup: planned.plan.place.backup.clone(),
            target: replacement.target().to_string(),
            items: report.items,
            bytes: report.bytes,
            safety_backup: safety,
            warnings: report.warnings,
            kept,
        }
    }

    /// Reads what somebody else did.
    pub(crate) fn read(value: Value) -> anyhow::Result<Self> {
        let mut report: Self =
            serde_json::from_value(value).context("the report of the restore cannot be read")?;
        report.cut();
        Ok(report)
    }

    /// Returns it for somebody else.
    pub(crate) fn into_json(mut self) -> Value {
        self.cut();
        serde_json::to_value(self).expect("a report is plain values")
    }

    fn cut(&mut self) {
        self.target = plain::sentence(&self.target);
        self.warnings.truncate(MOST_WARNINGS);
        self.warnings.iter_mut().for_each(|text| *text = plain::sentence(text));
    }

    /// Adds what a person should know.
    pub(crate) fn warn(&mut self, text: String) {
        self.warnings.push(text);
    }

    /// Says whether something was there before.
    pub(crate) fn replaced(&self) -> bool {
        !matches!(self.kept, Kept::Nothing)
    }

    fn summary(&self) -> String {
        let Self { target, backup, items, bytes, .. } = self;
        format!("restored {target} from {backup}: {items} items, {}", render::size(*bytes))
    }

    /// Shows it, and what can be done about it.
    pub(super) fn show(&self, source: &str, json: bool) -> anyhow::Result<Exit> {
        for warning in &self.warnings {
            render::say(&format!("warning: {warning}"));
        }
        if json {
            return render::print_json(self).map(|()| Exit::Done);
        }
        render::print(&self.summary())?;
        let in_place = match self.kept {
            Kept::Nothing => return Ok(Exit::Done),
            Kept::Beside => {
                render::print(&format!(
                    "what was there is kept; `backstay undo {source}` brings it back, `backstay confirm {source}` lets it go"
                ))?;
                return Ok(Exit::Done);
            }
            Kept::InBackup => "",
            Kept::InBackupInPlace => " --in-place",
        };
        if let Some(safety) = &self.safety_backup {
            render::print(&format!(
                "what was there is held as backup {safety}; `backstay restore {source} --id {safety}{in_place}` brings it back, `backstay release {safety}` lets it go"
            ))?;
        }
        Ok(Exit::Done)
    }
}
