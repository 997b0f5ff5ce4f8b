//! A private `sshd` in a directory of its own: a bastion on 127.0.0.1.

use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::process::Signal;

use crate::daemon::{Daemon, Port, kill, wait_until};

/// Where Debian keeps it, off the path of ordinary users; it must be called by its whole name.
const SSHD: &str = "/usr/sbin/sshd";
/// Where it wants to be locked up while it does not know whom it talks to.
const EMPTY_DIRECTORY: &str = "/run/sshd";

/// A running server; ends when it is dropped.
pub struct SshServer {
    dir: tempfile::TempDir,
    daemon: Daemon,
    /// Where it listens, on 127.0.0.1.
    pub port: u16,
}

impl SshServer {
    /// Starts a server that lets its one user through to everywhere.
    pub fn start() -> Self {
        Self::start_with("")
    }

    /// Starts a server with more lines in its configuration; the first of a kind counts.
    pub fn start_with(more: &str) -> Self {
        let dir = tempfile::tempdir().expect("a directory for the server");
        let reserved = Port::reserve();
        let port = reserved.number;
        if rustix::process::geteuid().is_root() {
            std::fs::create_dir_all(EMPTY_DIRECTORY).expect("the server's empty directory");
        }
        for key in ["host", "user"] {
            make_key(&dir.path().join(key));
        }
        let path = |name: &str| dir.path().join(name).display().to_string();
        std::fs::copy(path("user.pub"), path("authorized_keys")).expect("the user's key");
        let host_key = std::fs::read_to_string(path("host.pub")).expect("the host's key");
        let known = format!("[127.0.0.1]:{port} {host_key}");
        std::fs::write(path("known_hosts"), known).expect("the known hosts");
        let config = format!(
            "{more}\nPort {port}\nListenAddress 127.0.0.1\nHostKey {}\nAuthorizedKeysFile {}\nPidFile none\n\
             UsePAM no\nStrictModes no\nPasswordAuthentication no\nKbdInteractiveAuthentication no\nLogLevel ERROR\n",
            path("host"),
            path("authorized_keys"),
        );
        std::fs::write(path("config"), config).expect("its configuration");
        let mut command = Command::new(SSHD);
        command.args(["-D", "-e", "-f"]).arg(dir.path().join("config"));
        let daemon = Daemon::start(reserved, command, Signal::KILL);
        wait_until("sshd answers", || TcpStream::connect(("127.0.0.1", port)).is_ok());
        Self { dir, daemon, port }
    }

    /// Returns the key that its user logs in with.
    pub fn identity_file(&self) -> PathBuf {
        self.dir.path().join("user")
    }

    /// Returns the file that knows its host key.
    pub fn known_hosts_file(&self) -> PathBuf {
        self.dir.path().join("known_hosts")
    }

    /// Returns its own number, for whoever wants to end it or its connections.
    pub fn pid(&self) -> u32 {
        self.daemon.pid()
    }

    /// Returns who is connected, by the numbers of the processes that serve them.
    pub fn connections(&self) -> Vec<u32> {
        let parent = self.pid().to_string();
        let processes = std::fs::read_dir("/proc").expect("/proc").flatten();
        let numbers = processes.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        let is_ours = |pid: &u32| {
            let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            // Behind the name stand the state and the parent.
            let rest = stat.rsplit_once(") ").map(|(_, rest)| rest.to_owned()).unwrap_or_default();
            let mut words = rest.split(' ');
            words.next().is_some_and(|state| state != "Z") && words.next() == Some(&parent)
        };
        numbers.filter(is_ours).collect()
    }
}

/// Makes a pair of keys without a passphrase at a path, and at the same path with `.pub`.
pub fn make_key(path: &Path) {
    let made = Command::new("ssh-keygen")
        .args(["-q", "-t", "ed25519", "-N", "", "-C", "test", "-f"])
        .arg(path)
        .stdin(Stdio::null())
        .status();
    assert!(made.expect("ssh-keygen runs").success());
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).expect("chmod");
}

impl Drop for SshServer {
    fn drop(&mut self) {
        for pid in self.connections() {
            kill(pid, Signal::KILL);
        }
    }
}
