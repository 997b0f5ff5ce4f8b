//! The shapes of values in an RDB file.

use std::io::{self, Write};

use super::rdb::{Chunks, Reader, wrong};

/// The name of a type, as the command `TYPE` says it; those of modules have one for all.
pub(super) const MODULE: &str = "module";

// What the data of modules is made of.
const MODULE_END: u64 = 0;
const MODULE_SIGNED: u64 = 1;
const MODULE_UNSIGNED: u64 = 2;
const MODULE_FLOAT: u64 = 3;
const MODULE_DOUBLE: u64 = 4;
const MODULE_STRING: u64 = 5;

/// Of a stream's entry, in lists of those that wait to be acknowledged.
const ENTRY_ID_BYTES: u64 = 16;
const TIME_BYTES: u64 = 8;

/// Returns the type of a value that is written so, if it is known.
pub(super) fn type_of(encoding: u8) -> Option<&'static str> {
    Some(match encoding {
        0 => "string",
        1 | 10 | 14 | 18 => "list",
        2 | 11 | 20 => "set",
        3 | 5 | 12 | 17 => "zset",
        4 | 9 | 13 | 16 => "hash",
        7 => MODULE,
        15 | 19 | 21 => "stream",
        _ => return None,
    })
}

impl<C: Chunks, O: Write> Reader<C, O> {
    /// Walks through a value.
    pub(super) fn value(&mut self, encoding: u8) -> io::Result<()> {
        match encoding {
            // One string: the value itself, or all of it in one piece.
            0 | 9..=13 | 16 | 17 | 20 => self.skip_strings(1),
            // Strings, one after the other.
            1 | 2 | 14 => {
                let count = self.length()?;
                self.skip_strings(count)
            }
            4 => {
                let count = self.length()?;
                self.skip_strings(count.saturating_mul(2))
            }
            3 => self.each(|reader| {
                reader.skip_strings(1)?;
                reader.skip_score()
            }),
            5 => self.each(|reader| {
                reader.skip_strings(1)?;
                reader.skip(8)
            }),
            7 => {
                self.length()?;
                self.skip_module()
            }
            18 => self.each(|reader| {
                reader.length()?;
                reader.skip_strings(1)
            }),
            15 => self.skip_stream(1),
            19 => self.skip_stream(2),
            21 => self.skip_stream(3),
            // They can vanish by themselves, and nobody could tell that from a loss.
            24 | 25 => Err(wrong("fields of a hash that expire by themselves are not known here")),
            other => {
                Err(wrong(format!("a value is written in a way ({other}) that is not known here")))
            }
        }
    }

    fn each(&mut self, mut skip: impl FnMut(&mut Self) -> io::Result<()>) -> io::Result<()> {
        for _ in 0..self.length()? {
            skip(self)?;
        }
        Ok(())
    }

    /// A number in digits; three lengths stand for what no digits can say.
    fn skip_score(&mut self) -> io::Result<()> {
        match self.byte()? {
            253..=255 => Ok(()),
            digits => self.skip(u64::from(digits)),
        }
    }

    /// The data of a module: marked items up to a mark of their end.
    pub(super) fn skip_module(&mut self) -> io::Result<()> {
        loop {
            match self.length()? {
                MODULE_END => return Ok(()),
                MODULE_SIGNED | MODULE_UNSIGNED => self.skip_lengths(1)?,
                MODULE_FLOAT => self.skip(4)?,
                MODULE_DOUBLE => self.skip(8)?,
                MODULE_STRING => self.skip_strings(1)?,
                _ => {
                    return Err(wrong(
                        "the data of a module is written in a way that is not known here",
                    ));
                }
            }
        }
    }

    fn skip_stream(&mut self, version: u8) -> io::Result<()> {
        let blocks = self.length()?;
        self.skip_strings(blocks.saturating_mul(2))?;
        // How many entries, and the last; then the first, the newest that was removed, and how many there ever were.
        self.skip_lengths(if version >= 2 { 8 } else { 3 })?;
        self.each(|reader| reader.skip_group(version))
    }

    fn skip_group(&mut self, version: u8) -> io::Result<()> {
        self.skip_strings(1)?;
        // The last that was delivered, and how many were read.
        self.skip_lengths(if version >= 2 { 3 } else { 2 })?;
        self.each(|reader| {
            reader.skip(ENTRY_ID_BYTES + TIME_BYTES)?;
            reader.skip_lengths(1)
        })?;
        self.each(|reader| {
            reader.skip_strings(1)?;
            reader.skip(if version >= 3 { 2 * TIME_BYTES } else { TIME_BYTES })?;
            let waiting = reader.length()?;
            reader.skip(waiting.saturating_mul(ENTRY_ID_BYTES))
        })
    }
}
