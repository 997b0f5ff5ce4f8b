//! Dumps of others: loaded into a new database beside the living one, compared, and read from there as that one is.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Stdio;

use async_trait::async_trait;
use backstay_format::{Content, DatabaseProperties, MediaType};
use bytes::Bytes;
use tokio_postgres::Client;

use super::archive::{self, ArchiveError, Foreign};
use super::archive_files;
use super::capture::DatabaseCapture;
use super::connection::PostgresConnection as _;
use super::error::{PostgresError, refused, statement};
use super::load::{connection_string, feed};
use super::tools::Tools;
use super::{PostgresSource, describe, exchange, globals, script};
use crate::cx::Cx;
use crate::part::CaptureReport;
use crate::source::dump::{Dump, Form};
use crate::source::imported::discard;
use crate::source::program::Program;
use crate::source::sqlite::blocking;
use crate::source::{Capture, Imported, SourceError, own_names, tunnelled};

/// Tables that differ are named up to this number.
const SHOWN_DIFFERENCES: usize = 10;

/// A database that a dump was loaded into.
pub(super) struct ImportedDatabase {
    /// The source, and where what was loaded lies.
    source: PostgresSource,
    scratch: String,
    dump: Dump,
    /// What the archive says of itself, if it is one.
    said: Foreign,
    warnings: Vec<String>,
}

/// Loads a dump into a new database.
pub(super) async fn import(
    cx: &Cx,
    source: &PostgresSource,
    dump: &Dump,
    tag: &str,
) -> Result<Box<dyn Imported>, SourceError> {
    if let Some(databases) = &source.databases {
        return Err(dump.is_of_one(databases));
    }
    let said = examine(cx, dump).await?;
    let scratch = format!("{}{tag}", own_names::loaded_for(source.identity()));
    let imported = ImportedDatabase {
        source: source.clone(),
        scratch,
        dump: dump.clone(),
        said,
        warnings: Vec::new(),
    };
    let mut imported = Box::new(imported);
    match imported.load(cx).await {
        Ok(()) => Ok(imported),
        Err(error) => {
            discard(cx, imported).await;
            Err(error)
        }
    }
}

/// Reads an archive to its end, before anything is made of it.
async fn examine(cx: &Cx, dump: &Dump) -> Result<Foreign, SourceError> {
    let (cx, dump) = (cx.clone(), dump.clone());
    blocking(move || {
        cx.check()?;
        let explain = |error: ArchiveError| match error {
            ArchiveError::Bad(finding) => dump.refused(finding),
            ArchiveError::Read(cause) => dump.unreadable(&cause),
        };
        match dump.form {
            Form::PostgresCustom => archive::read_foreign(dump.open()?).map_err(explain),
            Form::PostgresDirectory => archive_files::read_directory(&dump.path).map_err(explain),
            Form::PostgresTar => archive_files::read_tar(dump.open()?).map_err(explain),
            Form::Script => Ok(Foreign::default()),
            _ => Err(dump.is_not_for("postgres", "archives of pg_dump and scripts of SQL")),
        }
    })
    .await
}

impl ImportedDatabase {
    async fn load(&mut self, cx: &Cx) -> Result<(), SourceError> {
        let own = self.source.connection.database.clone();
        let server = exchange::maintenance(cx, &self.source, &[&own]).await?;
        let major = describe::major_version(&server).await?;
        let properties = self.make_database(cx, &server, major).await?;
        match self.dump.form {
            Form::Script => self.run_script(cx).await?,
            _ => self.load_archive(cx, &server, major).await?,
        }
        // Last: its owner may be somebody else, and its settings may be for the app.
        for dressing in properties.iter().flat_map(|p| globals::dress_database(&self.scratch, p)) {
            let given = server.batch_execute(&dressing).await;
            given.map_err(statement("give the new database the properties of the living one"))?;
        }
        Ok(())
    }

    /// Loads an archive; without owners and rights where the server lacks roles for them.
    async fn load_archive(
        &mut self,
        cx: &Cx,
        server: &Client,
        major: u32,
    ) -> Result<(), SourceError> {
        let tools = Tools::find(self.source.options.programs.as_deref(), major).await?;
        let missing = missing_owners(server, &self.said.owners).await?;
        let mut why = format!("these roles are missing on the server: {}", missing.join(", "));
        if missing.is_empty() {
            match self.run_archive(cx, &tools, &[]).await {
                // It may be for rights that our user has not, or for roles that are nobody's owner.
                Err(SourceError::Program(error)) => why = error.finding,
                run => return run,
            }
            exchange::drop_database(server, &self.scratch).await?;
            self.make_database(cx, server, major).await?;
        }
        self.warnings.push(format!("owners and rights did not come along: {why}"));
        self.run_archive(cx, &tools, &["--no-owner", "--no-privileges"]).await
    }

    /// Makes an empty database like the living one, if there is one; returns that one's properties.
    async fn make_database(
        &self,
        cx: &Cx,
        server: &Client,
        major: u32,
    ) -> Result<Option<DatabaseProperties>, PostgresError> {
        let own = &self.source.connection;
        let is_there = exchange::exists(server, &own.database).await?;
        let properties = if is_there {
            describe::properties(&own.connect(cx).await?, major).await?
        } else {
            let any = describe::properties(server, major).await?;
            DatabaseProperties { tablespace: None, ..any }
        };
        let (theirs, ours) = (self.said.encoding.as_deref(), properties.encoding.as_str());
        if theirs == Some("SQL_ASCII") && ours != "SQL_ASCII" {
            return Err(refused(format!(
                "{} has texts in no encoding (SQL_ASCII), and the database here is in {ours}, where not all of them can be; dump it anew with pg_dump --encoding={ours}",
                self.dump.path.display()
            )));
        }
        let create = globals::create_database(&self.scratch, &properties);
        // Not given up half-way: the server would make the database all the same.
        server.batch_execute(&create).await.map_err(statement("make a new database"))?;
        Ok(is_there.then_some(properties))
    }

