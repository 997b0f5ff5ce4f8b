//! From what a configuration says of a source to what the engine reads and restores.

use std::path::{Path, PathBuf};

use backstay_engine::source::Source;
use backstay_engine::source::command::CommandSource;
use backstay_engine::source::duckdb::DuckdbSource;
use backstay_engine::source::files::FilesSource;
use backstay_engine::source::mysql::{MysqlOptions, MysqlSource};
use backstay_engine::source::postgres::{PostgresOptions, PostgresSource};
use backstay_engine::source::redis::RedisSource;
use backstay_engine::source::set::SetSource;
use backstay_engine::source::sqlite::SqliteSource;

use backstay_format::{Sha256, Slug};

use crate::config::{SourceConfig, SourceKind};
use crate::exit::UsageError;
use crate::installation::{Installation, host};

/// Returns where a path leads, as far as it is there.
fn canonical(path: &Path) -> PathBuf {
    let real = |above: &Path| {
        let below = path.strip_prefix(above).ok()?;
        Some(above.canonicalize().ok()?.join(below))
    };
    path.ancestors().find_map(real).unwrap_or_else(|| path.to_owned())
}

/// As many as make it unmistakable.
const OWNER_CHARS: usize = 16;

impl Installation {
    /// Returns a word that no other source has, of this installation or of another.
    fn owner_of(&self, source: &Slug) -> String {
        let whole = format!("{}\n{}\n{source}", host(), self.home.path().display());
        String::from(Sha256::of(whole.as_bytes())).chars().take(OWNER_CHARS).collect()
    }

    /// Says what stands against a restore of a source in its own place, of these paths in it or of all: whoever replaces this
    /// program's own catalog and keys loses the record of what is being done (ADR 25).
    pub(crate) fn hits_home(&self, kind: &SourceKind, only: &[PathBuf]) -> Option<String> {
        let home = canonical(self.home.path());
        let replaced: Vec<PathBuf> = match kind {
            SourceKind::Files(files) if only.is_empty() => vec![canonical(&files.root)],
            SourceKind::Files(files) => {
                only.iter().map(|path| canonical(&files.root.join(path))).collect()
            }
            SourceKind::Sqlite { path } | SourceKind::Duckdb { path, .. } => vec![canonical(path)],
            SourceKind::Set(set) => {
                set.members.paths(&set.root).iter().map(|path| canonical(path)).collect()
            }
            _ => Vec::new(),
        };
        let hit = replaced.iter().find(|path| home.starts_with(path) || path.starts_with(&home))?;
        Some(format!(
            "a restore in its own place would replace {}, and Backstay's own home directory {} with it: restore to another place \
             with --to, or chosen paths with --only, or move the home out of it (--home, BACKSTAY_HOME)",
            hit.display(),
            home.display()
        ))
    }

    /// Returns what reads and restores a source.
    pub(crate) fn engine_source(&self, source: &SourceConfig) -> anyhow::Result<Box<dyn Source>> {
        let spool = self.home.spool();
        Ok(match &source.kind {
            SourceKind::Files(files) => Box::new(FilesSource {
                root: files.root.clone(),
                exclude: files.exclude.clone(),
                transient: files.transient.clone(),
                one_file_system: files.one_file_system,
                spool,
            }),
            SourceKind::Sqlite { path } => Box::new(SqliteSource { path: path.clone(), spool }),
            SourceKind::Duckdb { path, programs } => {
                Box::new(DuckdbSource { path: path.clone(), programs: programs.clone(), spool })
            }
            SourceKind::Set(set) => Box::new(SetSource {
                root: set.root.clone(),
                members: set.members.clone(),
                kind: set.kind.clone(),
                spool,
            }),
            SourceKind::Postgres(postgres) => Box::new(PostgresSource {
                connection: postgres.connection.clone(),
                databases: postgres.databases.clone(),
                elsewhere: postgres.elsewhere,
                // Parts that are not sealed are open to anybody.
                options: PostgresOptions {
                    with_passwords: source.sealed,
                    spared: self.own.clone(),
                    spool,
                    ..postgres.options.clone()
                },
            }),
            SourceKind::Mysql(mysql) => Box::new(MysqlSource {
                connection: mysql.connection.clone(),
                databases: mysql.databases.clone(),
                elsewhere: mysql.elsewhere,
                options: MysqlOptions { with_accounts: source.sealed, ..mysql.options.clone() },
            }),
            SourceKind::Redis(redis) => Box::new(RedisSource {
                connection: redis.connection.clone(),
                elsewhere: redis.elsewhere,
                owner: self.owner_of(&source.name),
                with_users: source.sealed,
            }),
            SourceKind::Command(command) => Box::new(CommandSource {
                outputs: command.outputs.clone(),
                variables: command.variables.clone(),
                spool,
            }),
            SourceKind::Remote(remote) => {
                let (name, worker) = (&source.name, &remote.worker);
                let text = format!(
                    "source {name} is on another machine, where {worker} backs it up: this is done there, with `backstay recover` first"
                );
                return Err(UsageError(text).into());
            }
        })
    }
}
