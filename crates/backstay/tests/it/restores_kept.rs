//! What restores and their undoing put away is kept, and found again (V48, V50).

use std::fs;

use backstay_testkit::daemon::wait_until;
use backstay_testkit::postgres::PostgresServer;
use backstay_testkit::s3::{Fault, S3Server};

use crate::postgres::with_database;
use crate::shell::Shell;

/// A machine whose tree was backed up, changed, and restored; what was changed lies beside.
fn restored(more: &str) -> Shell {
    let shell = Shell::with_tree(more);
    shell.ends(0, &["backup", "shop"]);
    fs::write(shell.path("shop/a.txt"), "after").unwrap();
    shell.ends(0, &["restore", "shop", "--yes"]);
    assert_eq!(read(&shell), "before");
    shell
}

fn read(shell: &Shell) -> String {
    fs::read_to_string(shell.path("shop/a.txt")).unwrap()
}

fn in_catalog(shell: &Shell, update: &str) {
    let catalog = rusqlite::Connection::open(shell.path("home/catalog.db")).unwrap();
    assert_eq!(catalog.execute(update, []).unwrap(), 1);
}

/// All that lies beside the tree, whatever it is called.
fn beside(shell: &Shell) -> Vec<String> {
    let files = backstay_testkit::tree::files_below(shell.dir.path()).unwrap();
    let is_beside = |path: &std::path::PathBuf| path.to_string_lossy().contains(".backstay-");
    let files = files.into_iter().map(|path| shell.dir.path().join(path)).filter(is_beside);
    files.map(|path| fs::read_to_string(path).unwrap()).collect()
}

#[test]
fn what_an_undo_put_away_is_kept_for_its_own_time() {
    let shell = restored("");
    fs::write(shell.path("shop/a.txt"), "written since").unwrap();
    in_catalog(&shell, "UPDATE swaps SET undo_until = 1");
    shell.ends(0, &["undo", "shop"]);
    assert_eq!(read(&shell), "after");
    shell.ends(0, &["backup", "shop"]);
    assert_eq!(beside(&shell), ["written since"]);
}

#[test]
fn what_a_restore_replaced_is_kept_from_the_moment_it_was_replaced() {
    // Loading and saving may take longer than what was there is kept.
    let shell =
        Shell::with_tree("before_restore = { run = ['sh', '-c', 'date +%s%6N > stopped'] }");
    shell.ends(0, &["backup", "shop"]);
    shell.ends(0, &["restore", "shop", "--yes"]);
    let catalog = rusqlite::Connection::open(shell.path("home/catalog.db")).unwrap();
    let query = "SELECT made_at, undo_until FROM swaps";
    let (made_at, until): (i64, i64) =
        catalog.query_row(query, [], |row| Ok((row.get(0)?, row.get(1)?))).unwrap();
    let stopped: i64 = fs::read_to_string(shell.path("stopped")).unwrap().trim().parse().unwrap();
    assert!(made_at >= stopped && until > made_at, "{made_at} {until} {stopped}");
}

#[test]
fn restore_that_was_interrupted_long_ago_is_finished_by_nobody_who_did_not_ask() {
    let shell = restored("");
    let catalog = rusqlite::Connection::open(shell.path("home/catalog.db")).unwrap();
    let swap: String = catalog.query_row("SELECT swap FROM swaps", [], |row| row.get(0)).unwrap();
    shell.ends(0, &["undo", "shop"]);
    // As if it had been killed before its swap, and the app had gone on.
    let killed = "UPDATE swaps SET state = 'begun', undo_until = 1, made_at = 1, swap = $1";
    assert_eq!(catalog.execute(killed, [swap]).unwrap(), 1);
    drop(catalog);
    let error = shell.complains(1, &["backup", "shop"]);
    assert!(error.contains("was interrupted at") && error.contains("backstay confirm"), "{error}");
    assert_eq!(read(&shell), "after");
    // One that is news is finished, and what it put away is kept from then on.
    let now = jiff::Timestamp::now().as_microsecond();
    in_catalog(&shell, &format!("UPDATE swaps SET made_at = {now}"));
    shell.ends(0, &["backup", "shop"]);
    assert_eq!(read(&shell), "before");
    shell.ends(0, &["backup", "shop"]);
    assert_eq!(beside(&shell), ["after"]);
    shell.ends(0, &["undo", "shop"]);
    assert_eq!(read(&shell), "after");
}

