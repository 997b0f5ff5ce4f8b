//! Members: people and programs that ask a server for something, and what they may ask for (ADR 21).

use std::fmt;
use std::str::FromStr;

use backstay_format::{Sha256, Slug};
use jiff::Timestamp;
use sea_orm::QueryResult;
use serde::{Deserialize, Serialize};

use crate::catalog::{column, digest_column, time_column, unreadable};
use crate::{Catalog, CatalogError, Token, TokenKind};

/// What a member may do: all that those before may, and more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// Looks.
    Viewer,
    /// Asks for backups, drills, previews and tests, cancels jobs, holds backups.
    Operator,
    /// Restores, releases and deletes backups, deletes jobs, reads the audit.
    Admin,
    /// Everything.
    Owner,
}

/// A member of an organisation; one that was revoked, or whose token is too old, is none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// What its token is found by.
    pub id: String,
    /// Of which organisation.
    pub organisation: Slug,
    /// What others call it; no two of an organisation have the same.
    pub name: Slug,
    /// What it may do.
    pub role: Role,
    /// When it became one.
    pub created_at: Timestamp,
    /// When its token ends, if it does.
    pub expires_at: Option<Timestamp>,
    /// When it asked for something last, about.
    pub seen_at: Option<Timestamp>,
}

/// A member as the catalog keeps it, and as it comes back after a loss.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct MemberRecord {
    id: String,
    /// The digest of its token's secret.
    secret: Sha256,
    organisation: Slug,
    name: Slug,
    role: Role,
    created_at: Timestamp,
    expires_at: Option<Timestamp>,
}

impl MemberRecord {
    /// Says whether it can be that of a member.
    pub(crate) fn is_sound(&self) -> bool {
        Token::is_id(&self.id)
    }
}

/// As it is listed.
impl fmt::Display for MemberRecord {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "member {}/{}", self.organisation, self.name)
    }
}

impl Role {
    const ALL: [Self; 4] = [Self::Viewer, Self::Operator, Self::Admin, Self::Owner];

    /// Returns the word for it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Viewer => "viewer",
            Self::Operator => "operator",
            Self::Admin => "admin",
            Self::Owner => "owner",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Role {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let found = Self::ALL.into_iter().find(|role| role.as_str() == text);
        found.ok_or("expected viewer, operator, admin or owner")
    }
}

impl Member {
    /// Says whether its token is worth nothing any more.
    pub fn is_expired(&self, now: Timestamp) -> bool {
        self.expires_at.is_some_and(|end| end <= now)
    }
}

impl Catalog {
    /// Makes a member; none if the organisation has one of this name. Returns its token, of which only the digest is kept.
    pub async fn add_member(
        &self,
        (organisation, name): (&Slug, &Slug),
        role: Role,
        expires_at: Option<Timestamp>,
        now: Timestamp,
    ) -> Result<Option<Token>, CatalogError> {
        let token = Token::new(TokenKind::Member);
        // Whoever had the name before, and whose token is too old, is none.
        let expire = "UPDATE members SET revoked_at = expires_at \
                      WHERE organisation = $1 AND name = $2 AND revoked_at IS NULL AND expires_at <= $3";
        let values =
            [organisation.to_string().into(), name.to_string().into(), now.as_microsecond().into()];
        self.execute("ended a member", expire, values).await?;
        let record = MemberRecord {
            id: token.id.clone(),
            secret: token.digest(),
            organisation: organisation.clone(),
            name: name.clone(),
            role,
            created_at: now,
            expires_at,
        };
        Ok(self.first_member(&record).await?.then_some(token))
    }

    /// Keeps a member unless there was one of its id, or there is one of its name. Returns whether it did.
    pub(crate) async fn first_member(&self, record: &MemberRecord) -> Result<bool, CatalogError> {
        let insert = "INSERT INTO members (id, secret, organisation, name, role, created_at, expires_at) \
                      VALUES ($1, $2, $3, $4, $5, $6, $7) ON CONFLICT DO NOTHING";
        let values = [
            record.id.clone().into(),
            record.secret.to_string().into(),
            record.organisation.to_string().into(),
            record.name.to_string().into(),
            record.role.as_str().into(),
            record.created_at.as_microsecond().into(),
            record.expires_at.map(Timestamp::as_microsecond).into(),
        ];
        Ok(self.execute("made a member", insert, values).await? == 1)
    }

