//! A table of a DuckDB database, for retention archives. Rows pass between DuckDB and us as Parquet files.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow_array::RecordBatch;
use arrow_schema::Field;
use arrow_select::concat::concat_batches;
use async_trait::async_trait;

use super::DuckdbSource;
use super::session::{On, Row, Session, Tool, identifier, literal, number, text};
use crate::cx::Cx;
use crate::source::SourceError;
use crate::source::table::{
    AT, BATCH_ROWS, DAY_MICROS, DayRows, Kept, Rows, Shape, Span, Table, TableColumn, TableSpec,
    bound, choose_key, date_text, day_bound, earliest, next_batch, parquet_schema, read_parquet,
    refused, rows_pipe, send_parquet, write_parquet,
};
use crate::spool::Spool;

/// Types that Parquet files of DuckDB do not keep: their values pass as text.
const ONLY_TEXT: [&str; 11] = [
    "HUGEINT",
    "UHUGEINT",
    "INTERVAL",
    "TIME WITH TIME ZONE",
    "TIMESTAMP_S",
    "TIMESTAMP_MS",
    "TIMESTAMP_NS",
    "TIME_NS",
    "BIT",
    "MAP",
    "BIGNUM",
];
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
            refused(format!("table {} has no column {}", table.shown(), spec.column))
        })?;
        let kept = kept(&spec.column, kind, spec)?;
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
            table: table.shown(),
            columns: columns.collect(),
            key: choose_key(&table.shown(), keys)?,
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
                return Err(refused(format!(
                    "{gone} rows would have been deleted instead of {rows}; nothing was"
                )));
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

fn given_up() -> SourceError {
    refused("the view of the table was given up".to_owned())
}

fn forget(paths: &[PathBuf]) -> Result<(), SourceError> {
    for path in paths {
        std::fs::remove_file(path).map_err(|cause| SourceError::io("remove", path, cause))?;
    }
    Ok(())
}

struct Name {
    schema: String,
    table: String,
}

impl Name {
    fn qualified(&self) -> String {
        format!("{}.{}", identifier(&self.schema), identifier(&self.table))
    }

    fn shown(&self) -> String {
        self.qualified()
    }

    /// Returns a condition for rows of the catalog.
    fn condition(&self) -> String {
        format!(
            "database_name = current_database() AND schema_name = {} AND table_name = {}",
            literal(&self.schema),
            literal(&self.table)
        )
    }
}

async fn find(view: &mut Session, name: &str) -> Result<Name, SourceError> {
    let (schema, table) = match name.split_once('.') {
        Some((schema, table)) => (literal(schema), table),
        None => ("NULL".to_owned(), name),
    };
    let query = format!(
        "SELECT schema_name, table_name FROM duckdb_tables() WHERE NOT internal AND NOT temporary AND database_name = current_database()
         AND ((table_name = {} AND ({schema} IS NULL OR schema_name = {schema})) OR table_name = {})",
        literal(table),
        literal(name)
    );
    let rows = view.ask("look for the table", &query).await?;
    match &rows[..] {
        [one] => Ok(Name { schema: text(one, "schema_name"), table: text(one, "table_name") }),
        [] => Err(refused(format!("the database has no table {name}"))),
        _ => Err(refused(format!("there are several tables {name}; write its schema, too"))),
    }
}

/// Returns the columns of a table with their types.
async fn declared(view: &mut Session, table: &Name) -> Result<Vec<(String, String)>, SourceError> {
    let query = format!(
        "SELECT column_name, data_type FROM duckdb_columns() WHERE {} ORDER BY column_index",
        table.condition()
    );
    let rows = view.ask("read the columns", &query).await?;
    Ok(rows.iter().map(|row| (text(row, "column_name"), text(row, "data_type"))).collect())
}

async fn keys(view: &mut Session, table: &Name) -> Result<Vec<Vec<String>>, SourceError> {
    let query = format!(
        "SELECT constraint_column_names AS names, constraint_type AS kind FROM duckdb_constraints()
         WHERE {} AND constraint_type IN ('PRIMARY KEY', 'UNIQUE', 'NOT NULL') ORDER BY constraint_type",
        table.condition()
    );
    let rows = view.ask("read the keys", &query).await?;
    let names = |row: &Row| -> Vec<String> {
        let names = row.get("names").and_then(serde_json::Value::as_array).into_iter().flatten();
        names.filter_map(|name| name.as_str().map(str::to_owned)).collect()
    };
    let of = |kind: &str| {
        rows.iter().filter(|row| text(row, "kind") == kind).map(names).collect::<Vec<_>>()
    };
    let sure = of("NOT NULL").concat();
    let unique = of("UNIQUE").into_iter().filter(|key| key.iter().all(|name| sure.contains(name)));
    Ok(of("PRIMARY KEY").into_iter().chain(unique).collect())
}

