//! S3 servers that other people wrote, as processes of their own: `rclone serve s3`, and moto with its permissions in force.

use std::net::TcpStream;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context as _, ensure};
use rustix::process::Signal;

use crate::daemon::{Daemon, Port, wait_until};

/// The bucket that is there from the start.
pub const BUCKET: &str = "app-backups";

/// A running server; it ends when this is dropped.
#[derive(Debug)]
pub struct Server {
    _daemon: Daemon,
    /// Its URL.
    pub endpoint: String,
    /// Who may use it.
    pub access_key: String,
    /// The secret of the one who may.
    pub secret_key: String,
    directory: tempfile::TempDir,
}

impl Server {
    /// Starts `rclone serve s3` over an empty bucket.
    pub fn rclone() -> anyhow::Result<Self> {
        let directory = tempfile::tempdir()?;
        std::fs::create_dir(directory.path().join(BUCKET))?;
        let (access_key, secret_key) = ("rclone-key".to_owned(), "rclone-secret-key".to_owned());
        let port = Port::reserve();
        let address = format!("127.0.0.1:{}", port.number);
        let mut command = Command::new(tool("rclone")?);
        command.args(["serve", "s3", "--addr", &address]);
        command.args(["--auth-key", &format!("{access_key},{secret_key}")]);
        // A person's own settings have no business here.
        command.args(["--config", "/dev/null"]).arg(directory.path());
        let daemon = start(port, command);
        Ok(Self {
            _daemon: daemon,
            endpoint: format!("http://{address}"),
            access_key,
            secret_key,
            directory,
        })
    }

    /// Starts moto with one user, whose policy allows just these actions on one bucket.
    pub fn moto(actions: &[&str]) -> anyhow::Result<Self> {
        let directory = tempfile::tempdir()?;
        let port = Port::reserve();
        let mut command = Command::new(tool("python3")?);
        let script = directory.path().join("serve.py");
        std::fs::write(&script, MOTO)?;
        let (keys, number) = (directory.path().join("keys"), port.number.to_string());
        let endpoint = format!("http://127.0.0.1:{number}");
        command.arg(&script).args([&number, BUCKET, &actions.join(",")]).arg(&keys);
        let daemon = start(port, command);
        let text = std::fs::read_to_string(&keys).context("moto made no keys")?;
        let (access_key, secret_key) = text.trim().split_once(' ').context("moto made odd keys")?;
        Ok(Self {
            _daemon: daemon,
            endpoint,
            access_key: access_key.to_owned(),
            secret_key: secret_key.to_owned(),
            directory,
        })
    }

    /// Returns the directory that `rclone serve s3` keeps the bucket in.
    pub fn bucket(&self) -> PathBuf {
        self.directory.path().join(BUCKET)
    }
}

/// Makes bucket, user, policy and key while nobody checks, then serves with every request checked.
const MOTO: &str = r#"
import json, sys
import boto3
from moto import mock_aws, settings
from moto.core.authorization import ActionAuthenticatorMixin
from moto.iam.access_control import IAMRequestBase
from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server

port, bucket, actions, keys = int(sys.argv[1]), sys.argv[2], sys.argv[3].split(","), sys.argv[4]

def statement(action):
    arn = "arn:aws:s3:::" + bucket
    return {"Effect": "Allow", "Action": action, "Resource": arn if action == "s3:ListBucket" else arn + "/*"}

with mock_aws():
    boto3.client("s3", region_name="us-east-1").create_bucket(Bucket=bucket)
    iam = boto3.client("iam", region_name="us-east-1")
    iam.create_user(UserName="backups")
    policy = {"Version": "2012-10-17", "Statement": [statement(action) for action in actions]}
    iam.put_user_policy(UserName="backups", PolicyName="backups", PolicyDocument=json.dumps(policy))
    key = iam.create_access_key(UserName="backups")["AccessKey"]
    with open(keys, "w") as file:
        file.write(key["AccessKeyId"] + " " + key["SecretAccessKey"])
    # It signs the decoded query, so that no request with a slash in it passes. Permissions are what it is here for.
    IAMRequestBase.check_signature = lambda self: None
    settings.INITIAL_NO_AUTH_ACTION_COUNT = 0
    ActionAuthenticatorMixin.request_count = 0
    make_server("127.0.0.1", port, DomainDispatcherApplication(create_backend_app), threaded=True).serve_forever()
"#;

fn start(port: Port, command: Command) -> Daemon {
    let number = port.number;
    let daemon = Daemon::start(port, command, Signal::KILL);
    wait_until("an S3 server answers", || TcpStream::connect(("127.0.0.1", number)).is_ok());
    daemon
}

/// Finds a program that `cargo xtask test` installed.
fn tool(name: &str) -> anyhow::Result<PathBuf> {
    let tools = std::env::var_os("BACKSTAY_TOOLS");
    let tools =
        tools.context("BACKSTAY_TOOLS is not set: run the tests with `cargo xtask test`")?;
    let program = PathBuf::from(tools).join(name);
    ensure!(
        program.exists(),
        "{} is missing: run the tests with `cargo xtask test`",
        program.display()
    );
    Ok(program)
}
