//! Vaults of every released format open for ever.

use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use crate::shell::{Shell, copy};

fn testdata(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata").join(name)
}

#[test]
fn vault_1_is_recovered_verified_and_restored() {
    let shell = Shell::bare();
    // Restoring releases and writes nothing here, but the index may be rebuilt: the golden one stays as it is.
    copy(&testdata("vault-1"), &shell.path("golden"));
    let storage = shell.path("golden/storage").display().to_string();
    let mut recover = shell.command(&["recover", "--storage", &storage, "--kit", "golden/kit.txt"]);
    let recovered =
        recover.env("BACKSTAY_KIT_PASSPHRASE", "golden vault passphrase").output().unwrap();
    assert!(recovered.status.success(), "{recovered:?}");
    assert_eq!(shell.json(&["keys", "list"]).as_array().unwrap().len(), 2);
    let shop = shell.json(&["backups", "shop"]);
    assert_eq!(shop.as_array().unwrap().len(), 2);
    assert_eq!((shop[1]["note"].as_str(), shop[1]["hold"].is_string()), (Some("the first"), true));
    shell.ends(0, &["verify", "--all"]);
    shell.ends(0, &["check"]);

    let older = shop[1]["id"].as_str().unwrap();
    shell.ends(0, &["restore", "shop", "--id", older, "--to", "older", "--yes"]);
    shell.ends(0, &["restore", "shop", "--to", "newer", "--yes"]);
    shell.ends(0, &["restore", "plain", "--to", "plain", "--accept-unsealed", "--yes"]);
    for tree in ["older", "newer", "plain"] {
        is_the_tree(&shell.path(tree));
    }
    shell.ends(0, &["restore", "crm", "--to", "crm.db", "--yes"]);
    let database = rusqlite::Connection::open(shell.path("crm.db")).unwrap();
    let names: String = database
        .query_row("SELECT group_concat(id || name) FROM people", [], |row| row.get(0))
        .unwrap();
    assert_eq!(names, "1Ada,2Grace");
}

fn is_the_tree(tree: &Path) {
    assert_eq!(std::fs::read_to_string(tree.join("hello.txt")).unwrap(), "hello\n");
    let inode = |name: &str| tree.join(name).metadata().unwrap().ino();
    assert_eq!(inode("hello.txt"), inode("second-name"));
    assert_eq!(std::fs::read_link(tree.join("link")).unwrap().to_str(), Some("hello.txt"));
    let odd = std::ffi::OsStr::from_bytes(b"not-utf8-\xff");
    assert_eq!(std::fs::read_to_string(tree.join(odd)).unwrap(), "odd\n");
    let hole = tree.join("hole").metadata().unwrap();
    assert_eq!((hole.len(), hole.blocks()), (1 << 20, 0));
    assert_eq!(tree.join("empty").read_dir().unwrap().count(), 0);
    assert_eq!(tree.read_dir().unwrap().count(), 6);
}
