//! A table of a PostgreSQL database, for retention archives.

use std::sync::Arc;

use arrow_array::RecordBatch;
use async_trait::async_trait;
use futures_util::{TryStreamExt as _, pin_mut};
use tokio_postgres::Client;
use tokio_postgres::binary_copy::BinaryCopyOutStream;
use tokio_postgres::types::Type;

use super::capture;
use super::connection::PostgresConnection as _;
use super::describe;
use super::error::statement;
use super::globals::identifier;
use super::table_value::{Kind, value};
use crate::cx::Cx;
use crate::source::SourceError;
use crate::source::connection::Connection;
use crate::source::table::{
    DAY_MICROS, DayRows, Dialect, Gathering, Kept, Rows, RowsSender, Shape, Span, Table,
    TableColumn, TableSpec, Value, bound, cannot_hold, choose_key, date_text, day_bound, earliest,
    given_up, keys_list, not_deleted, pieces, refused, rows_list, rows_pipe, time_text,
};

/// Texts mean the same in every session; no statement waits for ever for somebody else; rows that a policy hides are an error, not a gap.
const SETUP: &str = "SET search_path = pg_catalog; SET TimeZone = 'UTC'; SET DateStyle = 'ISO, YMD'; SET IntervalStyle = 'postgres';
    SET extra_float_digits = 1; SET bytea_output = 'hex'; SET row_security = off; SET standard_conforming_strings = on; SET statement_timeout = 0; SET lock_timeout = '30s'";

/// A table, seen in one snapshot until its rows were read.
pub(super) struct PostgresTable {
    connection: Connection,
    shape: Arc<Shape>,
    kinds: Arc<Vec<Kind>>,
    kept: Kept,
    /// Its own rows, as SQL writes them: those of tables that inherit from it are not; they have more columns.
    rows: String,
    /// The column of the time, as SQL writes it.
    column: String,
    view: Option<Client>,
    changing: Option<Client>,
    is_in_transaction: bool,
}

async fn session(cx: &Cx, connection: &Connection) -> Result<Client, SourceError> {
    let client = connection.connect(cx).await?;
    client.batch_execute(SETUP).await.map_err(statement("set up a session"))?;
    Ok(client)
}

impl PostgresTable {
    pub(super) async fn open(
        cx: &Cx,
        connection: &Connection,
        spec: &TableSpec,
    ) -> Result<Self, SourceError> {
        let view = session(cx, connection).await?;
        let begun = view.batch_execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY").await;
        begun.map_err(statement("begin to read"))?;
        let engine = capture::engine(&describe::version(&view).await?);
        let (oid, table, has_partitions) = find(&view, &spec.table).await?;
        let (columns, kinds): (Vec<TableColumn>, Vec<Kind>) =
            columns(&view, oid, spec).await?.into_iter().unzip();
        let time = columns.iter().position(|column| *column.field.name() == spec.column);
        let time =
            time.ok_or_else(|| refused(format!("table {table} has no column {}", spec.column)))?;
        let times = "a timestamp, a date";
        let kept = kinds[time].as_time().kept(&columns[time].declared, times, spec)?;
        let key = choose_key(&table, keys(&view, oid).await?)?;
        let rows = if has_partitions { table.clone() } else { format!("ONLY {table}") };
        Ok(Self {
            connection: connection.clone(),
            rows,
            shape: Arc::new(Shape { engine, table, columns, key }),
            kinds: Arc::new(kinds),
            kept,
            column: format!("t.{}", identifier(&spec.column)),
            view: Some(view),
            changing: None,
            is_in_transaction: false,
        })
    }

    /// Returns the time of a row in microseconds.
    fn micros(&self) -> String {
        let column = &self.column;
        match self.kept {
            Kept::Number(unit) => format!("({column}::numeric * {})::bigint", unit.micros()),
            _ => format!("(extract(epoch FROM {column}) * 1000000)::bigint"),
        }
    }

