//! Reading a database: one exported snapshot for the dump and for all that is asked beside it.

use std::io::{self, BufReader, Read, Write as _};
use std::os::unix::process::ExitStatusExt as _;
use std::process::Stdio;

use async_trait::async_trait;
use backstay_format::{Content, MediaType, PostgresContent, TableRows};
use tokio::task::{JoinHandle, JoinSet};
use tokio_postgres::Client;

use super::archive::{self, Archive, ArchiveError};
use super::connection::{KEEPALIVES, PostgresConnection as _};
use super::error::{PostgresError, statement};
use super::names::{self, bytes_of};
use super::tools::Tools;
use super::{PostgresSource, describe, globals, watch};
use crate::cx::Cx;
use crate::part::{CHUNK_BYTES, CaptureReport, PartReader, PartWriter, part_pipe};
use crate::source::program::{Program, widen};
use crate::source::{Capture, Probe, SourceError, fixed_part, text_part};

pub(super) const ROLES: &str = "roles.sql";
const PROPERTIES: &str = "properties.sql";
const DUMP: &str = "database.dump";
/// What every database has before anything is made in it; none of that is dumped.
const EMPTY_DATABASE_BYTES: u64 = 7 << 20;

/// A session with the database, in a transaction that sees one view of it, and what fits its server.
struct Opened {
    client: Client,
    major: u32,
    tools: Tools,
    server_version: String,
    consistency_point: String,
    view: View,
}

/// Connects, begins to read, and says what a backup would find.
pub(super) async fn probe(cx: &Cx, source: &PostgresSource) -> Result<Probe, PostgresError> {
    let opened = open(cx, source).await?;
    check_readable(&opened.client, &source.connection.user).await?;
    Ok(Probe {
        engine: Some(engine(&opened.server_version)),
        size_bytes: describe::size_bytes(&opened.client).await?,
        items: Some(describe::tables(&opened.client).await?),
        warnings: Vec::new(),
    })
}

/// Asks what is needed for a dump to begin, at once, and nothing else: whatever is waited for here costs a small backup dear.
async fn open(cx: &Cx, source: &PostgresSource) -> Result<Opened, PostgresError> {
    let client = source.connection.connect(cx).await?;
    source.ensure_not_spared(&client).await?;
    let millis = source.options.statement_timeout.map_or(0, |timeout| timeout.as_millis());
    let lock_millis = source.options.lock_timeout.as_millis();
    let begin = format!(
        "SET statement_timeout = {millis}; SET lock_timeout = {lock_millis}; SET idle_in_transaction_session_timeout = 0;
         BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY;
         SELECT pg_export_snapshot(), current_setting('server_version_num'), current_setting('server_version'),
                CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_lsn() END,
                getdatabaseencoding()"
    );
    let rows = describe::texts(&client, &begin, "begin to read").await?;
    let mut columns = rows.into_iter().flatten().map(Option::unwrap_or_default);
    let mut text = || columns.next().unwrap_or_default();
    let (snapshot, number) = (text(), text());
    let major = number.parse().map_or(0, |number: u32| number / 10_000);
    Ok(Opened {
        client,
        major,
        tools: Tools::find(source.options.programs.as_deref(), major).await?,
        server_version: text(),
        consistency_point: text(),
        view: View { snapshot, encoding: text() },
    })
}

/// Fails if the role may not read everything, with what gives it that right.
async fn check_readable(client: &Client, user: &str) -> Result<(), PostgresError> {
    let query = format!(
        "SELECT {} FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
          WHERE c.relkind IN ('r', 'p', 'S') AND n.nspname !~ '^(pg_|information_schema$)'
            AND NOT (has_schema_privilege(n.oid, 'USAGE') AND has_table_privilege(c.oid, 'SELECT')) ORDER BY 1 LIMIT 5",
        bytes_of("c.oid::regclass")
    );
    let unreadable = names::read(client, &query, "look for tables that may not be read").await?;
    if unreadable.is_empty() {
        return Ok(());
    }
    let names = unreadable.join(", ");
    let finding = format!(
        "role {user} may not read {names}; GRANT pg_read_all_data TO {user} gives it that right"
    );
    Err(PostgresError::Refused { finding })
}

