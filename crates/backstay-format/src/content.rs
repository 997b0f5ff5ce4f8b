//! What the parts of a backup hold, for people and for the restore.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::PartName;
use crate::archived::ArchivedRows;
use crate::file_databases::{DuckdbContent, SetContent, SqliteContent};

/// What the parts of a backup hold.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Content {
    /// A tree of files.
    Files(FilesContent),
    /// A SQLite database.
    Sqlite(SqliteContent),
    /// A PostgreSQL database.
    Postgres(Box<PostgresContent>),
    /// Several databases of a PostgreSQL server.
    PostgresServer(Box<PostgresServerContent>),
    /// A database of a MySQL or MariaDB server.
    Mysql(Box<MysqlContent>),
    /// Several databases of a MySQL or MariaDB server.
    MysqlServer(Box<MysqlServerContent>),
    /// The databases of a Redis or Valkey server.
    Redis(Box<RedisContent>),
    /// A DuckDB database.
    Duckdb(Box<DuckdbContent>),
    /// Several databases that are files.
    Set(SetContent),
    /// What programs of the user's wrote.
    Command(CommandContent),
    /// Rows of a retention archive: never in a backup.
    Archived(Box<ArchivedRows>),
}

impl Content {
    /// Leaves out what only a restore may see.
    #[must_use]
    pub fn without_secrets(mut self) -> Self {
        let forget = |roles: &mut Vec<DatabaseRole>| {
            for role in roles {
                role.password = None;
            }
        };
        match &mut self {
            // Hashes of the other servers' users stand in a part of their own.
            Self::Files(_)
            | Self::Sqlite(_)
            | Self::Mysql(_)
            | Self::MysqlServer(_)
            | Self::Redis(_)
            | Self::Duckdb(_)
            | Self::Set(_)
            | Self::Command(_)
            | Self::Archived(_) => {}
            Self::Postgres(database) => forget(&mut database.roles),
            Self::PostgresServer(server) => {
                forget(&mut server.roles);
                server.databases.iter_mut().for_each(|one| forget(&mut one.content.roles));
            }
        }
        self
    }
}

/// What programs of the user's wrote.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CommandContent {
    /// The parts, in the order in which they were written.
    pub outputs: Vec<PartName>,
}

/// What a tree of files holds.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FilesContent {
    /// Regular files, hard links not counted again.
    pub files: u64,
    /// Directories, the root included.
    pub directories: u64,
    /// Symbolic links.
    pub symlinks: u64,
    /// Further names of files.
    pub hard_links: u64,
    /// Apparent bytes of the regular files.
    pub bytes: u64,
    /// Sockets, FIFOs and devices that were left out on purpose.
    pub skipped_special: u64,
    /// SQLite databases that were taken as snapshots, by path.
    pub sqlite_databases: Vec<String>,
}

/// A table and its rows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TableRows {
    /// Its name.
    pub table: String,
    /// How many rows it has.
    pub rows: u64,
}

/// What a PostgreSQL database holds.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PostgresContent {
    /// Its name.
    pub database: String,
    /// The server's version, for example `15.18`.
    pub server_version: String,
    /// What belongs to the database and stands outside of its dump.
    pub properties: DatabaseProperties,
    /// All roles of the server but its own; those that it needs where the server's stand elsewhere.
    pub roles: Vec<DatabaseRole>,
    /// Who is a member of which role.
    pub memberships: Vec<Membership>,
    /// The installed extensions.
    pub extensions: Vec<String>,
    /// The tablespaces that it or its tables lie in, but the server's own two.
    #[serde(default)]
    pub tablespaces: Vec<String>,
    /// Tables with their rows as they were dumped, by name with schema, quoted where it must be.
    pub tables: Vec<TableRows>,
    /// How many large objects were dumped.
    pub large_objects: u64,
}

/// What several databases of a PostgreSQL server hold.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PostgresServerContent {
    /// The server's version, for example `15.18`.
    pub server_version: String,
    /// All roles of the server but its own.
    pub roles: Vec<DatabaseRole>,
    /// Who is a member of which role.
    pub memberships: Vec<Membership>,
    /// All tablespaces of the server but its own two.
    pub tablespaces: Vec<Tablespace>,
    /// The databases, in the order of their names.
    pub databases: Vec<ServerDatabase>,
}

