//! `[sources.NAME]`: what is backed up.

use std::ffi::{OsStr, OsString};
use std::path::PathBuf;
use std::time::Duration;

use backstay_control::{OfSource, Policy};
use backstay_engine::drill::Check;
use backstay_engine::hook::Hook;
use backstay_engine::source::files::Pattern;
use backstay_engine::vault::BackupPlace;
use backstay_format::retention::Rules;
use backstay_format::{BackupId, Slug};
use jiff::SignedDuration;
use toml::Spanned;

use super::Env;
use super::archive::one_of;
use super::checks;
use super::command::{self, CommandConfig};
use super::mysql::{self, MysqlConfig};
use super::policy;
use super::postgres::{self, PostgresConfig};
use super::raw::{Faults, RawHook, RawSource};
use super::redis::{self, RedisConfig};
use super::remote::{self, RemoteConfig};
use super::server;
use super::set::{self, SetConfig};
use super::storage::StorageConfig;
use super::time::{duration, objective};
use crate::exit::UsageError;

/// The zstd level where none is given.
pub(super) const DEFAULT_LEVEL: i32 = 3;
const DEFAULT_RETRIES: u32 = 2;
const DEFAULT_RETRY_AFTER: Duration = Duration::from_mins(1);
const DEFAULT_UNDO: SignedDuration = SignedDuration::from_hours(7 * 24);

/// A source, checked.
#[derive(Debug, Clone)]
pub(crate) struct SourceConfig {
    pub(crate) name: Slug,
    pub(crate) kind: SourceKind,
    pub(crate) storage: String,
    /// That of its storage.
    pub(crate) organisation: Slug,
    pub(crate) app: Option<String>,
    pub(crate) environment: Option<String>,
    /// When it is backed up by itself.
    pub(crate) policy: Option<Policy>,
    /// Those of the highest are begun first.
    pub(crate) priority: i32,
    pub(crate) keep: Rules,
    /// How old the newest good backup may be, and how long a restore may take, if somebody says so.
    pub(crate) rpo: Option<SignedDuration>,
    pub(crate) rto: Option<SignedDuration>,
    pub(crate) sealed: bool,
    pub(crate) compression_level: i32,
    pub(crate) retries: u32,
    pub(crate) retry_after: Duration,
    pub(crate) undo_for: SignedDuration,
    /// The directory whose dumps become backups of it, once.
    pub(crate) import_from: Option<PathBuf>,
    pub(crate) checks: Vec<Check>,
    pub(crate) before_backup: Option<Hook>,
    pub(crate) after_backup: Option<Hook>,
    pub(crate) before_restore: Option<Hook>,
    pub(crate) after_restore: Option<Hook>,
}

/// What kind of thing a source is.
#[derive(Debug, Clone)]
pub(crate) enum SourceKind {
    Files(FilesConfig),
    Sqlite {
        path: PathBuf,
    },
    Duckdb {
        path: PathBuf,
        programs: Option<PathBuf>,
    },
    Set(Box<SetConfig>),
    Postgres(Box<PostgresConfig>),
    Mysql(Box<MysqlConfig>),
    Redis(Box<RedisConfig>),
    Command(Box<CommandConfig>),
    /// Of whatever kind: a worker on another machine reads it.
    Remote(Box<RemoteConfig>),
}

/// A tree of files.
#[derive(Debug, Clone, Default)]
pub(crate) struct FilesConfig {
    pub(crate) root: PathBuf,
    pub(crate) exclude: Vec<Pattern>,
    pub(crate) transient: Vec<Pattern>,
    pub(crate) one_file_system: bool,
}

