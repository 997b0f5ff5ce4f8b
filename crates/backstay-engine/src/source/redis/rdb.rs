//! Reading what a server of Redis' kind writes of its data (an RDB file), as it flows by.
//!
//! Values are walked through to find where they end, and not taken apart: what stands in the file is what `RESTORE` takes.

use std::io::{self, Write};

use bytes::Bytes;
use crc_fast::{CrcAlgorithm, Digest};

/// What begins a file: the name of the kind, and a number in digits; nine bytes together.
const HEADER_BYTES: usize = 9;
/// No string of these servers is longer.
const MAX_STRING_BYTES: u64 = 512 << 20;

// What can stand where a key's type could.
const SLOT_INFO: u8 = 0xF4;
const FUNCTION: u8 = 0xF5;
const MODULE_DATA: u8 = 0xF7;
const IDLE: u8 = 0xF8;
const FREQUENCY: u8 = 0xF9;
const REMARK: u8 = 0xFA;
const SIZES: u8 = 0xFB;
const EXPIRES_MILLISECONDS: u8 = 0xFC;
const EXPIRES_SECONDS: u8 = 0xFD;
const DATABASE: u8 = 0xFE;
/// Ends a file; only a checksum follows.
pub(super) const END: u8 = 0xFF;

/// Where the bytes come from.
pub(super) trait Chunks {
    /// Returns the next bytes, or `None` after the last.
    fn next(&mut self) -> io::Result<Option<Bytes>>;
}

/// What stands in a file.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Item {
    /// What follows is of this database.
    Database(u64),
    /// A key; its value follows and must be walked through.
    Key(Key),
    /// The code of a library of functions.
    Function(Vec<u8>),
    /// Something that a module keeps beside the keys.
    ModuleData,
    /// The end, with the right checksum or none.
    End,
}

/// A key and what is known of its value.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Key {
    pub(super) name: Vec<u8>,
    /// How its value is written.
    pub(super) encoding: u8,
    /// When it expires, in milliseconds since 1970.
    pub(super) expires: Option<u64>,
    /// For how many seconds nobody asked for it.
    pub(super) idle: Option<u64>,
    /// How often it was asked for, as the server counts that.
    pub(super) frequency: Option<u8>,
}

/// Reads a file, and hands what it has read to `out`, but for what says which database follows, and for the end.
pub(super) struct Reader<C, O> {
    chunks: C,
    pub(super) out: O,
    chunk: Bytes,
    at: usize,
    /// Up to where the chunk was summed and handed over.
    settled: usize,
    /// Bytes of the chunks before.
    before: u64,
    forwards: bool,
    sum: Digest,
    version: u16,
    /// Whether the end had a checksum.
    pub(super) has_checksum: bool,
}

impl<C: Chunks, O: Write> Reader<C, O> {
    /// Begins a file.
    pub(super) fn new(chunks: C, out: O) -> io::Result<Self> {
        let mut reader = Self {
            chunks,
            out,
            chunk: Bytes::new(),
            at: 0,
            settled: 0,
            before: 0,
            forwards: true,
            sum: Digest::new(CrcAlgorithm::Crc64Redis),
            version: 0,
            has_checksum: false,
        };
        let header: [u8; HEADER_BYTES] = reader.array()?;
        let digits =
            [b"REDIS".as_slice(), b"VALKEY"].iter().find_map(|kind| header.strip_prefix(*kind));
        let version = digits.and_then(|digits| std::str::from_utf8(digits).ok()?.parse().ok());
        reader.version = version.ok_or_else(|| wrong("it does not begin as an RDB file does"))?;
        Ok(reader)
    }

    /// Returns the version of the format.
    pub(super) fn version(&self) -> u16 {
        self.version
    }

    /// Returns how many bytes were read.
    pub(super) fn offset(&self) -> u64 {
        self.before + self.at as u64
    }

    /// Returns how many bytes were read and not yet handed over.
    pub(super) fn ahead(&self) -> u64 {
        (self.at - self.settled) as u64
    }

