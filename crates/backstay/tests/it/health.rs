//! Health: what `status` says beside what is expected, and orphans both ways (V29 to V38, V55, V57 to V61).

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use serde_json::Value;

use crate::shell::Shell;

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
    let shell = Shell::with_tree("");
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
    shell.set_config("");
    shell.complains(2, &["status", "--check", "--config", "none.toml"]);
    shell.ends(1, &["status", "--check"]);
}

#[test]
fn age_and_restores_are_compared_with_their_objectives() {
    let shell = Shell::with_tree("rpo = '1h'\nrto = '1h'");
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
    for wrong in ["0s", "-1h", "soon", "9999999999999999d", "99999999999d"] {
        shell.edit_config("rto = '1us'", &format!("rto = '{wrong}'"));
        assert!(shell.complains(2, &["config", "check"]).contains("rto"), "{wrong}");
        shell.edit_config(&format!("rto = '{wrong}'"), "rto = '1us'");
    }
}

#[test]
fn backup_whose_objects_are_gone_is_shown_as_orphaned_and_comes_back_with_them() {
    let shell = Shell::with_tree("keep = { last = 2 }");
    let (first, _) = back_up(&shell);
    let (second, _) = back_up(&shell);
    assert_eq!(statuses(&shell), ["complete", "complete"]);
    let away = shell.path("away");
    std::fs::rename(folder(&shell, &second), &away).unwrap();
    assert_eq!(statuses(&shell), ["orphaned", "complete"]);
    assert_eq!(shell.json(&["show", &second])["status"], "orphaned");
    assert_eq!(status(&shell)["newest_good"], first.as_str());
    shell.ends(0, &["restore", "shop", "--to", "copy", "--yes"]);
    // It pushes out none of the good ones, and is told.
    let (third, said) = back_up(&shell);
    assert!(said.contains("are orphaned") && said.contains(&second), "{said}");
    let checked = shell.ends(1, &["check"]);
    assert!(checked.contains(&format!("backup {second} of shop is gone")), "{checked}");
    assert_eq!(statuses(&shell), ["complete", "orphaned", "complete"]);
    assert_eq!(status(&shell)["health"], "attention");
    shell.complains(2, &["restore", "shop", "--id", &second, "--yes"]);
    // What is removed here is no loss, however often and beside whom it is listed.
    shell.ends(0, &["delete", &first, "--yes"]);
    assert_eq!(statuses(&shell), ["complete", "orphaned"]);
    std::fs::rename(&away, folder(&shell, &second)).unwrap();
    assert_eq!(statuses(&shell), ["complete", "complete"]);
    assert_eq!(status(&shell)["health"], "good");
    let (fourth, said) = back_up(&shell);
    assert!(!said.contains("orphaned"), "{said}");
    let ids: Vec<Value> =
        shell.json(&["backups"]).as_array().unwrap().iter().map(|b| b["id"].clone()).collect();
    assert_eq!(ids, [fourth.as_str(), third.as_str()], "of three good ones the rules keep two");
    shell.ends(0, &["verify", "--all"]);
}

#[test]
fn backup_without_one_of_its_objects_is_orphaned_until_the_object_is_there_again() {
    let shell = Shell::with_tree("");
    let (first, _) = back_up(&shell);
    let (second, _) = back_up(&shell);
    // The rules keep the newest of a month, and that one is no backup any more.
    let part = part_of(&folder(&shell, &second));
    let away = shell.path("away");
    std::fs::rename(&part, &away).unwrap();
    let checked = shell.ends(13, &["check"]);
    assert!(checked.contains(&second), "{checked}");
    assert_eq!(statuses(&shell), ["orphaned", "complete"]);
    shell.set_config(shell.config() + "keep = { monthly = 24 }\n");
    let forgotten = shell.json(&["forget", "--dry-run"]);
    let kept = |id: &str| {
        let all = forgotten.as_array().unwrap();
        all.iter().any(|verdict| verdict["id"] == id && verdict["keep"] == true)
    };
    assert!(kept(&first) && kept(&second), "{forgotten}");
    shell.ends(0, &["restore", "shop", "--to", "copy", "--yes"]);
    let error = shell.complains(1, &["restore", "shop", "--id", &second, "--yes"]);
    assert!(error.contains("not there"), "{error}");
    // It may come back between two looks.
    std::fs::rename(&away, &part).unwrap();
    let plan = shell.run(&["restore", "shop", "--to", "copy2", "--dry-run"]);
    assert!(String::from_utf8_lossy(&plan.stderr).contains(&second), "{plan:?}");
    shell.ends(0, &["check"]);
    assert_eq!(statuses(&shell), ["complete", "complete"]);
    // A backup by schedule looks, too; what it finds can be deleted by hand.
    std::fs::remove_file(&part).unwrap();
    let (_, said) = back_up(&shell);
    assert!(said.contains("are orphaned") && said.contains(&second), "{said}");
    assert!(statuses(&shell).contains(&"orphaned".to_owned()));
    shell.ends(0, &["delete", &second, "--yes"]);
    assert!(!statuses(&shell).contains(&"orphaned".to_owned()));
}