impl SourceKind {
    /// Returns the word for it in the configuration and in manifests.
    pub(crate) fn as_str(&self) -> &'static str {
        match self {
            Self::Files(_) => "files",
            Self::Sqlite { .. } => "sqlite",
            Self::Duckdb { .. } => "duckdb",
            Self::Set(set) => set.word(),
            Self::Postgres(_) => "postgres",
            Self::Mysql(_) => "mysql",
            Self::Redis(_) => "redis",
            Self::Command(_) => "command",
            Self::Remote(remote) => remote.word,
        }
    }

    /// Returns a kind with nothing set but where it was; for sources that only a vault knows.
    pub(crate) fn bare(word: &str, origin: &str, env: Env<'_>) -> Option<Self> {
        match word {
            "files" => {
                Some(Self::Files(FilesConfig { root: origin.into(), ..FilesConfig::default() }))
            }
            "sqlite" | "duckdb" if set::is_location(origin) => {
                SetConfig::of_location(word, origin).map(Box::new).map(Self::Set)
            }
            "sqlite" => Some(Self::Sqlite { path: origin.into() }),
            "duckdb" => Some(Self::Duckdb { path: origin.into(), programs: None }),
            "postgres" => {
                PostgresConfig::of_location(origin, env).ok().map(Box::new).map(Self::Postgres)
            }
            "mysql" => MysqlConfig::of_location(origin).ok().map(Box::new).map(Self::Mysql),
            "redis" => RedisConfig::of_location(origin).ok().map(Box::new).map(Self::Redis),
            "command" => Some(Self::Command(Box::new(CommandConfig::of_location(origin)))),
            _ => None,
        }
    }

    /// Says whether it is one database with tables whose rows can be archived.
    pub(crate) fn has_tables(&self) -> bool {
        match self {
            Self::Sqlite { .. } | Self::Duckdb { .. } => true,
            Self::Postgres(postgres) => postgres.databases.is_none(),
            Self::Mysql(mysql) => mysql.databases.is_none(),
            Self::Files(_) | Self::Set(_) | Self::Redis(_) | Self::Command(_) | Self::Remote(_) => {
                false
            }
        }
    }

    /// Returns where the data is, without secrets.
    pub(crate) fn location(&self) -> String {
        match self {
            Self::Files(files) => files.root.to_string_lossy().into_owned(),
            Self::Set(set) => set.location(),
            Self::Sqlite { path } | Self::Duckdb { path, .. } => {
                path.to_string_lossy().into_owned()
            }
            Self::Postgres(postgres) => postgres.location(),
            Self::Mysql(mysql) => mysql.location(),
            Self::Redis(redis) => redis.location(),
            Self::Command(command) => command.location(),
            Self::Remote(remote) => format!("beside {}", remote.worker),
        }
    }

    /// Turns what a user calls another place into what the source understands: a path, the name of a database, or another
    /// server, which the source then is of.
    pub(crate) fn aim(&mut self, to: &OsStr, env: Env<'_>) -> anyhow::Result<Option<OsString>> {
        if matches!(self, Self::Files(_) | Self::Sqlite { .. } | Self::Duckdb { .. } | Self::Set(_))
        {
            return Ok(Some(std::path::absolute(to)?.into()));
        }
        let Some(url) = to.to_str().filter(|text| is_server(text)) else {
            return Ok(Some(to.to_owned()));
        };
        let (aimed, keeps_names) = match self {
            Self::Postgres(postgres) => (postgres.aim(url, env), postgres.databases.is_some()),
            Self::Mysql(mysql) => (mysql.aim(url, env), mysql.databases.is_some()),
            Self::Redis(redis) => (redis.aim(url, env), false),
            Self::Files(_)
            | Self::Sqlite { .. }
            | Self::Duckdb { .. }
            | Self::Set(_)
            | Self::Command(_)
            | Self::Remote(_) => {
                return Ok(Some(to.to_owned()));
            }
        };
        let database = aimed.map_err(|problem| UsageError(format!("--to {problem}")))?;
        // Several databases keep their names there.
        Ok((!keeps_names).then(|| database.into()))
    }

    /// Says whether another place is a new database on the server that the source is on: neither a path nor another server.
    pub(crate) fn is_beside(&self, to: &OsStr) -> bool {
        let has_names = matches!(self.as_str(), "postgres" | "mysql" | "redis");
        has_names && to.to_str().is_some_and(|text| !is_server(text))
    }

    /// Leaves of several databases only those that are chosen. Returns whether that was the whole choice: tables are chosen
    /// by the restore itself.
    pub(crate) fn narrow(&mut self, only: &[PathBuf]) -> Result<bool, UsageError> {
        let databases = match self {
            Self::Set(set) if !only.is_empty() => {
                let names = only.iter().map(|name| name.to_string_lossy().into_owned());
                set.members = set.members.choose(names);
                return Ok(true);
            }
            Self::Postgres(postgres) => &mut postgres.databases,
            Self::Mysql(mysql) => &mut mysql.databases,
            _ => return Ok(false),
        };
        let Some(declared) = databases.as_ref().filter(|_| !only.is_empty()) else {
            return Ok(false);
        };
        let names = only.iter().map(|name| name.to_string_lossy().into_owned());
        let chosen = declared.choose(names);
        *databases = Some(chosen.map_err(|error| UsageError(format!("--only: {error}")))?);
        Ok(true)
    }
}

