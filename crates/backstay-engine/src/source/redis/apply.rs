//! Loading a backup into databases with free numbers, beside those that it will replace.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};

use async_trait::async_trait;
use backstay_format::{Content, Details, MediaType, PartName, RedisContent, RedisDatabase};

use super::RedisSource;
use super::connection::RedisConnection as _;
use super::describe::{self, Server};
use super::error::{RedisError, refused};
use super::exchange::{Functions, Pair, Replacement, label};
use super::load::{self, LoadedKeys, Order};
use super::mark::{self, Coming, Mark};
use super::wire::Session;
use crate::cx::Cx;
use crate::event::Event;
use crate::part::PartReader;
use crate::source::{
    Applied, ApplyReport, How, Loaded, Outlook, SourceError, Target, TargetOptions, engine,
};
use crate::swap::{self, Direction};

/// Where a restore goes.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Place {
    /// Where the backup is of.
    Own,
    /// The same numbers of another server, which must be free.
    Elsewhere,
    /// This number, which must be free.
    Number(u64),
    /// Nowhere: a drill loads, and never swaps.
    Scratch,
}

/// Databases beside those that will be replaced.
pub(super) struct ServerTarget {
    source: RedisSource,
    place: Result<Place, String>,
    /// Only these databases, if any.
    only: Result<BTreeSet<u64>, String>,
    in_place: bool,
    tag: String,
    pairs: Vec<Pair>,
    content: Option<RedisContent>,
    server: Server,
    loaded: LoadedKeys,
    /// Commands that the server did, while it was loaded.
    done: AtomicU64,
    report: ApplyReport,
}

impl ServerTarget {
    pub(super) fn new(source: &RedisSource, options: TargetOptions) -> Self {
        Self {
            source: source.clone(),
            place: place(source.elsewhere, options.to, options.is_drill),
            only: numbers(&options.only),
            in_place: options.in_place,
            tag: options.tag,
            pairs: Vec::new(),
            content: None,
            server: Server::default(),
            loaded: LoadedKeys::default(),
            done: AtomicU64::new(0),
            report: ApplyReport::default(),
        }
    }

    /// Returns the mark of what is loaded.
    fn mark(&self) -> Mark {
        let (tag, owner) = (self.tag.clone(), self.source.owner.clone());
        Mark { tag, owner, holds: Direction::Restore }
    }

