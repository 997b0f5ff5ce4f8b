//! Several databases of one server, one after the other, each in a snapshot of its own.

use std::collections::VecDeque;

use async_trait::async_trait;
use backstay_format::{Content, ItemError, MediaType, PostgresServerContent, ServerDatabase};
use jiff::Timestamp;
use tokio_postgres::Client;

use super::capture::{self, Captured, DatabaseCapture, ROLES};
use super::connection::PostgresConnection as _;
use super::error::PostgresError;
use super::names::{self, bytes_of};
use super::{PostgresSource, describe, exchange, globals};
use crate::cx::Cx;
use crate::part::{CaptureReport, ItemErrors, PartReader};
use crate::source::databases::{self, Databases};
use crate::source::own_names::{NEW, OLD};
use crate::source::{Capture, Probe, SourceError, text_part};

const TABLESPACES: &str = "tablespaces.sql";

/// Reads what databases there are, but templates, those that nobody may connect to, and our own.
pub(super) async fn present(server: &Client) -> Result<Vec<String>, PostgresError> {
    let query = format!(
        "SELECT {} FROM pg_database WHERE datallowconn AND NOT datistemplate AND NOT starts_with(datname::text, '{NEW}') AND NOT starts_with(datname::text, '{OLD}') ORDER BY datname",
        bytes_of("datname")
    );
    names::read(server, &query, "list the databases").await
}

/// Reads which databases a backup would hold, and which are asked for by name and not there.
async fn wanted(
    server: &Client,
    databases: &Databases,
) -> Result<(Vec<String>, Vec<String>), PostgresError> {
    let mut found = present(server).await?;
    let missing = databases.named().filter(|name| !found.iter().any(|one| one == name));
    let missing = missing.map(str::to_owned).collect();
    found.retain(|name| databases.matches(name));
    Ok((found, missing))
}

/// Asks what a backup of all of them would find.
pub(super) async fn probe(
    cx: &Cx,
    source: &PostgresSource,
    databases: &Databases,
) -> Result<Probe, SourceError> {
    let server = exchange::maintenance(cx, source, &[]).await?;
    let (found, missing) = wanted(&server, databases).await?;
    let mut all = Probe::default();
    all.warnings.extend(missing.iter().map(|name| format!("there is no database {name}")));
    if found.is_empty() {
        all.warnings.push(format!("no database is like {databases}"));
    }
    for name in found {
        match capture::probe(cx, &source.of_database(&name)).await {
            Ok(one) => {
                all.engine = one.engine;
                all.size_bytes += one.size_bytes;
                all.items = Some(all.items.unwrap_or(0) + one.items.unwrap_or(0));
            }
            Err(PostgresError::Cancelled(cancelled)) => return Err(cancelled.into()),
            Err(error) => all.warnings.push(format!("database {name}: {error}")),
        }
    }
    Ok(all)
}

/// Several databases, as they are read one after the other.
pub(super) struct ServerCapture {
    source: PostgresSource,
    content: PostgresServerContent,
    /// Parts of the server itself, the last first.
    texts: Vec<(String, String)>,
    waiting: VecDeque<String>,
    reading: Option<Reading>,
    errors: ItemErrors,
    warnings: Vec<String>,
    /// Why the last one could not be read.
    cause: Option<SourceError>,
}

/// A database that is being read.
struct Reading {
    name: String,
    folder: String,
    began: Timestamp,
    capture: DatabaseCapture,
}

impl ServerCapture {
    pub(super) async fn begin(
        cx: &Cx,
        source: &PostgresSource,
        databases: &Databases,
    ) -> Result<Self, PostgresError> {
        let server = exchange::maintenance(cx, source, &[]).await?;
        let (waiting, missing) = wanted(&server, databases).await?;
        if waiting.is_empty() {
            let location = source.connection.location();
            let finding = format!("{location} has no database like {databases}; check `databases`");
            return Err(PostgresError::Refused { finding });
        }
        let major = describe::major_version(&server).await?;
        let content = PostgresServerContent {
            server_version: describe::version(&server).await?,
            roles: describe::roles(&server, source.options.with_passwords).await?,
            memberships: describe::memberships(&server, major).await?,
            tablespaces: describe::tablespaces(&server).await?,
            databases: Vec::new(),
        };
        let texts = vec![
            (TABLESPACES.to_owned(), globals::tablespaces_file(&content.tablespaces)),
            (ROLES.to_owned(), globals::roles_file(&content.roles, &content.memberships)),
        ];
        let mut errors = ItemErrors::default();
        for item in missing {
            errors.add(ItemError { item, error: "there is no such database".to_owned() });
        }
        Ok(Self {
            source: source.clone(),
            content,
            texts,
            waiting: waiting.into(),
            reading: None,
            errors,
            warnings: Vec::new(),
            cause: None,
        })
    }

    /// Begins to read a database. One that cannot be read does not keep the others from being read.
    async fn read(&mut self, cx: &Cx, name: String) -> Result<(), SourceError> {
        let (folder, began) = (databases::folder(&name), cx.now());
        let source = self.source.of_database(&name);
        let begun = cx.run(Box::pin(DatabaseCapture::begin(cx, &source, Some(&folder)))).await?;
        match begun {
            Ok(capture) => self.reading = Some(Reading { name, folder, began, capture }),
            Err(error) => self.miss(name, error.into())?,
        }
        Ok(())
    }

    /// Notes what came of a database.
    async fn settle(&mut self, cx: &Cx, reading: Reading) -> Result<(), SourceError> {
        let Reading { name, folder, began, capture } = reading;
        match capture.end(cx).await {
            Ok(Captured { content, consistency_point, migrations, warnings }) => {
                let warnings = warnings.iter().map(|warning| format!("database {name}: {warning}"));
                self.warnings.extend(warnings);
                self.content.databases.push(ServerDatabase {
                    folder,
                    taken_at: began,
                    consistency_point,
                    schema_version: migrations,
                    content,
                });
                Ok(())
            }
            Err(error) => self.miss(name, error),
        }
    }

    fn miss(&mut self, name: String, error: SourceError) -> Result<(), SourceError> {
        if error.is_cancelled() {
            return Err(error);
        }
        self.errors.add(ItemError { item: name, error: error.to_string() });
        self.cause = Some(error);
        Ok(())
    }
}

#[async_trait]
impl Capture for ServerCapture {
    async fn next_part(&mut self, cx: &Cx) -> Result<Option<PartReader>, SourceError> {
        if let Some((name, text)) = self.texts.pop() {
            return Ok(Some(text_part(&name, MediaType::Sql, text)));
        }
        loop {
            if let Some(reading) = &mut self.reading
                && let Some(part) = reading.capture.next_part(cx).await?
            {
                return Ok(Some(part));
            }
            if let Some(read) = self.reading.take() {
                self.settle(cx, read).await?;
            }
            let Some(name) = self.waiting.pop_front() else { return Ok(None) };
            self.read(cx, name).await?;
        }
    }

    fn goes_on(&self) -> bool {
        true
    }

    async fn finish(mut self: Box<Self>, cx: &Cx) -> Result<CaptureReport, SourceError> {
        if let Some(read) = self.reading.take() {
            self.settle(cx, read).await?;
        }
        match self.cause {
            // A backup without any database is none.
            Some(cause) if self.content.databases.is_empty() => return Err(cause),
            _ => {}
        }
        Ok(CaptureReport {
            engine: Some(capture::engine(&self.content.server_version)),
            content: Some(Content::PostgresServer(Box::new(self.content))),
            item_errors: self.errors,
            warnings: self.warnings,
            ..CaptureReport::default()
        })
    }
}
