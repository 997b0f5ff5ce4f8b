//! The databases of a restore: which of the backup's come back, and under which names.

use backstay_format::{Content, DatabaseRole, Details, Membership, PartName, PostgresContent};

use super::PostgresSource;
use super::error::{PostgresError, refused};
use super::exchange::Loaded;
use crate::source::own_names;

/// Of the name of a database, in bytes; `NAMEDATALEN` of every packaged server.
const MAX_NAME_BYTES: usize = 63;

/// A database of a backup, and the place that it gets.
#[derive(Debug, Clone)]
pub(super) struct Member {
    /// Of its parts; none if the backup holds one database only.
    folder: Option<String>,
    pub(super) content: PostgresContent,
    pub(super) migrations: Option<Vec<String>>,
    pub(super) place: Loaded,
}

impl Member {
    /// Says whether a part of the backup belongs to this database.
    pub(super) fn owns(&self, part: &PartName) -> bool {
        let folder = part.as_str().rsplit_once('/').map(|(folder, _)| folder);
        folder == self.folder.as_deref()
    }
}

/// What a backup says of the server that it is of.
#[derive(Debug, Clone, Default)]
pub(super) struct Globals {
    pub(super) roles: Vec<DatabaseRole>,
    pub(super) memberships: Vec<Membership>,
}

/// Returns the databases that come back.
pub(super) fn members(
    source: &PostgresSource,
    details: &Details,
    (to, tag): (Option<&str>, &str),
) -> Result<Vec<Member>, PostgresError> {
    let mut members = match &details.content {
        Some(Content::Postgres(content)) => {
            let migrations = details.schema_version.clone();
            vec![member(None, content, migrations)]
        }
        Some(Content::PostgresServer(server)) => server
            .databases
            .iter()
            .filter(|one| source.is_meant(&one.content.database))
            .map(|one| member(Some(&one.folder), &one.content, one.schema_version.clone()))
            .collect(),
        _ => return Err(refused("the backup is not of a PostgreSQL database")),
    };
    if let (None, [one]) = (&source.databases, members.as_mut_slice()) {
        // The source may be called otherwise by now.
        one.place.target.clone_from(&source.connection.database);
    }
    if members.is_empty() {
        let wanted = source.label();
        return Err(refused(format!(
            "no database of the backup is like {wanted}; `backstay show` lists them"
        )));
    }
    let several = members.len() > 1;
    for (index, member) in members.iter_mut().enumerate() {
        let number = if several { format!("_{index}") } else { String::new() };
        let place = &mut member.place;
        place.loaded = format!("{}{tag}{number}", own_names::loaded_for(source.identity()));
        place.parked = format!("{}{tag}{number}", own_names::OLD);
        if let Some(to) = to {
            place.target = if several { format!("{to}_{}", place.target) } else { to.to_owned() };
        } else if !source.is_meant(&place.target) {
            // Its safety backup would not be of what is replaced.
            return Err(refused(format!(
                "the backup is of the database {}, which is not one of {}; give another name with --to",
                place.target,
                source.label()
            )));
        }
        if place.target.len() > MAX_NAME_BYTES {
            return Err(refused(format!(
                "the name {} is longer than {MAX_NAME_BYTES} bytes",
                place.target
            )));
        }
    }
    Ok(members)
}

fn member(
    folder: Option<&String>,
    content: &PostgresContent,
    migrations: Option<Vec<String>>,
) -> Member {
    let place = Loaded {
        database: content.database.clone(),
        target: content.database.clone(),
        loaded: String::new(),
        parked: String::new(),
    };
    Member { folder: folder.cloned(), content: content.clone(), migrations, place }
}

/// Returns the roles that a restore needs: those of the chosen databases, or all that a whole server had.
pub(super) fn needed_globals(details: &Details, members: &[Member]) -> Globals {
    match &details.content {
        Some(Content::PostgresServer(server)) if server.databases.len() == members.len() => {
            Globals { roles: server.roles.clone(), memberships: server.memberships.clone() }
        }
        _ => {
            let needed = |member: &Member| {
                let roles = member.content.roles.iter().filter(|role| role.is_needed);
                roles.cloned().collect::<Vec<_>>()
            };
            Globals {
                roles: members.iter().flat_map(needed).collect(),
                memberships: members.iter().flat_map(|m| m.content.memberships.clone()).collect(),
            }
        }
    }
}
