//! The command line.

mod archives;
mod jobs;
mod members;
mod restore;
mod workers;

use std::path::PathBuf;

use clap::builder::{OsStringValueParser, TypedValueParser};
use clap::{Args, Parser, Subcommand};

pub(crate) use self::archives::{ArchiveRestoreArgs, ArchivesCommand};
pub(crate) use self::jobs::{GuardArgs, JobsCommand, ServeArgs};
pub(crate) use self::members::MembersCommand;
pub(crate) use self::restore::{RecoverArgs, RestoreArgs};
pub(crate) use self::workers::{WorkerArgs, WorkersCommand};
use crate::exit::{EXIT_CODES, GUARD_CODES};

/// Backs up databases and app data to object storage, and gives them back.
#[derive(Debug, Parser)]
#[command(name = "backstay", version, after_help = EXIT_CODES, propagate_version = true)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) global: Global,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// Reads a path that may be empty: a variable that is set to nothing names nothing.
fn path_or_nothing() -> impl TypedValueParser<Value = PathBuf> {
    OsStringValueParser::new().map(PathBuf::from)
}

#[derive(Debug, Clone, Args)]
pub(crate) struct Global {
    /// The configuration; by default backstay.toml here, else /etc/backstay/backstay.toml
    #[arg(long, global = true, env = "BACKSTAY_CONFIG", value_name = "FILE", value_parser = path_or_nothing())]
    pub(crate) config: Option<PathBuf>,
    /// Where keys and the catalog are kept; by default ~/.local/share/backstay, for root /var/lib/backstay
    #[arg(long, global = true, env = "BACKSTAY_HOME", value_name = "DIR", value_parser = path_or_nothing())]
    pub(crate) home: Option<PathBuf>,
    /// A server to ask instead of working on this machine's home directory; for `backstay worker`, the one it works for
    #[arg(long, global = true, env = "BACKSTAY_SERVER", value_name = "URL")]
    pub(crate) server: Option<String>,
    /// The file with the token to show it, as `backstay members add` prints it (or BACKSTAY_TOKEN); a worker needs that of `backstay workers invite`, the first time
    #[arg(long, global = true, value_name = "FILE")]
    pub(crate) token_file: Option<PathBuf>,
    /// Certificates to trust besides those of the system, in PEM
    #[arg(long, global = true, value_name = "FILE")]
    pub(crate) ca_file: Option<PathBuf>,
    /// Print JSON: one document, and one line for each event on standard error
    #[arg(long, global = true)]
    pub(crate) json: bool,
    /// Print results and errors only
    #[arg(long, short, global = true)]
    pub(crate) quiet: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Tell the whole story on a made-up app: back up, lose everything, get it back
    Quickstart,
    /// Write a commented backstay.toml
    #[command(after_help = EXIT_CODES)]
    Init {
        /// Where to; an existing file is never replaced
        #[arg(default_value = "backstay.toml")]
        file: PathBuf,
    },
    /// Look at the configuration
    #[command(subcommand)]
    Config(ConfigCommand),
    /// Find out what is wrong, and say what to do
    #[command(after_help = EXIT_CODES)]
    Doctor,
    /// Say of each source whether it is protected
    #[command(after_help = EXIT_CODES)]
    Status {
        /// Exit with 1 unless all is good, for monitoring
        #[arg(long)]
        check: bool,
    },
    /// Look at sources, add, change and remove them
    #[command(subcommand)]
    Source(SourceCommand),
    /// Look at storages, add, test, change and remove them
    #[command(subcommand)]
    Storage(StorageCommand),
    /// Back up now
    #[command(after_help = EXIT_CODES)]
    Backup(BackupArgs),
    /// Make backups of dumps and archives that other programs made
    #[command(after_help = EXIT_CODES)]
    Import(ImportArgs),
    /// List backups, newest first
    #[command(after_help = EXIT_CODES)]
    Backups {
        /// Of this source only
        source: Option<String>,
        /// Only so many of all sources, as they were seen last; the storages are not asked
        #[arg(long, value_name = "N", conflicts_with = "source", value_parser = clap::value_parser!(u32).range(1..=1000))]
        newest: Option<u32>,
    },
    /// Show one backup
    #[command(after_help = EXIT_CODES)]
    Show {
        /// Its id, or the beginning of it
        id: String,
    },
    /// Keep a backup from being forgotten
    Hold {
        /// Its id, or the beginning of it
        id: String,
        /// Why
        #[arg(long, default_value = "held by hand")]
        reason: String,
    },
    /// Let a held backup be forgotten again
    Release {
        /// Its id, or the beginning of it
        id: String,
    },
    /// Delete one backup
    #[command(after_help = EXIT_CODES)]
    Delete {
        /// Its id, or the beginning of it
        id: String,
        /// Do not ask
        #[arg(long)]
        yes: bool,
    },
    /// Restore a source: preview, confirm, load beside, swap. A server (--server) and workers restore to the source's own place, or
    /// to a new database beside it
    #[command(after_help = EXIT_CODES)]
    Restore(RestoreArgs),
    /// Restore the newest good backup into a scratch place, ask the configured checks, and say how long it took
    #[command(after_help = EXIT_CODES)]
    Drill {
        /// Which source
        source: String,
        /// This backup instead: its id, or the beginning of it
        #[arg(long)]
        id: Option<String>,
    },
    /// Put back what the last restore replaced
    #[command(after_help = EXIT_CODES)]
    Undo {
        /// Of this source; the last of all if left out, where no workers and no server are asked
        source: Option<String>,
    },
    /// Let go of what the last restore replaced
    #[command(after_help = EXIT_CODES)]
    Confirm {
        /// Of this source; the last of all if left out, where no workers and no server are asked
        source: Option<String>,
    },
    /// Read and authenticate every byte of backups
    #[command(after_help = EXIT_CODES)]
    Verify {
        /// A source (its newest backup) or the id of a backup
        what: Option<String>,
        /// All backups of all sources
        #[arg(long, conflicts_with = "what")]
        all: bool,
    },
    /// Check the structure of the vaults without reading the parts
    #[command(after_help = EXIT_CODES)]
    Check,
    /// Fetch a part of a backup as a file
    #[command(after_help = EXIT_CODES)]
    Download {
        /// The backup's id, or the beginning of it
        id: String,
        /// Which part; needed if there are several
        #[arg(long)]
        part: Option<String>,
        /// The file to write; it must not exist
        #[arg(long, short)]
        output: PathBuf,
        /// As it lies on the storage: compressed, and sealed if it is
        #[arg(long)]
        sealed: bool,
    },
    /// Open a downloaded sealed object, offline
    #[command(after_help = EXIT_CODES)]
    Decrypt {
        /// The downloaded file
        file: PathBuf,
        /// The file to write; it must not exist
        #[arg(long, short)]
        output: PathBuf,
        /// Take the keys from this recovery kit instead of the home directory
        #[arg(long)]
        kit: Option<PathBuf>,
    },
    /// Forget backups by the sources' retention rules
    #[command(after_help = EXIT_CODES)]
    Forget {
        /// Of this source only
        source: Option<String>,
        /// Say what would be forgotten, and why
        #[arg(long)]
        dry_run: bool,
    },
    /// Remove objects that no manifest names
    #[command(after_help = EXIT_CODES)]
    Prune {
        /// Say what would be removed
        #[arg(long)]
        dry_run: bool,
    },
    /// Archive old rows of tables; archives are no backups
    #[command(subcommand)]
    Archives(ArchivesCommand),
    /// Look after the catalog: settings and the index of backups
    #[command(subcommand)]
    Catalog(CatalogCommand),
    /// Look after the keys that seal backups
    #[command(subcommand)]
    Keys(KeysCommand),
    /// Back up by the schedules of the sources, until told to end
    #[command(after_help = EXIT_CODES)]
    Serve(ServeArgs),
    /// Make and try backups on this machine for a server elsewhere, until told to end
    #[command(after_help = EXIT_CODES)]
    Worker(WorkerArgs),
    /// Look after workers on other machines: invite, list, revoke
    #[command(subcommand)]
    Workers(WorkersCommand),
    /// Look after members, who ask this machine's server from elsewhere: add, list, revoke
    #[command(subcommand)]
    Members(MembersCommand),
    /// Show who changed, restored or took something away, newest first
    #[command(after_help = EXIT_CODES)]
    Audit {
        /// So many
        #[arg(long, default_value_t = 20)]
        limit: u32,
    },
    /// Look at jobs: what waits, what is being done, what became of the rest
    #[command(subcommand)]
    Jobs(JobsCommand),
    /// Run a command that changes sources, such as a deploy: check before that they can be backed up, back up after it
    #[command(after_help = GUARD_CODES)]
    Guard(GuardArgs),
    /// Make a fresh installation from a storage and a recovery kit alone
    #[command(after_help = EXIT_CODES)]
    Recover(RecoverArgs),
    /// Print completions for a shell
    Completions {
        /// Which shell
        shell: clap_complete::Shell,
    },
    /// Write man pages into a directory
    Man {
        /// Where to
        #[arg(default_value = ".")]
        directory: PathBuf,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum ConfigCommand {
    /// Say what is wrong with it
    Check,
    /// Print it as it counts, with all defaults and without secrets, as JSON
    Show,
    /// Print the JSON schema of backstay.toml, for editors
    Schema,
    /// Print what `storage add` and `source add` keep in the catalog, as backstay.toml; sealed secrets are not in it
    Export,
    /// Keep the storages and sources of a file in the catalog, as `storage add` and `source add` do
    Import {
        /// The file
        file: PathBuf,
        /// Replace what is kept by the same names
        #[arg(long)]
        replace: bool,
    },
}

#[derive(Debug, Args)]
pub(crate) struct SourceAdd {
    /// Its name
    pub(crate) name: String,
    /// files, sqlite, duckdb, postgres, mysql, redis or command
    #[arg(long)]
    pub(crate) kind: String,
    /// The root of the tree, or the database's file
    #[arg(long, required_unless_present = "url")]
    pub(crate) path: Option<String>,
    /// Where a database on a server is, without its password: that is for --credentials, or --set 'password = "${NAME}"'
    #[arg(long, conflicts_with = "path")]
    pub(crate) url: Option<String>,
    /// The storage for its backups
    #[arg(long)]
    pub(crate) storage: String,
    /// When it is to be backed up
    #[arg(long)]
    pub(crate) schedule: Option<String>,
    /// Ask for the database's password, or read it from a line of standard input; it is kept sealed
    #[arg(long, requires = "url")]
    pub(crate) credentials: bool,
    /// Another setting, as a line of the file: --set 'keep = { last = 7 }'
    #[arg(long, value_name = "LINE")]
    pub(crate) set: Vec<String>,
}

/// Changes of what is kept of a source or a storage.
#[derive(Debug, Args)]
pub(crate) struct SetArgs {
    /// Its name
    pub(crate) name: String,
    /// A setting, as a line of the file: --set 'schedule = "daily"'; all others stay
    #[arg(long, value_name = "LINE", required_unless_present = "unset")]
    pub(crate) set: Vec<String>,
    /// A setting of which nothing is said any more
    #[arg(long, value_name = "FIELD")]
    pub(crate) unset: Vec<String>,
    /// Ask for password or access key anew, or read them from standard input
    #[arg(long)]
    pub(crate) credentials: bool,
}

#[derive(Debug, Args)]
pub(crate) struct StorageAdd {
    /// Its name
    pub(crate) name: String,
    /// The bucket of an S3-compatible storage
    #[arg(long, required_unless_present = "path")]
    pub(crate) bucket: Option<String>,
    /// The provider's endpoint; none is AWS
    #[arg(long, requires = "bucket")]
    pub(crate) endpoint: Option<String>,
    /// The bucket's region
    #[arg(long, requires = "bucket")]
    pub(crate) region: Option<String>,
    /// Ask for an access key, or read it and its secret from two lines of standard input; else the machine's own are used
    #[arg(long, requires = "bucket")]
    pub(crate) credentials: bool,
    /// A directory instead of a bucket
    #[arg(long, conflicts_with = "bucket")]
    pub(crate) path: Option<String>,
    /// The folder of the vault in it
    #[arg(long)]
    pub(crate) prefix: Option<String>,
    /// Another setting, as a line of the file: --set 'addressing = "virtual"'
    #[arg(long, value_name = "LINE")]
    pub(crate) set: Vec<String>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum SourceCommand {
    /// List the sources
    List,
    /// Add a source; it is kept in the catalog, the file stays as it is
    Add(SourceAdd),
    /// Change settings of an added source
    Set(SetArgs),
    /// Set or replace the database password of an added source; it is asked for, or read from a line of standard input
    Credentials {
        /// Its name
        name: String,
    },
    /// Forget an added source; its backups stay
    Remove {
        /// Its name
        name: String,
    },
    /// Look at a source as a backup would: is it there, how large is it
    Test {
        /// Its name
        name: String,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum StorageCommand {
    /// List the storages
    List,
    /// Test a storage and add it; it is kept in the catalog, the file stays as it is
    Add(StorageAdd),
    /// Change settings of an added storage, if its test passes with them
    Set(SetArgs),
    /// Forget an added storage; what lies on it stays
    Remove {
        /// Its name
        name: String,
    },
    /// Try everything that backups need, and remember what the storage can do
    Test {
        /// Its name
        name: String,
    },
    /// Set or replace a storage's S3 credentials; they are asked for, or read from two lines of standard input
    Credentials {
        /// Its name
        name: String,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum CatalogCommand {
    /// List the backups of catalogs on all storages; `recover` takes the settings from there
    #[command(after_help = EXIT_CODES)]
    List,
    /// Back up the catalog now, to every storage that has a vault; each backup of a source does so too, if something changed
    #[command(after_help = EXIT_CODES)]
    Backup,
    /// Write the index of backups anew from what the vaults hold
    #[command(after_help = EXIT_CODES)]
    Rebuild,
}

#[derive(Debug, Subcommand)]
pub(crate) enum KeysCommand {
    /// List the keys; the newest seals
    List,
    /// Make a new key; older ones go on opening older backups
    Rotate,
    /// Write a recovery kit: keep it away from this machine. Its passphrase is asked for, or BACKSTAY_KIT_PASSPHRASE
    Kit {
        /// The file to write; it must not exist
        #[arg(long, short)]
        output: PathBuf,
    },
    /// Write all keys, under a passphrase, for another installation
    Export {
        /// The file to write; it must not exist
        #[arg(long, short)]
        output: PathBuf,
    },
    /// Take over the keys of an export or a kit
    Import {
        /// The file
        file: PathBuf,
    },
}

#[derive(Debug, Args)]
pub(crate) struct BackupArgs {
    /// Which sources
    #[arg(required_unless_present = "all")]
    pub(crate) sources: Vec<String>,
    /// All sources of the configuration
    #[arg(long, conflicts_with = "sources")]
    pub(crate) all: bool,
    /// A note to keep with the backup
    #[arg(long)]
    pub(crate) note: Option<String>,
    /// Hold the backup: retention does not touch it
    #[arg(long)]
    pub(crate) hold: bool,
    /// What starts it
    #[arg(long, default_value = "manual", value_parser = ["manual", "scheduled", "pre-deploy", "post-deploy"])]
    pub(crate) trigger: String,
}

#[derive(Debug, Args)]
pub(crate) struct ImportArgs {
    /// Of which source the backups are to be
    pub(crate) source: String,
    /// Dumps, or directories of dumps: archives and scripts of pg_dump, scripts of mysqldump, RDB files, tars, databases of SQLite
    /// and DuckDB, each as it is or packed by gzip or zstd; exports of DuckDB
    #[arg(required = true, value_name = "PATH")]
    pub(crate) paths: Vec<PathBuf>,
    /// When the dump was made, for example 2026-03-08T12:00:00Z; else what its name says in UTC, what it says itself, or when
    /// the file was written
    #[arg(long, value_name = "TIME")]
    pub(crate) taken_at: Option<jiff::Timestamp>,
    /// The SHA-256 that the dump must have; else the one in FILE.sha256 beside it, if that is there
    #[arg(long, value_name = "HEX")]
    pub(crate) sha256: Option<String>,
    /// A note to keep with the backups; else what lies beside the dump as .meta.json
    #[arg(long)]
    pub(crate) note: Option<String>,
    /// Hold the backups: retention does not touch them
    #[arg(long)]
    pub(crate) hold: bool,
    /// Say what would be imported, and make nothing
    #[arg(long)]
    pub(crate) dry_run: bool,
}
