//! `backstay forget` and `backstay prune`.

use backstay_engine::forget::{self, PrunePlan};
use backstay_engine::vault::Vault;
use backstay_format::Slug;
use serde_json::json;

use super::backup::{plan_to_forget, remove};
use super::orphans;
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
    let mut shown = Vec::new();
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
        let plan = if dry_run {
            forgetting.await?
        } else {
            app.under_lease(config.name.as_str(), forgetting).await?
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
    if let Some(name) = source {
        // Says so if there is no such source.
        app.source(name).await?;
    }
    if json {
        render::print_json(&shown)?;
    }
    Ok(Exit::Done)
}

pub(super) async fn prune(app: &Installation, dry_run: bool, json: bool) -> anyhow::Result<Exit> {
    let mut shown = Vec::new();
    for storage in app.config.storages.values() {
        let Some(vault) = app.vault_if_any(storage).await? else { continue };
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
    Ok(Exit::Done)
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
