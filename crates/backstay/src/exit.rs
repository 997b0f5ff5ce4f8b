//! How the program ends.

use backstay_control::{CatalogError, LeaseError};
use backstay_engine::cx::Cancelled;
use backstay_engine::error::{EngineError, ErrorKind};
use backstay_engine::source::SourceError;
use backstay_engine::store::{StoreError, StoreErrorKind};
use backstay_format::{FrameError, KitError};
use backstay_server::CallError;

use crate::config::ConfigError;

/// The exit codes, for help texts.
pub(crate) const EXIT_CODES: &str = "Exit codes: 0 done; 1 failed, nothing made; 2 usage or configuration; 3 incomplete \
backup made; 10 no vault; 11 source is being worked on by another; 12 wrong or missing key; 13 damaged data found; 14 not \
enough rights or space; 130 interrupted.";

/// Those of `guard`.
pub(crate) const GUARD_CODES: &str = "Exit codes: that of the command, if it was run: 126 and 127 if it cannot be started, 128 and \
the signal's number if it was killed. If it was not run, standard error says so: 1 a check or the backup before it failed; 2 usage \
or configuration; 3 the backup before it is incomplete; 11 source is being worked on by another; others as of `backstay backup`.";

/// How the program ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Exit {
    Done,
    Failed,
    Usage,
    Incomplete,
    NoVault,
    LeaseHeld,
    Key,
    Damaged,
    RightsOrSpace,
    Interrupted,
    /// As the command ended that was guarded.
    Command(u8),
}

/// Marks an error as the user's: a wrong call, not a failed one.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct UsageError(pub(crate) String);

impl Exit {
    /// Returns the code for the operating system.
    pub(crate) fn code(self) -> u8 {
        match self {
            Self::Done => 0,
            Self::Failed => 1,
            Self::Usage => 2,
            Self::Incomplete => 3,
            Self::NoVault => 10,
            Self::LeaseHeld => 11,
            Self::Key => 12,
            Self::Damaged => 13,
            Self::RightsOrSpace => 14,
            Self::Interrupted => 130,
            Self::Command(code) => code,
        }
    }

    /// Returns what a code means that another of our programs ended with.
    pub(crate) fn of_code(code: u8) -> Self {
        let all = [
            Self::Done,
            Self::Usage,
            Self::Incomplete,
            Self::NoVault,
            Self::LeaseHeld,
            Self::Key,
            Self::Damaged,
            Self::RightsOrSpace,
            Self::Interrupted,
        ];
        all.into_iter().find(|exit| exit.code() == code).unwrap_or(Self::Failed)
    }

    /// Finds the code in the first error of the chain that has one.
    pub(crate) fn of(error: &anyhow::Error) -> Self {
        error.chain().find_map(code).unwrap_or(Self::Failed)
    }

    /// How several things end together: a failure outweighs an incomplete backup, and failures that differ are just failures.
    pub(crate) fn and(self, other: Self) -> Self {
        match (self, other) {
            (Self::Interrupted, _) | (_, Self::Interrupted) => Self::Interrupted,
            (worst, Self::Done) | (Self::Done, worst) => worst,
            (worst, Self::Incomplete) | (Self::Incomplete, worst) => worst,
            (one, two) if one == two => one,
            _ => Self::Failed,
        }
    }
}

/// Says whether nothing was tried, since the call or the configuration is wrong.
pub(crate) fn is_wrong_call(error: &anyhow::Error) -> bool {
    error.is::<UsageError>() || error.is::<ConfigError>()
}

fn code(error: &(dyn std::error::Error + 'static)) -> Option<Exit> {
    if error.is::<ConfigError>() || error.is::<UsageError>() {
        return Some(Exit::Usage);
    }
    if let Some(engine) = error.downcast_ref::<EngineError>() {
        return Some(of_kind(engine.kind()));
    }
    if error.is::<Cancelled>() {
        return Some(Exit::Interrupted);
    }
    if let Some(lease) = error.downcast_ref::<LeaseError>() {
        return match lease {
            LeaseError::Held { .. } | LeaseError::Lost { .. } => Some(Exit::LeaseHeld),
            LeaseError::Catalog(error) => of_catalog(error),
        };
    }
    if let Some(source) = error.downcast_ref::<SourceError>() {
        return matches!(source, SourceError::Damaged { .. }).then_some(Exit::Damaged);
    }
    if let Some(store) = error.downcast_ref::<StoreError>() {
        return matches!(store.kind(), StoreErrorKind::Denied | StoreErrorKind::NoSpace)
            .then_some(Exit::RightsOrSpace);
    }
    if let Some(catalog) = error.downcast_ref() {
        return of_catalog(catalog);
    }
    if let Some(call) = error.downcast_ref::<CallError>() {
        return match call {
            CallError::Address { .. } | CallError::Certificates(_) | CallError::NoCertificates => {
                Some(Exit::Usage)
            }
            CallError::Unknown(_) | CallError::Refused { status: 403, .. } => {
                Some(Exit::RightsOrSpace)
            }
            CallError::Refused { status: 400, .. } => Some(Exit::Usage),
            CallError::Failed { exit_code, .. } => exit_code.map(Exit::of_code),
            _ => None,
        };
    }
    if let Some(kit) = error.downcast_ref::<KitError>() {
        return Some(if *kit == KitError::WrongPassphrase { Exit::Key } else { Exit::Usage });
    }
    match error.downcast_ref()? {
        FrameError::Key(_) => Some(Exit::Key),
        _ => Some(Exit::Damaged),
    }
}

fn of_catalog(error: &CatalogError) -> Option<Exit> {
    match error {
        CatalogError::MasterKey(_) | CatalogError::Keyring(_) => Some(Exit::Key),
        error => error.is_full().then_some(Exit::RightsOrSpace),
    }
}

fn of_kind(kind: ErrorKind) -> Exit {
    match kind {
        ErrorKind::Failed => Exit::Failed,
        ErrorKind::NoVault => Exit::NoVault,
        ErrorKind::Key => Exit::Key,
        ErrorKind::Damaged => Exit::Damaged,
        ErrorKind::RightsOrSpace => Exit::RightsOrSpace,
        ErrorKind::Interrupted(_) => Exit::Interrupted,
    }
}
