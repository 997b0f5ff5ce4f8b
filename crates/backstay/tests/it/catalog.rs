//! The catalog is backed up with the backups, and comes back with the keys (ADR 18).

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use backstay_testkit::daemon::wait_until;
use backstay_testkit::postgres::PostgresServer;
use backstay_testkit::s3::{ACCESS_KEY, BUCKET, S3Server, SECRET_KEY};
use backstay_testkit::tree::files_below;

use crate::shell::{Shell, contains};

/// Storage credentials that nothing else here has, in two lines.
fn credentials() -> String {
    format!("{ACCESS_KEY}\n{SECRET_KEY}\n")
}

/// Runs a command that reads these lines, without any credentials in its environment.
fn with_input(shell: &Shell, words: &[&str], input: &str) {
    use std::io::Write as _;
    let mut command = shell.command(words);
    command.stdin(Stdio::piped());
    let mut child = command.spawn().unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    assert!(child.wait().unwrap().success());
}

/// Runs a command that must succeed without any credentials in its environment.
fn without_credentials(shell: &Shell, words: &[&str]) {
    let mut command = shell.command(words);
    command.env_remove("AWS_ACCESS_KEY_ID").env_remove("AWS_SECRET_ACCESS_KEY");
    let output = command.output().unwrap();
    assert!(output.status.success(), "{output:?}");
}

/// The backups of catalogs in a vault, as they lie there.
fn kept(vault: &Path) -> BTreeSet<String> {
    let names = |path: &Path| -> Vec<String> {
        let Ok(entries) = std::fs::read_dir(path) else { return Vec::new() };
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    };
    let catalogs = vault.join("catalogs");
    let below = |catalog: String| {
        let backups = names(&catalogs.join(&catalog));
        backups.into_iter().filter(|name| name != "index.json").collect::<Vec<_>>()
    };
    names(&catalogs).into_iter().flat_map(below).collect()
}

/// All files below a directory.
fn below(directory: &Path) -> Vec<PathBuf> {
    files_below(directory).unwrap()
}

fn lose(shell: &Shell) {
    std::fs::remove_dir_all(shell.path("home")).unwrap();
    std::fs::remove_file(shell.path("backstay.toml")).unwrap();
}

#[test]
fn settings_and_credentials_come_back_with_the_keys() {
    let server = S3Server::start().unwrap();
    let shell = Shell::with_bucket(&server);
    for (name, path) in [("shop", "shop"), ("notes", "notes")] {
        std::fs::create_dir(shell.path(path)).unwrap();
        std::fs::write(shell.path(path).join("file"), name).unwrap();
    }
    shell.edit_config("kind = 'files'", "kind = 'files'\nschedule = 'daily'\nkeep = { last = 3 }");
    let other = ["storage", "add", "other", "--bucket", BUCKET, "--prefix", "other"];
    let other = [other.as_slice(), &["--endpoint", &server.endpoint, "--credentials"]].concat();
    with_input(&shell, &other, &credentials());
    let notes = shell.path("notes").display().to_string();
    let add = ["source", "add", "notes", "--kind", "files", "--path", &notes];
    shell.ends(0, &[add.as_slice(), &["--storage", "other", "--schedule", "weekly"]].concat());
    shell.ends(0, &["backup", "shop", "notes"]);
    shell.ends(0, &["keys", "kit", "--output", "kit.txt"]);
    // A key that the kit does not have.
    shell.ends(0, &["keys", "rotate"]);
    shell.edit_config("last = 3", "last = 4");
    shell.ends(0, &["backup", "shop"]);
    let (shown, exported) = (shell.json(&["config", "show"]), shell.ends(0, &["config", "export"]));

    lose(&shell);
    std::fs::remove_dir_all(shell.path("shop")).unwrap();
    let bucket = format!("s3://{BUCKET}/backstay");
    let recover = ["recover", "--storage", &bucket, "--kit", "kit.txt"];
    let told = shell.ends(0, &[recover.as_slice(), &["--endpoint", &server.endpoint]].concat());
    assert!(told.contains("the settings of"), "{told}");
    assert_eq!(shell.json(&["config", "show"]), shown);
    assert_eq!(shell.ends(0, &["config", "export"]), exported);
    // The storage that was named is the one of the configuration, and is not there twice.
    assert_eq!(shell.json(&["backups", "shop"]).as_array().unwrap().len(), 2);
    without_credentials(&shell, &["restore", "shop", "--yes"]);
    assert_eq!(std::fs::read_to_string(shell.path("shop/file")).unwrap(), "shop");
    without_credentials(&shell, &["backup", "shop", "notes"]);
    shell.ends(0, &["verify", "--all"]);
}

