//! Reading the custom archive of `pg_dump` as it flows by: it has no end mark, and a dump that was cut short between two
//! tables looks whole to `pg_restore --list`. Here every table that the table of contents announces must be there to its
//! last line, and the lines are the rows.
//!
//! Source of the layout: `pg_backup_archiver.c` and `pg_backup_custom.c` of PostgreSQL 12 to 18 (archive versions 1.14 to
//! 1.16), and what their programs write.

use std::collections::BTreeMap;
use std::io::{self, BufRead};

use super::globals::{identifier, qualified};
use super::names::{TableName, shown};

const MAGIC: &[u8] = b"PGDMP";
/// Archive versions that are known: of PostgreSQL 12 and of 17 and 18.
const KNOWN_VERSIONS: std::ops::RangeInclusive<(u8, u8)> = (1, 14)..=(1, 16);
/// From here on the header has the compression as one byte.
const WITH_ALGORITHM: (u8, u8) = (1, 15);
/// From here on an entry has the kind of its relation.
const WITH_RELATION_KIND: (u8, u8) = (1, 16);
const FORMAT_CUSTOM: u8 = 1;
const BLOCK_DATA: u8 = 1;
const BLOCK_LARGE_OBJECTS: u8 = 3;
/// How COPY data ends in an archive.
const END_OF_ROWS: &[u8; 5] = b"\\.\n\n\n";
const NEWLINES_AT_END: u64 = 3;
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

/// Reads an archive to its end.
pub(super) fn read(input: impl BufRead) -> Result<Archive> {
    let mut reader = Reader { input, version: (0, 0), int_bytes: 0, offset_bytes: 0 };
    reader.header()?;
    let mut archive = Archive::default();
    let with_data = reader.contents()?.into_iter().filter(|entry| entry.has_data);
    let mut announced: BTreeMap<i64, TableName> =
        with_data.map(|entry| (entry.id, entry.bytes)).collect();
    let mut tables = Vec::new();
    while let Some(kind) = reader.block()? {
        let id = reader.int()?;
        let Some(name) = announced.remove(&id) else {
            return bad(format!("data of entry {id}, which it does not announce or has twice"));
        };
        match kind {
            BLOCK_DATA => {
                let counted = reader.rows(&name)?;
                tables.push((name, counted));
            }
            BLOCK_LARGE_OBJECTS => archive.large_objects += reader.large_objects()?,
            other => return bad(format!("a block of unknown kind {other}")),
        }
    }
    if let Some(missing) = announced.values().next() {
        return bad(format!("the data of {} is missing", missing.shown()));
    }
    tables.sort();
    archive.tables = tables;
    Ok(archive)
}

/// Reads the table of contents at the beginning of an archive.
pub(super) fn contents(input: impl BufRead) -> Result<Vec<Entry>> {
    let mut reader = Reader { input, version: (0, 0), int_bytes: 0, offset_bytes: 0 };
    reader.header()?;
    reader.contents()
}

struct Reader<R> {
    input: R,
    version: (u8, u8),
    int_bytes: usize,
    offset_bytes: usize,
}

impl<R: BufRead> Reader<R> {
    fn header(&mut self) -> Result<()> {
        let magic = self.bytes(MAGIC.len())?;
        if magic != MAGIC {
            return bad("it does not begin as one");
        }
        self.version = (self.byte()?, self.byte()?);
        let _revision = self.byte()?;
        if !KNOWN_VERSIONS.contains(&self.version) {
            let (major, minor) = self.version;
            return bad(format!(
                "it is of version {major}.{minor}, and this program knows 1.14 to 1.16; use a pg_dump of PostgreSQL 12 to 18"
            ));
        }
        self.int_bytes = usize::from(self.byte()?);
        self.offset_bytes = usize::from(self.byte()?);
        if !(1..=8).contains(&self.int_bytes) || !(1..=8).contains(&self.offset_bytes) {
            return bad("its numbers are of no known size");
        }
        if self.byte()? != FORMAT_CUSTOM {
            return bad("it is not of the custom format");
        }
        if self.version >= WITH_ALGORITHM {
            self.byte()?;
        } else {
            self.int()?;
        }
        // Seconds, minutes, hours, day, month, year, daylight saving.
        for _ in 0..7 {
            self.int()?;
        }
        // The database, the version of its server, the version of the program.
        for _ in 0..3 {
            self.string()?;
        }
        Ok(())
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
        let (_definition, _drop, _copy) = (self.string()?, self.string()?, self.string()?);
        let schema = self.string()?;
        let (_tablespace, _access_method) = (self.string()?, self.string()?);
        if self.version >= WITH_RELATION_KIND {
            self.int()?;
        }
        let (_owner, _with_oids) = (self.string()?, self.string()?);
        let mut needs = Vec::new();
        while let Some(needed) = self.string()? {
            let needed = shown(&needed);
            match needed.parse() {
                Ok(number) => needs.push(number),
                Err(_) => return bad(format!("entry {id} needs {needed:?}, which is no number")),
            }
        }
        let _state = self.byte()?;
        self.bytes(self.offset_bytes)?;
        let kind = shown(&kind.unwrap_or_default());
        let bytes =
            TableName { schema: schema.unwrap_or_default(), table: name.unwrap_or_default() };
        let (schema, name) = (shown(&bytes.schema), shown(&bytes.table));
        Ok(Entry { id, has_data, kind, schema, name, bytes, needs })
    }

    /// Returns the kind of the next block, or nothing at the end of the archive.
    fn block(&mut self) -> Result<Option<u8>> {
        if self.input.fill_buf()?.is_empty() {
            return Ok(None);
        }
        self.byte().map(Some)
    }

    /// Counts the rows of a table.
    fn rows(&mut self, table: &TableName) -> Result<u64> {
        let mut newlines = 0;
        let mut end = [0; END_OF_ROWS.len()];
        self.chunks(|bytes| {
            newlines += bytes.iter().filter(|byte| **byte == b'\n').count() as u64;
            match bytes.last_chunk() {
                Some(last) => end = *last,
                None => {
                    end.rotate_left(bytes.len());
                    let kept = end.len() - bytes.len();
                    end[kept..].copy_from_slice(bytes);
                }
            }
        })?;
        if end != *END_OF_ROWS {
            return bad(format!("the rows of {} have no end", table.shown()));
        }
        Ok(newlines - NEWLINES_AT_END)
    }

    fn large_objects(&mut self) -> Result<u64> {
        let mut count = 0;
        while self.int()? != 0 {
            self.chunks(|_| ())?;
            count += 1;
        }
        Ok(count)
    }

    /// Passes chunks of data until the empty one that ends them.
    fn chunks(&mut self, mut each: impl FnMut(&[u8])) -> Result<()> {
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
                each(available.get(..taken).unwrap_or_default());
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
        let used = self.int_bytes;
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
