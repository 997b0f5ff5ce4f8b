//! Reading the custom archive of `pg_dump` as it flows by: it has no end mark, and a dump that was cut short between two
//! tables looks whole to `pg_restore --list`. Here every table that the table of contents announces must be there to its
//! last line, and the lines are the rows.
//!
//! Source of the layout: `pg_backup_archiver.c` and `pg_backup_custom.c` of PostgreSQL 9.0 to 18 (archive versions 1.12 to
//! 1.16), and what their programs write. Our own dumps are not packed; others may be, and may hold statements instead of rows.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, BufRead};

use jiff::civil::DateTime;

use super::archive_rows::{Packing, Rows};
use super::globals::{identifier, qualified};
use super::names::{TableName, shown};

const MAGIC: &[u8] = b"PGDMP";
/// Archive versions that are known: of PostgreSQL 9.0 and of 17 and 18.
const KNOWN_VERSIONS: std::ops::RangeInclusive<(u8, u8)> = (1, 12)..=(1, 16);
/// From here on an entry has the access method of its table.
const WITH_ACCESS_METHOD: (u8, u8) = (1, 14);
/// From here on the header has the compression as one byte.
const WITH_ALGORITHM: (u8, u8) = (1, 15);
/// From here on an entry has the kind of its relation.
const WITH_RELATION_KIND: (u8, u8) = (1, 16);
const FORMAT_CUSTOM: u8 = 1;
const BLOCK_DATA: u8 = 1;
const BLOCK_LARGE_OBJECTS: u8 = 3;
/// Compressions by their numbers, from [`WITH_ALGORITHM`] on.
const COMPRESSED_BY_GZIP: u8 = 1;
const COMPRESSED_BY_LZ4: u8 = 2;
const COMPRESSED_BY_ZSTD: u8 = 3;
/// Strings of a table of contents are statements and names; longer ones are no archive.
const MAX_STRING_BYTES: usize = 64 << 20;

/// What an archive holds.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Archive {
    /// Tables with the number of their rows, in the order of their names.
    pub(super) tables: Vec<(TableName, u64)>,
    /// How many large objects there are.
    pub(super) large_objects: u64,
}

/// What an archive of others says of itself, once all of it was read.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Foreign {
    /// Tables with the number of their rows, where that can be told.
    pub(super) tables: Vec<(TableName, Option<u64>)>,
    /// The roles that own something in it.
    pub(super) owners: BTreeSet<String>,
    /// The encoding of its texts, if it says so.
    pub(super) encoding: Option<String>,
    /// Whether it has subscriptions of others.
    pub(super) has_subscriptions: bool,
    /// How many large objects there are, where that can be told.
    pub(super) large_objects: Option<u64>,
}

/// What stands at the beginning of an archive.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Header {
    version: (u8, u8),
    int_bytes: usize,
    offset_bytes: usize,
    format: u8,
    packing: Packing,
    /// In the time of wherever it was made.
    made_at: Option<DateTime>,
}

/// An entry of a table of contents.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Entry {
    /// Its number in the archive.
    pub(super) id: i64,
    /// Whether the archive has data of it.
    pub(super) has_data: bool,
    /// For example `TABLE DATA`.
    pub(super) kind: String,
    /// Its schema; empty for what lies in none.
    pub(super) schema: String,
    /// Its name; of what belongs to a table, with the table's.
    pub(super) name: String,
    /// Both as they are, in the encoding of the database.
    pub(super) bytes: TableName,
    /// The role that owns it; empty if none does.
    pub(super) owner: String,
    /// What makes it, where that is of interest.
    pub(super) definition: String,
    /// Whether its data are rows, and not statements.
    pub(super) has_rows: bool,
    /// The file of its data, in an archive that is several files.
    pub(super) file: String,
    /// The entries that must be there before it.
    pub(super) needs: Vec<i64>,
}

impl Entry {
    /// Returns its name with its schema, each quoted only where it must be.
    pub(super) fn qualified(&self) -> String {
        if self.schema.is_empty() { self.name.clone() } else { qualified(&self.schema, &self.name) }
    }

    /// Returns the same as it stands in statements.
    pub(super) fn always_quoted(&self) -> String {
        format!("{}.{}", identifier(&self.schema), identifier(&self.name))
    }
}

