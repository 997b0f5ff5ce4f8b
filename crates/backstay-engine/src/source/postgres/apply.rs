//! Loading dumps into new databases beside those that they will replace, or proving one that goes back in place.

use std::collections::BTreeSet;
use std::ffi::OsString;

use async_trait::async_trait;
use backstay_format::{
    Content, Details, MediaType, PartName, PostgresContent, PostgresServerContent, ServerDatabase,
};
use jiff::Timestamp;
use tokio_postgres::Client;

use super::connection::PostgresConnection as _;
use super::error::{PostgresError, refused, statement};
use super::exchange::{self, Replacement};
use super::in_place::{self, InPlace, Kept};
use super::load::{self, DUMP_FILE, Loading};
use super::member::{Globals, Member, members, needed_globals};
use super::tools::Tools;
use super::{PostgresSource, capture, describe, globals, look};
use crate::cx::Cx;
use crate::part::PartReader;
use crate::source::connection::Connection;
use crate::source::databases::Databases;
use crate::source::sqlite::blocking;
use crate::source::{
    Applied, ApplyReport, How, Loaded, Outlook, SourceError, Target, TargetOptions,
};
use crate::spool::{Spool, write_part};
use crate::swap;

/// New databases beside the targets, or one that will be restored in place.
pub(super) struct DatabaseTarget {
    source: PostgresSource,
    /// Another name, or why it is none.
    to: Result<Option<String>, String>,
    /// Only these tables.
    only: Vec<String>,
    wants_in_place: bool,
    tag: String,
    prepared: Option<Prepared>,
    report: ApplyReport,
}

/// What is known from the preparation on.
struct Prepared {
    members: Vec<Member>,
    /// A session with a database that is none of the user's.
    server: Client,
    /// Those of the server.
    tablespaces: Vec<String>,
    tools: Tools,
    /// Where a dump that goes back in place lies.
    in_place: Option<Spool>,
    /// The tables with rows that were chosen, of each member.
    chosen: Vec<Option<BTreeSet<String>>>,
}

impl DatabaseTarget {
    pub(super) fn new(source: &PostgresSource, options: TargetOptions) -> Self {
        let to = match options.to.map(OsString::into_string) {
            None => Ok(None),
            Some(Err(_)) => Err("the name of a database is text in UTF-8".to_owned()),
            Some(Ok(name)) if name.is_empty() => Err("the name of a database is empty".to_owned()),
            Some(Ok(name)) => Ok(Some(name)),
        };
        let only = options.only.iter().map(|path| path.to_string_lossy().into_owned()).collect();
        Self {
            source: source.clone(),
            to,
            only,
            wants_in_place: options.in_place,
            tag: options.tag,
            prepared: None,
            report: ApplyReport::default(),
        }
    }

    /// Returns the source without what no restore replaces; elsewhere names must be free.
    async fn source(&self, cx: &Cx) -> Result<PostgresSource, PostgresError> {
        if self.is_elsewhere() { Ok(self.source.clone()) } else { self.source.sparing(cx).await }
    }

    fn members(
        &self,
        source: &PostgresSource,
        details: &Details,
    ) -> Result<Vec<Member>, PostgresError> {
        let to = self.to.as_ref().map_err(refused)?;
        members(source, details, (to.as_deref(), &self.tag))
    }

    /// Whether nothing is replaced: the names must be free.
    fn is_elsewhere(&self) -> bool {
        self.source.elsewhere || !matches!(self.to, Ok(None))
    }

    fn place(&self, database: &str) -> Connection {
        self.source.connection.with_database(database)
    }

