//! A real database server on the loopback interface, which the testkit runs.

use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::Context as _;

/// A server that ends when this is dropped.
pub(crate) struct Database {
    child: Child,
    pub(crate) port: String,
    pub(crate) programs: PathBuf,
    pub(crate) user: String,
    pub(crate) password: String,
}

impl Database {
    /// Starts the server that a program of the testkit runs.
    pub(crate) fn start(root: &Path, program: &str) -> anyhow::Result<Self> {
        let mut child = Command::new("cargo")
            .args(["run", "--quiet", "--package", "backstay-testkit", "--bin", program])
            .current_dir(root)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot start {program}"))?;
        let mut line = String::new();
        let stdout = child.stdout.take().context("its output")?;
        BufReader::new(stdout).read_line(&mut line)?;
        let mut fields = line.trim_end().split('\t').map(str::to_owned);
        let mut field = || fields.next().context("the server does not say where it is");
        let (port, programs) = (field()?, PathBuf::from(field()?));
        Ok(Self { child, port, programs, user: field()?, password: field()? })
    }
}

impl Drop for Database {
    fn drop(&mut self) {
        // It ends when its input does.
        drop(self.child.stdin.take());
        drop(self.child.wait());
    }
}
