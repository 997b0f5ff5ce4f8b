//! The scripts of an export, read without trust: divided into statements, and only of the kinds that an export writes.
//!
//! Strings and names are in quotation marks that are doubled inside; other ways to write them, and comments, no export has.

use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom};
use std::path::Path;

/// How the statements of `schema.sql` begin.
const KINDS: [&str; 9] = [
    "CREATE SCHEMA ",
    "CREATE SEQUENCE ",
    "CREATE TYPE ",
    "CREATE TABLE ",
    "CREATE VIEW ",
    "CREATE INDEX ",
    "CREATE UNIQUE INDEX ",
    "CREATE MACRO ",
    "COMMENT ON ",
];

/// The format of the files that we write.
pub(super) const PARQUET: &str = "parquet";
/// The format that DuckDB writes if nothing else is wanted.
const CSV: &str = "csv";

/// A file that is read into a table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Load {
    /// The table's name as SQL writes it, with its schema where that is not `main`.
    pub(super) table: String,
    /// The file's path.
    pub(super) file: String,
    /// The file's format, such as `parquet`.
    pub(super) format: String,
}

/// Divides a script into its statements.
pub(super) fn split(script: &str) -> Result<Vec<String>, String> {
    let (mut statements, mut begin, mut index) = (Vec::new(), 0, 0);
    let bytes = script.as_bytes();
    while index < bytes.len() {
        match bytes[index] {
            b'\'' if has_escapes(&bytes[..index]) => {
                return Err("there is a text with escapes in it".to_owned());
            }
            b'\'' | b'"' => index += quoted(&script[index..])?,
            b';' => {
                statements.push(script[begin..index].trim());
                index += 1;
                begin = index;
            }
            b'-' | b'/' if matches!(&bytes[index..], [b'-', b'-', ..] | [b'/', b'*', ..]) => {
                return Err("there is a comment in it".to_owned());
            }
            b'$' => return Err("there is a text in dollar signs in it".to_owned()),
            _ => index += 1,
        }
    }
    if !script[begin..].trim().is_empty() {
        return Err("its last statement has no end".to_owned());
    }
    let statements = statements.into_iter().filter(|statement| !statement.is_empty());
    Ok(statements.map(str::to_owned).collect())
}

/// Says whether what stands before a text is the letter that gives backslashes a meaning in it.
fn has_escapes(before: &[u8]) -> bool {
    let is_word = |byte: &u8| byte.is_ascii_alphanumeric() || *byte == b'_' || !byte.is_ascii();
    match before {
        [.., letter, b'e' | b'E'] => !is_word(letter),
        [b'e' | b'E'] => true,
        _ => false,
    }
}

/// Returns how many bytes a text in quotation marks has at the beginning of what is left.
fn quoted(rest: &str) -> Result<usize, String> {
    let mark = rest.chars().next().unwrap_or_default();
    let mut from = 1;
    while let Some(end) = rest[from..].find(mark) {
        from += end + 1;
        if !rest[from..].starts_with(mark) {
            return Ok(from);
        }
        from += 1;
    }
    Err("a text in quotation marks has no end".to_owned())
}

/// Reads a name as SQL writes it, with its schema. Returns it and what comes behind it.
fn qualified(text: &str) -> Option<(&str, &str)> {
    let mut length = 0;
    loop {
        let rest = &text[length..];
        let is_word = |byte: &&u8| byte.is_ascii_alphanumeric() || **byte == b'_';
        let part = match rest.as_bytes().first()? {
            b'"' => quoted(rest).ok()?,
            _ => rest.as_bytes().iter().take_while(is_word).count(),
        };
        if part == 0 {
            return None;
        }
        length += part;
        match text[length..].strip_prefix('.') {
            Some(_) => length += 1,
            None => return Some(text.split_at(length)),
        }
    }
}

/// Says whether a text is the name of a table as SQL writes it, and nothing else.
pub(super) fn is_table(text: &str) -> bool {
    qualified(text).is_some_and(|(_, rest)| rest.is_empty())
}

/// Returns a text without what stands in quotation marks.
fn without_quoted(text: &str) -> String {
    let (mut rest, mut kept) = (text, String::new());
    while let Some(at) = rest.find(['\'', '"']) {
        kept.push_str(&rest[..at]);
        rest = quoted(&rest[at..]).map_or("", |length| &rest[at + length..]);
    }
    kept + rest
}

