//! Where the statements of a script end, as `psql` sees it, line by line.
//!
//! Source of the rules: `psqlscan.l` of PostgreSQL 15 to 18.

use bytes::{Bytes, BytesMut};

/// No statement of a dump is larger: the server takes no larger message.
const MAX_STATEMENT_BYTES: usize = 1 << 30;
/// Meta commands that dumps have and that need nothing done: they keep `psql` from executing others.
const HARMLESS: [&str; 2] = ["\\restrict", "\\unrestrict"];
const CONNECT: &str = "\\connect";
const END_OF_ROWS: &[u8] = b"\\.";
/// Rows are handed over in pieces of about this size.
const PIECE_BYTES: usize = 64 << 10;

/// What stands in a script.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Piece {
    /// A statement, without its semicolon.
    Statement(String),
    /// A remark on a line of its own.
    Remark(String),
    /// A statement that rows follow.
    Copy(String),
    /// Some of these.
    Rows(Bytes),
    /// The rows are over.
    EndOfRows,
}

/// What the next byte is part of.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
enum Place {
    #[default]
    Words,
    /// A text; with escapes, a backslash takes away the meaning of what follows.
    Text { has_escapes: bool },
    /// A name in quotation marks.
    Name,
    /// A text between dollar signs, with what stands between those.
    Dollars(Vec<u8>),
    /// So many comments, each in the other.
    Comment(u32),
    /// Rows, to the line that ends them.
    Rows,
}

/// Divides a script.
#[derive(Debug, Default)]
pub(super) struct Lexer {
    place: Place,
    statement: Vec<u8>,
    /// Where in the statement the comment begins.
    comment_at: usize,
    parentheses: u32,
    /// `BEGIN` and `CASE` that wait for their `END`, in the body of a function that is statements.
    blocks: u32,
    /// The last word, and those at the beginning of the statement.
    word: Vec<u8>,
    first_words: Vec<String>,
    /// Texts have escapes without saying so: the script wants it so.
    always_escapes: bool,
    /// The database that the script enters.
    entered: Option<String>,
    rows: BytesMut,
}

impl Lexer {
    /// Takes the next line, with its end.
    pub(super) fn line(&mut self, line: &[u8], found: &mut Vec<Piece>) -> Result<(), String> {
        if self.place == Place::Rows {
            self.rows(line, found);
            return Ok(());
        }
        if self.is_between() {
            let text = line.trim_ascii();
            if text.starts_with(b"--") {
                found.push(Piece::Remark(String::from_utf8_lossy(text).into_owned()));
                return Ok(());
            }
            if text.starts_with(b"\\") {
                return self.meta_command(&String::from_utf8_lossy(text));
            }
        }
        let mut at = 0;
        while at < line.len() {
            at += self.step(&line[at..], found)?;
        }
        if self.statement.len() > MAX_STATEMENT_BYTES {
            return Err("a statement of it is larger than a gigabyte".to_owned());
        }
        Ok(())
    }

    /// Takes the end of the script.
    pub(super) fn finish(&self) -> Result<(), String> {
        match &self.place {
            Place::Rows => Err("it is cut short in the rows of a table".to_owned()),
            _ if self.is_between() => Ok(()),
            _ => Err("it is cut short: its last statement has no end".to_owned()),
        }
    }

    /// Says whether no statement was begun.
    fn is_between(&self) -> bool {
        self.place == Place::Words && self.statement.trim_ascii().is_empty()
    }

    fn rows(&mut self, line: &[u8], found: &mut Vec<Piece>) {
        let text = line.strip_suffix(b"\n").unwrap_or(line);
        let is_end = text.strip_suffix(b"\r").unwrap_or(text) == END_OF_ROWS;
        if !is_end {
            self.rows.extend_from_slice(line);
        }
        if !self.rows.is_empty() && (is_end || self.rows.len() >= PIECE_BYTES) {
            found.push(Piece::Rows(self.rows.split().freeze()));
        }
        if is_end {
            self.place = Place::Words;
            found.push(Piece::EndOfRows);
        }
    }