/// Why something is no whole archive.
#[derive(Debug, thiserror::Error)]
pub(super) enum ArchiveError {
    #[error("what pg_dump wrote is no whole archive: {0}")]
    Bad(String),
    #[error(transparent)]
    Read(#[from] io::Error),
}

type Result<T> = std::result::Result<T, ArchiveError>;

fn bad<T>(finding: impl Into<String>) -> Result<T> {
    Err(ArchiveError::Bad(finding.into()))
}

/// Reads an archive of ours to its end.
pub(super) fn read(input: impl BufRead) -> Result<Archive> {
    let mut reader = Reader::begin(input)?;
    reader.check_custom()?;
    let entries = reader.contents()?;
    let mut archive = Archive::default();
    reader.data(entries, |name, rows| match rows {
        Some(rows) => {
            archive.tables.push((name, rows));
            Ok(())
        }
        None => bad(format!("the rows of {} cannot be counted", name.shown())),
    })?;
    archive.large_objects = reader.large_objects;
    archive.tables.sort();
    Ok(archive)
}

/// Reads an archive of others to its end.
pub(super) fn read_foreign(input: impl BufRead) -> Result<Foreign> {
    let mut reader = Reader::begin(input)?;
    reader.check_custom()?;
    let entries = reader.contents()?;
    let mut foreign = reader.describe(&entries);
    reader.data(entries, |name, rows| {
        foreign.tables.push((name, rows));
        Ok(())
    })?;
    foreign.large_objects = Some(reader.large_objects);
    Ok(foreign)
}

/// Reads the table of contents of an archive that is several files. Returns the entries that have data, too.
pub(super) fn read_contents(input: impl BufRead) -> Result<(Foreign, Vec<Entry>)> {
    let mut reader = Reader::begin(input)?;
    let mut entries = reader.contents()?;
    let foreign = reader.describe(&entries);
    entries.retain(|entry| !entry.file.is_empty());
    Ok((foreign, entries))
}

/// Returns when an archive was made, in the time of wherever that was, if its first bytes say so.
pub(in crate::source) fn made_at(begin: &[u8]) -> Option<DateTime> {
    Reader::begin(begin).ok()?.header.made_at
}

/// Reads the table of contents at the beginning of an archive.
pub(super) fn contents(input: impl BufRead) -> Result<Vec<Entry>> {
    let mut reader = Reader::begin(input)?;
    reader.check_custom()?;
    reader.contents()
}

struct Reader<R> {
    input: R,
    header: Header,
    large_objects: u64,
}

impl<R: BufRead> Reader<R> {
    /// Reads the header.
    fn begin(input: R) -> Result<Self> {
        let mut reader = Self { input, header: Header::default(), large_objects: 0 };
        reader.header()?;
        Ok(reader)
    }

    fn check_custom(&self) -> Result<()> {
        if self.header.format == FORMAT_CUSTOM {
            return Ok(());
        }
        bad("it is not of the custom format")
    }

    fn header(&mut self) -> Result<()> {
        let magic = self.bytes(MAGIC.len())?;
        if magic != MAGIC {
            return bad("it does not begin as one");
        }
        let version = (self.byte()?, self.byte()?);
        let _revision = self.byte()?;
        if !KNOWN_VERSIONS.contains(&version) {
            let (major, minor) = version;
            return bad(format!(
                "it is of version {major}.{minor}, and this program knows 1.12 to 1.16; use a pg_dump of PostgreSQL 9.0 to 18"
            ));
        }
        self.header.version = version;
        self.header.int_bytes = usize::from(self.byte()?);
        self.header.offset_bytes = usize::from(self.byte()?);
        let is_size = |bytes: usize| (1..=8).contains(&bytes);
        if !is_size(self.header.int_bytes) || !is_size(self.header.offset_bytes) {
            return bad("its numbers are of no known size");
        }
        self.header.format = self.byte()?;
        self.header.packing = self.packing()?;
        // Seconds, minutes, hours, day, month, year, daylight saving.
        let mut time = [0; 7];
        for part in &mut time {
            *part = self.int()?;
        }
        self.header.made_at = date_time(time);
        // The database, the version of its server, the version of the program.
        for _ in 0..3 {
            self.string()?;
        }
        Ok(())
    }

