//! What another tool left behind is imported by the server, once (V41).

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, ensure};
use backstay_control::{JobSpec, JobState};
use backstay_engine::event::Event;
use backstay_engine::source::dump;
use backstay_format::Status;
use jiff::Timestamp;

use super::{imported_before, make, named, shown, warn_of_forgetting};
use crate::commands::serve::passing;
use crate::commands::undo::{finish_interrupted, sweep};
use crate::config::SourceConfig;
use crate::installation::{IMPORTED_FROM, Installation, new_job_id};
use crate::plain;

/// What came of an import by the server.
pub(crate) struct Imported {
    made: usize,
    before: usize,
    /// What was wrong with each of the other dumps.
    failed: Vec<anyhow::Error>,
    /// What lies beside them and is no dump, such as a folder with more of them.
    skipped: Vec<anyhow::Error>,
}

impl Imported {
    pub(crate) fn summary(&self) -> String {
        let Self { made, before, failed, skipped } = self;
        let mut summary = format!("{made} imported");
        for (count, what) in [
            (*before, "were imported before"),
            (failed.len(), "cannot be imported"),
            (skipped.len(), "skipped"),
        ] {
            if count > 0 {
                summary.push_str(&format!("; {count} {what}"));
            }
        }
        summary
    }

    /// Returns how the job ends, and what went wrong. Nobody looks on while a server imports, so what was skipped is told, too:
    /// whoever left it there may believe that it is a backup now.
    pub(crate) fn outcome(&self) -> (JobState, Option<anyhow::Error>) {
        let Some(first) = self.failed.iter().chain(&self.skipped).next() else {
            return (JobState::Succeeded, None);
        };
        (JobState::Incomplete, Some(anyhow::anyhow!("{}: {first:#}", self.summary())))
    }
}

/// Enqueues the import of a directory, if it never was for this source.
pub(crate) async fn enqueue(
    app: &Installation,
    (source, from): (&SourceConfig, &PathBuf),
    now: Timestamp,
) -> anyhow::Result<()> {
    if known(app).await?.get(source.name.as_str()) == Some(from) {
        return Ok(());
    }
    let shown = plain::sentence(&from.display().to_string());
    ensure!(from.is_dir(), "there is no directory {shown}");
    let spec = JobSpec::Import { from: from.clone() };
    app.catalog.enqueue((new_job_id(), source.as_job()), (&spec, None), now).await?;
    // Killed before this, or another server at the same moment: the second job finds all of it imported.
    loop {
        let before = known(app).await?;
        let mut after = before.clone();
        after.insert(source.name.to_string(), from.clone());
        if app.catalog.replace_setting(IMPORTED_FROM, &before, &after).await? {
            return Ok(());
        }
    }
}

/// Returns the directory of each source whose import was enqueued.
async fn known(app: &Installation) -> anyhow::Result<BTreeMap<String, PathBuf>> {
    Ok(app.catalog.setting(IMPORTED_FROM).await?.unwrap_or_default())
}

/// Makes backups of all dumps in a directory, under the lease on the source. One that is damaged keeps no other from it; what
/// passes by itself ends it, and the next try goes on with the rest.
pub(crate) async fn import_here(
    app: &Installation,
    source: &SourceConfig,
    from: &Path,
) -> anyhow::Result<Imported> {
    finish_interrupted(app, source).await?;
    sweep(app, source).await?;
    let (cx, path) = (app.cx.clone(), from.to_owned());
    let finding = tokio::task::spawn_blocking(move || dump::find(&cx, &path, None));
    let found = finding.await.context("the thread that looks for dumps died")??;
    let vault = app.vault_for_writing(app.storage(&source.storage)?).await?;
    let known = imported_before(app, source, &vault).await?;
    let skipped: Vec<anyhow::Error> = found.skipped.into_iter().map(Into::into).collect();
    for error in &skipped {
        let what = plain::sentence(&format!("skipped: {error:#}"));
        app.cx.event(Event::Step { what });
    }
    let failed = found.failed.into_iter().map(Into::into).collect();
    let mut imported = Imported { made: 0, before: 0, failed, skipped };
    let mut made = Vec::new();
    for dump in &found.dumps {
        if known.contains_key(&dump.sha256) {
            imported.before += 1;
            continue;
        }
        match make(app, (source, &vault), dump, None).await {
            Ok(entry) => {
                let incomplete = match entry.status {
                    Status::Complete => "",
                    Status::Incomplete => ", incomplete",
                };
                let what = format!("{}: imported as {}{incomplete}", shown(dump), entry.id);
                app.cx.event(Event::Step { what });
                imported.made += 1;
                made.push((dump, entry));
            }
            Err(error) => {
                let error = named(dump, error);
                if app.cx.cancelled().is_some() || passing(&error).is_some() {
                    return Err(error);
                }
                app.cx.event(Event::Warning { text: plain::sentence(&format!("{error:#}")) });
                imported.failed.push(error);
            }
        }
    }
    if !made.is_empty() {
        warn_of_forgetting(app, source, &vault, &made).await;
    }
    Ok(imported)
}

/// Says what of the directory of a source could not be imported.
pub(crate) async fn trouble(
    app: &Installation,
    source: &SourceConfig,
) -> anyhow::Result<Option<String>> {
    let Some(from) = &source.import_from else { return Ok(None) };
    let shown = plain::sentence(&from.display().to_string());
    if known(app).await?.get(source.name.as_str()) != Some(from) {
        return Ok(Some(format!(
            "what is in {shown} was not imported yet: `backstay serve` does it"
        )));
    }
    let last = app.catalog.last_import(source.as_job()).await?;
    let failed = last.filter(|job| {
        matches!(job.state, JobState::Failed | JobState::Incomplete | JobState::Cancelled)
    });
    Ok(failed.and_then(|job| job.error).map(|error| {
        format!(
            "not all of {shown} was imported: {error}; `backstay import {} {shown}` does it again, or take `import_from` away",
            source.name,
        )
    }))
}
