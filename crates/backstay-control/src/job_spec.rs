//! What is asked of a job.

use backstay_format::{BackupId, Slug, Trigger};
use serde::{Deserialize, Serialize};

use crate::JobKind;

/// What is asked of a job that waits for somebody to do it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum JobSpec {
    /// A backup.
    Backup(BackupSpec),
    /// A restore of a backup into a scratch place.
    Drill {
        /// Which one.
        backup: BackupId,
    },
    /// A look at the source.
    Test,
    /// A look at what a restore to the source's own place would do.
    Preview(RestoreSpec),
    /// A restore to the source's own place.
    Restore(RestoreSpec),
    /// Putting back what the newest restore replaced.
    Undo,
    /// Letting go of what the newest restore replaced.
    Confirm,
}

/// What is asked of a restore to a source's own place.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RestoreSpec {
    /// Which backup.
    pub backup: BackupId,
    /// Only this of it: paths or tables; all of it if empty.
    pub only: Vec<String>,
    /// Whether what is there is replaced name by name, or in one transaction, instead of swapped as a whole.
    pub in_place: bool,
    /// Whether a backup is taken that is not sealed although the source's should be.
    pub accept_unsealed: bool,
    /// Whether what is there is backed up before.
    pub safety_backup: bool,
    /// What somebody said yes to replacing: the target, as a preview names it; none where there was nothing.
    pub replaces: Option<String>,
    /// The worker that made the preview, if one did: another may see another place under the same name.
    pub worker: Option<Slug>,
}

/// What is asked of a backup.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackupSpec {
    /// What starts it.
    pub trigger: Trigger,
    /// A note to keep with it.
    pub note: Option<String>,
    /// Whether it is held, so that retention does not touch it.
    pub hold: bool,
}

impl JobSpec {
    /// Returns its kind.
    pub fn kind(&self) -> JobKind {
        match self {
            Self::Backup(_) => JobKind::Backup,
            Self::Drill { .. } => JobKind::Drill,
            Self::Test => JobKind::Test,
            Self::Preview(_) => JobKind::Preview,
            Self::Restore(_) => JobKind::Restore,
            Self::Undo => JobKind::Undo,
            Self::Confirm => JobKind::Confirm,
        }
    }

    /// Says whether it changes what the source's app sees.
    pub fn is_change(&self) -> bool {
        JobKind::CHANGES.contains(&self.kind())
    }

    /// Says whether it is part of restoring the source to its own place: looking at it before, doing it, and what comes after.
    pub fn is_of_restore(&self) -> bool {
        self.is_change() || matches!(self, Self::Preview(_))
    }

    /// Returns which backup it is given, if it is.
    pub fn backup(&self) -> Option<&BackupId> {
        match self {
            Self::Drill { backup } => Some(backup),
            Self::Preview(spec) | Self::Restore(spec) => Some(&spec.backup),
            Self::Backup(_) | Self::Test | Self::Undo | Self::Confirm => None,
        }
    }
}

impl Default for JobSpec {
    /// What the scheduler asks.
    fn default() -> Self {
        Self::Backup(BackupSpec { trigger: Trigger::Scheduled, note: None, hold: false })
    }
}
