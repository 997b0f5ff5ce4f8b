//! A table of a SQLite database, for retention archives.
//!
//! SQLite types values, not columns: what a column becomes follows from what its old rows hold. Where that is of several
//! kinds, each value is kept as SQL writes it.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use arrow_array::RecordBatch;
use arrow_schema::Field;
use async_trait::async_trait;
use parquet::errors::ParquetError;
use rusqlite::{Connection, Row};

use super::snapshot::{explain, identifier, open};
use super::table_columns::{columns, declared_columns, has_nulls, keys, references};
use super::table_value::{bound_value, literal_of, value};
use super::{blocking, engine};
use crate::cx::Cx;
use crate::source::SourceError;
use crate::source::table::{
    BATCH_ROWS, Builder, DAY_MICROS, DayRows, Dialect, Kept, Rows, RowsSender, Shape, Span, Table,
    TableSpec, Value, bound, choose_key, earliest, given_up, is_literal, keys_list, not_deleted,
    parquet_writer, refused, rows_pipe, send_blocking, send_parquet,
};
use crate::spool::Spool;

/// A file of ours is gone soon.
const LEVEL: i32 = 1;

/// A table, seen in one read transaction until its rows were read.
pub(super) struct SqliteTable {
    path: PathBuf,
    shape: Arc<Shape>,
    kept: Kept,
    column: String,
    name: String,
    /// Where rows are read; given up before anything is changed, since without a write-ahead log it keeps writers out.
    view: Option<Connection>,
    /// The database has no write-ahead log: whoever reads keeps those out who write.
    keeps_writers_out: bool,
    spool: PathBuf,
    changing: Option<Arc<Mutex<Connection>>>,
}

fn connect(path: &Path) -> Result<Connection, SourceError> {
    let connection = open(path)?;
    let set_up = connection.execute_batch("PRAGMA foreign_keys = ON");
    set_up.map_err(|cause| explain("open", path, cause))?;
    Ok(connection)
}

impl SqliteTable {
    pub(super) fn open(path: &Path, spool: &Path, spec: &TableSpec) -> Result<Self, SourceError> {
        let failed = |cause| explain("read the table of", path, cause);
        let view = connect(path)?;
        let mode: String =
            view.query_row("PRAGMA journal_mode", [], |row| row.get(0)).map_err(failed)?;
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
        if has_nulls(&view, &name, &key).map_err(failed)? {
            return Err(refused(format!(
                "table {name} has rows without a key ({} is null), which cannot be told from each other; give them one",
                key.join(", ")
            )));
        }
        let shape = Shape { engine: engine(), table: name.clone(), columns, key };
        Ok(Self {
            path: path.to_owned(),
            shape: Arc::new(shape),
            kept,
            column,
            name: identifier(&name),
            keeps_writers_out: mode != "wal",
            spool: spool.to_owned(),
            view: Some(view),
            changing: None,
        })
    }

