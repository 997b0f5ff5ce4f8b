//! Sets of databases: tenants are found by themselves, and come back all or none (H2, H12, H16-H20).

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use backstay_testkit::duckdb::{self, App};
use backstay_testkit::s3::S3Server;
use rusqlite::Connection;
use serde_json::Value;

use crate::shell::Shell;

const TENANTS: usize = 100;

/// A machine with an app below `app` whose databases are of this kind.
fn with_app(kind: &str) -> Shell {
    let shell = Shell::bare();
    std::fs::create_dir_all(shell.path("app/data/tenants")).unwrap();
    shell.set_config(format!(
        "[storages.main]\nprovider = 'local'\npath = '{}'\n\n[sources.app]\nkind = '{kind}'\npath = '{}'\nstorage = 'main'\n\
         members = {{ shared = 'data/app.db', tenants = 'data/tenants/*/app.db' }}\n",
        shell.path("storage").display(),
        shell.path("app").display(),
    ));
    shell
}

fn tenant(shell: &Shell, id: &str) -> PathBuf {
    shell.path(&format!("app/data/tenants/{id}/app.db"))
}

/// Makes a SQLite database whose rows nobody else has.
fn make(path: &Path, name: &str) {
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    let database = Connection::open(path).unwrap();
    let rows = (0..20).map(|n| format!("('{name}', {n})")).collect::<Vec<_>>().join(",");
    database
        .execute_batch(&format!(
            "CREATE TABLE t (name TEXT, n INTEGER); INSERT INTO t VALUES {rows}"
        ))
        .unwrap();
}

/// Returns what each database below the app holds.
fn content(shell: &Shell) -> BTreeMap<String, String> {
    let mut all = BTreeMap::new();
    let tenants = std::fs::read_dir(shell.path("app/data/tenants")).unwrap().flatten();
    let places = tenants.map(|entry| entry.path().join("app.db"));
    for path in places.chain([shell.path("app/data/app.db")]).filter(|path| path.is_file()) {
        let database = Connection::open(&path).unwrap();
        let rows = "SELECT group_concat(name || n ORDER BY name, n) FROM t";
        let rows: Result<String, _> = database.query_row(rows, [], |row| row.get(0));
        all.insert(path.display().to_string(), rows.unwrap_or_else(|error| error.to_string()));
    }
    all
}

fn names(value: &Value, field: &str) -> Vec<String> {
    let list = value.as_array().unwrap().iter();
    list.map(|one| one[field].as_str().unwrap().to_owned()).collect()
}

fn hundred() -> Shell {
    let shell = with_app("sqlite");
    make(&shell.path("app/data/app.db"), "shared");
    for id in 0..TENANTS {
        make(&tenant(&shell, &format!("Tenant {id}")), &format!("t{id}-"));
    }
    shell
}