fn part_of(folder: &Path) -> PathBuf {
    let mut files = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    files.find(|path| path.to_str().unwrap().contains("files.tar")).unwrap()
}

#[test]
fn what_is_left_of_a_backup_without_its_manifest_waits_for_it() {
    let shell = Shell::with_tree("");
    let (listed, held) = (old_backup(&shell, 4), old_backup(&shell, 3));
    shell.ends(0, &["hold", &held]);
    let manifests = [&listed, &held].map(|id| folder(&shell, id).join("manifest.json"));
    for manifest in &manifests {
        std::fs::rename(manifest, manifest.with_extension("away")).unwrap();
    }
    // Everything would be old enough to go.
    for file in [&listed, &held]
        .map(|id| std::fs::read_dir(folder(&shell, id)).unwrap())
        .into_iter()
        .flatten()
    {
        set_age(&file.unwrap().path(), Duration::from_hours(48));
    }
    back_up(&shell);
    shell.ends(0, &["prune"]);
    assert_eq!(statuses(&shell), ["complete", "orphaned", "orphaned"]);
    for manifest in &manifests {
        std::fs::rename(manifest.with_extension("away"), manifest).unwrap();
    }
    shell.ends(0, &["check"]);
    assert_eq!(statuses(&shell), ["complete"; 3]);
    shell.ends(0, &["verify", "--all"]);
}

/// Makes a backup so many days ago, and lists it.
fn old_backup(shell: &Shell, days: u32) -> String {
    let mut command = shell.command(&["backup", "shop", "--json"]);
    command.env("LD_PRELOAD", crate::serve::faketime()).env("FAKETIME", format!("-{days}d"));
    let made: Value = serde_json::from_slice(&command.output().unwrap().stdout).unwrap();
    shell.ends(0, &["backups"]);
    made["id"].as_str().unwrap().to_owned()
}

#[test]
fn listing_beside_removals_calls_nothing_orphaned() {
    let shell = Shell::with_tree("keep = { last = 1 }");
    back_up(&shell);
    std::thread::scope(|scope| {
        let listing = scope.spawn(|| {
            for words in [&["backups"][..], &["check"], &["status"]].iter().cycle().take(24) {
                shell.ends(0, words);
            }
        });
        while !listing.is_finished() {
            shell.ends(0, &["backup", "shop"]);
        }
        listing.join().unwrap();
    });
    assert_eq!(statuses(&shell), ["complete"]);
}

#[test]
fn storage_that_is_another_vault_now_has_lost_nothing() {
    let shell = Shell::with_tree("");
    back_up(&shell);
    back_up(&shell);
    assert_eq!(statuses(&shell).len(), 2);
    let storage = shell.path("storage").display().to_string();
    shell.edit_config(&storage, &shell.path("other").display().to_string());
    back_up(&shell);
    assert_eq!(statuses(&shell), ["complete"]);
}

#[test]
fn objects_that_no_manifest_names_go_after_a_backup_by_schedule_once_they_are_old() {
    let shell = Shell::with_tree("");
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
    assert!(old.exists(), "a backup by hand cleans nothing, so soon after another");
    back_up(&shell);
    assert!(!old.exists() && young.exists());
}

fn set_age(path: &Path, age: Duration) {
    let then = SystemTime::now() - age;
    std::fs::File::options().write(true).open(path).unwrap().set_modified(then).unwrap();
}

