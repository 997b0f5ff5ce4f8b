//! Where things lie below a vault's prefix.

use std::fmt;

use crate::frame::{Binding, Role};
use crate::{BackupId, KeyId, PartName, Slug, VaultId};

/// The name of an object below the vault's prefix.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectName(String);

/// The first path segment of key slots; no organisation may have this name.
const KEYS: &str = "keys";
/// The folder of the vault of retention archives, below that of the backups; no organisation may have this name.
pub const ARCHIVES: &str = "archives";
/// The organisation of the backups of catalogs; no other may have this name.
const CATALOGS: &str = "catalogs";
const VAULT: &str = "vault.json";
const INDEX: &str = "index.json";
const MANIFEST: &str = "manifest.json";
const HOLD: &str = "hold.json";
const DELETED: &str = "deleted.json";

impl ObjectName {
    /// The object that makes a prefix a vault.
    pub fn vault() -> Self {
        Self(VAULT.to_owned())
    }

    /// The slots of one key.
    pub fn key_slots(key: &KeyId) -> Self {
        Self(format!("{KEYS}/{key}.json"))
    }

    /// The index of a source.
    pub fn index(organisation: &Slug, source: &Slug) -> Self {
        Self(format!("{organisation}/{source}/{INDEX}"))
    }

    /// A file of a backup.
    pub fn of_backup(
        organisation: &Slug,
        source: &Slug,
        backup: &BackupId,
        file: &BackupFile,
    ) -> Self {
        let folder = Self::backup_folder(organisation, source, backup);
        match file {
            BackupFile::Manifest => Self(format!("{folder}{MANIFEST}")),
            BackupFile::Hold => Self(format!("{folder}{HOLD}")),
            BackupFile::Deleted => Self(format!("{folder}{DELETED}")),
            BackupFile::Object(name) => Self(format!("{folder}{name}")),
        }
    }

    /// The prefix of all files of a backup, with its closing slash.
    pub fn backup_folder(organisation: &Slug, source: &Slug, backup: &BackupId) -> String {
        format!("{organisation}/{source}/{backup}/")
    }

    /// Returns the text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ObjectName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A file inside a backup's folder.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum BackupFile {
    /// The manifest: while it is there, the backup exists.
    Manifest,
    /// The mark that keeps a backup from being forgotten.
    Hold,
    /// The mark that the rows of a segment of an archive are out of their table.
    Deleted,
    /// Anything else: what the manifest names.
    Object(PartName),
}

/// What a name in a vault stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ParsedName {
    /// The object that makes a prefix a vault.
    Vault,
    /// The slots of a key.
    KeySlots(KeyId),
    /// The index of a source.
    Index {
        /// Whose source.
        organisation: Slug,
        /// Which source.
        source: Slug,
    },
    /// A file of a backup.
    Backup {
        /// Whose source.
        organisation: Slug,
        /// Which source.
        source: Slug,
        /// Which backup.
        backup: BackupId,
        /// Which file.
        file: BackupFile,
    },
    /// Nothing that Backstay made; left alone.
    Foreign,
}

impl ParsedName {
    /// Reads a name below the vault's prefix.
    pub fn parse(name: &str) -> Self {
        Self::try_parse(name).unwrap_or(Self::Foreign)
    }

    fn try_parse(name: &str) -> Option<Self> {
        if name == VAULT {
            return Some(Self::Vault);
        }
        let (first, rest) = name.split_once('/')?;
        if first == KEYS {
            return rest.strip_suffix(".json")?.parse().ok().map(Self::KeySlots);
        }
        let organisation: Slug = first.parse().ok()?;
        let (source, rest) = rest.split_once('/')?;
        let source: Slug = source.parse().ok()?;
        if rest == INDEX {
            return Some(Self::Index { organisation, source });
        }
        let (backup, file) = rest.split_once('/')?;
        let file = match file {
            MANIFEST => BackupFile::Manifest,
            HOLD => BackupFile::Hold,
            DELETED => BackupFile::Deleted,
            other => BackupFile::Object(other.parse().ok()?),
        };
        Some(Self::Backup { organisation, source, backup: backup.parse().ok()?, file })
    }
}

impl PartName {
    /// Returns whether a part may have this name: not that of the manifest or of a mark.
    pub fn is_free_for_parts(&self) -> bool {
        !matches!(self.as_str(), MANIFEST | HOLD | DELETED)
    }
}

impl Slug {
    /// Returns the organisation of the backups of catalogs.
    pub fn catalogs() -> Self {
        CATALOGS.parse().expect("a legal name")
    }

    /// Returns whether an organisation may have this name.
    pub fn is_free_for_organisations(&self) -> bool {
        ![KEYS, ARCHIVES, CATALOGS, VAULT].contains(&self.as_str())
    }
}

impl Binding {
    /// Where a part's object belongs.
    pub fn part(vault: &VaultId, backup: &BackupId, object: &PartName) -> Self {
        Self { role: Role::Part, place: format!("{vault}\n{backup}\n{object}") }
    }

    /// Where the sealed section of a manifest belongs.
    pub fn manifest_details(vault: &VaultId, backup: &BackupId) -> Self {
        Self { role: Role::ManifestDetails, place: format!("{vault}\n{backup}\n{MANIFEST}") }
    }

    /// Where the index of a source belongs.
    pub fn index(vault: &VaultId, organisation: &Slug, source: &Slug) -> Self {
        Self { role: Role::Index, place: format!("{vault}\n{organisation}/{source}\n{INDEX}") }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_is_read_back_as_what_it_was_made_for() {
        let (org, source): (Slug, Slug) =
            ("default".parse().unwrap(), "shop-files".parse().unwrap());
        let backup: BackupId = "20260308T120000Z-7k3f4q2x".parse().unwrap();
        let key: KeyId = "k00112233445566778899".parse().unwrap();
        assert_eq!(ParsedName::parse(ObjectName::vault().as_str()), ParsedName::Vault);
        assert_eq!(
            ParsedName::parse(ObjectName::key_slots(&key).as_str()),
            ParsedName::KeySlots(key)
        );
        let index = ParsedName::Index { organisation: org.clone(), source: source.clone() };
        assert_eq!(ParsedName::parse(ObjectName::index(&org, &source).as_str()), index);
        let files = [
            BackupFile::Manifest,
            BackupFile::Hold,
            BackupFile::Object("a/b.tar.zst.bks".parse().unwrap()),
        ];
        for file in files {
            let name = ObjectName::of_backup(&org, &source, &backup, &file);
            let expected = ParsedName::Backup {
                organisation: org.clone(),
                source: source.clone(),
                backup: backup.clone(),
                file,
            };
            assert_eq!(ParsedName::parse(name.as_str()), expected, "{name}");
        }
    }

    #[test]
    fn what_backstay_did_not_make_is_foreign() {
        for name in [
            "",
            "readme.txt",
            "keys/x.json",
            "a/b/c",
            "a/b/20260308T120000Z-7k3f4q2x",
            "uploads/cat.jpg/x/y",
        ] {
            assert_eq!(ParsedName::parse(name), ParsedName::Foreign, "{name}");
        }
    }
}
