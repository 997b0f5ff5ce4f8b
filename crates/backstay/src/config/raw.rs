//! The text as it stands, with the places of its values.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::ops::Range;
use std::path::PathBuf;
use std::rc::Rc;

use backstay_format::retention::Rules;
use schemars::JsonSchema;
use serde::Deserialize;
use toml::Spanned;
use toml::de::DeTable;

use super::archive::RawArchive;
use super::{Env, Fault, overrides, remote};

/// A configuration. The comments of the fields are the descriptions in the JSON schema.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(title = "backstay.toml")]
pub(super) struct RawConfig {
    /// Whose backups these are; a folder in each vault. `default` if left out.
    #[schemars(with = "Option<String>")]
    pub(super) organisation: Option<Spanned<String>>,
    /// `postgres://user:password@host/database` for a catalog that several servers share; a file in the home directory if left out.
    #[schemars(with = "Option<String>")]
    pub(super) catalog: Option<Spanned<String>>,
    /// Warn before a backup if the disk of the home directory or of a local storage has less room left, for example `2GB`; `500MB` if left out.
    #[schemars(with = "Option<String>")]
    pub(super) disk_warn: Option<Spanned<String>>,
    /// Where backups go, by name.
    #[serde(default)]
    pub(super) storages: BTreeMap<String, RawStorage>,
    /// What is backed up, by name.
    #[serde(default)]
    pub(super) sources: BTreeMap<String, RawSource>,
    /// Old rows of tables that go to Parquet files, by name. Not backups.
    #[serde(default)]
    pub(super) archives: BTreeMap<String, RawArchive>,
    /// The tables of sources as they are written, for those that go to workers.
    #[serde(skip)]
    pub(super) declared: toml::Table,
}

/// A place for backups.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct RawStorage {
    /// `s3` for everything that speaks the S3 protocol, `local` for a directory.
    #[schemars(with = "String")]
    pub(super) provider: Spanned<String>,
    /// Whose it is, and so whose the sources are whose backups go there; that of the whole file if left out.
    #[schemars(with = "Option<String>")]
    pub(super) organisation: Option<Spanned<String>>,
    /// The name of the bucket.
    #[schemars(with = "Option<String>")]
    pub(super) bucket: Option<Spanned<String>>,
    /// The folder of the vault in the bucket or directory; `backstay` if left out.
    #[schemars(with = "Option<String>")]
    pub(super) prefix: Option<Spanned<String>>,
    /// A URL, or a host with or without a port. Left out for AWS.
    #[schemars(with = "Option<String>")]
    pub(super) endpoint: Option<Spanned<String>>,
    /// Whether an endpoint without a scheme is spoken to by TLS; true if left out.
    pub(super) use_ssl: Option<bool>,
    /// The bucket's region; `us-east-1` if left out, `auto` at R2.
    #[schemars(with = "Option<String>")]
    pub(super) region: Option<Spanned<String>>,
    /// `path` or `virtual`: where the bucket's name stands in requests.
    #[schemars(with = "Option<String>")]
    pub(super) addressing: Option<Spanned<String>>,
    /// Left out to use what `backstay storage credentials` sealed, or what the machine has.
    #[schemars(with = "Option<String>")]
    pub(super) access_key_id: Option<Spanned<String>>,
    /// Better a reference, `${NAME}` or `file:/path`, than the secret itself.
    #[schemars(with = "Option<String>")]
    pub(super) secret_access_key: Option<Spanned<String>>,
    /// The token of temporary credentials.
    #[schemars(with = "Option<String>")]
    pub(super) session_token: Option<Spanned<String>>,
    /// The date on which the credentials end; a warning comes 30 days before.
    #[schemars(with = "Option<String>")]
    pub(super) credentials_expire: Option<Spanned<String>>,
    /// The AWS profile to use.
    #[schemars(with = "Option<String>")]
    pub(super) profile: Option<Spanned<String>>,
    /// A file with certificates to trust, in PEM.
    #[schemars(with = "Option<String>")]
    pub(super) ca_file: Option<Spanned<String>>,
    /// How many jobs of servers write to it at a time; as many as they like if left out.
    #[schemars(with = "Option<u16>")]
    pub(super) jobs: Option<Spanned<u16>>,
    /// The directory of a local storage.
    #[schemars(with = "Option<String>")]
    pub(super) path: Option<Spanned<String>>,
    #[schemars(skip)]
    pub(super) public_base_url: Option<Spanned<String>>,
}

