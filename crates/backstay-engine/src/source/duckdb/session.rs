//! A conversation with DuckDB's command line: a statement goes in, its rows come out as JSON, a line each.

use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use serde_json::{Map, Value};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, Lines};
use tokio::net::unix::pipe::Receiver;
use tokio::process::{ChildStdin, Command};

use super::error::{DuckdbError, explain};
use crate::source::program::{Program, ProgramError};

/// The line that ends an answer; rows are JSON, and no complaint is this.
const END: &str = "backstay: end of the answer";
/// What DuckDB may use of the machine's memory while it reads; more goes to temporary files. Apps live beside it.
const MEMORY: &str = "1GB";
/// Of a complaint, this many lines are for people; the rest shows the statement.
const SHOWN_LINES: usize = 2;

/// What stands at this place of every database.
const MAGIC: &[u8] = b"DUCK";
const MAGIC_AT: usize = 8;

/// A row of an answer.
pub(super) type Row = Map<String, Value>;

/// Returns a column as text.
pub(super) fn text(row: &Row, column: &str) -> String {
    match row.get(column) {
        None | Some(Value::Null) => String::new(),
        Some(Value::String(text)) => text.clone(),
        Some(other) => other.to_string(),
    }
}

/// Returns a column as a number.
pub(super) fn number(row: &Row, column: &str) -> u64 {
    row.get(column).and_then(Value::as_u64).unwrap_or(0)
}

