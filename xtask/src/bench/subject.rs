//! What is compared: three ways to bring a directory to a bucket and back.

use std::path::Path;
use std::process::Command;

use anyhow::ensure;

use crate::bench::server::{BUCKET, Server};
use crate::bench::{s3_environment, with_tools};

/// One way to back up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Subject {
    Pipe,
    Restic,
    Backstay,
}

impl Subject {
    pub(crate) const ALL: [Self; 3] = [Self::Pipe, Self::Restic, Self::Backstay];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Pipe => "tar \\| zstd -3 -T0 \\| rclone rcat",
            Self::Restic => "restic",
            Self::Backstay => "Backstay, sealed",
        }
    }
}

/// One subject with a place of its own, in the bucket and on the disk.
pub(crate) struct Bench<'a> {
    pub(crate) subject: Subject,
    pub(crate) server: &'a Server,
    /// The built `backstay`.
    pub(crate) program: &'a Path,
    /// What is backed up.
    pub(crate) data: &'a Path,
    /// Where this run keeps its settings and caches.
    pub(crate) scratch: &'a Path,
    /// Where rclone is.
    pub(crate) tools: &'a Path,
    /// Where in the bucket it writes.
    pub(crate) prefix: &'a str,
}

impl Bench<'_> {
    /// Does what a user does once, before the first backup. It is not measured.
    pub(crate) fn prepare(&self) -> anyhow::Result<()> {
        std::fs::create_dir_all(self.scratch)?;
        match self.subject {
            Subject::Pipe => Ok(()),
            Subject::Restic => {
                let output = self.command("restic").args(["init", "--quiet"]).output()?;
                let complaint = String::from_utf8_lossy(&output.stderr);
                ensure!(output.status.success(), "restic init failed: {complaint}");
                Ok(())
            }
            Subject::Backstay => {
                std::fs::write(self.config(), self.config_text())?;
                let output = self.backstay(&["storage", "test", "main"]).output()?;
                let complaint = String::from_utf8_lossy(&output.stderr);
                ensure!(output.status.success(), "backstay storage test failed: {complaint}");
                Ok(())
            }
        }
    }

    pub(crate) fn backup(&self) -> Command {
        match self.subject {
            Subject::Pipe => self.shell(&format!(
                "tar -C \"$DATA\" -cf - . | zstd -q -3 -T0 | rclone rcat \"bench:{BUCKET}/{}/files.tar.zst\"",
                self.prefix
            )),
            Subject::Restic => {
                let mut command = self.command("restic");
                command.args(["backup", "--quiet", "."]).current_dir(self.data);
                command
            }
            Subject::Backstay => self.backstay(&["backup", "data", "--quiet"]),
        }
    }

    pub(crate) fn restore(&self, to: &Path) -> Command {
        let mut command = match self.subject {
            Subject::Pipe => self.shell(&format!(
                "mkdir \"$TO\" && rclone cat \"bench:{BUCKET}/{}/files.tar.zst\" | zstd -q -dc | tar -C \"$TO\" -xpf -",
                self.prefix
            )),
            Subject::Restic => {
                let mut command = self.command("restic");
                command.args(["restore", "--quiet", "latest", "--target"]).arg(to);
                command
            }
            Subject::Backstay => {
                let mut command = self.backstay(&["restore", "data", "--yes", "--quiet", "--to"]);
                command.arg(to);
                command
            }
        };
        command.env("TO", to);
        command
    }

    fn shell(&self, script: &str) -> Command {
        let mut command = self.command("bash");
        command.args(["-o", "pipefail", "-c", script]);
        command
    }

    fn backstay(&self, words: &[&str]) -> Command {
        let mut command = self.command(self.program);
        command.arg("--home").arg(self.scratch.join("home"));
        command.arg("--config").arg(self.config()).args(words);
        command
    }

    /// Starts with all that any of them reads from its environment.
    fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new(program);
        with_tools(&mut command, &[self.tools]);
        s3_environment(&mut command, self.server, self.prefix, self.scratch);
        command.env("DATA", self.data);
        command
    }

    fn config(&self) -> std::path::PathBuf {
        self.scratch.join("backstay.toml")
    }

    fn config_text(&self) -> String {
        format!(
            "[storages.main]\nprovider = 's3'\nbucket = '{BUCKET}'\nendpoint = '{}'\nprefix = '{}'\n\
             access_key_id = '${{AWS_ACCESS_KEY_ID}}'\nsecret_access_key = '${{AWS_SECRET_ACCESS_KEY}}'\n\n\
             [sources.data]\nkind = 'files'\npath = '{}'\nstorage = 'main'\n",
            self.server.endpoint,
            self.prefix,
            self.data.display()
        )
    }
}
