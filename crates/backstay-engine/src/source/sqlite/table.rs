//! A table of a SQLite database, for retention archives.
//!
//! SQLite types values, not columns: what a column becomes follows from what its old rows hold. Where that is of several
//! kinds, each value is kept as SQL writes it.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arrow_array::RecordBatch;
use arrow_schema::{DataType, Field};
use async_trait::async_trait;
use rusqlite::config::DbConfig;
use rusqlite::types::ValueRef;
use rusqlite::{Connection, OpenFlags, Row};

use super::snapshot::explain;
use super::table_columns::{columns, declared_columns, keys, references};
use super::{blocking, engine};
use crate::cx::Cx;
use crate::source::SourceError;
use crate::source::table::{
    Builder, DayRows, Dialect, Kept, Rows, RowsSender, Shape, Span, Table, TableSpec, Value, bound,
    choose_key, is_literal, keys_list, pieces, refused, rows_list, rows_pipe, sql_literal,
};

/// How long an app may keep the database to itself before we give way.
const BUSY: Duration = Duration::from_secs(30);
const DAY_MICROS: i64 = 86_400_000_000;

/// A table, seen in one read transaction until its rows were read.
pub(super) struct SqliteTable {
    path: PathBuf,
    shape: Arc<Shape>,
    kept: Kept,
    column: String,
    name: String,
    /// Where rows are read; given up before anything is changed, since without a write-ahead log it keeps writers out.
    view: Option<Connection>,
    changing: Option<Arc<Mutex<Connection>>>,
}

pub(super) fn identifier(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

fn connect(path: &Path) -> Result<Connection, SourceError> {
    let failed = |cause| explain("open", path, cause);
    // Not created if missing, and no URI: names with '?' or '%' are names.
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags).map_err(failed)?;
    connection.busy_timeout(BUSY).map_err(failed)?;
    // The app's WAL is the app's to checkpoint.
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true).map_err(failed)?;
    connection.execute_batch("PRAGMA foreign_keys = ON").map_err(failed)?;
    Ok(connection)
}

impl SqliteTable {
    pub(super) fn open(path: &Path, spec: &TableSpec) -> Result<Self, SourceError> {
        let failed = |cause| explain("read the table of", path, cause);
        let view = connect(path)?;
        view.execute_batch("BEGIN").map_err(failed)?;
        let found = view.query_row(
            "SELECT name FROM sqlite_schema WHERE type = 'table' AND name = ?1 COLLATE NOCASE",
            [&spec.table],
            |row| row.get::<_, String>(0),
        );
        let name = match found {
            Err(rusqlite::Error::QueryReturnedNoRows) => {
                return Err(refused(format!("{} has no table {}", path.display(), spec.table)));
            }
            name => name.map_err(failed)?,
        };
        let declared = declared_columns(&view, &name).map_err(failed)?;
        let time = declared.iter().find(|column| column.name.eq_ignore_ascii_case(&spec.column));
        let time =
            time.ok_or_else(|| refused(format!("table {name} has no column {}", spec.column)))?;
        let kept = spec.unit.map_or(Kept::Text, Kept::Number);
        let column = identifier(&time.name);
        let keys = keys(&view, &name, &declared).map_err(failed)?;
        let columns = columns(&view, &name, &declared, spec).map_err(failed)?;
        let key = choose_key(&name, keys)?;
        let shape = Shape { engine: engine(), table: name.clone(), columns, key };
        Ok(Self {
            path: path.to_owned(),
            shape: Arc::new(shape),
            kept,
            column,
            name: identifier(&name),
            view: Some(view),
            changing: None,
        })
    }

    /// Returns the time of a row in microseconds; null if it cannot be read.
    fn micros(&self) -> String {
        let column = &self.column;
        match self.kept {
            Kept::Number(unit) => format!(
                "CASE WHEN typeof({column}) IN ('integer', 'real') THEN CAST({column} * {} AS INTEGER) END",
                unit.micros()
            ),
            // Only what begins with a date: SQLite would take `now` and plain numbers, too.
            _ => format!(
                "CASE WHEN typeof({column}) = 'text' AND {column} GLOB '[0-9][0-9][0-9][0-9]-[0-9][0-9]-[0-9][0-9]*'
                 THEN CAST(round(unixepoch({column}, 'subsec') * 1000) AS INTEGER) * 1000 END"
            ),
        }
    }

