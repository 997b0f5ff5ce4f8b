//! Workers on other machines: who they are, what they may take, whether they are there (ADR 19).

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

use backstay_format::{Sha256, Slug};
use jiff::Timestamp;
use sea_orm::{QueryResult, Value};
use serde::{Deserialize, Serialize};

use crate::catalog::{column, digest_column, time_column, unreadable};
use crate::{Catalog, CatalogError, Holder, Token, TokenKind};

/// Which name and which labels a worker may take.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Allowance {
    /// This one, or whichever it likes.
    pub name: Option<Slug>,
    /// These, or fewer.
    pub labels: BTreeSet<Slug>,
}

/// What a worker says of itself when it enrols.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Enrolment {
    /// The id of its own token.
    pub id: String,
    /// The digest of that token's secret.
    pub secret: Sha256,
    /// What it wants to be called.
    pub name: Slug,
    /// The labels that it wants; all that it may have if it does not say.
    pub labels: Option<BTreeSet<Slug>>,
    /// Its machine.
    pub host: String,
    /// The version of its program.
    pub version: String,
}

/// A worker as the catalog knows it; one that was revoked is none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Worker {
    /// What it is known by, in tokens and leases.
    pub id: String,
    /// What people call it.
    pub name: Slug,
    /// What it may be chosen by.
    pub labels: BTreeSet<Slug>,
    /// Its machine, as it says.
    pub host: String,
    /// The version of its program, as it says.
    pub version: String,
    /// When it became one.
    pub enrolled_at: Timestamp,
    /// When it asked for work last.
    pub seen_at: Timestamp,
    /// When it said that it ends, if it has not come back since.
    pub left_at: Option<Timestamp>,
}

/// A worker as the catalog keeps it, and as it comes back after a loss; what it says of itself is not among that.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct WorkerRecord {
    id: String,
    /// The digest of its token's secret.
    secret: Sha256,
    name: Slug,
    labels: BTreeSet<Slug>,
    enrolled_at: Timestamp,
}

impl WorkerRecord {
    /// Says whether it can be that of a worker.
    pub(crate) fn is_sound(&self) -> bool {
        Token::is_id(&self.id)
    }

    /// Returns the values that [`INSERT`] takes, of a worker that was not heard of since it enrolled.
    fn values(&self, (host, version): (&str, &str)) -> [Value; 7] {
        [
            self.id.clone().into(),
            self.secret.to_string().into(),
            self.name.to_string().into(),
            to_text(&self.labels).into(),
            host.into(),
            version.into(),
            self.enrolled_at.as_microsecond().into(),
        ]
    }
}

impl fmt::Display for WorkerRecord {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "worker {}", self.name)
    }
}

/// Why a worker was not enrolled.
#[derive(Debug, thiserror::Error)]
pub enum EnrolError {
    /// The token is unknown, used, or too old.
    #[error(
        "the invitation is unknown, was used by another worker, or is too old; `backstay workers invite` makes a new one"
    )]
    NotInvited,
    /// Another worker has the name.
    #[error(
        "there is a worker {name} already; choose another name, or end that one with `backstay workers revoke {name}`"
    )]
    NameTaken {
        /// The name.
        name: Slug,
    },
    /// The invitation is for another name or for other labels.
    #[error("the invitation does not allow {what}")]
    NotAllowed {
        /// What was asked for.
        what: String,
    },
    /// The catalog failed.
    #[error(transparent)]
    Catalog(#[from] CatalogError),
}

impl Worker {
    /// Returns who holds the leases of its jobs: nobody can see from elsewhere whether it lives, so only time frees them.
    pub fn holder(&self, instance: &str, pid: u32) -> Holder {
        Holder {
            host: self.name.to_string(),
            machine: String::new(),
            boot: format!("worker {}", self.id),
            namespace: instance.to_owned(),
            pid,
            started: 0,
        }
    }
}

impl fmt::Display for Worker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "worker {}", self.name)
    }
}

impl Catalog {
    /// Invites a worker, until then. Returns the token that it is to show.
    pub async fn invite(
        &self,
        allowance: &Allowance,
        expires_at: Timestamp,
    ) -> Result<Token, CatalogError> {
        let token = Token::new(TokenKind::Invitation);
        let insert = "INSERT INTO invitations (id, secret, name, labels, expires_at) VALUES ($1, $2, $3, $4, $5)";
        let values = [
            token.id.clone().into(),
            token.digest().to_string().into(),
            allowance.name.as_ref().map(ToString::to_string).into(),
            to_text(&allowance.labels).into(),
            expires_at.as_microsecond().into(),
        ];
        self.execute("wrote an invitation", insert, values).await?;
        Ok(token)
    }

