//! DuckDB's command line, as an app and as an independent reader of what it wrote.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Output, Stdio};

use crate::daemon::wait_until;
use crate::exact;

const LIST: &str =
    r#"SELECT schema_name, table_name FROM duckdb_tables() WHERE NOT internal ORDER BY ALL"#;
const CATALOG: [&str; 7] = [
    "SELECT schema_name FROM duckdb_schemas() WHERE NOT internal AND database_name = current_database() ORDER BY ALL",
    "SELECT schema_name, sql, comment FROM duckdb_tables() WHERE NOT internal ORDER BY ALL",
    "SELECT schema_name, sql, comment FROM duckdb_views() WHERE NOT internal ORDER BY ALL",
    "SELECT schema_name, sql, comment FROM duckdb_indexes() ORDER BY ALL",
    "SELECT schema_name, sequence_name, sql, comment FROM duckdb_sequences() ORDER BY ALL",
    "SELECT schema_name, type_name, labels, logical_type, comment FROM duckdb_types() WHERE NOT internal ORDER BY ALL",
    "SELECT schema_name, function_name, parameters, macro_definition, function_type, comment FROM duckdb_functions() WHERE NOT internal ORDER BY ALL",
];

/// Returns the directory of the command line that `cargo xtask test` installed: the program itself, not the script of its
/// package that starts it.
pub fn programs() -> PathBuf {
    let tools = std::env::var_os("BACKSTAY_TOOLS").map(PathBuf::from);
    let tools = tools.expect("BACKSTAY_TOOLS: run the tests with `cargo xtask test`");
    let pythons = tools.join("../lib").canonicalize().expect("the packages").read_dir();
    let mut packages = pythons.expect("the packages").flatten();
    let package = packages.find_map(|python| {
        let package = python.path().join("site-packages/duckdb_cli");
        package.join("duckdb").is_file().then_some(package)
    });
    package.expect("`cargo xtask test` installs duckdb")
}

fn command(database: &Path, words: &[&str]) -> Command {
    let mut command = Command::new(programs().join("duckdb"));
    command.args(["-no-init", "-bail", "-jsonlines"]).args(words).arg(database);
    command
}

/// Runs statements on a database.
pub fn query(database: &Path, statements: &str) -> Output {
    let mut command = command(database, &[]);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("duckdb runs");
    let mut stdin = child.stdin.take().expect("its input");
    // It reads no further than to an error.
    drop(stdin.write_all(statements.as_bytes()));
    drop(stdin);
    child.wait_with_output().expect("duckdb ends")
}

/// Runs statements that must work. Returns their rows as JSON, a line each.
pub fn sql(database: &Path, statements: &str) -> String {
    let output = query(database, statements);
    let error = exact(&output.stderr);
    let shown: String = statements.chars().take(200).collect();
    assert!(output.status.success() && error.is_empty(), "{shown}\n{error}");
    exact(&output.stdout).trim_end().to_owned()
}

/// Returns everything that a database is: its catalog, and sums of the digests of all rows, which no order changes.
pub fn digest(database: &Path) -> String {
    let mut texts: Vec<String> = CATALOG.iter().map(|query| sql(database, query)).collect();
    let quoted = |name: &serde_json::Value| {
        let name = name.as_str().expect("a name");
        format!("\"{}\"", name.replace('"', "\"\""))
    };
    for line in sql(database, LIST).lines() {
        let row: serde_json::Value = serde_json::from_str(line).expect("a row");
        let table = format!("{}.{}", quoted(&row["schema_name"]), quoted(&row["table_name"]));
        let rows = format!(
            "SELECT count(*) AS rows, bit_xor(md5_number(r::VARCHAR)) AS each, sum(md5_number_lower(r::VARCHAR)::HUGEINT) AS all FROM {table} AS r"
        );
        texts.push(format!("{table} {}", sql(database, &rows)));
    }
    texts.join("\n")
}

/// A program that has a database open; ends when it is dropped.
pub struct App {
    child: Child,
    stdin: ChildStdin,
}

impl App {
    /// Opens a database to write to it.
    pub fn writing(database: &Path) -> Self {
        Self::start(command(database, &[]))
    }

    /// Opens a database to read it.
    pub fn reading(database: &Path) -> Self {
        Self::start(command(database, &["-readonly"]))
    }

    fn start(mut command: Command) -> Self {
        let said = tempfile::NamedTempFile::new().expect("a file");
        command.stdin(Stdio::piped()).stdout(said.reopen().expect("a file"));
        let mut child = command.spawn().expect("duckdb runs");
        let stdin = child.stdin.take().expect("its input");
        let mut app = Self { child, stdin };
        app.run("SELECT 'open'");
        wait_until("the app has the database open", || {
            std::fs::read_to_string(said.path()).is_ok_and(|said| said.contains("open"))
        });
        app
    }

    /// Lets it run statements, some time soon.
    pub fn run(&mut self, statements: &str) {
        writeln!(self.stdin, "{statements};").expect("the app reads");
        self.stdin.flush().expect("the app reads");
    }

    /// Returns the number of its process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for App {
    fn drop(&mut self) {
        // As a crash would end it: what it wrote is in its log and not in the file.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}
