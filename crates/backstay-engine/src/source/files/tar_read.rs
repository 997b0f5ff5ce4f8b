//! Reading tar from hands that are not trusted: every length is bounded before anything is made of it.

use std::io::{self, BufRead, Read};
use std::ops::Range;

use tar::{EntryType, GnuExtSparseHeader, GnuSparseHeader, Header};

use super::tar_write::Member;

const BLOCK: u64 = 512;
/// Long names and pax records; xattrs may have 64 KiB each.
const MAX_SPECIAL_BYTES: u64 = 1 << 20;
/// Regions of one sparse file.
const MAX_REGIONS: usize = 1 << 20;

/// What is wrong with an archive.
#[derive(Debug)]
pub(in crate::source) enum TarError {
    /// The stream could not be read.
    Read(io::Error),
    /// The archive is not one that may be unpacked.
    Bad(String),
}

impl From<io::Error> for TarError {
    fn from(error: io::Error) -> Self {
        Self::Read(error)
    }
}

fn bad<T>(finding: impl Into<String>) -> Result<T, TarError> {
    Err(TarError::Bad(finding.into()))
}

/// A member as the archive announces it.
#[derive(Debug)]
pub(in crate::source) struct Announced {
    pub(in crate::source) member: Member,
    /// The file's size, holes included.
    pub(in crate::source) size: u64,
    /// Where its bytes go, in order.
    pub(in crate::source) regions: Vec<Range<u64>>,
}

impl Announced {
    /// Whether there are holes in it.
    pub(in crate::source) fn is_sparse(&self) -> bool {
        self.regions.as_slice() != std::slice::from_ref(&(0..self.size))
    }
}

/// Reads members one after the other.
pub(in crate::source) struct TarReader<R: BufRead> {
    input: R,
    /// Bytes of the present member that were not read yet, and the zeros behind them.
    unread: u64,
    padding: u64,
}

impl<R: BufRead> TarReader<R> {
    pub(in crate::source) fn new(input: R) -> Self {
        Self { input, unread: 0, padding: 0 }
    }

    /// Returns the next member, or `None` at the end of the archive. Unread bytes of the one before are skipped.
    pub(in crate::source) fn next(&mut self) -> Result<Option<Announced>, TarError> {
        let mut prefixes = Prefixes::default();
        loop {
            self.skip_rest()?;
            let Some(header) = self.header()? else { return Ok(None) };
            let size = header
                .entry_size()
                .map_err(|_| TarError::Bad("a size that is no number".to_owned()))?;
            match header.entry_type() {
                EntryType::GNULongName => prefixes.path = Some(until_nul(self.special(size)?)),
                EntryType::GNULongLink => prefixes.link = Some(until_nul(self.special(size)?)),
                EntryType::XHeader => prefixes.read_pax(&self.special(size)?)?,
                // Global records say nothing that we write.
                EntryType::XGlobalHeader => drop(self.special(size)?),
                _ => {
                    let size = prefixes.size.unwrap_or(size);
                    return self.announce(&header, size, prefixes).map(Some);
                }
            }
        }
    }

    /// Returns at least one of the next bytes of the present member and at most `limit`; what was used is to be consumed.
    pub(in crate::source) fn data(&mut self, limit: u64) -> Result<&[u8], TarError> {
        let wanted = usize::try_from(self.unread.min(limit)).unwrap_or(usize::MAX);
        let there = self.input.fill_buf()?;
        if there.is_empty() || wanted == 0 {
            return bad("the archive is cut short");
        }
        Ok(&there[..wanted.min(there.len())])
    }

    /// Passes over bytes that [`TarReader::data`] returned.
    pub(in crate::source) fn consume(&mut self, bytes: usize) {
        self.input.consume(bytes);
        self.unread -= bytes as u64;
    }

    /// Reads to the end of the stream: only there it is known to be whole.
    pub(in crate::source) fn finish(mut self) -> Result<(), TarError> {
        loop {
            let rest = self.input.fill_buf()?;
            if rest.is_empty() {
                return Ok(());
            }
            // Several archives one after the other: what reads one would pass over the others.
            if rest.iter().any(|byte| *byte != 0) {
                return bad(
                    "more follows after its end; if it is several archives, unpack them into one",
                );
            }
            let length = rest.len();
            self.input.consume(length);
        }
    }

