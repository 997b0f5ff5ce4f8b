//! What a backup holds beside what is there now, for a person.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};

use backstay_format::{
    Content, DuckdbContent, RedisContent, RedisDatabase, SetMember, SqliteContent, TableRows,
};
use jiff::Timestamp;

use crate::render;

/// Tables, or members of a set, that are named.
const SHOWN: usize = 20;

/// Describes what a backup holds, and of its tables also what is there now: what would be lost.
pub(super) fn describe(then: &Content, now: Option<&Content>) -> Vec<String> {
    match then {
        Content::Files(files) => {
            let links = files.symlinks + files.hard_links;
            vec![line(&[
                &count(files.files, "file"),
                &count(files.directories, "folder"),
                &count(links, "link"),
                &count(files.sqlite_databases.len() as u64, "SQLite database"),
            ])]
        }
        Content::Command(content) => {
            let names: Vec<&str> = content.outputs.iter().map(|name| name.as_str()).collect();
            vec![line(&names)]
        }
        Content::Sqlite(database) => sqlite(database),
        Content::Set(set) => members(&set.members),
        Content::Redis(server) => {
            let now = match now {
                Some(Content::Redis(now)) => Some(&*now.databases),
                _ => None,
            };
            keys(server, now)
        }
        _ => databases(then, now),
    }
}

/// Writes a number of things: `1 row`, `2 rows`.
fn count(number: u64, one: &str) -> String {
    let many = if number == 1 { "" } else { "s" };
    format!("{number} {one}{many}")
}

fn line(items: &[&str]) -> String {
    format!("Holds     {}", items.join(", "))
}

fn more(all: usize, what: &str) -> Option<String> {
    let more = all.checked_sub(SHOWN).filter(|more| *more > 0)?;
    Some(format!("          and {more} more {what}; --dry-run --json lists all"))
}

/// The tables of a database.
struct Database<'a> {
    /// Its name and the time of its view, where there are several.
    one_of_several: Option<(&'a str, Timestamp)>,
    tables: Cow<'a, [TableRows]>,
    /// What else it has.
    beside: Option<String>,
}

impl<'a> Database<'a> {
    fn only(tables: &'a [TableRows], beside: Option<String>) -> Vec<Self> {
        vec![Self { one_of_several: None, tables: Cow::Borrowed(tables), beside }]
    }

    fn of_several((name, taken_at): (&'a str, Timestamp), tables: &'a [TableRows]) -> Self {
        Self { one_of_several: Some((name, taken_at)), tables: Cow::Borrowed(tables), beside: None }
    }

    fn name(&self) -> Option<&str> {
        self.one_of_several.map(|(name, _)| name)
    }
}

/// Returns the databases of a kind whose tables are counted.
fn databases_of(content: &Content) -> Vec<Database<'_>> {
    match content {
        Content::Postgres(database) => {
            let beside = count(database.large_objects, "large object");
            Database::only(&database.tables, Some(beside))
        }
        Content::Mysql(database) => {
            let beside =
                format!("views, routines, triggers and events: {}", database.objects.len());
            Database::only(&database.tables, Some(beside))
        }
        Content::Duckdb(database) => {
            let tables = Cow::Owned(rows(database));
            vec![Database { one_of_several: None, tables, beside: None }]
        }
        Content::PostgresServer(server) => {
            let databases = server.databases.iter();
            let named = databases.map(|one| ((&*one.content.database, one.taken_at), &one.content));
            named.map(|(name, content)| Database::of_several(name, &content.tables)).collect()
        }
        Content::MysqlServer(server) => {
            let databases = server.databases.iter();
            let named = databases.map(|one| ((&*one.content.database, one.taken_at), &one.content));
            named.map(|(name, content)| Database::of_several(name, &content.tables)).collect()
        }
        _ => Vec::new(),
    }
}

fn rows(database: &DuckdbContent) -> Vec<TableRows> {
    let tables = database.tables.iter();
    tables.map(|one| TableRows { table: one.table.clone(), rows: one.rows }).collect()
}

fn databases(then: &Content, now: Option<&Content>) -> Vec<String> {
    let now = now.map(databases_of);
    let mut lines = Vec::new();
    for database in databases_of(then) {
        let present = now.iter().flatten().find(|present| present.name() == database.name());
        let label = match database.one_of_several {
            Some((name, taken_at)) => {
                lines.push(format!("Database  {name}, as of {taken_at}"));
                ""
            }
            None => "Holds",
        };
        lines.extend(tables(label, &database.tables, present.map(|present| &*present.tables)));
        lines.extend(database.beside.map(|beside| format!("          {beside}")));
    }
    lines
}

