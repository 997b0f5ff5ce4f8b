//! A table of a DuckDB database, for retention archives. Rows pass between DuckDB and us as Parquet files.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow_array::RecordBatch;
use arrow_schema::Field;
use arrow_select::concat::concat_batches;
use async_trait::async_trait;

use super::DuckdbSource;
use super::session::{On, Row, Session, Tool, identifier, literal, number};
use super::table_columns::{
    as_time, check_texts, declared, find, is_generated, keys, select, statement_of,
};
use crate::cx::Cx;
use crate::source::SourceError;
use crate::source::table::{
    AT, BATCH_ROWS, DAY_MICROS, DayRows, Kept, Rows, Shape, Span, Table, TableColumn, TableSpec,
    bound, choose_key, date_text, day_bound, earliest, given_up, next_batch, not_deleted,
    parquet_schema, read_parquet, refused, rows_pipe, send_parquet, write_parquet,
};
use crate::spool::Spool;

/// Files between us and DuckDB are gone at once.
const LEVEL: i32 = 1;

/// A table; DuckDB's command line has the database open from the first question on.
pub(super) struct DuckdbTable {
    path: PathBuf,
    tool: Tool,
    shape: Arc<Shape>,
    kept: Kept,
    column: String,
    /// What each column is read as.
    selected: Vec<String>,
    view: Option<Session>,
    changing: Option<Session>,
    is_in_transaction: bool,
    spool: Arc<Spool>,
    files: u32,
}

impl DuckdbTable {
    pub(super) async fn open(
        cx: &Cx,
        source: &DuckdbSource,
        tool: Tool,
        spec: &TableSpec,
    ) -> Result<Self, SourceError> {
        let spool = Arc::new(Spool::create(&source.spool)?);
        let mut view = cx.run(tool.open(On::Reading(&source.path), spool.path())).await??;
        let table = find(&mut view, &spec.table).await?;
        let declared = declared(&mut view, &table).await?;
        let time = declared.iter().find(|(name, _)| *name == spec.column);
        let (_, kind) = time.ok_or_else(|| {
            refused(format!("table {} has no column {}", table.qualified(), spec.column))
        })?;
        let times = "a TIMESTAMP, a TIMESTAMP WITH TIME ZONE, a DATE";
        let kept = as_time(kind).kept(kind, times, spec)?;
        check_texts(&mut view, &table, &declared, spec).await?;
        let selected: Vec<String> =
            declared.iter().map(|(name, kind)| select(name, kind, spec)).collect();
        // What its files have says best what they have.
        let probe = spool.path().join("columns.parquet");
        let columns = selected.join(", ");
        let copy = format!(
            "COPY (SELECT {columns} FROM {} AS t LIMIT 0) TO {} (FORMAT parquet)",
            table.qualified(),
            literal(&probe.to_string_lossy())
        );
        cx.run(view.ask("read the columns", &copy)).await??;
        let schema = parquet_schema(&probe)?;
        let made = statement_of(&mut view, &table).await?;
        let columns =
            schema.fields().iter().zip(&declared).map(|(field, (name, declared))| TableColumn {
                declared: declared.clone(),
                field: Field::clone(field),
                is_generated: is_generated(&made, name, declared),
            });
        let keys = keys(&mut view, &table).await?;
        let shape = Shape {
            engine: tool.engine(),
            table: table.qualified(),
            columns: columns.collect(),
            key: choose_key(&table.qualified(), keys)?,
        };
        Ok(Self {
            path: source.path.clone(),
            tool,
            shape: Arc::new(shape),
            kept,
            column: format!("t.{}", identifier(&spec.column)),
            selected,
            view: Some(view),
            changing: None,
            is_in_transaction: false,
            spool,
            files: 0,
        })
    }

    fn micros(&self) -> String {
        let column = &self.column;
        match self.kept {
            Kept::Number(unit) => format!("CAST({column} AS BIGINT) * {}", unit.micros()),
            Kept::Date => format!("epoch_us(CAST({column} AS TIMESTAMP))"),
            _ => format!("epoch_us({column})"),
        }
    }

    fn within(&self, (from, before): Span) -> String {
        let column = &self.column;
        let at = |micros: i64| {
            let dated = |(text, is_bc): (String, bool)| {
                format!("'{text}{}'", if is_bc { " (BC)" } else { "" })
            };
            match self.kept {
                Kept::Number(unit) => bound(micros, unit).to_string(),
                Kept::Date => format!("DATE {}", dated(date_text(day_bound(micros)))),
                Kept::Instant => format!("make_timestamptz({micros})"),
                Kept::Local | Kept::Text => format!("make_timestamp({micros})"),
            }
        };
        let finite = if let Kept::Number(_) = self.kept {
            String::new()
        } else {
            format!(" AND isfinite({column})")
        };
        let from =
            if from == i64::MIN { String::new() } else { format!("{column} >= {} AND ", at(from)) };
        format!("({from}{column} < {}{finite})", at(before))
    }

