//! Two servers on one catalog and three workers while everything between them breaks (V39, V40): each slot is done once or caught
//! up, nobody works on a source that somebody else works on, and no job is lost or stands still. `cargo xtask storm` runs it.

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
use backstay_testkit::s3::{ACCESS_KEY, BUCKET, S3Server, SECRET_KEY};
use rustix::process::{Pid, Signal, kill_process};

/// With what a dump takes, enough to keep all at work half of the time. The even ones are read by workers.
const SOURCES: usize = 20;
/// Longer than a lease.
const LONG: Duration = Duration::from_secs(70);
const SHORT: Duration = Duration::from_secs(4);
/// How long anything may take once nothing breaks any more.
const PATIENCE: Duration = Duration::from_secs(300);

/// A server or a worker on a machine of its own, as far as it can tell.
struct Machine {
    name: &'static str,
    program: PathBuf,
    home: tempfile::TempDir,
    /// Between a server and the catalog, between a worker and its server.
    network: Proxy,
    /// What it is told to do.
    words: Vec<String>,
    child: Option<Child>,
}

/// What all share.
struct World {
    /// Where dumps leave their traces.
    common: tempfile::TempDir,
    catalog: PostgresServer,
    bucket: S3Server,
}

impl World {
    fn path(&self) -> &Path {
        self.common.path()
    }

    /// What a server is told: half of the sources it reads itself.
    fn configuration(&self, catalog: &str, schedule: &str) -> String {
        let common = self.path().display();
        let mut config = format!(
            "catalog = '{catalog}'\n\n[storages.main]\nprovider = 'local'\npath = '{common}/storage'\n\n\
             [storages.bucket]\nprovider = 's3'\nbucket = '{BUCKET}'\nendpoint = '{}'\naccess_key_id = '{ACCESS_KEY}'\n\
             secret_access_key = '{SECRET_KEY}'\n",
            self.bucket.endpoint
        );
        for source in 0..SOURCES {
            let place = match source % 2 {
                0 => "storage = 'bucket'\nworker_labels = ['db']",
                _ => "storage = 'main'",
            };
            write!(
                config,
                "\n[sources.s{source}]\nkind = 'command'\n{place}\nschedule = '{schedule}'\nkeep = {{ last = 1000 }}\n\
                 outputs = [{{ name = 'dump', dump = ['sh', '{common}/dump.sh', 's{source}', '{common}'], restore = ['cat'] }}]\n",
            )
            .unwrap();
        }
        config
    }

    fn count(&self, question: &str) -> usize {
        let output = self.catalog.psql("catalog", &format!("SELECT count(*) FROM {question}"));
        String::from_utf8_lossy(&output.stdout).trim().parse().unwrap_or(usize::MAX)
    }

    /// Counts the sources of which a slot after this moment was done.
    fn sources_done(&self, since: i64) -> usize {
        let done = "SELECT DISTINCT source FROM jobs WHERE state = 'succeeded' AND slot";
        self.count(&format!("({done} > {since}) AS done"))
    }
}

impl Machine {
    fn server(name: &'static str, program: &Path, world: &World) -> Self {
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let words = ["serve", "--jobs", "1", "--listen", &format!("127.0.0.1:{port}")];
        let machine = Self::new(name, program, world.catalog.port, &words);
        let url = world.catalog.url("catalog");
        let through = format!(":{}/", machine.network.port);
        let url = url.replace(&format!(":{}/", world.catalog.port), &through);
        machine.configure(&world.configuration(&url, "every 1m"));
        machine
    }

    /// A worker of a server, which invites it.
    fn worker(name: &'static str, server: &Self) -> Self {
        let port = server.words.last().unwrap().rsplit(':').next().unwrap().parse().unwrap();
        let words = ["worker", "--jobs", "1", "--name", name, "--token-file", "token", "--server"];
        let mut machine = Self::new(name, &server.program, port, &words);
        machine.words.push(format!("http://127.0.0.1:{}", machine.network.port));
        let token = server.command(&["workers", "invite", "--labels", "db"]).output().unwrap();
        assert!(token.status.success(), "{token:?}");
        std::fs::write(machine.home.path().join("token"), token.stdout).unwrap();
        machine
    }

    fn new(name: &'static str, program: &Path, behind: u16, words: &[&str]) -> Self {
        Self {
            name,
            program: program.to_owned(),
            home: tempfile::tempdir().unwrap(),
            network: Proxy::start(behind),
            words: words.iter().map(|word| (*word).to_owned()).collect(),
            child: None,
        }
    }

