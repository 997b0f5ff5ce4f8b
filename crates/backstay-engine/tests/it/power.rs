//! The power fails at each call to the store in turn: never a backup by halves, and the old ones stay.

use std::path::Path;
use std::sync::Arc;

use backstay_engine::backup::backup;
use backstay_engine::vault::Vault;
use backstay_engine::verify::verify;
use backstay_testkit::faulty::PowerCut;
use backstay_testkit::tree;

use crate::world::{World, keyring, slug};

#[tokio::test(flavor = "multi_thread")]
async fn backup_is_whole_or_absent_wherever_the_power_fails() {
    let cut_runs = cut_at_every_call(|_| {}).await;
    assert!((9..199).contains(&cut_runs), "the power was cut {cut_runs} times");
}

#[tokio::test(flavor = "multi_thread")]
async fn backup_in_several_parts_is_whole_or_absent_wherever_the_power_fails() {
    // Three parts of the smallest size: with beginning and completion four calls more than one put.
    let large = |tree: &Path| std::fs::write(tree.join("large"), tree::noise(20 << 20)).unwrap();
    let cut_runs = cut_at_every_call(large).await;
    assert!((13..199).contains(&cut_runs), "the power was cut {cut_runs} times");
}

/// Cuts the power after each number of calls that is not enough, and returns how many there were.
async fn cut_at_every_call(more: impl Fn(&Path)) -> usize {
    for calls in 0..200 {
        let world = World::new();
        tree::make(&world.path("tree"), 20).unwrap();
        more(&world.path("tree"));
        let source = world.files(&world.path("tree"));
        let old = world.backup(&source).await.unwrap();
        let cut = PowerCut::after(world.backend.clone(), calls);
        let store = world.store(Arc::new(cut.clone()));
        let made = async {
            let vault = Vault::open_or_create(&world.cx, store, keyring(1)).await?;
            backup(&world.cx, &source, &vault, world.draft("files")).await
        }
        .await;
        let vault = world.vault().await;
        let listing = vault.list(&world.cx, &slug("default"), &slug("shop")).await.unwrap();
        assert!(listing.unusable.is_empty(), "cut after {calls} calls");
        assert!(
            listing.backups.iter().any(|b| b.id == old.id),
            "the old backup is gone after {calls} calls"
        );
        for entry in &listing.backups {
            verify(&world.cx, &vault, &world.place(&entry.id)).await.unwrap();
        }
        if let Ok(made) = &made {
            assert!(
                listing.backups.iter().any(|b| b.id == made.id),
                "false success after {calls} calls"
            );
        }
        if !cut.is_cut() {
            made.unwrap();
            return calls;
        }
    }
    panic!("the power was cut at every call");
}

#[tokio::test(flavor = "multi_thread")]
async fn removed_backup_is_listed_whole_or_gone_wherever_the_power_fails() {
    for calls in 0..200 {
        assert!(calls < 199, "the power was cut at every call");
        let world = World::new();
        tree::make(&world.path("tree"), 5).unwrap();
        let source = world.files(&world.path("tree"));
        let kept = world.backup(&source).await.unwrap();
        let doomed = world.backup(&source).await.unwrap();
        let cut = PowerCut::after(world.backend.clone(), calls);
        let removed = async {
            let vault =
                Vault::open(&world.cx, world.store(Arc::new(cut.clone())), keyring(1)).await?;
            vault.remove(&world.cx, &world.place(&doomed.id)).await
        }
        .await;
        let vault = world.vault().await;
        let listing = vault.list(&world.cx, &slug("default"), &slug("shop")).await.unwrap();
        assert!(listing.backups.iter().any(|b| b.id == kept.id));
        let is_listed = listing.backups.iter().any(|b| b.id == doomed.id);
        assert!(removed.is_err() || !is_listed, "false success after {calls} calls");
        for entry in &listing.backups {
            verify(&world.cx, &vault, &world.place(&entry.id)).await.unwrap();
        }
        if !cut.is_cut() {
            removed.unwrap();
            // Vault, hold, index, its new version, manifest, and what else lies in the folder.
            assert!(calls > 7, "the power was cut only {calls} times");
            break;
        }
    }
}
