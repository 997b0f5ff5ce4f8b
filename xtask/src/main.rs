//! `cargo xtask`: what is done to the project, as programs.

#![expect(clippy::print_stdout, clippy::print_stderr, reason = "this is a program for a terminal")]

mod bench;
mod tidy;
mod tools;

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context as _, bail};
use clap::{Parser, Subcommand};

use bench::mysql::Mysql;
use bench::postgres::Postgres;

#[derive(Debug, Parser)]
#[command(name = "cargo xtask")]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// Install what the tests need, and run them
    Test {
        /// Only tests whose names contain one of these
        filters: Vec<String>,
    },
    /// All that must be green: format, lints, order, tests, documentation, licences
    Check,
    /// Look for broken rules of the project that no compiler knows
    Tidy,
    /// Let everything between several servers break for minutes, and compare what they say with what was done
    Storm {
        /// For so long; at least one round, which takes about six
        #[arg(long, default_value_t = 1)]
        minutes: u64,
        /// A built `backstay`, instead of building one for release
        #[arg(long, value_name = "PATH")]
        program: Option<PathBuf>,
    },
    /// Compare with what a user would do instead, side by side in one run
    #[command(subcommand)]
    Bench(Bench),
}

#[derive(Debug, Subcommand)]
enum Bench {
    /// A tree of files and one large file, to a real S3 server and back; needs restic
    Files(bench::files::Options),
    /// A PostgreSQL database, to a real S3 server and into a new database; needs restic
    Postgres(bench::course::Options),
    /// A MariaDB database, to a real S3 server and into a new database; needs restic
    Mysql(bench::course::Options),
    /// Lists, lookups and the scheduler's pass in a catalog that grows, in SQLite and in PostgreSQL
    Catalog {
        /// How many backups, smallest first
        #[arg(default_values_t = [10_000, 100_000, 1_000_000])]
        backups: Vec<u64>,
    },
    /// Old rows of a table to Parquet files in a directory, beside DuckDB's COPY
    Archives(bench::archives::Options),
}

fn main() -> ExitCode {
    let done = match Cli::parse().task {
        Task::Test { filters } => test(&filters),
        Task::Check => check(),
        Task::Tidy => tidy::tidy(&root()),
        Task::Storm { minutes, program } => storm(minutes, program.as_deref()),
        Task::Bench(Bench::Files(options)) => {
            tools::install(&root()).and_then(|tools| bench::files::run(&options, &root(), &tools))
        }
        Task::Bench(Bench::Postgres(options)) => tools::install(&root())
            .and_then(|tools| bench::course::run::<Postgres>(&options, &root(), &tools)),
        Task::Bench(Bench::Mysql(options)) => tools::install(&root())
            .and_then(|tools| bench::course::run::<Mysql>(&options, &root(), &tools)),
        Task::Bench(Bench::Catalog { backups }) => bench_catalog(&backups),
        Task::Bench(Bench::Archives(options)) => tools::install(&root())
            .and_then(|tools| bench::archives::run(&options, &root(), &tools)),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn check() -> anyhow::Result<()> {
    cargo(&["fmt", "--all", "--check"])?;
    cargo(&["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"])?;
    tidy::tidy(&root())?;
    run(Command::new("cargo")
        .args(["doc", "--workspace", "--no-deps"])
        .env("RUSTDOCFLAGS", "-D warnings"))?;
    if !is_there("cargo-deny") {
        cargo(&["install", "--locked", "cargo-deny"])?;
    }
    // Advisories need a database from elsewhere; what the lock file alone decides is checked everywhere.
    cargo(&["deny", "check", "bans", "licenses", "sources"])?;
    println!(
        "advisories are not checked here: run `cargo deny check advisories` where its database can be fetched"
    );
    test(&[])
}

fn test(filters: &[String]) -> anyhow::Result<()> {
    let tools = tools::install(&root())?;
    tidy::tidy(&root())?;
    cargo(&["test", "--quiet", "--workspace", "--doc"])?;
    let mut nextest = Command::new("cargo");
    nextest.args(["nextest", "run", "--workspace"]).args(filters).env("BACKSTAY_TOOLS", tools);
    run(&mut nextest)
}

fn bench_catalog(backups: &[u64]) -> anyhow::Result<()> {
    tools::install(&root())?;
    let sizes: Vec<String> = backups.iter().map(u64::to_string).collect();
    let sizes: Vec<&str> = sizes.iter().map(String::as_str).collect();
    // Built as the tests are, with optimisation: nearly all of the time is the databases'.
    let bench =
        ["bench", "--quiet", "--profile", "dev", "--package", "backstay-control", "--bench"];
    cargo(&[bench.as_slice(), &["catalog", "--"], &sizes].concat())
}

fn storm(minutes: u64, program: Option<&Path>) -> anyhow::Result<()> {
    tools::install(&root())?;
    let program = bench::backstay(program, &root())?.display().to_string();
    let storm = ["run", "--quiet", "--package", "backstay-testkit", "--bin", "storm", "--"];
    cargo(&[storm.as_slice(), &[&program, &minutes.to_string()]].concat())
}

fn is_there(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    // cargo finds its subcommands here even where PATH does not lead to it.
    let cargo_bin = std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cargo/bin"));
    std::env::split_paths(&path).chain(cargo_bin).any(|directory| directory.join(program).is_file())
}

fn cargo(arguments: &[&str]) -> anyhow::Result<()> {
    run(Command::new("cargo").args(arguments))
}

fn run(command: &mut Command) -> anyhow::Result<()> {
    println!("$ {command:?}");
    let status = command
        .current_dir(root())
        .status()
        .with_context(|| format!("cannot start {command:?}"))?;
    if !status.success() {
        bail!("{command:?} failed: {status}");
    }
    Ok(())
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().map(Path::to_owned).unwrap_or_default()
}
