//! A PostgreSQL database, to a real S3 server and into a new database.

use std::path::Path;
use std::process::Command;

use crate::bench::database::Database;
use crate::bench::measure::{Cost, measure, medians};
use crate::bench::server::{BUCKET, KEY_ID, SECRET, Server};
use crate::bench::{Common, Scratch, backstay, print_head, print_rows, s3_environment, with_tools};
use anyhow::ensure;

/// Tables of pgbench have about fifteen mebibytes for each unit of scale.
const MIB_OF_SCALE: usize = 15;
const DATABASE: &str = "bench";

/// How much is measured, and how often.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// Size of the large database
    #[arg(long, default_value_t = 1024)]
    mib: usize,
    #[command(flatten)]
    common: Common,
}

/// Measures everything and prints one table in Markdown.
pub(crate) fn run(options: &Options, root: &Path, tools: &Path) -> anyhow::Result<()> {
    let program = backstay(options.common.program.as_deref(), root)?;
    let scratch = Scratch::create(&root.join("target/bench"))?;
    let storage = Server::start(&tools.join("rclone"), &scratch.0.join("server"))?;
    print_head();
    for (what, mib) in [("large database", options.mib), ("database of 10 MiB", 10)] {
        let server = Database::start(root)?;
        fill(&server, mib)?;
        let course = Course {
            storage: &storage,
            server: &server,
            program: &program,
            tools,
            scratch: &scratch.0.join(what.replace(' ', "-")),
        };
        std::fs::create_dir(course.scratch)?;
        let mut costs: [Vec<(Cost, Cost)>; 4] = Default::default();
        for run in 0..options.common.runs.max(1) {
            let mut turns: Vec<_> = Subject::ALL.into_iter().zip(&mut costs).collect();
            // Everybody comes first once: what the one before leaves to server and disk meets all of them.
            turns.rotate_left(run % Subject::ALL.len());
            for (subject, costs) in turns {
                costs.push(course.once(subject, run)?);
            }
        }
        for (verb, is_restore) in [("backup", false), ("restore", true)] {
            let rows: Vec<(&str, Cost)> = Subject::ALL
                .into_iter()
                .zip(&costs)
                .map(|(subject, costs)| {
                    let of_verb: Vec<Cost> = costs
                        .iter()
                        .map(|(backup, restore)| if is_restore { *restore } else { *backup })
                        .collect();
                    (subject.name(), medians(&of_verb))
                })
                .collect();
            print_rows(&format!("{what}, {verb}"), &rows);
        }
    }
    Ok(())
}

/// Makes half of the size by pgbench and half as text and JSON.
fn fill(server: &Database, mib: usize) -> anyhow::Result<()> {
    server.sql("postgres", &format!("CREATE DATABASE {DATABASE}"))?;
    let scale = (mib / 2 / MIB_OF_SCALE).max(1);
    if mib > 2 * MIB_OF_SCALE {
        let mut pgbench = server.command("pgbench", DATABASE);
        let filled = pgbench.args(["-i", "-q", "-s", &scale.to_string()]).output()?;
        ensure!(filled.status.success(), "{}", String::from_utf8_lossy(&filled.stderr));
    }
    // About 500 bytes a row.
    let rows = mib * 1024 * 1024 / 2 / 500;
    server.sql(
        DATABASE,
        &format!(
            "CREATE TABLE documents (id bigint PRIMARY KEY, body text, data jsonb);
             INSERT INTO documents SELECT i, repeat(md5(i::text) || ' words of customer ' || i % 1000 || ' ', 4),
               jsonb_build_object('id', i, 'name', 'customer ' || i % 1000, 'tags', ARRAY[md5((i * 7)::text), 'tag'])
             FROM generate_series(1, {rows}) i;
             CREATE INDEX ON documents ((data ->> 'name')); ANALYZE; CHECKPOINT"
        ),
    )?;
    Ok(())
}

/// One way to back up a database.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Subject {
    File,
    Pipe,
    Restic,
    Backstay,
}

impl Subject {
    const ALL: [Self; 4] = [Self::File, Self::Pipe, Self::Restic, Self::Backstay];

    fn name(self) -> &'static str {
        match self {
            Self::File => "pg_dump -Fc, then rclone copyto",
            Self::Pipe => "pg_dump -Fc -Z0 \\| zstd -3 -T0 \\| rclone rcat",
            Self::Restic => "pg_dump -Fc -Z0 \\| restic --stdin",
            Self::Backstay => "Backstay, sealed",
        }
    }
}

/// What all runs share.
struct Course<'a> {
    storage: &'a Server,
    server: &'a Database,
    program: &'a Path,
    tools: &'a Path,
    scratch: &'a Path,
}

