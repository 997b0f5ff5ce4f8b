//! What a restore replaces, and putting it into place and back: databases change their numbers in one transaction.

use std::time::Duration;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

use super::RedisSource;
use super::connection::RedisConnection as _;
use super::describe::{self, Server, name_of};
use super::error::{RedisError, refused, statement};
use super::mark::{self, Coming, MARK, Mark};
use super::wire::{Reply, Session};
use crate::cx::Cx;
use crate::error::EngineError;
use crate::event::Event;
use crate::swap::{self, Direction, Swapper, failed, foreign};

/// How often is looked whether the server has written its data to its disk.
const SAVED_EVERY: Duration = Duration::from_millis(100);
/// How long is waited for the server's log to reach its disk, in milliseconds.
const LOG_WAIT_MILLISECONDS: &[u8] = b"10000";

/// Databases that were loaded, and those that they replace.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Replacement {
    /// Host and port.
    pub(super) server: String,
    /// The restore's name, in the marks of its databases.
    pub(super) tag: String,
    /// Whose restore it is, in the marks, too.
    pub(super) owner: String,
    /// Whether a swap of it was worked out: until then, what it may remove is only what it loaded.
    pub(super) is_planned: bool,
    /// Each database, and where the other state of it lies.
    pub(super) pairs: Vec<Pair>,
    /// How many keys the server had removed for want of memory when the swap was worked out.
    pub(super) evicted: u64,
    /// The functions of the server, if they are replaced too.
    pub(super) functions: Option<Functions>,
}

/// A database, and where the other state of it lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Pair {
    /// The number in the backup, if it has such a database.
    pub(super) of: Option<u64>,
    /// The number that is fought for.
    pub(super) database: u64,
    /// The number of the other. The same where an empty database was loaded in its place, since no number was free.
    pub(super) spare: u64,
    /// Keys that were loaded there.
    pub(super) loaded: u64,
}

/// The code of libraries of functions.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Functions {
    pub(super) restored: Vec<String>,
    /// Known once a swap was worked out.
    pub(super) replaced: Vec<String>,
}

impl Functions {
    /// Says whether something that was there is not there any more.
    fn lose_some(&self) -> bool {
        self.replaced.iter().any(|code| !self.restored.contains(code))
    }
}

/// A change of numbers, worked out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Swap {
    /// Of what.
    pub replacement: Replacement,
    direction: Direction,
    /// Whether keys were in the places of what was loaded when it was worked out.
    #[serde(default)]
    pub(crate) puts_away: bool,
}

impl Pair {
    /// Says whether it was not loaded straight into an empty database.
    pub(super) fn is_exchanged(&self) -> bool {
        self.spare != self.database
    }
}

impl Replacement {
    fn coming(&self) -> Coming<'_> {
        Coming { tag: &self.tag, owner: &self.owner }
    }

    /// Returns the databases that change their numbers.
    fn exchanged(&self) -> impl Iterator<Item = &Pair> {
        self.pairs.iter().filter(|pair| pair.is_exchanged())
    }

    /// Returns the databases that are fought for.
    pub fn target(&self) -> String {
        let numbers = self.pairs.iter().map(|pair| pair.database.to_string());
        label(&self.server, numbers)
    }

    /// Returns where the other state is kept, for a person.
    pub fn beside(&self) -> String {
        let numbers = self.pairs.iter().map(|pair| pair.spare.to_string());
        label(&self.server, numbers)
    }

    /// Returns where what was loaded for a database of the backup lies.
    pub(super) fn place_of(&self, database: u64) -> Option<u64> {
        self.pairs.iter().find(|pair| pair.of == Some(database)).map(|pair| pair.spare)
    }
}

/// Names databases of a server, for a person.
pub(super) fn label(server: &str, numbers: impl Iterator<Item = String>) -> String {
    let numbers: Vec<String> = numbers.collect();
    format!("{server}, databases {}", numbers.join(", "))
}

/// Swaps databases.
pub(super) struct DatabaseSwapper {
    source: RedisSource,
}

impl DatabaseSwapper {
    pub(super) fn new(source: &RedisSource) -> Self {
        Self { source: source.clone() }
    }

    /// Opens a session with the server that the databases are on.
    async fn session(&self, cx: &Cx, replacement: &Replacement) -> Result<Session, RedisError> {
        self.source.connection.check_server(&replacement.server).map_err(refused)?;
        self.source.connection.session(cx).await
    }

