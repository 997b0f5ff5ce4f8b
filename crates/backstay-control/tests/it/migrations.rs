//! Tables of older and newer programs.

use backstay_control::{CatalogError, JobState, OfSource};

use crate::catalogs::Place;

/// What the first program of all made.
const FIRST: &str = "CREATE TABLE schema_version (version BIGINT NOT NULL); INSERT INTO schema_version VALUES (1);
    CREATE TABLE secrets (name TEXT PRIMARY KEY, sealed TEXT NOT NULL);
    CREATE TABLE settings (name TEXT PRIMARY KEY, value TEXT NOT NULL);
    CREATE TABLE leases (source TEXT PRIMARY KEY, token BIGINT NOT NULL, holder TEXT NOT NULL, expires_at BIGINT NOT NULL);
    CREATE TABLE swaps (id TEXT PRIMARY KEY, source TEXT NOT NULL, storage TEXT NOT NULL, state TEXT NOT NULL, made_at BIGINT NOT NULL,
        undo_until BIGINT NOT NULL, swap TEXT NOT NULL, safety TEXT);
    CREATE TABLE jobs (id TEXT PRIMARY KEY, source TEXT NOT NULL, kind TEXT NOT NULL, state TEXT NOT NULL, queued_at BIGINT NOT NULL,
        finished_at BIGINT, holder TEXT NOT NULL, error TEXT, backup TEXT);
    CREATE INDEX jobs_by_source ON jobs (source, queued_at);
    CREATE TABLE uploads (storage TEXT NOT NULL, object TEXT NOT NULL, upload TEXT NOT NULL, holder TEXT NOT NULL, PRIMARY KEY (storage, object, upload));
    CREATE TABLE listings (storage TEXT NOT NULL, source TEXT NOT NULL, backups TEXT NOT NULL, PRIMARY KEY (storage, source));
    INSERT INTO settings VALUES ('word', '\"kept\"');
    INSERT INTO jobs VALUES ('1', 'shop', 'backup', 'failed', 1767225600000000, 1767225601000000, '{}', 'disk full', NULL);";

#[tokio::test]
async fn catalog_of_an_older_program_keeps_what_it_holds() {
    for place in Place::both() {
        place.sql(FIRST);
        let catalog = place.open().await.unwrap();
        let word: Option<String> = catalog.setting("word").await.unwrap();
        assert_eq!(word.as_deref(), Some("kept"), "{}", place.name());
        let job = catalog
            .last_backup_job(OfSource { organisation: "acme", source: "shop" })
            .await
            .unwrap()
            .unwrap();
        assert_eq!((job.state, job.attempt, job.slot), (JobState::Failed, 1, None));
        assert_eq!(job.error.as_deref(), Some("disk full"));
        // A second time there is nothing to do.
        place.open().await.unwrap();
    }
}

#[tokio::test]
async fn catalog_of_a_newer_program_is_refused_and_stays_as_it_is() {
    for place in Place::both() {
        place.open().await.unwrap();
        place.sql("UPDATE schema_version SET version = 99; ALTER TABLE jobs ADD COLUMN news TEXT");
        let refused = place.open().await.unwrap_err();
        assert!(matches!(refused, CatalogError::Newer { found: 99, .. }), "{refused}");
        place.sql(
            "UPDATE schema_version SET version = 99 WHERE version = 99; UPDATE jobs SET news = ''",
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn servers_that_come_together_make_the_tables_once() {
    for place in Place::both() {
        let opened = futures_util::future::join_all((0..6).map(|_| place.open())).await;
        for catalog in opened {
            catalog.unwrap().set_setting("word", &1).await.unwrap();
        }
        place.sql("INSERT INTO slots (source, first_seen) VALUES ('shop', 1)");
    }
}

#[tokio::test]
async fn secrets_of_a_shared_catalog_open_only_with_its_master_key() {
    let [_, shared] = Place::both();
    shared.open().await.unwrap().set_secret("word", b"tell nobody").await.unwrap();
    assert_eq!(
        &shared.open().await.unwrap().secret("word").await.unwrap().unwrap()[..],
        b"tell nobody"
    );
    let stranger = shared.with_another_home();
    let refused = stranger.open().await.unwrap().secret("word").await.unwrap_err();
    assert!(matches!(refused, CatalogError::MasterKey(_)), "{refused}");
}
