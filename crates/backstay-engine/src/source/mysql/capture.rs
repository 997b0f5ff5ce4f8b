//! Reading a database: its tables by the server's own program in one transaction, the rest by ourselves.

use std::io::{BufReader, Read as _, Write as _};
use std::process::Stdio;

use async_trait::async_trait;
use backstay_format::{Content, MediaType, MysqlContent, TableRows};
use mysql_async::Conn;
use tokio::task::{JoinHandle, JoinSet};

use super::connection::MysqlConnection as _;
use super::describe::{self, Table};
use super::error::{MysqlError, refused};
use super::objects;
use super::scan::{Scanned, Scanner};
use super::tools::{self, Flavour, Version};
use super::{MysqlOptions, MysqlSource};
use crate::cx::Cx;
use crate::part::{CHUNK_BYTES, CaptureReport, PartReader, PartWriter, part_pipe};
use crate::source::program::{Program, widen};
use crate::source::{Capture, Connection, Probe, SourceError, fixed_part, text_part};

const DUMP: &str = "database.sql";
const OBJECTS: &str = "objects.sql";
pub(super) const ACCOUNTS: &str = "accounts.sql";

/// Since then, MariaDB's program dumps the history of tables with versions.
const HISTORY_SINCE: (u32, u32) = (10, 11);

/// Columns that a warning is of are named up to this number.
const SHOWN_COLUMNS: usize = 5;

/// Connects, and says what a backup would find.
pub(super) async fn probe(cx: &Cx, source: &MysqlSource) -> Result<Probe, MysqlError> {
    let mut session = source.connection.session(cx).await?;
    let opened = open(&mut session, source).await?;
    // Whoever may not read something learns it here.
    objects::read(&mut session, &source.connection.database).await?;
    let mut warnings: Vec<String> =
        not_consistent(&source.options, &opened.tables).into_iter().collect();
    warnings.extend(inexact(&mut session, &source.connection.database).await?);
    if !source.options.with_accounts {
        warnings.push(NO_ACCOUNTS.to_owned());
    }
    Ok(Probe {
        engine: Some(opened.version.engine()),
        size_bytes: opened.tables.iter().map(|table| table.bytes).sum(),
        items: Some(opened.tables.len() as u64),
        warnings,
    })
}

pub(super) const NO_ACCOUNTS: &str =
    "accounts are not taken along: hashes of passwords are secrets, and this backup is not sealed";

/// What is known before the dump begins.
struct Opened {
    version: Version,
    program: std::path::PathBuf,
    tables: Vec<Table>,
}

impl Opened {
    /// Says whether the history of tables with versions can be taken along.
    fn keeps_history(&self) -> bool {
        self.version.series() >= HISTORY_SINCE && self.tables.iter().any(|table| table.is_versioned)
    }
}

async fn open(session: &mut Conn, source: &MysqlSource) -> Result<Opened, MysqlError> {
    let version = describe::version(session).await?;
    let program = tools::find_dump(source.options.programs.as_deref(), &version).await?;
    let database = &source.connection.database;
    if !describe::exists(session, database).await? {
        return Err(refused(format!(
            "there is no database {database} that our user may see; check `database` and what the user may do"
        )));
    }
    let missing = describe::missing_rights(session, database).await?;
    if !missing.is_empty() {
        let user = &source.connection.user;
        return Err(refused(format!(
            "user {user} may not see all of {database}, and what it does not see would be missing silently: it lacks {}; GRANT SELECT, SHOW VIEW, TRIGGER, EVENT ON `{database}`.* and SELECT ON mysql.* give it these rights",
            missing.join(", ")
        )));
    }
    let tables = describe::tables(session, database).await?;
    Ok(Opened { version, program, tables })
}

/// Names the tables that can change while they are read.
fn not_consistent(options: &MysqlOptions, tables: &[Table]) -> Option<String> {
    let changing = tables.iter().filter(|table| !table.is_transactional && !table.is_sequence);
    let names: Vec<&str> = changing.map(|table| table.name.as_str()).collect();
    if names.is_empty() || options.lock_tables {
        return None;
    }
    Some(format!(
        "these tables know no transactions, so what is written to them while they are read may be in the backup or not: {}; `lock_tables = true` keeps writers waiting meanwhile, ALTER TABLE … ENGINE=InnoDB mends it",
        names.join(", ")
    ))
}

