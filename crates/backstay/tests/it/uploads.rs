//! Uploads in parts that were cut off: the next run ends them, at a bucket and in a directory.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use backstay_testkit::s3::{Call, Fault, S3Server};

use crate::shell::Shell;

/// Two parts and a bit, of bytes that do not shrink.
fn write_large(shell: &Shell) {
    std::fs::create_dir_all(shell.path("shop")).unwrap();
    let mut state = 1_u64;
    let bytes: Vec<u8> = (0..18 << 20)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state.to_le_bytes()[0]
        })
        .collect();
    std::fs::write(shell.path("shop/large"), bytes).unwrap();
}

#[test]
fn uploads_of_a_killed_run_are_ended_by_the_next() {
    let server = S3Server::start().unwrap();
    let shell = Shell::with_bucket(&server);
    write_large(&shell);
    shell.ends(0, &["storage", "test", "main"]);
    let moments: [fn(&Call) -> bool; 3] = [
        |call| call.query.contains("partNumber=1"),
        |call| call.query.contains("partNumber=2"),
        |call| call.method == "POST" && call.query.contains("uploadId"),
    ];
    for moment in moments {
        let pid = Arc::new(AtomicU32::new(0));
        let victim = pid.clone();
        server.script(move |call| {
            if !moment(call) {
                return Fault::Pass;
            }
            while victim.load(Ordering::SeqCst) == 0 {
                std::thread::yield_now();
            }
            Fault::KillBefore(victim.load(Ordering::SeqCst))
        });
        let mut child = shell.command(&["backup", "shop", "--quiet"]).spawn().unwrap();
        pid.store(child.id(), Ordering::SeqCst);
        assert_eq!(child.wait().unwrap().code(), None, "it was killed");
        server.script(|_| Fault::Pass);
        assert!(!server.unfinished_uploads().is_empty(), "the server shows what is left");
        shell.ends(0, &["backup", "shop"]);
        assert_eq!(server.unfinished_uploads(), Vec::<std::path::PathBuf>::new());
        shell.ends(0, &["verify", "--all"]);
    }
}

#[test]
fn upload_that_may_not_be_ended_is_told_and_does_not_stop_the_backup() {
    let server = S3Server::start().unwrap();
    let shell = Shell::with_bucket(&server);
    write_large(&shell);
    shell.ends(0, &["storage", "test", "main"]);
    let is_part = |call: &Call| call.query.contains("partNumber=");
    // A part is refused, and so is the abort: nobody gave that permission.
    server.script(move |call| match call.method.as_str() {
        "PUT" if is_part(call) => Fault::Refuse(403, "AccessDenied"),
        "DELETE" if call.query.contains("uploadId") => Fault::Refuse(403, "AccessDenied"),
        _ => Fault::Pass,
    });
    shell.ends(14, &["backup", "shop"]);
    server.script(|call| {
        let aborts = call.method == "DELETE" && call.query.contains("uploadId");
        if aborts { Fault::Refuse(403, "AccessDenied") } else { Fault::Pass }
    });
    let warned = shell.complains(0, &["backup", "shop"]);
    assert!(
        warned.contains("s3:AbortMultipartUpload") && warned.contains("lifecycle rule"),
        "{warned}"
    );
    server.script(|_| Fault::Pass);
    shell.ends(0, &["verify", "--all"]);
}

#[test]
fn staging_files_of_a_killed_run_are_removed_by_the_next() {
    let shell = Shell::with_directory();
    write_large(&shell);
    shell.ends(0, &["storage", "test", "main"]);
    let staged = || -> Vec<_> {
        let storage = backstay_testkit::tree::files_below(&shell.path("storage")).unwrap();
        storage.into_iter().filter(|path| path.to_string_lossy().contains("tar.zst.bks#")).collect()
    };
    let mut child = shell.command(&["backup", "shop", "--quiet"]).spawn().unwrap();
    while staged().is_empty() && child.try_wait().unwrap().is_none() {}
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!(staged().len(), 1, "it was killed while it wrote");
    shell.ends(0, &["backup", "shop"]);
    assert!(staged().is_empty(), "{:?}", staged());
    shell.ends(0, &["verify", "--all"]);
}