    /// Returns the time of a row in microseconds; null if it cannot be read.
    fn micros(&self) -> String {
        let column = &self.column;
        match self.kept {
            // Only what does not overflow.
            Kept::Number(unit) => format!(
                "CASE WHEN typeof({column}) IN ('integer', 'real') AND {column} BETWEEN -{0} AND {0} THEN CAST({column} * {1} AS INTEGER) END",
                i64::MAX / unit.micros() / 2,
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
        let (micros, within) = (self.micros(), self.within((earliest(), before)));
        let time_of_day = format!("({micros} % {DAY_MICROS} + {DAY_MICROS}) % {DAY_MICROS}");
        let days = format!(
            "SELECT {micros} - {time_of_day} AS day, count(*), sum({time_of_day}) FROM {} WHERE {within} GROUP BY day",
            self.name
        );
        let unreadable = format!(
            "SELECT count(*) FROM {} WHERE {micros} IS NULL OR {micros} < {}",
            self.name,
            earliest()
        );
        let path = self.path.clone();
        let (view, found) = blocking(move || {
            let failed = |cause| explain("count the rows of", &path, cause);
            let mut rows = view.prepare(&days).map_err(failed)?;
            let count = |row: &Row<'_>| {
                let rows = row.get::<_, i64>(1)?.unsigned_abs();
                Ok(DayRows { day: row.get(0)?, rows, times: row.get(2)? })
            };
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
        let spool = if self.keeps_writers_out { Some(Spool::create(&self.spool)?) } else { None };
        // Ends by itself when the reader goes away.
        drop(tokio::task::spawn_blocking(move || {
            let query = (query.as_str(), path.as_path());
            let last = match spool {
                None => {
                    send_rows(&cx, &view, query, &shape, &mut |batch| send_blocking(&sender, batch))
                }
                Some(spool) => send_by_file(&cx, view, query, &shape, (&spool, &sender)),
            };
            drop(sender.blocking_send(last.map(|()| None)));
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
                return Err(not_deleted(gone as u64, rows as u64));
            }
            connection.execute_batch("COMMIT").map_err(failed)
        })
        .await
    }

    async fn insert(&mut self, _cx: &Cx, rows: &RecordBatch) -> Result<u64, SourceError> {
        let columns = self.shape.written(rows)?;
        let names: Vec<String> =
            columns.iter().map(|column| identifier(column.field.name())).collect();
        // Only a key that is there already lets a row be; anything else that is wrong with it is an error.
        let insert = format!(
            "INSERT INTO {} ({}) VALUES ({}) ON CONFLICT ({}) DO NOTHING",
            self.name,
            names.join(", "),
            vec!["?"; names.len()].join(", "),
            self.key_names()
        );
        let arrays = columns.iter().filter_map(|column| {
            let name = column.field.name();
            let field = rows.schema_ref().field_with_name(name).ok()?.clone();
            Some((field, rows.column_by_name(name)?.clone()))
        });
        let (arrays, count): (Vec<_>, usize) = (arrays.collect(), rows.num_rows());
        let path = self.path.clone();
        self.change(move |connection| {
            let failed = |cause| explain("insert rows into", &path, cause);
            let mut statement = connection.prepare(&insert).map_err(failed)?;
            let mut inserted = 0;
            for row in 0..count {
                let values = arrays.iter().map(|(field, array)| bound_value(field, array, row));
                let values: Vec<rusqlite::types::Value> = values.collect::<Result<_, _>>()?;
                let done = statement.execute(rusqlite::params_from_iter(values));
                inserted += done.map_err(failed)? as u64;
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

/// Reads all rows, and gives them to somebody in batches.
fn send_rows(
    cx: &Cx,
    view: &Connection,
    (query, path): (&str, &Path),
    shape: &Shape,
    take: &mut dyn FnMut(RecordBatch) -> Result<(), SourceError>,
) -> Result<(), SourceError> {
    let mut builder = Builder::new(shape.schema_with_time())?;
    each_row(view, (query, path), shape, &mut builder, &mut |builder| {
        if !builder.is_full() {
            return Ok(());
        }
        cx.check()?;
        take(builder.batch()?)
    })?;
    take(builder.batch()?)
}

/// Reads all rows into a file of ours first: as long as they are read, nobody can write to the database, and a storage is
/// slow.
fn send_by_file(
    cx: &Cx,
    view: Connection,
    query: (&str, &Path),
    shape: &Shape,
    (spool, sender): (&Spool, &RowsSender),
) -> Result<(), SourceError> {
    let path = spool.path().join("rows.parquet");
    let bad = |error: ParquetError| {
        refused(format!("rows cannot be written to {}: {error}", path.display()))
    };
    let file = File::create_new(&path).map_err(|cause| SourceError::io("write", &path, cause))?;
    let mut parquet = parquet_writer(&shape.schema_with_time(), LEVEL, file).map_err(bad)?;
    send_rows(cx, &view, query, shape, &mut |batch| parquet.write(&batch).map_err(bad))?;
    parquet.close().map_err(bad)?;
    drop(view);
    send_parquet(&path, BATCH_ROWS, sender)
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
    let columns: Vec<(&Field, bool)> =
        shape.columns.iter().map(|column| (&column.field, is_literal(&column.field))).collect();
    // Texts that are made here are lent to the values of their row.
    let mut literals = vec![None; columns.len()];
    while let Some(row) = rows.next().map_err(failed)? {
        for (i, (field, _)) in columns.iter().enumerate().filter(|(_, (_, is_literal))| *is_literal)
        {
            literals[i] = literal_of(&row.get_ref(i).map_err(failed)?, field.name())?;
        }
        let values = columns.iter().enumerate().map(|(i, (field, _))| match &literals[i] {
            Some(text) => Ok(Value::Text(text)),
            None => value(row.get_ref(i).map_err(failed)?, field),
        });
        let at = row.get::<_, Option<i64>>(columns.len()).map_err(failed)?;
        builder.push(values.chain([Ok(Value::Int(at.unwrap_or(i64::MAX)))]))?;
        after(builder)?;
    }
    Ok(())
}
