//! Tunnels: a server that only another machine, the bastion, can reach is reached by the system's `ssh`.
//!
//! Nothing of SSH is ours: keys, agents, known hosts and the user's own settings are those of `ssh`. Only what keeps a
//! tunnel honest is fixed here: nobody is asked, and a host that is not known is refused.

use std::ffi::OsString;
use std::fmt;
use std::io;
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process_group, waitid};
use tokio::io::AsyncReadExt as _;
use tokio::process::ChildStdout;
use tokio::sync::watch;
use tokio::time::timeout;

use super::said::{Said, listen};

/// How long the bastion may take to answer, in seconds.
const CONNECT_SECONDS: u32 = 15;
/// How long all of it may take, with the login.
const START_TIMEOUT: Duration = Duration::from_secs(40);
/// A free port may be taken by another before `ssh` takes it.
const START_TRIES: u32 = 3;
/// What `ssh` has to say about a failure comes at once; this is for a machine that is busy.
const MOMENT: Duration = Duration::from_secs(1);

/// Runs when the tunnel stands. What it leaves behind waits for our end, however we end, and ends `ssh` with all that it
/// started: nobody else would.
const LOCAL_COMMAND: &str =
    "LocalCommand=echo ready; exec 3<&0 >/dev/null 2>&1; { read end <&3; kill -KILL 0; } &";

/// What is the same for every tunnel.
const OPTIONS: [&str; 12] = [
    "BatchMode=yes",
    "ExitOnForwardFailure=yes",
    "ClearAllForwardings=no",
    "ServerAliveInterval=15",
    "ServerAliveCountMax=3",
    // A key that is not known yet is for a person to look at.
    "StrictHostKeyChecking=yes",
    "UpdateHostKeys=no",
    // A connection that others share would outlive ours, or end with theirs.
    "ControlMaster=no",
    "ControlPath=none",
    "LogLevel=INFO",
    "PermitLocalCommand=yes",
    LOCAL_COMMAND,
];

/// The machine that can reach the server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bastion {
    /// A name, an address, or what the user's settings of `ssh` call it.
    pub host: String,
    /// Whoever `ssh` takes if left out.
    pub user: Option<String>,
    /// Usually 22.
    pub port: Option<u16>,
    /// The key to log in with; those that `ssh` knows if left out.
    pub identity_file: Option<PathBuf>,
    /// The keys of hosts; those that `ssh` knows if left out.
    pub known_hosts_file: Option<PathBuf>,
}

/// Says whether a text can only be a host: no option, no URL, no path, no pattern.
pub fn is_host(text: &str) -> bool {
    let is_legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_' | ':');
    !text.is_empty() && !text.starts_with('-') && text.chars().all(is_legal)
}

/// Says whether `ssh` takes a path as it stands.
pub fn is_plain_path(text: &str) -> bool {
    let is_special = |c: char| c.is_control() || matches!(c, '"' | '\'' | '\\' | '%' | '$');
    text.starts_with('/') && !text.contains(is_special)
}

/// Why there is no way through a bastion.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the SSH tunnel through {bastion}: {cause}")]
pub struct TunnelError {
    /// Through which machine.
    pub bastion: String,
    /// Why, and what to do.
    pub cause: TunnelCause,
}

/// Why there is no way through a bastion.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TunnelCause {
    /// There is no `ssh`.
    NotInstalled,
    /// `ssh` cannot be run, or must not be given what is configured.
    NotStarted(String),
    /// The bastion's name is not known.
    UnknownHost(String),
    /// Nobody listens at the bastion.
    Refused,
    /// The bastion does not answer.
    Timeout,
    /// The bastion's key is not among those that are known. With a command that shows it.
    UnknownKey(String),
    /// The bastion shows another key than the one that is known.
    ChangedKey(String),
    /// The bastion does not take the key, or not this user.
    Login(String),
    /// The bastion makes no connections for us.
    Forbidden(String),
    /// The bastion cannot reach the server.
    Unreachable(String),
    /// The tunnel stood, and is gone.
    Ended(String),
    /// `ssh` says something else.
    Other(String),
}

