//! What `backstay archives` is told.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use crate::exit::EXIT_CODES;

#[derive(Debug, Subcommand)]
pub(crate) enum ArchivesCommand {
    /// Archive the rows that are old enough, and delete them from the table if that is configured
    #[command(after_help = EXIT_CODES)]
    Run {
        /// Which archives
        #[arg(required_unless_present = "all")]
        names: Vec<String>,
        /// All archives of the configuration
        #[arg(long, conflicts_with = "names")]
        all: bool,
        /// Count what would be archived, and stop
        #[arg(long)]
        dry_run: bool,
        /// Trust segments that are not sealed although the archive should be
        #[arg(long)]
        accept_unsealed: bool,
    },
    /// List the archives, or the segments of one
    #[command(after_help = EXIT_CODES)]
    List {
        /// Of this archive, its segments
        name: Option<String>,
        /// Print where each file lies instead, for other tools
        #[arg(long, requires = "name")]
        files: bool,
    },
    /// Read every file, and compare its rows with what was archived
    #[command(after_help = EXIT_CODES)]
    Verify {
        /// Which archives; all if left out
        names: Vec<String>,
    },
    /// Bring archived rows back, into a table or as Parquet files
    #[command(after_help = EXIT_CODES)]
    Restore(ArchiveRestoreArgs),
    /// Remove segments that were kept long enough, and what killed runs left
    #[command(after_help = EXIT_CODES)]
    Prune {
        /// Which archives; all if left out
        names: Vec<String>,
        /// Say what would be removed
        #[arg(long)]
        dry_run: bool,
    },
}

#[derive(Debug, Args)]
pub(crate) struct ArchiveRestoreArgs {
    /// Which archive
    pub(crate) name: String,
    /// From this partition on, for example 2026-01-03 or 2026-01
    #[arg(long, value_name = "PARTITION")]
    pub(crate) from: Option<String>,
    /// To this partition, with it
    #[arg(long, value_name = "PARTITION")]
    pub(crate) until: Option<String>,
    /// Into another table of the same database, which must exist
    #[arg(long, value_name = "TABLE")]
    pub(crate) to: Option<String>,
    /// As Parquet files below a directory that must not exist
    #[arg(long, value_name = "DIR", conflicts_with = "to")]
    pub(crate) to_file: Option<PathBuf>,
    /// Do not ask
    #[arg(long)]
    pub(crate) yes: bool,
    /// Say how many rows it would be, and stop
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Take segments that are not sealed although the archive should be
    #[arg(long)]
    pub(crate) accept_unsealed: bool,
}