    /// Returns a condition for the rows of a span that an index on the column can answer.
    fn within(&self, (from, before): Span) -> String {
        let column = &self.column;
        let (from, before) = (self.bound(from), self.bound(before));
        let finite = match self.kept {
            Kept::Number(_) => String::new(),
            _ => format!(" AND isfinite({column})"),
        };
        match from {
            Some(from) => format!(
                "({column} >= {from} AND {column} < {}{finite})",
                before.unwrap_or_default()
            ),
            None => format!("({column} < {}{finite})", before.unwrap_or_default()),
        }
    }

    /// Writes a time as the column's type has it; nothing for the beginning of time.
    fn bound(&self, micros: i64) -> Option<String> {
        if micros == i64::MIN {
            return None;
        }
        let dated =
            |(text, is_bc): (String, bool)| format!("{text}{}", if is_bc { " BC" } else { "" });
        Some(match self.kept {
            Kept::Number(unit) => format!("{}", bound(micros, unit)),
            Kept::Date => format!("'{}'::date", dated(date_text(day_bound(micros)))),
            Kept::Instant => {
                let (text, is_bc) = time_text(micros);
                format!("'{}'::timestamptz", dated((text + "+00", is_bc)))
            }
            Kept::Local | Kept::Text => format!("'{}'::timestamp", dated(time_text(micros))),
        })
    }

    fn select(&self, tail: &str) -> String {
        let columns = self.shape.columns.iter().zip(self.kinds.iter()).map(|(column, kind)| {
            let name = identifier(column.field.name());
            match kind {
                Kind::Text { is_cast: true } => format!("t.{name}::text"),
                _ => format!("t.{name}"),
            }
        });
        let columns = columns.collect::<Vec<_>>().join(", ");
        let micros = self.micros();
        format!(
            "COPY (SELECT {columns}, {micros} FROM {} AS t {tail}) TO STDOUT (FORMAT binary)",
            self.rows
        )
    }

    /// Returns a join with the rows that have these keys.
    fn with_keys(&self, keys: &RecordBatch) -> Result<(String, String), SourceError> {
        let list = keys_list(Dialect::Postgres, keys, &self.shape.columns, &self.shape.key)?;
        let names: Vec<String> = (0..self.shape.key.len()).map(|i| format!("k{i}")).collect();
        let equal = self.shape.key.iter().zip(&names);
        let equal: Vec<String> =
            equal.map(|(key, name)| format!("t.{} = k.{name}", identifier(key))).collect();
        Ok((format!("(VALUES {list}) AS k({})", names.join(", ")), equal.join(" AND ")))
    }

    async fn begin(&mut self, cx: &Cx) -> Result<(), SourceError> {
        self.view = None;
        if self.changing.is_none() {
            self.changing = Some(session(cx, &self.connection).await?);
        }
        if !self.is_in_transaction {
            self.run("begin a transaction", "BEGIN").await?;
            self.is_in_transaction = true;
        }
        self.find_names(NamesIn::Catalog).await
    }

    /// Says where names without a schema are looked for from here on in the transaction.
    async fn find_names(&self, place: NamesIn) -> Result<(), SourceError> {
        let place = match place {
            NamesIn::Catalog => "pg_catalog",
            NamesIn::TheAppsSchemas => "DEFAULT",
        };
        self.run("set up a session", &format!("SET LOCAL search_path TO {place}")).await
    }

    fn changing(&self) -> Result<&Client, SourceError> {
        self.changing.as_ref().ok_or_else(|| refused("no transaction was begun".to_owned()))
    }

    async fn run(&self, action: &'static str, text: &str) -> Result<(), SourceError> {
        Ok(self.changing()?.batch_execute(text).await.map_err(statement(action))?)
    }

