//! Several organisations in one installation: each has storages and sources of its own, and sees no other's (D2, D8, ADR 21).

use serde_json::Value;

use crate::members::Office;
use crate::serve::states;
use crate::shell::{PASSPHRASE, Shell};
use crate::workers::Fleet;

/// A machine of two organisations: `shop` is the default one's, `crm` is acme's, each with a storage and a file.
fn two() -> Shell {
    let shell = Shell::bare();
    let part = |name: &str, storage: &str, whose: &str| {
        std::fs::create_dir(shell.path(name)).unwrap();
        std::fs::write(shell.path(name).join("a.txt"), name).unwrap();
        format!(
            "[storages.{storage}]\nprovider = 'local'\npath = '{}'\n{whose}\n\n[sources.{name}]\nkind = 'files'\npath = '{}'\nstorage = '{storage}'\n\n",
            shell.path(storage).display(),
            shell.path(name).display(),
        )
    };
    let ours = part("shop", "ours", "");
    let theirs = part("crm", "theirs", "organisation = 'acme'");
    shell.set_config(ours + &theirs);
    shell
}

fn names(listed: &Value, field: &str) -> Vec<String> {
    let name = |one: &Value| one[field].as_str().unwrap().to_owned();
    listed.as_array().unwrap().iter().map(name).collect()
}

#[test]
fn sources_are_backed_up_to_where_their_organisation_is_and_come_back_from_there() {
    let shell = two();
    shell.ends(0, &["backup", "--all"]);
    assert!(shell.path("ours/backstay/default/shop").exists());
    assert!(shell.path("theirs/backstay/acme/crm").exists());
    assert!(!shell.path("theirs/backstay/default").exists());
    // Whoever has the machine sees all.
    let mut all = names(&shell.json(&["backups"]), "source");
    all.sort();
    assert_eq!(all, ["crm", "shop"]);
    shell.ends(0, &["status"]);
    shell.ends(0, &["verify", "--all"]);
    shell.ends(0, &["check"]);
    shell.ends(0, &["prune"]);
    shell.ends(0, &["drill", "crm"]);
    std::fs::write(shell.path("crm/a.txt"), "newer").unwrap();
    shell.ends(0, &["restore", "crm", "--yes"]);
    assert_eq!(std::fs::read_to_string(shell.path("crm/a.txt")).unwrap(), "crm");
    shell.ends(0, &["undo", "crm"]);
    assert_eq!(std::fs::read_to_string(shell.path("crm/a.txt")).unwrap(), "newer");
    shell.ends(0, &["forget"]);
    // The machine is lost; a storage of either and the kit bring all back.
    shell.ends(0, &["keys", "kit", "--output", "kit"]);
    shell.ends(0, &["backup", "--all"]);
    for storage in ["ours", "theirs"] {
        let home = format!("home-{storage}");
        let place = shell.path(storage).join("backstay").display().to_string();
        let recover = ["recover", "--storage", &place, "--kit", "kit", "--home", &home];
        let mut command = shell.command(&recover);
        command.env("BACKSTAY_KIT_PASSPHRASE", PASSPHRASE).env_remove("BACKSTAY_HOME");
        assert!(command.output().unwrap().status.success(), "{storage}");
        for source in ["crm", "shop"] {
            let to = format!("{source}-of-{storage}");
            let words = ["--home", &home, "restore", source, "--to", &to, "--yes"];
            shell.ends(0, &words);
            let found = std::fs::read_to_string(shell.path(&to).join("a.txt")).unwrap();
            assert_eq!(found, std::fs::read_to_string(shell.path(source).join("a.txt")).unwrap());
        }
    }
}

