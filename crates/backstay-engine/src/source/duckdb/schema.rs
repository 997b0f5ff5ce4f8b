//! What a database holds beside rows, as statements that make it again in an order in which they work.

use std::collections::BTreeSet;
use std::path::Path;

use backstay_format::DuckdbContent;

use super::error::{DuckdbError, refused};
use super::session::{On, Row, Session, Tool, identifier, literal, text};
use super::statements::{self, Load};

/// Everything that the catalog says of what is not DuckDB's own. What belongs to a macro stands in a row for each of its variants.
const CATALOG: &str = "
    SELECT 'SCHEMA' AS kind, schema_name AS schema, NULL AS name, NULL AS of, NULL AS definition, comment FROM duckdb_schemas() WHERE NOT internal AND database_name = current_database()
    UNION ALL SELECT 'TYPE', schema_name, type_name, NULL, concat(logical_type, CAST(labels AS VARCHAR)), comment FROM duckdb_types() WHERE NOT internal AND database_name = current_database()
    UNION ALL SELECT 'SEQUENCE', schema_name, sequence_name, NULL, sql, comment FROM duckdb_sequences() WHERE NOT temporary AND database_name = current_database()
    UNION ALL SELECT 'TABLE', schema_name, table_name, NULL, sql, comment FROM duckdb_tables() WHERE NOT internal AND NOT temporary AND database_name = current_database()
    UNION ALL SELECT 'VIEW', schema_name, view_name, NULL, sql, comment FROM duckdb_views() WHERE NOT internal AND NOT temporary AND database_name = current_database()
    UNION ALL SELECT 'INDEX', schema_name, index_name, NULL, sql, comment FROM duckdb_indexes() WHERE database_name = current_database()
    UNION ALL SELECT CASE function_type WHEN 'macro' THEN 'MACRO' ELSE 'MACRO TABLE' END, schema_name, function_name, NULL, concat(CAST(parameters AS VARCHAR), ' ', macro_definition), comment
        FROM duckdb_functions() WHERE NOT internal AND database_name = current_database() AND function_type IN ('macro', 'table_macro')
    UNION ALL SELECT 'COLUMN', schema_name, column_name, table_name, NULL, comment FROM duckdb_columns() WHERE comment IS NOT NULL AND database_name = current_database()
    ORDER BY ALL";

/// What may be of files that are elsewhere, and what is said of it.
const CAN_BE_LEFT_OUT: [&str; 5] = [
    "CREATE VIEW ",
    "CREATE MACRO ",
    "COMMENT ON VIEW ",
    "COMMENT ON MACRO ",
    "COMMENT ON COLUMN ",
];

/// Something that stands in the catalog.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Item {
    kind: String,
    schema: String,
    name: String,
    /// Of a column: its table.
    of: String,
    definition: String,
    comment: Option<String>,
}

impl Item {
    fn read(row: &Row) -> Self {
        let text = |column| text(row, column);
        let comment = row.get("comment").and_then(|comment| comment.as_str());
        Self {
            kind: text("kind"),
            schema: text("schema"),
            name: text("name"),
            of: text("of"),
            definition: text("definition"),
            comment: comment.map(str::to_owned),
        }
    }

    /// Returns its name as SQL writes it.
    fn qualified(&self) -> String {
        let names = [&self.schema, &self.of, &self.name].map(|name| identifier(name));
        match self.kind.as_str() {
            "SCHEMA" => identifier(&self.schema),
            "COLUMN" => names.join("."),
            _ => format!("{}.{}", names[0], names[2]),
        }
    }

    pub(super) fn is_table(&self) -> bool {
        self.kind == "TABLE"
    }

    fn label(&self) -> String {
        format!("{} {}", self.kind.to_lowercase(), self.qualified())
    }
}

/// Reads the catalog.
pub(super) async fn read(session: &mut Session) -> Result<BTreeSet<Item>, DuckdbError> {
    let rows = session.ask("read the catalog", CATALOG).await?;
    Ok(rows.iter().map(Item::read).collect())
}

