//! What servers answer to whoever speaks to them by hand: strangers, other versions, workers that lie (ADR 19).

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use backstay_testkit::daemon::wait_until;
use backstay_testkit::s3::Fault;
use serde_json::{Value, json};

use crate::workers::{Fleet, Running, log, start};

/// Asks a server by hand. Returns its status and what it says.
fn ask(port: u16, path: &str, headers: &str, body: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    let length = body.len();
    let request = format!(
        "POST /api/v1/worker/{path} HTTP/1.1\r\nhost: server\r\nconnection: close\r\n\
         content-type: application/json\r\ncontent-length: {length}\r\n{headers}\r\n{body}"
    );
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    (answer[9..12].parse().unwrap(), answer)
}

#[test]
fn strangers_and_other_protocols_are_refused_and_fields_of_other_versions_are_not() {
    let fleet = Fleet::new("worker = 'db1'");
    let _serving = fleet.serve();
    fleet.invite(&["--name", "db1"]);
    let token = std::fs::read_to_string(fleet.worker.path("token")).unwrap();
    let working = fleet.work(&["--name", "db1"]);
    wait_until("the worker is there", || fleet.worker_is_there());
    working.end();
    let ours = "backstay-protocol: 1\r\n";
    let take = "{\"process\": {\"instance\": \"1\", \"pid\": 1, \"new\": []}, \"host\": \"h\", \"version\": \"9\", \"has_room\": true, \"news\": {}}";
    let (status, said) = ask(fleet.port, "take", ours, take);
    assert!(status == 401 && said.contains("not known"), "{said}");
    for forged in [token.trim(), "bsw.0000000000000000.00", "", "x"] {
        let headers = format!("{ours}authorization: Bearer {forged}\r\n");
        assert_eq!(ask(fleet.port, "take", &headers, take).0, 401, "{forged}");
    }
    // Its own token, which stands sealed in its catalog: made here by hand for another worker.
    let (id, secret) = ("00112233aabbccdd", "a".repeat(64));
    std::fs::write(fleet.worker.path("token"), fleet.server.ends(0, &["workers", "invite"]))
        .unwrap();
    let invitation = std::fs::read_to_string(fleet.worker.path("token")).unwrap();
    let digest = sha256(secret.as_bytes());
    let enrol = format!(
        "{{\"invitation\": \"{}\", \"id\": \"{id}\", \"secret\": \"{digest}\", \"name\": \"hand\", \"host\": \"h\", \"version\": \"0\", \"new\": 1}}",
        invitation.trim()
    );
    // An answer that is lost can be asked for again.
    for _ in 0..2 {
        let (status, said) = ask(fleet.port, "enrol", ours, &enrol);
        assert_eq!(status, 200, "{said}");
    }
    let own = format!("authorization: Bearer bsw.{id}.{secret}\r\n");
    let (status, said) = ask(fleet.port, "take", &format!("{ours}{own}"), take);
    assert!(status == 200 && said.contains("{\"job\":null}"), "{said}");
    for (protocol, older) in [("backstay-protocol: 2\r\n", "server"), ("", "worker")] {
        let (status, said) = ask(fleet.port, "take", &format!("{protocol}{own}"), take);
        assert!(status == 426 && said.contains(&format!("the {older} is too old")), "{said}");
    }
    // What it does not hold it cannot renew or end.
    let forged = "\"process\": {\"instance\": \"1\", \"pid\": 1}, \"job\": \"1\", \"leases\": [{\"name\": \"db\", \"token\": 1}]";
    let (status, _) = ask(fleet.port, "report", &format!("{ours}{own}"), &format!("{{{forged}}}"));
    assert_eq!(status, 409);
    let end = format!("{{{forged}, \"outcome\": {{\"result\": \"made\", \"backup\": \"x\"}}}}");
    assert_eq!(ask(fleet.port, "end", &format!("{ours}{own}"), &end).0, 409);
}

fn sha256(bytes: &[u8]) -> String {
    backstay_format::Sha256::of(bytes).to_string()
}

fn open_files(running: &Running) -> usize {
    std::fs::read_dir(format!("/proc/{}/fd", running.0.id())).unwrap().count()
}

/// A worker that is played by hand.
pub(crate) struct Hand {
    port: u16,
    secret: String,
}

const ID: &str = "00112233aabbccdd";

impl Hand {
    /// Enrols one of this name and host.
    pub(crate) fn enrol(fleet: &Fleet, name: &str, host: &str) -> Self {
        fleet.invite(&["--name", name]);
        let invitation = std::fs::read_to_string(fleet.worker.path("token")).unwrap();
        let secret = "a".repeat(64);
        let body = json!({
            "invitation": invitation.trim(), "id": ID, "secret": sha256(secret.as_bytes()), "name": name, "host": host, "version": "0",
        });
        wait_until("the server answers", || TcpStream::connect(("127.0.0.1", fleet.port)).is_ok());
        let hand = Self { port: fleet.port, secret };
        let (status, said) =
            ask(fleet.port, "enrol", "backstay-protocol: 1\r\n", &body.to_string());
        assert_eq!(status, 200, "{said}");
        hand
    }

    fn headers(&self) -> String {
        format!("backstay-protocol: 1\r\nauthorization: Bearer bsw.{ID}.{}\r\n", self.secret)
    }

    fn ask(&self, path: &str, body: &Value) -> (u16, Value) {
        let (status, said) = ask(self.port, path, &self.headers(), &body.to_string());
        let body = said.split_once("\r\n\r\n").map(|(_, body)| body).unwrap_or_default();
        (status, serde_json::from_str(body).unwrap_or_default())
    }