#[test]
fn disk_with_little_room_is_warned_of_before_each_backup() {
    let shell = Shell::with_tree("");
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

#[test]
fn vault_that_is_gone_is_missed_and_not_made_anew() {
    let shell = Shell::with_tree("");
    back_up(&shell);
    // A disk that is not mounted.
    std::fs::rename(shell.path("storage"), shell.path("unmounted")).unwrap();
    for words in [&["backups"][..], &["check"], &["verify", "--all"]] {
        shell.ends(10, words);
    }
    let error = shell.complains(10, &["backup", "shop"]);
    assert!(error.contains("is a disk not mounted?"), "{error}");
    assert_ne!(status(&shell)["health"], "good");
    shell.ends(1, &["status", "--check"]);
    std::fs::remove_dir_all(shell.path("storage")).unwrap();
    std::fs::rename(shell.path("unmounted"), shell.path("storage")).unwrap();
    back_up(&shell);
    assert_eq!(statuses(&shell), ["complete", "complete"]);
    // One that is lost for good: a person says so.
    std::fs::remove_dir_all(shell.path("storage")).unwrap();
    shell.complains(10, &["backup", "shop"]);
    let error = shell.complains(0, &["storage", "test", "main"]);
    assert!(error.contains("is gone"), "{error}");
    back_up(&shell);
    assert_eq!(statuses(&shell), ["complete"]);
}

#[test]
fn backup_that_nobody_listed_and_source_that_is_gone_are_missed_all_the_same() {
    let shell = Shell::with_tree("");
    back_up(&shell);
    shell.ends(0, &["backup", "shop"]);
    let sources = shell.path("storage/backstay/default/shop");
    std::fs::remove_dir_all(&sources).unwrap();
    assert_eq!(statuses(&shell), ["orphaned", "orphaned"]);
    let checked = shell.ends(1, &["check"]);
    assert_eq!(checked.matches("is gone from the storage").count(), 2, "{checked}");
    for backup in shell.json(&["backups"]).as_array().unwrap() {
        shell.ends(0, &["delete", backup["id"].as_str().unwrap(), "--yes"]);
    }
    assert!(statuses(&shell).is_empty());
}

#[test]
fn marks_of_damage_stay_until_somebody_saw_the_objects() {
    let shell = Shell::with_tree("");
    let (whole, _) = back_up(&shell);
    let (broken, _) = back_up(&shell);
    shell.ends(0, &["hold", &broken]);
    // What is not removed is looked at as before.
    shell.complains(1, &["delete", &broken, "--yes"]);
    std::fs::remove_file(part_of(&folder(&shell, &broken))).unwrap();
    shell.ends(13, &["check"]);
    assert_eq!(statuses(&shell), ["orphaned", "complete"]);
    // Something else that is wrong says nothing of the objects.
    let keys = shell.path("storage/backstay/keys");
    std::fs::rename(&keys, shell.path("keys")).unwrap();
    assert_ne!(shell.run(&["check"]).status.code(), Some(0));
    std::fs::rename(shell.path("keys"), &keys).unwrap();
    assert_eq!(statuses(&shell), ["orphaned", "complete"]);
    assert_eq!(status(&shell)["newest_good"], whole.as_str());
    // Neither does a storage that does not answer, nor another one.
    let vault = shell.path("storage/backstay/vault.json");
    let text = std::fs::read(&vault).unwrap();
    std::fs::write(&vault, "broken").unwrap();
    let seen = status(&shell);
    assert_eq!(seen["newest_good"], whole.as_str(), "{seen}");
    assert_eq!(seen["health"], "attention", "{seen}");
    std::fs::write(&vault, text).unwrap();
    shell.ends(0, &["release", &broken]);
    shell.ends(0, &["delete", &broken, "--yes"]);
    assert_eq!(status(&shell)["health"], "good");
    let other = "[storages.other]\nprovider = 's3'\nbucket = 'bucket'\nendpoint = 'http://127.0.0.1:1'\naccess_key_id = 'x'\nsecret_access_key = 'y'\n";
    shell.set_config(format!("{other}{}", shell.config()));
    assert_eq!(status(&shell)["health"], "good");
}

#[test]
fn prune_leaves_what_is_being_written() {
    let shell = crate::serve::with_program("");
    let config = shell.config().replace(
        "outputs = [{",
        "outputs = [{ name = 'first.txt', dump = ['echo', 'first'], restore = ['cat'] }, {",
    );
    shell.set_config(config);
    std::fs::write(shell.path("wait"), "").unwrap();
    let mut backup = shell.command(&["backup", "db"]).spawn().unwrap();
    backstay_testkit::daemon::wait_until("the second part is written", || {
        shell.path("begun").exists()
    });
    // Two days later, for whoever prunes.
    let mut prune = shell.command(&["prune"]);
    prune.env("LD_PRELOAD", crate::serve::faketime()).env("FAKETIME", "+2d");
    let output = prune.output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.contains("passed over"), "{said}");
    std::fs::remove_file(shell.path("wait")).unwrap();
    assert!(backup.wait().unwrap().success());
    shell.ends(0, &["verify", "--all"]);
}

#[test]
fn newest_backups_are_told_while_their_storage_is_away() {
    let shell = Shell::with_tree("");
    for _ in 0..3 {
        shell.ends(0, &["backup", "shop"]);
    }
    let all = shell.json(&["backups"]);
    let (storage, away) = (shell.path("storage"), shell.path("away"));
    std::fs::rename(&storage, &away).unwrap();
    assert_ne!(shell.run(&["backups"]).status.code(), Some(0));
    let newest = shell.json(&["backups", "--newest", "2"]);
    assert_eq!(newest.as_array().unwrap(), &all.as_array().unwrap()[..2]);
    shell.ends(2, &["backups", "--newest", "0"]);
    shell.ends(2, &["backups", "shop", "--newest", "2"]);
}
