//! Questions to a server: what is there, and what belongs to it.

use std::collections::BTreeSet;

use backstay_format::{MysqlProperties, TableRows};
use mysql_async::prelude::Queryable as _;
use mysql_async::{Conn, Row};

use super::error::{MysqlError, refused, statement};
use super::names::{identifier, literal, qualified};
use super::tools::Version;

/// Accounts that servers make for themselves.
const SYSTEM_ACCOUNTS: &str = "'mariadb.sys', 'mysql.sys', 'mysql.session', 'mysql.infoschema'";
/// Engines whose tables a transaction sees as they were when it began.
const TRANSACTIONAL: &str = "'InnoDB', 'ROCKSDB', 'TokuDB', 'ndbcluster'";

/// Asks, and returns all rows.
pub(super) async fn rows(
    session: &mut Conn,
    query: &str,
    action: &'static str,
) -> Result<Vec<Row>, MysqlError> {
    session.query(query).await.map_err(statement(action))
}

/// Returns a column as text; nothing is the empty one.
pub(super) fn text(row: &Row, column: usize) -> String {
    let found: Option<Option<Vec<u8>>> = row.get(column);
    String::from_utf8_lossy(&found.flatten().unwrap_or_default()).into_owned()
}

/// Asks for the first column of all rows.
pub(super) async fn texts(
    session: &mut Conn,
    query: &str,
    action: &'static str,
) -> Result<Vec<String>, MysqlError> {
    Ok(rows(session, query, action).await?.iter().map(|row| text(row, 0)).collect())
}

pub(super) async fn version(session: &mut Conn) -> Result<Version, MysqlError> {
    let found = texts(session, "SELECT VERSION()", "ask for the version").await?;
    Ok(Version::of_server(found.first().map_or("", String::as_str)))
}

pub(super) async fn exists(session: &mut Conn, database: &str) -> Result<bool, MysqlError> {
    let query = format!(
        "SELECT 1 FROM information_schema.schemata WHERE schema_name = {}",
        literal(database)
    );
    Ok(!texts(session, &query, "look for a database").await?.is_empty())
}

pub(super) async fn properties(
    session: &mut Conn,
    database: &str,
    version: &Version,
) -> Result<MysqlProperties, MysqlError> {
    let comment = match (version.flavour, version.series()) {
        (super::tools::Flavour::Mariadb, series) if series >= (10, 5) => "schema_comment",
        _ => "NULL",
    };
    let query = format!(
        "SELECT default_character_set_name, default_collation_name, {comment} FROM information_schema.schemata WHERE schema_name = {}",
        literal(database)
    );
    let found = rows(session, &query, "read the database's properties").await?;
    let row = found.first().ok_or_else(|| {
        refused(format!("there is no database {database}; check the database's name"))
    })?;
    Ok(MysqlProperties {
        character_set: text(row, 0),
        collation: text(row, 1),
        comment: row.get::<Option<String>, _>(2).flatten(),
    })
}

/// Says what belongs to a database, for `CREATE DATABASE` and `ALTER DATABASE`.
pub(super) fn property_words(properties: &MysqlProperties) -> String {
    let comment = properties.comment.iter();
    let comment: String = comment.map(|text| format!(" COMMENT {}", literal(text))).collect();
    format!(
        "CHARACTER SET {} COLLATE {}{comment}",
        literal(&properties.character_set),
        literal(&properties.collation)
    )
}

/// Says what our user lacks to see all of a database: servers do not refuse what may not be seen, they are silent about it.
pub(super) async fn missing_rights(
    session: &mut Conn,
    database: &str,
) -> Result<Vec<&'static str>, MysqlError> {
    let mut grantees = texts(
        session,
        "SELECT concat(quote(left(account, length(account) - length(host) - 1)), '@', quote(host))
           FROM (SELECT current_user() AS account, substring_index(current_user(), '@', -1) AS host) who",
        "ask who we are",
    )
    .await?;
    // Older servers have no roles, and no such table.
    let roles =
        session.query::<Row, _>("SELECT role_name FROM information_schema.enabled_roles").await;
    for role in roles.unwrap_or_default().iter().map(|row| text(row, 0)) {
        grantees.extend([format!("'{role}'@''"), format!("'{role}'@'%'"), format!("'{role}'")]);
    }
    let grantees: Vec<String> = grantees.iter().map(|one| literal(one)).collect();
    let query = format!(
        "SELECT privilege_type, '*' FROM information_schema.user_privileges WHERE grantee IN ({grantees})
          UNION SELECT privilege_type, 'ours' FROM information_schema.schema_privileges WHERE grantee IN ({grantees}) AND {} LIKE table_schema
          UNION SELECT privilege_type, 'mysql' FROM information_schema.schema_privileges WHERE grantee IN ({grantees}) AND table_schema = 'mysql'",
        literal(database),
        grantees = grantees.join(", "),
    );
    let rights: BTreeSet<(String, String)> = rows(session, &query, "ask what we may do")
        .await?
        .iter()
        .map(|row| (text(row, 0), text(row, 1)))
        .collect();
    let has = |right: &str, on: &[&str]| {
        on.iter().any(|place| rights.contains(&(right.to_owned(), (*place).to_owned())))
    };
    let mut missing: Vec<&str> = ["SELECT", "SHOW VIEW", "TRIGGER", "EVENT"]
        .into_iter()
        .filter(|right| !has(right, &["*", "ours"]))
        .collect();
    let sees_routines = has("SELECT", &["*", "mysql"])
        || has("SHOW_ROUTINE", &["*"])
        || has("EXECUTE", &["*", "ours"])
        || has("ALTER ROUTINE", &["*", "ours"]);
    if !sees_routines {
        missing.push("SELECT ON mysql.*");
    }
    Ok(missing)
}

