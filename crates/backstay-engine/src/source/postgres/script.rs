//! Scripts of others: divided into statements by ourselves, and executed one by one over our own session with a new database.
//! No client's meta command is ever executed, and no statement that reaches beyond that database.

use std::io::BufRead;

use bytes::Bytes;
use futures_util::SinkExt as _;
use tokio::sync::mpsc;
use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, CopyInSink};

use super::error::{PostgresError, refused, statement};
use super::lexer::{Lexer, Piece};
use super::statements::{Reach, reach};
use crate::cx::Cx;
use crate::source::SourceError;
use crate::source::dump::Dump;
use crate::source::sqlite::blocking;

/// Pieces that wait to be executed.
const PIECES_IN_FLIGHT: usize = 16;
/// How scripts of `pg_dump` begin and end, and how those of a whole server do.
const HEADER: &str = "-- PostgreSQL database dump";
const TRAILER: &str = "-- PostgreSQL database dump complete";
const CLUSTER: &str = "-- PostgreSQL database cluster dump";
/// Failures that are told by name.
const SHOWN_FAILURES: usize = 5;

/// Executes a script. Returns what a person should know of it.
pub(super) async fn run(cx: &Cx, client: &Client, dump: &Dump) -> Result<Vec<String>, SourceError> {
    let (sender, pieces) = mpsc::channel(PIECES_IN_FLIGHT);
    let reading = tokio::spawn({
        let (cx, dump) = (cx.clone(), dump.clone());
        blocking(move || read(&cx, &dump, &sender))
    });
    let mut execution =
        Execution { client, dump, remarks: Remarks::default(), failures: Vec::new(), skipped: 0 };
    let executed = cx.run(execution.all(pieces)).await;
    // A reader whose pieces nobody takes any more has ended, or ends now; what it found wrong comes first.
    let read = reading.await.map_err(|_died| refused("the thread that reads the script died"))?;
    match executed {
        Ok(Ok(())) => read?,
        Ok(Err(error)) => {
            return Err(match read {
                Err(cause @ SourceError::Dump { .. }) => cause,
                _ => error,
            });
        }
        Err(cancelled) => return Err(cancelled.into()),
    }
    execution.end()
}

/// Reads a script, and hands its pieces over. Blocks.
fn read(cx: &Cx, dump: &Dump, pieces: &mpsc::Sender<Piece>) -> Result<(), SourceError> {
    let mut input = dump.open()?;
    let mut lexer = Lexer::default();
    let mut line = Vec::new();
    loop {
        cx.check()?;
        line.clear();
        let read = input.read_until(b'\n', &mut line).map_err(|cause| dump.unreadable(&cause))?;
        let mut found = Vec::new();
        let taken = match read {
            0 => lexer.finish(),
            _ => lexer.line(&line, &mut found),
        };
        for piece in found {
            if pieces.blocking_send(piece).is_err() {
                // Whoever executes them has failed, and says why.
                return Ok(());
            }
        }
        taken.map_err(|finding| dump.refused(finding))?;
        if read == 0 {
            return Ok(());
        }
    }
}

/// What a script says of itself.
#[derive(Debug, Default)]
struct Remarks {
    is_of_pg_dump: bool,
    is_complete: bool,
}

struct Execution<'a> {
    client: &'a Client,
    dump: &'a Dump,
    remarks: Remarks,
    /// What was tried in vain and is not needed.
    failures: Vec<String>,
    /// How many statements were left out that make the dump's own database.
    skipped: u64,
}

impl Execution<'_> {
    async fn all(&mut self, mut pieces: mpsc::Receiver<Piece>) -> Result<(), SourceError> {
        let mut copying: Option<std::pin::Pin<Box<CopyInSink<Bytes>>>> = None;
        while let Some(piece) = pieces.recv().await {
            match piece {
                Piece::Remark(text) => self.remark(&text)?,
                Piece::Statement(text) => {
                    self.remarks.is_complete = false;
                    self.execute(&text).await?;
                }
                Piece::Copy(text) => {
                    self.remarks.is_complete = false;
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
            HEADER => self.remarks.is_of_pg_dump = true,
            TRAILER => self.remarks.is_complete = true,
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
        let may_fail = match reach(text) {
            Reach::Database => false,
            Reach::Roles => true,
            Reach::OwnDatabase => {
                self.skipped += 1;
                return Ok(());
            }
            Reach::Beyond => {
                let shown: String = text.trim().chars().take(80).collect();
                return Err(self.dump.refused(format!(
                    "it changes more than its own database: `{shown}`; take that out of the script, or dump the database alone with pg_dump"
                )));
            }
        };
        let Err(error) = self.client.batch_execute(text).await else { return Ok(()) };
        let code = error.code();
        let is_of_roles = [
            Some(&SqlState::UNDEFINED_OBJECT),
            Some(&SqlState::INSUFFICIENT_PRIVILEGE),
            Some(&SqlState::INVALID_PARAMETER_VALUE),
        ]
        .contains(&code);
        let failed: PostgresError = statement("execute the script")(error);
        if may_fail && is_of_roles {
            self.failures.push(failed.to_string());
            return Ok(());
        }
        let shown: String = text.trim().chars().take(120).collect();
        Err(self.dump.refused(format!("{failed}: `{shown}`")))
    }

    fn end(self) -> Result<Vec<String>, SourceError> {
        let Self { dump, remarks, failures, skipped, .. } = self;
        let mut warnings = Vec::new();
        match remarks {
            Remarks { is_of_pg_dump: true, is_complete: false } => {
                return Err(dump.refused("it is cut short: the last line that pg_dump writes is missing"));
            }
            Remarks { is_complete: true, .. } => {}
            Remarks { .. } => warnings.push(
                "the script does not say of itself that it is whole: whether something was missing from it already cannot be told".to_owned(),
            ),
        }
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
