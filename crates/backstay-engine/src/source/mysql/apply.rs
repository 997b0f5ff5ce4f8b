//! Loading a backup into a new database beside the one that it will replace.

use std::ffi::OsString;

use async_trait::async_trait;
use backstay_format::{
    Content, Details, MediaType, MysqlContent, ObjectKind, PartName, StoredObject,
};
use mysql_async::Conn;
use mysql_async::prelude::Queryable as _;

use super::connection::MysqlConnection as _;
use super::error::{MysqlError, refused, statement};
use super::exchange::Replacement;
use super::moves::{Contents, drop_database};
use super::names::identifier;
use super::tools::Version;
use super::{MysqlSource, describe, load, objects};
use crate::cx::Cx;
use crate::part::PartReader;
use crate::source::connection::Connection;
use crate::source::{
    Applied, ApplyReport, How, Loaded, Outlook, SourceError, Target, TargetOptions, own_names,
};
use crate::swap;

/// Of the name of a database, in characters.
const MAX_NAME_CHARS: usize = 64;

/// A new database beside the target.
pub(super) struct DatabaseTarget {
    source: MysqlSource,
    /// Another name, or why it is none.
    to: Result<Option<String>, String>,
    only: Vec<String>,
    in_place: bool,
    tag: String,
    prepared: Option<MysqlContent>,
    report: ApplyReport,
}

impl DatabaseTarget {
    pub(super) fn new(source: &MysqlSource, options: TargetOptions) -> Self {
        let to = match options.to.map(OsString::into_string) {
            None => Ok(None),
            Some(Err(_)) => Err("the name of a database is text in UTF-8".to_owned()),
            Some(Ok(name)) if name.is_empty() || name.chars().count() > MAX_NAME_CHARS => {
                Err(format!("the name of a database has 1 to {MAX_NAME_CHARS} characters"))
            }
            Some(Ok(name)) => Ok(Some(name)),
        };
        Self {
            source: source.clone(),
            to,
            only: options.only.iter().map(|path| path.to_string_lossy().into_owned()).collect(),
            in_place: options.in_place,
            tag: options.tag,
            prepared: None,
            report: ApplyReport::default(),
        }
    }

    /// Whether nothing is replaced: the name must be free.
    fn is_elsewhere(&self) -> bool {
        self.source.elsewhere || !matches!(self.to, Ok(None))
    }

    fn target(&self) -> Result<String, MysqlError> {
        let to = self.to.as_ref().map_err(refused)?;
        Ok(to.clone().unwrap_or_else(|| self.source.connection.database.clone()))
    }

    fn loaded(&self) -> String {
        format!("{}{}", own_names::loaded_for(&self.source.connection.database), self.tag)
    }

    fn place(&self, database: &str) -> Connection {
        self.source.connection.with_database(database)
    }

    /// Looks at the server. Everything that stands against the restore is found here.
    async fn look(&self, cx: &Cx, details: &Details) -> Result<Outlook, MysqlError> {
        if !self.only.is_empty() {
            return Err(refused(
                "chosen tables cannot be restored alone yet; restore all to another database with --to and take them from there",
            ));
        }
        if self.in_place {
            return Err(refused(
                "--in-place is not for this kind of source: it is always loaded beside, and its tables change their names",
            ));
        }
        let content = content(details)?;
        let target = self.target()?;
        let mut session = self.source.connection.session(cx).await?;
        let version = describe::version(&mut session).await?;
        let mut warnings = Vec::new();
        compare_versions(&content.server, &version, &mut warnings)?;
        let replaces = describe::exists(&mut session, &target).await?;
        if replaces && self.is_elsewhere() {
            return Err(refused(format!(
                "the database {target} is there already; give a name that is free"
            )));
        }
        let referring = describe::referring(&mut session, &target).await?;
        if replaces && !referring.is_empty() {
            return Err(refused(format!(
                "these tables of other databases refer to tables of {target} and would follow those when they are set aside: {}; restore to another database with --to",
                referring.join(", ")
            )));
        }
        for view in content.objects.iter().filter(|object| object.is_broken) {
            warnings.push(format!(
                "the view {} was broken when it was backed up and does not come back",
                view.name
            ));
        }
        let present = match replaces {
            true => Some(present(&mut session, &target, &version).await?),
            false => None,
        };
        Ok(Outlook {
            target: self.place(&target).location(),
            replaces,
            how: How::Tables,
            engine: Some(version.engine()),
            present: present.map(|present| Content::Mysql(Box::new(present))),
            warnings,
        })
    }

    async fn make_place(&self, cx: &Cx, content: &MysqlContent) -> Result<(), MysqlError> {
        let mut session = self.source.connection.session(cx).await?;
        let words = describe::property_words(&content.properties);
        let create = format!("CREATE DATABASE {} {words}", identifier(&self.loaded()));
        let made = session.query_drop(create).await;
        made.map_err(statement("make a new database (GRANT ALL ON *.* or ON `backstay\\_%`.* gives our user the right)"))
    }

