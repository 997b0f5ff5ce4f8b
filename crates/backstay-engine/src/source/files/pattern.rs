//! Which paths are meant: globs in the manner of `.gitignore`, on raw bytes.

use std::fmt;
use std::str::FromStr;

/// A glob relative to the root of a tree.
///
/// `*` and `?` stop at `/`, `**` does not. Without a `/` inside, it means that name at any depth; with one it begins at
/// the root. A `/` at the end means directories only. What it matches is meant with all below it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pattern {
    text: String,
    glob: Vec<u8>,
    anywhere: bool,
    directories_only: bool,
}

/// Why a text is not a pattern.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{found:?} is not a pattern: expected a path relative to the source, with *, ** and ? as wildcards"
)]
pub struct PatternError {
    found: String,
}

impl FromStr for Pattern {
    type Err = PatternError;

    fn from_str(text: &str) -> Result<Self, PatternError> {
        let trimmed = text.strip_suffix('/').unwrap_or(text);
        let anchored = trimmed.strip_prefix('/').unwrap_or(trimmed);
        let stays_inside = anchored
            .split('/')
            .all(|segment| !segment.is_empty() && segment != ".." && segment != ".");
        // Beyond a few wildcards matching would take long; nobody writes them.
        if !stays_inside || anchored.len() > 1000 || anchored.matches('*').count() > 16 {
            return Err(PatternError { found: text.to_owned() });
        }
        Ok(Self {
            text: text.to_owned(),
            glob: anchored.as_bytes().to_vec(),
            anywhere: !trimmed.contains('/'),
            directories_only: text.ends_with('/'),
        })
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl Pattern {
    /// Returns whether the pattern means this path; its parents are asked about before.
    pub fn matches(&self, path: &[u8], is_directory: bool) -> bool {
        if self.directories_only && !is_directory {
            return false;
        }
        let name = path.rsplit(|byte| *byte == b'/').next().unwrap_or(path);
        glob_matches(&self.glob, if self.anywhere { name } else { path })
    }
}

/// Matches as shells do: `*` and `?` stop at a `/`, `**` does not.
pub(crate) fn glob_matches(glob: &[u8], text: &[u8]) -> bool {
    match glob {
        [] => text.is_empty(),
        [b'*', b'*', b'/', rest @ ..] => {
            glob_matches(rest, text)
                || text
                    .iter()
                    .enumerate()
                    .any(|(i, byte)| *byte == b'/' && glob_matches(rest, &text[i + 1..]))
        }
        [b'*', b'*', rest @ ..] => (0..=text.len()).any(|i| glob_matches(rest, &text[i..])),
        [b'*', rest @ ..] => {
            let stop = text.iter().position(|byte| *byte == b'/').unwrap_or(text.len());
            (0..=stop).any(|i| glob_matches(rest, &text[i..]))
        }
        [b'?', rest @ ..] => {
            matches!(text, [first, tail @ ..] if *first != b'/' && glob_matches(rest, tail))
        }
        [literal, rest @ ..] => {
            matches!(text, [first, tail @ ..] if first == literal && glob_matches(rest, tail))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_mean_what_gitignore_users_expect() {
        let meant = |pattern: &str, path: &str, dir| {
            pattern.parse::<Pattern>().unwrap().matches(path.as_bytes(), dir)
        };
        assert!(meant("*.log", "a/b/x.log", false) && meant("*.log", "x.log", false));
        assert!(!meant("/*.log", "a/x.log", false) && meant("/*.log", "x.log", false));
        assert!(meant("cache/", "a/cache", true) && !meant("cache/", "a/cache", false));
        assert!(meant("tako/channels.sqlite", "tako/channels.sqlite", false));
        assert!(!meant("tako/channels.sqlite", "x/tako/channels.sqlite", false));
        assert!(
            meant("a/**/z", "a/z", false)
                && meant("a/**/z", "a/b/c/z", false)
                && !meant("a/**/z", "a/bz", false)
        );
        assert!(meant("a/**", "a/b/c", false) && !meant("a/*", "a/b/c", false));
        assert!("x?".parse::<Pattern>().unwrap().matches(b"x\xff", false));
        for bad in ["", "/", "../x", "a//b", "a/./b"] {
            assert!(bad.parse::<Pattern>().is_err(), "{bad}");
        }
    }
}
