//! What passes between a source and the vault: named streams that say how they ended.

use std::io::{self, BufRead, Read, Write};

use backstay_format::{Content, Details, ItemError, MediaType, PartName};
use bytes::{Buf as _, Bytes, BytesMut};
use tokio::sync::mpsc;

/// Bytes gathered before they are handed over.
pub const CHUNK_BYTES: usize = 256 * 1024;

/// Chunks that may wait between producer and consumer: with [`CHUNK_BYTES`], 2 MiB.
const CHUNKS_IN_FLIGHT: usize = 8;

/// What a part is, apart from its bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PartSpec {
    /// The part's name in the backup.
    pub name: PartName,
    /// What its plain bytes are.
    pub media_type: MediaType,
    /// How many plain bytes are expected. Zero is an estimate too.
    pub estimate_bytes: Option<u64>,
}

/// The reading end of a part.
///
/// **Invariant:** a stream whose producer went away without [`PartWriter::finish`] ends in an error, never in a
/// clean end: a killed dump ends too.
#[derive(Debug)]
pub struct PartReader {
    /// What is being read.
    pub spec: PartSpec,
    chunks: mpsc::Receiver<Chunk>,
    ended: bool,
}

/// The writing end of a part; `Write` gathers small writes into chunks.
///
/// For use in a blocking thread; async producers use [`PartWriter::send`].
#[derive(Debug)]
pub struct PartWriter {
    part: PartName,
    chunks: mpsc::Sender<Chunk>,
    gathered: BytesMut,
}

#[derive(Debug)]
enum Chunk {
    Data(Bytes),
    End,
    Failed(PartError),
}

/// What is wrong with the stream of a part, whoever produces it.
#[derive(Debug, thiserror::Error)]
pub enum PartError {
    /// The stream ended without saying that it was whole.
    #[error("part {part} was cut short")]
    CutShort {
        /// Which part.
        part: PartName,
    },
    /// The bytes are not what such a part holds, or would write where they must not.
    #[error("part {part} is refused: {finding}")]
    Refused {
        /// Which part.
        part: PartName,
        /// What was found, with the offending name.
        finding: String,
    },
    /// The producer could not go on.
    #[error("cannot read part {part}")]
    Failed {
        /// Which part.
        part: PartName,
        /// The producer's own error: of a source, of the vault, of the system.
        #[source]
        cause: Box<dyn std::error::Error + Send + Sync>,
    },
}

/// The consumer went away; it knows why.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("nobody reads this part any more")]
pub struct ReaderGone;

impl From<ReaderGone> for io::Error {
    fn from(gone: ReaderGone) -> Self {
        io::Error::new(io::ErrorKind::BrokenPipe, gone)
    }
}

/// Makes both ends of a part.
pub fn part_pipe(spec: PartSpec) -> (PartWriter, PartReader) {
    let (sender, receiver) = mpsc::channel(CHUNKS_IN_FLIGHT);
    let writer = PartWriter { part: spec.name.clone(), chunks: sender, gathered: BytesMut::new() };
    (writer, PartReader { spec, chunks: receiver, ended: false })
}

impl PartWriter {
    /// Returns the name of the part.
    pub fn part_name(&self) -> PartName {
        self.part.clone()
    }

    /// Hands over bytes from async code: in pieces, so that the pipe never holds more than it promises.
    pub async fn send(&mut self, mut data: Bytes) -> Result<(), ReaderGone> {
        while !data.is_empty() {
            let piece = data.split_to(data.len().min(CHUNK_BYTES));
            self.chunks.send(Chunk::Data(piece)).await.map_err(|_| ReaderGone)?;
        }
        Ok(())
    }

    /// Says, from async code, that everything was written.
    pub async fn finish_async(mut self) {
        let rest = std::mem::take(&mut self.gathered).freeze();
        if rest.is_empty() || self.chunks.send(Chunk::Data(rest)).await.is_ok() {
            // Here and below: a reader that left has an error of its own, and nobody to tell.
            drop(self.chunks.send(Chunk::End).await);
        }
    }

    /// Says, from a blocking thread, that everything was written.
    pub fn finish(mut self) {
        if self.hand_over().is_ok() {
            drop(self.chunks.blocking_send(Chunk::End));
        }
    }

    /// Says, from a blocking thread, that the rest cannot be had.
    pub fn fail(self, error: PartError) {
        drop(self.chunks.blocking_send(Chunk::Failed(error)));
    }

    /// Says, from async code, that the rest cannot be had.
    pub async fn fail_async(self, error: PartError) {
        drop(self.chunks.send(Chunk::Failed(error)).await);
    }

    fn hand_over(&mut self) -> Result<(), ReaderGone> {
        if self.gathered.is_empty() {
            return Ok(());
        }
        let data = std::mem::take(&mut self.gathered).freeze();
        self.chunks.blocking_send(Chunk::Data(data)).map_err(|_| ReaderGone)
    }
}

