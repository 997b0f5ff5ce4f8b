//! Several databases of one server, one after the other, each in a snapshot of its own.

use async_trait::async_trait;
use backstay_format::{Content, PostgresServerContent, ServerDatabase};
use tokio_postgres::Client;

use super::capture::{self, DatabaseCapture, ROLES};
use super::connection::PostgresConnection as _;
use super::error::{PostgresError, refused};
use super::names::{self, bytes_of};
use super::{PostgresSource, describe, exchange, globals};
use crate::cx::Cx;
use crate::source::databases::Databases;
use crate::source::own_names::{NEW, OLD};
use crate::source::several::{self, Read, ServerCapture};
use crate::source::{Capture, Probe, SourceError};

const TABLESPACES: &str = "tablespaces.sql";

/// Reads what databases there are, but templates, those that nobody may connect to, and our own.
pub(super) async fn present(server: &Client) -> Result<Vec<String>, PostgresError> {
    let query = format!(
        "SELECT {} FROM pg_database WHERE datallowconn AND NOT datistemplate AND NOT starts_with(datname::text, '{NEW}') AND NOT starts_with(datname::text, '{OLD}') ORDER BY datname",
        bytes_of("datname")
    );
    names::read(server, &query, "list the databases").await
}

/// Asks what a backup of all of them would find.
pub(super) async fn probe(
    cx: &Cx,
    source: &PostgresSource,
    databases: &Databases,
) -> Result<Probe, SourceError> {
    let server = exchange::maintenance(cx, source, &[]).await?;
    let databases = &databases.sparing(source.spared_on(&server).await?);
    let wanted = databases.of(present(&server).await?);
    let mut all = Probe::default();
    all.warnings.extend(databases.spared());
    let missing = wanted.missing.iter();
    all.warnings.extend(missing.map(|one| format!("database {}: {}", one.item, one.error)));
    if wanted.databases.is_empty() {
        all.warnings.push(format!("no database is like {databases}"));
    }
    for name in wanted.databases {
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

/// Begins to read several databases.
pub(super) async fn begin(
    cx: &Cx,
    source: &PostgresSource,
    databases: &Databases,
) -> Result<ServerCapture<Reader>, PostgresError> {
    let server = exchange::maintenance(cx, source, &[]).await?;
    let databases = &databases.sparing(source.spared_on(&server).await?);
    let wanted = databases.of(present(&server).await?);
    if wanted.databases.is_empty() {
        let location = source.connection.location();
        return Err(refused(format!(
            "{location} has no database like {databases}; check `databases`"
        )));
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
    let engine = capture::engine(&content.server_version);
    let reader = Reader { source: source.clone(), content };
    Ok(ServerCapture::new(reader, Some(engine), texts, wanted))
}

/// Reads databases of a server.
pub(super) struct Reader {
    source: PostgresSource,
    /// What is known of the server itself.
    content: PostgresServerContent,
}

#[async_trait]
impl several::Server for Reader {
    async fn open(
        &self,
        cx: &Cx,
        name: &str,
        folder: &str,
    ) -> Result<Box<dyn Capture>, SourceError> {
        let source = self.source.of_database(name);
        let begun = Box::pin(DatabaseCapture::begin(cx, &source, Some(folder)));
        Ok(Box::new(cx.run(begun).await??))
    }

    fn content(self, databases: Vec<Read>) -> Content {
        let database = |Read { folder, taken_at, report, .. }: Read| {
            let Some(Content::Postgres(content)) = report.content else { return None };
            Some(ServerDatabase {
                folder,
                taken_at,
                consistency_point: report.consistency_point.unwrap_or_default(),
                schema_version: report.schema_version,
                content: *content,
            })
        };
        let databases = databases.into_iter().filter_map(database).collect();
        Content::PostgresServer(Box::new(PostgresServerContent { databases, ..self.content }))
    }
}
