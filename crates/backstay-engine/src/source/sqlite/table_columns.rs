//! What the columns of a SQLite table hold, which its declaration does not say.

use std::collections::HashMap;

use arrow_schema::{DataType, Field};
use rusqlite::{Connection, Row};

use super::snapshot::identifier;
use crate::source::table::{TableColumn, TableSpec, literal_field};

/// Columns whose values are looked at by one query.
const COLUMNS_AT_ONCE: usize = 100;

/// Says whether rows lack a part of their key, which SQLite lets be in most primary keys.
pub(super) fn has_nulls(view: &Connection, table: &str, key: &[String]) -> rusqlite::Result<bool> {
    let is_null: Vec<String> =
        key.iter().map(|name| format!("{} IS NULL", identifier(name))).collect();
    let query = format!(
        "SELECT EXISTS (SELECT 1 FROM {} WHERE {})",
        identifier(table),
        is_null.join(" OR ")
    );
    view.query_row(&query, [], |row| row.get(0))
}

/// Returns what a deletion of rows would do to other tables.
pub(super) fn references(view: &Connection, table: &str) -> rusqlite::Result<Vec<String>> {
    let mut found = view.prepare(
        "SELECT s.name, f.on_delete FROM sqlite_schema s JOIN pragma_foreign_key_list(s.name) f
         WHERE s.type = 'table' AND f.\"table\" = ?1 COLLATE NOCASE AND f.on_delete NOT IN ('NO ACTION', 'RESTRICT')",
    )?;
    let obstacle = |row: &Row<'_>| {
        let (table, action): (String, String) = (row.get(0)?, row.get(1)?);
        Ok(format!("rows of {table} refer to them, with ON DELETE {action}"))
    };
    found.query_map([table], obstacle)?.collect()
}

pub(super) struct Declared {
    pub(super) name: String,
    kind: String,
    is_generated: bool,
    /// From 1; 0 where it is not in the primary key.
    in_key: i64,
    is_not_null: bool,
}

pub(super) fn declared_columns(view: &Connection, table: &str) -> rusqlite::Result<Vec<Declared>> {
    let mut columns = view.prepare(
        "SELECT name, type, hidden, pk, \"notnull\" FROM pragma_table_xinfo(?1) WHERE hidden <> 1",
    )?;
    let column = |row: &Row<'_>| {
        Ok(Declared {
            name: row.get(0)?,
            kind: row.get(1)?,
            is_generated: row.get::<_, i64>(2)? > 1,
            in_key: row.get(3)?,
            is_not_null: row.get(4)?,
        })
    };
    columns.query_map([table], column)?.collect()
}

/// Returns the keys that a table has, the primary one first.
pub(super) fn keys(
    view: &Connection,
    table: &str,
    columns: &[Declared],
) -> rusqlite::Result<Vec<Vec<String>>> {
    let mut primary: Vec<&Declared> = columns.iter().filter(|column| column.in_key > 0).collect();
    primary.sort_by_key(|column| column.in_key);
    let mut found = vec![primary.iter().map(|column| column.name.clone()).collect()];
    let mut indexes = view.prepare(
        "SELECT name FROM pragma_index_list(?1) WHERE \"unique\" AND NOT partial ORDER BY seq DESC",
    )?;
    let indexes: Vec<String> =
        indexes.query_map([table], |row| row.get(0))?.collect::<rusqlite::Result<_>>()?;
    for index in indexes {
        let mut parts = view.prepare("SELECT name FROM pragma_index_info(?1) ORDER BY seqno")?;
        let parts: Vec<Option<String>> =
            parts.query_map([&index], |row| row.get(0))?.collect::<rusqlite::Result<_>>()?;
        let is_sure =
            |name: &String| columns.iter().any(|column| column.name == *name && column.is_not_null);
        // An expression has no name.
        if let Some(parts) = parts.into_iter().collect::<Option<Vec<String>>>()
            && parts.iter().all(is_sure)
        {
            found.push(parts);
        }
    }
    Ok(found)
}