    /// Says why a restore goes in place, if it does.
    async fn why_in_place(
        &self,
        server: &Client,
        replaces: bool,
    ) -> Result<Option<String>, PostgresError> {
        let user = &self.source.connection.user;
        let to_give = format!(
            "role {user} may not create databases (ALTER ROLE {user} CREATEDB gives it that right)"
        );
        let may_create = look::may_create(server).await?;
        if self.is_elsewhere() || !replaces {
            return if may_create { Ok(None) } else { Err(refused(to_give)) };
        }
        Ok(match (self.only.is_empty(), self.wants_in_place, may_create) {
            (false, ..) => {
                Some("--only puts chosen tables back into the living database".to_owned())
            }
            (true, true, _) => Some("--in-place was given".to_owned()),
            (true, false, false) => Some(to_give),
            (true, false, true) => None,
        })
    }

    /// Looks at the server. Everything that stands against the restore is found here.
    async fn look(&self, cx: &Cx, details: &Details) -> Result<Outlook, PostgresError> {
        let source = self.source(cx).await?;
        let members = self.members(&source, details)?;
        let targets: Vec<&str> = members.iter().map(|one| one.place.target.as_str()).collect();
        let server = exchange::maintenance(cx, &self.source, &targets).await?;
        let major = describe::major_version(&server).await?;
        Tools::find(self.source.options.programs.as_deref(), major).await?;
        let mut warnings = left_out(&source, details);
        let spared = source.databases.as_ref().and_then(Databases::spared);
        warnings.extend(spared);
        let version = members.first().map_or("", |one| &one.content.server_version);
        look::compare_versions(version, major, &mut warnings)?;
        let mut present = Vec::new();
        let mut replaced = 0;
        let tablespaces = look::tablespaces(&server).await?;
        for member in &members {
            let target = &member.place.target;
            let is_there = exchange::exists(&server, target).await?;
            if is_there && self.is_elsewhere() {
                return Err(refused(format!(
                    "the database {target} is there already; give a name that is free"
                )));
            }
            look::missing_extensions(&server, &member.content).await?;
            for space in look::missing_tablespaces(&tablespaces, &member.content) {
                warnings.push(format!(
                    "the server lacks the tablespace {space}; what lay there goes to the default one"
                ));
            }
            if is_there {
                replaced += 1;
                present.extend(self.compare_with_present(cx, member, &mut warnings).await?);
            }
        }
        let roles = needed_globals(details, &members).roles;
        let missing = look::missing_roles(&server, roles.iter()).await?;
        if !missing.is_empty() {
            let names: Vec<&str> = missing.iter().map(|role| role.name.as_str()).collect();
            warnings
                .push(format!("these roles are missing and will be made: {}", names.join(", ")));
        }
        let why = self.why_in_place(&server, replaced > 0).await?;
        if why.is_some() {
            self.look_in_place(cx, &members).await?;
        }
        let how = if why.is_some() { How::Transaction } else { How::Databases };
        warnings.extend(why.map(|why| format!("restored in place: {why}")));
        let replaces = replaced > 0;
        let target = self.location(&targets);
        let engine = Some(capture::engine(&describe::version(&server).await?));
        let present = content_of(details, present);
        Ok(Outlook { target, replaces, how, engine, present, warnings })
    }

    fn location(&self, targets: &[&str]) -> String {
        match targets {
            [one] if !self.only.is_empty() && !self.is_elsewhere() => {
                format!("{} in {}", self.only.join(", "), self.place(one).location())
            }
            [one] => self.place(one).location(),
            several => {
                let server = self.source.connection.server();
                format!("{} databases on {server}: {}", several.len(), several.join(", "))
            }
        }
    }

    /// Compares what comes back with what is there. Returns what is there, with its tables.
    async fn compare_with_present(
        &self,
        cx: &Cx,
        member: &Member,
        warnings: &mut Vec<String>,
    ) -> Result<Option<PostgresContent>, PostgresError> {
        let target = &member.place.target;
        let migrations = self.source.options.migrations.as_deref();
        let found = match look::at_present(cx, &self.place(target), migrations).await {
            Ok(found) => found,
            // What is broken is what restores are for.
            Err(error) => {
                warnings.push(format!("what is there now cannot be looked at: {error}"));
                return Ok(None);
            }
        };
        look::compare_migrations(
            member.migrations.as_deref(),
            found.migrations.as_deref(),
            warnings,
        )?;
        if found.subscribed_slots > 0 {
            warnings.push(format!(
                "{} replication slots read from {target}; their subscribers must be set up anew afterwards",
                found.subscribed_slots
            ));
        }
        let database = member.content.database.clone();
        let tables = found.tables;
        Ok(tables.map(|tables| PostgresContent { database, tables, ..PostgresContent::default() }))
    }

