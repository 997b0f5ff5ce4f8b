//! `backstay keys`.

use std::io::{IsTerminal as _, Write as _};
use std::path::Path;

use anyhow::Context as _;
use backstay_format::{DataKey, Keyring, Kit, KitCost, KitVault};
use rand::RngCore as _;
use secrecy::{ExposeSecret as _, SecretString};
use serde_json::json;

use crate::cli::KeysCommand;
use crate::config::StorageKind;
use crate::exit::{Exit, UsageError};
use crate::installation::{Installation, random};
use crate::render;

/// The catalog's setting that says that a kit was written once.
pub(super) const KIT_EXPORTED: &str = "recovery kit exported";
/// Shorter passphrases do not deserve the name.
const MIN_PASSPHRASE_CHARS: usize = 12;

pub(super) async fn keys(
    app: &Installation,
    command: KeysCommand,
    json: bool,
) -> anyhow::Result<Exit> {
    match command {
        KeysCommand::List => list(app, json).await,
        KeysCommand::Rotate => rotate(app).await,
        KeysCommand::Kit { output } => {
            write_kit(app, &output).await?;
            app.catalog.set_setting(KIT_EXPORTED, &true).await?;
            render::print(&format!(
                "{} written; print it, keep it away from this machine, and its passphrase away from it. It also opens what \
                 later keys seal",
                output.display()
            ))?;
            Ok(Exit::Done)
        }
        KeysCommand::Export { output } => {
            write_kit(app, &output).await?;
            render::print(&format!(
                "{} written; take it in with `backstay keys import`",
                output.display()
            ))?;
            Ok(Exit::Done)
        }
        KeysCommand::Import { file } => import(app, &file).await,
    }
}

async fn list(app: &Installation, json: bool) -> anyhow::Result<Exit> {
    let keyring = app.keyring().await?;
    let newest = keyring.newest().map(|newest| newest.id.clone()).ok();
    if json {
        let keys = keyring.entries().iter().rev().map(|entry| {
            json!({"id": entry.id, "created_at": entry.created_at, "seals": Some(&entry.id) == newest.as_ref()})
        });
        render::print_json(&keys.collect::<Vec<_>>())?;
    } else if newest.is_none() {
        render::print("there are no keys yet; the first backup makes one")?;
    } else {
        let row = |entry: &backstay_format::KeyringEntry| {
            let use_of =
                if Some(&entry.id) == newest.as_ref() { "seals and opens" } else { "opens" };
            vec![
                entry.id.to_string(),
                entry.created_at.strftime("%Y-%m-%d %H:%M").to_string(),
                use_of.to_owned(),
            ]
        };
        let rows = keyring.entries().iter().rev().map(row).collect();
        render::print(&render::table(&["KEY", "MADE (UTC)", "USE"], rows))?;
    }
    Ok(Exit::Done)
}

async fn rotate(app: &Installation) -> anyhow::Result<Exit> {
    let mut keyring = app.keyring().await?;
    let key = DataKey::new(random());
    let id = key.id();
    keyring.add(key, app.cx.now());
    app.catalog.set_keyring(&keyring).await?;
    render::print(&format!("{id} seals from now on; older keys go on opening older backups"))?;
    Ok(Exit::Done)
}

async fn import(app: &Installation, file: &Path) -> anyhow::Result<Exit> {
    let theirs = open_kit(file)?;
    let ours = app.catalog.keyring().await?;
    let mut added = 0;
    let mut merged = match ours {
        Some(ours) => ours,
        None => Keyring::new(theirs.recovery()?.clone()),
    };
    for entry in theirs.entries() {
        added += u32::from(merged.add(entry.key.clone(), entry.created_at));
    }
    app.catalog.set_keyring(&merged).await?;
    render::print(&format!("{added} keys taken in"))?;
    Ok(Exit::Done)
}

async fn write_kit(app: &Installation, output: &Path) -> anyhow::Result<()> {
    let keyring = app
        .catalog
        .keyring()
        .await?
        .context("there are no keys yet; the first backup makes one")?;
    let vaults: Vec<KitVault> = app
        .config
        .storages
        .values()
        .map(|storage| kit_vault(&storage.name, &storage.kind))
        .collect();
    let passphrase = passphrase(true)?;
    let mut random = |bytes: &mut [u8]| rand::rng().fill_bytes(bytes);
    let kit = Kit::seal(&keyring, passphrase.expose_secret(), KitCost::STANDARD, &mut random)?;
    let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
    let mut file = super::files::create_new(output)?;
    file.write_all(kit.to_text(app.cx.now(), &host, &vaults).as_bytes())?;
    file.sync_all()?;
    Ok(())
}

fn kit_vault(name: &str, kind: &StorageKind) -> KitVault {
    let (location, settings) = match kind {
        StorageKind::Local { path, prefix } => {
            (path.join(prefix).display().to_string(), Vec::new())
        }
        StorageKind::S3 { bucket, prefix, endpoint, region, .. } => {
            let mut settings = vec![("region".to_owned(), region.clone())];
            settings.extend(endpoint.clone().map(|endpoint| ("endpoint".to_owned(), endpoint)));
            (format!("s3://{bucket}/{prefix}"), settings)
        }
    };
    KitVault { name: name.to_owned(), location, settings }
}

/// Reads a kit and opens it with its passphrase.
pub(super) fn open_kit(file: &Path) -> anyhow::Result<Keyring> {
    let text =
        std::fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
    let kit = Kit::parse(&text)?;
    let passphrase = passphrase(false)?;
    Ok(kit.open(passphrase.expose_secret())?)
}

fn passphrase(new: bool) -> anyhow::Result<SecretString> {
    let given = std::env::var("BACKSTAY_KIT_PASSPHRASE").ok().filter(|given| !given.is_empty());
    let passphrase = match given {
        Some(given) => SecretString::from(given),
        None if !std::io::stdin().is_terminal() => {
            let text = "the kit's passphrase is needed: set BACKSTAY_KIT_PASSPHRASE, or run this on a terminal";
            return Err(UsageError(text.to_owned()).into());
        }
        None => {
            let mut prompt =
                dialoguer::Password::new().with_prompt("Passphrase of the recovery kit");
            if new {
                prompt = prompt.with_confirmation("Once more", "They differ");
            }
            SecretString::from(prompt.interact()?)
        }
    };
    if new && passphrase.expose_secret().trim().chars().count() < MIN_PASSPHRASE_CHARS {
        let text = format!(
            "the passphrase is too short: expected {MIN_PASSPHRASE_CHARS} characters or more"
        );
        return Err(UsageError(text).into());
    }
    Ok(passphrase)
}