impl Write for PartWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.gathered.capacity() == 0 {
            self.gathered.reserve(CHUNK_BYTES);
        }
        let taken = bytes.len().min(CHUNK_BYTES - self.gathered.len());
        self.gathered.extend_from_slice(&bytes[..taken]);
        if self.gathered.len() == CHUNK_BYTES {
            self.hand_over()?;
        }
        Ok(taken)
    }

    /// Does nothing: chunks are handed over when full, and by [`PartWriter::finish`].
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl PartReader {
    /// Returns the next bytes, or `None` after a clean end, however often it is asked.
    pub async fn next(&mut self) -> Result<Option<Bytes>, PartError> {
        if self.ended {
            return Ok(None);
        }
        let chunk = self.chunks.recv().await;
        self.settle(chunk)
    }

    /// Like [`PartReader::next`], from a blocking thread.
    pub fn blocking_next(&mut self) -> Result<Option<Bytes>, PartError> {
        if self.ended {
            return Ok(None);
        }
        let chunk = self.chunks.blocking_recv();
        self.settle(chunk)
    }

    /// Turns the part into a blocking `Read`; errors come as `io::Error` with the [`PartError`] inside.
    pub fn into_read(self) -> PartRead {
        PartRead { part: self, chunk: Bytes::new() }
    }

    fn settle(&mut self, chunk: Option<Chunk>) -> Result<Option<Bytes>, PartError> {
        match chunk {
            Some(Chunk::Data(bytes)) => Ok(Some(bytes)),
            Some(Chunk::End) => {
                self.ended = true;
                Ok(None)
            }
            Some(Chunk::Failed(error)) => Err(error),
            None => Err(PartError::CutShort { part: self.spec.name.clone() }),
        }
    }
}

/// A part as a blocking `Read`.
#[derive(Debug)]
pub struct PartRead {
    part: PartReader,
    chunk: Bytes,
}

impl Read for PartRead {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let taken = self.fill_buf()?.read(out)?;
        self.consume(taken);
        Ok(taken)
    }
}

impl BufRead for PartRead {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        while self.chunk.is_empty() {
            match self.part.blocking_next().map_err(io::Error::other)? {
                Some(chunk) => self.chunk = chunk,
                None => break,
            }
        }
        Ok(&self.chunk)
    }

    fn consume(&mut self, bytes: usize) {
        self.chunk.advance(bytes);
    }
}

/// Items that could not be read: all are counted, and as many kept by name as a manifest lists.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ItemErrors {
    listed: Vec<ItemError>,
    count: u64,
}

impl ItemErrors {
    /// Adds one.
    pub fn add(&mut self, error: ItemError) {
        self.count += 1;
        if self.listed.len() < Details::LISTED_ITEM_ERRORS {
            self.listed.push(error);
        }
    }

    /// Returns how many there are.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// Returns the first of them, at most [`Details::LISTED_ITEM_ERRORS`].
    pub fn into_listed(self) -> Vec<ItemError> {
        self.listed
    }
}

/// What a finished capture says of itself.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CaptureReport {
    /// Items that could not be read. Any means: the backup is incomplete.
    pub item_errors: ItemErrors,
    /// What a person should know.
    pub warnings: Vec<String>,
    /// The engine and its version, for example `SQLite 3.50.2`.
    pub engine: Option<String>,
    /// What the parts hold; goes into the sealed section of the manifest.
    pub content: Option<Content>,
    /// The point of the engine's log that the data is consistent with.
    pub consistency_point: Option<String>,
    /// The app's applied migrations, if a query for them is set.
    pub schema_version: Option<Vec<String>>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn bytes_sent_at_once_pass_in_pieces_and_whole() {
        let spec = PartSpec {
            name: "x".parse().unwrap(),
            media_type: MediaType::Tar,
            estimate_bytes: None,
        };
        let (mut writer, mut reader) = part_pipe(spec);
        let sent: Bytes = (0..3 * CHUNK_BYTES + 1).map(|i| i as u8).collect();
        let sending = sent.clone();
        let producer = tokio::spawn(async move {
            writer.send(sending).await.unwrap();
            writer.finish_async().await;
        });
        let mut received = Vec::new();
        while let Some(piece) = reader.next().await.unwrap() {
            assert!(piece.len() <= CHUNK_BYTES);
            received.extend_from_slice(&piece);
        }
        producer.await.unwrap();
        assert_eq!(received, sent);
    }

    #[tokio::test]
    async fn bytes_gathered_in_a_blocking_thread_pass_though_the_end_is_said_from_async_code() {
        let spec = PartSpec {
            name: "x".parse().unwrap(),
            media_type: MediaType::Tar,
            estimate_bytes: None,
        };
        let (mut writer, mut reader) = part_pipe(spec);
        writer.write_all(b"less than a chunk").unwrap();
        let producer = tokio::spawn(writer.finish_async());
        assert_eq!(reader.next().await.unwrap().unwrap(), "less than a chunk");
        assert_eq!(reader.next().await.unwrap(), None);
        producer.await.unwrap();
    }
}