#[test]
fn catalog_is_backed_up_when_something_changed_and_only_then() {
    let shell = Shell::with_tree("");
    let vault = shell.path("storage/backstay");
    shell.ends(0, &["backup", "shop"]);
    assert_eq!(kept(&vault).len(), 1);
    shell.ends(0, &["backup", "shop"]);
    assert!(shell.ends(0, &["catalog", "backup"]).contains("main: has the catalog as it is"));
    assert_eq!(kept(&vault).len(), 1);
    let tree = shell.path("shop").display().to_string();
    let add = ["source", "add", "more", "--kind", "files", "--path", &tree, "--storage", "main"];
    shell.ends(0, &add);
    shell.ends(0, &["backup", "shop"]);
    assert_eq!(kept(&vault).len(), 2);
    // It is no backup of any source, and nothing that counts these counts it.
    let backups = shell.json(&["backups"]);
    assert_eq!(backups.as_array().unwrap().len(), 3, "{backups}");
    let listed = shell.json(&["catalog", "list"]);
    assert_eq!(listed[0]["backups"].as_array().unwrap().len(), 2, "{listed}");
    assert_eq!(listed[0]["own"], true);
    // The newest thirty are kept.
    for change in 0..31 {
        shell.edit_config("[sources.shop]", &format!("# {change}\n[sources.shop]"));
        shell.ends(0, &["catalog", "backup"]);
    }
    assert_eq!(kept(&vault).len(), 30);
}

#[test]
fn catalog_is_sealed_even_where_backups_are_not_and_has_no_keys() {
    let shell = Shell::with_tree("encryption = 'none'");
    shell.edit_config("[storages.main]", "# hunter2-and-more\n[storages.main]");
    shell.ends(0, &["backup", "shop"]);
    let vault = shell.path("storage/backstay/catalogs");
    let in_hex: String = b"hunter2-and-more".iter().map(|byte| format!("{byte:02x}")).collect();
    for directory in [&vault, &shell.path("home")] {
        assert!(!contains(directory, b"hunter2-and-more"), "{}", directory.display());
        assert!(!contains(directory, in_hex.as_bytes()), "{}", directory.display());
    }
    let manifests = below(&vault).into_iter().filter(|file| file.ends_with("manifest.json"));
    let manifests: Vec<_> = manifests.map(|file| std::fs::read(file).unwrap()).collect();
    let manifest: serde_json::Value = serde_json::from_slice(&manifests[0]).unwrap();
    assert_eq!(manifest["parts"][0]["codecs"], serde_json::json!(["zstd", "sealed"]));
    // With the keys it opens by the tools for bad days, and the keys themselves are not in it.
    shell.ends(0, &["keys", "kit", "--output", "kit.txt"]);
    let is_part = |path: &PathBuf| path.to_string_lossy().ends_with(".zst.bks");
    let part = below(&vault).into_iter().find(is_part).unwrap().display().to_string();
    shell.ends(0, &["decrypt", &part, "--kit", "kit.txt", "--output", "catalog.json.zst"]);
    let plain = Command::new("zstd")
        .args(["-dc", "catalog.json.zst"])
        .current_dir(shell.dir.path())
        .output()
        .unwrap();
    let export: serde_json::Value = serde_json::from_slice(&plain.stdout).unwrap();
    let names: Vec<&String> = export["secrets"].as_object().unwrap().keys().collect();
    assert_eq!(names, ["configuration"], "{export}");
    assert!(export["secrets"]["configuration"].as_str().unwrap().contains(&in_hex));
}

