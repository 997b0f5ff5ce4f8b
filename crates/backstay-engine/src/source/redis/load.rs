//! Loading the keys of a backup into databases that are empty but for our mark.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::sync::atomic::{AtomicU64, Ordering};

use backstay_format::MediaType;
use bytes::Bytes;
use crc_fast::{CrcAlgorithm, Digest};
use tokio::io::AsyncWriteExt as _;

use super::describe;
use super::error::{RedisError, refused, statement};
use super::mark::is_mark;
use super::rdb::{Chunks, Item, Key, Reader, wrong};
use super::tally::Tally;
use super::value::{MODULE, type_of};
use super::wire::{Replies, Reply, Session, encode};
use crate::cx::Cx;
use crate::part::{PartError, PartReader, PartWriter, part_pipe};
use crate::source::{SourceError, fixed_part};

/// Version of the format and checksum, which end what `RESTORE` takes.
const FOOTER_BYTES: u64 = 10;
/// Keys that are asked for at once when they are compared.
const SCAN_COUNT: &[u8] = b"1000";
/// A database that changes its size meanwhile names some keys twice.
const SCAN_TRIES: u32 = 3;
/// Types that the server itself has.
const OWN_TYPES: [&str; 6] = ["string", "list", "set", "zset", "hash", "stream"];
/// Since then a server tells when a key expires, and not only in how long.
const TELLS_TIMES_SINCE: (u32, u32) = (7, 0);

/// What is loaded where.
#[derive(Debug, Clone, Default)]
pub(super) struct Order {
    /// By the database of the backup: the one that is loaded.
    pub(super) places: BTreeMap<u64, u64>,
    /// Large values, by where they begin in the part; with their bytes.
    pub(super) large: BTreeMap<u64, u64>,
    /// The server's time, in milliseconds since 1970.
    pub(super) now: u64,
}

/// What was loaded.
#[derive(Debug, Default)]
pub(super) struct LoadedKeys {
    /// By the database that it was loaded into.
    pub(super) tallies: BTreeMap<u64, Tally>,
    /// The code of libraries that the backup holds.
    pub(super) functions: Vec<String>,
    pub(super) bytes: u64,
}

/// Loads all keys that are wanted. What the server answers is read while more is sent; how many commands it did is counted.
pub(super) async fn run(
    cx: &Cx,
    mut session: Session,
    data: PartReader,
    (order, done): (Order, &AtomicU64),
) -> Result<LoadedKeys, SourceError> {
    let loaded = load(cx, &mut session, data, (order, done)).await;
    if loaded.is_err() {
        // Keys that are still under way must not come after the place was emptied.
        session.end().await;
    }
    loaded
}

async fn load(
    cx: &Cx,
    session: &mut Session,
    data: PartReader,
    (order, done): (Order, &AtomicU64),
) -> Result<LoadedKeys, SourceError> {
    let (commands, mut encoded) = part_pipe(fixed_part("commands", MediaType::RedisDump, None));
    let encoding = tokio::task::spawn_blocking(move || encode_all(Chosen(data), commands, &order));
    let Session { reading, writing } = session;
    let sending = async {
        while let Some(chunk) = encoded.next().await? {
            writing.write_all(&chunk).await.map_err(broken)?;
        }
        writing.flush().await.map_err(broken)?;
        Ok::<(), SourceError>(())
    };
    let sent = cx.run(async { tokio::try_join!(sending, check_replies(reading, done)) }).await;
    drop(encoded);
    let died = |_| refused("the thread that reads the backup died");
    let encoded = encoding.await.map_err(died)?;
    // Whoever failed first says why; the other only found nobody.
    match (sent?, encoded) {
        (Ok(_), Ok(loaded)) => Ok(loaded),
        (Err(SourceError::Part(_)) | Ok(_), Err(error)) => Err(explained(error)),
        (Err(error), _) => Err(error),
    }
}

fn broken(cause: io::Error) -> SourceError {
    RedisError::Broken { action: "load the keys", cause }.into()
}

fn explained(error: io::Error) -> SourceError {
    match error.downcast::<PartError>() {
        Ok(part) => part.into(),
        Err(error) => refused(format!("the backup cannot be loaded: {error}")).into(),
    }
}

