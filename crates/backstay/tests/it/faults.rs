//! Trouble on the way to the storage and on this machine: bodies cut and flipped, processes killed at any moment, full disks.

use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};

use backstay_testkit::s3::{Call, Fault, S3Server};
use backstay_testkit::tree;
use http::Method;

use crate::shell::{Shell, kill_after};

/// A machine with one backup in the bucket.
fn with_backup() -> (S3Server, Shell) {
    let server = S3Server::start().unwrap();
    let shell = Shell::with_bucket(&server);
    tree::make(&shell.path("shop"), 30).unwrap();
    shell.ends(0, &["backup", "shop"]);
    (server, shell)
}

/// Every backup that is listed verifies, and the next run is good.
fn assert_sound(server: &S3Server, shell: &Shell) {
    server.script(|_| Fault::Pass);
    shell.ends(0, &["verify", "--all"]);
    shell.ends(0, &["backup", "shop"]);
    shell.ends(0, &["verify", "--all"]);
}

/// Runs a verb once for each of its requests, with the fault at that request, each time from the same state.
fn spoil_each_request_of(words: &[&str]) {
    let (server, shell) = with_backup();
    let before = tree::walk(&shell.path("shop")).unwrap();
    let (vault, saved) = (server.bucket().join("backstay"), shell.path("saved"));
    let (home, saved_home) = (shell.path("home"), shell.path("saved-home"));
    crate::shell::copy(&vault, &saved);
    crate::shell::copy(&home, &saved_home);
    for fault in [Fault::CutAnswer, Fault::FlipAnswer, Fault::FlipRequest, Fault::Delay(50)] {
        let mut at = 0;
        loop {
            server.script(move |call| if call.index == at { fault } else { Fault::Pass });
            let output = shell.run(words);
            let calls = server.calls().len();
            server.script(|_| Fault::Pass);
            let context = format!("{fault:?} at request {at}: {output:?}");
            let code = output.status.code();
            assert!(matches!(code, Some(0 | 1 | 13)), "{context}");
            let passes = matches!(fault, Fault::CutAnswer | Fault::Delay(_));
            assert!(!passes || code == Some(0), "this passes by itself: {context}");
            let verified = shell.run(&["verify", "--all"]);
            assert!(verified.status.success(), "{context}, then {verified:?}");
            let after = tree::walk(&shell.path("shop")).unwrap();
            assert_eq!(tree::differences(&before, &after), Vec::<String>::new(), "{context}");
            if calls <= at {
                break;
            }
            at += 1;
            crate::shell::copy(&saved, &vault);
            crate::shell::copy(&saved_home, &home);
        }
        assert!(at > 2, "{fault:?}: only {at} requests");
    }
    assert_sound(&server, &shell);
}

#[test]
fn backup_survives_or_refuses_every_spoilt_body() {
    spoil_each_request_of(&["backup", "shop"]);
}

#[test]
fn verify_survives_or_refuses_every_spoilt_body() {
    spoil_each_request_of(&["verify", "--all"]);
}

#[test]
fn restore_survives_or_refuses_every_spoilt_body() {
    spoil_each_request_of(&["restore", "shop", "--yes", "--no-safety-backup"]);
}

#[test]
fn part_that_is_stored_with_a_flipped_bit_is_no_backup() {
    let (server, shell) = with_backup();
    let is_part = |call: &Call| call.method == Method::PUT && call.path.contains("files.tar");
    server.script(move |call| if is_part(call) { Fault::FlipRequest } else { Fault::Pass });
    let error = shell.complains(13, &["backup", "shop"]);
    assert!(error.contains("is not what was sent"), "{error}");
    server.script(|_| Fault::Pass);
    assert_eq!(shell.json(&["backups", "shop"]).as_array().unwrap().len(), 1);
    assert_sound(&server, &shell);
}

/// Small steps of a generator that anyone can run again with the seed in the message.
fn next(seed: &mut u64) -> u64 {
    *seed ^= *seed << 13;
    *seed ^= *seed >> 7;
    *seed ^= *seed << 17;
    *seed
}

#[test]
fn killed_at_random_moments_nothing_is_half_done() {
    let (server, shell) = with_backup();
    let first = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap().as_nanos() as u64 | 1;
    let mut seed = first;
    let old = tree::walk(&shell.path("shop")).unwrap();
    shell.ends(0, &["backup", "shop"]);
    std::fs::write(shell.path("shop/newer"), "newer").unwrap();
    let new = tree::walk(&shell.path("shop")).unwrap();
    // How long an undisturbed run takes, so that the moments spread over all of it.
    let begun = std::time::Instant::now();
    shell.ends(0, &["restore", "shop", "--to", "once", "--yes"]);
    let usual = begun.elapsed();
    for round in 0..24 {
        let words: &[&str] = match round % 3 {
            0 => &["backup", "shop", "--quiet"],
            1 => &["restore", "shop", "--yes", "--quiet"],
            _ => &["forget", "--quiet"],
        };
        let mut child =
            shell.command(words).stderr(Stdio::null()).stdout(Stdio::null()).spawn().unwrap();
        let moment = usual.mul_f64((next(&mut seed) % 2000) as f64 / 1000.0);
        kill_after(&mut child, moment);
        let context = format!("seed {first}, round {round}, {words:?} after {moment:?}");
        let seen = tree::walk(&shell.path("shop")).unwrap();
        let is = |state| tree::differences(state, &seen).is_empty();
        assert!(is(&old) || is(&new), "{context}: neither the old tree nor the new one");
        let verified = shell.run(&["verify", "--all"]);
        assert!(verified.status.success(), "{context}: {verified:?}");
    }
    assert_sound(&server, &shell);
}