/// Says whether another place is a server, or says where its URL is.
fn is_server(to: &str) -> bool {
    to.contains("://") || to.starts_with("file:") || to.contains("${")
}

impl SourceConfig {
    /// Returns its schedule as it is written, if it has one.
    pub(crate) fn schedule(&self) -> Option<String> {
        self.policy.as_ref().map(|policy| policy.schedule.to_string())
    }

    /// Returns how a worker on another machine reads it, if one does.
    pub(crate) fn remote(&self) -> Option<&RemoteConfig> {
        match &self.kind {
            SourceKind::Remote(remote) => Some(remote),
            _ => None,
        }
    }

    /// Returns where a backup of it is in the vault of its storage.
    pub(crate) fn place(&self, backup: BackupId) -> BackupPlace {
        let (organisation, source) = (self.organisation.clone(), self.name.clone());
        BackupPlace { organisation, source, backup }
    }

    /// Returns how jobs name it.
    pub(crate) fn as_job(&self) -> OfSource<'_> {
        OfSource { organisation: self.organisation.as_str(), source: self.name.as_str() }
    }

    /// Adds what a person should know though it is legal.
    pub(super) fn warn(&self, warnings: &mut Vec<String>) {
        if let SourceKind::Postgres(postgres) = &self.kind
            && let Some(warning) = &postgres.warning
        {
            warnings.push(format!("source {}: {warning}", self.name));
        }
    }

    /// Makes a source of what a vault knows of it.
    pub(crate) fn bare(name: Slug, kind: SourceKind, storage: &StorageConfig) -> Self {
        Self {
            name,
            kind,
            storage: storage.name.clone(),
            organisation: storage.organisation.clone(),
            app: None,
            environment: None,
            policy: None,
            priority: 0,
            keep: Rules::default(),
            rpo: None,
            rto: None,
            sealed: true,
            compression_level: DEFAULT_LEVEL,
            retries: DEFAULT_RETRIES,
            retry_after: DEFAULT_RETRY_AFTER,
            undo_for: DEFAULT_UNDO,
            import_from: None,
            checks: Vec::new(),
            before_backup: None,
            after_backup: None,
            before_restore: None,
            after_restore: None,
        }
    }
}

/// Reads whether what goes to a storage is sealed.
pub(super) fn is_sealed(encryption: Option<&Spanned<String>>, faults: &mut Faults<'_>) -> bool {
    match encryption.map(|e| (e.get_ref().as_str(), e.span())) {
        None | Some(("sealed", _)) => true,
        Some(("none", _)) => false,
        Some((other, span)) => {
            faults.add("encryption", span, format!("found `{other}`, expected `sealed` or `none`"));
            true
        }
    }
}