impl fmt::Display for TunnelCause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotInstalled => {
                f.write_str("ssh is not installed; install the package openssh-client")
            }
            Self::NotStarted(text) => write!(f, "ssh cannot be started: {text}"),
            Self::UnknownHost(text) => write!(
                f,
                "the bastion's name is not known ({text}); check `ssh.host`, and that this machine can resolve it"
            ),
            Self::Refused => f.write_str(
                "the bastion refused the connection: nobody listens there; check `ssh.host` and `ssh.port`, and that sshd runs",
            ),
            Self::Timeout => f.write_str(
                "no answer from the bastion in time; check `ssh.host` and `ssh.port`, and that this machine may reach it",
            ),
            Self::UnknownKey(command) => write!(
                f,
                "the bastion's host key is not known; show it with `{command}`, compare it with what the bastion's administrator says, and add it to the known hosts"
            ),
            Self::ChangedKey(text) => write!(
                f,
                "the bastion's host key is not the one that is known: somebody may be in the middle ({text}); ask the bastion's administrator before you change the known hosts"
            ),
            Self::Login(text) => write!(
                f,
                "the bastion refused the login ({text}); check `ssh.user` and `ssh.identity_file`, that the key has no passphrase or is in an agent, and that the bastion knows its public half"
            ),
            Self::Forbidden(text) => write!(
                f,
                "the bastion lets nobody through to the server ({text}); check AllowTcpForwarding and PermitOpen of its sshd, and the options of the key there"
            ),
            Self::Unreachable(text) => write!(
                f,
                "the bastion cannot reach the server ({text}); check host and port, as the bastion sees them, and that the server runs"
            ),
            Self::Ended(text) => write!(f, "ssh ended: {text}"),
            Self::Other(text) => write!(f, "ssh failed: {text}"),
        }
    }
}

/// A way to one server through a bastion. Started when it is first needed, and anew when it ended; shared by all clones.
/// The last of them that is dropped ends it.
#[derive(Debug, Clone)]
pub struct Tunnel {
    bastion: Bastion,
    host: String,
    port: u16,
    /// Held by whoever starts.
    starting: Arc<tokio::sync::Mutex<()>>,
    forward: Arc<Mutex<Option<Arc<Forward>>>>,
}

impl Tunnel {
    /// Describes a way to a server, as the bastion sees it.
    pub fn new(bastion: Bastion, host: &str, port: u16) -> Self {
        let (starting, forward) = (Arc::default(), Arc::default());
        Self { bastion, host: host.to_owned(), port, starting, forward }
    }

    /// Opens it, unless it is open. Returns its near end.
    pub(super) async fn open(&self) -> Result<Arc<Forward>, TunnelError> {
        let _started_once = self.starting.lock().await;
        if let Some(open) = self.present() {
            return Ok(open);
        }
        let failed = |cause| self.error(cause);
        let mut tries = 1;
        let forward = loop {
            match Forward::start(self).await {
                Ok(forward) => break Arc::new(forward),
                Err(Failure::PortTaken) if tries < START_TRIES => tries += 1,
                Err(Failure::PortTaken) => {
                    return Err(failed(TunnelCause::Other("no local port stays free".to_owned())));
                }
                Err(Failure::Cause(cause)) => return Err(failed(cause)),
            }
        };
        *self.forward.lock().unwrap_or_else(PoisonError::into_inner) = Some(forward.clone());
        Ok(forward)
    }

    /// Returns its near end, if it is open.
    pub(super) fn present(&self) -> Option<Arc<Forward>> {
        let forward = self.forward.lock().unwrap_or_else(PoisonError::into_inner).clone();
        forward.filter(|forward| forward.is_running())
    }

    /// Says how it ended, if it was open and is not any more. After a failure that this may explain.
    pub(super) async fn end(&self) -> Option<TunnelError> {
        let forward = self.forward.lock().unwrap_or_else(PoisonError::into_inner).clone()?;
        forward.end().await.map(|said| self.error(TunnelCause::Ended(said)))
    }

    pub(super) fn error(&self, cause: TunnelCause) -> TunnelError {
        TunnelError { bastion: self.bastion.host.clone(), cause }
    }

