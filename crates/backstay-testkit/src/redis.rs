//! A private Redis server, in a temporary directory, on a free port.

use std::fmt::Write as _;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use rustix::process::Signal;

use crate::certificates::Identity;
use crate::daemon::{Daemon, Port, wait_until};
use crate::exact;

/// Of the user that may do everything.
pub const PASSWORD: &str = "rd-secret-8Vtq";

/// Whatever a server has: keys of a database with when they expire, in the order of their names.
const KEYS: &str = "local keys = redis.call('KEYS', '*') table.sort(keys)
    for i, key in ipairs(keys) do keys[i] = #key .. key .. redis.call('PEXPIRETIME', key) end
    return redis.sha1hex(table.concat(keys))";
/// All about the streams of a database: entries, groups, consumers, what waits to be acknowledged.
const STREAMS: &str = "local keys = redis.call('KEYS', '*') table.sort(keys) local all = {}
    for _, key in ipairs(keys) do if redis.call('TYPE', key).ok == 'stream' then
      table.insert(all, cjson.encode(redis.call('XINFO', 'STREAM', key, 'FULL', 'COUNT', '0'))) end end
    return table.concat(all)";

/// A running server; ends when it is dropped.
pub struct RedisServer {
    dir: tempfile::TempDir,
    is_sealed: bool,
    daemon: Daemon,
    _bus: Port,
    /// Where it listens, on 127.0.0.1.
    pub port: u16,
}

impl RedisServer {
    /// Starts a server that sends replicas its data at once.
    pub fn start() -> Self {
        Self::start_as(&[])
    }

    /// Starts a server with these settings, as `name value`.
    pub fn start_as(settings: &[&str]) -> Self {
        Self::start_in(tempfile::tempdir().expect("a directory for the server"), settings)
    }

    /// Starts a server in this directory.
    pub fn start_in(dir: tempfile::TempDir, settings: &[&str]) -> Self {
        let reserved = Port::reserve();
        let port = reserved.number;
        // What a node of a cluster takes by itself, 10,000 above, may be a connection's already.
        let bus = Port::reserve();
        let mut text = format!(
            "bind 127.0.0.1\nsave \"\"\nrepl-diskless-sync-delay 0\nenable-debug-command yes\nrequirepass {PASSWORD}\ncluster-port {}\ndir {}\n",
            bus.number,
            dir.path().display()
        );
        let is_sealed = settings.iter().any(|setting| setting.starts_with("tls-cert-file"));
        let ports =
            if is_sealed { format!("port 0\ntls-port {port}") } else { format!("port {port}") };
        writeln!(text, "{ports}\n{}", settings.join("\n")).expect("text");
        let file = dir.path().join("redis.conf");
        std::fs::write(&file, text).expect("a configuration");
        let mut command = Command::new("redis-server");
        command.arg(&file).current_dir(dir.path());
        let daemon = Daemon::start(reserved, command, Signal::KILL);
        let server = Self { dir, is_sealed, daemon, _bus: bus, port };
        server.wait();
        server
    }

    /// Starts a server that seals connections as this identity, and asks for certificates of this authority.
    pub fn start_sealed(identity: &Identity, authority: &str) -> Self {
        let dir = tempfile::tempdir().expect("a directory for the server");
        let place = |name: &str, text: &str| {
            let file = dir.path().join(name);
            std::fs::write(&file, text).expect("a file");
            file.display().to_string()
        };
        let settings = [
            format!("tls-cert-file {}", place("server.crt", &identity.certificate)),
            format!("tls-key-file {}", place("server.key", &identity.key)),
            format!("tls-ca-cert-file {}", place("authority.crt", authority)),
            "tls-auth-clients optional".to_owned(),
        ];
        Self::start_in(dir, &settings.each_ref().map(String::as_str))
    }

    fn wait(&self) {
        let answers =
            || self.command().arg("PING").output().is_ok_and(|output| output.stdout == b"PONG\n");
        wait_until("it answers", answers);
    }

    /// Returns the number of the server's process, for whoever wants to end it.
    pub fn pid(&self) -> u32 {
        self.daemon.pid()
    }

    /// Returns the server's directory.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Waits until the server is dead, and starts it again.
    pub fn revive(&mut self) {
        self.daemon.revive();
        self.wait();
    }

    /// Returns the server's URL, without the password.
    pub fn url(&self) -> String {
        let scheme = if self.is_sealed { "rediss" } else { "redis" };
        format!("{scheme}://127.0.0.1:{}", self.port)
    }

    /// Prepares the server's own program.
    pub fn command(&self) -> Command {
        let mut command = Command::new("redis-cli");
        command.args(["-h", "127.0.0.1", "-p", &self.port.to_string(), "--no-auth-warning"]);
        if self.is_sealed {
            command.args(["--tls", "--insecure"]);
        }
        command.env("REDISCLI_AUTH", PASSWORD).stdin(Stdio::null());
        command
    }

    /// Asks a database.
    pub fn query(&self, database: u32, words: &[&str]) -> Output {
        let mut command = self.command();
        command.args(["-n", &database.to_string()]).args(words);
        command.output().expect("redis-cli runs")
    }

    /// Asks a database something that must work. Returns what is printed.
    pub fn ask(&self, database: u32, words: &[&str]) -> String {
        let output = self.query(database, words);
        let answer = exact(&output.stdout).trim_end().to_owned();
        let is_error =
            ["ERR", "WRONG", "NO", "OOM", "MISCONF"].iter().any(|word| answer.starts_with(word));
        assert!(output.status.success() && !is_error, "{words:?}: {answer}");
        answer
    }

    /// Runs commands of a text, a line each, as the server's own program reads them.
    pub fn script(&self, database: u32, text: &str) {
        let mut command = self.command();
        command.args(["-n", &database.to_string(), "-e"]);
        let file = self.dir.path().join("script");
        std::fs::write(&file, text).expect("a script");
        command.stdin(std::fs::File::open(&file).expect("a script"));
        let output = command.output().expect("redis-cli runs");
        let said = exact(&output.stdout);
        assert!(output.status.success() && !said.contains("ERR"), "{said}");
    }

    /// Returns everything that a server is: its own digest of all values, names and times of expiry, streams, functions.
    pub fn digest(&self) -> String {
        let mut texts = vec![self.ask(0, &["DEBUG", "DIGEST"]), self.ask(0, &["INFO", "keyspace"])];
        // How long keys live on average changes with every look.
        texts[1] = texts[1]
            .lines()
            .map(|line| line.split(",avg").next().unwrap_or_default().to_owned() + "\n")
            .collect();
        for database in 0..16 {
            texts.extend([KEYS, STREAMS].map(|script| self.ask(database, &["EVAL", script, "0"])));
        }
        // Listed in no order.
        let functions = self.ask(0, &["FUNCTION", "LIST", "WITHCODE"]);
        let mut functions: Vec<String> = functions.lines().map(str::to_owned).collect();
        functions.sort();
        texts.extend(functions);
        texts.join("\n")
    }
}
