//! `[archives.NAME]`: old rows of a table that go to files.

use std::collections::BTreeMap;

use backstay_engine::archive::Partition;
use backstay_engine::source::TableSpec;
use backstay_engine::source::table::Unit;
use backstay_format::Slug;
use jiff::SignedDuration;
use schemars::JsonSchema;
use serde::Deserialize;
use toml::Spanned;

use super::Env;
use super::raw::Faults;
use super::source::{DEFAULT_LEVEL, SourceConfig, is_sealed};
use super::storage::StorageConfig;
use super::time::duration;

/// Old rows of a table that go to Parquet files. Not a backup.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct RawArchive {
    /// The source whose database has the table.
    #[schemars(with = "String")]
    pub(super) source: Spanned<String>,
    /// The table, with its schema if there are several of that name: `public.events`.
    #[schemars(with = "String")]
    pub(super) table: Spanned<String>,
    /// The column that says how old a row is: a timestamp, a date, or a number with `column_unit`.
    #[schemars(with = "String")]
    pub(super) column: Spanned<String>,
    /// What a number in that column counts since 1970: `s`, `ms` or `us`.
    #[schemars(with = "Option<String>")]
    pub(super) column_unit: Option<Spanned<String>>,
    /// Rows of this age and more are archived, for example `90d`.
    #[schemars(with = "String")]
    pub(super) older_than: Spanned<String>,
    /// How rows are divided into files: `day`, or `month` if left out.
    #[schemars(with = "Option<String>")]
    pub(super) partition: Option<Spanned<String>>,
    /// The name of the storage that the files go to.
    #[schemars(with = "String")]
    pub(super) storage: Spanned<String>,
    /// `sealed`, or `none` for Parquet files that anybody can read.
    #[schemars(with = "Option<String>")]
    pub(super) encryption: Option<Spanned<String>>,
    /// Whether rows are deleted from the table once they are archived and proven; false if left out.
    #[serde(default)]
    pub(super) delete: bool,
    /// Columns that are kept as the database's text for their values.
    #[serde(default)]
    pub(super) as_text: Vec<String>,
    /// How long archived rows are kept, for example `3650d`; for ever if left out. `backstay archives prune` lets go of them.
    #[schemars(with = "Option<String>")]
    pub(super) keep: Option<Spanned<String>>,
}

/// A retention archive, checked.
#[derive(Debug, Clone)]
pub(crate) struct ArchiveConfig {
    pub(crate) name: Slug,
    pub(crate) source: String,
    pub(crate) table: TableSpec,
    pub(crate) older_than: SignedDuration,
    pub(crate) partition: Partition,
    pub(crate) storage: String,
    /// That of its storage, and of its source.
    pub(crate) organisation: Slug,
    pub(crate) sealed: bool,
    pub(crate) delete: bool,
    pub(crate) keep: Option<SignedDuration>,
    pub(crate) compression_level: i32,
}

pub(super) fn check(
    name: &str,
    raw: &RawArchive,
    (env, storages, sources): (
        Env<'_>,
        &BTreeMap<String, StorageConfig>,
        &BTreeMap<String, SourceConfig>,
    ),
    faults: &mut Faults<'_>,
) -> Option<ArchiveConfig> {
    let slug = name.parse().map_err(|error| faults.add("", raw.source.span(), format!("{error}")));
    let known: Vec<&str> = sources.keys().map(String::as_str).collect();
    one_of("source", &raw.source, &known, "the sources", faults);
    let names: Vec<&str> = storages.keys().map(String::as_str).collect();
    one_of("storage", &raw.storage, &names, "the storages", faults);
    let storage = storages.get(raw.storage.get_ref());
    if let (Some(storage), Some(source)) = (storage, sources.get(raw.source.get_ref()))
        && storage.organisation != source.organisation
    {
        let problem = format!(
            "found one of organisation {}, expected one of {}, whose the source is",
            storage.organisation, source.organisation
        );
        faults.add("storage", raw.storage.span(), problem);
    }
    if let Some(source) = sources.get(raw.source.get_ref())
        && !source.kind.has_tables()
    {
        let found = match source.remote() {
            Some(remote) => format!("found a source that {} reads", remote.worker),
            None => format!("found a source of kind `{}`", source.kind.as_str()),
        };
        let problem = format!(
            "{found}, expected one database of `postgres`, `mysql`, `sqlite` or `duckdb` that this machine reads"
        );
        faults.add("source", raw.source.span(), problem);
    }
    let word = |name, value: &Option<Spanned<String>>, words: &[&str], faults: &mut Faults<'_>| {
        let Some(value) = value else { return Some(0) };
        let found = words.iter().position(|word| word == value.get_ref());
        if found.is_none() {
            let problem =
                format!("found `{}`, expected one of: {}", value.get_ref(), words.join(", "));
            faults.add(name, value.span(), problem);
        }
        found
    };
    let partition = word("partition", &raw.partition, &["month", "day"], faults);
    let sealed = is_sealed(raw.encryption.as_ref(), faults);
    let unit = word("column_unit", &raw.column_unit, &["s", "ms", "us"], faults)?;
    let units = [Unit::Seconds, Unit::Milliseconds, Unit::Microseconds];
    let older_than = positive("older_than", &raw.older_than, faults);
    let keep = match &raw.keep {
        None => Some(None),
        Some(keep) => positive("keep", keep, faults).map(Some),
    };
    let (older_than, keep) = (older_than?, keep?);
    if let (Some(kept), Some(text)) = (keep, &raw.keep)
        && kept <= older_than
    {
        faults.add(
            "keep",
            text.span(),
            "is not more than older_than, so nothing would ever be kept",
        );
    }
    Some(ArchiveConfig {
        name: slug.ok()?,
        source: raw.source.get_ref().clone(),
        table: TableSpec {
            table: faults.text("table", &raw.table, env)?,
            column: faults.text("column", &raw.column, env)?,
            unit: raw.column_unit.as_ref().and_then(|_| units.get(unit).copied()),
            as_text: raw.as_text.clone(),
            earlier: Vec::new(),
        },
        older_than,
        partition: if partition? == 0 { Partition::Month } else { Partition::Day },
        storage: raw.storage.get_ref().clone(),
        organisation: storage?.organisation.clone(),
        sealed,
        delete: raw.delete,
        keep,
        compression_level: DEFAULT_LEVEL,
    })
}

/// Adds a fault if a value is none of those that are known.
pub(super) fn one_of(
    name: &str,
    value: &Spanned<String>,
    known: &[&str],
    what: &str,
    faults: &mut Faults<'_>,
) {
    if !known.contains(&value.get_ref().as_str()) {
        let known = if known.is_empty() { "there is none".to_owned() } else { known.join(", ") };
        let problem = format!("found `{}`, expected one of {what}: {known}", value.get_ref());
        faults.add(name, value.span(), problem);
    }
}

fn positive(
    name: &str,
    value: &Spanned<String>,
    faults: &mut Faults<'_>,
) -> Option<SignedDuration> {
    let parsed = duration(name, value, faults)?;
    if parsed <= SignedDuration::ZERO {
        faults.add(name, value.span(), "expected more than nothing, for example \"90d\"");
        return None;
    }
    Some(parsed)
}