/// Says whether a text is one pair of parentheses, with whatever in them.
fn is_in_parentheses(text: &str) -> bool {
    let (mut depth, bare) = (0_usize, without_quoted(text));
    let mut closed = None;
    for (at, byte) in bare.bytes().enumerate() {
        match byte {
            b'(' => depth += 1,
            b')' => depth = depth.saturating_sub(1),
            _ => {}
        }
        if depth == 0 && closed.is_none() {
            closed = Some(at);
        }
    }
    text.starts_with('(') && depth == 0 && closed == Some(bare.len() - 1)
}

/// Fails if a statement is of another kind than an export has.
pub(super) fn check(statement: &str) -> Result<(), String> {
    let shown = || -> String { statement.chars().take(80).collect() };
    let kind = KINDS.iter().find(|kind| statement.starts_with(**kind));
    let kind = kind.ok_or_else(|| format!("no export has a statement such as `{}`", shown()))?;
    if *kind == "CREATE TABLE " {
        // A table of a query would execute it.
        let columns = qualified(&statement[kind.len()..]).map(|(_, rest)| rest.trim_start());
        if !columns.is_some_and(is_in_parentheses) {
            return Err(format!("no export makes a table of a query: `{}`", shown()));
        }
    }
    let is_query = |text: &str| without_quoted(text).to_ascii_uppercase().contains("SELECT");
    if *kind == "CREATE TYPE " && is_query(statement) {
        return Err(format!("no export makes a type of a query: `{}`", shown()));
    }
    Ok(())
}

/// Reads the statements of `load.sql`: `COPY "S".t FROM 'folder/t.parquet' (FORMAT 'parquet', …)`.
pub(super) fn loads(script: &str) -> Result<Vec<Load>, String> {
    split(script)?.iter().map(|statement| load(statement)).collect()
}

fn load(statement: &str) -> Result<Load, String> {
    let read = || {
        let (table, rest) = qualified(statement.strip_prefix("COPY ")?)?;
        let rest = rest.strip_prefix(" FROM ").filter(|rest| rest.starts_with('\''))?;
        let (file, options) = rest.split_at(quoted(rest).ok()?);
        let format = options.trim_start().strip_prefix("(FORMAT '")?.split_once('\'')?.0;
        let file = file[1..file.len() - 1].replace("''", "'");
        Some(Load { table: table.to_owned(), file, format: format.to_owned() })
    };
    read().ok_or_else(|| format!("no export has a statement such as `{statement}`"))
}

/// Returns the table that a statement makes, if it makes one.
fn table_of(statement: &str) -> Option<&str> {
    Some(qualified(statement.strip_prefix("CREATE TABLE ")?)?.0)
}

/// Fails unless each table of an export has a file, and is loaded from it.
pub(super) fn check_loads(schema: &[String], script: &str) -> Result<(), String> {
    if schema.is_empty() {
        return Err("there is no statement in its schema.sql".to_owned());
    }
    let loads = loads(script)?;
    let is_loaded = |table: &&str| loads.iter().any(|load| load.table == *table);
    let left = schema.iter().filter_map(|statement| table_of(statement)).find(|t| !is_loaded(t));
    left.map_or(Ok(()), |table| Err(format!("its load.sql has nothing for the table {table}")))
}

/// Returns the statements of a `load.sql` with the files where they are now: in this folder.
pub(super) fn moved(script: &str, folder: &Path) -> Result<Vec<String>, String> {
    let moved = |statement: &String| {
        let read = load(statement)?;
        let name = Path::new(&read.file).file_name().unwrap_or_default();
        let file = folder.join(name);
        if !file.is_file() {
            return Err(format!("it reads {}, which is not there", read.file));
        }
        if read.format == CSV && !ends_with_newline(&file) {
            return Err(format!("{} is cut short in the middle of a line", read.file));
        }
        let written = super::session::literal(&read.file);
        let now = super::session::literal(&file.to_string_lossy());
        let moved = statement.replacen(&written, &now, 1);
        Ok(match moved.strip_suffix(')').filter(|_| read.format == CSV) {
            // An empty text is written in quotation marks, and DuckDB itself would read it as none.
            Some(options) => format!("{options}, allow_quoted_nulls false)"),
            None => moved,
        })
    };
    split(script)?.iter().map(moved).collect()
}