    /// Returns what comes next. After a key, its value must have been walked through.
    pub(super) fn next(&mut self) -> io::Result<Item> {
        let mut key = Key::default();
        loop {
            match self.peek()? {
                DATABASE => {
                    self.withhold()?;
                    self.byte()?;
                    let number = self.length()?;
                    self.settle()?;
                    self.forwards = true;
                    return Ok(Item::Database(number));
                }
                END => {
                    self.withhold()?;
                    self.byte()?;
                    self.check_end()?;
                    return Ok(Item::End);
                }
                _ => {}
            }
            match self.byte()? {
                EXPIRES_MILLISECONDS => key.expires = Some(u64::from_le_bytes(self.array()?)),
                EXPIRES_SECONDS => {
                    key.expires = Some(u64::from(u32::from_le_bytes(self.array()?)) * 1000);
                }
                IDLE => key.idle = Some(self.length()?),
                FREQUENCY => key.frequency = Some(self.byte()?),
                REMARK => self.skip_strings(2)?,
                SIZES => self.skip_lengths(2)?,
                SLOT_INFO => self.skip_lengths(3)?,
                FUNCTION => return Ok(Item::Function(self.string()?)),
                MODULE_DATA => {
                    self.skip_lengths(3)?;
                    self.skip_module()?;
                    return Ok(Item::ModuleData);
                }
                encoding => {
                    key.encoding = encoding;
                    key.name = self.string()?;
                    return Ok(Item::Key(key));
                }
            }
        }
    }

    /// Hands over all that was read.
    pub(super) fn settle(&mut self) -> io::Result<()> {
        let read = self.chunk.get(self.settled..self.at).unwrap_or_default();
        self.sum.update(read);
        if self.forwards {
            self.out.write_all(read)?;
        }
        self.settled = self.at;
        Ok(())
    }

    /// From here on nothing is handed over.
    fn withhold(&mut self) -> io::Result<()> {
        self.settle()?;
        self.forwards = false;
        Ok(())
    }

    fn check_end(&mut self) -> io::Result<()> {
        self.settle()?;
        let found = self.sum.finalize();
        let written = u64::from_le_bytes(self.array()?);
        // Servers that are told to write no checksum write zero.
        self.has_checksum = written != 0;
        if written != 0 && written != found {
            return Err(wrong("its checksum is not that of its bytes"));
        }
        self.settle()?;
        if self.fill()? {
            return Err(wrong("more follows after its end"));
        }
        Ok(())
    }

    /// Makes sure that there is a byte to read. Returns false at the end.
    fn fill(&mut self) -> io::Result<bool> {
        while self.at == self.chunk.len() {
            self.settle()?;
            let Some(chunk) = self.chunks.next()? else { return Ok(false) };
            self.before += self.chunk.len() as u64;
            (self.chunk, self.at, self.settled) = (chunk, 0, 0);
        }
        Ok(true)
    }

    fn peek(&mut self) -> io::Result<u8> {
        if !self.fill()? {
            return Err(cut());
        }
        self.chunk.get(self.at).copied().ok_or_else(cut)
    }

    pub(super) fn byte(&mut self) -> io::Result<u8> {
        let byte = self.peek()?;
        self.at += 1;
        Ok(byte)
    }

    pub(super) fn array<const N: usize>(&mut self) -> io::Result<[u8; N]> {
        let mut array = [0; N];
        for byte in &mut array {
            *byte = self.byte()?;
        }
        Ok(array)
    }

    pub(super) fn skip(&mut self, mut bytes: u64) -> io::Result<()> {
        while bytes > 0 {
            if !self.fill()? {
                return Err(cut());
            }
            let there = self.chunk.len() - self.at;
            let taken = usize::try_from(bytes).map_or(there, |bytes| bytes.min(there));
            self.at += taken;
            bytes -= taken as u64;
        }
        Ok(())
    }

    /// Reads a number that is no code for a packed string.
    pub(super) fn length(&mut self) -> io::Result<u64> {
        match self.length_or_code()? {
            Ok(length) => Ok(length),
            Err(_code) => Err(wrong("a packed string stands where a number should")),
        }
    }