/// A table, and what matters of it.
#[derive(Debug)]
pub(super) struct Table {
    pub(super) name: String,
    /// Sequences have one row, and are no tables of the app's.
    pub(super) is_sequence: bool,
    pub(super) is_transactional: bool,
    /// Whether rows that were changed or deleted are still there, with their times.
    pub(super) is_versioned: bool,
    /// As the server guesses.
    pub(super) bytes: u64,
}

/// Lists what has rows: tables and sequences, but no views.
pub(super) async fn tables(session: &mut Conn, database: &str) -> Result<Vec<Table>, MysqlError> {
    let query = format!(
        "SELECT table_name, table_type = 'SEQUENCE', coalesce(engine IN ({TRANSACTIONAL}), 0), coalesce(data_length, 0), table_type = 'SYSTEM VERSIONED'
           FROM information_schema.tables
          WHERE table_schema = {} AND table_type IN ('BASE TABLE', 'SYSTEM VERSIONED', 'SEQUENCE') ORDER BY 1",
        literal(database)
    );
    let found = rows(session, &query, "list the tables").await?;
    let table = |row: &Row| Table {
        name: text(row, 0),
        is_sequence: text(row, 1) == "1",
        is_transactional: text(row, 2) == "1",
        bytes: text(row, 3).parse().unwrap_or(0),
        is_versioned: text(row, 4) == "1",
    };
    Ok(found.iter().map(table).collect())
}

/// Lists the columns of single precision.
pub(super) async fn single_columns(
    session: &mut Conn,
    database: &str,
) -> Result<Vec<String>, MysqlError> {
    let query = format!(
        "SELECT concat(c.table_name, '.', c.column_name) FROM information_schema.columns c JOIN information_schema.tables t USING (table_schema, table_name)
          WHERE table_schema = {} AND data_type = 'float' AND table_type IN ('BASE TABLE', 'SYSTEM VERSIONED') ORDER BY 1",
        literal(database)
    );
    texts(session, &query, "look for columns of single precision").await
}

/// Counts the rows of every table, with those of its history.
pub(super) async fn count_all(
    session: &mut Conn,
    database: &str,
) -> Result<Vec<TableRows>, MysqlError> {
    let mut counted = Vec::new();
    for table in tables(session, database).await?.into_iter().filter(|table| !table.is_sequence) {
        let history = if table.is_versioned { " FOR SYSTEM_TIME ALL" } else { "" };
        let query = format!("SELECT count(*) FROM {}{history}", qualified(database, &table.name));
        let found = texts(session, &query, "count rows").await?;
        let rows = found.first().and_then(|count| count.parse().ok()).unwrap_or(0);
        counted.push(TableRows { table: table.name, rows });
    }
    Ok(counted)
}

/// Names tables of other databases that refer to tables of this one: they would follow those when they are set aside.
pub(super) async fn referring(
    session: &mut Conn,
    database: &str,
) -> Result<Vec<String>, MysqlError> {
    let query = format!(
        "SELECT DISTINCT concat(constraint_schema, '.', table_name) FROM information_schema.referential_constraints
          WHERE unique_constraint_schema = {database} AND constraint_schema <> {database} ORDER BY 1",
        database = literal(database)
    );
    texts(session, &query, "look for references from other databases").await
}

/// Says where the server's log is, if it keeps one and tells us.
pub(super) async fn keeps_log(session: &mut Conn) -> bool {
    let status = session.query::<Row, _>("SHOW MASTER STATUS").await;
    status.is_ok_and(|rows| !rows.is_empty())
}

/// Writes all accounts but the server's own, with what they may do, as a file for the programs of the server.
pub(super) async fn accounts_file(session: &mut Conn) -> Result<String, MysqlError> {
    let query = format!(
        "SELECT user, host FROM mysql.user WHERE user NOT IN ({SYSTEM_ACCOUNTS}) AND host <> '' ORDER BY 1, 2"
    );
    let mut file =
        "-- Accounts and what they may do. Those that are there already keep their passwords.\n"
            .to_owned();
    for row in rows(session, &query, "list the accounts").await? {
        let account = format!("{}@{}", literal(&text(&row, 0)), literal(&text(&row, 1)));
        // Where names are not resolved, accounts of hosts with names are there and do not count.
        let lines = account_lines(session, &account).await;
        file += &lines.unwrap_or_else(|error| format!("-- {account}: {error}\n"));
    }
    Ok(file)
}

async fn account_lines(session: &mut Conn, account: &str) -> Result<String, MysqlError> {
    let create = format!("SHOW CREATE USER {account}");
    let made = texts(session, &create, "read an account").await?;
    let made =
        made.into_iter().map(|one| one.replacen("CREATE USER", "CREATE USER IF NOT EXISTS", 1));
    let grants = format!("SHOW GRANTS FOR {account}");
    let may = texts(session, &grants, "read what an account may do").await?;
    Ok(made.chain(may).map(|statement| statement + ";\n").collect())
}

/// Returns the first row that a query finds, its columns divided by `|`.
pub(super) async fn first_row(
    session: &mut Conn,
    database: &str,
    query: &str,
) -> Result<String, MysqlError> {
    let chosen = session.query_drop(format!("USE {}", identifier(database))).await;
    chosen.map_err(statement("choose a database"))?;
    let found = rows(session, query, "answer the query").await?;
    let row = found.first().ok_or_else(|| refused("the query found no row"))?;
    let columns: Vec<String> = (0..row.len()).map(|column| text(row, column)).collect();
    Ok(columns.join("|"))
}