/// Something that is backed up.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct RawSource {
    /// `files`, `sqlite`, `duckdb`, `postgres`, `mysql` (MariaDB, too), `redis` (Valkey, too) or `command`.
    #[schemars(with = "String")]
    pub(super) kind: Spanned<String>,
    /// The root of a tree or of a set of databases, or a database's file.
    #[schemars(with = "Option<String>")]
    pub(super) path: Option<Spanned<String>>,
    /// The name of the storage that its backups go to.
    #[schemars(with = "String")]
    pub(super) storage: Spanned<String>,
    /// Of `sqlite` and `duckdb`: groups of databases by their paths below `path`, with at most one `*`, which stands for a member's name.
    #[serde(default)]
    #[schemars(with = "BTreeMap<String, String>")]
    pub(super) members: BTreeMap<String, Spanned<String>>,
    /// Patterns of what is left out.
    #[serde(default)]
    #[schemars(with = "Vec<String>")]
    pub(super) exclude: Vec<Spanned<String>>,
    /// Patterns of what is left out, and gone after a restore.
    #[serde(default)]
    #[schemars(with = "Vec<String>")]
    pub(super) transient: Vec<Spanned<String>>,
    /// Whether file systems mounted below the root are left out.
    #[serde(default)]
    pub(super) one_file_system: bool,
    /// Where a database is: `postgres://user:password@host:5432/database?sslmode=require`, `mysql://user:password@host:3306/database`,
    /// `rediss://user:password@host:6379`.
    #[schemars(with = "Option<String>")]
    pub(super) url: Option<Spanned<String>>,
    /// The database's server: a name, an address, or the directory of a Unix socket.
    #[schemars(with = "Option<String>")]
    pub(super) host: Option<Spanned<String>>,
    /// Its port; 5432 if left out.
    #[schemars(with = "Option<u16>")]
    pub(super) port: Option<Spanned<i64>>,
    /// The role that reads it, and that restores it.
    #[schemars(with = "Option<String>")]
    pub(super) user: Option<Spanned<String>>,
    /// Better a reference, `${NAME}` or `file:/path`, than the password itself.
    #[schemars(with = "Option<String>")]
    pub(super) password: Option<Spanned<String>>,
    /// A file of passwords as libpq reads it; without this and `password`, `PGPASSFILE` or `~/.pgpass` counts.
    #[schemars(with = "Option<String>")]
    pub(super) passfile: Option<Spanned<String>>,
    /// The database's name.
    #[schemars(with = "Option<String>")]
    pub(super) database: Option<Spanned<String>>,
    /// Patterns for the names of several databases of the server; `!` in front leaves out.
    #[serde(default)]
    #[schemars(with = "Vec<String>")]
    pub(super) databases: Vec<Spanned<String>>,
    /// How many tables a restore loads at once; 1 if left out. More than one needs room for the dump in the home directory.
    #[schemars(with = "Option<u32>")]
    pub(super) restore_jobs: Option<Spanned<u32>>,
    /// Of MySQL and MariaDB: whether writers wait while tables are read, for tables that know no transactions.
    #[schemars(with = "Option<bool>")]
    pub(super) lock_tables: Option<Spanned<bool>>,
    /// `disable`, `prefer` (if left out), `require`, `verify-ca` or `verify-full`.
    #[schemars(with = "Option<String>")]
    pub(super) tls: Option<Spanned<String>>,
    /// A file with certificates to trust, in PEM.
    #[schemars(with = "Option<String>")]
    pub(super) tls_ca_file: Option<Spanned<String>>,
    /// A file with our certificate, in PEM.
    #[schemars(with = "Option<String>")]
    pub(super) tls_certificate_file: Option<Spanned<String>>,
    /// A file with its key, in PEM.
    #[schemars(with = "Option<String>")]
    pub(super) tls_key_file: Option<Spanned<String>>,
    /// The machine that the database's server is reached through, by the system's `ssh`.
    #[schemars(with = "Option<RawSsh>")]
    pub(super) ssh: Option<Spanned<RawSsh>>,
    /// How long a dump waits for a lock, and others for one of the dump's; `30s` if left out.
    #[schemars(with = "Option<String>")]
    pub(super) lock_timeout: Option<Spanned<String>>,
    /// How long each question to the database and each statement of a dump may take; without end if left out.
    #[schemars(with = "Option<String>")]
    pub(super) statement_timeout: Option<Spanned<String>>,
    /// A query whose first column lists the app's applied migrations in their order.
    #[schemars(with = "Option<String>")]
    pub(super) migrations: Option<Spanned<String>>,
    /// The directory of the engine's programs (`pg_dump` and `pg_restore`, `mariadb-dump`, `duckdb`), if not those that are found.
    #[schemars(with = "Option<String>")]
    pub(super) programs: Option<Spanned<String>>,
    /// The worker on another machine that reads it, by its name.
    #[schemars(with = "Option<String>")]
    pub(super) worker: Option<Spanned<String>>,
    /// In the place of `worker`: any worker that has all of these labels reads it.
    #[serde(default)]
    #[schemars(with = "Vec<String>")]
    pub(super) worker_labels: Vec<Spanned<String>>,
    /// The app that it belongs to.
    #[schemars(with = "Option<String>")]
    pub(super) app: Option<Spanned<String>>,
    /// The environment of that app.
    #[schemars(with = "Option<String>")]
    pub(super) environment: Option<Spanned<String>>,
    /// When it is to be backed up: five fields of cron, one of the words `hourly`, `daily`, `weekly`, `monthly`, or an interval such as `every 24h`.
    #[schemars(with = "Option<String>")]
    pub(super) schedule: Option<Spanned<String>>,
    /// The time zone of schedule and blackouts, for example `Europe/Berlin`; the machine's if left out.
    #[schemars(with = "Option<String>")]
    pub(super) timezone: Option<Spanned<String>>,
    /// Scheduled backups begin up to this long after their time, each source by its own share, for example `10m`.
    #[schemars(with = "Option<String>")]
    pub(super) jitter: Option<Spanned<String>>,
    /// When no scheduled backup begins: `08:00-18:00`, `Mon-Fri 08:00-18:00`, `Sat 22:00-06:00`.
    #[serde(default)]
    #[schemars(with = "Vec<String>")]
    pub(super) blackout: Vec<Spanned<String>>,
    /// Which backups are kept.
    #[schemars(with = "Option<serde_json::Map<String, serde_json::Value>>")]
    pub(super) keep: Option<Rules>,
    /// Of jobs that wait, those of the highest number are begun first; 0 if left out.
    #[serde(default)]
    pub(super) priority: i32,
    /// How old the newest good backup may be (RPO); what the schedule promises and an hour if left out, a day and an hour at least.
    #[schemars(with = "Option<String>")]
    pub(super) rpo: Option<Spanned<String>>,
    /// How long a restore may take (RTO); `15m` if left out.
    #[schemars(with = "Option<String>")]
    pub(super) rto: Option<Spanned<String>>,
    /// `sealed`, or `none` for standard files that anybody can read.
    #[schemars(with = "Option<String>")]
    pub(super) encryption: Option<Spanned<String>>,
    /// zstd level, 1 to 19; 3 if left out.
    #[schemars(with = "Option<i32>")]
    pub(super) compression_level: Option<Spanned<i32>>,
    /// How often a backup that gave way to the app is tried again; 2 if left out.
    #[schemars(with = "Option<u32>")]
    pub(super) retries: Option<Spanned<u32>>,
    /// How long is waited before that; `1m` if left out.
    #[schemars(with = "Option<String>")]
    pub(super) retry_after: Option<Spanned<String>>,
    /// How long a restore can be undone; `7d` if left out.
    #[schemars(with = "Option<String>")]
    pub(super) undo_for: Option<Spanned<String>>,
    /// A directory of dumps that another tool made: the server makes backups of them, once.
    #[schemars(with = "Option<String>")]
    pub(super) import_from: Option<Spanned<String>>,
    /// What a drill asks the restored database.
    #[serde(default)]
    #[schemars(with = "Vec<RawCheck>")]
    pub(super) checks: Vec<Spanned<RawCheck>>,
    /// What programs write, of a source of kind `command`.
    #[serde(default)]
    #[schemars(with = "Vec<RawOutput>")]
    pub(super) outputs: Vec<Spanned<RawOutput>>,
    /// What these programs find in their environment; better references, `${NAME}` or `file:/path`, than secrets.
    #[serde(default)]
    #[schemars(with = "BTreeMap<String, String>")]
    pub(super) variables: BTreeMap<String, Spanned<String>>,
    /// Runs before a backup is read.
    #[schemars(with = "Option<RawHook>")]
    pub(super) before_backup: Option<Spanned<RawHook>>,
    /// Runs after a backup, whatever came of it.
    #[schemars(with = "Option<RawHook>")]
    pub(super) after_backup: Option<Spanned<RawHook>>,
    /// Runs before a restore swaps: stops the app.
    #[schemars(with = "Option<RawHook>")]
    pub(super) before_restore: Option<Spanned<RawHook>>,
    /// Runs after a restore, whatever came of it: starts the app again.
    #[schemars(with = "Option<RawHook>")]
    pub(super) after_restore: Option<Spanned<RawHook>>,
}

