//! `backstay serve`: backups by schedule, whatever becomes of the server (V24, V26, V27, V39, V40, T33, H8).

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use backstay_testkit::daemon::wait_until;
use backstay_testkit::postgres::PostgresServer;
use serde_json::Value;

use crate::shell::Shell;

/// A server under a clock of ours; killed at the end of the test.
pub(crate) struct Serving(pub(crate) Child);

impl Serving {
    pub(crate) fn start(shell: &Shell) -> Self {
        Self::start_with(shell, &[])
    }

    pub(crate) fn start_with(shell: &Shell, options: &[&str]) -> Self {
        let log = std::fs::File::options().create(true).append(true).open(shell.path("log"));
        let mut command = shell.command(&[&["serve"], options].concat());
        under_clock(shell, &mut command);
        Self(command.stdout(Stdio::null()).stderr(log.unwrap()).spawn().unwrap())
    }

    pub(crate) fn kill(mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }

    /// Tells it to end, and waits until it did.
    pub(crate) fn end(mut self) {
        let pid = rustix::process::Pid::from_child(&self.0);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        assert!(self.0.wait().unwrap().code().is_some(), "it ends by itself");
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        // One that has ended is not there any more to be killed.
        if self.0.try_wait().unwrap().is_none() {
            self.0.kill().unwrap();
            self.0.wait().unwrap();
        }
    }
}

/// Puts a program of a machine under a clock of ours.
pub(crate) fn under_clock(shell: &Shell, command: &mut Command) {
    command.env("LD_PRELOAD", faketime()).env("FAKETIME_TIMESTAMP_FILE", shell.path("clock"));
    command.env("FAKETIME_NO_CACHE", "1").env("FAKETIME_DONT_FAKE_MONOTONIC", "1");
    if !shell.path("clock").exists() {
        set_clock(shell, 0);
    }
}

/// What lets a program see another time.
pub(crate) fn faketime() -> PathBuf {
    let found = std::fs::read_dir("/usr/lib").unwrap().find_map(|machine| {
        let path = machine.unwrap().path().join("faketime/libfaketimeMT.so.1");
        path.exists().then_some(path)
    });
    found.expect("`cargo xtask test` installs faketime")
}

/// Sets the clock of the servers of a machine: so many seconds from the real one.
pub(crate) fn set_clock(shell: &Shell, seconds: i64) {
    let next = shell.path("clock.next");
    std::fs::write(&next, format!("{seconds:+}\n")).unwrap();
    std::fs::rename(&next, shell.path("clock")).unwrap();
}

/// A machine whose source is what a program says; it stands still as long as the file `wait` is there.
pub(crate) fn with_program(more: &str) -> Shell {
    let shell = Shell::bare();
    let script =
        "echo begun >> \"$$0/begun\"; while [ -e \"$$0/wait\" ]; do sleep 0.05; done; echo dump";
    shell.set_config(format!(
        "[storages.main]\nprovider = 'local'\npath = '{}'\n\n[sources.db]\nkind = 'command'\nstorage = 'main'\n{more}\n\
         outputs = [{{ name = 'dump.sql', dump = ['sh', '-c', '{script}', '{}'], restore = ['cat'] }}]\n",
        shell.path("storage").display(),
        shell.dir.path().display(),
    ));
    shell
}

/// Starts a server, and waits until it is at work on a backup that stands still.
pub(crate) fn start_standing_still(shell: &Shell) -> Serving {
    std::fs::write(shell.path("wait"), "").unwrap();
    let serving = Serving::start(shell);
    wait_until("the backup is under way", || shell.path("begun").exists());
    serving
}

pub(crate) fn jobs(shell: &Shell) -> Vec<Value> {
    shell.json(&["jobs", "list", "--limit", "100"]).as_array().unwrap().clone()
}

pub(crate) fn states(shell: &Shell) -> Vec<String> {
    jobs(shell).iter().map(|job| job["state"].as_str().unwrap().to_owned()).collect()
}

pub(crate) fn backups(shell: &Shell) -> usize {
    shell.json(&["backups"]).as_array().unwrap().len()
}

