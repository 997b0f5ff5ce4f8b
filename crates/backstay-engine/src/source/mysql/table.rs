//! A table of a MySQL or MariaDB database, for retention archives.

use std::collections::HashSet;
use std::sync::Arc;

use arrow_array::RecordBatch;
use async_trait::async_trait;
use mysql_async::prelude::Queryable as _;
use mysql_async::{Conn, Row};

use super::connection::MysqlConnection as _;
use super::describe::{rows, text};
use super::error::statement;
use super::names::{identifier, literal, qualified};
use super::table_value::{Kind, parameter, value};
use crate::cx::Cx;
use crate::source::SourceError;
use crate::source::connection::Connection;
use crate::source::table::{
    DAY_MICROS, DayRows, Dialect, Gathering, Kept, Rows, RowsSender, Shape, Span, Table,
    TableColumn, TableSpec, bound, cannot_hold, choose_key, date_text, day_bound, earliest,
    given_up, key_conditions, not_deleted, only, pieces, refused, rows_pipe, time_text,
};

/// A table, seen in one snapshot until its rows were read.
pub(super) struct MysqlTable {
    connection: Connection,
    shape: Arc<Shape>,
    kinds: Arc<Vec<Kind>>,
    kept: Kept,
    column: String,
    keeps_transactions: bool,
    names: (String, String),
    view: Option<Conn>,
    changing: Option<Conn>,
    is_in_transaction: bool,
}

impl MysqlTable {
    pub(super) async fn open(
        cx: &Cx,
        connection: &Connection,
        spec: &TableSpec,
    ) -> Result<Self, SourceError> {
        let mut view = connection.session(cx).await?;
        let begin = "SET SESSION TRANSACTION ISOLATION LEVEL REPEATABLE READ; START TRANSACTION WITH CONSISTENT SNAPSHOT, READ ONLY";
        for begin in begin.split("; ") {
            view.query_drop(begin).await.map_err(statement("begin to read"))?;
        }
        let version = super::describe::version(&mut view).await?;
        let found = format!(
            "SELECT TABLE_NAME, ENGINE FROM information_schema.TABLES WHERE TABLE_SCHEMA = {} AND TABLE_NAME = {} AND TABLE_TYPE LIKE '%BASE TABLE'",
            literal(&connection.database),
            literal(&spec.table)
        );
        let found = rows(&mut view, &found, "look for the table").await?;
        let found = found.first().ok_or_else(|| {
            refused(format!("database {} has no table {}", connection.database, spec.table))
        })?;
        let (table, engine) = (text(found, 0), text(found, 1));
        let names = (connection.database.clone(), table.clone());
        let (columns, kinds): (Vec<TableColumn>, Vec<Kind>) =
            columns(&mut view, &names, spec).await?.into_iter().unzip();
        let time = columns.iter().position(|column| *column.field.name() == spec.column);
        let time =
            time.ok_or_else(|| refused(format!("table {table} has no column {}", spec.column)))?;
        let times = "a timestamp, a datetime, a date";
        let kept = kinds[time].as_time().kept(&columns[time].declared, times, spec)?;
        let keys = keys(&mut view, &names).await?.into_iter().filter(|key| {
            // What is written of a fraction is not what the server compares it with.
            let is_fraction = |name: &String| {
                let found =
                    columns.iter().zip(&kinds).find(|(column, _)| column.field.name() == name);
                found.is_some_and(|(_, kind)| *kind == Kind::Float)
            };
            !key.iter().any(is_fraction)
        });
        let key = choose_key(&table, keys)?;
        let shape =
            Shape { engine: version.engine(), table: qualified(&names.0, &names.1), columns, key };
        Ok(Self {
            connection: connection.clone(),
            shape: Arc::new(shape),
            kinds: Arc::new(kinds),
            kept,
            column: identifier(&spec.column),
            keeps_transactions: engine.eq_ignore_ascii_case("innodb"),
            names,
            view: Some(view),
            changing: None,
            is_in_transaction: false,
        })
    }

    /// Returns the time of a row in microseconds; null for a date that is none.
    fn micros(&self) -> String {
        let column = &self.column;
        match self.kept {
            // Only what does not overflow.
            Kept::Number(unit) => format!(
                "(CASE WHEN {column} BETWEEN -{0} AND {0} THEN CAST({column} AS SIGNED) * {1} END)",
                i64::MAX / unit.micros() / 2,
                unit.micros()
            ),
            _ => format!("TIMESTAMPDIFF(MICROSECOND, '1970-01-01 00:00:00', {column})"),
        }
    }