/// A machine that a server is reached through.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct RawSsh {
    /// A name, an address, or what the settings of `ssh` call it.
    #[schemars(with = "String")]
    pub(super) host: Spanned<String>,
    /// Whom to log in as; whoever `ssh` takes if left out.
    #[schemars(with = "Option<String>")]
    pub(super) user: Option<Spanned<String>>,
    /// Its port; 22 if left out.
    #[schemars(with = "Option<u16>")]
    pub(super) port: Option<Spanned<i64>>,
    /// The file of the key to log in with; those that `ssh` knows if left out.
    #[schemars(with = "Option<String>")]
    pub(super) identity_file: Option<Spanned<String>>,
    /// The file with the keys of known hosts; those that `ssh` knows if left out.
    #[schemars(with = "Option<String>")]
    pub(super) known_hosts_file: Option<Spanned<String>>,
}

/// What a program writes, and what is done with it. Programs are lists of the program and its arguments; no shell reads them.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct RawOutput {
    /// What it is called in the backup, such as `events.archive`.
    pub(super) name: String,
    /// Writes it to its standard output.
    pub(super) dump: Vec<String>,
    /// Takes it on its standard input, and replaces what is there.
    #[serde(default)]
    pub(super) restore: Vec<String>,
    /// Reads it on its standard input, and ends well only if it is whole.
    #[serde(default)]
    pub(super) check: Vec<String>,
    /// Less than this is no output; 1 if left out.
    pub(super) min_bytes: Option<u64>,
    /// How long each of the programs may take; `24h` if left out.
    pub(super) timeout: Option<String>,
}

