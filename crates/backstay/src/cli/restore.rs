//! What `backstay restore` and `recover` are told.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::Args;

#[derive(Debug, Args)]
pub(crate) struct RestoreArgs {
    /// Which source
    pub(crate) source: String,
    /// The newest complete backup (the default)
    #[arg(long, conflicts_with_all = ["id", "at"])]
    pub(crate) latest: bool,
    /// This backup: its id, or the beginning of it
    #[arg(long)]
    pub(crate) id: Option<String>,
    /// The newest complete backup that began before this time, for example 2026-03-08T12:00:00Z
    #[arg(long, conflicts_with = "id", value_name = "TIME")]
    pub(crate) at: Option<jiff::Timestamp>,
    /// To another place, which must not exist or be empty: a path, the name of a database, or the URL of one on another server
    /// (with a password only as 'file:/path' or '${NAME}' that holds the URL)
    #[arg(long, value_name = "PLACE")]
    pub(crate) to: Option<OsString>,
    /// Only this: a path of a tree with all below it, a table (schema.table, schema.*), or one of several databases; may be
    /// given several times
    #[arg(long, value_name = "WHAT")]
    pub(crate) only: Vec<PathBuf>,
    /// Replace what is in the directory name by name, or in the database in one transaction, instead of swapping the whole
    #[arg(long, conflicts_with = "to")]
    pub(crate) in_place: bool,
    /// Write the part as a file instead, ready for other tools
    #[arg(long, value_name = "FILE", conflicts_with_all = ["to", "only", "in_place"])]
    pub(crate) to_file: Option<PathBuf>,
    /// Do not ask
    #[arg(long)]
    pub(crate) yes: bool,
    /// Show the preview and stop
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Do not back up what is replaced; it is kept beside the target all the same (refused where it is not: in a database in place)
    #[arg(long)]
    pub(crate) no_safety_backup: bool,
    /// Take a backup that is not sealed although the source's backups should be
    #[arg(long)]
    pub(crate) accept_unsealed: bool,
}

#[derive(Debug, Args)]
pub(crate) struct RecoverArgs {
    /// s3://bucket/prefix, or the directory of a local vault
    #[arg(long, value_name = "URL")]
    pub(crate) storage: String,
    /// The recovery kit; its passphrase is asked for, or BACKSTAY_KIT_PASSPHRASE
    #[arg(long, value_name = "FILE")]
    pub(crate) kit: PathBuf,
    /// The provider's endpoint; none is AWS
    #[arg(long)]
    pub(crate) endpoint: Option<String>,
    /// The bucket's region
    #[arg(long, default_value = "us-east-1")]
    pub(crate) region: String,
    /// Whose backups, if not the default organisation's, where no configuration comes back that says so
    #[arg(long, default_value = "default")]
    pub(crate) organisation: String,
    /// The settings of this catalog, by its id or the beginning of it, where those of several machines are there
    #[arg(long, value_name = "ID")]
    pub(crate) catalog: Option<String>,
}