    /// Returns the members that are not revoked, always in the same order.
    pub(crate) async fn member_records(&self) -> Result<Vec<MemberRecord>, CatalogError> {
        let select =
            format!("SELECT secret, {COLUMNS} FROM members WHERE revoked_at IS NULL ORDER BY id");
        let rows = self.query_all("looked for members", &select, []).await?;
        let record = |row: &QueryResult| {
            let Member { id, organisation, name, role, created_at, expires_at, .. } = read(row)?;
            let secret = digest_column(row, "members")?;
            Ok(MemberRecord { id, secret, organisation, name, role, created_at, expires_at })
        };
        rows.iter().map(record).collect()
    }

    /// Returns the first thousand members of an organisation, or of all, by organisation and name: those behind one, or from
    /// the beginning.
    pub async fn members(
        &self,
        organisation: Option<&Slug>,
        after: Option<&Member>,
    ) -> Result<Vec<Member>, CatalogError> {
        let which = if organisation.is_some() { "organisation = $1" } else { "$1 = ''" };
        let select = format!(
            "SELECT {COLUMNS} FROM members WHERE {which} AND revoked_at IS NULL AND (organisation, name) > ($2, $3) \
             ORDER BY organisation, name LIMIT {PAGE}"
        );
        let text = |slug: Option<&Slug>| slug.map(ToString::to_string).unwrap_or_default().into();
        let values = [
            text(organisation),
            text(after.map(|member| &member.organisation)),
            text(after.map(|member| &member.name)),
        ];
        self.query_all("looked for members", &select, values).await?.iter().map(read).collect()
    }

    /// Returns the member that shows this token; none if it is unknown, revoked or too old.
    pub async fn member_of(
        &self,
        token: &Token,
        now: Timestamp,
    ) -> Result<Option<Member>, CatalogError> {
        let select =
            format!("SELECT secret, {COLUMNS} FROM members WHERE id = $1 AND revoked_at IS NULL");
        let values = [token.id.clone().into()];
        let Some(row) = self.query_one("looked for a member", &select, values).await? else {
            return Ok(None);
        };
        if token.kind != TokenKind::Member
            || !token.has(&column::<String>(&row, "members", "secret")?)
        {
            return Ok(None);
        }
        Ok(Some(read(&row)?).filter(|member| !member.is_expired(now)))
    }

    /// Writes down that a member asked for something.
    pub async fn see_member(&self, member: &Member, now: Timestamp) -> Result<(), CatalogError> {
        let update = "UPDATE members SET seen_at = $1 WHERE id = $2";
        let values = [now.as_microsecond().into(), member.id.clone().into()];
        self.execute("saw a member", update, values).await.map(drop)
    }

    /// Revokes a member: what it shows is worth nothing from now on. Returns whether there was one.
    pub async fn revoke_member(
        &self,
        (organisation, name): (&Slug, &Slug),
        now: Timestamp,
    ) -> Result<bool, CatalogError> {
        let update = "UPDATE members SET revoked_at = $1 WHERE organisation = $2 AND name = $3 AND revoked_at IS NULL";
        let values =
            [now.as_microsecond().into(), organisation.to_string().into(), name.to_string().into()];
        Ok(self.execute("revoked a member", update, values).await? == 1)
    }
}

/// Members that are read at once.
const PAGE: usize = 1000;
const COLUMNS: &str = "id, organisation, name, role, created_at, expires_at, seen_at";

fn read(row: &QueryResult) -> Result<Member, CatalogError> {
    let text = |name| column::<String>(row, "members", name);
    let slug = |name| text(name)?.parse().map_err(|_| unreadable("members", name));
    let time = |name| time_column(row, "members", name);
    Ok(Member {
        id: text("id")?,
        organisation: slug("organisation")?,
        name: slug("name")?,
        role: text("role")?.parse().map_err(|_| unreadable("members", "role"))?,
        created_at: time("created_at")?.ok_or_else(|| unreadable("members", "created_at"))?,
        expires_at: time("expires_at")?,
        seen_at: time("seen_at")?,
    })
}
