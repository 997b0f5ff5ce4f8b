//! Servers whose catalog is away, full, lost or somebody else's.

use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;

use backstay_testkit::daemon::wait_until;
use backstay_testkit::postgres::PostgresServer;
use backstay_testkit::proxy::{Network, Proxy};

use crate::faults::SmallDisk;
use crate::serve::{Serving, backups, set_clock, states, with_program};
use crate::shell::Shell;

#[test]
fn server_with_another_master_key_takes_no_jobs_from_a_shared_catalog() {
    let server = PostgresServer::start();
    server.sql("postgres", "CREATE DATABASE catalog");
    let (one, other) = (with_program("schedule = 'every 24h'"), Shell::bare());
    let config = format!("catalog = '{}'\n{}", server.url("catalog"), one.config());
    for shell in [&one, &other] {
        shell.set_config(&config);
    }
    one.ends(0, &["backup", "db"]);
    let refused = other.complains(12, &["serve"]);
    assert!(refused.contains("the keys of the catalog do not open here"), "{refused}");
}

#[test]
fn server_that_is_started_before_its_catalog_waits_for_it() {
    let server = PostgresServer::start();
    server.sql("postgres", "CREATE DATABASE catalog");
    let network = Proxy::start(server.port);
    let url = server
        .url("catalog")
        .replace(&format!(":{}/", server.port), &format!(":{}/", network.port));
    let shell = with_program("schedule = 'every 24h'");
    let config = shell.config();
    shell.set_config(format!("catalog = '{url}'\n{config}"));
    network.set(Network::Cut);
    let _serving = Serving::start(&shell);
    let log = || std::fs::read_to_string(shell.path("log")).unwrap();
    wait_until("it waits", || log().contains("waiting for the catalog"));
    network.mend();
    wait_until("it serves", || {
        shell.run(&["jobs", "list"]).status.success() && states(&shell) == ["succeeded"]
    });
    // What no waiting mends is told at once.
    shell.set_config(format!("catalog = '{}'\n{config}", server.url("nowhere")));
    assert!(shell.complains(1, &["serve"]).contains("cannot be used"));
}

#[test]
fn installation_is_recovered_although_its_shared_catalog_is_gone() {
    let shell = with_program("schedule = 'every 24h'");
    shell.ends(0, &["backup", "db"]);
    shell.ends(0, &["keys", "kit", "--output", "kit.txt"]);
    std::fs::remove_dir_all(shell.path("home")).unwrap();
    let config = shell.config();
    shell.set_config(format!("catalog = 'postgres://app@127.0.0.1:1/catalog'\n{config}"));
    let storage = shell.path("storage").display().to_string();
    let recover = ["recover", "--storage", &storage, "--kit", "kit.txt"];
    let output = shell.run(&recover);
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success() && told.contains("take `catalog` out"), "{told}");
    shell.set_config(config);
    shell.ends(0, &["verify", "--all"]);
}

#[test]
fn full_disk_in_the_home_directory_is_survived() {
    let shell = with_program("schedule = 'every 6h'");
    let home = shell.path("home");
    let _disk = SmallDisk::mount(&home, 4);
    std::fs::set_permissions(&home, std::fs::Permissions::from_mode(0o700)).unwrap();
    let mut serving = Serving::start(&shell);
    wait_until("the first backup", || states(&shell) == ["succeeded"]);
    let filler = home.join("filler");
    let mut full = std::fs::File::create(&filler).unwrap();
    while full.write_all(&[1; 4096]).is_ok() {}
    drop(full);
    set_clock(&shell, 6 * 3600);
    let log = || std::fs::read_to_string(shell.path("log")).unwrap();
    wait_until("it tells what is wrong", || log().contains("disk is full"));
    // Nobody can write down what he does, so nobody begins; what is there can be looked at.
    let refused = shell.run(&["backup", "db"]);
    assert_eq!(refused.status.code(), Some(14), "{refused:?}");
    assert_eq!(backups(&shell), 1);
    shell.ends(0, &["verify", "--all"]);
    assert!(serving.0.try_wait().unwrap().is_none(), "{}", log());
    std::fs::remove_file(filler).unwrap();
    wait_until("the next backup", || backups(&shell) == 2 && states(&shell)[0] == "succeeded");
    // V39: and it needs little all the while.
    let kib = crate::shell::peak_kib_of(serving.0.id()).unwrap();
    assert!(kib < 100 << 10, "{kib} KiB");
    shell.ends(0, &["verify", "--all"]);
}