/// Returns the statement that makes a table.
async fn statement_of(view: &mut Session, table: &Name) -> Result<String, SourceError> {
    let query = format!("SELECT sql FROM duckdb_tables() WHERE {}", table.condition());
    let rows = view.ask("read how the table is made", &query).await?;
    Ok(rows.first().map(|row| text(row, "sql")).unwrap_or_default())
}

/// Says whether DuckDB works a column out itself: that stands only in the statement that makes the table.
fn is_generated(made: &str, name: &str, declared: &str) -> bool {
    let names = [identifier(name), name.to_owned()];
    let after = ["(", ", "].iter().flat_map(|before| names.iter().map(move |name| (before, name)));
    let mut beginnings =
        after.map(|(before, name)| format!("{before}{name} {declared} GENERATED ALWAYS AS"));
    beginnings.any(|beginning| made.contains(&beginning))
}

/// Fails if the text of a value, of a column that passes as text, is not that value again.
async fn check_texts(
    view: &mut Session,
    table: &Name,
    declared: &[(String, String)],
    spec: &TableSpec,
) -> Result<(), SourceError> {
    for (name, kind) in declared {
        if has_word(kind, &["UNION", "VARIANT"]) {
            return Err(refused(format!(
                "column {name} is of type {kind}, which nothing but DuckDB can hold; it cannot be archived"
            )));
        }
        if !is_text(name, kind, spec) {
            continue;
        }
        let quoted = identifier(name);
        let query = format!(
            "SELECT count(*) AS rows FROM {} AS t WHERE TRY_CAST(CAST(t.{quoted} AS VARCHAR) AS {kind}) IS DISTINCT FROM t.{quoted}",
            table.qualified()
        );
        let rows = view.ask("look at texts of values", &query).await?;
        let lost = rows.first().map_or(0, |row| number(row, "rows"));
        if lost > 0 {
            return Err(refused(format!(
                "column {name} of type {kind} has {lost} values whose text is not that value again; it cannot be archived"
            )));
        }
    }
    Ok(())
}

/// Says whether one of these types stands in another, wherever that is: `STRUCT(name TYPE, …)`, `TYPE[]`.
fn has_word(declared: &str, words: &[&str]) -> bool {
    let mut found = declared.split(['(', ')', ',', '[', ']']).map(str::trim);
    found.any(|found| {
        words.iter().any(|word| found == *word || found.ends_with(&format!(" {word}")))
    })
}

fn is_text(name: &str, declared: &str, spec: &TableSpec) -> bool {
    spec.as_text.iter().any(|text| text == name) || has_word(declared, &ONLY_TEXT)
}

fn select(name: &str, declared: &str, spec: &TableSpec) -> String {
    let quoted = identifier(name);
    if is_text(name, declared, spec) {
        format!("CAST(t.{quoted} AS VARCHAR) AS {quoted}")
    } else {
        format!("t.{quoted}")
    }
}

fn kept(name: &str, declared: &str, spec: &TableSpec) -> Result<Kept, SourceError> {
    let is_number =
        ["TINYINT", "SMALLINT", "INTEGER", "BIGINT", "UTINYINT", "USMALLINT", "UINTEGER"]
            .contains(&declared);
    match (declared, spec.unit) {
        ("TIMESTAMP", None) => Ok(Kept::Local),
        ("TIMESTAMP WITH TIME ZONE", None) => Ok(Kept::Instant),
        ("DATE", None) => Ok(Kept::Date),
        (_, Some(unit)) if is_number => Ok(Kept::Number(unit)),
        (_, None) if is_number => Err(refused(format!(
            "column {name} is of type {declared}, so say with column_unit whether it counts s, ms or us since 1970"
        ))),
        _ => Err(refused(format!(
            "column {name} is of type {declared}: expected a TIMESTAMP, a TIMESTAMP WITH TIME ZONE, a DATE, or a whole number with column_unit"
        ))),
    }
}
