//! Restoring a database never touches the catalog, whatever a source is said to be of (ADR 25).

use std::fs;

use backstay_testkit::daemon::wait_until;
use backstay_testkit::postgres::PostgresServer;

use crate::shell::Shell;
use crate::workers::Fleet;

/// A server with an app's database and one that will be the catalog's.
fn server() -> PostgresServer {
    let server = PostgresServer::start();
    for name in ["crm", "catalog"] {
        server.sql("postgres", &format!("CREATE DATABASE {name}"));
        server.sql(name, "CREATE TABLE things (id int)");
        server.sql(name, "INSERT INTO things SELECT generate_series(1, 10)");
    }
    server
}

/// Sources of that server: all of it, and the one database that will be the catalog's.
fn sources(server: &PostgresServer) -> String {
    let programs = server.programs().display();
    let source = |name: &str, url: &str, more: &str| {
        format!(
            "[sources.{name}]\nkind = 'postgres'\nurl = '{url}'\nprograms = '{programs}'\nstorage = 'main'\n{more}\n"
        )
    };
    let all = source("all", &server.url("postgres"), "databases = ['*', '!postgres']");
    all + &source("own", &server.url("catalog"), "")
}

/// A machine that has backups of both sources from before its catalog came there.
fn moved_in(server: &PostgresServer) -> Shell {
    let shell = Shell::bare();
    let config = format!(
        "[storages.main]\nprovider = 'local'\npath = '{}'\n\n{}",
        shell.path("storage").display(),
        sources(server)
    );
    shell.set_config(&config);
    shell.ends(0, &["backup", "--all"]);
    shell.ends(0, &["keys", "export", "--output", "keys.txt"]);
    fs::remove_dir_all(shell.path("home")).unwrap();
    shell.set_config(format!("catalog = '{}'\n{config}", server.url("catalog")));
    shell.ends(0, &["keys", "import", "keys.txt"]);
    shell
}

fn databases(server: &PostgresServer) -> String {
    server.sql("postgres", "SELECT datname FROM pg_database WHERE NOT datistemplate ORDER BY 1")
}

#[test]
fn catalog_on_a_server_that_is_restored_whole_stays_as_it_is() {
    let server = server();
    let shell = moved_in(&server);
    server.sql("crm", "DELETE FROM things");
    server.sql("catalog", "DELETE FROM things");
    let told = shell.complains(0, &["restore", "all", "--yes"]);
    assert!(told.contains("database catalog is left out: it is Backstay's own catalog"), "{told}");
    assert!(told.contains("do not come back: catalog"), "{told}");
    let count = |name: &str| server.sql(name, "SELECT count(*) FROM things").trim().to_owned();
    assert_eq!((count("crm").as_str(), count("catalog").as_str()), ("10", "0"));
    assert_eq!(databases(&server).matches("backstay_old_").count(), 1, "{}", databases(&server));
    let jobs = shell.json(&["jobs", "list"]);
    assert_eq!(jobs[0]["state"], "succeeded", "{jobs}");
    shell.ends(0, &["undo", "all"]);
    assert_eq!(count("crm"), "0");
    // Nor is it in new backups, and that is no gap.
    shell.ends(0, &["backup", "all"]);
    let newest = shell.json(&["backups", "all"])[0]["id"].as_str().unwrap().to_owned();
    let shown = shell.json(&["show", &newest]);
    let parts = shown["parts"].to_string();
    assert!(parts.contains("crm") && !parts.contains("catalog"), "{parts}");
}

#[test]
fn source_that_is_the_catalog_itself_is_neither_backed_up_nor_restored() {
    let server = server();
    let shell = moved_in(&server);
    server.sql("catalog", "DELETE FROM things");
    for words in [&["backup", "own"][..], &["source", "test", "own"], &["restore", "own", "--yes"]]
    {
        let told = shell.complains(1, words);
        assert!(told.contains("catalog is Backstay's own catalog"), "{told}");
    }
    assert_eq!(server.sql("catalog", "SELECT count(*) FROM things").trim(), "0");
    // A copy beside is nobody's catalog.
    shell.ends(0, &["restore", "own", "--to", "copy", "--yes"]);
    assert_eq!(server.sql("copy", "SELECT count(*) FROM things").trim(), "10");
}

