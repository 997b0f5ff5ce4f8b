//! `backstay archives run`.

use backstay_engine::archive::{self, ArchiveReport};
use backstay_engine::vault::Draft;
use backstay_format::Trigger;
use serde_json::{Value, json};

use super::prune::SegmentUnderWay;
use super::{LastRun, backups_off, last_run_name, lease_name};
use crate::config::{ArchiveConfig, SourceConfig};
use crate::exit::Exit;
use crate::installation::{Installation, host};
use crate::render;

pub(super) async fn run_all(
    app: &Installation,
    archives: Vec<&ArchiveConfig>,
    (dry_run, accept_unsealed): (bool, bool),
    json: bool,
) -> anyhow::Result<Exit> {
    let is_single = archives.len() == 1;
    let (mut exit, mut values, mut only_error) = (Exit::Done, Vec::new(), None);
    for archive in archives {
        let done = match dry_run {
            true => plan_one(app, archive, accept_unsealed, json).await.map(|value| (value, None)),
            false => {
                let leased = Box::pin(run_one(app, archive, accept_unsealed, json));
                app.under_lease(&lease_name(archive), leased).await
            }
        };
        let failed = match done {
            Ok((value, not_deleted)) => {
                values.push(value);
                not_deleted
            }
            Err(error) => Some(error),
        };
        if let Some(error) = failed {
            exit = exit.and(Exit::of(&error));
            if is_single {
                only_error = Some(error);
            } else {
                render::say(&format!("error: archive {}: {error:#}", archive.name));
            }
        }
        if app.cx.cancelled().is_some() {
            break;
        }
    }
    if json {
        render::print_json(&values)?;
    }
    for warning in backups_off(app).await? {
        render::say(&format!("warning: {warning}"));
    }
    only_error.map_or(Ok(exit), Err)
}

async fn plan_one(
    app: &Installation,
    archive: &ArchiveConfig,
    accept_unsealed: bool,
    json: bool,
) -> anyhow::Result<Value> {
    let source = app.source(&archive.source).await?;
    let spec = app.archive_spec(archive, accept_unsealed);
    let vault = app.archive_vault(archive).await?;
    let engine_source = app.engine_source(&source)?;
    let plan = archive::plan(&app.cx, engine_source.as_ref(), vault.as_ref(), &spec).await?;
    if !json {
        let rows = plan.partitions.iter().map(|(name, rows, archived)| {
            vec![name.clone(), rows.to_string(), archived.to_string()]
        });
        render::print(&format!(
            "archive {}: rows of {} before {:.0}",
            archive.name, plan.table, plan.before
        ))?;
        render::print(&render::table(&["PARTITION", "IN THE TABLE", "ARCHIVED"], rows.collect()))?;
        let what = if archive.delete {
            "would be archived and deleted"
        } else {
            "would be archived; none would be deleted"
        };
        render::print(&format!("rows that are not archived yet {what}"))?;
        for obstacle in &plan.obstacles {
            render::print(&format!("they would not be deleted: {obstacle}"))?;
        }
        if plan.unreadable > 0 {
            render::print(&unreadable(archive, plan.unreadable))?;
        }
    }
    let partitions = plan.partitions.iter().map(|(name, rows, archived)| {
        json!({"partition": name, "rows_in_table": rows, "rows_archived": archived})
    });
    Ok(json!({
        "archive": archive.name,
        "table": plan.table,
        "before": plan.before,
        "partitions": partitions.collect::<Vec<_>>(),
        "unreadable": plan.unreadable,
        "obstacles": plan.obstacles,
    }))
}

fn unreadable(archive: &ArchiveConfig, rows: u64) -> String {
    format!(
        "{rows} rows stay in the table, since their {} is null or cannot be read as a time",
        archive.table.column
    )
}

async fn run_one(
    app: &Installation,
    archive: &ArchiveConfig,
    accept_unsealed: bool,
    json: bool,
) -> anyhow::Result<(Value, Option<anyhow::Error>)> {
    let done = Box::pin(run_leased(app, archive, accept_unsealed)).await;
    let report = done.as_ref().ok();
    let last = LastRun {
        at: app.cx.now(),
        archived: report.map_or(0, |report| report.archived),
        deleted: report.map_or(0, |report| report.deleted),
        error: match &done {
            Ok(report) => report.not_deleted.clone(),
            Err(error) => Some(format!("{error:#}")),
        },
    };
    app.catalog.set_setting(&last_run_name(archive), &last).await?;
    let report = done?;
    if !json {
        show_report(archive, &report)?;
    }
    let value = json!({
        "archive": archive.name,
        "before": report.before,
        "archived": report.archived,
        "already_archived": report.already,
        "segments": report.segments,
        "stored_bytes": report.stored_bytes,
        "deleted": report.deleted,
        "changed": report.changed,
        "unreadable": report.unreadable,
        "not_deleted": report.not_deleted,
        "schema_changes": report.changes,
    });
    let not_deleted = report.not_deleted.map(|why| {
        anyhow::anyhow!("rows of archive {} are archived but not deleted: {why}", archive.name)
    });
    Ok((value, not_deleted))
}

async fn run_leased(
    app: &Installation,
    archive: &ArchiveConfig,
    accept_unsealed: bool,
) -> anyhow::Result<ArchiveReport> {
    let source = app.source(&archive.source).await?;
    let vault = app.archive_vault_for_writing(archive).await?;
    let log = SegmentUnderWay::new(app, archive);
    log.sweep(app, archive, &vault).await?;
    let spec = app.archive_spec(archive, accept_unsealed);
    let draft = draft(archive, &source);
    let engine_source = app.engine_source(&source)?;
    Ok(archive::run(&app.cx, engine_source.as_ref(), &vault, &spec, &draft, &log).await?)
}

fn draft(archive: &ArchiveConfig, source: &SourceConfig) -> Draft {
    Draft {
        organisation: archive.organisation.clone(),
        source: archive.name.clone(),
        source_kind: source.kind.as_str(),
        trigger: Trigger::Manual,
        note: None,
        host: host(),
        app: source.app.clone(),
        environment: source.environment.clone(),
        sealed: archive.sealed,
        origin: Some(source.kind.location()),
        compression_level: archive.compression_level,
        imported: None,
    }
}

fn show_report(archive: &ArchiveConfig, report: &ArchiveReport) -> anyhow::Result<()> {
    let name = &archive.name;
    render::print(&format!(
        "archive {name}: {} rows before {:.0} archived and read back, in {} segments, {} stored; {} deleted from the table",
        report.archived,
        report.before,
        report.segments,
        render::size(report.stored_bytes),
        report.deleted,
    ))?;
    if report.already > 0 {
        render::print(&format!("  {} rows were archived already", report.already))?;
    }
    if report.changed > 0 {
        render::print(&format!(
            "  {} rows stay in the table: they are not as they were archived, and are archived anew by the next run",
            report.changed
        ))?;
    }
    if report.unreadable > 0 {
        render::print(&format!("  {}", unreadable(archive, report.unreadable)))?;
    }
    for change in &report.changes {
        render::print(&format!("  since the segment before, {change}"))?;
    }
    Ok(())
}
