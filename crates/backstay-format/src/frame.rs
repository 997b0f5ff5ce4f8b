//! Sealed objects: AES-256-GCM in frames, so that a stream of any length is authenticated piece by piece.
//!
//! The STREAM construction: the nonce is a counter and a last-frame flag, so frames cannot be dropped, repeated,
//! reordered or cut off. Each object has a key of its own, derived from the data key and a random salt. The header is
//! part of every frame's additional data and says where the object belongs, so objects cannot be swapped.

use std::io::{self, Read, Write};

use aws_lc_rs::aead::{Aad, LessSafeKey, Nonce};

use crate::{DataKey, KeyError, KeyId, Keyring, Sha256};

/// Plain bytes of a full frame that this program writes.
pub const FRAME_BYTES: usize = 1 << FRAME_LOG2;

const FRAME_LOG2: u8 = 18;
/// Frame sizes that a reader takes: 64 KiB to 1 MiB.
const FRAME_LOG2_RANGE: std::ops::RangeInclusive<u8> = 16..=20;
const MAGIC: &[u8; 8] = b"BACKSTAY";
const VERSION: u8 = 1;
const TAG_BYTES: usize = 16;
const FIXED_HEADER_BYTES: usize = 56;
/// Vault id, backup id and a part name fit in far less.
const MAX_BINDING_BYTES: usize = 1024;

/// What a sealed object is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// A part of a backup.
    Part,
    /// The sealed section of a manifest.
    ManifestDetails,
    /// The index of a source.
    Index,
}

impl Role {
    fn to_byte(self) -> u8 {
        match self {
            Self::Part => 1,
            Self::ManifestDetails => 2,
            Self::Index => 3,
        }
    }
}

/// Where a sealed object belongs; bound into every frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Binding {
    /// What it is.
    pub role: Role,
    /// Vault, owner and name as one text, its lines in a fixed order; see `docs/format.md`.
    pub place: String,
}

/// Why a sealed object could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// The bytes do not begin as a sealed object.
    #[error("not a sealed Backstay object: {finding}")]
    NotSealed {
        /// What was found.
        finding: &'static str,
    },
    /// Sealed by a newer program.
    #[error(
        "sealed in version {found} of the format, this program opens version {VERSION}; use a newer backstay"
    )]
    Newer {
        /// The version found.
        found: u8,
    },
    /// The object belongs elsewhere.
    #[error(
        "this object belongs to another place: expected {expected:?}, its header says {found:?}"
    )]
    WrongPlace {
        /// Where it should belong.
        expected: String,
        /// Where it says it belongs.
        found: String,
    },
    /// The key is missing.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// A frame does not authenticate.
    #[error("frame {frame} does not authenticate: the object was altered or cut short")]
    Altered {
        /// Which frame, from 0.
        frame: u64,
    },
    /// The bytes could not be read.
    #[error("cannot read the sealed bytes")]
    Read(#[source] io::Error),
}

/// Seals what is written to it.
///
/// Without [`SealWriter::finish`] the output has no last frame and does not open.
pub struct SealWriter<W: Write> {
    out: W,
    key: LessSafeKey,
    header_digest: [u8; 32],
    frame: Vec<u8>,
    counter: u32,
}

impl<W: Write> SealWriter<W> {
    /// Writes the header. `salt` must be random: it makes the object's key.
    pub fn new(mut out: W, key: &DataKey, binding: &Binding, salt: [u8; 32]) -> io::Result<Self> {
        let header = Header {
            role: binding.role.to_byte(),
            frame_log2: FRAME_LOG2,
            key: key.id(),
            salt,
            place: binding.place.clone(),
        };
        let bytes = header.encode();
        out.write_all(&bytes)?;
        Ok(Self {
            out,
            key: key.object_key(&salt),
            header_digest: *Sha256::of(&bytes).as_bytes(),
            frame: Vec::with_capacity(FRAME_BYTES + TAG_BYTES),
            counter: 0,
        })
    }

    /// Seals the last frame and returns the output.
    pub fn finish(mut self) -> io::Result<W> {
        self.seal_frame(true)?;
        Ok(self.out)
    }

