//! What `backstay serve`, `jobs` and `guard` are told.

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Args, Subcommand};
use jiff::SignedDuration;

use crate::config::parse_duration;
use crate::exit::EXIT_CODES;

#[derive(Debug, Args)]
pub(crate) struct ServeArgs {
    /// How many jobs are done at a time
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u16).range(1..))]
    pub(crate) jobs: u16,
    /// Answer workers and members on other machines at this address, for example 0.0.0.0:8420
    #[arg(long, value_name = "ADDRESS")]
    pub(crate) listen: Option<SocketAddr>,
    /// The file of the certificate to answer with, its chain behind it, in PEM; read anew each hour
    #[arg(long, value_name = "FILE", requires_all = ["tls_key", "listen"])]
    pub(crate) tls_certificate: Option<PathBuf>,
    /// The file of its key
    #[arg(long, value_name = "FILE", requires = "tls_certificate")]
    pub(crate) tls_key: Option<PathBuf>,
    /// Answer without TLS on an address that is not this machine's own: a proxy in front of it speaks TLS
    #[arg(long, requires = "listen", conflicts_with = "tls_certificate")]
    pub(crate) behind_proxy: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum JobsCommand {
    /// List jobs, newest first
    #[command(after_help = EXIT_CODES)]
    List {
        /// Of this source only
        source: Option<String>,
        /// So many
        #[arg(long, default_value_t = 20)]
        limit: u32,
    },
    /// Show one job, and what was said while it was done
    #[command(after_help = EXIT_CODES)]
    Show {
        /// Its id, or the beginning of it
        id: String,
    },
    /// Cancel a job that waits or is being done by a server
    #[command(after_help = EXIT_CODES)]
    Cancel {
        /// Its id, or the beginning of it
        id: String,
        /// Why
        #[arg(long, default_value = "cancelled by hand")]
        reason: String,
    },
    /// Delete jobs that failed or were cancelled from the list, but for the newest run of a source; no backup is touched
    #[command(after_help = EXIT_CODES)]
    Delete {
        /// Their ids, or the beginnings of them
        #[arg(required = true, value_name = "ID")]
        ids: Vec<String>,
    },
}

#[derive(Debug, Args)]
pub(crate) struct GuardArgs {
    /// A source that the command may change; may be given several times
    #[arg(long = "source", value_name = "SOURCE", required_unless_present = "all")]
    pub(crate) sources: Vec<String>,
    /// All sources of the configuration
    #[arg(long, conflicts_with = "sources")]
    pub(crate) all: bool,
    /// Back up before the command, too; it is not run if that fails
    #[arg(long)]
    pub(crate) before: bool,
    /// How long to wait for another who works on a source, for example 90s or 10m
    #[arg(long, value_name = "TIME", default_value = "10m", value_parser = time)]
    pub(crate) wait: SignedDuration,
    /// The command and its arguments, behind --
    #[arg(last = true, required = true, value_name = "COMMAND")]
    pub(crate) command: Vec<OsString>,
}

pub(super) fn time(text: &str) -> Result<SignedDuration, &'static str> {
    let time = parse_duration(text).filter(|time| !time.is_negative());
    time.ok_or("expected a time such as 90s, 10m or 1h")
}