/// Works out what each column becomes, by the kinds of values that the table holds.
pub(super) fn columns(
    view: &Connection,
    table: &str,
    declared: &[Declared],
    spec: &TableSpec,
) -> rusqlite::Result<Vec<TableColumn>> {
    let mut held: Vec<bool> = Vec::new();
    // A result has no more columns than SQLite was built for.
    for some in declared.chunks(COLUMNS_AT_ONCE) {
        let kinds = some.iter().map(|column| {
            let kind = format!("nullif(typeof({}), 'null')", identifier(&column.name));
            ["integer", "real", "text", "blob"]
                .map(|word| format!("max({kind} = '{word}')"))
                .join(", ")
        });
        let kinds = kinds.collect::<Vec<_>>().join(", ");
        let query = format!("SELECT {kinds} FROM {}", identifier(table));
        let found = view.query_row(&query, [], |row| {
            let is_held = |i| Ok(row.get::<_, Option<bool>>(i)?.unwrap_or(false));
            (0..some.len() * 4).map(is_held).collect::<rusqlite::Result<Vec<bool>>>()
        });
        held.extend(found?);
    }
    let earlier: HashMap<&str, &str> =
        spec.earlier.iter().map(|column| (column.name.as_str(), column.stored.as_str())).collect();
    let columns = declared.iter().zip(held.chunks(4)).map(|(column, held)| {
        let before = earlier.get(column.name.as_str()).copied();
        let field = stored_as(&column.name, &column.kind, held, before);
        TableColumn { declared: column.kind.clone(), field, is_generated: column.is_generated }
    });
    Ok(columns.collect())
}

/// The kinds of values that a column holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Held {
    Nothing,
    Whole,
    Fractions,
    Text,
    Blobs,
    Mixed,
}

impl Held {
    fn of(held: &[bool]) -> Self {
        match held {
            [false, false, false, false] => Self::Nothing,
            [true, false, false, false] => Self::Whole,
            [false, true, false, false] => Self::Fractions,
            [false, false, true, false] => Self::Text,
            [false, false, false, true] => Self::Blobs,
            [true, true, false, false] => Self::Whole.and(Self::Fractions, true),
            _ => Self::Mixed,
        }
    }

    /// Returns what an earlier segment has.
    fn stored(stored: &str) -> Self {
        match stored {
            "Int64" => Self::Whole,
            "Float64" => Self::Fractions,
            "Utf8" => Self::Text,
            "Binary" => Self::Blobs,
            _ => Self::Mixed,
        }
    }

    /// Returns what holds both. A column of numbers makes whole ones of what is whole by itself, whatever it is given.
    fn and(self, other: Self, is_of_numbers: bool) -> Self {
        match (self, other) {
            (Self::Nothing, held) | (held, Self::Nothing) => held,
            (held, other) if held == other => held,
            (Self::Whole, Self::Fractions) | (Self::Fractions, Self::Whole) if is_of_numbers => {
                Self::Fractions
            }
            _ => Self::Mixed,
        }
    }
}

/// Chooses what holds all values of a column, and what earlier segments have of it: a column is never stored more narrowly
/// than before, or rows that are archived could not be told any more.
fn stored_as(name: &str, declared: &str, held: &[bool], earlier: Option<&str>) -> Field {
    let word = declared.to_ascii_uppercase();
    let has = |words: &[&str]| words.iter().any(|part| word.contains(part));
    // How SQLite itself reads a declared type.
    let by_name = match () {
        () if has(&["INT"]) => Held::Whole,
        () if has(&["CHAR", "CLOB", "TEXT"]) => Held::Text,
        () if word.is_empty() || has(&["BLOB"]) => Held::Blobs,
        () if has(&["REAL", "FLOA", "DOUB"]) => Held::Fractions,
        () => Held::Whole,
    };
    let is_of_numbers = matches!(by_name, Held::Whole | Held::Fractions);
    let mut held = match held {
        [true, true, false, false] if !is_of_numbers => Held::Mixed,
        held => Held::of(held),
    };
    held = held.and(earlier.map_or(Held::Nothing, Held::stored), is_of_numbers);
    if held == Held::Nothing {
        held = by_name;
    }
    let kind = match held {
        Held::Whole => DataType::Int64,
        Held::Fractions => DataType::Float64,
        Held::Text => DataType::Utf8,
        Held::Blobs | Held::Nothing => DataType::Binary,
        Held::Mixed => return literal_field(name),
    };
    Field::new(name, kind, true)
}
