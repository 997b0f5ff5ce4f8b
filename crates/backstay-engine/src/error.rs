//! Why a verb failed.

use std::io;
use std::path::PathBuf;

use backstay_format::{BackupId, KeyError, KeyId, ManifestError, PartName, SlotError, Slug};

use crate::cx::{CancelReason, Cancelled};
use crate::part::PartError;
use crate::source::SourceError;
use crate::source::redis::RedisError;
use crate::store::{StoreError, StoreErrorKind};

/// Why a verb failed.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// The source could not be read, or the target not written.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// A part could not be passed on, or is not what it must be.
    #[error(transparent)]
    Part(#[from] PartError),
    /// The storage failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A key is missing.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// Key slots in the vault could not be used.
    #[error(transparent)]
    Slot(#[from] SlotError),
    /// There is no vault at the storage.
    #[error(
        "there is no vault at {location}; the first backup makes one, or the bucket or prefix is another"
    )]
    NoVault {
        /// The storage.
        location: String,
    },
    /// All keys of the vault are another installation's.
    #[error(
        "the vault at {location} has the backups of another installation, none of whose keys is known here ({}); nothing was \
         written. If they are yours, take the keys in: `backstay keys import` of what `backstay keys export` wrote there, or \
         `backstay recover` with the kit, into an empty home; else give this storage a prefix of its own",
        listed(keys)
    )]
    ForeignKeys {
        /// The storage.
        location: String,
        /// The keys.
        keys: Vec<KeyId>,
    },
    /// The object that makes a vault is not one.
    #[error("{location} holds a vault that this program cannot use: {finding}")]
    UnusableVault {
        /// The storage.
        location: String,
        /// What was found.
        finding: String,
    },
    /// The backup's manifest could not be used.
    #[error("cannot use the manifest of backup {backup}")]
    Manifest {
        /// Which backup.
        backup: BackupId,
        /// Why.
        #[source]
        cause: ManifestError,
    },
    /// There is no such backup.
    #[error(
        "source {source_name} has no backup {wanted}; list them with `backstay backups {source_name}`"
    )]
    NoSuchBackup {
        /// Of which source.
        source_name: Slug,
        /// What was asked for.
        wanted: String,
    },
    /// A part in the vault is not what the manifest says.
    #[error("part {part} of backup {backup} is damaged: {finding}")]
    DamagedPart {
        /// Of which backup.
        backup: BackupId,
        /// Which part.
        part: PartName,
        /// What was found.
        finding: String,
    },
    /// A text is too large to be kept as one.
    #[error("found a text of {bytes} bytes, expected at most {most}")]
    TooLarge {
        /// How large it is.
        bytes: u64,
        /// How large it may be.
        most: u64,
    },
    /// The backup is not sealed although its source should be.
    #[error(
        "backup {backup} is not sealed, so nothing proves that nobody altered it; take it with --accept-unsealed if you know why"
    )]
    Unsealed {
        /// Which backup.
        backup: BackupId,
    },
    /// A held backup was to be removed.
    #[error(
        "backup {backup} is held ({reason}); release it first with `backstay release {backup}`"
    )]
    Held {
        /// Which backup.
        backup: BackupId,
        /// Why it is held.
        reason: String,
    },
    /// The loaded restore could not be put into its place; the target is as it was.
    #[error("cannot {action} {path}")]
    Swap {
        /// What was being done, in a verb.
        action: &'static str,
        /// To what.
        path: PathBuf,
        /// What the system said.
        #[source]
        cause: io::Error,
    },
    /// What was written down of a restore does not fit the source any more.
    #[error(
        "the record of the restore is of another kind of source than the configuration's: {found}"
    )]
    ForeignSwap {
        /// What was written down.
        found: String,
    },
    /// A restore that nobody can take back failed in the middle.
    #[error("the restore failed half-way, and nobody knows what is there now; {}", way_out(safety.as_ref()))]
    HalfDone {
        /// The backup of what was there before.
        safety: Option<BackupId>,
        /// What failed.
        #[source]
        cause: Box<EngineError>,
    },
    /// Something came to the place of a restore that was to replace nothing.
    #[error(
        "{target} was not there when the restore was planned, and is there by now; nothing was replaced, and what was loaded is removed"
    )]
    CameMeanwhile {
        /// Where.
        target: String,
    },
    /// What is there cannot be saved, so it was not replaced.
    #[error(
        "what would be replaced cannot be backed up first, so nothing was replaced; if it is broken beyond saving, restore with --no-safety-backup"
    )]
    SafetyBackup(#[source] Box<EngineError>),
    /// The backup of what is there lacks some of it, and would be the only copy.
    #[error("{missing} items are not in it, `backstay show {backup}` names them")]
    NotAllSaved {
        /// The backup.
        backup: BackupId,
        /// How many.
        missing: u64,
    },
    /// A hook failed.
    #[error("hook {hook} failed: {finding}")]
    Hook {
        /// Which hook, as in the configuration.
        hook: &'static str,
        /// What happened.
        finding: String,
    },
    /// The caller could not write down what is about to happen, so it did not happen.
    #[error("cannot record the restore before it replaces anything")]
    Journal(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The machine's clock is far off.
    #[error("this machine's clock says {now}; correct it first (timedatectl set-ntp true)")]
    WrongClock {
        /// What it says.
        now: jiff::Timestamp,
    },
    /// Retention found a reason to do nothing.
    #[error(transparent)]
    Retention(#[from] backstay_format::retention::RetentionError),
    /// What was decoded was not taken any more; whoever took it has the error that matters.
    #[error("nobody reads this part any more")]
    ReaderGone,
    /// A thread of ours ended without an answer.
    #[error("the {thread} thread died; this is a defect of backstay, please report it")]
    ThreadDied {
        /// Which thread.
        thread: &'static str,
    },
    /// Told to stop.
    #[error(transparent)]
    Cancelled(#[from] Cancelled),
}

/// Why something that failed may work later, with nothing changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Passing {
    /// It gave way to the app, which is done soon.
    GaveWay,
    /// A storage, a server or the way to it is out of order.
    Outage,
}

/// What a caller may do about an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorKind {
    /// Nothing more precise.
    Failed,
    /// There is no vault.
    NoVault,
    /// A key is wrong or missing.
    Key,
    /// Stored or live data is damaged.
    Damaged,
    /// A right or space is missing.
    RightsOrSpace,
    /// Told to stop.
    Interrupted(CancelReason),
}

impl EngineError {
    /// Says whether what a swap would move is not there any more, so that nobody can finish it.
    pub fn is_gone(&self) -> bool {
        match self {
            Self::Source(SourceError::Redis(RedisError::Gone { .. })) => true,
            Self::Swap { cause, .. } => cause.kind() == io::ErrorKind::NotFound,
            _ => false,
        }
    }

    /// Says why the same may work later, with nothing changed, if it may.
    pub fn passing(&self) -> Option<Passing> {
        match self {
            Self::Source(error) => error.passing(),
            Self::Store(error) => error.kind().is_outage().then_some(Passing::Outage),
            _ => None,
        }
    }

    /// Says what a caller may do about it.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::NoVault { .. } => ErrorKind::NoVault,
            Self::Key(_) | Self::Slot(_) | Self::ForeignKeys { .. } => ErrorKind::Key,
            Self::Manifest { cause: ManifestError::Key(_), .. } => ErrorKind::Key,
            Self::Manifest { .. } | Self::DamagedPart { .. } => ErrorKind::Damaged,
            Self::Cancelled(Cancelled(reason)) => ErrorKind::Interrupted(*reason),
            Self::Source(error) => source_kind(error),
            Self::Part(error) => part_kind(error),
            Self::Store(error) => store_kind(error),
            Self::Swap { cause, .. } => io_kind(cause),
            Self::SafetyBackup(cause) | Self::HalfDone { cause, .. } => cause.kind(),
            Self::UnusableVault { .. }
            | Self::NotAllSaved { .. }
            | Self::NoSuchBackup { .. }
            | Self::Unsealed { .. }
            | Self::TooLarge { .. }
            | Self::Held { .. }
            | Self::Hook { .. }
            | Self::ForeignSwap { .. }
            | Self::CameMeanwhile { .. }
            | Self::Journal(_)
            | Self::Retention(_)
            | Self::WrongClock { .. }
            | Self::ReaderGone
            | Self::ThreadDied { .. } => ErrorKind::Failed,
        }
    }
}

