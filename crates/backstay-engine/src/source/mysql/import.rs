//! Scripts of others: executed statement by statement in a new database beside the living one, and read from there as that one is.
//! No statement that reaches beyond the new database is executed.

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::io::BufRead;

use async_trait::async_trait;
use mysql_async::Conn;
use mysql_async::prelude::Queryable as _;
use tokio::sync::mpsc;

use super::capture::DatabaseCapture;
use super::connection::MysqlConnection as _;
use super::error::{MysqlError, statement};
use super::load::check_unchanged;
use super::moves::drop_database;
use super::names::identifier;
use super::reach::{Reach, reach};
use super::scan::{Found, Statements, TRAILER};
use super::{MysqlSource, describe, objects};
use crate::cx::Cx;
use crate::part::CaptureReport;
use crate::source::dump::script::{self, Pieces, Whole, shown};
use crate::source::dump::{Dump, Form};
use crate::source::{Capture, Imported, SourceError, own_names, tunnelled};

/// Dumps of the servers' own programs begin so.
const HEADERS: [&[u8]; 2] = [b"-- MySQL dump", b"-- MariaDB dump"];
/// What the servers' own command line takes for its own, at the beginning of a line.
const DELIMITER: &[u8] = b"DELIMITER";
/// Tables in their order are of no interest while a dump is loaded; all warnings are kept.
const BEGIN: &str = "SET SESSION unique_checks = 0, SESSION foreign_key_checks = 0, SESSION max_error_count = 65535";
/// No statement is larger: servers take no larger packet.
const MAX_STATEMENT_BYTES: usize = 1 << 30;

/// A database that a script was executed in.
struct ImportedDatabase {
    source: MysqlSource,
    scratch: String,
    dump: Dump,
    warnings: Vec<String>,
}

/// Executes a script in a new database.
pub(super) async fn import(
    cx: &Cx,
    source: &MysqlSource,
    dump: &Dump,
    tag: &str,
) -> Result<Box<dyn Imported>, SourceError> {
    if dump.form != Form::Script {
        return Err(
            dump.is_not_for("mysql", "scripts of SQL, as mysqldump and mariadb-dump write them")
        );
    }
    if let Some(databases) = &source.databases {
        return Err(dump.is_of_one(databases));
    }
    let scratch = format!("{}{tag}", own_names::loaded_for(source.identity()));
    let imported = ImportedDatabase {
        source: source.clone(),
        scratch,
        dump: dump.clone(),
        warnings: Vec::new(),
    };
    let mut imported = Box::new(imported);
    match imported.load(cx).await {
        Ok(()) => Ok(imported),
        Err(error) => {
            imported.discard(&cx.for_cleanup()).await?;
            Err(error)
        }
    }
}

impl ImportedDatabase {
    async fn load(&mut self, cx: &Cx) -> Result<(), SourceError> {
        let mut session = self.source.connection.session(cx).await?;
        let own = &self.source.connection.database;
        let version = describe::version(&mut session).await?;
        let words = match describe::exists(&mut session, own).await? {
            true => {
                let properties = describe::properties(&mut session, own, &version).await?;
                describe::property_words(&properties)
            }
            false => String::new(),
        };
        // Not given up half-way: the server would make the database all the same.
        let create = format!("CREATE DATABASE {} {words}", identifier(&self.scratch));
        let made = session.query_drop(create).await;
        made.map_err(statement("make a new database"))?;
        objects::choose(&mut session, &self.scratch).await?;
        session.query_drop(BEGIN).await.map_err(statement("begin to load"))?;
        let (reader, dump) = (cx.clone(), self.dump.clone());
        let read = move |pieces: &Pieces<Piece>| read(&reader, &dump, pieces);
        let mut script = Script::new(&self.dump);
        script::run(cx, read, |pieces| script.run(&mut session, pieces)).await?;
        let committed = session.query_drop("COMMIT").await;
        committed.map_err(statement("load the script"))?;
        self.warnings = script.end()?;
        drop(session.disconnect().await);
        Ok(())
    }
}

/// What stands in a script.
enum Piece {
    Statement(Vec<u8>),
    Remark(Vec<u8>),
}

