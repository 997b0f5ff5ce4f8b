//! The mark in a database that a restore uses: it says whose restore that is, and where the data next to it came from.

use std::collections::BTreeMap;

use super::describe::{Server, select};
use super::error::{RedisError, refused, statement};
use super::wire::{Reply, Session};
use crate::swap::Direction;

/// The key that marks a database that a restore uses.
pub(super) const MARK: &str = "backstay:set-aside";
/// The key that marks a database that is loaded where the app will look for it, since no number was free. Apart from that it is like
/// any other: it is backed up, and somebody may write to it.
const COMING: &str = "backstay:coming";
/// In the background of the server: a large database takes its time. No transaction, since a server without memory refuses
/// those.
const EMPTY: &str =
    "if redis.call('GET', KEYS[1]) == ARGV[1] then redis.call('FLUSHDB', 'ASYNC') end";

/// Empties a database that has no more keys than these and the mark, and else lets go of it; says whether it is empty. In one step,
/// so that no key of others comes in between.
const CLEAR: &str = "if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 1 end \
                     if redis.call('DBSIZE') <= tonumber(ARGV[2]) + 1 then redis.call('FLUSHDB', 'ASYNC') return 1 end \
                     redis.call('DEL', KEYS[1]) return 0";

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

/// Says whether a key is a mark, and none of the app's.
pub(super) fn is_mark(name: &[u8]) -> bool {
    name == MARK.as_bytes() || name == COMING.as_bytes()
}

/// A restore that loads a database where the app will look for it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Coming<'a> {
    /// The restore's name.
    pub(super) tag: &'a str,
    /// Whose restore it is.
    pub(super) owner: &'a str,
}

impl Coming<'_> {
    fn value(self) -> String {
        format!("{} {}", self.tag, self.owner)
    }

    /// Marks an empty database.
    pub(super) async fn claim(self, session: &mut Session, at: u64) -> Result<(), RedisError> {
        select(session, at).await?;
        let value = self.value();
        let words: [&[u8]; 4] = [b"SET", COMING.as_bytes(), value.as_bytes(), b"NX"];
        match session.ask("mark an empty database", &words).await? {
            Reply::Nothing => Err(refused(format!("another restore uses database {at}"))),
            _ => Ok(()),
        }
    }

    /// Takes the mark away: the database is the app's.
    pub(super) async fn let_go(self, session: &mut Session, at: u64) -> Result<(), RedisError> {
        self.clear(session, at, None).await.map(drop)
    }

    /// Empties the database if it has no more than these keys that were loaded; else it is let go, as somebody has written to it.
    /// Returns whether nothing of the restore is left.
    pub(super) async fn take_back(
        self,
        session: &mut Session,
        at: u64,
        keys: u64,
    ) -> Result<bool, RedisError> {
        self.clear(session, at, Some(keys)).await
    }

    async fn clear(
        self,
        session: &mut Session,
        at: u64,
        keys: Option<u64>,
    ) -> Result<bool, RedisError> {
        select(session, at).await?;
        let value = self.value();
        // No database has fewer keys than none.
        let keys = keys.map_or_else(|| "-2".to_owned(), |keys| keys.to_string());
        let words: [&[u8]; 6] =
            [b"EVAL", CLEAR.as_bytes(), b"1", COMING.as_bytes(), value.as_bytes(), keys.as_bytes()];
        let answer = session.ask("let go of a database", &words).await?;
        Ok(matches!(answer, Reply::Number(1)))
    }
}

/// Returns the databases that a restore of this owner was loading in their place when it was killed, and its name.
pub(super) async fn all_coming(
    session: &mut Session,
    server: &Server,
    owner: &str,
) -> Result<Vec<(u64, String)>, RedisError> {
    let mut found = Vec::new();
    for database in server.keyspace.keys() {
        select(session, *database).await?;
        let words: [&[u8]; 2] = [b"GET", COMING.as_bytes()];
        let Ok(Reply::Text(text)) = session.exchange(&words).await else { continue };
        let text = String::from_utf8_lossy(&text).into_owned();
        if let Some((tag, whose)) = text.split_once(' ')
            && whose == owner
        {
            found.push((*database, tag.to_owned()));
        }
    }
    Ok(found)
}

/// Says what became of a database that was loaded in its place by a restore that did not end well.
pub(super) fn written_to(database: u64) -> String {
    format!(
        "database {database} keeps what a restore had loaded into it when it failed, since others may have written to it, too; empty it with FLUSHDB, if that is \
         right, before it is restored again"
    )
}
