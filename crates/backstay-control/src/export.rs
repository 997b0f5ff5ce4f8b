//! What of a catalog is worth more than a new one: what people told it (ADR 18).

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::catalog::KEYRING;
use crate::member::MemberRecord;
use crate::worker::WorkerRecord;
use crate::{Catalog, CatalogError};

/// The version of an export.
const FORMAT: i64 = 1;
/// What an export is called in errors.
const EXPORT: &str = "its backup";

/// An export, as it is written down. It holds open secrets.
#[derive(Serialize, Deserialize)]
struct Export {
    /// 1.
    format: i64,
    /// Values of settings as the catalog has them, by name.
    settings: BTreeMap<String, String>,
    /// Secrets in hexadecimal digits, by name.
    secrets: BTreeMap<String, Zeroizing<String>>,
    /// Who may ask, with the digests of their tokens.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    members: Vec<MemberRecord>,
    /// Who works on other machines, likewise.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    workers: Vec<WorkerRecord>,
}

/// The version alone: a newer export may have another shape.
#[derive(Deserialize)]
struct Version {
    format: i64,
}

/// What an import found: settings and secrets by name, members and workers as they are called.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Imported {
    /// Those that were not here.
    pub taken: Vec<String>,
    /// Those that were here, and the same.
    pub same: Vec<String>,
    /// Those that are here with another value, which stays; members and workers also that are revoked here.
    pub stayed: Vec<String>,
}

impl Catalog {
    /// Writes down these settings, all secrets but for the keys, members and workers. The same catalog gives the same text; it
    /// holds open secrets.
    pub async fn export(&self, settings: &[&str]) -> Result<Zeroizing<String>, CatalogError> {
        let mut export = Export {
            format: FORMAT,
            settings: BTreeMap::new(),
            secrets: BTreeMap::new(),
            members: self.member_records().await?,
            workers: self.worker_records().await?,
        };
        for name in settings {
            if let Some(value) = self.setting_text(name).await? {
                export.settings.insert((*name).to_owned(), value);
            }
        }
        for name in self.secret_names().await? {
            if let Some(secret) = self.secret(&name).await? {
                export.secrets.insert(name, Zeroizing::new(hex::encode(&*secret)));
            }
        }
        Ok(Zeroizing::new(serde_json::to_string(&export).expect("an export is plain values")))
    }

    /// Takes over what an export has and this catalog has not: of settings these, and all else.
    pub async fn import(&self, export: &[u8], settings: &[&str]) -> Result<Imported, CatalogError> {
        let unreadable = || CatalogError::Unreadable { name: EXPORT.to_owned() };
        let Version { format: found } = serde_json::from_slice(export).map_err(|_| unreadable())?;
        if found > FORMAT {
            return Err(CatalogError::Newer { found, known: FORMAT });
        }
        let export: Export = serde_json::from_slice(export).map_err(|_| unreadable())?;
        let mut secrets = Vec::new();
        for (name, digits) in &export.secrets {
            let secret = hex::decode(digits.as_bytes())
                .ok()
                .filter(|_| name != KEYRING)
                .ok_or_else(unreadable)?;
            secrets.push((name, Zeroizing::new(secret)));
        }
        let are_sound = export.members.iter().all(MemberRecord::is_sound)
            && export.workers.iter().all(WorkerRecord::is_sound);
        if !are_sound {
            return Err(unreadable());
        }
        let mut imported = Imported::default();
        for (name, value) in &export.settings {
            if !settings.contains(&name.as_str()) {
                continue;
            }
            let is_taken = self.first_setting_text(name, value).await?;
            let is_same = is_taken || self.setting_text(name).await?.as_ref() == Some(value);
            imported.note(name, is_taken, is_same);
        }
        for (name, secret) in secrets {
            let is_taken = self.first_secret(name, &secret).await?;
            let is_same = is_taken || self.secret(name).await?.as_ref() == Some(&secret);
            imported.note(name, is_taken, is_same);
        }
        let (members, workers) = (self.member_records().await?, self.worker_records().await?);
        for member in &export.members {
            let is_taken = self.first_member(member).await?;
            let is_same = is_taken || members.contains(member);
            imported.note(&member.to_string(), is_taken, is_same);
        }
        for worker in &export.workers {
            let is_taken = self.first_worker(worker).await?;
            let is_same = is_taken || workers.contains(worker);
            imported.note(&worker.to_string(), is_taken, is_same);
        }
        Ok(imported)
    }
}

impl Imported {
    fn note(&mut self, name: &str, is_taken: bool, is_same: bool) {
        let names = match (is_taken, is_same) {
            (true, _) => &mut self.taken,
            (false, true) => &mut self.same,
            (false, false) => &mut self.stayed,
        };
        names.push(name.to_owned());
    }
}
