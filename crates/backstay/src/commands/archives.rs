//! `backstay archives`: old rows of tables that go to files. Never counted or shown as backups.

use std::sync::Arc;

use anyhow::Context as _;
use async_trait::async_trait;
use backstay_control::Catalog;
use backstay_engine::archive::{self, ArchiveReport, ArchiveSpec, Segment, SegmentLog, Wanted};
use backstay_engine::event::Event;
use backstay_engine::vault::{BackupPlace, Draft, Vault};
use backstay_format::{BackupFile, Status, StoredPart, Trigger};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::restore::ask;
use crate::cli::{ArchiveRestoreArgs, ArchivesCommand};
use crate::config::{ArchiveConfig, SourceConfig};
use crate::exit::{Exit, UsageError};
use crate::installation::{Installation, host};
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
            run_all(app, chosen(app, &names, all)?, (dry_run, accept_unsealed), json).await
        }
        ArchivesCommand::List { name, files } => match name {
            Some(name) => list_segments(app, one(app, &name)?, files, json).await,
            None => list(app, json).await,
        },
        ArchivesCommand::Verify { names } => {
            let all = names.is_empty();
            verify(app, chosen(app, &names, all)?, json).await
        }
        ArchivesCommand::Restore(args) => restore(app, args, json).await,
        ArchivesCommand::Prune { names, dry_run } => {
            let all = names.is_empty();
            prune(app, chosen(app, &names, all)?, dry_run, json).await
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
            organisation: self.config.organisation.clone(),
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

/// Remembers in the catalog which segment is under way.
struct CatalogSegments<'a> {
    catalog: &'a Catalog,
    setting: String,
}

#[async_trait]
impl SegmentLog for CatalogSegments<'_> {
    async fn begun(
        &self,
        place: &BackupPlace,
    ) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        Ok(self.catalog.set_setting(&self.setting, &place.backup).await?)
    }
}

impl<'a> CatalogSegments<'a> {
    fn new(app: &'a Installation, archive: &ArchiveConfig) -> Self {
        Self {
            catalog: &app.catalog,
            setting: format!("segment under way of archive {}", archive.name),
        }
    }

    /// Removes what a killed run of this installation left: whoever reads the files as they lie would count its rows twice.
    async fn sweep(
        &self,
        app: &Installation,
        archive: &ArchiveConfig,
        vault: &Vault,
    ) -> anyhow::Result<()> {
        if let Some(backup) = self.catalog.setting(&self.setting).await? {
            let place = app.place(&archive.name, backup);
            archive::sweep(&app.cx, vault, &place).await?;
        }
        Ok(())
    }
}

