//! Reading a database: one exported snapshot for the dump and for all that is asked beside it.

use std::io::{self, BufReader, Read, Write as _};
use std::os::unix::process::ExitStatusExt as _;
use std::process::Stdio;
use std::time::Duration;

use async_trait::async_trait;
use backstay_format::{Content, MediaType, PostgresContent, TableRows};
use bytes::Bytes;
use tokio::task::JoinHandle;
use tokio_postgres::Client;

use super::archive::{self, Archive, ArchiveError};
use super::connection::KEEPALIVES;
use super::error::{PostgresError, statement};
use super::names::{self, bytes_of};
use super::program::Program;
use super::tools::Tools;
use super::{PostgresSource, describe, globals};
use crate::cx::Cx;
use crate::part::{CHUNK_BYTES, CaptureReport, PartReader, PartWriter, part_pipe};
use crate::source::{Capture, Probe, SourceError, fixed_part};

const ROLES: &str = "roles.sql";
const PROPERTIES: &str = "properties.sql";
pub(super) const DUMP: &str = "database.dump";
/// Of the pipe from the dump.
const PIPE_BYTES: usize = 1 << 20;
/// How often it is looked whether somebody waits behind the dump.
const WATCH_EVERY: Duration = Duration::from_secs(1);

/// A session with the database, and what fits its server.
pub(super) struct Opened {
    client: Client,
    major: u32,
    tools: Tools,
    pub(super) probe: Probe,
}