    /// Returns a condition for the rows of a span, first in a form that an index on the column can answer.
    fn within(&self, (from, before): Span) -> String {
        let (column, micros) = (&self.column, self.micros());
        let exact = format!("{micros} >= {from} AND {micros} < {before}");
        match self.kept {
            Kept::Number(unit) => format!("({column} < {} AND {exact})", bound(before, unit)),
            _ => format!("({exact})"),
        }
    }

    fn select(&self, tail: &str) -> String {
        let columns = self.shape.columns.iter().map(|column| identifier(column.field.name()));
        let columns = columns.collect::<Vec<_>>().join(", ");
        format!("SELECT {columns}, {} FROM {} {tail}", self.micros(), self.name)
    }

    fn key_names(&self) -> String {
        self.shape.key.iter().map(|key| identifier(key)).collect::<Vec<_>>().join(", ")
    }

    fn keys_condition(&self, keys: &RecordBatch) -> Result<String, SourceError> {
        let list = keys_list(Dialect::Sqlite, keys, &self.shape.columns, &self.shape.key)?;
        let names = self.key_names();
        Ok(format!("WHERE ({names}) IN (VALUES {list})"))
    }

    /// Returns where changes are made, in a transaction that is begun if there is none.
    fn changing(&mut self) -> Result<Arc<Mutex<Connection>>, SourceError> {
        self.view = None;
        if let Some(connection) = &self.changing {
            return Ok(connection.clone());
        }
        let connection = Arc::new(Mutex::new(connect(&self.path)?));
        self.changing = Some(connection.clone());
        Ok(connection)
    }

    async fn change<T: Send + 'static>(
        &mut self,
        work: impl FnOnce(&Connection) -> Result<T, SourceError> + Send + 'static,
    ) -> Result<T, SourceError> {
        let connection = self.changing()?;
        blocking(move || {
            let connection = connection.lock().unwrap_or_else(PoisonError::into_inner);
            if connection.is_autocommit() {
                let begun = connection.execute_batch("BEGIN IMMEDIATE");
                begun.map_err(|cause| {
                    explain("change", Path::new(connection.path().unwrap_or_default()), cause)
                })?;
            }
            let done = work(&connection);
            if done.is_err() && !connection.is_autocommit() {
                // What led here is worth more.
                drop(connection.execute_batch("ROLLBACK"));
            }
            done
        })
        .await
    }
}

#[async_trait]
impl Table for SqliteTable {
    fn shape(&self) -> &Shape {
        &self.shape
    }

    async fn obstacles(&mut self, _cx: &Cx) -> Result<Vec<String>, SourceError> {
        let Some(view) = self.view.take() else { return Err(given_up()) };
        let (table, path) = (self.shape.table.clone(), self.path.clone());
        let (view, found) = blocking(move || {
            let found = references(&view, &table)
                .map_err(|cause| explain("look for references in", &path, cause))?;
            Ok((view, found))
        })
        .await?;
        self.view = Some(view);
        Ok(found)
    }

    async fn days(&mut self, _cx: &Cx, before: i64) -> Result<(Vec<DayRows>, u64), SourceError> {
        let Some(view) = self.view.take() else { return Err(given_up()) };
        let (micros, within) = (self.micros(), self.within((i64::MIN, before)));
        let days = format!(
            "SELECT ({micros} - ({micros} % {DAY_MICROS} + {DAY_MICROS}) % {DAY_MICROS}) AS day, count(*) FROM {} WHERE {within} GROUP BY day",
            self.name
        );
        let unreadable = format!("SELECT count(*) FROM {} WHERE {micros} IS NULL", self.name);
        let path = self.path.clone();
        let (view, found) = blocking(move || {
            let failed = |cause| explain("count the rows of", &path, cause);
            let mut rows = view.prepare(&days).map_err(failed)?;
            let count = |row: &Row<'_>| Ok((row.get(0)?, row.get::<_, i64>(1)?.unsigned_abs()));
            let found =
                rows.query_map([], count).and_then(Iterator::collect::<Result<Vec<DayRows>, _>>);
            let found = found.map_err(failed)?;
            drop(rows);
            let unreadable = view.query_row(&unreadable, [], |row| row.get::<_, i64>(0));
            Ok((view, (found, unreadable.map_err(failed)?.unsigned_abs())))
        })
        .await?;
        self.view = Some(view);
        Ok(found)
    }

