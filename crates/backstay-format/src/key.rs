//! The keys that seal backups. A [`Keyring`] is the only thing that can seal or open: the sole trust boundary.

use std::fmt;

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use aws_lc_rs::{hkdf, hmac};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::{FORMAT_VERSION, KeyId};

/// Bytes of a wrapped key: nonce, key, tag.
pub(crate) const WRAPPED_BYTES: usize = 12 + 32 + 16;

/// Why a key could not be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// The keyring has no key of that id.
    #[error(
        "key {key} is not in the keyring; import it with `backstay keys import`, or recover with the kit that holds it"
    )]
    Missing {
        /// The id that a manifest or object names.
        key: KeyId,
    },
    /// The keyring has no key at all.
    #[error(
        "the keyring is empty; the first backup makes a key, or `backstay recover` brings them back"
    )]
    Empty,
    /// A wrapped key does not open under the key that should open it.
    #[error(
        "the wrapped key {key} does not open: it was altered, or belongs to another recovery key"
    )]
    NotOpened {
        /// What should have come out.
        key: KeyId,
    },
    /// The keys were lent to a worker, without the one that wraps them.
    #[error(
        "these keys were lent, without the recovery key; only the server that lent them has it"
    )]
    Lent,
    /// The stored keyring is not a keyring.
    #[error("the stored keyring cannot be read: {finding}")]
    Malformed {
        /// What was found.
        finding: String,
    },
}

/// A key that seals the objects of backups.
#[derive(Clone)]
pub struct DataKey(Zeroizing<[u8; 32]>);

impl DataKey {
    /// Makes a key of 32 random bytes.
    pub fn new(bytes: [u8; 32]) -> Self {
        Self(Zeroizing::new(bytes))
    }

    /// Returns the id, which depends on the key alone.
    pub fn id(&self) -> KeyId {
        let mut id = [0; 10];
        derive(&self.0, b"", b"backstay/v1/key-id", &mut id);
        KeyId::from_derived(id)
    }

    /// Returns the key itself, for whoever lends it.
    pub fn expose_secret(&self) -> &[u8; 32] {
        &self.0
    }

    /// Derives the key of one object from its random salt.
    pub(crate) fn object_key(&self, salt: &[u8; 32]) -> LessSafeKey {
        let mut key = Zeroizing::new([0; 32]);
        derive(&self.0, salt, b"backstay/v1/object", key.as_mut());
        aead_key(&key)
    }

    /// Derives the key that authenticates manifests.
    pub(crate) fn manifest_mac_key(&self) -> hmac::Key {
        let mut key = Zeroizing::new([0; 32]);
        derive(&self.0, b"", b"backstay/v1/manifest-mac", key.as_mut());
        hmac::Key::new(hmac::HMAC_SHA256, key.as_ref())
    }
}

impl fmt::Debug for DataKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DataKey({})", self.id())
    }
}

/// The key that wraps data keys in the vaults' key slots, so that a recovery kit made once opens what later keys seal.
#[derive(Clone)]
pub struct RecoveryKey(Zeroizing<[u8; 32]>);

impl RecoveryKey {
    /// Makes a key of 32 random bytes.
    pub fn new(bytes: [u8; 32]) -> Self {
        Self(Zeroizing::new(bytes))
    }

    /// Returns a public name of this key: ten hexadecimal digits.
    pub fn fingerprint(&self) -> String {
        let mut id = [0; 5];
        derive(&self.0, b"", b"backstay/v1/recovery-id", &mut id);
        hex::encode(id)
    }

    pub(crate) fn bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// Wraps a data key; `nonce` must be random.
    pub(crate) fn wrap(&self, key: &DataKey, nonce: [u8; 12]) -> Vec<u8> {
        wrap_bytes(&self.0, &key.0, nonce, key.id().as_str().as_bytes())
    }

    /// Opens a wrapped data key and checks that it is the one of that id.
    pub(crate) fn unwrap(&self, wrapped: &[u8], expected: &KeyId) -> Result<DataKey, KeyError> {
        let not_opened = || KeyError::NotOpened { key: expected.clone() };
        let bytes =
            unwrap_bytes(&self.0, wrapped, expected.as_str().as_bytes()).ok_or_else(not_opened)?;
        let key = DataKey(bytes);
        if key.id() == *expected { Ok(key) } else { Err(not_opened()) }
    }
}

impl fmt::Debug for RecoveryKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RecoveryKey({})", self.fingerprint())
    }
}

