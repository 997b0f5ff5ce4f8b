//! `backstay doctor`: what is wrong, and what to do about it.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use backstay_control::SwapState;
use backstay_format::KeyId;
use jiff::SignedDuration;
use serde_json::json;

use super::elsewhere::nobody_takes;
use super::room::free_bytes;
use crate::config::{SourceConfig, SourceKind, StorageConfig, StorageKind};
use crate::exit::Exit;
use crate::installation::Installation;
use crate::render;

/// S3 storages refuse requests from clocks that are off by 15 minutes; a third of that deserves a hand.
const TOLERABLE_SKEW: SignedDuration = SignedDuration::from_mins(5);

/// What is kept for longer waits for a person.
const A_LIFE: SignedDuration = SignedDuration::from_hours(100 * 365 * 24);

/// One thing that was looked at: fine, or not.
struct Finding {
    what: String,
    result: Result<String, String>,
}

pub(super) async fn doctor(app: &Installation, json: bool) -> anyhow::Result<Exit> {
    let mut findings = vec![home(app), keys(app).await?];
    findings.push(room(app, "room for snapshots", app.home.path()));
    // Trees and SQLite are read by this program itself.
    let needs_tools = |source: &SourceConfig| {
        matches!(source.kind, SourceKind::Postgres(_) | SourceKind::Mysql(_))
    };
    let tools = if app.config.sources.values().any(needs_tools) {
        "those of database servers are looked for with each of their sources"
    } else {
        "none are needed for these sources"
    };
    findings.push(finding("tools", Ok(tools.to_owned())));
    for storage in app.config.storages.values() {
        storage_findings(app, storage, &mut findings).await;
    }
    for source in app.config.sources.values() {
        findings.push(source_finding(app, source).await);
    }
    for text in super::archives::backups_off(app).await? {
        findings.push(finding("archives", Err(text)));
    }
    if app.config.scheduled() > 0 {
        let nobody = super::serve::nobody_serves(app).await?;
        findings.push(finding("schedules", nobody.map_or(Ok("a server runs".to_owned()), Err)));
    }
    for swap in app.catalog.swaps(None).await? {
        let (what, until) = (format!("restore of {}", swap.source), swap.undo_until);
        let result = match swap.state {
            SwapState::Begun | SwapState::Undoing => {
                Err(format!("was interrupted; `backstay confirm {}` finishes it", swap.source))
            }
            SwapState::Swapped | SwapState::Undone => {
                let for_good = until.duration_since(app.cx.now()) > A_LIFE;
                let by_itself =
                    if for_good { String::new() } else { format!(", until {until:.0}") };
                Ok(format!("waits to be confirmed{by_itself}"))
            }
        };
        findings.push(finding(what, result));
    }
    show(app, &findings, json)?;
    let healthy = findings.iter().all(|finding| finding.result.is_ok());
    Ok(if healthy { Exit::Done } else { Exit::Failed })
}

fn show(app: &Installation, findings: &[Finding], json: bool) -> anyhow::Result<()> {
    if json {
        let findings = findings.iter().map(|finding| {
            let text = finding.result.as_ref().unwrap_or_else(|text| text);
            json!({"what": finding.what, "good": finding.result.is_ok(), "text": text})
        });
        let findings: Vec<_> = findings.collect();
        return render::print_json(&json!({"findings": findings, "warnings": app.config.warnings}));
    }
    for Finding { what, result } in findings {
        render::print(&match result {
            Ok(text) => format!("ok    {what}: {text}"),
            Err(text) => format!("FAIL  {what}: {text}"),
        })?;
    }
    for warning in &app.config.warnings {
        render::print(&format!("warn  {warning}"))?;
    }
    Ok(())
}

fn finding(what: impl Into<String>, result: Result<String, String>) -> Finding {
    Finding { what: what.into(), result }
}

/// The home directory holds every key: others have no business there.
fn home(app: &Installation) -> Finding {
    let path = app.home.path();
    let open_to_others = path.metadata().is_ok_and(|meta| meta.permissions().mode() & 0o077 != 0);
    let shown = path.display();
    let result = if open_to_others {
        Err(format!("{shown} is open to others: chmod 700 {shown}"))
    } else {
        Ok(shown.to_string())
    };
    finding("home", result)
}