    fn seal_frame(&mut self, last: bool) -> io::Result<()> {
        self.key
            .seal_in_place_append_tag(
                nonce(self.counter, last),
                Aad::from(self.header_digest),
                &mut self.frame,
            )
            .map_err(|_| io::Error::other("cannot seal a frame"))?;
        self.out.write_all(&self.frame)?;
        self.frame.clear();
        if !last {
            self.counter = self
                .counter
                .checked_add(1)
                .ok_or_else(|| io::Error::other("a sealed object has at most 2^32 frames"))?;
        }
        Ok(())
    }
}

impl<W: Write> Write for SealWriter<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        // A full frame waits until more comes: only then it is known not to be the last.
        if self.frame.len() == FRAME_BYTES && !bytes.is_empty() {
            self.seal_frame(false)?;
        }
        let taken = bytes.len().min(FRAME_BYTES - self.frame.len());
        self.frame.extend(bytes.iter().take(taken));
        Ok(taken)
    }

    /// Does nothing: a frame is sealed when it is full, and by [`SealWriter::finish`].
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Opens what a [`SealWriter`] sealed. Gives out only bytes that were authenticated.
///
/// Errors of `Read` carry a [`FrameError`].
pub struct OpenReader<R: Read> {
    input: R,
    key: LessSafeKey,
    header_digest: [u8; 32],
    place: String,
    frame_bytes: usize,
    /// Sealed bytes read ahead: one frame and one byte more, to know whether it is the last.
    sealed: Vec<u8>,
    plain: Vec<u8>,
    given: usize,
    counter: u64,
    ended: bool,
}

impl<R: Read> OpenReader<R> {
    /// Reads the header, and checks the place if one is expected (offline nobody knows it).
    pub fn new(
        mut input: R,
        keyring: &Keyring,
        expected: Option<&Binding>,
    ) -> Result<Self, FrameError> {
        let (header, bytes) = Header::read(&mut input)?;
        if let Some(expected) = expected
            && (expected.place != header.place || expected.role.to_byte() != header.role)
        {
            return Err(FrameError::WrongPlace {
                expected: expected.place.clone(),
                found: header.place,
            });
        }
        let key = keyring.get(&header.key)?.object_key(&header.salt);
        Ok(Self {
            input,
            key,
            header_digest: *Sha256::of(&bytes).as_bytes(),
            place: header.place,
            frame_bytes: 1 << header.frame_log2,
            sealed: Vec::new(),
            plain: Vec::new(),
            given: 0,
            counter: 0,
            ended: false,
        })
    }

    /// Returns where the object says that it belongs; authenticated by the first frame, so believe it after a read.
    pub fn place(&self) -> &str {
        &self.place
    }

    fn next_frame(&mut self) -> Result<(), FrameError> {
        let full = self.frame_bytes + TAG_BYTES;
        let wanted = (full + 1).saturating_sub(self.sealed.len()) as u64;
        (&mut self.input).take(wanted).read_to_end(&mut self.sealed).map_err(FrameError::Read)?;
        let last = self.sealed.len() <= full;
        let ahead = if last { Vec::new() } else { self.sealed.split_off(full) };
        self.plain = std::mem::replace(&mut self.sealed, ahead);
        let altered = FrameError::Altered { frame: self.counter };
        let Ok(counter) = u32::try_from(self.counter) else { return Err(altered) };
        let opened = self
            .key
            .open_in_place(nonce(counter, last), Aad::from(self.header_digest), &mut self.plain)
            .map(|plain| plain.len());
        // Nothing that failed to authenticate may be given out.
        let Ok(plain_bytes) = opened else {
            self.plain.clear();
            return Err(altered);
        };
        self.plain.truncate(plain_bytes);
        self.given = 0;
        self.counter += 1;
        self.ended = last;
        Ok(())
    }
}

impl<R: Read> Read for OpenReader<R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        while self.given == self.plain.len() && !self.ended {
            self.next_frame().map_err(io::Error::other)?;
        }
        let mut rest = self.plain.get(self.given..).unwrap_or_default();
        let taken = rest.read(out)?;
        self.given += taken;
        Ok(taken)
    }
}

