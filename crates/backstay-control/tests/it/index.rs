//! What is known of backups without asking their storages, in a catalog of either kind.

use backstay_format::{BackupId, Encryption, IndexEntry, Status, Trigger};
use jiff::Timestamp;

use crate::catalogs::Place;

fn backup(day: i8, tail: u8) -> IndexEntry {
    let at: Timestamp = format!("2026-03-{day:02}T02:00:00Z").parse().unwrap();
    IndexEntry {
        id: BackupId::new(at, [tail; 8]),
        source: "shop-db".parse().unwrap(),
        source_kind: "postgres".to_owned(),
        status: Status::Complete,
        trigger: Trigger::Scheduled,
        started_at: at,
        finished_at: at,
        host: "web1".to_owned(),
        plain_bytes: 1,
        stored_bytes: 1,
        encryption: Encryption::None,
        parts: Vec::new(),
        note: None,
        warnings: Vec::new(),
        item_errors: Vec::new(),
        item_error_count: 0,
        hold: None,
        is_undated: false,
    }
}

const SHOP: (&str, &str) = ("v1", "shop-db");

#[tokio::test]
async fn listing_takes_the_place_of_what_was_known_of_that_source_there() {
    for place in Place::both() {
        let catalog = place.open().await.unwrap();
        let elsewhere = [("v1", "other"), ("v2", "shop-db")];
        for named in elsewhere {
            catalog.keep_listing(named, &[backup(1, 9)]).await.unwrap();
        }
        let (first, second, third) = (backup(1, 1), backup(2, 1), backup(3, 1));
        catalog.keep_listing(SHOP, &[second.clone(), first]).await.unwrap();
        catalog.add_to_listing(SHOP, &third).await.unwrap();
        let held = IndexEntry { hold: Some("the auditors".to_owned()), ..second };
        catalog.keep_listing(SHOP, &[third.clone(), held.clone()]).await.unwrap();
        assert_eq!(catalog.known_backups("v1", "shop-db").await.unwrap(), [third, held]);
        for (vault, source) in elsewhere {
            assert_eq!(catalog.known_backups(vault, source).await.unwrap(), [backup(1, 9)]);
        }
        assert_eq!(catalog.listed_sources("v1").await.unwrap(), ["other", "shop-db"]);
    }
}

#[tokio::test]
async fn newest_backups_of_a_vault_are_those_of_all_its_sources_by_time() {
    for place in Place::both() {
        let catalog = place.open().await.unwrap();
        catalog.keep_listing(SHOP, &[backup(5, 1), backup(1, 1)]).await.unwrap();
        catalog.keep_listing(("v1", "other"), &[backup(3, 2)]).await.unwrap();
        catalog.keep_listing(("v2", "shop-db"), &[backup(4, 3)]).await.unwrap();
        let damaged = [backup(3, 2).id].into();
        let now = backup(6, 1).started_at;
        catalog.mark_damaged(("v1", "other"), (&damaged, &[]), now).await.unwrap();
        let newest = catalog.newest_backups("v1", 2).await.unwrap();
        assert_eq!(newest, [(backup(5, 1), false), (backup(3, 2), true)], "{}", place.name());
        let all = catalog.newest_backups("v1", 9).await.unwrap();
        assert_eq!(all.len(), 3);
    }
}

#[tokio::test]
async fn backup_is_found_by_its_id_wherever_it_was_seen() {
    for place in Place::both() {
        let catalog = place.open().await.unwrap();
        catalog.keep_listing(SHOP, &[backup(2, 1), backup(1, 1)]).await.unwrap();
        let seen = catalog.seen_of(&backup(1, 1).id).await.unwrap();
        assert_eq!(seen, [("v1".to_owned(), "shop-db".to_owned())]);
        catalog.keep_listing(SHOP, &[backup(2, 1)]).await.unwrap();
        assert_eq!(catalog.seen_of(&backup(1, 1).id).await.unwrap(), []);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn listings_that_come_together_leave_one_of_them() {
    for place in Place::both() {
        let catalog = place.open().await.unwrap();
        let days = |days: std::ops::Range<i8>| days.rev().map(|day| backup(day, 1)).collect();
        let (early, late): (Vec<_>, Vec<_>) = (days(1..15), days(8..22));
        for _ in 0..10 {
            let together = futures_util::future::join_all(
                [&early, &late].map(|listed| catalog.keep_listing(SHOP, listed)),
            );
            together.await.into_iter().for_each(Result::unwrap);
        }
        catalog.keep_listing(SHOP, &late).await.unwrap();
        assert_eq!(catalog.known_backups("v1", "shop-db").await.unwrap(), late);
    }
}
