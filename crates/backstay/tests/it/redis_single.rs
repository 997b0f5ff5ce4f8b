//! A Redis server without a free number: what is loaded lies where the app looks for it, and is emptied only where all of it is ours.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use backstay_testkit::daemon::wait_until;
use backstay_testkit::proxy::{Network, Proxy};
use backstay_testkit::redis::RedisServer;
use backstay_testkit::s3::{BUCKET, Fault, S3Server};

use crate::postgres_network::{ended, send, start};
use crate::redis::{made, move_to, with_server};
use crate::shell::Shell;

/// A server with keys, and its backup; then the machine is aimed at an empty server with one database.
fn aimed_at_an_empty_one() -> (S3Server, Arc<RedisServer>, Shell) {
    let (bucket, server) = (S3Server::start().unwrap(), RedisServer::start());
    let value = |n: usize| {
        let mut state = n as u64 + 1;
        let mut next = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            char::from(b'a' + u8::try_from((state >> 33) % 26).unwrap())
        };
        (0..200_000).map(|_| next()).collect::<String>()
    };
    let keys: String = (0..100).map(|n| format!("SET k{n} {}\n", value(n))).collect();
    server.script(0, &keys);
    let shell = with_server(&server, "");
    let storage = format!("provider = 'local'\npath = '{}'", shell.path("storage").display());
    let remote = format!("provider = 's3'\nbucket = '{BUCKET}'\nendpoint = '{}'", bucket.endpoint);
    shell.edit_config(&storage, &remote);
    made(&shell);
    let small = RedisServer::start_as(&["databases 1"]);
    move_to(&shell, &server, small.port);
    (bucket, Arc::new(small), shell)
}

/// Lets the server run out of memory in the middle of loading, after this was done on it.
fn fail_while_loading(bucket: &S3Server, small: &Arc<RedisServer>, meanwhile: &'static [&str]) {
    let (server, is_done) = (small.clone(), AtomicBool::new(false));
    bucket.script(move |_| {
        let is_loading = server.ask(0, &["EXISTS", "backstay:coming"]) == "1";
        if is_loading && !is_done.swap(true, Ordering::SeqCst) {
            if !meanwhile.is_empty() {
                server.ask(0, meanwhile);
            }
            server.ask(0, &["CONFIG", "SET", "maxmemory", "10mb"]);
        }
        Fault::Pass
    });
}

#[test]
fn restore_that_fails_takes_back_what_it_loaded_and_nothing_that_the_app_wrote() {
    let (bucket, small, shell) = aimed_at_an_empty_one();
    fail_while_loading(&bucket, &small, &[]);
    let said = shell.complains(1, &["restore", "db", "--yes"]);
    assert!(said.contains("OOM"), "{said}");
    assert_eq!(small.ask(0, &["DBSIZE"]), "0");
    small.ask(0, &["CONFIG", "SET", "maxmemory", "0"]);
    fail_while_loading(&bucket, &small, &["SET", "mine", "1"]);
    let said = shell.complains(1, &["restore", "db", "--yes"]);
    assert!(said.contains("database 0 keeps what a restore had loaded into it"), "{said}");
    assert_eq!(small.ask(0, &["GET", "mine"]), "1");
    assert_eq!(small.ask(0, &["EXISTS", "backstay:coming"]), "0");
    assert_ne!(small.ask(0, &["DBSIZE"]), "1");
    small.script(0, "CONFIG SET maxmemory 0\nFLUSHALL\n");
    shell.ends(0, &["restore", "db", "--yes"]);
    assert_eq!(small.ask(0, &["DBSIZE"]), "100");
}

#[test]
fn database_that_a_killed_restore_was_loading_is_the_apps_from_then_on() {
    let (_bucket, small, shell) = aimed_at_an_empty_one();
    let proxy = Proxy::start(small.port);
    move_to(&shell, &small, proxy.port);
    proxy.set_after(3_000_000, Network::Silent);
    let restoring = start(&shell, &["restore", "db", "--yes"]);
    wait_until("it is at it", || proxy.network() == Network::Silent);
    send(&restoring, rustix::process::Signal::KILL);
    ended(restoring);
    proxy.mend();
    small.ask(0, &["SET", "mine", "1"]);
    // It is backed up like any other, and a drill or another restore empties nothing.
    let backup = made(&shell);
    let keeps = "database 0 keeps what a restore had loaded into it";
    let said = shell.complains(1, &["restore", "db", "--yes"]);
    assert!(said.contains(keeps), "{said}");
    let said = shell.complains(1, &["drill", "db"]);
    assert!(said.contains(keeps), "{said}");
    assert_eq!(small.ask(0, &["GET", "mine"]), "1");
    assert_eq!(small.ask(0, &["EXISTS", "backstay:coming"]), "0");
    let keys = small.ask(0, &["DBSIZE"]);
    small.ask(0, &["FLUSHALL"]);
    shell.ends(0, &["restore", "db", "--id", backup["id"].as_str().unwrap(), "--yes"]);
    assert_eq!(small.ask(0, &["DBSIZE"]), keys);
    assert_eq!(small.ask(0, &["GET", "mine"]), "1");
    assert_eq!(small.ask(0, &["EXISTS", "backstay:coming"]), "0");
}
