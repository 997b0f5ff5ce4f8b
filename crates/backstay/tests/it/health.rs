//! Health: what `status` says beside what is expected, and orphans both ways (V29 to V38, V55, V57 to V61).

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use serde_json::Value;

use crate::shell::Shell;

/// A machine with a tree, and settings of it.
fn with_shop(more: &str) -> Shell {
    let shell = Shell::bare();
    std::fs::create_dir(shell.path("shop")).unwrap();
    std::fs::write(shell.path("shop/a.txt"), "a").unwrap();
    shell.set_config(format!(
        "[storages.main]\nprovider = 'local'\npath = '{}'\n\n[sources.shop]\nkind = 'files'\npath = '{}'\nstorage = 'main'\n{more}\n",
        shell.path("storage").display(),
        shell.path("shop").display(),
    ));
    shell
}

fn status(shell: &Shell) -> Value {
    shell.json(&["status"])[0].clone()
}

/// Backs up as a schedule does. Returns the backup's id, and what was said.
fn back_up(shell: &Shell) -> (String, String) {
    let output = shell.run(&["backup", "shop", "--trigger", "scheduled", "--json"]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{said}");
    let made: Value = serde_json::from_slice(&output.stdout).unwrap();
    (made["id"].as_str().unwrap().to_owned(), said)
}

/// Returns the statuses of the backups, newest first, as the list shows them.
fn statuses(shell: &Shell) -> Vec<String> {
    let backups = shell.json(&["backups"]);
    let status = |backup: &Value| backup["status"].as_str().unwrap().to_owned();
    backups.as_array().unwrap().iter().map(status).collect()
}

fn folder(shell: &Shell, id: &str) -> PathBuf {
    shell.path("storage/backstay/default/shop").join(id)
}

#[test]
fn failure_is_shown_until_the_next_backup_succeeds() {
    let shell = with_shop("");
    assert_eq!(status(&shell)["health"], "unprotected");
    shell.ends(1, &["status", "--check"]);
    back_up(&shell);
    assert_eq!(status(&shell)["health"], "good");
    shell.ends(0, &["status", "--check"]);
    std::fs::rename(shell.path("shop"), shell.path("away")).unwrap();
    shell.ends(1, &["backup", "shop"]);
    let failing = status(&shell);
    assert_eq!(failing["health"], "failing", "{failing}");
    assert!(
        failing["troubles"][0].as_str().unwrap().contains("the last run failed at"),
        "{failing}"
    );
    let table = shell.ends(1, &["status", "--check"]);
    assert!(table.contains("failing"), "{table}");
    std::fs::rename(shell.path("away"), shell.path("shop")).unwrap();
    back_up(&shell);
    assert_eq!(status(&shell)["health"], "good");
}

#[test]
fn age_and_restores_are_compared_with_their_objectives() {
    let shell = with_shop("rpo = '1h'\nrto = '1h'");
    back_up(&shell);
    shell.ends(0, &["drill", "shop"]);
    let good = status(&shell);
    assert_eq!((&good["health"], &good["rpo_seconds"]), (&"good".into(), &3600.into()), "{good}");
    assert!(good["rto_seen_seconds"].as_f64().unwrap() > 0.0 && good["rpo_seen_seconds"].is_null());
    back_up(&shell);
    assert!(status(&shell)["rpo_seen_seconds"].as_i64().is_some());
    shell.edit_config("rpo = '1h'", "rpo = '1ms'");
    let late = status(&shell);
    assert_eq!(late["health"], "late", "{late}");
    shell.edit_config("rpo = '1ms'\nrto = '1h'", "rto = '1us'");
    let slow = status(&shell);
    assert_eq!(slow["health"], "attention", "{slow}");
    assert!(slow["troubles"][0].as_str().unwrap().contains("the last restore took"), "{slow}");
    assert_eq!(slow["rpo_seconds"], 25 * 3600, "a day, and an hour for the backup");
    shell.edit_config("rto = '1us'", "rto = '0s'");
    assert!(shell.complains(2, &["config", "check"]).contains("rto"));
}

#[test]
fn backup_whose_objects_are_gone_is_shown_as_orphaned_and_comes_back_with_them() {
    let shell = with_shop("keep = { last = 2 }");
    let (first, _) = back_up(&shell);
    let (second, _) = back_up(&shell);
    let away = shell.path("away");
    std::fs::rename(folder(&shell, &second), &away).unwrap();
    assert_eq!(statuses(&shell), ["orphaned", "complete"]);
    assert_eq!(status(&shell)["newest_good"], first.as_str());
    shell.ends(0, &["restore", "shop", "--to", "copy", "--yes"]);
    // It pushes out none of the good ones, survives what writes the index anew, and is told.
    let (third, said) = back_up(&shell);
    assert!(said.contains("are orphaned") && said.contains(&second), "{said}");
    let checked = shell.ends(1, &["check"]);
    assert!(checked.contains(&format!("backup {second} of shop is orphaned")), "{checked}");
    assert_eq!(statuses(&shell), ["complete", "orphaned", "complete"]);
    assert_eq!(status(&shell)["health"], "attention");
    let error = shell.complains(1, &["restore", "shop", "--id", &second, "--yes"]);
    assert!(error.contains("orphaned"), "{error}");
    std::fs::rename(&away, folder(&shell, &second)).unwrap();
    // What comes back is one of those that the rules count, from the next look on.
    let (_, said) = back_up(&shell);
    assert!(!said.contains("orphaned"), "{said}");
    assert!(!statuses(&shell).contains(&"orphaned".to_owned()));
    assert!(shell.json(&["backups"]).to_string().contains(&third));
    shell.ends(0, &["verify", "--all"]);
}

#[test]
fn backup_without_one_of_its_objects_is_orphaned_and_can_be_deleted() {
    let shell = with_shop("");
    let (first, _) = back_up(&shell);
    let (second, _) = back_up(&shell);
    let part =
        std::fs::read_dir(folder(&shell, &second)).unwrap().map(|entry| entry.unwrap().path());
    let part = part.into_iter().find(|path| path.to_str().unwrap().contains("files.tar")).unwrap();
    std::fs::remove_file(&part).unwrap();
    // Nobody has looked yet; what is said of a backup is said by its manifest.
    assert_eq!(statuses(&shell), ["complete", "complete"]);
    let (_, said) = back_up(&shell);
    assert!(said.contains("are orphaned") && said.contains(&second), "{said}");
    assert_eq!(statuses(&shell), ["complete", "orphaned", "complete"]);
    shell.ends(0, &["delete", &second, "--yes"]);
    assert_eq!(statuses(&shell), ["complete", "complete"]);
    // One that is gone altogether, too.
    std::fs::remove_dir_all(folder(&shell, &first)).unwrap();
    assert_eq!(statuses(&shell), ["complete", "orphaned"]);
    shell.ends(0, &["delete", &first, "--yes"]);
    assert_eq!(statuses(&shell), ["complete"]);
}

#[test]
fn objects_that_no_manifest_names_go_after_a_backup_by_schedule_once_they_are_old() {
    let shell = with_shop("");
    let (_, _) = back_up(&shell);
    let leftover = |id: &str, age: Duration| {
        let path = folder(&shell, id).join("files.tar.zst.bks");
        std::fs::create_dir(path.parent().unwrap()).unwrap();
        std::fs::write(&path, "half of a part").unwrap();
        set_age(&path, age);
        path
    };
    let day = Duration::from_hours(24);
    let old = leftover("20200101T000000Z-bcdfghjk", 3 * day);
    // Its id is old, and somebody wrote to it today.
    let young = leftover("20200101T000000Z-bcdfghjm", Duration::ZERO);
    shell.ends(0, &["backup", "shop"]);
    assert!(old.exists(), "a backup by hand cleans nothing");
    back_up(&shell);
    assert!(!old.exists() && young.exists());
}

fn set_age(path: &Path, age: Duration) {
    let then = SystemTime::now() - age;
    std::fs::File::options().write(true).open(path).unwrap().set_modified(then).unwrap();
}

#[test]
fn disk_with_little_room_is_warned_of_before_each_backup() {
    let shell = with_shop("");
    let config = shell.config();
    shell.set_config(format!("disk_warn = '1000000TB'\n{config}"));
    let (_, said) = back_up(&shell);
    for path in ["home", "storage"] {
        let path = shell.path(path);
        let warning = format!("the disk of {} has only", path.display());
        assert!(said.contains(&warning), "{said}");
    }
    shell.set_config(format!("disk_warn = '1B'\n{config}"));
    let (_, said) = back_up(&shell);
    assert!(!said.contains("has only"), "{said}");
    shell.set_config(format!("disk_warn = 'little'\n{config}"));
    assert!(shell.complains(2, &["config", "check"]).contains("disk_warn: found `little`"));
}
