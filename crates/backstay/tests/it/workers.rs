//! Workers on other machines (D7, X5, X7, ADR 19).

use std::fs::File;
use std::process::{Child, Command, Stdio};

use backstay_testkit::certificates::Authority;
use backstay_testkit::daemon::wait_until;
use backstay_testkit::proxy::{Network, Proxy};
use backstay_testkit::s3::{BUCKET, Fault, S3Server};
use serde_json::Value;

use crate::serve::{set_clock, under_clock};
use crate::shell::{Shell, peak_kib_of};

/// A program of ours that runs; killed at the end of the test.
pub(crate) struct Running(pub(crate) Child);

impl Running {
    pub(crate) fn kill(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }

    /// Waits until it has ended, and returns its exit code.
    pub(crate) fn wait(mut self) -> i32 {
        self.0.wait().unwrap().code().expect("it ends by itself")
    }

    /// Tells it to end, and returns its exit code.
    pub(crate) fn end(mut self) -> i32 {
        let pid = rustix::process::Pid::from_child(&self.0);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        self.0.wait().unwrap().code().expect("it ends by itself")
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if self.0.try_wait().unwrap().is_none() {
            self.kill();
        }
    }
}

/// A machine with a server, one with a worker, and a bucket.
pub(crate) struct Fleet {
    pub(crate) bucket: S3Server,
    pub(crate) server: Shell,
    pub(crate) worker: Shell,
    pub(crate) port: u16,
}

/// What the worker reads: a tree whose place only its environment knows, and a program that stands still while `wait` is there.
fn sources(worker: &Shell, chosen: &str) -> String {
    let script =
        "echo begun >> \"$$0/begun\"; while [ -e \"$$0/wait\" ]; do sleep 0.05; done; echo dump";
    let folder = worker.dir.path().display();
    format!(
        "[sources.shop]\nkind = 'files'\npath = '${{DATA}}/shop'\nstorage = 'main'\n{chosen}\n\n\
         [sources.db]\nkind = 'command'\nstorage = 'main'\n{chosen}\n\
         outputs = [{{ name = 'dump.sql', dump = ['sh', '-c', '{script}', '{folder}'], restore = ['cat'] }}]\n"
    )
}

impl Fleet {
    pub(crate) fn new(chosen: &str) -> Self {
        let (bucket, server, worker) = (S3Server::start().unwrap(), Shell::bare(), Shell::bare());
        server.set_config(format!(
            "[storages.main]\nprovider = 's3'\nbucket = '{BUCKET}'\nendpoint = '{}'\naccess_key_id = '${{KEY_ID}}'\n\
             secret_access_key = '${{SECRET}}'\n\n{}",
            bucket.endpoint,
            sources(&worker, chosen),
        ));
        std::fs::create_dir(worker.path("shop")).unwrap();
        std::fs::write(worker.path("shop/a.txt"), "content").unwrap();
        Self { bucket, server, worker, port: free_port() }
    }

    fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// Starts the server, under a clock of ours.
    pub(crate) fn serve(&self) -> Running {
        let listen = format!("127.0.0.1:{}", self.port);
        let mut command = command(&self.server, &["serve", "--listen", &listen], &[]);
        under_clock(&self.server, &mut command);
        Running(command.spawn().unwrap())
    }

    /// Writes a token for a worker to its machine.
    pub(crate) fn invite(&self, options: &[&str]) {
        let words = [&["workers", "invite"], options].concat();
        std::fs::write(self.worker.path("token"), self.server.ends(0, &words)).unwrap();
    }

    pub(crate) fn work(&self, options: &[&str]) -> Running {
        let url = self.url();
        let words = ["worker", "--server", &url, "--token-file", "token"];
        start(&self.worker, &[&words, options].concat(), &["KEY_ID", "SECRET"])
    }

    pub(crate) fn workers(&self) -> Vec<Value> {
        self.server.json(&["workers", "list"]).as_array().unwrap().clone()
    }

    pub(crate) fn worker_is_there(&self) -> bool {
        self.workers().iter().any(|worker| worker["there"] == true)
    }