    async fn read(&mut self, cx: &Cx, spans: &[Span]) -> Result<Rows, SourceError> {
        let Some(view) = self.view.take() else { return Err(given_up()) };
        let within: Vec<String> = spans.iter().map(|span| self.within(*span)).collect();
        let order = format!("ORDER BY {}, {}", self.micros(), self.key_names());
        let query = self.select(&format!("WHERE {} {order}", within.join(" OR ")));
        let (sender, rows) = rows_pipe();
        let (cx, path, shape) = (cx.clone(), self.path.clone(), self.shape.clone());
        // Ends by itself when the reader goes away.
        drop(tokio::task::spawn_blocking(move || {
            let last = send_rows(&cx, &view, (&query, &path), &shape, &sender).map(|()| None);
            drop(view);
            drop(sender.blocking_send(last));
        }));
        Ok(rows)
    }

    async fn lock(&mut self, _cx: &Cx, keys: &RecordBatch) -> Result<RecordBatch, SourceError> {
        let query = self.select(&self.keys_condition(keys)?);
        let (shape, path) = (self.shape.clone(), self.path.clone());
        self.change(move |connection| {
            let mut builder = Builder::new(shape.schema_with_time())?;
            each_row(connection, (&query, &path), &shape, &mut builder, &mut |_| Ok(()))?;
            builder.batch()
        })
        .await
    }

    async fn delete(&mut self, _cx: &Cx, keys: &RecordBatch) -> Result<(), SourceError> {
        let rows = keys.num_rows();
        let statement = match rows {
            0 => None,
            _ => Some(format!("DELETE FROM {} {}", self.name, self.keys_condition(keys)?)),
        };
        let path = self.path.clone();
        self.change(move |connection| {
            let failed = |cause| explain("delete archived rows of", &path, cause);
            let gone = statement.map_or(Ok(0), |statement| connection.execute(&statement, []));
            let gone = gone.map_err(failed)?;
            if gone != rows {
                return Err(refused(format!(
                    "{gone} rows would have been deleted instead of {rows}; nothing was"
                )));
            }
            connection.execute_batch("COMMIT").map_err(failed)
        })
        .await
    }

    async fn insert(&mut self, _cx: &Cx, rows: &RecordBatch) -> Result<u64, SourceError> {
        let columns = self.shape.written(rows)?;
        let names: Vec<String> =
            columns.iter().map(|column| identifier(column.field.name())).collect();
        let mut statements = Vec::new();
        for piece in pieces(rows) {
            let list = rows_list(Dialect::Sqlite, &piece, &columns)?;
            // Only a key that is there already lets a row be; anything else that is wrong with it is an error.
            statements.push(format!(
                "INSERT INTO {} ({}) VALUES {list} ON CONFLICT ({}) DO NOTHING",
                self.name,
                names.join(", "),
                self.key_names()
            ));
        }
        let path = self.path.clone();
        self.change(move |connection| {
            let mut inserted = 0;
            for statement in statements {
                let done = connection.execute(&statement, []);
                inserted += done.map_err(|cause| explain("insert rows into", &path, cause))? as u64;
            }
            Ok(inserted)
        })
        .await
    }

    async fn end(&mut self, _cx: &Cx) -> Result<(), SourceError> {
        let path = self.path.clone();
        self.change(move |connection| {
            connection.execute_batch("COMMIT").map_err(|cause| explain("write to", &path, cause))
        })
        .await
    }
}

