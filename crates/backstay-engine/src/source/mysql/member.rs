//! The databases of a restore: which of the backup's come back, and under which names.

use std::collections::BTreeSet;

use backstay_format::{Content, Details, MysqlContent, ObjectKind, PartName};

use super::MysqlSource;
use super::error::{MysqlError, refused};
use crate::source::{databases, own_names};

/// Of the name of a database, in characters.
const MAX_NAME_CHARS: usize = 64;

/// A database of a backup, and the names that it gets.
#[derive(Debug, Clone)]
pub(super) struct Member {
    /// Of its parts; none if the backup holds one database only.
    folder: Option<String>,
    /// What of it comes back.
    pub(super) content: MysqlContent,
    /// The tables that come back, if it is not all.
    pub(super) chosen: Option<BTreeSet<String>>,
    pub(super) target: String,
    pub(super) loaded: String,
    pub(super) parked: String,
}

impl Member {
    /// Says whether a part of the backup belongs to this database.
    pub(super) fn owns(&self, part: &PartName) -> bool {
        let folder = part.as_str().rsplit_once('/').map(|(folder, _)| folder);
        folder == self.folder.as_deref()
    }

    /// Leaves the tables whose names are like one of these patterns, with their triggers, and nothing else.
    pub(super) fn choose(&mut self, patterns: &[String]) -> Result<(), MysqlError> {
        let mut chosen = BTreeSet::new();
        for pattern in patterns {
            let tables = self.content.tables.iter().map(|one| &one.table);
            let mut found = tables.filter(|table| databases::is_like(pattern, table)).peekable();
            if found.peek().is_none() {
                return Err(refused(format!(
                    "the backup has no table {pattern}; expected one that `backstay show` lists, or a pattern"
                )));
            }
            chosen.extend(found.cloned());
        }
        self.content.tables.retain(|one| chosen.contains(&one.table));
        self.content.objects.retain(|object| {
            object.kind == ObjectKind::Trigger
                && object.table.as_ref().is_some_and(|table| chosen.contains(table))
        });
        self.chosen = Some(chosen);
        Ok(())
    }
}

/// Returns the databases that come back.
pub(super) fn members(
    source: &MysqlSource,
    details: &Details,
    (to, tag): (Option<&str>, &str),
) -> Result<Vec<Member>, MysqlError> {
    let found: Vec<(Option<String>, &MysqlContent)> = match &details.content {
        Some(Content::Mysql(content)) => vec![(None, content)],
        Some(Content::MysqlServer(server)) => server
            .databases
            .iter()
            .filter(|one| source.is_meant(&one.content.database))
            .map(|one| (Some(one.folder.clone()), &one.content))
            .collect(),
        _ => return Err(refused("the backup is not of a MySQL or MariaDB database")),
    };
    if found.is_empty() {
        return Err(refused(format!(
            "no database of the backup is like {}; `backstay show` lists them",
            source.label()
        )));
    }
    let several = found.len() > 1;
    let member = |(index, (folder, content)): (usize, (Option<String>, &MysqlContent))| {
        let number = if several { format!("_{index}") } else { String::new() };
        let name = match &source.databases {
            // The source may be called otherwise by now.
            None if !several => &source.connection.database,
            _ => &content.database,
        };
        let target = match to {
            None => name.clone(),
            Some(to) if several => format!("{to}_{name}"),
            Some(to) => to.to_owned(),
        };
        if to.is_none() && !source.is_meant(&target) {
            // Its safety backup would not be of what is replaced.
            return Err(refused(format!(
                "the backup is of the database {target}, which is not one of {}; give another name with --to",
                source.label()
            )));
        }
        if target.is_empty() || target.chars().count() > MAX_NAME_CHARS {
            return Err(refused(format!(
                "the name of a database has 1 to {MAX_NAME_CHARS} characters, and {target:?} has not"
            )));
        }
        let tag = format!("{tag}{number}");
        Ok(Member {
            folder,
            content: content.clone(),
            chosen: None,
            target,
            loaded: format!("{}{tag}", own_names::loaded_for(source.identity())),
            parked: format!("{}{tag}", own_names::OLD),
        })
    };
    found.into_iter().enumerate().map(member).collect()
}

/// Names what is in a backup of several databases and does not come back.
pub(super) fn left_out(source: &MysqlSource, details: &Details) -> Option<String> {
    let (Some(Content::MysqlServer(server)), Some(databases)) =
        (&details.content, &source.databases)
    else {
        return None;
    };
    let names = server.databases.iter().map(|one| one.content.database.as_str());
    let left: Vec<&str> = names.filter(|name| !databases.matches(name)).collect();
    (!left.is_empty()).then(|| {
        format!(
            "only {databases}: these databases of the backup do not come back: {}",
            left.join(", ")
        )
    })
}