#[test]
fn catalog_that_cannot_be_backed_up_keeps_no_backup_from_being_made() {
    let shell = Shell::with_tree("");
    shell.ends(0, &["storage", "test", "main"]);
    std::fs::create_dir_all(shell.path("storage/backstay")).unwrap();
    std::fs::write(shell.path("storage/backstay/catalogs"), "in the way").unwrap();
    let told = shell.complains(0, &["backup", "shop"]);
    assert!(told.contains("the catalog was not backed up to"), "{told}");
    shell.ends(0, &["verify", "shop"]);
    assert!(shell.complains(1, &["catalog", "backup"]).contains("storage main"));
    std::fs::remove_file(shell.path("storage/backstay/catalogs")).unwrap();
    shell.ends(0, &["backup", "shop"]);
    assert_eq!(kept(&shell.path("storage/backstay")).len(), 1);
}

#[test]
fn of_several_catalogs_one_is_chosen_and_what_is_here_stays() {
    let one = Shell::with_tree("");
    one.ends(0, &["backup", "shop"]);
    one.ends(0, &["keys", "kit", "--output", "kit.txt"]);
    // Another machine with the same keys and vault.
    let other = Shell::with_tree("");
    let (storage, kit) = (one.path("storage").display().to_string(), one.path("kit.txt"));
    let own = other.path("storage").display().to_string();
    other.edit_config(&format!("path = '{own}'"), &format!("path = '{storage}'"));
    other.edit_config("sources.shop", "sources.office");
    other.ends(0, &["keys", "import", &kit.display().to_string()]);
    other.ends(0, &["backup", "office"]);
    let config = other.config();
    let listed = one.json(&["catalog", "list"]);
    assert_eq!(listed.as_array().unwrap().len(), 2, "{listed}");
    let not_own = listed.as_array().unwrap().iter().find(|one| one["own"] == false).unwrap();
    let theirs = not_own["catalog"].as_str().unwrap().to_owned();

    lose(&other);
    let kit = kit.display().to_string();
    let recover = ["recover", "--storage", &storage, "--kit", &kit];
    let wrong = [recover.as_slice(), &["--catalog", "x"]].concat();
    assert!(other.complains(2, &wrong).contains("means none of these"));
    // On a machine of another name none of them is meant.
    let mut elsewhere = Command::new("unshare");
    let plain = other.command(&recover);
    elsewhere.args(["--uts", "sh", "-c", "hostname elsewhere; exec \"$@\"", "sh"]);
    elsewhere.arg(plain.get_program()).args(plain.get_args()).current_dir(other.dir.path());
    for (name, value) in plain.get_envs() {
        elsewhere.env(name, value.unwrap_or_default());
    }
    let told = elsewhere.output().unwrap();
    let told = String::from_utf8_lossy(&told.stderr);
    assert!(told.contains("say which with --catalog"), "{told}");
    assert!(!other.path("backstay.toml").exists());
    // Of those of this name the newest is.
    let told = other.complains(0, &recover);
    assert!(told.contains("the newest of this machine's name"), "{told}");
    assert_eq!(other.config(), config);
    let chosen = [recover.as_slice(), &["--catalog", &theirs[..9]]].concat();
    other.ends(0, &chosen);
    // Once more: a configuration that was changed here since stays, and the other lies aside.
    other.set_config(format!("# mine\n{config}"));
    let told = other.complains(0, &chosen);
    assert!(told.contains("another configuration is in"), "{told}");
    assert!(other.config().starts_with("# mine"));
    let aside = other.path("home/recovered/backstay.toml");
    assert_eq!(std::fs::read_to_string(&aside).unwrap(), config);
    // And to where one is wanted.
    let elsewhere = [&["--config", "new.conf"], chosen.as_slice()].concat();
    other.ends(0, &elsewhere);
    assert_eq!(std::fs::read_to_string(other.path("new.conf")).unwrap(), config);
}

