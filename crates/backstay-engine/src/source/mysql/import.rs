//! Scripts of others: executed statement by statement in a new database beside the living one, and read from there as that one is.
//! No statement that reaches beyond the new database is executed.

use std::collections::BTreeSet;
use std::convert::Infallible;

use async_trait::async_trait;
use mysql_async::Conn;
use mysql_async::prelude::Queryable as _;
use tokio::sync::mpsc;

use super::capture::DatabaseCapture;
use super::connection::MysqlConnection as _;
use super::error::{MysqlError, statement};
use super::load::GENERATED;
use super::moves::drop_database;
use super::names::identifier;
use super::reach::{Reach, Words};
use super::scan::{Found, Statements, TRAILER};
use super::{MysqlSource, describe, objects};
use crate::cx::Cx;
use crate::part::CaptureReport;
use crate::source::dump::script::{self, Lines, Pieces, Whole, shown};
use crate::source::dump::{Dump, Form};
use crate::source::imported::discard;
use crate::source::{Capture, Imported, SourceError, own_names, tunnelled};

/// Dumps of the servers' own programs begin so.
const HEADERS: [&[u8]; 2] = [b"-- MySQL dump", b"-- MariaDB dump"];
/// What the servers' own command line takes for its own, at the beginning of a line.
const DELIMITER: &[u8] = b"DELIMITER";
/// Tables in their order are of no interest while a dump is loaded; all warnings are kept.
const BEGIN: &str = "SET SESSION unique_checks = 0, SESSION foreign_key_checks = 0, SESSION max_error_count = 65535";
/// Remarks of the server are told up to this number, and of a statement this much is looked at for that.
const SHOWN_REMARKS: usize = 5;
const SHOWN_BYTES: usize = 1000;
/// No statement is larger: servers take no larger packet.
const MAX_STATEMENT_BYTES: usize = 1 << 30;

