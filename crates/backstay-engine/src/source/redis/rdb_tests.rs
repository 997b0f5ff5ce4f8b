//! Files as servers write them, whole and spoilt; and shapes that no server of the tests writes.

use std::io;

use bytes::Bytes;

use super::rdb::{Chunks, Item, Reader};
use super::value::type_of;

/// Written by Redis 7.0.15.
const FILE: &[u8] = include_bytes!("../../../testdata/redis-7.0.rdb");

/// Gives a file in pieces of this size.
struct Pieces<'a>(std::slice::Chunks<'a, u8>);

impl Chunks for Pieces<'_> {
    fn next(&mut self) -> io::Result<Option<Bytes>> {
        Ok(self.0.next().map(Bytes::copy_from_slice))
    }
}

/// Walks through a file. Returns keys with their types, and where databases and functions stand.
fn walk(file: &[u8], piece: usize) -> io::Result<Vec<String>> {
    let mut reader = Reader::new(Pieces(file.chunks(piece)), io::sink())?;
    let mut found = Vec::new();
    loop {
        match reader.next()? {
            Item::Database(number) => found.push(format!("database {number}")),
            Item::Key(key) => {
                reader.value(key.encoding)?;
                let name = key.name.escape_ascii();
                let kind = type_of(key.encoding).unwrap_or("?");
                let expires = key.expires.map(|time| format!(" until {time}"));
                found.push(format!("{kind} {name}{}", expires.unwrap_or_default()));
            }
            Item::Function(code) => found.push(format!("function of {} bytes", code.len())),
            Item::ModuleData => found.push("module".to_owned()),
            Item::End => return Ok(found),
        }
    }
}

#[test]
fn real_file_is_read_to_its_end_however_it_is_divided() {
    let whole = walk(FILE, FILE.len()).unwrap();
    let of = |word: &str| whole.iter().filter(|line| line.starts_with(word)).count();
    assert_eq!(
        (of("database"), of("function"), of("stream"), of("zset")),
        (2, 2, 3, 2),
        "{whole:#?}"
    );
    let long = format!("string {}", "longkey".repeat(20));
    assert!(whole.contains(&long) && whole.contains(&"string ".to_owned()), "{whole:#?}");
    assert!(whole.contains(&"string expires:later until 4102444800000".to_owned()), "{whole:#?}");
    for piece in [1, 2, 7, 64] {
        assert_eq!(walk(FILE, piece).unwrap(), whole, "{piece}");
    }
}

#[test]
fn file_that_is_cut_anywhere_or_has_any_other_byte_is_refused() {
    for end in 0..FILE.len() {
        assert!(walk(&FILE[..end], 64).is_err(), "cut after {end} bytes");
    }
    let mut spoilt = FILE.to_vec();
    for at in 0..FILE.len() {
        spoilt[at] ^= 0x10;
        assert!(walk(&spoilt, 64).is_err(), "another byte at {at}");
        spoilt[at] = FILE[at];
    }
    let longer = [FILE, b"x"].concat();
    assert!(walk(&longer, 64).is_err());
}