#[test]
fn what_somebody_without_keys_puts_among_the_backups_of_catalogs_is_not_taken() {
    let shell = Shell::with_tree("encryption = 'none'");
    let vault = shell.path("storage/backstay");
    shell.ends(0, &["backup", "shop"]);
    shell.ends(0, &["keys", "kit", "--output", "kit.txt"]);
    let config = shell.config();
    // A backup that is not sealed is closed by a digest, which anybody can compute.
    let catalog =
        std::fs::read_dir(vault.join("catalogs")).unwrap().next().unwrap().unwrap().path();
    let now = jiff::Timestamp::now() + jiff::SignedDuration::from_mins(1);
    let id = now.strftime("%Y%m%dT%H%M%SZ-22222222").to_string();
    let (id, now) = (id.as_str(), now.to_string());
    let now = now.as_str();
    let forged = catalog.join(id);
    std::fs::create_dir(&forged).unwrap();
    let evil =
        serde_json::json!({"path": shell.path("backstay.toml"), "text": "# evil", "since": now});
    let evil: String = evil.to_string().bytes().map(|byte| format!("{byte:02x}")).collect();
    let export =
        serde_json::json!({"format": 1, "settings": {}, "secrets": {"configuration": evil}});
    std::fs::write(shell.path("export"), export.to_string()).unwrap();
    let part = forged.join("catalog.json.zst");
    let packed = Command::new("zstd").arg(shell.path("export")).arg("-o").arg(&part).output();
    assert!(packed.unwrap().status.success());
    let plain =
        below(&vault.join("default")).into_iter().find(|path| path.ends_with("manifest.json"));
    let plain = std::fs::read(plain.unwrap()).unwrap();
    let mut manifest: serde_json::Value = serde_json::from_slice(&plain).unwrap();
    let catalog = catalog.file_name().unwrap().to_str().unwrap();
    for (name, value) in [("organisation", "catalogs"), ("source", catalog), ("backup", id)] {
        manifest[name] = value.into();
    }
    for (name, value) in [("started_at", now), ("finished_at", now)] {
        manifest[name] = value.into();
    }
    manifest["parts"] = serde_json::json!([{
        "name": "catalog.json", "media_type": "application/json", "codecs": ["zstd"], "plain_bytes": export.to_string().len(),
        "stored": {"layout": "whole", "object": "catalog.json.zst", "stored_bytes": std::fs::metadata(&part).unwrap().len(), "stored_sha256": sha256(&part)},
    }]);
    manifest["details"]["plain"]["plain_sha256"] =
        serde_json::json!([sha256(&shell.path("export"))]);
    manifest.as_object_mut().unwrap().remove("mac");
    let text = serde_json::to_string_pretty(&manifest).unwrap();
    let text = text.strip_suffix("\n}").unwrap();
    std::fs::write(shell.path("head"), text).unwrap();
    let text = format!("{text},\n  \"mac\": \"{}\"\n}}\n", sha256(&shell.path("head")));
    std::fs::write(forged.join("manifest.json"), text).unwrap();
    lose(&shell);
    let storage = shell.path("storage").display().to_string();
    let told = shell.complains(0, &["recover", "--storage", &storage, "--kit", "kit.txt"]);
    assert!(!told.contains("cannot be read"), "{told}");
    assert_eq!(shell.config(), config);
    let listed = shell.json(&["catalog", "list"]);
    assert_eq!(listed[0]["backups"].as_array().unwrap().len(), 1, "{listed}");
}

fn sha256(path: &Path) -> String {
    let sum = Command::new("sha256sum").arg(path).output().unwrap();
    String::from_utf8(sum.stdout[..64].to_vec()).unwrap()
}