#[test]
fn source_is_backed_up_by_its_schedule_and_old_backups_are_forgotten() {
    let shell = with_program("schedule = 'every 6h'\nkeep = { last = 2 }");
    let warned = shell.run(&["status"]);
    let warned = String::from_utf8_lossy(&warned.stderr).into_owned();
    assert!(warned.contains("run `backstay serve`"), "{warned}");
    let serving = Serving::start(&shell);
    wait_until("the first backup", || backups(&shell) == 1);
    wait_until("its job has ended", || states(&shell) == ["succeeded"]);
    let job = &jobs(&shell)[0];
    assert!(job["slot"].is_string() && job["backup"].is_string(), "{job}");
    assert!(job["log"].as_str().unwrap().contains("dump.sql: 5 B read"), "{job}");
    let backup = &shell.json(&["backups"])[0];
    assert_eq!((&backup["trigger"], &backup["id"]), (&"scheduled".into(), &job["backup"]));
    let status = shell.run(&["status"]);
    assert!(!String::from_utf8_lossy(&status.stderr).contains("backstay serve"), "{status:?}");
    // One by hand eats no slot.
    shell.ends(0, &["backup", "db"]);
    let slots = |shell: &Shell| jobs(shell).iter().filter(|job| job["slot"].is_string()).count();
    for round in 2..=4 {
        set_clock(&shell, 6 * 3600 * (round - 1));
        let round = usize::try_from(round).unwrap();
        wait_until("the next slot's backup", || {
            slots(&shell) == round && !states(&shell).contains(&"running".to_owned())
        });
    }
    assert_eq!(backups(&shell), 2, "the newest two are kept");
    // Two days without a server are caught up once.
    serving.end();
    set_clock(&shell, 3 * 24 * 3600);
    let _serving = Serving::start(&shell);
    wait_until("one run catches up", || slots(&shell) == 5 && states(&shell)[0] == "succeeded");
    let log = std::fs::read_to_string(shell.path("log")).unwrap();
    assert!(log.contains("catching up"), "{log}");
    shell.ends(0, &["verify", "--all"]);
}

#[test]
fn job_of_a_killed_server_is_lost_and_tried_again() {
    let shell = with_program("schedule = 'every 24h'");
    let serving = start_standing_still(&shell);
    assert_eq!(states(&shell), ["running"]);
    serving.kill();
    let _serving = Serving::start(&shell);
    wait_until("the job is lost", || states(&shell) == ["queued", "failed"]);
    let lost = &jobs(&shell)[1];
    assert!(lost["error"].as_str().unwrap().contains("lease lost"), "{lost}");
    // After its pause, and not before: what kills its worker must not do so all the time.
    std::fs::remove_file(shell.path("wait")).unwrap();
    assert_eq!(backups(&shell), 0);
    set_clock(&shell, 120);
    wait_until("the second try succeeds", || states(&shell) == ["succeeded", "failed"]);
    assert_eq!(jobs(&shell)[0]["attempt"], 2);
    assert_eq!(backups(&shell), 1);
    shell.ends(0, &["verify", "--all"]);
}

#[test]
fn server_that_is_told_to_end_stops_its_jobs_and_the_next_one_does_them() {
    let shell = with_program("schedule = 'every 24h'");
    let serving = start_standing_still(&shell);
    serving.end();
    assert_eq!(states(&shell), ["queued", "cancelled"]);
    std::fs::remove_file(shell.path("wait")).unwrap();
    // Days later one run counts for all slots that were missed.
    set_clock(&shell, 3 * 24 * 3600);
    let _serving = Serving::start(&shell);
    wait_until("the next server does it", || states(&shell) == ["succeeded", "cancelled"]);
    assert_eq!(backups(&shell), 1);
    let next: jiff::Timestamp = next_at(&shell).parse().unwrap();
    let three_days = jiff::SignedDuration::from_hours(3 * 24);
    assert!(next > jiff::Timestamp::now() + three_days, "{next}");
}

fn next_at(shell: &Shell) -> String {
    shell.json(&["status"])[0]["next_at"].as_str().unwrap().to_owned()
}

