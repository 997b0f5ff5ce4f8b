//! Reading backups as files: verify, check, download, decrypt.

use std::collections::BTreeSet;
use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use backstay_engine::cx::Cx;
use backstay_engine::error::EngineError;
use backstay_engine::event::Event;
use backstay_engine::part::PartReader;
use backstay_engine::pipeline::Measuring;
use backstay_engine::vault::{BackupPlace, Vault};
use backstay_engine::verify;
use backstay_format::{
    Encryption, FrameError, Keyring, Manifest, MediaType, OpenReader, Sha256, StoredPart,
};
use backstay_server::Incoming;
use serde_json::json;

use super::{catalog, find_backup, list, orphans};
use crate::cli::Global;
use crate::config::StorageConfig;
use crate::exit::{Exit, UsageError};
use crate::installation::Installation;
use crate::opening::open_home;
use crate::render;

pub(super) async fn verify(
    app: &Installation,
    what: Option<&str>,
    all: bool,
    json: bool,
) -> anyhow::Result<Exit> {
    let list::All { listed, errors, mut exit } = match what {
        None if !all => {
            return Err(UsageError("name a source or a backup, or give --all".to_owned()).into());
        }
        None => list::all(app, None).await?,
        Some(name) if app.config.sources.contains_key(name) => {
            let mut all = list::all(app, Some(name)).await?;
            all.listed.truncate(1);
            anyhow::ensure!(
                !all.listed.is_empty() || all.exit != Exit::Done,
                "source {name} has no backup yet"
            );
            all
        }
        Some(id) => {
            let (entry, storage) = find_backup(app, id).await?;
            let storage = storage.name.clone();
            let one = list::Listed { entry, storage, location: String::new(), is_orphaned: false };
            list::All { listed: vec![one], errors: Vec::new(), exit: Exit::Done }
        }
    };
    for error in errors {
        render::say(&format!("error: {error}"));
    }
    let mut results = Vec::new();
    for one in &listed {
        let storage = app.storage(&one.storage)?;
        let vault = app.vault(storage).await?;
        let place = storage.place(&one.entry.source, one.entry.id.clone());
        let verified = verify::verify(&app.cx, &vault, &place).await;
        let error = verified.map_err(anyhow::Error::new).err();
        if let Some(error) = &error {
            exit = exit.and(Exit::of(error));
            if exit == Exit::Interrupted {
                break;
            }
        }
        let text = error.as_ref().map(|error| format!("{error:#}"));
        results.push(json!({"id": one.entry.id, "source": one.entry.source, "good": error.is_none(), "error": text}));
        if !json {
            match text {
                None => render::print(&format!(
                    "{} {}: every byte is good",
                    one.entry.source, one.entry.id
                ))?,
                Some(text) => render::print(&format!(
                    "{} {}: NOT GOOD: {text}",
                    one.entry.source, one.entry.id
                ))?,
            }
        }
    }
    if all && exit != Exit::Interrupted {
        for storage in app.config.storages.values() {
            // One that does not answer was told above.
            let Ok(Some(vault)) = app.vault_if_any(storage).await else { continue };
            for (told, error) in catalog::verify_all(app, &vault).await? {
                if let Some(error) = error {
                    exit = exit.and(Exit::of(&error));
                    render::say(&format!(
                        "error: backup {} of the catalog is NOT GOOD: {error:#}",
                        told["id"]
                    ));
                }
                results.push(told);
            }
        }
    }
    if json {
        render::print_json(&results)?;
    }
    Ok(exit)
}

/// Looks at manifests, key slots, objects and their sizes; reads no part.
pub(super) async fn check(app: &Installation, json: bool) -> anyhow::Result<Exit> {
    let mut problems = Vec::new();
    let mut exit = Exit::Done;
    let mut note = |error: anyhow::Error| {
        exit = exit.and(Exit::of(&error));
        problems.push(format!("{error:#}"));
    };
    for storage in app.config.storages.values() {
        if let Err(error) = check_storage(app, storage, &mut note).await {
            app.cx.check()?;
            note(error.context(format!("storage {}", storage.name)));
        }
    }
    if json {
        render::print_json(&json!({"good": problems.is_empty(), "problems": problems}))?;
    } else if problems.is_empty() {
        render::print(
            "the structure of all vaults is good; `backstay verify --all` reads every byte",
        )?;
    } else {
        render::print(&problems.join("\n"))?;
    }
    Ok(exit)
}