fn listed(keys: &[KeyId]) -> String {
    keys.iter().map(KeyId::as_str).collect::<Vec<_>>().join(", ")
}

fn way_out(safety: Option<&BackupId>) -> String {
    match safety {
        Some(safety) => format!(
            "what was there before is held as backup {safety}: mend what failed, and restore that or the other one"
        ),
        None => "mend what failed, and restore again".to_owned(),
    }
}

fn source_kind(error: &SourceError) -> ErrorKind {
    match error {
        SourceError::Damaged { .. } => ErrorKind::Damaged,
        SourceError::NoSpace { .. } => ErrorKind::RightsOrSpace,
        SourceError::Io { cause, .. } => io_kind(cause),
        SourceError::Cancelled(Cancelled(reason)) => ErrorKind::Interrupted(*reason),
        SourceError::Part(error) => part_kind(error),
        _ => ErrorKind::Failed,
    }
}

fn part_kind(error: &PartError) -> ErrorKind {
    match error {
        PartError::Refused { .. } => ErrorKind::Damaged,
        PartError::CutShort { .. } => ErrorKind::Failed,
        PartError::Failed { cause, .. } => {
            let of_engine = cause.downcast_ref::<EngineError>().map(EngineError::kind);
            let of_source = || cause.downcast_ref::<SourceError>().map(source_kind);
            of_engine.or_else(of_source).unwrap_or(ErrorKind::Failed)
        }
    }
}

fn store_kind(error: &StoreError) -> ErrorKind {
    match error.kind() {
        StoreErrorKind::NoSpace | StoreErrorKind::Denied => ErrorKind::RightsOrSpace,
        StoreErrorKind::Corrupt => ErrorKind::Damaged,
        StoreErrorKind::Cancelled => error
            .cancellation()
            .map_or(ErrorKind::Failed, |cancelled| ErrorKind::Interrupted(cancelled.0)),
        _ => ErrorKind::Failed,
    }
}

fn io_kind(error: &io::Error) -> ErrorKind {
    match error.kind() {
        io::ErrorKind::PermissionDenied
        | io::ErrorKind::StorageFull
        | io::ErrorKind::QuotaExceeded => ErrorKind::RightsOrSpace,
        _ => ErrorKind::Failed,
    }
}
