//! Tables change their names, and with them the database that they are in. What cannot be moved (views, routines, triggers,
//! events) is removed here and made there.
//!
//! The app sees its tables as they were, then for a moment none, then all of the new ones with their triggers: the last
//! step is one statement. Every step looks at what is there, so whoever comes after a kill goes on where it ended.

use std::collections::BTreeSet;

use backstay_format::{MysqlProperties, ObjectKind, StoredObject};
use mysql_async::Conn;
use mysql_async::prelude::Queryable as _;
use serde::{Deserialize, Serialize};

use super::error::{MysqlError, statement};
use super::names::{identifier, qualified};
use super::{describe, objects};

/// How long a change of names waits for those who are at the tables.
const LOCK_SECONDS: u32 = 30;

/// What a database holds, as far as it must be said to move it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Contents {
    properties: MysqlProperties,
    tables: Vec<String>,
    pub(super) objects: Vec<StoredObject>,
}

impl Contents {
    pub(super) async fn of(session: &mut Conn, database: &str) -> Result<Self, MysqlError> {
        let version = describe::version(session).await?;
        let tables = describe::tables(session, database).await?;
        Ok(Self {
            properties: describe::properties(session, database, &version).await?,
            tables: tables.into_iter().map(|table| table.name).collect(),
            objects: objects::read(session, database).await?,
        })
    }

    fn triggers(&self) -> impl Iterator<Item = &StoredObject> {
        self.objects.iter().filter(|object| object.kind == ObjectKind::Trigger)
    }
}

/// One of the two states that can be in place.
#[derive(Clone, Copy)]
pub(super) struct Side<'a> {
    /// Where it is while it is not in place.
    pub(super) home: &'a str,
    /// Nothing, if it is that there is no database.
    pub(super) contents: Option<&'a Contents>,
    /// How its tables are called on the way, in front of their number.
    pub(super) passing: &'static str,
}

impl Side<'_> {
    fn tables(&self) -> &[String] {
        self.contents.map_or(&[], |contents| &contents.tables)
    }

    /// Returns the name of a table on the way.
    fn passing(&self, index: usize) -> String {
        format!("{}{index}", self.passing)
    }
}

/// A change of names that is under way.
pub(super) struct Exchange<'a> {
    pub(super) session: &'a mut Conn,
    pub(super) target: &'a str,
}

