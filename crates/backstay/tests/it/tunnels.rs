//! PostgreSQL behind a bastion, on a real `sshd`: what works directly works through it, what fails there is told apart, and
//! no `ssh` of ours is left (X4, X5).

use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use backstay_testkit::postgres::{PASSWORD, PostgresServer};
use backstay_testkit::ssh::{SshServer, make_key};
use serde_json::Value;

use crate::postgres::{made, nasty, with_database};
use crate::postgres_faults::{with_program, with_real_programs};
use crate::shell::Shell;

/// Waits that must end; nothing is asserted about how long they take.
const PATIENCE: Duration = Duration::from_secs(60);

/// The table of a bastion.
pub(crate) fn ssh(bastion: &SshServer) -> String {
    format!(
        "ssh = {{ host = '127.0.0.1', port = {}, identity_file = '{}', known_hosts_file = '{}' }}",
        bastion.port,
        bastion.identity_file().display(),
        bastion.known_hosts_file().display()
    )
}

fn wait_for(what: &str, mut is_there: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !is_there() {
        assert!(Instant::now() < deadline, "{what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Returns the command lines of running processes that name a file.
fn processes_with(file: &Path) -> Vec<String> {
    let processes = std::fs::read_dir("/proc").unwrap().flatten();
    let lines = processes.filter_map(|process| std::fs::read(process.path().join("cmdline")).ok());
    let lines = lines.map(|line| String::from_utf8_lossy(&line).replace('\0', " "));
    lines.filter(|line| line.contains(&*file.to_string_lossy())).collect()
}

fn is_alone(bastion: &SshServer) {
    assert_eq!(processes_with(&bastion.identity_file()), Vec::<String>::new());
    wait_for("somebody is still connected", || bastion.connections().is_empty());
}

/// A program that tells where it is, and goes on when it may.
fn pausing(shell: &Shell, before: &str, after: &str) -> String {
    let (here, go_on) = (shell.path("here"), shell.path("go-on"));
    // It ends with the test's directory, too.
    let (here, go_on) = (here.display(), go_on.display());
    let wait = format!("while [ ! -e '{go_on}' ] && [ -e '{here}' ]; do sleep 0.05; done");
    format!("{before} touch '{here}'; {wait}; {after}")
}

fn start(shell: &Shell, words: &[&str]) -> Child {
    let mut command = shell.command(words);
    let child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    wait_for("the program never ran", || shell.path("here").exists());
    child
}

#[test]
fn database_behind_a_bastion_is_backed_up_restored_and_brought_back() {
    let (server, bastion) = (PostgresServer::start(), SshServer::start());
    nasty(&server, "shop");
    let certificate = server.seal(&["localhost"]);
    let shell = with_database(&server, "shop", &ssh(&bastion));
    shell.edit_config(
        &format!("127.0.0.1:{}/shop'", server.port),
        &format!(
            "localhost:{}/shop?sslmode=verify-full&sslrootcert={}'",
            server.port,
            certificate.display()
        ),
    );
    let told = shell.path("told");
    let tell = format!(
        "echo \"$PGHOST $PGHOSTADDR $PGPORT\" >'{}'; exec \"$REAL\" \"$@\"",
        told.display()
    );
    with_program(&server, &shell, "pg_dump", &tell);
    let before = server.digest("shop");
    assert_eq!(made(&shell)["status"], "complete");
    let told = std::fs::read_to_string(told).unwrap();
    assert!(told.starts_with("localhost 127.0.0.1 "), "{told}");
    assert!(!told.trim_end().ends_with(&format!(" {}", server.port)), "not the tunnel: {told}");
    is_alone(&bastion);
    server.sql("shop", "DELETE FROM app.types WHERE id > 100");
    let spoilt = server.digest("shop");
    let plan = shell.json(&["restore", "db", "--dry-run"]);
    let location = format!("postgres://postgres@localhost:{}/shop", server.port);
    assert!(plan.to_string().contains(&location), "{plan}");
    shell.ends(0, &["restore", "db", "--yes"]);
    assert_eq!(server.digest("shop"), before);
    is_alone(&bastion);
    // Without the tunnel it is the same server.
    let config = shell.config();
    let direct: Vec<&str> = config.lines().filter(|line| !line.starts_with("ssh")).collect();
    shell.set_config(direct.join("\n"));
    shell.ends(0, &["undo", "db"]);
    assert_eq!(server.digest("shop"), spoilt);
    shell.set_config(config);
    shell.ends(0, &["confirm", "db"]);
    shell.ends(0, &["drill", "db"]);
    is_alone(&bastion);
}

#[test]
fn causes_of_a_tunnel_that_fails_are_told_apart() {
    let server = PostgresServer::start();
    server.sql("postgres", "CREATE DATABASE shop");
    let bastion = SshServer::start();
    let closed = SshServer::start_with("AllowTcpForwarding no");
    // Takes connections and never says a word.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let silent_port = silent.local_addr().unwrap().port();
    let keys = tempfile::tempdir().unwrap();
    let (stranger, nobody) = (keys.path().join("stranger"), keys.path().join("nobody"));
    make_key(&stranger);
    std::fs::write(&nobody, "").unwrap();
    let key = std::fs::read_to_string(keys.path().join("stranger.pub")).unwrap();
    let changed = keys.path().join("changed");
    std::fs::write(&changed, format!("[127.0.0.1]:{} {key}", bastion.port)).unwrap();
    let port = format!("port = {}", bastion.port);
    let (known, identity) = (bastion.known_hosts_file(), bastion.identity_file());
    let (known, identity) = (known.display().to_string(), identity.display().to_string());
    let database = format!(":{}/", server.port);
    let (good, no_forwarding) = (ssh(&bastion), ssh(&closed));
    let keyscan = format!("ssh-keyscan -p {} 127.0.0.1", bastion.port);
    let cases = [
        (good.replace("127.0.0.1", "no.such.host.invalid"), "", "bastion's name is not known"),
        (good.replace(&port, "port = 1"), "", "bastion refused the connection"),
        (good.replace(&port, &format!("port = {silent_port}")), "", "no answer from the bastion"),
        (good.replace(&known, &nobody.display().to_string()), "", "host key is not known"),
        (good.replace(&known, &nobody.display().to_string()), "", &keyscan),
        (good.replace(&known, &changed.display().to_string()), "", "not the one that is known"),
        (good.replace(&identity, &stranger.display().to_string()), "", "refused the login"),
        (good.replace("host =", "user = 'no-such-user', host ="), "", "refused the login"),
        (no_forwarding, "", "lets nobody through to the server"),
        (good.clone(), ":1/", "cannot reach the server (Connection refused)"),
        (good.replace("host =", "user = '-oProxyCommand=x', host ="), "", "ssh tunnel"),
    ];
    for (table, database_port, expected) in cases {
        let shell = with_database(&server, "shop", &table);
        if !database_port.is_empty() {
            shell.edit_config(&database, database_port);
        }
        let error = shell.complains(1, &["source", "test", "db"]);
        assert!(error.to_lowercase().contains(&expected.to_lowercase()), "{expected}: {error}");
        assert!(!error.contains(PASSWORD), "{error}");
    }
    let shell = with_database(&server, "shop", &good);
    shell.edit_config(&format!("127.0.0.1{database}"), &format!("no.such.host.invalid{database}"));
    let error = shell.complains(1, &["source", "test", "db"]);
    assert!(error.contains("the bastion cannot reach the server (Name or service"), "{error}");
    // The database's own answers come through as they are.
    let shell = with_database(&server, "shop", &good);
    std::fs::write(shell.path("secret"), "wrong").unwrap();
    let error = shell.complains(1, &["source", "test", "db"]);
    assert!(error.contains("login failed"), "{error}");
    let shell = with_database(&server, "shop", &good);
    let output =
        shell.command(&["source", "test", "db"]).env("PATH", keys.path()).output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(error.contains("install the package openssh-client"), "{error}");
    is_alone(&bastion);
}

#[test]
fn server_that_a_bastion_puts_in_the_middle_is_refused() {
    let (server, impostor, bastion) =
        (PostgresServer::start(), PostgresServer::start(), SshServer::start());
    for server in [&server, &impostor] {
        server.sql("postgres", "CREATE DATABASE shop");
    }
    let certificate = server.seal(&["localhost"]).display().to_string();
    let theirs = impostor.seal(&["localhost"]).display().to_string();
    let shell = with_database(&server, "shop", &ssh(&bastion));
    let query = format!("localhost:{}/shop?sslmode=verify-full&sslrootcert=", server.port);
    shell.edit_config(&format!("127.0.0.1:{}/shop", server.port), &format!("{query}{certificate}"));
    made(&shell);
    // Where the bastion leads to, another server listens now.
    let (ours, other) =
        (format!("localhost:{}", server.port), format!("localhost:{}", impostor.port));
    shell.edit_config(&ours, &other);
    let error = shell.complains(1, &["backup", "db"]);
    assert!(error.contains("TLS failed"), "{error}");
    // One that has a certificate which is trusted, for another name.
    impostor.seal(&["elsewhere.example"]);
    shell.edit_config(&certificate, &theirs);
    let error = shell.complains(1, &["backup", "db"]);
    assert!(error.contains("TLS failed"), "{error}");
    shell.edit_config("verify-full", "verify-ca");
    made(&shell);
    is_alone(&bastion);
}

#[test]
fn tunnel_that_dies_makes_no_false_success_and_ssh_is_named() {
    let (server, bastion) = (PostgresServer::start(), SshServer::start());
    nasty(&server, "shop");
    server.sql(
        "shop",
        "CREATE TABLE public.large AS SELECT i, md5(i::text) FROM generate_series(1, 50000) i",
    );
    let before = server.digest("shop");
    let shell = with_database(&server, "shop", &ssh(&bastion));
    made(&shell);
    let cases = [
        (
            ("pg_dump", "\"$REAL\" \"$@\" | { head -c 300000;", "cat; }"),
            vec!["backup", "db"],
            "what pg_dump wrote is no whole archive",
        ),
        (
            ("pg_restore", "", "exec \"$REAL\" \"$@\""),
            vec!["restore", "db", "--yes"],
            "pg_restore failed",
        ),
    ];
    for ((program, begin, end), words, symptom) in cases {
        with_program(&server, &shell, program, &pausing(&shell, begin, end));
        let child = start(&shell, &words);
        for pid in bastion.connections() {
            let pid = rustix::process::Pid::from_raw(pid.cast_signed()).unwrap();
            rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
        }
        wait_for("ssh lives", || processes_with(&bastion.identity_file()).is_empty());
        std::fs::write(shell.path("go-on"), "").unwrap();
        let output = child.wait_with_output().unwrap();
        let error = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{error}");
        assert!(error.contains("the SSH tunnel through 127.0.0.1: ssh ended: "), "{error}");
        // Whichever way it noticed.
        let said = ["closed by remote host", "Broken pipe", "reset by peer"];
        assert!(said.iter().any(|text| error.contains(text)), "what ssh said: {error}");
        assert!(error.contains(symptom), "{error}");
        assert_eq!(shell.json(&["backups", "db"]).as_array().unwrap().len(), 1, "{program}");
        assert_eq!(server.digest("shop"), before, "{program}");
        with_real_programs(&server, &shell);
        for mark in ["here", "go-on"] {
            std::fs::remove_file(shell.path(mark)).unwrap();
        }
    }
    // The next command finds everything in order.
    made(&shell);
    shell.ends(0, &["restore", "db", "--yes"]);
    assert_eq!(server.digest("shop"), before);
    shell.ends(0, &["confirm", "db"]);
    let ours = "SELECT count(*) FROM pg_database WHERE datname ~ '^backstay_'";
    assert_eq!(server.sql("postgres", ours), "0");
    is_alone(&bastion);
}

#[test]
fn no_ssh_is_left_however_the_command_ends() {
    let (server, bastion) = (PostgresServer::start(), SshServer::start());
    server.sql("postgres", "CREATE DATABASE shop");
    server.sql("shop", "CREATE TABLE orders AS SELECT generate_series(1, 1000) AS n");
    for signal in [rustix::process::Signal::INT, rustix::process::Signal::KILL] {
        let shell = with_database(&server, "shop", &ssh(&bastion));
        with_program(&server, &shell, "pg_dump", &pausing(&shell, "", "exec \"$REAL\" \"$@\""));
        let mut child = start(&shell, &["backup", "db"]);
        assert_eq!(processes_with(&bastion.identity_file()).len(), 1);
        let pid = rustix::process::Pid::from_child(&child);
        rustix::process::kill_process(pid, signal).unwrap();
        let status = child.wait().unwrap();
        if signal == rustix::process::Signal::INT {
            assert_eq!(status.code(), Some(130));
            assert_eq!(processes_with(&bastion.identity_file()), Vec::<String>::new());
        }
        wait_for("ssh is left", || processes_with(&bastion.identity_file()).is_empty());
        std::fs::write(shell.path("go-on"), "").unwrap();
        assert_eq!(shell.json(&["backups", "db"]), Value::Array(Vec::new()));
        is_alone(&bastion);
    }
}
