//! One table of a database: its old rows read, deleted and put back, for retention archives.
//!
//! Rows pass as Arrow batches. A kind of database says what its columns become; what they are in Parquet follows from
//! that. Beside its columns a batch that is read has the row's time, as [`AT`], so that nobody but the kind has to know
//! how the table keeps it.

mod build;
mod literal;
mod parquet;
mod rows;
mod time;

use std::collections::HashMap;
use std::sync::Arc;

use arrow_array::RecordBatch;
use arrow_schema::{DataType, Field, Schema, SchemaRef};
use async_trait::async_trait;
use backstay_format::ArchivedColumn;

use super::SourceError;
use crate::cx::Cx;

pub(crate) use build::{Builder, Value, value_at};
pub(crate) use literal::{
    Dialect, as_literals, key_conditions, keys_list, rows_list, sql_literal, uuid_text,
};
pub(crate) use parquet::{
    parquet_schema, parquet_writer, read_parquet, send_parquet, write_parquet,
};
pub use rows::Rows;
pub(crate) use rows::{Gathering, RowsSender, next_batch, only, rows_pipe, send_blocking, times};
pub use time::Unit;
pub(crate) use time::{
    DAY_MICROS, Kept, TimeColumn, bound, civil, date_text, day_bound, days_of, time_text,
};

/// The last column of a batch that is read: microseconds since 1970 in UTC, as Int64.
pub const AT: &str = "backstay.at";
/// Rows of a batch, at most.
pub const BATCH_ROWS: usize = 8192;
/// Bytes of a batch, but for its last row.
const BATCH_BYTES: usize = 1 << 20;
/// Bytes of the rows that one statement inserts: it is parsed as a whole, and must fit into a packet.
const STATEMENT_BYTES: usize = 1 << 20;
/// Rows that one statement inserts, at most.
const STATEMENT_ROWS: usize = 500;

/// Which table, and how old its rows are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TableSpec {
    /// Its name, with its schema if it is not found without: `public.events`.
    pub table: String,
    /// The column that says how old a row is.
    pub column: String,
    /// What numbers in that column count, if it holds numbers.
    pub unit: Option<Unit>,
    /// Columns that are kept as the database's text for their values, whatever their type.
    pub as_text: Vec<String>,
    /// The widest that earlier segments have of each column, for a database whose columns have no types of their own.
    pub earlier: Vec<ArchivedColumn>,
}

/// A column of a table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TableColumn {
    /// Its type, as the database writes it.
    pub declared: String,
    /// What it is in a batch.
    pub field: Field,
    /// The database works it out itself: it is archived, but never written back.
    pub is_generated: bool,
}

/// What a table looks like.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shape {
    /// The engine and its version.
    pub engine: String,
    /// Its name, as the database writes it.
    pub table: String,
    /// Its columns, in their order.
    pub columns: Vec<TableColumn>,
    /// The columns that tell one row from all others.
    pub key: Vec<String>,
}

impl Shape {
    /// Returns a name for what divides rows into files that is no column of the table: readers would take one for the other.
    pub(crate) fn free_name(&self, name: &str) -> String {
        let is_taken = |name: &str| {
            self.columns.iter().any(|column| column.field.name().eq_ignore_ascii_case(name))
        };
        let mut free = name.to_owned();
        while is_taken(&free) {
            free.insert_str(0, "archive_");
        }
        free
    }

    /// Returns what batches of this table have, without [`AT`].
    pub fn schema(&self) -> SchemaRef {
        Arc::new(Schema::new(
            self.columns.iter().map(|column| column.field.clone()).collect::<Vec<_>>(),
        ))
    }

    /// Returns the columns that rows are written to: those of the rows, by name. One that the table lacks is refused.
    pub(crate) fn written(&self, rows: &RecordBatch) -> Result<Vec<&TableColumn>, SourceError> {
        let schema = rows.schema();
        let mut written = Vec::new();
        for field in schema.fields().iter().filter(|field| field.name() != AT) {
            let column = self.columns.iter().find(|column| column.field.name() == field.name());
            let column = column.ok_or_else(|| {
                refused(format!(
                    "table {} has no column {}, which the archived rows have; add it, or restore with --to-file",
                    self.table,
                    field.name()
                ))
            })?;
            if !column.is_generated {
                written.push(column);
            }
        }
        Ok(written)
    }

    /// Returns what batches that are read have.
    pub(crate) fn schema_with_time(&self) -> SchemaRef {
        let columns = self.columns.iter().map(|column| column.field.clone());
        let at = Field::new(AT, DataType::Int64, false);
        Arc::new(Schema::new(columns.chain([at]).collect::<Vec<_>>()))
    }
}

/// A span of time: from the first, before the second, in microseconds since 1970.
pub type Span = (i64, i64);

