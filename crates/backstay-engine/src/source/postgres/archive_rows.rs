//! The data of a table in an archive: unpacked where it is packed, and its rows counted.

use std::io::{self, Write};

use flate2::write::ZlibDecoder;
use zstd::stream::write::Decoder as ZstdDecoder;

/// How COPY data ends in an archive.
const END_OF_ROWS: &[u8; 5] = b"\\.\n\n\n";
const NEWLINES_AT_END: u64 = 3;

/// What was done to the data of each table.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) enum Packing {
    #[default]
    None,
    Gzip,
    Lz4,
    Zstd,
}

/// The data of a table as it flows by.
pub(super) enum Rows {
    Plain(Lines),
    Gzip(ZlibDecoder<Lines>),
    Zstd(Box<ZstdDecoder<'static, Lines>>),
    /// Packed in a way that is not undone here.
    Opaque,
}

impl Rows {
    pub(super) fn new(packing: Packing) -> io::Result<Self> {
        let lines = Lines::default();
        Ok(match packing {
            Packing::None => Self::Plain(lines),
            Packing::Gzip => Self::Gzip(ZlibDecoder::new(lines)),
            Packing::Zstd => Self::Zstd(Box::new(ZstdDecoder::new(lines)?)),
            Packing::Lz4 => Self::Opaque,
        })
    }

    pub(super) fn push(&mut self, bytes: &[u8]) -> io::Result<()> {
        match self {
            Self::Plain(lines) => lines.write_all(bytes),
            Self::Gzip(gzip) => gzip.write_all(bytes),
            Self::Zstd(zstd) => zstd.write_all(bytes),
            Self::Opaque => Ok(()),
        }
    }

    /// Returns what was seen, if it could be.
    pub(super) fn finish(self) -> io::Result<Option<Lines>> {
        Ok(match self {
            Self::Plain(lines) => Some(lines),
            Self::Gzip(gzip) => Some(gzip.finish()?),
            Self::Zstd(mut zstd) => {
                zstd.flush()?;
                Some(zstd.into_inner())
            }
            Self::Opaque => None,
        })
    }
}

/// Counts lines, and remembers how they end.
#[derive(Default)]
pub(super) struct Lines {
    newlines: u64,
    end: [u8; END_OF_ROWS.len()],
}

impl Lines {
    /// Returns how many rows there are, if they end as rows do.
    pub(super) fn rows(&self) -> Option<u64> {
        (self.end == *END_OF_ROWS).then(|| self.newlines - NEWLINES_AT_END)
    }
}

impl Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.newlines += bytes.iter().filter(|byte| **byte == b'\n').count() as u64;
        match bytes.last_chunk() {
            Some(last) => self.end = *last,
            None => {
                self.end.rotate_left(bytes.len());
                let kept = self.end.len() - bytes.len();
                self.end[kept..].copy_from_slice(bytes);
            }
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
