//! What belongs to a database and stands outside of its dump: its properties, and the roles that it needs.

use backstay_format::{
    DatabaseGrant, DatabaseProperties, DatabaseRole, DatabaseSetting, Membership, Tablespace,
};
use tokio_postgres::{Client, Row, SimpleQueryMessage};

use super::error::{PostgresError, statement};
use super::names::{self, bytes_of, optional_text, text};

/// Collation providers came in 15, roles' options of memberships in 16, the name of the locale column changed in 17.
const WITH_PROVIDER: u32 = 15;
const WITH_OPTIONS: u32 = 16;
const WITH_LOCALE: u32 = 17;

/// Returns the server's major version.
pub(super) async fn major_version(client: &Client) -> Result<u32, PostgresError> {
    let row = client
        .query_one("SELECT current_setting('server_version_num')::int4", &[])
        .await
        .map_err(statement("ask for the server's version"))?;
    Ok(u32::try_from(row.get::<_, i32>(0)).unwrap_or(0) / 10_000)
}

/// Returns the server's version, for example `15.18`.
pub(super) async fn version(client: &Client) -> Result<String, PostgresError> {
    let query = "SELECT current_setting('server_version')";
    let row = client.query_one(query, &[]).await;
    Ok(row.map_err(statement("ask for the server's version"))?.get(0))
}

/// Returns the size of the database that the client is connected to, with its indexes and all else.
pub(super) async fn size_bytes(client: &Client) -> Result<u64, PostgresError> {
    number(client, "SELECT pg_database_size(current_database())", "ask for the size").await
}

/// Returns how many tables it has.
pub(super) async fn tables(client: &Client) -> Result<u64, PostgresError> {
    let query = "SELECT count(*) FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
                  WHERE c.relkind = 'r' AND n.nspname !~ '^(pg_|information_schema$)'";
    number(client, query, "count the tables").await
}