    async fn commit(&mut self) -> Result<(), SourceError> {
        self.is_in_transaction = false;
        // What is archived may be gone only if that lasts.
        self.run("make the changes lasting", "SET LOCAL synchronous_commit = on; COMMIT").await
    }
}

#[async_trait]
impl Table for PostgresTable {
    fn shape(&self) -> &Shape {
        &self.shape
    }

    async fn obstacles(&mut self, _cx: &Cx) -> Result<Vec<String>, SourceError> {
        let Some(view) = &self.view else { return Err(given_up()) };
        let rows = view
            .query(
                "WITH own AS (SELECT $1::text::regclass AS oid UNION SELECT relid FROM pg_partition_tree($1::text::regclass))
                 SELECT 'the foreign key ' || conname || ' changes rows of ' || conrelid::regclass || ' with them'
                   FROM pg_constraint WHERE contype = 'f' AND confrelid IN (SELECT oid FROM own) AND confdeltype NOT IN ('a', 'r')
                 UNION ALL SELECT 'the rule ' || rulename || ' does something else with them' FROM pg_rewrite WHERE ev_type = '4' AND ev_class IN (SELECT oid FROM own)",
                &[&self.shape.table],
            )
            .await
            .map_err(statement("look for what deleting would do"))?;
        Ok(rows.iter().map(|row| row.get(0)).collect())
    }

    async fn days(&mut self, cx: &Cx, before: i64) -> Result<(Vec<DayRows>, u64), SourceError> {
        let Some(view) = &self.view else { return Err(given_up()) };
        let (micros, within) = (self.micros(), self.within((earliest(), before)));
        let rows = &self.rows;
        let day = format!("floor({micros} / {DAY_MICROS}.0)::bigint * {DAY_MICROS}");
        let days = format!(
            "SELECT {day}, count(*), sum({micros} - {day})::bigint FROM {rows} AS t WHERE {within} GROUP BY 1"
        );
        let infinite = match self.kept {
            Kept::Number(_) => String::new(),
            _ => format!(" OR NOT isfinite({})", self.column),
        };
        let unreadable = format!(
            "SELECT count(*) FROM {rows} AS t WHERE {} IS NULL{infinite} OR {}",
            self.column,
            self.within((i64::MIN, earliest()))
        );
        let counted = async {
            let days = view.query(&days, &[]).await?;
            Ok((days, view.query_one(&unreadable, &[]).await?))
        };
        let (days, unreadable) = cx.run(counted).await?.map_err(statement("count rows"))?;
        let days = days.iter().map(|row| DayRows {
            day: row.get(0),
            rows: row.get::<_, i64>(1).unsigned_abs(),
            times: row.get(2),
        });
        Ok((days.collect(), unreadable.get::<_, i64>(0).unsigned_abs()))
    }

    async fn read(&mut self, _cx: &Cx, spans: &[Span]) -> Result<Rows, SourceError> {
        let Some(view) = self.view.take() else { return Err(given_up()) };
        let within: Vec<String> = spans.iter().map(|span| self.within(*span)).collect();
        let key: Vec<String> =
            self.shape.key.iter().map(|key| format!("t.{}", identifier(key))).collect();
        let order = format!("ORDER BY {}, {}", self.column, key.join(", "));
        let query = self.select(&format!("WHERE {} {order}", within.join(" OR ")));
        let (sender, rows) = rows_pipe();
        let (shape, kinds) = (self.shape.clone(), self.kinds.clone());
        // Ends by itself when the reader goes away.
        drop(tokio::spawn(async move {
            let last = copy_out(&view, &query, (&shape, &kinds), Some(&sender)).await.map(|_| None);
            drop(sender.send(last).await);
        }));
        Ok(rows)
    }

    async fn lock(&mut self, cx: &Cx, keys: &RecordBatch) -> Result<RecordBatch, SourceError> {
        self.begin(cx).await?;
        let (list, equal) = self.with_keys(keys)?;
        // Held and read by one statement: a row that comes in between two could change before it is deleted.
        let query = self.select(&format!("JOIN {list} ON {equal} FOR UPDATE OF t"));
        cx.run(copy_out(self.changing()?, &query, (&self.shape, &self.kinds), None)).await?
    }