    fn coming(&self) -> Coming<'_> {
        Coming { tag: &self.tag, owner: &self.source.owner }
    }

    /// Returns how many keys a database has, at most, if all of them were loaded by this restore. Of several the server was not
    /// asked how many of its answers are about which.
    fn loaded_at_most(&self) -> u64 {
        match self.pairs.as_slice() {
            // One answer is about the choice of the database.
            [_] => self.done.load(Ordering::Relaxed).saturating_sub(1),
            _ => 0,
        }
    }

    fn place(&self) -> Result<&Place, RedisError> {
        self.place.as_ref().map_err(refused)
    }

    fn only(&self) -> Result<&BTreeSet<u64>, RedisError> {
        self.only.as_ref().map_err(refused)
    }

    /// Finds which databases come from the backup, and which numbers they get.
    fn wanted(&self, content: &RedisContent) -> Result<Vec<(u64, u64)>, RedisError> {
        let only = self.only()?;
        let has =
            |number: &u64| content.databases.iter().any(|database| database.number == *number);
        if let Some(missing) = only.iter().find(|number| !has(number)) {
            return Err(refused(format!(
                "the backup has no database {missing}; `backstay show` tells which it has"
            )));
        }
        let numbers = content.databases.iter().map(|database| database.number);
        let chosen: Vec<u64> =
            numbers.filter(|number| only.is_empty() || only.contains(number)).collect();
        match (self.place()?, chosen.as_slice()) {
            (Place::Number(to), [from]) => Ok(vec![(*from, *to)]),
            (Place::Number(_), _) => Err(refused(format!(
                "the backup has {} databases and --to names one number; choose one of them with --only",
                chosen.len()
            ))),
            _ => Ok(chosen.into_iter().map(|number| (number, number)).collect()),
        }
    }

    /// Works out which databases are exchanged with which, and whether that replaces anything. Everything that stands against the
    /// restore is found here.
    async fn work_out(
        &self,
        session: &mut Session,
        server: &Server,
        content: &RedisContent,
    ) -> Result<(Vec<Pair>, bool), RedisError> {
        let marks = mark::read_all(session, server).await?;
        let present: BTreeSet<u64> = server
            .keyspace
            .keys()
            .copied()
            .filter(|database| !marks.contains_key(database))
            .collect();
        let wanted = self.wanted(content)?;
        let mut pairs: Vec<(Option<u64>, u64)> =
            wanted.into_iter().map(|(of, database)| (Some(of), database)).collect();
        let replaced: Vec<u64> = match self.place()? {
            Place::Own => {
                // What the backup does not have goes, too, unless only some of it is wanted.
                let others = present
                    .iter()
                    .filter(|database| !pairs.iter().any(|(_, known)| known == *database));
                let others: Vec<_> = others.map(|database| (None, *database)).collect();
                if self.only()?.is_empty() {
                    pairs.extend(others);
                }
                pairs
                    .iter()
                    .map(|(_, database)| *database)
                    .filter(|database| present.contains(database))
                    .collect()
            }
            Place::Elsewhere | Place::Number(_) => {
                let taken =
                    pairs.iter().find(|(_, database)| server.keyspace.contains_key(database));
                if let Some((_, database)) = taken {
                    return Err(refused(format!(
                        "database {database} there is not empty; restore to one that is"
                    )));
                }
                Vec::new()
            }
            Place::Scratch => Vec::new(),
        };
        let set_aside = pairs.iter().find(|(_, database)| marks.contains_key(database));
        if let Some((_, database)) =
            set_aside.filter(|_| self.place().ok() != Some(&Place::Scratch))
        {
            return Err(refused(format!(
                "database {database} holds what another restore has set aside; undo or confirm that first"
            )));
        }
        let functions = describe::functions(session).await?;
        let names: Vec<&str> = functions.iter().map(|code| describe::name_of(code)).collect();
        let collides = content.functions.iter().find(|name| names.contains(&name.as_str()));
        if let (Place::Elsewhere, Some(name)) = (self.place()?, collides) {
            return Err(refused(format!(
                "the server has a library of functions {name} already; remove it there, or choose databases with --only"
            )));
        }
        let replaces_functions =
            self.place()? == &Place::Own && self.only()?.is_empty() && !functions.is_empty();
        let count = describe::databases(session).await?;
        if let Some((_, database)) = pairs.iter().find(|(_, database)| *database >= count) {
            return Err(refused(format!(
                "the server has {count} databases and none of number {database}; raise `databases` in its configuration"
            )));
        }
        let used = |number: &u64| {
            server.keyspace.contains_key(number)
                || pairs.iter().any(|(_, database)| database == number)
        };
        let free: Vec<u64> = (0..count).rev().filter(|number| !used(number)).collect();
        let is_scratch = self.place()? == &Place::Scratch;
        let placed = match give_places(&pairs, &free, &replaced, is_scratch) {
            Ok(placed) => placed,
            Err(error) => {
                let coming = mark::all_coming(session, server, &self.source.owner).await?;
                let left = coming.iter().find(|(at, _)| replaced.contains(at));
                return Err(left.map_or(error, |(at, _)| refused(mark::written_to(*at))));
            }
        };
        Ok((placed, !replaced.is_empty() || replaces_functions))
    }

    async fn look(&self, cx: &Cx, details: &Details) -> Result<Outlook, RedisError> {
        if self.in_place {
            return Err(refused(
                "--in-place is not for this kind of source: it is always loaded beside and swapped in one step",
            ));
        }
        let content = content(details)?;
        let mut session = self.source.connection.session(cx).await?;
        let server = Server::of(&mut session).await?;
        check_server(&server, content)?;
        let mut warnings = Vec::new();
        engine::compare(&content.server, &server.engine, &mut warnings).map_err(refused)?;
        if server.max_bytes > 0 && server.evicts {
            warnings.push("the server removes keys where its memory (maxmemory) does not suffice: what is set aside may lose some before it is confirmed or undone".to_owned());
        }
        let (pairs, replaces) = self.work_out(&mut session, &server, content).await?;
        let numbers = pairs.iter().map(|pair| pair.database.to_string());
        Ok(Outlook {
            target: label(&self.source.connection.location(), numbers),
            replaces,
            how: How::Swap,
            engine: Some(server.engine.clone()),
            present: replaces.then(|| Content::Redis(Box::new(present(&server, &pairs)))),
            warnings,
        })
    }

    async fn make_places(&mut self, cx: &Cx, content: &RedisContent) -> Result<(), RedisError> {
        let mut session = self.source.connection.session(cx).await?;
        self.server = Server::of(&mut session).await?;
        let (pairs, _) = self.work_out(&mut session, &self.server, content).await?;
        let mark = self.mark();
        for pair in pairs {
            match pair.is_exchanged() {
                true => mark::set(&mut session, pair.spare, &mark).await?,
                false => self.coming().claim(&mut session, pair.spare).await?,
            }
            self.pairs.push(pair);
        }
        Ok(())
    }

    /// Proves what was loaded, and says how it comes to its place.
    async fn complete(&mut self, cx: &Cx) -> Result<Replacement, SourceError> {
        let mut session = self.source.connection.session(cx).await?;
        for pair in self.pairs.iter_mut().filter(|pair| pair.of.is_some()) {
            let expected = self.loaded.tallies.remove(&pair.spare).unwrap_or_default();
            let compared =
                load::compare(cx, &mut session, (pair.spare, &expected), self.server.series);
            pair.loaded = compared.await?;
            self.report.items += pair.loaded;
        }
        let mut restored = std::mem::take(&mut self.loaded.functions);
        let replaced = describe::functions(&mut session).await?;
        let functions = match self.place()? {
            Place::Own if self.only()?.is_empty() => Some(restored),
            // There the server's own stay.
            Place::Elsewhere if self.only()?.is_empty() => {
                restored.extend(replaced.iter().cloned());
                restored.sort();
                restored.dedup();
                Some(restored)
            }
            _ => None,
        };
        Ok(Replacement {
            server: self.source.connection.server(),
            tag: self.tag.clone(),
            owner: self.source.owner.clone(),
            is_planned: false,
            evicted: self.server.evicted,
            pairs: self.pairs.clone(),
            functions: functions.map(|restored| Functions { restored, replaced }),
        })
    }
}

