//! Tar as GNU tar, bsdtar and Python read it: GNU headers for raw and long names and for sparse files, pax records for
//! what has no field there (extended attributes, times between seconds or before 1970).

use std::io::{self, Write};
use std::ops::Range;

use tar::{EntryType, GnuExtSparseHeader, Header};

const BLOCK: u64 = 512;
/// Names up to this length stand in the header itself.
const SHORT_NAME: usize = 100;
/// Sparse regions in a header, and in each block that follows it.
const REGIONS_IN_HEADER: usize = 4;
const REGIONS_IN_BLOCK: usize = 21;

/// What a member is, apart from its bytes.
#[derive(Debug, Clone)]
pub(in crate::source) struct Member {
    pub(in crate::source) path: Vec<u8>,
    pub(in crate::source) kind: EntryType,
    pub(in crate::source) mode: u32,
    pub(in crate::source) uid: u32,
    pub(in crate::source) gid: u32,
    pub(in crate::source) mtime: (i64, u32),
    /// Where a symbolic or hard link points.
    pub(in crate::source) link: Vec<u8>,
    pub(in crate::source) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

/// Writes members.
pub(super) struct TarWriter<W: Write> {
    out: W,
    /// Bytes of the present member that are still owed.
    owed: u64,
    padding: u64,
}

impl<W: Write> TarWriter<W> {
    pub(super) fn new(out: W) -> Self {
        Self { out, owed: 0, padding: 0 }
    }

    /// Writes a member's header; `size` bytes must follow.
    pub(super) fn begin(&mut self, member: &Member, size: u64) -> io::Result<()> {
        self.write_prefixes(member)?;
        let mut header = header(member, size);
        header.set_cksum();
        self.out.write_all(header.as_bytes())?;
        self.expect(size);
        Ok(())
    }

    /// Writes the header of a file with holes; the bytes of all regions must follow.
    pub(super) fn begin_sparse(
        &mut self,
        member: &Member,
        size: u64,
        regions: &[Range<u64>],
    ) -> io::Result<()> {
        let stored = regions.iter().map(|region| region.end - region.start).sum();
        // The end of the file is a region too, if only an empty one: readers take its size from there.
        let mut regions = regions.to_vec();
        if regions.last().is_none_or(|last| last.end < size) {
            regions.push(size..size);
        }
        self.write_prefixes(member)?;
        let mut header = header(&Member { kind: EntryType::GNUSparse, ..member.clone() }, stored);
        let (first, rest) = regions.split_at(regions.len().min(REGIONS_IN_HEADER));
        let gnu = header.as_gnu_mut().expect("made as a GNU header");
        for (slot, region) in gnu.sparse.iter_mut().zip(first) {
            slot.set_offset(region.start);
            slot.set_length(region.end - region.start);
        }
        gnu.set_real_size(size);
        gnu.set_is_extended(!rest.is_empty());
        header.set_cksum();
        self.out.write_all(header.as_bytes())?;
        let mut blocks = rest.chunks(REGIONS_IN_BLOCK).peekable();
        while let Some(block) = blocks.next() {
            let mut extended = GnuExtSparseHeader::new();
            for (slot, region) in extended.sparse_mut().iter_mut().zip(block) {
                slot.set_offset(region.start);
                slot.set_length(region.end - region.start);
            }
            extended.set_is_extended(blocks.peek().is_some());
            self.out.write_all(extended.as_bytes())?;
        }
        self.expect(stored);
        Ok(())
    }

    /// Writes the next bytes of the present member. Returns how many of them it had room for.
    pub(super) fn data(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let taken = usize::try_from(self.owed).unwrap_or(usize::MAX).min(bytes.len());
        self.out.write_all(&bytes[..taken])?;
        self.owed -= taken as u64;
        Ok(taken)
    }

    /// Ends the present member; what is owed is filled with zeros. Returns how much that was.
    pub(super) fn end(&mut self) -> io::Result<u64> {
        let missing = self.owed;
        io::copy(&mut io::Read::take(io::repeat(0), missing + self.padding), &mut self.out)?;
        (self.owed, self.padding) = (0, 0);
        Ok(missing)
    }