async fn check_storage(
    app: &Installation,
    storage: &StorageConfig,
    note: &mut impl FnMut(anyhow::Error),
) -> anyhow::Result<()> {
    let Some(vault) = app.vault_if_any(storage).await? else { return Ok(()) };
    let organisation = &storage.organisation;
    for source in orphans::sources(app, &vault, organisation).await? {
        let listing = vault.rebuild_index(&app.cx, organisation, &source).await?;
        for unusable in listing.unusable {
            note(unusable.error.into());
        }
        let named = (vault.id().as_str(), source.as_str());
        let (mut damaged, mut whole) = (BTreeSet::new(), Vec::new());
        for entry in listing.backups {
            let place = storage.place(&source, entry.id.clone());
            let Err(error) = check_backup(app, &vault, &place).await else {
                whole.push(entry.id);
                continue;
            };
            if app.catalog.not_removed(named, vec![entry]).await?.is_empty() {
                // Meanwhile.
                continue;
            }
            if let Some(EngineError::DamagedPart { .. }) = error.downcast_ref() {
                damaged.insert(place.backup);
            }
            note(error);
        }
        app.catalog.mark_damaged(named, (&damaged, &whole), app.cx.now()).await?;
        for lost in orphans::list(app, &vault, (organisation, &source)).await?.1.lost {
            note(anyhow::anyhow!("backup {} of {source} is gone from the storage", lost.id));
        }
    }
    Ok(())
}

async fn check_backup(
    app: &Installation,
    vault: &Vault,
    place: &BackupPlace,
) -> anyhow::Result<()> {
    let manifest = vault.manifest(&app.cx, place).await?;
    vault.check_objects(&app.cx, &manifest).await?;
    if let Encryption::Sealed { key } = &manifest.encryption {
        let slot = vault.key_slot(&app.cx, key).await?;
        slot.open(vault.keyring().recovery()?)?;
    }
    Ok(())
}

pub(super) async fn download(
    app: &Installation,
    id: &str,
    part: Option<&str>,
    output: &Path,
    sealed: bool,
) -> anyhow::Result<Exit> {
    let (entry, storage) = find_backup(app, id).await?;
    let vault = app.vault(storage).await?;
    download_part(app, &vault, storage.place(&entry.source, entry.id), part, output, sealed).await
}

/// Writes a part to a file that must not exist; what could not be proven is removed again.
pub(super) async fn download_part(
    app: &Installation,
    vault: &Vault,
    place: BackupPlace,
    part: Option<&str>,
    output: &Path,
    sealed: bool,
) -> anyhow::Result<Exit> {
    let OpenPart { data, measuring, .. } = open_part(app, vault, &place, (part, sealed)).await?;
    let mut file = create_new(output)?;
    let mut written = write_out(data, &mut file).await;
    if let Some(measuring) = measuring {
        // The decoder knows best what is wrong with the bytes.
        let decoded = backstay_engine::pipeline::join("decoder", measuring).await;
        written = decoded.map_err(anyhow::Error::from).and(written);
    }
    finish(output, &file, written)?;
    render::print(&format!("{} written", output.display()))?;
    Ok(Exit::Done)
}

/// A part that is about to be read.
pub(super) struct OpenPart {
    pub(super) data: PartReader,
    /// Ends with what is wrong with it; none of one that is read as it lies on the storage, which is not looked into.
    measuring: Option<Measuring>,
    pub(super) bytes: u64,
    pub(super) sha256: Sha256,
}

/// Opens a part, or the only one with data, as it was or as it lies on the storage.
pub(super) async fn open_part(
    app: &Installation,
    vault: &Vault,
    place: &BackupPlace,
    (name, sealed): (Option<&str>, bool),
) -> anyhow::Result<OpenPart> {
    let manifest = vault.manifest(&app.cx, place).await?;
    let details = vault.details(&manifest)?;
    let index = choose_part(&manifest, name).ok_or_else(|| {
        let names: Vec<&str> = manifest.parts.iter().map(|part| part.name.as_str()).collect();
        UsageError(format!("name a part with --part PART; there are: {}", names.join(", ")))
    })?;
    let part = manifest.parts.get(index).context("the part is gone")?;
    if sealed {
        let StoredPart::Whole { stored_bytes, stored_sha256, .. } = part.stored;
        let data = vault.read_stored(&app.cx, &manifest, part);
        return Ok(OpenPart { data, measuring: None, bytes: stored_bytes, sha256: stored_sha256 });
    }
    let sha256 = *details.plain_sha256.get(index).context("the part's digest is missing")?;
    let (data, measuring) = vault.read_part(&app.cx, &manifest, &details, index)?;
    Ok(OpenPart { data, measuring: Some(measuring), bytes: part.plain_bytes, sha256 })
}

