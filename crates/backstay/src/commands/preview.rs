//! What a restore would do, for a person and for programs.

use std::collections::BTreeMap;

use backstay_control::PastRestore;
use backstay_engine::event::Event;
use backstay_engine::restore::RestorePlan;
use backstay_engine::source::How;
use backstay_engine::vault::Vault;
use backstay_format::{
    Content, DuckdbContent, MysqlServerDatabase, PartName, RedisContent, RedisDatabase,
    ServerDatabase, SetMember, TableRows,
};
use jiff::{SignedDuration, Timestamp};
use serde_json::json;

use crate::cli::RestoreArgs;
use crate::installation::Installation;
use crate::render;

/// Tables that a preview names.
const SHOWN_TABLES: usize = 20;

/// Shows what a restore would do, and how long that should take (V47-V50).
pub(super) async fn show(
    app: &Installation,
    vault: &Vault,
    plan: &RestorePlan,
    args: &RestoreArgs,
    json: bool,
) -> anyhow::Result<()> {
    let (manifest, outlook, now) = (&plan.manifest, &plan.outlook, app.cx.now());
    let expected = expected(app, vault, plan).await?;
    if json {
        if !args.dry_run {
            return Ok(());
        }
        return render::print_json(&json!({
            "backup": plan.place.backup,
            "source": plan.place.source,
            "started_at": manifest.started_at,
            "tool": manifest.tool,
            "engine": manifest.engine,
            "engine_now": outlook.engine,
            "schema_version": plan.details.schema_version,
            "plain_bytes": manifest.plain_bytes(),
            "target": outlook.target,
            "replaces": outlook.replaces,
            "how": how(outlook.how),
            "expected_seconds": expected.as_ref().map(|expected| expected.takes.as_secs_f64()),
            "content": plan.content().cloned().map(Content::without_secrets),
            "present": outlook.present,
            "warnings": outlook.warnings,
        }));
    }
    let mut lines = vec![
        format!(
            "Backup    {} of {}, made {} ago by {}",
            plan.place.backup,
            plan.place.source,
            render::age(manifest.started_at, now),
            manifest.tool
        ),
        format!(
            "Size      {} ({} to fetch)",
            render::size(manifest.plain_bytes()),
            render::size(manifest.stored_bytes())
        ),
    ];
    lines.extend(manifest.engine.as_ref().map(|engine| {
        let now = outlook.engine.as_ref().map(|now| format!(", now {now}"));
        format!("Engine    {engine}{}", now.unwrap_or_default())
    }));
    lines.extend(plan.details.schema_version.as_ref().map(|applied| {
        let last = applied.last().map(|last| format!(", up to {last}"));
        format!("Schema    {} migrations{}", applied.len(), last.unwrap_or_default())
    }));
    lines.extend(holdings(plan));
    let verb = if outlook.replaces { "Replaces " } else { "Makes    " };
    lines.push(format!("{verb} {}", outlook.target));
    if outlook.replaces {
        lines.push(format!(
            "Loses     what was changed there in the last {}, unless undone",
            render::age(manifest.started_at, now)
        ));
        lines.push(format!("How       {}", how(outlook.how)));
    }
    lines.extend(expected.map(|expected| {
        let (takes, took) = (seconds(expected.takes), seconds(expected.past.took));
        format!("Expected  {takes}: restoring {} took {took}", expected.past.backup)
    }));
    lines.extend(outlook.warnings.iter().map(|warning| format!("Warning   {warning}")));
    let preview = lines.join("\n");
    if args.yes {
        // Nobody is asked, so --quiet may keep it back.
        app.cx.event(Event::Step { what: preview });
    } else {
        render::say(&preview);
    }
    Ok(())
}

/// How long a restore should take, from the one before.
struct Expected {
    takes: SignedDuration,
    past: PastRestore,
}

async fn expected(
    app: &Installation,
    vault: &Vault,
    plan: &RestorePlan,
) -> anyhow::Result<Option<Expected>> {
    let source = &plan.place.source;
    let Some(past) = app.catalog.last_restore(source.as_str()).await? else { return Ok(None) };
    let listing = vault.list(&app.cx, &plan.place.organisation, source).await?;
    let Some(then) = listing.backups.iter().find(|entry| entry.id.as_str() == past.backup) else {
        return Ok(None);
    };
    // What takes time grows with the bytes; a small backup has its fixed costs all the same.
    let growth = plan.manifest.plain_bytes().max(1) as f64 / then.plain_bytes.max(1) as f64;
    let takes = past.took.as_secs_f64() * growth.max(1.0);
    let takes = SignedDuration::try_from_secs_f64(takes).unwrap_or(past.took);
    Ok(Some(Expected { takes, past }))
}

