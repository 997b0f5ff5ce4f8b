//! Restores that cannot hurt: into the living tree, in place, interrupted, undone, run out.

use backstay_testkit::tree;

use crate::shell::Shell;

fn write(shell: &Shell, name: &str, text: &str) {
    let path = shell.path(name);
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, text).unwrap();
}

fn read(shell: &Shell, name: &str) -> Option<String> {
    std::fs::read_to_string(shell.path(name)).ok()
}

/// A backup of `shop` with two files, of which one was changed since and one is new.
fn with_changes() -> Shell {
    let shell = Shell::with_directory();
    write(&shell, "shop/a/one", "one");
    write(&shell, "shop/b/two", "two");
    shell.ends(0, &["backup", "shop"]);
    write(&shell, "shop/a/one", "spoilt");
    write(&shell, "shop/b/two", "newer");
    write(&shell, "shop/new", "new");
    shell
}

fn leftovers(shell: &Shell) -> Vec<String> {
    let mut names = Vec::new();
    for directory in [shell.dir.path().to_owned(), shell.path("shop")] {
        for entry in std::fs::read_dir(directory).unwrap().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            if name.contains("backstay-") {
                names.push(name);
            }
        }
    }
    names
}

#[test]
fn chosen_path_returns_into_the_living_tree_and_all_else_stays() {
    let shell = with_changes();
    let plan = shell.json(&["restore", "shop", "--only", "a/one", "--dry-run"]);
    assert!(plan["how"].as_str().unwrap().contains("only the chosen paths"), "{plan}");
    shell.ends(0, &["restore", "shop", "--only", "a/one", "--yes"]);
    assert_eq!(read(&shell, "shop/a/one").as_deref(), Some("one"));
    assert_eq!(read(&shell, "shop/b/two").as_deref(), Some("newer"));
    assert_eq!(read(&shell, "shop/new").as_deref(), Some("new"));
    // What lies in the tree until it is confirmed is no part of the app's data.
    let made = shell.json(&["backup", "shop"]);
    shell.ends(
        0,
        &["restore", "shop", "--id", made["id"].as_str().unwrap(), "--to", "copy", "--yes"],
    );
    assert_eq!(tree::files_below(&shell.path("copy")).unwrap().len(), 3);
    shell.ends(0, &["undo", "shop"]);
    assert_eq!(read(&shell, "shop/a/one").as_deref(), Some("spoilt"));
    shell.ends(0, &["confirm", "shop"]);
    assert_eq!(leftovers(&shell), Vec::<String>::new());
}

#[test]
fn directory_itself_stays_when_restored_in_place() {
    use std::os::unix::fs::MetadataExt as _;
    let shell = with_changes();
    let inode = || std::fs::metadata(shell.path("shop")).unwrap().ino();
    let before = inode();
    shell.ends(0, &["restore", "shop", "--in-place", "--yes"]);
    assert_eq!(inode(), before);
    assert_eq!(read(&shell, "shop/a/one").as_deref(), Some("one"));
    assert_eq!(read(&shell, "shop/new"), None);
    shell.ends(0, &["undo", "shop"]);
    assert_eq!(read(&shell, "shop/new").as_deref(), Some("new"));
    assert_eq!(read(&shell, "shop/a/one").as_deref(), Some("spoilt"));
    shell.ends(0, &["confirm", "shop"]);
    assert_eq!(leftovers(&shell), Vec::<String>::new());
    shell.ends(0, &["restore", "shop", "--yes"]);
    assert_ne!(inode(), before, "without the option the directory is swapped");
}

#[test]
fn restore_to_a_new_or_empty_place_leaves_nothing_to_undo() {
    let shell = with_changes();
    std::fs::create_dir(shell.path("empty")).unwrap();
    for to in ["fresh", "empty"] {
        shell.ends(0, &["restore", "shop", "--to", to, "--yes"]);
        assert_eq!(read(&shell, &format!("{to}/a/one")).as_deref(), Some("one"));
    }
    assert_eq!(leftovers(&shell), Vec::<String>::new());
    assert!(shell.complains(1, &["undo", "shop"]).contains("no restore that waits"));
}

