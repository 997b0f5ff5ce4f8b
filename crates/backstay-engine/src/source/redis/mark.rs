//! The mark in a database that a restore uses: it says whose restore that is, and where the data next to it came from.

use std::collections::BTreeMap;

use super::describe::{Server, select};
use super::error::{RedisError, refused, statement};
use super::wire::{Reply, Session};
use crate::swap::Direction;

/// The key that marks a database that a restore uses.
pub(super) const MARK: &str = "backstay:set-aside";
/// In the background of the server: a large database takes its time. No transaction, since a server without memory refuses
/// those.
const EMPTY: &str =
    "if redis.call('GET', KEYS[1]) == ARGV[1] then redis.call('FLUSHDB', 'ASYNC') end";

/// The mark in a database that a restore uses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Mark {
    /// The restore's name.
    pub(super) tag: String,
    /// Whose restore it is: nobody removes what is another's.
    pub(super) owner: String,
    /// Where the data next to it came from: from the restore, or from the place that it replaces.
    pub(super) holds: Direction,
}

impl Mark {
    /// Returns its text in the database.
    pub(super) fn value(&self) -> String {
        let holds = match self.holds {
            Direction::Restore => "restored",
            Direction::Undo => "replaced",
        };
        format!("{} {holds} {}", self.tag, self.owner)
    }

    /// Says whether it is of this restore.
    pub(super) fn is_of(&self, tag: &str) -> bool {
        self.tag == tag
    }

    fn parse(text: &str) -> Option<Self> {
        let (tag, rest) = text.split_once(' ')?;
        let (holds, owner) = rest.split_once(' ')?;
        let holds = match holds {
            "restored" => Direction::Restore,
            "replaced" => Direction::Undo,
            _ => return None,
        };
        Some(Self { tag: tag.to_owned(), owner: owner.to_owned(), holds })
    }
}

/// Reads the mark of a database, and leaves that chosen.
pub(super) async fn read(session: &mut Session, database: u64) -> Result<Option<Mark>, RedisError> {
    if !select(session, database).await? {
        return Ok(None);
    }
    let words: [&[u8]; 2] = [b"GET", MARK.as_bytes()];
    match session.exchange(&words).await {
        Ok(Reply::Text(text)) => Ok(Mark::parse(&String::from_utf8_lossy(&text))),
        Ok(Reply::Error(text)) => Err(statement("look for what restores left", &text)),
        Ok(_) => Ok(None),
        Err(cause) => Err(RedisError::Broken { action: "look for what restores left", cause }),
    }
}

/// Reads which databases restores use, of those that are not empty.
pub(super) async fn read_all(
    session: &mut Session,
    server: &Server,
) -> Result<BTreeMap<u64, Mark>, RedisError> {
    let mut marks = BTreeMap::new();
    for database in server.keyspace.keys() {
        if let Some(found) = read(session, *database).await? {
            marks.insert(*database, found);
        }
    }
    Ok(marks)
}

/// Marks an empty database.
pub(super) async fn set(
    session: &mut Session,
    database: u64,
    mark: &Mark,
) -> Result<(), RedisError> {
    select(session, database).await?;
    let value = mark.value();
    let words: [&[u8]; 4] = [b"SET", MARK.as_bytes(), value.as_bytes(), b"NX"];
    match session.ask("mark a free database", &words).await? {
        Reply::Nothing => Err(refused(format!("another restore uses database {database}"))),
        _ => Ok(()),
    }
}

/// Empties a database if this mark stands in it, in one step with looking for it; nothing else is ever emptied.
pub(super) async fn empty_if_marked(
    session: &mut Session,
    database: u64,
    mark: &Mark,
) -> Result<(), RedisError> {
    select(session, database).await?;
    let value = mark.value();
    let words: [&[u8]; 5] = [b"EVAL", EMPTY.as_bytes(), b"1", MARK.as_bytes(), value.as_bytes()];
    session.ask("empty a database that was set aside", &words).await?;
    Ok(())
}

/// Takes the mark of a restore from a database that was loaded in its place.
pub(super) async fn remove(
    session: &mut Session,
    database: u64,
    tag: &str,
) -> Result<(), RedisError> {
    if read(session, database).await?.is_some_and(|mark| mark.is_of(tag)) {
        session.ask("let go of a database", &[b"DEL", MARK.as_bytes()]).await?;
    }
    Ok(())
}