/// Connects, and asks what a backup would find.
pub(super) async fn open(cx: &Cx, source: &PostgresSource) -> Result<Opened, PostgresError> {
    let programs = source.options.programs.as_deref();
    let (client, installed) =
        tokio::join!(source.connection.connect(cx), Tools::installed(programs));
    let client = client?;
    let major = describe::major_version(&client).await?;
    let tools = Tools::fitting(installed, major)?;
    let row = client
        .query_one(
            "SELECT pg_database_size(current_database()), current_setting('server_version'),
                    (SELECT count(*) FROM pg_class WHERE relkind = 'r' AND NOT relnamespace::regnamespace::text ~ '^(pg_|information_schema$)')",
            &[],
        )
        .await
        .map_err(statement("ask for the database's size"))?;
    let unreadable = format!(
        "SELECT {} FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
          WHERE c.relkind IN ('r', 'p', 'S') AND n.nspname !~ '^(pg_|information_schema$)'
            AND NOT (has_schema_privilege(n.oid, 'USAGE') AND has_table_privilege(c.oid, 'SELECT')) ORDER BY 1 LIMIT 5",
        bytes_of("c.oid::regclass")
    );
    let unreadable =
        names::read(&client, &unreadable, "look for tables that may not be read").await?;
    if !unreadable.is_empty() {
        let (names, user) = (unreadable.join(", "), &source.connection.user);
        let finding = format!(
            "role {user} may not read {names}; GRANT pg_read_all_data TO {user} gives it that right"
        );
        return Err(PostgresError::Refused { finding });
    }
    let probe = Probe {
        engine: Some(format!("PostgreSQL {}", row.get::<_, String>(1))),
        size_bytes: row.get::<_, i64>(0).unsigned_abs(),
        items: Some(row.get::<_, i64>(2).unsigned_abs()),
        warnings: Vec::new(),
    };
    Ok(Opened { client, major, tools, probe })
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
    texts: Vec<(&'static str, String)>,
    /// The part that the dump is written into, until it is taken.
    dump: Option<PartReader>,
    dumping: JoinHandle<Result<Archive, SourceError>>,
}

impl DatabaseCapture {
    pub(super) async fn begin(cx: &Cx, source: &PostgresSource) -> Result<Self, PostgresError> {
        let Opened { client, major, tools, probe } = open(cx, source).await?;
        let millis = source.options.statement_timeout.map_or(0, |timeout| timeout.as_millis());
        let lock_millis = source.options.lock_timeout.as_millis();
        let begin = format!(
            "SET statement_timeout = {millis}; SET lock_timeout = {lock_millis}; SET idle_in_transaction_session_timeout = 0;
             BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY"
        );
        client.batch_execute(&begin).await.map_err(statement("begin to read"))?;
        let row = client
            .query_one(
                "SELECT pg_export_snapshot(), current_setting('server_version'),
                        (CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_lsn() END)::text,
                        getdatabaseencoding()::text",
                &[],
            )
            .await
            .map_err(statement("take a snapshot"))?;
        // It connects and looks around while we do.
        let spec = fixed_part(DUMP, MediaType::PostgresDump, Some(probe.size_bytes));
        let (writer, dump) = part_pipe(spec);
        let view = View { snapshot: row.get(0), encoding: row.get(3) };
        let dumping = start_dump(cx, source, &tools, &view, writer)?;
        let dumping = tokio::spawn(dumping.finish());
        // Hashes of passwords are secrets, and parts that are not sealed are open to anybody.
        let roles = describe::roles(&client, source.options.with_passwords).await?;
        let memberships = describe::memberships(&client, major).await?;
        let properties = describe::properties(&client, major).await?;
        let mut warnings = Vec::new();
        let migrations = match &source.options.migrations {
            Some(query) => applied_migrations(&client, query, &mut warnings).await?,
            None => None,
        };
        let texts = vec![
            (PROPERTIES, globals::database_file(&source.connection.database, &properties)),
            (ROLES, globals::roles_file(&roles, &memberships)),
        ];
        let content = PostgresContent {
            database: source.connection.database.clone(),
            server_version: row.get(1),
            properties,
            roles,
            memberships,
            extensions: describe::extensions(&client).await?,
            tables: Vec::new(),
            large_objects: 0,
        };
        Ok(Self {
            consistency_point: row.get(2),
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
    let mut command = source.connection.program(tools.pg_dump());
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
    // More room means fewer turns of both; where the system grants none, the usual room does.
    if let Err(error) = rustix::pipe::fcntl_setpipe_size(&stdout, PIPE_BYTES) {
        tracing::debug!(%error, "the pipe from pg_dump keeps its size");
    }
    let reading = tokio::task::spawn_blocking(move || {
        let mut tee = Tee { input: std::fs::File::from(stdout), output: writer };
        let read = archive::read(BufReader::with_capacity(CHUNK_BYTES, &mut tee));
        // The pipe is closed here: a program that still writes must not wait for a reader that gave up.
        (tee.output, read)
    });
    Ok(Dumping { cx: cx.clone(), source: source.clone(), session, program, reading })
}

#[async_trait]
impl Capture for DatabaseCapture {
    async fn next_part(&mut self, _cx: &Cx) -> Result<Option<PartReader>, SourceError> {
        if let Some((name, text)) = self.texts.pop() {
            let (mut writer, reader) =
                part_pipe(fixed_part(name, MediaType::Sql, Some(text.len() as u64)));
            // Ends by itself when the reader goes away.
            drop(tokio::spawn(async move {
                if writer.send(Bytes::from(text)).await.is_ok() {
                    writer.finish_async().await;
                }
            }));
            return Ok(Some(reader));
        }
        Ok(self.dump.take())
    }

    async fn finish(self: Box<Self>, cx: &Cx) -> Result<CaptureReport, SourceError> {
        let never = || PostgresError::Archive { finding: "the database was not dumped".to_owned() };
        // A dump that nobody took ends now.
        drop(self.dump);
        let archive = self.dumping.await.map_err(|_died| never())??;
        let (names, rows): (Vec<_>, Vec<u64>) = archive.tables.into_iter().unzip();
        let encoding = &self.content.properties.encoding;
        let names = cx.run(names::to_utf8(&self.client, encoding, names)).await??;
        let tables = names.iter().zip(rows);
        let tables = tables.map(|(name, rows)| TableRows { table: name.shown(), rows }).collect();
        // The snapshot was of use until here.
        let ended = cx.run(self.client.batch_execute("ROLLBACK")).await?;
        ended.map_err(statement("end reading"))?;
        let engine = format!("PostgreSQL {}", self.content.server_version);
        let content =
            PostgresContent { tables, large_objects: archive.large_objects, ..self.content };
        Ok(CaptureReport {
            engine: Some(engine),
            content: Some(Content::Postgres(Box::new(content))),
            consistency_point: Some(self.consistency_point),
            schema_version: self.migrations,
            warnings: self.warnings,
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
            waiting = behind(&self.cx, &self.source, &self.session) => return Err(waiting.into()),
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

/// Ends when somebody has waited too long for a lock that the dump holds: the app matters more than its backup.
async fn behind(cx: &Cx, source: &PostgresSource, session: &str) -> PostgresError {
    let watch = async {
        // Most dumps are over before anybody could have waited long.
        tokio::time::sleep(WATCH_EVERY).await;
        let client = source.connection.connect(cx).await?;
        let limit = source.options.lock_timeout.as_secs_f64();
        loop {
            let row = client
                .query_opt(
                    &format!("SELECT w.pid, {}
                       FROM pg_locks w, pg_stat_activity d
                      WHERE d.application_name = $1 AND d.pid = ANY (pg_blocking_pids(w.pid))
                        AND NOT w.granted AND now() - w.waitstart > make_interval(secs => $2) LIMIT 1", bytes_of("coalesce(w.relation::regclass::text, w.locktype)")),
                    &[&session, &limit],
                )
                .await
                .map_err(statement("look who waits behind the dump"))?;
            if let Some(row) = row {
                return Ok::<(i32, String), PostgresError>((row.get(0), names::text(&row, 1)));
            }
            tokio::time::sleep(WATCH_EVERY).await;
        }
    };
    match watch.await {
        Ok((pid, lock)) => PostgresError::Refused {
            finding: format!(
                "session {pid} waited longer than {} s behind the dump for a lock on {lock}, so the dump gave way; back up again when it is done, or raise lock_timeout",
                source.options.lock_timeout.as_secs()
            ),
        },
        // A dump that nobody can watch is still a dump.
        Err(_) => std::future::pending().await,
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