#[test]
fn backups_of_the_catalog_that_are_gone_or_damaged_are_noticed_and_made_anew() {
    let shell = Shell::with_tree("");
    let catalogs = shell.path("storage/backstay/catalogs");
    shell.ends(0, &["backup", "shop"]);
    assert!(shell.ends(0, &["catalog", "backup"]).contains("has the catalog as it is"));
    std::fs::remove_dir_all(&catalogs).unwrap();
    assert!(shell.ends(0, &["catalog", "backup"]).contains("main: backup "));
    let first = kept(&shell.path("storage/backstay"));
    let is_part = |path: &PathBuf| path.to_string_lossy().ends_with(".zst.bks");
    let part = below(&catalogs).into_iter().find(is_part).unwrap();
    let mut bytes = std::fs::read(&part).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&part, bytes).unwrap();
    assert!(shell.complains(13, &["verify", "--all"]).contains("of the catalog is NOT GOOD"));
    assert!(shell.ends(0, &["catalog", "backup"]).contains("main: backup "));
    // A manifest that nobody can read hinders nothing.
    let newest = |name: &str| {
        let id = shell.json(&["catalog", "list"])[0]["backups"][0].as_str().unwrap().to_owned();
        let of_newest = |path: &PathBuf| path.to_string_lossy().contains(&id);
        below(&catalogs).into_iter().find(|path| of_newest(path) && path.ends_with(name)).unwrap()
    };
    std::fs::write(newest("manifest.json"), "nonsense").unwrap();
    shell.edit_config("[sources.shop]", "# newer\n[sources.shop]");
    assert!(shell.ends(0, &["catalog", "backup"]).contains("main: backup "));
    assert_eq!(kept(&shell.path("storage/backstay")).len(), first.len() + 2);
    // Of those that are damaged none is taken, and that is told.
    let config = shell.config();
    shell.edit_config("# newer", "# newest");
    shell.ends(0, &["catalog", "backup"]);
    std::fs::remove_file(newest("catalog.json.zst.bks")).unwrap();
    shell.ends(0, &["keys", "kit", "--output", "kit.txt"]);
    lose(&shell);
    let storage = shell.path("storage").display().to_string();
    let told = shell.complains(0, &["recover", "--storage", &storage, "--kit", "kit.txt"]);
    assert!(told.contains("is passed over"), "{told}");
    assert_eq!(shell.config(), config);
}

#[test]
fn what_commands_added_is_put_aside_where_it_goes_with_nothing_that_is_here() {
    let shell = Shell::with_tree("");
    let tree = shell.path("shop").display().to_string();
    let add = ["source", "add", "more", "--kind", "files", "--path", &tree, "--storage", "main"];
    shell.ends(0, &add);
    shell.ends(0, &["backup", "more"]);
    shell.ends(0, &["keys", "kit", "--output", "kit.txt"]);
    let exported = shell.ends(0, &["config", "export"]);
    lose(&shell);
    // Another configuration is here, which has no such storage.
    shell.set_config("");
    let storage = shell.path("storage").display().to_string();
    let told = shell.complains(0, &["recover", "--storage", &storage, "--kit", "kit.txt"]);
    assert!(told.contains("goes with a configuration that is not here"), "{told}");
    assert_eq!(
        std::fs::read_to_string(shell.path("home/recovered/added.toml")).unwrap().trim(),
        exported.trim()
    );
    assert_eq!(shell.json(&["backups"]).as_array().unwrap().len(), 1);
    shell.ends(0, &["restore", "more", "--yes"]);
}