#[test]
fn nothing_begins_in_a_blackout_not_even_what_waits() {
    let shell = with_program("schedule = 'every 24h'\ntimezone = 'UTC'");
    let serving = start_standing_still(&shell);
    serving.end();
    std::fs::remove_file(shell.path("wait")).unwrap();
    let minute = |hours: i64| {
        let at = jiff::Timestamp::now() + jiff::SignedDuration::from_hours(hours);
        at.to_zoned(jiff::tz::TimeZone::UTC).strftime("%H:%M").to_string()
    };
    let blackout = format!("blackout = ['{}-{}']", minute(-2), minute(3));
    shell.edit_config("timezone = 'UTC'", &format!("timezone = 'UTC'\n{blackout}"));
    let seen = || std::fs::read_to_string(shell.path("log")).unwrap_or_default();
    std::fs::write(shell.path("log"), "").unwrap();
    let _serving = Serving::start(&shell);
    // Another source, which may be backed up, shows that the server is at work.
    let tree = shell.path("tree");
    std::fs::create_dir(&tree).unwrap();
    let more = format!(
        "\n[sources.tree]\nkind = 'files'\npath = '{}'\nstorage = 'main'\nschedule = 'every 24h'\n",
        tree.display()
    );
    shell.set_config(shell.config() + &more);
    wait_until("the other source is backed up", || seen().contains("tree: backup"));
    assert_eq!(states(&shell), ["succeeded", "queued", "cancelled"]);
    set_clock(&shell, 4 * 3600);
    wait_until("it is caught up", || states(&shell) == ["succeeded", "succeeded", "cancelled"]);
}

#[test]
fn configuration_that_changes_is_read_anew_and_a_wrong_one_changes_nothing() {
    let shell = with_program("schedule = 'every 24h'");
    let good = shell.config();
    let _serving = Serving::start(&shell);
    wait_until("the first backup", || states(&shell) == ["succeeded"]);
    let log = || std::fs::read_to_string(shell.path("log")).unwrap();
    let told = || log().matches("the one before goes on").count();
    std::fs::remove_file(shell.path("backstay.toml")).unwrap();
    wait_until("it is told that it is gone", || told() == 1);
    shell.set_config("");
    wait_until("it is told that nothing is in it", || told() == 2);
    shell.set_config(good.replace("every 24h", "at night"));
    wait_until("it is told that it is wrong", || told() == 3);
    std::fs::create_dir(shell.path("tree")).unwrap();
    let more = format!(
        "{good}\n[sources.tree]\nkind = 'files'\npath = '{}'\nstorage = 'main'\nschedule = 'every 24h'\n",
        shell.path("tree").display()
    );
    shell.set_config(more);
    wait_until("the new source is backed up", || backups(&shell) == 2);
}

#[test]
fn clock_that_was_set_back_keeps_nothing_from_being_backed_up() {
    let shell = with_program("schedule = 'every 6h'");
    set_clock(&shell, 400 * 24 * 3600);
    let serving = Serving::start(&shell);
    wait_until("a backup by the wrong clock", || states(&shell) == ["succeeded"]);
    set_clock(&shell, 0);
    wait_until("a backup by the right one", || states(&shell) == ["succeeded", "succeeded"]);
    serving.end();
}

#[test]
fn catalog_that_dies_and_comes_back_costs_no_backup() {
    let mut server = PostgresServer::start();
    server.sql("postgres", "CREATE DATABASE catalog");
    let shell = with_program("schedule = 'every 24h'");
    shell.set_config(format!("catalog = '{}'\n{}", server.url("catalog"), shell.config()));
    let _serving = start_standing_still(&shell);
    let pid = rustix::process::Pid::from_raw(i32::try_from(server.pid()).unwrap()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::QUIT).unwrap();
    let log = || std::fs::read_to_string(shell.path("log")).unwrap();
    wait_until("it is told", || log().contains("cannot look for what is due"));
    assert!(!log().contains(backstay_testkit::postgres::PASSWORD), "{}", log());
    // Whoever needs the catalog is told what to do without it.
    let error = shell.complains(1, &["backups"]);
    assert!(error.contains("take `catalog` out of the configuration"), "{error}");
    server.revive();
    std::fs::remove_file(shell.path("wait")).unwrap();
    wait_until("the job ends well", || states(&shell) == ["succeeded"]);
    assert_eq!(std::fs::read_to_string(shell.path("begun")).unwrap(), "begun\n", "one try");
}

