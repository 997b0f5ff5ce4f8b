//! What DuckDB's catalog says of a table: where it is, its columns, its keys.

use super::session::{Row, Session, identifier, literal, number, text};
use crate::source::SourceError;
use crate::source::table::{Kept, TableSpec, TimeColumn, refused};

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
/// Where a table is.
pub(super) struct Name {
    schema: String,
    table: String,
}

impl Name {
    /// Returns it as SQL writes it.
    pub(super) fn qualified(&self) -> String {
        format!("{}.{}", identifier(&self.schema), identifier(&self.table))
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

pub(super) async fn find(view: &mut Session, name: &str) -> Result<Name, SourceError> {
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
pub(super) async fn declared(
    view: &mut Session,
    table: &Name,
) -> Result<Vec<(String, String)>, SourceError> {
    let query = format!(
        "SELECT column_name, data_type FROM duckdb_columns() WHERE {} ORDER BY column_index",
        table.condition()
    );
    let rows = view.ask("read the columns", &query).await?;
    Ok(rows.iter().map(|row| (text(row, "column_name"), text(row, "data_type"))).collect())
}

pub(super) async fn keys(
    view: &mut Session,
    table: &Name,
) -> Result<Vec<Vec<String>>, SourceError> {
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
pub(super) async fn statement_of(view: &mut Session, table: &Name) -> Result<String, SourceError> {
    let query = format!("SELECT sql FROM duckdb_tables() WHERE {}", table.condition());
    let rows = view.ask("read how the table is made", &query).await?;
    Ok(rows.first().map(|row| text(row, "sql")).unwrap_or_default())
}

/// Says whether DuckDB works a column out itself: that stands only in the statement that makes the table.
pub(super) fn is_generated(made: &str, name: &str, declared: &str) -> bool {
    let names = [identifier(name), name.to_owned()];
    let after = ["(", ", "].iter().flat_map(|before| names.iter().map(move |name| (before, name)));
    let mut beginnings =
        after.map(|(before, name)| format!("{before}{name} {declared} GENERATED ALWAYS AS"));
    beginnings.any(|beginning| made.contains(&beginning))
}

/// Fails if the text of a value, of a column that passes as text, is not that value again.
pub(super) async fn check_texts(
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

/// Writes what a column is read as.
pub(super) fn select(name: &str, declared: &str, spec: &TableSpec) -> String {
    let quoted = identifier(name);
    if is_text(name, declared, spec) {
        format!("CAST(t.{quoted} AS VARCHAR) AS {quoted}")
    } else {
        format!("t.{quoted}")
    }
}

/// Returns what a type is to somebody who looks for a time.
pub(super) fn as_time(declared: &str) -> TimeColumn {
    match declared {
        "TIMESTAMP" => TimeColumn::Time(Kept::Local),
        "TIMESTAMP WITH TIME ZONE" => TimeColumn::Time(Kept::Instant),
        "DATE" => TimeColumn::Time(Kept::Date),
        "TINYINT" | "SMALLINT" | "INTEGER" | "BIGINT" | "UTINYINT" | "USMALLINT" | "UINTEGER" => {
            TimeColumn::Whole
        }
        _ => TimeColumn::Other,
    }
}
