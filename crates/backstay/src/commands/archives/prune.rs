//! `backstay archives prune`, and what a killed run left.

use async_trait::async_trait;
use backstay_control::Catalog;
use backstay_engine::archive::{self, SegmentLog};
use backstay_engine::vault::{BackupPlace, Vault};
use serde_json::json;

use super::lease_name;
use crate::config::ArchiveConfig;
use crate::exit::Exit;
use crate::installation::Installation;
use crate::render;

/// Remembers in the catalog which segment is under way.
pub(super) struct SegmentUnderWay<'a> {
    catalog: &'a Catalog,
    setting: String,
}

#[async_trait]
impl SegmentLog for SegmentUnderWay<'_> {
    async fn begun(
        &self,
        place: &BackupPlace,
    ) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        Ok(self.catalog.set_setting(&self.setting, &place.backup).await?)
    }
}

impl<'a> SegmentUnderWay<'a> {
    pub(super) fn new(app: &'a Installation, archive: &ArchiveConfig) -> Self {
        Self {
            catalog: &app.catalog,
            setting: format!("segment under way of archive {}", archive.name),
        }
    }

    /// Removes what a killed run of this installation left: whoever reads the files as they lie would count its rows twice.
    pub(super) async fn sweep(
        &self,
        app: &Installation,
        archive: &ArchiveConfig,
        vault: &Vault,
    ) -> anyhow::Result<()> {
        if let Some(backup) = self.catalog.setting(&self.setting).await? {
            let place = BackupPlace {
                organisation: archive.organisation.clone(),
                source: archive.name.clone(),
                backup,
            };
            vault.remove_unfinished(&app.cx, &place).await?;
        }
        Ok(())
    }
}

pub(super) async fn prune(
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
                SegmentUnderWay::new(app, archive).sweep(app, archive, &vault).await?;
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
        render::print_json(&values)?;
    }
    Ok(Exit::Done)
}
