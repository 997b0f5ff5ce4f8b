//! Redis when something breaks: what is not whole is never called good, and a server is old or new (V7, V8, V50, V51).

use backstay_testkit::proxy::{Network, Proxy};
use backstay_testkit::redis::{PASSWORD, RedisServer};
use rustix::process::{Pid, Signal, kill_process};

use crate::faults::SmallDisk;
use crate::mysql::assert_same;
use crate::postgres_network::{ended, send, start, wait_until};
use crate::redis::{made, move_to, nasty, with_server};
use crate::shell::Shell;

/// How many databases a restore has marked.
fn marked(server: &RedisServer) -> usize {
    (0..16).filter(|number| server.ask(*number, &["EXISTS", "backstay:set-aside"]) == "1").count()
}

/// A server with two states, both backed up; and a network to it.
struct Setting {
    server: RedisServer,
    proxy: Proxy,
    shell: Shell,
    /// Digest and backup; the server is in the first.
    states: [(String, String); 2],
}

impl Setting {
    fn new() -> Self {
        let server = RedisServer::start();
        server.script(0, "SET a old\nSET gone x\nRPUSH list 1 2 3\n");
        server.script(2, "SET c old\n");
        server.ask(
            0,
            &[
                "FUNCTION",
                "LOAD",
                "#!lua name=f\nredis.register_function('f', function() return 1 end)",
            ],
        );
        let shell = with_server(&server, "");
        let state = || (server.digest(), made(&shell)["id"].as_str().unwrap().to_owned());
        let old = state();
        server.script(0, "SET a new\nDEL gone\nFUNCTION DELETE f\n");
        server.script(2, "FLUSHDB\n");
        server.script(4, "SET d new\n");
        let new = state();
        let proxy = Proxy::start(server.port);
        move_to(&shell, &server, proxy.port);
        Self { server, proxy, shell, states: [new, old] }
    }

    fn restore(&self) -> [&str; 6] {
        ["restore", "db", "--id", &self.states[1].1, "--yes", "--no-safety-backup"]
    }

    /// Restores once more: what was left beside is swept.
    fn ends_clean(&self) {
        self.shell.run(&["confirm", "db"]);
        self.shell.ends(0, &self.restore());
        self.shell.ends(0, &["confirm", "db"]);
        assert_same(&self.server.digest(), &self.states[1].0);
        assert_eq!(marked(&self.server), 0);
    }

    /// Finishes what was begun, and looks that the server is in one of its states. Returns whether that is the other one.
    fn settle(&mut self, context: &str) -> bool {
        while self.shell.run(&["confirm", "db"]).status.success() {}
        let now = self.server.digest();
        if now == self.states[1].0 {
            self.states.swap(0, 1);
            return true;
        }
        let aside = marked(&self.server);
        if aside > 0 {
            // What was only loaded lies beside until the next restore sweeps it.
            let values = self.server.ask(0, &["GET", "a"]);
            assert!(["old", "new"].contains(&values.as_str()), "{context}");
            return false;
        }
        assert_same(&now, &self.states[0].0);
        false
    }
}

/// Runs a command in a network that falls silent, and kills it there. Returns whether it ended before that.
fn killed_after(setting: &Setting, bytes: u64, words: &[&str]) -> bool {
    setting.proxy.set_after(bytes, Network::Silent);
    let mut working = start(&setting.shell, words);
    wait_until("it is over, or waits", || {
        working.try_wait().unwrap().is_some() || setting.proxy.network() == Network::Silent
    });
    let is_whole = setting.proxy.network() == Network::Whole;
    if !is_whole {
        send(&working, Signal::KILL);
    }
    working.wait().unwrap();
    setting.proxy.mend();
    is_whole
}

#[test]
fn restore_that_is_killed_anywhere_leaves_the_server_old_or_new() {
    let mut setting = Setting::new();
    let mut swapped = 0;
    for bytes in (0..).map(|step| 200 + step * 700) {
        if killed_after(&setting, bytes, &setting.restore()) {
            assert!(bytes > 5000, "{bytes}");
            break;
        }
        swapped += usize::from(setting.settle(&format!("{bytes}")));
    }
    assert!(swapped > 0, "it was never killed after the swap");
    setting.ends_clean();
}