    /// Ends the archive and returns the output.
    pub(super) fn finish(mut self) -> io::Result<W> {
        self.out.write_all(&[0; 2 * BLOCK as usize])?;
        Ok(self.out)
    }

    fn expect(&mut self, size: u64) {
        self.owed = size;
        self.padding = size.next_multiple_of(BLOCK) - size;
    }

    fn write_prefixes(&mut self, member: &Member) -> io::Result<()> {
        let records = pax_records(member);
        if !records.is_empty() {
            self.write_special(EntryType::XHeader, &records)?;
        }
        for (kind, name) in
            [(EntryType::GNULongLink, &member.link), (EntryType::GNULongName, &member.path)]
        {
            if name.len() > SHORT_NAME {
                self.write_special(kind, &[name.as_slice(), b"\0"].concat())?;
            }
        }
        Ok(())
    }

    fn write_special(&mut self, kind: EntryType, content: &[u8]) -> io::Result<()> {
        let special = Member {
            path: b"././@LongLink".to_vec(),
            kind,
            mode: 0o644,
            uid: 0,
            gid: 0,
            mtime: (0, 0),
            link: Vec::new(),
            xattrs: Vec::new(),
        };
        let mut header = header(&special, content.len() as u64);
        header.set_cksum();
        self.out.write_all(header.as_bytes())?;
        self.expect(content.len() as u64);
        self.data(content)?;
        self.end().map(drop)
    }
}

fn header(member: &Member, size: u64) -> Header {
    let mut header = Header::new_gnu();
    let gnu = header.as_gnu_mut().expect("made as a GNU header");
    copy_name(&mut gnu.name, &member.path);
    copy_name(&mut gnu.linkname, &member.link);
    header.set_entry_type(member.kind);
    header.set_mode(member.mode);
    header.set_uid(u64::from(member.uid));
    header.set_gid(u64::from(member.gid));
    header.set_mtime(u64::try_from(member.mtime.0).unwrap_or(0));
    header.set_size(size);
    header
}

fn copy_name(field: &mut [u8; SHORT_NAME], name: &[u8]) {
    let shown = name.len().min(SHORT_NAME);
    field[..shown].copy_from_slice(&name[..shown]);
}

fn pax_records(member: &Member) -> Vec<u8> {
    let mut records = Vec::new();
    let (secs, nanos) = member.mtime;
    if nanos != 0 || secs < 0 {
        push_record(&mut records, b"mtime", decimal_time(secs, nanos).as_bytes());
    }
    for (name, value) in &member.xattrs {
        push_record(&mut records, &[b"SCHILY.xattr.".as_slice(), name].concat(), value);
    }
    records
}

/// Seconds since 1970 as a decimal number: before 1970 the fraction counts away from zero.
fn decimal_time(secs: i64, nanos: u32) -> String {
    if secs < 0 && nanos > 0 {
        format!("-{}.{:09}", -(secs + 1), 1_000_000_000 - nanos)
    } else {
        format!("{secs}.{nanos:09}")
    }
}

/// A record begins with its own length in decimal digits, the digits included.
fn push_record(records: &mut Vec<u8>, key: &[u8], value: &[u8]) {
    let rest = key.len() + value.len() + 3;
    let mut length = rest + 1;
    while rest + length.to_string().len() != length {
        length = rest + length.to_string().len();
    }
    records.extend_from_slice(format!("{length} ").as_bytes());
    records.extend_from_slice(&[key, b"=", value, b"\n"].concat());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_count_their_own_digits() {
        for (value, expected) in [(1, "8 k=v\n"), (92, "99 "), (93, "101 ")] {
            let mut records = Vec::new();
            push_record(&mut records, b"k", &vec![b'v'; value]);
            let text = String::from_utf8(records).unwrap();
            let length: usize = text.split(' ').next().unwrap().parse().unwrap();
            assert_eq!(length, text.len(), "{expected}");
        }
        assert_eq!(decimal_time(-1, 500_000_000), "-0.500000000");
        assert_eq!(decimal_time(-2, 0), "-2.000000000");
    }
}
