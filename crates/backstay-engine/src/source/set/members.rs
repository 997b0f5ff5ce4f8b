//! Which files below a directory are members of a set.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use backstay_format::ItemError;

use crate::source::databases::is_like;

/// Groups of members: a name and where they lie.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Members {
    groups: Vec<Group>,
    /// Patterns for the names of chosen ones; none means all.
    only: Vec<String>,
}

/// Members that lie in the same way.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Group {
    name: String,
    /// The path below the root, in pieces; at most one has a `*`.
    path: Vec<String>,
}

/// Why something is no list of groups.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct MembersError(String);

/// A member of a set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Member {
    /// The name of its group, and what the `*` stood for: `tenants/42`.
    pub(super) name: String,
    pub(super) path: PathBuf,
}

/// What was found below a directory.
#[derive(Debug, Default)]
pub(super) struct Found {
    pub(super) members: Vec<Member>,
    /// Places that look like a member's and have none.
    pub(super) empty: Vec<PathBuf>,
    /// Groups in which nothing was found at all: nobody may have come yet, or a disk is not mounted.
    pub(super) deserted: Vec<String>,
    /// What may be a member and cannot be read as one.
    pub(super) errors: Vec<ItemError>,
}

impl Found {
    /// Returns what a person should know of it.
    pub(super) fn warnings(&self) -> Vec<String> {
        let empty = self.empty.iter().map(|path| format!("there is no {}", path.display()));
        let deserted = self.deserted.iter().map(|group| format!("there is not one of {group}"));
        empty.chain(deserted).collect()
    }

    fn miss(&mut self, item: String, error: impl fmt::Display) {
        self.errors.push(ItemError { item, error: error.to_string() });
    }

    /// Takes a file for a member, unless it is one already: two names for one file could not both come back.
    fn add(&mut self, name: String, path: PathBuf, known: &mut BTreeMap<PathBuf, String>) {
        let place = path.canonicalize().unwrap_or_else(|_| path.clone());
        match known.insert(place, name.clone()) {
            Some(other) => self.miss(name, format!("it is the same file as {other}")),
            None => self.members.push(Member { name, path }),
        }
    }
}

impl Members {
    /// Reads groups: a name, and a path below the root with at most one `*`, which stands for anything but `/`.
    pub fn new(groups: impl IntoIterator<Item = (String, String)>) -> Result<Self, MembersError> {
        let groups: Result<Vec<Group>, MembersError> =
            groups.into_iter().map(|(name, path)| Group::new(name, &path)).collect();
        match groups? {
            none if none.is_empty() => Err(MembersError("there is no member".to_owned())),
            groups => Ok(Self { groups, only: Vec::new() }),
        }
    }

    /// Returns a choice of them.
    #[must_use]
    pub fn choose(&self, patterns: impl IntoIterator<Item = String>) -> Self {
        Self { groups: self.groups.clone(), only: patterns.into_iter().collect() }
    }

    /// Returns the patterns of the choice, if one was made.
    pub(super) fn only(&self) -> &[String] {
        &self.only
    }

    /// Says whether a member of this name is meant.
    pub(super) fn is_chosen(&self, name: &str) -> bool {
        self.only.is_empty() || self.only.iter().any(|pattern| is_like(pattern, name))
    }

    /// Looks for members. One that is named without a `*` is listed whether it is there or not.
    /// A group that cannot be listed is among the errors.
    pub(super) fn find(&self, root: &Path) -> Found {
        let (mut found, mut known) = (Found::default(), BTreeMap::new());
        for group in &self.groups {
            group.find(root, &mut found, &mut known);
        }
        found.members.retain(|member| self.is_chosen(&member.name));
        found.errors.retain(|one| self.is_chosen(&one.item));
        found
    }

    /// Returns where members lie now.
    pub fn paths(&self, root: &Path) -> Vec<PathBuf> {
        self.find(root).members.into_iter().map(|member| member.path).collect()
    }

    /// Returns where a member of this name lies, if it can be one.
    pub(super) fn path_of(&self, root: &Path, name: &str) -> Option<PathBuf> {
        self.groups.iter().find_map(|group| group.path_of(root, name))
    }
}

impl fmt::Display for Members {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let group = |group: &Group| format!("{} = {}", group.name, group.path.join("/"));
        f.write_str(&self.groups.iter().map(group).collect::<Vec<_>>().join(", "))
    }
}