#[test]
fn network_that_is_cut_anywhere_makes_no_false_success_and_leaves_the_server_old_or_new() {
    let mut setting = Setting::new();
    for bytes in (0..).map(|step| 200 + step * 700) {
        setting.proxy.set_after(bytes, Network::Cut);
        let restoring = start(&setting.shell, &setting.restore());
        let is_success = ended(restoring).status.success();
        let is_whole = setting.proxy.network() == Network::Whole;
        setting.proxy.mend();
        if is_whole {
            assert!(is_success && bytes > 5000, "{bytes}");
            break;
        }
        let is_new = setting.settle(&format!("{bytes}"));
        assert!(is_new || !is_success, "{bytes}: a false success");
    }
    setting.ends_clean();
}

#[test]
fn undo_that_is_killed_anywhere_goes_on_when_it_is_asked_for_again() {
    let setting = Setting::new();
    for bytes in (0..).map(|step| 200 + step * 300) {
        setting.shell.ends(0, &setting.restore());
        let is_whole = killed_after(&setting, bytes, &["undo", "db"]);
        setting.shell.run(&["undo", "db"]);
        assert_eq!(setting.server.ask(0, &["GET", "a"]), "new", "{bytes}");
        setting.shell.ends(0, &["confirm", "db"]);
        assert_same(&setting.server.digest(), &setting.states[0].0);
        if is_whole {
            assert!(bytes > 1000, "{bytes}");
            break;
        }
    }
}

/// A server with some megabytes behind a network.
fn large() -> (RedisServer, Proxy, Shell) {
    let server =
        RedisServer::start_as(&["appendonly yes", "appendfsync always", "rdbcompression no"]);
    server.ask(0, &["EVAL", "for i = 1, 50000 do redis.call('SET', 'key:' .. i, string.rep(redis.sha1hex(i), 4)) end", "0"]);
    let shell = with_server(&server, "");
    made(&shell);
    let proxy = Proxy::start(server.port);
    move_to(&shell, &server, proxy.port);
    (server, proxy, shell)
}

#[test]
fn server_that_is_killed_during_dump_or_restore_makes_no_false_success() {
    let (mut server, proxy, shell) = large();
    let before = server.digest();
    for words in [&["backup", "db"][..], &["restore", "db", "--yes"]] {
        for bytes in [3000, 1 << 20, 5 << 20] {
            proxy.set_after(bytes, Network::Silent);
            let working = start(&shell, words);
            wait_until("it is in the middle", || proxy.network() == Network::Silent);
            kill_process(Pid::from_raw(server.pid().cast_signed()).unwrap(), Signal::KILL).unwrap();
            proxy.mend();
            assert_eq!(ended(working).status.code(), Some(1), "{words:?} {bytes}");
            server.revive();
            assert_eq!(server.ask(0, &["DBSIZE"]), "50000");
            assert_eq!(
                shell.json(&["backups", "db"]).as_array().unwrap().len(),
                1,
                "{words:?} {bytes}"
            );
        }
    }
    shell.ends(0, &["restore", "db", "--yes"]);
    shell.ends(0, &["confirm", "db"]);
    assert_same(&server.digest(), &before);
    // It was on the server's disk when it was called done.
    kill_process(Pid::from_raw(server.pid().cast_signed()).unwrap(), Signal::KILL).unwrap();
    server.revive();
    assert_same(&server.digest(), &before);
}

#[test]
fn restored_server_that_writes_its_data_now_and_then_has_it_on_its_disk() {
    let mut server = RedisServer::start_as(&["save 86400 1"]);
    nasty(&server);
    let before = server.digest();
    let shell = with_server(&server, "");
    made(&shell);
    server.ask(0, &["FLUSHALL"]);
    shell.ends(0, &["restore", "db", "--yes"]);
    kill_process(Pid::from_raw(server.pid().cast_signed()).unwrap(), Signal::KILL).unwrap();
    server.revive();
    for number in
        (0..16).filter(|number| server.ask(*number, &["EXISTS", "backstay:set-aside"]) == "1")
    {
        // It was empty before, so nothing was set aside but a mark, which went after all was written.
        assert_eq!(server.ask(number, &["DBSIZE"]), "1");
        server.ask(number, &["FLUSHDB"]);
    }
    assert_same(&server.digest(), &before);
    assert_eq!(
        server.ask(0, &["CONFIG", "GET", "save"]),
        "save\n86400 1",
        "settings are left as they were"
    );
}

#[test]
fn stream_that_is_cut_or_spoilt_is_no_backup() {
    let (_server, proxy, shell) = large();
    for bytes in [400, 2000, 100_000, 3 << 20, 8 << 20] {
        proxy.set_after(bytes, Network::Cut);
        shell.complains(1, &["backup", "db"]);
        assert_eq!(proxy.network(), Network::Cut, "{bytes}");
        proxy.mend();
        assert_eq!(shell.json(&["backups", "db"]).as_array().unwrap().len(), 1, "{bytes}");
    }
    made(&shell);
}