impl Course<'_> {
    fn once(&self, subject: Subject, run: usize) -> anyhow::Result<(Cost, Cost)> {
        let name =
            format!("{}-{run}-{subject:?}", self.scratch.file_name().unwrap_or_default().display());
        let scratch = self.scratch.join(&name);
        std::fs::create_dir(&scratch)?;
        let bench = Bench { course: self, subject, scratch: &scratch, prefix: &name };
        bench.prepare()?;
        let restored = format!("restored_{}_{run}", format!("{subject:?}").to_lowercase());
        self.settle()?;
        let mut backup = measure(&mut bench.backup(), self.storage.pid())?;
        backup.stored_mib = self.storage.stored_mib(&name)?;
        self.settle()?;
        let mut restore = measure(&mut bench.restore(&restored), self.storage.pid())?;
        restore.stored_mib = backup.stored_mib;
        let digest =
            "SELECT count(*), md5(string_agg(md5(d::text), '' ORDER BY id)) FROM documents d";
        let equal = self.server.sql(DATABASE, digest)? == self.server.sql(&restored, digest)?;
        ensure!(equal, "{subject:?} gave back something else");
        self.server.sql("postgres", &format!("DROP DATABASE {restored}"))?;
        Ok((backup, restore))
    }

    /// Waits until server and disk have nothing left to do.
    fn settle(&self) -> anyhow::Result<()> {
        self.server.sql("postgres", "CHECKPOINT")?;
        ensure!(Command::new("sync").status()?.success(), "sync failed");
        Ok(())
    }
}

/// One subject with a place of its own in the bucket.
struct Bench<'a> {
    course: &'a Course<'a>,
    subject: Subject,
    scratch: &'a Path,
    prefix: &'a str,
}

impl Bench<'_> {
    /// Does what a user does once, before the first backup. It is not measured.
    fn prepare(&self) -> anyhow::Result<()> {
        let once = match self.subject {
            Subject::File | Subject::Pipe => return Ok(()),
            Subject::Restic => self.shell("restic init --quiet"),
            Subject::Backstay => {
                std::fs::write(self.scratch.join("backstay.toml"), self.config())?;
                self.backstay(&["storage", "test", "main"])
            }
        };
        let output = { once }.output()?;
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        Ok(())
    }

    fn backup(&self) -> Command {
        match self.subject {
            Subject::File => self.shell(&format!(
                "pg_dump -Fc -f dump && rclone copyto dump \"bench:{BUCKET}/{}/dump\" && rm dump",
                self.prefix
            )),
            Subject::Pipe => self.shell(&format!(
                "pg_dump -Fc -Z0 | zstd -q -3 -T0 | rclone rcat \"bench:{BUCKET}/{}/dump.zst\"",
                self.prefix
            )),
            Subject::Restic => {
                self.shell("pg_dump -Fc -Z0 | restic backup --quiet --stdin --stdin-filename dump")
            }
            Subject::Backstay => self.backstay(&["backup", "db", "--quiet"]),
        }
    }

    fn restore(&self, to: &str) -> Command {
        match self.subject {
            Subject::File => self.shell(&format!(
                "createdb {to} && rclone copyto \"bench:{BUCKET}/{}/dump\" dump && pg_restore -d {to} dump && rm dump",
                self.prefix
            )),
            Subject::Pipe => self.shell(&format!(
                "createdb {to} && rclone cat \"bench:{BUCKET}/{}/dump.zst\" | zstd -q -dc | pg_restore -d {to}",
                self.prefix
            )),
            Subject::Restic => self.shell(&format!("createdb {to} && restic dump --quiet latest dump | pg_restore -d {to}")),
            Subject::Backstay => self.backstay(&["restore", "db", "--yes", "--quiet", "--to", to]),
        }
    }

    fn shell(&self, script: &str) -> Command {
        let mut command = self.command("bash".as_ref());
        command.args(["-o", "pipefail", "-c", script]);
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
        let server = self.course.server;
        let mut command = Command::new(program);
        command.envs(
            server
                .command("psql", DATABASE)
                .get_envs()
                .filter_map(|(name, value)| Some((name, value?))),
        );
        with_tools(&mut command, &[&server.programs, self.course.tools]);
        s3_environment(&mut command, self.course.storage, self.prefix, self.scratch);
        command.current_dir(self.scratch);
        command
    }

    fn config(&self) -> String {
        format!(
            "[storages.main]\nprovider = 's3'\nbucket = '{BUCKET}'\nendpoint = '{}'\nprefix = '{}'\n\
             access_key_id = '{KEY_ID}'\nsecret_access_key = '{SECRET}'\n\n\
             [sources.db]\nkind = 'postgres'\nurl = '{}'\nstorage = 'main'\nprograms = '{}'\n",
            self.course.storage.endpoint,
            self.prefix,
            self.course.server.url(DATABASE),
            self.course.server.programs.display(),
        )
    }
}
