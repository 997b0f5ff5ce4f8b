//! Listing many backups costs few requests (T39).

use backstay_engine::cx::Cx;
use backstay_engine::error::EngineError;
use backstay_engine::event::Silent;
use backstay_engine::vault::Vault;
use backstay_testkit::s3::{Fault, S3Server};
use futures_util::TryStreamExt as _;
use object_store::ObjectStoreExt as _;

use crate::world::{World, bucket, keyring, slug};

#[tokio::test(flavor = "multi_thread")]
async fn listing_a_thousand_backups_cold_costs_three_requests() {
    let world = World::new();
    let root = world.path("tree");
    std::fs::create_dir(&root).unwrap();
    std::fs::write(root.join("file"), "content").unwrap();
    let source = world.files(&root);
    for _ in 0..1000 {
        world.backup(&source).await.unwrap();
    }
    let server = std::thread::spawn(S3Server::start).join().unwrap().unwrap();
    let mut objects = world.backend.list(None);
    while let Some(object) = objects.try_next().await.unwrap() {
        let file = server.bucket().join(object.location.as_ref());
        std::fs::create_dir_all(file.parent().unwrap()).unwrap();
        let bytes = world.backend.get(&object.location).await.unwrap().bytes().await.unwrap();
        std::fs::write(file, bytes).unwrap();
    }
    server.script(|_| Fault::Pass);
    let vault = Vault::open(&world.cx, bucket(&server), keyring(1)).await.unwrap();
    let listing = vault.list(&world.cx, &slug("default"), &slug("shop")).await.unwrap();
    assert_eq!(
        (listing.backups.len(), listing.unusable.len(), listing.unfinished.len()),
        (1000, 0, 0)
    );
    // The vault, the index, the folders.
    assert_eq!(server.calls().len(), 3, "{:?}", server.calls());
}

#[derive(Debug)]
struct DeadBattery;

impl backstay_engine::cx::Clock for DeadBattery {
    fn now(&self) -> jiff::Timestamp {
        jiff::Timestamp::UNIX_EPOCH
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn clock_of_a_dead_battery_makes_no_backup_that_no_listing_would_find() {
    let mut world = World::new();
    let source = world.files(world.dir.path());
    world.cx = Cx::with_clock(std::sync::Arc::new(Silent), std::sync::Arc::new(DeadBattery));
    let error = world.backup(&source).await.unwrap_err();
    assert!(matches!(error, EngineError::WrongClock { .. }), "{error}");
}