#[test]
fn database_is_not_restored_onto_another_file() {
    let shell = Shell::with_directory();
    let writer = backstay_testkit::ledger::BusyWriter::start(&shell.path("crm.db")).unwrap();
    writer.stop().unwrap();
    shell.ends(0, &["backup", "crm"]);
    write(&shell, "other.db", "precious");
    let refused = shell.complains(1, &["restore", "crm", "--to", "other.db", "--yes"]);
    assert!(refused.contains("exists already"), "{refused}");
    assert_eq!(read(&shell, "other.db").as_deref(), Some("precious"));
    shell.ends(0, &["restore", "crm", "--to", "copy.db", "--yes"]);
    assert!(backstay_testkit::ledger::check(&shell.path("copy.db")).unwrap() > 0);
    assert_eq!(leftovers_named(&shell, "copy"), 1);
}

fn leftovers_named(shell: &Shell, part: &str) -> usize {
    let entries = std::fs::read_dir(shell.dir.path()).unwrap().flatten();
    entries.filter(|entry| entry.file_name().to_string_lossy().contains(part)).count()
}

fn add_to_source(shell: &Shell, line: &str) {
    shell.edit_config("kind = 'files'", &format!("kind = 'files'\n{line}"));
}

#[test]
fn app_is_started_again_even_if_stopping_it_failed() {
    let shell = with_changes();
    let started = shell.path("started");
    add_to_source(
        &shell,
        &format!(
            "before_restore = {{ run = ['false'] }}\nafter_restore = {{ run = ['touch', '{0}'] }}\n\
             before_backup = {{ run = ['false'] }}\nafter_backup = {{ run = ['touch', '{0}'] }}",
            started.display()
        ),
    );
    for words in
        [["restore", "shop", "--yes", "--no-safety-backup"].as_slice(), &["backup", "shop"]]
    {
        let error = shell.complains(1, words);
        assert!(error.contains("hook before_"), "{error}");
        assert!(started.exists(), "{words:?}");
        std::fs::remove_file(&started).unwrap();
    }
    assert_eq!(read(&shell, "shop/a/one").as_deref(), Some("spoilt"));
    assert_eq!(leftovers(&shell), Vec::<String>::new());
}

#[test]
fn swap_that_a_dead_process_began_is_finished_by_the_next_command() {
    let shell = with_changes();
    shell.ends(0, &["restore", "shop", "--yes", "--in-place"]);
    // As if the process had died before its last step: what should have gone is still there, and nobody said it was done.
    let [beside] = leftovers(&shell).try_into().unwrap();
    let replaced = shell.path("shop").join(beside).join("replaced/new");
    std::fs::rename(replaced, shell.path("shop/new")).unwrap();
    let catalog = rusqlite::Connection::open(shell.path("home/catalog.db")).unwrap();
    assert_eq!(catalog.execute("UPDATE swaps SET state = 'begun'", []).unwrap(), 1);
    drop(catalog);
    let warned = shell.complains(0, &["backup", "shop"]);
    assert!(warned.contains("it is finished now"), "{warned}");
    assert_eq!(read(&shell, "shop/a/one").as_deref(), Some("one"));
    assert_eq!(read(&shell, "shop/new"), None);
    shell.ends(0, &["undo", "shop"]);
    assert_eq!(read(&shell, "shop/a/one").as_deref(), Some("spoilt"));
    assert_eq!(read(&shell, "shop/new").as_deref(), Some("new"));
}