/// Rows of one UTC day.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DayRows {
    /// Microseconds since 1970 at its beginning.
    pub day: i64,
    /// How many.
    pub rows: u64,
    /// The sum of their times of day, in microseconds: of two sets of rows with one number it tells most.
    pub times: i64,
}

/// Rows from before the year 4000 BC, in microseconds since 1970, have a time that some database could not write.
pub fn earliest() -> i64 {
    days_of(-3999, 1, 1) * DAY_MICROS
}

/// One table of a database.
#[async_trait]
pub trait Table: Send {
    /// Returns what it looks like.
    fn shape(&self) -> &Shape;

    /// Says why its rows must not be deleted, whoever asks for it: what would happen to other tables.
    async fn obstacles(&mut self, cx: &Cx) -> Result<Vec<String>, SourceError>;

    /// Counts the rows from [`earliest`] to before a time, by day, and those whose time cannot be read.
    async fn days(&mut self, cx: &Cx, before: i64) -> Result<(Vec<DayRows>, u64), SourceError>;

    /// Begins to read the rows of these spans in one consistent view, ordered by time and key.
    async fn read(&mut self, cx: &Cx, spans: &[Span]) -> Result<Rows, SourceError>;

    /// Begins a transaction, and returns the rows with these keys as they are now, held until the transaction ends.
    async fn lock(&mut self, cx: &Cx, keys: &RecordBatch) -> Result<RecordBatch, SourceError>;

    /// Deletes the rows with these keys, which are held, and ends the transaction. Exactly so many must have gone, else all
    /// stay.
    async fn delete(&mut self, cx: &Cx, keys: &RecordBatch) -> Result<(), SourceError>;

    /// Inserts rows, letting those be that are there by key, in a transaction that [`Table::end`] ends; [`Table::lock`] may be
    /// asked in between. Returns how many were inserted.
    async fn insert(&mut self, cx: &Cx, rows: &RecordBatch) -> Result<u64, SourceError>;

    /// Makes what was inserted lasting.
    async fn end(&mut self, cx: &Cx) -> Result<(), SourceError>;

    /// Gives the database up, so that the next who opens it finds it free.
    async fn close(self: Box<Self>, _cx: &Cx) -> Result<(), SourceError> {
        Ok(())
    }
}

/// Marks a text column whose texts are values as SQL writes them.
const LITERAL: &str = "backstay.literal";

/// Makes a column whose values are kept as SQL writes them.
pub(crate) fn literal_field(name: &str) -> Field {
    let mark = HashMap::from([(LITERAL.to_owned(), String::new())]);
    Field::new(name, DataType::Utf8, true).with_metadata(mark)
}

/// Says whether the values of a column are kept as SQL writes them.
pub fn is_literal(field: &Field) -> bool {
    *field.data_type() == DataType::Utf8 && field.metadata().contains_key(LITERAL)
}

/// Returns the word for what a column's values are in the files.
pub fn stored_word(field: &Field) -> String {
    if is_literal(field) { "literal".to_owned() } else { field.data_type().to_string() }
}

/// Divides rows into pieces that a statement can insert.
pub(crate) fn pieces(rows: &RecordBatch) -> Vec<RecordBatch> {
    let row_bytes = rows.get_array_memory_size() / rows.num_rows().max(1);
    let length = (STATEMENT_BYTES / row_bytes.max(1)).clamp(1, STATEMENT_ROWS);
    let starts = (0..rows.num_rows()).step_by(length);
    starts.map(|from| rows.slice(from, length.min(rows.num_rows() - from))).collect()
}

/// Something about the table stands against it.
pub(crate) fn refused(finding: String) -> SourceError {
    SourceError::Table { finding }
}

/// Somebody asks for the view of a table whose rows were read, or which is being changed.
pub(crate) fn given_up() -> SourceError {
    refused("the view of the table was given up".to_owned())
}

/// A column holds a value that no type of ours can.
pub(crate) fn cannot_hold(column: &str, finding: impl std::fmt::Display) -> SourceError {
    refused(format!(
        "column {column} holds {finding}; name it in as_text to archive its values as texts"
    ))
}

/// A deletion found other rows than those that are held.
pub(crate) fn not_deleted(gone: u64, held: u64) -> SourceError {
    refused(format!("{gone} rows would have been deleted instead of {held}; nothing was"))
}

/// Chooses the columns that tell one row from all others: of the primary key, else of the first unique index without
/// nulls.
pub(crate) fn choose_key(
    table: &str,
    keys: impl IntoIterator<Item = Vec<String>>,
) -> Result<Vec<String>, SourceError> {
    keys.into_iter().find(|key| !key.is_empty()).ok_or_else(|| {
        refused(format!(
            "table {table} has no primary key and no unique index without nulls, so no row can be told from its copy; add one: ALTER TABLE {table} ADD PRIMARY KEY (…)"
        ))
    })
}