/// A disk that is soon full.
pub(crate) struct SmallDisk<'a> {
    place: &'a Path,
    mounted: bool,
}

impl<'a> SmallDisk<'a> {
    pub(crate) fn mount(place: &'a Path, mib: u32) -> Self {
        std::fs::create_dir_all(place).unwrap();
        let options = format!("size={mib}m");
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &options, "tmpfs"])
            .arg(place)
            .status();
        assert!(mounted.unwrap().success(), "mounting a small disk needs root");
        Self { place, mounted: true }
    }

    /// Makes room.
    pub(crate) fn grow(&self, mib: u32) {
        let options = format!("remount,size={mib}m");
        let grown = Command::new("mount").args(["-o", &options]).arg(self.place).status();
        assert!(grown.unwrap().success());
    }

    fn unmount(&mut self) {
        if std::mem::take(&mut self.mounted) {
            assert!(Command::new("umount").arg(self.place).status().unwrap().success());
        }
    }
}

impl Drop for SmallDisk<'_> {
    fn drop(&mut self) {
        if self.mounted {
            // The test has failed already.
            drop(Command::new("umount").arg("--lazy").arg(self.place).status());
        }
    }
}

fn write_noise(path: &Path, mib: usize) {
    let mut seed = 7;
    let mut file = std::io::BufWriter::new(std::fs::File::create(path).unwrap());
    for _ in 0..mib << 17 {
        file.write_all(&next(&mut seed).to_le_bytes()).unwrap();
    }
}

#[test]
fn full_storage_makes_no_backup_and_is_said_so() {
    let shell = Shell::with_directory();
    let storage = shell.path("storage");
    let mut disk = SmallDisk::mount(&storage, 12);
    std::fs::create_dir(shell.path("shop")).unwrap();
    std::fs::write(shell.path("shop/small"), "small").unwrap();
    shell.ends(0, &["backup", "shop"]);
    write_noise(&shell.path("shop/large"), 24);
    let error = shell.complains(14, &["backup", "shop"]);
    assert!(error.contains("no space left"), "{error}");
    assert_eq!(shell.json(&["backups", "shop"]).as_array().unwrap().len(), 1);
    shell.ends(0, &["verify", "--all"]);
    std::fs::remove_file(shell.path("shop/large")).unwrap();
    shell.ends(0, &["backup", "shop"]);
    shell.ends(0, &["verify", "--all"]);
    disk.unmount();
}

#[test]
fn restore_onto_a_full_disk_leaves_the_target_as_it_was() {
    let shell = Shell::with_directory();
    let mut config = shell.config();
    let root = shell.path("disk/shop");
    config = config.replace(&shell.path("shop").display().to_string(), &root.display().to_string());
    shell.set_config(config);
    let disk_path = shell.path("disk");
    let mut disk = SmallDisk::mount(&disk_path, 12);
    std::fs::create_dir(&root).unwrap();
    write_noise(&root.join("large"), 8);
    shell.ends(0, &["backup", "shop"]);
    std::fs::write(root.join("newer"), "newer").unwrap();
    let before = tree::walk(&root).unwrap();
    let error = shell.complains(14, &["restore", "shop", "--yes"]);
    assert!(error.contains("are needed") || error.contains("No space left"), "{error}");
    assert_eq!(tree::differences(&before, &tree::walk(&root).unwrap()), Vec::<String>::new());
    let left = std::fs::read_dir(&disk_path).unwrap().count();
    assert_eq!(left, 1, "nothing is left beside the target");
    disk.unmount();
}

#[test]
fn full_spool_fails_the_database_before_it_is_copied_and_leaves_nothing() {
    let shell = Shell::with_directory();
    let writer = backstay_testkit::ledger::BusyWriter::start(&shell.path("crm.db")).unwrap();
    writer.stop().unwrap();
    let connection = rusqlite::Connection::open(shell.path("crm.db")).unwrap();
    connection.execute_batch("CREATE TABLE noise (b BLOB)").unwrap();
    for _ in 0..16 {
        connection.execute("INSERT INTO noise VALUES (randomblob(1000000))", []).unwrap();
    }
    drop(connection);
    let spool = shell.path("home/spool");
    std::fs::create_dir_all(&spool).unwrap();
    std::fs::set_permissions(shell.path("home"), std::fs::Permissions::from_mode(0o700)).unwrap();
    let mut disk = SmallDisk::mount(&spool, 4);
    let error = shell.complains(14, &["backup", "crm"]);
    assert!(error.contains("bytes free, but"), "{error}");
    assert_eq!(std::fs::read_dir(&spool).unwrap().count(), 0);
    disk.unmount();
    shell.ends(0, &["backup", "crm"]);
    shell.ends(0, &["verify", "--all"]);
}

#[test]
fn slow_storage_is_waited_for() {
    let (server, shell) = with_backup();
    let slow = AtomicUsize::new(0);
    server.script(move |call| match call.method.as_str() {
        "GET" if slow.fetch_add(1, Ordering::SeqCst) < 3 => Fault::Delay(400),
        _ => Fault::Pass,
    });
    shell.ends(0, &["verify", "--all"]);
    assert_sound(&server, &shell);
}