    async fn delete(&mut self, cx: &Cx, keys: &RecordBatch) -> Result<(), SourceError> {
        let rows = keys.num_rows() as u64;
        if rows > 0 {
            self.find_names(NamesIn::TheAppsSchemas).await?;
            let (list, equal) = self.with_keys(keys)?;
            let delete = format!("DELETE FROM {} AS t USING {list} WHERE {equal}", self.rows);
            let gone = cx.run(self.changing()?.execute(&delete, &[])).await?;
            let gone = gone.map_err(statement("delete archived rows"))?;
            if gone != rows {
                // The session ends with this value, and the transaction with it.
                return Err(not_deleted(gone, rows));
            }
        }
        self.commit().await
    }

    async fn insert(&mut self, cx: &Cx, rows: &RecordBatch) -> Result<u64, SourceError> {
        self.begin(cx).await?;
        let columns = self.shape.written(rows)?;
        let names: Vec<String> =
            columns.iter().map(|column| identifier(column.field.name())).collect();
        let key: Vec<String> = self.shape.key.iter().map(|key| identifier(key)).collect();
        self.find_names(NamesIn::TheAppsSchemas).await?;
        let mut inserted = 0;
        for piece in pieces(rows) {
            let list = rows_list(Dialect::Postgres, &piece, &columns)?;
            // Identity columns get back what they had. Only a key that is there already lets a row be.
            let insert = format!(
                "INSERT INTO {} ({}) OVERRIDING SYSTEM VALUE VALUES {list} ON CONFLICT ({}) DO NOTHING",
                self.shape.table,
                names.join(", "),
                key.join(", ")
            );
            let done = cx.run(self.changing()?.execute(&insert, &[])).await?;
            inserted += done.map_err(statement("insert rows"))?;
        }
        Ok(inserted)
    }

    async fn end(&mut self, cx: &Cx) -> Result<(), SourceError> {
        self.begin(cx).await?;
        self.commit().await
    }
}

/// Where names without a schema are looked for.
enum NamesIn {
    /// Texts of values are the same in every session.
    Catalog,
    /// Triggers of the app's find what they mean.
    TheAppsSchemas,
}

/// Finds a table by its name as SQL writes it, or as it is.
async fn find(view: &Client, name: &str) -> Result<(u32, String, bool), SourceError> {
    let (schema, table) = match name.split_once('.') {
        Some((schema, table)) => (Some(schema), table),
        None => (None, name),
    };
    let rows = view
        .query(
            "SELECT c.oid, format('%I.%I', n.nspname, c.relname), c.relkind::text FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
             WHERE c.relkind IN ('r', 'p') AND n.nspname NOT LIKE 'pg\\_%' AND n.nspname <> 'information_schema'
               AND ((c.relname = $1 AND ($2::text IS NULL OR n.nspname = $2)) OR c.relname = $3)
             ORDER BY n.nspname <> 'public', n.nspname",
            &[&table, &schema, &name],
        )
        .await
        .map_err(statement("look for the table"))?;
    match &rows[..] {
        [one] => Ok((one.get(0), one.get(1), one.get::<_, String>(2) == "p")),
        [] => Err(refused(format!("the database has no table {name}"))),
        [first, second, ..] => Err(refused(format!(
            "there are several tables {name}, such as {} and {}; write its schema, too",
            first.get::<_, String>(1),
            second.get::<_, String>(1)
        ))),
    }
}