/// D2: another organisation cannot see it, by whatever name or id it asks.
#[test]
fn member_sees_what_is_its_organisations_and_of_all_else_nothing() {
    let office = Office::new(two());
    office.add("anna", &["--organisation", "acme", "--role", "owner"]);
    office.server.complains(2, &["members", "add", "eve", "--organisation", "nobody"]);
    let _serving = office.serve(&[]);
    let (theirs, ours) =
        (office.json("anna", &["backup", "crm"]), office.json("owner", &["backup", "--all"]));
    let (id, our_id) = (theirs["id"].as_str().unwrap(), ours["id"].as_str().unwrap());
    let job =
        |member: &str| office.json(member, &["jobs", "list"])[0]["id"].as_str().unwrap().to_owned();
    let (job, our_job) = (job("anna"), job("owner"));
    office.ends(0, "owner", &["hold", our_id]);
    for (member, source, storage, backup) in
        [("anna", "crm", "theirs", id), ("owner", "shop", "ours", our_id)]
    {
        assert_eq!(names(&office.json(member, &["source", "list"]), "name"), [source]);
        assert_eq!(names(&office.json(member, &["storage", "list"]), "name"), [storage]);
        for words in [&["backups"][..], &["backups", "--newest", "9"]] {
            assert_eq!(names(&office.json(member, words), "id"), [backup]);
        }
        assert_eq!(names(&office.json(member, &["status"]), "source"), [source]);
        assert_eq!(names(&office.json(member, &["jobs", "list"]), "source"), [source]);
    }
    assert_eq!(
        office.json("anna", &["audit"]),
        Value::Array(Vec::new()),
        "theirs was changed by none"
    );
    for words in [
        &["backup", "shop"][..],
        &["drill", "shop"],
        &["source", "test", "shop"],
        &["storage", "test", "ours"],
        &["backups", "shop"],
        &["show", our_id],
        &["hold", our_id],
        &["release", our_id],
        &["delete", our_id, "--yes"],
        &["jobs", "show", &our_job],
        &["jobs", "cancel", &our_job],
        &["jobs", "delete", &our_job],
        &["guard", "--source", "shop", "--", "touch", "ran"],
    ] {
        let said = office.ends(2, "anna", words);
        assert!(said.contains("no ") && !said.contains("known: ours"), "{words:?}: {said}");
    }
    assert_eq!(office.json("anna", &["jobs", "list", "shop"]), Value::Array(Vec::new()));
    office.ends(2, "owner", &["jobs", "show", &job]);
    // Nor the other way, and nothing was done.
    office.ends(2, "owner", &["delete", id, "--yes"]);
    assert_eq!(states(&office.server), ["succeeded", "succeeded"]);
    assert_eq!(office.server.json(&["backups"]).as_array().unwrap().len(), 2);
    office.ends(0, "anna", &["delete", id, "--yes"]);
    assert_eq!(office.json("anna", &["audit"]).as_array().unwrap().len(), 1);
}

#[test]
fn organisations_that_would_share_a_vault_or_an_archive_are_refused() {
    let shell = two();
    let good = shell.config();
    let (ours, theirs) = (shell.path("ours"), shell.path("theirs"));
    shell.set_config(good.replace(&theirs.display().to_string(), &ours.display().to_string()));
    let error = shell.complains(2, &["config", "check"]);
    assert!(error.contains("found the place of storage ours of organisation default"), "{error}");
    shell.set_config(good.replace("'acme'", "'keys'"));
    let error = shell.complains(2, &["config", "check"]);
    assert!(error.contains("storages.theirs.organisation: expected a name"), "{error}");
    shell.set_config(format!(
        "{good}[sources.db]\nkind = 'sqlite'\npath = '/nowhere.db'\nstorage = 'ours'\n\n\
         [archives.old]\nsource = 'db'\ntable = 'hits'\ncolumn = 'at'\nolder_than = '90d'\nstorage = 'theirs'\n"
    ));
    let error = shell.complains(2, &["config", "check"]);
    assert!(error.contains("found one of organisation acme, expected one of default"), "{error}");
    shell.set_config(good);
    shell.ends(0, &["config", "check"]);
}

#[test]
fn worker_backs_up_to_where_the_organisation_of_its_source_is() {
    let fleet = Fleet::new("worker = 'db1'");
    fleet.server.edit_config("provider = 's3'", "provider = 's3'\norganisation = 'acme'");
    let _serving = fleet.serve();
    fleet.invite(&["--name", "db1"]);
    let _working = fleet.work(&["--name", "db1"]);
    backstay_testkit::daemon::wait_until("the worker is there", || fleet.worker_is_there());
    fleet.server.ends(0, &["backup", "shop"]);
    assert!(fleet.bucket.bucket().join("backstay/acme/shop").exists());
    fleet.server.ends(0, &["drill", "shop"]);
    fleet.server.ends(0, &["restore", "shop", "--to", "copy", "--yes"]);
    assert_eq!(std::fs::read_to_string(fleet.server.path("copy/a.txt")).unwrap(), "content");
}

#[test]
fn jobs_that_are_older_than_organisations_are_of_the_one_that_there_was() {
    let office = Office::new(two());
    office.server.ends(0, &["backup", "shop"]);
    let catalog = rusqlite::Connection::open(office.server.path("home/catalog.db")).unwrap();
    catalog.execute("UPDATE jobs SET organisation = ''", []).unwrap();
    drop(catalog);
    let _serving = office.serve(&[]);
    assert_eq!(office.json("viewer", &["jobs", "list"]).as_array().unwrap().len(), 1);
}

