//! Several servers on one catalog while everything between them breaks (V39, V40): each slot is done once or caught up, nobody
//! works on a source that somebody else works on, and no job is lost or stands still. `cargo xtask storm` runs it.

#![expect(
    clippy::print_stdout,
    clippy::disallowed_methods,
    clippy::unwrap_used,
    reason = "a program for a terminal that stops where anything is wrong, and waits with a deadline"
)]

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use backstay_testkit::postgres::PostgresServer;
use backstay_testkit::proxy::{Network, Proxy};
use rustix::process::{Pid, Signal, kill_process};

/// With what a dump takes, enough to keep three servers at work half of the time.
const SOURCES: usize = 12;
/// Longer than a lease.
const LONG: Duration = Duration::from_secs(70);
const SHORT: Duration = Duration::from_secs(4);
/// How long anything may take once nothing breaks any more.
const PATIENCE: Duration = Duration::from_secs(300);

/// A server on a machine of its own, as far as it can tell.
struct Machine {
    name: &'static str,
    program: PathBuf,
    home: tempfile::TempDir,
    /// Between it and the catalog.
    network: Proxy,
    child: Option<Child>,
}

impl Machine {
    fn new(name: &'static str, program: &Path, catalog: &PostgresServer, common: &Path) -> Self {
        let network = Proxy::start(catalog.port);
        let url = catalog
            .url("catalog")
            .replace(&format!(":{}/", catalog.port), &format!(":{}/", network.port));
        let home = tempfile::tempdir().unwrap();
        let machine = Self { name, program: program.to_owned(), home, network, child: None };
        machine.configure(&url, common, "every 1m");
        machine
    }

    fn configure(&self, url: &str, common: &Path, schedule: &str) {
        let storage = common.join("storage");
        let mut config = format!(
            "catalog = '{url}'\n\n[storages.main]\nprovider = 'local'\npath = '{}'\n",
            storage.display()
        );
        for source in 0..SOURCES {
            write!(
                config,
                "\n[sources.s{source}]\nkind = 'command'\nstorage = 'main'\nschedule = '{schedule}'\nkeep = {{ last = 1000 }}\n\
                 outputs = [{{ name = 'dump', dump = ['sh', '{}', 's{source}', '{}'], restore = ['cat'] }}]\n",
                common.join("dump.sh").display(),
                common.display(),
            )
            .unwrap();
        }
        std::fs::write(self.home.path().join("backstay.toml"), config).unwrap();
    }

    fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command.args(words).current_dir(self.home.path()).env_clear().stdin(Stdio::null());
        command.env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").env("HOME", self.home.path());
        command.env("BACKSTAY_HOME", self.home.path().join("home"));
        command.env("BACKSTAY_MASTER_KEY", "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=");
        command
    }

    /// Starts its server; a machine has a name of its own where that can be had.
    fn start(&mut self) {
        let plain = self.command(&["serve", "--jobs", "1"]);
        let mut command = if rustix::process::geteuid().is_root() {
            let mut named = Command::new("unshare");
            let script = format!("hostname {}; exec \"$@\"", self.name);
            named.args(["--uts", "sh", "-c", &script, "sh"]).arg(plain.get_program());
            named.args(plain.get_args()).env_clear().current_dir(self.home.path());
            for (name, value) in plain.get_envs() {
                named.env(name, value.unwrap_or_default());
            }
            named
        } else {
            plain
        };
        let log =
            std::fs::File::options().create(true).append(true).open(self.home.path().join("log"));
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log.unwrap());
        self.child = Some(command.spawn().unwrap());
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(self.child.as_ref().unwrap()), signal).unwrap();
    }

    /// Ends it with this signal, and waits for that.
    fn end(&mut self, signal: Signal) {
        self.signal(signal);
        self.child.take().unwrap().wait().unwrap();
    }

    /// Waits until it is in the middle of a dump.
    fn wait_for_work(&self, common: &Path) {
        let me = self.child.as_ref().unwrap().id().to_string();
        let is_mine = |source| {
            let writer = std::fs::read_to_string(common.join(format!("s{source}.writer")));
            writer.is_ok_and(|writer| writer.trim() == me)
        };
        until("it is at work", common, || (0..SOURCES).any(is_mine));
    }

    fn assert_runs(&mut self) {
        let ended = self.child.as_mut().unwrap().try_wait().unwrap();
        let log = || std::fs::read_to_string(self.home.path().join("log")).unwrap_or_default();
        assert!(ended.is_none(), "{} ended by itself: {ended:?}\n{}", self.name, log());
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }
}

/// Dumps a source, and tells if somebody else does so: a server that lives and does not stand still.
const DUMP: &str = r#"
source=$1 common=$2
writer="$common/$source.writer"
if read -r other < "$writer" 2>/dev/null && [ -r "/proc/$other/stat" ]; then
    case $(sed 's/.*) //' "/proc/$other/stat") in
        T*|Z*) ;;
        *) echo "$source: $PPID began while $other was at it" >> "$common/overlaps" ;;
    esac
fi 2>/dev/null
echo "$PPID" > "$writer"
echo "$source" >> "$common/begun"
head -c 100000 /dev/urandom
sleep 5
rm -f "$writer"
"#;

