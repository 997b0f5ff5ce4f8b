//! People who ask a server by tokens (D8, V25, V42, T35, T36, ADR 21).

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::process::{Child, Command, Output, Stdio};

use backstay_testkit::daemon::wait_until;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::serve::{Serving, set_clock, states, with_program};
use crate::shell::Shell;
use crate::workers::{Fleet, free_port};

/// A machine with a server, and one that has nothing but tokens, in files that are called as their members.
pub(crate) struct Office {
    pub(crate) server: Shell,
    pub(crate) laptop: Shell,
    pub(crate) port: u16,
}

impl Office {
    pub(crate) fn new(server: Shell) -> Self {
        let office = Self { server, laptop: Shell::bare(), port: free_port() };
        for role in ["viewer", "operator", "admin", "owner"] {
            office.add(role, &["--role", role]);
        }
        office
    }

    pub(crate) fn add(&self, name: &str, options: &[&str]) {
        let token = self.server.ends(0, &[&["members", "add", name], options].concat());
        std::fs::write(self.laptop.path(name), token).unwrap();
    }

    /// Starts the server, and waits until it answers.
    pub(crate) fn serve(&self, options: &[&str]) -> Serving {
        let listen = format!("127.0.0.1:{}", self.port);
        let words = [&["--listen", &listen], options].concat();
        let serving = Serving::start_with(&self.server, &words);
        wait_until("it answers", || TcpStream::connect(("127.0.0.1", self.port)).is_ok());
        serving
    }

    /// A command of the laptop's that asks the server as a member.
    pub(crate) fn command(&self, member: &str, words: &[&str]) -> Command {
        let mut command = self.laptop.command(words);
        command.env("BACKSTAY_SERVER", format!("http://127.0.0.1:{}", self.port));
        let token = std::fs::read_to_string(self.laptop.path(member)).unwrap();
        command.env("BACKSTAY_TOKEN", token.trim());
        command
    }

    pub(crate) fn run(&self, member: &str, words: &[&str]) -> Output {
        self.command(member, words).output().unwrap()
    }

    /// Runs a command that must end with this code. Returns what it said, on both outputs.
    pub(crate) fn ends(&self, code: i32, member: &str, words: &[&str]) -> String {
        let output = self.run(member, words);
        let said = [output.stdout, output.stderr].concat();
        let said = String::from_utf8_lossy(&said).into_owned();
        assert_eq!(output.status.code(), Some(code), "{member} {words:?}: {said}");
        said
    }

    pub(crate) fn json(&self, member: &str, words: &[&str]) -> Value {
        let output = self.run(member, &[&["--json"], words].concat());
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{member} {words:?}: {said}");
        serde_json::from_slice(&output.stdout).unwrap()
    }

    pub(crate) fn start(&self, member: &str, words: &[&str]) -> Child {
        let log = std::fs::File::options().create(true).append(true).open(self.laptop.path("log"));
        self.command(member, words).stdout(Stdio::null()).stderr(log.unwrap()).spawn().unwrap()
    }

    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.laptop.path("log")).unwrap()
    }

    pub(crate) fn audit(&self) -> Vec<[String; 4]> {
        let entries = self.server.json(&["audit"]);
        let text = |entry: &Value, name: &str| entry[name].as_str().unwrap().to_owned();
        let fields =
            |entry: &Value| ["actor", "action", "subject", "outcome"].map(|name| text(entry, name));
        entries.as_array().unwrap().iter().map(fields).collect()
    }

    /// Asks the server by hand. Returns its status and all that it says.
    pub(crate) fn ask(
        &self,
        method: &str,
        path: &str,
        token: Option<&str>,
        body: &str,
    ) -> (u16, String) {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).unwrap();
        let token = token.map(|token| format!("authorization: Bearer {}\r\n", token.trim()));
        let request = format!(
            "{method} /api/v1{path} HTTP/1.1\r\nhost: server\r\nconnection: close\r\n{}\
             content-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
            token.unwrap_or_default(),
            body.len()
        );
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        (answer[9..12].parse().unwrap(), answer)
    }

    pub(crate) fn token(&self, member: &str) -> String {
        std::fs::read_to_string(self.laptop.path(member)).unwrap()
    }
}

pub(crate) fn ends_on(signal: Signal, mut child: Child) -> Option<i32> {
    kill_process(Pid::from_child(&child), signal).unwrap();
    child.wait().unwrap().code()
}

