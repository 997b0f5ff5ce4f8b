//! What a command costs: wall time, processor time of both ends, memory.

use std::os::unix::process::CommandExt as _;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};

/// The kernel's unit of processor time, which is the same on every Linux.
const TICKS_PER_SEC: f64 = 100.0;
/// The kernel's pages on the machines that we measure on.
const PAGE_KIB: u64 = 4;
const SAMPLE_EVERY: Duration = Duration::from_millis(5);

/// What one command cost.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Cost {
    pub(crate) wall_secs: f64,
    pub(crate) client_cpu_secs: f64,
    pub(crate) server_cpu_secs: f64,
    /// Of all its processes together, sampled.
    pub(crate) peak_mib: f64,
    pub(crate) stored_mib: f64,
}

/// Runs a command to its end, which must be success.
///
/// The stored bytes are left for the caller, who knows where they are.
#[expect(clippy::disallowed_methods, reason = "time is what this measures")]
pub(crate) fn measure(command: &mut Command, server: u32) -> anyhow::Result<Cost> {
    let (client_before, server_before) = (ended_children_secs()?, process_secs(server)?);
    let begun = Instant::now();
    let mut child = command
        .process_group(0)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .spawn()
        .with_context(|| format!("cannot start {command:?}"))?;
    let mut peak_kib = 0;
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        peak_kib = peak_kib.max(family_kib(child.id())?);
        thread::sleep(SAMPLE_EVERY);
    };
    let wall_secs = begun.elapsed().as_secs_f64();
    if !status.success() {
        bail!("{command:?} ended with {status}");
    }
    Ok(Cost {
        wall_secs,
        client_cpu_secs: ended_children_secs()? - client_before,
        server_cpu_secs: process_secs(server)? - server_before,
        peak_mib: peak_kib as f64 / 1024.0,
        stored_mib: 0.0,
    })
}

/// Returns the medians of several costs, each of its own column.
pub(crate) fn medians(costs: &[Cost]) -> Cost {
    let median = |column: fn(&Cost) -> f64| {
        let mut values: Vec<f64> = costs.iter().map(column).collect();
        values.sort_by(f64::total_cmp);
        values.get(values.len() / 2).copied().unwrap_or_default()
    };
    Cost {
        wall_secs: median(|c| c.wall_secs),
        client_cpu_secs: median(|c| c.client_cpu_secs),
        server_cpu_secs: median(|c| c.server_cpu_secs),
        peak_mib: median(|c| c.peak_mib),
        stored_mib: median(|c| c.stored_mib),
    }
}

/// Returns the numbers of a `stat` file that follow the program's name, which may hold blanks.
fn stat_fields(text: &str) -> Vec<u64> {
    let rest = text.rsplit_once(')').map_or("", |(_, rest)| rest);
    rest.split_whitespace().map(|field| field.parse().unwrap_or_default()).collect()
}

/// Sums two fields of a `stat` file, counted as the manual does: the name is number 2.
fn secs(text: &str, first: usize) -> f64 {
    let ticks: u64 = stat_fields(text).iter().skip(first - 3).take(2).sum();
    ticks as f64 / TICKS_PER_SEC
}

fn ended_children_secs() -> anyhow::Result<f64> {
    Ok(secs(&std::fs::read_to_string("/proc/self/stat")?, 16))
}

fn process_secs(pid: u32) -> anyhow::Result<f64> {
    Ok(secs(&std::fs::read_to_string(format!("/proc/{pid}/stat"))?, 14))
}

/// Returns the resident memory of a process and of all that it started. Processes that end meanwhile count as nothing.
fn family_kib(first: u32) -> anyhow::Result<u64> {
    // Process, its parent, its pages.
    let mut processes = Vec::new();
    for entry in std::fs::read_dir("/proc")? {
        let entry = entry?;
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<u64>().ok()) else {
            continue;
        };
        let Ok(text) = std::fs::read_to_string(entry.path().join("stat")) else { continue };
        let fields = stat_fields(&text);
        if let (Some(parent), Some(pages)) = (fields.get(1), fields.get(21)) {
            processes.push((pid, *parent, *pages));
        }
    }
    let (mut family, mut at) = (vec![u64::from(first)], 0);
    while let Some(member) = family.get(at).copied() {
        family.extend(
            processes.iter().filter(|(_, parent, _)| *parent == member).map(|(pid, ..)| *pid),
        );
        at += 1;
    }
    let pages: u64 =
        processes.iter().filter(|(pid, ..)| family.contains(pid)).map(|(.., pages)| pages).sum();
    Ok(pages * PAGE_KIB)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_that_fails_is_no_measurement() {
        assert!(measure(&mut Command::new("false"), std::process::id()).is_err());
    }

    #[test]
    fn processor_time_and_memory_of_a_busy_command_are_seen() {
        let script = "x=$(head -c 20000000 /dev/zero | tr '\\0' 'x'); echo \"$x\" | wc -c";
        let cost = measure(Command::new("sh").args(["-c", script]), std::process::id());
        let cost = cost.expect("a shell counts bytes");
        assert!(cost.client_cpu_secs > 0.0 && cost.wall_secs > 0.0, "{cost:?}");
        assert!(cost.peak_mib > 15.0, "{cost:?}");
    }

    #[test]
    fn the_median_is_not_moved_by_one_slow_run() {
        let cost = |wall_secs| Cost {
            wall_secs,
            client_cpu_secs: 0.0,
            server_cpu_secs: 0.0,
            peak_mib: 0.0,
            stored_mib: 0.0,
        };
        let median = medians(&[cost(2.0), cost(90.0), cost(1.0)]);
        assert!((median.wall_secs - 2.0).abs() < f64::EPSILON);
    }
}