#[test]
fn vault_is_of_one_organisation_by_whatever_name_it_is_reached_and_whatever_is_said_later() {
    let office = Office::new(two());
    office.add("anna", &["--organisation", "acme", "--role", "owner"]);
    let good = office.server.config();
    office.server.ends(0, &["backup", "shop"]);
    let (ours, link) = (office.server.path("ours"), office.server.path("link"));
    std::os::unix::fs::symlink(&ours, &link).unwrap();
    let theirs = office.server.path("theirs").display().to_string();
    office.server.set_config(good.replace(&theirs, &link.display().to_string()));
    let error = office.server.complains(2, &["backup", "crm"]);
    assert!(error.contains("has the backups of organisation default"), "{error}");
    let serving = office.serve(&[]);
    let said = office.ends(2, "anna", &["backups"]);
    assert!(said.contains("has the backups of organisation default"), "{said}");
    serving.end();
    // Who gives a storage to another is told what is wrong, and not that all is lost.
    let given = "[storages.ours]\norganisation = 'acme'";
    office.server.set_config(good.replace("[storages.ours]", given));
    for words in [&["backups"][..], &["restore", "shop", "--to", "x", "--yes"], &["backup", "shop"]]
    {
        let error = office.server.complains(2, words);
        assert!(error.contains("take that back, or give acme a prefix of its own"), "{error}");
    }
    office.server.set_config(&good);
    office.server.ends(0, &["restore", "shop", "--to", "x", "--yes"]);
    let nested = good.replace(&theirs, &ours.join("backstay/default").display().to_string());
    office.server.set_config(nested);
    let error = office.server.complains(2, &["config", "check"]);
    assert!(error.contains("storages.theirs.prefix: found the place of"), "{error}");
}

#[test]
fn name_that_another_organisations_source_had_shows_nothing_of_that() {
    let office = Office::new(two());
    office.add("anna", &["--organisation", "acme", "--role", "owner"]);
    office.server.ends(0, &["backup", "shop"]);
    std::fs::rename(office.server.path("shop"), office.server.path("gone")).unwrap();
    office.server.complains(1, &["backup", "shop"]);
    std::fs::rename(office.server.path("gone"), office.server.path("shop")).unwrap();
    let good = office.server.config();
    let swapped =
        good.replace("sources.shop", "sources.other").replace("sources.crm", "sources.shop");
    office.server.set_config(swapped);
    office.server.ends(0, &["hold", &newest(&office.server), "--reason", "secret merger"]);
    let _serving = office.serve(&[]);
    assert_eq!(office.json("anna", &["jobs", "list", "shop"]), Value::Array(Vec::new()));
    let status = office.json("anna", &["status"]);
    assert_eq!((&status[0]["last_job"], &status[0]["source"]), (&Value::Null, &"shop".into()));
    assert!(!status[0]["troubles"].to_string().contains("does not exist"), "{status}");
    // What was done on the machine itself to what could be anybody's is for the machine alone.
    for member in ["anna", "owner"] {
        let audit = office.json(member, &["audit"]).to_string();
        assert!(!audit.contains("hold"), "{audit}");
    }
    assert!(office.server.json(&["audit"]).to_string().contains("hold"));
}

fn newest(shell: &Shell) -> String {
    shell.json(&["backups"])[0]["id"].as_str().unwrap().to_owned()
}

#[test]
fn settings_that_come_back_say_themselves_whose_all_is() {
    let shell = Shell::bare();
    for (name, more) in [("main", None), ("theirs", Some("organisation = 'acme'"))] {
        let path = shell.path(name).display().to_string();
        let set = more.map(|line| ["--set", line]);
        let words = ["storage", "add", name, "--path", &path];
        shell.ends(0, &[&words[..], set.as_ref().map_or(&[], |set| &set[..])].concat());
    }
    for (name, storage) in [("shop", "main"), ("crm", "theirs")] {
        let path = shell.path(&format!("tree-{name}"));
        std::fs::create_dir(&path).unwrap();
        std::fs::write(path.join("a.txt"), name).unwrap();
        let path = path.display().to_string();
        let words = ["source", "add", name, "--kind", "files", "--path", &path];
        shell.ends(0, &[&words[..], &["--storage", storage]].concat());
    }
    shell.ends(0, &["backup", "--all"]);
    shell.ends(0, &["keys", "kit", "--output", "kit"]);
    let place = shell.path("theirs/backstay").display().to_string();
    let recover = ["recover", "--storage", &place, "--kit", "kit", "--home", "new"];
    shell.ends(0, &[&recover[..], &["--organisation", "acme"]].concat());
    for name in ["shop", "crm"] {
        let to = format!("{name}-back");
        shell.ends(0, &["--home", "new", "restore", name, "--to", &to, "--yes"]);
        assert_eq!(std::fs::read_to_string(shell.path(&to).join("a.txt")).unwrap(), name);
    }
}