    async fn work_out(
        &self,
        cx: &Cx,
        mut replacement: Replacement,
        direction: Direction,
    ) -> Result<Swap, RedisError> {
        replacement.is_planned = true;
        let mut session = self.source.connection.session(cx).await?;
        let evicted = Server::of(&mut session).await?.evicted;
        let removed = evicted.saturating_sub(replacement.evicted);
        if direction == Direction::Undo && removed > 0 {
            let text = format!(
                "since the restore the server has removed {removed} keys for want of memory, and some may be of what comes back now; the safety backup has all of them"
            );
            cx.event(Event::Warning { text });
        }
        replacement.evicted = evicted;
        let mut puts_away = false;
        for pair in replacement.exchanged() {
            describe::select(&mut session, pair.database).await?;
            puts_away |= describe::size(&mut session).await? > 0;
        }
        if let Some(functions) = &mut replacement.functions {
            let present = describe::functions(&mut session).await?;
            match direction {
                Direction::Restore => functions.replaced = present,
                Direction::Undo => functions.restored = present,
            }
        }
        Ok(Swap { replacement, direction, puts_away })
    }

    async fn exchange(
        &self,
        cx: &Cx,
        replacement: &Replacement,
        direction: Direction,
    ) -> Result<(), RedisError> {
        let mut session = self.session(cx, replacement).await?;
        if !is_done(&mut session, replacement, direction).await?
            && let Err(error) = exchange_numbers(&mut session, replacement, direction).await
        {
            // What is still under way must not happen after somebody looked whether it did.
            session.end().await;
            return Err(error);
        }
        if let Some(functions) = &replacement.functions {
            let wanted = match direction {
                Direction::Restore => &functions.restored,
                Direction::Undo => &functions.replaced,
            };
            set_functions(&mut session, wanted).await?;
        }
        if direction == Direction::Restore {
            for pair in replacement.pairs.iter().filter(|pair| !pair.is_exchanged()) {
                replacement.coming().let_go(&mut session, pair.database).await?;
            }
        }
        if let Err(error) = cx.run(reach_disk(&mut session)).await? {
            let text =
                format!("whether the server has written it all to its disk is not known: {error}");
            cx.event(Event::Warning { text });
        }
        Ok(())
    }

    async fn is_parked(&self, cx: &Cx, replacement: &Replacement) -> Result<bool, RedisError> {
        let mut session = self.session(cx, replacement).await?;
        is_marked(&mut session, replacement, Direction::Undo).await
    }

    async fn is_nothing(&self, cx: &Cx, replacement: &Replacement) -> Result<bool, RedisError> {
        if replacement.functions.as_ref().is_some_and(Functions::lose_some) {
            return Ok(false);
        }
        let mut session = self.session(cx, replacement).await?;
        for pair in &replacement.pairs {
            if mark::read(&mut session, pair.spare).await?.is_some()
                && describe::size(&mut session).await? > 1
            {
                return Ok(false);
            }
        }
        Ok(true)
    }

    async fn empty(&self, cx: &Cx, replacement: &Replacement) -> Result<(), RedisError> {
        let mut session = self.session(cx, replacement).await?;
        for pair in replacement.pairs.iter().filter(|pair| !pair.is_exchanged()) {
            let coming = replacement.coming();
            if !coming.take_back(&mut session, pair.database, pair.loaded).await? {
                cx.event(Event::Warning { text: mark::written_to(pair.database) });
            }
        }
        for pair in replacement.exchanged() {
            let Some(mark) = mark::read(&mut session, pair.spare).await? else { continue };
            // Before a swap was worked out, what was replaced is none of ours, should it be there after all; without a key it
            // is nothing.
            let is_ours = replacement.is_planned
                || mark.holds == Direction::Restore
                || describe::size(&mut session).await? <= 1;
            if is_ours && mark.is_of(&replacement.tag) {
                mark::empty_if_marked(&mut session, pair.spare, &mark).await?;
            }
        }
        Ok(())
    }

    async fn empty_unknown(&self, cx: &Cx, known: &[&str]) -> Result<Vec<String>, RedisError> {
        let mut session = self.source.connection.session(cx).await?;
        let server = Server::of(&mut session).await?;
        let mut swept = Vec::new();
        for (at, tag) in mark::all_coming(&mut session, &server, &self.source.owner).await? {
            if !known.contains(&tag.as_str()) {
                // Since when it lies there, and who has written to it, nobody knows.
                let coming = Coming { tag: &tag, owner: &self.source.owner };
                coming.let_go(&mut session, at).await?;
                cx.event(Event::Warning { text: mark::written_to(at) });
            }
        }
        for (database, mark) in mark::read_all(&mut session, &server).await? {
            if known.contains(&mark.tag.as_str()) || mark.owner != self.source.owner {
                continue;
            }
            // What was replaced may be all that somebody has of it, and is nothing of ours to remove; without a key it is nothing.
            describe::select(&mut session, database).await?;
            if mark.holds == Direction::Restore || describe::size(&mut session).await? <= 1 {
                mark::empty_if_marked(&mut session, database, &mark).await?;
                swept.push(format!("database {database}"));
            }
        }
        Ok(swept)
    }
}

