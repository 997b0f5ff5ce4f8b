//! Archives of `pg_dump` that are several files, in a directory or in a tar: every table of the contents must be there to its last
//! line, as in the custom format.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, BufRead, BufReader, Read as _, Write as _};
use std::path::Path;

use super::archive::{self, ArchiveError, Entry, Foreign};
use super::archive_rows::Lines;
use crate::part::CHUNK_BYTES;
use crate::source::dump::POSTGRES_CONTENTS;
use crate::source::files::tar_read::{TarError, TarReader};

/// A table of contents with more bytes than this is none.
const MAX_CONTENTS_BYTES: u64 = 256 << 20;
/// What a file of a directory may be packed by; its name then ends so. The last cannot be unpacked here.
const GZIP: &str = "gz";
const ZSTD: &str = "zst";
const LZ4: &str = "lz4";

fn bad<T>(finding: impl Into<String>) -> Result<T, ArchiveError> {
    Err(ArchiveError::Bad(finding.into()))
}

/// Reads a directory. Blocks.
pub(super) fn read_directory(folder: &Path) -> Result<Foreign, ArchiveError> {
    let file = fs::File::open(folder.join(POSTGRES_CONTENTS))?;
    let (mut foreign, entries) = archive::read_contents(BufReader::new(file))?;
    for entry in entries {
        // The name comes from outside: it is one of this folder, or none.
        if entry.file.contains('/') {
            return bad(format!("the data of {} is in another folder", entry.bytes.shown()));
        }
        let found = ["", GZIP, ZSTD, LZ4].into_iter().find_map(|suffix| {
            let dot = if suffix.is_empty() { "" } else { "." };
            let path = folder.join(format!("{}{dot}{suffix}", entry.file));
            Some((suffix, fs::File::open(path).ok()?))
        });
        let Some((suffix, file)) = found else {
            return bad(format!("the data of {} is missing", entry.bytes.shown()));
        };
        let file = BufReader::with_capacity(CHUNK_BYTES, file);
        let lines = match suffix {
            "" => Some(count(file)),
            GZIP => Some(count(flate2::bufread::MultiGzDecoder::new(file))),
            ZSTD => Some(count(zstd::stream::read::Decoder::with_buffer(file)?)),
            _ => None,
        };
        let lines = lines.transpose().map_err(|error| {
            ArchiveError::Bad(format!("the data of {}: {error}", entry.bytes.shown()))
        })?;
        add(&mut foreign, entry, lines)?;
    }
    Ok(foreign)
}

/// Reads a tar to its end mark. Blocks.
pub(super) fn read_tar(input: impl BufRead) -> Result<Foreign, ArchiveError> {
    let mut tar = TarReader::new(input);
    let (mut foreign, mut announced) = (Foreign::default(), BTreeMap::new());
    while let Some(member) = tar.next().map_err(explain)? {
        let name = String::from_utf8_lossy(&member.member.path).into_owned();
        let mut data = Member { tar: &mut tar, left: member.size };
        if name == POSTGRES_CONTENTS {
            let mut contents = Vec::new();
            data.by_ref().take(MAX_CONTENTS_BYTES).read_to_end(&mut contents)?;
            let (said, entries) = archive::read_contents(contents.as_slice())?;
            foreign = said;
            announced.extend(entries.into_iter().map(|entry| (entry.file.clone(), entry)));
        } else if let Some(entry) = announced.remove(&name) {
            let lines = count(data)?;
            add(&mut foreign, entry, Some(lines))?;
        }
    }
    tar.finish().map_err(explain)?;
    // Large objects are told by a list of their own.
    announced.retain(|_, entry| entry.has_rows);
    match announced.values().next() {
        Some(missing) => bad(format!("the data of {} is missing", missing.bytes.shown())),
        None => Ok(foreign),
    }
}

fn explain(error: TarError) -> ArchiveError {
    match error {
        TarError::Read(error) => ArchiveError::Read(error),
        TarError::Bad(finding) => ArchiveError::Bad(finding),
    }
}

fn count(mut data: impl io::Read) -> io::Result<Lines> {
    let mut lines = Lines::default();
    io::copy(&mut data, &mut lines)?;
    lines.flush()?;
    Ok(lines)
}

/// Adds a table with its rows, if it has any and they were counted.
fn add(foreign: &mut Foreign, entry: Entry, lines: Option<Lines>) -> Result<(), ArchiveError> {
    if entry.kind != "TABLE DATA" {
        return Ok(());
    }
    let rows = match lines.filter(|_| entry.has_rows).map(|lines| lines.rows()) {
        Some(None) => return bad(format!("the rows of {} have no end", entry.bytes.shown())),
        Some(rows) => rows,
        None => None,
    };
    foreign.tables.push((entry.bytes, rows));
    Ok(())
}

/// The bytes of a member of a tar.
struct Member<'a, R: BufRead> {
    tar: &'a mut TarReader<R>,
    left: u64,
}

impl<R: BufRead> io::Read for Member<'_, R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        if self.left == 0 || out.is_empty() {
            return Ok(0);
        }
        let data = self.tar.data(self.left.min(out.len() as u64)).map_err(|error| match error {
            TarError::Read(error) => error,
            TarError::Bad(finding) => io::Error::new(io::ErrorKind::InvalidData, finding),
        })?;
        let read = data.len();
        out[..read].copy_from_slice(data);
        self.tar.consume(read);
        self.left -= read as u64;
        Ok(read)
    }
}
