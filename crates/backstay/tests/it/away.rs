//! One storage that does not answer, or that is said to be out of use, hides nothing that lies on another.

use std::fs;

use crate::shell::Shell;

/// Two trees on two storages, both backed up; then the second storage is gone, as a disk that is not mounted.
fn with_one_away() -> Shell {
    let shell = Shell::with_tree("");
    fs::create_dir(shell.path("blog")).unwrap();
    fs::write(shell.path("blog/b.txt"), "blog").unwrap();
    shell.set_config(format!(
        "{}\n[storages.away]\nprovider = 'local'\npath = '{}'\n\n[sources.blog]\nkind = 'files'\npath = '{}'\nstorage = 'away'\n",
        shell.config(),
        shell.path("away").display(),
        shell.path("blog").display(),
    ));
    shell.ends(0, &["backup", "--all"]);
    fs::remove_dir_all(shell.path("away")).unwrap();
    fs::write(shell.path("away"), "no directory").unwrap();
    shell
}

/// D7, V36.
#[test]
fn storage_that_is_away_hides_no_backup_of_another() {
    let shell = with_one_away();
    let output = shell.run(&["backups"]);
    let (told, error) =
        (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(told.contains("shop") && !told.contains("blog"), "{told}");
    assert!(error.contains("storage away was not listed"), "{error}");
    assert_eq!(output.status.code(), Some(1));
    let told = shell.ends(1, &["verify", "--all"]);
    assert!(told.contains("every byte is good"), "{told}");
    let told = shell.ends(1, &["forget", "--dry-run"]);
    assert!(told.contains("shop"), "{told}");
    let told = shell.ends(1, &["prune"]);
    assert!(told.contains("storage main"), "{told}");
    let told = shell.ends(1, &["check"]);
    assert!(told.contains("storage away"), "{told}");
    let id = shell.json(&["backups", "--newest", "9"]);
    let id = id.as_array().unwrap().iter().find(|one| one["source"] == "shop").unwrap()["id"]
        .as_str()
        .unwrap()
        .to_owned();
    shell.ends(0, &["show", &id[..id.len() - 1]]);
    shell.ends(1, &["restore", "blog", "--yes"]);
    shell.ends(0, &["restore", "shop", "--yes"]);
}

#[test]
fn source_that_is_misspelt_is_told_while_a_storage_is_away() {
    let shell = with_one_away();
    for words in [
        &["backup", "shup"][..],
        &["backups", "shup"],
        &["guard", "--source", "shup", "--", "true"],
    ] {
        let error = shell.complains(2, words);
        assert!(error.contains("there is no source \"shup\"; known: blog, shop"), "{error}");
    }
}

/// T25: the date in a file keeps a deploy back and nobody from their data.
#[test]
fn date_of_expiry_keeps_nobody_from_a_restore() {
    let server = backstay_testkit::s3::S3Server::start().unwrap();
    let shell = Shell::with_bucket(&server);
    fs::create_dir(shell.path("shop")).unwrap();
    fs::write(shell.path("shop/a.txt"), "before").unwrap();
    shell.ends(0, &["backup", "shop"]);
    shell.edit_config("provider = 's3'", "provider = 's3'\ncredentials_expire = '2026-01-01'");
    fs::write(shell.path("shop/a.txt"), "after").unwrap();
    let warned = shell.complains(0, &["restore", "shop", "--yes"]);
    assert!(warned.contains("expired on") && warned.contains("set new ones"), "{warned}");
    assert_eq!(warned.matches("expired on").count(), 1, "{warned}");
    assert_eq!(fs::read_to_string(shell.path("shop/a.txt")).unwrap(), "before");
    for words in [&["backup", "shop"][..], &["backups"], &["storage", "test", "main"]] {
        assert!(shell.complains(0, words).contains("expired on"), "{words:?}");
    }
}