/// Writes a text as SQL does.
pub(super) fn literal(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

/// Writes a name as SQL does.
pub(super) fn identifier(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// DuckDB's command line.
#[derive(Debug, Clone)]
pub(super) struct Tool {
    program: PathBuf,
    /// For example `1.5.6`.
    pub(super) version: String,
}

/// What a session works on.
#[derive(Debug, Clone, Copy)]
pub(super) enum On<'a> {
    /// A database that nobody writes to meanwhile.
    Reading(&'a Path),
    /// A database that is written to, and that nobody else may have open.
    Changing(&'a Path),
    /// A new database, in this version of the file format.
    Making(&'a Path, Option<&'a str>),
    /// A database that is only there while the session is.
    Memory,
}

impl Tool {
    /// Finds it in a directory, or on the path.
    pub(super) async fn find(directory: Option<&Path>) -> Result<Self, DuckdbError> {
        let directories: Vec<PathBuf> = match directory {
            Some(directory) => vec![directory.to_owned()],
            None => std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default()).collect(),
        };
        for program in directories.into_iter().map(|directory| directory.join("duckdb")) {
            let mut command = Command::new(&program);
            command.arg("--version").stdin(Stdio::null()).kill_on_drop(true);
            let Ok(output) = command.output().await else { continue };
            // It says `v1.5.6 (Variegata) 069cc9f9b5`.
            let said = String::from_utf8_lossy(&output.stdout).into_owned();
            let number = said.strip_prefix('v').and_then(|rest| rest.split_whitespace().next());
            if let Some(version) = number {
                return Ok(Self { program, version: version.to_owned() });
            }
        }
        Err(DuckdbError::NoProgram)
    }

    /// Returns engine and version, for manifests and people.
    pub(super) fn engine(&self) -> String {
        format!("DuckDB {}", self.version)
    }

    /// Starts it without the user's own settings.
    fn command(&self, on: On<'_>) -> Command {
        let mut command = Command::new(&self.program);
        command.args(["-no-init", "-jsonlines"]).kill_on_drop(true);
        match on {
            On::Reading(path) => command.arg("-readonly").arg(path),
            On::Changing(path) => command.arg(path),
            On::Making(path, storage) => {
                if let Some(version) = storage {
                    command.args(["-storage-version", version]);
                }
                command.arg(path)
            }
            On::Memory => command.arg(":memory:"),
        };
        command.env("LC_ALL", "C").stdin(Stdio::piped());
        command
    }

    /// Opens a database; temporary files go to this directory.
    pub(super) async fn open(&self, on: On<'_>, temporary: &Path) -> Result<Session, DuckdbError> {
        if let On::Reading(path) | On::Changing(path) = on {
            self.check_begin(path)?;
        }
        let (mut program, answers) = Program::start_talking("duckdb", self.command(on))?;
        let stdin = program.child.stdin.take().ok_or_else(|| unheard("it has no input"))?;
        let mut session =
            Session { program, stdin, answers: BufReader::new(answers).lines(), has_failed: false };
        let temporary = literal(&temporary.to_string_lossy());
        // A warning would be taken for a complaint. Indexes of a new database must fit into memory, whatever that takes.
        let limit = match on {
            On::Making(..) => String::new(),
            _ => format!("; SET memory_limit = '{MEMORY}'"),
        };
        let settings = format!(
            "SET temp_directory = {temporary}; SET enable_logging = false; SET autoinstall_known_extensions = false{limit}"
        );
        let opened = session.ask("open the database", &settings).await;
        let path = match on {
            On::Reading(path) | On::Changing(path) | On::Making(path, _) => path,
            On::Memory => Path::new(":memory:"),
        };
        opened.map_err(|error| self.explain(path, error))?;
        Ok(session)
    }

    /// Fails if a file is no database: for some of another kind DuckDB would fetch an extension from its makers.
    fn check_begin(&self, path: &Path) -> Result<(), DuckdbError> {
        let mut begin = [0; MAGIC_AT + MAGIC.len()];
        let read = File::open(path).and_then(|mut file| file.read_exact(&mut begin));
        match read {
            Ok(()) if begin.ends_with(MAGIC) => Ok(()),
            Ok(()) => Err("it begins with other bytes than a DuckDB database".to_owned()),
            Err(error) => Err(error.to_string()),
        }
        .map_err(|finding| DuckdbError::NotReadable {
            path: path.to_owned(),
            program: self.engine(),
            finding,
        })
    }

    /// Asks a database that nobody writes to. Returns the first row as text, its columns divided by `|`.
    pub(super) async fn first_row(
        &self,
        database: &Path,
        query: &str,
    ) -> Result<String, DuckdbError> {
        let mut command = self.command(On::Reading(database));
        // The last of the modes counts; nothing but the database can be read.
        command.args(["-list", "-noheader", "-separator", "|", "-nullvalue", ""]);
        let closed = "SET enable_external_access = false; SET lock_configuration = true";
        command.args(["-cmd", closed, "-c", query]).stdin(Stdio::null());
        let output = command.output().await.map_err(|error| unheard(&error.to_string()))?;
        let complaint = String::from_utf8_lossy(&output.stderr).into_owned();
        if !output.status.success() || !complaint.trim().is_empty() {
            let lines: Vec<String> = complaint.lines().map(str::to_owned).collect();
            return Err(said("run a check", &lines));
        }
        let answer = String::from_utf8_lossy(&output.stdout).into_owned();
        Ok(answer.lines().next().unwrap_or_default().to_owned())
    }

    /// Says what DuckDB's words mean for a database.
    pub(super) fn explain(&self, path: &Path, error: DuckdbError) -> DuckdbError {
        match error {
            DuckdbError::Statement { action, finding } => {
                explain(action, (path, &self.engine()), finding)
            }
            other => other,
        }
    }
}

fn unheard(finding: &str) -> ProgramError {
    let (program, finding) = ("duckdb".to_owned(), finding.to_owned());
    ProgramError { program, status: "could not be talked to".to_owned(), finding }
}

/// A running command line. It is killed when this is dropped.
pub(super) struct Session {
    program: Program,
    stdin: ChildStdin,
    answers: Lines<BufReader<Receiver>>,
    /// A statement failed; its status at the end then says that again.
    has_failed: bool,
}

impl Session {
    /// Executes statements, whose quotation marks are known to be in pairs. Returns the rows of all of them.
    pub(super) async fn ask(
        &mut self,
        action: &'static str,
        statements: &str,
    ) -> Result<Vec<Row>, DuckdbError> {
        // Said by the command line and not by a query: in a transaction that failed, none works.
        // On a line of its own, whatever stands before it.
        if statements.contains('\0') {
            // The command line would read no further, and wait.
            return Err(said(action, &["a name or text has a character of zero in it".to_owned()]));
        }
        let text = format!("{statements};\n.print \"\\n{END}\"\n");
        // Whether it took all of it, its answer tells.
        drop(self.stdin.write_all(text.as_bytes()).await);
        drop(self.stdin.flush().await);
        let (mut rows, mut complaint) = (Vec::new(), Vec::new());
        loop {
            let line = self.answers.next_line().await;
            let Some(line) = line.map_err(|error| unheard(&error.to_string()))? else {
                return Err(self.ended(action, complaint).await);
            };
            if line == END {
                break;
            }
            match serde_json::from_str::<Row>(&line) {
                Ok(row) if complaint.is_empty() => rows.push(row),
                _ if line.trim().is_empty() => {}
                _ => complaint.push(line),
            }
        }
        match complaint.is_empty() {
            true => Ok(rows),
            false => {
                self.has_failed = true;
                Err(said(action, &complaint))
            }
        }
    }

    /// Says why the program is gone.
    async fn ended(&mut self, action: &'static str, complaint: Vec<String>) -> DuckdbError {
        if !complaint.is_empty() {
            return said(action, &complaint);
        }
        match self.program.wait().await {
            Ok(status) => ProgramError {
                program: "duckdb".to_owned(),
                status: status.to_string(),
                finding: format!("it ended while it was to {action}"),
            }
            .into(),
            Err(error) => error.into(),
        }
    }

    /// Ends it, so that everything is in the file.
    pub(super) async fn close(self) -> Result<(), DuckdbError> {
        let Self { mut program, stdin, mut answers, has_failed } = self;
        drop(stdin);
        let mut complaint = Vec::new();
        while let Ok(Some(line)) = answers.next_line().await {
            complaint.push(line);
        }
        let status = program.wait().await?;
        if !complaint.is_empty() {
            return Err(said("close the database", &complaint));
        }
        if has_failed {
            return Ok(());
        }
        Ok(program.judge(status).await?)
    }
}

fn said(action: &'static str, complaint: &[String]) -> DuckdbError {
    let shown: Vec<&str> = complaint.iter().take(SHOWN_LINES).map(|line| line.trim()).collect();
    DuckdbError::Statement { action, finding: shown.join(" ") }
}
