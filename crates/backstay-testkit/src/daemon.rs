//! What all private servers share: a process of their own, on a port that nobody else has.

use std::fs::File;
use std::net::TcpListener;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

/// Below those that Linux gives away by itself, so that no connection takes one between two starts of a server.
const PORTS: std::ops::Range<u16> = 20_000..30_000;
/// Whom a server runs as where the tests run as root, whom some servers refuse.
const NOBODY: u32 = 65534;
/// How often a server is looked at: for about a minute, since a loaded machine starts some of them slowly.
const TRIES: u32 = 1200;
const BETWEEN_TRIES: Duration = Duration::from_millis(50);

/// A port of 127.0.0.1 that no other test gets, in whatever process, until this is dropped.
#[derive(Debug)]
pub(crate) struct Port {
    /// Its number.
    pub(crate) number: u16,
    _lock: File,
}

impl Port {
    /// Finds a free one.
    pub(crate) fn reserve() -> Self {
        let user = rustix::process::geteuid().as_raw();
        let locks = std::env::temp_dir().join(format!("backstay-ports-{user}"));
        std::fs::create_dir_all(&locks).expect("a directory for locks");
        // Processes that begin at the same place would all try the same ports one after the other.
        let start = u16::try_from(std::process::id() % u32::from(PORTS.end - PORTS.start));
        let start = PORTS.start + start.expect("less than the ports");
        let take = |number: u16| {
            let lock = File::create(locks.join(number.to_string())).expect("a lock");
            lock.try_lock().ok()?;
            // Somebody who knows nothing of our locks may be there.
            TcpListener::bind(("127.0.0.1", number)).ok()?;
            Some(Self { number, _lock: lock })
        };
        (start..PORTS.end).chain(PORTS.start..start).find_map(take).expect("a free port")
    }
}

/// A server's process; ends when it is dropped.
#[derive(Debug)]
pub(crate) struct Daemon {
    command: Command,
    child: Child,
    end: Signal,
    _port: Port,
}

impl Daemon {
    /// Starts a server that this command runs on this port, and that this signal ends at once with all its children.
    pub(crate) fn start(port: Port, mut command: Command, end: Signal) -> Self {
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let child = spawn(&mut command);
        Self { command, child, end, _port: port }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Waits until the server is dead, and starts it again.
    pub(crate) fn revive(&mut self) {
        self.child.wait().expect("the server's end");
        self.child = spawn(&mut self.command);
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        kill(self.pid(), self.end);
        drop(self.child.wait());
    }
}

fn spawn(command: &mut Command) -> Child {
    let child = command.spawn();
    child.unwrap_or_else(|error| {
        panic!("{command:?}: {error}; `cargo xtask test` installs what is missing")
    })
}

/// Sends a signal to a process, which may be gone already.
pub(crate) fn kill(pid: u32, signal: Signal) {
    match Pid::from_raw(pid.cast_signed()).map(|pid| kill_process(pid, signal)) {
        Some(Ok(()) | Err(_)) | None => {}
    }
}

/// Waits until something holds of a server.
pub fn wait_until(what: &str, mut holds: impl FnMut() -> bool) {
    let looks = || {
        std::thread::sleep(BETWEEN_TRIES);
        holds()
    };
    assert!(std::iter::repeat_with(looks).take(TRIES as usize).any(|held| held), "never: {what}");
}

/// Prepares a program that runs as somebody without rights where we are root.
pub(crate) fn unprivileged(program: impl AsRef<std::ffi::OsStr>) -> Command {
    let mut command = Command::new(program);
    command.env("LC_ALL", "C").stdin(Stdio::null()).current_dir("/");
    if rustix::process::geteuid().is_root() {
        command.uid(NOBODY).gid(NOBODY);
    }
    command
}

/// Gives a file or folder to whom [`unprivileged`] programs run as.
pub(crate) fn give(path: &Path) {
    if rustix::process::geteuid().is_root() {
        std::os::unix::fs::chown(path, Some(NOBODY), Some(NOBODY)).expect("chown");
    }
}