/// Writes what arrives from a server to a file that must not exist.
pub(super) async fn take_in(
    cx: &Cx,
    mut incoming: Incoming,
    output: &Path,
) -> anyhow::Result<Exit> {
    let mut file = create_new(output)?;
    let (part, bytes) = (output.display().to_string(), incoming.bytes);
    cx.event(Event::PartStarted { part, estimate_bytes: Some(bytes) });
    let writing = async {
        while let Some(chunk) = incoming.next().await? {
            file.write_all(&chunk).context("cannot write the file")?;
            cx.event(Event::Progress { plain_bytes: chunk.len() as u64 });
        }
        anyhow::Ok(())
    };
    let written = match cx.run(writing).await {
        Ok(written) => written,
        Err(cancelled) => Err(cancelled.into()),
    };
    finish(output, &file, written)?;
    render::print(&format!("{} written", output.display()))?;
    Ok(Exit::Done)
}

/// Chooses a part: the one that is named, or the only one that holds more than statements about the others.
fn choose_part(manifest: &Manifest, wanted: Option<&str>) -> Option<usize> {
    let parts = || manifest.parts.iter().enumerate();
    let Some(wanted) = wanted else {
        let is_alone = manifest.parts.len() == 1;
        let mut data = parts().filter(|(_, part)| is_alone || part.media_type != MediaType::Sql);
        let (first, second) = (data.next(), data.next());
        return first.filter(|_| second.is_none()).map(|(index, _)| index);
    };
    parts().find(|(_, part)| part.name.as_str() == wanted).map(|(index, _)| index)
}

async fn write_out(mut part: PartReader, file: &mut File) -> anyhow::Result<()> {
    while let Some(chunk) = part.next().await? {
        file.write_all(&chunk).context("cannot write the file")?;
    }
    Ok(())
}

/// Opens a sealed object with the keys at hand. What comes out is what was sealed: usually a `.zst`.
pub(super) async fn decrypt(
    global: &Global,
    file: &Path,
    output: &Path,
    kit: Option<PathBuf>,
) -> anyhow::Result<Exit> {
    let keyring = match kit {
        Some(kit) => super::keys::open_kit(&kit)?,
        None => {
            let (_, catalog) = open_home(global).await?;
            catalog
                .keyring()
                .await?
                .context("there are no keys in the home directory; name a kit with --kit")?
        }
    };
    let mut out = create_new(output)?;
    let written = open_object(file, &keyring, &mut out);
    finish(output, &out, written)?;
    render::print(&format!("{} written", output.display()))?;
    Ok(Exit::Done)
}

fn open_object(file: &Path, keyring: &Keyring, out: &mut File) -> anyhow::Result<()> {
    let input = File::open(file).with_context(|| format!("cannot open {}", file.display()))?;
    let mut reader = OpenReader::new(std::io::BufReader::new(input), keyring, None)?;
    std::io::copy(&mut reader, out).map_err(|error| match error.downcast::<FrameError>() {
        Ok(frame) => anyhow::Error::from(frame),
        Err(other) => other.into(),
    })?;
    Ok(())
}

pub(super) fn create_new(path: &Path) -> anyhow::Result<File> {
    OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
        .with_context(|| format!("cannot make {}; it must not exist yet", path.display()))
}

fn finish(path: &Path, file: &File, written: anyhow::Result<()>) -> anyhow::Result<()> {
    let written = written.and_then(|()| file.sync_all().context("cannot write the file"));
    if written.is_err() {
        // Half a file must not be taken for a whole one.
        std::fs::remove_file(path)
            .with_context(|| format!("cannot remove the unfinished {}", path.display()))?;
    }
    written
}