/// The statements that make a database, in their order.
#[derive(Debug, Default)]
pub(super) struct Schema {
    pub(super) statements: Vec<String>,
    /// Views and macros that cannot be made where their files are not, with what is said of them.
    pub(super) left_out: Vec<String>,
}

impl Schema {
    /// Writes `schema.sql`.
    pub(super) fn script(&self) -> String {
        self.statements.iter().map(|statement| format!("{statement};\n")).collect()
    }
}

/// Takes the statements of an export, with those that the export gets wrong.
pub(super) async fn statements_of(
    session: &mut Session,
    catalog: &BTreeSet<Item>,
    exported: &str,
) -> Result<Vec<String>, DuckdbError> {
    let (mut made, mut rest) = (Vec::new(), exported.to_owned());
    for item in catalog.iter().filter(|item| item.kind == "TYPE") {
        let name = item.qualified();
        let query = format!("SELECT typeof(CAST(NULL AS {name})) AS definition");
        let rows = session.ask("read how a type is made", &query).await?;
        let definition = rows.first().map(|row| text(row, "definition")).unwrap_or_default();
        made.push(format!("CREATE TYPE {name} AS {definition}"));
        rest = without_labels(session, item, rest).await?;
    }
    let others = statements::split(&rest)
        .map_err(|finding| refused(format!("the export's schema.sql cannot be read: {finding}")))?;
    let is_type = |statement: &String| statement.starts_with("CREATE TYPE ");
    let is_schema = |statement: &String| statement.starts_with("CREATE SCHEMA ");
    let (schemas, others): (Vec<String>, Vec<String>) =
        others.into_iter().filter(|statement| !is_type(statement)).partition(is_schema);
    let comments = catalog.iter().filter_map(comment);
    Ok(schemas.into_iter().chain(made).chain(others).chain(comments).collect())
}

/// Takes an enumeration out of a script whose labels have quotation marks: the export does not double them.
async fn without_labels(
    session: &mut Session,
    item: &Item,
    script: String,
) -> Result<String, DuckdbError> {
    let query = format!(
        "SELECT unnest(labels) AS label FROM duckdb_types() WHERE schema_name = {} AND type_name = {} AND database_name = current_database()",
        literal(&item.schema),
        literal(&item.name)
    );
    let rows = session.ask("read the labels of a type", &query).await?;
    let labels: Vec<String> = rows.iter().map(|row| text(row, "label")).collect();
    if !labels.iter().any(|label| label.contains('\'')) {
        return Ok(script);
    }
    let written: Vec<String> = labels.iter().map(|label| format!("'{label}'")).collect();
    let written = format!("AS ENUM ( {} );", written.join(", "));
    let parts = script.split_once(&written).and_then(|(before, after)| {
        let begin = before.rfind("CREATE TYPE ")?;
        Some(format!("{}{after}", &before[..begin]))
    });
    let unknown = || refused(format!("the export writes the {} in an unknown way", item.label()));
    parts.ok_or_else(unknown)
}

fn comment(item: &Item) -> Option<String> {
    let comment = item.comment.as_ref()?;
    Some(format!("COMMENT ON {} {} IS {}", item.kind, item.qualified(), literal(comment)))
}

/// Returns the version of the file format, as the command line knows it.
pub(super) async fn storage_version(session: &mut Session) -> Result<Option<String>, DuckdbError> {
    let query = "SELECT tags['storage_version'] AS version FROM duckdb_databases() WHERE database_name = current_database()";
    let rows = session.ask("read the version of the database's file", query).await?;
    let version = rows.first().map(|row| text(row, "version")).unwrap_or_default();
    // It says `v1.0.0+`, and takes `v1.0.0`.
    let version = version.trim_end_matches('+');
    Ok(Some(version).filter(|version| !version.is_empty()).map(str::to_owned))
}