/// Says whether every database of a restore that has a number of its own is marked as one that holds this.
async fn is_marked(
    session: &mut Session,
    replacement: &Replacement,
    holds: Direction,
) -> Result<bool, RedisError> {
    let mut found = false;
    for pair in replacement.exchanged() {
        let mark = mark::read(session, pair.spare).await?;
        if !mark.is_some_and(|mark| mark.is_of(&replacement.tag) && mark.holds == holds) {
            return Ok(false);
        }
        found = true;
    }
    Ok(found || replacement.functions.as_ref().is_some_and(Functions::lose_some))
}

/// Says whether a swap was done. All databases change their numbers at once, so one of them tells.
async fn is_done(
    session: &mut Session,
    replacement: &Replacement,
    direction: Direction,
) -> Result<bool, RedisError> {
    let Some(first) = replacement.exchanged().next() else { return Ok(true) };
    match mark::read(session, first.spare).await? {
        Some(mark) if mark.is_of(&replacement.tag) => Ok(mark.holds != direction),
        _ => Err(RedisError::Gone { database: first.spare }),
    }
}

/// Exchanges all databases in one transaction of the server. It has no way back from an error in the middle, so whatever could be one
/// is looked at before.
async fn exchange_numbers(
    session: &mut Session,
    replacement: &Replacement,
    direction: Direction,
) -> Result<(), RedisError> {
    const ACTION: &str = "swap the databases";
    let Replacement { tag, owner, .. } = replacement;
    let mark = Mark { tag: tag.clone(), owner: owner.clone(), holds: direction.reversed() }.value();
    let word = |text: &str| text.as_bytes().to_vec();
    let mut commands = vec![vec![word("MULTI")]];
    for pair in replacement.exchanged() {
        let (spare, database) = (pair.spare.to_string(), pair.database.to_string());
        commands.push(vec![word("SELECT"), word(&spare)]);
        commands.push(vec![word("DEL"), word(MARK)]);
        commands.push(vec![word("SWAPDB"), word(&database), word(&spare)]);
        commands.push(vec![word("SET"), word(MARK), word(&mark)]);
    }
    // A command that cannot be queued makes the whole of it void.
    commands.push(vec![word("EXEC")]);
    let done = session.ask_all(ACTION, &commands).await?;
    match done.into_iter().last().map(Reply::list) {
        Some(results) if results.len() == commands.len() - 2 => {
            let refusal = results.iter().find(|result| matches!(result, Reply::Error(_)));
            refusal.map_or(Ok(()), |refusal| Err(statement(ACTION, &refusal.text())))
        }
        _ => Err(statement(ACTION, "the server did not do it")),
    }
}

/// Makes the server have these libraries and no others.
async fn set_functions(session: &mut Session, wanted: &[String]) -> Result<(), RedisError> {
    let present = describe::functions(session).await?;
    for code in present.iter().filter(|code| !wanted.contains(code)) {
        let words: [&[u8]; 3] = [b"FUNCTION", b"DELETE", name_of(code).as_bytes()];
        session.ask("remove a library of functions", &words).await?;
    }
    for code in wanted.iter().filter(|code| !present.contains(code)) {
        let words: [&[u8]; 4] = [b"FUNCTION", b"LOAD", b"REPLACE", code.as_bytes()];
        session.ask("load a library of functions", &words).await?;
    }
    Ok(())
}

