//! `backstay.toml`, from text to checked values. Whatever is wrong is said with file, line, field, what was found and what
//! is expected; nothing is made before all of it is right.

mod archive;
mod checks;
mod command;
mod mysql;
mod overrides;
mod passfile;
mod policy;
mod postgres;
mod raw;
mod redis;
mod remote;
mod server;
mod set;
mod source;
mod ssh;
mod storage;
pub(crate) mod template;
mod time;

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use backstay_format::Slug;
use backstay_format::retention::parse_bytes;
use secrecy::{ExposeSecret as _, SecretString};
use serde::{Deserialize, Serialize};

pub(crate) use archive::ArchiveConfig;
pub(crate) use remote::{RemoteConfig, WorkerChoice};
pub(crate) use source::{SourceConfig, SourceKind};
use storage::resolve_file;
pub(crate) use storage::{CredentialConfig, StorageConfig, StorageKind, parse_location};
pub(crate) use time::parse_duration;

/// Disks with less room are warned of where nothing else is said (V55).
pub(crate) const DEFAULT_DISK_WARN: u64 = 500_000_000;

/// The variables of the environment.
pub(crate) type Environment = BTreeMap<String, String>;
/// The environment, as an argument.
pub(crate) type Env<'a> = &'a Environment;

/// What `source add` and `storage add` keep, in the words of the file; by table and name.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Additions {
    /// Tables of `[storages]`.
    #[serde(default)]
    pub(crate) storages: BTreeMap<String, toml::Table>,
    /// Tables of `[sources]`.
    #[serde(default)]
    pub(crate) sources: BTreeMap<String, toml::Table>,
    /// The names of the secrets with the passwords of sources, by source (ADR 23).
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) passwords: BTreeMap<String, String>,
}

/// A whole configuration.
#[derive(Debug, Clone)]
pub(crate) struct Config {
    /// Whose all is of which nothing else is said, and whose members are made where nothing else is said.
    pub(crate) organisation: Slug,
    /// Disks with less room are warned of, in bytes.
    pub(crate) disk_warn: u64,
    pub(crate) storages: BTreeMap<String, StorageConfig>,
    pub(crate) sources: BTreeMap<String, SourceConfig>,
    pub(crate) archives: BTreeMap<String, ArchiveConfig>,
    /// What a person should know though it is legal.
    pub(crate) warnings: Vec<String>,
    /// The file that it was read from, if there was one.
    pub(crate) file: Option<ConfigFile>,
}

/// A configuration file, as it was when it was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ConfigFile {
    /// Absolute.
    pub(crate) path: PathBuf,
    /// References in it are not resolved.
    pub(crate) text: String,
}

/// Everything that is wrong with a configuration.
#[derive(Debug, thiserror::Error)]
pub(crate) struct ConfigError {
    pub(crate) file: PathBuf,
    pub(crate) faults: Vec<Fault>,
}

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Fault {
    /// From 1; 0 where the whole file is meant.
    pub(crate) line: usize,
    pub(crate) field: String,
    pub(crate) problem: String,
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, fault) in self.faults.iter().enumerate() {
            if i > 0 {
                f.write_str("\n")?;
            }
            write!(f, "{}", self.file.display())?;
            if fault.line > 0 {
                write!(f, ":{}", fault.line)?;
            }
            if !fault.field.is_empty() {
                write!(f, ": {}", fault.field)?;
            }
            write!(f, ": {}", fault.problem)?;
        }
        Ok(())
    }
}

impl Config {
    /// Reads and checks a file, with what was added to it elsewhere; or that alone, if there is no file.
    pub(crate) fn load(
        file: Option<&Path>,
        additions: &Additions,
        env: Env<'_>,
    ) -> Result<Self, ConfigError> {
        let path = file.unwrap_or(Path::new("(no file)"));
        let wrong = |faults| ConfigError { file: path.to_owned(), faults };
        let text = file.map_or(Ok(String::new()), std::fs::read_to_string).map_err(|error| {
            let problem = format!("cannot be read: {error}; `backstay init` writes one");
            wrong(vec![Fault { line: 0, field: String::new(), problem }])
        })?;
        let own = Self::names(&text).map_err(wrong)?;
        let mut warnings = Vec::new();
        let added = additions.without(&own, &mut warnings).to_text();
        let checked = Self::parse(&format!("{text}\n{added}"), env);
        let mut config = checked.map_err(|mut faults| {
            let lines = text.lines().count();
            // What lies behind the file's text was added by a command and has no line that a person could look at.
            for fault in faults.iter_mut().filter(|fault| fault.line > lines) {
                fault.line = 0;
                fault.problem.push_str(" (kept in the catalog by `source add` or `storage add`)");
            }
            wrong(faults)
        })?;
        config.warnings.extend(warnings);
        config.file = file.map(|file| ConfigFile {
            path: std::path::absolute(file).unwrap_or_else(|_| file.to_owned()),
            text,
        });
        Ok(config)
    }