    async fn look_in_place(&self, cx: &Cx, members: &[Member]) -> Result<(), PostgresError> {
        let [member] = members else {
            return Err(refused(
                "only one database at a time is restored in place; choose it by --only NAME",
            ));
        };
        if !self.only.is_empty() {
            return Ok(());
        }
        let client = self.place(&member.place.target).connect(cx).await?;
        let foreign = in_place::not_owned(&client).await?;
        if foreign.is_empty() {
            return Ok(());
        }
        let user = &self.source.connection.user;
        Err(refused(format!(
            "in place, all that is there must be dropped, and role {user} does not own {}; restore as the role that does",
            foreign.join(", ")
        )))
    }

    fn prepared(&mut self) -> Result<&mut Prepared, PostgresError> {
        self.prepared.as_mut().ok_or_else(|| refused("the restore was not prepared"))
    }

    /// Makes all that the dumps need.
    async fn equip(&mut self, cx: &Cx, details: &Details) -> Result<(), PostgresError> {
        let connection = self.source.connection.clone();
        let Prepared { members, server, in_place, .. } = self.prepared()?;
        for member in members.as_slice() {
            let exchange::Loaded { target, loaded, .. } = &member.place;
            let database = if in_place.is_some() { target } else { loaded };
            let client = connection.with_database(database).connect(cx).await?;
            make_roles(&client, &needed_globals(details, std::slice::from_ref(member))).await?;
        }
        if members.len() > 1 {
            make_roles(server, &needed_globals(details, members)).await?;
        }
        Ok(())
    }

    async fn load(&mut self, cx: &Cx, data: PartReader) -> Result<(), SourceError> {
        let (source, only) = (self.source.clone(), self.only.clone());
        let prepared = self.prepared()?;
        let Some(index) = prepared.members.iter().position(|one| one.owns(&data.spec.name)) else {
            return Ok(());
        };
        let member = &prepared.members[index];
        let database = source.connection.with_database(&member.place.loaded);
        let missing = look::missing_tablespaces(&prepared.tablespaces, &member.content);
        load::before(cx, &database, &member.content).await?;
        let loading = Loading {
            database: &database,
            tools: &prepared.tools,
            spool: &source.options.spool,
            jobs: source.options.load_jobs,
            only: &only,
            with_tablespaces: missing.is_empty(),
        };
        let done = loading.run(cx, data).await?;
        load::after(cx, &database, &member.content).await?;
        prepared.chosen[index] = done.tables;
        self.report.bytes += done.bytes;
        let left_out = done.left_out.iter();
        let left_out = left_out
            .map(|reference| format!("left out, since its table was not chosen: {reference}"));
        self.report.warnings.extend(left_out);
        Ok(())
    }

    async fn complete(&mut self, cx: &Cx) -> Result<swap::Replacement, SourceError> {
        match self.prepared()?.in_place.take() {
            Some(spool) => Ok(swap::Replacement::InPlace(self.complete_in_place(cx, spool).await?)),
            None => Ok(self.complete_beside(cx).await?.into()),
        }
    }