#[test]
fn what_was_replaced_goes_when_the_time_to_undo_is_up() {
    let shell = with_changes();
    add_to_source(&shell, "undo_for = '0s'");
    shell.ends(0, &["restore", "shop", "--yes"]);
    assert_eq!(leftovers(&shell).len(), 1);
    shell.ends(0, &["backup", "shop"]);
    assert_eq!(leftovers(&shell), Vec::<String>::new());
    let held = shell.json(&["backups", "shop"]);
    assert!(held.as_array().unwrap().iter().all(|backup| backup["hold"].is_null()), "{held}");
}

#[test]
fn root_that_is_a_mount_point_is_restored_in_place() {
    let shell = Shell::with_directory();
    write(&shell, "mounted/root/a/one", "one");
    let config = shell.config();
    let (shop, root) = (shell.path("shop"), shell.path("mounted/root"));
    let config = config.replace(&shop.display().to_string(), &root.display().to_string());
    shell.set_config(config);
    shell.ends(0, &["backup", "shop"]);
    write(&shell, "mounted/root/a/one", "spoilt");
    // A parent that may not be written has the same effect as a mount point, for those who are not root.
    let is_root = rustix::process::geteuid().is_root();
    let run = |program: &str, args: &[&std::ffi::OsStr]| {
        assert!(std::process::Command::new(program).args(args).status().unwrap().success());
    };
    let (parent, root) = (shell.path("mounted"), root.as_os_str());
    if is_root {
        run("mount", &["--bind".as_ref(), root, root]);
    } else {
        run("chmod", &["555".as_ref(), parent.as_os_str()]);
    }
    let restored = shell.run(&["restore", "shop", "--yes"]);
    let text = read(&shell, "mounted/root/a/one");
    if is_root {
        run("umount", &[root]);
    } else {
        run("chmod", &["755".as_ref(), parent.as_os_str()]);
    }
    assert!(restored.status.success(), "{restored:?}");
    assert!(String::from_utf8_lossy(&restored.stderr).contains("name by name"), "{restored:?}");
    assert_eq!(text.as_deref(), Some("one"));
}

#[test]
fn backup_is_chosen_by_time_by_id_or_as_the_newest_complete_one() {
    let shell = Shell::with_directory();
    write(&shell, "shop/file", "first");
    let first = shell.json(&["backup", "shop"]);
    write(&shell, "shop/file", "second");
    let second = shell.json(&["backup", "shop"]);
    // Incomplete: a database in it is none.
    let mut bad = b"SQLite format 3\0".to_vec();
    bad.resize(9000, 0x55);
    std::fs::write(shell.path("shop/bad.db"), bad).unwrap();
    write(&shell, "shop/file", "third");
    shell.ends(3, &["backup", "shop"]);
    let mut number = 0;
    let mut restored = |words: &[&str]| {
        number += 1;
        let to = format!("to-{number}");
        let words = [["restore", "shop", "--yes", "--to", &to].as_slice(), words].concat();
        shell.ends(0, &words);
        read(&shell, &format!("{to}/file")).unwrap()
    };
    assert_eq!(restored(&["--latest"]), "second");
    assert_eq!(restored(&[]), "second");
    assert_eq!(restored(&["--id", first["id"].as_str().unwrap()]), "first");
    assert_eq!(restored(&["--at", first["started_at"].as_str().unwrap()]), "first");
    assert_eq!(restored(&["--at", second["started_at"].as_str().unwrap()]), "second");
    let none = shell.complains(1, &["restore", "shop", "--yes", "--at", "2020-01-01T00:00:00Z"]);
    assert!(none.contains("no complete backup that fits"), "{none}");
    assert!(shell.complains(2, &["restore", "shop", "--at", "yesterday"]).contains("yesterday"));
}