/// T35, T36, D27.
#[test]
fn member_has_all_done_by_a_server_and_sees_what_the_server_sees() {
    let office = Office::new(Shell::with_tree(""));
    let _serving = office.serve(&[]);
    let made = office.json("operator", &["backup", "shop", "--note", "by hand", "--hold"]);
    assert_eq!((&made["status"], &made["note"]), (&"complete".into(), &"by hand".into()));
    assert_eq!(made["hold"], "held when it was made");
    for words in [
        &["backups"][..],
        &["backups", "shop"],
        &["jobs", "list"],
        &["source", "list"],
        &["storage", "list"],
    ] {
        assert_eq!(office.json("viewer", words), office.server.json(words), "{words:?}");
        let told = office.ends(0, "viewer", words);
        assert_eq!(told.trim(), office.server.ends(0, words).trim(), "{words:?}");
    }
    let id = made["id"].as_str().unwrap();
    assert_eq!(office.json("viewer", &["show", id]), office.server.json(&["show", id]));
    let status = office.json("viewer", &["status"]);
    assert_eq!((&status[0]["newest_good"], &status[0]["health"]), (&made["id"], &"good".into()));
    office.ends(0, "viewer", &["status", "--check"]);
    let job = office.json("viewer", &["jobs", "list"])[0].clone();
    assert_eq!((&job["asked_by"], &job["backup"]), (&"operator".into(), &made["id"]));
    let shown = office.json("viewer", &["jobs", "show", job["id"].as_str().unwrap()]);
    assert!(shown["log"].as_str().unwrap().contains("the backup begins"), "{shown}");

    let drilled = office.json("operator", &["drill", "shop"]);
    assert_eq!((&drilled["passed"], &drilled["backup"]), (&true.into(), &made["id"]), "{drilled}");
    let told = office.ends(0, "operator", &["source", "test", "shop"]);
    assert!(told.contains("shop: can be read"), "{told}");
    let tested = office.json("operator", &["storage", "test", "main"]);
    assert_eq!(tested["status"], "verified");
    // What was made is what is there: the server's own machine restores it.
    office.server.ends(0, &["restore", "shop", "--to", "copy", "--yes"]);
    assert_eq!(std::fs::read_to_string(office.server.path("copy/a.txt")).unwrap(), "before");

    office.ends(0, "admin", &["release", id]);
    office.ends(0, "admin", &["delete", id, "--yes"]);
    assert_eq!(office.server.json(&["backups"]).as_array().unwrap().len(), 0);
    assert!(!office.laptop.path("home").exists(), "nothing is kept where it was asked for");
}

#[test]
fn what_cannot_be_done_ends_as_it_does_on_the_machine_itself() {
    let office = Office::new(Shell::with_tree(""));
    let _serving = office.serve(&[]);
    for words in [
        &["backup", "misspelt"][..],
        &["show", "misspelt"],
        &["jobs", "show", "99"],
        &["drill", "misspelt"],
        &["storage", "test", "misspelt"],
        &["source", "test", "misspelt"],
        &["delete", "misspelt", "--yes"],
        &["restore", "shop", "--to", "elsewhere"],
        &["undo"],
        &["config", "check"],
        &["keys", "list"],
    ] {
        office.ends(2, "owner", words);
    }
    let said = office.ends(2, "owner", &["restore", "shop", "--to-file", "y"]);
    assert!(said.contains("run the command on the server's machine"), "{said}");
    office.server.ends(2, &["--token-file", "x", "status"]);
    // A source that is gone, one that lacks something, and a vault that is damaged.
    std::fs::rename(office.server.path("shop"), office.server.path("gone")).unwrap();
    let said = office.ends(1, "operator", &["backup", "shop"]);
    assert!(said.contains("error: source shop"), "{said}");
    office.ends(1, "operator", &["source", "test", "shop"]);
    std::fs::rename(office.server.path("gone"), office.server.path("shop")).unwrap();
    let damaged = [b"SQLite format 3\0".as_slice(), &[0xff; 4096]].concat();
    std::fs::write(office.server.path("shop/bad.db"), damaged).unwrap();
    let said = office.ends(3, "operator", &["backup", "shop"]);
    assert!(said.contains("missing: bad.db"), "{said}");
    let id = office.server.json(&["backups"])[0]["id"].as_str().unwrap().to_owned();
    let manifest = office.server.path("storage/backstay/default/shop").join(id);
    std::fs::write(manifest.join("manifest.json"), "{}").unwrap();
    std::fs::remove_file(office.server.path("storage/backstay/default/shop/index.json")).unwrap();
    let here = office.server.run(&["backups"]);
    let there = office.run("viewer", &["backups"]);
    assert_eq!((here.status.code(), here.stdout), (there.status.code(), there.stdout));
    assert_eq!(here.status.code(), Some(13));
    assert!(String::from_utf8_lossy(&there.stderr).contains("cannot be used"));
}