    /// Proves what was loaded, and gives it what stands outside of the dumps.
    async fn complete_beside(&mut self, cx: &Cx) -> Result<Replacement, PostgresError> {
        let source = self.source.clone();
        let prepared = self.prepared()?;
        let (mut items, mut databases) = (0, Vec::new());
        for (member, chosen) in prepared.members.iter().zip(&prepared.chosen) {
            let database = source.connection.with_database(&member.place.loaded);
            // From within: there, the names of roles have the bytes that they have in this encoding.
            let client = database.connect(cx).await?;
            exchange::limit_locks(&client, source.options.lock_timeout).await?;
            items += load::compare_rows(&client, &member.content, chosen.as_ref()).await?;
            let name = &member.place.loaded;
            let reset =
                format!("ALTER DATABASE {} RESET synchronous_commit", globals::identifier(name));
            let dressings = globals::dress_database(name, &member.content.properties);
            for dressing in std::iter::once(reset).chain(dressings) {
                let given = client.batch_execute(&dressing).await;
                given.map_err(statement("give the new database its properties"))?;
            }
            databases.push(member.place.clone());
        }
        self.report.items = items;
        Ok(Replacement { server: source.connection.server(), databases })
    }

    /// Keeps a proven dump, and writes down what will be done with it.
    async fn complete_in_place(&mut self, cx: &Cx, spool: Spool) -> Result<InPlace, SourceError> {
        let (source, only) = (self.source.clone(), self.only.clone());
        let prepared = self.prepared()?;
        let member = prepared.members.first().ok_or_else(|| refused("nothing was chosen"))?;
        let (database, content) = (member.place.target.clone(), member.content.clone());
        let client = source.connection.with_database(&database).connect(cx).await?;
        let major = describe::major_version(&client).await?;
        let kept = Kept::of(&client).await?;
        let folder = spool.path().to_owned();
        let written = blocking(move || {
            let entries = load::file_contents(&folder.join(DUMP_FILE))?;
            in_place::prepare(&folder, &entries, &only, (&kept, &content.tables))
        });
        let chosen = written.await?;
        self.report.items = chosen.tables.len() as u64;
        let server = source.connection.server();
        Ok(InPlace { server, major, database, folder: spool.keep() })
    }
}

/// Names what is in a backup of several databases and does not come back.
fn left_out(source: &PostgresSource, details: &Details) -> Vec<String> {
    let (Some(Content::PostgresServer(server)), Some(databases)) =
        (&details.content, &source.databases)
    else {
        return Vec::new();
    };
    let names = server.databases.iter().map(|one| one.content.database.as_str());
    let left: Vec<&str> = names.filter(|name| !databases.matches(name)).collect();
    if left.is_empty() {
        return Vec::new();
    }
    vec![format!(
        "only {databases}: these databases of the backup do not come back: {}",
        left.join(", ")
    )]
}

/// Describes what is there in the shape of what comes back.
fn content_of(details: &Details, mut present: Vec<PostgresContent>) -> Option<Content> {
    match &details.content {
        Some(Content::PostgresServer(_)) => {
            let database = |content: PostgresContent| ServerDatabase {
                folder: String::new(),
                taken_at: Timestamp::UNIX_EPOCH,
                consistency_point: String::new(),
                schema_version: None,
                content,
            };
            let databases = present.into_iter().map(database).collect();
            let content = PostgresServerContent { databases, ..PostgresServerContent::default() };
            Some(Content::PostgresServer(Box::new(content)))
        }
        _ => present.pop().map(|content| Content::Postgres(Box::new(content))),
    }
}

#[async_trait]
impl Target for DatabaseTarget {
    async fn outlook(&self, cx: &Cx, details: &Details) -> Result<Outlook, SourceError> {
        Ok(cx.run(self.look(cx, details)).await??)
    }

