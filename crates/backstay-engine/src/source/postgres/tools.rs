//! The programs of PostgreSQL: which are installed, and which fits a server.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use tokio::process::Command;

use super::error::PostgresError;

/// Where packages put each major version: Debian's, and the project's own for Red Hat.
const VERSIONED: [&str; 2] = ["/usr/lib/postgresql", "/usr/pgsql-"];

/// A directory with `pg_dump` and `pg_restore` of one major version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Tools {
    /// Where they are.
    directory: PathBuf,
    /// Of which major version of PostgreSQL.
    pub(super) major: u32,
}

impl Tools {
    /// Finds the programs that fit a server: of its own major version, or of the next that is installed. Older ones refuse
    /// to dump it, and newer ones write statements that it may not know.
    pub(super) async fn find(
        configured: Option<&Path>,
        server: u32,
    ) -> Result<Self, PostgresError> {
        let directories = configured.map_or_else(installed, |given| vec![given.to_owned()]);
        // Packages say in the directory's name what they are; asking a program takes as long as a small dump. One that
        // is older than it should be refuses the server itself.
        let named = directories.iter().find(|directory| named_version(directory) == Some(server));
        if let Some(directory) = named.filter(|directory| directory.join("pg_dump").is_file()) {
            return Ok(Self { directory: directory.clone(), major: server });
        }
        Self::fitting(Self::asked(directories).await, server)
    }

    /// Asks all programs of which version they are, the oldest first.
    async fn asked(directories: Vec<PathBuf>) -> Vec<Self> {
        let mut found = Vec::new();
        for directory in directories {
            if let Some(major) = major_version(&directory.join("pg_dump")).await {
                found.push(Self { directory, major });
            }
        }
        // The order of directories stays within a version: packages before the path, where Debian has a wrapper.
        found.sort_by_key(|tools| tools.major);
        found
    }

    /// Chooses those that fit a server.
    fn fitting(found: Vec<Self>, server: u32) -> Result<Self, PostgresError> {
        let newest = found.last().map_or_else(
            || "none is installed".to_owned(),
            |newest| format!("the newest that is installed is of {}", newest.major),
        );
        let fitting = found.into_iter().find(|tools| tools.major >= server);
        fitting.ok_or(PostgresError::NoProgram { found: newest, needed: server })
    }

    pub(super) fn pg_dump(&self) -> PathBuf {
        self.directory.join("pg_dump")
    }

    pub(super) fn pg_restore(&self) -> PathBuf {
        self.directory.join("pg_restore")
    }

    pub(super) fn psql(&self) -> PathBuf {
        self.directory.join("psql")
    }
}

/// Returns the directories that may hold programs of PostgreSQL, those on the path last.
fn installed() -> Vec<PathBuf> {
    let mut directories = Vec::new();
    for beginning in VERSIONED {
        let beginning = Path::new(beginning);
        let (parent, prefix) = if beginning.is_dir() {
            (beginning, "")
        } else {
            let name = beginning.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            (beginning.parent().unwrap_or(beginning), name)
        };
        let entries = parent.read_dir().into_iter().flatten().flatten();
        let versions = entries.filter(|entry| {
            let name = entry.file_name();
            let version = name.to_str().and_then(|name| name.strip_prefix(prefix));
            version.is_some_and(|version| version.parse::<u32>().is_ok())
        });
        directories.extend(versions.map(|entry| entry.path().join("bin")));
    }
    directories.extend(std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default()));
    directories.retain(|directory| directory.join("pg_dump").is_file());
    directories
}

/// Returns of which major version a package's directory is: `/usr/lib/postgresql/15/bin`, `/usr/pgsql-15/bin`.
fn named_version(directory: &Path) -> Option<u32> {
    let path = directory.to_str()?.strip_suffix("/bin")?;
    VERSIONED.iter().find_map(|beginning| {
        let rest = path.strip_prefix(beginning)?;
        rest.strip_prefix('/').unwrap_or(rest).parse().ok()
    })
}

/// Asks a program for its version: `pg_dump (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)`.
async fn major_version(program: &Path) -> Option<u32> {
    let output = Command::new(program)
        .arg("--version")
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output()
        .await
        .ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    let version = text.split_once("(PostgreSQL) ")?.1;
    version.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_directories_of_packages_say_by_their_name_which_version_they_are() {
        let named = |directory| named_version(Path::new(directory));
        assert_eq!(named("/usr/lib/postgresql/15/bin"), Some(15));
        assert_eq!(named("/usr/pgsql-16/bin"), Some(16));
        for other in ["/usr/bin", "/usr/lib/postgresql/15", "/home/16/bin", "/usr/pgsql-/bin"] {
            assert_eq!(named(other), None, "{other}");
        }
    }
}