fn until(what: &str, common: &Path, mut holds: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !holds() {
        let told = std::fs::read_to_string(common.join("overlaps")).unwrap_or_default();
        assert!(Instant::now() < end, "never: {what}\n{told}");
        sleep(Duration::from_millis(500));
    }
}

/// Breaks one thing after the other, each in the middle of work, and mends it again.
fn rage(machines: &mut [Machine], catalog: &mut PostgresServer, common: &Path) {
    for machine in &mut *machines {
        machine.wait_for_work(common);
        machine.end(Signal::KILL);
        sleep(SHORT);
        machine.start();
    }
    machines[1].wait_for_work(common);
    kill_process(Pid::from_raw(catalog.pid().cast_signed()).unwrap(), Signal::QUIT).unwrap();
    catalog.revive();
    machines[2].wait_for_work(common);
    machines[2].network.set(Network::Cut);
    sleep(SHORT);
    machines[2].network.mend();
    machines[0].wait_for_work(common);
    machines[0].network.set(Network::Silent);
    sleep(LONG);
    machines[0].network.mend();
    machines[1].wait_for_work(common);
    machines[1].signal(Signal::STOP);
    sleep(LONG);
    machines[1].signal(Signal::CONT);
    sleep(SHORT);
    for machine in machines {
        machine.assert_runs();
    }
}

fn main() {
    let mut words = std::env::args().skip(1);
    let program = PathBuf::from(words.next().expect("the program to try")).canonicalize().unwrap();
    let minutes: u64 = words.next().expect("for how many minutes").parse().unwrap();
    let common = tempfile::tempdir().unwrap();
    std::fs::write(common.path().join("dump.sh"), DUMP).unwrap();
    let mut catalog = PostgresServer::start();
    catalog.sql("postgres", "CREATE DATABASE catalog");
    let names = ["web1", "web2", "web3"];
    let mut machines = names.map(|name| Machine::new(name, &program, &catalog, common.path()));
    for machine in &mut machines {
        machine.start();
    }
    let count = |catalog: &PostgresServer, question: &str| -> usize {
        let output = catalog.psql("catalog", &format!("SELECT count(*) FROM {question}"));
        String::from_utf8_lossy(&output.stdout).trim().parse().unwrap_or(usize::MAX)
    };
    let sources_done = |catalog: &PostgresServer, since: i64| {
        count(
            catalog,
            &format!(
                "(SELECT DISTINCT source FROM jobs WHERE state = 'succeeded' AND slot > {since}) AS done"
            ),
        )
    };
    until("the first backups", common.path(), || sources_done(&catalog, 0) == SOURCES);

    let end = Instant::now() + Duration::from_secs(60 * minutes);
    let mut rounds = 0;
    while rounds == 0 || Instant::now() < end {
        rage(&mut machines, &mut catalog, common.path());
        rounds += 1;
    }
    // Then all goes on by itself.
    let now =
        catalog.sql("catalog", "SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint");
    let now: i64 = now.parse().unwrap();
    until("backups after the storm", common.path(), || sources_done(&catalog, now) == SOURCES);
    for machine in &mut machines {
        machine.end(Signal::TERM);
    }
    // What was left half done is done by whoever is there, and nothing new is due.
    machines[0].configure(&catalog.url("catalog"), common.path(), "every 10w");
    machines[0].start();
    let busy = "jobs WHERE state NOT IN ('succeeded', 'failed', 'cancelled')";
    until("nothing is left", common.path(), || count(&catalog, busy) == 0);
    machines[0].end(Signal::TERM);
    account(&catalog, &machines[0], common.path(), rounds);
}

/// Compares what the catalog says with what programs saw and what lies on the storage.
fn account(catalog: &PostgresServer, machine: &Machine, common: &Path, rounds: usize) {
    let overlaps = std::fs::read_to_string(common.join("overlaps")).unwrap_or_default();
    assert_eq!(overlaps, "", "two at work on one source");
    let twice = "SELECT source, slot FROM jobs WHERE state = 'succeeded' AND slot IS NOT NULL \
                 GROUP BY source, slot HAVING count(*) > 1";
    assert_eq!(catalog.sql("catalog", twice), "", "slots that were done twice");
    let never = "SELECT source, slot, state, error FROM jobs j WHERE slot IS NOT NULL AND NOT EXISTS \
                 (SELECT 1 FROM jobs d WHERE d.source = j.source AND d.slot >= j.slot AND d.state = 'succeeded')";
    assert_eq!(catalog.sql("catalog", never), "", "slots that nobody did or caught up");
    let made = catalog.sql(
        "catalog",
        "SELECT source || '/' || backup FROM jobs WHERE state = 'succeeded' ORDER BY 1",
    );
    let vault: PathBuf = common.join("storage/backstay/default");
    for backup in made.lines() {
        assert!(vault.join(backup).join("manifest.json").exists(), "{backup} is not there");
    }
    let verified = machine.command(&["verify", "--all", "--quiet"]).output().unwrap();
    assert!(verified.status.success(), "{verified:?}");
    let begun = std::fs::read_to_string(common.join("begun")).unwrap_or_default().lines().count();
    let states = catalog
        .sql("catalog", "SELECT state || ' ' || count(*) FROM jobs GROUP BY state ORDER BY 1");
    println!("{rounds} rounds, {begun} dumps begun, jobs: {}", states.replace('\n', ", "));
}
