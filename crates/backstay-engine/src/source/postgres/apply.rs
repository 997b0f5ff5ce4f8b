//! Loading a dump into a new database beside the one that it will replace.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::process::Stdio;
use std::time::Duration;

use async_trait::async_trait;
use backstay_format::{Content, DatabaseRole, Details, MediaType, PostgresContent, TableRows};
use tokio::io::AsyncWriteExt as _;
use tokio_postgres::Client;

use super::connection::{Connection, KEEPALIVES};
use super::error::{PostgresError, statement};
use super::exchange::{self, Replacement, limit_locks};
use super::names::{self, TableName, bytes_of};
use super::program::Program;
use super::tools::Tools;
use super::{PostgresSource, describe, globals};
use crate::cx::Cx;
use crate::part::PartReader;
use crate::source::{
    Applied, ApplyReport, How, Loaded, Outlook, SourceError, Target, TargetOptions,
};

/// A preview must not keep a person waiting: what is not counted by then is not shown.
const COUNTING: Duration = Duration::from_secs(10);
/// Tables that differ are named up to this number.
const SHOWN_DIFFERENCES: usize = 10;

/// A new database beside the target.
pub(super) struct DatabaseTarget {
    source: PostgresSource,
    /// The server and database that are restored to, or why they are not known.
    target: Result<Connection, String>,
    is_own: bool,
    only_some: bool,
    in_place: bool,
    tag: String,
    /// What the backup says of itself; known from the preparation on.
    content: Option<PostgresContent>,
    /// A session with a database that is none of the user's; there from the preparation on.
    server: Option<Client>,
    report: ApplyReport,
}

impl DatabaseTarget {
    pub(super) fn new(source: &PostgresSource, options: TargetOptions) -> Self {
        let own = &source.connection;
        let target = match options.to.map(OsString::into_string) {
            None => Ok(own.clone()),
            Some(Err(_)) => Err("the name of a database is text in UTF-8".to_owned()),
            Some(Ok(name)) if name.is_empty() || name.contains("://") => {
                Err("another place is the name of a database on the same server".to_owned())
            }
            Some(Ok(name)) => Ok(own.with_database(&name)),
        };
        let is_own = target.as_ref().is_ok_and(|target| target.database == own.database);
        Self {
            source: source.clone(),
            target,
            is_own,
            only_some: !options.only.is_empty(),
            in_place: options.in_place,
            tag: options.tag,
            content: None,
            server: None,
            report: ApplyReport::default(),
        }
    }

    fn target(&self) -> Result<&Connection, PostgresError> {
        self.target.as_ref().map_err(refused)
    }

    async fn maintenance(&self, cx: &Cx) -> Result<Client, PostgresError> {
        exchange::maintenance(cx, self.target()?, self.source.options.lock_timeout).await
    }

    fn replacement(&self) -> Result<Replacement, PostgresError> {
        let target = self.target()?;
        Ok(Replacement {
            server: exchange::server_of(target),
            target: target.database.clone(),
            loaded: format!("backstay_new_{}", self.tag),
            parked: format!("backstay_old_{}", self.tag),
            comment: self.content.as_ref().and_then(|content| content.properties.comment.clone()),
        })
    }

    fn content(&self) -> Result<PostgresContent, PostgresError> {
        let content = self.content.clone();
        content.ok_or_else(|| refused("the backup does not say what it holds"))
    }

