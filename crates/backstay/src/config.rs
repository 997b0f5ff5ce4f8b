//! `backstay.toml`, from text to checked values. Whatever is wrong is said with file, line, field, what was found and what
//! is expected; nothing is made before all of it is right.

mod raw;
mod source;
mod storage;
pub(crate) mod template;

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use backstay_format::Slug;

pub(crate) use source::{SourceConfig, SourceKind};
pub(crate) use storage::{CredentialConfig, StorageConfig, StorageKind, parse_location};

/// The environment, as an argument.
pub(crate) type Env<'a> = &'a dyn Fn(&str) -> Option<String>;

/// A whole configuration.
#[derive(Debug, Clone)]
pub(crate) struct Config {
    pub(crate) organisation: Slug,
    pub(crate) storages: BTreeMap<String, StorageConfig>,
    pub(crate) sources: BTreeMap<String, SourceConfig>,
    /// What a person should know though it is legal.
    pub(crate) warnings: Vec<String>,
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
    /// Reads and checks a file.
    pub(crate) fn load(path: &Path, env: Env<'_>) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path).map_err(|error| ConfigError {
            file: path.to_owned(),
            faults: vec![Fault {
                line: 0,
                field: String::new(),
                problem: format!("cannot be read: {error}; `backstay init` writes one"),
            }],
        })?;
        Self::parse(&text, env).map_err(|faults| ConfigError { file: path.to_owned(), faults })
    }

    /// Checks a text.
    pub(crate) fn parse(text: &str, env: Env<'_>) -> Result<Self, Vec<Fault>> {
        let raw = raw::parse(text)?;
        let mut faults = raw::Faults::new(text);
        let config = Self::check(&raw, env, &mut faults);
        match config {
            Some(config) if faults.is_empty() => Ok(config),
            _ => Err(faults.into_list()),
        }
    }

    fn check(raw: &raw::RawConfig, env: Env<'_>, faults: &mut raw::Faults<'_>) -> Option<Self> {
        let organisation = match &raw.organisation {
            None => "default".parse().ok(),
            Some(name) => {
                name.get_ref().parse::<Slug>().ok().filter(Slug::is_free_for_organisations).or_else(
                    || {
                        faults.add(
                            "organisation",
                            name.span(),
                            "expected a name of a-z, 0-9, '-', '_', '.', other than `keys`",
                        );
                        None
                    },
                )
            }
        };
        let mut warnings = Vec::new();
        let mut storages = BTreeMap::new();
        for (name, raw) in &raw.storages {
            let field = format!("storages.{name}");
            storages.extend(
                storage::check(name, raw, env, &mut faults.below(field)).map(|s| (name.clone(), s)),
            );
        }
        let mut sources = BTreeMap::new();
        for (name, raw_source) in &raw.sources {
            let field = format!("sources.{name}");
            let known: Vec<&str> = raw.storages.keys().map(String::as_str).collect();
            let checked = source::check(name, raw_source, (env, &known), &mut faults.below(field));
            sources.extend(checked.map(|source| (name.clone(), source)));
        }
        for storage in storages.values() {
            storage.warn(&mut warnings);
        }
        Some(Self { organisation: organisation?, storages, sources, warnings })
    }
}

#[cfg(test)]
mod tests;
