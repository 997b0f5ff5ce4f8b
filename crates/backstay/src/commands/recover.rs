//! `backstay recover`: a fresh installation from storage and kit alone.

mod settings;

use std::path::PathBuf;
use std::sync::Arc;

use backstay_control::CatalogError;
use backstay_engine::cx::Cx;
use backstay_engine::recover::recover_keys;
use backstay_engine::store::Store;
use backstay_engine::vault::Vault;
use backstay_format::Slug;

use crate::cli::{Global, RecoverArgs};
use crate::config::{
    Additions, Config, DEFAULT_DISK_WARN, StorageConfig, StorageKind, parse_location,
};
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
    let organisation: Slug = args
        .organisation
        .parse()
        .map_err(|error| UsageError(format!("--organisation: {error}")))?;
    if !organisation.is_free_for_organisations() {
        return Err(UsageError(format!(
            "--organisation: no organisation is called {organisation}"
        ))
        .into());
    }
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
    let json = global.json;
    tell(json, &format!("{} keys are back", found.keyring.entries().len()))?;
    let brought = bring_settings_back(&app, &storage, &args, global).await;
    let written = settings::keys_are_back(brought)?;
    let usual = config_path(global);
    let is_usual = |file: &PathBuf| {
        usual
            .as_ref()
            .is_some_and(|usual| std::path::absolute(usual).is_ok_and(|usual| usual == *file))
    };
    if let Some(file) = written.as_ref().filter(|file| !is_usual(file)) {
        tell(json, &format!("name it to every command: --config {}", file.display()))?;
    }
    let installation = configured(app, &recovered, written.or(usual)).await;
    super::list::backups(&installation, None, json).await?;
    tell(json, "next: `backstay verify --all`, then `backstay restore SOURCE`")?;
    Ok(Exit::Done)
}

/// Brings back what lies in the vault of a catalog. Returns the configuration file, if that is in its place.
async fn bring_settings_back(
    app: &Installation,
    storage: &StorageConfig,
    args: &RecoverArgs,
    global: &Global,
) -> anyhow::Result<Option<PathBuf>> {
    // Of the kit's keys alone it could not open what was sealed since.
    let vault = app.vault(storage).await?;
    let wanted = (args.catalog.as_deref(), global.json);
    let Some(imported) = settings::import(app, &vault, wanted).await? else { return Ok(None) };
    let given = (global.config.as_deref(), global.json);
    let written = settings::write_configuration(app, &imported, given).await?;
    let file = written.clone().or_else(|| config_path(global));
    settings::check_additions(app, file.as_deref()).await?;
    Ok(written)
}

/// Tells a person how it goes; in JSON there is one document on standard output.
fn tell(json: bool, what: &str) -> anyhow::Result<()> {
    if json {
        render::say(what);
        return Ok(());
    }
    render::print(what)
}

/// Returns the installation with its configuration, as far as that is right here, and of its storages the one that was named:
/// others may be out of reach, and that is for later.
async fn configured(
    mut app: Installation,
    recovered: &Recovered,
    file: Option<PathBuf>,
) -> Installation {
    match app.reloaded(file.as_deref()).await {
        Ok(installation) => app = installation,
        Err(error) => render::say(&format!("warning: before the next command: {error:#}")),
    }
    let config = Arc::make_mut(&mut app.config);
    config.storages.retain(|_, storage| storage.kind.is_same_place(&recovered.storage));
    if config.storages.is_empty() {
        let storage = recovered.as_storage();
        config.storages.insert(storage.name.clone(), storage);
    }
    app
}