fn place(elsewhere: bool, to: Option<OsString>, is_drill: bool) -> Result<Place, String> {
    if is_drill {
        return Ok(Place::Scratch);
    }
    let Some(to) = to else { return Ok(if elsewhere { Place::Elsewhere } else { Place::Own }) };
    match to.to_str() {
        // The number in a URL is only where checks are asked.
        _ if elsewhere => Ok(Place::Elsewhere),
        text => text.and_then(|text| text.parse().ok()).map(Place::Number).ok_or_else(|| {
            format!(
                "found {}, expected the number of a free database or the URL of another server",
                to.display()
            )
        }),
    }
}

fn numbers(only: &[PathBuf]) -> Result<BTreeSet<u64>, String> {
    let number = |name: &PathBuf| {
        let parsed = name.to_str().and_then(|text| text.parse().ok());
        parsed.ok_or_else(|| format!("found {}, expected the number of a database", name.display()))
    };
    only.iter().map(number).collect()
}

/// Gives every database a free number to be loaded into.
fn give_places(
    pairs: &[(Option<u64>, u64)],
    free: &[u64],
    replaced: &[u64],
    is_scratch: bool,
) -> Result<Vec<Pair>, RedisError> {
    let mut free = free.iter().copied();
    // Those that replace something need one.
    let (needy, others): (Vec<_>, Vec<_>) =
        pairs.iter().partition(|(_, database)| replaced.contains(database));
    let mut placed = Vec::new();
    for (of, database) in needy.into_iter().chain(others).copied() {
        let spare = match free.next() {
            Some(spare) => spare,
            None if !is_scratch && replaced.is_empty() => database,
            None => {
                return Err(refused(
                    "no number is free to load a database into before it replaces what is there; raise `databases` in the server's configuration, or restore to an empty server with --to",
                ));
            }
        };
        placed.push(Pair { of, database, spare, loaded: 0 });
    }
    placed.sort_by_key(|pair| pair.database);
    Ok(placed)
}

