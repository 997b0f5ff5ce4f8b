//! A machine of its own: home directory, configuration, and the program.

use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use backstay_testkit::s3::{ACCESS_KEY, BUCKET, S3Server, SECRET_KEY};
use backstay_testkit::servers::{self, Server};

pub(crate) struct Shell {
    pub(crate) dir: tempfile::TempDir,
}

/// Returns the most memory that a program had so far, in KiB; none once it has ended.
pub(crate) fn peak_kib_of(pid: u32) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    peak.trim().strip_suffix(" kB")?.parse().ok()
}

pub(crate) const PASSPHRASE: &str = "correct horse battery";

impl Shell {
    /// A machine that backs up `shop` (a tree) and `crm` (a database) to a bucket.
    pub(crate) fn with_bucket(server: &S3Server) -> Self {
        let shell = Self::bare();
        shell.configure(&format!(
            "provider = 's3'\nbucket = '{BUCKET}'\nendpoint = '{}'\naccess_key_id = '${{KEY_ID}}'\nsecret_access_key = '${{SECRET}}'\n",
            server.endpoint
        ));
        shell
    }

    /// The same with a bucket of a server that somebody else wrote.
    pub(crate) fn with_server(server: &Server) -> Self {
        let shell = Self::bare();
        shell.configure(&format!(
            "provider = 's3'\nbucket = '{}'\nendpoint = '{}'\naccess_key_id = '{}'\nsecret_access_key = '{}'\n",
            servers::BUCKET,
            server.endpoint,
            server.access_key,
            server.secret_key
        ));
        shell
    }

    /// The same with a directory.
    pub(crate) fn with_directory() -> Self {
        let shell = Self::bare();
        shell.configure(&format!(
            "provider = 'local'\npath = '{}'\n",
            shell.path("storage").display()
        ));
        shell
    }

    /// A machine that backs up a tree, `shop` with one file, to a directory, with more settings of that source.
    pub(crate) fn with_tree(more: &str) -> Self {
        let shell = Self::bare();
        std::fs::create_dir(shell.path("shop")).unwrap();
        std::fs::write(shell.path("shop/a.txt"), "before").unwrap();
        shell.set_config(format!(
            "[storages.main]\nprovider = 'local'\npath = '{}'\n\n[sources.shop]\nkind = 'files'\npath = '{}'\nstorage = 'main'\n{more}\n",
            shell.path("storage").display(),
            shell.path("shop").display(),
        ));
        shell
    }

    /// A machine with nothing on it.
    pub(crate) fn bare() -> Self {
        Self { dir: tempfile::tempdir().unwrap() }
    }

    fn configure(&self, storage: &str) {
        let (shop, crm) = (self.path("shop"), self.path("crm.db"));
        let text = format!(
            "[storages.main]\n{storage}\n[sources.shop]\nkind = 'files'\npath = '{}'\nstorage = 'main'\n\n\
             [sources.crm]\nkind = 'sqlite'\npath = '{}'\nstorage = 'main'\n",
            shop.display(),
            crm.display()
        );
        self.set_config(text);
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) fn config(&self) -> String {
        std::fs::read_to_string(self.path("backstay.toml")).unwrap()
    }

    pub(crate) fn set_config(&self, config: impl AsRef<[u8]>) {
        std::fs::write(self.path("backstay.toml"), config).unwrap();
    }

    /// Replaces a text of the configuration that must be there.
    pub(crate) fn edit_config(&self, from: &str, to: &str) {
        let config = self.config();
        assert!(config.contains(from), "{from}: {config}");
        self.set_config(config.replace(from, to));
    }

    pub(crate) fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_backstay"));
        command.args(words).current_dir(self.dir.path()).env_clear().stdin(Stdio::null());
        command.env("HOME", self.dir.path()).env("BACKSTAY_HOME", self.path("home"));
        command
            .env("KEY_ID", ACCESS_KEY)
            .env("SECRET", SECRET_KEY)
            .env("BACKSTAY_KIT_PASSPHRASE", PASSPHRASE);
        command.env("AWS_ACCESS_KEY_ID", ACCESS_KEY).env("AWS_SECRET_ACCESS_KEY", SECRET_KEY);
        command
    }

    /// The same by somebody who is not root, for whom all is not readable; the program lies where he may run it.
    pub(crate) fn command_of_nobody(&self, words: &[&str]) -> Command {
        let anybody = std::fs::Permissions::from_mode(0o777);
        std::fs::set_permissions(self.dir.path(), anybody).unwrap();
        let program = self.path("backstay");
        std::fs::copy(env!("CARGO_BIN_EXE_backstay"), &program).unwrap();
        let mut command = Command::new(&program);
        command.args(words).current_dir(self.dir.path()).stdin(Stdio::null());
        command.env("BACKSTAY_HOME", self.path("home"));
        if rustix::process::geteuid().is_root() {
            command.uid(65534).gid(65534);
        }
        command
    }

    pub(crate) fn run(&self, words: &[&str]) -> Output {
        self.command(words).output().unwrap()
    }

    /// Runs a command that must end with this code. Returns its standard output.
    pub(crate) fn ends(&self, code: i32, words: &[&str]) -> String {
        let output = self.run(words);
        let (out, err) =
            (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert_eq!(output.status.code(), Some(code), "backstay {words:?}\n{out}\n{err}");
        out.into_owned()
    }

    /// Runs a command that must end with this code. Returns its standard error.
    pub(crate) fn complains(&self, code: i32, words: &[&str]) -> String {
        let output = self.run(words);
        let err = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(code), "backstay {words:?}\n{err}");
        err
    }

    pub(crate) fn json(&self, words: &[&str]) -> serde_json::Value {
        let words: Vec<&str> = words.iter().copied().chain(["--json"]).collect();
        serde_json::from_str(&self.ends(0, &words)).unwrap()
    }
}

/// Kills a process after a time. Returns whether it was still at work.
pub(crate) fn kill_after(child: &mut Child, time: Duration) -> bool {
    let moment = Instant::now() + time;
    while Instant::now() < moment {
        if child.try_wait().unwrap().is_some() {
            return false;
        }
        // Short beside any run that is killed.
        std::thread::sleep(Duration::from_millis(1));
    }
    let is_at_work = child.try_wait().unwrap().is_none();
    child.kill().unwrap();
    child.wait().unwrap();
    is_at_work
}

/// Is a byte sequence in any file below a directory?
pub(crate) fn contains(directory: &Path, needle: &[u8]) -> bool {
    backstay_testkit::tree::files_below(directory).unwrap().iter().any(|file| {
        std::fs::read(file).unwrap().windows(needle.len()).any(|window| window == needle)
    })
}

/// Copies one directory to another place, in the place of what is there.
pub(crate) fn copy(from: &Path, to: &Path) {
    let script = "rm -rf -- \"$2\" && cp -a -- \"$1\" \"$2\"";
    let status = Command::new("sh").args(["-c", script, "sh"]).arg(from).arg(to).status();
    assert!(status.unwrap().success());
}
