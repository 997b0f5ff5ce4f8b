//! `worker` and `worker_labels` of a source: what is read by a worker on another machine (ADR 19).

use std::collections::BTreeSet;
use std::fmt;

use backstay_control::Worker;
use backstay_format::Slug;
use toml::{Spanned, Table, Value};

use super::raw::{Faults, RawSource};
use super::storage::StorageKind;
use super::{Config, ConfigError, Env, Environment, Fault, SourceKind, StorageConfig};

/// The kinds of sources, in the words of the file.
const KINDS: [&str; 7] = ["files", "sqlite", "duckdb", "postgres", "mysql", "redis", "command"];
/// What of a source is the server's business alone.
const OF_SERVER: [&str; 10] = [
    "worker",
    "worker_labels",
    "schedule",
    "timezone",
    "jitter",
    "blackout",
    "keep",
    "priority",
    "rpo",
    "rto",
];

/// A source that a worker reads.
#[derive(Debug, Clone)]
pub(crate) struct RemoteConfig {
    /// What kind it is, in the word of the file.
    pub(crate) word: &'static str,
    pub(crate) worker: WorkerChoice,
    /// Its table as it is written, but for what is the server's business. References in it are the worker's.
    pub(crate) declared: Table,
}

impl RemoteConfig {
    /// Returns how many checks its drills ask.
    pub(crate) fn checks(&self) -> usize {
        self.declared.get("checks").and_then(Value::as_array).map_or(0, Vec::len)
    }
}

/// Which workers may take a source's jobs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum WorkerChoice {
    /// This one.
    Named(Slug),
    /// Those that have all of these labels.
    Labelled(BTreeSet<Slug>),
}

impl WorkerChoice {
    pub(crate) fn takes(&self, worker: &Worker) -> bool {
        match self {
            Self::Named(name) => worker.name == *name,
            Self::Labelled(labels) => labels.is_subset(&worker.labels),
        }
    }
}

impl fmt::Display for WorkerChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Named(name) => write!(f, "worker {name}"),
            Self::Labelled(labels) => {
                let labels: Vec<String> = labels.iter().map(ToString::to_string).collect();
                write!(f, "a worker with {}", labels.join(", "))
            }
        }
    }
}

/// Reads which workers may take a source's jobs; none if it is read here.
#[expect(clippy::option_option, reason = "what is wrong, what is not there, what is there")]
pub(super) fn check_choice(
    raw: &RawSource,
    faults: &mut Faults<'_>,
) -> Option<Option<WorkerChoice>> {
    let mut slug = |field, text: &Spanned<String>| {
        let parsed = text.get_ref().parse::<Slug>();
        parsed.map_err(|error| faults.add(field, text.span(), error.to_string())).ok()
    };
    let labels: Option<BTreeSet<Slug>> =
        raw.worker_labels.iter().map(|label| slug("worker_labels", label)).collect();
    let name = match &raw.worker {
        Some(name) => Some(slug("worker", name)?),
        None => None,
    };
    match (name, labels?) {
        (None, labels) if labels.is_empty() => Some(None),
        (None, labels) => Some(Some(WorkerChoice::Labelled(labels))),
        (Some(name), labels) if labels.is_empty() => Some(Some(WorkerChoice::Named(name))),
        (Some(_), _) => {
            let problem =
                "stands beside `worker`, which chooses one by its name; remove one of them";
            faults.add("worker_labels", raw.worker_labels[0].span(), problem);
            None
        }
    }
}

/// Reads as much of a source that a worker reads as can be known here.
pub(super) fn check(
    raw: &RawSource,
    worker: WorkerChoice,
    declared: &Table,
    faults: &mut Faults<'_>,
) -> Option<SourceKind> {
    let Some(word) = KINDS.into_iter().find(|word| word == raw.kind.get_ref()) else {
        super::source::unknown_kind(raw, faults);
        return None;
    };
    let mut declared = declared.clone();
    declared.retain(|field, _| !OF_SERVER.contains(&field));
    Some(SourceKind::Remote(Box::new(RemoteConfig { word, worker, declared })))
}

/// A worker on another machine writes to what it finds there: a directory is another one.
pub(super) fn check_storage(
    raw: &RawSource,
    storage: Option<&StorageConfig>,
    faults: &mut Faults<'_>,
) {
    if storage.is_some_and(|storage| matches!(storage.kind, StorageKind::Local { .. })) {
        let problem =
            "found a directory, expected an S3 storage: the worker would write to its own machine";
        faults.add("storage", raw.storage.span(), problem);
    }
}

impl Config {
    /// Makes the configuration in which a worker does one job: this source, whose references are resolved here, and this
    /// storage, which is given as it is, if one is needed.
    pub(crate) fn for_job(
        organisation: &Slug,
        (name, declared): (&str, Table),
        storage: Option<StorageConfig>,
        env: Env<'_>,
    ) -> Result<Self, ConfigError> {
        let table =
            |name: &str, value: Table| Table::from_iter([(name.to_owned(), Value::Table(value))]);
        let text = |text: &str| Value::String(text.to_owned());
        // Stands for the storage while the source is read.
        let stand_in = [("provider", text("s3")), ("bucket", text("given-with-the-job"))];
        let stand_in =
            stand_in.map(|(field, value)| (field.to_owned(), value)).into_iter().collect();
        let wanted = declared.get("storage").and_then(Value::as_str).unwrap_or_default().to_owned();
        let whole = Table::from_iter([
            ("storages".to_owned(), Value::Table(table(&wanted, stand_in))),
            ("sources".to_owned(), Value::Table(table(name, declared))),
        ]);
        let text = toml::to_string(&whole).expect("tables of plain values can be written");
        // References only: a variable that sets a field would have to fit to every job.
        let is_setting = |name: &String| name.starts_with("BACKSTAY_") && name.contains("__");
        let env: Environment = env
            .iter()
            .filter(|(name, _)| !is_setting(name) && *name != "BACKSTAY_ORGANISATION")
            .map(|(name, value)| (name.clone(), value.clone()))
            .collect();
        let mut config = Self::parse(&text, &env).map_err(|faults| ConfigError {
            file: "what the server says of it".into(),
            faults: faults.into_iter().map(|fault| Fault { line: 0, ..fault }).collect(),
        })?;
        config.give_to(organisation);
        config.storages = storage.into_iter().map(|given| (given.name.clone(), given)).collect();
        Ok(config)
    }
}

/// Returns the tables of all sources as they are written.
pub(super) fn declared(table: &toml::de::DeTable<'_>) -> Table {
    use serde::Deserialize as _;
    let whole = toml::de::Deserializer::from(Spanned::new(0..0, table.clone()));
    let mut whole = Table::deserialize(whole).unwrap_or_default();
    match whole.remove("sources") {
        Some(Value::Table(sources)) => sources,
        _ => Table::new(),
    }
}
