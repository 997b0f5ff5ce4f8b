//! `backstay archives`: old rows of tables that go to files. Never counted or shown as backups.

mod prune;
mod restore;
mod run;

use std::sync::Arc;

use backstay_engine::archive::{self, ArchiveSpec, Segment};
use backstay_engine::event::Event;
use backstay_engine::vault::Vault;
use backstay_format::{BackupFile, IndexEntry, StoredPart};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::cli::ArchivesCommand;
use crate::config::{ArchiveConfig, SourceConfig};
use crate::exit::{Exit, UsageError};
use crate::installation::Installation;
use crate::render;

/// What became of the last run of an archive.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct LastRun {
    at: Timestamp,
    archived: u64,
    deleted: u64,
    error: Option<String>,
}

pub(super) async fn archives(
    app: &Installation,
    command: ArchivesCommand,
    json: bool,
) -> anyhow::Result<Exit> {
    match command {
        ArchivesCommand::Run { names, all, dry_run, accept_unsealed } => {
            run::run_all(app, chosen(app, &names, all)?, (dry_run, accept_unsealed), json).await
        }
        ArchivesCommand::List { name, files } => match name {
            Some(name) => list_segments(app, one(app, &name)?, files, json).await,
            None => list(app, json).await,
        },
        ArchivesCommand::Verify { names } => {
            let all = names.is_empty();
            restore::verify(app, chosen(app, &names, all)?, json).await
        }
        ArchivesCommand::Restore(args) => restore::restore(app, args, json).await,
        ArchivesCommand::Prune { names, dry_run } => {
            let all = names.is_empty();
            prune::prune(app, chosen(app, &names, all)?, dry_run, json).await
        }
    }
}

fn one<'a>(app: &'a Installation, name: &str) -> anyhow::Result<&'a ArchiveConfig> {
    app.config.archives.get(name).ok_or_else(|| {
        let known: Vec<&str> = app.config.archives.keys().map(String::as_str).collect();
        UsageError(format!("there is no archive {name:?}; known: {}", known.join(", "))).into()
    })
}

fn chosen<'a>(
    app: &'a Installation,
    names: &[String],
    all: bool,
) -> anyhow::Result<Vec<&'a ArchiveConfig>> {
    if all {
        return Ok(app.config.archives.values().collect());
    }
    names.iter().map(|name| one(app, name)).collect()
}

/// What nobody may take a backup for: the lease and the record of an archive.
fn lease_name(archive: &ArchiveConfig) -> String {
    format!("archive {}", archive.name)
}

fn last_run_name(archive: &ArchiveConfig) -> String {
    format!("last run of archive {}", archive.name)
}

impl Installation {
    fn archive_spec(&self, archive: &ArchiveConfig, accept_unsealed: bool) -> ArchiveSpec {
        ArchiveSpec {
            organisation: archive.organisation.clone(),
            name: archive.name.clone(),
            table: archive.table.clone(),
            older_than: archive.older_than,
            partition: archive.partition,
            delete: archive.delete,
            keep: archive.keep,
            expects_sealed: archive.sealed && !accept_unsealed,
            spool: self.home.spool(),
        }
    }

    /// Opens the vault that an archive lies in; none if nothing was archived yet.
    async fn archive_vault(&self, archive: &ArchiveConfig) -> anyhow::Result<Option<Vault>> {
        let storage = self.storage(&archive.storage)?;
        let store = archive::store_of(&self.store_for_reading(storage).await?);
        let keyring = Arc::new(self.keyring().await?);
        match Vault::open(&self.cx, store, keyring).await.map_err(anyhow::Error::new) {
            Err(error) if Exit::of(&error) == Exit::NoVault => Ok(None),
            vault => vault.map(Some),
        }
    }

    async fn archive_vault_for_writing(&self, archive: &ArchiveConfig) -> anyhow::Result<Vault> {
        let store = archive::store_of(&self.store(self.storage(&archive.storage)?).await?);
        let keyring = Arc::new(self.keyring_with_key().await?);
        Ok(Vault::open_or_create(&self.cx, store, keyring).await?)
    }
}

async fn segments_of(
    app: &Installation,
    archive: &ArchiveConfig,
) -> anyhow::Result<(Option<Vault>, Vec<Segment>)> {
    let Some(vault) = app.archive_vault(archive).await? else { return Ok((None, Vec::new())) };
    let segments = archive::segments(&app.cx, &vault, &archive.organisation, &archive.name).await?;
    Ok((Some(vault), segments))
}

