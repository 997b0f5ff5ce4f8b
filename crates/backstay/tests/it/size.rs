//! Trees and files of a size that users have, within the memory that we promise.

use std::io::{Read as _, Write as _};
use std::path::Path;
use std::process::Stdio;

use backstay_testkit::tree;

use crate::shell::{Shell, peak_kib_of};

/// What every verb may take at most, at any size of the data.
const PROMISED_KIB: u64 = 128 * 1024;

/// Runs a command that must succeed, and returns the most memory it ever had, as the kernel counts it.
pub(crate) fn peak_kib(shell: &Shell, words: &[&str]) -> u64 {
    let mut command = shell.command(words);
    command.arg("--quiet").stdout(Stdio::null());
    let mut child = command.spawn().unwrap();
    let mut peak = 0;
    // The mark only grows, so it does not matter when it is read last, as long as that is near the end.
    let ended = loop {
        if let Some(ended) = child.try_wait().unwrap() {
            break ended;
        }
        peak = peak.max(peak_kib_of(child.id()).unwrap_or(0));
        std::thread::sleep(std::time::Duration::from_millis(5));
    };
    assert!(ended.success(), "{words:?}: {ended}");
    assert!(peak > 1024, "nothing was measured");
    peak
}

pub(crate) fn assert_within_promise(shell: &Shell, words: &[&str]) {
    let peak = peak_kib(shell, words);
    assert!(peak <= PROMISED_KIB, "{words:?} took {} MiB", peak / 1024);
}

#[test]
fn heavy_tree_of_fifty_thousand_files_returns_equal_within_the_memory_promised() {
    let shell = Shell::with_directory();
    tree::make(&shell.path("shop"), 50_000).unwrap();
    let before = tree::walk(&shell.path("shop")).unwrap();
    assert!(before.len() > 50_000);
    assert_within_promise(&shell, &["backup", "shop"]);
    assert_within_promise(&shell, &["verify", "--all"]);
    assert_within_promise(&shell, &["restore", "shop", "--to", "back", "--yes"]);
    let after = tree::walk(&shell.path("back")).unwrap();
    assert_eq!(tree::differences(&before, &after), Vec::<String>::new());
}

/// Writes a file whose every mebibyte is another one and half of which does not shrink.
fn write_large(path: &Path, mib: u64) {
    let mut block = vec![b'x'; 1 << 20];
    let mut random = std::fs::File::open("/dev/urandom").unwrap();
    random.read_exact(&mut block[..1 << 19]).unwrap();
    let mut file = std::fs::File::create(path).unwrap();
    for number in 0..mib {
        block[..8].copy_from_slice(&number.to_le_bytes());
        file.write_all(&block).unwrap();
    }
}

fn are_equal(a: &Path, b: &Path) -> bool {
    std::process::Command::new("cmp").arg(a).arg(b).status().unwrap().success()
}

#[test]
fn heavy_file_of_four_gibibytes_returns_equal_within_the_memory_promised() {
    let shell = Shell::with_directory();
    std::fs::create_dir(shell.path("shop")).unwrap();
    write_large(&shell.path("shop/large"), 4096);
    assert_within_promise(&shell, &["backup", "shop"]);
    assert_within_promise(&shell, &["verify", "--all"]);
    assert_within_promise(&shell, &["restore", "shop", "--to", "back", "--yes"]);
    assert!(are_equal(&shell.path("shop/large"), &shell.path("back/large")));
}

#[test]
fn what_its_user_may_not_read_is_named_and_what_is_no_file_is_passed_over() {
    let shell = Shell::with_directory();
    std::fs::create_dir_all(shell.path("shop/closed")).unwrap();
    for name in ["shop/readable", "shop/secret", "shop/closed/inside"] {
        std::fs::write(shell.path(name), "content").unwrap();
    }
    let make_fifo = std::process::Command::new("mkfifo").arg(shell.path("shop/fifo")).status();
    assert!(make_fifo.unwrap().success());
    let _socket = std::os::unix::net::UnixListener::bind(shell.path("shop/socket")).unwrap();
    let mode = |name: &str, mode: u32| {
        use std::os::unix::fs::PermissionsExt as _;
        std::fs::set_permissions(shell.path(name), std::fs::Permissions::from_mode(mode)).unwrap();
    };
    mode("shop/secret", 0o000);
    mode("shop/closed", 0o000);
    let mut command = shell.command_of_nobody(&["backup", "shop", "--json"]);
    let output = command.output().unwrap();
    mode("shop/closed", 0o700);
    assert_eq!(output.status.code(), Some(3), "{output:?}");
    let made: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let errors = made["item_errors"].as_array().unwrap();
    let named: Vec<&str> = errors.iter().map(|error| error["item"].as_str().unwrap()).collect();
    assert_eq!(named, ["secret", "closed"], "files before directories: {made}");
    let id = made["id"].as_str().unwrap();
    let shown = shell.json(&["show", id]);
    assert_eq!(shown["content"]["skipped_special"], 2, "{shown}");
    shell.ends(0, &["restore", "shop", "--id", id, "--to", "back", "--yes"]);
    assert_eq!(std::fs::read_to_string(shell.path("back/readable")).unwrap(), "content");
    assert!(!shell.path("back/secret").exists() && !shell.path("back/fifo").exists());
}
