//! What scripts of SQL have in common, whatever the server: a thread divides them, and a session executes the pieces.

use std::io::{BufRead, Read as _};

use tokio::sync::mpsc;

use super::Dump;
use crate::cx::Cx;
use crate::source::SourceError;
use crate::source::databases::Databases;
use crate::source::sqlite::blocking;

/// Pieces that wait to be executed.
const PIECES_IN_FLIGHT: usize = 16;
/// No line is larger: servers take no larger message.
const MAX_LINE_BYTES: u64 = 1 << 30;
pub(super) const BYTE_ORDER_MARK: &[u8] = b"\xEF\xBB\xBF";
/// Of a statement this much is shown.
const SHOWN_CHARS: usize = 120;

/// Whoever reads a script hands its pieces over here.
pub(in crate::source) struct Pieces<P>(mpsc::Sender<P>);

impl<P> Pieces<P> {
    /// Hands pieces over. Says whether anybody still takes them; who does not has an error of its own. Blocks.
    pub(in crate::source) fn hand_over(&self, pieces: Vec<P>) -> bool {
        pieces.into_iter().all(|piece| self.0.blocking_send(piece).is_ok())
    }
}

/// Reads a script in a thread that may block, and executes its pieces meanwhile.
pub(in crate::source) async fn run<P: Send + 'static, E>(
    cx: &Cx,
    read: impl FnOnce(&Pieces<P>) -> Result<(), SourceError> + Send + 'static,
    execute: impl FnOnce(mpsc::Receiver<P>) -> E,
) -> Result<(), SourceError>
where
    E: Future<Output = Result<(), SourceError>>,
{
    let (sender, pieces) = mpsc::channel(PIECES_IN_FLIGHT);
    let reading = tokio::spawn(blocking(move || read(&Pieces(sender))));
    let executed = cx.run(execute(pieces)).await;
    // Nobody takes pieces any more, so it ends by itself.
    let died = |died| SourceError::io("read", "the script", std::io::Error::other(died));
    let read = reading.await.map_err(died)?;
    match (executed, read) {
        (Err(cancelled), _) => Err(cancelled.into()),
        // What is wrong with the script comes before what that leads to.
        (Ok(Err(_)), Err(cause @ SourceError::Dump { .. })) => Err(cause),
        (Ok(executed), read) => executed.and(read),
    }
}

/// Reads lines of a script, each with its end.
pub(in crate::source) struct Lines {
    input: Box<dyn BufRead + Send>,
    dump: Dump,
    line: Vec<u8>,
    is_first: bool,
}

impl Lines {
    pub(in crate::source) fn of(dump: &Dump) -> Result<Self, SourceError> {
        Ok(Self { input: dump.open()?, dump: dump.clone(), line: Vec::new(), is_first: true })
    }

    /// Returns the next line. What a file of others lacks at its end, the last line has all the same. Blocks.
    pub(in crate::source) fn next(&mut self) -> Result<Option<&[u8]>, SourceError> {
        self.line.clear();
        let mut limited = (&mut self.input).take(MAX_LINE_BYTES);
        let read = limited.read_until(b'\n', &mut self.line);
        if read.map_err(|cause| self.dump.unreadable(&cause))? == 0 {
            return Ok(None);
        }
        if self.line.len() as u64 == MAX_LINE_BYTES {
            return Err(self.dump.refused("a line of it is larger than a gigabyte"));
        }
        if !self.line.ends_with(b"\n") {
            self.line.push(b'\n');
        }
        let is_first = std::mem::take(&mut self.is_first);
        let line = self.line.as_slice();
        Ok(Some(line.strip_prefix(BYTE_ORDER_MARK).filter(|_| is_first).unwrap_or(line)))
    }
}

/// Whether a script is whole, by what it says of itself.
#[derive(Debug, Default)]
pub(in crate::source) struct Whole {
    /// It begins as a program's dumps do.
    pub(in crate::source) has_begin: bool,
    /// The last that was read is how those end.
    pub(in crate::source) has_end: bool,
    /// It makes something.
    pub(in crate::source) makes: bool,
}

impl Whole {
    /// Fails if an end is missing, and returns a warning where nothing is said.
    pub(in crate::source) fn judge(&self, dump: &Dump) -> Result<Option<String>, SourceError> {
        if !self.has_begin && !self.makes {
            return Err(dump.refused("it makes nothing: there is no CREATE in it"));
        }
        match (self.has_begin, self.has_end) {
            (_, true) => Ok(None),
            (true, false) => {
                let finding = "it is cut short: the last line is missing that says that the dump is complete";
                Err(dump.refused(finding))
            }
            (false, false) => Ok(Some("the script does not say of itself that it is whole: whether something was missing from it already cannot be told".to_owned())),
        }
    }
}

/// Returns the beginning of a statement, for a person.
pub(in crate::source) fn shown(statement: &str) -> String {
    statement.trim().chars().take(SHOWN_CHARS).collect()
}

impl Dump {
    /// Says that a statement is not executed.
    pub(in crate::source) fn reaches_beyond(&self, statement: &str) -> SourceError {
        self.refused(format!(
            "it changes more than its own database: `{}`; take that out of the script, or dump the database alone",
            shown(statement)
        ))
    }

    /// Says that a source of several databases takes no dumps.
    pub(in crate::source) fn is_of_one(&self, databases: &Databases) -> SourceError {
        self.refused(format!(
            "a dump is of one database, and this source is of {databases}; make a source of that database"
        ))
    }
}