/// Names the columns whose numbers the server's programs do not write to the last digit.
async fn inexact(session: &mut Conn, database: &str) -> Result<Option<String>, MysqlError> {
    let columns = describe::single_columns(session, database).await?;
    if columns.is_empty() {
        return Ok(None);
    }
    let more = columns.len().saturating_sub(SHOWN_COLUMNS);
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    let shown = columns.iter().take(SHOWN_COLUMNS).map(String::as_str);
    Ok(Some(format!(
        "of numbers in columns of type FLOAT only six digits are in the backup, since the server's own programs write no more: {}{more}; ALTER TABLE … MODIFY … DOUBLE keeps all",
        shown.collect::<Vec<_>>().join(", ")
    )))
}

/// A database that is being read.
pub(super) struct DatabaseCapture {
    content: MysqlContent,
    warnings: Vec<String>,
    /// What the dump must make.
    expected: Vec<String>,
    /// Parts that are there already, the last first.
    texts: Vec<(String, String)>,
    /// The part that the dump is written into, until it is taken.
    dump: Option<PartReader>,
    /// The one task that waits for the dump; the dump ends with this.
    dumping: JoinSet<Result<Scanned, SourceError>>,
}

impl DatabaseCapture {
    /// Begins to dump. With a `folder`, the database is one of several: its parts lie there, and what belongs to the server
    /// is not among them.
    pub(super) async fn begin(
        cx: &Cx,
        source: &MysqlSource,
        folder: Option<&str>,
    ) -> Result<Self, MysqlError> {
        let part = |name: &str| folder.map_or_else(|| name.to_owned(), |f| format!("{f}/{name}"));
        let database = &source.connection.database;
        let mut session = source.connection.session(cx).await?;
        let opened = open(&mut session, source).await?;
        let with_log =
            opened.version.flavour == Flavour::Mariadb && describe::keeps_log(&mut session).await;
        let estimate = opened.tables.iter().map(|table| table.bytes).sum();
        let (writer, dump) =
            part_pipe(fixed_part(&part(DUMP), MediaType::MysqlDump, Some(estimate)));
        let mut dumping = JoinSet::new();
        drop(dumping.spawn(start_dump(cx, source, &opened, with_log, writer)?.finish()));
        let properties = describe::properties(&mut session, database, &opened.version).await?;
        let objects = objects::read(&mut session, database).await?;
        let mut warnings: Vec<String> =
            not_consistent(&source.options, &opened.tables).into_iter().collect();
        warnings.extend(objects.iter().filter(|object| object.is_broken).map(|view| {
            format!("the view {} is of something that is gone; it is kept as a remark and cannot be made anew", view.name)
        }));
        warnings.extend(inexact(&mut session, database).await?);
        let mut texts = vec![(part(OBJECTS), objects::file(&objects))];
        if folder.is_none() {
            match accounts(&mut session, &source.options).await {
                Ok(file) => texts.push((ACCOUNTS.to_owned(), file)),
                Err(warning) => warnings.push(warning),
            }
        }
        drop(session.disconnect().await);
        let tables = opened.tables.iter().filter(|table| !table.is_sequence);
        let tables = tables.map(|table| TableRows { table: table.name.clone(), rows: 0 }).collect();
        let content = MysqlContent {
            database: database.clone(),
            server: opened.version.engine(),
            properties,
            tables,
            objects,
        };
        let expected = opened.tables.into_iter().map(|table| table.name).collect();
        Ok(Self { content, warnings, expected, texts, dump: Some(dump), dumping })
    }
}

impl DatabaseCapture {
    /// Gives what is read the name of another database, in whose stead it is.
    pub(super) fn call(&mut self, name: &str) {
        name.clone_into(&mut self.content.database);
    }
}

/// Reads the accounts of the server, or says why they are not taken along.
pub(super) async fn accounts(session: &mut Conn, options: &MysqlOptions) -> Result<String, String> {
    if !options.with_accounts {
        return Err(NO_ACCOUNTS.to_owned());
    }
    describe::accounts_file(session).await.map_err(|error| {
        format!("accounts are not taken along: {error}; GRANT SELECT ON mysql.* gives the right to read them")
    })
}

