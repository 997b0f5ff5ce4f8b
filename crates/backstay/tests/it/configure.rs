//! Configuring: by file, by command, by the environment; and what is wrong with it.

use crate::shell::Shell;

/// Runs a command that reads these lines from its standard input.
fn with_input(shell: &Shell, words: &[&str], input: &str) -> std::process::Output {
    use std::io::Write as _;
    use std::process::Stdio;
    let mut command = shell.command(words);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    child.wait_with_output().unwrap()
}

#[test]
fn storages_and_sources_are_added_used_and_removed_without_a_file() {
    use backstay_testkit::s3::{ACCESS_KEY, BUCKET, S3Server, SECRET_KEY};
    let server = S3Server::start().unwrap();
    let shell = Shell::bare();
    let add = [
        "storage",
        "add",
        "main",
        "--bucket",
        BUCKET,
        "--endpoint",
        &server.endpoint,
        "--credentials",
    ];
    // D4: what does not work is not kept.
    let refused = with_input(&shell, &add, &format!("{ACCESS_KEY}\nwrong\n"));
    assert_eq!(refused.status.code(), Some(1), "{refused:?}");
    assert_eq!(shell.json(&["storage", "list"]).as_array().unwrap().len(), 0);
    let kept = with_input(&shell, &add, &format!("{ACCESS_KEY}\n{SECRET_KEY}\n"));
    assert!(kept.status.success(), "{kept:?}");
    assert_eq!(shell.json(&["storage", "list"])[0]["status"], "verified");

    std::fs::create_dir(shell.path("$shop")).unwrap();
    std::fs::write(shell.path("$shop/file"), "content").unwrap();
    let path = shell.path("$shop").display().to_string();
    let source = ["source", "add", "shop", "--kind", "files", "--path", &path, "--storage", "main"];
    let wrong = [source.as_slice(), &["--schedule", "at night"]].concat();
    assert!(shell.complains(2, &wrong).contains("sources.shop.schedule: found `at night`"));
    let good =
        [source.as_slice(), &["--set", "keep = { last = 7 }", "--set", "exclude = ['*.tmp']"]]
            .concat();
    shell.ends(0, &good);
    assert!(shell.complains(2, &source).contains("there is a source"));
    shell.ends(0, &["backup", "shop"]);
    shell.ends(0, &["verify", "shop"]);
    let shown = shell.json(&["config", "show"]);
    assert_eq!(shown["sources"]["shop"]["keep"]["last"], 7);
    assert_eq!(shown["sources"]["shop"]["exclude"][0], "*.tmp");
    assert!(!shown.to_string().contains(SECRET_KEY));

    assert!(shell.complains(2, &["storage", "remove", "main"]).contains("used by source shop"));
    shell.ends(0, &["source", "remove", "shop"]);
    shell.ends(0, &["storage", "remove", "main"]);
    assert!(shell.complains(2, &["backup", "--all"]).contains("there is no configuration"));
    assert!(server.bucket().join("backstay/default/shop").exists(), "backups stay");
}

#[test]
fn what_the_file_declares_is_not_removed_by_a_command() {
    let shell = Shell::with_directory();
    assert!(shell.complains(2, &["source", "remove", "shop"]).contains("stands in the file"));
    assert!(shell.complains(2, &["storage", "remove", "main"]).contains("stands in the file"));
}

/// What is wrong, and what must be said of it: file and line, field, what was found and what is expected.
const WRONG: [(&str, &str, &str); 12] = [
    ("kind = 'files'", "knd = 'files'", "backstay.toml:6: sources.shop.knd: unknown field `knd`"),
    (
        "kind = 'files'",
        "kind = 'tree'",
        "backstay.toml:6: sources.shop.kind: found `tree`, expected",
    ),
    (
        "kind = 'files'",
        "kind = 7",
        "backstay.toml:6: sources.shop.kind: invalid type: integer `7`, expected a string",
    ),
    ("storage = 'main'", "storage = 'mian'", "sources.shop.storage: found `mian`, expected one of"),
    (
        "provider = 'local'",
        "provider = 'ftp'",
        "backstay.toml:2: storages.main.provider: found `ftp`",
    ),
    (
        "kind = 'files'",
        "kind = 'files'\nschedule = '61 * * * *'",
        "backstay.toml:7: sources.shop.schedule: found",
    ),
    (
        "kind = 'files'",
        "kind = 'files'\nbefore_backup = { run = [] }",
        "sources.shop.before_backup: `run` is empty",
    ),
    ("kind = 'files'", "kind = 'files'\nundo_for = 'long'", "sources.shop.undo_for: found `long`"),
    ("kind = 'files'", "kind = 'files'\nexclude = ['../x']", "sources.shop.exclude: "),
    (
        "kind = 'files'",
        "kind = 'files'\napp = '${NOWHERE}'",
        "sources.shop.app: the environment variable NOWHERE is not set",
    ),
    ("[sources.shop]", "[sources.'a/b']", "sources.a/b"),
    ("[sources.shop]", "[sources.shop", "backstay.toml:5: "),
];

