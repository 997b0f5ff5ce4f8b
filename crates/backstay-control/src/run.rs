//! What was tried and how it ended: the ground that `status` stands on.

use jiff::Timestamp;

use crate::{Catalog, CatalogError};

/// What was tried.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RunKind {
    /// A backup.
    Backup,
    /// A restore.
    Restore,
}

/// How a run ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RunState {
    /// It goes on, or its process died without a word.
    Running,
    /// All went well.
    Succeeded,
    /// A backup was made, but items are missing from it.
    Incomplete,
    /// It failed.
    Failed,
    /// It was told to stop.
    Cancelled,
}

impl RunKind {
    /// Returns the word for it in the catalog and in JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Backup => "backup",
            Self::Restore => "restore",
        }
    }
}

impl RunState {
    /// Returns the word for it in the catalog and in JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Succeeded => "succeeded",
            Self::Incomplete => "incomplete",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
        }
    }
}

/// The newest run of a source.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Run {
    /// How it ended, in a word.
    pub state: String,
    /// When it began.
    pub started_at: Timestamp,
    /// What went wrong.
    pub error: Option<String>,
}

impl Catalog {
    /// Writes down that something is tried.
    pub async fn begin_run(
        &self,
        id: &str,
        source: &str,
        kind: RunKind,
        now: Timestamp,
    ) -> Result<(), CatalogError> {
        let insert = "INSERT INTO runs (id, source, kind, state, started_at, holder) VALUES ($1, $2, $3, 'running', $4, $5)";
        let pid = std::process::id().to_string();
        let values = [
            id.into(),
            source.into(),
            kind.as_str().into(),
            now.as_microsecond().into(),
            pid.into(),
        ];
        self.execute("wrote down a run", insert, values).await.map(drop)
    }

    /// Writes down how it ended.
    pub async fn end_run(
        &self,
        id: &str,
        state: RunState,
        now: Timestamp,
        (error, backup): (Option<String>, Option<String>),
    ) -> Result<(), CatalogError> {
        let update =
            "UPDATE runs SET state = $1, finished_at = $2, error = $3, backup = $4 WHERE id = $5";
        let values = [
            state.as_str().into(),
            now.as_microsecond().into(),
            error.into(),
            backup.into(),
            id.into(),
        ];
        self.execute("wrote down a run", update, values).await.map(drop)
    }

    /// Returns the newest backup run of a source.
    pub async fn last_backup_run(&self, source: &str) -> Result<Option<Run>, CatalogError> {
        let select = "SELECT state, started_at, error FROM runs WHERE source = $1 AND kind = 'backup' \
                      ORDER BY started_at DESC LIMIT 1";
        let Some(row) = self.query_one("looked for runs", select, [source.into()]).await? else {
            return Ok(None);
        };
        let unreadable = |_| CatalogError::Unreadable { name: "runs".to_owned() };
        let micros: i64 = row.try_get("", "started_at").map_err(unreadable)?;
        Ok(Some(Run {
            state: row.try_get("", "state").map_err(unreadable)?,
            started_at: Timestamp::from_microsecond(micros).unwrap_or_default(),
            error: row.try_get("", "error").map_err(unreadable)?,
        }))
    }
}
