//! `backstay recover`: a fresh installation from storage and kit alone.

use std::path::PathBuf;
use std::sync::Arc;

use backstay_control::CatalogError;
use backstay_engine::cx::Cx;
use backstay_engine::recover::recover_keys;
use backstay_engine::store::Store;
use backstay_engine::vault::Vault;
use backstay_format::Slug;

use super::catalog;
use crate::cli::{Global, RecoverArgs};
use crate::config::{Additions, Config, DEFAULT_DISK_WARN, StorageKind, parse_location};
use crate::exit::{Exit, UsageError};
use crate::installation::{Installation, Recovered};
use crate::opening::{config_path, open_home, open_home_alone};
use crate::render;

pub(super) async fn recover(global: &Global, cx: Cx, args: RecoverArgs) -> anyhow::Result<Exit> {
    let wrong = |problem: String| UsageError(format!("--storage: {problem}"));
    let mut storage =
        parse_location(&args.storage, args.endpoint.as_deref(), &args.region).map_err(wrong)?;
    if let StorageKind::S3 { ca_file, .. } = &mut storage {
        ca_file.clone_from(&args.ca_file);
    }
    let organisation: Slug =
        args.organisation.parse().map_err(|error| wrong(format!("{error}")))?;
    let kit = super::keys::open_kit(&args.kit)?;
    let (home, catalog) = match open_home(global).await {
        Err(error) if matches!(error.downcast_ref(), Some(CatalogError::Shared { .. })) => {
            render::say(&format!(
                "warning: {error}: the keys go into this home directory; take `catalog` out of the configuration before the next command"
            ));
            open_home_alone(global).await?
        }
        opened => opened?,
    };
    if let Some(present) = catalog.keyring().await?
        && present.recovery().fingerprint() != kit.recovery().fingerprint()
    {
        let text = format!(
            "the home directory {} has keys of another installation; choose an empty one with --home",
            home.path().display()
        );
        return Err(UsageError(text).into());
    }
    let config = Config {
        organisation: organisation.clone(),
        disk_warn: DEFAULT_DISK_WARN,
        storages: Default::default(),
        sources: Default::default(),
        archives: Default::default(),
        warnings: Vec::new(),
        file: None,
    };
    let additions = Additions::default();
    let app = Installation { config: Arc::new(config), additions, home, catalog, cx };
    let recovered = Recovered { organisation, storage };
    let storage = recovered.as_storage();
    let spec = app.store_spec(&storage).await?;
    let store = Store::open(&spec, spec.documented_profile())?;
    let vault = Vault::open(&app.cx, store, Arc::new(kit.clone())).await?;
    let found = recover_keys(&app.cx, &vault, kit).await?;
    app.catalog.set_keyring(&found.keyring).await?;
    app.catalog.set_setting(super::keys::KIT_EXPORTED, &true).await?;
    app.remember(&recovered).await?;
    for (key, error) in &found.unusable {
        render::say(&format!("warning: the key slot of {key} is of no use: {error}"));
    }
    render::print(&format!("{} keys are back", found.keyring.entries().len()))?;
    // Of the kit's keys alone it could not open what was sealed since.
    let vault = app.vault(&storage).await?;
    let wanted = (args.catalog.as_deref(), global.config.as_deref());
    let written = catalog::bring_back(&app, &vault, wanted).await?;
    let usual = config_path(global);
    if let Some(file) = &written
        && usual.is_none()
    {
        render::print(&format!("name it to every command: --config {}", file.display()))?;
    }
    let installation = configured(app, &recovered, written.or(usual)).await;
    super::list::backups(&installation, None, global.json).await?;
    render::print("next: `backstay verify --all`, then `backstay restore SOURCE`")?;
    Ok(Exit::Done)
}

/// Returns the installation with its configuration; while that is wrong, such as without a variable of the environment, with the
/// storage alone.
async fn configured(
    mut app: Installation,
    recovered: &Recovered,
    file: Option<PathBuf>,
) -> Installation {
    match app.reloaded(file.as_deref()).await {
        Ok(installation) => installation,
        Err(error) => {
            render::say(&format!("warning: before the next command: {error:#}"));
            let storage = recovered.as_storage();
            Arc::make_mut(&mut app.config).storages.insert(storage.name.clone(), storage);
            app
        }
    }
}