/// D8, V25: each thing that can be asked for, and the least role that may.
#[test]
fn roles_may_what_they_may_and_no_more() {
    let office = Office::new(Shell::with_tree(""));
    let _serving = office.serve(&[]);
    let made = office.json("operator", &["backup", "shop"]);
    let id = made["id"].as_str().unwrap();
    let routes = [
        ("GET", "/status".to_owned(), "viewer", 200),
        ("GET", "/sources".to_owned(), "viewer", 200),
        ("GET", "/storages".to_owned(), "viewer", 200),
        ("GET", "/backups".to_owned(), "viewer", 200),
        ("GET", format!("/backups/{id}"), "viewer", 200),
        ("GET", "/jobs".to_owned(), "viewer", 200),
        ("GET", "/jobs/77".to_owned(), "viewer", 400),
        ("POST", "/storages/main/test".to_owned(), "operator", 200),
        ("POST", "/storages/other/test".to_owned(), "operator", 400),
        ("POST", "/jobs".to_owned(), "operator", 400),
        ("POST", "/jobs/77/cancel".to_owned(), "operator", 400),
        ("POST", format!("/backups/{id}/hold"), "operator", 200),
        ("DELETE", format!("/backups/{id}/hold"), "admin", 200),
        ("DELETE", "/backups/none".to_owned(), "admin", 400),
        ("DELETE", "/jobs/77".to_owned(), "admin", 400),
        ("GET", "/audit".to_owned(), "admin", 200),
    ];
    let roles = ["viewer", "operator", "admin", "owner"];
    let rank = |role: &str| roles.iter().position(|one| *one == role).unwrap();
    let reason = "{\"reason\": \"for now\"}";
    for (method, path, least, status) in &routes {
        let asked = |token: Option<&str>| office.ask(method, path, token, reason);
        for role in roles {
            let (found, said) = asked(Some(&office.token(role)));
            let expected = if rank(role) < rank(least) { 403 } else { *status };
            assert_eq!(found, expected, "{role} {method} {path}: {said}");
        }
        let token = office.token("owner");
        let forged = token.trim().replace(&token.trim()[token.trim().len() - 4..], "0000");
        let worker = token.replace("bsm.", "bsw.");
        for token in [None, Some(""), Some("x"), Some(forged.as_str()), Some(&worker)] {
            let (found, said) = asked(token);
            assert!(found == 401 && said.contains("members add"), "{token:?} {path}: {said}");
        }
    }
    assert_eq!(office.ask("POST", "/worker/take", Some(&office.token("owner")), "{}").0, 426);
    assert_eq!(office.ask("PUT", "/jobs", Some(&office.token("owner")), "{}").0, 405);
    // A role that may not is told so by the command, too, and nothing was done.
    office.ends(14, "viewer", &["backup", "shop"]);
    assert_eq!(states(&office.server), ["succeeded"]);
}

#[test]
fn member_that_is_revoked_or_whose_token_is_too_old_is_none() {
    let office = Office::new(Shell::with_tree(""));
    office.add("short", &["--valid", "1h"]);
    office.server.complains(2, &["members", "add", "viewer"]);
    let serving = office.serve(&[]);
    office.ends(0, "short", &["status"]);
    office.server.ends(0, &["members", "revoke", "viewer"]);
    let said = office.ends(14, "viewer", &["status"]);
    assert!(said.contains("was revoked, or is too old"), "{said}");
    office.server.complains(2, &["members", "revoke", "viewer"]);
    // The name is free again, for another.
    let old = office.token("viewer");
    office.add("viewer", &[]);
    office.ends(0, "viewer", &["status"]);
    assert_eq!(office.ask("GET", "/status", Some(&old), "").0, 401);
    set_clock(&office.server, 3700);
    office.ends(14, "short", &["status"]);
    office.ends(0, "viewer", &["status"]);
    let members = office.server.json(&["members", "list"]);
    assert_eq!(members.as_array().unwrap().len(), 5, "{members}");
    serving.end();
    // Of the tokens nothing is kept that could be shown.
    let catalog = std::fs::read(office.server.path("home/catalog.db")).unwrap();
    let secret = office.token("viewer").trim().rsplit('.').next().unwrap().to_owned();
    assert!(!catalog.windows(secret.len()).any(|window| window == secret.as_bytes()));
    // A server of another organisation has nothing for them.
    let config = office.server.config();
    office.server.set_config(format!("organisation = 'acme'\n{config}"));
    let _serving = office.serve(&[]);
    let said = office.ends(14, "admin", &["status"]);
    assert!(said.contains("is a member of default"), "{said}");
}

