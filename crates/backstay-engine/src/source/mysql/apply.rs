//! Loading a backup into a new database beside the one that it will replace.

use std::ffi::OsString;

use async_trait::async_trait;
use backstay_format::{
    Content, Details, MediaType, MysqlContent, MysqlServerContent, MysqlServerDatabase, ObjectKind,
    PartName, StoredObject,
};
use jiff::Timestamp;
use mysql_async::Conn;
use mysql_async::prelude::Queryable as _;

use super::connection::MysqlConnection as _;
use super::error::{MysqlError, refused, statement};
use super::exchange::{LoadedDatabase, Replacement};
use super::member::{Member, left_out, members};
use super::moves::{Contents, drop_database};
use super::names::identifier;
use super::tools::Version;
use super::{MysqlSource, describe, load, objects};
use crate::cx::Cx;
use crate::part::PartReader;
use crate::source::{
    Applied, ApplyReport, How, Loaded, Outlook, SourceError, Target, TargetOptions, engine,
};
use crate::swap;

/// New databases beside the targets.
pub(super) struct DatabaseTarget {
    source: MysqlSource,
    /// Another name, or why it is none.
    to: Result<Option<String>, String>,
    only: Vec<String>,
    in_place: bool,
    tag: String,
    prepared: Vec<Member>,
    report: ApplyReport,
}

impl DatabaseTarget {
    pub(super) fn new(source: &MysqlSource, options: TargetOptions) -> Self {
        let to = match options.to.map(OsString::into_string) {
            None => Ok(None),
            Some(Err(_)) => Err("the name of a database is text in UTF-8".to_owned()),
            Some(Ok(name)) => Ok(Some(name)),
        };
        Self {
            source: source.clone(),
            to,
            only: options.only.iter().map(|path| path.to_string_lossy().into_owned()).collect(),
            in_place: options.in_place,
            tag: options.tag,
            prepared: Vec::new(),
            report: ApplyReport::default(),
        }
    }

    /// Whether nothing is replaced: the name must be free.
    fn is_elsewhere(&self) -> bool {
        self.source.elsewhere || !matches!(self.to, Ok(None))
    }

    fn members(&self, details: &Details) -> Result<Vec<Member>, MysqlError> {
        let to = self.to.as_ref().map_err(refused)?;
        let mut members = members(&self.source, details, (to.as_deref(), &self.tag))?;
        if !self.only.is_empty() {
            members.iter_mut().try_for_each(|member| member.choose(&self.only))?;
        }
        Ok(members)
    }

    /// Looks at the server. Everything that stands against the restore is found here.
    async fn look(&self, cx: &Cx, details: &Details) -> Result<Outlook, MysqlError> {
        if !self.only.is_empty() && !self.is_elsewhere() {
            return Err(refused(
                "chosen tables go to another database, from where they can be taken: name it with --to",
            ));
        }
        if self.in_place {
            return Err(refused(
                "--in-place is not for this kind of source: it is always loaded beside, and its tables change their names",
            ));
        }
        let members = self.members(details)?;
        let mut session = self.source.connection.session(cx).await?;
        let version = describe::version(&mut session).await?;
        let mut warnings: Vec<String> = left_out(&self.source, details).into_iter().collect();
        if let Some(one) = members.first() {
            let now = version.engine();
            engine::compare(&one.content.server, &now, &mut warnings).map_err(refused)?;
        }
        let mut present = Vec::new();
        for member in &members {
            if self.look_at(&mut session, member, &mut warnings).await? {
                present.push(describe_present(&mut session, &member.target, &version).await?);
            }
        }
        let targets: Vec<&str> = members.iter().map(|one| one.target.as_str()).collect();
        let target = match targets.as_slice() {
            [one] => self.source.connection.with_database(one).location(),
            several => {
                let server = self.source.connection.server();
                format!("{} databases on {server}: {}", several.len(), several.join(", "))
            }
        };
        let replaces = !present.is_empty();
        let engine = Some(version.engine());
        let present = content_of(details, present);
        Ok(Outlook { target, replaces, how: How::Tables, engine, present, warnings })
    }

    /// Looks at one of the databases. Returns whether it is there.
    async fn look_at(
        &self,
        session: &mut Conn,
        member: &Member,
        warnings: &mut Vec<String>,
    ) -> Result<bool, MysqlError> {
        let target = &member.target;
        let is_there = describe::exists(session, target).await?;
        if is_there && self.is_elsewhere() {
            return Err(refused(format!(
                "the database {target} is there already; give a name that is free"
            )));
        }
        let referring = describe::referring(session, target).await?;
        if is_there && !referring.is_empty() {
            return Err(refused(format!(
                "these tables of other databases refer to tables of {target} and would follow those when they are set aside: {}; restore to another database with --to",
                referring.join(", ")
            )));
        }
        for view in member.content.objects.iter().filter(|object| object.is_broken) {
            warnings.push(format!(
                "the view {} was broken when it was backed up and does not come back",
                view.name
            ));
        }
        Ok(is_there)
    }