async fn columns(
    view: &Client,
    table: u32,
    spec: &TableSpec,
) -> Result<Vec<(TableColumn, Kind)>, SourceError> {
    let rows = view
        .query(
            "SELECT a.attname::text, format_type(a.atttypid, a.atttypmod), a.attgenerated <> '',
                    CASE coalesce(b.typnamespace, t.typnamespace) WHEN 'pg_catalog'::regnamespace THEN coalesce(b.typname, t.typname)::text ELSE '' END, CASE WHEN b.oid IS NULL THEN a.atttypmod ELSE t.typtypmod END,
                    CASE e.typnamespace WHEN 'pg_catalog'::regnamespace THEN e.typname::text END
             FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid
             LEFT JOIN pg_type b ON t.typtype = 'd' AND b.oid = t.typbasetype
             LEFT JOIN pg_type e ON e.oid = coalesce(b.typelem, t.typelem) AND coalesce(b.typcategory, t.typcategory) = 'A'
             WHERE a.attrelid = $1 AND a.attnum > 0 AND NOT a.attisdropped ORDER BY a.attnum",
            &[&table],
        )
        .await
        .map_err(statement("read the columns"))?;
    let column = |row: &tokio_postgres::Row| {
        let (name, declared): (String, String) = (row.get(0), row.get(1));
        let element: Option<String> = row.get(5);
        let kind = match spec.as_text.contains(&name) {
            true => Kind::Text { is_cast: true },
            false => Kind::of(row.get(3), element.as_deref(), row.get(4)),
        };
        let field = kind.field(&name);
        (TableColumn { declared, field, is_generated: row.get(2) }, kind)
    };
    Ok(rows.iter().map(column).collect())
}

/// Returns the keys that a table has, the primary one first.
async fn keys(view: &Client, table: u32) -> Result<Vec<Vec<String>>, SourceError> {
    let rows = view
        .query(
            "SELECT array_agg(a.attname::text ORDER BY k.n) FROM pg_index i
             CROSS JOIN LATERAL unnest(i.indkey::int2[]) WITH ORDINALITY AS k(attnum, n)
             JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k.attnum
             WHERE i.indrelid = $1 AND i.indisunique AND i.indisvalid AND i.indimmediate AND i.indpred IS NULL AND i.indexprs IS NULL AND k.n <= i.indnkeyatts
             GROUP BY i.indexrelid, i.indisprimary HAVING bool_and(a.attnotnull AND (i.indcollation::oid[])[k.n - 1] IN (0, a.attcollation)) ORDER BY NOT i.indisprimary, i.indexrelid",
            &[&table],
        )
        .await
        .map_err(statement("read the keys"))?;
    Ok(rows.iter().map(|row| row.get(0)).collect())
}

/// Reads what a COPY gives; in batches to somebody, or all at once.
async fn copy_out(
    client: &Client,
    query: &str,
    (shape, kinds): (&Shape, &[Kind]),
    sender: Option<&RowsSender>,
) -> Result<RecordBatch, SourceError> {
    let mut gathering = Gathering::new(shape, sender)?;
    let stream = client.copy_out(query).await.map_err(statement("read rows"))?;
    // Of every value just its bytes: what they mean is known better here.
    let types = vec![Type::BYTEA; kinds.len() + 1];
    let rows = BinaryCopyOutStream::new(stream, &types);
    pin_mut!(rows);
    while let Some(row) = rows.try_next().await.map_err(statement("read rows"))? {
        let of = |i: usize, kind: &Kind, name: &str| {
            let bytes: Result<Option<&[u8]>, _> = row.try_get(i);
            let Some(bytes) = bytes.map_err(statement("read rows"))? else {
                return Ok(Value::Null);
            };
            value(kind, bytes).map_err(|finding| cannot_hold(name, finding))
        };
        let values = shape.columns.iter().zip(kinds).enumerate();
        let values = values.map(|(i, (column, kind))| of(i, kind, column.field.name()));
        gathering.push(values.chain([of(kinds.len(), &Kind::Int(8), "")]))?;
        gathering.send_if_full().await?;
    }
    gathering.finish().await
}