    pub(crate) fn jobs(&self, source: &str) -> Vec<Value> {
        self.server.json(&["jobs", "list", source]).as_array().unwrap().clone()
    }

    pub(crate) fn states(&self, source: &str) -> Vec<String> {
        let state = |job: &Value| job["state"].as_str().unwrap().to_owned();
        self.jobs(source).iter().map(state).collect()
    }

    /// Starts a backup of the program that stands still.
    fn stand_still(&self) -> Running {
        std::fs::write(self.worker.path("wait"), "").unwrap();
        let backup = start(&self.server, &["backup", "db"], &[]);
        wait_until("the backup is under way", || self.worker.path("begun").exists());
        backup
    }

    fn go_on(&self) {
        std::fs::remove_file(self.worker.path("wait")).unwrap();
    }
}

/// A port that was free a moment ago: a server that is started anew must come back to the same one.
pub(crate) fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

pub(crate) fn start(shell: &Shell, words: &[&str], without: &[&str]) -> Running {
    Running(command(shell, words, without).spawn().unwrap())
}

/// A command of a machine, without these variables; what it says goes to the file `log` there.
fn command(shell: &Shell, words: &[&str], without: &[&str]) -> Command {
    let log = || File::options().create(true).append(true).open(shell.path("log")).unwrap();
    let mut command = shell.command(words);
    command.env("DATA", shell.dir.path());
    for name in without.iter().chain(&["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"]) {
        command.env_remove(name);
    }
    command.stdout(Stdio::from(log())).stderr(Stdio::from(log()));
    command
}

pub(crate) fn log(shell: &Shell) -> String {
    std::fs::read_to_string(shell.path("log")).unwrap_or_default()
}

#[test]
fn worker_backs_up_what_only_its_machine_sees_and_keeps_no_secret() {
    let fleet = Fleet::new("worker_labels = ['db', 'eu']");
    let refused = fleet.server.complains(1, &["backup", "shop"]);
    assert!(
        refused.contains("no worker is there for it: it wants a worker with db, eu"),
        "{refused}"
    );
    let _serving = fleet.serve();
    fleet.invite(&["--labels", "db,eu,spare"]);
    let working = fleet.work(&["--name", "db1", "--labels", "db,eu"]);
    wait_until("the worker is there", || fleet.worker_is_there());
    let seen = fleet.server.ends(0, &["source", "test", "shop"]);
    assert!(seen.contains("shop: can be read, about 519 B"), "{seen}");
    let made = fleet.server.json(&["backup", "shop", "--note", "by hand", "--hold"]);
    assert_eq!((&made["status"], &made["note"]), (&"complete".into(), &"by hand".into()), "{made}");
    assert_eq!(made["hold"], "held when it was made");
    let job = &fleet.jobs("shop")[0];
    assert_eq!((&job["state"], &job["worker"]), (&"succeeded".into(), &"db1".into()), "{job}");
    assert!(job["log"].as_str().unwrap().contains("files.tar"), "{job}");
    fleet.server.ends(0, &["verify", "--all"]);
    fleet.server.ends(0, &["restore", "shop", "--to", "elsewhere", "--yes"]);
    let restored = std::fs::read_to_string(fleet.server.path("elsewhere/a.txt")).unwrap();
    assert_eq!(restored, "content");
    assert_eq!(fleet.server.json(&["status"])[1]["health"], "good");
    assert_eq!(working.end(), 0);
    // Nobody waits for one that was told to end.
    let gone = fleet.server.complains(1, &["backup", "shop"]);
    assert!(gone.contains("worker db1 was ended at"), "{gone}");
    assert!(!fleet.worker_is_there());
    let status = fleet.server.json(&["status"]);
    assert_eq!(status[1]["health"], "attention", "{status}");
    let told = status[1]["troubles"].to_string();
    assert!(told.contains("no worker is there for it"), "{told}");
    let again = fleet.work(&["--name", "db1"]);
    wait_until("it is back", || fleet.worker_is_there());
    assert_eq!(again.end(), 0);
    let kept = backstay_testkit::tree::files_below(&fleet.worker.path("home")).unwrap();
    for file in kept {
        let bytes = std::fs::read(&file).unwrap();
        let has = |secret: &str| bytes.windows(secret.len()).any(|part| part == secret.as_bytes());
        assert!(!has(backstay_testkit::s3::SECRET_KEY), "{}", file.display());
    }
}