/// One of several databases of a server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ServerDatabase {
    /// The folder of its parts in the backup.
    pub folder: String,
    /// When its view was taken: every database has one of its own.
    pub taken_at: Timestamp,
    /// The position in the server's log then.
    pub consistency_point: String,
    /// The app's applied migrations, if there is a query for them.
    pub schema_version: Option<Vec<String>>,
    /// What it holds.
    pub content: PostgresContent,
}

/// A place for data outside of a server's own directory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tablespace {
    /// Its name.
    pub name: String,
    /// The role that owns it.
    pub owner: String,
    /// Its directory on the server.
    pub location: String,
}

/// What belongs to a database and stands outside of its dump.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DatabaseProperties {
    /// The role that owns it.
    pub owner: String,
    /// For example `UTF8`.
    pub encoding: String,
    /// `LC_COLLATE`.
    pub collate: String,
    /// `LC_CTYPE`.
    pub ctype: String,
    /// `c` of the C library, `i` of ICU, `b` built in.
    pub locale_provider: String,
    /// The provider's own name of the locale.
    pub locale: Option<String>,
    /// The tablespace of what has no other; nothing is the server's own.
    #[serde(default)]
    pub tablespace: Option<String>,
    /// Sessions at once; -1 is no limit.
    pub connection_limit: i32,
    /// What `COMMENT ON DATABASE` said.
    pub comment: Option<String>,
    /// What `ALTER DATABASE SET` and `ALTER ROLE IN DATABASE SET` said.
    pub settings: Vec<DatabaseSetting>,
    /// Rights on the database. Empty means those that every new database has.
    pub grants: Vec<DatabaseGrant>,
}

/// A setting of a database.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DatabaseSetting {
    /// For which role; nothing is for all.
    pub role: Option<String>,
    /// Its name.
    pub name: String,
    /// Its value, as the server keeps it.
    pub value: String,
}

/// A right on a database.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DatabaseGrant {
    /// Who has it; nothing is everybody.
    pub grantee: Option<String>,
    /// For example `CONNECT`.
    pub privilege: String,
    /// Whether it may be passed on.
    pub with_grant_option: bool,
}

/// A role of a server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DatabaseRole {
    /// Its name.
    pub name: String,
    /// `SUPERUSER`.
    pub is_superuser: bool,
    /// `INHERIT`.
    pub inherits: bool,
    /// `CREATEROLE`.
    pub may_create_roles: bool,
    /// `CREATEDB`.
    pub may_create_databases: bool,
    /// `LOGIN`.
    pub may_log_in: bool,
    /// `REPLICATION`.
    pub may_replicate: bool,
    /// `BYPASSRLS`.
    pub bypasses_row_security: bool,
    /// Sessions at once; -1 is no limit.
    pub connection_limit: i32,
    /// Until when its password counts.
    pub valid_until: Option<String>,
    /// The hash of its password, if we might read it and the backup is sealed.
    pub password: Option<String>,
    /// Whether the database needs it: it owns something there, or has a right.
    pub is_needed: bool,
    /// What `ALTER ROLE SET` said, as `name=value`.
    pub settings: Vec<String>,
}

/// A membership in a role.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Membership {
    /// The role.
    pub role: String,
    /// Who is a member of it.
    pub member: String,
    /// `WITH ADMIN OPTION`.
    pub with_admin_option: bool,
    /// `WITH INHERIT`, on servers of PostgreSQL 16 and newer; those before have it at the member.
    #[serde(default)]
    pub inherits: Option<bool>,
    /// `WITH SET`, on servers of PostgreSQL 16 and newer.
    #[serde(default)]
    pub may_set: Option<bool>,
}

/// What a database of a MySQL or MariaDB server holds.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MysqlContent {
    /// Its name.
    pub database: String,
    /// The server's engine and version, for example `MariaDB 10.11.19`.
    pub server: String,
    /// What new tables get.
    pub properties: MysqlProperties,
    /// Tables with their rows as they were dumped.
    pub tables: Vec<TableRows>,
    /// What it holds beside tables, in the order in which it can be made.
    pub objects: Vec<StoredObject>,
}

