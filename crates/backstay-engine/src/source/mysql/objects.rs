//! What a database holds beside its tables: views, routines, triggers and events. None of it can be moved to another
//! database by name, so it is described, and made anew.

use backstay_format::{ObjectKind, StoredObject};
use mysql_async::prelude::Queryable as _;
use mysql_async::{Conn, Row};

use super::connection::SETUP;
use super::describe::{rows, text, texts};
use super::error::{MysqlError, refused, statement};
use super::names::{identifier, literal};

/// The words for the kinds that `SHOW CREATE` knows as routines, in the order in which they can be made.
const ROUTINES: [ObjectKind; 4] =
    [ObjectKind::Package, ObjectKind::PackageBody, ObjectKind::Function, ObjectKind::Procedure];

/// Returns the server's word for a kind.
pub(super) fn word(kind: ObjectKind) -> &'static str {
    match kind {
        ObjectKind::Package => "PACKAGE",
        ObjectKind::PackageBody => "PACKAGE BODY",
        ObjectKind::Function => "FUNCTION",
        ObjectKind::Procedure => "PROCEDURE",
        ObjectKind::View => "VIEW",
        ObjectKind::Trigger => "TRIGGER",
        ObjectKind::Event => "EVENT",
    }
}

/// Reads all of it, in the order in which it can be made.
pub(super) async fn read(
    session: &mut Conn,
    database: &str,
) -> Result<Vec<StoredObject>, MysqlError> {
    choose(session, database).await?;
    let mut objects = Vec::new();
    for kind in ROUTINES {
        objects.extend(routines(session, database, kind).await?);
    }
    objects.extend(views(session, database).await?);
    objects.extend(triggers(session, database).await?);
    objects.extend(events(session, database).await?);
    Ok(objects)
}

/// Makes a database the one that names without one are in.
pub(super) async fn choose(session: &mut Conn, database: &str) -> Result<(), MysqlError> {
    let chosen = session.query_drop(format!("USE {}", identifier(database))).await;
    chosen.map_err(statement("choose a database"))
}

async fn routines(
    session: &mut Conn,
    database: &str,
    kind: ObjectKind,
) -> Result<Vec<StoredObject>, MysqlError> {
    let list = format!(
        "SELECT routine_name FROM information_schema.routines WHERE routine_schema = {} AND routine_type = '{}' ORDER BY 1",
        literal(database),
        word(kind)
    );
    let mut found = Vec::new();
    for name in texts(session, &list, "list the routines").await? {
        let row = shown(session, kind, &name).await?;
        found.push(StoredObject {
            sql_mode: text(&row, 1),
            statement: readable(&row, 2, &name)?,
            character_set_client: text(&row, 3),
            collation_connection: text(&row, 4),
            database_collation: Some(text(&row, 5)),
            ..StoredObject::new(kind, &name)
        });
    }
    Ok(found)
}

async fn views(session: &mut Conn, database: &str) -> Result<Vec<StoredObject>, MysqlError> {
    let list = format!(
        "SELECT table_name FROM information_schema.views WHERE table_schema = {} ORDER BY 1",
        literal(database)
    );
    let mut found = Vec::new();
    for name in texts(session, &list, "list the views").await? {
        let row = shown(session, ObjectKind::View, &name).await?;
        let fields = format!("SHOW FIELDS FROM {}", identifier(&name));
        found.push(StoredObject {
            statement: readable(&row, 1, &name)?,
            character_set_client: text(&row, 2),
            collation_connection: text(&row, 3),
            is_broken: session.query_drop(fields).await.is_err(),
            ..StoredObject::new(ObjectKind::View, &name)
        });
    }
    Ok(in_order(found))
}

/// Puts views behind those whose names stand in what makes them.
fn in_order(mut views: Vec<StoredObject>) -> Vec<StoredObject> {
    let mut ordered = Vec::with_capacity(views.len());
    while !views.is_empty() {
        let names: Vec<String> = views.iter().map(|view| identifier(&view.name)).collect();
        let waits = |view: &StoredObject| {
            let others = names.iter().filter(|name| **name != identifier(&view.name));
            others.into_iter().any(|name| view.statement.contains(name.as_str()))
        };
        let (waiting, mut ready): (Vec<_>, Vec<_>) = views.into_iter().partition(waits);
        if ready.is_empty() {
            // A column may be called like a view: whoever makes them tries all again.
            ordered.extend(waiting);
            return ordered;
        }
        ordered.append(&mut ready);
        views = waiting;
    }
    ordered
}