    fn meta_command(&mut self, text: &str) -> Result<(), String> {
        let (name, rest) = text.split_once(char::is_whitespace).unwrap_or((text, ""));
        if HARMLESS.contains(&name) {
            return Ok(());
        }
        if name == CONNECT {
            let database = rest.trim();
            let before = self.entered.get_or_insert_with(|| database.to_owned());
            if before == database {
                return Ok(());
            }
            return Err(format!("it is of several databases: it enters {before} and {database}"));
        }
        Err(format!("it has a meta command of psql, and none is executed: {name}"))
    }

    /// Takes at least one byte. Returns how many.
    fn step(&mut self, rest: &[u8], found: &mut Vec<Piece>) -> Result<usize, String> {
        let taken = match &self.place {
            Place::Words => return self.words(rest, found),
            Place::Text { has_escapes: true } if rest[0] == b'\\' => rest.len().min(2),
            Place::Text { .. } | Place::Name => {
                let mark = if self.place == Place::Name { b'"' } else { b'\'' };
                if rest[0] == mark {
                    // A doubled one ends and begins again, but for the meaning of backslashes.
                    if rest.get(1) == Some(&mark) {
                        2
                    } else {
                        self.place = Place::Words;
                        1
                    }
                } else {
                    rest.iter().position(|b| *b == mark || *b == b'\\').unwrap_or(rest.len()).max(1)
                }
            }
            Place::Dollars(tag) => match rest.strip_prefix(tag.as_slice()) {
                Some(_) => {
                    let length = tag.len();
                    self.place = Place::Words;
                    length
                }
                None => 1 + memchr::memchr(b'$', &rest[1..]).unwrap_or(rest.len() - 1),
            },
            Place::Comment(depth) => match rest {
                [b'*', b'/', ..] if *depth == 1 => {
                    self.place = Place::Words;
                    self.statement.extend_from_slice(b"*/");
                    // Before a statement it belongs to none.
                    if self.statement[..self.comment_at].trim_ascii().is_empty() {
                        self.statement.clear();
                    }
                    return Ok(2);
                }
                [b'*', b'/', ..] => {
                    self.place = Place::Comment(depth - 1);
                    2
                }
                [b'/', b'*', ..] => {
                    self.place = Place::Comment(depth + 1);
                    2
                }
                _ => 1,
            },
            Place::Rows => rest.len(),
        };
        self.statement.extend_from_slice(&rest[..taken]);
        Ok(taken)
    }

    fn words(&mut self, rest: &[u8], found: &mut Vec<Piece>) -> Result<usize, String> {
        let byte = rest[0];
        if is_of_word(byte) {
            self.word.push(byte);
            self.statement.push(byte);
            return Ok(1);
        }
        let word = std::mem::take(&mut self.word);
        let taken = match rest {
            // A dollar sign inside of a word is part of it.
            [b'$', ..] if word.is_empty() => match dollar_tag(rest) {
                Some(tag) => {
                    self.place = Place::Dollars(tag.to_vec());
                    tag.len()
                }
                None => 1,
            },
            [b'$', ..] => {
                self.word = word;
                self.word.push(b'$');
                self.statement.push(b'$');
                return Ok(1);
            }
            [b'\'', ..] => {
                let has_escapes = self.always_escapes || word.eq_ignore_ascii_case(b"e");
                self.place = Place::Text { has_escapes };
                1
            }
            [b'"', ..] => {
                self.place = Place::Name;
                1
            }
            [b'-', b'-', ..] if self.statement.trim_ascii().is_empty() => {
                self.count(&word, byte);
                return Ok(rest.len());
            }
            // To the end of the line; it may be part of what the server keeps.
            [b'-', b'-', ..] => rest.len(),
            [b'/', b'*', ..] => {
                self.place = Place::Comment(1);
                self.comment_at = self.statement.len();
                2
            }
            [b'\\', ..] => {
                return Err(
                    "it has a meta command of psql inside of a statement, and none is executed"
                        .to_owned(),
                );
            }
            _ => 1,
        };
        self.count(&word, byte);
        if byte == b';' && self.parentheses == 0 && self.blocks == 0 {
            self.end(found)?;
            return Ok(1);
        }
        self.statement.extend_from_slice(&rest[..taken]);
        Ok(taken)
    }