#[test]
fn servers_that_share_a_catalog_do_each_slot_once() {
    let server = PostgresServer::start();
    server.sql("postgres", "CREATE DATABASE catalog");
    let one = Shell::bare();
    let head = format!(
        "catalog = '{}'\n[storages.main]\nprovider = 'local'\npath = '{}'\n",
        server.url("catalog"),
        one.path("storage").display()
    );
    let trees = (0..12).map(|source| {
        let tree = one.path(&format!("tree-{source}"));
        std::fs::create_dir(&tree).unwrap();
        std::fs::write(tree.join("file"), source.to_string()).unwrap();
        format!(
            "[sources.tree-{source}]\nkind = 'files'\npath = '{}'\nstorage = 'main'\nschedule = 'every 24h'\n",
            tree.display()
        )
    });
    let config = head + &trees.collect::<String>();
    one.set_config(&config);
    one.ends(0, &["status"]);
    let others = [Shell::bare(), Shell::bare()];
    for other in &others {
        std::fs::create_dir(other.path("home")).unwrap();
        std::fs::copy(one.path("home/master.key"), other.path("home/master.key")).unwrap();
        other.set_config(&config);
    }
    let shells = [&one, &others[0], &others[1]];
    let mut serving: Vec<Serving> = shells.iter().map(|shell| Serving::start(shell)).collect();
    // One of them dies while all are at work; another comes in its place.
    wait_until("they are at work", || backups(&one) > 0);
    serving.remove(1).kill();
    serving.push(Serving::start(&others[0]));
    let done = |job: &Value| job["state"] == "succeeded";
    wait_until("all slots are done", || {
        // What was lost with the one that died pauses no longer.
        server.sql("catalog", "UPDATE jobs SET not_before = 0");
        jobs(&one).iter().filter(|job| done(job)).count() == 12
    });
    let all = jobs(&one);
    let lost = all.iter().filter(|job| job["state"] == "failed").count();
    assert_eq!(all.len(), 12 + lost, "{all:#?}");
    let listed = one.json(&["backups"]);
    let mut sources: Vec<&str> = listed
        .as_array()
        .unwrap()
        .iter()
        .map(|backup| backup["source"].as_str().unwrap())
        .collect();
    let made = sources.len();
    sources.sort_unstable();
    sources.dedup();
    assert_eq!(sources.len(), 12);
    assert!(made <= 12 + lost, "{made} backups of 12 slots, {lost} lost");
    drop(serving);
    one.ends(0, &["verify", "--all"]);
}

/// Another source of the same kind, on a storage of its own or on one that is there.
fn add_program(shell: &Shell, name: &str, (storage, script, more): (&str, &str, &str)) {
    let folder = shell.dir.path().display();
    let output = format!(
        "{{ name = 'dump.sql', dump = ['sh', '-c', '{script}', '{folder}'], restore = ['cat'] }}"
    );
    let source = format!(
        "[sources.{name}]\nkind = 'command'\nstorage = '{storage}'\nschedule = 'every 24h'\n{more}\noutputs = [{output}]\n"
    );
    shell.set_config(format!("{}\n{source}", shell.config()));
}

const WAITS: &str = "while [ -e \"$$0/wait\" ]; do sleep 0.05; done; echo dump";

fn jobs_of(shell: &Shell, source: &str) -> Vec<Value> {
    shell.json(&["jobs", "list", source]).as_array().unwrap().clone()
}

fn states_of(shell: &Shell, source: &str) -> Vec<String> {
    let state = |job: &Value| job["state"].as_str().unwrap().to_owned();
    jobs_of(shell, source).iter().map(state).collect()
}

#[test]
fn outage_of_a_storage_is_waited_for_and_holds_no_place_meanwhile() {
    let server = backstay_testkit::s3::S3Server::start().unwrap();
    let shell = Shell::with_bucket(&server);
    let dead = "http://127.0.0.1:1";
    let good = shell.config();
    shell.set_config(format!(
        "{}[storages.disk]\nprovider = 'local'\npath = '{}'\n",
        &good[..good.find("[sources.shop]").unwrap()].replace(&server.endpoint, dead),
        shell.path("storage").display(),
    ));
    add_program(&shell, "away", ("main", "echo dump", "priority = 1"));
    add_program(&shell, "here", ("disk", "echo dump", ""));
    let _serving = Serving::start_with(&shell, &["--jobs", "1"]);
    wait_until("the storage is looked for again later", || {
        states_of(&shell, "away") == ["queued", "failed"]
    });
    wait_until("the other one is done", || states_of(&shell, "here") == ["succeeded"]);
    let next = jobs_of(&shell, "away")[0].clone();
    let time = |value: &Value| value.as_str().unwrap().parse::<jiff::Timestamp>().unwrap();
    let pause = time(&next["not_before"]).duration_since(time(&next["queued_at"]));
    assert_eq!((next["attempt"].as_i64(), pause.as_secs()), (Some(2), 60), "{next}");
    // Again, and later.
    set_clock(&shell, 61);
    wait_until("a second try", || states_of(&shell, "away") == ["queued", "failed", "failed"]);
    let next = jobs_of(&shell, "away")[0].clone();
    let pause = time(&next["not_before"]).duration_since(time(&next["queued_at"]));
    assert_eq!(pause.as_secs(), 240, "{next}");
    shell.edit_config(dead, &server.endpoint);
    set_clock(&shell, 61 + 241);
    wait_until("the storage is back", || states_of(&shell, "away")[0] == "succeeded");
    shell.ends(0, &["verify", "--all"]);
}

