//! The key under which an installation's secrets are sealed at rest.

use std::fmt;
use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use aws_lc_rs::hmac;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use rand::RngCore as _;
use secrecy::{ExposeSecret as _, SecretString};
use zeroize::Zeroizing;

use crate::Home;

/// The name of the key in a systemd credentials directory.
const CREDENTIAL: &str = "backstay-master-key";

/// The key under which an installation's secrets are sealed at rest.
#[derive(Clone)]
pub struct MasterKey(Zeroizing<[u8; 32]>);

/// Why there is no master key.
#[derive(Debug, thiserror::Error)]
pub enum MasterKeyError {
    /// The file could not be read or made.
    #[error("cannot use the master key {path}")]
    Io {
        /// Which file.
        path: PathBuf,
        /// What the system said.
        #[source]
        cause: io::Error,
    },
    /// Others may read it.
    #[error("others may read the master key {path} (mode {mode:o}); run `chmod 600 {path}`")]
    Open {
        /// Which file.
        path: PathBuf,
        /// Its mode.
        mode: u32,
    },
    /// The text is no key.
    #[error(
        "the master key in {place} is not 32 bytes in base64; if it was lost, start anew with `backstay recover`"
    )]
    Malformed {
        /// Where it was found.
        place: String,
    },
    /// A secret does not open under it.
    #[error(
        "{secret} does not open under this master key: it is another installation's, or the catalog was altered; bring the right one back, or start anew with `backstay recover`"
    )]
    Wrong {
        /// Which secret.
        secret: String,
    },
}

impl MasterKey {
    /// Takes the key given in text, else that in the credentials directory, else the file in the home directory, which
    /// is made on first use.
    pub fn load(
        home: &Home,
        given: Option<&SecretString>,
        credentials: Option<&Path>,
    ) -> Result<Self, MasterKeyError> {
        if let Some(given) = given {
            return Self::parse(given.expose_secret(), "BACKSTAY_MASTER_KEY");
        }
        if let Some(path) =
            credentials.map(|directory| directory.join(CREDENTIAL)).filter(|path| path.exists())
        {
            return Self::read(&path);
        }
        let path = home.master_key();
        if !path.exists() {
            Self::create(&path)
                .map_err(|cause| MasterKeyError::Io { path: path.clone(), cause })?;
        }
        let mode = fs::metadata(&path)
            .map_err(|cause| MasterKeyError::Io { path: path.clone(), cause })?
            .permissions()
            .mode()
            & 0o7777;
        if mode & 0o077 != 0 {
            return Err(MasterKeyError::Open { path, mode });
        }
        Self::read(&path)
    }

    /// Makes the file. Of two processes that do this at once, one wins and both read its key.
    fn create(path: &Path) -> io::Result<()> {
        let mut key = Zeroizing::new([0; 32]);
        rand::rng().fill_bytes(key.as_mut());
        let text = Zeroizing::new(BASE64.encode(key.as_ref()) + "\n");
        let mut tail = [0; 8];
        rand::rng().fill_bytes(&mut tail);
        let whole = path.with_extension(format!("key-{}", u64::from_be_bytes(tail)));
        let mut file =
            fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&whole)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        // A hard link never replaces: the file is there whole, or somebody else's is.
        let linked = fs::hard_link(&whole, path);
        fs::remove_file(&whole)?;
        match linked {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
        if let Some(directory) = path.parent() {
            fs::File::open(directory)?.sync_all()?;
        }
        Ok(())
    }

    fn read(path: &Path) -> Result<Self, MasterKeyError> {
        let text = fs::read_to_string(path)
            .map_err(|cause| MasterKeyError::Io { path: path.to_owned(), cause })?;
        Self::parse(&Zeroizing::new(text), &path.display().to_string())
    }

    fn parse(text: &str, place: &str) -> Result<Self, MasterKeyError> {
        let bytes = Zeroizing::new(BASE64.decode(text.trim()).unwrap_or_default());
        let key = <[u8; 32]>::try_from(bytes.as_slice());
        key.map(|key| Self(Zeroizing::new(key)))
            .map_err(|_| MasterKeyError::Malformed { place: place.to_owned() })
    }

    /// Seals a secret of the catalog; the name is bound in, so that secrets cannot change places.
    pub(crate) fn seal(&self, name: &str, secret: &[u8]) -> Vec<u8> {
        let mut nonce = [0; NONCE_LEN];
        rand::rng().fill_bytes(&mut nonce);
        let mut sealed = secret.to_vec();
        self.aead()
            .seal_in_place_append_tag(
                Nonce::assume_unique_for_key(nonce),
                Aad::from(name.as_bytes()),
                &mut sealed,
            )
            .expect("secrets are far below the limits of the cipher");
        [nonce.as_slice(), &sealed].concat()
    }

    /// Returns what tells texts apart, and tells nothing of them without the key.
    pub(crate) fn fingerprint(&self, text: &[u8]) -> Vec<u8> {
        let key = hmac::Key::new(hmac::HMAC_SHA256, self.0.as_ref());
        let mut context = hmac::Context::with_key(&key);
        // Nothing else is made with the key in this way.
        context.update(b"backstay fingerprint\0");
        context.update(text);
        context.sign().as_ref().to_vec()
    }

    /// Opens what [`MasterKey::seal`] sealed under that name.
    pub(crate) fn open(
        &self,
        name: &str,
        sealed: &[u8],
    ) -> Result<Zeroizing<Vec<u8>>, MasterKeyError> {
        let wrong = || MasterKeyError::Wrong { secret: name.to_owned() };
        let (nonce, sealed) = sealed.split_first_chunk::<NONCE_LEN>().ok_or_else(wrong)?;
        let mut plain = Zeroizing::new(sealed.to_vec());
        let length = self
            .aead()
            .open_in_place(
                Nonce::assume_unique_for_key(*nonce),
                Aad::from(name.as_bytes()),
                &mut plain,
            )
            .map_err(|_| wrong())?
            .len();
        plain.truncate(length);
        Ok(plain)
    }

    fn aead(&self) -> LessSafeKey {
        LessSafeKey::new(
            UnboundKey::new(&AES_256_GCM, self.0.as_ref()).expect("an AES-256 key has 32 bytes"),
        )
    }
}

impl fmt::Debug for MasterKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("MasterKey")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn key_is_made_once_kept_private_and_seals_by_name() {
        let dir = tempfile::tempdir().unwrap();
        let home = Home::open(&dir.path().join("home")).unwrap();
        let first = MasterKey::load(&home, None, None).unwrap();
        let again = MasterKey::load(&home, None, None).unwrap();
        let sealed = first.seal("keyring", b"secret");
        assert_eq!(again.open("keyring", &sealed).unwrap().as_slice(), b"secret");
        assert!(again.open("other", &sealed).is_err());
        let other = SecretString::from(BASE64.encode([7; 32]));
        let other = MasterKey::load(&home, Some(&other), None).unwrap();
        assert!(matches!(other.open("keyring", &sealed), Err(MasterKeyError::Wrong { .. })));
        fs::set_permissions(home.master_key(), fs::Permissions::from_mode(0o644)).unwrap();
        assert!(matches!(MasterKey::load(&home, None, None), Err(MasterKeyError::Open { .. })));
    }
}
