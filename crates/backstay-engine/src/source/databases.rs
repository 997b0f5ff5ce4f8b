//! Which databases of a server belong to a source.

use std::fmt;

use backstay_format::{ItemError, Sha256};

use super::files::glob_matches;
use super::several::Wanted;

/// Patterns for the names of databases: `*` and `?` stand for what they do in a shell, `!` in front leaves out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Databases {
    wanted: Vec<String>,
    left_out: Vec<String>,
    /// What the source was declared to be of, before any choice was made of it.
    declared: String,
    /// Never meant, whatever the patterns say: that of this program's own catalog.
    own: Option<String>,
}

/// What is said of the database of this program's own catalog.
pub(super) const OWN_CATALOG: &str =
    "Backstay's own catalog, which is backed up by itself (`backstay catalog backup`)";

/// A list of patterns that means no database.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "expected at least one name or pattern of databases that does not begin with `!`, none of them empty"
)]
pub struct NoDatabases;

impl Databases {
    /// Reads a list of patterns.
    pub fn new(patterns: impl IntoIterator<Item = String>) -> Result<Self, NoDatabases> {
        let patterns: Vec<String> = patterns.into_iter().collect();
        let declared = patterns.join(", ");
        let (left_out, wanted): (Vec<String>, Vec<String>) =
            patterns.into_iter().partition(|pattern| pattern.starts_with('!'));
        let left_out: Vec<String> =
            left_out.iter().map(|pattern| pattern[1..].to_owned()).collect();
        if wanted.is_empty() || wanted.iter().chain(&left_out).any(String::is_empty) {
            return Err(NoDatabases);
        }
        Ok(Self { wanted, left_out, declared, own: None })
    }

    /// Returns a choice of them: the source stays the same.
    pub fn choose(&self, patterns: impl IntoIterator<Item = String>) -> Result<Self, NoDatabases> {
        Ok(Self { declared: self.declared.clone(), own: self.own.clone(), ..Self::new(patterns)? })
    }

    /// Returns the same without the database of this program's own catalog, if that is there.
    pub(super) fn sparing(&self, own: Option<&str>) -> Self {
        Self { own: own.map(str::to_owned), ..self.clone() }
    }

    /// Says which database is spared although the patterns mean it, if one is.
    pub(super) fn spared(&self) -> Option<String> {
        let own = self.own.as_ref().filter(|own| self.is_in_patterns(own))?;
        Some(format!("database {own} is left out: it is {OWN_CATALOG}"))
    }

    /// Returns what the source was declared to be of, whatever was chosen of it.
    pub(super) fn declared(&self) -> &str {
        &self.declared
    }

    /// Says whether a database of this name is meant.
    pub fn matches(&self, name: &str) -> bool {
        self.own.as_deref() != Some(name) && self.is_in_patterns(name)
    }

    fn is_in_patterns(&self, name: &str) -> bool {
        let any = |patterns: &[String]| patterns.iter().any(|pattern| is_like(pattern, name));
        any(&self.wanted) && !any(&self.left_out)
    }

    /// Chooses from what a server has. Returns also what was asked for by name and is not there.
    pub(super) fn of(&self, mut found: Vec<String>) -> Wanted {
        let is_own = |name: &str| self.own.as_deref() == Some(name);
        let missing =
            self.named().filter(|name| !is_own(name) && !found.iter().any(|one| one == name));
        let absent = |item: &str| ItemError {
            item: item.to_owned(),
            error: "there is no such database".to_owned(),
        };
        let missing = missing.map(absent).collect();
        found.retain(|name| self.matches(name));
        Wanted { databases: found, missing }
    }

    /// Returns the names that are asked for one by one: those that are not there are missed.
    fn named(&self) -> impl Iterator<Item = &str> {
        self.wanted.iter().map(String::as_str).filter(|pattern| !pattern.contains(['*', '?']))
    }
}

impl fmt::Display for Databases {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let left_out = self.left_out.iter().map(|pattern| format!("!{pattern}"));
        let all: Vec<String> = self.wanted.iter().cloned().chain(left_out).collect();
        f.write_str(&all.join(", "))
    }
}

/// A `/` is a letter like any other in the name of a database or table.
pub(super) fn is_like(pattern: &str, name: &str) -> bool {
    glob_matches(pattern.replace('*', "**").as_bytes(), name.as_bytes())
}

/// Returns the folder of a database's parts.
pub(super) fn folder(database: &str) -> String {
    format!("databases/{}", safe_name(database))
}

/// Longer names stand as their digest: a part's name has an end.
const MAX_SPELT_BYTES: usize = 60;

/// Returns a name, where it is a legal and unmistakable one of a folder, or one that stands for it.
pub(super) fn safe_name(name: &str) -> String {
    if name.len() > MAX_SPELT_BYTES {
        return format!("x-{}", String::from(Sha256::of(name.as_bytes())));
    }
    let is_plain = !name.starts_with("x-")
        && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"_-".contains(&b));
    if is_plain { name.to_owned() } else { format!("x-{}", hex::encode(name)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(patterns: &[&str]) -> Result<Databases, NoDatabases> {
        Databases::new(patterns.iter().map(|pattern| (*pattern).to_owned()))
    }

    #[test]
    fn patterns_mean_what_they_do_in_a_shell_and_exclusions_win() {
        let databases = of(&["shop*", "cr?", "!shop_test*"]).unwrap();
        for name in ["shop", "shop_eu", "shop/1", "crm"] {
            assert!(databases.matches(name), "{name}");
        }
        for name in ["shop_test", "shop_test2", "crmm", "myshop", "postgres"] {
            assert!(!databases.matches(name), "{name}");
        }
        assert_eq!(of(&["a", "b*"]).unwrap().named().collect::<Vec<_>>(), ["a"]);
        for nothing in [&[][..], &["!a"], &[""], &["a", "!"]] {
            assert_eq!(of(nothing), Err(NoDatabases), "{nothing:?}");
        }
    }

    #[test]
    fn folders_are_legal_and_different_for_different_names() {
        let (long, longer) = ("x".repeat(61), "Ü".repeat(200));
        let names = [
            long.as_str(),
            longer.as_str(),
            "shop",
            "Shop",
            "x-73686f70",
            "a/b",
            "..",
            "ü",
            "a b",
            "-x",
        ];
        let folders: std::collections::BTreeSet<String> = names.iter().map(|n| folder(n)).collect();
        assert_eq!(folders.len(), names.len());
        for folder in &folders {
            let part = format!("{folder}/database.dump");
            assert!(part.parse::<backstay_format::PartName>().is_ok(), "{part}");
        }
    }
}
