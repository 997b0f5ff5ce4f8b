//! Scripts of others: divided into statements by ourselves, and executed one by one over our own session with a new database.
//! No client's meta command is ever executed, and no statement that reaches beyond that database.

use bytes::Bytes;
use futures_util::SinkExt as _;
use tokio::sync::mpsc;
use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, CopyInSink};

use super::error::{PostgresError, statement};
use super::lexer::{Lexer, Piece};
use super::statements::{Reach, reach};
use crate::cx::Cx;
use crate::source::SourceError;
use crate::source::dump::Dump;
use crate::source::dump::script::{self, Lines, Pieces, Whole, shown};

/// How scripts of `pg_dump` begin and end, and how those of a whole server do.
const HEADER: &str = "-- PostgreSQL database dump";
const TRAILER: &str = "-- PostgreSQL database dump complete";
const CLUSTER: &str = "-- PostgreSQL database cluster dump";
/// Failures that are told by name.
const SHOWN_FAILURES: usize = 5;

/// Executes a script. Returns what a person should know of it.
pub(super) async fn run(cx: &Cx, client: &Client, dump: &Dump) -> Result<Vec<String>, SourceError> {
    let (reader, read_dump) = (cx.clone(), dump.clone());
    let read = move |pieces: &Pieces<Piece>| read(&reader, &read_dump, pieces);
    let mut execution = Execution {
        client,
        dump,
        whole: Whole::default(),
        failures: Vec::new(),
        skipped: 0,
        is_in_transaction: false,
    };
    script::run(cx, read, |pieces| execution.all(pieces)).await?;
    execution.check_committed().await?;
    execution.end()
}

/// Reads a script, and hands its pieces over. Blocks.
fn read(cx: &Cx, dump: &Dump, pieces: &Pieces<Piece>) -> Result<(), SourceError> {
    let (mut lines, mut lexer) = (Lines::of(dump)?, Lexer::default());
    while let Some(line) = lines.next()? {
        cx.check()?;
        let mut found = Vec::new();
        let taken = lexer.line(line, &mut found);
        if !pieces.hand_over(found) {
            return Ok(());
        }
        taken.map_err(|finding| dump.refused(finding))?;
    }
    lexer.finish().map_err(|finding| dump.refused(finding))
}

/// A script that is being executed.
struct Execution<'a> {
    client: &'a Client,
    dump: &'a Dump,
    whole: Whole,
    /// What was tried in vain, and is told.
    failures: Vec<String>,
    /// How many statements were left out that make the dump's own database.
    skipped: u64,
    is_in_transaction: bool,
}

/// Says whether a statement may fail so: it is of roles that are not here, or removes what was never there.
fn is_tolerable(reach: Reach, code: &SqlState) -> bool {
    match reach {
        Reach::Roles => [
            SqlState::UNDEFINED_OBJECT,
            SqlState::INSUFFICIENT_PRIVILEGE,
            SqlState::INVALID_PARAMETER_VALUE,
        ]
        .contains(code),
        Reach::Removal => [
            SqlState::UNDEFINED_OBJECT,
            SqlState::UNDEFINED_TABLE,
            SqlState::UNDEFINED_FUNCTION,
            SqlState::UNDEFINED_COLUMN,
            SqlState::INVALID_SCHEMA_NAME,
        ]
        .contains(code),
        _ => false,
    }
}