#[test]
fn hundred_tenants_are_found_and_return_all_or_as_many_as_are_chosen() {
    let shell = hundred();
    let first = content(&shell);
    assert_eq!(first.len(), TENANTS + 1);
    let backup = shell.json(&["backup", "app"]);
    assert_eq!(backup["status"], "complete", "{backup}");
    let id = backup["id"].as_str().unwrap();
    assert_eq!(backup["parts"].as_array().unwrap().len(), TENANTS + 1);
    assert!(names(&backup["parts"], "name").contains(&"shared/database.db".to_owned()));
    // One is new, one is gone, one is damaged, one is locked; another has a directory and nothing in it.
    make(&tenant(&shell, "new"), "new");
    std::fs::remove_dir_all(tenant(&shell, "Tenant 7").parent().unwrap()).unwrap();
    let mut bytes = std::fs::read(tenant(&shell, "Tenant 8")).unwrap();
    bytes[4096..].fill(0x55);
    std::fs::write(tenant(&shell, "Tenant 8"), bytes).unwrap();
    std::fs::create_dir(shell.path("app/data/tenants/empty")).unwrap();
    let locked = Connection::open(tenant(&shell, "Tenant 9")).unwrap();
    locked.execute_batch("PRAGMA locking_mode = EXCLUSIVE; BEGIN EXCLUSIVE").unwrap();
    shell.ends(3, &["backup", "app"]);
    drop(locked);
    let newest = &shell.json(&["backups", "app"])[0];
    assert_eq!(newest["status"], "incomplete", "{newest}");
    let shown = shell.json(&["show", newest["id"].as_str().unwrap()]);
    let missing = ["tenants/Tenant 8", "tenants/Tenant 9"];
    assert_eq!(names(&shown["item_errors"], "item"), missing, "{shown}");
    assert!(shown["item_errors"][1]["error"].to_string().contains("locked"), "{shown}");
    assert_eq!(shown["parts"].as_array().unwrap().len(), TENANTS - 1, "{shown}");
    assert!(shown["warnings"].to_string().contains("tenants/empty/app.db"), "{shown}");
    // All of it, as it was; what is newer stays.
    let preview = shell.complains(0, &["restore", "app", "--id", id, "--dry-run"]);
    assert!(preview.contains("stays as it is: tenants/new"), "{preview}");
    assert!(preview.contains("101 databases, their views"), "{preview}");
    shell.ends(0, &["restore", "app", "--id", id, "--yes", "--no-safety-backup"]);
    let mut expected = first.clone();
    let new = tenant(&shell, "new").display().to_string();
    expected.insert(new, content(&shell)[&tenant(&shell, "new").display().to_string()].clone());
    assert_eq!(content(&shell), expected);
    shell.ends(0, &["confirm", "app"]);
    // Three of them, and back again.
    for id in ["Tenant 1", "Tenant 2", "Tenant 3", "Tenant 4"] {
        std::fs::remove_file(tenant(&shell, id)).unwrap();
        make(&tenant(&shell, id), "later");
    }
    let later = content(&shell);
    let chosen = [
        "--only",
        "tenants/Tenant 1",
        "--only",
        "tenants/Tenant [23]",
        "--only",
        "tenants/Tenant 2",
        "--only",
        "tenants/Tenant 3",
    ];
    let error =
        shell.complains(1, &[["restore", "app", "--id", id, "--yes"].as_slice(), &chosen].concat());
    assert!(error.contains("tenants/Tenant [23]"), "{error}");
    assert_eq!(content(&shell), later);
    let chosen =
        ["--only", "tenants/Tenant 1", "--only", "tenants/Tenant 2", "--only", "tenants/Tenant 3"];
    shell.ends(0, &[["restore", "app", "--id", id, "--yes"].as_slice(), &chosen].concat());
    let mut expected = later.clone();
    for id in ["Tenant 1", "Tenant 2", "Tenant 3"] {
        let path = tenant(&shell, id).display().to_string();
        expected.insert(path.clone(), first[&path].clone());
    }
    assert_eq!(content(&shell), expected);
    shell.ends(0, &["undo", "app"]);
    assert_eq!(content(&shell), later);
}

#[test]
fn member_that_cannot_come_back_keeps_all_of_them_as_they_are() {
    let shell = hundred();
    shell.ends(0, &["backup", "app"]);
    for id in ["Tenant 1", "Tenant 99"] {
        std::fs::remove_dir_all(tenant(&shell, id).parent().unwrap()).unwrap();
    }
    let before = content(&shell);
    let tenants = || {
        let mut found: Vec<PathBuf> = walk(&shell.path("app"));
        found.sort();
        found
    };
    let files = tenants();
    // An app holds one of them: the others are loaded by then.
    let held = Connection::open(tenant(&shell, "Tenant 50")).unwrap();
    held.execute_batch("BEGIN; SELECT * FROM t LIMIT 1").ok();
    let error = shell.complains(1, &["restore", "app", "--yes"]);
    assert!(error.contains("in use by process") && error.contains("Tenant 50"), "{error}");
    drop(held);
    assert_eq!((content(&shell), tenants()), (before.clone(), files.clone()));
    // One part of the hundred is another one than it was.
    let id = shell.json(&["backups", "app"]).as_array().unwrap().last().unwrap()["id"]
        .as_str()
        .unwrap()
        .to_owned();
    let objects = walk(&shell.path("storage"));
    let spoilt = objects.iter().filter(|path| {
        let path = path.display().to_string();
        path.contains(&id) && path.contains(&hex("Tenant 77")) && path.contains("database.db")
    });
    let spoilt: Vec<&PathBuf> = spoilt.collect();
    assert_eq!(spoilt.len(), 1);
    let mut bytes = std::fs::read(spoilt[0]).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(spoilt[0], bytes).unwrap();
    let error =
        shell.complains(13, &["restore", "app", "--id", &id, "--yes", "--no-safety-backup"]);
    assert!(error.contains("database.db"), "{error}");
    assert_eq!((content(&shell), tenants()), (before.clone(), files.clone()));
    // When everything is loaded and half of it in place, there is no place for one of them.
    let place = tenant(&shell, "Tenant 50").parent().unwrap().display().to_string();
    shell.set_config(format!(
        "{}before_restore = {{ run = ['mv', '{place}', '{place} aside'] }}\nafter_restore = {{ run = ['mv', '{place} aside', '{place}'] }}\n",
        shell.config()
    ));
    let id = shell.json(&["backups", "app"])[0]["id"].as_str().unwrap().to_owned();
    let error = shell.complains(1, &["restore", "app", "--id", &id, "--yes", "--no-safety-backup"]);
    assert!(error.contains("Tenant 50"), "{error}");
    assert_eq!((content(&shell), tenants()), (before, files));
}