/// A question to a restored database.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct RawCheck {
    /// What it is called.
    pub(super) name: String,
    /// The database that is asked, where the source has several.
    pub(super) database: Option<String>,
    /// A query; its first row counts.
    pub(super) query: String,
    /// That row as text, its columns divided by `|`; `t` if left out.
    pub(super) expect: Option<String>,
}

/// A program that runs before or after.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct RawHook {
    /// The program and its arguments; no shell reads them.
    pub(super) run: Vec<String>,
    /// How long it may take; `5m` if left out.
    pub(super) timeout: Option<String>,
}

/// Reads the text and what the environment sets in it; a fault here ends it, since nothing behind it can be trusted.
pub(super) fn parse(text: &str, env: Env<'_>) -> Result<RawConfig, Vec<Fault>> {
    let fault = |error: &toml::de::Error, field: String| {
        let line = error.span().map_or(0, |span| line_of(text, span.start));
        let message = error.message().replace('\n', " ");
        let problem = match nearest(&message) {
            Some(near) => format!("{message}; did you mean `{near}`?"),
            None => message,
        };
        vec![Fault { line, field, problem }]
    };
    let mut table = DeTable::parse(text).map_err(|error| fault(&error, String::new()))?;
    overrides::apply(table.get_mut(), env)?;
    let declared = remote::declared(table.get_ref());
    let deserializer = toml::de::Deserializer::from(table);
    let read = serde_path_to_error::deserialize(deserializer).map_err(|error| {
        // What marks places for us is no field of the user's.
        let path = error.path().iter().map(ToString::to_string);
        let path: Vec<String> = path.filter(|segment| !segment.starts_with("$__")).collect();
        let field = path.join(".").trim_end_matches(".?").trim_matches('?').to_owned();
        fault(error.inner(), field)
    })?;
    Ok(RawConfig { declared, ..read })
}