    /// Makes a worker of whoever shows an invitation. Asked again by the same worker, the answer is the same. A name that
    /// sources ask for is only for whom it was given to.
    pub async fn enrol(
        &self,
        invitation: &Token,
        wish: &Enrolment,
        is_asked_for: bool,
        now: Timestamp,
    ) -> Result<Worker, EnrolError> {
        let allowance = self.allowance(invitation, &wish.id, now).await?;
        let is_named = allowance.name.is_some();
        if let Some(name) = allowance.name.filter(|name| *name != wish.name) {
            let what = format!("the name {}, it is for {name}", wish.name);
            return Err(EnrolError::NotAllowed { what });
        }
        let labels = wish.labels.as_ref().unwrap_or(&allowance.labels);
        if let Some(label) = labels.difference(&allowance.labels).next() {
            return Err(EnrolError::NotAllowed { what: format!("the label {label}") });
        }
        if is_asked_for && !is_named {
            let what =
                format!("the name {}, which sources ask for: invite it by that name", wish.name);
            return Err(EnrolError::NotAllowed { what });
        }
        if let Some(worker) = self.enrolled(wish).await? {
            return Ok(worker);
        }
        let claim =
            "UPDATE invitations SET worker = $1 WHERE id = $2 AND (worker IS NULL OR worker = $1)";
        let claimed = vec![wish.id.clone().into(), invitation.id.clone().into()];
        let record = WorkerRecord {
            id: wish.id.clone(),
            secret: wish.secret,
            name: wish.name.clone(),
            labels: labels.clone(),
            enrolled_at: now,
        };
        let inserted = record.values((&wish.host, &wish.version)).into();
        let both = vec![(claim, claimed), (INSERT, inserted)];
        let done = self.all_or_none("enrolled a worker", both).await?;
        match self.enrolled(wish).await? {
            Some(worker) if done => Ok(worker),
            _ => Err(self.why_not(wish).await?),
        }
    }

    /// Returns the worker that somebody became already who says the same again.
    async fn enrolled(&self, wish: &Enrolment) -> Result<Option<Worker>, CatalogError> {
        let select = format!(
            "SELECT {COLUMNS} FROM workers WHERE id = $1 AND secret = $2 AND name = $3 AND revoked_at IS NULL"
        );
        let values =
            [wish.id.clone().into(), wish.secret.to_string().into(), wish.name.to_string().into()];
        let row = self.query_one("looked for a worker", &select, values).await?;
        row.as_ref().map(read).transpose()
    }

    /// Says what kept somebody from becoming a worker: his name, or else the invitation.
    async fn why_not(&self, wish: &Enrolment) -> Result<EnrolError, CatalogError> {
        let select = "SELECT 1 FROM workers WHERE name = $1 AND revoked_at IS NULL";
        let row = self.query_one("looked for a worker", select, [wish.name.to_string().into()]);
        Ok(match row.await? {
            Some(_) => EnrolError::NameTaken { name: wish.name.clone() },
            None => EnrolError::NotInvited,
        })
    }

    /// Returns what an invitation allows, if it may still be used by this worker.
    async fn allowance(
        &self,
        invitation: &Token,
        worker: &str,
        now: Timestamp,
    ) -> Result<Allowance, EnrolError> {
        let select = "SELECT secret, name, labels FROM invitations \
                      WHERE id = $1 AND expires_at > $2 AND (worker IS NULL OR worker = $3)";
        let values = [invitation.id.clone().into(), now.as_microsecond().into(), worker.into()];
        let row = self.query_one("looked for an invitation", select, values).await?;
        let row = row.ok_or(EnrolError::NotInvited)?;
        if !invitation.has(&column::<String>(&row, "invitations", "secret")?) {
            return Err(EnrolError::NotInvited);
        }
        let name: Option<String> = column(&row, "invitations", "name")?;
        let slug = |name: String| name.parse().map_err(|_| unreadable("invitations", "name"));
        let name = name.map(slug).transpose()?;
        Ok(Allowance { name, labels: labels(&row, "invitations")? })
    }

    /// Returns the worker that shows this token; none if it is unknown or revoked.
    pub async fn worker_of(&self, token: &Token) -> Result<Option<Worker>, CatalogError> {
        let select =
            format!("SELECT secret, {COLUMNS} FROM workers WHERE id = $1 AND revoked_at IS NULL");
        let values = [token.id.clone().into()];
        let Some(row) = self.query_one("looked for a worker", &select, values).await? else {
            return Ok(None);
        };
        let is_its_own = token.kind == TokenKind::Worker
            && token.has(&column::<String>(&row, "workers", "secret")?);
        is_its_own.then(|| read(&row)).transpose()
    }

