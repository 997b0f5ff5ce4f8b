//! Which dumps lie at a path that somebody names.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use backstay_format::{Sha256, TimeFrom};
use jiff::Timestamp;

use super::form::{self, Form};
use super::packing::Packing;
use super::{CHECKSUM_SUFFIX, Dump, entries, refused, taken};
use crate::cx::Cx;
use crate::source::SourceError;

/// How the names end of what lies beside dumps and is none.
const BESIDE: [&str; 6] = [CHECKSUM_SUFFIX, ".meta.json", "-wal", "-shm", "-journal", ".wal"];
/// What a server with many databases calls the one that its tenants share, and where the others lie (HitKeep).
const SHARED: &str = "shared";
const TENANTS: &str = "tenants";

/// What lies at a path.
#[derive(Debug, Default)]
pub struct Found {
    /// Dumps, the oldest first.
    pub dumps: Vec<Dump>,
    /// What lies beside them and is no dump, with what it is.
    pub skipped: Vec<SourceError>,
    /// Dumps that are not what they should be.
    pub failed: Vec<SourceError>,
}

/// Finds the dump at a path, or all that lie in a directory. A checksum can be told of a single one. Blocks.
pub fn find(cx: &Cx, path: &Path, expected: Option<Sha256>) -> Result<Found, SourceError> {
    let mut found = Found::default();
    if !path.is_dir() || form::directory(path).is_some() {
        found.dumps.push(Dump::examine(cx, path, expected)?);
        return Ok(found);
    }
    if expected.is_some() {
        return Err(refused(path, "it is a directory of dumps, and one checksum was given"));
    }
    for (moment, members) in moments(path, &mut found)? {
        let form = Form::DuckdbExports(members);
        let dump = Dump::digest(cx, path, form, Packing::None)?;
        found.dumps.push(Dump { taken_at: moment, time_from: TimeFrom::Name, ..dump });
    }
    if found.dumps.is_empty() && found.failed.is_empty() {
        for entry in entries(path)? {
            cx.check()?;
            let name = entry.to_string_lossy();
            if BESIDE.iter().any(|suffix| name.ends_with(suffix)) {
                continue;
            }
            let recognised = match form::recognise(&entry) {
                Ok(recognised) => recognised,
                Err(error) => {
                    found.skipped.push(error);
                    continue;
                }
            };
            let digested = Dump::digest(cx, &entry, recognised.0, recognised.1);
            match digested.and_then(|dump| dump.with_checksum(None)) {
                Ok(dump) => found.dumps.push(dump),
                Err(error) if error.is_cancelled() => return Err(error),
                Err(error) => found.failed.push(error),
            }
        }
    }
    if found.dumps.is_empty() && found.skipped.is_empty() && found.failed.is_empty() {
        return Err(refused(path, "there is no dump in it"));
    }
    found.dumps.sort_by(|a, b| (a.taken_at, &a.path).cmp(&(b.taken_at, &b.path)));
    Ok(found)
}

/// Finds exports as HitKeep lays them out, `shared/TIME/` and `tenants/ID/TIME/`, by their moments; not those of which one is not
/// whole.
fn moments(
    path: &Path,
    found: &mut Found,
) -> Result<BTreeMap<Timestamp, Vec<(String, PathBuf)>>, SourceError> {
    let mut moments: BTreeMap<Timestamp, Vec<(String, PathBuf)>> = BTreeMap::new();
    let mut broken = Vec::new();
    let mut databases = vec![(SHARED.to_owned(), path.join(SHARED))];
    if path.join(TENANTS).is_dir() {
        for tenant in entries(&path.join(TENANTS))? {
            let id = tenant.file_name().unwrap_or_default().to_string_lossy().into_owned();
            databases.push((format!("{TENANTS}/{id}"), tenant));
        }
    }
    for (name, folder) in databases.into_iter().filter(|(_, folder)| folder.is_dir()) {
        for export in entries(&folder)? {
            let time = export.file_name().and_then(|name| taken::in_name(&name.to_string_lossy()));
            let Some(time) = time.filter(|_| export.is_dir()) else { continue };
            if form::directory(&export) != Some(Form::DuckdbExport) {
                let finding = "it is no whole export: schema.sql or load.sql is missing";
                found.failed.push(refused(&export, finding));
                broken.push(time);
                continue;
            }
            moments.entry(time).or_default().push((name.clone(), export));
        }
    }
    moments.retain(|time, _| !broken.contains(time));
    Ok(moments)
}