    /// Looks at the server. Everything that stands against the restore is found here.
    async fn look(
        &self,
        cx: &Cx,
        content: &PostgresContent,
        details: &Details,
    ) -> Result<Outlook, PostgresError> {
        if self.only_some || self.in_place {
            return Err(refused(
                "a PostgreSQL database is restored as a whole and beside; --only and --in-place are not in this version",
            ));
        }
        let target = self.target()?;
        let server = self.maintenance(cx).await?;
        let major = describe::major_version(&server).await?;
        Tools::find(self.source.options.programs.as_deref(), major).await?;
        let backed_up = major_of(&content.server_version);
        if backed_up > major {
            return Err(refused(format!(
                "the backup is of PostgreSQL {backed_up} and the server is {major}; restore it to a server of {backed_up} or newer"
            )));
        }
        let mut warnings = Vec::new();
        if backed_up < major {
            warnings
                .push(format!("the backup is of PostgreSQL {backed_up} and the server is {major}"));
        }
        let replaces = exchange::exists(&server, &target.database).await?;
        if replaces && !self.is_own {
            return Err(refused(format!(
                "the database {} is there already; give a name that is free",
                target.database
            )));
        }
        may_create(&server, &target.user).await?;
        let missing = missing_roles(&server, content).await?;
        if !missing.is_empty() {
            let names: Vec<&str> = missing.iter().map(|role| role.name.as_str()).collect();
            warnings
                .push(format!("these roles are missing and will be made: {}", names.join(", ")));
        }
        missing_extensions(&server, content).await?;
        let mut present = None;
        if replaces {
            match self.look_at_present(cx, target).await {
                Ok(found) => {
                    compare_migrations(details, found.migrations.as_deref(), &mut warnings)?;
                    present = Some(found);
                }
                // What is broken is what restores are for.
                Err(error) => {
                    warnings.push(format!("what is there now cannot be looked at: {error}"));
                }
            }
        }
        let present = present.and_then(|present| present.tables).map(|tables| {
            let now = PostgresContent { tables, ..PostgresContent::default() };
            Content::Postgres(Box::new(now))
        });
        let target = target.location();
        Ok(Outlook { target, replaces, how: How::Databases, present, warnings })
    }

    async fn look_at_present(
        &self,
        cx: &Cx,
        target: &Connection,
    ) -> Result<Present, PostgresError> {
        let client = target.connect(cx).await?;
        let limit = format!("SET statement_timeout = {}", COUNTING.as_millis());
        client.batch_execute(&limit).await.map_err(statement("look at what is there"))?;
        let migrations = match &self.source.options.migrations {
            Some(query) => Some(describe::migrations(&client, query).await?),
            None => None,
        };
        let counted = tokio::time::timeout(COUNTING, count_all(&client)).await;
        // A database that is too large to be counted for a preview is one all the same.
        let tables = counted.ok().and_then(Result::ok);
        Ok(Present { migrations, tables })
    }

    fn server(&self) -> Result<&Client, PostgresError> {
        self.server.as_ref().ok_or_else(|| refused("the restore was not prepared"))
    }

    async fn load(&mut self, mut data: PartReader) -> Result<(), SourceError> {
        let target = self.target()?;
        let major = describe::major_version(self.server()?).await?;
        let tools = Tools::find(self.source.options.programs.as_deref(), major).await?;
        let loaded = self.replacement()?.loaded;
        let mut command = target.program(tools.pg_restore());
        // As a value inside of a connection string, a name is only a name.
        let name = loaded.replace('\\', "\\\\").replace('\'', "\\'");
        command.arg(format!("--dbname=dbname='{name}' {KEEPALIVES}"));
        command.args(["--format=custom", "--no-password"]);
        command.stdin(Stdio::piped()).stdout(Stdio::null());
        let mut program = Program::start("pg_restore", command)?;
        let mut stdin = program.child.stdin.take();
        while let Some(bytes) = data.next().await? {
            let Some(pipe) = &mut stdin else { break };
            // A program that takes no more has ended; how, is asked below.
            if pipe.write_all(&bytes).await.is_err() {
                break;
            }
            self.report.bytes += bytes.len() as u64;
        }
        drop(stdin);
        let status = program.wait().await?;
        program.judge(status).await?;
        Ok(())
    }

    /// Proves what was loaded, and gives it what stands outside of the dump.
    async fn complete(&mut self, cx: &Cx) -> Result<(), PostgresError> {
        let (content, loaded) = (self.content()?, self.replacement()?.loaded);
        // From within: there, the names of roles have the bytes that they have in this encoding.
        let client = self.target()?.with_database(&loaded).connect(cx).await?;
        limit_locks(&client, self.source.options.lock_timeout).await?;
        compare_rows(&client, &content).await?;
        self.report.items = content.tables.len() as u64;
        for dressing in globals::dress_database(&loaded, &content.properties) {
            let given = client.batch_execute(&dressing).await;
            given.map_err(statement("give the new database its properties"))?;
        }
        Ok(())
    }