#[test]
fn job_of_a_killed_worker_is_lost_and_the_schedule_has_it_done_again() {
    let fleet = Fleet::new("worker = 'db1'\nschedule = 'every 24h'");
    std::fs::write(fleet.worker.path("wait"), "").unwrap();
    let _serving = fleet.serve();
    fleet.invite(&["--name", "db1"]);
    let mut working = fleet.work(&["--name", "db1"]);
    wait_until("the backup is under way", || fleet.worker.path("begun").exists());
    wait_until("the other one is done", || fleet.states("shop") == ["succeeded"]);
    working.kill();
    // Nobody else takes the source before its lease has run out.
    set_clock(&fleet.server, 61);
    wait_until("the job is lost", || fleet.states("db") == ["queued", "failed"]);
    let lost = fleet.jobs("db")[1].clone();
    assert!(lost["error"].as_str().unwrap().contains("lease lost"), "{lost}");
    fleet.go_on();
    // It needs no token any more: it is known.
    std::fs::remove_file(fleet.worker.path("token")).unwrap();
    let _working = fleet.work(&["--name", "db1"]);
    set_clock(&fleet.server, 122);
    wait_until("the second try succeeds", || fleet.states("db") == ["succeeded", "failed"]);
    assert_eq!(fleet.jobs("db")[0]["attempt"], 2);
    assert_eq!(fleet.server.json(&["backups", "db"]).as_array().unwrap().len(), 1);
    fleet.server.ends(0, &["verify", "--all"]);
}

#[test]
fn command_whose_worker_is_killed_waits_for_the_next_try() {
    let fleet = Fleet::new("worker = 'db1'");
    let _serving = fleet.serve();
    fleet.invite(&["--name", "db1"]);
    let mut working = fleet.work(&["--name", "db1"]);
    wait_until("the worker is there", || fleet.worker_is_there());
    std::fs::write(fleet.worker.path("wait"), "").unwrap();
    let mut backup = command(&fleet.server, &["backup", "db", "--note", "before"], &[]);
    under_clock(&fleet.server, &mut backup);
    let backup = Running(backup.spawn().unwrap());
    wait_until("the backup is under way", || fleet.worker.path("begun").exists());
    working.kill();
    set_clock(&fleet.server, 61);
    wait_until("the job is lost", || fleet.states("db") == ["queued", "failed"]);
    wait_until("it is told", || log(&fleet.server).contains("does it again"));
    fleet.go_on();
    let _working = fleet.work(&["--name", "db1"]);
    set_clock(&fleet.server, 122);
    assert_eq!(backup.wait(), 0, "{}", log(&fleet.server));
    assert_eq!(fleet.states("db"), ["succeeded", "failed"]);
    let backups = fleet.server.json(&["backups", "db"]);
    let id = backups[0]["id"].as_str().unwrap();
    assert_eq!(fleet.server.json(&["show", id])["note"], "before", "{backups}");
}

#[test]
fn server_that_is_replaced_while_a_worker_is_at_work_costs_nothing() {
    let fleet = Fleet::new("worker = 'db1'");
    let mut serving = fleet.serve();
    fleet.invite(&["--name", "db1"]);
    let _working = fleet.work(&["--name", "db1"]);
    wait_until("the worker is there", || fleet.worker_is_there());
    let backup = fleet.stand_still();
    serving.kill();
    fleet.go_on();
    wait_until("the server is missed", || log(&fleet.worker).contains("does not answer"));
    wait_until("the backup is written", || log(&fleet.worker).contains("is written"));
    let _serving = fleet.serve();
    wait_until("the job ends well", || fleet.states("db") == ["succeeded"]);
    let begun = std::fs::read_to_string(fleet.worker.path("begun")).unwrap();
    assert_eq!(begun, "begun\n", "one try");
    assert_eq!(backup.wait(), 0, "{}", log(&fleet.server));
    fleet.server.ends(0, &["verify", "--all"]);
}

