//! `members` of `[sources.NAME]` of kind `sqlite` or `duckdb`: several databases that are files.

use std::path::PathBuf;

use backstay_engine::source::set::{MemberKind, Members};

use super::Env;
use super::raw::{Faults, RawSource};
use super::source::{check_path, check_programs};

/// Between the root and the groups.
const GROUPS: &str = ", members ";

/// Database files of one kind, checked.
#[derive(Debug, Clone)]
pub(crate) struct SetConfig {
    pub(crate) root: PathBuf,
    pub(crate) members: Members,
    pub(crate) kind: MemberKind,
}

/// Says whether a place is that of a set.
pub(super) fn is_location(location: &str) -> bool {
    location.contains(GROUPS)
}

impl SetConfig {
    /// Makes a configuration of what [`SetConfig::location`] returned.
    pub(super) fn of_location(word: &str, location: &str) -> Option<Self> {
        let (root, groups) = location.split_once(GROUPS)?;
        let group = |group: &str| {
            let (name, path) = group.split_once(" = ")?;
            Some((name.to_owned(), path.to_owned()))
        };
        let groups = groups.split(", ").map(group).collect::<Option<Vec<_>>>()?;
        let kind = match word {
            "sqlite" => MemberKind::Sqlite,
            _ => MemberKind::Duckdb { programs: None },
        };
        Some(Self { root: root.into(), members: Members::new(groups).ok()?, kind })
    }

    /// Returns where the databases are.
    pub(super) fn location(&self) -> String {
        format!("{}{GROUPS}{}", self.root.display(), self.members)
    }

    /// Returns the word for the kind of its members.
    pub(super) fn word(&self) -> &'static str {
        match self.kind {
            MemberKind::Sqlite => "sqlite",
            MemberKind::Duckdb { .. } => "duckdb",
        }
    }
}

pub(super) fn refuse_fields(raw: &RawSource, faults: &mut Faults<'_>) {
    if let Some(first) = raw.members.values().next() {
        faults.add("members", first.span(), "only a source of kind `sqlite` or `duckdb` has them");
    }
}

pub(super) fn check(raw: &RawSource, env: Env<'_>, faults: &mut Faults<'_>) -> Option<SetConfig> {
    let root = check_path(raw, env, faults)?;
    let kind = match raw.kind.get_ref().as_str() {
        "sqlite" => MemberKind::Sqlite,
        _ => MemberKind::Duckdb { programs: check_programs(raw, env, faults)? },
    };
    let mut groups = Vec::new();
    for (name, path) in &raw.members {
        groups.push((name.clone(), faults.text("members", path, env)?));
    }
    let span = raw.members.values().next().map_or(raw.kind.span(), |first| first.span());
    let members = Members::new(groups);
    let members = members.map_err(|error| faults.add("members", span, error.to_string())).ok()?;
    Some(SetConfig { root, members, kind })
}