#[test]
fn restores_of_others_are_left_alone_and_what_waits_for_an_undo_is_not_overwritten() {
    let server = RedisServer::start_as(&["databases 6"]);
    server.script(0, "SET a old\n");
    server.script(5, "SET f old\n");
    let (shell, other) = (with_server(&server, ""), with_server(&server, ""));
    made(&shell);
    made(&other);
    server.script(0, "SET a new\n");
    // What is set aside for the one, the other neither sweeps, nor loads into, nor backs up.
    shell.ends(0, &["restore", "db", "--only", "0", "--yes"]);
    server.script(5, "DEL f\n");
    let spare = (1..5).find(|number| server.ask(*number, &["EXISTS", "backstay:set-aside"]) == "1");
    let spare = spare.unwrap();
    other.ends(0, &["drill", "db"]);
    let backup = made(&other);
    assert!(backup["warnings"].to_string().contains("set aside is not in the backup"), "{backup}");
    other.ends(0, &["restore", "db", "--only", "0", "--yes"]);
    other.ends(0, &["undo", "db"]);
    other.ends(0, &["confirm", "db"]);
    assert_eq!(server.ask(spare, &["GET", "a"]), "new");
    shell.ends(0, &["undo", "db"]);
    assert_eq!(server.ask(0, &["GET", "a"]), "new");
    shell.ends(0, &["confirm", "db"]);
    // A number that the backup needs, and that another restore uses.
    server.script(1, "SET b 1\nSET c 1\n");
    server.ask(spare, &["FLUSHDB"]);
    let id = made(&shell)["id"].as_str().unwrap().to_owned();
    server.ask(1, &["FLUSHDB"]);
    server.script(2, "SET x 1\n");
    server.script(3, "SET x 1\n");
    server.script(4, "SET x 1\n");
    server.script(5, "SET x 1\n");
    other.ends(0, &["restore", "db", "--only", "0", "--yes"]);
    let error = shell.complains(1, &["restore", "db", "--id", &id, "--yes"]);
    assert!(error.contains("undo or confirm that first"), "{error}");
    other.ends(0, &["undo", "db"]);
}

#[test]
fn undo_says_that_what_was_set_aside_may_have_lost_keys_to_eviction() {
    let server = RedisServer::start_as(&["maxmemory 1gb", "maxmemory-policy volatile-ttl"]);
    let fill = "for i = 1, 2000 do redis.call('SET', KEYS[1] .. i, string.rep('x', 1000), 'EX', ARGV[1]) end";
    server.ask(0, &["EVAL", fill, "1", "old:", "5000"]);
    let shell = with_server(&server, "");
    made(&shell);
    let output = shell.run(&["restore", "db", "--yes"]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success() && said.contains("may lose some before"), "{said}");
    let memory = server.ask(0, &["INFO", "memory"]);
    let used = memory.lines().find_map(|line| line.trim().strip_prefix("used_memory:")).unwrap();
    server.ask(
        0,
        &["CONFIG", "SET", "maxmemory", &(used.parse::<u64>().unwrap() + 500_000).to_string()],
    );
    server.ask(0, &["EVAL", fill, "1", "new:", "90000"]);
    let output = shell.run(&["undo", "db"]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success() && said.contains("for want of memory"), "{said}");
}

#[test]
fn functions_alone_are_worth_a_safety_backup_and_an_undo() {
    let server = RedisServer::start();
    let load = |text: &str| {
        server.ask(
            0,
            &[
                "FUNCTION",
                "LOAD",
                &format!(
                    "#!lua name={text}\nredis.register_function('{text}', function() return 1 end)"
                ),
            ],
        );
    };
    load("first");
    let shell = with_server(&server, "");
    let id = made(&shell)["id"].as_str().unwrap().to_owned();
    load("second");
    let both = server.digest();
    shell.ends(0, &["restore", "db", "--id", &id, "--yes"]);
    assert_eq!(shell.json(&["backups", "db"]).as_array().unwrap().len(), 2, "no safety backup");
    assert!(!server.digest().contains("second"));
    shell.ends(0, &["undo", "db"]);
    assert_same(&server.digest(), &both);
    shell.ends(0, &["confirm", "db"]);
    // Another server keeps its own, and they are not overwritten.
    std::fs::write(shell.path("url"), format!("redis://:{PASSWORD}@127.0.0.1:{}", server.port))
        .unwrap();
    let to = format!("file:{}", shell.path("url").display());
    let error = shell.complains(1, &["restore", "db", "--id", &id, "--to", &to, "--yes"]);
    assert!(error.contains("a library of functions first already"), "{error}");
    assert_same(&server.digest(), &both);
}

