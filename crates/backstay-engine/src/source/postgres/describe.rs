//! What belongs to a database and stands outside of its dump: its properties, and the roles that it needs.

use backstay_format::{
    DatabaseGrant, DatabaseProperties, DatabaseRole, DatabaseSetting, Membership,
};
use tokio_postgres::{Client, Row, SimpleQueryMessage};

use super::error::{PostgresError, statement};

/// Collation providers came in 15, roles' options of memberships in 16, the name of the locale column changed in 17.
const WITH_PROVIDER: u32 = 15;
const WITH_LOCALE: u32 = 17;

/// Returns the server's major version.
pub(super) async fn major_version(client: &Client) -> Result<u32, PostgresError> {
    let row = client
        .query_one("SELECT current_setting('server_version_num')::int4", &[])
        .await
        .map_err(statement("ask for the server's version"))?;
    Ok(u32::try_from(row.get::<_, i32>(0)).unwrap_or(0) / 10_000)
}

/// Reads the properties of the database that the client is connected to.
pub(super) async fn properties(
    client: &Client,
    major: u32,
) -> Result<DatabaseProperties, PostgresError> {
    let (provider, locale) = match major {
        WITH_LOCALE.. => ("datlocprovider::text", "datlocale"),
        WITH_PROVIDER.. => ("datlocprovider::text", "daticulocale"),
        _ => ("'c'", "NULL::text"),
    };
    let query = format!(
        "SELECT pg_get_userbyid(datdba)::text, pg_encoding_to_char(encoding)::text, datcollate::text, datctype::text,
                {provider}, {locale}, datconnlimit, shobj_description(oid, 'pg_database')
           FROM pg_database WHERE datname = current_database()"
    );
    let read = || statement("read the database's properties");
    let row = client.query_one(&query, &[]).await.map_err(read())?;
    let mut properties = DatabaseProperties {
        owner: row.get(0),
        encoding: row.get(1),
        collate: row.get(2),
        ctype: row.get(3),
        locale_provider: row.get(4),
        locale: row.get(5),
        connection_limit: row.get(6),
        comment: row.get(7),
        settings: Vec::new(),
        grants: Vec::new(),
    };
    let settings = "SELECT r.rolname::text, unnest(s.setconfig)
           FROM pg_db_role_setting s LEFT JOIN pg_roles r ON r.oid = s.setrole
          WHERE s.setdatabase = (SELECT oid FROM pg_database WHERE datname = current_database())
          ORDER BY 1 NULLS FIRST, 2";
    for row in client.query(settings, &[]).await.map_err(read())? {
        let setting: String = row.get(1);
        if let Some((name, value)) = setting.split_once('=') {
            let (role, name, value) = (row.get(0), name.to_owned(), value.to_owned());
            properties.settings.push(DatabaseSetting { role, name, value });
        }
    }
    let grants = "SELECT r.rolname::text, a.privilege_type, a.is_grantable
           FROM pg_database d, aclexplode(d.datacl) a LEFT JOIN pg_roles r ON r.oid = a.grantee
          WHERE d.datname = current_database() ORDER BY 1 NULLS FIRST, 2";
    for row in client.query(grants, &[]).await.map_err(read())? {
        properties.grants.push(DatabaseGrant {
            grantee: row.get(0),
            privilege: row.get(1),
            with_grant_option: row.get(2),
        });
    }
    Ok(properties)
}

