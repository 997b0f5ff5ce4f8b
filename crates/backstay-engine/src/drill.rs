//! Drills: a restore into a scratch place, to know that it works and how long it takes (V64).

use std::path::PathBuf;

use jiff::{SignedDuration, Timestamp};

use crate::cx::Cx;
use crate::error::EngineError;
use crate::event::Event;
use crate::restore::{RestoreOptions, load, plan_restore};
use crate::source::{ApplyReport, Loaded, Source, TargetOptions};
use crate::spool::Spool;
use crate::vault::{BackupPlace, Vault};

/// What the restored data must answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Check {
    /// What it is called.
    pub name: String,
    /// The database that is asked, where the source has several.
    pub database: Option<String>,
    /// A query; its first row counts.
    pub query: String,
    /// That row as text, its columns divided by `|`.
    pub expected: String,
}

/// How a drill is done.
#[derive(Debug, Clone, Default)]
pub struct DrillOptions {
    /// Where a scratch place for files is made.
    pub spool: PathBuf,
    /// A name for what is made, unique to this drill; made of `[0-9a-z]`.
    pub tag: String,
    /// What is asked of the restored data.
    pub checks: Vec<Check>,
    /// Whether the source's backups should be sealed.
    pub expects_sealed: bool,
}

/// A step of a drill.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Step {
    /// What was done.
    pub name: &'static str,
    /// For how long.
    pub took: SignedDuration,
}

/// What came of a check.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// What was asked.
    pub check: Check,
    /// What was answered, or why nothing was.
    pub found: Result<String, String>,
}

impl Answer {
    /// Says whether the answer is the expected one.
    pub fn is_right(&self) -> bool {
        self.found.as_deref() == Ok(self.check.expected.as_str())
    }
}

/// What a drill found.
#[derive(Debug)]
pub struct Drilled {
    /// What happened while loading.
    pub report: ApplyReport,
    /// What took how long.
    pub steps: Vec<Step>,
    /// The answers, in the order of the checks.
    pub answers: Vec<Answer>,
}

/// Restores a backup into a scratch place, asks the checks, and removes it again. An error means that it could not be
/// restored.
pub async fn drill(
    cx: &Cx,
    vault: &Vault,
    source: &dyn Source,
    place: BackupPlace,
    options: DrillOptions,
) -> Result<Drilled, EngineError> {
    let spool = Spool::create(&options.spool)?;
    let target = TargetOptions {
        to: source.scratch(spool.path(), &options.tag),
        tag: options.tag,
        is_drill: true,
        ..TargetOptions::default()
    };
    let expects_sealed = options.expects_sealed;
    let options_of_restore = RestoreOptions { target, accept_unsealed: false, expects_sealed };
    let mut watch = Watch { cx, since: cx.now(), steps: Vec::new() };
    let plan = plan_restore(cx, vault, source, place, options_of_restore).await?;
    watch.lap("read the manifest, look at the target");
    cx.event(Event::Step {
        what: "loading into a scratch place, and proving every byte".to_owned(),
    });
    let Loaded { report, replacement } =
        load(cx, vault, &plan, source.target(plan.options.clone())).await?;
    watch.lap("fetch, prove and load");
    let mut answers = Vec::new();
    for check in options.checks {
        let database = check.database.as_deref();
        let found = source.ask(cx, &replacement, database, &check.query).await;
        // A wish to stop is no answer.
        if cx.cancelled().is_some() {
            break;
        }
        answers.push(Answer { check, found: found.map_err(|error| error.to_string()) });
    }
    watch.lap("ask the checks");
    let Watch { steps, .. } = watch;
    source.swapper().discard(&cx.for_cleanup(), &replacement).await?;
    cx.check()?;
    Ok(Drilled { report, steps, answers })
}

struct Watch<'a> {
    cx: &'a Cx,
    since: Timestamp,
    steps: Vec<Step>,
}

impl Watch<'_> {
    fn lap(&mut self, name: &'static str) {
        let now = self.cx.now();
        self.steps.push(Step { name, took: now.duration_since(self.since) });
        self.since = now;
    }
}