fn tables(label: &str, then: &[TableRows], now: Option<&[TableRows]>) -> Vec<String> {
    let now = now.into_iter().flatten();
    let now: BTreeMap<&str, u64> = now.map(|table| (table.table.as_str(), table.rows)).collect();
    let (number, total) = (then.len() as u64, then.iter().map(|table| table.rows).sum());
    let all = format!("{} with {}", count(number, "table"), count(total, "row"));
    let mut lines = vec![format!("{label:<10}{all}")];
    let mut tables: Vec<&TableRows> = then.iter().collect();
    tables.sort_by_key(|table| std::cmp::Reverse(table.rows));
    for TableRows { table, rows } in tables.into_iter().take(SHOWN) {
        let now = now.get(table.as_str()).map(|rows| format!(", {rows} now"));
        let now = now.unwrap_or_default();
        lines.push(format!("          {table}: {}{now}", count(*rows, "row")));
    }
    lines.extend(more(then.len(), "tables"));
    let kept: BTreeSet<&str> = then.iter().map(|table| table.table.as_str()).collect();
    let vanishing: Vec<String> = now
        .iter()
        .filter(|(name, _)| !kept.contains(*name))
        .map(|(name, rows)| format!("{name} ({})", count(*rows, "row")))
        .collect();
    if !vanishing.is_empty() {
        let named = vanishing[..vanishing.len().min(SHOWN)].join(", ");
        let more = vanishing.len().saturating_sub(SHOWN);
        let more = if more > 0 { format!(" and {more} more") } else { String::new() };
        lines.push(format!("          there now, and not in the backup: {named}{more}"));
    }
    lines
}

fn sqlite(database: &SqliteContent) -> Vec<String> {
    let version = format!("schema version {} (user_version)", database.user_version);
    let mut lines = vec![line(&[&version])];
    let tables = database.tables.iter();
    lines.extend(tables.map(|one| format!("          {}: {}", one.table, count(one.rows, "row"))));
    lines
}

/// Describes the members of a set, and how far apart their views are.
fn members(members: &[SetMember]) -> Vec<String> {
    let times = || members.iter().map(|member| member.taken_at);
    let (Some(first), Some(last)) = (times().min(), times().max()) else { return Vec::new() };
    let apart = format!("their views {} apart", render::seconds(last.duration_since(first)));
    let mut lines = vec![line(&[&count(members.len() as u64, "database"), &apart])];
    for member in members.iter().take(SHOWN) {
        let rows = match &*member.content {
            Content::Sqlite(database) => database.tables.iter().map(|table| table.rows).sum(),
            Content::Duckdb(database) => database.tables.iter().map(|table| table.rows).sum(),
            _ => 0,
        };
        let (rows, taken_at) = (count(rows, "row"), member.taken_at);
        lines.push(format!("          {}: {rows}, as of {taken_at}", member.name));
    }
    lines.extend(more(members.len(), "databases"));
    lines
}

/// Describes the databases of a server with their keys.
fn keys(then: &RedisContent, now: Option<&[RedisDatabase]>) -> Vec<String> {
    let total = then.databases.iter().map(|database| database.keys).sum();
    let libraries = match then.functions.len() {
        1 => "1 library of functions".to_owned(),
        several => format!("{several} libraries of functions"),
    };
    let mut lines = vec![line(&[&count(total, "key"), &libraries])];
    for database in &then.databases {
        let keys_now = now.map(|now| {
            let same = now.iter().find(|now| now.number == database.number);
            format!(", {} now", same.map_or(0, |same| same.keys))
        });
        let RedisDatabase { number, keys, expiring, .. } = database;
        let (keys, now) = (count(*keys, "key"), keys_now.unwrap_or_default());
        lines.push(format!(
            "          database {number}: {keys}, {expiring} with a time of expiry{now}"
        ));
    }
    let known = |number| then.databases.iter().any(|database| database.number == number);
    let others = now.into_iter().flatten().filter(|now| !known(now.number));
    lines.extend(
        others.map(|now| format!("          database {}: none, {} now", now.number, now.keys)),
    );
    lines
}

#[cfg(test)]
mod tests {
    use backstay_format::{MysqlContent, MysqlServerContent, MysqlServerDatabase};

    use super::*;

    fn server(databases: &[(&str, &[(&str, u64)])]) -> Content {
        let database = |(name, tables): &(&str, &[(&str, u64)])| {
            let tables = tables.iter();
            let tables =
                tables.map(|(table, rows)| TableRows { table: (*table).to_owned(), rows: *rows });
            let content = MysqlContent {
                database: (*name).to_owned(),
                tables: tables.collect(),
                ..MysqlContent::default()
            };
            MysqlServerDatabase {
                folder: String::new(),
                taken_at: Timestamp::UNIX_EPOCH,
                consistency_point: None,
                content,
            }
        };
        let databases = databases.iter().map(database).collect();
        Content::MysqlServer(Box::new(MysqlServerContent { databases }))
    }

    #[test]
    fn tables_are_shown_beside_those_of_the_same_database_now() {
        let then = server(&[("a", &[("t", 1), ("u", 2)]), ("b", &[("t", 7)])]);
        let now = server(&[("b", &[("t", 8)]), ("c", &[("t", 9)])]);
        let expected = [
            "Database  a, as of 1970-01-01T00:00:00Z",
            "          2 tables with 3 rows",
            "          u: 2 rows",
            "          t: 1 row",
            "Database  b, as of 1970-01-01T00:00:00Z",
            "          1 table with 7 rows",
            "          t: 7 rows, 8 now",
        ];
        assert_eq!(describe(&then, Some(&now)), expected);
    }

    #[test]
    fn what_is_too_much_to_show_is_counted() {
        let names: Vec<String> = (0..23).map(|n| format!("t{n:02}")).collect();
        let tables: Vec<(&str, u64)> = names.iter().map(|name| (name.as_str(), 1)).collect();
        let shown = describe(&server(&[("a", &tables)]), None);
        assert_eq!(shown.len(), 2 + SHOWN + 1);
        assert_eq!(
            shown.last().unwrap(),
            "          and 3 more tables; --dry-run --json lists all"
        );
    }
}