/// Reads answers up to that of the last command, which is the only one that is a text.
async fn check_replies(replies: &mut Replies, done: &AtomicU64) -> Result<(), SourceError> {
    loop {
        match replies.next().await.map_err(broken)? {
            Reply::Text(_) => return Ok(()),
            Reply::Error(text) if text.contains("version or checksum") => {
                let finding = "the server does not know how this value is written; restore to a server that is not older than the one that was backed up";
                return Err(statement("load the keys", finding).into());
            }
            Reply::Error(text) => return Err(statement("load the keys", &text).into()),
            _ => {
                done.fetch_add(1, Ordering::Relaxed);
            }
        }
    }
}

struct Chosen(PartReader);

impl Chunks for Chosen {
    fn next(&mut self) -> io::Result<Option<Bytes>> {
        self.0.blocking_next().map_err(io::Error::other)
    }
}

/// Where the bytes of a value go.
enum Values {
    /// It is not wanted.
    Dropped,
    /// It is gathered.
    Gathered(Vec<u8>),
    /// It was announced.
    Announced,
}

/// Commands under way.
struct Commands {
    out: PartWriter,
    values: Values,
    sum: Digest,
}

impl Write for Commands {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match &mut self.values {
            Values::Dropped => {}
            Values::Gathered(value) => value.extend_from_slice(bytes),
            Values::Announced => {
                self.sum.update(bytes);
                self.out.write_all(bytes)?;
            }
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Commands {
    /// Writes `RESTORE` up to the value, of which this many bytes follow with its type.
    fn announce(&mut self, key: &Key, bytes: u64) -> io::Result<()> {
        let words = if access(key).is_some() { 7 } else { 5 };
        write!(self.out, "*{words}\r\n$7\r\nRESTORE\r\n${}\r\n", key.name.len())?;
        self.out.write_all(&key.name)?;
        let expires = key.expires.unwrap_or(0).to_string();
        write!(self.out, "\r\n${}\r\n{expires}\r\n${}\r\n", expires.len(), bytes + FOOTER_BYTES)?;
        self.sum = Digest::new(CrcAlgorithm::Crc64Redis);
        Ok(())
    }

    fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.sum.update(bytes);
        self.out.write_all(bytes)
    }

