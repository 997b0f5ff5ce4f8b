//! `backstay quickstart`: the whole story on a made-up app, with the same commands that a user has.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use anyhow::{Context as _, ensure};
use backstay_engine::cx::Cx;
use rusqlite::Connection;

use crate::cli::{Cli, Global};
use crate::exit::Exit;
use crate::render::print;

/// Uploads of the made-up app.
const UPLOADS: usize = 40;

pub(super) async fn quickstart(cx: &Cx) -> anyhow::Result<Exit> {
    let tail: [u8; 4] = crate::installation::random();
    let root =
        std::env::temp_dir().join(format!("backstay-quickstart-{:08x}", u32::from_be_bytes(tail)));
    std::fs::create_dir(&root)?;
    let told = Box::pin(tell(cx, &root)).await;
    std::fs::remove_dir_all(&root).context("cannot clean up")?;
    told
}

async fn tell(cx: &Cx, root: &Path) -> anyhow::Result<Exit> {
    let app = root.join("shop");
    print("1. A small app: uploads, and a SQLite database in WAL mode with a writer at work")?;
    let uploads = make_uploads(&app)?;
    let writer = Writer::start(&app.join("shop.db"))?;

    print("2. Its backup, sealed, to a storage on this machine")?;
    let config = root.join("backstay.toml");
    std::fs::write(&config, configuration(root, &app))?;
    let run = |words: &'static [&'static str]| run(cx, root, &config, words);
    ensure!(run(&["backup", "shop"]).await? == Exit::Done, "the backup failed");
    let committed = writer.stop()?;
    let sealed = !contains(&root.join("storage"), b"upload number")?;
    ensure!(sealed, "the storage holds readable data");

    print("3. Every byte of it, read and authenticated")?;
    ensure!(run(&["verify", "--all"]).await? == Exit::Done, "the backup is not good");

    print("4. The app's data is destroyed")?;
    std::fs::remove_dir_all(&app)?;

    print("5. Restored")?;
    ensure!(run(&["restore", "shop", "--yes"]).await? == Exit::Done, "the restore failed");
    for (path, content) in &uploads {
        ensure!(
            std::fs::read_to_string(path).ok().as_ref() == Some(content),
            "{} is not back",
            path.display()
        );
    }
    let (orders, sum) = ledger(&app.join("shop.db"))?;
    ensure!(orders > 0 && orders <= committed && sum == 0, "the database is not consistent");
    print(&format!(
        "   all {UPLOADS} uploads are as they were; the database is sound: {orders} orders, each one whole"
    ))?;
    print(
        "\nNext, for your own data:\n  backstay init\n  backstay doctor\n  backstay backup --all",
    )?;
    Ok(Exit::Done)
}

/// Runs one command of the program inside the made-up world.
async fn run(cx: &Cx, root: &Path, config: &Path, words: &[&str]) -> anyhow::Result<Exit> {
    let mut cli = <Cli as clap::Parser>::try_parse_from(std::iter::once(&"backstay").chain(words))?;
    cli.global = Global {
        config: Some(config.to_owned()),
        home: Some(root.join("home")),
        server: None,
        token_file: None,
        ca_file: None,
        json: false,
        quiet: true,
    };
    print(&format!("   $ backstay {}", words.join(" ")))?;
    Box::pin(super::run(cli, cx.clone())).await
}

fn configuration(root: &Path, app: &Path) -> String {
    format!(
        "[storages.disk]\nprovider = \"local\"\npath = {:?}\n\n[sources.shop]\nkind = \"files\"\npath = {:?}\nstorage = \"disk\"\n",
        root.join("storage"),
        app
    )
}

fn make_uploads(app: &Path) -> anyhow::Result<Vec<(PathBuf, String)>> {
    std::fs::create_dir_all(app.join("uploads"))?;
    let make = |i: usize| {
        let path = app.join(format!("uploads/{i:03}.txt"));
        let content = format!("upload number {i}\n").repeat(200 * (i + 1));
        std::fs::write(&path, &content)?;
        Ok((path, content))
    };
    (0..UPLOADS).map(make).collect()
}

fn ledger(database: &Path) -> anyhow::Result<(u64, i64)> {
    let connection = Connection::open(database)?;
    let sound: String = connection.query_row("PRAGMA integrity_check", [], |row| row.get(0))?;
    ensure!(sound == "ok", "integrity_check says {sound}");
    let read = |row: &rusqlite::Row<'_>| Ok((row.get::<_, i64>(0)?, row.get::<_, i64>(1)?));
    let (rows, sum) =
        connection.query_row("SELECT count(*), coalesce(sum(amount), 0) FROM entries", [], read)?;
    Ok((rows.unsigned_abs() / 2, sum))
}

/// Is `needle` in any file below `directory`?
fn contains(directory: &Path, needle: &[u8]) -> anyhow::Result<bool> {
    for entry in std::fs::read_dir(directory)? {
        let path = entry?.path();
        let found = if path.is_dir() {
            contains(&path, needle)?
        } else {
            std::fs::read(&path)?.windows(needle.len()).any(|window| window == needle)
        };
        if found {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Books orders as two entries each that sum to zero, as fast as it can.
struct Writer {
    stop: Arc<AtomicBool>,
    committed: Arc<AtomicU64>,
    thread: std::thread::JoinHandle<rusqlite::Result<()>>,
}

impl Writer {
    fn start(database: &Path) -> anyhow::Result<Self> {
        let mut connection = Connection::open(database)?;
        connection.busy_timeout(std::time::Duration::from_secs(10))?;
        connection.pragma_update(None, "journal_mode", "wal")?;
        connection.execute_batch("CREATE TABLE entries (amount INTEGER NOT NULL)")?;
        let stop = Arc::new(AtomicBool::new(false));
        let committed = Arc::new(AtomicU64::new(0));
        let (stopping, counting) = (stop.clone(), committed.clone());
        let thread = std::thread::spawn(move || {
            while !stopping.load(Ordering::Relaxed) {
                let order = connection.transaction()?;
                order.execute("INSERT INTO entries VALUES (5), (-5)", [])?;
                order.commit()?;
                counting.fetch_add(1, Ordering::Relaxed);
            }
            Ok(())
        });
        // A backup before the first order would show nothing.
        while committed.load(Ordering::Relaxed) == 0 && !thread.is_finished() {
            std::thread::yield_now();
        }
        Ok(Self { stop, committed, thread })
    }

    fn stop(self) -> anyhow::Result<u64> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().map_err(|_| anyhow::anyhow!("the writer died"))??;
        Ok(self.committed.load(Ordering::Relaxed))
    }
}
