//! Comparisons with what a user would do instead, side by side in one run.

pub(crate) mod archives;
pub(crate) mod course;
mod database;
pub(crate) mod files;
mod measure;
pub(crate) mod mysql;
pub(crate) mod postgres;
mod server;
mod subject;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, ensure};

use self::measure::Cost;
use self::server::{BUCKET, KEY_ID, SECRET, Server};

/// What every comparison is told.
#[derive(Debug, clap::Args)]
pub(crate) struct Common {
    /// Runs of each, alternating; the medians are shown
    #[arg(long, default_value_t = 3)]
    runs: usize,
    /// A built `backstay`, instead of building one for release
    #[arg(long, value_name = "PATH")]
    program: Option<PathBuf>,
}

/// Returns the program to measure: the given one, or one that is built for release.
pub(crate) fn backstay(given: Option<&Path>, root: &Path) -> anyhow::Result<PathBuf> {
    if let Some(program) = given {
        return Ok(fs::canonicalize(program)?);
    }
    let arguments = ["build", "--release", "--package", "backstay"];
    let status = Command::new("cargo").args(arguments).current_dir(root).status()?;
    ensure!(status.success(), "cargo build failed: {status}");
    let target =
        std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), PathBuf::from);
    fs::canonicalize(target.join("release/backstay")).context("cargo built no backstay")
}

/// Lets a command find programs in these directories first.
fn with_tools(command: &mut Command, directories: &[&Path]) {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let first = directories.iter().map(|directory| directory.to_path_buf());
    let paths = first.chain(std::env::split_paths(&path));
    command.env("PATH", std::env::join_paths(paths).unwrap_or(path.clone()));
}

/// Sets all that rclone, restic and Backstay read of a storage from their environment.
fn s3_environment(command: &mut Command, server: &Server, prefix: &str, scratch: &Path) {
    let endpoint = &server.endpoint;
    let repository = format!("s3:{endpoint}/{BUCKET}/{prefix}");
    command.envs([("AWS_ACCESS_KEY_ID", KEY_ID), ("AWS_SECRET_ACCESS_KEY", SECRET)]);
    command.envs([("RESTIC_REPOSITORY", repository.as_str()), ("RESTIC_PASSWORD", "bench")]);
    command.env("RESTIC_CACHE_DIR", scratch.join("restic-cache"));
    command.envs([("RCLONE_CONFIG_BENCH_TYPE", "s3"), ("RCLONE_CONFIG_BENCH_PROVIDER", "Other")]);
    command.env("RCLONE_CONFIG_BENCH_ENDPOINT", endpoint);
    command.env("RCLONE_CONFIG_BENCH_ACCESS_KEY_ID", KEY_ID);
    command.env("RCLONE_CONFIG_BENCH_SECRET_ACCESS_KEY", SECRET);
    command.env("RCLONE_CONFIG_BENCH_FORCE_PATH_STYLE", "true").env("RCLONE_LOG_LEVEL", "ERROR");
}

/// Returns the size of all files below a directory.
fn mib_below(directory: &Path) -> anyhow::Result<f64> {
    let mut waiting = vec![directory.to_owned()];
    let mut bytes = 0;
    while let Some(path) = waiting.pop() {
        if path.is_dir() {
            for entry in std::fs::read_dir(&path)? {
                waiting.push(entry?.path());
            }
        } else {
            bytes += path.metadata()?.len();
        }
    }
    Ok(bytes as f64 / f64::from(1 << 20))
}

fn print_head() {
    println!(
        "| what | how | wall s | ratio to the best other | client CPU s | server CPU s | peak MiB | stored MiB |"
    );
    println!("|---|---|---:|---:|---:|---:|---:|---:|");
}

/// Prints the costs of all subjects for one thing to do.
fn print_rows(what: &str, rows: &[(&str, Cost)]) {
    for (name, cost) in rows {
        let others = rows.iter().filter(|(other, _)| other != name);
        let best = others.map(|(_, other)| other.wall_secs).fold(f64::INFINITY, f64::min);
        println!(
            "| {what} | {name} | {:.2} | {:.2} | {:.2} | {:.2} | {:.0} | {:.1} |",
            cost.wall_secs,
            cost.wall_secs / best,
            cost.client_cpu_secs,
            cost.server_cpu_secs,
            cost.peak_mib,
            cost.stored_mib
        );
    }
}

/// A directory that is removed at the end.
struct Scratch(PathBuf);

impl Scratch {
    /// Makes the directory, without what an interrupted run left in it.
    fn create(path: &Path) -> anyhow::Result<Self> {
        if path.exists() {
            fs::remove_dir_all(path)?;
        }
        fs::create_dir_all(path)?;
        Ok(Self(path.to_owned()))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // What stays behind is removed by the next run.
        drop(fs::remove_dir_all(&self.0));
    }
}