/// What several databases of a MySQL or MariaDB server hold.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MysqlServerContent {
    /// The databases, in the order of their names.
    pub databases: Vec<MysqlServerDatabase>,
}

/// One of several databases of a server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MysqlServerDatabase {
    /// The folder of its parts in the backup.
    pub folder: String,
    /// When its view was taken: every database has one of its own.
    pub taken_at: Timestamp,
    /// The position in the server's log then, if it keeps one.
    pub consistency_point: Option<String>,
    /// What it holds.
    pub content: MysqlContent,
}

/// What belongs to a database of a MySQL or MariaDB server and stands outside of its tables.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MysqlProperties {
    /// The character set of new tables, for example `utf8mb4`.
    pub character_set: String,
    /// The collation of new tables.
    pub collation: String,
    /// What its comment says, where the server knows comments.
    pub comment: Option<String>,
}

/// A program or a view in a database of a MySQL or MariaDB server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StoredObject {
    /// What it is.
    pub kind: ObjectKind,
    /// Its name.
    pub name: String,
    /// The table that a trigger stands at.
    pub table: Option<String>,
    /// What makes it; of a trigger, up to the name of its table.
    pub statement: String,
    /// What a trigger does.
    pub body: Option<String>,
    /// The `sql_mode` in which it was made, and in which it runs.
    pub sql_mode: String,
    /// The `character_set_client` in which it was made.
    pub character_set_client: String,
    /// The `collation_connection` in which it was made.
    pub collation_connection: String,
    /// The collation that the database had when it was made; a view has none.
    pub database_collation: Option<String>,
    /// The time zone of an event.
    pub time_zone: Option<String>,
    /// Whether it is a view of something that was gone already: the server makes no such view anew.
    pub is_broken: bool,
}

impl StoredObject {
    /// Returns an object that nothing is known of but its name.
    pub fn new(kind: ObjectKind, name: &str) -> Self {
        Self {
            kind,
            name: name.to_owned(),
            table: None,
            statement: String::new(),
            body: None,
            sql_mode: String::new(),
            character_set_client: String::new(),
            collation_connection: String::new(),
            database_collation: None,
            time_zone: None,
            is_broken: false,
        }
    }
}

/// What a stored object is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ObjectKind {
    /// A package of Oracle's kind; only MariaDB has them.
    Package,
    /// The programs of a package.
    PackageBody,
    /// A function.
    Function,
    /// A procedure.
    Procedure,
    /// A view.
    View,
    /// A trigger.
    Trigger,
    /// An event.
    Event,
}

/// What a Redis or Valkey server holds.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RedisContent {
    /// The server's engine and version, for example `Redis 7.0.15`.
    pub server: String,
    /// Bytes of memory that the data took.
    pub memory_bytes: u64,
    /// The databases that are not empty, in the order of their numbers.
    pub databases: Vec<RedisDatabase>,
    /// The names of the server's libraries of functions.
    pub functions: Vec<String>,
    /// Values of so many bytes that a restore must know their size before it has read them.
    pub large_values: Vec<LargeValue>,
}

/// A database of a Redis or Valkey server.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RedisDatabase {
    /// Its number.
    pub number: u64,
    /// How many keys it has.
    pub keys: u64,
    /// How many of them expire.
    pub expiring: u64,
    /// How many keys there are of each type, as `TYPE` names it; all types of modules are one.
    pub types: BTreeMap<String, u64>,
}

/// A large value in a part.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LargeValue {
    /// Where in the part's plain bytes it begins.
    pub offset: u64,
    /// How many bytes it has there.
    pub bytes: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn membership_of_before_its_options_is_read_as_one_that_has_none() {
        let old = r#"{"role": "readers", "member": "app", "with_admin_option": false}"#;
        let membership: Membership = serde_json::from_str(old).unwrap();
        assert_eq!((membership.inherits, membership.may_set), (None, None));
    }
}
