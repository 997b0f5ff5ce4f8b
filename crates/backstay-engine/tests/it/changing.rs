//! Trees that change while they are read: what could not be had is named, all else returns.

use std::fs::{self, File};
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::{Arc, Mutex};

use backstay_engine::cx::Cx;
use backstay_engine::event::{Event, Monitor};
use backstay_format::{Details, Status};
use backstay_testkit::tree;

use crate::world::World;

/// Far more than what the pipes hold between the reader of a tree and the first event of progress.
const LONG_BYTES: u64 = 64 << 20;

/// Does something to the tree when its first bytes went through.
struct OnFirstProgress(Mutex<Option<Box<dyn FnOnce() + Send>>>);

impl Monitor for OnFirstProgress {
    fn event(&self, event: Event) {
        if matches!(event, Event::Progress { .. })
            && let Some(act) = self.0.lock().unwrap().take()
        {
            act();
        }
    }
}

fn watched(act: impl FnOnce() + Send + 'static) -> Cx {
    Cx::new(Arc::new(OnFirstProgress(Mutex::new(Some(Box::new(act))))))
}

/// The first file in the order of reading is so long that only the names right behind it were looked at when the first
/// bytes went through.
fn make_tree(root: &Path) {
    tree::make(root, 200).unwrap();
    fs::create_dir(root.join("0")).unwrap();
    fs::write(root.join("0/long"), vec![7; LONG_BYTES as usize]).unwrap();
    for number in 0..100 {
        fs::write(root.join(format!("0/s{number:02}")), "stays").unwrap();
    }
    fs::write(root.join("0/vanishes"), "soon gone").unwrap();
    fs::create_dir(root.join("0/vanishes-too")).unwrap();
    fs::write(root.join("0/vanishes-too/file"), "soon gone").unwrap();
}

async fn details(world: &World, id: &backstay_format::BackupId) -> Details {
    let vault = world.vault().await;
    let manifest = vault.manifest(&world.cx, &world.place(id)).await.unwrap();
    vault.details(&manifest).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn file_that_shrinks_and_names_that_vanish_are_named_and_all_else_returns() {
    let mut world = World::new();
    let root = world.path("tree");
    make_tree(&root);
    let mut before = tree::walk(&root).unwrap();
    let place = root.join("0");
    world.cx = watched(move || {
        File::options()
            .write(true)
            .open(place.join("long"))
            .unwrap()
            .set_len(LONG_BYTES / 2)
            .unwrap();
        fs::remove_file(place.join("vanishes")).unwrap();
        fs::remove_dir_all(place.join("vanishes-too")).unwrap();
    });
    let source = world.files(&root);
    let made = world.backup(&source).await.unwrap();
    assert_eq!(made.status, Status::Incomplete);
    let named = details(&world, &made.id).await.item_errors;
    let items: Vec<_> = named.iter().map(|e| e.item.as_str()).collect();
    assert_eq!(items, ["0/long", "0/vanishes", "0/vanishes-too"]);
    assert!(named[0].error.contains("it shrank"), "{}", named[0].error);
    assert!(named[1].error.contains("No such file"), "{}", named[1].error);

    world.restore_to(&source, &made.id, &world.path("back")).await.unwrap();
    let mut after = tree::walk(&world.path("back")).unwrap();
    for name in ["0/long", "0/vanishes", "0/vanishes-too", "0/vanishes-too/file"] {
        let name = name.as_bytes();
        assert_eq!(after.remove(name).is_some(), name == b"0/long");
        before.remove(name);
    }
    // Removing the names changed the time of their directory, after it was read.
    assert_eq!(tree::differences(&before, &after), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn file_that_is_overwritten_is_named_and_one_that_only_grew_is_not() {
    for (overwrites, status) in [(true, Status::Incomplete), (false, Status::Complete)] {
        let mut world = World::new();
        let root = world.path("tree");
        make_tree(&root);
        let long = root.join("0/long");
        world.cx = watched(move || {
            let at = if overwrites { LONG_BYTES - 5 } else { LONG_BYTES };
            File::options().write(true).open(long).unwrap().write_all_at(b"newer", at).unwrap();
        });
        let source = world.files(&root);
        let made = world.backup(&source).await.unwrap();
        assert_eq!(made.status, status);
        world.restore_to(&source, &made.id, &world.path("back")).await.unwrap();
        let restored = fs::read(world.path("back/0/long")).unwrap();
        assert_eq!(restored.len() as u64, LONG_BYTES, "as long as when it was opened");
        if overwrites {
            let named = details(&world, &made.id).await.item_errors;
            assert_eq!(named.len(), 1);
            assert!(named[0].error.contains("it changed while it was read"), "{}", named[0].error);
        } else {
            assert!(restored.iter().all(|byte| *byte == 7));
        }
    }
}