    /// Keeps count of what a semicolon would not end: the last word, and then what stands behind it.
    fn count(&mut self, word: &[u8], byte: u8) {
        if !word.is_empty() {
            self.count_word(String::from_utf8_lossy(word).to_ascii_uppercase());
        }
        match byte {
            b'(' => self.parentheses += 1,
            b')' => self.parentheses = self.parentheses.saturating_sub(1),
            _ => {}
        }
    }

    fn count_word(&mut self, word: String) {
        let words: Vec<&str> = self.first_words.iter().map(String::as_str).collect();
        let makes_function = matches!(
            words.as_slice(),
            ["CREATE", "FUNCTION" | "PROCEDURE", ..]
                | ["CREATE", "OR", "REPLACE", "FUNCTION" | "PROCEDURE", ..]
        );
        match word.as_str() {
            "BEGIN" if makes_function && self.parentheses == 0 => self.blocks += 1,
            "CASE" if self.blocks > 0 => self.blocks += 1,
            "END" => self.blocks = self.blocks.saturating_sub(1),
            _ => {}
        }
        if self.first_words.len() < 4 {
            self.first_words.push(word);
        }
    }

    /// Hands a statement over.
    fn end(&mut self, found: &mut Vec<Piece>) -> Result<(), String> {
        let bytes = std::mem::take(&mut self.statement);
        let first = std::mem::take(&mut self.first_words);
        let text = String::from_utf8(bytes).map_err(|_| {
            "it is not in UTF-8; make it with pg_dump --encoding=UTF8, or use iconv".to_owned()
        })?;
        let text = text.trim().to_owned();
        if text.is_empty() {
            return Ok(());
        }
        let upper = || text.split_whitespace().collect::<Vec<_>>().join(" ").to_ascii_uppercase();
        match first.first().map(String::as_str) {
            Some("COPY") => {
                if !upper().contains(" FROM STDIN") {
                    return Err("it has a COPY that is not of rows in the script".to_owned());
                }
                self.place = Place::Rows;
                found.push(Piece::Copy(text));
                return Ok(());
            }
            Some("SET") if !self.heed(&upper())? => return Ok(()),
            _ => {}
        }
        found.push(Piece::Statement(text));
        Ok(())
    }

    /// Heeds what a script sets of how it is read. Says whether the server is to do so, too.
    fn heed(&mut self, set: &str) -> Result<bool, String> {
        let value = |name: &str| {
            let rest = set.strip_prefix("SET ")?;
            let rest = rest.strip_prefix("SESSION ").unwrap_or(rest).strip_prefix(name)?;
            let rest = rest.trim_start();
            let rest = rest.strip_prefix('=').or(rest.strip_prefix("TO "))?;
            Some(rest.trim().trim_matches('\'').to_owned())
        };
        if let Some(value) = value("STANDARD_CONFORMING_STRINGS") {
            self.always_escapes = ["OFF", "FALSE", "NO", "0"].contains(&value.as_str());
        }
        match value("CLIENT_ENCODING").as_deref() {
            // Left as it is, the server looks at every byte: what is no UTF-8 must fail now, and not in a restore.
            Some("SQL_ASCII") => Ok(false),
            Some("UTF8" | "UTF-8") | None => Ok(true),
            Some(encoding) => Err(format!(
                "it is in the encoding {encoding}; make it with pg_dump --encoding=UTF8"
            )),
        }
    }
}

fn is_of_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_' || !byte.is_ascii()
}

