//! What `backstay worker` and `backstay workers` are told.

use backstay_format::Slug;
use clap::{Args, Subcommand};
use jiff::SignedDuration;

use super::jobs::time;
use crate::exit::EXIT_CODES;

#[derive(Debug, Args)]
pub(crate) struct WorkerArgs {
    /// What the worker is to be called; the name of this machine if left out
    #[arg(long)]
    pub(crate) name: Option<Slug>,
    /// The labels that it is chosen by, of those that the token allows; all of them if left out
    #[arg(long, value_delimiter = ',', value_name = "LABEL,…")]
    pub(crate) labels: Vec<Slug>,
    /// How many jobs are done at a time
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u16).range(1..))]
    pub(crate) jobs: u16,
}

#[derive(Debug, Subcommand)]
pub(crate) enum WorkersCommand {
    /// List the workers, and whether they are there
    #[command(after_help = EXIT_CODES)]
    List,
    /// Print a token with which one machine becomes a worker
    #[command(after_help = EXIT_CODES)]
    Invite {
        /// The only name that it may take; whichever it likes if left out
        #[arg(long)]
        name: Option<Slug>,
        /// The labels that it may take
        #[arg(long, value_delimiter = ',', value_name = "LABEL,…")]
        labels: Vec<Slug>,
        /// How long the token can be used
        #[arg(long, value_name = "TIME", default_value = "24h", value_parser = time)]
        valid: SignedDuration,
    },
    /// Make a worker none: it gets no job any more, and those that it has go to others
    #[command(after_help = EXIT_CODES)]
    Revoke {
        /// Its name
        name: Slug,
    },
}
