//! Reading a dump as it flows by: where its statements end, how many rows they hold, and whether all of it is there.
//!
//! What is read is what `mariadb-dump` and `mysqldump` write: with our options tables and rows, no programs; others' dumps may
//! have those, too. Strings are in quotation marks with backslashes, as both make sure of by the SQL mode of their sessions.

use std::collections::{BTreeMap, BTreeSet};
use std::mem;

use memchr::{memchr, memchr2};

/// How the last line of a whole dump begins.
pub(super) const TRAILER: &[u8] = b"-- Dump completed";
/// How the line begins that says where the server's log was.
const POSITION: &str = "CHANGE MASTER TO ";
const CREATE_SEQUENCE: &[u8] = b"CREATE SEQUENCE ";
/// Clients are told by a version that no server has to execute no commands of their own.
const NO_SERVER: &[u8] = b"M!999999";
/// The comments that matter are no longer than this.
const MAX_COMMENT_BYTES: usize = 4096;

/// What the next byte is part of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Place {
    #[default]
    Words,
    /// Between these quotation marks.
    Quoted(u8),
    /// To the end of the line.
    Remark,
    /// Behind two dashes inside of a statement, which begin a remark only before a space.
    Dashes,
    /// To the end of the line, inside of a statement: of a program it is a part.
    Inside,
    /// Behind `/*`, until it is known whether servers execute what follows.
    Opened,
    /// To `*/`.
    Comment,
}

/// Divides a dump into its statements, however it is cut into pieces.
#[derive(Debug)]
pub(super) struct Statements {
    place: Place,
    /// What ends a statement.
    delimiter: Vec<u8>,
    /// The byte before was a backslash that takes away the meaning of the next one.
    is_escaped: bool,
    statement: Vec<u8>,
    remark: Vec<u8>,
}