    /// Returns where the catalog is that a file names, before the rest of the file can be checked: what commands added lies in
    /// that catalog.
    pub(crate) fn shared_catalog(
        file: Option<&Path>,
        env: Env<'_>,
    ) -> Result<Option<SecretString>, ConfigError> {
        let path = file.unwrap_or(Path::new("(no file)"));
        let wrong = |faults| ConfigError { file: path.to_owned(), faults };
        let text = file.and_then(|file| std::fs::read_to_string(file).ok()).unwrap_or_default();
        let raw = raw::parse(&text, env).map_err(wrong)?;
        let mut faults = raw::Faults::new(&text);
        let catalog = check_catalog(&raw, env, &mut faults);
        if faults.is_empty() { Ok(catalog) } else { Err(wrong(faults.into_list())) }
    }

    /// Returns whose all is of which nobody says anything.
    pub(crate) fn default_organisation() -> Slug {
        "default".parse().expect("it is a name")
    }

    /// Returns what of it belongs to an organisation.
    pub(crate) fn of(&self, organisation: &Slug) -> Self {
        fn its<T: Clone>(
            all: &BTreeMap<String, T>,
            is_its: impl Fn(&T) -> bool,
        ) -> BTreeMap<String, T> {
            let its = all.iter().filter(|(_, one)| is_its(one));
            its.map(|(name, one)| (name.clone(), one.clone())).collect()
        }
        Self {
            organisation: organisation.clone(),
            disk_warn: self.disk_warn,
            storages: its(&self.storages, |storage| storage.organisation == *organisation),
            sources: its(&self.sources, |source| source.organisation == *organisation),
            archives: its(&self.archives, |archive| archive.organisation == *organisation),
            warnings: self.warnings.clone(),
            file: self.file.clone(),
        }
    }

    /// Makes all another organisation's of which nothing else was said.
    pub(crate) fn give_to(&mut self, organisation: &Slug) {
        let before = std::mem::replace(&mut self.organisation, organisation.clone());
        let storages = self.storages.values_mut().map(|storage| &mut storage.organisation);
        let sources = self.sources.values_mut().map(|source| &mut source.organisation);
        let archives = self.archives.values_mut().map(|archive| &mut archive.organisation);
        for whose in storages.chain(sources).chain(archives).filter(|whose| **whose == before) {
            *whose = organisation.clone();
        }
    }

    /// Says whether anything here is an organisation's.
    pub(crate) fn knows(&self, organisation: &Slug) -> bool {
        let mut all = self.storages.values().map(|storage| &storage.organisation);
        self.organisation == *organisation || all.any(|one| one == organisation)
    }

    /// Counts the sources that are backed up by themselves.
    pub(crate) fn scheduled(&self) -> usize {
        self.sources.values().filter(|source| source.policy.is_some()).count()
    }

    /// Returns the JSON schema of the file.
    pub(crate) fn schema() -> serde_json::Value {
        schemars::schema_for!(raw::RawConfig).to_value()
    }

    /// Returns the names of the tables in a text.
    fn names(text: &str) -> Result<(Vec<String>, Vec<String>), Vec<Fault>> {
        let raw = raw::parse(text, &Environment::new())?;
        Ok((raw.storages.into_keys().collect(), raw.sources.into_keys().collect()))
    }

    /// Checks a text.
    pub(crate) fn parse(text: &str, env: Env<'_>) -> Result<Self, Vec<Fault>> {
        let raw = raw::parse(text, env)?;
        let mut faults = raw::Faults::new(text);
        let config = Self::check(&raw, env, &mut faults);
        match config {
            Some(config) if faults.is_empty() => Ok(config),
            _ => Err(faults.into_list()),
        }
    }

    fn check(raw: &raw::RawConfig, env: Env<'_>, faults: &mut raw::Faults<'_>) -> Option<Self> {
        let default = Self::default_organisation();
        let organisation = storage::organisation(raw.organisation.as_ref(), &default, faults);
        let whose = organisation.as_ref().unwrap_or(&default);
        let mut warnings = Vec::new();
        let mut storages = BTreeMap::new();
        for (name, raw) in &raw.storages {
            let field = format!("storages.{name}");
            storages.extend(
                storage::check(name, raw, (env, whose), &mut faults.below(field))
                    .map(|s| (name.clone(), s)),
            );
        }
        let mut sources = BTreeMap::new();
        for (name, raw_source) in &raw.sources {
            let field = format!("sources.{name}");
            let known: Vec<&str> = raw.storages.keys().map(String::as_str).collect();
            // What it is of is what its storage is of: nobody backs up to another's.
            let storage = storages.get(raw_source.storage.get_ref());
            let whose = storage.map_or(whose, |storage: &StorageConfig| &storage.organisation);
            let mut faults = faults.below(field);
            let declared = raw.declared.get(name).and_then(toml::Value::as_table);
            let none = toml::Table::new();
            let around = (env, known.as_slice(), declared.unwrap_or(&none));
            let checked = source::check(name, raw_source, (around, whose), &mut faults);
            if checked.as_ref().is_some_and(|source| source.remote().is_some()) {
                remote::check_storage(raw_source, storage, &mut faults);
            }
            sources.extend(checked.map(|source| (name.clone(), source)));
        }
        let mut archives = BTreeMap::new();
        for (name, raw) in &raw.archives {
            let field = format!("archives.{name}");
            let checked =
                archive::check(name, raw, (env, &storages, &sources), &mut faults.below(field));
            archives.extend(checked.map(|archive| (name.clone(), archive)));
        }
        check_apart(raw, &storages, faults);
        for storage in storages.values() {
            storage.warn(&mut warnings);
        }
        for source in sources.values() {
            source.warn(&mut warnings);
        }
        check_catalog(raw, env, faults);
        let disk_warn = check_disk_warn(raw, faults);
        Some(Self {
            organisation: organisation?,
            disk_warn,
            storages,
            sources,
            archives,
            warnings,
            file: None,
        })
    }
}