    fn within(&self, (from, before): Span) -> String {
        let column = &self.column;
        let from = self.bound(from).map(|from| format!("{column} >= {from} AND "));
        let before = self.bound(before).unwrap_or_else(|| "NULL".to_owned());
        format!(
            "({}{column} < {before} AND {} IS NOT NULL)",
            from.unwrap_or_default(),
            self.micros()
        )
    }

    /// Writes a time as the column's type has it; nothing for one before all that it can have.
    fn bound(&self, micros: i64) -> Option<String> {
        let dated = |(text, is_bc): (String, bool)| (!is_bc).then(|| format!("'{text}'"));
        match self.kept {
            Kept::Number(unit) => Some(bound(micros, unit).to_string()),
            Kept::Date => dated(date_text(day_bound(micros))),
            _ => dated(time_text(micros)),
        }
    }

    fn select(&self, tail: &str) -> String {
        let columns = self.shape.columns.iter().zip(self.kinds.iter()).map(|(column, kind)| {
            let name = identifier(column.field.name());
            match kind {
                Kind::Cast => format!("CAST({name} AS CHAR)"),
                Kind::Bits => format!("CAST({name} + 0 AS UNSIGNED)"),
                Kind::Uuid => format!("UNHEX(REPLACE(CAST({name} AS CHAR), '-', ''))"),
                _ => name,
            }
        });
        let columns = columns.collect::<Vec<_>>().join(", ");
        format!("SELECT {columns}, {} FROM {} {tail}", self.micros(), self.shape.table)
    }

    fn key_names(&self) -> String {
        self.shape.key.iter().map(|key| identifier(key)).collect::<Vec<_>>().join(", ")
    }

    /// Writes the keys as conditions: comparing rows with lists of rows, these servers miss some where numbers are beyond 63
    /// bits.
    fn keys(&self, rows: &RecordBatch) -> Result<Vec<String>, SourceError> {
        key_conditions(Dialect::Mysql, rows, &self.shape.columns, &self.shape.key, identifier)
    }

    fn with_keys(&self, keys: &RecordBatch) -> Result<String, SourceError> {
        Ok(format!("WHERE {}", self.keys(keys)?.join(" OR ")))
    }

    async fn begin(&mut self, cx: &Cx) -> Result<(), SourceError> {
        self.view = None;
        if self.changing.is_none() {
            self.changing = Some(self.connection.session(cx).await?);
        }
        if !self.is_in_transaction {
            // A value that does not fit is an error, never a shorter one; a date that is none may be put back.
            let strict = "SET SESSION sql_mode = 'NO_AUTO_VALUE_ON_ZERO,STRICT_ALL_TABLES,ALLOW_INVALID_DATES'";
            self.run("set up a session", strict).await?;
            self.run("begin a transaction", "START TRANSACTION").await?;
            self.is_in_transaction = true;
        }
        Ok(())
    }

    fn changing(&mut self) -> Result<&mut Conn, SourceError> {
        self.changing.as_mut().ok_or_else(|| refused("no transaction was begun".to_owned()))
    }

    /// Executes a statement; returns how many rows it changed.
    async fn run(&mut self, action: &'static str, query: &str) -> Result<u64, SourceError> {
        let session = self.changing()?;
        session.query_drop(query).await.map_err(statement(action))?;
        Ok(session.affected_rows())
    }

    async fn commit(&mut self) -> Result<(), SourceError> {
        self.is_in_transaction = false;
        self.run("make the changes lasting", "COMMIT").await.map(drop)
    }

    /// Leaves the rows whose keys are not in the table, by the server's own comparison. `INSERT IGNORE` would let go of more
    /// than these.
    async fn missing(&mut self, cx: &Cx, rows: &RecordBatch) -> Result<RecordBatch, SourceError> {
        let table = &self.shape.table;
        let keys = self.keys(rows)?;
        let asked = keys.iter().enumerate();
        let asked = asked.map(|(i, key)| format!("SELECT {i} FROM {table} WHERE {key}"));
        let query = asked.collect::<Vec<_>>().join(" UNION ALL ");
        let there: Result<Vec<usize>, _> = cx.run(self.changing()?.query(query)).await?;
        let there: HashSet<usize> =
            there.map_err(statement("look for rows"))?.into_iter().collect();
        only(rows, (0..rows.num_rows()).map(|row| !there.contains(&row)).collect())
    }
}

#[async_trait]
impl Table for MysqlTable {
    fn shape(&self) -> &Shape {
        &self.shape
    }