/// One key of a keyring.
#[derive(Debug, Clone)]
pub struct KeyringEntry {
    /// Its id.
    pub id: KeyId,
    /// When it was made.
    pub created_at: Timestamp,
    /// The key.
    pub key: DataKey,
}

/// All keys of an installation. The newest seals, every one opens.
#[derive(Debug, Clone)]
pub struct Keyring {
    // Invariant: oldest first; ids are unique.
    entries: Vec<KeyringEntry>,
    /// None in a keyring that was lent.
    recovery: Option<RecoveryKey>,
}

impl Keyring {
    /// Makes a keyring without data keys.
    pub fn new(recovery: RecoveryKey) -> Self {
        Self { entries: Vec::new(), recovery: Some(recovery) }
    }

    /// Makes a keyring that opens nothing but what is not sealed.
    pub fn empty() -> Self {
        Self { entries: Vec::new(), recovery: None }
    }

    /// Adds a key unless it is there; keeps the order of age. Returns whether it was new.
    pub fn add(&mut self, key: DataKey, created_at: Timestamp) -> bool {
        let id = key.id();
        if self.entries.iter().any(|entry| entry.id == id) {
            return false;
        }
        self.entries.push(KeyringEntry { id, created_at, key });
        self.entries.sort_by_key(|entry| entry.created_at);
        true
    }

    /// Returns all keys, oldest first.
    pub fn entries(&self) -> &[KeyringEntry] {
        &self.entries
    }

    /// Returns the key that seals.
    pub fn newest(&self) -> Result<&KeyringEntry, KeyError> {
        self.entries.last().ok_or(KeyError::Empty)
    }

    /// Returns the key of that id.
    pub fn get(&self, id: &KeyId) -> Result<&DataKey, KeyError> {
        self.entry(id).map(|entry| &entry.key)
    }

    /// Returns the key of that id, and when it was made.
    pub fn entry(&self, id: &KeyId) -> Result<&KeyringEntry, KeyError> {
        let found = self.entries.iter().find(|entry| entry.id == *id);
        found.ok_or_else(|| KeyError::Missing { key: id.clone() })
    }

    /// Returns the key that wraps the others in the vaults; keys that were lent come without it.
    pub fn recovery(&self) -> Result<&RecoveryKey, KeyError> {
        self.recovery.as_ref().ok_or(KeyError::Lent)
    }

    /// Turns the keyring into bytes that must be sealed before they are stored. One that was lent is not stored.
    pub fn to_secret_bytes(&self) -> Result<Zeroizing<Vec<u8>>, KeyError> {
        let stored = StoredKeyring {
            format: FORMAT_VERSION,
            recovery: BASE64.encode(self.recovery()?.0.as_ref()),
            keys: self
                .entries
                .iter()
                .map(|entry| StoredKey {
                    created_at: entry.created_at,
                    key: BASE64.encode(entry.key.0.as_ref()),
                })
                .collect(),
        };
        let bytes = serde_json::to_vec(&stored).expect("plain strings and times serialise");
        Ok(Zeroizing::new(bytes))
    }

