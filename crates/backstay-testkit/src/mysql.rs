//! A private MariaDB server, in a temporary directory, on a free port.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use rustix::process::Signal;

use crate::certificates::Identity;
use crate::daemon::{Daemon, Port, give, unprivileged, wait_until};
use crate::exact;

/// The account that may do everything.
pub const USER: &str = "keeper";
/// Its password.
pub const PASSWORD: &str = "my-secret-w3Kp";

/// A running server; ends when it is dropped.
pub struct MysqlServer {
    _dir: tempfile::TempDir,
    daemon: Daemon,
    /// Where it listens, on 127.0.0.1.
    pub port: u16,
}

impl MysqlServer {
    /// Starts a server that keeps a log and runs events.
    pub fn start() -> Self {
        Self::start_as(&["log-bin=log", "event-scheduler=ON"])
    }

    /// Starts a server with these settings, as `name=value`.
    pub fn start_as(settings: &[&str]) -> Self {
        Self::start_in(tempfile::tempdir().expect("a directory for the server"), settings)
    }

    /// Starts a server in this directory.
    pub fn start_in(dir: tempfile::TempDir, settings: &[&str]) -> Self {
        give(dir.path());
        let made = server_program("mariadb-install-db", dir.path())
            .args(["--no-defaults", "--auth-root-authentication-method=normal", "--skip-test-db"])
            .arg(format!("--datadir={}", dir.path().join("data").display()))
            .output()
            .expect("mariadb-install-db runs; `cargo xtask test` installs it");
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        let accounts = format!(
            "CREATE USER IF NOT EXISTS {USER}@'127.0.0.1' IDENTIFIED BY '{PASSWORD}';
             GRANT ALL ON *.* TO {USER}@'127.0.0.1' WITH GRANT OPTION;\n"
        );
        std::fs::write(dir.path().join("accounts.sql"), accounts).expect("a file of accounts");
        let reserved = Port::reserve();
        let port = reserved.number;
        let mut command = server_program("mariadbd", dir.path());
        command.arg("--no-defaults");
        command.arg(format!("--datadir={}", dir.path().join("data").display()));
        command.arg(format!("--socket={}", dir.path().join("socket").display()));
        command.arg(format!("--init-file={}", dir.path().join("accounts.sql").display()));
        command.args([&format!("--port={port}"), "--bind-address=127.0.0.1"]);
        command.args(["--skip-name-resolve", "--innodb-flush-log-at-trx-commit=0"]);
        command.args(["--sync-binlog=0", "--innodb-buffer-pool-size=64M"]);
        command.arg("--innodb-log-file-size=32M");
        command.args(settings.iter().map(|setting| format!("--{setting}")));
        let daemon = Daemon::start(reserved, command, Signal::KILL);
        let server = Self { _dir: dir, daemon, port };
        server.wait();
        server
    }

    /// Starts a server that seals connections as this identity, and asks for certificates of this authority.
    pub fn start_sealed(identity: &Identity, authority: &str) -> Self {
        let files = tempfile::tempdir().expect("a directory for certificates").keep();
        let place = |name: &str, text: &str| {
            let file = files.join(name);
            std::fs::write(&file, text).expect("a file");
            give(&file);
            file.display().to_string()
        };
        give(&files);
        let settings = [
            format!("ssl-cert={}", place("server.crt", &identity.certificate)),
            format!("ssl-key={}", place("server.key", &identity.key)),
            format!("ssl-ca={}", place("authority.crt", authority)),
        ];
        let server = Self::start_as(&settings.each_ref().map(String::as_str));
        std::fs::remove_dir_all(files).expect("the files are read");
        server
    }

    fn wait(&self) {
        wait_until("it answers", || self.query("", "SELECT 1").status.success());
    }

    /// Returns the number of the server's process, for whoever wants to end it.
    pub fn pid(&self) -> u32 {
        self.daemon.pid()
    }

    /// Waits until the server is dead, and starts it again.
    pub fn revive(&mut self) {
        self.daemon.revive();
        self.wait();
    }

    /// Returns the URL of a database, without the password.
    pub fn url(&self, database: &str) -> String {
        format!("mysql://{USER}@127.0.0.1:{}/{database}", self.port)
    }

