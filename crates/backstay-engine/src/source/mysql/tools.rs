//! The programs of MySQL and MariaDB: which fit a server.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use tokio::process::Command;

use super::error::MysqlError;
use crate::source::engine;

/// Which of the two a server or a program is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Flavour {
    Mysql,
    Mariadb,
}

impl Flavour {
    /// Returns its name for a person.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Mysql => "MySQL",
            Self::Mariadb => "MariaDB",
        }
    }

    /// Says of which one something is that calls itself so.
    fn of(text: &str) -> Self {
        if text.contains("MariaDB") { Self::Mariadb } else { Self::Mysql }
    }
}

/// A version that the server or a program says it is of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Version {
    pub(super) flavour: Flavour,
    /// For example `10.11.19`.
    pub(super) number: String,
}

impl Version {
    /// Reads what a server answers to `SELECT VERSION()`: `10.11.19-MariaDB-0+deb12u1-log`, `8.0.40`.
    pub(super) fn of_server(text: &str) -> Self {
        let number = text.split(|c: char| !c.is_ascii_digit() && c != '.').next();
        Self { flavour: Flavour::of(text), number: number.unwrap_or_default().to_owned() }
    }

    /// Reads what a program says of itself: `mariadb-dump  Ver 10.19 Distrib 10.11.19-MariaDB, for …`, `mariadb-dump from
    /// 11.4.2-MariaDB, client 10.19 for …`, `mysqldump  Ver 8.0.40 for Linux on x86_64 (MySQL Community Server - GPL)`.
    fn of_program(text: &str) -> Option<Self> {
        let after = ["Distrib ", "from ", "Ver "].iter().find_map(|word| text.split_once(word));
        let found = Self { flavour: Flavour::of(text), ..Self::of_server(after?.1) };
        (!found.number.is_empty()).then_some(found)
    }

    /// Returns engine and version, for manifests and people.
    pub(super) fn engine(&self) -> String {
        format!("{} {}", self.flavour.name(), self.number)
    }

    /// Returns the numbers that stand for new features.
    pub(super) fn series(&self) -> (u32, u32) {
        engine::series(&self.number)
    }
}

/// Finds the program that dumps a server: of its own kind, and not older than it.
pub(super) async fn find_dump(
    configured: Option<&Path>,
    server: &Version,
) -> Result<PathBuf, MysqlError> {
    let (names, package): (&[&str], _) = match server.flavour {
        Flavour::Mariadb => (&["mariadb-dump", "mysqldump"], "mariadb-client"),
        Flavour::Mysql => (&["mysqldump"], "mysql-client"),
    };
    let directories: Vec<PathBuf> = match configured {
        Some(directory) => vec![directory.to_owned()],
        None => std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default()).collect(),
    };
    let mut found = "none is installed".to_owned();
    for directory in directories {
        for name in names {
            let path = directory.join(name);
            let Some(version) = version(&path).await else { continue };
            if version.flavour == server.flavour && version.series() >= server.series() {
                return Ok(path);
            }
            found = format!("{} is of {}", path.display(), version.engine());
        }
    }
    let needed = server.engine();
    Err(MysqlError::NoProgram { program: names[0], needed, found, package })
}

async fn version(program: &Path) -> Option<Version> {
    let mut command = Command::new(program);
    command.args(["--no-defaults", "--version"]).stdin(Stdio::null()).kill_on_drop(true);
    let output = command.output().await.ok()?;
    Version::of_program(&String::from_utf8_lossy(&output.stdout))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_as_servers_and_programs_write_them() {
        let of = |text| Version::of_program(text).map(|version| version.engine());
        let debian =
            "mariadb-dump  Ver 10.19 Distrib 10.11.19-MariaDB, for debian-linux-gnu (x86_64)";
        assert_eq!(of(debian).as_deref(), Some("MariaDB 10.11.19"));
        let newer = "mariadb-dump from 11.4.2-MariaDB, client 10.19 for Linux (x86_64)";
        assert_eq!(of(newer).as_deref(), Some("MariaDB 11.4.2"));
        let mysql = "mysqldump  Ver 8.0.40 for Linux on x86_64 (MySQL Community Server - GPL)";
        assert_eq!(of(mysql).as_deref(), Some("MySQL 8.0.40"));
        assert_eq!(of("something else"), None);
        let server = Version::of_server("10.11.19-MariaDB-0+deb12u1-log");
        assert_eq!((server.engine().as_str(), server.series()), ("MariaDB 10.11.19", (10, 11)));
        assert_eq!(Version::of_server("8.4.3").engine(), "MySQL 8.4.3");
    }
}