#[test]
fn each_wrong_setting_is_named_by_every_command_and_nothing_is_made() {
    for (from, to, text) in WRONG {
        let shell = Shell::with_directory();
        let config = shell.config();
        shell.set_config(config.replacen(from, to, 1));
        for words in [["config", "check"].as_slice(), &["backup", "--all"], &["doctor"]] {
            let error = shell.complains(2, words);
            assert!(error.contains(text), "{to}: {error}");
        }
        assert!(!shell.path("home").exists() && !shell.path("storage").exists(), "{to}");
    }
}

#[test]
fn unreadable_configuration_and_a_server_are_usage_errors() {
    let shell = Shell::with_directory();
    let error = shell.complains(2, &["--config", "/does/not/exist", "backup", "--all"]);
    assert!(error.contains("/does/not/exist: cannot be read"), "{error}");
    let error = shell.complains(2, &["--server", "https://backups.example", "status"]);
    assert!(error.contains("who asks? --token-file FILE, or BACKSTAY_TOKEN"), "{error}");
    shell.ends(0, &["config", "schema"]);
}

#[test]
fn names_and_paths_are_data_whatever_they_look_like() {
    let shell = Shell::with_directory();
    for name in [
        "--yes",
        "-rf",
        "a=b",
        "it's \"quoted\"",
        "new\nline",
        "100%",
        "$HOME",
        "*",
        "con'; DROP TABLE jobs",
    ] {
        let source = shell.path("shop").join(name);
        std::fs::create_dir_all(&source).unwrap();
        std::fs::write(source.join(name), name).unwrap();
    }
    let before = backstay_testkit::tree::walk(&shell.path("shop")).unwrap();
    shell.ends(0, &["backup", "shop", "--note=--note $(id) 'x' %s\n"]);
    shell.ends(0, &["restore", "shop", "--to", "./-o=%d", "--yes"]);
    let after = backstay_testkit::tree::walk(&shell.path("-o=%d")).unwrap();
    assert_eq!(backstay_testkit::tree::differences(&before, &after), Vec::<String>::new());
    assert_eq!(shell.json(&["backups", "shop"])[0]["note"], "--note $(id) 'x' %s\n");
    for words in [["show", "--", "-x"].as_slice(), &["backup", "--", "-x"], &["restore", "--", "%"]]
    {
        assert_eq!(shell.run(words).status.code(), Some(2), "{words:?}");
    }
}

#[test]
fn credentials_that_end_soon_or_have_ended_are_warned_of() {
    let server = backstay_testkit::s3::S3Server::start().unwrap();
    let shell = Shell::with_bucket(&server);
    std::fs::create_dir(shell.path("shop")).unwrap();
    let config = shell.config();
    let expire = |date: jiff::Timestamp| {
        let line = format!("provider = 's3'\ncredentials_expire = '{date:.0}'");
        shell.set_config(config.replace("provider = 's3'", &line));
    };
    let now = jiff::Timestamp::now();
    expire(now + jiff::SignedDuration::from_hours(20 * 24));
    let warned = shell.complains(0, &["backup", "shop"]);
    assert!(warned.contains("the credentials of storage main expire on"), "{warned}");
    expire(now + jiff::SignedDuration::from_hours(60 * 24));
    assert!(!shell.complains(0, &["backup", "shop"]).contains("expire on"));
    expire(now - jiff::SignedDuration::from_hours(1));
    let warned = shell.complains(0, &["backup", "shop"]);
    assert!(warned.contains("expired on") && warned.contains("set new ones"), "{warned}");
}