    /// Reads what [`Keyring::to_secret_bytes`] wrote.
    pub fn from_secret_bytes(bytes: &[u8]) -> Result<Self, KeyError> {
        let malformed = |finding: String| KeyError::Malformed { finding };
        let stored: StoredKeyring =
            serde_json::from_slice(bytes).map_err(|error| malformed(error.to_string()))?;
        if stored.format != FORMAT_VERSION {
            return Err(malformed(format!(
                "format {}, this program reads {FORMAT_VERSION}",
                stored.format
            )));
        }
        let key = |text: &str| {
            let bytes = Zeroizing::new(BASE64.decode(text).unwrap_or_default());
            <[u8; 32]>::try_from(bytes.as_slice())
                .map_err(|_| malformed("a key that is not 32 bytes".to_owned()))
        };
        let mut keyring = Self::new(RecoveryKey::new(key(&stored.recovery)?));
        for entry in &stored.keys {
            keyring.add(DataKey::new(key(&entry.key)?), entry.created_at);
        }
        Ok(keyring)
    }
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct StoredKeyring {
    format: u32,
    recovery: String,
    keys: Vec<StoredKey>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct StoredKey {
    created_at: Timestamp,
    key: String,
}

/// Wraps 32 secret bytes under a key: nonce, ciphertext, tag.
pub(crate) fn wrap_bytes(
    under: &[u8; 32],
    secret: &[u8; 32],
    nonce: [u8; 12],
    context: &[u8],
) -> Vec<u8> {
    let mut sealed = secret.to_vec();
    aead_key(under)
        .seal_in_place_append_tag(
            Nonce::assume_unique_for_key(nonce),
            Aad::from(context),
            &mut sealed,
        )
        .expect("32 bytes are within the limits of the cipher");
    [nonce.as_slice(), &sealed].concat()
}

/// Opens what [`wrap_bytes`] made, or returns `None`.
pub(crate) fn unwrap_bytes(
    under: &[u8; 32],
    wrapped: &[u8],
    context: &[u8],
) -> Option<Zeroizing<[u8; 32]>> {
    let (nonce, sealed) = wrapped.split_first_chunk::<12>()?;
    let mut sealed = Zeroizing::new(sealed.to_vec());
    let opened = aead_key(under)
        .open_in_place(Nonce::assume_unique_for_key(*nonce), Aad::from(context), &mut sealed)
        .ok()?;
    <[u8; 32]>::try_from(&*opened).ok().map(Zeroizing::new)
}

fn aead_key(bytes: &[u8; 32]) -> LessSafeKey {
    LessSafeKey::new(UnboundKey::new(&AES_256_GCM, bytes).expect("an AES-256 key has 32 bytes"))
}

fn derive(key: &[u8; 32], salt: &[u8], info: &[u8], out: &mut [u8]) {
    struct Length(usize);
    impl hkdf::KeyType for Length {
        fn len(&self) -> usize {
            self.0
        }
    }
    let salt = hkdf::Salt::new(hkdf::HKDF_SHA256, salt);
    let length = Length(out.len());
    salt.extract(key)
        .expand(&[info], length)
        .and_then(|okm| okm.fill(out))
        .expect("HKDF gives up to 8160 bytes");
}

#[cfg(test)]
mod tests {
    use super::*;

    fn time(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    #[test]
    fn newest_key_seals_whatever_the_order_of_adding() {
        let mut ring = Keyring::new(RecoveryKey::new([9; 32]));
        assert_eq!(ring.newest().unwrap_err(), KeyError::Empty);
        assert!(ring.add(DataKey::new([2; 32]), time("2026-02-01T00:00:00Z")));
        assert!(ring.add(DataKey::new([1; 32]), time("2026-01-01T00:00:00Z")));
        assert!(!ring.add(DataKey::new([1; 32]), time("2026-03-01T00:00:00Z")));
        assert_eq!(ring.newest().unwrap().id, DataKey::new([2; 32]).id());
        let missing = DataKey::new([3; 32]).id();
        assert_eq!(ring.get(&missing).unwrap_err(), KeyError::Missing { key: missing });
    }

    #[test]
    fn keyring_survives_its_bytes_and_altered_bytes_are_refused() {
        let mut ring = Keyring::new(RecoveryKey::new([9; 32]));
        ring.add(DataKey::new([2; 32]), time("2026-02-01T00:00:00Z"));
        let bytes = ring.to_secret_bytes().unwrap();
        let back = Keyring::from_secret_bytes(&bytes).unwrap();
        assert_eq!(back.newest().unwrap().id, ring.newest().unwrap().id);
        assert_eq!(back.recovery().unwrap().fingerprint(), ring.recovery().unwrap().fingerprint());
        assert!(Keyring::from_secret_bytes(&bytes[..bytes.len() - 2]).is_err());
    }

    #[test]
    fn wrapped_key_opens_only_under_its_recovery_key_and_id() {
        let (key, recovery) = (DataKey::new([5; 32]), RecoveryKey::new([6; 32]));
        let mut wrapped = recovery.wrap(&key, [7; 12]);
        assert_eq!(wrapped.len(), WRAPPED_BYTES);
        assert_eq!(recovery.unwrap(&wrapped, &key.id()).unwrap().id(), key.id());
        assert!(RecoveryKey::new([8; 32]).unwrap(&wrapped, &key.id()).is_err());
        assert!(recovery.unwrap(&wrapped, &DataKey::new([1; 32]).id()).is_err());
        wrapped[20] ^= 1;
        assert!(recovery.unwrap(&wrapped, &key.id()).is_err());
        assert!(recovery.unwrap(&wrapped[..11], &key.id()).is_err());
    }

    #[test]
    fn no_key_shows_in_debug_output() {
        let mut ring = Keyring::new(RecoveryKey::new([0xab; 32]));
        ring.add(DataKey::new([0xcd; 32]), time("2026-02-01T00:00:00Z"));
        let text = format!("{ring:?}");
        assert!(!text.contains("abab") && !text.contains("171") && !text.contains("205"), "{text}");
    }
}
