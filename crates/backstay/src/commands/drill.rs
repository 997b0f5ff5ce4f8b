//! `backstay drill`.

use anyhow::Context as _;
use backstay_control::{JobId, JobKind, JobState};
use backstay_engine::drill::{DrillOptions, Drilled, drill};
use backstay_engine::vault::Vault;
use backstay_format::{BackupId, Slug};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::elsewhere::drill_elsewhere;
use super::restore::{Wanted, choose, hex_tag};
use super::undo::sweep;
use crate::config::SourceConfig;
use crate::exit::Exit;
use crate::installation::Installation;
use crate::{plain, render};

/// Of the warnings of a worker so many are told.
const MOST_WARNINGS: usize = 100;

/// What a drill showed, as a worker tells it and as the catalog keeps it for whoever waits.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct DrillReport {
    /// Tables, files or other items that were restored.
    items: u64,
    bytes: u64,
    #[serde(default)]
    warnings: Vec<String>,
    steps: Vec<StepReport>,
    checks: Vec<CheckReport>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct StepReport {
    step: String,
    seconds: f64,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct CheckReport {
    name: String,
    expected: String,
    /// What was answered; none if nothing was.
    #[serde(default)]
    found: Option<String>,
    #[serde(default)]
    error: Option<String>,
    /// Whether that is what was expected.
    passed: bool,
}

/// Restores a backup into a scratch place and says what came of it.
pub(super) async fn drill_source(
    app: &Installation,
    name: &str,
    id: Option<&str>,
    json: bool,
) -> anyhow::Result<Exit> {
    let source = app.source(name).await?;
    let vault = app.vault(app.storage(&source.storage)?).await?;
    let backup = choose(app, &vault, &source, &Wanted { id, at: None }).await?;
    let report = match source.remote() {
        Some(remote) => drill_elsewhere(app, (&source, remote), &backup).await?,
        None => {
            let drilling = Box::pin(async {
                sweep(app, &source).await?;
                let job = app.start_job(&source, JobKind::Drill).await?;
                let report = drill_here(app, &source, &vault, &backup).await;
                end_drill(app, &job, &backup, report.as_ref()).await;
                report
            });
            app.under_lease(source.name.as_str(), drilling).await?
        }
    };
    show(&report, (&source.name, &backup), json)
}

/// Shows what a drill showed. A check that failed fails the command.
pub(super) fn show(
    report: &DrillReport,
    (source, backup): (&Slug, &BackupId),
    json: bool,
) -> anyhow::Result<Exit> {
    if json {
        render::print_json(&report.as_json(source, backup))?;
    } else {
        render::print(&report.as_text(source, backup))?;
    }
    Ok(if report.failed_checks().is_none() { Exit::Done } else { Exit::Failed })
}

/// Restores a backup into a scratch place on this machine, under the lease on its source. Sweeps nothing: what a worker knows
/// nothing of may be another installation's, such as what a restore with `recover` keeps for `undo`.
pub(super) async fn drill_here(
    app: &Installation,
    source: &SourceConfig,
    vault: &Vault,
    backup: &BackupId,
) -> anyhow::Result<DrillReport> {
    let options = DrillOptions {
        spool: app.home.spool(),
        tag: hex_tag(),
        checks: source.checks.clone(),
        expects_sealed: source.sealed,
    };
    let engine_source = app.engine_source(source)?;
    let place = source.place(backup.clone());
    let drilled = drill(&app.cx, vault, engine_source.as_ref(), place, options).await?;
    Ok(DrillReport::new(&drilled))
}

/// Writes down how a drill ended.
pub(super) async fn end_drill(
    app: &Installation,
    job: &JobId,
    backup: &BackupId,
    report: Result<&DrillReport, &anyhow::Error>,
) {
    let wrong = report.ok().and_then(DrillReport::failed_checks);
    let state = match (report, &wrong) {
        (Ok(_), None) => JobState::Succeeded,
        (Ok(_), Some(_)) => JobState::Failed,
        (Err(_), _) => app.failed(),
    };
    let error = report.err().or(wrong.as_ref());
    app.end_job(job, state, error, Some(backup.to_string())).await;
}

impl DrillReport {
    fn new(drilled: &Drilled) -> Self {
        let steps = drilled.steps.iter();
        let checks = drilled.answers.iter().map(|answer| CheckReport {
            name: answer.check.name.clone(),
            expected: answer.check.expected.clone(),
            found: answer.found.as_ref().ok().cloned(),
            error: answer.found.as_ref().err().cloned(),
            passed: answer.is_right(),
        });
        Self {
            items: drilled.report.items,
            bytes: drilled.report.bytes,
            warnings: drilled.report.warnings.clone(),
            steps: steps
                .map(|step| StepReport {
                    step: step.name.to_owned(),
                    seconds: step.took.as_secs_f64(),
                })
                .collect(),
            checks: checks.collect(),
        }
    }

    /// Reads what a worker found, which must have asked this many checks.
    pub(super) fn of_worker(report: Value, checks: usize) -> anyhow::Result<Self> {
        let report: Self =
            serde_json::from_value(report).context("its report of the drill cannot be read")?;
        let found = report.checks.len();
        anyhow::ensure!(found == checks, "it asked {found} checks, and the source has {checks}");
        Ok(report.cut())
    }

    /// Makes its texts such as fit into a report and on a screen. What passed was judged before.
    pub(super) fn cut(mut self) -> Self {
        let in_one_line = |text: &mut String| *text = plain::sentence(text);
        self.warnings.truncate(MOST_WARNINGS);
        self.warnings.iter_mut().for_each(in_one_line);
        self.steps.iter_mut().map(|step| &mut step.step).for_each(in_one_line);
        for check in &mut self.checks {
            let CheckReport { name, expected, found, error, passed: _ } = check;
            [name, expected].into_iter().chain(found).chain(error).for_each(in_one_line);
        }
        self
    }

    /// Returns it as workers and the catalog have it.
    pub(super) fn to_json(&self) -> Value {
        serde_json::to_value(self).expect("a report is plain values")
    }

    /// Says which checks failed, if any did.
    fn failed_checks(&self) -> Option<anyhow::Error> {
        let wrong = self.checks.iter().filter(|check| !check.passed);
        let names: Vec<&str> = wrong.map(|check| check.name.as_str()).collect();
        (!names.is_empty()).then(|| anyhow::anyhow!("checks failed: {}", names.join(", ")))
    }

    fn recovery_seconds(&self) -> f64 {
        self.steps.iter().map(|step| step.seconds).sum()
    }

    fn as_json(&self, source: &Slug, backup: &BackupId) -> Value {
        json!({
            "source": source,
            "backup": backup,
            "passed": self.failed_checks().is_none(),
            "rto_seconds": self.recovery_seconds(),
            "items": self.items,
            "bytes": self.bytes,
            "warnings": self.warnings,
            "steps": self.steps,
            "checks": self.checks,
        })
    }

    /// Returns it line by line, for a person.
    pub(super) fn as_text(&self, source: &Slug, backup: &BackupId) -> String {
        let mut lines = vec![format!(
            "{backup} of {source} was restored into a scratch place: {} items, {}",
            self.items,
            render::size(self.bytes)
        )];
        for StepReport { step, seconds } in &self.steps {
            lines.push(format!("  {seconds:>8.2} s  {step}"));
        }
        lines.push(format!(
            "  {:>8.2} s  in all: the recovery time, without what it takes to start the app",
            self.recovery_seconds()
        ));
        for check in &self.checks {
            let verdict = if check.passed { "pass" } else { "FAIL" };
            let found = match (&check.found, &check.error) {
                (Some(found), _) => format!("found {found}"),
                (None, error) => error.clone().unwrap_or_else(|| "found nothing".to_owned()),
            };
            lines.push(format!("{verdict}  {}: expected {}, {found}", check.name, check.expected));
        }
        if self.checks.is_empty() {
            lines.push("no checks are configured; see `checks` in the configuration".to_owned());
        }
        lines.join("\n")
    }
}
