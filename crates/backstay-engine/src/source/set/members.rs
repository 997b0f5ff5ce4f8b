//! Which files below a directory are members of a set.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use crate::source::SourceError;
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
    /// Files whose names are no text.
    pub(super) nameless: Vec<PathBuf>,
}

impl Found {
    /// Returns what a person should know of it.
    pub(super) fn warnings(&self) -> Vec<String> {
        let empty = self.empty.iter().map(|path| format!("there is no {}", path.display()));
        let nameless = self.nameless.iter();
        let nameless =
            nameless.map(|path| format!("left out, since its name is no text: {}", path.display()));
        empty.chain(nameless).collect()
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
    pub(super) fn find(&self, root: &Path) -> Result<Found, SourceError> {
        let mut found = Found::default();
        for group in &self.groups {
            group.find(root, &mut found)?;
        }
        found.members.retain(|member| self.is_chosen(&member.name));
        Ok(found)
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

    fn find(&self, root: &Path, found: &mut Found) -> Result<(), SourceError> {
        let Some(Star { before, begin, end, behind }) = self.star() else {
            let path = root.join(self.path.join("/"));
            found.members.push(Member { name: self.name.clone(), path });
            return Ok(());
        };
        let directory = root.join(before.join("/"));
        let failed = |cause| SourceError::io("list", &directory, cause);
        let mut members = Vec::new();
        for entry in fs::read_dir(&directory).map_err(failed)? {
            let name = entry.map_err(failed)?.file_name();
            let Some(name) = name.to_str() else {
                found.nameless.push(directory.join(name));
                continue;
            };
            let id = name.strip_prefix(begin).and_then(|rest| rest.strip_suffix(end));
            // What begins with a dot is of us or of somebody else, never a tenant.
            let Some(id) = id.filter(|id| !id.is_empty() && !name.starts_with('.')) else {
                continue;
            };
            let path = directory.join(name).join(behind.join("/"));
            let path = if behind.is_empty() { directory.join(name) } else { path };
            if path.is_file() {
                members.push(Member { name: format!("{}/{id}", self.name), path });
            } else if !behind.is_empty() && directory.join(name).is_dir() {
                found.empty.push(path);
            }
        }
        members.sort_by(|one, other| one.name.cmp(&other.name));
        found.members.extend(members);
        Ok(())
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
        let found = members.find(root.path()).unwrap();
        let names: Vec<&str> = found.members.iter().map(|member| member.name.as_str()).collect();
        assert_eq!(names, ["shared", "gone", "tenants/1", "tenants/ü b", "flat/7"]);
        for member in &found.members {
            assert_eq!(members.path_of(root.path(), &member.name).as_ref(), Some(&member.path));
        }
        assert_eq!(found.empty, [root.path().join("t/no/app.db")]);
        for name in
            ["tenants", "tenants/", "tenants/..", "tenants/a/b", "other", "shared/1", "tenants/.x"]
        {
            assert_eq!(members.path_of(root.path(), name), None, "{name}");
        }
        let some = members.choose(["tenants/*".to_owned()]).find(root.path()).unwrap();
        assert_eq!(some.members.len(), 2);
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