/// Reads the triggers, those of one table in the order in which they run.
pub(super) async fn triggers(
    session: &mut Conn,
    database: &str,
) -> Result<Vec<StoredObject>, MysqlError> {
    let query = format!(
        "SELECT trigger_name, event_object_table, definer, action_timing, event_manipulation, action_statement, sql_mode,
                character_set_client, collation_connection, database_collation
           FROM information_schema.triggers WHERE trigger_schema = {}
          ORDER BY event_object_table, event_manipulation, action_timing, action_order",
        literal(database)
    );
    let found = rows(session, &query, "list the triggers").await?;
    let read = found.iter().map(|row| {
        let name = text(row, 0);
        let definer = text(row, 2);
        // Users have such signs in their names, hosts have not.
        let (user, host) = definer.rsplit_once('@').unwrap_or((&definer, "%"));
        Ok(StoredObject {
            table: Some(text(row, 1)),
            statement: format!(
                "CREATE DEFINER={}@{} TRIGGER {} {} {} ON ",
                identifier(user),
                identifier(host),
                identifier(&name),
                text(row, 3),
                text(row, 4)
            ),
            body: Some(readable(row, 5, &name)?),
            sql_mode: text(row, 6),
            character_set_client: text(row, 7),
            collation_connection: text(row, 8),
            database_collation: Some(text(row, 9)),
            ..StoredObject::new(ObjectKind::Trigger, &name)
        })
    });
    read.collect()
}

async fn events(session: &mut Conn, database: &str) -> Result<Vec<StoredObject>, MysqlError> {
    let list = format!(
        "SELECT event_name FROM information_schema.events WHERE event_schema = {} ORDER BY 1",
        literal(database)
    );
    let mut found = Vec::new();
    for name in texts(session, &list, "list the events").await? {
        let row = shown(session, ObjectKind::Event, &name).await?;
        found.push(StoredObject {
            sql_mode: text(&row, 1),
            time_zone: Some(text(&row, 2)),
            statement: readable(&row, 3, &name)?,
            character_set_client: text(&row, 4),
            collation_connection: text(&row, 5),
            database_collation: Some(text(&row, 6)),
            ..StoredObject::new(ObjectKind::Event, &name)
        });
    }
    Ok(found)
}

async fn shown(session: &mut Conn, kind: ObjectKind, name: &str) -> Result<Row, MysqlError> {
    let show = format!("SHOW CREATE {} {}", word(kind), identifier(name));
    let found = rows(session, &show, "read how an object was made").await?;
    found.into_iter().next().ok_or_else(|| refused(format!("{name} is gone while it was read")))
}

/// Reads a statement, which the server keeps back from those who may not see it.
fn readable(row: &Row, column: usize, name: &str) -> Result<String, MysqlError> {
    let found: Option<Vec<u8>> = row.get(column).unwrap_or_default();
    let found = found.ok_or_else(|| {
        refused(format!(
            "the server does not tell how {name} was made; give our user SELECT on mysql.*, SHOW VIEW, TRIGGER and EVENT"
        ))
    })?;
    let no_text = |_| refused(format!("the definition of {name} is no text in UTF-8"));
    String::from_utf8(found).map_err(no_text)
}

/// Returns the statement that makes an object; a trigger stands at `table`, or where it stood.
pub(super) fn creation(object: &StoredObject, table: Option<&str>) -> String {
    match (table.or(object.table.as_deref()), &object.body) {
        (Some(table), Some(body)) => {
            format!("{}{} FOR EACH ROW {body}", object.statement, identifier(table))
        }
        _ => object.statement.clone(),
    }
}

/// Says whether a session can speak in a character set and mean the same.
fn can_be_said_in(character_set: &str, statement: &str) -> bool {
    statement.is_ascii() || character_set.starts_with("utf8")
}