    /// Returns a path that nothing lies at.
    fn file(&mut self) -> PathBuf {
        self.files += 1;
        self.spool.path().join(format!("{}.parquet", self.files))
    }

    fn copy(&self, tail: &str, to: &Path) -> String {
        format!(
            "COPY (SELECT {}, {} AS {} FROM {} AS t {tail}) TO {} (FORMAT parquet, COMPRESSION zstd)",
            self.selected.join(", "),
            self.micros(),
            identifier(AT),
            self.shape.table,
            literal(&to.to_string_lossy())
        )
    }

    /// Writes rows for DuckDB to read. Returns how it calls them.
    fn give(&mut self, rows: &RecordBatch) -> Result<(String, PathBuf), SourceError> {
        let path = self.file();
        let file = std::fs::File::create_new(&path)
            .map_err(|cause| SourceError::io("write", &path, cause))?;
        write_parquet(&rows.schema(), LEVEL, std::slice::from_ref(rows), file)
            .map_err(|error| refused(format!("rows cannot be written for DuckDB: {error}")))?;
        Ok((format!("read_parquet({})", literal(&path.to_string_lossy())), path))
    }

    /// Returns a condition that a row has the key of one of those that DuckDB was given.
    fn equal(&self) -> String {
        let equal = self.shape.key.iter().map(|key| {
            let name = identifier(key);
            format!("t.{name} = CAST(k.{name} AS {})", self.declared(key))
        });
        equal.collect::<Vec<_>>().join(" AND ")
    }

    fn declared(&self, name: &str) -> &str {
        let column = self.shape.columns.iter().find(|column| column.field.name() == name);
        column.map_or("VARCHAR", |column| column.declared.as_str())
    }

    async fn begin(&mut self, cx: &Cx) -> Result<(), SourceError> {
        if let Some(view) = self.view.take() {
            cx.run(view.close()).await??;
        }
        if self.changing.is_none() {
            let session =
                cx.run(self.tool.open(On::Changing(&self.path), self.spool.path())).await??;
            self.changing = Some(session);
        }
        if !self.is_in_transaction {
            self.ask(cx, "begin a transaction", "BEGIN").await?;
            self.is_in_transaction = true;
        }
        Ok(())
    }

    /// Executes statements; returns how many rows they gave.
    async fn ask(
        &mut self,
        cx: &Cx,
        action: &'static str,
        statements: &str,
    ) -> Result<usize, SourceError> {
        let session =
            self.changing.as_mut().ok_or_else(|| refused("no transaction was begun".to_owned()))?;
        Ok(cx.run(session.ask(action, statements)).await??.len())
    }

    async fn commit(&mut self, cx: &Cx) -> Result<(), SourceError> {
        self.is_in_transaction = false;
        self.ask(cx, "make the changes lasting", "COMMIT").await.map(drop)
    }
}

#[async_trait]
impl Table for DuckdbTable {
    fn shape(&self) -> &Shape {
        &self.shape
    }

    /// DuckDB knows no references that change other tables.
    async fn obstacles(&mut self, _cx: &Cx) -> Result<Vec<String>, SourceError> {
        Ok(Vec::new())
    }

    async fn days(&mut self, cx: &Cx, before: i64) -> Result<(Vec<DayRows>, u64), SourceError> {
        let (micros, within) = (self.micros(), self.within((earliest(), before)));
        let table = &self.shape.table;
        let infinite = match self.kept {
            Kept::Number(_) => String::new(),
            _ => format!(" OR NOT isfinite({})", self.column),
        };
        let day = format!("CAST(floor(({micros}) / {DAY_MICROS}.0) AS BIGINT) * {DAY_MICROS}");
        let days = format!(
            "SELECT {day} AS day, count(*) AS rows, CAST(sum({micros} - {day}) AS BIGINT) AS times FROM {table} AS t WHERE {within} GROUP BY 1"
        );
        let unreadable = format!(
            "SELECT count(*) AS rows FROM {table} AS t WHERE {} IS NULL{infinite} OR {}",
            self.column,
            self.within((i64::MIN, earliest()))
        );
        let Some(view) = self.view.as_mut() else { return Err(given_up()) };
        let rows = cx.run(view.ask("count rows", &days)).await??;
        let whole =
            |row: &Row, name: &str| row.get(name).and_then(serde_json::Value::as_i64).unwrap_or(0);
        let days = rows.iter().map(|row| DayRows {
            day: whole(row, "day"),
            rows: number(row, "rows"),
            times: whole(row, "times"),
        });
        let days = days.collect();
        let unreadable = cx.run(view.ask("count rows", &unreadable)).await??;
        Ok((days, unreadable.first().map_or(0, |row| number(row, "rows"))))
    }

