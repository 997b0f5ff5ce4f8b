//! RDB files of others: walked through as what a server sends is. No server is needed for that.

use std::io::{self, BufRead};

use async_trait::async_trait;
use backstay_format::{Content, MediaType};
use bytes::Bytes;
use jiff::Timestamp;
use tokio::task::JoinHandle;

use super::capture::{DUMP, MODULE_DATA, Walked, walk};
use super::rdb::Chunks;
use crate::cx::Cx;
use crate::part::{CHUNK_BYTES, CaptureReport, PartReader, part_pipe};
use crate::source::dump::{Dump, Form, Packing};
use crate::source::sqlite::blocking;
use crate::source::{Capture, Imported, SourceError, fixed_part};

/// What a server says of itself stands in so many bytes at the beginning.
const HEAD_BYTES: usize = 4 << 10;
const NO_CHECKSUM: &str =
    "the file has no checksum (rdbchecksum no): damage in it may not have shown";
/// Numbers are written in so many bytes behind one of these.
const NUMBERS: [(u8, usize); 3] = [(0xC0, 1), (0xC1, 2), (0xC2, 4)];
/// A shorter text has its length in one byte.
const SHORT_TEXT_BYTES: u8 = 64;

/// Finds a remark at the beginning of a file.
fn remark<'a>(begin: &'a [u8], name: &str) -> Option<&'a [u8]> {
    let at = begin.windows(name.len()).position(|window| window == name.as_bytes())?;
    let (first, rest) = begin.get(at + name.len()..)?.split_first()?;
    let number = NUMBERS.iter().find(|(mark, _)| mark == first);
    let length = match number {
        Some((_, length)) => *length,
        None if *first < SHORT_TEXT_BYTES => usize::from(*first),
        None => return None,
    };
    rest.get(..length)
}

/// Reads a remark that is a number; servers write large ones as texts.
fn number(begin: &[u8], name: &str) -> Option<u64> {
    let value = remark(begin, name)?;
    if let Some(number) = std::str::from_utf8(value).ok().and_then(|text| text.parse().ok()) {
        return Some(number);
    }
    let mut bytes = [0; 8];
    bytes.get_mut(..value.len())?.copy_from_slice(value);
    Some(u64::from_le_bytes(bytes))
}

/// Returns when a file was written, if its first bytes say so.
pub(in crate::source) fn saved_at(begin: &[u8]) -> Option<Timestamp> {
    Timestamp::from_second(i64::try_from(number(begin, "ctime")?).ok()?).ok()
}

/// Returns engine and version of the server that wrote a file.
fn engine(begin: &[u8]) -> Option<String> {
    let names = [("redis-ver", "Redis"), ("valkey-ver", "Valkey")];
    names.iter().find_map(|(name, engine)| {
        let version = std::str::from_utf8(remark(begin, name)?).ok()?;
        Some(format!("{engine} {version}"))
    })
}

/// An RDB file.
pub(super) struct ImportedRdb {
    dump: Dump,
}

impl ImportedRdb {
    pub(super) fn new(dump: &Dump) -> Result<Self, SourceError> {
        match dump.form {
            Form::Rdb => Ok(Self { dump: dump.clone() }),
            _ => Err(dump.is_not_for("redis", "RDB files")),
        }
    }
}

