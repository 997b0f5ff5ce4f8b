//! A real PostgreSQL server on the loopback interface, which the testkit runs.

use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context as _, ensure};

/// A server that ends when this is dropped.
pub(crate) struct Database {
    child: Child,
    port: String,
    pub(crate) programs: PathBuf,
    user: String,
    password: String,
}

impl Database {
    pub(crate) fn start(root: &Path) -> anyhow::Result<Self> {
        let mut child = Command::new("cargo")
            .args(["run", "--quiet", "--package", "backstay-testkit", "--bin", "postgres-server"])
            .current_dir(root)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("cannot start a PostgreSQL server")?;
        let mut line = String::new();
        let stdout = child.stdout.take().context("its output")?;
        BufReader::new(stdout).read_line(&mut line)?;
        let mut fields = line.trim_end().split('\t').map(str::to_owned);
        let mut field = || fields.next().context("the PostgreSQL server does not say where it is");
        let (port, programs) = (field()?, PathBuf::from(field()?));
        Ok(Self { child, port, programs, user: field()?, password: field()? })
    }

    pub(crate) fn url(&self, database: &str) -> String {
        format!("postgres://{}:{}@127.0.0.1:{}/{database}", self.user, self.password, self.port)
    }

    /// Prepares one of the server's programs, connected to a database.
    pub(crate) fn command(&self, program: &str, database: &str) -> Command {
        let mut command = Command::new(self.programs.join(program));
        command.env("PGHOST", "127.0.0.1").env("PGPORT", &self.port).env("PGUSER", &self.user);
        command.env("PGPASSWORD", &self.password).env("PGDATABASE", database);
        command
    }

    /// Runs statements that must work. Returns what they print.
    pub(crate) fn sql(&self, database: &str, statements: &str) -> anyhow::Result<String> {
        let words = ["-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-c", statements];
        let output = self.command("psql", database).args(words).output()?;
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }
}

impl Drop for Database {
    fn drop(&mut self) {
        // It ends when its input does.
        drop(self.child.stdin.take());
        drop(self.child.wait());
    }
}