/// Reads a script, and hands its pieces over. Blocks.
fn read(cx: &Cx, dump: &Dump, pieces: &Pieces<Piece>) -> Result<(), SourceError> {
    let mut input = dump.open()?;
    let mut statements = Statements::default();
    let mut line = Vec::new();
    loop {
        cx.check()?;
        line.clear();
        let read = input.read_until(b'\n', &mut line).map_err(|cause| dump.unreadable(&cause))?;
        if read == 0 {
            break;
        }
        if let Some(delimiter) = delimiter(&line).filter(|_| statements.is_between()) {
            statements.set_delimiter(delimiter);
            continue;
        }
        if statements.is_between() && line.trim_ascii().starts_with(b"\\") {
            return Err(dump.refused("it has a command of the client, and none is executed"));
        }
        let mut found = Vec::new();
        let pushed = statements.push(&line, |one| {
            found.push(match one {
                Found::Statement(text) => Piece::Statement(text.to_vec()),
                Found::Remark(text) => Piece::Remark(text.to_vec()),
            });
            Ok::<(), Infallible>(())
        });
        let Ok(()) = pushed;
        if statements.rest().len() > MAX_STATEMENT_BYTES {
            return Err(dump.refused("a statement of it is larger than a gigabyte"));
        }
        if !pieces.hand_over(found) {
            return Ok(());
        }
    }
    if statements.is_between() {
        return Ok(());
    }
    Err(dump.refused("it is cut short: its last statement has no end"))
}

/// Reads a line that sets what ends a statement.
fn delimiter(line: &[u8]) -> Option<&[u8]> {
    let (word, rest) = line.trim_ascii().split_at_checked(DELIMITER.len())?;
    let rest = rest.strip_prefix(b" ").or(rest.strip_prefix(b"\t"))?.trim_ascii();
    (word.eq_ignore_ascii_case(DELIMITER) && !rest.is_empty()).then_some(rest)
}

/// A script that is being executed.
struct Script<'a> {
    dump: &'a Dump,
    whole: Whole,
    /// The databases that it makes or enters.
    databases: BTreeSet<String>,
    events: usize,
}

impl<'a> Script<'a> {
    fn new(dump: &'a Dump) -> Self {
        Self { dump, whole: Whole::default(), databases: BTreeSet::new(), events: 0 }
    }

    async fn run(
        &mut self,
        session: &mut Conn,
        mut pieces: mpsc::Receiver<Piece>,
    ) -> Result<(), SourceError> {
        while let Some(piece) = pieces.recv().await {
            match piece {
                Piece::Remark(text) => {
                    self.whole.has_begin |= HEADERS.iter().any(|header| text.starts_with(header));
                    self.whole.has_end |= text.starts_with(TRAILER);
                }
                Piece::Statement(text) if text.is_empty() => {}
                Piece::Statement(text) => {
                    self.whole.has_end = false;
                    self.execute(session, text).await?;
                }
            }
        }
        Ok(())
    }

    async fn execute(&mut self, session: &mut Conn, text: Vec<u8>) -> Result<(), SourceError> {
        let shown = shown(&String::from_utf8_lossy(&text[..text.len().min(1000)]));
        match reach(&text) {
            Reach::Database => {}
            Reach::Log => return Ok(()),
            Reach::Event => {
                self.events += 1;
                return Ok(());
            }
            Reach::OwnDatabase(name) => {
                self.databases.insert(name);
                if self.databases.len() > 1 {
                    let names: Vec<&str> = self.databases.iter().map(String::as_str).collect();
                    return Err(self.dump.refused(format!(
                        "it is of several databases ({}); dump the one that is meant alone",
                        names.join(", ")
                    )));
                }
                return Ok(());
            }
            Reach::Beyond => {
                return Err(self.dump.reaches_beyond(&shown));
            }
        }
        let inserts = text.get(..6).is_some_and(|word| word.eq_ignore_ascii_case(b"INSERT"));
        let done: Result<(), MysqlError> =
            session.query_drop(text).await.map_err(statement("execute the script"));
        done.map_err(|error| self.dump.refused(format!("{error}: `{shown}`")))?;
        if inserts && session.get_warnings() > 0 {
            check_unchanged(session).await?;
        }
        Ok(())
    }

    fn end(self) -> Result<Vec<String>, SourceError> {
        let mut warnings = Vec::from_iter(self.whole.judge(self.dump)?);
        if self.events > 0 {
            warnings.push(format!(
                "{} statements on events were left out, since events would have begun to run: they are not in this backup",
                self.events
            ));
        }
        Ok(warnings)
    }
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
        captured.warnings.extend(self.warnings.iter().cloned());
        // Where the server's log is now says nothing of when the dump was made.
        captured.consistency_point = None;
        Ok(captured)
    }

    async fn discard(self: Box<Self>, cx: &Cx) -> Result<(), SourceError> {
        let mut session = self.source.connection.session(cx).await?;
        Ok(drop_database(&mut session, &self.scratch).await?)
    }
}
