//! Loading a dump into a database that is there and empty.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::num::NonZero;
use std::path::Path;
use std::process::Stdio;

use backstay_format::{PostgresContent, TableRows};
use bytes::Bytes;
use tokio::io::AsyncWriteExt as _;
use tokio::process::Command;
use tokio_postgres::Client;

use super::archive::{self, Entry};
use super::connection::{KEEPALIVES, PostgresConnection as _};
use super::error::{PostgresError, refused, statement};
use super::look::{self, count_all};
use super::selection::{self, Chosen, Surroundings};
use super::tools::Tools;
use crate::cx::Cx;
use crate::part::PartReader;
use crate::source::SourceError;
use crate::source::connection::Connection;
use crate::source::program::{Program, widen};
use crate::source::sqlite::blocking;
use crate::spool::{Spool, write_part};

/// A table of contents with more bytes than this is none.
const MAX_HEAD_BYTES: usize = 256 << 20;
const FIRST_HEAD_BYTES: usize = 64 << 10;
/// Tables that differ are named up to this number.
const SHOWN_DIFFERENCES: usize = 10;
/// Needs to be told before and after a restore; the functions are its own.
const TIMESCALE: &str = "timescaledb";
pub(super) const DUMP_FILE: &str = "database.dump";
pub(super) const LIST_FILE: &str = "list";

/// How a dump is loaded.
pub(super) struct Loading<'a> {
    /// The database to load into.
    pub(super) database: &'a Connection,
    pub(super) tools: &'a Tools,
    pub(super) spool: &'a Path,
    /// How many tables are loaded at once; more than one needs room for the dump in the spool directory.
    pub(super) jobs: NonZero<u32>,
    /// Only these tables; all if empty.
    pub(super) only: &'a [String],
    pub(super) with_tablespaces: bool,
}

/// What was loaded.
pub(super) struct Loaded {
    pub(super) bytes: u64,
    /// The tables with rows, if not all of them were wanted.
    pub(super) tables: Option<BTreeSet<String>>,
    /// What could not come along, for a person.
    pub(super) left_out: Vec<String>,
}

impl Loading<'_> {
    pub(super) async fn run(&self, cx: &Cx, mut data: PartReader) -> Result<Loaded, SourceError> {
        if self.jobs.get() > 1 {
            return self.by_file(cx, &Spool::create(self.spool)?, data).await;
        }
        let mut command = self.command()?;
        let (mut head, mut chosen, mut spool) = (Vec::new(), None, None);
        if !self.only.is_empty() {
            let entries;
            (head, entries) = read_head(&mut data).await?;
            // The list lies there until the program has ended.
            let spool = spool.insert(Spool::create(self.spool)?);
            chosen = Some(self.choose(spool, &entries, &mut command)?);
        }
        command.stdin(Stdio::piped()).stdout(Stdio::null());
        let mut program = Program::start("pg_restore", command)?;
        let bytes = feed(cx, &mut program, head.into(), data).await?;
        let status = cx.run(program.wait()).await??;
        program.judge(status).await?;
        Ok(loaded(bytes, chosen))
    }

    /// Spools the dump, so that several sessions can load from it.
    async fn by_file(
        &self,
        cx: &Cx,
        spool: &Spool,
        data: PartReader,
    ) -> Result<Loaded, SourceError> {
        let file = spool.file(DUMP_FILE, data.spec.estimate_bytes.unwrap_or(0))?;
        let (path, spooled) = (file.clone(), file.clone());
        let bytes = blocking(move || Ok(write_part(data, &path)?.1)).await?;
        let mut command = self.command()?;
        let mut chosen = None;
        if !self.only.is_empty() {
            let entries = blocking(move || file_contents(&spooled)).await?;
            chosen = Some(self.choose(spool, &entries, &mut command)?);
        }
        command.arg(format!("--jobs={}", self.jobs)).arg("--").arg(&file);
        command.stdin(Stdio::null()).stdout(Stdio::null());
        let mut program = Program::start("pg_restore", command)?;
        let status = cx.run(program.wait()).await??;
        program.judge(status).await?;
        Ok(loaded(bytes, chosen))
    }

    fn command(&self) -> Result<Command, PostgresError> {
        let mut command = self.database.program(self.tools.pg_restore())?;
        command.arg(format!("--dbname={}", connection_string(&self.database.database)));
        command.args(["--format=custom", "--no-password"]);
        if !self.with_tablespaces {
            command.arg("--no-tablespaces");
        }
        Ok(command)
    }

    fn choose(
        &self,
        spool: &Spool,
        entries: &[Entry],
        command: &mut Command,
    ) -> Result<Chosen, SourceError> {
        let chosen = selection::choose(entries, self.only, Surroundings::Empty)?;
        let list = spool.file(LIST_FILE, chosen.list.len() as u64)?;
        fs::write(&list, &chosen.list).map_err(|cause| SourceError::io("write", &list, cause))?;
        command.arg("--use-list").arg(&list);
        Ok(chosen)
    }
}

fn loaded(bytes: u64, chosen: Option<Chosen>) -> Loaded {
    let (tables, left_out) = chosen.map_or((None, Vec::new()), |c| (Some(c.tables), c.left_out));
    Loaded { bytes, tables, left_out }
}

