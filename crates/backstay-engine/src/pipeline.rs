//! Between plain and stored bytes: compress, seal, hash; and back.
//!
//! Each direction is one blocking thread between two bounded pipes, so that memory stays flat whatever the size: the
//! producer reads ahead while this thread works and the storage is fed.

use std::io::{self, Read, Write};
use std::num::NonZero;

use backstay_format::{
    Binding, Codec, DataKey, FrameError, Hasher, Keyring, OpenReader, SealWriter, Sha256,
};
use tokio::task::JoinHandle;

use crate::cx::Cx;
use crate::error::EngineError;
use crate::event::Event;
use crate::part::{CHUNK_BYTES, PartError, PartRead, PartReader, PartWriter, part_pipe};

/// What one zstd worker takes at a time. Smaller than zstd's own choice: memory grows with it, the ratio barely.
const ZSTD_JOB_BYTES: u32 = 2 << 20;
/// More workers than this only cost memory: the storage is slower.
const MAX_ZSTD_WORKERS: usize = 4;

/// A part that is expected to be smaller is compressed by the thread that reads it: jobs for workers would only be filled
/// by the end of it.
const MIN_BYTES_FOR_WORKERS: u64 = 4 * ZSTD_JOB_BYTES as u64;

/// How a part is turned into stored bytes.
#[derive(Debug)]
pub struct Encoding {
    /// zstd level; none leaves the bytes as they are.
    pub level: Option<i32>,
    /// Key, place and random salt, unless the backup is not sealed.
    pub sealing: Option<(DataKey, Binding, [u8; 32])>,
}

/// Both sides of a stream, measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Measured {
    /// Plain bytes.
    pub plain_bytes: u64,
    /// Their digest.
    pub plain_sha256: Sha256,
    /// Stored bytes.
    pub stored_bytes: u64,
    /// Their digest.
    pub stored_sha256: Sha256,
}

/// The running side of a stream; ends with its measures.
pub type Measuring = JoinHandle<Result<Measured, EngineError>>;

/// Turns a part into stored bytes.
pub fn encode(cx: &Cx, part: PartReader, encoding: Encoding) -> (PartReader, Measuring) {
    let (writer, stored) = part_pipe(part.spec.clone());
    let cx = cx.clone();
    let thread = tokio::task::spawn_blocking(move || {
        let mut out = Measure::new(writer);
        match encode_all(&cx, part, &encoding, &mut out) {
            Ok((plain_bytes, plain_sha256)) => {
                let (writer, stored_bytes, stored_sha256) = out.finish();
                writer.finish();
                Ok(Measured { plain_bytes, plain_sha256, stored_bytes, stored_sha256 })
            }
            Err(error) => {
                let part = out.inner.part_name();
                out.inner.fail(PartError::CutShort { part });
                Err(error)
            }
        }
    });
    (stored, thread)
}

fn encode_all(
    cx: &Cx,
    mut part: PartReader,
    encoding: &Encoding,
    out: &mut Measure<PartWriter>,
) -> Result<(u64, Sha256), EngineError> {
    let name = part.spec.name.clone();
    let broken =
        |cause: io::Error| PartError::Failed { part: name.clone(), cause: Box::new(cause) };
    let sink = match &encoding.sealing {
        None => Sink::Plain(out),
        Some((key, binding, salt)) => {
            Sink::Sealed(SealWriter::new(out, key, binding, *salt).map_err(broken)?)
        }
    };
    let mut packer = Packer::new(sink, encoding.level, part.spec.estimate_bytes).map_err(broken)?;
    let mut hasher = Hasher::new();
    let mut plain_bytes = 0;
    while let Some(chunk) = part.blocking_next()? {
        cx.check()?;
        hasher.update(&chunk);
        plain_bytes += chunk.len() as u64;
        packer.write_all(&chunk).map_err(broken)?;
        cx.event(Event::Progress { plain_bytes: chunk.len() as u64 });
    }
    packer.finish().map_err(broken)?;
    Ok((plain_bytes, hasher.finish()))
}

/// What the plain bytes are written into.
enum Packer<'a, W: Write> {
    Zstd(Box<zstd::stream::write::Encoder<'a, Sink<W>>>),
    AsTheyAre(Sink<W>),
}