async fn list(app: &Installation, json: bool) -> anyhow::Result<Exit> {
    let (mut rows, mut values) = (Vec::new(), Vec::new());
    for archive in app.config.archives.values() {
        let (_, segments) = segments_of(app, archive).await?;
        let count: u64 = segments.iter().map(|segment| segment.content.rows()).sum();
        let stored: u64 = segments.iter().map(|segment| segment.manifest.stored_bytes()).sum();
        let last: Option<LastRun> = app.catalog.setting(&last_run_name(archive)).await?;
        let said = last.as_ref().map(|last| match &last.error {
            Some(error) => format!("{:.0}: {error}", last.at),
            None => format!("{:.0}: {} archived, {} deleted", last.at, last.archived, last.deleted),
        });
        rows.push(vec![
            archive.name.to_string(),
            archive.source.clone(),
            archive.table.table.clone(),
            segments.len().to_string(),
            count.to_string(),
            render::size(stored),
            said.unwrap_or_else(|| "NEVER".to_owned()),
        ]);
        values.push(json!({
            "archive": archive.name,
            "source": archive.source,
            "table": archive.table.table,
            "storage": archive.storage,
            "segments": segments.len(),
            "rows": count,
            "stored_bytes": stored,
            "last_run": last,
        }));
    }
    if json {
        render::print_json(&values)?;
    } else if rows.is_empty() {
        render::print("no rows are archived: the configuration has no archives")?;
    } else {
        let head = ["ARCHIVE", "SOURCE", "TABLE", "SEGMENTS", "ROWS", "STORED", "LAST RUN"];
        render::print(&render::table(&head, rows))?;
    }
    for warning in backups_off(app).await? {
        render::say(&format!("warning: {warning}"));
    }
    Ok(Exit::Done)
}

async fn list_segments(
    app: &Installation,
    archive: &ArchiveConfig,
    files: bool,
    json: bool,
) -> anyhow::Result<Exit> {
    let (vault, segments) = segments_of(app, archive).await?;
    let (mut rows, mut values) = (Vec::new(), Vec::new());
    for segment in &segments {
        let location = vault.as_ref().map_or("", |vault| vault.location());
        let objects = segment.manifest.parts.iter().map(|part| {
            let StoredPart::Whole { object, .. } = &part.stored;
            format!("{location}/{}", segment.place.file(&BackupFile::Object(object.clone())))
        });
        let objects: Vec<String> = objects.collect();
        let content = &segment.content;
        let oldest = content.files.iter().map(|file| file.oldest).min();
        let newest = content.files.iter().map(|file| file.newest).max();
        if files && !json {
            render::print(&objects.join("\n"))?;
        }
        rows.push(vec![
            segment.place.backup.to_string(),
            content.rows().to_string(),
            content.files.len().to_string(),
            render::size(segment.manifest.stored_bytes()),
            render::time(oldest),
            render::time(newest),
            if segment.deleted.is_some() { "deleted" } else { "kept" }.to_owned(),
            content.changes.join("; "),
        ]);
        values.push(json!({
            "segment": segment.place.backup,
            "rows": content.rows(),
            "stored_bytes": segment.manifest.stored_bytes(),
            "oldest": oldest,
            "newest": newest,
            "deleted": segment.deleted,
            "schema_changes": content.changes,
            "objects": objects,
            "content": content,
        }));
    }
    if json {
        render::print_json(&values)?;
    } else if !files {
        let head = [
            "SEGMENT",
            "ROWS",
            "FILES",
            "STORED",
            "OLDEST",
            "NEWEST",
            "IN THE TABLE",
            "COLUMNS CHANGED",
        ];
        render::print(&render::table(&head, rows))?;
    }
    Ok(Exit::Done)
}

/// Says of each source with archives and without any good backup that its backups are off (H19).
pub(super) async fn backups_off(app: &Installation) -> anyhow::Result<Vec<String>> {
    let mut off = Vec::new();
    for source in app.config.sources.values() {
        let Some(warning) = no_backup(app, source) else { continue };
        let known = super::list::known(app, source).await?;
        if let Some(error) = known.error {
            let text =
                format!("whether {} has a backup could not be found out: {error:#}", source.name);
            app.cx.event(Event::Warning { text });
        }
        if !known.backups.iter().any(IndexEntry::is_good) {
            off.push(warning);
        }
    }
    Ok(off)
}

/// Returns what is to be said of a source that has no good backup, if it has archives.
pub(super) fn no_backup(app: &Installation, source: &SourceConfig) -> Option<String> {
    let name = &source.name;
    let own = app.config.archives.values().filter(|archive| archive.source == name.as_str());
    let archives: Vec<&str> = own.map(|archive| archive.name.as_str()).collect();
    (!archives.is_empty()).then(|| {
        format!(
            "BACKUPS ARE OFF for {name}: archive {} keeps some of its old rows, which is no backup, and there is none: run `backstay backup {name}`",
            archives.join(", ")
        )
    })
}