    fn packing(&mut self) -> Result<Packing> {
        if self.header.version < WITH_ALGORITHM {
            // A level; the one below zero is the usual one.
            return Ok(if self.int()? == 0 { Packing::None } else { Packing::Gzip });
        }
        Ok(match self.byte()? {
            0 => Packing::None,
            COMPRESSED_BY_GZIP => Packing::Gzip,
            COMPRESSED_BY_LZ4 => Packing::Lz4,
            COMPRESSED_BY_ZSTD => Packing::Zstd,
            other => return bad(format!("its data is packed in an unknown way ({other})")),
        })
    }

    fn describe(&self, entries: &[Entry]) -> Foreign {
        let owners = entries.iter().map(|entry| entry.owner.clone());
        let encoding = entries.iter().find(|entry| entry.kind == "ENCODING");
        // `SET client_encoding = 'UTF8';`
        let encoding = encoding.and_then(|entry| entry.definition.split('\'').nth(1));
        Foreign {
            tables: Vec::new(),
            owners: owners.filter(|owner| !owner.is_empty()).collect(),
            encoding: encoding.map(str::to_owned),
            has_subscriptions: entries.iter().any(|entry| entry.kind == "SUBSCRIPTION"),
            large_objects: None,
        }
    }

    /// Reads all data, which must be that of the entries that announce some. Tells each table with its rows, if they are rows
    /// and can be counted.
    fn data(
        &mut self,
        entries: Vec<Entry>,
        mut each: impl FnMut(TableName, Option<u64>) -> Result<()>,
    ) -> Result<()> {
        let with_data = entries.into_iter().filter(|entry| entry.has_data);
        let mut announced: BTreeMap<i64, Entry> =
            with_data.map(|entry| (entry.id, entry)).collect();
        while let Some(kind) = self.block()? {
            let id = self.int()?;
            let Some(entry) = announced.remove(&id) else {
                return bad(format!("data of entry {id}, which it does not announce or has twice"));
            };
            match kind {
                BLOCK_DATA => {
                    let rows = self.rows(&entry)?;
                    each(entry.bytes, rows)?;
                }
                BLOCK_LARGE_OBJECTS => self.large_objects += self.large_objects()?,
                other => return bad(format!("a block of unknown kind {other}")),
            }
        }
        match announced.values().next() {
            Some(missing) => bad(format!("the data of {} is missing", missing.bytes.shown())),
            None => Ok(()),
        }
    }

    fn contents(&mut self) -> Result<Vec<Entry>> {
        let count = self.int()?;
        let mut entries = Vec::new();
        for _ in 0..count {
            entries.push(self.entry()?);
        }
        Ok(entries)
    }

    fn entry(&mut self) -> Result<Entry> {
        let id = self.int()?;
        let has_data = self.int()? != 0;
        let (_table_oid, _oid) = (self.string()?, self.string()?);
        let (name, kind, _section) = (self.string()?, self.string()?, self.int()?);
        let (definition, _drop, copy) = (self.string()?, self.string()?, self.string()?);
        let (schema, _tablespace) = (self.string()?, self.string()?);
        if self.header.version >= WITH_ACCESS_METHOD {
            self.string()?;
        }
        if self.header.version >= WITH_RELATION_KIND {
            self.int()?;
        }
        let (owner, _with_oids) = (self.string()?, self.string()?);
        let mut needs = Vec::new();
        while let Some(needed) = self.string()? {
            let needed = shown(&needed);
            match needed.parse() {
                Ok(number) => needs.push(number),
                Err(_) => return bad(format!("entry {id} needs {needed:?}, which is no number")),
            }
        }
        // Where its data lies: in the archive, or in a file of this name.
        let mut file = None;
        if self.header.format == FORMAT_CUSTOM {
            let _state = self.byte()?;
            self.bytes(self.header.offset_bytes)?;
        } else {
            file = self.string()?;
        }
        let file = shown(&file.unwrap_or_default());
        let kind = shown(&kind.unwrap_or_default());
        let bytes =
            TableName { schema: schema.unwrap_or_default(), table: name.unwrap_or_default() };
        let (schema, name) = (shown(&bytes.schema), shown(&bytes.table));
        let owner = shown(&owner.unwrap_or_default());
        let has_rows = copy.is_some_and(|copy| !copy.is_empty());
        let definition = match kind.as_str() {
            "ENCODING" => shown(&definition.unwrap_or_default()),
            _ => String::new(),
        };
        Ok(Entry {
            id,
            has_data,
            kind,
            schema,
            name,
            bytes,
            owner,
            definition,
            has_rows,
            file,
            needs,
        })
    }