#[test]
fn worker_that_is_cut_off_stops_before_another_begins() {
    let fleet = Fleet::new("worker_labels = ['db']\nschedule = 'every 24h'");
    std::fs::write(fleet.worker.path("wait"), "").unwrap();
    let _serving = fleet.serve();
    let proxy = Proxy::start(fleet.port);
    fleet.invite(&["--labels", "db"]);
    let url = format!("http://127.0.0.1:{}", proxy.port);
    let words = ["worker", "--server", &url, "--token-file", "token", "--name", "db1"];
    let _working = start(&fleet.worker, &words, &["KEY_ID", "SECRET"]);
    wait_until("the backup is under way", || fleet.states("db") == ["running"]);
    wait_until("the other one is done", || fleet.states("shop") == ["succeeded"]);
    proxy.set(Network::Silent);
    wait_until("the work is stopped", || {
        log(&fleet.worker).contains("lost the lease on the source")
    });
    assert_eq!(fleet.states("db"), ["running"], "before anybody else may begin");
    set_clock(&fleet.server, 61);
    wait_until("the job is lost", || fleet.states("db") == ["queued", "failed"]);
    fleet.go_on();
    proxy.mend();
    set_clock(&fleet.server, 122);
    wait_until("it is done again", || fleet.states("db")[0] == "succeeded");
    fleet.server.ends(0, &["verify", "--all"]);
}

#[test]
fn job_of_a_worker_is_cancelled_with_a_reason_or_with_the_command_that_asked_for_it() {
    let fleet = Fleet::new("worker = 'db1'");
    let _serving = fleet.serve();
    fleet.invite(&["--name", "db1"]);
    let _working = fleet.work(&["--name", "db1"]);
    wait_until("the worker is there", || fleet.worker_is_there());
    let backup = fleet.stand_still();
    let id = fleet.jobs("db")[0]["id"].as_str().unwrap().to_owned();
    fleet.server.ends(0, &["jobs", "cancel", &id, "--reason", "the app is busy"]);
    wait_until("it stops", || fleet.states("db") == ["cancelled"]);
    assert_eq!(backup.wait(), 1);
    assert!(log(&fleet.server).contains("cancelled: the app is busy"), "{}", log(&fleet.server));
    std::fs::remove_file(fleet.worker.path("begun")).unwrap();
    assert_eq!(fleet.stand_still().end(), 130);
    wait_until("that one stops, too", || fleet.states("db") == ["cancelled", "cancelled"]);
}

#[test]
fn worker_that_is_told_to_end_gives_its_job_back_to_be_done_at_once() {
    let fleet = Fleet::new("worker_labels = ['db']\nschedule = 'every 24h'");
    std::fs::write(fleet.worker.path("wait"), "").unwrap();
    let _serving = fleet.serve();
    fleet.invite(&["--labels", "db"]);
    let working = fleet.work(&["--name", "db1"]);
    wait_until("the backup is under way", || fleet.worker.path("begun").exists());
    assert_eq!(working.end(), 0);
    wait_until("it waits again", || fleet.states("db") == ["queued", "cancelled"]);
    fleet.go_on();
    let _working = fleet.work(&["--name", "db1"]);
    wait_until("it is done", || fleet.states("db") == ["succeeded", "cancelled"]);
}

