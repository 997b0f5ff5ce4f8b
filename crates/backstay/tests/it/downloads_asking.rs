//! Parts of backups that owners download by way of a server (T40, V42, V44, ADR 21).

use std::path::{Path, PathBuf};
use std::process::Command;

use backstay_testkit::proxy::{Network, Proxy};
use serde_json::Value;

use crate::members::Office;
use crate::shell::Shell;

/// What standard tools find in an archive.
fn content(archive: &Path, program: &str) -> String {
    let script = format!("{program} < \"$0\" | tar -xOf - a.txt");
    let output = Command::new("sh").args(["-c", &script]).arg(archive).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// Returns the id of a new backup, and where its only object lies.
fn made(office: &Office) -> (String, PathBuf) {
    let made: Value = office.json("owner", &["backup", "shop"]);
    let id = made["id"].as_str().unwrap().to_owned();
    let folder = PathBuf::from(made["location"].as_str().unwrap());
    let objects = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let mut objects = objects.filter(|path| path.file_name().unwrap() != "manifest.json");
    let object = objects.next().unwrap();
    assert!(objects.next().is_none());
    (id, object)
}

#[test]
fn owner_takes_a_part_home_as_it_was_and_as_it_lies_on_the_storage() {
    let office = Office::new(Shell::with_tree(""));
    let _serving = office.serve(&[]);
    let (id, object) = made(&office);
    office.ends(0, "owner", &["download", &id[..20], "--output", "plain.tar"]);
    assert_eq!(content(&office.laptop.path("plain.tar"), "cat"), "before");
    let part = ["--part", "files.tar", "--sealed", "--output", "sealed"];
    office.ends(0, "owner", &[&["download", &id], &part[..]].concat());
    let lies = std::fs::read(&object).unwrap();
    assert_eq!(std::fs::read(office.laptop.path("sealed")).unwrap(), lies);
    // The kit opens it where there is nothing else.
    office.server.ends(0, &["keys", "kit", "--output", "kit.txt"]);
    std::fs::copy(office.server.path("kit.txt"), office.laptop.path("kit.txt")).unwrap();
    let decrypt = ["decrypt", "sealed", "--kit", "kit.txt", "--output", "plain.zst"];
    office.laptop.ends(0, &decrypt);
    assert_eq!(content(&office.laptop.path("plain.zst"), "zstd -dc"), "before");

    // Nothing that is there is replaced.
    office.ends(1, "owner", &["download", &id, "--output", "plain.zst"]);
    assert_eq!(content(&office.laptop.path("plain.zst"), "zstd -dc"), "before");
    let said = office.ends(2, "owner", &["download", &id, "--part", "x", "--output", "x"]);
    assert!(said.contains("there are: files.tar"), "{said}");
    let who: Vec<_> = office.audit().into_iter().filter(|entry| entry[1] == "download").collect();
    assert!(!who.is_empty() && who.iter().all(|entry| entry[0] == "owner" && entry[2] == id));
}

#[test]
fn downloads_are_for_owners_of_what_is_theirs() {
    let office = Office::new(Shell::with_tree(""));
    let config = office.server.config();
    let other = office.server.path("acme");
    office.server.set_config(format!(
        "{config}\n[storages.acme]\nprovider = 'local'\npath = '{}'\norganisation = 'acme'\n\n\
         [sources.theirs]\nkind = 'files'\npath = '{}'\nstorage = 'acme'\n",
        other.display(),
        office.server.path("shop").display(),
    ));
    office.add("tenant", &["--role", "owner", "--organisation", "acme"]);
    let _serving = office.serve(&[]);
    let (ours, _) = made(&office);
    let theirs = office.json("tenant", &["backup", "theirs"])["id"].as_str().unwrap().to_owned();
    for member in ["viewer", "operator", "admin"] {
        office.ends(14, member, &["download", &ours, "--output", "x"]);
    }
    office.ends(2, "tenant", &["download", &ours, "--output", "x"]);
    office.ends(2, "owner", &["download", &theirs, "--output", "x"]);
    let by_hand = format!("/backups/{ours}/download");
    let (status, _) = office.ask("GET", &by_hand, Some(&office.token("tenant")), "");
    assert_eq!(status, 400);
    assert!(!office.laptop.path("x").exists());
    office.ends(0, "tenant", &["download", &theirs, "--output", "x"]);
    assert_eq!(content(&office.laptop.path("x"), "cat"), "before");
}

#[test]
fn download_that_is_damaged_or_cut_leaves_no_file() {
    let mut office = Office::new(Shell::with_tree(""));
    // Larger than what systems keep on their way, and nothing that could be made smaller.
    let mut noise = vec![0_u8; 64 << 20];
    let mut state = 1_u64;
    for word in noise.chunks_exact_mut(8) {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        word.copy_from_slice(&(state ^ (state >> 29)).to_le_bytes());
    }
    std::fs::write(office.server.path("shop/noise"), &noise).unwrap();
    let _serving = office.serve(&[]);
    let (id, object) = made(&office);
    let direct = office.port;
    let proxy = Proxy::start(direct);
    office.port = proxy.port;
    proxy.set_after(8 << 20, Network::Cut);
    let said = office.ends(1, "owner", &["download", &id, "--output", "cut.tar"]);
    assert!(said.contains("does not answer"), "{said}");
    assert!(!office.laptop.path("cut.tar").exists());
    proxy.mend();
    office.ends(0, "owner", &["download", &id, "--output", "whole.tar"]);
    assert_eq!(content(&office.laptop.path("whole.tar"), "cat"), "before");

    // A byte is another at the end of the object, when most was given out already.
    let mut lies = std::fs::read(&object).unwrap();
    let at = lies.len() - 1000;
    lies[at] ^= 1;
    std::fs::write(&object, lies).unwrap();
    for more in [&[][..], &["--sealed"]] {
        let words = ["download", &id, "--output", "damaged.tar"];
        let output = office.run("owner", &[&words, more].concat());
        assert!(!output.status.success(), "{more:?}");
        assert!(!office.laptop.path("damaged.tar").exists(), "{more:?}");
    }
}