    fn length_or_code(&mut self) -> io::Result<Result<u64, u8>> {
        let first = self.byte()?;
        let low = first & 0x3F;
        Ok(match first >> 6 {
            0 => Ok(u64::from(low)),
            1 => Ok(u64::from(low) << 8 | u64::from(self.byte()?)),
            2 if first == 0x80 => Ok(u64::from(u32::from_be_bytes(self.array()?))),
            2 if first == 0x81 => Ok(u64::from_be_bytes(self.array()?)),
            2 => return Err(wrong("a number begins as none does")),
            _ => Err(low),
        })
    }

    pub(super) fn skip_lengths(&mut self, count: u64) -> io::Result<()> {
        for _ in 0..count {
            self.length()?;
        }
        Ok(())
    }

    pub(super) fn skip_strings(&mut self, count: u64) -> io::Result<()> {
        for _ in 0..count {
            match self.length_or_code()? {
                Ok(bytes) => self.skip(bytes)?,
                Err(code @ 0..=2) => self.skip(1 << code)?,
                Err(PACKED) => {
                    let packed = self.length()?;
                    self.length()?;
                    self.skip(packed)?;
                }
                Err(_) => return Err(wrong("a string is packed as none is")),
            }
        }
        Ok(())
    }

    fn string(&mut self) -> io::Result<Vec<u8>> {
        match self.length_or_code()? {
            Ok(bytes) => self.bytes(bytes),
            Err(0) => Ok(i8::from_le_bytes(self.array()?).to_string().into_bytes()),
            Err(1) => Ok(i16::from_le_bytes(self.array()?).to_string().into_bytes()),
            Err(2) => Ok(i32::from_le_bytes(self.array()?).to_string().into_bytes()),
            Err(PACKED) => {
                let packed = self.length()?;
                let bytes = self.length()?;
                unpack(&self.bytes(packed)?, bytes)
            }
            Err(_) => Err(wrong("a string is packed as none is")),
        }
    }

    fn bytes(&mut self, count: u64) -> io::Result<Vec<u8>> {
        if count > MAX_STRING_BYTES {
            return Err(wrong("a string is longer than any can be"));
        }
        let mut bytes = Vec::new();
        let mut missing = usize::try_from(count).map_err(|_| cut())?;
        while missing > 0 {
            if !self.fill()? {
                return Err(cut());
            }
            let there = self.chunk.get(self.at..).unwrap_or_default();
            let taken = there.get(..missing.min(there.len())).unwrap_or_default();
            bytes.extend_from_slice(taken);
            self.at += taken.len();
            missing -= taken.len();
        }
        Ok(bytes)
    }
}

/// The code of a string that is packed by LZF.
const PACKED: u8 = 3;

/// Unpacks LZF: a byte below 32 announces that many bytes and one more as they are; others are a length in the upper three bits
/// (7: one byte more) and a distance back in the lower five and the next byte.
fn unpack(packed: &[u8], bytes: u64) -> io::Result<Vec<u8>> {
    let bad = || wrong("a packed string cannot be unpacked");
    let mut out: Vec<u8> = Vec::new();
    let mut rest = packed.iter().copied();
    while let Some(control) = rest.next() {
        if control < 32 {
            for _ in 0..=control {
                out.push(rest.next().ok_or_else(bad)?);
            }
            continue;
        }
        let mut length = usize::from(control >> 5) + 2;
        if length == 9 {
            length += usize::from(rest.next().ok_or_else(bad)?);
        }
        let distance = usize::from(control & 0x1F) << 8 | usize::from(rest.next().ok_or_else(bad)?);
        let from = out.len().checked_sub(distance + 1).ok_or_else(bad)?;
        if (out.len() + length) as u64 > bytes {
            return Err(bad());
        }
        for at in from..from + length {
            let byte = out.get(at).copied().ok_or_else(bad)?;
            out.push(byte);
        }
    }
    if out.len() as u64 == bytes { Ok(out) } else { Err(bad()) }
}

/// The file is not as such files are.
pub(super) fn wrong(finding: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, finding.into())
}

fn cut() -> io::Error {
    io::Error::new(io::ErrorKind::UnexpectedEof, "it was cut short")
}

/// Returns what says that a database follows.
pub(super) fn database_mark(number: u64) -> Vec<u8> {
    let mut mark = vec![DATABASE, 0x81];
    mark.extend_from_slice(&number.to_be_bytes());
    mark
}