    async fn run_archive(
        &self,
        cx: &Cx,
        tools: &Tools,
        options: &[&str],
    ) -> Result<(), SourceError> {
        let mut command = self.source.connection.program(tools.pg_restore())?;
        command.arg(format!("--dbname={}", connection_string(&self.scratch)));
        command
            .args(["--no-password", "--no-tablespaces", "--no-subscriptions", "--exit-on-error"])
            .args(options);
        command.stdout(Stdio::null());
        let mut program = match self.dump.form {
            Form::PostgresDirectory => {
                command.args(["--format=directory", "--"]).arg(&self.dump.path);
                command.stdin(Stdio::null());
                Program::start("pg_restore", command)?
            }
            _ => {
                let is_tar = self.dump.form == Form::PostgresTar;
                command.arg(if is_tar { "--format=tar" } else { "--format=custom" });
                command.stdin(Stdio::piped());
                let mut program = Program::start("pg_restore", command)?;
                let data = self.dump.part(cx, "import.dump", MediaType::PostgresDump);
                feed(cx, &mut program, Bytes::new(), data).await?;
                program
            }
        };
        let status = cx.run(program.wait()).await??;
        Ok(program.judge(status).await?)
    }

    async fn run_script(&mut self, cx: &Cx) -> Result<(), SourceError> {
        let client = self.source.connection.with_database(&self.scratch).connect(cx).await?;
        let warnings = script::run(cx, &client, &self.dump).await?;
        self.warnings.extend(warnings);
        Ok(())
    }

    /// Says in what the rows of the loaded tables are not those of the archive.
    fn differences(&self, loaded: &BTreeMap<&str, u64>) -> Vec<String> {
        let counted = self.said.tables.iter().filter_map(|(name, rows)| Some((name, (*rows)?)));
        let differing = counted.filter_map(|(name, rows)| {
            let name = name.shown();
            match loaded.get(name.as_str()) {
                Some(found) if *found == rows => None,
                Some(found) => Some(format!("{name} should have {rows} rows and has {found}")),
                // Names in other encodings than the server's are written otherwise there.
                None if !name.is_ascii() => None,
                None => Some(format!("{name} is missing")),
            }
        });
        differing.take(SHOWN_DIFFERENCES).collect()
    }
}

async fn missing_owners(
    server: &Client,
    owners: &BTreeSet<String>,
) -> Result<Vec<String>, PostgresError> {
    let owners: Vec<&str> = owners.iter().map(String::as_str).collect();
    let query = "SELECT owner FROM unnest($1::text[]) owner WHERE owner NOT IN (SELECT rolname::text FROM pg_roles) ORDER BY 1";
    let rows = server.query(query, &[&owners]).await;
    let rows = rows.map_err(statement("look for the owners of the dump"))?;
    Ok(rows.iter().map(|row| row.get(0)).collect())
}

#[async_trait]
impl Imported for ImportedDatabase {
    async fn capture(&self, cx: &Cx) -> Result<Box<dyn Capture>, SourceError> {
        let scratch = self.source.of_database(&self.scratch);
        let begun = Box::pin(DatabaseCapture::begin(cx, &scratch, None));
        let mut capture = cx.run(begun).await??;
        capture.call(&self.source.connection.database);
        Ok(tunnelled::capture(&self.source.connection, capture))
    }

    fn prove(&self, mut captured: CaptureReport) -> Result<CaptureReport, SourceError> {
        let Some(Content::Postgres(content)) = &captured.content else {
            return Err(refused("what was loaded was not read as a database").into());
        };
        let loaded: BTreeMap<&str, u64> =
            content.tables.iter().map(|one| (one.table.as_str(), one.rows)).collect();
        let differences = self.differences(&loaded);
        let said: u64 = self.said.tables.iter().filter_map(|(_, rows)| *rows).sum();
        let found: u64 = loaded.values().sum();
        if !differences.is_empty() && said != found {
            let differences = differences.join(", ");
            return Err(self
                .dump
                .refused(format!("what was loaded of it is not all: {differences}")));
        }
        if !differences.is_empty() {
            // A dump by way of the root of partitions has rows under other names than those that they find.
            captured.warnings.push(format!(
                "rows went to other tables than the dump names: {}",
                differences.join(", ")
            ));
        }
        if self.said.large_objects.is_some_and(|said| said != content.large_objects) {
            return Err(self.dump.refused(format!(
                "what was loaded of it is not all: it has {} large objects, and {} were loaded",
                self.said.large_objects.unwrap_or(0),
                content.large_objects
            )));
        }
        if self.said.tables.iter().any(|(_, rows)| rows.is_none()) {
            captured.warnings.push(
                "not all of the dump's tables show how many rows they have: whether some were missing from it already cannot be told".to_owned(),
            );
        }
        if self.said.has_subscriptions {
            captured
                .warnings
                .push("subscriptions of other servers' publications are left out".to_owned());
        }
        captured.warnings.extend(self.warnings.iter().cloned());
        // Where the server's log is now says nothing of when the dump was made.
        captured.consistency_point = None;
        Ok(captured)
    }

    async fn discard(self: Box<Self>, cx: &Cx) -> Result<(), SourceError> {
        let own = self.source.connection.database.as_str();
        let server = exchange::maintenance(cx, &self.source, &[own]).await?;
        Ok(exchange::drop_database(&server, &self.scratch).await?)
    }
}
