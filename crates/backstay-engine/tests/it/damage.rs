//! One wrong byte anywhere is refused before a target is touched.

use backstay_engine::error::{EngineError, ErrorKind};
use backstay_engine::verify::verify;
use backstay_format::IndexEntry;
use backstay_testkit::tree;
use object_store::path::Path;
use object_store::{ObjectStoreExt as _, PutPayload};

use crate::world::{World, keyring, slug};

async fn world_with_backup() -> (World, IndexEntry) {
    let world = World::new();
    tree::make(&world.path("tree"), 50).unwrap();
    let made = world.backup(&world.files(&world.path("tree"))).await.unwrap();
    (world, made)
}

async fn read(world: &World, name: &str) -> Vec<u8> {
    world.backend.get(&Path::from(name)).await.unwrap().bytes().await.unwrap().to_vec()
}

async fn write(world: &World, name: &str, bytes: Vec<u8>) {
    world.backend.put(&Path::from(name), PutPayload::from(bytes)).await.unwrap();
}

fn object(made: &IndexEntry, file: &str) -> String {
    format!("backstay/default/shop/{}/{file}", made.id)
}

async fn restore_error(world: &World, made: &IndexEntry) -> EngineError {
    let to = world.path("target");
    std::fs::create_dir_all(&to).unwrap();
    let source = world.files(&world.path("tree"));
    let error = Box::pin(world.restore_to(&source, &made.id, &to)).await.unwrap_err();
    assert_eq!(std::fs::read_dir(&to).unwrap().count(), 0, "the target was touched");
    let left = std::fs::read_dir(world.dir.path()).unwrap().flatten().map(|e| e.file_name());
    assert!(
        !left.into_iter().any(|name| name.to_string_lossy().contains("backstay-test")),
        "something is left behind"
    );
    error
}

#[tokio::test(flavor = "multi_thread")]
async fn flipped_byte_of_a_part_is_refused_wherever_it_is() {
    let (world, made) = world_with_backup().await;
    let name = object(&made, "files.tar.zst.bks");
    let good = read(&world, &name).await;
    for at in [0, 9, 15, 30, 60, good.len() / 2, good.len() - 1] {
        let mut bad = good.clone();
        bad[at] ^= 1;
        write(&world, &name, bad).await;
        let error = restore_error(&world, &made).await;
        assert!(matches!(error.kind(), ErrorKind::Damaged | ErrorKind::Key), "byte {at}: {error}");
        let verified = verify(&world.cx, &world.vault().await, &world.place(&made.id)).await;
        assert!(verified.is_err(), "byte {at}");
    }
    write(&world, &name, good).await;
    verify(&world.cx, &world.vault().await, &world.place(&made.id)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn cut_part_and_missing_part_are_refused() {
    let (world, made) = world_with_backup().await;
    let name = object(&made, "files.tar.zst.bks");
    let good = read(&world, &name).await;
    write(&world, &name, good[..good.len() - 1].to_vec()).await;
    restore_error(&world, &made).await;
    world.backend.delete(&Path::from(name.as_str())).await.unwrap();
    restore_error(&world, &made).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn part_and_manifest_of_another_backup_are_refused() {
    let (world, first) = world_with_backup().await;
    let second = world.backup(&world.files(&world.path("tree"))).await.unwrap();
    let part = read(&world, &object(&first, "files.tar.zst.bks")).await;
    let own = read(&world, &object(&second, "files.tar.zst.bks")).await;
    write(&world, &object(&second, "files.tar.zst.bks"), part).await;
    let error = restore_error(&world, &second).await;
    assert_eq!(error.kind(), ErrorKind::Damaged, "{error}");
    write(&world, &object(&second, "files.tar.zst.bks"), own).await;
    let manifest = read(&world, &object(&first, "manifest.json")).await;
    write(&world, &object(&second, "manifest.json"), manifest).await;
    let error = restore_error(&world, &second).await;
    assert!(format!("{error:?}").contains("WrongPlace"), "{error:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn flipped_byte_of_a_manifest_is_refused_and_the_listing_says_so() {
    let (world, made) = world_with_backup().await;
    let name = object(&made, "manifest.json");
    let good = read(&world, &name).await;
    for at in (0..good.len()).step_by(97) {
        let mut bad = good.clone();
        bad[at] ^= 4;
        write(&world, &name, bad).await;
        let error = restore_error(&world, &made).await;
        assert!(matches!(error.kind(), ErrorKind::Damaged | ErrorKind::Key), "byte {at}: {error}");
    }
    let listing = world
        .vault()
        .await
        .rebuild_index(&world.cx, &slug("default"), &slug("shop"))
        .await
        .unwrap();
    assert_eq!((listing.backups.len(), listing.unusable.len()), (0, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn damaged_index_is_not_believed_and_the_listing_is_right_all_the_same() {
    let (world, made) = world_with_backup().await;
    let name = "backstay/default/shop/index.json";
    let mut bytes = read(&world, name).await;
    let at = bytes.len() - 3;
    bytes[at] ^= 1;
    write(&world, name, bytes).await;
    let listing =
        world.vault().await.list(&world.cx, &slug("default"), &slug("shop")).await.unwrap();
    assert_eq!(listing.backups.iter().map(|b| &b.id).collect::<Vec<_>>(), [&made.id]);
}

#[tokio::test(flavor = "multi_thread")]
async fn damaged_key_slot_is_noticed_and_written_anew_by_the_next_backup() {
    let (world, _) = world_with_backup().await;
    let vault = world.vault().await;
    let key = vault.keyring().newest().unwrap().id.clone();
    let name = format!("backstay/keys/{key}.json");
    let good = read(&world, &name).await;
    let mut bad = good.clone();
    let at = bad.windows(7).position(|w| w == b"wrapped").unwrap() + 20;
    bad[at] = if bad[at] == b'A' { b'B' } else { b'A' };
    write(&world, &name, bad).await;
    let slot = vault.key_slot(&world.cx, &key).await.unwrap();
    assert!(slot.open(vault.keyring().recovery().unwrap()).is_err());
    world.backup(&world.files(&world.path("tree"))).await.unwrap();
    assert!(
        vault
            .key_slot(&world.cx, &key)
            .await
            .unwrap()
            .open(vault.keyring().recovery().unwrap())
            .is_ok()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_key_is_said_to_be_that() {
    let (world, made) = world_with_backup().await;
    let vault = world.vault_with(keyring(2)).await.unwrap();
    let error = verify(&world.cx, &vault, &world.place(&made.id)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Key, "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_readable_reaches_the_store() {
    let world = World::new();
    std::fs::create_dir(world.path("tree")).unwrap();
    std::fs::write(world.path("tree/secret-name"), "the secret content").unwrap();
    let mut source = world.files(&world.path("tree"));
    source.root = world.path("tree");
    let made = world.backup(&source).await.unwrap();
    let files = ["manifest.json", "files.tar.zst.bks"].map(|file| object(&made, file));
    for name in files.iter().map(String::as_str).chain(["backstay/default/shop/index.json"]) {
        let bytes = read(&world, name).await;
        let text = String::from_utf8_lossy(&bytes);
        assert!(!text.contains("secret"), "{name}");
    }
}