    /// Returns what `ssh` is told. Whatever a user set is the value of an option, or stands behind the last of them.
    fn arguments(&self, local_port: u16) -> Result<Vec<OsString>, TunnelCause> {
        let Bastion { host, user, port, identity_file, known_hosts_file } = &self.bastion;
        for host in [host, &self.host] {
            if !is_host(host) {
                return Err(TunnelCause::NotStarted(format!("{host:?} is no host")));
            }
        }
        let mut arguments: Vec<OsString> = ["-N", "-T", "-a", "-x"].map(OsString::from).into();
        let mut add = |option: &str, value: OsString| arguments.extend([option.into(), value]);
        for option in OPTIONS {
            add("-o", option.into());
        }
        add("-o", format!("ConnectTimeout={CONNECT_SECONDS}").into());
        for path in [known_hosts_file, identity_file].into_iter().flatten() {
            if !path.to_str().is_some_and(is_plain_path) {
                let text = format!("{} is no plain absolute path", path.display());
                return Err(TunnelCause::NotStarted(text));
            }
        }
        if let Some(file) = known_hosts_file {
            add("-o", format!("UserKnownHostsFile=\"{}\"", file.display()).into());
        }
        if let Some(file) = identity_file {
            add("-i", file.into());
            add("-o", "IdentitiesOnly=yes".into());
        }
        if let Some(port) = port {
            add("-p", port.to_string().into());
        }
        if let Some(user) = user {
            add("-l", user.into());
        }
        add("-L", format!("127.0.0.1:{local_port}:[{}]:{}", self.host, self.port).into());
        add("--", host.into());
        Ok(arguments)
    }

    /// Finds the cause in what `ssh` said before it ended.
    fn cause(&self, said: &Said) -> Failure {
        let has = |words: &str| said.lines().any(|line| line.contains(words));
        let Bastion { host, port, .. } = &self.bastion;
        Failure::Cause(if has("Address already in use") {
            return Failure::PortTaken;
        } else if has("IDENTIFICATION HAS CHANGED") {
            TunnelCause::ChangedKey(said.with(&["SHA256:", "Offending"]))
        } else if has("Host key verification failed") {
            let port = port.map(|port| format!(" -p {port}")).unwrap_or_default();
            TunnelCause::UnknownKey(format!("ssh-keyscan{port} {host}"))
        } else if has("Could not resolve hostname") {
            TunnelCause::UnknownHost(said.text())
        } else if has("Permission denied (") || has("Too many authentication failures") {
            TunnelCause::Login(said.text())
        } else if has("port") && has("Connection refused") {
            TunnelCause::Refused
        } else if has("timed out") {
            TunnelCause::Timeout
        } else {
            TunnelCause::Other(said.text())
        })
    }
}

/// Why a start failed.
enum Failure {
    /// Somebody was faster; another port may do.
    PortTaken,
    Cause(TunnelCause),
}

impl From<TunnelCause> for Failure {
    fn from(cause: TunnelCause) -> Self {
        Self::Cause(cause)
    }
}

/// A running `ssh`, and where it listens. Killed with all that it started, and waited for, when this is dropped.
#[derive(Debug)]
pub(super) struct Forward {
    child: Child,
    /// On 127.0.0.1.
    pub(super) port: u16,
    said: watch::Receiver<Said>,
    /// Closed by our end, whatever that is.
    _ours: Option<ChildStdin>,
}

impl Drop for Forward {
    fn drop(&mut self) {
        // Its end was never waited for, so the number is still its own.
        if let Some(group) = Pid::from_raw(self.child.id().cast_signed()) {
            match kill_process_group(group, Signal::KILL) {
                // One that ended meanwhile needs no signal.
                Ok(()) | Err(_) => {}
            }
        }
        if let Err(error) = self.child.wait() {
            tracing::debug!(%error, "the end of ssh was not seen");
        }
    }
}