impl<W: Write> Packer<'_, W> {
    fn new(sink: Sink<W>, level: Option<i32>, estimate: Option<u64>) -> io::Result<Self> {
        let Some(level) = level else { return Ok(Self::AsTheyAre(sink)) };
        let mut zstd = zstd::stream::write::Encoder::new(sink, level)?;
        prepare_zstd(&mut zstd, estimate)?;
        Ok(Self::Zstd(Box::new(zstd)))
    }

    fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        match self {
            Self::Zstd(zstd) => zstd.write_all(bytes),
            Self::AsTheyAre(sink) => sink.write_all(bytes),
        }
    }

    fn finish(self) -> io::Result<()> {
        match self {
            Self::Zstd(zstd) => zstd.finish()?.finish(),
            Self::AsTheyAre(sink) => sink.finish(),
        }
    }
}

fn prepare_zstd<W: Write>(
    zstd: &mut zstd::stream::write::Encoder<'_, W>,
    estimate: Option<u64>,
) -> io::Result<()> {
    if estimate.is_none_or(|bytes| bytes >= MIN_BYTES_FOR_WORKERS) {
        let cores = std::thread::available_parallelism().map_or(1, NonZero::get);
        zstd.multithread(cores.min(MAX_ZSTD_WORKERS) as u32)?;
        zstd.set_parameter(zstd::zstd_safe::CParameter::JobSize(ZSTD_JOB_BYTES))?;
    }
    // Lets `zstd -t` and `zstd -d` check what lies unsealed in a bucket.
    zstd.include_checksum(true)
}

/// What a decoded part must turn out to be.
#[derive(Debug, Clone)]
pub struct Expected {
    /// What was done to the plain bytes, in that order.
    pub codecs: Vec<Codec>,
    /// Where the object belongs, if it is sealed.
    pub binding: Binding,
    /// Both sides.
    pub measured: Measured,
}

/// Turns stored bytes back into a part. The plain stream ends cleanly only if every byte is as expected.
pub fn decode(
    cx: &Cx,
    stored: PartReader,
    keyring: &Keyring,
    expected: Expected,
) -> (PartReader, Measuring) {
    let (mut writer, plain) = part_pipe(stored.spec.clone());
    let (cx, keyring) = (cx.clone(), keyring.clone());
    let thread = tokio::task::spawn_blocking(move || {
        let name = stored.spec.name.clone();
        let done = decode_all(&cx, stored.into_read(), &keyring, &expected, &mut writer);
        match done {
            Ok(()) => {
                writer.finish();
                Ok(expected.measured)
            }
            Err(error) => {
                writer.fail(PartError::CutShort { part: name });
                Err(error)
            }
        }
    });
    (plain, thread)
}

fn decode_all(
    cx: &Cx,
    stored: PartRead,
    keyring: &Keyring,
    expected: &Expected,
    out: &mut PartWriter,
) -> Result<(), EngineError> {
    let part = out.part_name();
    let damaged =
        |finding: String| EngineError::Part(PartError::Refused { part: part.clone(), finding });
    let broken = |error: io::Error| read_error(error, &damaged);
    let mut measured = MeasureRead::new(stored);
    let opened: Box<dyn Read + '_> = if expected.codecs.contains(&Codec::Sealed) {
        let opened = OpenReader::new(&mut measured, keyring, Some(&expected.binding));
        Box::new(opened.map_err(|error| frame_error(error, &damaged))?)
    } else {
        Box::new(&mut measured)
    };
    let mut plain: Box<dyn Read + '_> = if expected.codecs.contains(&Codec::Zstd) {
        Box::new(zstd::stream::read::Decoder::new(opened).map_err(broken)?)
    } else {
        opened
    };
    let mut hasher = Hasher::new();
    let mut plain_bytes = 0;
    let mut chunk = vec![0; CHUNK_BYTES];
    loop {
        cx.check()?;
        let read = plain.read(&mut chunk).map_err(broken)?;
        if read == 0 {
            break;
        }
        plain_bytes += read as u64;
        // Endless output from few bytes must not fill the disk.
        if plain_bytes > expected.measured.plain_bytes {
            return Err(damaged(format!(
                "it is longer than the {} bytes it should have",
                expected.measured.plain_bytes
            )));
        }
        hasher.update(&chunk[..read]);
        out.write_all(&chunk[..read]).map_err(|_| EngineError::ReaderGone)?;
        cx.event(Event::Progress { plain_bytes: read as u64 });
    }
    drop(plain);
    let (stored_bytes, stored_sha256) = measured.finish().map_err(broken)?;
    let found =
        Measured { plain_bytes, plain_sha256: hasher.finish(), stored_bytes, stored_sha256 };
    if found != expected.measured {
        return Err(damaged(difference(&found, &expected.measured)));
    }
    Ok(())
}

