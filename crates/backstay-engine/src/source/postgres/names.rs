//! Names as the server keeps them: bytes in the encoding of the database, which need be no text at all.
//!
//! `SQL_ASCII` databases take any bytes, and names that all databases share have the bytes that the database had in which
//! they were given. Names that are no UTF-8 are shown with those bytes as `\xe4`: unlike any other kept apart, and compared.

use tokio_postgres::types::Oid;
use tokio_postgres::{Client, Row};

use super::error::{PostgresError, statement};
use super::globals::{identifier, qualified};

/// Returns an expression for a name's bytes: in UTF-8 if the server knows how to, else as they are.
///
/// Asked for as a text, a name that is no UTF-8 would fail the query or reach us broken.
pub(super) fn bytes_of(name: &str) -> String {
    // A cast takes a text's bytes as they are, but for its own escapes.
    format!(
        "CASE WHEN getdatabaseencoding() IN ('UTF8', 'SQL_ASCII') THEN replace({name}::text, E'\\\\', E'\\\\\\\\')::bytea
              ELSE convert_to({name}::text, 'UTF8') END"
    )
}

/// Returns bytes as text; those that are no UTF-8 as `\xe4`.
pub(super) fn shown(bytes: &[u8]) -> String {
    let chunks = bytes.utf8_chunks();
    chunks.map(|chunk| format!("{}{}", chunk.valid(), chunk.invalid().escape_ascii())).collect()
}

/// Returns a column of [`bytes_of`] as text.
pub(super) fn text(row: &Row, column: usize) -> String {
    shown(row.get(column))
}

/// The same where there may be nothing.
pub(super) fn optional_text(row: &Row, column: usize) -> Option<String> {
    row.get::<_, Option<&[u8]>>(column).map(shown)
}

/// Reads the first column of a query, which is one of [`bytes_of`].
pub(super) async fn read(
    client: &Client,
    query: &str,
    action: &'static str,
) -> Result<Vec<String>, PostgresError> {
    let rows = client.query(query, &[]).await.map_err(statement(action))?;
    Ok(rows.iter().map(|row| text(row, 0)).collect())
}

/// A table's name with its schema, in bytes.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct TableName {
    pub(super) schema: Vec<u8>,
    pub(super) table: Vec<u8>,
}

impl TableName {
    /// Returns it for people.
    pub(super) fn shown(&self) -> String {
        let table = shown(&self.table);
        // Large objects are in no schema.
        if self.schema.is_empty() { table } else { qualified(&shown(&self.schema), &table) }
    }

    /// Returns a query for the table's rows. A name that is no text cannot be sent: then the server writes the query itself.
    pub(super) fn counting(&self, table: Oid) -> String {
        match (std::str::from_utf8(&self.schema), std::str::from_utf8(&self.table)) {
            (Ok(schema), Ok(table)) => {
                format!("SELECT count(*) FROM ONLY {}.{}", identifier(schema), identifier(table))
            }
            // Of all functions that run a query which the server itself wrote, the one that every build of it has.
            _ => format!(
                "SELECT word::int8 FROM ts_stat(format('SELECT count(*)::text::tsvector FROM ONLY %s', {table}::regclass))"
            ),
        }
    }
}

/// Brings names from the encoding of the database to UTF-8, as [`bytes_of`] does.
pub(super) async fn to_utf8(
    client: &Client,
    encoding: &str,
    names: Vec<TableName>,
) -> Result<Vec<TableName>, PostgresError> {
    if matches!(encoding, "UTF8" | "SQL_ASCII") {
        return Ok(names);
    }
    let query = "SELECT convert_to(convert_from(s, getdatabaseencoding()), 'UTF8'), convert_to(convert_from(t, getdatabaseencoding()), 'UTF8')
                   FROM unnest($1::bytea[], $2::bytea[]) WITH ORDINALITY AS names(s, t, n) ORDER BY n";
    let schemas: Vec<&[u8]> = names.iter().map(|name| name.schema.as_slice()).collect();
    let tables: Vec<&[u8]> = names.iter().map(|name| name.table.as_slice()).collect();
    let rows = client.query(query, &[&schemas, &tables]).await;
    let rows = rows.map_err(statement("read the names of the tables"))?;
    Ok(rows.iter().map(|row| TableName { schema: row.get(0), table: row.get(1) }).collect())
}
