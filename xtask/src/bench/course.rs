//! A database, to a real S3 server and into a new database: what a user would do by hand beside Backstay.

use std::path::Path;
use std::process::Command;

use anyhow::ensure;

use crate::bench::measure::{Cost, measure, medians};
use crate::bench::server::{BUCKET, KEY_ID, SECRET, Server};
use crate::bench::{Common, Scratch, backstay, print_head, print_rows, s3_environment, with_tools};

pub(crate) const DATABASE: &str = "bench";

/// Size of the small database, of which the start and the end of a process are what counts.
const SMALL_MIB: usize = 10;
/// Its runs are short, and a moment's noise is much of one: so many times as many of them.
const SMALL_RUNS: usize = 5;

/// What one subject does in one run, in this order. The later backup is of the same database once more.
const VERBS: [&str; 3] = ["first backup", "later backup", "restore"];

/// What each of [`VERBS`] cost.
type Costs = [Cost; VERBS.len()];

/// How much is measured, and how often.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// Size of the large database
    #[arg(long, default_value_t = 1024)]
    mib: usize,
    #[command(flatten)]
    common: Common,
}

/// A kind of server, and what its users do by hand.
pub(crate) trait Engine: Sized {
    /// Starts a server with a database of about this size.
    fn start(root: &Path, mib: usize) -> anyhow::Result<Self>;

    /// The ways, with names, of those who do without Backstay. They find `$PREFIX` in the bucket `$BUCKET`, and restore into
    /// `$TO`.
    const WAYS: &'static [Way];

    /// Returns what its programs find in their environment.
    fn environment(&self) -> Vec<(String, String)>;

    /// Returns the directory of its programs.
    fn programs(&self) -> &Path;

    /// Returns the lines that tell a source where its database is.
    fn source(&self) -> String;

    /// Lets the server finish what it has begun.
    fn settle(&self) -> anyhow::Result<()>;

    /// Says whether a database holds the same rows.
    fn is_equal(&self, restored: &str) -> anyhow::Result<bool>;

    fn drop_database(&self, restored: &str) -> anyhow::Result<()>;
}

/// How it is done without Backstay.
pub(crate) struct Way {
    pub(crate) name: &'static str,
    /// Done once, before the first backup, and not measured.
    pub(crate) prepare: Option<&'static str>,
    pub(crate) backup: &'static str,
    pub(crate) restore: &'static str,
}

/// Measures everything and prints one table in Markdown.
pub(crate) fn run<E: Engine>(options: &Options, root: &Path, tools: &Path) -> anyhow::Result<()> {
    let program = backstay(options.common.program.as_deref(), root)?;
    let scratch = Scratch::create(&root.join("target/bench"))?;
    let storage = Server::start(&tools.join("rclone"), &scratch.0.join("server"))?;
    print_head();
    let runs = options.common.runs.max(1);
    for (what, mib, runs) in [
        ("large database", options.mib, runs),
        ("database of 10 MiB", SMALL_MIB, runs * SMALL_RUNS),
    ] {
        let engine = E::start(root, mib)?;
        let course = Course {
            storage: &storage,
            engine: &engine,
            program: &program,
            tools,
            scratch: &scratch.0.join(what.replace(' ', "-")),
        };
        std::fs::create_dir(course.scratch)?;
        // The last is Backstay.
        let subjects = E::WAYS.len() + 1;
        let mut costs: Vec<Vec<Costs>> = vec![Vec::new(); subjects];
        for run in 0..runs {
            for turn in 0..subjects {
                // Everybody comes first once: what the one before leaves to server and disk meets all of them.
                let subject = (turn + run) % subjects;
                costs[subject].push(course.once(subject, run)?);
            }
        }
        for (at, verb) in VERBS.into_iter().enumerate() {
            let names = E::WAYS.iter().map(|way| way.name).chain(["Backstay, sealed"]);
            let median = |costs: &Vec<Costs>| {
                medians(&costs.iter().map(|costs| costs[at]).collect::<Vec<_>>())
            };
            let rows: Vec<(&str, Cost)> = names.zip(costs.iter().map(median)).collect();
            print_rows(&format!("{what}, {verb}"), &rows);
        }
    }
    Ok(())
}

