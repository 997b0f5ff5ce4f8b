//! What scripts of SQL have in common, whatever the server: a thread divides them, and a session executes the pieces.

use tokio::sync::mpsc;

use super::Dump;
use crate::cx::Cx;
use crate::source::SourceError;
use crate::source::databases::Databases;
use crate::source::sqlite::blocking;

/// Pieces that wait to be executed.
const PIECES_IN_FLIGHT: usize = 16;
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

/// Whether a script is whole, by what it says of itself.
#[derive(Debug, Default)]
pub(in crate::source) struct Whole {
    /// It begins as a program's dumps do.
    pub(in crate::source) has_begin: bool,
    /// The last that was read is how those end.
    pub(in crate::source) has_end: bool,
}

impl Whole {
    /// Fails if an end is missing, and returns a warning where nothing is said.
    pub(in crate::source) fn judge(&self, dump: &Dump) -> Result<Option<String>, SourceError> {
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