#[test]
fn job_that_is_asked_for_again_is_the_same_and_that_of_another_is_not_taken() {
    let office = Office::new(with_program(""));
    std::fs::write(office.server.path("wait"), "").unwrap();
    let _serving = office.serve(&[]);
    let (operator, admin) = (office.token("operator"), office.token("admin"));
    let body = "{\"id\": \"42\", \"source\": \"db\", \"kind\": \"backup\", \"news\": 1}";
    for _ in 0..2 {
        let (status, said) = office.ask("POST", "/jobs", Some(&operator), body);
        assert!(status == 200 && said.contains("\"id\":\"42\""), "{said}");
    }
    assert_eq!(office.ask("POST", "/jobs", Some(&admin), body).0, 400, "that of another");
    let other_work = body.replace("backup", "test");
    assert_eq!(office.ask("POST", "/jobs", Some(&operator), &other_work).0, 400, "other work");
    let reason = "{\"reason\": \"x\"}";
    assert_eq!(office.ask("POST", "/jobs/4/cancel", Some(&operator), reason).0, 400, "half an id");
    for wrong in [
        "{\"id\": \"042\", \"source\": \"db\", \"kind\": \"backup\"}",
        "{\"id\": \"99999999999999999999\", \"source\": \"db\", \"kind\": \"backup\"}",
        "{\"id\": \"x\", \"source\": \"db\", \"kind\": \"test\"}",
        "{\"source\": \"db\", \"kind\": \"prune\"}",
        "{\"source\": \"db\", \"kind\": \"backup\", \"trigger\": \"pre-restore\"}",
        "{\"source\": \"db\"}",
        "[]",
        "",
    ] {
        let (status, said) = office.ask("POST", "/jobs", Some(&operator), wrong);
        assert!(status == 400 && said.contains("\"backstay\":true"), "{wrong}: {said}");
    }
    wait_until("the one job is under way", || states(&office.server) == ["running"]);
    // Its id begins that of another, and means itself.
    let other = "{\"id\": \"421\", \"source\": \"db\", \"kind\": \"backup\"}";
    assert_eq!(office.ask("POST", "/jobs", Some(&operator), other).0, 200);
    assert_eq!(office.json("viewer", &["jobs", "show", "42"])["state"], "running");
    office.ends(0, "operator", &["jobs", "cancel", "421"]);
    for name in [".", "..", ""] {
        office.ends(2, "admin", &["delete", name, "--yes"]);
    }
    std::fs::remove_file(office.server.path("wait")).unwrap();
    wait_until("it is done", || states(&office.server) == ["cancelled", "succeeded"]);
}

#[test]
fn command_that_is_interrupted_cancels_its_job() {
    let office = Office::new(with_program(""));
    std::fs::write(office.server.path("wait"), "").unwrap();
    let _serving = office.serve(&[]);
    let backup = office.start("operator", &["backup", "db"]);
    wait_until("the backup is under way", || office.server.path("begun").exists());
    // Another one for the same source waits behind it.
    let behind = office.start("operator", &["backup", "db"]);
    wait_until("it waits", || states(&office.server) == ["queued", "running"]);
    assert_eq!(ends_on(Signal::INT, behind), Some(130));
    assert_eq!(states(&office.server), ["cancelled", "running"]);
    assert_eq!(ends_on(Signal::TERM, backup), Some(130));
    wait_until("it stops", || states(&office.server) == ["cancelled", "cancelled"]);
    let error = office.json("viewer", &["jobs", "list"])[1]["error"].clone();
    assert!(error.as_str().unwrap().contains("interrupted by operator"), "{error}");
}

#[test]
fn job_of_a_command_is_cancelled_by_another_member_and_the_command_hears_why() {
    let office = Office::new(with_program(""));
    std::fs::write(office.server.path("wait"), "").unwrap();
    let _serving = office.serve(&[]);
    let mut backup = office.start("operator", &["backup", "db"]);
    wait_until("the backup is under way", || office.server.path("begun").exists());
    let id = office.json("viewer", &["jobs", "list"])[0]["id"].as_str().unwrap().to_owned();
    office.ends(0, "admin", &["jobs", "cancel", &id[..8], "--reason", "the app is busy"]);
    assert_eq!(backup.wait().unwrap().code(), Some(1));
    assert!(office.log().contains("cancelled: the app is busy by admin"), "{}", office.log());
    office.ends(2, "admin", &["jobs", "delete", "x"]);
    office.ends(0, "admin", &["jobs", "delete", &id]);
    assert_eq!(states(&office.server), [""; 0]);
    let last = &office.audit()[..2];
    assert_eq!(last[0], ["admin", "jobs delete", &id, "done"]);
    assert_eq!(last[1], ["admin", "jobs cancel", &id, "done"]);
}

