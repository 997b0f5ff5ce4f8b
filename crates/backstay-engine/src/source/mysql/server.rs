//! Several databases of one server, one after the other, each in a transaction of its own.

use async_trait::async_trait;
use backstay_format::{Content, MysqlServerContent, MysqlServerDatabase};
use mysql_async::Conn;

use super::capture::{self, ACCOUNTS, DatabaseCapture, NO_ACCOUNTS};
use super::connection::MysqlConnection as _;
use super::error::{MysqlError, refused};
use super::names::literal;
use super::{MysqlSource, describe};
use crate::cx::Cx;
use crate::source::databases::Databases;
use crate::source::own_names::{NEW, OLD};
use crate::source::several::{self, Read, ServerCapture};
use crate::source::{Capture, Probe, SourceError};

/// Databases that are the server's own.
const SYSTEM: &str = "'information_schema', 'mysql', 'performance_schema', 'sys'";

/// Reads what databases there are, but the server's and our own.
async fn present(session: &mut Conn) -> Result<Vec<String>, MysqlError> {
    let is_ours =
        [NEW, OLD].map(|ours| format!("left(schema_name, {}) = {}", ours.len(), literal(ours)));
    let query = format!(
        "SELECT schema_name FROM information_schema.schemata WHERE schema_name NOT IN ({SYSTEM}) AND NOT ({}) ORDER BY 1",
        is_ours.join(" OR ")
    );
    describe::texts(session, &query, "list the databases").await
}

/// Asks what a backup of all of them would find.
pub(super) async fn probe(
    cx: &Cx,
    source: &MysqlSource,
    databases: &Databases,
) -> Result<Probe, SourceError> {
    let mut session = source.connection.session(cx).await?;
    let wanted = databases.of(present(&mut session).await?);
    let mut all = Probe::default();
    all.warnings
        .extend(wanted.missing.iter().map(|one| format!("there is no database {}", one.item)));
    if wanted.databases.is_empty() {
        all.warnings.push(format!("no database that our user may see is like {databases}"));
    }
    let mut of_server = Vec::new();
    for name in wanted.databases {
        match capture::probe(cx, &source.of_database(&name)).await {
            Ok(one) => {
                all.engine = one.engine;
                all.size_bytes += one.size_bytes;
                all.items = Some(all.items.unwrap_or(0) + one.items.unwrap_or(0));
                let (of_all, of_one): (Vec<String>, Vec<String>) =
                    one.warnings.into_iter().partition(|text| text == NO_ACCOUNTS);
                all.warnings.extend(of_one.iter().map(|text| format!("database {name}: {text}")));
                of_server = of_all;
            }
            Err(MysqlError::Cancelled(cancelled)) => return Err(cancelled.into()),
            Err(error) => all.warnings.push(format!("database {name}: {error}")),
        }
    }
    all.warnings.extend(of_server);
    Ok(all)
}

/// Begins to read several databases.
pub(super) async fn begin(
    cx: &Cx,
    source: &MysqlSource,
    databases: &Databases,
) -> Result<ServerCapture<Reader>, MysqlError> {
    let mut session = source.connection.session(cx).await?;
    let wanted = databases.of(present(&mut session).await?);
    if wanted.databases.is_empty() {
        return Err(refused(format!(
            "{} has no database like {databases} that our user may see; check `databases`",
            source.connection.location()
        )));
    }
    let engine = describe::version(&mut session).await?.engine();
    let accounts = capture::accounts(&mut session, &source.options).await;
    let (texts, warning) = match accounts {
        Ok(file) => (vec![(ACCOUNTS.to_owned(), file)], None),
        Err(warning) => (Vec::new(), Some(warning)),
    };
    let reader = Reader { source: source.clone() };
    let mut capture = ServerCapture::new(reader, Some(engine), texts, wanted);
    warning.into_iter().for_each(|warning| capture.warn(warning));
    Ok(capture)
}

/// Reads databases of a server.
pub(super) struct Reader {
    source: MysqlSource,
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
            let Some(Content::Mysql(content)) = report.content else { return None };
            let consistency_point = report.consistency_point;
            Some(MysqlServerDatabase { folder, taken_at, consistency_point, content: *content })
        };
        let databases = databases.into_iter().filter_map(database).collect();
        Content::MysqlServer(Box::new(MysqlServerContent { databases }))
    }
}