#[test]
fn storage_takes_as_many_jobs_at_a_time_as_it_says() {
    let shell = with_program("schedule = 'every 24h'");
    shell.edit_config("provider = 'local'", "provider = 'local'\njobs = 1");
    let other = format!(
        "[storages.other]\nprovider = 'local'\npath = '{}'\n",
        shell.path("other").display()
    );
    shell.set_config(format!("{other}{}", shell.config()));
    add_program(&shell, "second", ("main", WAITS, ""));
    add_program(&shell, "third", ("other", WAITS, ""));
    std::fs::write(shell.path("wait"), "").unwrap();
    let _serving = Serving::start_with(&shell, &["--jobs", "9"]);
    let limited = || {
        let mut states = [states_of(&shell, "db").concat(), states_of(&shell, "second").concat()];
        states.sort();
        states
    };
    wait_until("one of two, and the other storage's", || {
        limited() == ["queued", "running"] && states_of(&shell, "third") == ["running"]
    });
    // Another turn later it is still so.
    add_program(&shell, "fourth", ("other", WAITS, ""));
    wait_until("a source that came later", || states_of(&shell, "fourth") == ["running"]);
    assert_eq!(limited(), ["queued", "running"]);
    std::fs::remove_file(shell.path("wait")).unwrap();
    wait_until("one after the other", || limited() == ["succeeded", "succeeded"]);
}

#[test]
fn jobs_that_matter_more_are_begun_first() {
    let shell = with_program("schedule = 'every 24h'");
    std::fs::write(shell.path("wait"), "").unwrap();
    let _serving = Serving::start_with(&shell, &["--jobs", "1"]);
    wait_until("the first is under way", || shell.path("begun").exists());
    for (name, priority) in [("low", "priority = -1"), ("mid", ""), ("high", "priority = 5")] {
        add_program(&shell, name, ("main", "echo dump", priority));
    }
    wait_until("the others wait", || states(&shell) == ["queued", "queued", "queued", "running"]);
    std::fs::remove_file(shell.path("wait")).unwrap();
    wait_until("all are done", || states(&shell) == ["succeeded"; 4]);
    let mut begun: Vec<(String, String)> = jobs(&shell)
        .iter()
        .map(|job| {
            [&job["started_at"], &job["source"]].map(|text| text.as_str().unwrap().to_owned())
        })
        .map(|[at, source]| (at, source))
        .collect();
    begun.sort();
    let order: Vec<&str> = begun.iter().map(|(_, source)| source.as_str()).collect();
    assert_eq!(order, ["db", "high", "mid", "low"]);
}

#[test]
fn job_says_how_far_it_is() {
    let shell = with_program("schedule = 'every 24h'");
    let config = shell.config();
    shell.set_config(&config[..config.find("[sources.db]").unwrap()]);
    let script = format!("head -c 1000000 /dev/zero; {WAITS}");
    add_program(&shell, "large", ("main", &script, ""));
    std::fs::write(shell.path("wait"), "").unwrap();
    let _serving = Serving::start(&shell);
    let read = || jobs(&shell).first().and_then(|job| job["progress"]["plain_bytes"].as_u64());
    wait_until("most of it went through", || read().is_some_and(|bytes| bytes >= 500_000));
    let shown = shell.ends(0, &["jobs", "list"]);
    assert!(shown.contains("dump.sql: ") && shown.contains("KiB"), "{shown}");
    std::fs::remove_file(shell.path("wait")).unwrap();
    wait_until("it is done", || states(&shell) == ["succeeded"]);
}