    async fn load(&mut self, cx: &Cx, data: PartReader) -> Result<(), SourceError> {
        let Some(member) = self.prepared.iter().find(|one| one.owns(&data.spec.name)) else {
            return Ok(());
        };
        let mut session = self.source.connection.session(cx).await?;
        objects::choose(&mut session, &member.loaded).await?;
        let chosen = member.chosen.as_ref();
        self.report.bytes += load::run(cx, &mut session, data, chosen).await?;
        Ok(())
    }

    /// Proves what was loaded, makes what stands beside the tables, and says how all of it comes to its place.
    async fn complete(&mut self, cx: &Cx) -> Result<Replacement, MysqlError> {
        let mut session = self.source.connection.session(cx).await?;
        let mut databases = Vec::new();
        for member in &self.prepared {
            let (rows, loaded) = complete(&mut session, member).await?;
            self.report.items += rows;
            databases.push(loaded);
        }
        Ok(Replacement { server: self.source.connection.server(), databases })
    }
}

async fn make_place(session: &mut Conn, member: &Member) -> Result<(), MysqlError> {
    let words = describe::property_words(&member.content.properties);
    let create = format!("CREATE DATABASE {} {words}", identifier(&member.loaded));
    let made = session.query_drop(create).await;
    made.map_err(statement(
        "make a new database (GRANT ALL ON *.* or ON `backstay\\_%`.* gives our user the right)",
    ))
}

/// Completes a database that was loaded. Returns its rows, too.
async fn complete(
    session: &mut Conn,
    member: &Member,
) -> Result<(u64, LoadedDatabase), MysqlError> {
    let Member { content, target, loaded, parked, .. } = member.clone();
    let rows = load::compare_rows(session, &loaded, &content).await?;
    // That it can be made at all is proven here. Events would begin to run, and wait for their place.
    objects::choose(session, &loaded).await?;
    let is_event = |object: &&StoredObject| object.kind == ObjectKind::Event;
    let (events, others): (Vec<&StoredObject>, Vec<&StoredObject>) =
        content.objects.iter().partition(is_event);
    objects::make(session, others).await?;
    let mut arriving = Contents::of(session, &loaded).await?;
    arriving.objects.extend(events.into_iter().cloned());
    let (database, arriving) = (content.database, Some(arriving));
    Ok((rows, LoadedDatabase { database, target, loaded, parked, arriving, replaced: None }))
}

/// Describes what is there in the shape of what comes back.
async fn describe_present(
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

/// Describes all that is there in the shape of what comes back.
fn content_of(details: &Details, mut present: Vec<MysqlContent>) -> Option<Content> {
    match &details.content {
        Some(Content::MysqlServer(_)) => {
            let database = |content: MysqlContent| MysqlServerDatabase {
                folder: String::new(),
                taken_at: Timestamp::UNIX_EPOCH,
                consistency_point: None,
                content,
            };
            let databases = present.into_iter().map(database).collect();
            Some(Content::MysqlServer(Box::new(MysqlServerContent { databases })))
        }
        _ => present.pop().map(|content| Content::Mysql(Box::new(content))),
    }
}

#[async_trait]
impl Target for DatabaseTarget {
    async fn outlook(&self, cx: &Cx, details: &Details) -> Result<Outlook, SourceError> {
        Ok(cx.run(self.look(cx, details)).await??)
    }

    async fn prepare(&mut self, cx: &Cx, details: &Details) -> Result<(), SourceError> {
        self.prepared = self.members(details)?;
        let mut session = self.source.connection.session(cx).await?;
        for member in &self.prepared {
            // Not given up half-way: the server would make the database all the same.
            make_place(&mut session, member).await?;
        }
        Ok(())
    }

    /// The rest is for people with the server's programs; the manifest says the same in a form that needs no reading of SQL.
    fn wants(&self, part: &PartName, media_type: MediaType) -> bool {
        media_type == MediaType::MysqlDump && self.prepared.iter().any(|one| one.owns(part))
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
        if !self.prepared.is_empty() {
            let mut session = self.source.connection.session(cx).await?;
            for member in &self.prepared {
                drop_database(&mut session, &member.loaded).await?;
            }
        }
        Ok(())
    }
}