#[test]
fn swap_whose_data_the_server_lost_is_let_go_of() {
    let mut setting = Setting::new();
    let mut bytes = 10_000;
    // Killed in the middle of the swap: what was begun is written down.
    let pending = loop {
        if killed_after(&setting, bytes, &setting.restore()) {
            panic!("it was never killed between its record and its swap");
        }
        if marked(&setting.server) > 0 && setting.server.ask(0, &["GET", "a"]) == "new" {
            setting.server.ask(0, &["FLUSHALL"]);
            let output = setting.shell.run(&["confirm", "db"]);
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            if said.contains("cannot be finished") {
                break said;
            }
            setting = Setting::new();
        } else {
            setting.settle("before");
            setting = Setting::new();
        }
        bytes += 250;
    };
    assert!(pending.contains("somebody emptied it"), "{pending}");
    setting.shell.ends(0, &setting.restore());
}

#[test]
fn server_with_too_little_memory_takes_no_restore_and_keeps_what_it_has() {
    let server = RedisServer::start_as(&["rdbcompression no"]);
    server.ask(
        0,
        &["EVAL", "for i = 1, 400000 do redis.call('SET', 'key:' .. i, redis.sha1hex(i)) end", "0"],
    );
    let shell = with_server(&server, "");
    made(&shell);
    // What is under way in a network comes late.
    let proxy = Proxy::start(server.port);
    move_to(&shell, &server, proxy.port);
    let before = server.digest();
    let memory = server.ask(0, &["INFO", "memory"]);
    let used = memory.lines().find_map(|line| line.trim().strip_prefix("used_memory:"));
    let used: u64 = used.unwrap().parse().unwrap();
    server.ask(0, &["CONFIG", "SET", "maxmemory", &(used + (1 << 20)).to_string()]);
    let error = shell.complains(1, &["restore", "db", "--yes"]);
    assert!(error.contains("(maxmemory)"), "{error}");
    // It becomes too little while keys are loaded: of those that were sent already, none may come later.
    for _ in 0..3 {
        server.ask(0, &["CONFIG", "SET", "maxmemory", "0"]);
        let restoring = start(&shell, &["restore", "db", "--yes"]);
        wait_until("it loads", || server.ask(15, &["DBSIZE"]) != "0");
        server.ask(0, &["CONFIG", "SET", "maxmemory", &(used + (3 << 20)).to_string()]);
        let output = ended(restoring);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.code() == Some(1) && said.contains("OOM"), "{said}");
        assert_same(&server.digest(), &before);
    }
}

#[test]
fn server_whose_disk_is_full_takes_no_restore_and_keeps_what_it_has() {
    let place = tempfile::tempdir().unwrap();
    let disk = SmallDisk::mount(place.path(), 8);
    let directory = tempfile::tempdir_in(place.path()).unwrap();
    let full = RedisServer::start_in(directory, &["appendonly yes", "rdbcompression no"]);
    full.ask(0, &["SET", "mine", "1"]);
    let (server, _proxy, shell) = large();
    let url = format!("redis://:{PASSWORD}@127.0.0.1:{}", full.port);
    std::fs::write(shell.path("url"), url).unwrap();
    // Its own place and another: both are this server from here on.
    shell.set_config(
        shell
            .config()
            .lines()
            .map(|line| {
                if line.starts_with("url") {
                    format!("url = 'file:{}'\n", shell.path("url").display())
                } else {
                    format!("{line}\n")
                }
            })
            .collect::<String>(),
    );
    let error = shell.complains(1, &["restore", "db", "--yes"]);
    assert!(error.contains("cannot"), "{error}");
    disk.grow(200);
    drop(server);
    wait_until("the server writes again", || {
        full.query(1, &["SET", "probe", "1"]).stdout == b"OK\n"
    });
    full.ask(1, &["DEL", "probe"]);
    assert_eq!(full.ask(0, &["GET", "mine"]), "1");
    shell.ends(0, &["restore", "db", "--yes"]);
    assert_eq!(full.ask(0, &["DBSIZE"]), "50000");
    drop(full);
}