    fn configure(&self, config: &str) {
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

    /// Starts what it is for; a machine has a name of its own where that can be had.
    fn start(&mut self) {
        let words: Vec<&str> = self.words.iter().map(String::as_str).collect();
        let plain = self.command(&words);
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

/// Breaks one thing after the other, each in the middle of work, and mends it again. The first two machines are servers.
fn rage(machines: &mut [Machine], world: &mut World) {
    let common = world.path().to_owned();
    for machine in &mut *machines {
        machine.wait_for_work(&common);
        machine.end(Signal::KILL);
        sleep(SHORT);
        machine.start();
    }
    machines[1].wait_for_work(&common);
    kill_process(Pid::from_raw(world.catalog.pid().cast_signed()).unwrap(), Signal::QUIT).unwrap();
    world.catalog.revive();
    for cut in [1, 2] {
        machines[cut].wait_for_work(&common);
        machines[cut].network.set(Network::Cut);
        sleep(SHORT);
        machines[cut].network.mend();
    }
    for silent in [0, 3] {
        machines[silent].wait_for_work(&common);
        machines[silent].network.set(Network::Silent);
        sleep(LONG);
        machines[silent].network.mend();
    }
    for suspended in [1, 4] {
        machines[suspended].wait_for_work(&common);
        machines[suspended].signal(Signal::STOP);
        sleep(LONG);
        machines[suspended].signal(Signal::CONT);
        sleep(SHORT);
    }
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
    let (catalog, bucket) = (PostgresServer::start(), S3Server::start().unwrap());
    catalog.sql("postgres", "CREATE DATABASE catalog");
    let mut world = World { common, catalog, bucket };
    let servers = ["web1", "web2"].map(|name| Machine::server(name, &program, &world));
    let workers = [("db1", 0), ("db2", 1), ("db3", 0)];
    let workers = workers.map(|(name, server)| Machine::worker(name, &servers[server]));
    let mut machines: Vec<Machine> = servers.into_iter().chain(workers).collect();
    for machine in &mut machines {
        machine.start();
    }
    until("the first backups", world.path(), || world.sources_done(0) == SOURCES);

    let end = Instant::now() + Duration::from_secs(60 * minutes);
    let mut rounds = 0;
    while rounds == 0 || Instant::now() < end {
        rage(&mut machines, &mut world);
        rounds += 1;
    }
    // Then all goes on by itself.
    let now = "SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint";
    let now: i64 = world.catalog.sql("catalog", now).parse().unwrap();
    until("backups after the storm", world.path(), || world.sources_done(now) == SOURCES);
    for machine in &mut machines {
        machine.end(Signal::TERM);
    }
    // What was left half done is done by whoever is there, and nothing new is due.
    let quiet = world.configuration(&world.catalog.url("catalog"), "every 10w");
    machines[0].configure(&quiet);
    machines[0].start();
    machines[2].start();
    let busy = "jobs WHERE state NOT IN ('succeeded', 'failed', 'cancelled')";
    until("nothing is left", world.path(), || world.count(busy) == 0);
    machines[2].end(Signal::TERM);
    machines[0].end(Signal::TERM);
    account(&world, &machines[0], rounds);
}

/// Compares what the catalog says with what programs saw and what lies on the storages.
fn account(world: &World, machine: &Machine, rounds: usize) {
    let (catalog, common) = (&world.catalog, world.path());
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
    let vaults = [common.join("storage"), world.bucket.bucket()];
    let vaults = vaults.map(|place| place.join("backstay/default"));
    for backup in made.lines() {
        let is_there = |vault: &PathBuf| vault.join(backup).join("manifest.json").exists();
        assert!(vaults.iter().any(is_there), "{backup} is not there");
    }
    let verified = machine.command(&["verify", "--all", "--quiet"]).output().unwrap();
    assert!(verified.status.success(), "{verified:?}");
    let begun = std::fs::read_to_string(common.join("begun")).unwrap_or_default().lines().count();
    let states = "SELECT state || ' ' || count(*) FROM jobs GROUP BY state ORDER BY 1";
    let by_whom = "SELECT coalesce(worker, 'a server') || ' ' || count(*) FROM jobs \
                   WHERE state = 'succeeded' GROUP BY worker ORDER BY 1";
    let [states, by_whom] =
        [states, by_whom].map(|question| catalog.sql("catalog", question).replace('\n', ", "));
    println!("{rounds} rounds, {begun} dumps begun, jobs: {states}; succeeded by {by_whom}");
}
