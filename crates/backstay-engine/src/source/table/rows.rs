//! Rows on their way from a database: gathered into batches, sent, taken, chosen.

use arrow_array::cast::AsArray as _;
use arrow_array::types::Int64Type;
use arrow_array::{BooleanArray, RecordBatch};
use arrow_select::filter::filter_record_batch;
use tokio::sync::mpsc;

use super::{AT, Builder, Shape, Value, refused};
use crate::cx::Cx;
use crate::source::SourceError;

/// Batches that wait between a database and the archive.
const BATCHES_AHEAD: usize = 2;

/// The reading end of a table's rows. Ends with `None` only if all were read.
pub type Rows = mpsc::Receiver<Result<Option<RecordBatch>, SourceError>>;

/// The writing end.
pub(crate) type RowsSender = mpsc::Sender<Result<Option<RecordBatch>, SourceError>>;

/// Makes both ends of a stream of rows.
pub(crate) fn rows_pipe() -> (RowsSender, Rows) {
    mpsc::channel(BATCHES_AHEAD)
}

/// Takes the next batch. A stream whose producer went away without a word is an error, not an end.
pub(crate) async fn next_batch(
    cx: &Cx,
    rows: &mut Rows,
) -> Result<Option<RecordBatch>, SourceError> {
    match cx.run(rows.recv()).await? {
        Some(batch) => batch,
        None => Err(refused("the rows of the table ended in the middle".to_owned())),
    }
}

/// Gathers rows as a database gives them: in batches to somebody, or all at once.
pub(crate) struct Gathering<'a> {
    builder: Builder,
    sender: Option<&'a RowsSender>,
}

impl<'a> Gathering<'a> {
    pub(crate) fn new(shape: &Shape, sender: Option<&'a RowsSender>) -> Result<Self, SourceError> {
        Ok(Self { builder: Builder::new(shape.schema_with_time())?, sender })
    }

    /// Adds a row: the values of its columns, and its time.
    pub(crate) fn push<'v>(
        &mut self,
        values: impl IntoIterator<Item = Result<Value<'v>, SourceError>>,
    ) -> Result<(), SourceError> {
        self.builder.push(values)
    }

    /// Sends what was gathered, once it is a batch.
    pub(crate) async fn send_if_full(&mut self) -> Result<(), SourceError> {
        match self.sender {
            Some(sender) if self.builder.is_full() => send(sender, self.builder.batch()?).await,
            _ => Ok(()),
        }
    }

    /// Sends the rest; returns it if there is nobody to send it to.
    pub(crate) async fn finish(mut self) -> Result<RecordBatch, SourceError> {
        let rest = self.builder.batch()?;
        if let Some(sender) = self.sender
            && rest.num_rows() > 0
        {
            send(sender, rest.clone()).await?;
        }
        Ok(rest)
    }
}

async fn send(sender: &RowsSender, batch: RecordBatch) -> Result<(), SourceError> {
    sender.send(Ok(Some(batch))).await.map_err(|_| nobody_reads())
}

/// Sends a batch from a thread that may wait.
pub(crate) fn send_blocking(sender: &RowsSender, batch: RecordBatch) -> Result<(), SourceError> {
    sender.blocking_send(Ok(Some(batch))).map_err(|_| nobody_reads())
}

fn nobody_reads() -> SourceError {
    refused("nobody reads the rows any more".to_owned())
}

/// Returns the times of rows that were just read.
pub(crate) fn times(batch: &RecordBatch) -> Result<Vec<i64>, SourceError> {
    let at = batch.column_by_name(AT).ok_or_else(|| refused("rows have no time".to_owned()))?;
    Ok(at.as_primitive::<Int64Type>().values().to_vec())
}

/// Chooses rows.
pub(crate) fn only(batch: &RecordBatch, chosen: Vec<bool>) -> Result<RecordBatch, SourceError> {
    let chosen = filter_record_batch(batch, &BooleanArray::from(chosen));
    chosen.map_err(|error| refused(error.to_string()))
}