/// Shapes of values as the format's descriptions have them; each is followed by a key that must be found.
#[test]
fn every_shape_of_a_value_ends_where_the_next_key_begins() {
    let text = |text: &[u8]| [&[u8::try_from(text.len()).unwrap()], text].concat();
    let packed = [&[0xC3, 4, 6][..], &[0, b'a', 0xE0, 0]].concat();
    let numbers = [&[0xC0, 1][..], &[0xC1, 1, 2], &[0xC2, 1, 2, 3, 4]].concat();
    let id = [7; 16];
    let time = [8; 8];
    let group = |extra: &[u8], consumer_times: &[u8]| {
        [
            &[1][..],
            &text(b"g"),
            &[1, 2],
            extra,
            &[1],
            &id,
            &time,
            &[3],
            &[1],
            &text(b"c"),
            consumer_times,
            &[1],
            &id,
        ]
        .concat()
    };
    let blocks = [&[1][..], &text(&id), &text(b"listpack")].concat();
    let shapes: Vec<(u8, Vec<u8>, &str)> = vec![
        (0, packed, "string"),
        (1, [&[3][..], &numbers].concat(), "list"),
        (2, [&[2][..], &text(b"a"), &text(b"b")].concat(), "set"),
        (
            3,
            [
                &[4][..],
                &text(b"a"),
                &[3],
                b"1.5",
                &text(b"b"),
                &[253],
                &text(b"c"),
                &[254],
                &text(b"d"),
                &[255],
            ]
            .concat(),
            "zset",
        ),
        (4, [&[1][..], &text(b"f"), &text(b"v")].concat(), "hash"),
        (5, [&[1][..], &text(b"a"), &time].concat(), "zset"),
        (
            7,
            [&[0x81][..], &time, &[1, 5, 2, 6, 3, 1, 2, 3, 4, 4], &time, &[5], &text(b"x"), &[0]]
                .concat(),
            "module",
        ),
        (9, text(b"zipmap"), "hash"),
        (10, text(b"ziplist"), "list"),
        (11, text(b"intset"), "set"),
        (14, [&[2][..], &text(b"a"), &text(b"b")].concat(), "list"),
        (15, [&blocks[..], &[1, 2, 3], &[1], &group(&[], &time)].concat(), "stream"),
        (16, text(b"listpack"), "hash"),
        (17, text(b"listpack"), "zset"),
        (18, [&[2][..], &[2], &text(b"a"), &[1], &text(b"b")].concat(), "list"),
        (
            19,
            [&blocks[..], &[1, 2, 3, 4, 5, 6, 7, 8], &[1], &group(&[9], &time)].concat(),
            "stream",
        ),
        (20, text(b"listpack"), "set"),
        (
            21,
            [&blocks[..], &[1, 2, 3, 4, 5, 6, 7, 8], &[1], &group(&[9], &[time, time].concat())]
                .concat(),
            "stream",
        ),
    ];
    for (encoding, value, kind) in shapes {
        let mut file = b"REDIS0011\xFE\x00".to_vec();
        file.extend_from_slice(&[encoding, 1, b'k']);
        file.extend_from_slice(&value);
        file.extend_from_slice(b"\x00\x04next\x01v\xFF");
        file.extend_from_slice(&[0; 8]);
        let expected = ["database 0".to_owned(), format!("{kind} k"), "string next".to_owned()];
        assert_eq!(walk(&file, 3).unwrap(), expected, "{encoding}");
    }
    for unknown in [6, 8, 22, 23, 24, 25, 26, 0x7F] {
        let file = [b"REDIS0011".as_slice(), &[unknown, 1, b'k', 1, b'v', 0xFF], &[0; 8]].concat();
        let error = walk(&file, 64).unwrap_err().to_string();
        assert!(error.contains("not known here"), "{unknown}: {error}");
    }
}

#[test]
fn lengths_and_packed_strings_that_lie_end_in_an_error() {
    for lie in [
        // A key of more bytes than there are, or than there can be.
        &[0, 0x80, 0x10, 0, 0, 0][..],
        &[0, 0x81, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF],
        // Packed: back before its beginning, longer than said, and shorter.
        &[0, 0xC3, 3, 6, 0x20, 0x05, 0x00],
        &[0, 0xC3, 4, 2, 0, b'a', 0xE0, 0],
        &[0, 0xC3, 2, 9, 0, b'a'],
        // Kinds of strings and lengths that there are not.
        &[0, 0xC4],
        &[0, 0x82],
        &[4, 1, b'k', 0xC0],
    ] {
        let file = [b"REDIS0011".as_slice(), lie, &[0; 40]].concat();
        assert!(walk(&file, 5).is_err(), "{lie:?}");
    }
    assert!(walk(b"REDIS00x1\xFF", 4).is_err());
    assert!(walk(b"", 4).is_err());
}