/// Seals bytes that are at hand.
pub fn seal_bytes(key: &DataKey, binding: &Binding, salt: [u8; 32], plain: &[u8]) -> Vec<u8> {
    let sealed = SealWriter::new(Vec::new(), key, binding, salt).and_then(|mut writer| {
        writer.write_all(plain)?;
        writer.finish()
    });
    sealed.expect("writing to memory does not fail, and bytes at hand are few enough frames")
}

/// Opens bytes that are at hand.
pub fn open_bytes(
    sealed: &[u8],
    keyring: &Keyring,
    expected: Option<&Binding>,
) -> Result<Vec<u8>, FrameError> {
    let mut reader = OpenReader::new(sealed, keyring, expected)?;
    let mut plain = Vec::new();
    reader.read_to_end(&mut plain).map_err(|error| match error.downcast::<FrameError>() {
        Ok(frame) => frame,
        Err(other) => FrameError::Read(other),
    })?;
    Ok(plain)
}

fn nonce(counter: u32, last: bool) -> Nonce {
    let mut bytes = [0; 12];
    bytes[7..11].copy_from_slice(&counter.to_be_bytes());
    bytes[11] = u8::from(last);
    Nonce::assume_unique_for_key(bytes)
}

struct Header {
    role: u8,
    frame_log2: u8,
    key: KeyId,
    salt: [u8; 32],
    place: String,
}

impl Header {
    fn encode(&self) -> Vec<u8> {
        let place = self.place.as_bytes();
        let length =
            u16::try_from(place.len()).expect("places are checked names, far below 64 KiB");
        let mut bytes = Vec::with_capacity(FIXED_HEADER_BYTES + place.len());
        bytes.extend_from_slice(MAGIC);
        bytes.extend_from_slice(&[VERSION, self.role, self.frame_log2, 0]);
        bytes.extend_from_slice(&self.key.bytes());
        bytes.extend_from_slice(&self.salt);
        bytes.extend_from_slice(&length.to_be_bytes());
        bytes.extend_from_slice(place);
        bytes
    }

    fn read(input: &mut impl Read) -> Result<(Self, Vec<u8>), FrameError> {
        let mut fixed = [0; FIXED_HEADER_BYTES];
        read_all(input, &mut fixed)?;
        let [magic @ .., _, _, _, _] = fixed.first_chunk::<12>().expect("the header is longer");
        let [.., version, role, frame_log2, _] =
            fixed.first_chunk::<12>().expect("the header is longer");
        if magic != MAGIC {
            return Err(FrameError::NotSealed {
                finding: "it does not begin with the mark BACKSTAY",
            });
        }
        if *version != VERSION {
            return Err(FrameError::Newer { found: *version });
        }
        if !FRAME_LOG2_RANGE.contains(frame_log2) {
            return Err(FrameError::NotSealed { finding: "its frame size is out of range" });
        }
        let key: [u8; 10] = fixed[12..22].try_into().expect("ten bytes");
        let salt: [u8; 32] = fixed[22..54].try_into().expect("32 bytes");
        let length = usize::from(u16::from_be_bytes([fixed[54], fixed[55]]));
        if length > MAX_BINDING_BYTES {
            return Err(FrameError::NotSealed { finding: "its place is too long" });
        }
        let mut place = vec![0; length];
        read_all(input, &mut place)?;
        let place = String::from_utf8(place)
            .map_err(|_| FrameError::NotSealed { finding: "its place is not text" })?;
        let header = Self {
            role: *role,
            frame_log2: *frame_log2,
            key: KeyId::from_derived(key),
            salt,
            place,
        };
        let bytes = header.encode();
        // The reserved byte is zero in `encode`: any other value fails to authenticate.
        let mut seen = fixed.to_vec();
        seen.extend_from_slice(header.place.as_bytes());
        if seen != bytes {
            return Err(FrameError::NotSealed { finding: "a reserved byte is set" });
        }
        Ok((header, bytes))
    }
}