    /// Ends the value and the command.
    fn end(&mut self, key: &Key, version: u16) -> io::Result<()> {
        self.put(&version.to_le_bytes())?;
        let sum = self.sum.finalize().to_le_bytes();
        self.out.write_all(&sum)?;
        self.out.write_all(b"\r\n$6\r\nABSTTL\r\n")?;
        let Some((word, number)) = access(key) else { return Ok(()) };
        let number = number.to_string();
        write!(self.out, "${}\r\n{word}\r\n${}\r\n{number}\r\n", word.len(), number.len())
    }
}

/// Returns what a server that evicts keys has counted of one.
fn access(key: &Key) -> Option<(&'static str, u64)> {
    let idle = key.idle.map(|seconds| ("IDLETIME", seconds));
    idle.or(key.frequency.map(|count| ("FREQ", u64::from(count))))
}

fn encode_all(data: Chosen, out: PartWriter, order: &Order) -> io::Result<LoadedKeys> {
    let sum = Digest::new(CrcAlgorithm::Crc64Redis);
    let mut reader = Reader::new(data, Commands { out, values: Values::Dropped, sum })?;
    let mut loaded = LoadedKeys::default();
    let mut place = None;
    loop {
        match reader.next()? {
            Item::Database(number) => {
                place = order.places.get(&number).copied();
                if let Some(place) = place {
                    let select = encode(&[b"SELECT", place.to_string().as_bytes()]);
                    reader.out.out.write_all(&select)?;
                }
            }
            Item::Key(key) => {
                let has_expired = key.expires.is_some_and(|time| time <= order.now);
                match place.filter(|_| !has_expired && !is_mark(&key.name)) {
                    None => reader.value(key.encoding)?,
                    Some(place) => {
                        encode_key(&mut reader, &key, order)?;
                        let kind = type_of(key.encoding)
                            .ok_or_else(|| wrong("a value is of no known type"))?;
                        loaded.tallies.entry(place).or_default().add(&key.name, kind, key.expires);
                    }
                }
            }
            Item::Function(code) => {
                let code = String::from_utf8(code);
                loaded
                    .functions
                    .push(code.map_err(|_| wrong("a library of functions is no text"))?);
            }
            Item::ModuleData => {}
            Item::End => break,
        }
    }
    loaded.bytes = reader.offset();
    loaded.functions.sort();
    let mut out = reader.out.out;
    out.write_all(&encode(&[b"ECHO", b"done"]))?;
    out.finish();
    Ok(loaded)
}

fn encode_key(reader: &mut Reader<Chosen, Commands>, key: &Key, order: &Order) -> io::Result<()> {
    reader.settle()?;
    let begins = reader.offset();
    let announced = order.large.get(&begins).copied();
    if let Some(bytes) = announced {
        reader.out.announce(key, 1 + bytes)?;
        reader.out.put(&[key.encoding])?;
    }
    reader.out.values = match announced {
        Some(_) => Values::Announced,
        None => Values::Gathered(vec![key.encoding]),
    };
    reader.value(key.encoding)?;
    reader.settle()?;
    let values = std::mem::replace(&mut reader.out.values, Values::Dropped);
    match (values, announced) {
        (Values::Gathered(value), _) => {
            reader.out.announce(key, value.len() as u64)?;
            reader.out.put(&value)?;
        }
        (_, Some(bytes)) if bytes != reader.offset() - begins => {
            return Err(wrong("a large value has another size than the manifest says"));
        }
        _ => {}
    }
    let version = reader.version();
    reader.out.end(key, version)
}

/// Compares the keys of a database with what was loaded into it. Returns how many there are.
pub(super) async fn compare(
    cx: &Cx,
    session: &mut Session,
    (database, expected): (u64, &Tally),
    series: (u32, u32),
) -> Result<u64, SourceError> {
    describe::select(session, database).await?;
    let mut tries = 0;
    loop {
        tries += 1;
        let found = cx.run(scan(session, series >= TELLS_TIMES_SINCE)).await??;
        let now = describe::now(session).await?;
        let compared = if series >= TELLS_TIMES_SINCE {
            expected.check(&found, now)
        } else {
            // In how long a key expires is no number that could be compared.
            match (
                found.keys() <= expected.keys(),
                found.keys() - found.expiring() == expected.keys() - expected.expiring(),
            ) {
                (true, true) => Ok(()),
                _ => Err(format!("there are {} keys instead of {}", found.keys(), expected.keys())),
            }
        };
        match compared {
            Ok(()) => return Ok(found.keys()),
            Err(_) if tries < SCAN_TRIES => {}
            Err(finding) => {
                return Err(refused(format!(
                    "what the server holds after loading is not what the backup holds: {finding}"
                ))
                .into());
            }
        }
    }
}

async fn scan(session: &mut Session, tells_times: bool) -> Result<Tally, RedisError> {
    const ACTION: &str = "compare the keys";
    let mut found = Tally::default();
    let mut cursor = b"0".to_vec();
    loop {
        let scanned = session.ask(ACTION, &[b"SCAN", &cursor, b"COUNT", SCAN_COUNT]).await?;
        let mut parts = scanned.list().into_iter();
        cursor = parts.next().map(|cursor| cursor.text().into_bytes()).unwrap_or_default();
        let names = parts.next().map(Reply::list).unwrap_or_default();
        let names = names.into_iter().filter_map(|name| match name {
            Reply::Text(name) if !is_mark(&name) => Some(name),
            _ => None,
        });
        let names: Vec<Vec<u8>> = names.collect();
        let time: &[u8] = if tells_times { b"PEXPIRETIME" } else { b"PTTL" };
        let of = |name: &Vec<u8>| {
            [vec![b"TYPE".to_vec(), name.clone()], vec![time.to_vec(), name.clone()]]
        };
        let questions: Vec<Vec<Vec<u8>>> = names.iter().flat_map(of).collect();
        let answers = session.ask_all(ACTION, &questions).await?;
        for (name, answer) in names.iter().zip(answers.chunks(2)) {
            let [kind, time] = answer else { continue };
            let kind = kind.text();
            let kind = if OWN_TYPES.contains(&kind.as_str()) { kind.as_str() } else { MODULE };
            match time.number() {
                // It expired meanwhile.
                Some(-2) | None => {}
                Some(time) => found.add(name, kind, u64::try_from(time).ok()),
            }
        }
        if cursor == b"0" || cursor.is_empty() {
            return Ok(found);
        }
    }
}
