//! The audit: who changed, restored or took something away, when, and how it ended (ADR 21).

use backstay_format::Slug;
use jiff::{SignedDuration, Timestamp};
use sea_orm::QueryResult;

use crate::catalog::{column, time_column, unreadable};
use crate::{Catalog, CatalogError};

/// How long it is kept.
const KEPT: SignedDuration = SignedDuration::from_hours(400 * 24);

/// What somebody did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// Who: a member, or a user of a machine.
    pub actor: String,
    /// What was done, in the words of the command for it.
    pub action: String,
    /// With what: the name of a source or a storage, the id of a backup or a job; may be empty.
    pub subject: String,
    /// `done`, or why not.
    pub outcome: String,
}

/// A change that was written down.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuditEntry {
    /// When it had ended.
    pub at: Timestamp,
    /// What it was.
    pub change: Change,
}

impl Catalog {
    /// Writes a change down.
    pub async fn audit(
        &self,
        (id, organisation): (String, &str),
        change: &Change,
        now: Timestamp,
    ) -> Result<(), CatalogError> {
        let insert = "INSERT INTO audit (id, at, organisation, actor, action, subject, outcome) VALUES ($1, $2, $3, $4, $5, $6, $7)";
        let values = [
            id.into(),
            now.as_microsecond().into(),
            organisation.into(),
            change.actor.clone().into(),
            change.action.clone().into(),
            change.subject.clone().into(),
            change.outcome.clone().into(),
        ];
        self.execute("wrote the audit", insert, values).await.map(drop)
    }

    /// Returns the newest changes in an organisation, or in all.
    pub async fn audit_entries(
        &self,
        organisation: Option<&Slug>,
        limit: u32,
    ) -> Result<Vec<AuditEntry>, CatalogError> {
        let which = if organisation.is_some() { "organisation = $1" } else { "$1 = ''" };
        let select = format!(
            "SELECT at, actor, action, subject, outcome FROM audit WHERE {which} ORDER BY at DESC, id LIMIT $2"
        );
        let name = organisation.map(ToString::to_string).unwrap_or_default();
        let values = [name.into(), i64::from(limit).into()];
        self.query_all("looked at the audit", &select, values).await?.iter().map(read).collect()
    }

    /// Forgets what is too old to matter.
    pub async fn tidy_audit(&self, now: Timestamp) -> Result<(), CatalogError> {
        let before = now.checked_sub(KEPT).unwrap_or(Timestamp::MIN).as_microsecond();
        let delete = "DELETE FROM audit WHERE at < $1";
        self.execute("forgot old entries of the audit", delete, [before.into()]).await.map(drop)
    }
}

fn read(row: &QueryResult) -> Result<AuditEntry, CatalogError> {
    let text = |name| column::<String>(row, "audit", name);
    let at = time_column(row, "audit", "at")?.ok_or_else(|| unreadable("audit", "at"))?;
    let change = Change {
        actor: text("actor")?,
        action: text("action")?,
        subject: text("subject")?,
        outcome: text("outcome")?,
    };
    Ok(AuditEntry { at, change })
}
