//! `backstay forget` and `backstay prune`.

use std::collections::BTreeSet;

use backstay_engine::forget;
use serde_json::json;

use super::backup::{plan_to_forget, remove};
use super::orphans;
use crate::exit::Exit;
use crate::installation::Installation;
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
                remove(app, (&config.storage, &vault), &plan).await?;
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
        render::print_json(&shown.into())?;
    }
    Ok(Exit::Done)
}

pub(super) async fn prune(app: &Installation, dry_run: bool, json: bool) -> anyhow::Result<Exit> {
    let mut objects = Vec::new();
    for storage in app.config.storages.values() {
        let vault = match app.vault(storage).await {
            Err(error) if Exit::of(&error) == Exit::NoVault => continue,
            vault => vault?,
        };
        let mut known = BTreeSet::new();
        orphans::know_vault(app, &vault, &storage.name).await?;
        for source in vault.sources(&app.cx, &app.config.organisation).await? {
            let (listing, orphans) = orphans::list(app, &vault, &storage.name, &source).await?;
            let ids = orphans::known(&listing, &orphans).into_iter();
            known.extend(ids.map(|id| app.place(&source, id)));
        }
        let organisation = &app.config.organisation;
        let plan = forget::plan_prune(&app.cx, &vault, organisation, |place| known.contains(place))
            .await?;
        if !dry_run {
            forget::prune(&app.cx, &vault, &plan).await?;
        }
        let bytes = plan.objects.iter().map(|(_, bytes)| bytes).sum();
        let verb = if dry_run { "would be removed" } else { "removed" };
        if !json {
            render::print(&format!(
                "storage {}: {} objects that no backup names {verb}, {}; {} are too young to be touched",
                storage.name,
                plan.objects.len(),
                render::size(bytes),
                plan.too_young
            ))?;
        }
        objects.push(json!({
            "storage": storage.name,
            "objects": plan.objects.iter().map(|(name, _)| name).collect::<Vec<_>>(),
            "bytes": bytes,
            "too_young": plan.too_young,
        }));
    }
    if json {
        render::print_json(&objects.into())?;
    }
    Ok(Exit::Done)
}
