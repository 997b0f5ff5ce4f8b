//! Old rows to Parquet files in a directory: DuckDB's COPY, by hand, beside Backstay, which also reads back and compares.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::ensure;

use crate::bench::database::Database;
use crate::bench::measure::{Cost, measure, medians};
use crate::bench::{Common, Scratch, backstay, mib_below, print_head, print_rows, with_tools};

/// How much is measured, and how often.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// Rows of the table
    #[arg(long, default_value_t = 2_000_000)]
    rows: u64,
    #[command(flatten)]
    common: Common,
}

/// Rows of a year and a half, all of them old; DuckDB and PostgreSQL read the same words.
macro_rules! rows {
    ($series:literal) => {
        concat!(
            "SELECT i AS id, TIMESTAMP '2024-01-01 00:00:00' + i * INTERVAL '20 seconds' AS created_at, i % 1000 AS customer,
               CAST(i / 7.0 AS decimal(12,2)) AS amount, md5(CAST(i AS varchar)) AS note FROM ",
            $series
        )
    };
}
/// What a user does by hand with what stands in a pipe or a table.
macro_rules! copy {
    ($from:literal) => {
        concat!(
            "\"COPY (SELECT *, strftime(created_at, '%Y-%m') AS month FROM ",
            $from,
            ") TO '$TO' (FORMAT parquet, COMPRESSION zstd, PARTITION_BY (month))\""
        )
    };
}