    fn announce(
        &mut self,
        header: &Header,
        size: u64,
        prefixes: Prefixes,
    ) -> Result<Announced, TarError> {
        let number = |value: io::Result<u64>| {
            value
                .ok()
                .and_then(|v| u32::try_from(v).ok())
                .ok_or_else(|| TarError::Bad("an owner that is no number".to_owned()))
        };
        let mut member = Member {
            path: prefixes.path.unwrap_or_else(|| header.path_bytes().into_owned()),
            kind: header.entry_type(),
            mode: header
                .mode()
                .map_err(|_| TarError::Bad("a mode that is no number".to_owned()))?
                & 0o7777,
            uid: prefixes.uid.map_or_else(|| number(header.uid()), Ok)?,
            gid: prefixes.gid.map_or_else(|| number(header.gid()), Ok)?,
            mtime: (header.mtime().map_or(0, u64::cast_signed), 0),
            link: prefixes
                .link
                .unwrap_or_else(|| header.link_name_bytes().map(Into::into).unwrap_or_default()),
            xattrs: prefixes.xattrs,
        };
        if let Some(mtime) = prefixes.mtime {
            member.mtime = mtime;
        }
        let mut announced = Announced { size, regions: std::iter::once(0..size).collect(), member };
        if announced.member.kind == EntryType::GNUSparse {
            self.sparse(header, &mut announced)?;
            announced.member.kind = EntryType::Regular;
        }
        let has_bytes = announced.member.kind == EntryType::Regular;
        if !has_bytes && size > 0 {
            return bad("a member that is no file but has bytes");
        }
        (self.unread, self.padding) = (size, size.next_multiple_of(BLOCK) - size);
        Ok(announced)
    }

    fn sparse(&mut self, header: &Header, announced: &mut Announced) -> Result<(), TarError> {
        let Some(gnu) = header.as_gnu() else { return bad("a sparse file without a GNU header") };
        let real =
            gnu.real_size().map_err(|_| TarError::Bad("a size that is no number".to_owned()))?;
        let mut regions = Vec::new();
        collect_regions(&gnu.sparse, &mut regions)?;
        let mut extended = gnu.is_extended();
        while extended {
            let mut block = GnuExtSparseHeader::new();
            self.input.read_exact(block.as_mut_bytes())?;
            collect_regions(block.sparse(), &mut regions)?;
            extended = block.is_extended();
            if regions.len() > MAX_REGIONS {
                return bad("a sparse file with too many regions");
            }
        }
        let mut at = 0;
        let mut stored = 0_u64;
        for region in &regions {
            if region.start < at || region.end > real {
                return bad("regions of a sparse file that overlap or lie behind its end");
            }
            at = region.end;
            stored += region.end - region.start;
        }
        if stored != announced.size {
            return bad("a sparse file whose regions do not have its size");
        }
        (announced.size, announced.regions) = (real, regions);
        Ok(())
    }

    /// Returns the next header, or `None` at the two empty blocks that end an archive.
    fn header(&mut self) -> Result<Option<Header>, TarError> {
        let mut block = [0; BLOCK as usize];
        self.input.read_exact(&mut block).map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof => {
                TarError::Bad("the archive ends without its end mark".to_owned())
            }
            _ => TarError::Read(error),
        })?;
        if block.iter().all(|byte| *byte == 0) {
            return Ok(None);
        }
        let header = Header::from_byte_slice(&block).clone();
        let sum: u32 = block
            .iter()
            .enumerate()
            .map(|(i, b)| if (148..156).contains(&i) { 32 } else { u32::from(*b) })
            .sum();
        if header.cksum().ok() != Some(sum) {
            return bad("a header whose checksum is wrong");
        }
        Ok(Some(header))
    }

    fn special(&mut self, size: u64) -> Result<Vec<u8>, TarError> {
        if size > MAX_SPECIAL_BYTES {
            return bad(format!("a name or pax record of {size} bytes"));
        }
        let mut content = vec![0; size as usize];
        self.input.read_exact(&mut content)?;
        self.padding = size.next_multiple_of(BLOCK) - size;
        Ok(content)
    }

    fn skip_rest(&mut self) -> Result<(), TarError> {
        let rest = self.unread + self.padding;
        let skipped = io::copy(&mut (&mut self.input).take(rest), &mut io::sink())?;
        if skipped != rest {
            return bad("the archive is cut short");
        }
        (self.unread, self.padding) = (0, 0);
        Ok(())
    }
}