#[async_trait]
impl Imported for ImportedRdb {
    async fn capture(&self, cx: &Cx) -> Result<Box<dyn Capture>, SourceError> {
        let dump = self.dump.clone();
        let (input, engine, memory_bytes) = blocking(move || {
            let mut input = dump.open()?;
            let begin = input.fill_buf().map_err(|cause| dump.unreadable(&cause))?;
            let begin = &begin[..begin.len().min(HEAD_BYTES)];
            let engine = engine(begin).ok_or_else(|| {
                dump.refused("it does not say which server wrote it, as those since Redis 3.2 do")
            })?;
            if number(begin, "aof-base") == Some(1) {
                return Err(dump.refused(
                    "it is the base of a log (appendonlydir), and the rest of the data is in the log; import a file that the server saved (dump.rdb)",
                ));
            }
            let memory = number(begin, "used-mem").unwrap_or(dump.bytes);
            Ok((input, engine, memory))
        })
        .await?;
        let estimate = (self.dump.packing == Packing::None).then_some(self.dump.bytes);
        let (writer, part) = part_pipe(fixed_part(DUMP, MediaType::RedisDump, estimate));
        let (cx, dump) = (cx.clone(), self.dump.clone());
        let walking = tokio::task::spawn_blocking(move || {
            let nothing = std::collections::BTreeSet::new();
            let (writer, walked) = walk(Read { cx, input }, writer, &nothing);
            let walked = walked.map_err(|cause| dump.refused(cause.to_string()))?;
            writer.finish();
            Ok(walked)
        });
        Ok(Box::new(RdbCapture { part: Some(part), walking, engine, memory_bytes }))
    }

    fn prove(&self, mut captured: CaptureReport) -> Result<CaptureReport, SourceError> {
        captured.warnings.push("an RDB file has no users: they are not in this backup".to_owned());
        Ok(captured)
    }

    async fn discard(self: Box<Self>, _cx: &Cx) -> Result<(), SourceError> {
        Ok(())
    }
}

/// A file as chunks.
struct Read {
    cx: Cx,
    input: Box<dyn BufRead + Send>,
}

impl Chunks for Read {
    fn next(&mut self) -> io::Result<Option<Bytes>> {
        self.cx.check().map_err(io::Error::other)?;
        let mut chunk = vec![0; CHUNK_BYTES];
        let read = self.input.read(&mut chunk)?;
        chunk.truncate(read);
        Ok((read > 0).then(|| chunk.into()))
    }
}

/// A file that is being walked through.
struct RdbCapture {
    part: Option<PartReader>,
    walking: JoinHandle<Result<Walked, SourceError>>,
    engine: String,
    memory_bytes: u64,
}

#[async_trait]
impl Capture for RdbCapture {
    async fn next_part(&mut self, _cx: &Cx) -> Result<Option<PartReader>, SourceError> {
        Ok(self.part.take())
    }

    async fn finish(mut self: Box<Self>, _cx: &Cx) -> Result<CaptureReport, SourceError> {
        // What nobody took ends now.
        drop(self.part.take());
        let walked = blocking_end(self.walking).await?;
        let mut warnings = Vec::from_iter(walked.has_module_data.then(|| MODULE_DATA.to_owned()));
        warnings.extend((!walked.has_checksum).then(|| NO_CHECKSUM.to_owned()));
        let content = walked.content(&self.engine, self.memory_bytes);
        Ok(CaptureReport {
            engine: Some(self.engine),
            content: Some(Content::Redis(Box::new(content))),
            warnings,
            ..CaptureReport::default()
        })
    }
}

async fn blocking_end(
    walking: JoinHandle<Result<Walked, SourceError>>,
) -> Result<Walked, SourceError> {
    let died = |_| SourceError::io("walk through", DUMP, io::Error::other("its thread died"));
    walking.await.map_err(died)?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn server_and_time_are_read_from_the_beginning_of_a_file() {
        let begin = b"REDIS0010\xfa\tredis-ver\x067.0.15\xfa\nredis-bits\xc0@\xfa\x05ctime\xc2\xbf\x9c\x20\x6a\xfa\x08used-mem\xc2\x00\x00\x10\x00";
        assert_eq!(engine(begin).as_deref(), Some("Redis 7.0.15"));
        assert_eq!(saved_at(begin), Timestamp::from_second(0x6a20_9cbf).ok());
        assert_eq!(number(begin, "used-mem"), Some(1 << 20));
        assert_eq!(saved_at(b"REDIS0003\xfe\x00"), None);
        assert_eq!(number(b"xctime", "ctime"), None);
    }
}