#[test]
fn invitation_works_once_and_allows_what_it_says_and_a_revoked_worker_is_none() {
    let fleet = Fleet::new("worker = 'db1'");
    let _serving = fleet.serve();
    let refused = |options: &[&str]| {
        let url = fleet.url();
        let words = ["worker", "--server", &url, "--token-file", "token"];
        fleet.worker.complains(14, &[&words, options].concat())
    };
    fleet.invite(&["--name", "db1", "--labels", "db"]);
    let error = refused(&["--name", "db2"]);
    assert!(error.contains("does not allow the name db2, it is for db1"), "{error}");
    let error = refused(&["--name", "db1", "--labels", "db,secret"]);
    assert!(error.contains("does not allow the label secret"), "{error}");
    let mut working = fleet.work(&["--name", "db1"]);
    wait_until("the worker is there", || fleet.worker_is_there());
    let other = Shell::bare();
    std::fs::copy(fleet.worker.path("token"), other.path("token")).unwrap();
    let url = fleet.url();
    let again = ["worker", "--server", &url, "--token-file", "token", "--name", "db1"];
    let error = other.complains(14, &again);
    assert!(error.contains("was used by another worker"), "{error}");
    let invite = || fleet.server.ends(0, &["workers", "invite", "--name", "db1"]);
    std::fs::write(other.path("token"), fleet.server.ends(0, &["workers", "invite"])).unwrap();
    let error = other.complains(14, &again);
    assert!(error.contains("which sources ask for"), "{error}");
    std::fs::write(other.path("token"), invite()).unwrap();
    let error = other.complains(14, &again);
    assert!(error.contains("there is a worker db1 already"), "{error}");
    // It is given up while it is at work: its lease runs out, and nothing of what it makes counts.
    let backup = fleet.stand_still();
    fleet.server.ends(0, &["workers", "revoke", "db1"]);
    assert_eq!(working.0.wait().unwrap().code(), Some(14), "{}", log(&fleet.worker));
    assert!(log(&fleet.worker).contains("was revoked"), "{}", log(&fleet.worker));
    set_clock(&fleet.server, 61);
    wait_until("the job is lost", || fleet.states("db").ends_with(&["failed".to_owned()]));
    // Nobody is there for the next try.
    assert_eq!(backup.wait(), 1);
    assert_eq!(fleet.states("db"), ["cancelled", "failed"]);
    fleet.go_on();
    set_clock(&fleet.server, 0);
    // The name is free for another machine.
    let _working = start(&other, &again, &[]);
    wait_until("another is there", || fleet.worker_is_there());
}

#[test]
fn what_a_worker_made_counts_only_when_the_server_has_read_it() {
    let fleet = Fleet::new("worker = 'db1'");
    let _serving = fleet.serve();
    fleet.invite(&["--name", "db1"]);
    let _working = fleet.work(&["--name", "db1"]);
    wait_until("the worker is there", || fleet.worker_is_there());
    fleet.server.ends(0, &["backup", "shop"]);
    // The manifest is gone as soon as the worker has proven to itself that it is there.
    let backup = fleet.stand_still();
    let folder = fleet.bucket.bucket().join("backstay/default/db");
    fleet.bucket.script(move |call| {
        if call.path.contains("/db/index.json") {
            for backup in std::fs::read_dir(&folder).into_iter().flatten().flatten() {
                drop(std::fs::remove_file(backup.path().join("manifest.json")));
            }
        }
        Fault::Pass
    });
    fleet.go_on();
    assert_eq!(backup.wait(), 1, "{}", log(&fleet.server));
    let job = &fleet.jobs("db")[0];
    assert_eq!(job["state"], "failed");
    assert!(job["error"].as_str().unwrap().contains("cannot take it for good"), "{job}");
}

#[test]
fn mistakes_are_told_where_they_can_be_mended() {
    let fleet = Fleet::new("worker = 'db1'");
    let good = fleet.server.config();
    let bad = |from: &str, to: &str, told: &str| {
        fleet.server.set_config(good.replace(from, to));
        let error = fleet.server.complains(2, &["config", "check"]);
        assert!(error.contains(told), "{error}");
        fleet.server.set_config(&good);
    };
    bad("worker = 'db1'", "worker = 'db1'\nworker_labels = ['x']", "remove one of them");
    bad("worker = 'db1'", "worker = 'no name'", "worker");
    bad("kind = 'files'", "kind = 'trees'", "found `trees`");
    bad("path = '${DATA}", "pth = '${DATA}", "unknown field");
    let local = format!("provider = 'local'\npath = '{}'", fleet.server.path("disk").display());
    let s3 = &good[good.find("provider").unwrap()..good.find("\n\n[sources").unwrap()];
    bad(s3, &local, "the worker would write to its own machine");
    // What the worker alone can know is told by its job.
    let _serving = fleet.serve();
    fleet.invite(&["--name", "db1"]);
    let words = ["worker", "--server", &fleet.url(), "--token-file", "token", "--name", "db1"];
    let mut command = fleet.worker.command(&words);
    let _working = Running(command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap());
    wait_until("the worker is there", || fleet.worker_is_there());
    let error = fleet.server.complains(1, &["backup", "shop"]);
    assert!(error.contains("the environment variable DATA is not set"), "{error}");
    let error = fleet.server.complains(1, &["source", "test", "shop"]);
    assert!(error.contains("the environment variable DATA is not set"), "{error}");
    // What is done on the machine of the source is not done here.
    std::fs::write(fleet.server.path("dump.sql"), "dump").unwrap();
    let error = fleet.server.complains(2, &["import", "db", "dump.sql"]);
    assert!(error.contains("read by a worker on another machine"), "{error}");
}

