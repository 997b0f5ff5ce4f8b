//! What is kept in the catalog instead of the configuration file, as owners change it (ADR 23).

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// What settings are of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Subject {
    /// Something that is backed up.
    Source,
    /// A place for backups.
    Storage,
}

/// What is said of a source or of a storage. It may hold open secrets.
#[derive(Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Wanted {
    /// Settings in the words of the configuration file.
    #[serde(skip_serializing_if = "Map::is_empty")]
    pub settings: Map<String, Value>,
    /// Settings of which nothing is said any more.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub unset: Vec<String>,
    /// The password of a source.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub password: Option<String>,
    /// The credentials of a storage.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub credentials: Option<AccessKey>,
}

/// Credentials of a storage.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AccessKey {
    /// Its name.
    pub access_key_id: String,
    /// Its secret.
    pub secret_access_key: String,
}

/// A change of what is kept.
pub enum SettingsChange {
    /// Something of a name that there is not yet.
    Add(Subject, String, Wanted),
    /// What is said here; all else stays as it is.
    Set(Subject, String, Wanted),
    /// Forgets it; what lies on storages stays.
    Remove(Subject, String),
}

/// What is kept, as a person reads it.
#[derive(Debug, Serialize, Deserialize)]
pub struct KeptView {
    /// As the configuration file would say it, without what is sealed.
    pub toml: String,
}

impl SettingsChange {
    /// Returns the words of the command, and what it changes.
    pub fn named(&self) -> (&'static str, &str) {
        match self {
            Self::Add(Subject::Source, name, _) => ("source add", name),
            Self::Set(Subject::Source, name, wanted) if wanted.is_secret_alone() => {
                ("source credentials", name)
            }
            Self::Set(Subject::Source, name, _) => ("source set", name),
            Self::Remove(Subject::Source, name) => ("source remove", name),
            Self::Add(Subject::Storage, name, _) => ("storage add", name),
            Self::Set(Subject::Storage, name, wanted) if wanted.is_secret_alone() => {
                ("storage credentials", name)
            }
            Self::Set(Subject::Storage, name, _) => ("storage set", name),
            Self::Remove(Subject::Storage, name) => ("storage remove", name),
        }
    }
}

impl Wanted {
    /// Says whether nothing but a secret is given.
    pub fn is_secret_alone(&self) -> bool {
        self.settings.is_empty() && self.unset.is_empty()
    }
}