/// Something that stands in a dump.
pub(super) enum Found<'a> {
    /// A statement, without its semicolon.
    Statement(&'a [u8]),
    /// A remark, with what it begins with.
    Remark(&'a [u8]),
}

impl Default for Statements {
    fn default() -> Self {
        Self {
            place: Place::default(),
            delimiter: b";".to_vec(),
            is_escaped: false,
            statement: Vec::new(),
            remark: Vec::new(),
        }
    }
}

impl Statements {
    /// Says whether no statement was begun.
    pub(super) fn is_between(&self) -> bool {
        self.place == Place::Words && self.rest().is_empty()
    }

    /// Sets what ends a statement from here on.
    pub(super) fn set_delimiter(&mut self, delimiter: &[u8]) {
        self.delimiter = delimiter.to_vec();
    }

    /// Takes the next piece, and hands over what is complete by it.
    pub(super) fn push<E>(
        &mut self,
        mut piece: &[u8],
        mut found: impl FnMut(Found<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        while !piece.is_empty() {
            let taken = match self.place {
                Place::Words => self.words(piece, &mut found)?,
                Place::Quoted(mark) => self.quoted(piece, mark),
                Place::Remark => self.remark(piece, &mut found)?,
                Place::Dashes => self.dashes(piece),
                Place::Inside => self.inside(piece),
                Place::Opened => self.opened(piece[0]),
                Place::Comment => self.comment(piece),
            };
            piece = &piece[taken..];
        }
        Ok(())
    }

    /// Returns what was begun and not ended.
    pub(super) fn rest(&self) -> &[u8] {
        self.statement.trim_ascii()
    }

    fn words<E>(
        &mut self,
        piece: &[u8],
        found: &mut impl FnMut(Found<'_>) -> Result<(), E>,
    ) -> Result<usize, E> {
        let last = self.delimiter.last().copied().unwrap_or(b';');
        for (index, byte) in piece.iter().enumerate() {
            match byte {
                b'\'' | b'"' | b'`' => {
                    self.statement.extend_from_slice(&piece[..=index]);
                    self.place = Place::Quoted(*byte);
                    return Ok(index + 1);
                }
                end if *end == last => {
                    self.statement.extend_from_slice(&piece[..=index]);
                    if self.statement.ends_with(&self.delimiter) {
                        let mut statement = mem::take(&mut self.statement);
                        statement.truncate(statement.len() - self.delimiter.len());
                        found(Found::Statement(statement.trim_ascii()))?;
                        self.statement = statement;
                        self.statement.clear();
                    }
                    return Ok(index + 1);
                }
                b'-' | b'*' | b'#' => {
                    self.statement.extend_from_slice(&piece[..=index]);
                    self.begin_remark();
                    return Ok(index + 1);
                }
                _ => {}
            }
        }
        self.statement.extend_from_slice(piece);
        Ok(piece.len())
    }

    /// Looks whether what was read last begins a remark or a comment.
    fn begin_remark(&mut self) {
        if self.statement.ends_with(b"/*") {
            self.place = Place::Opened;
            return;
        }
        let marks = [b"--".as_slice(), b"#"];
        let mark = marks.into_iter().find(|mark| self.statement.ends_with(mark));
        let Some(mark) = mark else { return };
        let before = self.statement.len() - mark.len();
        if self.statement[..before].trim_ascii().is_empty() {
            self.statement.clear();
            self.remark.extend_from_slice(mark);
            self.place = Place::Remark;
        } else {
            // In an expression two dashes would be two signs.
            self.place = if mark == b"#" { Place::Inside } else { Place::Dashes };
        }
    }

    fn dashes(&mut self, piece: &[u8]) -> usize {
        let is_remark = piece[0].is_ascii_whitespace() || piece[0].is_ascii_control();
        self.place = if is_remark { Place::Inside } else { Place::Words };
        0
    }

    fn inside(&mut self, piece: &[u8]) -> usize {
        let end = memchr(b'\n', piece);
        self.statement.extend_from_slice(&piece[..end.map_or(piece.len(), |end| end + 1)]);
        let Some(end) = end else { return piece.len() };
        self.place = Place::Words;
        end + 1
    }

    fn quoted(&mut self, piece: &[u8], mark: u8) -> usize {
        if mem::take(&mut self.is_escaped) {
            self.statement.push(piece[0]);
            return 1;
        }
        let end = if mark == b'`' { memchr(mark, piece) } else { memchr2(mark, b'\\', piece) };
        let Some(end) = end else {
            self.statement.extend_from_slice(piece);
            return piece.len();
        };
        self.statement.extend_from_slice(&piece[..=end]);
        if piece[end] == mark {
            // A doubled one ends and begins again.
            self.place = Place::Words;
        } else {
            self.is_escaped = true;
        }
        end + 1
    }

    fn remark<E>(
        &mut self,
        piece: &[u8],
        found: &mut impl FnMut(Found<'_>) -> Result<(), E>,
    ) -> Result<usize, E> {
        let end = memchr(b'\n', piece);
        let room = MAX_COMMENT_BYTES.saturating_sub(self.remark.len());
        let line = &piece[..end.unwrap_or(piece.len())];
        self.remark.extend_from_slice(&line[..line.len().min(room)]);
        let Some(end) = end else { return Ok(piece.len()) };
        self.place = Place::Words;
        let remark = mem::take(&mut self.remark);
        found(Found::Remark(&remark))?;
        Ok(end + 1)
    }

    /// Looks whether a comment is one that servers of some version execute: it goes on with `!` or `M!` and a version, which is
    /// none of `NO_SERVER`. It is a statement like others then, with strings of its own.
    fn opened(&mut self, next: u8) -> usize {
        let begin = self.statement.windows(2).rposition(|two| two == b"/*").unwrap_or(0);
        let mark = &self.statement[begin + 2..];
        let goes_on = match mark {
            [] => next == b'M',
            b"M" => next == b'!',
            _ => next.is_ascii_digit() && mark.len() < NO_SERVER.len(),
        };
        if goes_on {
            self.statement.push(next);
            return 1;
        }
        let is_executed = match mark {
            [] => next == b'!',
            b"M" => false,
            mark => mark != NO_SERVER,
        };
        self.place = if is_executed { Place::Words } else { Place::Comment };
        0
    }

    fn comment(&mut self, piece: &[u8]) -> usize {
        self.statement.push(piece[0]);
        if self.statement.ends_with(b"*/") {
            let begin = self.statement.windows(2).rposition(|two| two == b"/*").unwrap_or(0);
            // Inside of a program it is a part of that.
            if self.statement[..begin].trim_ascii().is_empty() {
                self.statement.truncate(begin);
            }
            self.place = Place::Words;
        }
        1
    }
}

/// Counts what a dump holds.
#[derive(Debug, Default)]
pub(super) struct Scanner {
    statements: Statements,
    counts: Counts,
}

#[derive(Debug, Default)]
struct Counts {
    made: BTreeSet<Vec<u8>>,
    rows: BTreeMap<Vec<u8>, u64>,
    position: Option<String>,
    is_complete: bool,
}

/// What a whole dump holds.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Scanned {
    /// The tables and sequences that it makes.
    pub(super) made: BTreeSet<Vec<u8>>,
    /// How many rows of each table that has any, by its name.
    pub(super) rows: BTreeMap<Vec<u8>, u64>,
    /// Where the server's log was, if it says so.
    pub(super) position: Option<String>,
}

impl Scanner {
    /// Takes the next piece.
    pub(super) fn push(&mut self, piece: &[u8]) {
        let Self { statements, counts } = self;
        let counted = statements.push(piece, |found| {
            counts.take(&found);
            Ok::<(), std::convert::Infallible>(())
        });
        let Ok(()) = counted;
    }

    /// Says what all of it held, if it was all.
    pub(super) fn finish(self) -> Result<Scanned, &'static str> {
        if !self.counts.is_complete {
            return Err("its last line is missing");
        }
        if !self.statements.rest().is_empty() {
            return Err("its last statement has no end");
        }
        let Counts { made, rows, position, .. } = self.counts;
        Ok(Scanned { made, rows, position })
    }
}

impl Counts {
    fn take(&mut self, found: &Found<'_>) {
        match found {
            Found::Statement(statement) => {
                // Nothing follows the last line.
                self.is_complete = false;
                if let Some((table, rows)) = rows_of(statement) {
                    *self.rows.entry(table).or_default() += rows;
                }
                self.made.extend(made_by(statement));
            }
            Found::Remark(remark) if remark.starts_with(TRAILER) => self.is_complete = true,
            Found::Remark(remark) => {
                let text = String::from_utf8_lossy(remark);
                if let Some((_, position)) = text.split_once(POSITION) {
                    self.position = Some(position_of(position));
                }
            }
        }
    }
}

/// Reads `MASTER_LOG_FILE='bin.000002', MASTER_LOG_POS=1234;` into `bin.000002:1234`.
fn position_of(text: &str) -> String {
    let mut values = text.split(',').filter_map(|field| field.split_once('='));
    let mut value = || {
        let value = values.next().map_or("", |(_, value)| value);
        value.trim().trim_end_matches(';').trim_matches('\'').to_owned()
    };
    format!("{}:{}", value(), value())
}

/// Returns the table that a statement inserts into, and how many rows.
fn rows_of(statement: &[u8]) -> Option<(Vec<u8>, u64)> {
    let (table, rest) = quoted_name(statement.strip_prefix(b"INSERT INTO ")?)?;
    let (mut rows, mut depth, mut are_values) = (0, 0_u32, false);
    let mut index = 0;
    while let Some(byte) = rest.get(index) {
        index += 1;
        match byte {
            b'\'' => index += string_bytes(&rest[index..]),
            b'`' => index += memchr(b'`', &rest[index..]).map_or(rest.len(), |end| end + 1),
            b'(' => {
                depth += 1;
                rows += u64::from(are_values && depth == 1);
            }
            b')' => depth = depth.saturating_sub(1),
            b'V' if depth == 0 && rest[index - 1..].starts_with(b"VALUES") => are_values = true,
            _ => {}
        }
    }
    Some((table, rows))
}

/// Returns the table or sequence that a statement makes.
fn made_by(statement: &[u8]) -> Option<Vec<u8>> {
    let begins = [b"CREATE TABLE ".as_slice(), CREATE_SEQUENCE];
    let name = begins.iter().find_map(|begin| statement.strip_prefix(*begin))?;
    Some(quoted_name(name)?.0)
}

/// Which statements of a dump bring chosen tables back, and all sequences.
#[derive(Debug)]
pub(super) struct Chosen<'a> {
    tables: Option<&'a BTreeSet<String>>,
    /// Whether what comes now is of one of them.
    is_wanted: bool,
}

impl<'a> Chosen<'a> {
    /// Chooses these tables, or all.
    pub(super) fn new(tables: Option<&'a BTreeSet<String>>) -> Self {
        Self { tables, is_wanted: true }
    }

    /// Says whether the next statement is to be executed. What is said of a table follows behind what makes it.
    pub(super) fn wants(&mut self, statement: &[u8]) -> bool {
        let Some(tables) = self.tables else { return true };
        if let Some(made) = made_by(statement) {
            let is_chosen = str::from_utf8(&made).is_ok_and(|name| tables.contains(name));
            self.is_wanted = is_chosen || statement.starts_with(CREATE_SEQUENCE);
        }
        self.is_wanted || is_setting(statement)
    }
}

/// Says whether a statement sets something in the session: one table's sets it back for the next.
fn is_setting(statement: &[u8]) -> bool {
    let condition = statement.strip_prefix(b"/*M!").or_else(|| statement.strip_prefix(b"/*!"));
    let words = condition.unwrap_or(statement);
    let number = words.iter().take_while(|byte| byte.is_ascii_digit()).count();
    words[number..].trim_ascii_start().starts_with(b"SET ")
}

/// Returns how many bytes the rest of a string has, with its last quotation mark.
fn string_bytes(rest: &[u8]) -> usize {
    let mut index = 0;
    while let Some(next) = memchr2(b'\'', b'\\', &rest[index..]) {
        index += next + 1;
        if rest[index - 1] == b'\'' {
            return index;
        }
        index += 1;
        if index > rest.len() {
            break;
        }
    }
    rest.len()
}

/// Reads a name in backticks. Returns what comes behind it, too.
fn quoted_name(text: &[u8]) -> Option<(Vec<u8>, &[u8])> {
    let mut rest = text.strip_prefix(b"`")?;
    let mut name = Vec::new();
    loop {
        let end = memchr(b'`', rest)?;
        name.extend_from_slice(&rest[..end]);
        rest = &rest[end + 1..];
        let Some(more) = rest.strip_prefix(b"`") else { return Some((name, rest)) };
        name.push(b'`');
        rest = more;
    }
}

#[cfg(test)]
mod tests;
