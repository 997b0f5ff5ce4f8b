//! What `backstay members` is told.

use backstay_control::Role;
use backstay_format::Slug;
use clap::Subcommand;
use jiff::SignedDuration;

use super::jobs::time;
use crate::exit::EXIT_CODES;

#[derive(Debug, Subcommand)]
pub(crate) enum MembersCommand {
    /// List the members
    #[command(after_help = EXIT_CODES)]
    List {
        /// Of this organisation only
        #[arg(long)]
        organisation: Option<Slug>,
    },
    /// Make a member, and print the token by which a person or a program is one; it is shown this once
    #[command(after_help = EXIT_CODES)]
    Add {
        /// Its name
        name: Slug,
        /// What it may do, each all that those before may: viewer (look), operator (back up, drill, test, cancel, hold), admin (release, delete, audit), owner
        #[arg(long, default_value = "viewer")]
        role: Role,
        /// Of which organisation it sees what there is; that of the configuration if left out
        #[arg(long)]
        organisation: Option<Slug>,
        /// How long the token can be used, for example 720h; for ever if left out
        #[arg(long, value_name = "TIME", value_parser = time)]
        valid: Option<SignedDuration>,
    },
    /// Make a member none: its next request is refused
    #[command(after_help = EXIT_CODES)]
    Revoke {
        /// Its name
        name: Slug,
        /// Of which organisation; that of the configuration if left out
        #[arg(long)]
        organisation: Option<Slug>,
    },
}