    async fn load(&mut self, cx: &Cx, data: PartReader) -> Result<(), SourceError> {
        let mut session = self.source.connection.session(cx).await?;
        objects::choose(&mut session, &self.loaded()).await?;
        self.report.bytes += load::run(cx, &mut session, data).await?;
        Ok(())
    }

    /// Proves what was loaded, makes what stands beside the tables, and says how all of it comes to its place.
    async fn complete(&mut self, cx: &Cx) -> Result<Replacement, MysqlError> {
        let loaded = self.loaded();
        let content = self.prepared.clone().ok_or_else(|| refused("nothing was prepared"))?;
        let mut session = self.source.connection.session(cx).await?;
        self.report.items = load::compare_rows(&mut session, &loaded, &content).await?;
        // That it can be made at all is proven here. Events would begin to run, and wait for their place.
        objects::choose(&mut session, &loaded).await?;
        let is_event = |object: &&StoredObject| object.kind == ObjectKind::Event;
        let (events, others): (Vec<&StoredObject>, Vec<&StoredObject>) =
            content.objects.iter().partition(is_event);
        objects::make(&mut session, others).await?;
        let mut arriving = Contents::of(&mut session, &loaded).await?;
        arriving.objects.extend(events.into_iter().cloned());
        Ok(Replacement {
            server: self.source.connection.server(),
            database: content.database,
            target: self.target()?,
            parked: format!("{}{}", own_names::OLD, self.tag),
            loaded,
            arriving: Some(arriving),
            replaced: None,
        })
    }
}

fn content(details: &Details) -> Result<&MysqlContent, MysqlError> {
    match &details.content {
        Some(Content::Mysql(content)) => Ok(content),
        _ => Err(refused("the backup is not of a MySQL or MariaDB database")),
    }
}

/// Describes what is there in the shape of what comes back.
async fn present(
    session: &mut Conn,
    database: &str,
    version: &Version,
) -> Result<MysqlContent, MysqlError> {
    Ok(MysqlContent {
        database: database.to_owned(),
        server: version.engine(),
        tables: describe::count_all(session, database).await?,
        ..MysqlContent::default()
    })
}

/// Compares the server that was backed up with the one that is there.
fn compare_versions(
    then: &str,
    now: &Version,
    warnings: &mut Vec<String>,
) -> Result<(), MysqlError> {
    let (name, number) = then.split_once(' ').unwrap_or((then, ""));
    let before = Version::of_server(&format!("{number}-{name}"));
    if before.flavour != now.flavour {
        warnings.push(format!(
            "the backup is of {then} and the server is {}: what only one of them knows makes the restore fail",
            now.engine()
        ));
    } else if before.series() > now.series() {
        return Err(refused(format!(
            "the backup is of {then} and the server is {}, which may not know all that it holds; restore to a server that is not older",
            now.engine()
        )));
    } else if before.series() < now.series() {
        warnings.push(format!("the backup is of {then} and the server is {}", now.engine()));
    }
    Ok(())
}

#[async_trait]
impl Target for DatabaseTarget {
    async fn outlook(&self, cx: &Cx, details: &Details) -> Result<Outlook, SourceError> {
        Ok(cx.run(self.look(cx, details)).await??)
    }

    async fn prepare(&mut self, cx: &Cx, details: &Details) -> Result<(), SourceError> {
        let content = content(details)?;
        self.prepared = Some(content.clone());
        // Not given up half-way: the server would make the database all the same.
        Ok(self.make_place(cx, content).await?)
    }

    /// The rest is for people with the server's programs; the manifest says the same in a form that needs no reading of SQL.
    fn wants(&self, _part: &PartName, media_type: MediaType) -> bool {
        media_type == MediaType::MysqlDump
    }

    async fn apply(&mut self, cx: &Cx, data: PartReader) -> Result<Applied, SourceError> {
        self.load(cx, data).await?;
        Ok(Applied::Done)
    }

    async fn finish(mut self: Box<Self>, cx: &Cx) -> Result<Loaded, SourceError> {
        let completed = cx.run(self.complete(cx)).await;
        match completed.map_err(SourceError::from).and_then(|done| Ok(done?)) {
            Ok(replacement) => {
                let replacement = swap::Replacement::Mysql(Box::new(replacement));
                Ok(Loaded { report: self.report, replacement })
            }
            Err(error) => {
                self.discard(&cx.for_cleanup()).await?;
                Err(error)
            }
        }
    }

    async fn discard(self: Box<Self>, cx: &Cx) -> Result<(), SourceError> {
        if self.prepared.is_some() {
            let mut session = self.source.connection.session(cx).await?;
            drop_database(&mut session, &self.loaded()).await?;
        }
        Ok(())
    }
}