pub(super) fn check(
    name: &str,
    raw: &RawSource,
    ((env, storages, declared), organisation): ((Env<'_>, &[&str], &toml::Table), &Slug),
    faults: &mut Faults<'_>,
) -> Option<SourceConfig> {
    let slug: Option<Slug> =
        name.parse().map_err(|error| faults.add("", raw.kind.span(), format!("{error}"))).ok();
    let worker = remote::check_choice(raw, faults)?;
    let is_remote = worker.is_some();
    let kind = match worker {
        Some(worker) => remote::check(raw, worker, declared, faults),
        None => check_kind(raw, env, faults),
    };
    let storage = raw.storage.get_ref().clone();
    one_of("storage", &raw.storage, storages, "the storages", faults);
    let sealed = is_sealed(raw.encryption.as_ref(), faults);
    let level = raw.compression_level.as_ref().map_or(DEFAULT_LEVEL, |level| {
        if !(1..=19).contains(level.get_ref()) {
            faults.add(
                "compression_level",
                level.span(),
                format!("found {}, expected 1 to 19", level.get_ref()),
            );
        }
        *level.get_ref()
    });
    let undo_for =
        raw.undo_for.as_ref().map_or(Some(DEFAULT_UNDO), |text| duration("undo_for", text, faults));
    let retry_after = raw.retry_after.as_ref().map_or(Some(DEFAULT_RETRY_AFTER), |text| {
        let waited = duration("retry_after", text, faults)?;
        let waited = Duration::try_from(waited);
        if waited.is_err() {
            faults.add("retry_after", text.span(), "is less than nothing");
        }
        waited.ok()
    });
    let import_from = check_import(raw, is_remote, env, faults);
    let (rpo, rto) =
        (objective("rpo", raw.rpo.as_ref(), faults), objective("rto", raw.rto.as_ref(), faults));
    let label = |name, value: &Option<Spanned<String>>| {
        value.as_ref().and_then(|value| faults.text(name, value, env))
    };
    let (app, environment) = {
        let mut label = label;
        (label("app", &raw.app), label("environment", &raw.environment))
    };
    let policy = policy::check(raw, env, faults);
    let mut hook = |name, raw: &Option<Spanned<RawHook>>| {
        raw.as_ref().and_then(|raw| checks::check_hook(name, raw, faults))
    };
    Some(SourceConfig {
        before_backup: hook("before_backup", &raw.before_backup),
        after_backup: hook("after_backup", &raw.after_backup),
        before_restore: hook("before_restore", &raw.before_restore),
        after_restore: hook("after_restore", &raw.after_restore),
        name: slug?,
        // Those of a worker's are asked there.
        checks: if is_remote { Vec::new() } else { checks::check(raw, env, faults) },
        kind: kind?,
        storage,
        organisation: organisation.clone(),
        app,
        environment,
        policy: policy?,
        priority: raw.priority,
        keep: raw.keep.clone().unwrap_or_default(),
        rpo,
        rto,
        sealed,
        compression_level: level,
        retries: raw.retries.as_ref().map_or(DEFAULT_RETRIES, |retries| *retries.get_ref()),
        retry_after: retry_after?,
        undo_for: undo_for?,
        import_from: import_from?,
    })
}

/// Reads where an engine's programs are, if that is said.
pub(super) fn check_programs(
    raw: &RawSource,
    env: Env<'_>,
    faults: &mut Faults<'_>,
) -> Option<Option<PathBuf>> {
    match &raw.programs {
        Some(programs) => faults.text("programs", programs, env).map(PathBuf::from).map(Some),
        None => Some(None),
    }
}

pub(super) fn check_path(
    raw: &RawSource,
    env: Env<'_>,
    faults: &mut Faults<'_>,
) -> Option<PathBuf> {
    let Some(raw_path) = &raw.path else {
        faults.add("path", raw.kind.span(), "is missing: what is to be backed up");
        return None;
    };
    faults.absolute_path("path", raw_path, env)
}

/// Reads what is to be imported, if anything is; none if that is wrong.
#[expect(clippy::option_option, reason = "what is wrong, what is not there, what is there")]
fn check_import(
    raw: &RawSource,
    is_remote: bool,
    env: Env<'_>,
    faults: &mut Faults<'_>,
) -> Option<Option<PathBuf>> {
    const NAME: &str = "import_from";
    let Some(raw) = &raw.import_from else { return Some(None) };
    if is_remote {
        let problem = "is for sources that the server itself reads: import on a machine that reaches this one, with a source of its own";
        faults.add(NAME, raw.span(), problem);
        return None;
    }
    faults.absolute_path(NAME, raw, env).map(Some)
}

fn check_kind(raw: &RawSource, env: Env<'_>, faults: &mut Faults<'_>) -> Option<SourceKind> {
    let mut patterns = |name, list: &[Spanned<String>]| -> Vec<Pattern> {
        let parsed = list.iter().filter_map(|text| match text.get_ref().parse() {
            Ok(pattern) => Some(pattern),
            Err(error) => {
                let error: backstay_engine::source::files::PatternError = error;
                faults.add(name, text.span(), error.to_string());
                None
            }
        });
        parsed.collect()
    };
    let exclude = patterns("exclude", &raw.exclude);
    let transient = patterns("transient", &raw.transient);
    let kind = raw.kind.get_ref().as_str();
    if kind != "files" {
        for (name, list) in [("exclude", &raw.exclude), ("transient", &raw.transient)] {
            if let Some(first) = list.first() {
                faults.add(name, first.span(), "only a source of kind `files` has it");
            }
        }
    }
    if kind != "postgres" {
        postgres::refuse_fields(raw, faults);
    }
    if kind != "command" {
        command::refuse_fields(raw, faults);
    }
    if kind != "mysql" {
        mysql::refuse_fields(raw, faults);
    }
    if !["postgres", "mysql", "duckdb"].contains(&kind) {
        server::refuse_programs(raw, faults);
    }
    if !["postgres", "mysql"].contains(&kind) {
        server::refuse_databases(raw, faults);
    }
    if !["postgres", "mysql", "redis"].contains(&kind) {
        server::refuse_fields(raw, faults);
    }
    if !["sqlite", "duckdb"].contains(&kind) {
        set::refuse_fields(raw, faults);
    }
    match kind {
        "sqlite" | "duckdb" if !raw.members.is_empty() => {
            set::check(raw, env, faults).map(Box::new).map(SourceKind::Set)
        }
        "files" => {
            let root = check_path(raw, env, faults)?;
            let one_file_system = raw.one_file_system;
            Some(SourceKind::Files(FilesConfig { root, exclude, transient, one_file_system }))
        }
        "sqlite" => check_path(raw, env, faults).map(|path| SourceKind::Sqlite { path }),
        "duckdb" => {
            let path = check_path(raw, env, faults)?;
            let programs = check_programs(raw, env, faults)?;
            Some(SourceKind::Duckdb { path, programs })
        }
        "postgres" => postgres::check(raw, env, faults).map(Box::new).map(SourceKind::Postgres),
        "mysql" => mysql::check(raw, env, faults).map(Box::new).map(SourceKind::Mysql),
        "redis" => redis::check(raw, env, faults).map(Box::new).map(SourceKind::Redis),
        "command" => command::check(raw, env, faults).map(Box::new).map(SourceKind::Command),
        _ => {
            unknown_kind(raw, faults);
            None
        }
    }
}

pub(super) fn unknown_kind(raw: &RawSource, faults: &mut Faults<'_>) {
    let expected = "`files`, `sqlite`, `duckdb`, `postgres`, `mysql`, `redis` or `command`";
    let problem = format!("found `{}`, expected {expected}", raw.kind.get_ref());
    faults.add("kind", raw.kind.span(), problem);
}