impl Forward {
    async fn start(tunnel: &Tunnel) -> Result<Self, Failure> {
        let failed = |error: io::Error| TunnelCause::NotStarted(error.to_string());
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).map_err(failed)?;
        let port = listener.local_addr().map_err(failed)?.port();
        drop(listener);
        let mut command = Command::new("ssh");
        command.env_clear().envs([("LC_ALL", "C"), ("SHELL", "/bin/sh")]);
        for name in ["PATH", "HOME", "USER", "LOGNAME", "LD_LIBRARY_PATH", "SSH_AUTH_SOCK"] {
            if let Some(value) = std::env::var_os(name) {
                command.env(name, value);
            }
        }
        command.args(tunnel.arguments(port)?).process_group(0);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => TunnelCause::NotInstalled,
            _ => failed(error),
        })?;
        let (stdin, stdout) = (child.stdin.take(), child.stdout.take());
        let said = listen(child.stderr.take());
        // From here on, whatever ends this ends `ssh`.
        let forward = Self { child, port, said, _ours: stdin };
        let stdout = stdout.map(ChildStdout::from_std).transpose().map_err(failed)?;
        let is_ready = async {
            let mut first = [0];
            match stdout {
                Some(mut stdout) => stdout.read(&mut first).await.is_ok_and(|read| read > 0),
                None => false,
            }
        };
        match timeout(START_TIMEOUT, is_ready).await {
            Ok(true) => Ok(forward),
            Ok(false) => {
                forward.end().await;
                Err(tunnel.cause(&forward.said.borrow()))
            }
            Err(_elapsed) => Err(TunnelCause::Timeout.into()),
        }
    }

    fn is_running(&self) -> bool {
        // Only looked at: while nobody waits for it, nothing else gets its number.
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
        let pid = Pid::from_raw(self.child.id().cast_signed());
        pid.is_some_and(|pid| matches!(waitid(WaitId::Pid(pid), options), Ok(None)))
    }

    /// Says what `ssh` said, if it ended.
    async fn end(&self) -> Option<String> {
        let mut said = self.said.clone();
        // Its connections close a moment before it is gone.
        let gone = timeout(MOMENT, async { while said.changed().await.is_ok() {} }).await;
        (gone.is_ok() || !self.is_running()).then(|| self.said.borrow().text())
    }

    /// Returns how much was said until now.
    pub(super) fn mark(&self) -> u64 {
        self.said.borrow().count()
    }

    /// Says why the bastion did not connect us, if it did not since `mark`.
    pub(super) async fn refusal(&self, mark: u64) -> Option<TunnelCause> {
        let mut said = self.said.clone();
        let find = |said: &Said| said.since(mark).find_map(refusal);
        // `ssh` says it before it closes the connection.
        let heard = said.wait_for(|said| find(said).is_some());
        timeout(MOMENT, heard).await.ok()?.ok().and_then(|said| find(&said))
    }
}

/// Reads `channel 3: open failed: connect failed: Connection refused`.
fn refusal(line: &str) -> Option<TunnelCause> {
    let (_, reason) = line.split_once(": open failed: ")?;
    Some(match reason.strip_prefix("connect failed: ") {
        Some(reason) => TunnelCause::Unreachable(reason.to_owned()),
        None => TunnelCause::Forbidden(reason.to_owned()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tunnel(host: &str, server: &str) -> Tunnel {
        let bastion = Bastion {
            host: host.to_owned(),
            user: Some("-oProxyCommand=evil".to_owned()),
            port: Some(2222),
            identity_file: Some("/with space/id".into()),
            known_hosts_file: Some("/with space/known".into()),
        };
        Tunnel::new(bastion, server, 5432)
    }

    #[test]
    fn what_a_user_sets_is_never_an_option() {
        let arguments = tunnel("bastion.example.com", "fd00::1").arguments(4000).unwrap();
        let texts: Vec<&str> = arguments.iter().filter_map(|argument| argument.to_str()).collect();
        let end = ["-L", "127.0.0.1:4000:[fd00::1]:5432", "--", "bastion.example.com"];
        assert_eq!(texts[texts.len() - 4..], end);
        let user = texts.iter().position(|text| *text == "-oProxyCommand=evil").unwrap();
        assert_eq!(texts[user - 1], "-l");
        assert!(texts.contains(&"UserKnownHostsFile=\"/with space/known\""), "{texts:?}");
        for evil in ["-oProxyCommand=evil", "ssh://x", "a b", "", "a/b", "a@b", "$(x)"] {
            assert!(tunnel(evil, "db").arguments(4000).is_err(), "{evil}");
            assert!(tunnel("bastion", evil).arguments(4000).is_err(), "{evil}");
        }
    }

    #[test]
    fn paths_that_ssh_would_expand_are_refused() {
        for evil in ["relative", "/a\" /b", "/%h", "/${HOME}", "/a\nb", "none"] {
            let mut tunnel = tunnel("bastion", "db");
            tunnel.bastion.known_hosts_file = Some(evil.into());
            assert!(tunnel.arguments(4000).is_err(), "{evil}");
        }
    }
}
