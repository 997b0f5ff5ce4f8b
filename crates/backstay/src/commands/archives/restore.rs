//! `backstay archives verify` and `restore`.

use anyhow::Context as _;
use backstay_engine::archive::{self, Wanted};
use serde_json::json;

use super::super::restore::ask;
use super::{lease_name, one, segments_of};
use crate::cli::ArchiveRestoreArgs;
use crate::config::ArchiveConfig;
use crate::exit::Exit;
use crate::installation::Installation;
use crate::render;

pub(super) async fn verify(
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
        render::print_json(&values)?;
    }
    Ok(exit)
}

pub(super) async fn restore(
    app: &Installation,
    args: ArchiveRestoreArgs,
    json: bool,
) -> anyhow::Result<Exit> {
    let archive = one(app, &args.name)?;
    let (vault, segments) = segments_of(app, archive).await?;
    let wanted = Wanted { from: args.from, until: args.until };
    let vault = vault.with_context(|| format!("archive {} holds nothing yet", archive.name))?;
    let files = segments.iter().flat_map(|segment| &segment.content.files);
    let rows: u64 = files.filter(|file| wanted.takes(file)).map(|file| file.rows).sum();
    let mut spec = app.archive_spec(archive, args.accept_unsealed);
    if let Some(directory) = args.to_file.as_ref().filter(|_| !args.dry_run) {
        let written = archive::export(&app.cx, &vault, &spec, &wanted, directory).await?;
        render::print(&format!("{written} rows written below {}", directory.display()))?;
        return Ok(Exit::Done);
    }
    if let Some(table) = args.to {
        spec.table.table = table;
    }
    let what = match &args.to_file {
        Some(directory) => {
            format!("{rows} archived rows would be written below {}", directory.display())
        }
        None => format!(
            "{rows} archived rows go into the table {} of source {}; rows that are there by key stay as they are.",
            spec.table.table, archive.source
        ),
    };
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
    let engine_source = app.engine_source(&source)?;
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