    /// Marks the new database as ours, and makes the roles that it needs.
    async fn equip(&self, cx: &Cx, content: &PostgresContent) -> Result<(), PostgresError> {
        let loaded = self.replacement()?.loaded;
        let mark = exchange::mark(&self.source.connection.database);
        let mark = globals::comment_database(&loaded, Some(&mark));
        let marked = self.server()?.batch_execute(&mark).await;
        marked.map_err(statement("mark the new database"))?;
        let client = self.target()?.with_database(&loaded).connect(cx).await?;
        let missing = missing_roles(&client, content).await?;
        for create in missing.iter().flat_map(|role| globals::create_role(role)) {
            client.batch_execute(&create).await.map_err(statement("make a missing role"))?;
        }
        let is_new = |name: &String| missing.iter().any(|role| role.name == *name);
        for membership in content.memberships.iter().filter(|one| is_new(&one.member)) {
            let grant = globals::grant_membership(membership);
            client.batch_execute(&grant).await.map_err(statement("make a role a member"))?;
        }
        Ok(())
    }

    async fn drop_loaded(&self, cx: &Cx) -> Result<(), PostgresError> {
        let server = self.maintenance(cx).await?;
        exchange::drop_database(&server, &self.replacement()?.loaded).await
    }
}

#[async_trait]
impl Target for DatabaseTarget {
    async fn outlook(&self, cx: &Cx, details: &Details) -> Result<Outlook, SourceError> {
        let Some(Content::Postgres(content)) = &details.content else {
            return Err(refused("the backup is not of a PostgreSQL database").into());
        };
        Ok(cx.run(self.look(cx, content, details)).await??)
    }

    async fn prepare(&mut self, cx: &Cx, details: &Details) -> Result<(), SourceError> {
        let Some(Content::Postgres(content)) = &details.content else {
            return Err(refused("the backup is not of a PostgreSQL database").into());
        };
        let server = self.maintenance(cx).await?;
        let create = globals::create_database(&self.replacement()?.loaded, &content.properties);
        // Not given up half-way: the server would make the database all the same, and nobody would know that it is ours.
        server.batch_execute(&create).await.map_err(statement("make a new database"))?;
        self.content = Some((**content).clone());
        self.server = Some(server);
        let equipped = cx.run(self.equip(cx, content)).await;
        if let Err(error) = equipped.map_err(PostgresError::from).flatten() {
            self.drop_loaded(&cx.for_cleanup()).await?;
            return Err(error.into());
        }
        Ok(())
    }

    async fn apply(&mut self, cx: &Cx, mut data: PartReader) -> Result<Applied, SourceError> {
        if data.spec.media_type == MediaType::PostgresDump {
            cx.run(self.load(data)).await??;
        } else {
            // For people with psql; the manifest says the same in a form that needs no reading of SQL.
            while data.next().await?.is_some() {}
        }
        Ok(Applied::Done)
    }

    async fn finish(mut self: Box<Self>, cx: &Cx) -> Result<Loaded, SourceError> {
        let completed = cx.run(self.complete(cx)).await;
        if let Err(error) = completed.map_err(PostgresError::from).flatten() {
            self.discard(&cx.for_cleanup()).await?;
            return Err(error.into());
        }
        let replacement = self.replacement()?.into();
        Ok(Loaded { report: self.report, replacement })
    }

    async fn discard(self: Box<Self>, cx: &Cx) -> Result<(), SourceError> {
        Ok(self.drop_loaded(cx).await?)
    }
}

/// What is there now.
struct Present {
    migrations: Option<Vec<String>>,
    tables: Option<Vec<TableRows>>,
}

