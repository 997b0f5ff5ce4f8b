//! Trees return as they were, by the eyes of an independent walker and of other tools.

use std::process::Command;

use backstay_engine::cx::Cx;
use backstay_engine::part::PartReader;
use backstay_engine::source::Source;
use backstay_engine::verify::verify;
use backstay_format::{Content, Status};
use backstay_testkit::tree;

use crate::world::World;

async fn bytes_of(mut part: PartReader) -> Vec<u8> {
    let mut bytes = Vec::new();
    while let Some(chunk) = part.next().await.unwrap() {
        bytes.extend_from_slice(&chunk);
    }
    bytes
}

async fn tar_of(cx: &Cx, source: &dyn Source) -> Vec<u8> {
    let mut capture = source.capture(cx).await.unwrap();
    let part = capture.next_part(cx).await.unwrap().unwrap();
    let bytes = bytes_of(part).await;
    capture.finish(cx).await.unwrap();
    bytes
}

#[tokio::test(flavor = "multi_thread")]
async fn tree_of_oddities_returns_equal() {
    let world = World::new();
    let root = world.path("tree");
    tree::make(&root, 3000).unwrap();
    let before = tree::walk(&root).unwrap();
    assert!(before.values().any(|seen| seen.is_sparse), "the oddities are there");
    let source = world.files(&root);
    let made = world.backup(&source).await.unwrap();
    assert_eq!(made.status, Status::Complete, "{:?}", made.item_errors);
    let restored = world.restore_to(&source, &made.id, &world.path("back")).await.unwrap();
    let after = tree::walk(&world.path("back")).unwrap();
    assert_eq!(tree::differences(&before, &after), Vec::<String>::new());
    assert!(restored.report.warnings.is_empty(), "{:?}", restored.report.warnings);
    verify(&world.cx, &world.vault().await, &world.place(&made.id)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn gnu_tar_reads_our_tar_and_makes_the_same_tree() {
    let world = World::new();
    let root = world.path("tree");
    tree::make(&root, 100).unwrap();
    std::fs::write(world.path("ours.tar"), tar_of(&world.cx, &world.files(&root)).await).unwrap();
    std::fs::create_dir(world.path("by-tar")).unwrap();
    let status = Command::new("tar")
        .args(["--xattrs", "--xattrs-include=*", "-xpf", "ours.tar", "-C", "by-tar"])
        .current_dir(world.dir.path())
        .status()
        .unwrap();
    assert!(status.success());
    let (before, after) = (tree::walk(&root).unwrap(), tree::walk(&world.path("by-tar")).unwrap());
    assert_eq!(tree::differences(&before, &after), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_special_is_left_out_and_counted_and_what_is_excluded_is_not_there() {
    let world = World::new();
    let root = world.path("tree");
    std::fs::create_dir_all(root.join("cache")).unwrap();
    std::fs::write(root.join("cache/x"), "x").unwrap();
    std::fs::write(root.join("kept"), "kept").unwrap();
    std::fs::write(root.join("channels.sqlite"), "replay").unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(root.join("socket")).unwrap();
    rustix::fs::mknodat(
        rustix::fs::CWD,
        root.join("fifo"),
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::RWXU,
        0,
    )
    .unwrap();
    let mut source = world.files(&root);
    source.exclude = vec!["cache/".parse().unwrap()];
    let with_replay = world.backup(&source).await.unwrap();
    source.transient = vec!["channels.sqlite".parse().unwrap()];
    let made = world.backup(&source).await.unwrap();
    let vault = world.vault().await;
    let manifest = vault.manifest(&world.cx, &world.place(&made.id)).await.unwrap();
    let Some(Content::Files(content)) = vault.details(&manifest).unwrap().content else {
        panic!("no content")
    };
    assert_eq!((content.files, content.skipped_special), (1, 2));
    // T4: absent after a restore even if it is in the backup.
    for id in [&made.id, &with_replay.id] {
        let to = world.path(id.as_str());
        world.restore_to(&source, id, &to).await.unwrap();
        let names: Vec<_> = tree::files_below(&to).unwrap();
        assert_eq!(names, [to.join("kept")]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn chosen_paths_return_alone_and_a_wrong_choice_is_an_error() {
    let world = World::new();
    let root = world.path("tree");
    tree::make(&root, 60).unwrap();
    let source = world.files(&root);
    let made = world.backup(&source).await.unwrap();
    let only = |path: &str, to: &str| backstay_engine::source::TargetOptions {
        to: Some(world.path(to).into()),
        only: vec![path.into()],
        tag: "test".to_owned(),
        ..Default::default()
    };
    world.restore(&source, &made.id, only("d0/s1", "some")).await.unwrap();
    assert_eq!(tree::files_below(&world.path("some")).unwrap().len(), 10);
    // The other name of what is chosen comes first in the archive; its directory is none of ours.
    world.restore(&source, &made.id, only("third", "link")).await.unwrap();
    let found = tree::files_below(&world.path("link")).unwrap();
    assert_eq!(found, [world.path("link/third")], "and nothing else");
    let bytes = |path| std::fs::read(path).unwrap();
    assert_eq!(bytes(world.path("link/third")), bytes(root.join("third")));
    let error = world.restore(&source, &made.id, only("d0/none", "none")).await.unwrap_err();
    assert!(error.to_string().contains("nothing in the backup matches"), "{error}");
    assert!(!world.path("none").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn directory_that_is_not_empty_is_not_written_into() {
    let world = World::new();
    let root = world.path("tree");
    tree::make(&root, 1).unwrap();
    let source = world.files(&root);
    let made = world.backup(&source).await.unwrap();
    std::fs::create_dir(world.path("full")).unwrap();
    std::fs::write(world.path("full/mine"), "mine").unwrap();
    world.restore_to(&source, &made.id, &world.path("full")).await.unwrap_err();
    assert_eq!(tree::files_below(&world.path("full")).unwrap(), [world.path("full/mine")]);
}

#[tokio::test(flavor = "multi_thread")]
async fn database_in_a_tree_is_a_snapshot_and_a_damaged_one_is_named() {
    let world = World::new();
    let root = world.path("tree");
    std::fs::create_dir(&root).unwrap();
    let writer = backstay_testkit::ledger::BusyWriter::start(&root.join("app.db")).unwrap();
    let mut damaged = b"SQLite format 3\0".to_vec();
    damaged.extend_from_slice(&[0x55; 8192]);
    std::fs::write(root.join("bad.db"), damaged).unwrap();
    let source = world.files(&root);
    let committed_before = writer.committed();
    let made = world.backup(&source).await.unwrap();
    let committed_after = writer.stop().unwrap();
    assert_eq!(made.status, Status::Incomplete);
    assert_eq!(made.item_errors.iter().map(|e| e.item.as_str()).collect::<Vec<_>>(), ["bad.db"]);
    world.restore_to(&source, &made.id, &world.path("back")).await.unwrap();
    // T6: nothing but the database itself, and of the damaged one nothing.
    assert_eq!(tree::files_below(&world.path("back")).unwrap(), [world.path("back/app.db")]);
    let transfers = backstay_testkit::ledger::check(&world.path("back/app.db")).unwrap();
    assert!(
        (committed_before..=committed_after).contains(&transfers),
        "{committed_before} {transfers} {committed_after}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn estimate_counts_every_directory_of_a_wide_tree() {
    let world = World::new();
    let root = world.path("tree");
    for i in 0..700_u32 {
        let directory = root.join(format!("d{i}/e"));
        std::fs::create_dir_all(&directory).unwrap();
        std::fs::write(directory.join("f"), vec![1; 64 * 1024]).unwrap();
    }
    let mut capture = world.files(&root).capture(&world.cx).await.unwrap();
    let part = capture.next_part(&world.cx).await.unwrap().unwrap();
    let estimate = part.spec.estimate_bytes.unwrap();
    // The size of an upload's parts, and so the largest size it may have, comes from it.
    assert!(estimate >= 700 * 64 * 1024, "{estimate}");
    assert!(bytes_of(part).await.len() as u64 <= 2 * estimate, "{estimate}");
}

#[tokio::test(flavor = "multi_thread")]
async fn second_name_of_a_file_that_is_left_out_is_warned_of_and_all_else_returns() {
    let world = World::new();
    let root = world.path("tree");
    std::fs::create_dir(&root).unwrap();
    std::fs::write(root.join("channels.sqlite"), "replay").unwrap();
    std::fs::hard_link(root.join("channels.sqlite"), root.join("second")).unwrap();
    std::fs::write(root.join("kept"), "kept").unwrap();
    let mut source = world.files(&root);
    let made = world.backup(&source).await.unwrap();
    source.transient = vec!["channels.sqlite".parse().unwrap()];
    let restored = world.restore_to(&source, &made.id, &world.path("back")).await.unwrap();
    let files = [world.path("back/kept"), world.path("back/second")];
    assert_eq!(tree::files_below(&world.path("back")).unwrap(), files);
    assert_eq!(std::fs::read(world.path("back/second")).unwrap(), b"replay");
    assert!(restored.report.warnings.is_empty(), "{:?}", restored.report.warnings);
}