#[test]
fn restore_that_is_killed_between_two_members_is_finished_by_the_next_command() {
    let shell = hundred();
    let backed_up = content(&shell);
    shell.ends(0, &["backup", "app"]);
    let mut kills_between = 0;
    for round in 0..6 {
        for path in backed_up.keys() {
            let later = "INSERT INTO t VALUES ('later', 1)";
            Connection::open(path).unwrap().execute(later, []).unwrap();
        }
        // Killed as soon as one of the members is another file, each time another one.
        let watched = tenant(&shell, &format!("Tenant {}", round * 17));
        let file = || std::fs::metadata(&watched).map(|meta| meta.ino()).ok();
        let before = file();
        let mut restoring = shell.command(&["restore", "app", "--yes", "--quiet"]).spawn().unwrap();
        while file() == before && restoring.try_wait().unwrap().is_none() {}
        restoring.kill().unwrap();
        restoring.wait().unwrap();
        let seen = content(&shell);
        let back = seen.iter().filter(|(path, rows)| backed_up.get(*path) == Some(*rows)).count();
        kills_between += usize::from(0 < back && back < seen.len());
        shell.ends(0, &["confirm", "app"]);
        assert_eq!(content(&shell), backed_up, "round {round}: {back} members were back");
    }
    assert!(kills_between > 0, "no kill came between two members");
    shell.ends(0, &["verify", "--all"]);
}

fn hex(name: &str) -> String {
    name.bytes().map(|byte| format!("{byte:02x}")).collect()
}

fn walk(directory: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(directory).unwrap().flatten() {
        if entry.file_type().unwrap().is_dir() {
            found.extend(walk(&entry.path()));
        }
        found.push(entry.path());
    }
    found
}

#[test]
fn set_goes_to_another_directory_and_to_a_machine_that_lost_everything() {
    let shell = with_app("sqlite");
    make(&shell.path("app/data/app.db"), "shared");
    make(&tenant(&shell, "a"), "a");
    make(&tenant(&shell, "b"), "b");
    make(&tenant(&shell, &"Ü".repeat(100)), "long");
    let before = content(&shell);
    shell.ends(0, &["backup", "app"]);
    let other = shell.path("elsewhere");
    shell.ends(0, &["restore", "app", "--to", other.to_str().unwrap(), "--yes"]);
    let rows = |path: &Path| -> i64 {
        Connection::open(path)
            .unwrap()
            .query_row("SELECT count(*) FROM t", [], |row| row.get(0))
            .unwrap()
    };
    for path in ["data/app.db", "data/tenants/a/app.db", "data/tenants/b/app.db"] {
        assert_eq!(rows(&other.join(path)), 20, "{path}");
    }
    let error = shell.complains(1, &["restore", "app", "--to", other.to_str().unwrap(), "--yes"]);
    assert!(error.contains("exists already"), "{error}");
    // Not to its own place by another way either: nobody makes a safety backup for `--to`.
    let own = shell.path("app");
    let error = shell.complains(1, &["restore", "app", "--to", own.to_str().unwrap(), "--yes"]);
    assert!(error.contains("exists already"), "{error}");
    assert_eq!(content(&shell), before);
    let checks = "checks = [{ name = 'rows', database = 'tenants/a', query = 'SELECT count(*) FROM t', expect = '20' }]\n";
    let config = shell.config();
    shell.set_config(config.clone() + checks);
    shell.ends(0, &["drill", "app"]);
    shell.set_config(config.clone() + &checks.replace("tenants/a", "tenants/z"));
    let said = shell.ends(1, &["drill", "app"]);
    assert!(said.contains("tenants/z"), "{said}");
    // Nothing is left of the app, and nothing is known of the source but what its backups say.
    std::fs::remove_dir_all(shell.path("app")).unwrap();
    shell.set_config(config.split("[sources.app]").next().unwrap());
    shell.ends(0, &["restore", "app", "--yes"]);
    assert_eq!(content(&shell), before);
}

#[test]
fn what_waits_for_undo_is_kept_when_one_database_becomes_a_set_of_several() {
    let shell = with_app("sqlite");
    make(&shell.path("app/data/app.db"), "shared");
    let set = shell.config();
    let single =
        set.lines().filter(|line| !line.starts_with("members")).collect::<Vec<_>>().join("\n");
    let own = format!("path = '{}'", shell.path("app").display());
    shell.set_config(
        single.replace(&own, &format!("path = '{}'", shell.path("app/data/app.db").display()))
            + "\n",
    );
    shell.ends(0, &["backup", "app"]);
    shell.ends(0, &["restore", "app", "--yes"]);
    let beside = || {
        walk(&shell.path("app"))
            .iter()
            .filter(|path| path.display().to_string().ends_with("replaced/app.db"))
            .count()
    };
    assert_eq!(beside(), 1);
    shell.set_config(set);
    shell.ends(0, &["backup", "app"]);
    shell.ends(0, &["restore", "app", "--yes"]);
    assert_eq!(beside(), 2);
}

