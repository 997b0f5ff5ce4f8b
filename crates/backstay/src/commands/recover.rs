//! `backstay recover`: a fresh installation from storage and kit alone.

mod settings;

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Context as _;
use backstay_control::{Catalog, CatalogError, Home};
use backstay_engine::cx::Cx;
use backstay_engine::recover::recover_keys;
use backstay_engine::store::Store;
use backstay_engine::vault::Vault;
use backstay_format::{Keyring, Slug};
use backstay_server::WhichBackups;

use crate::cli::{Global, RecoverArgs};
use crate::config::{Additions, Config, DEFAULT_DISK_WARN, StorageKind, parse_location};
use crate::exit::{Exit, UsageError};
use crate::installation::{Installation, Recovered};
use crate::opening::{config_path, open_home, open_home_alone, own_database};
use crate::render;

pub(super) async fn recover(global: &Global, cx: Cx, args: RecoverArgs) -> anyhow::Result<Exit> {
    let wrong = |problem: String| UsageError(format!("--storage: {problem}"));
    let mut storage =
        parse_location(&args.storage, args.endpoint.as_deref(), &args.region).map_err(wrong)?;
    if let StorageKind::S3 { ca_file, .. } = &mut storage {
        ca_file.clone_from(&global.ca_file);
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
    let (home, catalog) = open_for(global, &kit).await?;
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
    let (config, own) = (Arc::new(config), own_database(&catalog).await?);
    let app = Installation { config, additions, home, catalog, cx, lent: None, own };
    let mut recovered = Recovered { organisation, storage };
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
    let written = settings::bring_back(&app, &storage, (&args, global)).await;
    let written = written.context("the keys are back, and the settings are not; run it again")?;
    if !app.added().await?.storages.is_empty() {
        // What came back says itself whose it is.
        recovered.organisation = Config::default_organisation();
        app.remember(&recovered).await?;
    }
    let usual = config_path(global);
    let is_usual = |file: &PathBuf| {
        usual.as_deref().and_then(|usual| std::path::absolute(usual).ok()).as_ref() == Some(file)
    };
    if let Some(file) = written.as_ref().filter(|file| !is_usual(file)) {
        tell(json, &format!("name it to every command: --config {}", file.display()))?;
    }
    let installation = configured(app, &recovered, written.or(usual)).await;
    super::list::backups(&installation, &WhichBackups::default(), json).await?;
    tell(json, "next: `backstay verify --all`, then `backstay restore SOURCE`")?;
    Ok(Exit::Done)
}

/// Opens the home directory and its catalog, which must have no other keys than those of this kit.
async fn open_for(global: &Global, kit: &Keyring) -> anyhow::Result<(Home, Catalog)> {
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
        && present.recovery()?.fingerprint() != kit.recovery()?.fingerprint()
    {
        let text = format!(
            "the home directory {} has keys of another installation; choose an empty one with --home",
            home.path().display()
        );
        return Err(UsageError(text).into());
    }
    Ok((home, catalog))
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
