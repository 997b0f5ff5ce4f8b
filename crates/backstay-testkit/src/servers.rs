//! S3 servers that other people wrote, as processes of their own: `rclone serve s3`, and moto with its permissions in force.

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, ensure};

/// The bucket that is there from the start.
pub const BUCKET: &str = "app-backups";
/// How often a server is asked before it is given up: about a minute, since a loaded machine starts Python slowly.
const TRIES: u32 = 3000;

/// A running server; it ends when this is dropped.
#[derive(Debug)]
pub struct Server {
    child: Child,
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
        let address = free_address()?;
        let mut command = Command::new(tool("rclone")?);
        command.args(["serve", "s3", "--addr", &address.to_string()]);
        command.args(["--auth-key", &format!("{access_key},{secret_key}")]);
        // A person's own settings have no business here.
        command.args(["--config", "/dev/null"]).arg(directory.path());
        let child = start(command, address)?;
        Ok(Self { child, endpoint: format!("http://{address}"), access_key, secret_key, directory })
    }

    /// Starts moto with one user, whose policy allows just these actions on one bucket.
    pub fn moto(actions: &[&str]) -> anyhow::Result<Self> {
        let directory = tempfile::tempdir()?;
        let address = free_address()?;
        let mut command = Command::new(tool("python3")?);
        let script = directory.path().join("serve.py");
        std::fs::write(&script, MOTO)?;
        let (keys, port) = (directory.path().join("keys"), address.port().to_string());
        command.arg(&script).args([&port, BUCKET, &actions.join(",")]).arg(&keys);
        let child = start(command, address)?;
        let text = std::fs::read_to_string(&keys).context("moto made no keys")?;
        let (access_key, secret_key) = text.trim().split_once(' ').context("moto made odd keys")?;
        Ok(Self {
            child,
            endpoint: format!("http://{address}"),
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

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended already: then there is nothing to kill, and waiting only reaps it.
        drop(self.child.kill());
        drop(self.child.wait());
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

fn start(mut command: Command, address: SocketAddr) -> anyhow::Result<Child> {
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let mut child = command.spawn().with_context(|| format!("cannot start {command:?}"))?;
    for _ in 0..TRIES {
        if TcpStream::connect(address).is_ok() {
            return Ok(child);
        }
        if child.try_wait()?.is_some() {
            break;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    drop(child.kill());
    drop(child.wait());
    anyhow::bail!("{command:?} does not answer on {address}")
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

fn free_address() -> anyhow::Result<SocketAddr> {
    Ok(TcpListener::bind(("127.0.0.1", 0))?.local_addr()?)
}