    /// Says whether a worker still is one.
    pub async fn is_worker(&self, worker: &Worker) -> Result<bool, CatalogError> {
        let select = "SELECT 1 FROM workers WHERE id = $1 AND revoked_at IS NULL";
        let row = self.query_one("looked for a worker", select, [worker.id.clone().into()]).await?;
        Ok(row.is_some())
    }

    /// Writes down that a worker is there, and which one it is by now.
    pub async fn see_worker(
        &self,
        worker: &Worker,
        (host, version): (&str, &str),
        now: Timestamp,
    ) -> Result<(), CatalogError> {
        let update = "UPDATE workers SET seen_at = $1, host = $2, version = $3, left_at = NULL WHERE id = $4";
        let values =
            [now.as_microsecond().into(), host.into(), version.into(), worker.id.clone().into()];
        self.execute("saw a worker", update, values).await.map(drop)
    }

    /// Remembers that a worker ends.
    pub async fn worker_left(&self, worker: &Worker, now: Timestamp) -> Result<(), CatalogError> {
        let update = "UPDATE workers SET left_at = $1 WHERE id = $2";
        let values = [now.as_microsecond().into(), worker.id.clone().into()];
        self.execute("saw a worker go", update, values).await.map(drop)
    }

    /// Keeps a worker unless there was one of its id, or there is one of its name. Returns whether it did.
    pub(crate) async fn first_worker(&self, record: &WorkerRecord) -> Result<bool, CatalogError> {
        Ok(self.execute("made a worker", INSERT, record.values(("", ""))).await? == 1)
    }

    /// Returns the workers that are not revoked, always in the same order.
    pub(crate) async fn worker_records(&self) -> Result<Vec<WorkerRecord>, CatalogError> {
        let select =
            format!("SELECT secret, {COLUMNS} FROM workers WHERE revoked_at IS NULL ORDER BY id");
        let rows = self.query_all("looked for workers", &select, []).await?;
        let record = |row: &QueryResult| {
            let Worker { id, name, labels, enrolled_at, .. } = read(row)?;
            let secret = digest_column(row, "workers")?;
            Ok(WorkerRecord { id, secret, name, labels, enrolled_at })
        };
        rows.iter().map(record).collect()
    }

    /// Returns all workers that are not revoked, by name.
    pub async fn workers(&self) -> Result<Vec<Worker>, CatalogError> {
        let select =
            format!("SELECT {COLUMNS} FROM workers WHERE revoked_at IS NULL ORDER BY name");
        self.query_all("looked for workers", &select, []).await?.iter().map(read).collect()
    }

    /// Revokes a worker: what it shows is worth nothing from now on. Returns whether there was one.
    pub async fn revoke_worker(&self, name: &Slug, now: Timestamp) -> Result<bool, CatalogError> {
        let update = "UPDATE workers SET revoked_at = $1 WHERE name = $2 AND revoked_at IS NULL";
        let values = [now.as_microsecond().into(), name.to_string().into()];
        let is_revoked = self.execute("revoked a worker", update, values).await? == 1;
        // What made it a worker makes it none again.
        let delete = "DELETE FROM invitations WHERE worker IN (SELECT id FROM workers WHERE revoked_at IS NOT NULL)";
        self.execute("dropped invitations", delete, []).await?;
        Ok(is_revoked)
    }
}

const INSERT: &str = "INSERT INTO workers (id, secret, name, labels, host, version, enrolled_at, seen_at) \
                      VALUES ($1, $2, $3, $4, $5, $6, $7, $7) ON CONFLICT DO NOTHING";
const COLUMNS: &str = "id, name, labels, host, version, enrolled_at, seen_at, left_at";

fn read(row: &QueryResult) -> Result<Worker, CatalogError> {
    let text = |name| column::<String>(row, "workers", name);
    let time = |name| time_column(row, "workers", name)?.ok_or_else(|| unreadable("workers", name));
    Ok(Worker {
        id: text("id")?,
        name: text("name")?.parse().map_err(|_| unreadable("workers", "name"))?,
        labels: labels(row, "workers")?,
        host: text("host")?,
        version: text("version")?,
        enrolled_at: time("enrolled_at")?,
        seen_at: time("seen_at")?,
        left_at: time_column(row, "workers", "left_at")?,
    })
}

/// Labels are kept as one text, divided by commas, which no label has.
fn to_text(labels: &BTreeSet<Slug>) -> String {
    labels.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
}

fn labels(row: &QueryResult, table: &str) -> Result<BTreeSet<Slug>, CatalogError> {
    let text: String = column(row, table, "labels")?;
    let labels = text.split(',').filter(|label| !label.is_empty()).map(Slug::from_str);
    labels.collect::<Result<_, _>>().map_err(|_| unreadable(table, "labels"))
}