#[test]
fn part_is_written_as_a_file_that_other_tools_read() {
    let shell = with_changes();
    shell.ends(0, &["restore", "shop", "--to-file", "shop.tar"]);
    let listed = std::process::Command::new("tar")
        .args(["-tf", "shop.tar"])
        .current_dir(shell.dir.path())
        .output()
        .unwrap();
    assert!(String::from_utf8_lossy(&listed.stdout).contains("a/one"), "{listed:?}");
    assert!(
        shell
            .complains(1, &["restore", "shop", "--to-file", "shop.tar"])
            .contains("must not exist yet")
    );
    assert_eq!(read(&shell, "shop/a/one").as_deref(), Some("spoilt"), "nothing is replaced");
}

#[test]
fn second_name_of_a_file_can_be_chosen_alone() {
    let shell = Shell::with_directory();
    write(&shell, "shop/a/first", "shared bytes");
    std::fs::create_dir(shell.path("shop/b")).unwrap();
    for name in ["b/second", "b/third"] {
        std::fs::hard_link(shell.path("shop/a/first"), shell.path("shop").join(name)).unwrap();
    }
    shell.ends(0, &["backup", "shop"]);
    shell.ends(0, &["restore", "shop", "--only", "b", "--to", "back", "--yes"]);
    assert_eq!(read(&shell, "back/b/second").as_deref(), Some("shared bytes"));
    assert_eq!(tree::files_below(&shell.path("back")).unwrap().len(), 2);
    let inode = |name: &str| {
        std::os::unix::fs::MetadataExt::ino(&std::fs::metadata(shell.path(name)).unwrap())
    };
    assert_eq!(inode("back/b/second"), inode("back/b/third"), "they are still one file");
    assert!(!shell.path("back/a").exists(), "what was not chosen was not made");
    std::fs::remove_dir_all(shell.path("shop/b")).unwrap();
    shell.ends(0, &["restore", "shop", "--only", "b/third", "--yes"]);
    assert_eq!(read(&shell, "shop/b/third").as_deref(), Some("shared bytes"));
    assert!(!shell.path("shop/b/second").exists());
}

#[test]
fn what_a_killed_restore_left_is_swept_and_what_waits_for_undo_is_not() {
    let shell = with_changes();
    shell.ends(0, &["restore", "shop", "--yes"]);
    let waiting = leftovers(&shell);
    assert_eq!(waiting.len(), 1);
    write(&shell, ".shop.backstay-0123456789ab/restored/shop/half", "of a killed restore");
    write(&shell, "shop/.backstay-0123456789ab/restored/half", "of a killed restore");
    write(&shell, ".shop.backstay-my notes/file", "not ours");
    shell.ends(0, &["restore", "shop", "--only", "a/one", "--no-safety-backup", "--yes"]);
    let left = leftovers(&shell);
    assert!(left.contains(&waiting[0]) && left.contains(&".shop.backstay-my notes".to_owned()));
    assert!(!left.iter().any(|name| name.contains("0123456789ab")), "{left:?}");
}

#[test]
fn broken_database_is_replaced_once_it_is_said_that_it_need_not_be_saved() {
    let shell = Shell::with_directory();
    let crm = shell.path("crm.db");
    let database = rusqlite::Connection::open(&crm).unwrap();
    database.execute_batch("CREATE TABLE t (n); INSERT INTO t VALUES (1)").unwrap();
    drop(database);
    shell.ends(0, &["backup", "crm"]);
    let mut bytes = std::fs::read(&crm).unwrap();
    bytes[4096..].fill(0x55);
    std::fs::write(&crm, &bytes).unwrap();
    let error = shell.complains(13, &["restore", "crm", "--yes"]);
    assert!(
        error.contains("nothing was replaced") && error.contains("--no-safety-backup"),
        "{error}"
    );
    assert_eq!(std::fs::read(&crm).unwrap(), bytes);
    shell.ends(0, &["restore", "crm", "--yes", "--no-safety-backup"]);
    let database = rusqlite::Connection::open(&crm).unwrap();
    let sum: i64 = database.query_row("SELECT sum(n) FROM t", [], |row| row.get(0)).unwrap();
    assert_eq!(sum, 1);
}