impl Execution<'_> {
    async fn all(&mut self, mut pieces: mpsc::Receiver<Piece>) -> Result<(), SourceError> {
        let mut copying: Option<std::pin::Pin<Box<CopyInSink<Bytes>>>> = None;
        while let Some(piece) = pieces.recv().await {
            match piece {
                Piece::Remark(text) => self.remark(&text)?,
                Piece::Statement(text) => {
                    self.whole.has_end = false;
                    self.execute(&text).await?;
                }
                Piece::Copy(text) => {
                    self.whole.has_end = false;
                    let sink = self.client.copy_in(text.as_str()).await;
                    let sink = sink.map_err(statement("load the rows of the script"))?;
                    copying = Some(Box::pin(sink));
                }
                Piece::Rows(bytes) => {
                    if let Some(sink) = &mut copying {
                        let sent = sink.send(bytes).await;
                        sent.map_err(statement("load the rows of the script"))?;
                    }
                }
                Piece::EndOfRows => {
                    if let Some(mut sink) = copying.take() {
                        let ended = sink.as_mut().finish().await;
                        ended.map_err(statement("load the rows of the script"))?;
                    }
                }
            }
        }
        Ok(())
    }

    fn remark(&mut self, text: &str) -> Result<(), SourceError> {
        match text.trim_end() {
            HEADER => self.whole.has_begin = true,
            TRAILER => self.whole.has_end = true,
            CLUSTER => {
                return Err(self.dump.refused(
                    "it is of all databases of a server (pg_dumpall); dump the one that is meant with pg_dump",
                ));
            }
            _ => {}
        }
        Ok(())
    }

    async fn execute(&mut self, text: &str) -> Result<(), SourceError> {
        let reach = reach(text);
        match reach {
            Reach::Database | Reach::Removal | Reach::Roles => {}
            Reach::OwnDatabase => {
                self.skipped += 1;
                return Ok(());
            }
            Reach::Beyond => return Err(self.dump.reaches_beyond(text)),
        }
        let first = text.split_whitespace().next().unwrap_or_default().to_ascii_uppercase();
        match first.as_str() {
            "BEGIN" | "START" => self.is_in_transaction = true,
            "COMMIT" | "END" | "ROLLBACK" | "ABORT" => self.is_in_transaction = false,
            "CREATE" => self.whole.makes = true,
            _ => {}
        }
        if reach == Reach::Database {
            let done = self.client.batch_execute(text).await;
            return done.map_err(|error| self.failed(text, &statement("execute it")(error)));
        }
        // One that fails must not take the whole transaction with it.
        if self.is_in_transaction {
            self.guard("SAVEPOINT backstay").await?;
        }
        let Err(error) = self.client.batch_execute(text).await else { return Ok(()) };
        let is_tolerable = error.code().is_some_and(|code| is_tolerable(reach, code));
        let failed: PostgresError = statement("execute it")(error);
        if !is_tolerable {
            return Err(self.failed(text, &failed));
        }
        if self.is_in_transaction {
            self.guard("ROLLBACK TO SAVEPOINT backstay").await?;
        }
        if reach == Reach::Roles {
            self.failures.push(failed.to_string());
        }
        Ok(())
    }

    async fn guard(&self, text: &str) -> Result<(), PostgresError> {
        let done = self.client.batch_execute(text).await;
        done.map_err(statement("guard a statement of the script"))
    }

    fn failed(&self, text: &str, error: &PostgresError) -> SourceError {
        self.dump.refused(format!("{error}: `{}`", shown(text)))
    }

    /// Fails if what was executed is not there to stay.
    async fn check_committed(&self) -> Result<(), SourceError> {
        match self.client.batch_execute("SAVEPOINT backstay").await {
            Err(error) if error.code() == Some(&SqlState::NO_ACTIVE_SQL_TRANSACTION) => Ok(()),
            Ok(()) | Err(_) => {
                Err(self.dump.refused("it is cut short: its transaction has no COMMIT"))
            }
        }
    }

    fn end(self) -> Result<Vec<String>, SourceError> {
        let Self { dump, whole, failures, skipped, .. } = self;
        let mut warnings = Vec::from_iter(whole.judge(dump)?);
        if !failures.is_empty() {
            let shown: Vec<&str> =
                failures.iter().take(SHOWN_FAILURES).map(String::as_str).collect();
            warnings.push(format!(
                "{} statements on owners, rights and settings did not work here: {}",
                failures.len(),
                shown.join("; ")
            ));
        }
        if skipped > 0 {
            warnings.push(format!(
                "{skipped} statements on the database itself were left out: it has the properties of the living one"
            ));
        }
        Ok(warnings)
    }
}