#[test]
fn restore_whose_loaded_data_is_gone_is_given_up() {
    let shell = restored("");
    shell.ends(0, &["undo", "shop"]);
    for entry in fs::read_dir(shell.dir.path()).unwrap().flatten() {
        if entry.file_name().to_string_lossy().starts_with(".shop.backstay-") {
            fs::remove_dir_all(entry.path()).unwrap();
        }
    }
    // Its steps were those of the undo: what came is missing, what was there is in its place.
    fs::rename(shell.path("shop"), shell.path("moved")).unwrap();
    in_catalog(&shell, "UPDATE swaps SET state = 'undoing'");
    let told = shell.complains(1, &["backup", "shop"]);
    assert!(told.contains("it cannot be finished"), "{told}");
    fs::rename(shell.path("moved"), shell.path("shop")).unwrap();
    shell.ends(0, &["backup", "shop"]);
}

#[test]
fn drill_of_another_source_of_the_same_place_leaves_what_waits_for_undo() {
    let shell = Shell::with_tree("");
    let (config, twin) = (shell.config(), shell.path("shop").display().to_string());
    shell.set_config(format!(
        "{config}\n[sources.twin]\nkind = 'files'\npath = '{twin}'\nstorage = 'main'\n"
    ));
    shell.ends(0, &["backup", "--all"]);
    fs::write(shell.path("shop/a.txt"), "after").unwrap();
    shell.ends(0, &["restore", "shop", "--yes"]);
    shell.ends(0, &["drill", "twin"]);
    assert_eq!(beside(&shell), ["after"]);
    // Nor does one whose record is lost go with a sweep.
    in_catalog(&shell, "DELETE FROM swaps");
    shell.ends(0, &["drill", "twin"]);
    assert_eq!(beside(&shell), ["after"]);
}

#[test]
fn file_that_comes_to_an_empty_place_while_a_tree_is_loaded_stays() {
    let server = S3Server::start().unwrap();
    let shell = Shell::with_bucket(&server);
    fs::create_dir(shell.path("shop")).unwrap();
    fs::write(shell.path("shop/a.txt"), "before").unwrap();
    shell.ends(0, &["backup", "shop"]);
    fs::create_dir(shell.path("to")).unwrap();
    let theirs = shell.path("to/theirs.txt");
    server.script(move |call| {
        if call.method == "GET" && call.path.contains("files.tar") {
            fs::write(&theirs, "theirs").unwrap();
        }
        Fault::Pass
    });
    let error = shell.complains(1, &["restore", "shop", "--to", "to", "--yes"]);
    assert!(error.contains("is there by now; nothing was replaced"), "{error}");
    assert_eq!(fs::read_to_string(shell.path("to/theirs.txt")).unwrap(), "theirs");
    assert_eq!(beside(&shell), Vec::<String>::new());
}

#[test]
fn what_could_not_be_saved_whole_is_kept_until_somebody_confirms() {
    let server = PostgresServer::start();
    server.sql("postgres", "CREATE DATABASE crm");
    server.sql("crm", "CREATE TABLE things AS SELECT 1 AS id");
    let more = "databases = ['crm', 'gone']\nundo_for = '0s'";
    let shell = with_database(&server, "postgres", more);
    shell.run(&["backup", "db"]);
    let backup = shell.json(&["backups", "db"])[0]["id"].as_str().unwrap().to_owned();
    let told = shell.complains(0, &["restore", "db", "--id", &backup, "--yes"]);
    assert!(told.contains("1 items of what is there could not be backed up"), "{told}");
    shell.run(&["backup", "db"]);
    let parked = "SELECT count(*) FROM pg_database WHERE starts_with(datname, 'backstay_old_')";
    assert_eq!(server.sql("postgres", parked).trim(), "1");
    shell.ends(0, &["confirm", "db"]);
    assert_eq!(server.sql("postgres", parked).trim(), "0");
}