/// Makes objects in the chosen database, each in the surroundings in which it was made first. Views of other views wait for
/// those; broken ones are left out.
pub(super) async fn make(
    session: &mut Conn,
    objects: impl IntoIterator<Item = &StoredObject>,
) -> Result<(), MysqlError> {
    let (mut views, mut others) = (Vec::new(), Vec::new());
    for object in objects.into_iter().filter(|object| !object.is_broken) {
        if object.kind == ObjectKind::View { views.push(object) } else { others.push(object) }
    }
    for object in others {
        make_one(session, object, None).await?;
    }
    while !views.is_empty() {
        let (before, mut last) = (views.len(), None);
        let mut waiting = Vec::new();
        for view in views {
            if let Err(error) = make_one(session, view, None).await {
                last = Some(error);
                waiting.push(view);
            }
        }
        if let Some(error) = last.filter(|_| waiting.len() == before) {
            return Err(error);
        }
        views = waiting;
    }
    Ok(())
}

/// Makes one object; a trigger at `table`, if it is given.
pub(super) async fn make_one(
    session: &mut Conn,
    object: &StoredObject,
    table: Option<&str>,
) -> Result<(), MysqlError> {
    let creation = creation(object, table);
    let mut settings = Vec::new();
    if object.kind != ObjectKind::View {
        settings.push(format!("sql_mode = {}", literal(&object.sql_mode)));
    }
    if can_be_said_in(&object.character_set_client, &creation) {
        settings.push(format!("character_set_client = {}", literal(&object.character_set_client)));
    }
    settings.push(format!("collation_connection = {}", literal(&object.collation_connection)));
    settings.extend(object.time_zone.iter().map(|zone| format!("time_zone = {}", literal(zone))));
    let surround = format!("SET SESSION {}", settings.join(", SESSION "));
    let described = |error: mysql_async::Error| {
        let what = format!("{} {}", word(object.kind).to_lowercase(), object.name);
        match statement("make what the database holds beside tables")(error) {
            MysqlError::Statement { action, finding } => {
                MysqlError::Statement { action, finding: format!("{what}: {finding}") }
            }
            other => other,
        }
    };
    let collations = texts(session, "SELECT @@collation_database", "look up a collation").await?;
    let present = collations.first();
    let other = object.database_collation.as_ref().filter(|then| Some(*then) != present);
    // An object keeps the one that its database has when it is made.
    collate(session, other).await?;
    session.query_drop(surround).await.map_err(described)?;
    let made = session.query_drop(creation).await;
    session.query_drop(SETUP).await.map_err(statement("set up a session"))?;
    collate(session, present.filter(|_| other.is_some())).await?;
    made.map_err(described)
}

/// Gives the chosen database a collation.
async fn collate(session: &mut Conn, collation: Option<&String>) -> Result<(), MysqlError> {
    let Some(collation) = collation else { return Ok(()) };
    let alter = format!("ALTER DATABASE COLLATE {}", literal(collation));
    session.query_drop(alter).await.map_err(statement("set the database's collation"))
}

/// Removes an object from the chosen database.
pub(super) async fn remove(
    session: &mut Conn,
    kind: ObjectKind,
    name: &str,
) -> Result<(), MysqlError> {
    let drop = format!("DROP {} IF EXISTS {}", word(kind), identifier(name));
    session.query_drop(drop).await.map_err(statement("remove an object"))
}

/// Writes them as a file for the programs of the server.
pub(super) fn file(objects: &[StoredObject]) -> String {
    let (views, others): (Vec<&StoredObject>, Vec<&StoredObject>) =
        objects.iter().partition(|object| object.kind == ObjectKind::View);
    let each: String = others.into_iter().chain(views).map(script).collect();
    format!(
        "-- Views, routines, triggers and events; for behind the tables.\nDELIMITER ;;\n{each}DELIMITER ;\n"
    )
}

/// Writes what makes an object in its surroundings.
fn script(object: &StoredObject) -> String {
    let creation = creation(object, None);
    if object.is_broken {
        let remark = creation.replace('\n', "\n-- ");
        return format!("-- What this view is of was gone already:\n-- {remark}\n");
    }
    let zone = object.time_zone.as_deref().unwrap_or("+00:00");
    format!(
        "SET NAMES utf8mb4, sql_mode = {}, collation_connection = {}, time_zone = {};;\n{creation};;\n",
        literal(&object.sql_mode),
        literal(&object.collation_connection),
        literal(zone),
    )
}