/// Says which database is meant: as a value inside of a connection string, a name is only a name.
pub(super) fn connection_string(database: &str) -> String {
    let name = database.replace('\\', "\\\\").replace('\'', "\\'");
    format!("dbname='{name}' {KEEPALIVES}")
}

/// Reads on until the table of contents is there. Returns what was read, and the table.
async fn read_head(data: &mut PartReader) -> Result<(Vec<u8>, Vec<Entry>), SourceError> {
    let mut head = Vec::new();
    let mut enough = FIRST_HEAD_BYTES;
    loop {
        let more = data.next().await?;
        let is_end = more.is_none();
        head.extend_from_slice(&more.unwrap_or_default());
        if !is_end && head.len() < enough {
            continue;
        }
        match archive::contents(head.as_slice()) {
            Ok(entries) => return Ok((head, entries)),
            Err(error) if is_end || head.len() > MAX_HEAD_BYTES => {
                return Err(PostgresError::Archive { finding: error.to_string() }.into());
            }
            Err(_) => enough = head.len() * 2,
        }
    }
}

/// Reads the table of contents of a spooled dump. Blocks.
pub(super) fn file_contents(path: &Path) -> Result<Vec<Entry>, SourceError> {
    let file = fs::File::open(path).map_err(|cause| SourceError::io("open", path, cause))?;
    let entries = archive::contents(std::io::BufReader::new(file));
    Ok(entries.map_err(|error| PostgresError::Archive { finding: error.to_string() })?)
}

/// Gives a program its input. Returns the bytes; those that a program which ended did not take are not among them.
pub(super) async fn feed(
    cx: &Cx,
    program: &mut Program,
    head: Bytes,
    mut data: PartReader,
) -> Result<u64, SourceError> {
    let mut stdin = program.child.stdin.take();
    if let Some(pipe) = &stdin {
        widen(pipe);
    }
    let (mut fed, mut next) = (0, Some(head));
    while let (Some(pipe), Some(bytes)) = (&mut stdin, next) {
        // A program that takes no more has ended; how, the caller asks.
        if cx.run(pipe.write_all(&bytes)).await?.is_err() {
            break;
        }
        fed += bytes.len() as u64;
        next = data.next().await?;
    }
    Ok(fed)
}

/// Fails unless every table has the rows that were backed up. Returns how many tables there are.
pub(super) async fn compare_rows(
    client: &Client,
    content: &PostgresContent,
    chosen: Option<&BTreeSet<String>>,
) -> Result<u64, PostgresError> {
    let found: BTreeMap<String, u64> =
        count_all(client).await?.into_iter().map(|t| (t.table, t.rows)).collect();
    let is_wanted = |table: &str| chosen.is_none_or(|chosen| chosen.contains(table));
    let tables = || content.tables.iter().filter(|table| is_wanted(&table.table));
    let mut differing: Vec<&TableRows> =
        tables().filter(|table| found.get(&table.table) != Some(&table.rows)).collect();
    if !differing.is_empty() {
        // Where the server chooses partitions by what is another number in each database, rows go to others of the same root.
        let roots = look::partition_roots(client).await?;
        let sum = |root: &str, rows: &dyn Fn(&str) -> u64| -> u64 {
            roots.iter().filter(|(_, of)| *of == root).map(|(leaf, _)| rows(leaf)).sum()
        };
        let expected: BTreeMap<&str, u64> =
            tables().map(|table| (table.table.as_str(), table.rows)).collect();
        differing.retain(|table| {
            let Some(root) = roots.get(&table.table) else { return true };
            let then = sum(root, &|leaf| expected.get(leaf).copied().unwrap_or(0));
            let now = sum(root, &|leaf| found.get(leaf).copied().unwrap_or(0));
            then != now
        });
    }
    let shown = differing.iter().take(SHOWN_DIFFERENCES);
    let shown: Vec<String> =
        shown.map(|table| format!("{} should have {} rows", table.table, table.rows)).collect();
    if shown.is_empty() {
        return Ok(tables().count() as u64);
    }
    Err(refused(format!("what was loaded is not what was backed up: {}", shown.join(", "))))
}

/// Tells extensions that must know, before a restore.
pub(super) async fn before(
    cx: &Cx,
    database: &Connection,
    content: &PostgresContent,
) -> Result<(), PostgresError> {
    let begin = "CREATE EXTENSION IF NOT EXISTS timescaledb; SELECT timescaledb_pre_restore()";
    tell_timescale(cx, database, content, begin).await
}

/// Tells extensions that must know, after a restore.
pub(super) async fn after(
    cx: &Cx,
    database: &Connection,
    content: &PostgresContent,
) -> Result<(), PostgresError> {
    tell_timescale(cx, database, content, "SELECT timescaledb_post_restore()").await
}

async fn tell_timescale(
    cx: &Cx,
    database: &Connection,
    content: &PostgresContent,
    statements: &str,
) -> Result<(), PostgresError> {
    if !content.extensions.iter().any(|extension| extension == TIMESCALE) {
        return Ok(());
    }
    let client = database.connect(cx).await?;
    client.batch_execute(statements).await.map_err(statement("tell TimescaleDB of the restore"))
}