/// The app that is there must be able to work with what comes back (V54).
fn compare_migrations(
    details: &Details,
    now: Option<&[String]>,
    warnings: &mut Vec<String>,
) -> Result<(), PostgresError> {
    let (Some(then), Some(now)) = (&details.schema_version, now) else { return Ok(()) };
    let ahead: Vec<&String> = then.iter().filter(|one| !now.contains(one)).collect();
    if let Some(last) = ahead.last() {
        return Err(refused(format!(
            "the backup is {} migrations ahead of the app that is there, up to {last}; upgrade the app first, or restore to another database with --to",
            ahead.len()
        )));
    }
    let behind = now.iter().filter(|one| !then.contains(one)).count();
    if behind > 0 {
        warnings.push(format!(
            "the backup is {behind} migrations behind what is there; the app has to run them again"
        ));
    }
    Ok(())
}

fn refused(finding: impl Into<String>) -> PostgresError {
    PostgresError::Refused { finding: finding.into() }
}

fn major_of(version: &str) -> u32 {
    version.split(|c: char| !c.is_ascii_digit()).next().and_then(|n| n.parse().ok()).unwrap_or(0)
}

async fn may_create(server: &Client, user: &str) -> Result<(), PostgresError> {
    let query = "SELECT rolcreatedb OR rolsuper FROM pg_roles WHERE rolname = current_user";
    let row = server.query_one(query, &[]).await.map_err(statement("ask for our rights"))?;
    if row.get(0) {
        return Ok(());
    }
    Err(refused(format!(
        "role {user} may not create databases, and a restore loads into a new one first; ALTER ROLE {user} CREATEDB gives it that right"
    )))
}

async fn missing_roles<'a>(
    server: &Client,
    content: &'a PostgresContent,
) -> Result<Vec<&'a DatabaseRole>, PostgresError> {
    let query = format!("SELECT {} FROM pg_roles", bytes_of("rolname"));
    let known = names::read(server, &query, "read the roles").await?;
    Ok(content.roles.iter().filter(|role| role.is_needed && !known.contains(&role.name)).collect())
}

async fn missing_extensions(
    server: &Client,
    content: &PostgresContent,
) -> Result<(), PostgresError> {
    let query = format!("SELECT {} FROM pg_available_extensions", bytes_of("name"));
    let known = names::read(server, &query, "read the extensions").await?;
    let missing: Vec<&str> =
        content.extensions.iter().filter(|e| !known.contains(e)).map(String::as_str).collect();
    if missing.is_empty() {
        return Ok(());
    }
    Err(refused(format!(
        "the server lacks the extensions {}; install their packages there first",
        missing.join(", ")
    )))
}

/// Compares what was loaded with what was backed up.
async fn compare_rows(client: &Client, content: &PostgresContent) -> Result<(), PostgresError> {
    let found: BTreeSet<(String, u64)> =
        count_all(client).await?.into_iter().map(|t| (t.table, t.rows)).collect();
    let differing = content
        .tables
        .iter()
        .filter(|table| !found.contains(&(table.table.clone(), table.rows)))
        .map(|table| format!("{} should have {} rows", table.table, table.rows));
    let differing: Vec<String> = differing.take(SHOWN_DIFFERENCES).collect();
    if differing.is_empty() {
        return Ok(());
    }
    Err(refused(format!("what was loaded is not what was backed up: {}", differing.join(", "))))
}

/// Counts the rows of every table that has data of its own.
async fn count_all(client: &Client) -> Result<Vec<TableRows>, PostgresError> {
    let counting = || statement("count rows");
    let tables = format!(
        "SELECT c.oid, {}, {} FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
          WHERE c.relkind = 'r' AND n.nspname !~ '^pg_' AND n.nspname <> 'information_schema'",
        bytes_of("n.nspname"),
        bytes_of("c.relname")
    );
    let tables = client.query(&tables, &[]).await.map_err(counting())?;
    let mut counted = Vec::with_capacity(tables.len());
    for row in &tables {
        let name = TableName { schema: row.get(1), table: row.get(2) };
        let counting_rows = name.counting(row.get(0));
        let rows = client.query_one(&counting_rows, &[]).await.map_err(counting())?;
        let rows = rows.get::<_, i64>(0).unsigned_abs();
        counted.push(TableRows { table: name.shown(), rows });
    }
    counted.sort_by(|a, b| a.table.cmp(&b.table));
    Ok(counted)
}
