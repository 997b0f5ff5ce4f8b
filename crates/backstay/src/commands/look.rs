//! Looking around: init, sources, storages.

use std::io::{BufRead as _, IsTerminal as _, Write as _};
use std::path::Path;

use anyhow::Context as _;
use serde_json::json;

use super::elsewhere::look;
use crate::cli::{SourceCommand, StorageCommand};
use crate::config::{SourceConfig, StorageKind, template};
use crate::exit::{Exit, UsageError};
use crate::installation::{Installation, StoredCredentials, credentials_name};
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
        // Done by `add`.
        SourceCommand::Add(_) | SourceCommand::Remove { .. } => {}
        SourceCommand::List => {
            let values = app.config.sources.values().map(|source| {
                json!({
                    "name": source.name,
                    "kind": source.kind.as_str(),
                    "location": source.kind.location(),
                    "storage": source.storage,
                    "schedule": source.schedule(),
                    "declared": !app.additions.sources.contains_key(source.name.as_str()),
                })
            });
            if json {
                render::print_json(&values.collect::<Vec<_>>().into())?;
            } else {
                let row = |source: &SourceConfig| {
                    vec![
                        source.name.to_string(),
                        source.kind.as_str().to_owned(),
                        source.kind.location(),
                        source.storage.clone(),
                        source.schedule().unwrap_or_default(),
                    ]
                };
                let rows = app.config.sources.values().map(row).collect();
                render::print(&render::table(
                    &["SOURCE", "KIND", "LOCATION", "STORAGE", "SCHEDULE"],
                    rows,
                ))?;
            }
        }
        SourceCommand::Test { name } => {
            let source = app.source(&name).await?;
            let look = look(app, &source).await?;
            render::print(&format!("{name}: {}", look.summary))?;
            for warning in look.warnings {
                render::say(&format!("warning: {warning}"));
            }
        }
    }
    Ok(Exit::Done)
}

pub(super) async fn storage(
    app: &Installation,
    command: StorageCommand,
    json: bool,
) -> anyhow::Result<Exit> {
    match command {
        // Done by `add`.
        StorageCommand::Add(_) | StorageCommand::Remove { .. } => {}
        StorageCommand::List => list_storages(app, json).await?,
        StorageCommand::Test { name } => {
            let report = app.test_storage(app.storage(&name)?).await?;
            if app.forget_lost_vault(app.storage(&name)?).await? {
                render::say(&format!(
                    "warning: the vault that was on storage {name} is gone, with all backups in it; the next backup makes a new one"
                ));
            }
            if json {
                let findings =
                    report.findings.iter().map(|f| json!({"what": f.what, "result": f.result}));
                let findings: Vec<_> = findings.collect();
                render::print_json(
                    &json!({"storage": name, "status": "verified", "profile": report.profile, "findings": findings}),
                )?;
            } else {
                for finding in &report.findings {
                    render::print(&format!("{}: {}", finding.what, finding.result))?;
                }
                render::print(&format!("storage {name} is verified"))?;
            }
        }
        StorageCommand::Credentials { name } => {
            let storage = app.storage(&name)?;
            if let StorageKind::Local { .. } = storage.kind {
                return Err(UsageError(format!(
                    "storage {name} is a directory and has no credentials"
                ))
                .into());
            }
            let credentials = ask_credentials()?;
            app.catalog
                .set_secret(&credentials_name(&name), &serde_json::to_vec(&credentials)?)
                .await?;
            app.test_storage(storage)
                .await
                .context("the credentials are kept, but the storage's test failed")?;
            render::print(&format!(
                "the credentials of storage {name} are kept, sealed, and work"
            ))?;
        }
    }
    Ok(Exit::Done)
}

async fn list_storages(app: &Installation, json: bool) -> anyhow::Result<()> {
    let mut values = Vec::new();
    let mut rows = Vec::new();
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
        let at = tested.as_ref().map(|tested| tested.at);
        let error = tested.and_then(|tested| tested.error);
        values.push(json!({"name": storage.name, "location": location, "status": status, "tested_at": at, "error": error}));
        rows.push(vec![
            storage.name.clone(),
            location,
            status.to_owned(),
            error.unwrap_or_default(),
        ]);
    }
    if json {
        return render::print_json(&values.into());
    }
    render::print(&render::table(&["STORAGE", "LOCATION", "STATUS", "ERROR"], rows))
}

/// Never from the command line: other users can read that.
pub(super) fn ask_credentials() -> anyhow::Result<StoredCredentials> {
    let (access_key_id, secret_access_key) = if std::io::stdin().is_terminal() {
        let id: String = dialoguer::Input::new().with_prompt("Access key ID").interact_text()?;
        (id, dialoguer::Password::new().with_prompt("Secret access key").interact()?)
    } else {
        let mut lines = std::io::stdin().lock().lines();
        let mut line = || lines.next().transpose().map(Option::unwrap_or_default);
        (line()?, line()?)
    };
    if access_key_id.trim().is_empty() || secret_access_key.trim().is_empty() {
        let text =
            "expected two lines: the access key id and the secret access key; nothing was kept";
        return Err(UsageError(text.to_owned()).into());
    }
    Ok(StoredCredentials {
        access_key_id: access_key_id.trim().to_owned(),
        secret_access_key: secret_access_key.trim().to_owned(),
    })
}
