//! SQLite under a busy writer, and restores over what an old database leaves behind.

use std::path::PathBuf;

use backstay_engine::replace;
use backstay_engine::source::sqlite::SqliteSource;
use backstay_engine::source::{Source, TargetOptions};
use backstay_engine::swap::{Direction, Replacement};
use backstay_testkit::ledger::{BusyWriter, check};

use crate::world::World;

fn source(world: &World, path: PathBuf) -> SqliteSource {
    SqliteSource { path, spool: world.path("spool") }
}

#[tokio::test(flavor = "multi_thread")]
async fn two_hundred_backups_under_load_each_hold_one_committed_state() {
    let world = World::new();
    let writer = BusyWriter::start(&world.path("app.db")).unwrap();
    let source = source(&world, world.path("app.db"));
    let mut last = 0;
    for round in 0..200 {
        let before = writer.committed();
        let made = world.backup(&source).await.unwrap();
        let after = writer.committed();
        let to = world.path(&format!("back{round}.db"));
        world.restore_to(&source, &made.id, &to).await.unwrap();
        let transfers = check(&to).unwrap();
        // The last commit may be in the file before the writer counted it.
        assert!((before..=after + 1).contains(&transfers), "{before} {transfers} {after}");
        assert!(transfers >= last);
        last = transfers;
        std::fs::remove_file(to).unwrap();
    }
    writer.stop().unwrap();
    assert_eq!(
        std::fs::read_dir(world.path("spool")).unwrap().count(),
        0,
        "no snapshot is left behind"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn restore_over_a_left_over_log_is_not_undone_by_it() {
    let world = World::new();
    let path = world.path("app.db");
    let writer = BusyWriter::start(&path).unwrap();
    let source = source(&world, path.clone());
    let made = world.backup(&source).await.unwrap();
    writer.stop().unwrap();
    // An app that crashed: its log is full and nobody folded it in.
    let crashed = rusqlite::Connection::open(&path).unwrap();
    crashed.execute_batch("PRAGMA wal_autocheckpoint = 0; BEGIN; DELETE FROM entries; UPDATE counter SET transfers = 0; COMMIT").unwrap();
    let log = std::fs::read(world.path("app.db-wal")).unwrap();
    drop(crashed);
    std::fs::write(world.path("app.db-wal"), &log).unwrap();
    let here = TargetOptions { tag: "t1".to_owned(), ..TargetOptions::default() };
    let restored = world.restore(&source, &made.id, here).await.unwrap();
    assert!(!world.path("app.db-wal").exists());
    assert!(check(&path).unwrap() > 0, "the old log emptied the restored database");
    // The old database and its log are one again after an undo.
    let swapper = source.swapper();
    let back = swapper.plan(&world.cx, &restored.replacement, Direction::Undo).await.unwrap();
    swapper.run(&world.cx, &back).await.unwrap();
    assert!(world.path("app.db-wal").exists());
    assert_eq!(check(&path).unwrap(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn damaged_database_makes_no_backup_and_its_error_names_it() {
    let world = World::new();
    let path = world.path("app.db");
    BusyWriter::start(&path).unwrap().stop().unwrap();
    let connection = rusqlite::Connection::open(&path).unwrap();
    connection
        .execute_batch("PRAGMA wal_checkpoint(TRUNCATE); PRAGMA journal_mode = delete")
        .unwrap();
    drop(connection);
    let mut bytes = std::fs::read(&path).unwrap();
    let middle = bytes.len() / 2 / 4096 * 4096;
    bytes[middle..middle + 4096].fill(0x55);
    std::fs::write(&path, bytes).unwrap();
    let error = world.backup(&source(&world, path)).await.unwrap_err();
    assert!(error.to_string().contains("app.db is damaged"), "{error}");
    let listing = world
        .vault()
        .await
        .list(&world.cx, &crate::world::slug("default"), &crate::world::slug("shop"))
        .await;
    assert!(listing.unwrap().backups.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn database_that_a_program_holds_is_not_swapped_away_under_it() {
    let world = World::new();
    let path = world.path("app.db");
    BusyWriter::start(&path).unwrap().stop().unwrap();
    let mut holder = std::process::Command::new("tail")
        .arg("-f")
        .arg(&path)
        .stdout(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let source = source(&world, path.clone());
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
    let replacement = Replacement::Paths(replace::Replacement {
        beside: world.path("beside"),
        target: path,
        scope: replace::Scope::Whole { companions: Vec::new() },
    });
    let error = loop {
        match source.check_free(&replacement) {
            Err(error) => break error.to_string(),
            Ok(()) => {
                assert!(std::time::Instant::now() < deadline, "tail never opened the database");
            }
        }
    };
    holder.kill().unwrap();
    holder.wait().unwrap();
    assert!(error.contains(&format!("process {}", holder.id())), "{error}");
}
