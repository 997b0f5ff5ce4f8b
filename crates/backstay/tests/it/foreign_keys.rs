//! Installations that seal with different keys share no vault by accident.

use std::fs;
use std::path::Path;

use crate::shell::{Shell, copy};

/// A machine with a backup of its own, and another with the same configuration and other keys.
fn two_machines() -> (Shell, Shell) {
    let first = Shell::with_tree("");
    first.ends(0, &["backup", "shop"]);
    let second = Shell::bare();
    copy(&first.path("shop"), &second.path("shop"));
    let here = |shell: &Shell| shell.dir.path().display().to_string();
    let config = first.config();
    let shop = format!("path = '{}/shop'", here(&first));
    assert!(config.contains(&shop));
    second.set_config(config.replace(&shop, &format!("path = '{}/shop'", here(&second))));
    (first, second)
}

fn slots(shell: &Shell) -> Vec<(String, Vec<u8>)> {
    let keys = shell.path("storage/backstay/keys");
    let read = |path: &Path| fs::read(path).unwrap();
    let entries = fs::read_dir(keys).unwrap().map(|entry| entry.unwrap());
    let mut slots: Vec<_> = entries
        .map(|entry| (entry.file_name().into_string().unwrap(), read(&entry.path())))
        .collect();
    slots.sort();
    slots
}

/// X1: the same configuration on a second machine.
#[test]
fn vault_of_other_keys_is_not_written_to() {
    let (first, second) = two_machines();
    let before = slots(&first);
    // Having looked at it before changes nothing.
    second.complains(12, &["backups"]);
    let error = second.complains(12, &["backup", "shop"]);
    assert!(error.contains("another installation") && error.contains("keys import"), "{error}");
    assert!(error.contains("prefix of its own"), "{error}");
    assert_eq!(slots(&first), before);
    let told = second.ends(1, &["doctor"]);
    assert!(told.contains("FAIL  keys on storage main"), "{told}");
    first.ends(0, &["backup", "shop"]);
    let told = first.run(&["doctor"]);
    assert!(!String::from_utf8_lossy(&told.stdout).contains("FAIL  keys on storage main"));
    second.edit_config("provider = 'local'", "provider = 'local'\nprefix = 'second'");
    second.ends(0, &["backup", "shop"]);
}

/// What the error says is what helps, and takes nothing from the other machine's recovery kit.
#[test]
fn keys_that_were_taken_in_make_a_vault_common_and_both_kits_open_it() {
    let (first, second) = two_machines();
    first.ends(0, &["keys", "export", "--output", "keys.txt"]);
    second.complains(12, &["backup", "shop"]);
    let keys = first.path("keys.txt");
    second.ends(0, &["keys", "import", keys.to_str().unwrap()]);
    second.ends(0, &["backup", "shop"]);
    // A key that the first machine made after its kit, and the second took in and seals with.
    first.ends(0, &["keys", "kit", "--output", "kit.txt"]);
    second.ends(0, &["keys", "kit", "--output", "kit.txt"]);
    first.ends(0, &["keys", "rotate"]);
    first.ends(0, &["backup", "shop"]);
    first.ends(0, &["keys", "export", "--output", "later.txt"]);
    let later = first.path("later.txt");
    second.ends(0, &["keys", "import", later.to_str().unwrap()]);
    second.ends(0, &["backup", "shop"]);
    let storage = first.path("storage/backstay");
    for owner in [&first, &second] {
        let bare = Shell::bare();
        let kit = owner.path("kit.txt");
        let words =
            ["recover", "--storage", storage.to_str().unwrap(), "--kit", kit.to_str().unwrap()];
        bare.run(&words);
        let newest = owner.json(&["backups", "shop"])[0]["id"].as_str().unwrap().to_owned();
        bare.ends(0, &["verify", &newest]);
    }
}