/// Reads all roles but the server's own, with those that the database needs marked.
pub(super) async fn roles(
    client: &Client,
    with_passwords: bool,
) -> Result<Vec<DatabaseRole>, PostgresError> {
    let read = || statement("read the roles");
    let may_read: bool = client
        .query_one("SELECT has_table_privilege('pg_catalog.pg_authid', 'SELECT')", &[])
        .await
        .map_err(read())?
        .get(0);
    let password = if may_read && with_passwords {
        "(SELECT a.rolpassword FROM pg_authid a WHERE a.oid = r.oid)"
    } else {
        "NULL::text"
    };
    let query = format!(
        "WITH RECURSIVE here AS (SELECT oid, datdba FROM pg_database WHERE datname = current_database()),
              needed AS (
                SELECT refobjid AS role FROM pg_shdepend, here
                 WHERE refclassid = 'pg_authid'::regclass
                   AND (dbid = here.oid OR classid = 'pg_database'::regclass AND objid = here.oid)
                UNION SELECT datdba FROM here
                UNION SELECT m.roleid FROM pg_auth_members m JOIN needed ON m.member = needed.role)
         SELECT r.rolname::text, r.rolsuper, r.rolinherit, r.rolcreaterole, r.rolcreatedb, r.rolcanlogin,
                r.rolreplication, r.rolbypassrls, r.rolconnlimit, r.rolvaliduntil::text, {password},
                r.oid IN (SELECT role FROM needed),
                coalesce((SELECT s.setconfig FROM pg_db_role_setting s
                           WHERE s.setrole = r.oid AND s.setdatabase = 0), '{{}}')
           FROM pg_roles r WHERE r.rolname !~ '^pg_' ORDER BY 1"
    );
    let rows = client.query(&query, &[]).await.map_err(read())?;
    Ok(rows.iter().map(role).collect())
}

fn role(row: &Row) -> DatabaseRole {
    DatabaseRole {
        name: row.get(0),
        is_superuser: row.get(1),
        inherits: row.get(2),
        may_create_roles: row.get(3),
        may_create_databases: row.get(4),
        may_log_in: row.get(5),
        may_replicate: row.get(6),
        bypasses_row_security: row.get(7),
        connection_limit: row.get(8),
        valid_until: row.get(9),
        password: row.get(10),
        is_needed: row.get(11),
        settings: row.get(12),
    }
}

/// Reads who is a member of which role.
pub(super) async fn memberships(client: &Client) -> Result<Vec<Membership>, PostgresError> {
    let query = "SELECT g.rolname::text, m.rolname::text, bool_or(a.admin_option)
           FROM pg_auth_members a JOIN pg_roles g ON g.oid = a.roleid JOIN pg_roles m ON m.oid = a.member
          WHERE m.rolname !~ '^pg_' GROUP BY 1, 2 ORDER BY 1, 2";
    let rows = client.query(query, &[]).await.map_err(statement("read the roles' members"))?;
    let membership = |row: &Row| Membership {
        role: row.get(0),
        member: row.get(1),
        with_admin_option: row.get(2),
    };
    Ok(rows.iter().map(membership).collect())
}

/// Reads the extensions that are installed in the database.
pub(super) async fn extensions(client: &Client) -> Result<Vec<String>, PostgresError> {
    names(client, "SELECT extname::text FROM pg_extension ORDER BY 1", "read the extensions").await
}

/// Reads the first column of a query as text.
pub(super) async fn names(
    client: &Client,
    query: &str,
    action: &'static str,
) -> Result<Vec<String>, PostgresError> {
    let rows = client.query(query, &[]).await.map_err(statement(action))?;
    Ok(rows.iter().map(|row| row.get(0)).collect())
}

/// Runs the user's query for applied migrations. Whatever its first column is, it is taken as text.
pub(super) async fn migrations(client: &Client, query: &str) -> Result<Vec<String>, PostgresError> {
    let rows = texts(client, query, "run the query `migrations` of the configuration").await?;
    Ok(rows.into_iter().filter_map(|mut row| row.drain(..).next().flatten()).collect())
}

/// Runs a query of the user's. Returns its first row as text, its columns divided by `|`.
pub(super) async fn first_row(client: &Client, query: &str) -> Result<String, PostgresError> {
    let rows = texts(client, query, "run a check of the configuration").await?;
    let row = rows.into_iter().next().unwrap_or_default();
    Ok(row.into_iter().map(Option::unwrap_or_default).collect::<Vec<_>>().join("|"))
}

/// Runs statements. Returns all rows that come of them, as text.
pub(super) async fn texts(
    client: &Client,
    query: &str,
    action: &'static str,
) -> Result<Vec<Vec<Option<String>>>, PostgresError> {
    let query = query.trim().trim_end_matches(';');
    let messages = client.simple_query(query).await.map_err(statement(action))?;
    let rows = messages.iter().filter_map(|message| match message {
        SimpleQueryMessage::Row(row) => {
            Some((0..row.len()).map(|column| row.get(column).map(str::to_owned)).collect())
        }
        _ => None,
    });
    Ok(rows.collect())
}