/// One view of a database.
pub(super) struct DatabaseCapture {
    /// Its transaction holds the snapshot.
    client: Client,
    content: PostgresContent,
    migrations: Option<Vec<String>>,
    warnings: Vec<String>,
    consistency_point: String,
    /// Parts that are there already, the last first.
    texts: Vec<(String, String)>,
    /// The part that the dump is written into, until it is taken.
    dump: Option<PartReader>,
    /// The one task that waits for the dump; the dump ends with this.
    dumping: JoinSet<Result<Archive, SourceError>>,
}

impl DatabaseCapture {
    /// Takes a snapshot, and starts to dump it. With a `folder`, the database is one of several: its parts lie there, and
    /// the server's roles are not among them.
    pub(super) async fn begin(
        cx: &Cx,
        source: &PostgresSource,
        folder: Option<&str>,
    ) -> Result<Self, PostgresError> {
        let opened = open(cx, source).await?;
        // It connects and looks around while we do.
        let part = |name: &str| folder.map_or_else(|| name.to_owned(), |f| format!("{f}/{name}"));
        let (writer, mut dump) = part_pipe(fixed_part(&part(DUMP), MediaType::PostgresDump, None));
        let mut dumping = JoinSet::new();
        let started = start_dump(cx, source, &opened.tools, &opened.view, writer)?;
        drop(dumping.spawn(started.finish()));
        let Opened { client, major, .. } = opened;
        // Hashes of passwords are secrets, and parts that are not sealed are open to anybody.
        let with_passwords = source.options.with_passwords;
        let ((), size, mut roles, memberships, properties, extensions, tablespaces) = tokio::try_join!(
            check_readable(&client, &source.connection.user),
            describe::size_bytes(&client),
            describe::roles(&client, with_passwords),
            describe::memberships(&client, major),
            describe::properties(&client, major),
            describe::extensions(&client),
            describe::tablespaces_in_use(&client),
        )?;
        dump.spec.estimate_bytes = Some(size.saturating_sub(EMPTY_DATABASE_BYTES));
        let mut warnings = Vec::new();
        let migrations = match &source.options.migrations {
            Some(query) => applied_migrations(&client, query, &mut warnings).await?,
            None => None,
        };
        let properties_file = globals::database_file(&source.connection.database, &properties);
        let mut texts = vec![(part(PROPERTIES), properties_file)];
        if folder.is_some() {
            roles.retain(|role| role.is_needed);
        } else {
            texts.push((ROLES.to_owned(), globals::roles_file(&roles, &memberships)));
        }
        let content = PostgresContent {
            database: source.connection.database.clone(),
            server_version: opened.server_version,
            properties,
            roles,
            memberships,
            extensions,
            tablespaces,
            tables: Vec::new(),
            large_objects: 0,
        };
        Ok(Self {
            consistency_point: opened.consistency_point,
            client,
            content,
            migrations,
            warnings,
            texts,
            dump: Some(dump),
            dumping,
        })
    }
}

impl DatabaseCapture {
    /// Gives what is read the name of another database, in whose stead it is.
    pub(super) fn call(&mut self, name: &str) {
        name.clone_into(&mut self.content.database);
        let properties = self.texts.iter_mut().find(|(part, _)| part == PROPERTIES);
        if let Some((_, text)) = properties {
            *text = globals::database_file(name, &self.content.properties);
        }
    }
}

/// Reads the applied migrations. That they cannot be read makes the dump no worse.
async fn applied_migrations(
    client: &Client,
    query: &str,
    warnings: &mut Vec<String>,
) -> Result<Option<Vec<String>>, PostgresError> {
    let guard = |text: &'static str| async move {
        client.batch_execute(text).await.map_err(statement("guard the query for migrations"))
    };
    guard("SAVEPOINT migrations").await?;
    match describe::migrations(client, query).await {
        Ok(migrations) => Ok(Some(migrations)),
        Err(error) => {
            warnings.push(error.to_string());
            guard("ROLLBACK TO migrations").await?;
            Ok(None)
        }
    }
}

/// What is dumped, and how it is written.
struct View {
    snapshot: String,
    /// Of the database. A default of its own for clients would make the dump one of converted bytes.
    encoding: String,
}