async fn run_all(
    app: &Installation,
    archives: Vec<&ArchiveConfig>,
    (dry_run, accept_unsealed): (bool, bool),
    json: bool,
) -> anyhow::Result<Exit> {
    let is_single = archives.len() == 1;
    let (mut exit, mut values, mut only_error) = (Exit::Done, Vec::new(), None);
    for archive in archives {
        let done = match dry_run {
            true => plan_one(app, archive, accept_unsealed, json).await,
            false => {
                let leased = Box::pin(run_one(app, archive, accept_unsealed, json));
                app.under_lease(&lease_name(archive), leased).await
            }
        };
        match done {
            Ok(value) => values.push(value),
            Err(error) => {
                exit = exit.and(Exit::of(&error));
                if is_single {
                    only_error = Some(error);
                } else {
                    render::say(&format!("error: archive {}: {error:#}", archive.name));
                }
            }
        }
        if app.cx.cancelled().is_some() {
            break;
        }
    }
    if json {
        render::print_json(&values.into())?;
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
    let engine_source = app.engine_source(&source);
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
) -> anyhow::Result<Value> {
    let done = Box::pin(run_leased(app, archive, accept_unsealed)).await;
    let report = done.as_ref().ok();
    let last = LastRun {
        at: app.cx.now(),
        archived: report.map_or(0, |report| report.archived),
        deleted: report.map_or(0, |report| report.deleted),
        error: done.as_ref().err().map(|error| format!("{error:#}")),
    };
    app.catalog.set_setting(&last_run_name(archive), &last).await?;
    let report = done?;
    if !json {
        show_report(archive, &report)?;
    }
    Ok(json!({
        "archive": archive.name,
        "before": report.before,
        "archived": report.archived,
        "already_archived": report.already,
        "segments": report.segments,
        "stored_bytes": report.stored_bytes,
        "deleted": report.deleted,
        "changed": report.changed,
        "unreadable": report.unreadable,
        "schema_changes": report.changes,
    }))
}

async fn run_leased(
    app: &Installation,
    archive: &ArchiveConfig,
    accept_unsealed: bool,
) -> anyhow::Result<ArchiveReport> {
    let source = app.source(&archive.source).await?;
    let vault = app.archive_vault_for_writing(archive).await?;
    let log = CatalogSegments::new(app, archive);
    log.sweep(app, archive, &vault).await?;
    let spec = app.archive_spec(archive, accept_unsealed);
    let draft = draft(app, archive, &source);
    let engine_source = app.engine_source(&source);
    Ok(archive::run(&app.cx, engine_source.as_ref(), &vault, &spec, &draft, &log).await?)
}

fn draft(app: &Installation, archive: &ArchiveConfig, source: &SourceConfig) -> Draft {
    Draft {
        organisation: app.config.organisation.clone(),
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

async fn segments_of(
    app: &Installation,
    archive: &ArchiveConfig,
) -> anyhow::Result<(Option<Vault>, Vec<Segment>)> {
    let Some(vault) = app.archive_vault(archive).await? else { return Ok((None, Vec::new())) };
    let segments =
        archive::segments(&app.cx, &vault, &app.config.organisation, &archive.name).await?;
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
        render::print_json(&values.into())?;
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
        let mark = match &vault {
            Some(vault) => vault.deleted_mark(&app.cx, &segment.place).await?,
            None => None,
        };
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
        let shown =
            |time: Option<Timestamp>| time.map(|time| format!("{time:.0}")).unwrap_or_default();
        rows.push(vec![
            segment.place.backup.to_string(),
            content.rows().to_string(),
            content.files.len().to_string(),
            render::size(segment.manifest.stored_bytes()),
            shown(oldest),
            shown(newest),
            if mark.is_some() { "deleted" } else { "kept" }.to_owned(),
            content.changes.join("; "),
        ]);
        values.push(json!({
            "segment": segment.place.backup,
            "rows": content.rows(),
            "stored_bytes": segment.manifest.stored_bytes(),
            "oldest": oldest,
            "newest": newest,
            "deleted": mark,
            "schema_changes": content.changes,
            "objects": objects,
            "content": content,
        }));
    }
    if json {
        render::print_json(&values.into())?;
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

async fn verify(
    app: &Installation,
    archives: Vec<&ArchiveConfig>,
    json: bool,
) -> anyhow::Result<Exit> {
    let (mut exit, mut values) = (Exit::Done, Vec::new());
    for archive in archives {
        let (vault, segments) = segments_of(app, archive).await?;
        let Some(vault) = vault else { continue };
        let spec = app.archive_spec(archive, true);
        for segment in &segments {
            let verified = archive::verify(&app.cx, &vault, &spec, segment).await;
            let (name, id) = (&archive.name, &segment.place.backup);
            let error = verified.as_ref().err().map(ToString::to_string);
            let rows = verified.as_ref().map_or(0, |verified| verified.rows);
            if let Err(error) = verified {
                exit = exit.and(Exit::of(&error.into()));
            }
            if !json {
                render::print(&match &error {
                    None => format!("{name} {id}: {rows} rows, every one is good"),
                    Some(error) => format!("{name} {id}: NOT GOOD: {error}"),
                })?;
            }
            values.push(json!({"archive": name, "segment": id, "rows": rows, "good": error.is_none(), "error": error}));
            if app.cx.cancelled().is_some() {
                return Ok(exit);
            }
        }
    }
    if json {
        render::print_json(&values.into())?;
    }
    Ok(exit)
}

async fn restore(app: &Installation, args: ArchiveRestoreArgs, json: bool) -> anyhow::Result<Exit> {
    let archive = one(app, &args.name)?;
    let (vault, segments) = segments_of(app, archive).await?;
    let wanted = Wanted { from: args.from, until: args.until };
    let vault = vault.with_context(|| format!("archive {} holds nothing yet", archive.name))?;
    let files = segments.iter().flat_map(|segment| &segment.content.files);
    let rows: u64 = files.filter(|file| wanted.takes(file)).map(|file| file.rows).sum();
    let mut spec = app.archive_spec(archive, args.accept_unsealed);
    if let Some(directory) = &args.to_file {
        let written = archive::export(&app.cx, &vault, &spec, &wanted, directory).await?;
        render::print(&format!("{written} rows written below {}", directory.display()))?;
        return Ok(Exit::Done);
    }
    if let Some(table) = args.to {
        spec.table.table = table;
    }
    let what = format!(
        "{rows} archived rows go into the table {} of source {}; rows that are there by key stay as they are.",
        spec.table.table, archive.source
    );
    render::say(&what);
    if args.dry_run {
        return Ok(Exit::Done);
    }
    if archive.delete && spec.table.table == archive.table.table {
        render::say(
            "warning: the next run of this archive deletes them again; restore to another table with --to to keep them",
        );
    }
    ask("This adds rows to the table.", "RESTORE", args.yes)?;
    let source = app.source(&archive.source).await?;
    let engine_source = app.engine_source(&source);
    let restoring = Box::pin(async {
        Ok(archive::restore(&app.cx, engine_source.as_ref(), &vault, &spec, &wanted).await?)
    });
    let restored = app.under_lease(&lease_name(archive), restoring).await?;
    if json {
        return render::print_json(
            &json!({"archive": archive.name, "rows": restored.rows, "inserted": restored.inserted}),
        )
        .map(|()| Exit::Done);
    }
    render::print(&format!(
        "{} rows inserted; {} were there already",
        restored.inserted,
        restored.rows - restored.inserted
    ))?;
    Ok(Exit::Done)
}

async fn prune(
    app: &Installation,
    archives: Vec<&ArchiveConfig>,
    dry_run: bool,
    json: bool,
) -> anyhow::Result<Exit> {
    let mut values = Vec::new();
    for archive in archives {
        let Some(vault) = app.archive_vault(archive).await? else { continue };
        let spec = app.archive_spec(archive, true);
        let pruning = Box::pin(async {
            let plan = archive::plan_prune(&app.cx, &vault, &spec).await?;
            if !dry_run {
                CatalogSegments::new(app, archive).sweep(app, archive, &vault).await?;
                archive::prune(&app.cx, &vault, &spec, &plan).await?;
            }
            anyhow::Ok(plan)
        });
        let plan = match dry_run {
            true => pruning.await?,
            false => app.under_lease(&lease_name(archive), pruning).await?,
        };
        let rows: u64 = plan.expired.iter().map(|(_, rows)| rows).sum();
        let bytes: u64 = plan.objects.iter().map(|(_, bytes)| bytes).sum();
        let verb = if dry_run { "would be removed" } else { "removed" };
        if !json {
            render::print(&format!(
                "archive {}: {} segments with {rows} rows that were kept long enough {verb}; {} objects that no segment names {verb}, {}",
                archive.name,
                plan.expired.len(),
                plan.objects.len(),
                render::size(bytes)
            ))?;
        }
        values.push(json!({
            "archive": archive.name,
            "expired": plan.expired.iter().map(|(id, rows)| json!({"segment": id, "rows": rows})).collect::<Vec<_>>(),
            "objects": plan.objects.iter().map(|(name, _)| name).collect::<Vec<_>>(),
            "bytes": bytes,
        }));
    }
    if json {
        render::print_json(&values.into())?;
    }
    Ok(Exit::Done)
}

/// Says of each source with archives and without any good backup that its backups are off (H19).
pub(super) async fn backups_off(app: &Installation) -> anyhow::Result<Vec<String>> {
    let mut off = Vec::new();
    for (source, archives) in archived_sources(app) {
        let listed = super::list::all(app, Some(source)).await;
        let known = match listed {
            Ok((listed, _)) => listed.into_iter().map(|listed| listed.entry).collect(),
            Err(error) => {
                let text =
                    format!("whether {source} has a backup could not be found out: {error:#}");
                app.cx.event(Event::Warning { text });
                match app.config.sources.get(source) {
                    Some(config) => app.catalog.known_backups(&config.storage, source).await?,
                    None => Vec::new(),
                }
            }
        };
        let is_good = |entry: &backstay_format::IndexEntry| {
            entry.status == Status::Complete && entry.trigger != Trigger::PreRestore
        };
        if !known.iter().any(is_good) {
            off.push(format!(
                "BACKUPS ARE OFF for {source}: archive {} keeps some of its old rows, which is no backup, and there is none: run `backstay backup {source}`",
                archives.join(", ")
            ));
        }
    }
    Ok(off)
}

/// Returns the sources that have archives, and these.
fn archived_sources(app: &Installation) -> Vec<(&str, Vec<&str>)> {
    let mut sources: Vec<(&str, Vec<&str>)> = Vec::new();
    for archive in app.config.archives.values() {
        match sources.iter_mut().find(|(source, _)| *source == archive.source) {
            Some((_, archives)) => archives.push(archive.name.as_str()),
            None => sources.push((&archive.source, vec![archive.name.as_str()])),
        }
    }
    sources
}