fn difference(found: &Measured, expected: &Measured) -> String {
    if found.stored_bytes != expected.stored_bytes {
        format!(
            "the object holds {} bytes, the manifest says {}",
            found.stored_bytes, expected.stored_bytes
        )
    } else if found.stored_sha256 != expected.stored_sha256 {
        "the object's SHA-256 is not the one in the manifest".to_owned()
    } else if found.plain_bytes != expected.plain_bytes {
        format!(
            "it opens to {} bytes, the manifest says {}",
            found.plain_bytes, expected.plain_bytes
        )
    } else {
        "the SHA-256 of its plain bytes is not the one in the manifest".to_owned()
    }
}

/// Tells apart: the storage failed, the work was stopped, the bytes are bad.
fn read_error(error: io::Error, damaged: &dyn Fn(String) -> EngineError) -> EngineError {
    let error = match error.downcast::<PartError>() {
        Ok(part) => return part.into(),
        Err(error) => error,
    };
    match error.downcast::<FrameError>() {
        Ok(frame) => frame_error(frame, damaged),
        Err(error) => damaged(error.to_string()),
    }
}

fn frame_error(error: FrameError, damaged: &dyn Fn(String) -> EngineError) -> EngineError {
    match error {
        FrameError::Key(key) => key.into(),
        FrameError::Read(io) => read_error(io, damaged),
        other => damaged(other.to_string()),
    }
}

enum Sink<W: Write> {
    Plain(W),
    Sealed(SealWriter<W>),
}

impl<W: Write> Sink<W> {
    fn finish(self) -> io::Result<()> {
        match self {
            Self::Plain(_) => Ok(()),
            Self::Sealed(writer) => writer.finish().map(drop),
        }
    }
}

impl<W: Write> Write for Sink<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Plain(out) => out.write(bytes),
            Self::Sealed(writer) => writer.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Counts and hashes what is written through it.
struct Measure<W> {
    inner: W,
    hasher: Hasher,
    bytes: u64,
}

impl<W> Measure<W> {
    fn new(inner: W) -> Self {
        Self { inner, hasher: Hasher::new(), bytes: 0 }
    }

    fn finish(self) -> (W, u64, Sha256) {
        (self.inner, self.bytes, self.hasher.finish())
    }
}

impl<W: Write> Write for Measure<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.inner.write(bytes)?;
        self.hasher.update(&bytes[..written]);
        self.bytes += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

/// Counts and hashes what is read through it.
struct MeasureRead<R> {
    inner: R,
    hasher: Hasher,
    bytes: u64,
}

impl<R: Read> MeasureRead<R> {
    fn new(inner: R) -> Self {
        Self { inner, hasher: Hasher::new(), bytes: 0 }
    }

    /// Reads what the decoder left: bytes behind its end are damage too, and must be counted.
    fn finish(mut self) -> io::Result<(u64, Sha256)> {
        io::copy(&mut self, &mut io::sink())?;
        Ok((self.bytes, self.hasher.finish()))
    }
}

impl<R: Read> Read for MeasureRead<R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(out)?;
        self.hasher.update(&out[..read]);
        self.bytes += read as u64;
        Ok(read)
    }
}

/// Waits for a thread of the pipeline.
pub async fn join(thread: &'static str, measuring: Measuring) -> Result<Measured, EngineError> {
    measuring.await.map_err(|_| EngineError::ThreadDied { thread })?
}
