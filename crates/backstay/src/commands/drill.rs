//! `backstay drill`.

use backstay_control::{JobKind, JobState};
use backstay_engine::drill::{DrillOptions, Drilled, drill};
use backstay_format::BackupId;
use jiff::SignedDuration;
use serde_json::{Value, json};

use super::restore::{Wanted, choose, hex_tag};
use super::undo::sweep;
use crate::config::SourceConfig;
use crate::exit::Exit;
use crate::installation::Installation;
use crate::render;

/// Restores a backup into a scratch place and says what came of it. A check that fails fails the command.
pub(super) async fn drill_source(
    app: &Installation,
    name: &str,
    id: Option<&str>,
    json: bool,
) -> anyhow::Result<Exit> {
    let source = app.source(name).await?;
    let vault = app.vault(app.storage(&source.storage)?).await?;
    let backup = choose(app, &vault, &source, &Wanted { id, at: None }).await?;
    let options = DrillOptions {
        spool: app.home.spool(),
        tag: hex_tag(),
        checks: source.checks.clone(),
        expects_sealed: source.sealed,
    };
    let drilling = Box::pin(async {
        sweep(app, &source).await?;
        let job = app.start_job(&source.name, JobKind::Drill).await?;
        let (engine_source, place) =
            (app.engine_source(&source)?, app.place(&source.name, backup.clone()));
        let drilled = drill(&app.cx, &vault, engine_source.as_ref(), place, options).await;
        let drilled = drilled.map_err(anyhow::Error::from);
        let error = match &drilled {
            Ok(drilled) => failed_checks(drilled),
            Err(_) => None,
        };
        let state = match (&drilled, &error) {
            (Ok(_), None) => JobState::Succeeded,
            (Ok(_), Some(_)) => JobState::Failed,
            (Err(_), _) => app.failed(),
        };
        let error = drilled.as_ref().err().or(error.as_ref());
        app.end_job(&job, state, error, Some(backup.to_string())).await;
        drilled
    });
    let drilled = app.under_lease(source.name.as_str(), drilling).await?;
    let passed = failed_checks(&drilled).is_none();
    if json {
        render::print_json(&as_json(&source, &backup, &drilled))?;
    } else {
        render::print(&as_text(&source, &backup, &drilled))?;
    }
    Ok(if passed { Exit::Done } else { Exit::Failed })
}

fn failed_checks(drilled: &Drilled) -> Option<anyhow::Error> {
    let wrong = drilled.answers.iter().filter(|answer| !answer.is_right());
    let names: Vec<&str> = wrong.map(|answer| answer.check.name.as_str()).collect();
    (!names.is_empty()).then(|| anyhow::anyhow!("checks failed: {}", names.join(", ")))
}

fn recovery_time(drilled: &Drilled) -> SignedDuration {
    drilled.steps.iter().map(|step| step.took).sum()
}

fn as_json(source: &SourceConfig, backup: &BackupId, drilled: &Drilled) -> Value {
    let steps = drilled.steps.iter();
    let answers = drilled.answers.iter();
    json!({
        "source": source.name,
        "backup": backup,
        "passed": failed_checks(drilled).is_none(),
        "rto_seconds": recovery_time(drilled).as_secs_f64(),
        "items": drilled.report.items,
        "bytes": drilled.report.bytes,
        "warnings": drilled.report.warnings,
        "steps": steps
            .map(|step| json!({"step": step.name, "seconds": step.took.as_secs_f64()}))
            .collect::<Vec<_>>(),
        "checks": answers
            .map(|answer| {
                let (found, error) = (answer.found.as_ref().ok(), answer.found.as_ref().err());
                let check = &answer.check;
                json!({"name": check.name, "expected": check.expected, "found": found, "error": error,
                       "passed": answer.is_right()})
            })
            .collect::<Vec<_>>(),
    })
}

fn as_text(source: &SourceConfig, backup: &BackupId, drilled: &Drilled) -> String {
    let mut lines = vec![format!(
        "{backup} of {} was restored into a scratch place: {} items, {}",
        source.name,
        drilled.report.items,
        render::size(drilled.report.bytes)
    )];
    for step in &drilled.steps {
        lines.push(format!("  {:>8.2} s  {}", step.took.as_secs_f64(), step.name));
    }
    let total = recovery_time(drilled).as_secs_f64();
    lines.push(format!(
        "  {total:>8.2} s  in all: the recovery time, without what it takes to start the app"
    ));
    for answer in &drilled.answers {
        let verdict = if answer.is_right() { "pass" } else { "FAIL" };
        let found = match &answer.found {
            Ok(found) => format!("found {found}"),
            Err(error) => error.clone(),
        };
        let check = &answer.check;
        lines.push(format!("{verdict}  {}: expected {}, {found}", check.name, check.expected));
    }
    if drilled.answers.is_empty() {
        lines.push("no checks are configured; see `checks` in the configuration".to_owned());
    }
    lines.join("\n")
}