/// What engines keep beside a database.
const COMPANIONS: [&str; 6] =
    ["-wal", "-shm", "-journal", ".wal", ".wal.checkpoint", ".wal.recovery"];

/// Returns the names in a directory, in their order.
fn names_in(directory: &Path) -> io::Result<Vec<OsString>> {
    let entries = fs::read_dir(directory)?;
    let mut names: Vec<OsString> =
        entries.map(|entry| Ok(entry?.file_name())).collect::<io::Result<_>>()?;
    names.sort();
    Ok(names)
}

/// Says whether there is nothing at a path: no link to nothing either.
fn is_nothing(error: &io::Error, path: &Path) -> bool {
    let kinds = [io::ErrorKind::NotFound, io::ErrorKind::NotADirectory];
    kinds.contains(&error.kind()) && path.symlink_metadata().is_err()
}

/// What stands around the `*` of a path.
struct Star<'a> {
    /// Pieces of the path.
    before: &'a [String],
    /// In the same piece.
    begin: &'a str,
    end: &'a str,
    behind: &'a [String],
}

impl Group {
    fn new(name: String, path: &str) -> Result<Self, MembersError> {
        let wrong = |problem: &str| Err(MembersError(format!("`{name}`: {problem}")));
        let is_name = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
        if name.is_empty() || !name.bytes().all(is_name) {
            return wrong("a group is named with letters from a to z, digits and dashes");
        }
        let pieces: Vec<String> = path.split('/').map(str::to_owned).collect();
        if pieces.iter().any(|piece| piece.is_empty() || piece == "." || piece == "..") {
            return wrong("expected a path below `path`, such as \"data/tenants/*/app.db\"");
        }
        if path.matches('*').count() > 1 {
            return wrong("at most one `*` can stand in a path: it is what members are named for");
        }
        if [", ", " = "].iter().any(|divider| path.contains(divider)) {
            return wrong("a path cannot have `, ` or ` = ` in it");
        }
        Ok(Self { name, path: pieces })
    }