    pub(crate) fn take(&self) -> Value {
        let body = json!({
            "process": {"instance": "1", "pid": 1}, "host": "h", "version": "0", "has_room": true, "patience": 20,
        });
        let (status, answer) = self.ask("take", &body);
        assert_eq!(status, 200, "{answer}");
        answer["job"].clone()
    }

    /// Ends a job as this outcome.
    pub(crate) fn end(&self, job: &Value, outcome: &Value) -> u16 {
        let body = json!({
            "process": {"instance": "1", "pid": 1}, "job": job["job"], "leases": job["leases"], "outcome": outcome, "log": "\u{1b}[2J",
        });
        self.ask("end", &body).0
    }
}

#[test]
fn worker_that_lies_makes_nothing_good_and_moves_no_cursor() {
    let fleet = Fleet::new("worker = 'db1'");
    let _serving = fleet.serve();
    fleet.invite(&["--name", "db1"]);
    let working = fleet.work(&["--name", "db1"]);
    wait_until("the worker is there", || fleet.worker_is_there());
    let old = fleet.server.json(&["backup", "shop"])["id"].clone();
    working.end();
    fleet.server.ends(0, &["workers", "revoke", "db1"]);
    let hand = Hand::enrol(&fleet, "db1", "h\u{1b}]0;x\u{7}\n");
    let listed = fleet.server.ends(0, &["workers", "list"]);
    assert!(!listed.contains('\u{1b}') && listed.contains("h ]0;x"), "{listed:?}");
    let lies = [
        (json!({"result": "made", "backup": old}), "it was there before"),
        (json!({"result": "made", "backup": "../../etc"}), "a backup that cannot be one"),
        (
            json!({"result": "made", "backup": "20260101T000000Z-7k3f9q2x"}),
            "cannot take it for good",
        ),
        (json!({"result": "tested", "summary": "fine"}), "something else than it was asked for"),
        (json!({"result": "failed", "error": "\u{1b}[31mred"}), "worker db1: [31mred"),
    ];
    for (outcome, told) in lies {
        let backup = start(&fleet.server, &["backup", "shop"], &[]);
        let job = hand.take();
        assert!(job["work"].is_object(), "{job}");
        assert_eq!(hand.end(&job, &outcome), 202);
        // A second time it has nothing to say.
        assert_eq!(hand.end(&job, &outcome), 409);
        assert_eq!(backup.wait(), 1);
        let job = &fleet.jobs("shop")[0];
        let error = job["error"].as_str().unwrap();
        assert!(job["state"] == "failed" && error.contains(told), "{told}: {job}");
        assert!(!job.to_string().contains("\\u001b"), "{job}");
    }
    assert_eq!(fleet.server.json(&["backups", "shop"]).as_array().unwrap().len(), 1);
}

#[test]
fn job_that_a_worker_does_not_hear_of_waits_for_the_next_who_asks() {
    let fleet = Fleet::new("worker = 'db1'");
    let serving = fleet.serve();
    let hand = Hand::enrol(&fleet, "db1", "h");
    let body = json!({
        "process": {"instance": "1", "pid": 1}, "host": "h", "version": "0", "has_room": true, "patience": 20,
    });
    let body = body.to_string();
    let mut stream = TcpStream::connect(("127.0.0.1", fleet.port)).unwrap();
    let request = format!(
        "POST /api/v1/worker/take HTTP/1.1\r\nhost: server\r\ncontent-type: application/json\r\n\
         content-length: {}\r\n{}\r\n{body}",
        body.len(),
        hand.headers()
    );
    stream.write_all(request.as_bytes()).unwrap();
    // The storage stands still while the job is given out.
    let (is_asked, may_answer) =
        (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
    let (asked, may) = (is_asked.clone(), may_answer.clone());
    fleet.bucket.script(move |_| {
        asked.store(true, Ordering::SeqCst);
        while !may.load(Ordering::SeqCst) {
            std::thread::yield_now();
        }
        Fault::Pass
    });
    let backup = start(&fleet.server, &["backup", "shop"], &[]);
    wait_until("the storage is asked", || is_asked.load(Ordering::SeqCst));
    let open = || open_files(&serving);
    let before = open();
    drop(stream);
    wait_until("the server knows that nobody waits", || open() < before);
    may_answer.store(true, Ordering::SeqCst);
    wait_until("it is given out", || log(&fleet.server).contains("shop: given to worker db1"));
    let job = hand.take();
    assert!(job["work"].is_object(), "{job}");
    assert_eq!(hand.end(&job, &json!({"result": "failed", "error": "no"})), 202);
    assert_eq!(backup.wait(), 1, "{}", log(&fleet.server));
    assert_eq!(fleet.states("shop"), ["failed"], "one job, given out again");
}

#[test]
fn connections_that_say_nothing_leave_files_for_backups() {
    let fleet = Fleet::new("worker = 'db1'");
    let serving = fleet.serve();
    wait_until("the server answers", || TcpStream::connect(("127.0.0.1", fleet.port)).is_ok());
    let idle: Vec<TcpStream> =
        (0..400).map(|_| TcpStream::connect(("127.0.0.1", fleet.port)).unwrap()).collect();
    let open = || open_files(&serving);
    wait_until("all were looked at", || open() >= 200);
    let mut ended = 0;
    for mut stream in idle {
        stream.set_read_timeout(Some(std::time::Duration::from_millis(50))).unwrap();
        // Those that were refused are at their end.
        ended += usize::from(matches!(stream.read(&mut [0]), Ok(0)) || stream.write(b"x").is_err());
    }
    assert!(ended >= 190, "{ended} of 400 were ended");
    assert!(open() < 250, "{}", open());
}