    /// Returns the directory of the server's programs.
    pub fn programs(&self) -> PathBuf {
        PathBuf::from("/usr/bin")
    }

    /// Prepares one of the server's programs.
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new(self.programs().join(program));
        command.args(["--no-defaults", "--protocol=tcp", "--host=127.0.0.1"]);
        command.arg(format!("--port={}", self.port)).arg(format!("--user={USER}"));
        command.arg("--default-character-set=utf8mb4");
        command.env("MYSQL_PWD", PASSWORD).env("LC_ALL", "C").stdin(Stdio::null());
        command
    }

    /// Runs statements.
    pub fn query(&self, database: &str, statements: &str) -> Output {
        let mut command = self.command("mariadb");
        command.args(["--batch", "--skip-column-names", "--comments", "--execute", statements]);
        command.arg(format!("--database={database}"));
        command.output().expect("mariadb runs")
    }

    /// Runs statements that must work. Returns what they print.
    pub fn sql(&self, database: &str, statements: &str) -> String {
        let output = self.query(database, statements);
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{statements}\n{error}");
        exact(&output.stdout).trim_end().to_owned()
    }

    /// Runs a script with commands of the program that must work.
    pub fn script(&self, database: &str, file: &Path) {
        let script = std::fs::File::open(file).expect("a script");
        let mut command = self.command("mariadb");
        command.arg("--binary-mode").arg(format!("--database={database}")).stdin(script);
        let output = command.output().expect("mariadb runs");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }

    /// Returns everything that a database is, as the server's own program writes it all, and its own sums of the tables.
    pub fn digest(&self, database: &str) -> String {
        let dumped = self
            .command("mariadb-dump")
            .args([
                "--single-transaction",
                "--routines",
                "--skip-triggers",
                "--events",
                "--hex-blob",
            ])
            .args(["--skip-comments", "--skip-extended-insert", "--order-by-primary"])
            .args(["--", database])
            .output()
            .expect("mariadb-dump runs");
        assert!(dumped.status.success(), "{}", String::from_utf8_lossy(&dumped.stderr));
        let quoted = database.replace('\'', "''");
        let properties = format!(
            "SELECT default_character_set_name, default_collation_name, schema_comment FROM information_schema.schemata
              WHERE schema_name = '{quoted}'"
        );
        // Not as they were written, which the server keeps to the letter, but what they are and in which order they run.
        let triggers = format!(
            "SELECT event_object_table, event_manipulation, action_timing, action_order, trigger_name, definer, sql_mode,
                    character_set_client, collation_connection, database_collation, action_statement
               FROM information_schema.triggers WHERE trigger_schema = '{quoted}' ORDER BY 1, 2, 3, 4"
        );
        let texts = [
            exact(&dumped.stdout),
            self.sums(database),
            self.sql("", &properties),
            self.sql("", &triggers),
        ];
        texts.join("\n")
    }

    /// Returns the server's own sums of the tables.
    pub fn sums(&self, database: &str) -> String {
        let list = format!(
            "SELECT concat('CHECKSUM TABLE `', replace(table_name, '`', '``'), '` EXTENDED;') FROM information_schema.tables
              WHERE table_schema = '{}' AND table_type IN ('BASE TABLE', 'SYSTEM VERSIONED') ORDER BY table_name",
            database.replace('\'', "''")
        );
        let mut command = self.command("mariadb");
        command.args(["--batch", "--raw", "--skip-column-names", "--execute", &list]);
        let output = command.output().expect("mariadb runs");
        let statements = String::from_utf8(output.stdout).expect("names in UTF-8");
        let sums = self.sql(database, &statements);
        let without_database = sums
            .lines()
            .map(|line| line.split_once('.').map_or(line, |(_, rest)| rest).to_owned() + "\n");
        without_database.collect()
    }
}

fn server_program(name: &str, dir: &Path) -> Command {
    let mut command = unprivileged(name);
    let path = std::env::var("PATH").unwrap_or_default();
    command.env("PATH", format!("{path}:/usr/sbin"));
    // Servers that share a directory for temporary tables remove each other's.
    command.env("TMPDIR", dir);
    command
}
