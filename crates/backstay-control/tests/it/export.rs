//! Taking what people told a catalog to another.

use std::collections::BTreeSet;

use backstay_control::{Allowance, Catalog, CatalogError, Enrolment, Role, Token, TokenKind};
use backstay_format::{Keyring, RecoveryKey, Slug};
use jiff::{SignedDuration, Timestamp};

use crate::catalogs::Place;

#[tokio::test]
async fn export_brings_settings_and_secrets_to_another_catalog_and_replaces_nothing() {
    for [from, to] in both_ways() {
        let (name, from, to) = (from.name(), from.open().await.unwrap(), to.open().await.unwrap());
        from.set_keyring(&Keyring::new(RecoveryKey::new([7; 32]))).await.unwrap();
        from.set_setting("additions", &vec!["a", "b"]).await.unwrap();
        from.set_setting("of this machine", &1).await.unwrap();
        from.set_secret("credentials of storage r2", b"\0secret\xff").await.unwrap();
        from.set_secret("credentials of storage old", b"old").await.unwrap();
        to.set_secret("credentials of storage old", b"newer").await.unwrap();
        let export = from.export(&["additions", "never set"]).await.unwrap();
        assert_eq!(export, from.export(&["additions", "never set"]).await.unwrap(), "{name}");

        let imported = to.import(export.as_bytes(), &["additions"]).await.unwrap();
        assert_eq!(imported.taken, ["additions", "credentials of storage r2"], "{name}");
        assert_eq!(imported.stayed, ["credentials of storage old"], "{name}");
        let additions: Option<Vec<String>> = to.setting("additions").await.unwrap();
        assert_eq!(additions.unwrap(), ["a", "b"]);
        assert_eq!(to.setting::<i32>("of this machine").await.unwrap(), None);
        let secret = to.secret("credentials of storage r2").await.unwrap().unwrap();
        assert_eq!(secret.as_slice(), b"\0secret\xff");
        let stayed = to.secret("credentials of storage old").await.unwrap().unwrap();
        assert_eq!(stayed.as_slice(), b"newer");
        assert!(to.keyring().await.unwrap().is_none(), "{name}");
        let again = to.import(export.as_bytes(), &["additions"]).await.unwrap();
        assert_eq!(
            (again.taken.len(), again.same.len(), again.stayed.len()),
            (0, 2, 1),
            "{again:?}"
        );
        // Another setting than was asked for is not taken, whatever an export says.
        let [third, _] = Place::both();
        let imported = third.open().await.unwrap().import(export.as_bytes(), &[]).await.unwrap();
        assert!(!imported.taken.contains(&"additions".to_owned()), "{imported:?}");
    }
}

/// From each kind of catalog to the other.
fn both_ways() -> [[Place; 2]; 2] {
    let [one, other] = Place::both();
    [Place::both(), [other, one]]
}

fn slug(text: &str) -> Slug {
    text.parse().unwrap()
}

/// Makes a worker with two labels. Returns its token.
async fn enrolled(catalog: &Catalog, name: &str, now: Timestamp) -> Token {
    let labels = BTreeSet::from(["db", "eu"].map(slug));
    let allowance = Allowance { name: Some(slug(name)), labels };
    let until = now + SignedDuration::from_hours(1);
    let (invitation, token) =
        (catalog.invite(&allowance, until).await.unwrap(), Token::new(TokenKind::Worker));
    let wish = Enrolment {
        id: token.id().to_owned(),
        secret: token.digest(),
        name: slug(name),
        labels: None,
        host: "elsewhere".to_owned(),
        version: "0.1.0".to_owned(),
    };
    catalog.enrol(&invitation, &wish, true, now).await.unwrap();
    token
}