    async fn obstacles(&mut self, _cx: &Cx) -> Result<Vec<String>, SourceError> {
        let mut found = Vec::new();
        if !self.keeps_transactions {
            found.push("the table knows no transactions, so that a row could be changed between a look at it and its deletion".to_owned());
        }
        let (database, table) = &self.names;
        let query = format!(
            "SELECT CONSTRAINT_NAME, TABLE_NAME, DELETE_RULE FROM information_schema.REFERENTIAL_CONSTRAINTS
             WHERE UNIQUE_CONSTRAINT_SCHEMA = {} AND REFERENCED_TABLE_NAME = {} AND DELETE_RULE NOT IN ('RESTRICT', 'NO ACTION')",
            literal(database),
            literal(table)
        );
        let Some(view) = self.view.as_mut() else { return Err(given_up()) };
        for row in rows(view, &query, "look for references").await? {
            found.push(format!(
                "the foreign key {} changes rows of {} with them (ON DELETE {})",
                text(&row, 0),
                text(&row, 1),
                text(&row, 2)
            ));
        }
        Ok(found)
    }

    async fn days(&mut self, cx: &Cx, before: i64) -> Result<(Vec<DayRows>, u64), SourceError> {
        let (micros, within) = (self.micros(), self.within((earliest(), before)));
        let table = &self.shape.table;
        let day = format!("CAST(FLOOR({micros} / {DAY_MICROS}) * {DAY_MICROS} AS SIGNED)");
        let days = format!(
            "SELECT {day}, COUNT(*), CAST(SUM({micros} - {day}) AS SIGNED) FROM {table} WHERE {within} GROUP BY 1"
        );
        let is_early = match self.kept {
            Kept::Number(_) => format!(" OR {micros} IS NULL OR {micros} < {}", earliest()),
            _ => format!(" OR {micros} IS NULL"),
        };
        let unreadable =
            format!("SELECT COUNT(*) FROM {table} WHERE {} IS NULL{is_early}", self.column);
        let Some(view) = self.view.as_mut() else { return Err(given_up()) };
        let found: Result<Vec<(i64, u64, i64)>, _> = cx.run(view.query(days)).await?;
        let found = found.map_err(statement("count rows"))?;
        let unreadable: Result<Option<u64>, _> = cx.run(view.query_first(unreadable)).await?;
        let unreadable = unreadable.map_err(statement("count rows"))?;
        let days = found.into_iter().map(|(day, rows, times)| DayRows { day, rows, times });
        Ok((days.collect(), unreadable.unwrap_or(0)))
    }

    async fn read(&mut self, _cx: &Cx, spans: &[Span]) -> Result<Rows, SourceError> {
        let Some(mut view) = self.view.take() else { return Err(given_up()) };
        let within: Vec<String> = spans.iter().map(|span| self.within(*span)).collect();
        let order = format!("ORDER BY {}, {}", self.column, self.key_names());
        let query = self.select(&format!("WHERE {} {order}", within.join(" OR ")));
        let (sender, rows) = rows_pipe();
        let (shape, kinds) = (self.shape.clone(), self.kinds.clone());
        // Ends by itself when the reader goes away.
        drop(tokio::spawn(async move {
            let last =
                read_rows(&mut view, query, (&shape, &kinds), Some(&sender)).await.map(|_| None);
            drop(sender.send(last).await);
        }));
        Ok(rows)
    }

    async fn lock(&mut self, cx: &Cx, keys: &RecordBatch) -> Result<RecordBatch, SourceError> {
        self.begin(cx).await?;
        let query = self.select(&format!("{} FOR UPDATE", self.with_keys(keys)?));
        let (shape, kinds) = (self.shape.clone(), self.kinds.clone());
        cx.run(read_rows(self.changing()?, query, (&shape, &kinds), None)).await?
    }

    async fn delete(&mut self, cx: &Cx, keys: &RecordBatch) -> Result<(), SourceError> {
        let rows = keys.num_rows() as u64;
        if rows > 0 {
            let delete = format!("DELETE FROM {} {}", self.shape.table, self.with_keys(keys)?);
            let gone = cx.run(self.run("delete archived rows", &delete)).await??;
            if gone != rows {
                self.is_in_transaction = false;
                self.run("take the deletion back", "ROLLBACK").await?;
                return Err(not_deleted(gone, rows));
            }
        }
        self.commit().await
    }

    async fn insert(&mut self, cx: &Cx, rows: &RecordBatch) -> Result<u64, SourceError> {
        self.begin(cx).await?;
        let shape = self.shape.clone();
        let columns = shape.written(rows)?;
        let names: Vec<String> =
            columns.iter().map(|column| identifier(column.field.name())).collect();
        let mut inserted = 0;
        for piece in pieces(rows) {
            let missing = self.missing(cx, &piece).await?;
            if missing.num_rows() == 0 {
                continue;
            }
            let row = format!("({})", vec!["?"; names.len()].join(", "));
            let rows = vec![row; missing.num_rows()].join(", ");
            let insert =
                format!("INSERT INTO {} ({}) VALUES {rows}", shape.table, names.join(", "));
            // As parameters: what is large is sent in pieces, whatever the server takes at once.
            let mut values = Vec::with_capacity(missing.num_rows() * names.len());
            for row in 0..missing.num_rows() {
                for column in &columns {
                    values.push(parameter(&missing, column, row)?);
                }
            }
            let session = self.changing()?;
            let done = cx.run(session.exec_drop(insert, values)).await?;
            done.map_err(statement("insert rows"))?;
            inserted += session.affected_rows();
        }
        Ok(inserted)
    }