#[test]
fn worker_speaks_tls_and_only_to_the_server_that_it_trusts() {
    let fleet = Fleet::new("worker = 'db1'");
    let (authority, stranger) = (Authority::new("ours"), Authority::new("another"));
    let identity = authority.sign("localhost");
    std::fs::write(fleet.server.path("cert.pem"), &identity.certificate).unwrap();
    std::fs::write(fleet.server.path("key.pem"), &identity.key).unwrap();
    std::fs::write(fleet.worker.path("ca.pem"), &authority.certificate).unwrap();
    std::fs::write(fleet.worker.path("other.pem"), &stranger.certificate).unwrap();
    let listen = format!("0.0.0.0:{}", fleet.port);
    let open = fleet.server.complains(2, &["serve", "--listen", &listen]);
    assert!(open.contains("--tls-certificate"), "{open}");
    let words =
        ["serve", "--listen", &listen, "--tls-certificate", "cert.pem", "--tls-key", "key.pem"];
    let _serving = start(&fleet.server, &words, &[]);
    wait_until("it listens", || log(&fleet.server).contains("https://"));
    fleet.invite(&["--name", "db1"]);
    let url = format!("https://localhost:{}", fleet.port);
    let words = ["worker", "--server", &url, "--token-file", "token", "--name", "db1", "--ca-file"];
    let untrusting = start(&fleet.worker, &[&words[..], &["other.pem"]].concat(), &[]);
    wait_until("it does not trust", || log(&fleet.worker).contains("certificate"));
    assert_eq!(untrusting.end(), 130);
    let _working = start(&fleet.worker, &[&words[..], &["ca.pem"]].concat(), &[]);
    wait_until("the worker is there", || fleet.worker_is_there());
    fleet.server.ends(0, &["backup", "shop"]);
    let plain = format!("http://192.0.2.1:{}", fleet.port);
    let error = fleet.worker.complains(2, &["worker", "--server", &plain, "--token-file", "token"]);
    assert!(error.contains("expected https://"), "{error}");
}

#[test]
fn heavy_backup_of_ten_gigabytes_by_a_worker_leaves_the_memory_of_the_server_as_it_was() {
    let fleet = Fleet::new("worker = 'db1'");
    let large = "\n[sources.large]\nkind = 'command'\nstorage = 'main'\nworker = 'db1'\n\
                 outputs = [{ name = 'zeros', dump = ['head', '-c', '10G', '/dev/zero'], restore = ['cat'] }]\n";
    fleet.server.set_config(fleet.server.config() + large);
    let serving = fleet.serve();
    fleet.invite(&["--name", "db1"]);
    let working = fleet.work(&["--name", "db1"]);
    wait_until("the worker is there", || fleet.worker_is_there());
    fleet.server.ends(0, &["backup", "shop"]);
    let before = peak_kib_of(serving.0.id()).unwrap();
    let made = fleet.server.json(&["backup", "large"]);
    assert_eq!(made["plain_bytes"], 10_u64 << 30, "{made}");
    let (after, of_worker) =
        (peak_kib_of(serving.0.id()).unwrap(), peak_kib_of(working.0.id()).unwrap());
    assert!(after < before + (8 << 10), "{before} KiB before, {after} KiB after");
    assert!(of_worker < 128 << 10, "{of_worker}");
}
