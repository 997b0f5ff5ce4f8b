//! Reading a server: what it sends a new replica is walked through as it flows by.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Write};

use async_trait::async_trait;
use backstay_format::{Content, LargeValue, MediaType, RedisContent, RedisDatabase};
use bytes::{Bytes, BytesMut};
use crc_fast::{CrcAlgorithm, Digest};
use tokio::sync::mpsc;
use tokio::task::{JoinHandle, JoinSet};

use super::RedisSource;
use super::connection::{DEFAULT_USER, RedisConnection as _};
use super::describe::{Server, name_of};
use super::error::{RedisError, refused, statement};
use super::mark;
use super::rdb::{self, Chunks, Item, Reader, database_mark};
use super::tally::Tally;
use super::value::type_of;
use super::wire::{Reply, Session};
use crate::cx::Cx;
use crate::part::{CHUNK_BYTES, CaptureReport, PartReader, PartWriter, part_pipe};
use crate::source::{Capture, Probe, SourceError, fixed_part, text_part};

pub(super) const DUMP: &str = "dump.rdb";
const USERS: &str = "users.acl";
/// Values from this size on are announced to a restore.
const LARGE_BYTES: u64 = 4 << 20;
pub(super) const MODULE_DATA: &str = "a module keeps data beside the keys: it is in the backup, and a restore cannot bring it back through the server";
/// Chunks that wait to be walked through.
const CHUNKS_IN_FLIGHT: usize = 4;

const NO_USERS: &str =
    "users are not taken along: hashes of passwords are secrets, and this backup is not sealed";

/// Connects, and says what a backup would find.
pub(super) async fn probe(cx: &Cx, source: &RedisSource) -> Result<Probe, RedisError> {
    let mut session = source.connection.session(cx).await?;
    let server = Server::of(&mut session).await?;
    server.check_whole()?;
    let mut warnings = Vec::new();
    warnings.extend(may_replicate(source, &mut session).await?);
    if !source.with_users {
        warnings.push(NO_USERS.to_owned());
    }
    Ok(Probe {
        engine: Some(server.engine.clone()),
        size_bytes: server.data_bytes,
        items: Some(server.keyspace.values().map(|space| space.keys).sum()),
        warnings,
    })
}

/// Asks whether our user may be sent what a replica is. Returns a warning if that cannot be known.
async fn may_replicate(
    source: &RedisSource,
    session: &mut Session,
) -> Result<Option<String>, RedisError> {
    if source.connection.user == DEFAULT_USER {
        return Ok(None);
    }
    let user = source.connection.user.as_bytes();
    let tried = session.exchange(&[b"ACL", b"DRYRUN", user, b"PSYNC", b"?", b"-1"]).await;
    match tried.map_err(|cause| RedisError::Broken { action: "ask for our rights", cause })? {
        Reply::Status(_) => Ok(None),
        Reply::Text(finding) => Err(refused(format!(
            "{}; ACL SETUSER {} +psync +replconf gives the rights that a backup needs",
            String::from_utf8_lossy(&finding),
            source.connection.user
        ))),
        _ => Ok(Some(
            "whether our user may replicate (PSYNC) shows only in a backup; ACL SETUSER … +acl|dryrun lets us ask before".to_owned(),
        )),
    }
}

/// A server that is being read.
pub(super) struct ServerCapture {
    server: Server,
    warnings: Vec<String>,
    position: String,
    /// The text of the users, until it is taken.
    users: Option<String>,
    /// The part that the data is written into, until it is taken.
    dump: Option<PartReader>,
    /// The one task that reads; it ends with this.
    reading: JoinSet<Result<Walked, SourceError>>,
}

impl ServerCapture {
    pub(super) async fn begin(cx: &Cx, source: &RedisSource) -> Result<Self, RedisError> {
        let mut session = source.connection.session(cx).await?;
        let server = Server::of(&mut session).await?;
        server.check_whole()?;
        let marks = mark::read_all(&mut session, &server).await?;
        let mut warnings = Vec::new();
        let users = match source.with_users {
            true => match session.ask("read the users", &[b"ACL", b"LIST"]).await {
                Ok(list) => Some(list.list().iter().map(|user| user.text() + "\n").collect()),
                Err(error) => {
                    warnings.push(format!("users are not taken along: {error}"));
                    None
                }
            },
            false => {
                warnings.push(NO_USERS.to_owned());
                None
            }
        };
        let mut session = source.connection.session(cx).await?;
        let (position, framing) = begin_stream(&mut session).await?;
        let (writer, dump) =
            part_pipe(fixed_part(DUMP, MediaType::RedisDump, Some(server.data_bytes)));
        let left_out: BTreeSet<u64> = marks.into_keys().collect();
        if !left_out.is_empty() {
            let numbers: Vec<String> = left_out.iter().map(u64::to_string).collect();
            warnings.push(format!(
                "what a restore has set aside is not in the backup: databases {}",
                numbers.join(", ")
            ));
        }
        let (sender, receiver) = mpsc::channel(CHUNKS_IN_FLIGHT);
        let walking =
            tokio::task::spawn_blocking(move || walk(Received(receiver), writer, &left_out));
        let mut reading = JoinSet::new();
        let stream = Streaming { cx: cx.clone(), session, framing, walking };
        drop(reading.spawn(stream.finish(sender)));
        Ok(Self { server, warnings, position, users, dump: Some(dump), reading })
    }
}