/// Fails unless an import made everything that is in the original's catalog, but what was left out.
pub(super) fn compare(
    catalog: &BTreeSet<Item>,
    made: &BTreeSet<Item>,
    content: &DuckdbContent,
) -> Result<(), DuckdbError> {
    let not_equal = |finding: String| Err(DuckdbError::NotEqual { finding });
    let missing: Vec<&Item> = catalog.difference(made).collect();
    let is_left_out = |item: &Item| ["VIEW", "MACRO", "MACRO TABLE"].contains(&item.kind.as_str());
    let left_out: BTreeSet<(&str, &str)> = missing
        .iter()
        .filter(|item| is_left_out(item))
        .map(|item| (item.schema.as_str(), item.name.as_str()))
        .collect();
    let is_known = |item: &Item| {
        is_left_out(item) && !content.left_out.is_empty()
            || left_out.contains(&(item.schema.as_str(), item.of.as_str()))
    };
    let wrong = missing.into_iter().find(|item| !is_known(item));
    if let Some(item) = wrong.or_else(|| made.difference(catalog).next()) {
        return not_equal(format!("the {} is not made again as it is", item.label()));
    }
    let is_creation = |statement: &&String| statement.starts_with("CREATE ");
    if left_out.len() != content.left_out.iter().filter(is_creation).count() {
        return not_equal("views or macros are not made again as they are".to_owned());
    }
    let tables = catalog.iter().filter(|item| item.is_table()).count();
    if tables != content.tables.len() {
        let exported = content.tables.len();
        return not_equal(format!("it has {tables} tables, and {exported} were exported"));
    }
    Ok(())
}

/// Finds the order in which the statements work, by executing them in an empty database, again and again until no more of them do.
/// The tables must then take the files of this folder, column by column.
pub(super) async fn order(
    tool: &Tool,
    (folder, loads): (&Path, &[Load]),
    waiting: Vec<String>,
) -> Result<Schema, DuckdbError> {
    let mut session = tool.open(On::Memory, folder).await?;
    let place = literal(&folder.to_string_lossy());
    let closed = format!("SET allowed_directories = [{place}]; SET enable_external_access = false");
    session.ask("open an empty database", &closed).await?;
    let schema = try_all(&mut session, waiting).await?;
    for Load { table, file, .. } in loads {
        // `COPY` would leave a column empty that its file lacks. Generated columns are in none, and nothing says which those are.
        let file = literal(&folder.join(file).to_string_lossy());
        let insert = format!("INSERT INTO {table} SELECT * FROM {file} LIMIT 0");
        let fits = session.ask("read the file of a table", &insert).await;
        fits.map_err(|error| DuckdbError::NotEqual {
            finding: format!("the file of {table} does not fit it: {error}"),
        })?;
    }
    session.close().await?;
    Ok(schema)
}

async fn try_all(session: &mut Session, mut waiting: Vec<String>) -> Result<Schema, DuckdbError> {
    const ACTION: &str = "make the database again from its export";
    let mut schema = Schema::default();
    loop {
        let (before, mut failures) = (waiting.len(), Vec::new());
        for statement in waiting {
            statements::check(&statement).map_err(refused)?;
            match session.ask(ACTION, &statement).await {
                Ok(_) => schema.statements.push(statement),
                Err(error @ DuckdbError::Statement { .. }) => failures.push((statement, error)),
                Err(error) => return Err(error),
            }
        }
        if failures.len() == before || failures.is_empty() {
            let can_wait = |(statement, _): &(String, _)| {
                CAN_BE_LEFT_OUT.iter().any(|kind| statement.starts_with(kind))
            };
            let (outside, others): (Vec<_>, Vec<_>) = failures.into_iter().partition(can_wait);
            if let Some((_, error)) = others.into_iter().next() {
                return Err(error);
            }
            schema.left_out = outside.into_iter().map(|(statement, _)| statement).collect();
            return Ok(schema);
        }
        waiting = failures.into_iter().map(|(statement, _)| statement).collect();
    }
}