/// Waits until the server has on its disk what it has in memory, in the way in which it is set to keep it.
async fn reach_disk(session: &mut Session) -> Result<(), RedisError> {
    const ACTION: &str = "write to the disk";
    if Server::of(session).await?.keeps_log {
        let broken = |cause| RedisError::Broken { action: ACTION, cause };
        // Servers before Redis 7.2 cannot be asked for it; theirs is at most a second behind.
        let reached = session.exchange(&[b"WAITAOF", b"1", b"0", LOG_WAIT_MILLISECONDS]).await;
        return match reached.map_err(broken)?.list().first() {
            Some(Reply::Number(0)) => Err(statement(ACTION, "its log is behind")),
            _ => Ok(()),
        };
    }
    let points = session
        .ask("ask when the server writes to its disk", &[b"CONFIG", b"GET", b"save"])
        .await?;
    if points.list().get(1).is_none_or(|points| points.text().is_empty()) {
        // It is set to keep nothing.
        return Ok(());
    }
    // While it writes for somebody else, what it writes may be older than the swap.
    loop {
        let begun = session.exchange(&[b"BGSAVE"]).await;
        match begun.map_err(|cause| RedisError::Broken { action: ACTION, cause })? {
            Reply::Error(text)
                if text.contains("in progress") || text.contains("child process") =>
            {
                tokio::time::sleep(SAVED_EVERY).await;
            }
            Reply::Error(text) => return Err(statement(ACTION, &text)),
            _ => break,
        }
    }
    loop {
        tokio::time::sleep(SAVED_EVERY).await;
        let state = session.ask(ACTION, &[b"INFO", b"persistence"]).await?.text();
        let is = |line: &str| state.lines().any(|found| found.trim_end() == line);
        match (is("rdb_bgsave_in_progress:0"), is("rdb_last_bgsave_status:ok")) {
            (true, true) => return Ok(()),
            (true, false) => {
                return Err(statement(ACTION, "BGSAVE failed; look into the server's log"));
            }
            (false, _) => {}
        }
    }
}

/// Asks a database that was loaded, as if our mark were not in it. The words of the query are divided by spaces.
pub(super) async fn ask(
    session: &mut Session,
    database: u64,
    query: &str,
) -> Result<String, RedisError> {
    const ACTION: &str = "ask the query";
    let word = |text: &str| text.as_bytes().to_vec();
    if query.split_whitespace().next().is_none() {
        return Err(refused("the query is empty"));
    }
    let Some(mark) = mark::read(session, database).await? else {
        return Err(refused("what was loaded is gone"));
    };
    let commands = [
        vec![word("MULTI")],
        vec![word("DEL"), word(MARK)],
        query.split_whitespace().map(word).collect(),
        vec![word("SET"), word(MARK), word(&mark.value())],
        vec![word("EXEC")],
    ];
    let done = session.ask_all(ACTION, &commands).await?;
    match done.into_iter().last().map(Reply::list).unwrap_or_default().get(1) {
        Some(Reply::Error(finding)) => Err(statement(ACTION, finding)),
        Some(answer) => Ok(answer.text()),
        None => Err(statement(ACTION, "the server did not do it")),
    }
}

fn ours(replacement: &swap::Replacement) -> Result<&Replacement, EngineError> {
    match replacement {
        swap::Replacement::Redis(replacement) => Ok(replacement),
        other => Err(foreign(other)),
    }
}

#[async_trait]
impl Swapper for DatabaseSwapper {
    async fn plan(
        &self,
        cx: &Cx,
        replacement: &swap::Replacement,
        direction: Direction,
    ) -> Result<swap::Swap, EngineError> {
        let swap = self.work_out(cx, ours(replacement)?.clone(), direction).await;
        swap.map(|swap| swap::Swap::Redis(Box::new(swap))).map_err(failed)
    }

    async fn run(&self, cx: &Cx, swap: &swap::Swap) -> Result<(), EngineError> {
        match swap {
            swap::Swap::Redis(swap) => {
                self.exchange(cx, &swap.replacement, swap.direction).await.map_err(failed)
            }
            other => Err(foreign(other)),
        }
    }

    async fn roll_back(&self, cx: &Cx, swap: &swap::Swap) -> Result<(), EngineError> {
        match swap {
            swap::Swap::Redis(swap) => {
                let back = swap.direction.reversed();
                self.exchange(cx, &swap.replacement, back).await.map_err(failed)
            }
            other => Err(foreign(other)),
        }
    }

    async fn replaced_nothing(
        &self,
        cx: &Cx,
        replacement: &swap::Replacement,
    ) -> Result<bool, EngineError> {
        self.is_nothing(cx, ours(replacement)?).await.map_err(failed)
    }

    async fn can_go_back(
        &self,
        cx: &Cx,
        replacement: &swap::Replacement,
    ) -> Result<bool, EngineError> {
        self.is_parked(cx, ours(replacement)?).await.map_err(failed)
    }

    async fn discard(&self, cx: &Cx, replacement: &swap::Replacement) -> Result<(), EngineError> {
        self.empty(cx, ours(replacement)?).await.map_err(failed)
    }

    async fn sweep(
        &self,
        cx: &Cx,
        known: &[swap::Replacement],
    ) -> Result<Vec<String>, EngineError> {
        let known = known.iter().filter_map(|one| ours(one).ok());
        let tags: Vec<&str> = known.map(|one| one.tag.as_str()).collect();
        self.empty_unknown(cx, &tags).await.map_err(failed)
    }
}