/// What stands before a member's own header.
#[derive(Default)]
struct Prefixes {
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    mtime: Option<(i64, u32)>,
    /// Numbers that are too large for the header itself.
    size: Option<u64>,
    uid: Option<u32>,
    gid: Option<u32>,
    xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

impl Prefixes {
    fn read_pax(&mut self, mut records: &[u8]) -> Result<(), TarError> {
        while !records.is_empty() {
            let Some((record, rest)) = split_record(records) else {
                return bad("a pax record of a wrong length");
            };
            records = rest;
            let Some(equals) = record.iter().position(|byte| *byte == b'=') else {
                return bad("a pax record without =");
            };
            let (key, value) = (&record[..equals], &record[equals + 1..]);
            match key {
                b"path" => self.path = Some(value.to_vec()),
                b"linkpath" => self.link = Some(value.to_vec()),
                b"mtime" => {
                    self.mtime = Some(
                        parse_time(value)
                            .ok_or(TarError::Bad("a time that is no number".to_owned()))?,
                    );
                }
                b"size" => self.size = Some(number(key, value)?),
                b"uid" => self.uid = Some(number(key, value)?),
                b"gid" => self.gid = Some(number(key, value)?),
                _ if key.starts_with(b"GNU.sparse.") => {
                    return bad(
                        "a sparse file in the format of pax (make the tar without --sparse, or with --format=gnu)",
                    );
                }
                _ => {
                    if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
                        self.xattrs.push((name.to_vec(), value.to_vec()));
                    }
                }
            }
        }
        Ok(())
    }
}

fn number<T: std::str::FromStr>(key: &[u8], value: &[u8]) -> Result<T, TarError> {
    let number = std::str::from_utf8(value).ok().and_then(|text| text.parse().ok());
    number.ok_or_else(|| TarError::Bad(format!("a {} that is no number", key.escape_ascii())))
}

fn split_record(records: &[u8]) -> Option<(&[u8], &[u8])> {
    let space = records.iter().position(|byte| *byte == b' ')?;
    let length: usize = std::str::from_utf8(records.get(..space)?).ok()?.parse().ok()?;
    let record = records.get(space + 1..length)?.strip_suffix(b"\n")?;
    Some((record, records.get(length..)?))
}

fn parse_time(value: &[u8]) -> Option<(i64, u32)> {
    let text = std::str::from_utf8(value).ok()?;
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let nanos: u32 = format!("{fraction:0<9}").get(..9)?.parse().ok()?;
    let secs: i64 = whole.parse().ok()?;
    // Before 1970 the fraction counts away from zero; a file's time counts up from the second.
    Some(if text.starts_with('-') && nanos > 0 {
        (secs - 1, 1_000_000_000 - nanos)
    } else {
        (secs, nanos)
    })
}

fn collect_regions(
    slots: &[GnuSparseHeader],
    regions: &mut Vec<Range<u64>>,
) -> Result<(), TarError> {
    for slot in slots.iter().filter(|slot| !slot.is_empty()) {
        let place = slot.offset().ok().zip(slot.length().ok());
        let region = place.and_then(|(start, length)| Some(start..start.checked_add(length)?));
        match region {
            Some(region) => regions.push(region),
            None => return bad("a region of a sparse file that is no number"),
        }
    }
    Ok(())
}

fn until_nul(mut name: Vec<u8>) -> Vec<u8> {
    if let Some(nul) = name.iter().position(|byte| *byte == 0) {
        name.truncate(nul);
    }
    name
}
