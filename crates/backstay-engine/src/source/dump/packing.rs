//! What was done to a whole dump after it was made.

use std::fmt;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::Path;

use flate2::bufread::MultiGzDecoder;

use super::refused;
use crate::part::CHUNK_BYTES;
use crate::source::SourceError;

/// How a dump is packed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Packing {
    /// Not at all.
    None,
    /// By gzip.
    Gzip,
    /// By zstd, with a checksum of what was packed or without.
    Zstd {
        /// Whether damage shows.
        has_checksum: bool,
    },
}

impl fmt::Display for Packing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::None => "no packing",
            Self::Gzip => "gzip",
            Self::Zstd { .. } => "zstd",
        })
    }
}

/// How packed files begin that are not unpacked here, and what unpacks them.
const FOREIGN: [(&[u8], &str); 4] = [
    (b"BZh", "bunzip2"),
    (b"\xFD7zXZ\0", "unxz"),
    (b"PK\x03\x04", "unzip"),
    (b"\x04\x22\x4D\x18", "unlz4"),
];

/// In the descriptor of a frame of zstd: a checksum follows at its end (RFC 8878, 3.1.1.1.1).
const ZSTD_CHECKSUM: u8 = 0b100;

impl Packing {
    /// Tells a file's packing by how it begins.
    pub(super) fn of(path: &Path, head: &[u8]) -> Result<Self, SourceError> {
        if let Some((_, program)) = FOREIGN.iter().find(|(magic, _)| head.starts_with(magic)) {
            return Err(refused(path, format!("it is packed; unpack it first, with `{program}`")));
        }
        Ok(match head {
            [0x1F, 0x8B, ..] => Self::Gzip,
            [0x28, 0xB5, 0x2F, 0xFD, descriptor, ..] => {
                Self::Zstd { has_checksum: descriptor & ZSTD_CHECKSUM != 0 }
            }
            _ => Self::None,
        })
    }

    /// Opens a file, and unpacks it on the way. Checksums of packings are checked. Blocks.
    pub(super) fn open(self, path: &Path) -> Result<Box<dyn BufRead + Send>, SourceError> {
        let file = File::open(path).map_err(|cause| SourceError::io("open", path, cause))?;
        let file = BufReader::with_capacity(CHUNK_BYTES, file);
        Ok(match self {
            Self::None => Box::new(file),
            Self::Gzip => {
                Box::new(BufReader::with_capacity(CHUNK_BYTES, MultiGzDecoder::new(file)))
            }
            Self::Zstd { .. } => {
                let zstd = zstd::stream::read::Decoder::with_buffer(file);
                let zstd = zstd.map_err(|cause| SourceError::io("unpack", path, cause))?;
                Box::new(BufReader::with_capacity(CHUNK_BYTES, zstd))
            }
        })
    }
}
