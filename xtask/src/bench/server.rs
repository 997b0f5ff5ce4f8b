//! A real S3 server on the loopback interface: `rclone serve s3`.

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Duration;

use super::mib_below;
use anyhow::{Context as _, ensure};

pub(crate) const KEY_ID: &str = "bench-key";
pub(crate) const SECRET: &str = "bench-secret-of-some-length";
pub(crate) const BUCKET: &str = "bench";

/// How often the port is tried before the server is given up: about ten seconds.
const TRIES: u32 = 200;

/// A server that ends when it is dropped.
pub(crate) struct Server {
    child: Child,
    pub(crate) endpoint: String,
    bucket: PathBuf,
}

impl Server {
    /// Starts a server over an empty directory. Returns when it answers.
    pub(crate) fn start(rclone: &Path, directory: &Path) -> anyhow::Result<Self> {
        let bucket = directory.join(BUCKET);
        std::fs::create_dir_all(&bucket)?;
        let address = free_address()?;
        let child = Command::new(rclone)
            .args(["serve", "s3", "--addr", &address.to_string()])
            .args(["--auth-key", &format!("{KEY_ID},{SECRET}")])
            .arg(directory)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context("cannot start rclone")?;
        let mut server = Self { child, endpoint: format!("http://{address}"), bucket };
        for _ in 0..TRIES {
            ensure!(server.child.try_wait()?.is_none(), "rclone serve s3 ended at once");
            if TcpStream::connect(address).is_ok() {
                return Ok(server);
            }
            thread::sleep(Duration::from_millis(50));
        }
        anyhow::bail!("rclone serve s3 does not answer on {address}")
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Returns how much lies below a prefix.
    pub(crate) fn stored_mib(&self, prefix: &str) -> anyhow::Result<f64> {
        mib_below(&self.bucket.join(prefix))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended already: then there is nothing to kill, and waiting only reaps it.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

fn free_address() -> anyhow::Result<SocketAddr> {
    Ok(TcpListener::bind(("127.0.0.1", 0))?.local_addr()?)
}