    async fn end(&mut self, cx: &Cx) -> Result<(), SourceError> {
        self.begin(cx).await?;
        self.commit().await
    }
}

async fn columns(
    view: &mut Conn,
    (database, table): &(String, String),
    spec: &TableSpec,
) -> Result<Vec<(TableColumn, Kind)>, SourceError> {
    let query = format!(
        "SELECT COLUMN_NAME, DATA_TYPE, COLUMN_TYPE, COALESCE(NUMERIC_PRECISION, 0), COALESCE(NUMERIC_SCALE, 0), COALESCE(GENERATION_EXPRESSION, '') <> ''
         FROM information_schema.COLUMNS WHERE TABLE_SCHEMA = {} AND TABLE_NAME = {} ORDER BY ORDINAL_POSITION",
        literal(database),
        literal(table)
    );
    let rows = rows(view, &query, "read the columns").await?;
    let column = |row: &Row| {
        let (name, declared) = (text(row, 0), text(row, 2));
        let number = |column| text(row, column).parse().unwrap_or(0);
        let kind = Kind::of(&text(row, 1), &declared, (number(3), number(4)));
        let kind = match (kind, spec.as_text.contains(&name)) {
            (Some(Kind::Bytes | Kind::Bits | Kind::Float), true) | (None, _) => {
                return Err(refused(format!(
                    "column {name} is of type {declared}, whose text is not its value; it cannot be archived so"
                )));
            }
            (Some(_), true) => Kind::Cast,
            (Some(kind), false) => kind,
        };
        Ok((
            TableColumn { declared, field: kind.field(&name), is_generated: text(row, 5) == "1" },
            kind,
        ))
    };
    rows.iter().map(column).collect()
}

/// Returns the keys that a table has, the primary one first.
async fn keys(
    view: &mut Conn,
    (database, table): &(String, String),
) -> Result<Vec<Vec<String>>, SourceError> {
    let query = format!(
        "SELECT INDEX_NAME, COLUMN_NAME, NULLABLE, SUB_PART FROM information_schema.STATISTICS
         WHERE TABLE_SCHEMA = {} AND TABLE_NAME = {} AND NON_UNIQUE = 0 ORDER BY INDEX_NAME <> 'PRIMARY', INDEX_NAME, SEQ_IN_INDEX",
        literal(database),
        literal(table)
    );
    let mut keys: Vec<(String, Vec<String>, bool)> = Vec::new();
    for row in rows(view, &query, "read the keys").await? {
        let index = text(&row, 0);
        // Part of a column is not enough to find a row by.
        let is_sure =
            text(&row, 2) != "YES" && text(&row, 3).is_empty() && !text(&row, 1).is_empty();
        match keys.last_mut() {
            Some((last, columns, all_sure)) if *last == index => {
                columns.push(text(&row, 1));
                *all_sure &= is_sure;
            }
            _ => keys.push((index, vec![text(&row, 1)], is_sure)),
        }
    }
    Ok(keys.into_iter().filter(|(_, _, is_sure)| *is_sure).map(|(_, columns, _)| columns).collect())
}

/// Reads the rows of a query; in batches to somebody, or all at once.
async fn read_rows(
    session: &mut Conn,
    query: String,
    (shape, kinds): (&Shape, &[Kind]),
    sender: Option<&RowsSender>,
) -> Result<RecordBatch, SourceError> {
    let mut gathering = Gathering::new(shape, sender)?;
    // By the protocol of prepared statements: values come as what they are, and not as texts.
    let mut found = session.exec_iter(query, ()).await.map_err(statement("read rows"))?;
    while let Some(row) = found.next().await.map_err(statement("read rows"))? {
        let of = |i: usize, kind: Kind, name: &str| {
            let found = row.as_ref(i).unwrap_or(&mysql_async::Value::NULL);
            value(kind, found).map_err(|finding| cannot_hold(name, finding))
        };
        let values = shape.columns.iter().zip(kinds).enumerate();
        let values = values.map(|(i, (column, kind))| of(i, *kind, column.field.name()));
        gathering.push(values.chain([of(kinds.len(), Kind::Int, "")]))?;
        gathering.send_if_full().await?;
    }
    found.drop_result().await.map_err(statement("read rows"))?;
    gathering.finish().await
}