fn seconds(duration: SignedDuration) -> String {
    match duration.as_secs() {
        0..120 => format!("{:.1} s", duration.as_secs_f64()),
        long => format!("{} min", long / 60),
    }
}

fn holdings(plan: &RestorePlan) -> Vec<String> {
    match plan.content() {
        Some(Content::Files(files)) => vec![format!(
            "Holds     {} files, {} directories, {} links, {} SQLite databases",
            files.files,
            files.directories,
            files.symlinks + files.hard_links,
            files.sqlite_databases.len()
        )],
        Some(Content::Sqlite(database)) => {
            let version =
                format!("Holds     schema version {} (user_version)", database.user_version);
            let tables = database.tables.iter();
            std::iter::once(version)
                .chain(tables.map(|t| format!("          {}: {} rows", t.table, t.rows)))
                .collect()
        }
        Some(Content::Postgres(database)) => {
            let now = match &plan.outlook.present {
                Some(Content::Postgres(now)) => Some(&**now),
                _ => None,
            };
            let mut lines =
                rows_then_and_now("Holds", &database.tables, now.map(|now| &*now.tables));
            lines.push(format!("          {} large objects", database.large_objects));
            lines
        }
        Some(Content::PostgresServer(server)) => {
            let now = match &plan.outlook.present {
                Some(Content::PostgresServer(now)) => now.databases.as_slice(),
                _ => &[],
            };
            let of = |one: &ServerDatabase| {
                let content = &one.content;
                let now = now.iter().find(|now| now.content.database == content.database);
                let now = now.map(|now| &*now.content.tables);
                one_of_several((&content.database, one.taken_at), &content.tables, now)
            };
            server.databases.iter().flat_map(of).collect()
        }
        Some(Content::MysqlServer(server)) => {
            let now = match &plan.outlook.present {
                Some(Content::MysqlServer(now)) => now.databases.as_slice(),
                _ => &[],
            };
            let of = |one: &MysqlServerDatabase| {
                let content = &one.content;
                let now = now.iter().find(|now| now.content.database == content.database);
                let now = now.map(|now| &*now.content.tables);
                one_of_several((&content.database, one.taken_at), &content.tables, now)
            };
            server.databases.iter().flat_map(of).collect()
        }
        Some(Content::Mysql(database)) => {
            let now = match &plan.outlook.present {
                Some(Content::Mysql(now)) => Some(&*now.tables),
                _ => None,
            };
            let mut lines = rows_then_and_now("Holds", &database.tables, now);
            let beside = database.objects.len();
            lines.push(format!("          views, routines, triggers and events: {beside}"));
            lines
        }
        Some(Content::Duckdb(database)) => {
            let rows = |database: &DuckdbContent| -> Vec<TableRows> {
                let tables = database.tables.iter();
                tables.map(|one| TableRows { table: one.table.clone(), rows: one.rows }).collect()
            };
            let now = match &plan.outlook.present {
                Some(Content::Duckdb(now)) => Some(rows(now)),
                _ => None,
            };
            rows_then_and_now("Holds", &rows(database), now.as_deref())
        }
        Some(Content::Set(set)) => members(&set.members),
        Some(Content::Command(content)) => {
            let names: Vec<&str> = content.outputs.iter().map(PartName::as_str).collect();
            vec![format!("Holds     {}", names.join(", "))]
        }
        Some(Content::Redis(server)) => {
            let now = match &plan.outlook.present {
                Some(Content::Redis(now)) => Some(&*now.databases),
                _ => None,
            };
            keys_then_and_now(server, now)
        }
        None => Vec::new(),
    }
}