    async fn prepare(&mut self, cx: &Cx, details: &Details) -> Result<(), SourceError> {
        let members = self.members(&self.source(cx).await?, details)?;
        let targets: Vec<&str> = members.iter().map(|one| one.place.target.as_str()).collect();
        let server = exchange::maintenance(cx, &self.source, &targets).await?;
        let major = describe::major_version(&server).await?;
        let tools = Tools::find(self.source.options.programs.as_deref(), major).await?;
        let mut replaces = false;
        for target in targets {
            replaces |= exchange::exists(&server, target).await?;
        }
        let is_in_place = self.why_in_place(&server, replaces).await?.is_some();
        let in_place =
            if is_in_place { Some(Spool::create(&self.source.options.spool)?) } else { None };
        let chosen = vec![None; members.len()];
        let tablespaces = look::tablespaces(&server).await?;
        let members = members.clone();
        let prepared = Prepared { members, server, tablespaces, tools, in_place, chosen };
        let prepared = self.prepared.insert(prepared);
        if !is_in_place {
            for member in &prepared.members {
                // Not given up half-way: the server would make the database all the same, and nobody would know that it
                // is ours.
                make_database(&prepared.server, &prepared.tablespaces, member).await?;
            }
        }
        Ok(cx.run(self.equip(cx, details)).await??)
    }

    /// The rest is for people with psql; the manifest says the same in a form that needs no reading of SQL.
    fn wants(&self, part: &PartName, media_type: MediaType) -> bool {
        let members = self.prepared.iter().flat_map(|prepared| &prepared.members);
        media_type == MediaType::PostgresDump && members.into_iter().any(|one| one.owns(part))
    }

    async fn apply(&mut self, cx: &Cx, data: PartReader) -> Result<Applied, SourceError> {
        let Some(spool) = &self.prepared()?.in_place else {
            cx.run(self.load(cx, data)).await??;
            return Ok(Applied::Done);
        };
        let path = spool.file(DUMP_FILE, data.spec.estimate_bytes.unwrap_or(0))?;
        self.report.bytes += blocking(move || Ok(write_part(data, &path)?.1)).await?;
        Ok(Applied::Done)
    }

    async fn finish(mut self: Box<Self>, cx: &Cx) -> Result<Loaded, SourceError> {
        let completed = cx.run(self.complete(cx)).await.map_err(SourceError::from).flatten();
        match completed {
            Ok(replacement) => Ok(Loaded { report: self.report, replacement }),
            Err(error) => {
                self.discard(&cx.for_cleanup()).await?;
                Err(error)
            }
        }
    }

    async fn discard(self: Box<Self>, cx: &Cx) -> Result<(), SourceError> {
        let Some(prepared) = &self.prepared else { return Ok(()) };
        let server = exchange::maintenance(cx, &self.source, &[]).await?;
        for member in &prepared.members {
            exchange::drop_database(&server, &member.place.loaded).await?;
        }
        Ok(())
    }
}

/// Makes an empty database for a member.
async fn make_database(
    server: &Client,
    tablespaces: &[String],
    member: &Member,
) -> Result<(), PostgresError> {
    let loaded = &member.place.loaded;
    let mut properties = member.content.properties.clone();
    let missing = look::missing_tablespaces(tablespaces, &member.content);
    properties.tablespace.take_if(|space| missing.contains(&space.as_str()));
    let create = globals::create_database(loaded, &properties);
    server.batch_execute(&create).await.map_err(statement("make a new database"))?;
    // Whatever is lost with the server before the names change is not missed: they change with a commit that waits for the
    // disk.
    let unhurried =
        format!("ALTER DATABASE {} SET synchronous_commit = off", globals::identifier(loaded));
    server.batch_execute(&unhurried).await.map_err(statement("set up the new database"))
}

/// Makes the roles that the server lacks. Asked from within a database, so that their names have the bytes that they have
/// in its encoding.
async fn make_roles(client: &Client, needed: &Globals) -> Result<(), PostgresError> {
    let missing = look::missing_roles(client, needed.roles.iter()).await?;
    for create in missing.iter().flat_map(|role| globals::create_role(role)) {
        client.batch_execute(&create).await.map_err(statement("make a missing role"))?;
    }
    let is_new = |name: &String| missing.iter().any(|role| role.name == *name);
    for membership in needed.memberships.iter().filter(|one| is_new(&one.member)) {
        let grant = globals::grant_membership(membership);
        client.batch_execute(&grant).await.map_err(statement("make a role a member"))?;
    }
    Ok(())
}