/// Two organisations share no vault: each would see what the other has.
fn check_apart(
    raw: &raw::RawConfig,
    storages: &BTreeMap<String, StorageConfig>,
    faults: &mut raw::Faults<'_>,
) {
    for (name, storage) in storages {
        let shared = storages.values().find(|other| {
            other.name < storage.name
                && other.organisation != storage.organisation
                && other.kind.overlaps(&storage.kind)
        });
        if let (Some(other), Some(raw)) = (shared, raw.storages.get(name)) {
            let problem = format!(
                "found the place of storage {} of organisation {}, or one in it; give each organisation a prefix of its own",
                other.name, other.organisation
            );
            faults.below(format!("storages.{name}")).add("prefix", raw.provider.span(), problem);
        }
    }
}

fn check_disk_warn(raw: &raw::RawConfig, faults: &mut raw::Faults<'_>) -> u64 {
    let Some(text) = &raw.disk_warn else { return DEFAULT_DISK_WARN };
    parse_bytes(text.get_ref()).unwrap_or_else(|| {
        let problem =
            format!("found `{}`, expected a size such as \"500MB\" or \"2GiB\"", text.get_ref());
        faults.add("disk_warn", text.span(), problem);
        DEFAULT_DISK_WARN
    })
}

fn check_catalog(
    raw: &raw::RawConfig,
    env: Env<'_>,
    faults: &mut raw::Faults<'_>,
) -> Option<SecretString> {
    let given = raw.catalog.as_ref()?;
    let url = resolve_file(&faults.text("catalog", given, env)?);
    let url = url.map_err(|problem| faults.add("catalog", given.span(), problem)).ok()?;
    if url.is_empty() {
        return None;
    }
    if !["postgres://", "postgresql://"].iter().any(|scheme| url.starts_with(scheme)) {
        // Not what was found: it may be the secret of something else.
        let problem = "expected postgres://user:password@host/database, or a reference such as \"${CATALOG_URL}\" or \"file:/etc/backstay/catalog\"";
        faults.add("catalog", given.span(), problem);
    }
    Some(url.into())
}

impl Additions {
    pub(crate) fn is_empty(&self) -> bool {
        self.storages.is_empty() && self.sources.is_empty()
    }

    /// Leaves out what the file declares by the same name: the file wins.
    fn without(
        &self,
        (storages, sources): &(Vec<String>, Vec<String>),
        warnings: &mut Vec<String>,
    ) -> Self {
        let mut rest = self.clone();
        for (of, names, tables) in
            [("storage", storages, &mut rest.storages), ("source", sources, &mut rest.sources)]
        {
            for name in names {
                if tables.remove(name).is_some() {
                    warnings.push(format!(
                        "{of} {name} was added by a command and stands in the file too; the file counts"
                    ));
                }
            }
        }
        rest
    }

    /// Leaves out sealed passwords of sources that are gone, or that say another.
    pub(crate) fn drop_unused_passwords(&mut self) {
        self.passwords.retain(|source, _| {
            self.sources.get(source).is_some_and(|table| !table.contains_key("password"))
        });
    }

    /// Puts passwords into the tables of their sources, as the file would say them.
    pub(crate) fn fill_in(&mut self, passwords: BTreeMap<String, SecretString>) {
        for (source, password) in passwords {
            if let Some(table) = self.sources.get_mut(&source) {
                // It is data, and no reference.
                let password = password.expose_secret().replace('$', "$$");
                table.insert("password".to_owned(), toml::Value::String(password));
            }
        }
    }

    /// Reads them from a text in the words of the file, which has nothing else in it.
    pub(crate) fn from_text(text: &str) -> Result<Self, String> {
        let read: Self = toml::from_str(text).map_err(|error| error.to_string())?;
        if read.passwords.is_empty() {
            Ok(read)
        } else {
            Err("found [passwords], which the file does not have".to_owned())
        }
    }

    /// Returns them as the file would say it, without what is sealed.
    pub(crate) fn to_text(&self) -> String {
        if self.is_empty() {
            return String::new();
        }
        let tables = Self { passwords: BTreeMap::new(), ..self.clone() };
        toml::to_string(&tables).expect("tables of plain values can be written")
    }
}

#[cfg(test)]
mod tests;