/// How the end of the stream is known.
enum Framing {
    Bytes(u64),
    Mark(Vec<u8>),
}

/// Asks for what a new replica is sent. Returns the position in the server's log, and how the stream ends.
async fn begin_stream(session: &mut Session) -> Result<(String, Framing), RedisError> {
    const ACTION: &str = "ask for what replicas are sent (PSYNC)";
    let broken = |cause| RedisError::Broken { action: ACTION, cause };
    // Servers before Redis 7 do not know the first; they are then left as soon as the data has come.
    for capability in [[b"rdb-only".as_slice(), b"1"], [b"capa", b"eof"]] {
        let [name, value] = capability;
        session.exchange(&[b"REPLCONF", name, value]).await.map_err(broken)?;
    }
    session.send(&[b"PSYNC", b"?", b"-1"]).await.map_err(broken)?;
    let answer = announced(session, ACTION).await?;
    let Some(position) = answer.strip_prefix("+FULLRESYNC ") else {
        return Err(refused(format!(
            "the server answers `{answer}` to PSYNC, and not with all of its data"
        )));
    };
    let length = announced(session, ACTION).await?;
    let framing = match length.strip_prefix("$EOF:") {
        Some(mark) => Some(Framing::Mark(mark.as_bytes().to_vec())),
        None => length.strip_prefix('$').and_then(|bytes| bytes.parse().ok()).map(Framing::Bytes),
    };
    let strange = || refused(format!("the server announces `{length}`, which is no length"));
    Ok((position.replace(' ', ":"), framing.ok_or_else(strange)?))
}

/// Reads a line. While it prepares, a server sends empty ones.
async fn announced(session: &mut Session, action: &'static str) -> Result<String, RedisError> {
    loop {
        let line = session.reading.line().await;
        let line = line.map_err(|cause| RedisError::Broken { action, cause })?;
        match line.strip_prefix('-') {
            Some(refusal) => return Err(statement(action, refusal)),
            None if line.is_empty() => {}
            None => return Ok(line),
        }
    }
}

/// A stream that is under way.
struct Streaming {
    cx: Cx,
    session: Session,
    framing: Framing,
    walking: JoinHandle<(PartWriter, io::Result<Walked>)>,
}

impl Streaming {
    /// Reads to the end. The part ends well only if all of it has come and is what it should be.
    async fn finish(mut self, to: mpsc::Sender<Bytes>) -> Result<Walked, SourceError> {
        let received = self.cx.run(receive(&mut self.session, self.framing, to)).await?;
        let died = |_| RedisError::Dump { finding: "the thread that reads it died".to_owned() };
        let (writer, walked) = self.walking.await.map_err(died)?;
        received
            .map_err(|cause| RedisError::Broken { action: "read what the server sends", cause })?;
        let walked = walked.map_err(|error| RedisError::Dump { finding: error.to_string() })?;
        writer.finish_async().await;
        Ok(walked)
    }
}

/// Hands over the data, without what marks its end.
async fn receive(
    session: &mut Session,
    framing: Framing,
    to: mpsc::Sender<Bytes>,
) -> io::Result<()> {
    let mut held = BytesMut::new();
    let (mut left, mark) = match framing {
        Framing::Bytes(bytes) => (Some(bytes), Vec::new()),
        Framing::Mark(mark) => (None, mark),
    };
    while left != Some(0) {
        held.reserve(CHUNK_BYTES);
        if session.reading.some(&mut held).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let is_end = left.is_none() && held.ends_with(&mark);
        let data = match left {
            Some(bytes) => usize::try_from(bytes).map_or(held.len(), |bytes| bytes.min(held.len())),
            None => held.len().saturating_sub(mark.len()),
        };
        let data = held.split_to(data).freeze();
        left = left.map(|bytes| bytes - data.len() as u64);
        // Who walks through it has gone, and says why.
        if (!data.is_empty() && to.send(data).await.is_err()) || is_end {
            break;
        }
    }
    Ok(())
}

struct Received(mpsc::Receiver<Bytes>);

impl Chunks for Received {
    fn next(&mut self) -> io::Result<Option<Bytes>> {
        Ok(self.0.blocking_recv())
    }
}