/// A kind of database.
struct Kind {
    name: &'static str,
    by_hand: &'static str,
    script: &'static str,
    /// The lines that tell a source where its database is.
    source: fn(&Bench<'_>) -> String,
}

/// What reads rows as CSV from a pipe.
macro_rules! copy_csv {
    () => {
        copy!(
            "read_csv('/dev/stdin', header = false, columns = {'id': 'BIGINT', 'created_at': 'TIMESTAMP', 'customer': 'INTEGER', 'amount': 'DECIMAL(12,2)', 'note': 'VARCHAR'})"
        )
    };
}

const KINDS: [Kind; 3] = [
    Kind {
        name: "DuckDB table",
        by_hand: "duckdb COPY",
        script: concat!("duckdb -readonly \"$DATABASE.duckdb\" -c ", copy!("events")),
        source: |bench| format!("kind = 'duckdb'\npath = '{}.duckdb'", bench.database().display()),
    },
    Kind {
        name: "SQLite table",
        by_hand: "python3 csv \\| duckdb COPY",
        script: concat!(
            "python3 -c 'import csv, sqlite3, sys, os; csv.writer(sys.stdout).writerows(sqlite3.connect(os.environ[\"DATABASE\"] + \".sqlite\").execute(\"SELECT * FROM events\"))' | duckdb -c ",
            copy_csv!()
        ),
        source: |bench| format!("kind = 'sqlite'\npath = '{}.sqlite'", bench.database().display()),
    },
    Kind {
        name: "PostgreSQL table",
        by_hand: "psql COPY csv \\| duckdb COPY",
        script: concat!("psql -qc 'COPY events TO STDOUT (FORMAT csv)' | duckdb -c ", copy_csv!()),
        source: |bench| {
            let Database { port, user, password, .. } = &bench.postgres;
            format!(
                "kind = 'postgres'\nurl = 'postgres://{user}:{password}@127.0.0.1:{port}/postgres'"
            )
        },
    },
];

/// Copies DuckDB's rows into SQLite, by way of CSV.
const FILL_SQLITE: &str = "duckdb -readonly \"$DATABASE.duckdb\" -csv -noheader -c 'SELECT * FROM events' | python3 -c 'import csv, sqlite3, sys, os
database = sqlite3.connect(os.environ[\"DATABASE\"] + \".sqlite\")
database.execute(\"CREATE TABLE events (id INTEGER PRIMARY KEY, created_at TEXT, customer INTEGER, amount REAL, note TEXT)\")
database.executemany(\"INSERT INTO events VALUES (?, ?, ?, ?, ?)\", csv.reader(sys.stdin))
database.commit()'";

/// Measures everything and prints one table in Markdown.
pub(crate) fn run(options: &Options, root: &Path, tools: &Path) -> anyhow::Result<()> {
    let program = backstay(options.common.program.as_deref(), root)?;
    let scratch = Scratch::create(&root.join("target/bench"))?;
    let postgres = Database::start(root, "postgres-server")?;
    let bench = Bench { program, tools, scratch: &scratch.0, postgres };
    bench.fill(options.rows)?;
    print_head();
    for kind in &KINDS {
        let mut costs = [Vec::new(), Vec::new(), Vec::new()];
        for run in 0..options.common.runs.max(1) {
            for turn in 0..costs.len() {
                // Everybody comes first once.
                let subject = (turn + run) % costs.len();
                costs[subject].push(bench.once(kind, subject, run)?);
            }
        }
        let names = [kind.by_hand, "Backstay, plain", "Backstay, sealed"];
        let rows: Vec<(&str, Cost)> =
            names.into_iter().zip(costs.iter().map(|costs| medians(costs))).collect();
        print_rows(&format!("{}, {} rows", kind.name, options.rows), &rows);
    }
    Ok(())
}

struct Bench<'a> {
    program: PathBuf,
    tools: &'a Path,
    scratch: &'a Path,
    postgres: Database,
}

impl Bench<'_> {
    /// Returns the path of the databases that are files, without their endings.
    fn database(&self) -> PathBuf {
        self.scratch.join("events")
    }

    fn fill(&self, rows: u64) -> anyhow::Result<()> {
        let key = "ALTER TABLE events ADD PRIMARY KEY (id)";
        let mut duckdb = self.command("duckdb".as_ref());
        let made = format!(
            "CREATE TABLE events AS {} ; {key}",
            rows!("range(ROWS) r(i)").replace("ROWS", &rows.to_string())
        );
        done(duckdb.arg(self.database().with_extension("duckdb")).args(["-c", &made]))?;
        done(self.command("bash".as_ref()).args(["-o", "pipefail", "-c", FILL_SQLITE]))?;
        let series = rows!("generate_series(0, ROWS - 1) i").replace("ROWS", &rows.to_string());
        let made =
            format!("CREATE TABLE events AS {series}; {key}; CREATE INDEX ON events (created_at)");
        done(self.command("psql".as_ref()).args(["-qc", &made]))?;
        done(self.command("psql".as_ref()).args(["-qc", "VACUUM ANALYZE events"]))
    }

    /// By hand, plain or sealed.
    fn once(&self, kind: &Kind, subject: usize, run: usize) -> anyhow::Result<Cost> {
        let place = self.scratch.join(format!("{subject}-{run}-{}", kind.name.replace(' ', "-")));
        std::fs::create_dir(&place)?;
        let mut command = match subject {
            0 => {
                let mut command = self.command("bash".as_ref());
                command.args(["-o", "pipefail", "-c", kind.script]).env("TO", place.join("files"));
                command
            }
            _ => {
                let sealing = if subject == 1 { "none" } else { "sealed" };
                std::fs::write(place.join("backstay.toml"), self.config(kind, &place, sealing))?;
                let mut command = self.command(&self.program);
                command.arg("--home").arg(place.join("home"));
                command.arg("--config").arg(place.join("backstay.toml"));
                command
            }
        };
        if subject > 0 {
            let mut test = self.command(&self.program);
            test.arg("--home")
                .arg(place.join("home"))
                .arg("--config")
                .arg(place.join("backstay.toml"));
            done(test.args(["storage", "test", "main"]))?;
            command.args(["archives", "run", "events", "--quiet"]);
        }
        done(Command::new("sync").current_dir(&place))?;
        let mut cost = measure(&mut command, std::process::id())?;
        cost.stored_mib = mib_below(&place.join("files"))?;
        std::fs::remove_dir_all(&place)?;
        Ok(cost)
    }

    fn config(&self, kind: &Kind, place: &Path, sealing: &str) -> String {
        let source = (kind.source)(self);
        format!(
            "[storages.main]\nprovider = 'local'\npath = '{}'\n[sources.db]\nstorage = 'main'\n{source}\n[archives.events]\nsource = 'db'\n\
             table = 'events'\ncolumn = 'created_at'\nolder_than = '1d'\nstorage = 'main'\nencryption = '{sealing}'\n",
            place.join("files").display()
        )
    }

    /// Starts with all that any of them reads from its environment.
    fn command(&self, program: &Path) -> Command {
        let Database { port, user, password, programs, .. } = &self.postgres;
        let mut command = Command::new(program);
        command.envs([("PGHOST", "127.0.0.1"), ("PGPORT", port), ("PGUSER", user)]);
        command.envs([("PGPASSWORD", password.as_str()), ("PGDATABASE", "postgres")]);
        command.env("DATABASE", self.database());
        with_tools(&mut command, &[programs, self.tools]);
        command
    }
}

fn done(command: &mut Command) -> anyhow::Result<()> {
    let output = command.output()?;
    ensure!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}