async fn number(client: &Client, query: &str, action: &'static str) -> Result<u64, PostgresError> {
    let row = client.query_one(query, &[]).await.map_err(statement(action))?;
    Ok(u64::try_from(row.get::<_, i64>(0)).unwrap_or(0))
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
        "SELECT {owner}, pg_encoding_to_char(encoding)::text, datcollate::text, datctype::text,
                {provider}, {locale}, datconnlimit, {comment}, {tablespace}
           FROM pg_database WHERE datname = current_database()",
        owner = bytes_of("pg_get_userbyid(datdba)"),
        tablespace = bytes_of(
            "(SELECT spcname FROM pg_tablespace t WHERE t.oid = dattablespace AND spcname <> 'pg_default')"
        ),
        comment = bytes_of("shobj_description(oid, 'pg_database')"),
    );
    let read = || statement("read the database's properties");
    let row = client.query_one(&query, &[]).await.map_err(read())?;
    let mut properties = DatabaseProperties {
        owner: text(&row, 0),
        encoding: row.get(1),
        collate: row.get(2),
        ctype: row.get(3),
        locale_provider: row.get(4),
        locale: row.get(5),
        connection_limit: row.get(6),
        comment: optional_text(&row, 7),
        tablespace: optional_text(&row, 8),
        settings: Vec::new(),
        grants: Vec::new(),
    };
    let role = bytes_of("r.rolname");
    let settings = format!(
        "SELECT {role}, {setting}
           FROM pg_db_role_setting s LEFT JOIN pg_roles r ON r.oid = s.setrole, unnest(s.setconfig) one
          WHERE s.setdatabase = (SELECT oid FROM pg_database WHERE datname = current_database())
          ORDER BY 1 NULLS FIRST, 2",
        setting = bytes_of("one"),
    );
    for row in client.query(&settings, &[]).await.map_err(read())? {
        let setting = text(&row, 1);
        if let Some((name, value)) = setting.split_once('=') {
            let role = optional_text(&row, 0);
            let (name, value) = (name.to_owned(), value.to_owned());
            properties.settings.push(DatabaseSetting { role, name, value });
        }
    }
    let grants = format!(
        "SELECT {role}, a.privilege_type, a.is_grantable
           FROM pg_database d, aclexplode(d.datacl) WITH ORDINALITY AS a(grantor, grantee, privilege_type, is_grantable, n)
                LEFT JOIN pg_roles r ON r.oid = a.grantee
          WHERE d.datname = current_database() ORDER BY a.n"
    );
    for row in client.query(&grants, &[]).await.map_err(read())? {
        properties.grants.push(DatabaseGrant {
            grantee: optional_text(&row, 0),
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
         SELECT {name}, r.rolsuper, r.rolinherit, r.rolcreaterole, r.rolcreatedb, r.rolcanlogin,
                r.rolreplication, r.rolbypassrls, r.rolconnlimit, r.rolvaliduntil::text, {password},
                r.oid IN (SELECT role FROM needed),
                ARRAY(SELECT {setting} FROM pg_db_role_setting s, unnest(s.setconfig) one
                       WHERE s.setrole = r.oid AND s.setdatabase = 0)
           FROM pg_roles r WHERE NOT starts_with(r.rolname::text, 'pg_') ORDER BY 1",
        name = bytes_of("r.rolname"),
        setting = bytes_of("one"),
    );
    let rows = client.query(&query, &[]).await.map_err(read())?;
    Ok(rows.iter().map(role).collect())
}

fn role(row: &Row) -> DatabaseRole {
    DatabaseRole {
        name: text(row, 0),
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
        settings: row.get::<_, Vec<&[u8]>>(12).into_iter().map(names::shown).collect(),
    }
}

/// Reads who is a member of which role.
pub(super) async fn memberships(
    client: &Client,
    major: u32,
) -> Result<Vec<Membership>, PostgresError> {
    let options = if major >= WITH_OPTIONS {
        "bool_or(a.inherit_option), bool_or(a.set_option)"
    } else {
        "NULL::bool, NULL::bool"
    };
    // What several have granted adds up.
    let query = format!(
        "SELECT {role}, {member}, bool_or(a.admin_option), {options}
           FROM pg_auth_members a JOIN pg_roles g ON g.oid = a.roleid JOIN pg_roles m ON m.oid = a.member
          WHERE NOT starts_with(m.rolname::text, 'pg_') GROUP BY 1, 2 ORDER BY 1, 2",
        role = bytes_of("g.rolname"),
        member = bytes_of("m.rolname"),
    );
    let rows = client.query(&query, &[]).await.map_err(statement("read the roles' members"))?;
    let membership = |row: &Row| Membership {
        role: text(row, 0),
        member: text(row, 1),
        with_admin_option: row.get(2),
        inherits: row.get(3),
        may_set: row.get(4),
    };
    Ok(rows.iter().map(membership).collect())
}

/// Reads the tablespaces that the database or anything in it lies in, but the server's own two.
pub(super) async fn tablespaces_in_use(client: &Client) -> Result<Vec<String>, PostgresError> {
    let query = format!(
        "SELECT {} FROM pg_tablespace t WHERE spcname !~ '^pg_'
            AND (oid IN (SELECT reltablespace FROM pg_class)
                 OR oid = (SELECT dattablespace FROM pg_database WHERE datname = current_database())) ORDER BY 1",
        bytes_of("spcname")
    );
    names::read(client, &query, "read the tablespaces").await
}

/// Reads the server's tablespaces but its own two.
pub(super) async fn tablespaces(client: &Client) -> Result<Vec<Tablespace>, PostgresError> {
    let query = format!(
        "SELECT {}, {}, {} FROM pg_tablespace WHERE spcname !~ '^pg_' ORDER BY 1",
        bytes_of("spcname"),
        bytes_of("pg_get_userbyid(spcowner)"),
        bytes_of("pg_tablespace_location(oid)")
    );
    let rows = client.query(&query, &[]).await.map_err(statement("read the tablespaces"))?;
    let tablespace =
        |row: &Row| Tablespace { name: text(row, 0), owner: text(row, 1), location: text(row, 2) };
    Ok(rows.iter().map(tablespace).collect())
}

/// Reads the extensions that are installed in the database.
pub(super) async fn extensions(client: &Client) -> Result<Vec<String>, PostgresError> {
    let query = format!("SELECT {} FROM pg_extension ORDER BY 1", bytes_of("extname"));
    names::read(client, &query, "read the extensions").await
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
