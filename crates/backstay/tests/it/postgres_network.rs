//! PostgreSQL behind a network that breaks: no false success, nothing lost, and the next run is good (V7, V8, V50, V51).

use std::process::{Child, Output, Stdio};
use std::time::{Duration, Instant};

use backstay_testkit::postgres::PostgresServer;
use backstay_testkit::proxy::{Network, Proxy};
use rustix::process::{Pid, Signal, kill_process};

use crate::postgres::{made, move_to, with_database};
use crate::postgres_faults::with_program;
use crate::shell::Shell;

/// Waits that must end; nothing is asserted about how long they take.
const PATIENCE: Duration = Duration::from_secs(90);

pub(crate) fn wait_until(what: &str, is_so: impl FnMut() -> bool) {
    wait_for(PATIENCE, what, is_so);
}

fn wait_for(patience: Duration, what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + patience;
    while !is_so() {
        assert!(Instant::now() < deadline, "never: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

pub(crate) fn start(shell: &Shell, words: &[&str]) -> Child {
    let mut command = shell.command(words);
    command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap()
}

pub(crate) fn send(child: &Child, signal: Signal) {
    kill_process(Pid::from_child(child), signal).unwrap();
}

/// Waits for a command that must end.
pub(crate) fn ended(mut child: Child) -> Output {
    let deadline = Instant::now() + PATIENCE;
    while child.try_wait().unwrap().is_none() {
        if Instant::now() > deadline {
            child.kill().unwrap();
            panic!("it never ended: {:?}", child.wait_with_output());
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    child.wait_with_output().unwrap()
}

/// A line of a script that waits until it is let go, or until the test is over.
pub(crate) fn gate(shell: &Shell) -> String {
    let (reached, go) = (shell.path("reached"), shell.path("go"));
    let (reached, go) = (reached.display(), go.display());
    format!("touch '{reached}'; while [ ! -e '{go}' ] && [ -e '{reached}' ]; do sleep 0.02; done")
}

/// A database of some megabytes behind a network, and the digest of what was backed up.
struct Setting {
    server: PostgresServer,
    proxy: Proxy,
    shell: Shell,
    id: String,
    backed_up: String,
    config: String,
}

impl Setting {
    fn new() -> Self {
        let server = PostgresServer::start();
        server.sql("postgres", "CREATE DATABASE shop");
        server.sql(
            "shop",
            "CREATE TABLE orders AS SELECT i, repeat(md5(i::text), 4) AS text FROM generate_series(1, 60000) i;
             CREATE TABLE small AS SELECT generate_series(1, 10) AS n",
        );
        let proxy = Proxy::start(server.port);
        let shell = with_database(&server, "shop", "");
        move_to(&shell, server.port, proxy.port);
        let config = shell.config();
        let backed_up = server.digest("shop");
        let id = made(&shell)["id"].as_str().unwrap().to_owned();
        server.sql("shop", "UPDATE small SET n = 0");
        Self { server, proxy, shell, id, backed_up, config }
    }

    /// Runs a command during which the network breaks. It must end: by itself if the network is cut, else when it is told to.
    fn break_during(&self, stage: &Stage, network: Network, signal: Signal) -> Output {
        let Stage { words, program, script, bytes } = stage;
        let words: Vec<&str> =
            words.iter().map(|w| if *w == "ID" { self.id.as_str() } else { *w }).collect();
        if !script.is_empty() {
            let script = script.replace("GATE", &gate(&self.shell));
            with_program(&self.server, &self.shell, program, &script);
        }
        let arm = || self.proxy.set_after(*bytes, network);
        if script.is_empty() {
            arm();
        }
        let child = start(&self.shell, &words);
        if !script.is_empty() {
            wait_until("the program is reached", || self.shell.path("reached").exists());
            arm();
            std::fs::write(self.shell.path("go"), "").unwrap();
        }
        wait_until("the network breaks", || self.proxy.network() == network);
        if network == Network::Silent {
            send(&child, signal);
        }
        ended(child)
    }

    fn is_as_before_and_the_next_run_is_good(&self, before: &str, context: &str) {
        assert!(self.server.digest("shop") == before, "{context}: the target changed");
        self.proxy.mend();
        self.shell.set_config(&self.config);
        for left in ["programs", "reached", "go"] {
            let path = self.shell.path(left);
            drop(std::fs::remove_dir_all(&path).or_else(|_| std::fs::remove_file(&path)));
        }
        let listed = self.shell.json(&["backups", "db"]);
        assert_eq!(listed.as_array().map(Vec::len), Some(1), "{context}: {listed}");
        self.shell.ends(0, &["verify", "--all"]);
        let made = made(&self.shell);
        self.shell.ends(0, &["restore", "db", "--id", &self.id, "--yes"]);
        assert!(self.server.digest("shop") == self.backed_up, "{context}: not what was backed up");
        self.shell.ends(0, &["undo", "db"]);
        self.shell.ends(0, &["confirm", "db"]);
        self.shell.ends(0, &["delete", made["id"].as_str().unwrap(), "--yes"]);
        for safety in self.shell.json(&["backups", "db"]).as_array().unwrap() {
            let id = safety["id"].as_str().unwrap();
            if id != self.id {
                self.shell.ends(0, &["delete", id, "--yes"]);
            }
        }
        assert!(self.server.digest("shop") == before);
        let ours = "SELECT count(*) FROM pg_database WHERE datname ~ '^backstay_'";
        assert_eq!(self.server.sql("postgres", ours), "0", "{context}: nothing is left beside");
        wait_until("our sessions end", || sessions(&self.server) == "0");
    }
}

pub(crate) fn sessions(server: &PostgresServer) -> String {
    let ours = "SELECT count(*) FROM pg_stat_activity WHERE application_name ~ '^(backstay|pg_)'";
    server.sql("postgres", ours)
}

/// When the network breaks.
struct Stage {
    words: &'static [&'static str],
    /// Which program is a script, if any.
    program: &'static str,
    script: &'static str,
    /// After how many bytes from the start, or from the gate of the script.
    bytes: u64,
}

const BACKUP: &[&str] = &["backup", "db"];
const RESTORE: &[&str] = &["restore", "db", "--id", "ID", "--yes"];
const DUMP: Stage = Stage { words: BACKUP, program: "", script: "", bytes: 2_000_000 };
const LOAD: Stage = Stage {
    words: RESTORE,
    program: "pg_restore",
    script: "GATE; exec \"$REAL\" \"$@\"",
    bytes: 2_000_000,
};
// Signing in takes more than a thousand bytes.
const COMPARISON: Stage = Stage {
    words: RESTORE,
    program: "pg_restore",
    script: "\"$REAL\" \"$@\" || exit 1; GATE",
    bytes: 2_500,
};
const SAFETY: Stage = Stage {
    words: RESTORE,
    program: "pg_dump",
    script: "GATE; exec \"$REAL\" \"$@\"",
    bytes: 2_000_000,
};

fn breaks(network: Network, stages: &[(&str, &Stage)]) {
    let setting = Setting::new();
    let before = setting.server.digest("shop");
    for (round, (name, stage)) in stages.iter().enumerate() {
        let signal = [Signal::INT, Signal::TERM][round % 2];
        let context = format!("{network:?} during the {name}");
        let output = setting.break_during(stage, network, signal);
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        let expected = if network == Network::Silent { 130 } else { 1 };
        assert_eq!(output.status.code(), Some(expected), "{context}: {error}");
        assert!(error.contains("error: "), "{context}: {error}");
        setting.is_as_before_and_the_next_run_is_good(&before, &context);
    }
}

#[test]
fn network_that_is_cut_makes_no_false_success_and_the_next_run_is_good() {
    let stages =
        [("dump", &DUMP), ("load", &LOAD), ("comparison", &COMPARISON), ("safety backup", &SAFETY)];
    breaks(Network::Cut, &stages);
}

#[test]
fn signal_ends_a_dump_and_a_load_whose_server_fell_silent() {
    breaks(Network::Silent, &[("dump", &DUMP), ("load", &LOAD)]);
}

#[test]
fn signal_ends_a_comparison_and_a_safety_backup_whose_server_fell_silent() {
    breaks(Network::Silent, &[("comparison", &COMPARISON), ("safety backup", &SAFETY)]);
}

/// Nobody tells it to end: it asks again and again whether the server is there, and gives up after two minutes.
#[test]
fn dump_whose_server_vanished_from_the_network_ends_by_itself() {
    let setting = Setting::new();
    let before = setting.server.digest("shop");
    setting.proxy.set_after(DUMP.bytes, Network::Silent);
    let mut child = start(&setting.shell, DUMP.words);
    wait_until("it is in the middle", || setting.proxy.network() == Network::Silent);
    setting.proxy.vanish();
    let mut state = None;
    wait_for(Duration::from_mins(4), "it gives up", || {
        state = child.try_wait().unwrap();
        state.is_some()
    });
    let output = child.wait_with_output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{error}");
    assert!(error.contains("error: "), "{error}");
    setting.is_as_before_and_the_next_run_is_good(&before, "a server that vanished");
}

#[test]
fn server_that_says_nothing_from_the_start_is_given_up() {
    let setting = Setting::new();
    setting.proxy.set(Network::Silent);
    let error = setting.shell.complains(1, &["backup", "db"]);
    assert!(error.contains("no answer in time"), "{error}");
    let error = setting.shell.complains(1, &["restore", "db", "--yes"]);
    assert!(error.contains("no answer in time"), "{error}");
}

#[test]
fn every_session_asks_whether_its_server_is_still_there() {
    let setting = Setting::new();
    let server = &setting.server;
    // The dump waits for a lock, so that all who are connected stay so and say nothing.
    let mut holder = server.command("psql", "shop");
    let mut holder = holder
        .args(["-X", "-c", "BEGIN; LOCK TABLE orders; SELECT pg_sleep(600)"])
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let locked = "SELECT count(*) FROM pg_locks WHERE mode = 'AccessExclusiveLock' AND granted AND relation = 'orders'::regclass";
    wait_until("the table is locked", || server.sql("shop", locked) == "1");
    let shell = with_database(server, "shop", "");
    let mut child = start(&shell, &["backup", "db"]);
    let waiting = "SELECT count(*) FROM pg_stat_activity WHERE application_name ~ '^backstay dump' AND wait_event_type = 'Lock'";
    wait_until("the dump waits", || server.sql("shop", waiting) == "1");
    let ports = "SELECT client_port FROM pg_stat_activity WHERE application_name ~ '^backstay'";
    let ports = server.sql("shop", ports);
    assert!(ports.lines().count() >= 2, "{ports}");
    for port in ports.lines() {
        wait_until("a timer of that connection is near", || {
            keepalive(port.parse().unwrap()).is_some_and(|left| left <= 60 * 100)
        });
    }
    child.kill().unwrap();
    child.wait().unwrap();
    holder.kill().unwrap();
    holder.wait().unwrap();
}

/// Returns in how many hundredths of a second a connection's peer will be asked whether it is there, if it will be.
fn keepalive(port: u16) -> Option<u64> {
    let table = std::fs::read_to_string("/proc/net/tcp").unwrap();
    let ours = format!("0100007F:{port:04X}");
    let line = table.lines().find(|line| line.split_whitespace().nth(1) == Some(&ours))?;
    let (kind, when) = line.split_whitespace().nth(5)?.split_once(':')?;
    (kind == "02").then(|| u64::from_str_radix(when, 16).unwrap())
}