    /// Returns the kind of the next block, or nothing at the end of the archive.
    fn block(&mut self) -> Result<Option<u8>> {
        if self.input.fill_buf()?.is_empty() {
            return Ok(None);
        }
        self.byte().map(Some)
    }

    /// Counts the rows of a table, if that can be.
    fn rows(&mut self, entry: &Entry) -> Result<Option<u64>> {
        let mut rows = Rows::new(self.header.packing)?;
        self.chunks(|bytes| rows.push(bytes))?;
        let counted = rows.finish();
        let name = || entry.bytes.shown();
        match counted {
            Ok(Some(counted)) if entry.has_rows => match counted.rows() {
                Some(rows) => Ok(Some(rows)),
                None => bad(format!("the rows of {} have no end", name())),
            },
            Ok(_) => Ok(None),
            Err(error) => bad(format!("the rows of {} do not unpack: {error}", name())),
        }
    }

    fn large_objects(&mut self) -> Result<u64> {
        let mut count = 0;
        while self.int()? != 0 {
            self.chunks(|_| Ok(()))?;
            count += 1;
        }
        Ok(count)
    }

    /// Passes chunks of data until the empty one that ends them.
    fn chunks(&mut self, mut each: impl FnMut(&[u8]) -> io::Result<()>) -> Result<()> {
        loop {
            let length = self.int()?;
            let Ok(mut left) = usize::try_from(length) else {
                return bad(format!("a chunk of {length} bytes"));
            };
            if left == 0 {
                return Ok(());
            }
            while left > 0 {
                let available = self.input.fill_buf()?;
                if available.is_empty() {
                    return bad("it ends in the middle of its data");
                }
                let taken = available.len().min(left);
                if let Err(error) = each(available.get(..taken).unwrap_or_default()) {
                    return bad(format!("its data does not unpack: {error}"));
                }
                self.input.consume(taken);
                left -= taken;
            }
        }
    }

    fn byte(&mut self) -> Result<u8> {
        let mut byte = [0];
        self.exactly(&mut byte)?;
        Ok(byte[0])
    }

    /// A sign, and then the bytes of the number, the lowest first.
    fn int(&mut self) -> Result<i64> {
        let used = self.header.int_bytes;
        let (mut sign_and_bytes, mut bytes) = ([0; 9], [0; 8]);
        // At once: every row of a table has one.
        self.exactly(&mut sign_and_bytes[..=used])?;
        let is_negative = sign_and_bytes[0] != 0;
        bytes[..used].copy_from_slice(&sign_and_bytes[1..=used]);
        let Ok(number) = i64::try_from(u64::from_le_bytes(bytes)) else {
            return bad("a number that is too large");
        };
        Ok(if is_negative { -number } else { number })
    }

    fn string(&mut self) -> Result<Option<Vec<u8>>> {
        let Ok(length) = usize::try_from(self.int()?) else { return Ok(None) };
        if length > MAX_STRING_BYTES {
            return bad(format!("a text of {length} bytes"));
        }
        self.bytes(length).map(Some)
    }

    fn bytes(&mut self, length: usize) -> Result<Vec<u8>> {
        let mut bytes = vec![0; length];
        self.exactly(&mut bytes)?;
        Ok(bytes)
    }

    fn exactly(&mut self, bytes: &mut [u8]) -> Result<()> {
        match self.input.read_exact(bytes) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                bad("it ends in the middle")
            }
            read => Ok(read?),
        }
    }
}

/// Reads the time as C's `struct tm` has it, from the seconds to the year.
fn date_time(parts: [i64; 7]) -> Option<DateTime> {
    let [second, minute, hour, day, month, year, _] = parts;
    let small = |number: i64| i8::try_from(number).ok();
    DateTime::new(
        i16::try_from(year + 1900).ok()?,
        small(month + 1)?,
        small(day)?,
        small(hour)?,
        small(minute)?,
        small(second)?,
        0,
    )
    .ok()
}
