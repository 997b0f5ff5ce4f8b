//! Restores that can be undone: what was moved where, until somebody confirms.

use jiff::Timestamp;
use sea_orm::QueryResult;

use crate::catalog::{column, time_column, unreadable};
use crate::{Catalog, CatalogError};

/// How far a swap went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SwapState {
    /// It was about to begin, and may have; whoever comes next finishes it.
    Begun,
    /// The restored data is in place, the old beside it.
    Swapped,
    /// It was about to be undone, and may have been; whoever comes next finishes that.
    Undoing,
    /// The old data is in place again, the restored beside it.
    Undone,
}

impl SwapState {
    /// Returns the word for it in the catalog and in JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Begun => "begun",
            Self::Swapped => "swapped",
            Self::Undoing => "undoing",
            Self::Undone => "undone",
        }
    }

    fn parse(text: &str) -> Option<Self> {
        [Self::Begun, Self::Swapped, Self::Undoing, Self::Undone]
            .into_iter()
            .find(|state| state.as_str() == text)
    }
}

/// A swap that was not confirmed yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SwapRecord {
    /// The restore's id.
    pub id: String,
    /// The source that was restored.
    pub source: String,
    /// The storage that its backup and its safety backup lie on.
    pub storage: String,
    /// How far it went.
    pub state: SwapState,
    /// When it was made.
    pub made_at: Timestamp,
    /// Until when it can be undone.
    pub undo_until: Timestamp,
    /// What is moved where; JSON that the engine understands.
    pub swap: String,
    /// The backup of what was replaced.
    pub safety: Option<String>,
}

const COLUMNS: &str = "id, source, storage, state, made_at, undo_until, swap, safety";

impl Catalog {
    /// Writes down a swap before it begins.
    pub async fn begin_swap(&self, swap: &SwapRecord) -> Result<(), CatalogError> {
        let insert =
            format!("INSERT INTO swaps ({COLUMNS}) VALUES ($1, $2, $3, $4, $5, $6, $7, $8)");
        let values = [
            swap.id.clone().into(),
            swap.source.clone().into(),
            swap.storage.clone().into(),
            swap.state.as_str().into(),
            swap.made_at.as_microsecond().into(),
            swap.undo_until.as_microsecond().into(),
            swap.swap.clone().into(),
            swap.safety.clone().into(),
        ];
        self.execute("wrote down a swap", &insert, values).await.map(drop)
    }

    /// Writes down how far a swap went.
    pub async fn set_swap_state(&self, id: &str, state: SwapState) -> Result<(), CatalogError> {
        let update = "UPDATE swaps SET state = $1 WHERE id = $2";
        self.execute("wrote down a swap", update, [state.as_str().into(), id.into()])
            .await
            .map(drop)
    }

    /// Writes down that a swap that was interrupted is done now, and until when its other state is kept.
    pub async fn finish_swap(
        &self,
        id: &str,
        state: SwapState,
        until: Timestamp,
    ) -> Result<(), CatalogError> {
        let update = "UPDATE swaps SET state = $1, undo_until = $2 WHERE id = $3";
        let values = [state.as_str().into(), until.as_microsecond().into(), id.into()];
        self.execute("wrote down a swap", update, values).await.map(drop)
    }

    /// Writes down by which steps a swap goes where, and until when its other state is kept.
    pub async fn turn_swap(
        &self,
        id: &str,
        (state, swap): (SwapState, String),
        until: Timestamp,
    ) -> Result<(), CatalogError> {
        let update = "UPDATE swaps SET state = $1, swap = $2, undo_until = $3 WHERE id = $4";
        let values = [state.as_str().into(), swap.into(), until.as_microsecond().into(), id.into()];
        self.execute("wrote down a swap", update, values).await.map(drop)
    }

    /// Drops a swap that was confirmed, or that never happened.
    pub async fn end_swap(&self, id: &str) -> Result<(), CatalogError> {
        self.execute("dropped a swap", "DELETE FROM swaps WHERE id = $1", [id.into()])
            .await
            .map(drop)
    }

    /// Returns the swaps of a source, or of all, that nobody confirmed yet; the newest first.
    pub async fn swaps(&self, source: Option<&str>) -> Result<Vec<SwapRecord>, CatalogError> {
        let select = format!(
            "SELECT {COLUMNS} FROM swaps WHERE $1 = '' OR source = $1 ORDER BY made_at DESC, id DESC"
        );
        let rows =
            self.query_all("looked for swaps", &select, [source.unwrap_or("").into()]).await?;
        rows.iter().map(read).collect()
    }
}

fn read(row: &QueryResult) -> Result<SwapRecord, CatalogError> {
    let text = |name| column::<String>(row, "swaps", name);
    let time = |name| time_column(row, "swaps", name)?.ok_or_else(|| unreadable("swaps", name));
    Ok(SwapRecord {
        id: text("id")?,
        source: text("source")?,
        storage: text("storage")?,
        state: SwapState::parse(&text("state")?).ok_or_else(|| unreadable("swaps", "state"))?,
        made_at: time("made_at")?,
        undo_until: time("undo_until")?,
        swap: text("swap")?,
        safety: column(row, "swaps", "safety")?,
    })
}