/// Starts to dump the tables.
fn start_dump(
    cx: &Cx,
    source: &MysqlSource,
    opened: &Opened,
    with_log: bool,
    writer: PartWriter,
) -> Result<Dumping, MysqlError> {
    let connection: &Connection = &source.connection;
    let flavour = opened.version.flavour;
    let mut command = connection.program(&opened.program, flavour)?;
    command.args([
        "--quick",
        "--hex-blob",
        "--default-character-set=utf8mb4",
        "--max-allowed-packet=1G",
        "--skip-triggers",
        "--skip-add-locks",
        "--tz-utc",
    ]);
    command.args(match source.options.lock_tables {
        true => ["--skip-single-transaction", "--lock-tables"],
        false => ["--single-transaction", "--skip-lock-tables"],
    });
    match flavour {
        Flavour::Mariadb => {
            command.args(with_log.then_some("--master-data=2"));
            command.args(opened.keeps_history().then_some("--dump-history"));
        }
        // The first asks a table of statistics that older servers lack, the second would set the whole server's state.
        Flavour::Mysql => {
            command.args(["--column-statistics=0", "--set-gtid-purged=OFF", "--no-tablespaces"]);
        }
    }
    if opened.tables.is_empty() {
        // All that would be written then is views.
        command.arg("--no-create-info").arg("--no-data");
    }
    command.arg("--").arg(&connection.database);
    command.args(opened.tables.iter().map(|table| &table.name));
    command.stdin(Stdio::null()).stdout(Stdio::piped());
    let mut program = Program::start("the dump's program", command)?;
    let stdout = program.child.stdout.take().and_then(|pipe| pipe.into_owned_fd().ok());
    let stdout = stdout.ok_or_else(|| MysqlError::Dump {
        finding: "the output of the dump's program cannot be read".to_owned(),
    })?;
    widen(&stdout);
    let reading = tokio::task::spawn_blocking(move || pass_on(std::fs::File::from(stdout), writer));
    Ok(Dumping { cx: cx.clone(), program, reading })
}

/// Passes a dump on, and looks at it on the way.
fn pass_on(dump: std::fs::File, mut part: PartWriter) -> (PartWriter, std::io::Result<Scanner>) {
    let mut dump = BufReader::with_capacity(CHUNK_BYTES, dump);
    let mut scanner = Scanner::default();
    let mut piece = vec![0; CHUNK_BYTES];
    loop {
        let read = match dump.read(&mut piece) {
            Ok(0) => return (part, Ok(scanner)),
            Ok(read) => read,
            Err(error) => return (part, Err(error)),
        };
        let read = piece.get(..read).unwrap_or_default();
        if let Err(error) = part.write_all(read) {
            return (part, Err(error));
        }
        scanner.push(read);
    }
}

/// A dump that is under way.
struct Dumping {
    cx: Cx,
    program: Program,
    reading: JoinHandle<(PartWriter, std::io::Result<Scanner>)>,
}

impl Dumping {
    /// Waits for the dump. Its part ends well only if the program did and if what it wrote is whole.
    async fn finish(mut self) -> Result<Scanned, SourceError> {
        let status = self.cx.run(self.program.wait()).await??;
        let (writer, read) = self.reading.await.map_err(|_died| MysqlError::Dump {
            finding: "the thread that reads the dump died".to_owned(),
        })?;
        self.program.judge(status).await?;
        let broken = |finding| MysqlError::Dump { finding };
        let scanner = read.map_err(|error| broken(format!("the dump cannot be read: {error}")))?;
        let scanned = scanner
            .finish()
            .map_err(|why| broken(format!("what the dump's program wrote is not whole: {why}")))?;
        writer.finish_async().await;
        Ok(scanned)
    }
}

#[async_trait]
impl Capture for DatabaseCapture {
    async fn next_part(&mut self, _cx: &Cx) -> Result<Option<PartReader>, SourceError> {
        match self.texts.pop() {
            Some((name, text)) => Ok(Some(text_part(&name, MediaType::Sql, text))),
            None => Ok(self.dump.take()),
        }
    }

    async fn finish(mut self: Box<Self>, _cx: &Cx) -> Result<CaptureReport, SourceError> {
        let never = || MysqlError::Dump { finding: "the database was not dumped".to_owned() };
        // A dump that nobody took ends now.
        drop(self.dump);
        let scanned = self.dumping.join_next().await.and_then(Result::ok).ok_or_else(never)??;
        let is_missing = |name: &&String| !scanned.made.contains(name.as_bytes());
        if let Some(missing) = self.expected.iter().find(is_missing) {
            let finding = format!("what the dump's program wrote lacks the table {missing}");
            return Err(MysqlError::Dump { finding }.into());
        }
        let mut content = self.content;
        for table in &mut content.tables {
            table.rows = scanned.rows.get(table.table.as_bytes()).copied().unwrap_or(0);
        }
        Ok(CaptureReport {
            engine: Some(content.server.clone()),
            content: Some(Content::Mysql(Box::new(content))),
            consistency_point: scanned.position,
            warnings: self.warnings,
            ..CaptureReport::default()
        })
    }
}
