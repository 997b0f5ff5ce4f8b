//! Archives from hands that are not trusted write nothing outside of their tree.

use backstay_engine::part::{PartError, PartSpec, part_pipe};
use backstay_engine::source::{Source, SourceError, TargetOptions};
use backstay_format::{Details, MediaType};
use tar::{EntryType, Header};

use crate::world::World;

fn member(kind: EntryType, name: &[u8], link: &[u8], content: &[u8]) -> Vec<u8> {
    let mut header = Header::new_gnu();
    let gnu = header.as_gnu_mut().unwrap();
    gnu.name[..name.len()].copy_from_slice(name);
    gnu.linkname[..link.len()].copy_from_slice(link);
    header.set_entry_type(kind);
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_size(content.len() as u64);
    header.set_cksum();
    let mut bytes = header.as_bytes().to_vec();
    bytes.extend_from_slice(content);
    bytes.resize(bytes.len().next_multiple_of(512), 0);
    bytes
}

fn file(name: &[u8]) -> Vec<u8> {
    member(EntryType::Regular, name, b"", b"evil")
}

async fn unpack(world: &World, archive: Vec<u8>) -> Result<(), SourceError> {
    let options = TargetOptions {
        to: Some(world.path("inside/target").into()),
        tag: "t".to_owned(),
        ..TargetOptions::default()
    };
    let mut target = world.files(&world.path("inside/own")).target(options);
    target.prepare(&world.cx, &Details::default()).await.unwrap();
    let spec = PartSpec {
        name: "files.tar".parse().unwrap(),
        media_type: MediaType::Tar,
        estimate_bytes: None,
    };
    let (mut writer, reader) = part_pipe(spec);
    let sending = tokio::spawn(async move {
        // A reader that refused is what is hoped for.
        if writer.send(archive.into()).await.is_ok() {
            writer.finish_async().await;
        }
    });
    let applied = target.apply(&world.cx, reader).await;
    sending.await.unwrap();
    target.discard(&world.cx).await.unwrap();
    applied.map(drop)
}

#[tokio::test(flavor = "multi_thread")]
async fn hostile_archives_are_refused_and_write_nothing_outside() {
    let outside = "/tmp/backstay-hostile-test-must-not-exist";
    let link = |name: &[u8], to: &[u8]| member(EntryType::Symlink, name, to, b"");
    let end = vec![0; 1024];
    let huge_name = {
        let mut header = member(EntryType::GNULongName, b"././@LongLink", b"", b"");
        let mut announced = Header::from_byte_slice(&header[..512]).clone();
        announced.set_size(8 << 30);
        announced.set_cksum();
        header[..512].copy_from_slice(announced.as_bytes());
        header
    };
    let cases: Vec<(&str, Vec<u8>)> = vec![
        ("absolute path", file(outside.as_bytes())),
        ("parent directory", file(b"../escaped")),
        ("parent in the middle", file(b"a/../../escaped")),
        ("empty segment", file(b"a//b")),
        ("no name", file(b"")),
        ("through a link", [link(b"way", b".."), file(b"way/escaped")].concat()),
        ("over a link", [link(b"way", b"../escaped"), file(b"way")].concat()),
        (
            "directory over a link",
            [link(b"way", b".."), member(EntryType::Directory, b"way/", b"", b"")].concat(),
        ),
        ("hard link out", member(EntryType::Link, b"passwd", b"../../etc/passwd", b"")),
        ("hard link to an absolute path", member(EntryType::Link, b"passwd", b"/etc/passwd", b"")),
        ("hard link to nothing", member(EntryType::Link, b"a", b"b", b"")),
        (
            "hard link through a link",
            [link(b"way", b"/etc"), member(EntryType::Link, b"p", b"way/passwd", b"")].concat(),
        ),
        ("character device", member(EntryType::Char, b"null", b"", b"")),
        ("block device", member(EntryType::Block, b"sda", b"", b"")),
        ("fifo", member(EntryType::Fifo, b"fifo", b"", b"")),
        ("the same name twice", [file(b"a"), file(b"a")].concat()),
        ("name of 8 GiB", huge_name),
        ("wrong checksum", {
            let mut bad = file(b"a");
            bad[0] = b'b';
            bad
        }),
        ("cut in a member", file(b"a")[..600].to_vec()),
        ("no end mark", file(b"a")),
    ];
    for (what, archive) in cases {
        let world = World::new();
        std::fs::create_dir(world.path("inside")).unwrap();
        let whole = if what.starts_with("cut") || what.starts_with("no end") {
            archive
        } else {
            [archive, end.clone()].concat()
        };
        let error = unpack(&world, whole).await.expect_err(what);
        assert!(matches!(error, SourceError::Part(PartError::Refused { .. })), "{what}: {error}");
        let left: Vec<_> =
            std::fs::read_dir(world.dir.path()).unwrap().flatten().map(|e| e.file_name()).collect();
        assert_eq!(left, ["inside"], "{what}");
        assert_eq!(std::fs::read_dir(world.path("inside")).unwrap().count(), 0, "{what}");
        assert!(!std::path::Path::new(outside).exists(), "{what}");
    }
}