async fn keys(app: &Installation) -> anyhow::Result<Finding> {
    let keyring = app.keyring().await?;
    let kit: Option<bool> = app.catalog.setting(super::keys::KIT_EXPORTED).await?;
    let result = match (keyring.newest(), kit) {
        (Err(_), _) => Ok("none yet; the first backup makes one".to_owned()),
        (Ok(newest), Some(true)) => Ok(format!("{} seals; a recovery kit was made", newest.id)),
        (Ok(_), _) => {
            Err("no recovery kit was made: `backstay keys kit --output kit.txt`".to_owned())
        }
    };
    Ok(finding("keys", result))
}

async fn storage_findings(
    app: &Installation,
    storage: &StorageConfig,
    findings: &mut Vec<Finding>,
) {
    let what = format!("storage {}", storage.name);
    match app.test_storage(storage).await {
        Err(error) => findings.push(finding(what, Err(format!("{error:#}")))),
        Ok(report) => {
            let text = format!("{} things tried, all good", report.findings.len());
            findings.push(finding(what, Ok(text)));
            if let Some(skew) = report.clock_skew {
                findings.push(clock(&storage.name, skew));
            }
        }
    }
    if let Some(finding) = foreign_keys(app, storage).await {
        findings.push(finding);
    }
    if let StorageKind::Local { path, .. } = &storage.kind {
        findings.push(room(app, &format!("room on storage {}", storage.name), path));
    }
}

/// Whether backups in the vault are sealed with keys that nobody knows here; nothing where that cannot be seen.
async fn foreign_keys(app: &Installation, storage: &StorageConfig) -> Option<Finding> {
    let vault = app.vault_if_any(storage).await.ok()??;
    let foreign = vault.slots_found(&app.cx).await.ok()?.foreign;
    let keys: Vec<&str> = foreign.iter().map(KeyId::as_str).collect();
    let result = if keys.is_empty() {
        Ok("all are known here".to_owned())
    } else {
        Err(format!(
            "{} are another installation's: its backups cannot be read here; take them in (`backstay keys import`), or give one of \
             the two a prefix of its own",
            keys.join(", ")
        ))
    };
    Some(finding(format!("keys on storage {}", storage.name), result))
}

fn clock(storage: &str, skew: SignedDuration) -> Finding {
    let secs = skew.as_secs();
    let result = if skew.abs() > TOLERABLE_SKEW {
        Err(format!(
            "the storage's is {secs} s ahead; correct one of them (timedatectl set-ntp true)"
        ))
    } else {
        Ok(format!("{secs} s from the storage's"))
    };
    finding(format!("clock beside storage {storage}"), result)
}

async fn source_finding(app: &Installation, source: &SourceConfig) -> Finding {
    let what = format!("source {}", source.name);
    if let Some(remote) = source.remote() {
        // What it finds is asked by `source test`, which waits for it.
        let there = match nobody_takes(app, source, None).await {
            Ok(None) => Ok(format!("{} is there", remote.worker)),
            Ok(Some(nobody)) => Err(nobody),
            Err(error) => Err(format!("{error:#}")),
        };
        return finding(what, there);
    }
    let probed = async { anyhow::Ok(app.engine_source(source)?.probe(&app.cx).await?) };
    let probed = match probed.await {
        Ok(probed) => probed,
        Err(error) => return finding(what, Err(format!("{error:#}"))),
    };
    let size = render::size(probed.size_bytes);
    // A database is copied before it is read, so that its app is held up for moments only.
    let is_copied = matches!(
        source.kind,
        SourceKind::Sqlite { .. } | SourceKind::Duckdb { .. } | SourceKind::Set(_)
    );
    let needed = if is_copied { probed.size_bytes } else { 0 };
    let result = match free_bytes(app.home.path()) {
        Some(free) if free < needed => Err(format!(
            "about {size}, and a snapshot of it does not fit into {} ({} free)",
            app.home.path().display(),
            render::size(free)
        )),
        _ => Ok(format!("about {size}")),
    };
    finding(what, result)
}

fn room(app: &Installation, what: &str, path: &Path) -> Finding {
    let shown = path.display();
    let result = match free_bytes(path) {
        None => Err(format!("{shown} cannot be looked at")),
        Some(free) if free < app.config.disk_warn => {
            Err(format!("{shown} has only {} left", render::size(free)))
        }
        Some(free) => Ok(format!("{shown} has {} left", render::size(free))),
    };
    finding(what, result)
}
