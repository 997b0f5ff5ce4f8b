use super::*;
use crate::{
    Codec, DataKey, ItemError, MediaType, Part, RecoveryKey, Sha256, Status, StoredPart, Trigger,
};

fn ring(byte: u8) -> Keyring {
    let mut ring = Keyring::new(RecoveryKey::new([0; 32]));
    ring.add(DataKey::new([byte; 32]), "2026-01-01T00:00:00Z".parse().unwrap());
    ring
}

fn vault() -> VaultId {
    VaultId::new([4; 16])
}

fn manifest(encryption: Encryption) -> Manifest {
    Manifest {
        format: FORMAT_VERSION,
        tool: "backstay 0.1.0".to_owned(),
        vault: vault(),
        organisation: "default".parse().unwrap(),
        source: "shop".parse().unwrap(),
        source_kind: "files".to_owned(),
        backup: "20260308T120000Z-7k3f4q2x".parse().unwrap(),
        trigger: Trigger::Manual,
        status: Status::Incomplete,
        started_at: "2026-03-08T12:00:00Z".parse().unwrap(),
        finished_at: "2026-03-08T12:00:09Z".parse().unwrap(),
        host: "vps1".to_owned(),
        app: None,
        environment: Some("production".to_owned()),
        engine: None,
        consistency_point: None,
        encryption,
        parts: vec![Part {
            name: "files.tar".parse().unwrap(),
            media_type: MediaType::Tar,
            codecs: vec![Codec::Zstd, Codec::Sealed],
            plain_bytes: 10,
            stored: StoredPart::Whole {
                object: "files.tar.zst.bks".parse().unwrap(),
                stored_bytes: 7,
                stored_sha256: Sha256::of(b"x"),
            },
        }],
        item_error_count: 1,
        warning_count: 0,
        details: DetailsSection::Sealed(String::new()),
    }
}

fn details() -> Details {
    let error = ItemError { item: "secret-name".to_owned(), error: "permission denied".to_owned() };
    Details { item_errors: vec![error], ..Details::default() }
}

fn sealed() -> Vec<u8> {
    let key = ring(1).newest().unwrap().id.clone();
    encode_manifest(manifest(Encryption::Sealed { key }), details(), &ring(1), [6; 32]).unwrap()
}

fn place() -> (Slug, Slug, BackupId) {
    let manifest = manifest(Encryption::None);
    (manifest.organisation, manifest.source, manifest.backup)
}

fn verify(bytes: &[u8], keyring: &Keyring) -> Result<Manifest, ManifestError> {
    let (org, source, backup) = place();
    ManifestFile::parse(bytes)?.verify(keyring, &vault(), (&org, &source, &backup))
}

#[test]
fn sealed_manifest_is_json_that_hides_what_would_leak() {
    let bytes = sealed();
    let _json: serde_json::Value = serde_json::from_slice(&bytes).unwrap();
    assert!(!String::from_utf8_lossy(&bytes).contains("secret-name"));
    let manifest = verify(&bytes, &ring(1)).unwrap();
    assert_eq!(manifest.open_details(&ring(1)).unwrap(), details());
    assert_eq!((manifest.plain_bytes(), manifest.stored_bytes()), (10, 7));
}

#[test]
fn every_flipped_bit_is_refused() {
    let bytes = sealed();
    for bit in 0..bytes.len() * 8 {
        let mut bad = bytes.clone();
        bad[bit / 8] ^= 1 << (bit % 8);
        // Of hexadecimal digits and of JSON's white space there are two spellings; neither may change the meaning.
        match verify(&bad, &ring(1)) {
            Err(_) => {}
            Ok(manifest) => assert_eq!(manifest, verify(&bytes, &ring(1)).unwrap(), "bit {bit}"),
        }
    }
}

#[test]
fn wrong_key_other_place_and_newer_format_have_errors_of_their_own() {
    let bytes = sealed();
    assert!(matches!(verify(&bytes, &ring(2)), Err(ManifestError::Key(KeyError::Missing { .. }))));
    let (org, _, backup) = place();
    let other: Slug = "other".parse().unwrap();
    let moved =
        ManifestFile::parse(&bytes).unwrap().verify(&ring(1), &vault(), (&org, &other, &backup));
    assert!(matches!(moved, Err(ManifestError::WrongPlace { .. })));
    let newer =
        String::from_utf8(bytes).unwrap().replacen("\"format\": 1", "\"format\": 2, \"new\": 0", 1);
    assert!(matches!(
        ManifestFile::parse(newer.as_bytes()),
        Err(ManifestError::Newer { found: 2 })
    ));
}

#[test]
fn unsealed_manifest_is_readable_and_damage_of_it_is_noticed() {
    let bytes = encode_manifest(manifest(Encryption::None), details(), &ring(1), [6; 32]).unwrap();
    assert!(String::from_utf8_lossy(&bytes).contains("secret-name"));
    assert_eq!(verify(&bytes, &ring(2)).unwrap().open_details(&ring(2)).unwrap(), details());
    let sound = verify(&bytes, &ring(2)).unwrap();
    for bit in 0..bytes.len() * 8 {
        let mut spoilt = bytes.clone();
        spoilt[bit / 8] ^= 1 << (bit % 8);
        // Digits may be written large; nothing else may change.
        let read = ManifestFile::parse(&spoilt).and_then(|file| {
            let (org, source, backup) = place();
            file.verify(&ring(2), &vault(), (&org, &source, &backup))
        });
        assert!(read.is_err() || read.is_ok_and(|read| read == sound), "bit {bit}");
    }
}