fn read_all(input: &mut impl Read, into: &mut [u8]) -> Result<(), FrameError> {
    input.read_exact(into).map_err(|error| match error.kind() {
        io::ErrorKind::UnexpectedEof => {
            FrameError::NotSealed { finding: "it is shorter than a header" }
        }
        _ => FrameError::Read(error),
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::RecoveryKey;

    fn ring(byte: u8) -> Keyring {
        let mut ring = Keyring::new(RecoveryKey::new([0; 32]));
        ring.add(DataKey::new([byte; 32]), "2026-01-01T00:00:00Z".parse().unwrap());
        ring
    }

    fn place(text: &str) -> Binding {
        Binding { role: Role::Part, place: text.to_owned() }
    }

    fn sealed(plain: &[u8]) -> Vec<u8> {
        seal_bytes(&DataKey::new([1; 32]), &place("a"), [3; 32], plain)
    }

    /// Lengths around the borders of frames, where STREAM code goes wrong.
    const LENGTHS: [usize; 6] =
        [0, 1, FRAME_BYTES - 1, FRAME_BYTES, FRAME_BYTES + 1, 3 * FRAME_BYTES];

    #[test]
    fn opens_what_it_sealed_at_every_border() {
        for length in LENGTHS {
            let plain: Vec<u8> = (0..length).map(|i| (i % 251) as u8).collect();
            let sealed = sealed(&plain);
            assert_eq!(open_bytes(&sealed, &ring(1), Some(&place("a"))).unwrap(), plain);
            assert_eq!(open_bytes(&sealed, &ring(1), None).unwrap(), plain);
        }
    }

    #[test]
    fn cut_at_a_frame_border_is_noticed() {
        let sealed = sealed(&vec![7; 3 * FRAME_BYTES]);
        let header = FIXED_HEADER_BYTES + 1;
        for frames in 0..3 {
            let cut = &sealed[..header + frames * (FRAME_BYTES + TAG_BYTES)];
            assert!(
                matches!(open_bytes(cut, &ring(1), None), Err(FrameError::Altered { .. })),
                "{frames}"
            );
        }
        let mut longer = sealed.clone();
        longer.push(0);
        assert!(open_bytes(&longer, &ring(1), None).is_err());
    }

    #[test]
    fn frames_cannot_change_places() {
        let sealed = sealed(&vec![7; 3 * FRAME_BYTES]);
        let (header, frame) = (FIXED_HEADER_BYTES + 1, FRAME_BYTES + TAG_BYTES);
        let mut swapped = sealed[..header].to_vec();
        swapped.extend_from_slice(&sealed[header + frame..header + 2 * frame]);
        swapped.extend_from_slice(&sealed[header..header + frame]);
        swapped.extend_from_slice(&sealed[header + 2 * frame..]);
        assert!(matches!(
            open_bytes(&swapped, &ring(1), None),
            Err(FrameError::Altered { frame: 0 })
        ));
    }

    #[test]
    fn every_flipped_bit_of_a_small_object_is_noticed() {
        let sealed = sealed(b"hello");
        for bit in 0..sealed.len() * 8 {
            let mut bad = sealed.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(open_bytes(&bad, &ring(1), None).is_err(), "bit {bit}");
        }
    }

    #[test]
    fn wrong_key_and_wrong_place_have_errors_of_their_own() {
        let sealed = sealed(b"hello");
        assert!(matches!(
            open_bytes(&sealed, &ring(2), None),
            Err(FrameError::Key(KeyError::Missing { .. }))
        ));
        assert!(matches!(
            open_bytes(&sealed, &ring(1), Some(&place("b"))),
            Err(FrameError::WrongPlace { .. })
        ));
        let index = Binding { role: Role::Index, place: "a".to_owned() };
        assert!(matches!(
            open_bytes(&sealed, &ring(1), Some(&index)),
            Err(FrameError::WrongPlace { .. })
        ));
    }

    /// Bytes computed with Python's `cryptography` by the text of `docs/format.md`: see `testdata/frame_vector.py`.
    #[test]
    fn agrees_with_an_independent_implementation() {
        let expected = include_str!("../testdata/frame_vector.hex").trim();
        assert_eq!(hex::encode(sealed(b"hello")), expected);
    }

    proptest! {
        #[test]
        fn hostile_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _refused = open_bytes(&bytes, &ring(1), None);
            let mut marked = MAGIC.to_vec();
            marked.extend_from_slice(&bytes);
            prop_assert!(open_bytes(&marked, &ring(1), None).is_err());
        }
    }
}
