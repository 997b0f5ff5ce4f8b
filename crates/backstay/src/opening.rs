//! Opens what an installation lies in: the configuration that is meant, the home directory, the catalog.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use backstay_control::{Catalog, Home, MasterKey};
use backstay_engine::source::postgres::OwnDatabase;
use secrecy::{ExposeSecret as _, SecretString};

use crate::cli::Global;
use crate::config::{Additions, Config, Environment, StorageConfig};
use crate::installation::{ADDITIONS, RECOVERED, Recovered};

/// Reads the configuration, with what commands and `recover` added to it.
pub(crate) async fn configured(
    file: Option<&Path>,
    catalog: &Catalog,
    additions: &Additions,
) -> anyhow::Result<Config> {
    let (mut opened, mut warnings) = (additions.clone(), Vec::new());
    opened.fill_in(passwords(catalog, additions, &mut warnings).await?);
    let mut config = Config::load(file, &opened, &environment())?;
    config.warnings.extend(warnings);
    if let Some(recovered) = catalog.setting::<Recovered>(RECOVERED).await? {
        if file.is_none() {
            config.give_to(&recovered.organisation);
        }
        let is_same = |storage: &StorageConfig| storage.kind.is_same_place(&recovered.storage);
        if !config.storages.values().any(is_same) {
            config.storages.entry(RECOVERED.to_owned()).or_insert(recovered.as_storage());
        }
    }
    Ok(config)
}

/// Opens the passwords of the sources that were added.
async fn passwords(
    catalog: &Catalog,
    additions: &Additions,
    warnings: &mut Vec<String>,
) -> anyhow::Result<BTreeMap<String, SecretString>> {
    let mut passwords = BTreeMap::new();
    for (source, name) in &additions.passwords {
        let secret = catalog.secret(name).await?;
        let password = secret.and_then(|secret| String::from_utf8(secret.to_vec()).ok());
        match password {
            Some(password) => drop(passwords.insert(source.clone(), password.into())),
            // The next backup fails, and nothing else.
            None => warnings.push(format!(
                "the password of source {source} is gone from the catalog; set it with `backstay source credentials {source}`"
            )),
        }
    }
    Ok(passwords)
}

pub(crate) fn shared_catalog(global: &Global) -> anyhow::Result<Option<SecretString>> {
    Ok(Config::shared_catalog(config_path(global).as_deref(), &environment())?)
}

/// Reads what commands added, without making a home where there is none.
pub(crate) async fn read_additions(global: &Global) -> anyhow::Result<Additions> {
    if !is_home_there(global)? {
        return Ok(Additions::default());
    }
    let (_, catalog) = open_home(global).await?;
    additions_in(&catalog).await
}

pub(crate) async fn additions_in(catalog: &Catalog) -> anyhow::Result<Additions> {
    Ok(catalog.setting(ADDITIONS).await?.unwrap_or_default())
}

/// Says whether somebody has made the home directory yet.
pub(crate) fn is_home_there(global: &Global) -> anyhow::Result<bool> {
    let home = home_path(global)?;
    // A shared catalog is not here, but the key to it is.
    Ok(home.join("catalog.db").exists() || home.join("master.key").exists())
}

/// Opens the home directory and its catalog, without a configuration.
pub(crate) async fn open_home(global: &Global) -> anyhow::Result<(Home, Catalog)> {
    open_catalog(global, shared_catalog(global)?).await
}

/// Opens the home directory and the catalog in it, whatever the configuration says: to recover where a shared one is lost.
pub(crate) async fn open_home_alone(global: &Global) -> anyhow::Result<(Home, Catalog)> {
    open_catalog(global, None).await
}

pub(crate) async fn open_catalog(
    global: &Global,
    shared: Option<SecretString>,
) -> anyhow::Result<(Home, Catalog)> {
    let home = Home::open(&home_path(global)?)?;
    let given = std::env::var("BACKSTAY_MASTER_KEY").ok().map(SecretString::from);
    let given = given.filter(|key| !key.expose_secret().is_empty());
    let credentials = std::env::var_os("CREDENTIALS_DIRECTORY").map(PathBuf::from);
    let master_key = MasterKey::load(&home, given.as_ref(), credentials.as_deref())?;
    let catalog = match shared {
        Some(url) => Catalog::open_shared(&url, master_key).await?,
        None => Catalog::open(&home, master_key).await?,
    };
    Ok((home, catalog))
}

/// Returns the database that a shared catalog is in, as far as its server tells.
pub(crate) async fn own_database(catalog: &Catalog) -> anyhow::Result<Option<OwnDatabase>> {
    let own = catalog.own_database().await?;
    Ok(own.map(|(system, database)| OwnDatabase { system, database }))
}

/// Returns the variables of the environment that can be read.
pub(crate) fn environment() -> Environment {
    let readable = std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)));
    readable.collect()
}

/// Returns the configuration that is meant, if any is there.
pub(crate) fn config_path(global: &Global) -> Option<PathBuf> {
    let usual = ["backstay.toml", "/etc/backstay/backstay.toml"].map(PathBuf::from);
    let named = global.config.clone().filter(|path| !path.as_os_str().is_empty());
    named.or_else(|| usual.into_iter().find(|path| path.exists()))
}

fn home_path(global: &Global) -> anyhow::Result<PathBuf> {
    if let Some(home) = global.home.as_ref().filter(|home| !home.as_os_str().is_empty()) {
        return Ok(std::path::absolute(home)?);
    }
    if rustix::process::geteuid().is_root() {
        return Ok(PathBuf::from("/var/lib/backstay"));
    }
    let home =
        std::env::var_os("HOME").context("HOME is not set; name a home directory with --home")?;
    Ok(PathBuf::from(home).join(".local/share/backstay"))
}
