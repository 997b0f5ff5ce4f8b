//! The names of things in a vault, each checked once where it enters.

use std::fmt;
use std::str::FromStr;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// Says why a text is not a name of the wanted kind.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{found:?} is not a {kind}: expected {expected}")]
pub struct NameError {
    /// Which kind of name was wanted.
    pub kind: &'static str,
    /// The text that was found, cut to 200 characters.
    pub found: String,
    /// The rule in words.
    pub expected: &'static str,
}

impl NameError {
    fn new(kind: &'static str, found: &str, expected: &'static str) -> Self {
        Self { kind, found: found.chars().take(200).collect(), expected }
    }
}

/// Declares a checked text type: parse, display, serde and ordering by its text.
macro_rules! text_name {
    ($(#[$doc:meta])* $name:ident, $kind:literal, $rule:literal, $check:path) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl $name {
            /// Returns the text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = NameError;

            fn from_str(text: &str) -> Result<Self, NameError> {
                if $check(text) {
                    Ok(Self(text.to_owned()))
                } else {
                    Err(NameError::new($kind, text, $rule))
                }
            }
        }

        impl TryFrom<String> for $name {
            type Error = NameError;

            fn try_from(text: String) -> Result<Self, NameError> {
                text.parse()
            }
        }

        impl From<$name> for String {
            fn from(name: $name) -> String {
                name.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:?}", self.0)
            }
        }
    };
}

text_name! {
    /// The path segment of an organisation or a source; fixed when it is made.
    Slug, "name",
    "1 to 63 characters of a-z, 0-9, '-', '_' or '.', beginning with a letter or digit",
    is_slug
}

text_name! {
    /// The name of a part: `database.dump`, `files.tar`, `tenants/5c66/app.db`.
    PartName, "part name",
    "1 to 200 characters in segments of A-Z, a-z, 0-9, '-', '_', '.', '=', separated by '/', none empty or of dots only",
    is_part_name
}

text_name! {
    /// The id of a data key: derived from the key, so that a wrong key is noticed before it is used.
    KeyId, "key id", "'k' and 20 hexadecimal digits", is_key_id
}

text_name! {
    /// The id of a vault, random, made with it.
    VaultId, "vault id", "'v' and 32 hexadecimal digits", is_vault_id
}

text_name! {
    /// The id of a backup: UTC start time and a random tail, so that it sorts by time and is never used twice.
    BackupId, "backup id", "a form like 20260308T120000Z-7k3f9q2x", is_backup_id
}

/// Characters of the random tail of a [`BackupId`]: no vowels, so no words; no 0/o or 1/l.
const TAIL_ALPHABET: &[u8; 32] = b"23456789bcdfghjkmnpqrstvwxyz7342";

impl BackupId {
    /// What every id begins with until the year 3000: in a listing it sets backups apart from what lies beside them.
    pub const BEGINNING: &str = "2";

    /// Makes the id of a backup that starts at `at`; `random` must come from a good source.
    pub fn new(at: Timestamp, random: [u8; 8]) -> Self {
        let tail: String =
            random.iter().map(|byte| char::from(TAIL_ALPHABET[usize::from(byte % 28)])).collect();
        Self(format!("{}-{tail}", at.strftime("%Y%m%dT%H%M%SZ")))
    }

    /// Returns the time in the id, to the second.
    pub fn time(&self) -> Timestamp {
        parse_id_time(&self.0).expect("checked when the id was made")
    }
}

impl VaultId {
    /// Makes the id of a new vault; `random` must come from a good source.
    pub fn new(random: [u8; 16]) -> Self {
        Self(format!("v{}", hex::encode(random)))
    }
}

impl KeyId {
    /// Makes a key id of the bytes that were derived from the key.
    pub(crate) fn from_derived(bytes: [u8; 10]) -> Self {
        Self(format!("k{}", hex::encode(bytes)))
    }

    /// Returns the ten bytes behind the text.
    pub(crate) fn bytes(&self) -> [u8; 10] {
        let mut bytes = [0; 10];
        hex::decode_to_slice(&self.0[1..], &mut bytes).expect("checked when the id was made");
        bytes
    }
}

fn is_slug(text: &str) -> bool {
    let head = text.bytes().next().is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
    head && text.len() <= 63
        && text.bytes().all(|b| {
            b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'-' | b'_' | b'.')
        })
}

fn is_part_name(text: &str) -> bool {
    let legal = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.' | b'=');
    !text.is_empty()
        && text.len() <= 200
        && text.split('/').all(|segment| {
            !segment.is_empty() && segment.bytes().all(legal) && segment.bytes().any(|b| b != b'.')
        })
}

fn is_prefixed_hex(text: &str, prefix: char, digits: usize) -> bool {
    text.strip_prefix(prefix).is_some_and(|hex| {
        hex.len() == digits && hex.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
    })
}

fn is_key_id(text: &str) -> bool {
    is_prefixed_hex(text, 'k', 20)
}

fn is_vault_id(text: &str) -> bool {
    is_prefixed_hex(text, 'v', 32)
}

fn is_backup_id(text: &str) -> bool {
    let Some((_, tail)) = text.split_once('-') else { return false };
    text.len() == 25
        && tail.bytes().all(|b| TAIL_ALPHABET.contains(&b))
        && parse_id_time(text).is_some()
}

fn parse_id_time(text: &str) -> Option<Timestamp> {
    let (time, tail) = text.split_once('-')?;
    if time.len() != 16 || tail.len() != 8 || !time.is_ascii() {
        return None;
    }
    jiff::civil::DateTime::strptime("%Y%m%dT%H%M%SZ", time)
        .ok()?
        .to_zoned(jiff::tz::TimeZone::UTC)
        .ok()
        .map(|zoned| zoned.timestamp())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn backup_id_gives_back_its_second_and_sorts_by_time() {
        let early: Timestamp = "2026-03-08T12:00:00.9Z".parse().unwrap();
        let late: Timestamp = "2026-03-08T12:00:01Z".parse().unwrap();
        let (a, b) = (BackupId::new(early, [255; 8]), BackupId::new(late, [0; 8]));
        assert!(a.as_str().starts_with("20260308T120000Z-"));
        assert_eq!(a.time(), "2026-03-08T12:00:00Z".parse().unwrap());
        assert!(a < b);
        assert_eq!(a.as_str().parse::<BackupId>().unwrap(), a);
    }

    #[test]
    fn names_that_could_leave_their_place_are_refused() {
        for bad in ["", "..", ".", "a/../b", "/a", "a/", "a//b", "a b", "a\n", "ä"] {
            assert!(bad.parse::<PartName>().is_err(), "{bad:?}");
        }
        for bad in ["", "-a", ".a", "A", "a/b", "a b", "..", &"a".repeat(64)] {
            assert!(bad.parse::<Slug>().is_err(), "{bad:?}");
        }
        for bad in ["20261308T120000Z-22222222", "20260308T120000Z", "20260308T120000Z-2222222/"] {
            assert!(bad.parse::<BackupId>().is_err(), "{bad:?}");
        }
        assert!("tenants/5c66-a/app.db".parse::<PartName>().is_ok());
    }
}