    async fn read(&mut self, cx: &Cx, spans: &[Span]) -> Result<Rows, SourceError> {
        let Some(mut view) = self.view.take() else { return Err(given_up()) };
        let within: Vec<String> = spans.iter().map(|span| self.within(*span)).collect();
        let key: Vec<String> =
            self.shape.key.iter().map(|key| format!("t.{}", identifier(key))).collect();
        let path = self.file();
        let order = format!("ORDER BY {}, {}", self.column, key.join(", "));
        let copy = self.copy(&format!("WHERE {} {order}", within.join(" OR ")), &path);
        cx.run(view.ask("read rows", &copy)).await??;
        cx.run(view.close()).await??;
        let (sender, rows) = rows_pipe();
        let spool = self.spool.clone();
        // Ends by itself when the reader goes away; the file stays until then.
        drop(tokio::task::spawn_blocking(move || {
            let last = send_parquet(&path, BATCH_ROWS, &sender).map(|()| None);
            drop(spool);
            drop(sender.blocking_send(last));
        }));
        Ok(rows)
    }

    async fn lock(&mut self, cx: &Cx, keys: &RecordBatch) -> Result<RecordBatch, SourceError> {
        self.begin(cx).await?;
        let (given, given_path) = self.give(keys)?;
        let path = self.file();
        let copy = self.copy(&format!("SEMI JOIN {given} AS k ON {}", self.equal()), &path);
        self.ask(cx, "read rows", &copy).await?;
        let mut rows = read_parquet(&path, BATCH_ROWS);
        let mut batches = Vec::new();
        while let Some(batch) = next_batch(cx, &mut rows).await? {
            batches.push(batch);
        }
        let schema = parquet_schema(&path)?;
        forget(&[given_path, path])?;
        concat_batches(&schema, &batches).map_err(|error| refused(error.to_string()))
    }

    async fn delete(&mut self, cx: &Cx, keys: &RecordBatch) -> Result<(), SourceError> {
        let rows = keys.num_rows();
        if rows > 0 {
            let (given, given_path) = self.give(keys)?;
            let delete = format!(
                "DELETE FROM {} AS t USING {given} AS k WHERE {} RETURNING 1",
                self.shape.table,
                self.equal()
            );
            let gone = self.ask(cx, "delete archived rows", &delete).await?;
            forget(&[given_path])?;
            if gone != rows {
                self.is_in_transaction = false;
                self.ask(cx, "take the deletion back", "ROLLBACK").await?;
                return Err(not_deleted(gone as u64, rows as u64));
            }
        }
        self.commit(cx).await
    }

    async fn insert(&mut self, cx: &Cx, rows: &RecordBatch) -> Result<u64, SourceError> {
        self.begin(cx).await?;
        let names = self.shape.written(rows)?;
        let names: Vec<String> = names.iter().map(|column| column.field.name().clone()).collect();
        let (given, given_path) = self.give(rows)?;
        let columns: Vec<String> = names.iter().map(|name| identifier(name)).collect();
        let values: Vec<String> = names
            .iter()
            .map(|name| format!("CAST({} AS {})", identifier(name), self.declared(name)))
            .collect();
        let key: Vec<String> = self.shape.key.iter().map(|key| identifier(key)).collect();
        let insert = format!(
            "INSERT INTO {} ({}) SELECT {} FROM {given} ON CONFLICT ({}) DO NOTHING RETURNING 1",
            self.shape.table,
            columns.join(", "),
            values.join(", "),
            key.join(", ")
        );
        let inserted = self.ask(cx, "insert rows", &insert).await?;
        forget(&[given_path])?;
        Ok(inserted as u64)
    }

    async fn end(&mut self, cx: &Cx) -> Result<(), SourceError> {
        self.begin(cx).await?;
        self.commit(cx).await
    }

    async fn close(self: Box<Self>, cx: &Cx) -> Result<(), SourceError> {
        for session in [self.view, self.changing].into_iter().flatten() {
            cx.run(session.close()).await??;
        }
        Ok(())
    }
}

fn forget(paths: &[PathBuf]) -> Result<(), SourceError> {
    for path in paths {
        std::fs::remove_file(path).map_err(|cause| SourceError::io("remove", path, cause))?;
    }
    Ok(())
}
