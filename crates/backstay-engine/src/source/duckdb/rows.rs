//! The rows of tables: their columns, their number, and a sum that tells them from others.

use super::error::{DuckdbError, refused};
use super::session::{Row, Session, number, text};

/// Types whose values Parquet files of DuckDB hold as something smaller, alone or inside others.
const AS_TEXT: [&str; 4] = ["HUGEINT", "INTERVAL", "TIME WITH TIME ZONE", "TIMESTAMP_S"];
/// A type that is none of them and has the name of one in its own.
const NOT_AS_TEXT: &str = "TIMESTAMP WITH TIME ZONE";

/// A column of a table, as it is exported.
pub(super) struct Column {
    pub(super) name: String,
    kind: String,
}

impl Column {
    /// Says whether its values must stand as text in a Parquet file.
    pub(super) fn must_be_text(&self) -> bool {
        let kind = self.kind.replace(NOT_AS_TEXT, "");
        AS_TEXT.iter().any(|word| kind.contains(word))
    }
}

/// Returns the columns that are in a file, with their types in the table: generated ones are not in it.
pub(super) async fn columns(
    session: &mut Session,
    table: &str,
    file: &str,
) -> Result<Vec<Column>, DuckdbError> {
    const ACTION: &str = "read the columns of a table";
    let column =
        |row: &Row| Column { name: text(row, "column_name"), kind: text(row, "column_type") };
    let in_table = session.ask(ACTION, &format!("DESCRIBE {table}")).await?;
    let in_file = session.ask(ACTION, &format!("DESCRIBE SELECT * FROM {file}")).await?;
    let in_file: Vec<String> = in_file.iter().map(|row| text(row, "column_name")).collect();
    let columns = in_table.iter().map(column).filter(|column| in_file.contains(&column.name));
    Ok(columns.collect())
}

/// Returns how many rows there are, and a number that all of them together make.
pub(super) async fn digest(
    session: &mut Session,
    columns: &[String],
    table: &str,
) -> Result<(u64, String), DuckdbError> {
    // A hash alone takes a list of nothing for nothing; as text they differ.
    let query = format!(
        "SELECT count(*) AS rows, CAST(coalesce(sum(hash(r) + CAST(hash(CAST(r AS VARCHAR)) AS HUGEINT)), 0) AS VARCHAR) AS digest FROM (SELECT row({}) AS r FROM {table})",
        columns.join(", ")
    );
    let rows = session.ask("compare the rows of a table", &query).await?;
    let row = rows.first().ok_or_else(|| refused("a count has no answer"))?;
    Ok((number(row, "rows"), text(row, "digest")))
}

/// Returns how many rows a table has.
pub(super) async fn count(session: &mut Session, table: &str) -> Result<u64, DuckdbError> {
    let count = format!("SELECT count(*) AS rows FROM {table}");
    let rows = session.ask("count the rows of a table", &count).await?;
    Ok(rows.first().map_or(0, |row| number(row, "rows")))
}