/// What was seen of the data.
pub(super) struct Walked {
    databases: BTreeMap<u64, Tally>,
    functions: Vec<String>,
    large: Vec<LargeValue>,
    pub(super) has_module_data: bool,
    pub(super) has_checksum: bool,
}

impl Walked {
    /// Describes it, as data of this engine that takes so much memory.
    pub(super) fn content(self, engine: &str, memory_bytes: u64) -> RedisContent {
        let databases = self.databases.into_iter().map(|(number, tally)| RedisDatabase {
            number,
            keys: tally.keys(),
            expiring: tally.expiring(),
            types: tally.types,
        });
        RedisContent {
            server: engine.to_owned(),
            memory_bytes,
            databases: databases.collect(),
            functions: self.functions,
            large_values: self.large,
        }
    }
}

/// Writes what flows by into a part, but for some databases.
struct Filter {
    part: PartWriter,
    left_out: bool,
    written: u64,
    sum: Digest,
}

impl Write for Filter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if !self.left_out {
            self.part.write_all(bytes)?;
            self.sum.update(bytes);
            self.written += bytes.len() as u64;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

pub(super) fn walk(
    chunks: impl Chunks,
    part: PartWriter,
    left_out: &BTreeSet<u64>,
) -> (PartWriter, io::Result<Walked>) {
    let sum = Digest::new(CrcAlgorithm::Crc64Redis);
    let mut filter = Filter { part, left_out: false, written: 0, sum };
    let walked = walk_into(chunks, &mut filter, left_out);
    (filter.part, walked)
}

fn walk_into(
    chunks: impl Chunks,
    filter: &mut Filter,
    left_out: &BTreeSet<u64>,
) -> io::Result<Walked> {
    let mut reader = Reader::new(chunks, filter)?;
    let (mut functions, mut large) = (Vec::new(), Vec::new());
    let mut databases: BTreeMap<u64, Tally> = BTreeMap::new();
    let (mut has_module_data, mut chosen) = (false, 0);
    loop {
        match reader.next()? {
            Item::Database(number) => {
                chosen = number;
                reader.out.left_out = left_out.contains(&number);
                reader.out.write_all(&database_mark(number))?;
            }
            Item::Key(key) => {
                let kind = type_of(key.encoding).unwrap_or("value of an unknown type");
                let begins = reader.offset();
                let at = reader.position();
                reader.value(key.encoding)?;
                let bytes = reader.offset() - begins;
                if reader.out.left_out {
                    continue;
                }
                if key.name == mark::MARK.as_bytes() {
                    return Err(rdb::wrong("a restore began meanwhile; try again"));
                }
                // What a killed restore was loading in its place is the app's; no restore loads the mark.
                if mark::is_mark(&key.name) {
                    continue;
                }
                if bytes >= LARGE_BYTES {
                    large.push(LargeValue { offset: at, bytes });
                }
                databases.entry(chosen).or_default().add(&key.name, kind, key.expires);
            }
            Item::Function(code) => {
                functions.push(name_of(&String::from_utf8_lossy(&code)).to_owned());
            }
            Item::ModuleData => has_module_data = true,
            Item::End => break,
        }
    }
    reader.out.left_out = false;
    reader.out.write_all(&[rdb::END])?;
    let sum = reader.out.sum.finalize();
    reader.out.part.write_all(&sum.to_le_bytes())?;
    functions.sort();
    let has_checksum = reader.has_checksum;
    Ok(Walked { databases, functions, large, has_module_data, has_checksum })
}

impl<C: Chunks> Reader<C, &mut Filter> {
    /// Returns where in the part the next byte will stand.
    fn position(&self) -> u64 {
        self.out.written + self.ahead()
    }
}

#[async_trait]
impl Capture for ServerCapture {
    async fn next_part(&mut self, _cx: &Cx) -> Result<Option<PartReader>, SourceError> {
        match self.users.take() {
            Some(users) => Ok(Some(text_part(USERS, MediaType::Text, users))),
            None => Ok(self.dump.take()),
        }
    }

    async fn finish(mut self: Box<Self>, _cx: &Cx) -> Result<CaptureReport, SourceError> {
        let never = || RedisError::Dump { finding: "it was not read".to_owned() };
        // What nobody took ends now.
        drop(self.dump);
        let walked = self.reading.join_next().await.and_then(Result::ok).ok_or_else(never)??;
        self.warnings.extend(walked.has_module_data.then(|| MODULE_DATA.to_owned()));
        let content = walked.content(&self.server.engine, self.server.data_bytes);
        Ok(CaptureReport {
            engine: Some(self.server.engine),
            content: Some(Content::Redis(Box::new(content))),
            consistency_point: Some(self.position),
            warnings: self.warnings,
            ..CaptureReport::default()
        })
    }
}