    /// Returns what stands around the `*`.
    fn star(&self) -> Option<Star<'_>> {
        let at = self.path.iter().position(|piece| piece.contains('*'))?;
        let (begin, end) = self.path[at].split_once('*')?;
        Some(Star { before: &self.path[..at], begin, end, behind: &self.path[at + 1..] })
    }

    fn find(&self, root: &Path, found: &mut Found, known: &mut BTreeMap<PathBuf, String>) {
        let Some(Star { before: parents, begin, end, behind }) = self.star() else {
            let path = root.join(self.path.join("/"));
            return found.add(self.name.clone(), path, known);
        };
        let directory = root.join(parents.join("/"));
        let names = match names_in(&directory) {
            Ok(names) => names,
            Err(error) => {
                let error = format!("cannot list {}: {error}", directory.display());
                return found.miss(self.name.clone(), error);
            }
        };
        let before = found.members.len() + found.errors.len();
        for name in names {
            let Some(text) = name.to_str() else {
                let item = format!("{}/{}", self.name, name.as_encoded_bytes().escape_ascii());
                found.miss(item, "its name is no text in UTF-8");
                continue;
            };
            let id = text.strip_prefix(begin).and_then(|rest| rest.strip_suffix(end));
            let is_other =
                text.starts_with('.') || COMPANIONS.iter().any(|one| text.ends_with(one));
            let Some(id) = id.filter(|id| !id.is_empty() && !is_other) else { continue };
            let pieces = [text].into_iter().chain(behind.iter().map(String::as_str));
            let path = directory.join(pieces.collect::<PathBuf>());
            let member = format!("{}/{id}", self.name);
            match path.metadata() {
                Ok(meta) if meta.is_file() => found.add(member, path, known),
                Ok(_) if behind.is_empty() => {}
                Ok(_) => found.miss(member, format!("{} is no file", path.display())),
                Err(error) if is_nothing(&error, &path) => {
                    // What is no directory is none of a tenant.
                    if directory.join(text).is_dir() {
                        found.empty.push(path);
                    }
                }
                Err(error) => found.miss(member, format!("{}: {error}", path.display())),
            }
        }
        if found.members.len() + found.errors.len() == before {
            found.deserted.push(self.name.clone());
        }
    }

    fn path_of(&self, root: &Path, name: &str) -> Option<PathBuf> {
        let Some(Star { before, begin, end, behind }) = self.star() else {
            return (name == self.name).then(|| root.join(self.path.join("/")));
        };
        let id = name.strip_prefix(self.name.as_str())?.strip_prefix('/')?;
        let piece = format!("{begin}{id}{end}");
        if id.is_empty() || id.contains(['/', '\0']) || piece.starts_with('.') {
            return None;
        }
        let pieces: Vec<&str> = before
            .iter()
            .map(String::as_str)
            .chain([piece.as_str()])
            .chain(behind.iter().map(String::as_str))
            .collect();
        Some(root.join(pieces.join("/")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn members(groups: &[(&str, &str)]) -> Result<Members, MembersError> {
        Members::new(groups.iter().map(|(name, path)| ((*name).to_owned(), (*path).to_owned())))
    }

    #[test]
    fn members_are_found_by_their_paths_and_found_again_by_their_names() {
        let root = tempfile::tempdir().unwrap();
        let files = [
            "app.db",
            "t/1/app.db",
            "t/ü b/app.db",
            "t/no/other.db",
            "t/.x/app.db",
            "flat/f-7.db",
            "flat/g.db",
        ];
        for file in files {
            let path = root.path().join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "").unwrap();
        }
        let set = [
            ("shared", "app.db"),
            ("gone", "gone.db"),
            ("tenants", "t/*/app.db"),
            ("flat", "flat/f-*.db"),
        ];
        let members = members(&set).unwrap();
        let found = members.find(root.path());
        let names: Vec<&str> = found.members.iter().map(|member| member.name.as_str()).collect();
        assert_eq!(names, ["shared", "gone", "tenants/1", "tenants/ü b", "flat/7"]);
        for member in &found.members {
            assert_eq!(members.path_of(root.path(), &member.name).as_ref(), Some(&member.path));
        }
        assert_eq!(found.empty, [root.path().join("t/no/app.db")]);
        assert_eq!(found.errors, []);
        for name in
            ["tenants", "tenants/", "tenants/..", "tenants/a/b", "other", "shared/1", "tenants/.x"]
        {
            assert_eq!(members.path_of(root.path(), name), None, "{name}");
        }
        let some = members.choose(["tenants/*".to_owned()]).find(root.path());
        assert_eq!(some.members.len(), 2);
    }

    #[test]
    fn what_may_be_a_member_and_is_none_is_an_error_and_never_nothing() {
        use std::os::unix::ffi::OsStrExt as _;
        let root = tempfile::tempdir().unwrap();
        for id in ["1", "2", "3", "4"] {
            fs::create_dir_all(root.path().join("t").join(id)).unwrap();
        }
        let file = |id: &str| root.path().join("t").join(id).join("app.db");
        fs::write(file("1"), "").unwrap();
        fs::write(root.path().join("t/1/app.db-wal"), "").unwrap();
        std::os::unix::fs::symlink("../1/app.db", file("2")).unwrap();
        std::os::unix::fs::symlink("/nowhere/app.db", file("3")).unwrap();
        fs::create_dir(file("4")).unwrap();
        let nameless = std::ffi::OsStr::from_bytes(b"\xff");
        fs::create_dir(root.path().join("t").join(nameless)).unwrap();
        let set = [("gone", "none/*/app.db"), ("one", "t/1/*"), ("t", "t/*/app.db")];
        let found = members(&set).unwrap().find(root.path());
        let names: Vec<&str> = found.members.iter().map(|member| member.name.as_str()).collect();
        assert_eq!(names, ["one/app.db"]);
        let errors: Vec<&str> = found.errors.iter().map(|one| one.item.as_str()).collect();
        assert_eq!(errors, ["gone", "t/1", "t/2", "t/3", "t/4", "t/\\xff"]);
        assert!(found.errors[1].error.contains("the same file as one/app.db"));
    }

    #[test]
    fn group_without_anybody_is_told() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir(root.path().join("t")).unwrap();
        let found = members(&[("t", "t/*/app.db")]).unwrap().find(root.path());
        assert_eq!(found.warnings(), ["there is not one of t"]);
    }

    #[test]
    fn paths_that_lead_elsewhere_or_nowhere_are_refused() {
        for path in ["/etc/app.db", "../app.db", "a/../b.db", "a//b.db", "", "*/*.db", "a, b.db"] {
            assert!(members(&[("x", path)]).is_err(), "{path}");
        }
        for name in ["", "A", "a/b", "a b"] {
            assert!(members(&[(name, "app.db")]).is_err(), "{name}");
        }
        assert!(members(&[]).is_err());
    }
}