/// Finds the expected word that is nearest to the unknown one, in a message that quotes all of them.
fn nearest(message: &str) -> Option<String> {
    let mut quoted = message.split('`').skip(1).step_by(2);
    let unknown = quoted.next().filter(|_| message.starts_with("unknown field"))?;
    let near = quoted.min_by_key(|known| strsim::damerau_levenshtein(unknown, known))?;
    (strsim::damerau_levenshtein(unknown, near) <= 3).then(|| near.to_owned())
}

fn line_of(text: &str, offset: usize) -> usize {
    text.as_bytes().iter().take(offset).filter(|byte| **byte == b'\n').count() + 1
}

/// Gathers what is wrong, so that all of it can be mended at once.
pub(super) struct Faults<'a> {
    text: &'a str,
    field: String,
    list: Rc<RefCell<Vec<Fault>>>,
}

impl<'a> Faults<'a> {
    pub(super) fn new(text: &'a str) -> Self {
        Self { text, field: String::new(), list: Rc::default() }
    }

    /// Returns a gatherer for the fields of a table; what it gathers is here too.
    pub(super) fn below(&self, field: String) -> Self {
        Self { text: self.text, field, list: self.list.clone() }
    }

    pub(super) fn add(&mut self, name: &str, span: Range<usize>, problem: impl Into<String>) {
        let field =
            if self.field.is_empty() { name.to_owned() } else { format!("{}.{name}", self.field) };
        self.list.borrow_mut().push(Fault {
            line: line_of(self.text, span.start),
            field,
            problem: problem.into(),
        });
    }

    pub(super) fn is_empty(&self) -> bool {
        self.list.borrow().is_empty()
    }

    pub(super) fn into_list(self) -> Vec<Fault> {
        self.list.take()
    }

    /// Returns a text with its references to the environment filled in.
    pub(super) fn text(
        &mut self,
        name: &str,
        value: &Spanned<String>,
        env: Env<'_>,
    ) -> Option<String> {
        match expand(value.get_ref(), env) {
            Ok(text) => Some(text),
            Err(problem) => {
                self.add(name, value.span(), problem);
                None
            }
        }
    }

    pub(super) fn absolute_path(
        &mut self,
        name: &str,
        value: &Spanned<String>,
        env: Env<'_>,
    ) -> Option<PathBuf> {
        let path = PathBuf::from(self.text(name, value, env)?);
        if path.is_absolute() {
            return Some(path);
        }
        let problem = format!("found `{}`, expected an absolute path", path.display());
        self.add(name, value.span(), problem);
        None
    }
}

/// Fills in `${NAME}`; `$$` stands for `$`. An unset name is an error, never an empty text.
pub(super) fn expand(text: &str, env: Env<'_>) -> Result<String, String> {
    let mut out = String::new();
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        out.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        if let Some(behind) = rest.strip_prefix('$') {
            out.push('$');
            rest = behind;
        } else if let Some((name, behind)) =
            rest.strip_prefix('{').and_then(|rest| rest.split_once('}'))
        {
            let value = env.get(name).filter(|value| !value.is_empty());
            out.push_str(
                value.ok_or_else(|| format!("the environment variable {name} is not set"))?,
            );
            rest = behind;
        } else {
            return Err(
                "a `$` that begins no `${NAME}`; write `$$` for the character itself".to_owned()
            );
        }
    }
    out.push_str(rest);
    Ok(out)
}