/// A database that a script was executed in.
struct ImportedDatabase {
    source: MysqlSource,
    scratch: String,
    dump: Dump,
    /// The session that executes, while it does: the server goes on with its last statement.
    session: Option<u32>,
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
        session: None,
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
        self.session = Some(session.id());
        session.query_drop(BEGIN).await.map_err(statement("begin to load"))?;
        let (reader, dump) = (cx.clone(), self.dump.clone());
        let read = move |pieces: &Pieces<Piece>| read(&reader, &dump, pieces);
        let mut script = Script::new(&self.dump);
        script::run(cx, read, |pieces| script.run(&mut session, pieces)).await?;
        script.make_triggers(&mut session).await?;
        let committed = session.query_drop("COMMIT").await;
        committed.map_err(statement("load the script"))?;
        self.warnings = script.end()?;
        drop(session.disconnect().await);
        self.session = None;
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
    let (mut lines, mut statements) = (Lines::of(dump)?, Statements::default());
    let mut are_divided = true;
    while let Some(line) = lines.next()? {
        cx.check()?;
        if let Some(delimiter) = delimiter(line).filter(|_| statements.is_between()) {
            statements.set_delimiter(delimiter);
            are_divided = delimiter == b";";
            continue;
        }
        if statements.is_between() && line.trim_ascii().starts_with(b"\\") {
            return Err(dump.refused("it has a command of the client, and none is executed"));
        }
        let mut found = Vec::new();
        let pushed = statements.push(line, |one| {
            match one {
                Found::Statement(b"") => {}
                Found::Statement(text) if are_divided => {
                    found.push(Piece::Statement(text.to_vec()));
                }
                Found::Statement(text) => found.extend(single(text).map(Piece::Statement)),
                Found::Remark(text) => found.push(Piece::Remark(text.to_vec())),
            }
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

/// A trigger that waits until all rows are in, with how the session was set for it.
struct Trigger {
    settings: String,
    statement: Vec<u8>,
}

/// A script that is being executed.
struct Script<'a> {
    dump: &'a Dump,
    whole: Whole,
    /// The databases that it makes or enters.
    databases: BTreeSet<String>,
    triggers: Vec<Trigger>,
    events: usize,
    /// What the server said of what it made.
    remarks: Vec<String>,
}

impl<'a> Script<'a> {
    fn new(dump: &'a Dump) -> Self {
        Self {
            dump,
            whole: Whole::default(),
            databases: BTreeSet::new(),
            triggers: Vec::new(),
            events: 0,
            remarks: Vec::new(),
        }
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
                Piece::Statement(text) => {
                    self.whole.has_end = false;
                    self.execute(session, text).await?;
                }
            }
        }
        Ok(())
    }

    async fn execute(&mut self, session: &mut Conn, text: Vec<u8>) -> Result<(), SourceError> {
        let words = Words::of(&text);
        match words.reach() {
            Reach::Database => {}
            Reach::Log => return Ok(()),
            Reach::Event => {
                self.events += 1;
                return Ok(());
            }
            Reach::Trigger => {
                let settings = settings_of(session).await?;
                self.triggers.push(Trigger { settings, statement: text });
                return Ok(());
            }
            Reach::OwnDatabase(name) => return self.enter(name),
            Reach::Beyond => return Err(self.dump.reaches_beyond(&beginning(&text))),
        }
        self.whole.makes |= words.begins(&["CREATE"]);
        let changes_rows = words.begins(&["INSERT", "REPLACE", "UPDATE"]);
        let shown = shown(&beginning(&text));
        let done: Result<(), MysqlError> =
            session.query_drop(text).await.map_err(statement("execute the script"));
        done.map_err(|error| self.dump.refused(format!("{error}: `{shown}`")))?;
        if session.get_warnings() == 0 {
            return Ok(());
        }
        for said in complaints(session).await? {
            if changes_rows {
                return Err(self.dump.refused(format!(
                    "the server does not take rows as they are in it: {said}: `{shown}`"
                )));
            }
            self.remarks.push(format!("{said}: `{shown}`"));
        }
        Ok(())
    }

    fn enter(&mut self, database: String) -> Result<(), SourceError> {
        self.databases.insert(database);
        if self.databases.len() == 1 {
            return Ok(());
        }
        let names: Vec<&str> = self.databases.iter().map(String::as_str).collect();
        Err(self.dump.refused(format!(
            "it is of several databases ({}); dump the one that is meant alone",
            names.join(", ")
        )))
    }

    /// Makes the triggers, once no row can set them off.
    async fn make_triggers(&mut self, session: &mut Conn) -> Result<(), SourceError> {
        for Trigger { settings, statement: text } in std::mem::take(&mut self.triggers) {
            let shown = shown(&beginning(&text));
            session
                .query_drop(settings)
                .await
                .map_err(statement("set the session for a trigger"))?;
            let made: Result<(), MysqlError> =
                session.query_drop(text).await.map_err(statement("make a trigger of the script"));
            made.map_err(|error| self.dump.refused(format!("{error}: `{shown}`")))?;
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
        if !self.remarks.is_empty() {
            let shown: Vec<&str> =
                self.remarks.iter().take(SHOWN_REMARKS).map(String::as_str).collect();
            let count = self.remarks.len();
            warnings
                .push(format!("the server remarked on {count} statements: {}", shown.join("; ")));
        }
        Ok(warnings)
    }
}

/// Divides what stands between two delimiters that are no semicolons: servers would execute several statements as one. What makes
/// a program is one.
fn single(text: &[u8]) -> impl Iterator<Item = Vec<u8>> {
    let mut found = Vec::new();
    if Words::of(text).is_program() {
        found.push(text.to_vec());
    } else {
        let mut statements = Statements::default();
        let pushed = statements.push(text, |one| {
            if let Found::Statement(statement) = one {
                found.push(statement.to_vec());
            }
            Ok::<(), Infallible>(())
        });
        let Ok(()) = pushed;
        found.push(statements.rest().to_vec());
    }
    found.into_iter().filter(|statement| !statement.is_empty())
}

/// Returns a statement that sets a session as this one is, for what is made later.
async fn settings_of(session: &mut Conn) -> Result<String, MysqlError> {
    let query = "SELECT concat('SET sql_mode = ', quote(@@sql_mode), ', character_set_client = ', @@character_set_client, ', collation_connection = ', @@collation_connection)";
    let rows = describe::rows(session, query, "ask how the session is set").await?;
    Ok(rows.first().map(|row| describe::text(row, 0)).unwrap_or_default())
}

/// Returns what the server has against what it did.
async fn complaints(session: &mut Conn) -> Result<Vec<String>, MysqlError> {
    let rows = describe::rows(session, "SHOW WARNINGS", "ask what was changed").await?;
    let matter = rows
        .iter()
        .filter(|row| describe::text(row, 0) != "Note" && describe::text(row, 1) != GENERATED);
    Ok(matter.map(|row| describe::text(row, 2)).collect())
}

fn beginning(text: &[u8]) -> String {
    String::from_utf8_lossy(&text[..text.len().min(SHOWN_BYTES)]).into_owned()
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
        if let Some(id) = self.session {
            // It may have ended meanwhile.
            drop(session.query_drop(format!("KILL {id}")).await);
        }
        Ok(drop_database(&mut session, &self.scratch).await?)
    }
}