#[test]
fn tenants_return_from_s3_without_anybody_naming_a_snapshot() {
    let server = S3Server::start().unwrap();
    let shell = Shell::with_bucket(&server);
    let storage = shell.config().split("[sources").next().unwrap().to_owned();
    let name = storage.split("[storages.").nth(1).unwrap().split(']').next().unwrap().to_owned();
    shell.set_config(format!(
        "{storage}[sources.app]\nkind = 'sqlite'\npath = '{}'\nstorage = '{name}'\nmembers = {{ tenants = 'data/tenants/*/app.db' }}\n",
        shell.path("app").display(),
    ));
    make(&tenant(&shell, "a"), "a");
    make(&tenant(&shell, "b"), "b");
    let first = content(&shell);
    shell.ends(0, &["backup", "app"]);
    let between = jiff::Timestamp::now().to_string();
    make(&tenant(&shell, "c"), "c");
    let second = content(&shell);
    shell.ends(0, &["backup", "app"]);
    std::fs::remove_dir_all(shell.path("app")).unwrap();
    shell.ends(0, &["restore", "app", "--latest", "--yes"]);
    assert_eq!(content(&shell), second);
    std::fs::remove_dir_all(shell.path("app")).unwrap();
    shell.ends(0, &["restore", "app", "--at", &between, "--yes"]);
    assert_eq!(content(&shell), first);
    shell.ends(0, &["restore", "app", "--only", "tenants/c", "--yes"]);
    assert_eq!(content(&shell), second);
}

#[test]
fn named_member_that_is_missing_and_a_set_of_nothing_are_told() {
    let shell = with_app("sqlite");
    make(&tenant(&shell, "a"), "a");
    let said = shell.ends(3, &["backup", "app", "--json"]);
    assert!(said.contains("data/app.db does not exist"), "{said}");
    std::fs::remove_dir_all(tenant(&shell, "a").parent().unwrap()).unwrap();
    let error = shell.complains(1, &["backup", "app"]);
    assert!(error.contains("data/app.db does not exist"), "{error}");
    shell.edit_config("shared = 'data/app.db', ", "");
    let error = shell.complains(1, &["backup", "app"]);
    assert!(error.contains("nothing below it is like tenants = data/tenants/*/app.db"), "{error}");
    for (from, to, finding) in [
        ("data/tenants/*/app.db", "/etc/*.db", "expected a path below `path`"),
        ("data/tenants/*/app.db", "*/*/app.db", "at most one `*`"),
        (
            "kind = 'sqlite'",
            "kind = 'files'",
            "only a source of kind `sqlite` or `duckdb` has them",
        ),
    ] {
        let config = shell.config();
        shell.edit_config(from, to);
        let error = shell.complains(2, &["backup", "app"]);
        assert!(error.contains(finding), "{error}");
        shell.set_config(config);
    }
}

#[test]
fn tenants_in_duckdb_return_and_one_that_is_locked_is_named() {
    let shell = with_app("duckdb");
    shell.set_config(shell.config() + &format!("programs = '{}'\n", duckdb::programs().display()));
    let make = |path: &Path, name: &str| {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        let rows = format!(
            "CREATE TABLE t AS SELECT '{name}' AS name, range::HUGEINT AS n FROM range(100)"
        );
        duckdb::sql(path, &rows);
    };
    make(&shell.path("app/data/app.db"), "shared");
    let ids: Vec<String> = (0..8).map(|id| format!("{id}")).collect();
    ids.iter().for_each(|id| make(&tenant(&shell, id), id));
    let digests = || -> Vec<String> {
        let tenants = ids.iter().map(|id| duckdb::digest(&tenant(&shell, id)));
        tenants.chain([duckdb::digest(&shell.path("app/data/app.db"))]).collect()
    };
    let before = digests();
    let backup = shell.json(&["backup", "app"]);
    assert_eq!(backup["status"], "complete", "{backup}");
    let app = App::writing(&tenant(&shell, "5"));
    shell.ends(3, &["backup", "app"]);
    let newest = shell.json(&["backups", "app"])[0]["id"].as_str().unwrap().to_owned();
    let shown = shell.json(&["show", &newest]);
    assert_eq!(names(&shown["item_errors"], "item"), ["tenants/5"], "{shown}");
    assert!(shown["item_errors"].to_string().contains(&format!("PID {}", app.pid())), "{shown}");
    drop(app);
    for id in &ids {
        duckdb::sql(&tenant(&shell, id), "DELETE FROM t WHERE n > 5");
    }
    let id = backup["id"].as_str().unwrap();
    shell.ends(0, &["restore", "app", "--id", id, "--yes"]);
    assert_eq!(digests(), before);
}
