//! `backstay forget` and `backstay prune`.

use backstay_engine::forget::{self, PrunePlan};
use backstay_engine::vault::Vault;
use backstay_format::Slug;
use serde_json::json;

use super::backup::{plan_to_forget, remove};
use super::orphans;
use crate::config::StorageConfig;
use crate::exit::Exit;
use crate::installation::Installation;
use crate::lease::is_held;
use crate::render;

pub(super) async fn forget(
    app: &Installation,
    source: Option<&str>,
    dry_run: bool,
    json: bool,
) -> anyhow::Result<Exit> {
    if let Some(name) = source {
        // Says so if there is no such source.
        app.source(name).await?;
    }
    let (mut shown, mut exit) = (Vec::new(), Exit::Done);
    for config in app
        .config
        .sources
        .values()
        .filter(|config| source.is_none_or(|name| name == config.name.as_str()))
    {
        let forgetting = Box::pin(async {
            let vault = app.vault(app.storage(&config.storage)?).await?;
            let plan = plan_to_forget(app, config, &vault).await?;
            if !dry_run {
                remove(app, &vault, &plan).await?;
            }
            anyhow::Ok(plan)
        });
        let planned = if dry_run {
            forgetting.await
        } else {
            app.under_lease(config.name.as_str(), forgetting).await
        };
        // One storage that does not answer keeps no old backups on another.
        let plan = match planned {
            Ok(plan) => plan,
            Err(error) if source.is_some() => return Err(error),
            Err(error) => {
                exit = exit.and(passed_over(app, &format!("source {}", config.name), &error)?);
                continue;
            }
        };
        for verdict in plan.verdicts {
            let done = match (verdict.keep, dry_run) {
                (true, _) => "keep",
                (false, true) => "would forget",
                (false, false) => "forgotten",
            };
            if !json {
                render::print(&format!(
                    "{} {} {done}: {}",
                    config.name,
                    verdict.id,
                    verdict.reasons.join(", ")
                ))?;
            }
            shown.push(json!({"source": config.name, "id": verdict.id, "keep": verdict.keep, "reasons": verdict.reasons}));
        }
    }
    if json {
        render::print_json(&shown)?;
    }
    Ok(exit)
}

/// Tells why one of many was passed over, and how the command ends for it.
fn passed_over(app: &Installation, what: &str, error: &anyhow::Error) -> anyhow::Result<Exit> {
    app.cx.check()?;
    render::say(&format!("error: {what} was passed over: {error:#}"));
    Ok(Exit::of(error))
}

pub(super) async fn prune(app: &Installation, dry_run: bool, json: bool) -> anyhow::Result<Exit> {
    let (mut shown, mut exit) = (Vec::new(), Exit::Done);
    for storage in app.config.storages.values() {
        let all = match prune_storage(app, storage, dry_run).await {
            Ok(Some(all)) => all,
            Ok(None) => continue,
            Err(error) => {
                exit = exit.and(passed_over(app, &format!("storage {}", storage.name), &error)?);
                continue;
            }
        };
        let bytes = all.objects.iter().map(|(_, bytes)| bytes).sum();
        let verb = if dry_run { "would be removed" } else { "removed" };
        if !json {
            render::print(&format!(
                "storage {}: {} objects that no backup names {verb}, {}; {} are too young to be touched",
                storage.name,
                all.objects.len(),
                render::size(bytes),
                all.too_young
            ))?;
        }
        shown.push(json!({
            "storage": storage.name,
            "objects": all.objects.iter().map(|(name, _)| name).collect::<Vec<_>>(),
            "bytes": bytes,
            "too_young": all.too_young,
        }));
    }
    if json {
        render::print_json(&shown)?;
    }
    Ok(exit)
}

async fn prune_storage(
    app: &Installation,
    storage: &StorageConfig,
    dry_run: bool,
) -> anyhow::Result<Option<PrunePlan>> {
    let Some(vault) = app.vault_if_any(storage).await? else { return Ok(None) };
    let mut all = PrunePlan::default();
    let organisation = &storage.organisation;
    for source in vault.sources(&app.cx, organisation).await? {
        let pruning = Box::pin(prune_source(app, &vault, (organisation, &source), dry_run));
        // What is written just now looks like a leftover.
        let plan = match dry_run {
            true => pruning.await,
            false => app.under_lease(source.as_str(), pruning).await,
        };
        match plan {
            Ok(plan) => {
                all.objects.extend(plan.objects);
                all.too_young += plan.too_young;
            }
            Err(error) if is_held(&error) => {
                render::say(&format!("warning: passed over: {error:#}"));
            }
            Err(error) => return Err(error),
        }
    }
    Ok(Some(all))
}

async fn prune_source(
    app: &Installation,
    vault: &Vault,
    place: (&Slug, &Slug),
    dry_run: bool,
) -> anyhow::Result<PrunePlan> {
    let (listing, orphans) = orphans::list(app, vault, place).await?;
    let known = orphans::known(&listing, &orphans);
    let plan = forget::plan_prune(&app.cx, vault, place, &known).await?;
    if !dry_run {
        forget::prune(&app.cx, vault, &plan).await?;
    }
    Ok(plan)
}
