//! What is asked of a job.

use std::path::PathBuf;

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
    /// Backups of the dumps that lie in a directory of the server's machine.
    Import {
        /// Which directory.
        from: PathBuf,
    },
    /// A look at what a restore would do.
    Preview(RestoreSpec),
    /// A restore.
    Restore(RestoreSpec),
    /// Putting back what the newest restore replaced.
    Undo,
    /// Letting go of what the newest restore replaced.
    Confirm,
}

/// What is asked of a restore to a source's own place, or beside it. One that says more than this program knows is refused: what it
/// leaves out could be where to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RestoreSpec {
    /// Which backup.
    pub backup: BackupId,
    /// The name of a new database on the source's server; none for the source's own place.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to: Option<String>,
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

impl RestoreSpec {
    /// Says whether what is there is backed up before: beside it nothing is replaced.
    pub fn wants_safety(&self) -> bool {
        self.to.is_none() && self.safety_backup
    }
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
            Self::Import { .. } => JobKind::Import,
            Self::Preview(_) => JobKind::Preview,
            Self::Restore(_) => JobKind::Restore,
            Self::Undo => JobKind::Undo,
            Self::Confirm => JobKind::Confirm,
        }
    }

    /// Says whether the server asks itself for it, so that nobody waits.
    pub(crate) fn is_of_server(&self) -> bool {
        matches!(self, Self::Import { .. })
    }

    /// Says whether it changes what the source's app sees.
    pub fn is_change(&self) -> bool {
        JobKind::CHANGES.contains(&self.kind())
    }

    /// Says whether it is part of restoring the source: looking at it before, doing it, and what comes after.
    pub fn is_of_restore(&self) -> bool {
        self.is_change() || matches!(self, Self::Preview(_))
    }

    /// Says whether it is a look at, or a restore to, a new place beside the source, which replaces nothing.
    pub fn is_beside(&self) -> bool {
        matches!(self, Self::Preview(spec) | Self::Restore(spec) if spec.to.is_some())
    }

    /// Returns which backup it is given, if it is.
    pub fn backup(&self) -> Option<&BackupId> {
        match self {
            Self::Drill { backup } => Some(backup),
            Self::Preview(spec) | Self::Restore(spec) => Some(&spec.backup),
            Self::Backup(_) | Self::Test | Self::Import { .. } | Self::Undo | Self::Confirm => None,
        }
    }
}

impl Default for JobSpec {
    /// What the scheduler asks.
    fn default() -> Self {
        Self::Backup(BackupSpec { trigger: Trigger::Scheduled, note: None, hold: false })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn restore_that_says_more_than_this_program_knows_is_refused() {
        let spec = RestoreSpec {
            backup: "20260501T100000Z-22222222".parse().unwrap(),
            to: None,
            only: Vec::new(),
            in_place: false,
            accept_unsealed: false,
            safety_backup: true,
            replaces: None,
            worker: None,
        };
        let mut told = serde_json::to_value(JobSpec::Restore(spec.clone())).unwrap();
        assert_eq!(
            serde_json::from_value::<JobSpec>(told.clone()).unwrap(),
            JobSpec::Restore(spec)
        );
        told["restore"]["to_server"] = "elsewhere".into();
        let refused = serde_json::from_value::<JobSpec>(told).unwrap_err().to_string();
        assert!(refused.contains("to_server"), "{refused}");
    }
}