impl Exchange<'_> {
    pub(super) async fn run(
        mut self,
        arriving: Side<'_>,
        leaving: Side<'_>,
    ) -> Result<(), MysqlError> {
        let patience = format!("SET SESSION lock_wait_timeout = {LOCK_SECONDS}");
        self.say(patience, "set up a session").await?;
        if let Some(contents) = leaving.contents {
            self.make_database(leaving.home, &contents.properties).await?;
        }
        if let Some(contents) = arriving.contents {
            self.make_database(self.target, &contents.properties).await?;
        }
        self.move_out(leaving).await?;
        let Some(contents) = arriving.contents else {
            // What somebody made there meanwhile is not ours to drop.
            return match self.tables_in(self.target).await?.is_empty() {
                true => drop_database(self.session, self.target).await,
                false => Ok(()),
            };
        };
        let words = describe::property_words(&contents.properties);
        let alter = format!("ALTER DATABASE {} {words}", identifier(self.target));
        self.say(alter, "set the database's properties").await?;
        self.remove_objects(contents).await?;
        self.move_in(arriving, contents).await?;
        self.make_objects(contents, |_| true).await
    }

    async fn say(&mut self, text: String, action: &'static str) -> Result<(), MysqlError> {
        self.session.query_drop(text).await.map_err(statement(action))
    }

    async fn make_database(
        &mut self,
        name: &str,
        properties: &MysqlProperties,
    ) -> Result<(), MysqlError> {
        let words = describe::property_words(properties);
        let make = format!("CREATE DATABASE IF NOT EXISTS {} {words}", identifier(name));
        self.say(make, "make a database").await
    }

    async fn tables_in(&mut self, database: &str) -> Result<BTreeSet<String>, MysqlError> {
        let tables = describe::tables(self.session, database).await?;
        Ok(tables.into_iter().map(|table| table.name).collect())
    }

    /// Changes all these names in one statement.
    async fn rename(&mut self, renames: &[(String, String)]) -> Result<(), MysqlError> {
        if renames.is_empty() {
            return Ok(());
        }
        let each: Vec<String> =
            renames.iter().map(|(from, to)| format!("{from} TO {to}")).collect();
        self.say(format!("RENAME TABLE {}", each.join(", ")), "change the names of tables").await
    }

    /// Sets tables aside. Those with triggers cannot leave the database before these are gone, and those must not be
    /// missing while the app still writes: such tables first get names that the app does not know, all with the others.
    async fn move_out(&mut self, leaving: Side<'_>) -> Result<(), MysqlError> {
        let (here, gone) =
            (self.tables_in(self.target).await?, self.tables_in(leaving.home).await?);
        let with_triggers = self.with_triggers().await?;
        let mut renames = Vec::new();
        for (index, table) in leaving.tables().iter().enumerate() {
            if gone.contains(table) || here.contains(&leaving.passing(index)) {
                continue;
            }
            let to = match with_triggers.contains(table) {
                true => qualified(self.target, &leaving.passing(index)),
                false => qualified(leaving.home, table),
            };
            renames.push((qualified(self.target, table), to));
        }
        self.rename(&renames).await?;
        let here = self.tables_in(self.target).await?;
        let passing = |(index, table)| {
            let name = leaving.passing(index);
            here.contains(&name).then_some((name, table))
        };
        let passing: Vec<(String, &String)> =
            leaving.tables().iter().enumerate().filter_map(passing).collect();
        let names: Vec<&str> = passing.iter().map(|(name, _)| name.as_str()).collect();
        self.remove_triggers(self.target, Some(&names)).await?;
        let renames = passing
            .iter()
            .map(|(name, table)| (qualified(self.target, name), qualified(leaving.home, table)));
        let renames: Vec<(String, String)> = renames.collect();
        self.rename(&renames).await
    }

    async fn with_triggers(&mut self) -> Result<BTreeSet<String>, MysqlError> {
        let triggers = objects::triggers(self.session, self.target).await?;
        Ok(triggers.into_iter().filter_map(|trigger| trigger.table).collect())
    }

    /// Removes the triggers of these tables, or of all.
    async fn remove_triggers(
        &mut self,
        database: &str,
        tables: Option<&[&str]>,
    ) -> Result<(), MysqlError> {
        for trigger in objects::triggers(self.session, database).await? {
            let table = trigger.table.as_deref().unwrap_or_default();
            if tables.is_none_or(|tables| tables.contains(&table)) {
                objects::choose(self.session, database).await?;
                objects::remove(self.session, ObjectKind::Trigger, &trigger.name).await?;
            }
        }
        Ok(())
    }

    /// Removes what is in the database beside tables and does not belong to what comes.
    async fn remove_objects(&mut self, arriving: &Contents) -> Result<(), MysqlError> {
        for object in objects::read(self.session, self.target).await? {
            if object.kind != ObjectKind::Trigger && !arriving.objects.contains(&object) {
                objects::remove(self.session, object.kind, &object.name).await?;
            }
        }
        Ok(())
    }

    /// Makes what is to be in the database beside tables and is not there.
    async fn make_objects(
        &mut self,
        arriving: &Contents,
        is_due: impl Fn(&StoredObject) -> bool,
    ) -> Result<(), MysqlError> {
        let present = objects::read(self.session, self.target).await?;
        let is_missing = |object: &&StoredObject| {
            is_due(object)
                && object.kind != ObjectKind::Trigger
                && !present.iter().any(|one| one.kind == object.kind && one.name == object.name)
        };
        objects::choose(self.session, self.target).await?;
        objects::make(self.session, arriving.objects.iter().filter(is_missing)).await
    }

    /// Puts tables into place. Triggers can only be made in the database that they are for: tables with triggers come
    /// there under other names first, and all get their own by one statement.
    async fn move_in(&mut self, arriving: Side<'_>, contents: &Contents) -> Result<(), MysqlError> {
        let is_home = describe::exists(self.session, arriving.home).await?;
        let waiting = match is_home {
            true => self.tables_in(arriving.home).await?,
            false => BTreeSet::new(),
        };
        if is_home {
            self.remove_triggers(arriving.home, None).await?;
        }
        let with_triggers: BTreeSet<&str> =
            contents.triggers().filter_map(|trigger| trigger.table.as_deref()).collect();
        let mut first = Vec::new();
        let mut last = Vec::new();
        for (index, table) in arriving.tables().iter().enumerate() {
            let (home, place) = (qualified(arriving.home, table), qualified(self.target, table));
            match (waiting.contains(table), with_triggers.contains(table.as_str())) {
                (true, true) => {
                    first.push((home, qualified(self.target, &arriving.passing(index))));
                }
                (true, false) => last.push((home, place)),
                (false, _) => {}
            }
        }
        self.rename(&first).await?;
        let here = self.tables_in(self.target).await?;
        let present = objects::triggers(self.session, self.target).await?;
        objects::choose(self.session, self.target).await?;
        for trigger in contents.triggers() {
            let index =
                arriving.tables().iter().position(|table| trigger.table.as_ref() == Some(table));
            let passing =
                index.map(|index| arriving.passing(index)).filter(|name| here.contains(name));
            if !present.iter().any(|one| one.name == trigger.name) {
                objects::make_one(self.session, trigger, passing.as_deref()).await?;
            }
        }
        for (index, table) in arriving.tables().iter().enumerate() {
            let passing = arriving.passing(index);
            if here.contains(&passing) {
                last.push((qualified(self.target, &passing), qualified(self.target, table)));
            }
        }
        let is_routine =
            |object: &StoredObject| !matches!(object.kind, ObjectKind::View | ObjectKind::Event);
        // What triggers call is there before the first of them can run.
        self.make_objects(contents, is_routine).await?;
        self.rename(&last).await
    }
}

/// Drops a database that is ours.
pub(super) async fn drop_database(session: &mut Conn, database: &str) -> Result<(), MysqlError> {
    let drop = format!("DROP DATABASE IF EXISTS {}", identifier(database));
    session.query_drop(drop).await.map_err(statement("drop a database that was set aside"))
}