fn given_up() -> SourceError {
    refused("the view of the table was given up".to_owned())
}

fn send_rows(
    cx: &Cx,
    view: &Connection,
    (query, path): (&str, &Path),
    shape: &Shape,
    sender: &RowsSender,
) -> Result<(), SourceError> {
    let mut builder = Builder::new(shape.schema_with_time())?;
    let send = |builder: &mut Builder| {
        cx.check()?;
        let sent = sender.blocking_send(Ok(Some(builder.batch()?)));
        sent.map_err(|_| refused("nobody reads the rows any more".to_owned()))
    };
    each_row(view, (query, path), shape, &mut builder, &mut |builder| {
        if builder.is_full() { send(builder) } else { Ok(()) }
    })?;
    send(&mut builder)
}

/// Reads rows into a builder, and lets somebody look after each.
fn each_row(
    connection: &Connection,
    (query, path): (&str, &Path),
    shape: &Shape,
    builder: &mut Builder,
    after: &mut dyn FnMut(&mut Builder) -> Result<(), SourceError>,
) -> Result<(), SourceError> {
    let failed = |cause| explain("read the rows of", path, cause);
    let mut statement = connection.prepare(query).map_err(failed)?;
    let mut rows = statement.query([]).map_err(failed)?;
    while let Some(row) = rows.next().map_err(failed)? {
        let literals: Vec<Option<String>> = shape
            .columns
            .iter()
            .enumerate()
            .map(|(i, column)| {
                if is_literal(&column.field) {
                    literal_of(&row.get_ref(i).map_err(failed)?, column.field.name())
                } else {
                    Ok(None)
                }
            })
            .collect::<Result<_, _>>()?;
        let values = shape.columns.iter().enumerate().map(|(i, column)| match &literals[i] {
            Some(text) => Ok(Value::Text(text)),
            None => value(row.get_ref(i).map_err(failed)?, &column.field),
        });
        let at = row.get::<_, Option<i64>>(shape.columns.len()).map_err(failed)?;
        builder.push(values.chain([Ok(Value::Int(at.unwrap_or(i64::MAX)))]))?;
        after(builder)?;
    }
    Ok(())
}

fn value<'a>(value: ValueRef<'a>, field: &Field) -> Result<Value<'a>, SourceError> {
    Ok(match (value, field.data_type()) {
        (ValueRef::Null, _) => Value::Null,
        (ValueRef::Integer(number), DataType::Float64) => {
            #[expect(clippy::cast_precision_loss, reason = "compared right after")]
            let double = number as f64;
            #[expect(clippy::cast_possible_truncation, reason = "that is the question")]
            let is_same = double as i64 == number;
            if !is_same {
                return Err(refused(format!(
                    "column {} holds {number}, which is too long for a fraction",
                    field.name()
                )));
            }
            Value::Double(double)
        }
        (ValueRef::Integer(number), _) => Value::Int(number),
        (ValueRef::Real(number), _) => Value::Double(number),
        (ValueRef::Text(bytes), _) => Value::Text(text(bytes, field.name())?),
        (ValueRef::Blob(bytes), _) => Value::Bytes(bytes),
    })
}

fn text<'a>(bytes: &'a [u8], column: &str) -> Result<&'a str, SourceError> {
    std::str::from_utf8(bytes).map_err(|_| {
        refused(format!(
            "column {column} holds a text that is not UTF-8; make it a blob: CAST({column} AS BLOB)"
        ))
    })
}

/// Returns a value as SQL writes it.
fn literal_of(value: &ValueRef<'_>, column: &str) -> Result<Option<String>, SourceError> {
    Ok(match value {
        ValueRef::Null => None,
        ValueRef::Integer(number) => Some(number.to_string()),
        ValueRef::Real(number) => Some(sql_literal(&Value::Double(*number))),
        ValueRef::Text(bytes) => Some(sql_literal(&Value::Text(text(bytes, column)?))),
        ValueRef::Blob(bytes) => Some(sql_literal(&Value::Bytes(bytes))),
    })
}
