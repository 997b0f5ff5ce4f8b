//! Taking what people told a catalog to another.

use backstay_control::CatalogError;
use backstay_format::{Keyring, RecoveryKey};

use crate::catalogs::Place;

#[tokio::test]
async fn export_brings_settings_and_secrets_to_another_catalog_and_replaces_nothing() {
    for [from, to] in [Place::both(), {
        let [one, other] = Place::both();
        [other, one]
    }] {
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
    for export in [keys.as_slice(), odd, sign, b"{", br#"{"settings": {}}"#] {
        let refused = catalog.import(export, &["a"]).await.unwrap_err();
        assert!(matches!(refused, CatalogError::Unreadable { .. }), "{refused}");
    }
    assert_eq!(catalog.setting::<i32>("a").await.unwrap(), None);
}