/// Starts to dump what a snapshot shows.
fn start_dump(
    cx: &Cx,
    source: &PostgresSource,
    tools: &Tools,
    view: &View,
    writer: PartWriter,
) -> Result<Dumping, PostgresError> {
    let mut command = source.connection.program(tools.pg_dump())?;
    // A session of this name is the dump's; whoever waits for it is found by it.
    let session = format!("backstay dump {}", view.snapshot);
    command.env("PGDATABASE", &source.connection.database).env("PGAPPNAME", &session);
    command.args(["--format=custom", "--compress=0", "--no-password"]);
    command.arg(format!("--dbname={KEEPALIVES}"));
    command.arg(format!("--snapshot={}", view.snapshot));
    command.arg(format!("--encoding={}", view.encoding));
    let lock_timeout = source.options.lock_timeout.as_millis();
    command.arg(format!("--lock-wait-timeout={lock_timeout}"));
    command.stdin(Stdio::null()).stdout(Stdio::piped());
    let mut program = Program::start("pg_dump", command)?;
    let stdout = program.child.stdout.take().and_then(|pipe| pipe.into_owned_fd().ok());
    let stdout = stdout.ok_or_else(|| PostgresError::Archive {
        finding: "the output of pg_dump cannot be read".to_owned(),
    })?;
    widen(&stdout);
    let reading = tokio::task::spawn_blocking(move || {
        let mut tee = Tee { input: std::fs::File::from(stdout), output: writer };
        let read = archive::read(BufReader::with_capacity(CHUNK_BYTES, &mut tee));
        // The pipe is closed here: a program that still writes must not wait for a reader that gave up.
        (tee.output, read)
    });
    Ok(Dumping { cx: cx.clone(), source: source.clone(), session, program, reading })
}

/// Says what engine a manifest names.
pub(super) fn engine(server_version: &str) -> String {
    format!("PostgreSQL {server_version}")
}

#[async_trait]
impl Capture for DatabaseCapture {
    async fn next_part(&mut self, _cx: &Cx) -> Result<Option<PartReader>, SourceError> {
        match self.texts.pop() {
            Some((name, text)) => Ok(Some(text_part(&name, MediaType::Sql, text))),
            None => Ok(self.dump.take()),
        }
    }

    async fn finish(mut self: Box<Self>, cx: &Cx) -> Result<CaptureReport, SourceError> {
        let never = || PostgresError::Archive { finding: "the database was not dumped".to_owned() };
        // A dump that nobody took ends now.
        drop(self.dump);
        let archive = self.dumping.join_next().await.and_then(Result::ok).ok_or_else(never)??;
        let (names, rows): (Vec<_>, Vec<u64>) = archive.tables.into_iter().unzip();
        let encoding = &self.content.properties.encoding;
        let names = cx.run(names::to_utf8(&self.client, encoding, names)).await??;
        let tables = names.iter().zip(rows);
        let tables = tables.map(|(name, rows)| TableRows { table: name.shown(), rows }).collect();
        // The snapshot was of use until here.
        let ended = cx.run(self.client.batch_execute("ROLLBACK")).await?;
        ended.map_err(statement("end reading"))?;
        let Self { content, consistency_point, migrations, warnings, .. } = *self;
        let content = PostgresContent { tables, large_objects: archive.large_objects, ..content };
        Ok(CaptureReport {
            engine: Some(engine(&content.server_version)),
            content: Some(Content::Postgres(Box::new(content))),
            consistency_point: Some(consistency_point),
            schema_version: migrations,
            warnings,
            ..CaptureReport::default()
        })
    }
}

/// A dump that is under way.
struct Dumping {
    cx: Cx,
    source: PostgresSource,
    session: String,
    program: Program,
    reading: JoinHandle<(PartWriter, Result<Archive, ArchiveError>)>,
}

impl Dumping {
    /// Waits for the dump. Its part ends well only if the program did and if what it wrote is whole.
    async fn finish(mut self) -> Result<Archive, SourceError> {
        let status = tokio::select! {
            status = self.cx.run(self.program.wait()) => status??,
            waiting = watch::behind(&self.cx, &self.source, &self.session) => return Err(waiting.into()),
        };
        let (writer, read) = self.reading.await.map_err(|_died| PostgresError::Archive {
            finding: "the thread that reads the dump died".to_owned(),
        })?;
        // How the program ended says more than what it left unsaid, unless it ended because nobody read on.
        if read.is_ok() || status.signal() != Some(rustix::process::Signal::PIPE.as_raw()) {
            self.program.judge(status).await?;
        }
        let archive =
            read.map_err(|error| PostgresError::Archive { finding: error.to_string() })?;
        writer.finish_async().await;
        Ok(archive)
    }
}

/// Passes on what it reads.
struct Tee {
    input: std::fs::File,
    output: PartWriter,
}

impl Read for &mut Tee {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.input.read(buffer)?;
        self.output.write_all(buffer.get(..read).unwrap_or_default())?;
        Ok(read)
    }
}