#[test]
fn passwords_are_added_by_reference_only() {
    let shell = Shell::bare();
    shell.ends(0, &["storage", "add", "disk", "--path", shell.path("disk").to_str().unwrap()]);
    let add = ["source", "add", "db", "--kind", "postgres", "--storage", "disk", "--url"];
    let with = |more: &[&'static str]| [&add[..], more].concat();
    for more in [
        ["postgres://me:hunter2@localhost/shop", "--set", "app = 'x'"],
        ["postgres://me@localhost/shop", "--set", "password = 'hunter2'"],
    ] {
        let error = shell.complains(2, &with(&more));
        assert!(error.contains("kept by reference") && !error.contains("hunter2"), "{error}");
    }
    assert!(!crate::shell::contains(&shell.path("home"), b"hunter2"));
    shell.ends(0, &with(&["postgres://me@localhost/shop", "--set", "password = '${SECRET}'"]));
    assert_eq!(shell.json(&["source", "list"])[0]["location"], "postgres://me@localhost:5432/shop");
}

#[test]
fn what_commands_added_is_exported_and_imported_without_secrets() {
    let shell = Shell::bare();
    std::fs::create_dir(shell.path("shop")).unwrap();
    let (shop, storage) =
        (shell.path("shop").display().to_string(), shell.path("storage").display().to_string());
    shell.ends(0, &["storage", "add", "disk", "--path", &storage]);
    let keep = ["--set", "keep = { last = 3 }", "--set", "rpo = '2h'"];
    let add = ["source", "add", "shop", "--kind", "files", "--path", &shop, "--storage", "disk"];
    shell.ends(0, &[&add[..], &keep].concat());
    let exported = shell.ends(0, &["config", "export"]);
    let before = shell.json(&["config", "show"]);
    // A fresh installation has the same.
    std::fs::remove_dir_all(shell.path("home")).unwrap();
    std::fs::write(shell.path("kept.toml"), &exported).unwrap();
    shell.ends(0, &["config", "import", "kept.toml"]);
    assert_eq!(shell.json(&["config", "show"]), before);
    assert_eq!(shell.ends(0, &["config", "export"]), exported);
    // The file is a configuration by itself, too.
    shell.ends(0, &["config", "check", "--config", "kept.toml", "--home", "other"]);
    // Another one of that name is not replaced unless that is meant, and nothing is taken over by halves.
    let other = exported.replace("2h", "3h").replace(
        "[sources.shop]",
        "[sources.new]\nkind = \"files\"\nstorage = \"disk\"\npath = \"/srv\"\n\n[sources.shop]",
    );
    std::fs::write(shell.path("other.toml"), &other).unwrap();
    let error = shell.complains(2, &["config", "import", "other.toml"]);
    assert!(error.contains("\"shop\"") && error.contains("--replace"), "{error}");
    assert_eq!(shell.ends(0, &["config", "export"]), exported);
    shell.ends(0, &["config", "import", "other.toml", "--replace"]);
    assert_eq!(shell.json(&["config", "show"])["sources"]["shop"]["rpo_seconds"], 3 * 3600);
    for (text, word) in [
        ("organisation = 'x'", "organisation"),
        (
            "[sources.db]\nkind = 'postgres'\nstorage = 'disk'\nurl = 'postgres://u:secret@h/d'",
            "by reference",
        ),
        (
            "[storages.b]\nprovider = 's3'\nbucket = 'b'\nsecret_access_key = 'secret'",
            "by reference",
        ),
        ("[sources.db]\nkind = 'sqlight'\nstorage = 'disk'", "sqlight"),
        ("[sources.db]\nkind = 'files'\npath = '/srv'\nstorage = 'nowhere'", "nowhere"),
    ] {
        std::fs::write(shell.path("wrong.toml"), text).unwrap();
        let error = shell.complains(2, &["config", "import", "wrong.toml"]);
        assert!(error.contains(word) && !error.contains("u:secret"), "{word}: {error}");
    }
    assert!(!shell.ends(0, &["config", "export"]).contains("db"));
}