fn content(details: &Details) -> Result<&RedisContent, RedisError> {
    match &details.content {
        Some(Content::Redis(content)) => Ok(content),
        _ => Err(refused("the backup is not of a Redis or Valkey server")),
    }
}

/// Refuses a server that cannot take the backup.
fn check_server(server: &Server, content: &RedisContent) -> Result<(), RedisError> {
    server.check_whole()?;
    if server.is_replica {
        return Err(refused("this server is a replica, which takes no changes; name its primary"));
    }
    let needed = server.used_bytes.saturating_add(content.memory_bytes);
    if server.max_bytes > 0 && needed > server.max_bytes {
        return Err(refused(format!(
            "the server may take {} bytes of memory (maxmemory), and with what is there and what comes it would need {needed}; raise maxmemory, or restore to another server with --to",
            server.max_bytes
        )));
    }
    Ok(())
}

/// Describes what is there in the shape of what comes back.
fn present(server: &Server, pairs: &[Pair]) -> RedisContent {
    let there = pairs.iter().filter_map(|pair| {
        let space = server.keyspace.get(&pair.database)?;
        Some(RedisDatabase {
            number: pair.database,
            keys: space.keys,
            expiring: space.expiring,
            ..RedisDatabase::default()
        })
    });
    RedisContent {
        server: server.engine.clone(),
        databases: there.collect(),
        ..RedisContent::default()
    }
}

#[async_trait]
impl Target for ServerTarget {
    async fn outlook(&self, cx: &Cx, details: &Details) -> Result<Outlook, SourceError> {
        Ok(cx.run(self.look(cx, details)).await??)
    }

    async fn prepare(&mut self, cx: &Cx, details: &Details) -> Result<(), SourceError> {
        let content = content(details)?.clone();
        self.content = Some(content.clone());
        // Not given up half-way: what was marked must be known.
        Ok(self.make_places(cx, &content).await?)
    }

    /// Users are for people: a restore makes none.
    fn wants(&self, _part: &PartName, media_type: MediaType) -> bool {
        media_type == MediaType::RedisDump
    }

    async fn apply(&mut self, cx: &Cx, data: PartReader) -> Result<Applied, SourceError> {
        let content = self.content.as_ref().ok_or_else(|| refused("nothing was prepared"))?;
        let mut session = self.source.connection.session(cx).await?;
        let order = Order {
            places: self.pairs.iter().filter_map(|pair| Some((pair.of?, pair.spare))).collect(),
            large: content.large_values.iter().map(|value| (value.offset, value.bytes)).collect(),
            now: describe::now(&mut session).await?,
        };
        self.loaded = load::run(cx, session, data, (order, &self.done)).await?;
        self.report.bytes = self.loaded.bytes;
        Ok(Applied::Done)
    }

    async fn finish(mut self: Box<Self>, cx: &Cx) -> Result<Loaded, SourceError> {
        match self.complete(cx).await {
            Ok(replacement) => {
                let replacement = swap::Replacement::Redis(Box::new(replacement));
                Ok(Loaded { report: self.report, replacement })
            }
            Err(error) => {
                self.discard(&cx.for_cleanup()).await?;
                Err(error)
            }
        }
    }

    async fn discard(self: Box<Self>, cx: &Cx) -> Result<(), SourceError> {
        if !self.pairs.is_empty() {
            let (mut session, mark) = (self.source.connection.session(cx).await?, self.mark());
            for pair in &self.pairs {
                if pair.is_exchanged() {
                    mark::empty_if_marked(&mut session, pair.spare, &mark).await?;
                } else if !self
                    .coming()
                    .take_back(&mut session, pair.spare, self.loaded_at_most())
                    .await?
                {
                    cx.event(Event::Warning { text: mark::written_to(pair.spare) });
                }
            }
        }
        Ok(())
    }
}