/// Returns what begins a text between dollar signs, if this does: `$$`, `$name$`.
fn dollar_tag(rest: &[u8]) -> Option<&[u8]> {
    let end = rest[1..].iter().position(|byte| *byte == b'$')? + 1;
    let name = &rest[1..end];
    let is_name =
        name.iter().all(|byte| is_of_word(*byte)) && !name.first().is_some_and(u8::is_ascii_digit);
    is_name.then(|| &rest[..=end])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pieces(script: &str) -> Result<Vec<Piece>, String> {
        let (mut lexer, mut found) = (Lexer::default(), Vec::new());
        for line in script.as_bytes().split_inclusive(|byte| *byte == b'\n') {
            lexer.line(line, &mut found)?;
        }
        lexer.finish()?;
        Ok(found)
    }

    fn statements(script: &str) -> Vec<String> {
        let statement = |piece| match piece {
            Piece::Statement(text) => Some(text),
            _ => None,
        };
        pieces(script).unwrap().into_iter().filter_map(statement).collect()
    }

    #[test]
    fn statements_end_where_psql_sees_their_ends() {
        for statement in [
            "SELECT 'a;''b' || E'\\';' || \"c;\"\"d\"",
            "SELECT 'a\\'",
            "SELECT $$a;'$$, $x$ $$; $y$ $x$, a$1$;$",
            "SELECT 1 /* ; /* ; */ ' ; */",
            "SELECT 1 -- it's; not over\n, 2",
            "CREATE RULE r AS ON INSERT TO t DO (SELECT 1; SELECT 2)",
            "CREATE FUNCTION f() RETURNS int BEGIN ATOMIC SELECT CASE WHEN true THEN 1 END; SELECT 2; END",
            "CREATE FUNCTION g() RETURNS int BEGIN ATOMIC SELECT sum(CASE WHEN (true) THEN 1 ELSE 0 END) AS s; SELECT CASE(1) WHEN 1 THEN 2 END; END",
            "CREATE OR REPLACE PROCEDURE p() LANGUAGE sql BEGIN ATOMIC SELECT 1; END",
            "CREATE FUNCTION public.\"BEGIN\"(x int) RETURNS int LANGUAGE sql AS $_$ SELECT $1; $_$",
        ] {
            // A dollar sign in a word begins nothing.
            let statement = statement.replace(", a$1$;$", ", a$1$");
            let script = format!("{statement};\n  {statement} ;SELECT 3;");
            assert_eq!(statements(&script), [statement.as_str(), &statement, "SELECT 3"]);
        }
        assert_eq!(
            statements("SELECT 1; -- it's done\n/* that's ; all */\n/* ; */ SELECT 2;"),
            ["SELECT 1", "SELECT 2"]
        );
        assert_eq!(statements("SELECT 1; -- it's done"), ["SELECT 1"]);
        assert_eq!(statements("BEGIN;\nSELECT 1;\nEND;\n"), ["BEGIN", "SELECT 1", "END"]);
    }

    #[test]
    fn rows_pass_as_they_are_to_the_line_that_ends_them() {
        let script =
            "COPY public.t (a, \"b;\") FROM stdin;\n1\t\\\\.\n\\N\t';--\n\\.\n\nSELECT 1;\n";
        assert_eq!(
            pieces(script).unwrap(),
            [
                Piece::Copy("COPY public.t (a, \"b;\") FROM stdin".to_owned()),
                Piece::Rows(Bytes::from_static(b"1\t\\\\.\n\\N\t';--\n")),
                Piece::EndOfRows,
                Piece::Statement("SELECT 1".to_owned()),
            ]
        );
    }

    #[test]
    fn meta_commands_are_never_passed_on() {
        for script in [
            "\\! reboot\n",
            "SELECT 1 \\! reboot\n;",
            "SELECT 1;\\! reboot\n",
            "SELECT 'a' \\gexec\n",
            "\\connect a\nSELECT 1;\n\\connect b\n",
            "\\copy t FROM '/etc/passwd'\n",
            "COPY t FROM '/etc/passwd';\n",
            "COPY t TO PROGRAM 'reboot';\n",
            "\\i other.sql\n",
        ] {
            assert!(pieces(script).is_err(), "{script}");
        }
        let harmless = "\\restrict abc\n\\connect a\nSELECT '\\! x';\n\\unrestrict abc\n";
        assert_eq!(statements(harmless), ["SELECT '\\! x'"]);
    }

    #[test]
    fn script_that_is_cut_anywhere_inside_of_a_statement_is_not_whole() {
        let script = "SELECT 'x', \"y\", $$z$$ /* c */ ;";
        for length in 1..script.len() {
            assert!(pieces(&script[..length]).is_err(), "{length}");
        }
        assert!(pieces("COPY t FROM stdin;\n1\n").is_err());
        assert!(pieces("SET client_encoding = 'LATIN1';\n").is_err());
    }

    #[test]
    fn texts_have_escapes_where_the_script_says_so() {
        let script = "SET standard_conforming_strings = off;\nSELECT 'a\\';b';\n";
        assert_eq!(statements(script)[1], "SELECT 'a\\';b'");
    }
}
