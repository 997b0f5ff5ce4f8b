//! Looking around: init, sources, storages.

use std::io::Write as _;
use std::path::Path;

use backstay_engine::store::Finding;
use backstay_server::{FindingView, SourceView, StorageTest, StorageView};
use serde_json::json;

use super::elsewhere::{Look, look};
use crate::cli::{SourceCommand, StorageCommand};
use crate::config::{SourceConfig, StorageKind, template};
use crate::exit::Exit;
use crate::installation::Installation;
use crate::render;

pub(super) fn init(file: &Path) -> anyhow::Result<Exit> {
    let mut out = super::files::create_new(file)?;
    out.write_all(template::TEMPLATE.as_bytes())?;
    render::print(&format!("{} written; edit it, then run `backstay doctor`", file.display()))?;
    Ok(Exit::Done)
}

pub(super) async fn source(
    app: &Installation,
    command: SourceCommand,
    json: bool,
) -> anyhow::Result<Exit> {
    match command {
        SourceCommand::List => return show_sources(&sources(app), json),
        SourceCommand::Test { name } => {
            let source = app.source(&name).await?;
            show_look(&name, &look(app, &source).await?)?;
        }
        // These are changes, and done by now.
        SourceCommand::Add(_)
        | SourceCommand::Set(_)
        | SourceCommand::Credentials { .. }
        | SourceCommand::Remove { .. } => {}
    }
    Ok(Exit::Done)
}

/// Returns the sources as people see them.
pub(super) fn sources(app: &Installation) -> Vec<SourceView> {
    let view = |source: &SourceConfig| SourceView {
        name: source.name.clone(),
        organisation: source.organisation.to_string(),
        kind: source.kind.as_str().to_owned(),
        location: source.kind.location(),
        storage: source.storage.clone(),
        schedule: source.schedule(),
        declared: !app.additions.sources.contains_key(source.name.as_str()),
    };
    app.config.sources.values().map(view).collect()
}

pub(super) fn show_sources(sources: &[SourceView], json: bool) -> anyhow::Result<Exit> {
    if json {
        render::print_json(&sources)?;
        return Ok(Exit::Done);
    }
    let row = |source: &SourceView| {
        vec![
            source.name.to_string(),
            source.kind.clone(),
            source.location.clone(),
            source.storage.clone(),
            source.schedule.clone().unwrap_or_default(),
        ]
    };
    let head = ["SOURCE", "KIND", "LOCATION", "STORAGE", "SCHEDULE"];
    render::print(&render::table(&head, sources.iter().map(row).collect()))?;
    Ok(Exit::Done)
}

/// Shows what a look at a source found.
pub(super) fn show_look(name: &str, look: &Look) -> anyhow::Result<()> {
    render::print(&format!("{name}: {}", look.summary))?;
    for warning in &look.warnings {
        render::say(&format!("warning: {warning}"));
    }
    Ok(())
}

pub(super) async fn storage(
    app: &Installation,
    command: StorageCommand,
    json: bool,
) -> anyhow::Result<Exit> {
    match command {
        StorageCommand::List => return show_storages(&storages(app).await?, json),
        StorageCommand::Test { name } => return show_test(&test_anew(app, &name).await?, json),
        // Likewise.
        StorageCommand::Add(_)
        | StorageCommand::Set(_)
        | StorageCommand::Credentials { .. }
        | StorageCommand::Remove { .. } => {}
    }
    Ok(Exit::Done)
}

/// Tests a storage, and lets a new vault be made where the one that was there is gone.
async fn test_anew(app: &Installation, name: &str) -> anyhow::Result<StorageTest> {
    let mut test = test(app, name).await?;
    if app.forget_lost_vault(app.storage(name)?).await? {
        test.warnings.push(format!(
            "the vault that was on storage {name} is gone, with all backups in it; the next backup makes a new one"
        ));
    }
    Ok(test)
}

/// Tests a storage; returns what was found, as people see it.
pub(super) async fn test(app: &Installation, name: &str) -> anyhow::Result<StorageTest> {
    let storage = app.storage(name)?;
    let report = app.test_storage(storage).await?;
    let finding = |finding: &Finding| FindingView {
        what: finding.what.to_owned(),
        result: finding.result.clone(),
    };
    Ok(StorageTest {
        storage: name.to_owned(),
        status: "verified".to_owned(),
        profile: json!(report.profile),
        findings: report.findings.iter().map(finding).collect(),
        expired: app.expired(storage),
        warnings: Vec::new(),
    })
}

pub(super) fn show_test(test: &StorageTest, json: bool) -> anyhow::Result<Exit> {
    for warning in &test.warnings {
        render::say(&format!("warning: {warning}"));
    }
    if json {
        render::print_json(test)?;
        return Ok(Exit::Done);
    }
    for finding in &test.findings {
        render::print(&format!("{}: {}", finding.what, finding.result))?;
    }
    render::print(&format!("storage {} is {}", test.storage, test.status))?;
    Ok(Exit::Done)
}

/// Returns the storages as people see them.
pub(super) async fn storages(app: &Installation) -> anyhow::Result<Vec<StorageView>> {
    let mut views = Vec::new();
    for storage in app.config.storages.values() {
        let tested = app.tested(storage).await?;
        let status = match &tested {
            None => "unverified",
            Some(tested) if tested.error.is_some() => "failed",
            Some(_) => "verified",
        };
        let location = match &storage.kind {
            StorageKind::S3 { bucket, prefix, .. } => format!("s3://{bucket}/{prefix}"),
            StorageKind::Local { path, prefix } => path.join(prefix).display().to_string(),
        };
        views.push(StorageView {
            name: storage.name.clone(),
            organisation: storage.organisation.to_string(),
            location,
            status: status.to_owned(),
            tested_at: tested.as_ref().map(|tested| tested.at),
            error: tested.and_then(|tested| tested.error),
        });
    }
    Ok(views)
}

pub(super) fn show_storages(storages: &[StorageView], json: bool) -> anyhow::Result<Exit> {
    if json {
        render::print_json(&storages)?;
        return Ok(Exit::Done);
    }
    let row = |storage: &StorageView| {
        vec![
            storage.name.clone(),
            storage.location.clone(),
            storage.status.clone(),
            storage.error.clone().unwrap_or_default(),
        ]
    };
    let rows = storages.iter().map(row).collect();
    render::print(&render::table(&["STORAGE", "LOCATION", "STATUS", "ERROR"], rows))?;
    Ok(Exit::Done)
}