/// Shows the members of a set, and how far apart their views are.
fn members(members: &[SetMember]) -> Vec<String> {
    let times = || members.iter().map(|member| member.taken_at);
    let (Some(first), Some(last)) = (times().min(), times().max()) else { return Vec::new() };
    let apart = seconds(last.duration_since(first));
    let mut lines =
        vec![format!("Holds     {} databases, their views {apart} apart", members.len())];
    for member in members.iter().take(SHOWN_TABLES) {
        let rows: u64 = match &*member.content {
            Content::Sqlite(database) => database.tables.iter().map(|table| table.rows).sum(),
            Content::Duckdb(database) => database.tables.iter().map(|table| table.rows).sum(),
            _ => 0,
        };
        lines.push(format!("          {}: {rows} rows, as of {}", member.name, member.taken_at));
    }
    let more = members.len().saturating_sub(SHOWN_TABLES);
    if more > 0 {
        lines.push(format!("          and {more} more; --dry-run --json lists all"));
    }
    lines
}

fn one_of_several(
    (name, taken_at): (&str, Timestamp),
    then: &[TableRows],
    now: Option<&[TableRows]>,
) -> Vec<String> {
    let mut lines = vec![format!("Database  {name}, as of {taken_at}")];
    lines.extend(rows_then_and_now("", then, now));
    lines
}

/// Shows the databases of a server with their keys in the backup, and now.
fn keys_then_and_now(then: &RedisContent, now: Option<&[RedisDatabase]>) -> Vec<String> {
    let total: u64 = then.databases.iter().map(|database| database.keys).sum();
    let libraries = then.functions.len();
    let mut lines = vec![format!("Holds     {total} keys, and {libraries} libraries of functions")];
    for database in &then.databases {
        let keys_now = now.map(|now| {
            let same = now.iter().find(|now| now.number == database.number);
            format!(", {} now", same.map_or(0, |same| same.keys))
        });
        let RedisDatabase { number, keys, expiring, .. } = database;
        let now = keys_now.unwrap_or_default();
        lines.push(format!(
            "          database {number}: {keys} keys, {expiring} of them expire{now}"
        ));
    }
    let known = |number| then.databases.iter().any(|database| database.number == number);
    let others = now.into_iter().flatten().filter(|now| !known(now.number));
    lines.extend(
        others.map(|now| format!("          database {}: none, {} now", now.number, now.keys)),
    );
    lines
}

/// Shows the tables with their rows in the backup, and now: what would be lost.
fn rows_then_and_now(label: &str, then: &[TableRows], now: Option<&[TableRows]>) -> Vec<String> {
    let tables_now = now.into_iter().flatten();
    let now: BTreeMap<&str, u64> = tables_now.map(|t| (t.table.as_str(), t.rows)).collect();
    let total: u64 = then.iter().map(|table| table.rows).sum();
    let mut lines = vec![format!("{label:<10}{} tables with {total} rows", then.len(),)];
    let mut tables: Vec<_> = then.iter().collect();
    tables.sort_by_key(|table| std::cmp::Reverse(table.rows));
    for table in tables.iter().take(SHOWN_TABLES) {
        let now = now.get(table.table.as_str()).map(|rows| format!(", {rows} now"));
        let (name, rows) = (&table.table, table.rows);
        lines.push(format!("          {name}: {rows} rows{}", now.unwrap_or_default()));
    }
    let more = tables.len().saturating_sub(SHOWN_TABLES);
    if more > 0 {
        lines.push(format!("          and {more} more tables; --dry-run --json lists all"));
    }
    lines
}

fn how(how: How) -> &'static str {
    match how {
        How::Swap => {
            "loaded beside, every byte proven, present data backed up, then swapped in one step"
        }
        How::Entries => {
            "in place: loaded into the directory, every byte proven, present data backed up, then swapped name by name, \
             since the directory itself cannot be renamed or --in-place was given"
        }
        How::Paths => {
            "only the chosen paths: loaded beside, every byte proven, present data backed up, then each swapped in one step"
        }
        How::Databases => {
            "loaded into a new database, every byte proven, rows counted, present data backed up, then the databases change \
             their names in one transaction"
        }
        How::Tables => {
            "loaded into a new database, every byte proven, rows counted, present data backed up, then the tables change their \
             names; for a moment the app finds none"
        }
        How::Programs => {
            "every byte proven and kept aside, present data backed up, then given to the restore commands, which replace in \
             their own way; nobody can take that back"
        }
        How::Members => {
            "each loaded beside, every byte proven, present data backed up, then one after the other swapped in; all of them or none"
        }
        How::Transaction => {
            "in place: every byte proven and kept aside, present data backed up, then dropped, loaded and counted in one transaction, \
             which the server takes back if anything fails"
        }
    }
}