#[test]
fn storage_that_stands_still_holds_no_backup_up_for_long() {
    let shell = Shell::with_tree("");
    shell.ends(0, &["backup", "shop"]);
    let catalogs = shell.path("storage/backstay/catalogs");
    let index = below(&catalogs).into_iter().find(|path| path.ends_with("index.json")).unwrap();
    std::fs::remove_file(&index).unwrap();
    let made = Command::new("mkfifo").arg(&index).status().unwrap();
    assert!(made.success());
    shell.edit_config("[sources.shop]", "# changed\n[sources.shop]");
    let mut backup = shell.command(&["backup", "shop"]);
    let backup = backup.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    wait_until("the backup is done", || {
        let jobs = shell.json(&["jobs", "list"]);
        jobs.as_array().unwrap().iter().filter(|job| job["state"] == "succeeded").count() == 2
    });
    let pid = rustix::process::Pid::from_child(&backup);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    let output = backup.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert!(String::from_utf8_lossy(&output.stdout).contains("complete"), "{output:?}");
}

#[test]
fn keys_come_back_although_the_configuration_misses_something_here() {
    let shell = Shell::with_tree("app = '${APP_NAME}'");
    for words in [&["backup", "shop"], ["keys", "kit", "--output", "kit.txt"].as_slice()] {
        assert!(shell.command(words).env("APP_NAME", "shop").status().unwrap().success());
    }
    lose(&shell);
    let storage = shell.path("storage").display().to_string();
    let output = shell.run(&["recover", "--storage", &storage, "--kit", "kit.txt"]);
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success() && told.contains("APP_NAME"), "{told}");
    let listed = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(listed.contains("complete"), "{listed}");
    let mut restore = shell.command(&["restore", "shop", "--yes"]);
    assert!(restore.env("APP_NAME", "shop").status().unwrap().success());
}

#[test]
fn configuration_of_a_shared_catalog_is_put_aside() {
    let server = PostgresServer::start();
    server.sql("postgres", "CREATE DATABASE catalog");
    let shell = Shell::with_tree("");
    shell.set_config(format!("catalog = '{}'\n{}", server.url("catalog"), shell.config()));
    shell.ends(0, &["backup", "shop"]);
    shell.ends(0, &["keys", "kit", "--output", "kit.txt"]);
    let config = shell.config();
    lose(&shell);
    let storage = shell.path("storage").display().to_string();
    let told = shell.complains(0, &["recover", "--storage", &storage, "--kit", "kit.txt"]);
    assert!(told.contains("names a shared catalog"), "{told}");
    assert!(!shell.path("backstay.toml").exists());
    let aside = below(&shell.path("home/recovered"));
    assert_eq!((aside.len(), std::fs::read_to_string(&aside[0]).unwrap()), (1, config));
    shell.ends(0, &["restore", "shop", "--yes"]);
}

#[test]
fn index_of_backups_is_made_anew_from_the_vaults() {
    let shell = Shell::with_tree("");
    for _ in 0..3 {
        shell.ends(0, &["backup", "shop"]);
    }
    let rows = || -> String {
        let catalog = rusqlite::Connection::open(shell.path("home/catalog.db")).unwrap();
        let select = "SELECT group_concat(source || backup || entry) FROM (SELECT * FROM backups ORDER BY backup)";
        catalog
            .query_row(select, [], |row| row.get::<_, Option<String>>(0))
            .unwrap()
            .unwrap_or_default()
    };
    let change = |sql: &str| {
        let catalog = rusqlite::Connection::open(shell.path("home/catalog.db")).unwrap();
        catalog.execute_batch(sql).unwrap();
    };
    shell.ends(0, &["backups"]);
    let before = rows();
    assert!(before.contains("shop"));
    for damage in ["DELETE FROM backups", "UPDATE backups SET entry = 'nonsense'"] {
        change(damage);
        assert_ne!(rows(), before);
        let told = shell.ends(0, &["catalog", "rebuild"]);
        assert!(told.contains("main: sources 1, backups 3"), "{told}");
        assert_eq!(rows(), before, "{damage}");
    }
    assert!(shell.json(&["backups"]).as_array().unwrap().iter().all(|one| one["orphaned"] != true));
}