#[tokio::test]
async fn members_and_workers_come_with_their_tokens_but_none_that_was_revoked_here_or_there() {
    let now: Timestamp = "2026-05-01T10:00:00.123456Z".parse().unwrap();
    let later = now + SignedDuration::from_hours(2);
    for [from, to] in both_ways() {
        let (name, from, to) = (from.name(), from.open().await.unwrap(), to.open().await.unwrap());
        let acme = slug("acme");
        let mut tokens = Vec::new();
        for (member, role, end) in [
            ("ops", Role::Operator, None),
            ("deploys", Role::Admin, Some(now + SignedDuration::from_hours(1))),
            ("left", Role::Owner, None),
            ("thrown-out", Role::Owner, None),
        ] {
            let made = from.add_member((&acme, &slug(member)), role, end, now).await.unwrap();
            tokens.push(made.unwrap());
        }
        let (db1, db2) = (enrolled(&from, "db1", now).await, enrolled(&from, "db2", now).await);
        from.revoke_member((&acme, &slug("left")), now).await.unwrap();
        from.revoke_worker(&slug("db2"), now).await.unwrap();
        let export = from.export(&[]).await.unwrap();
        // Who was seen when changes with every request, and is no reason for another backup.
        let seen = from.member_of(&tokens[0], now).await.unwrap().unwrap();
        from.see_member(&seen, later).await.unwrap();
        let seen = from.worker_of(&db1).await.unwrap().unwrap();
        from.see_worker(&seen, ("another-host", "0.2.0"), later).await.unwrap();
        assert_eq!(export, from.export(&[]).await.unwrap(), "{name}");

        let imported = to.import(export.as_bytes(), &[]).await.unwrap();
        assert_eq!((imported.taken.len(), imported.stayed.len()), (4, 0), "{imported:?}");
        for (token, member) in [(&tokens[0], "ops"), (&tokens[1], "deploys")] {
            let there = from.member_of(token, now).await.unwrap().unwrap();
            let here = to.member_of(token, now).await.unwrap().unwrap();
            assert_eq!((here.name.as_str(), here.seen_at), (member, None), "{name}");
            let facts = |member: backstay_control::Member| {
                (member.organisation, member.role, member.created_at, member.expires_at)
            };
            assert_eq!(facts(here), facts(there), "{name}");
        }
        assert_eq!(to.member_of(&tokens[1], later).await.unwrap(), None, "its time is up");
        assert_eq!(to.member_of(&tokens[2], now).await.unwrap(), None, "{name}");
        let worker = to.worker_of(&db1).await.unwrap().unwrap();
        assert_eq!(worker.labels, BTreeSet::from(["db", "eu"].map(slug)), "{name}");
        assert_eq!((worker.enrolled_at, worker.seen_at), (now, now), "it was not heard of yet");
        assert_eq!(to.worker_of(&db2).await.unwrap(), None, "{name}");

        // What was revoked here stays so, whatever an older export says; and a name is given once.
        to.revoke_member((&acme, &slug("thrown-out")), now).await.unwrap();
        to.revoke_worker(&slug("db1"), now).await.unwrap();
        to.revoke_member((&acme, &slug("ops")), now).await.unwrap();
        let other = to.add_member((&acme, &slug("ops")), Role::Viewer, None, now).await.unwrap();
        let again = to.import(export.as_bytes(), &[]).await.unwrap();
        assert_eq!(again.same, ["member acme/deploys"], "{again:?}");
        assert!(again.taken.is_empty(), "{again:?}");
        for token in [&tokens[0], &tokens[3]] {
            assert_eq!(to.member_of(token, now).await.unwrap(), None, "{name}");
        }
        assert_eq!(to.worker_of(&db1).await.unwrap(), None, "{name}");
        assert!(to.member_of(&other.unwrap(), now).await.unwrap().is_some(), "{name}");
    }
}

#[tokio::test]
async fn export_of_a_newer_program_and_what_is_none_change_nothing() {
    let [place, _] = Place::both();
    let catalog = place.open().await.unwrap();
    let newer = br#"{"format": 2, "tables": [1]}"#;
    let refused = catalog.import(newer, &["a"]).await.unwrap_err();
    assert!(matches!(refused, CatalogError::Newer { found: 2, known: 1 }), "{refused}");
    let keys = br#"{"format": 1, "settings": {"a": "1"}, "secrets": {"keyring": "00"}}"#;
    let odd = br#"{"format": 1, "settings": {"a": "1"}, "secrets": {"b": "0g"}}"#;
    let sign = br#"{"format": 1, "settings": {"a": "1"}, "secrets": {"b": "+f"}}"#;
    let worker = br#"{"format": 1, "settings": {"a": "1"}, "secrets": {}, "workers": [{"id": "../../x", "secret":
        "0000000000000000000000000000000000000000000000000000000000000000", "name": "db", "labels": [],
        "enrolled_at": "2026-05-01T10:00:00Z"}]}"#;
    for export in [keys.as_slice(), odd, sign, worker, b"{", br#"{"settings": {}}"#] {
        let refused = catalog.import(export, &["a"]).await.unwrap_err();
        assert!(matches!(refused, CatalogError::Unreadable { .. }), "{refused}");
    }
    assert_eq!(catalog.setting::<i32>("a").await.unwrap(), None);
}