/// What all runs share.
struct Course<'a, E> {
    storage: &'a Server,
    engine: &'a E,
    program: &'a Path,
    tools: &'a Path,
    scratch: &'a Path,
}

impl<E: Engine> Course<'_, E> {
    fn once(&self, subject: usize, run: usize) -> anyhow::Result<Costs> {
        let name =
            format!("{}-{run}-{subject}", self.scratch.file_name().unwrap_or_default().display());
        let scratch = self.scratch.join(&name);
        std::fs::create_dir(&scratch)?;
        let bench =
            Bench { course: self, way: E::WAYS.get(subject), scratch: &scratch, prefix: &name };
        bench.prepare()?;
        let restored = format!("restored_{subject}_{run}");
        self.settle()?;
        let mut first = measure(&mut bench.backup(), self.storage.pid())?;
        first.stored_mib = self.storage.stored_mib(&name)?;
        self.settle()?;
        let mut later = measure(&mut bench.backup(), self.storage.pid())?;
        later.stored_mib = self.storage.stored_mib(&name)?;
        self.settle()?;
        let mut restore = measure(&mut bench.restore(&restored), self.storage.pid())?;
        restore.stored_mib = later.stored_mib;
        ensure!(self.engine.is_equal(&restored)?, "{name} gave back something else");
        self.engine.drop_database(&restored)?;
        Ok([first, later, restore])
    }

    /// Waits until server and disk have nothing left to do.
    fn settle(&self) -> anyhow::Result<()> {
        self.engine.settle()?;
        ensure!(Command::new("sync").status()?.success(), "sync failed");
        Ok(())
    }
}

/// One subject with a place of its own in the bucket.
struct Bench<'a, E> {
    course: &'a Course<'a, E>,
    /// Backstay, if it is none.
    way: Option<&'static Way>,
    scratch: &'a Path,
    prefix: &'a str,
}

impl<E: Engine> Bench<'_, E> {
    /// Does what a user does once, before the first backup. It is not measured.
    fn prepare(&self) -> anyhow::Result<()> {
        let mut once = match self.way {
            Some(Way { prepare: None, .. }) => return Ok(()),
            Some(Way { prepare: Some(script), .. }) => self.shell(script),
            None => {
                std::fs::write(self.scratch.join("backstay.toml"), self.config())?;
                self.backstay(&["storage", "test", "main"])
            }
        };
        let output = once.output()?;
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        Ok(())
    }

    fn backup(&self) -> Command {
        self.way.map_or_else(
            || self.backstay(&["backup", "db", "--quiet"]),
            |way| self.shell(way.backup),
        )
    }

    fn restore(&self, to: &str) -> Command {
        let words = ["restore", "db", "--yes", "--quiet", "--to", to];
        let mut command =
            self.way.map_or_else(|| self.backstay(&words), |way| self.shell(way.restore));
        command.env("TO", to);
        command
    }

    fn shell(&self, script: &str) -> Command {
        let mut command = self.command("bash".as_ref());
        command.args(["-o", "pipefail", "-c", script]);
        command.env("BUCKET", BUCKET).env("PREFIX", self.prefix);
        command
    }

    fn backstay(&self, words: &[&str]) -> Command {
        let mut command = self.command(self.course.program);
        command.arg("--home").arg(self.scratch.join("home"));
        command.arg("--config").arg(self.scratch.join("backstay.toml")).args(words);
        command
    }

    /// Starts with all that any of them reads from its environment.
    fn command(&self, program: &Path) -> Command {
        let mut command = Command::new(program);
        command.envs(self.course.engine.environment());
        with_tools(&mut command, &[self.course.engine.programs(), self.course.tools]);
        s3_environment(&mut command, self.course.storage, self.prefix, self.scratch);
        command.current_dir(self.scratch);
        command
    }

    fn config(&self) -> String {
        format!(
            "[storages.main]\nprovider = 's3'\nbucket = '{BUCKET}'\nendpoint = '{}'\nprefix = '{}'\n\
             access_key_id = '{KEY_ID}'\nsecret_access_key = '{SECRET}'\n\n\
             [sources.db]\nstorage = 'main'\nprograms = '{}'\n{}",
            self.course.storage.endpoint,
            self.prefix,
            self.course.engine.programs().display(),
            self.course.engine.source(),
        )
    }
}