#[test]
fn command_that_waits_for_a_server_that_died_hears_of_it_and_waits_for_the_next_try() {
    let office = Office::new(with_program(""));
    std::fs::write(office.server.path("wait"), "").unwrap();
    let serving = office.serve(&[]);
    let mut backup = office.start("operator", &["backup", "db"]);
    wait_until("the backup is under way", || office.server.path("begun").exists());
    serving.kill();
    wait_until("it notices", || office.log().contains("trying again"));
    std::fs::remove_file(office.server.path("wait")).unwrap();
    let _serving = office.serve(&[]);
    wait_until("it hears of it", || office.log().contains("lease lost"));
    set_clock(&office.server, 61);
    assert_eq!(backup.wait().unwrap().code(), Some(0), "{}", office.log());
    assert_eq!(states(&office.server), ["succeeded", "failed"]);
    let jobs = office.json("viewer", &["jobs", "list"]);
    assert_eq!(jobs[1]["next_try"], jobs[0]["id"]);
    assert_eq!(jobs[0]["asked_by"], "operator");
}

#[test]
fn source_that_a_worker_reads_is_backed_up_and_drilled_by_way_of_its_server() {
    let fleet = Fleet::new("worker = 'db1'");
    let _serving = fleet.serve();
    let token = fleet.server.ends(0, &["members", "add", "ops", "--role", "operator"]);
    let ask = |words: &[&str]| {
        let mut command = Shell::bare().command(words);
        command.env("BACKSTAY_SERVER", format!("http://127.0.0.1:{}", fleet.port));
        command.env("BACKSTAY_TOKEN", token.trim()).current_dir("/").output().unwrap()
    };
    wait_until("it answers", || TcpStream::connect(("127.0.0.1", fleet.port)).is_ok());
    let output = ask(&["backup", "shop"]);
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.code() == Some(1) && error.contains("no worker is there"), "{error}");
    fleet.invite(&["--name", "db1"]);
    let _working = fleet.work(&["--name", "db1"]);
    wait_until("the worker is there", || fleet.worker_is_there());
    for words in [&["backup", "shop"][..], &["drill", "shop"], &["source", "test", "shop"]] {
        let output = ask(words);
        assert!(output.status.success(), "{words:?}: {output:?}");
        let job = &fleet.jobs("shop")[0];
        assert_eq!((&job["worker"], &job["asked_by"]), (&"db1".into(), &"ops".into()), "{job}");
    }
}

#[test]
fn changes_are_written_down_with_who_and_how_they_ended() {
    let office = Office::new(Shell::with_tree(""));
    let serving = office.serve(&[]);
    let made = office.json("operator", &["backup", "shop"]);
    let id = made["id"].as_str().unwrap();
    office.ends(0, "operator", &["hold", id, "--reason", "before\u{1b}[2Jthe move"]);
    assert_eq!(office.json("viewer", &["backups"])[0]["hold"], "before [2Jthe move");
    office.ends(14, "operator", &["delete", id, "--yes"]);
    office.server.ends(0, &["restore", "shop", "--yes"]);
    office.server.ends(0, &["undo", "shop"]);
    std::fs::remove_dir_all(office.server.path("shop")).unwrap();
    office.server.ends(0, &["restore", "shop", "--dry-run"]);
    office.server.complains(2, &["restore", "shop"]);
    office.server.complains(1, &["download", id, "--output", "/nowhere/at/all"]);
    serving.end();
    let audit = office.audit();
    let user = &audit[0][0];
    assert!(user.starts_with("uid "), "{audit:?}");
    let (words, outcomes): (Vec<_>, Vec<_>) = audit
        .iter()
        .map(|[who, what, of, outcome]| ((who.as_str(), what.as_str(), of.as_str()), outcome))
        .unzip();
    let expected = [
        (user.as_str(), "download", id),
        (user, "undo", "shop"),
        (user, "restore", "shop"),
        ("operator", "hold", id),
        (user, "members add", "owner"),
    ];
    assert_eq!(words[..5], expected);
    assert!(outcomes[0].starts_with("failed: ") && outcomes[1..].iter().all(|one| *one == "done"));
}