#[test]
fn worker_spares_the_catalog_of_its_server() {
    let server = server();
    let fleet = Fleet::new("worker = 'db1'");
    let on_worker =
        sources(&server).replace("storage = 'main'", "storage = 'main'\nworker = 'db1'");
    let config = fleet.server.config();
    fleet
        .server
        .set_config(format!("catalog = '{}'\n{config}\n{on_worker}", server.url("catalog")));
    let _serving = fleet.serve();
    fleet.invite(&["--name", "db1"]);
    let _working = fleet.work(&["--name", "db1"]);
    wait_until("the worker is there", || fleet.worker_is_there());
    let told = fleet.server.complains(1, &["backup", "own"]);
    assert!(told.contains("catalog is Backstay's own catalog"), "{told}");
    fleet.server.ends(0, &["backup", "all"]);
    let shown = fleet.server.json(&["backups", "all"]).to_string();
    assert!(shown.contains("crm") && !shown.contains("catalog/"), "{shown}");
}

#[test]
fn tree_with_the_home_directory_in_it_is_not_restored_in_its_own_place() {
    let shell = Shell::with_tree("");
    let moved = shell.path("shop/backstay");
    let home = moved.to_str().unwrap();
    shell.ends(0, &["--home", home, "backup", "shop"]);
    let warned = shell.complains(0, &["--home", home, "source", "test", "shop"]);
    assert!(warned.contains("own home directory"), "{warned}");
    fs::write(shell.path("shop/a.txt"), "after").unwrap();
    for only in [&[][..], &["--only", "backstay"], &["--only", "backstay/catalog.db"]] {
        let words = [&["--home", home, "restore", "shop", "--yes"][..], only].concat();
        let refused = shell.complains(2, &words);
        assert!(refused.contains("own home directory"), "{refused}");
    }
    assert_eq!(fs::read_to_string(shell.path("shop/a.txt")).unwrap(), "after");
    shell.ends(0, &["--home", home, "restore", "shop", "--yes", "--only", "a.txt"]);
    assert_eq!(fs::read_to_string(shell.path("shop/a.txt")).unwrap(), "before");
    let beside = shell.path("beside");
    shell.ends(0, &["--home", home, "restore", "shop", "--yes", "--to", beside.to_str().unwrap()]);
    shell.ends(0, &["--home", home, "verify", "--all"]);
}

#[test]
fn set_with_the_catalog_among_its_databases_is_restored_without_it_only() {
    let shell = Shell::bare();
    fs::create_dir_all(shell.path("lib/app")).unwrap();
    let database = shell.path("lib/app/app.db");
    let sql = |text: &str| {
        let output =
            std::process::Command::new("sqlite3").arg(&database).arg(text).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    };
    sql("CREATE TABLE t (n int); INSERT INTO t VALUES (1)");
    shell.set_config(format!(
        "[storages.main]\nprovider = 'local'\npath = '{}'\n\n[sources.all]\nkind = 'sqlite'\npath = '{}'\nstorage = 'main'\n\
         members = {{ app = 'app/app.db', any = 'lib-*/catalog.db' }}\n",
        shell.path("storage").display(),
        shell.path("lib").display(),
    ));
    let home = shell.path("lib/lib-backstay");
    let home = home.to_str().unwrap();
    shell.ends(0, &["--home", home, "backup", "all"]);
    let warned = shell.complains(0, &["--home", home, "source", "test", "all"]);
    assert!(warned.contains("own home directory"), "{warned}");
    sql("UPDATE t SET n = 2");
    let refused = shell.complains(2, &["--home", home, "restore", "all", "--yes"]);
    assert!(refused.contains("own home directory"), "{refused}");
    assert_eq!(sql("SELECT n FROM t"), "2");
    shell.ends(0, &["--home", home, "restore", "all", "--yes", "--only", "app"]);
    assert_eq!(sql("SELECT n FROM t"), "1");
}