#[test]
fn undo_that_fails_leaves_all_as_it_was_and_is_not_done_later_by_a_backup() {
    let server = PostgresServer::start();
    server.sql("postgres", "CREATE ROLE app LOGIN CREATEDB PASSWORD 'app'");
    server.sql("postgres", "CREATE DATABASE shop OWNER app");
    server.sql("shop", "SET ROLE app; CREATE TABLE orders AS SELECT 1 AS id");
    let shell = with_database(&server, "shop", "");
    let config = shell.config();
    let url = config.lines().find(|line| line.starts_with("url")).unwrap().to_owned();
    let port = server.url("shop").rsplit(':').next().unwrap().to_owned();
    let config = config.replace(&url, &format!("url = 'postgres://app@127.0.0.1:{port}'"));
    fs::write(shell.path("secret"), "app\n").unwrap();
    shell.set_config(config);
    shell.ends(0, &["backup", "db"]);
    shell.ends(0, &["restore", "db", "--yes"]);
    // A session that the role may not end.
    let mut held =
        server.command("psql", "shop").args(["-c", "SELECT pg_sleep(600)"]).spawn().unwrap();
    let sleeping = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'SELECT pg_sleep%'";
    wait_until("somebody is connected", || server.sql("postgres", sleeping).trim() == "1");
    shell.complains(1, &["undo", "db"]);
    held.kill().unwrap();
    held.wait().unwrap();
    server.sql("postgres", "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query LIKE 'SELECT pg_sleep%'");
    server.sql("shop", "INSERT INTO orders VALUES (2)");
    shell.ends(0, &["backup", "db"]);
    assert_eq!(server.sql("shop", "SELECT count(*) FROM orders").trim(), "2");
    shell.ends(0, &["undo", "db"]);
    assert_eq!(server.sql("shop", "SELECT count(*) FROM orders").trim(), "1");
}

#[test]
fn undo_after_a_restore_in_place_touches_no_older_one() {
    let server = PostgresServer::start();
    server.sql("postgres", "CREATE DATABASE shop");
    server.sql("shop", "CREATE TABLE a AS SELECT 1 AS id; CREATE TABLE b AS SELECT 1 AS id");
    let shell = with_database(&server, "shop", "");
    shell.ends(0, &["backup", "db"]);
    shell.ends(0, &["restore", "db", "--yes"]);
    server.sql("shop", "INSERT INTO a VALUES (2); INSERT INTO b VALUES (2)");
    shell.ends(0, &["restore", "db", "--only", "public.b", "--yes"]);
    let error = shell.complains(1, &["undo", "db"]);
    assert!(error.contains("kept nothing beside") && error.contains("--id 2"), "{error}");
    assert_eq!(server.sql("shop", "SELECT count(*) FROM a").trim(), "2");
    assert_eq!(server.sql("shop", "SELECT count(*) FROM b").trim(), "1");
}

#[test]
fn database_behind_a_link_is_restored_where_it_is() {
    let shell = Shell::with_directory();
    fs::create_dir_all(shell.path("volume")).unwrap();
    fs::create_dir_all(shell.path("shop")).unwrap();
    let real = shell.path("volume/real.db");
    let rows = || {
        let database = rusqlite::Connection::open(&real).unwrap();
        database.query_row("SELECT count(*) FROM t", [], |row| row.get::<_, i64>(0)).unwrap()
    };
    let execute =
        |sql: &str| rusqlite::Connection::open(&real).unwrap().execute_batch(sql).unwrap();
    execute("CREATE TABLE t (n); INSERT INTO t VALUES (1)");
    std::os::unix::fs::symlink(&real, shell.path("crm.db")).unwrap();
    shell.ends(0, &["backup", "crm"]);
    execute("INSERT INTO t VALUES (2)");
    shell.ends(0, &["restore", "crm", "--yes"]);
    assert!(shell.path("crm.db").is_symlink());
    assert_eq!(rows(), 1);
    shell.ends(0, &["undo", "crm"]);
    assert_eq!(rows(), 2);
    shell.ends(0, &["confirm", "crm"]);
    let preview = shell.complains(0, &["restore", "crm", "--no-safety-backup", "--dry-run"]);
    assert!(preview.contains("present data NOT backed up"), "{preview}");
}