fn ends_with_newline(file: &Path) -> bool {
    let mut end = [0];
    let read = File::open(file).and_then(|mut file| {
        file.seek(SeekFrom::End(-1))?;
        file.read_exact(&mut end)
    });
    // An empty file has no line at all, which its reader will tell.
    read.is_err() || end == *b"\n"
}

/// Writes a statement of `load.sql`.
pub(super) fn loading(load: &Load) -> String {
    let Load { table, file, format } = load;
    format!("COPY {table} FROM {} (FORMAT '{format}');\n", super::session::literal(file))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scripts_are_divided_at_the_ends_of_statements_only() {
        let script = "CREATE SCHEMA \"a;\"\"b\";;\nCREATE TABLE t(x VARCHAR DEFAULT('it''s;\n'), y INTEGER[]);;;\n";
        assert_eq!(
            split(script).unwrap(),
            [
                "CREATE SCHEMA \"a;\"\"b\"",
                "CREATE TABLE t(x VARCHAR DEFAULT('it''s;\n'), y INTEGER[])"
            ]
        );
        for (script, finding) in [
            ("CREATE SCHEMA a", "no end"),
            ("CREATE SCHEMA 'a;", "no end"),
            ("CREATE SCHEMA a; -- x;\n", "comment"),
            ("CREATE /* x */ SCHEMA a;", "comment"),
            ("CREATE VIEW v AS SELECT $$a;$$;", "dollar"),
            ("CREATE VIEW v AS SELECT e'\\';.shell x;'", "escapes"),
        ] {
            assert!(split(script).unwrap_err().contains(finding), "{script}");
        }
    }

    #[test]
    fn only_statements_of_an_export_pass() {
        for statement in [
            "CREATE TABLE t(a INTEGER)",
            "CREATE TABLE \"S 2\".\"odd \"\"n(;\"(a INTEGER)",
            "CREATE UNIQUE INDEX i ON t(a)",
            "CREATE TABLE t(a VARCHAR DEFAULT(')'), CHECK((a > ')(')))",
            "CREATE TYPE e AS ENUM('select', 'it''s')",
            "CREATE MACRO m (a) AS (a)",
            "COMMENT ON TABLE t IS 'x'",
        ] {
            assert_eq!(check(statement), Ok(()));
        }
        for statement in [
            "DROP TABLE t",
            "COPY t TO '/etc/passwd'",
            "ATTACH '/other.db'",
            "CREATE OR REPLACE TABLE t(a INTEGER)",
            "CREATE TABLE t AS SELECT * FROM read_text('/etc/passwd')",
            "CREATE TABLE \"t(\" AS SELECT 1",
            "CREATE TABLE t(a) AS SELECT (1)",
            "CREATE TYPE e AS ENUM (select 'x' from t)",
            "CREATE TEMP TABLE t(a INTEGER)",
            "INSTALL httpfs",
            ".shell reboot",
            "create schema a",
        ] {
            assert!(check(statement).is_err(), "{statement}");
        }
    }

    #[test]
    fn loads_are_read_as_they_are_written() {
        let script = "COPY \"S.1\".\"o\"\"dd\" FROM '/x/it''s/s_1_o_dd.parquet' (FORMAT 'parquet', compression 'zstd');\n\
                      COPY t FROM 'e/t.parquet' (FORMAT 'parquet');";
        let loads = loads(script).unwrap();
        let of = |table: &str, file: &str| Load {
            table: table.to_owned(),
            file: file.to_owned(),
            format: PARQUET.to_owned(),
        };
        assert_eq!(
            loads,
            [of("\"S.1\".\"o\"\"dd\"", "/x/it's/s_1_o_dd.parquet"), of("t", "e/t.parquet")]
        );
        let written: String = loads.iter().map(loading).collect();
        assert_eq!(super::loads(&written).unwrap(), loads);
        for statement in [
            "COPY t TO 'x.parquet' (FORMAT 'parquet');",
            "COPY (SELECT 1) FROM 'x' (FORMAT 'parquet');",
            "COPY t FROM 'x' (AUTO_DETECT true);",
            "COPY t FROM x (FORMAT 'parquet');",
            "COPY t.. FROM 'x' (FORMAT 'parquet');",
            "SELECT 1;",
        ] {
            assert!(super::loads(statement).is_err(), "{statement}");
        }
    }
}
