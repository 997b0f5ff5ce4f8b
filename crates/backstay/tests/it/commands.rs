//! Programs whose output is the backup: three real ones, and all ways in which one can fail (X8, V7, V50).

use std::process::Command;

use backstay_testkit::mysql::{MysqlServer, PASSWORD as MYSQL_PASSWORD, USER as MYSQL_USER};
use backstay_testkit::postgres::{PASSWORD, PostgresServer, USER};
use rustix::process::Signal;

use crate::faults::SmallDisk;
use crate::mysql::assert_same;
use crate::postgres_network::{ended, send, start, wait_until};
use crate::shell::Shell;
use crate::size::assert_within_promise;

/// A machine that backs up what programs write to a directory.
fn with_outputs(outputs: &str, more: &str) -> Shell {
    let shell = Shell::bare();
    let here = shell.path("").display().to_string();
    let text = format!(
        "[storages.main]\nprovider = 'local'\npath = '{}'\n\n[sources.db]\nkind = 'command'\nstorage = 'main'\noutputs = [{}]\n{}\n",
        shell.path("storage").display(),
        outputs.replace("HERE/", &here),
        more.replace("HERE/", &here),
    );
    shell.set_config(text);
    shell
}

/// A program of one line of shell, which is data for the configuration.
fn sh(script: &str) -> String {
    format!("['sh', '-c', '''{}''']", script.replace('$', "$$"))
}

fn made(shell: &Shell) -> serde_json::Value {
    shell.json(&["backup", "db"])
}

fn count(shell: &Shell) -> usize {
    shell.json(&["backups", "db"]).as_array().unwrap().len()
}

#[test]
fn whole_postgres_server_returns_by_pg_dumpall_and_psql() {
    let server = PostgresServer::start();
    server.sql("postgres", "CREATE DATABASE shop");
    server.sql("postgres", "CREATE ROLE reader");
    server.sql("shop", "CREATE TABLE t (n int, t text); INSERT INTO t SELECT g, md5(g::text) FROM generate_series(1, 5000) g; GRANT SELECT ON t TO reader");
    let before = server.sql("shop", "SELECT count(*), sum(hashtext(t::text)) FROM t");
    let (programs, port) = (server.programs().display().to_string(), server.port);
    let outputs = format!(
        "{{ name = 'server.sql', dump = ['{programs}/pg_dumpall', '--clean', '--if-exists', '-h', '127.0.0.1', '-p', '{port}', '-U', '{USER}', '-l', 'postgres'],
            restore = ['{programs}/psql', '-X', '-q', '-h', '127.0.0.1', '-p', '{port}', '-U', '{USER}', '-d', 'postgres'],
            check = {}, min_bytes = 1000 }}",
        sh("tail -n 3 | grep -q \"database cluster dump complete\"")
    );
    let shell = with_outputs(&outputs, &format!("variables = {{ PGPASSWORD = '{PASSWORD}' }}"));
    shell.ends(0, &["source", "test", "db"]);
    let id = made(&shell)["id"].as_str().unwrap().to_owned();
    server.sql("shop", "DELETE FROM t WHERE n > 10");
    let told = shell.ends(0, &["restore", "db", "--id", &id, "--yes"]);
    assert_eq!(server.sql("shop", "SELECT count(*), sum(hashtext(t::text)) FROM t"), before);
    // What was there is held, and comes back in the same way.
    let safety = told.split("held as backup ").nth(1).unwrap().split(';').next().unwrap();
    shell.ends(0, &["restore", "db", "--id", safety, "--yes"]);
    assert_eq!(server.sql("shop", "SELECT count(*) FROM t"), "10");
    assert!(!crate::shell::contains(&shell.path("home"), PASSWORD.as_bytes()));
}

#[test]
fn all_databases_of_a_mariadb_server_return_by_its_own_programs() {
    let server = MysqlServer::start();
    server.sql("", "CREATE DATABASE a; CREATE DATABASE b; USE a; CREATE TABLE a.t AS SELECT seq, md5(seq) AS m FROM seq_1_to_5000; CREATE TABLE b.u (n int); INSERT INTO b.u VALUES (1)");
    let before = [server.sums("a"), server.sums("b")];
    let how = format!(
        "'--no-defaults', '--protocol=tcp', '--host=127.0.0.1', '--port={}', '--user={MYSQL_USER}'",
        server.port
    );
    let outputs = format!(
        "{{ name = 'all.sql', dump = ['mariadb-dump', {how}, '--single-transaction', '--add-drop-database', '--databases', 'a', 'b'], restore = ['mariadb', {how}],
            check = {} }}",
        sh("tail -n 1 | grep -q \"^-- Dump completed\"")
    );
    let shell = with_outputs(&outputs, "variables = { MYSQL_PWD = 'file:HERE/secret' }");
    std::fs::write(shell.path("secret"), MYSQL_PASSWORD).unwrap();
    made(&shell);
    server.sql("", "DROP DATABASE b; DELETE FROM a.t WHERE seq > 5");
    shell.ends(0, &["restore", "db", "--yes", "--no-safety-backup", "--dry-run"]);
    // What is left of it can be dumped no more, so this is refused before anything is replaced, unless it is wanted.
    let error = shell.complains(1, &["restore", "db", "--yes"]);
    assert!(error.contains("cannot be backed up first"), "{error}");
    assert_eq!(server.sql("a", "SELECT count(*) FROM t"), "5");
    server.sql("", "CREATE DATABASE b");
    shell.ends(0, &["restore", "db", "--yes"]);
    assert_eq!([server.sums("a"), server.sums("b")], before);
}

#[test]
fn repository_returns_by_a_bundle_of_git() {
    let outputs = format!(
        "{{ name = 'code.bundle', dump = ['git', '-C', 'HERE/repo', 'bundle', 'create', '-q', '-', '--all'], restore = {}, check = {} }}",
        sh(
            "cat > HERE/restored.bundle && rm -rf HERE/repo && git clone -q --mirror HERE/restored.bundle HERE/repo"
        ),
        sh("head -c 16 | grep -q \"git bundle\"")
    );
    let shell = with_outputs(&outputs, "");
    let git = |words: &[&str]| {
        let mut command = Command::new("git");
        command
            .arg("-C")
            .arg(shell.path("repo"))
            .args(["-c", "user.name=x", "-c", "user.email=x"])
            .args(words);
        let output = command.output().unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    std::fs::create_dir(shell.path("repo")).unwrap();
    git(&["init", "-q"]);
    for n in 0..20 {
        std::fs::write(shell.path("repo/file"), "text ".repeat(n)).unwrap();
        git(&["add", "."]);
        git(&["commit", "-q", "-m", &format!("number {n}")]);
    }
    git(&["tag", "first"]);
    let before = git(&["log", "--all", "--format=%H %T"]);
    made(&shell);
    git(&["commit", "-q", "--allow-empty", "-m", "newer"]);
    shell.ends(0, &["restore", "db", "--yes"]);
    assert_eq!(git(&["log", "--all", "--format=%H %T"]), before);
}

#[test]
fn output_that_is_not_whole_is_no_backup() {
    let good = "echo data of some length";
    let cases = [
        ("exit 3", "", "failed (exit status: 3): it said nothing"),
        ("echo data of some length; echo late trouble >&2; exit 1", "", "late trouble"),
        ("echo data of some length; kill -9 $$", "", "signal: 9"),
        ("exit 0", "", "has 0 bytes, expected at least 1"),
        (good, ", min_bytes = 1000", "has 20 bytes, expected at least 1000"),
        (good, ", check = ['grep', '-q', 'END']", "grep failed (exit status: 1)"),
        (
            good,
            ", check = ['no-such-program-here']",
            "no-such-program-here failed (could not be started)",
        ),
        ("echo data of some length; sleep 1000", ", timeout = '1s'", "took longer than 1 s"),
        (good, ", timeout = '1s', check = ['sleep', '1000']", "took longer than 1 s"),
        ("yes", ", timeout = '2s'", "took longer than 2 s"),
    ];
    for (script, more, expected) in cases {
        let shell = with_outputs(&format!("{{ name = 'x', dump = {}{more} }}", sh(script)), "");
        let error = shell.complains(1, &["backup", "db"]);
        assert!(error.contains(expected), "{script}{more}: {error}");
        assert_eq!(count(&shell), 0, "{script}");
        let folder = shell.path("storage/backstay/default/db");
        let left = std::fs::read_dir(folder)
            .into_iter()
            .flatten()
            .flatten()
            .filter(|entry| entry.path().is_dir());
        assert_eq!(left.count(), 0, "{script}");
    }
    // A check may end before it has read everything; how it ends counts.
    let outputs = format!(
        "{{ name = 'x', dump = {}, check = ['head', '-c', '1'] }}",
        sh("yes | head -c 3000000")
    );
    assert_eq!(made(&with_outputs(&outputs, ""))["plain_bytes"], 3_000_000);
}

#[test]
fn full_storage_ends_a_backup_and_its_programs_at_once() {
    let shell = with_outputs(&format!("{{ name = 'x', dump = {} }}", sh("cat /dev/urandom")), "");
    let storage = shell.path("storage");
    let disk = SmallDisk::mount(&storage, 12);
    let error = shell.complains(14, &["backup", "db"]);
    assert!(error.contains("no space left"), "{error}");
    assert_eq!(count(&shell), 0);
    drop(disk);
}

#[test]
fn second_output_that_fails_leaves_no_backup_of_the_first() {
    let outputs = format!(
        "{{ name = 'a', dump = ['echo', 'first'] }}, {{ name = 'b', dump = {} }}",
        sh("echo second; exit 1")
    );
    let shell = with_outputs(&outputs, "");
    shell.complains(1, &["backup", "db"]);
    assert_eq!(count(&shell), 0);
}

#[test]
fn several_outputs_return_together_or_alone() {
    let output = |name: &str| {
        format!(
            "{{ name = '{name}', dump = ['cat', 'HERE/{name}'], restore = {} }}",
            sh(&format!("cat > HERE/{name}"))
        )
    };
    let shell = with_outputs(
        &format!(
            "{}, {}, {{ name = 'log', dump = ['echo', 'x'] }}",
            output("one.txt"),
            output("tenants-2")
        ),
        "",
    );
    let write = |text: &str| {
        ["one.txt", "tenants-2"]
            .map(|name| std::fs::write(shell.path(name), format!("{text} {name}")).unwrap())
    };
    let read =
        || ["one.txt", "tenants-2"].map(|name| std::fs::read_to_string(shell.path(name)).unwrap());
    write("old");
    let id = made(&shell)["id"].as_str().unwrap().to_owned();
    write("new");
    let error = shell.complains(1, &["restore", "db", "--yes"]);
    assert!(error.contains("no restore command for log"), "{error}");
    shell.ends(0, &["restore", "db", "--id", &id, "--only", "tenants-2", "--yes"]);
    assert_eq!(read(), ["new one.txt", "old tenants-2"]);
    shell.ends(
        0,
        &["restore", "db", "--id", &id, "--only", "tenants-2", "--only", "one.txt", "--yes"],
    );
    assert_eq!(read(), ["old one.txt", "old tenants-2"]);
    let error = shell.complains(1, &["restore", "db", "--only", "other", "--yes"]);
    assert!(error.contains("nothing in the backup matches other"), "{error}");
    let error = shell.complains(1, &["restore", "db", "--to", "elsewhere", "--yes"]);
    assert!(error.contains("--to-file"), "{error}");
    let file = shell.path("taken");
    shell.ends(0, &["download", &id, "--part", "log", "--output", file.to_str().unwrap()]);
    assert_eq!(std::fs::read_to_string(file).unwrap(), "x\n");
}

#[test]
fn restore_that_fails_half_way_says_what_is_known_and_what_was_there_comes_back() {
    let outputs = format!(
        "{{ name = 'x', dump = ['cat', 'HERE/data'], restore = {} }}",
        sh(
            "head -c 5 > HERE/data; if [ -e HERE/broken ]; then echo no room >&2; exit 1; fi; cat >> HERE/data"
        )
    );
    let shell = with_outputs(&outputs, "");
    std::fs::write(shell.path("data"), "old data\n").unwrap();
    let id = made(&shell)["id"].as_str().unwrap().to_owned();
    std::fs::write(shell.path("data"), "new data\n").unwrap();
    std::fs::write(shell.path("broken"), "").unwrap();
    let error = shell.complains(1, &["restore", "db", "--id", &id, "--yes"]);
    assert!(
        error.contains("nobody knows what is there now") && error.contains("no room"),
        "{error}"
    );
    assert_eq!(std::fs::read_to_string(shell.path("data")).unwrap(), "old d");
    std::fs::remove_file(shell.path("broken")).unwrap();
    let safety = error.split("held as backup ").nth(1).unwrap().split(':').next().unwrap();
    shell.ends(0, &["restore", "db", "--id", safety, "--yes"]);
    assert_eq!(std::fs::read_to_string(shell.path("data")).unwrap(), "new data\n");
    // Where nothing is left to be saved, it comes back without.
    std::fs::remove_file(shell.path("data")).unwrap();
    let error = shell.complains(1, &["restore", "db", "--id", &id, "--yes"]);
    assert!(error.contains("restore with --no-safety-backup"), "{error}");
    shell.ends(0, &["restore", "db", "--id", &id, "--yes", "--no-safety-backup"]);
    assert_eq!(std::fs::read_to_string(shell.path("data")).unwrap(), "old data\n");
    assert_eq!(
        std::fs::read_dir(shell.path("home/spool")).unwrap().count(),
        0,
        "nothing is left in the spool"
    );
}

#[test]
fn restore_program_reads_everything_though_we_are_killed() {
    let outputs = format!(
        "{{ name = 'x', dump = {}, restore = {} }}",
        sh("yes | head -c 5000000"),
        sh(
            "touch HERE/reached; while [ ! -e HERE/go ]; do sleep 0.02; done; seq 1 50000 >&2 || exit 1; wc -c > HERE/count.new; mv HERE/count.new HERE/count"
        )
    );
    let shell = with_outputs(&outputs, "");
    made(&shell);
    let restoring = start(&shell, &["restore", "db", "--yes"]);
    wait_until("the program runs", || shell.path("reached").exists());
    send(&restoring, Signal::KILL);
    ended(restoring);
    // A next command cleans what the killed one left.
    shell.ends(0, &["backups", "db"]);
    std::fs::write(shell.path("go"), "").unwrap();
    wait_until("the program ends", || shell.path("count").exists());
    assert_eq!(std::fs::read_to_string(shell.path("count")).unwrap().trim(), "5000000");
}

#[test]
fn interrupted_backup_ends_its_programs_with_all_that_they_started() {
    let outputs = format!(
        "{{ name = 'x', dump = {} }}",
        sh("sleep 98765 & echo $! > HERE/child; echo $$ > HERE/parent; yes")
    );
    let shell = with_outputs(&outputs, "");
    let working = start(&shell, &["backup", "db"]);
    wait_until("it runs", || shell.path("parent").exists());
    send(&working, Signal::INT);
    assert_eq!(ended(working).status.code(), Some(130));
    for name in ["child", "parent"] {
        let pid = std::fs::read_to_string(shell.path(name)).unwrap();
        let state = format!("/proc/{}/status", pid.trim());
        let is_over = || std::fs::read_to_string(&state).is_ok_and(|text| text.contains("zombie"));
        wait_until("it is gone", || !std::path::Path::new(&state).exists() || is_over());
    }
    assert_eq!(count(&shell), 0);
}

#[test]
fn programs_find_what_is_given_to_them_and_none_of_our_secrets() {
    let shell = with_outputs(
        "{ name = 'x', dump = ['env'] }",
        "variables = { OURS = '${GIVEN}', FROM_FILE = 'file:HERE/secret' }",
    );
    std::fs::write(shell.path("secret"), "of the file\n").unwrap();
    let mut command = shell.command(&["backup", "db"]);
    command
        .env("GIVEN", "of the environment")
        .env("BACKSTAY_MASTER_KEY", "")
        .env("AWS_SECRET_ACCESS_KEY", "not-theirs");
    assert!(command.status().unwrap().success());
    let file = shell.path("taken");
    let mut command = shell.command(&["restore", "db", "--to-file", file.to_str().unwrap()]);
    assert!(command.env("GIVEN", "x").status().unwrap().success());
    let found = std::fs::read_to_string(file).unwrap();
    assert!(
        found.contains("OURS=of the environment\n") && found.contains("FROM_FILE=of the file\n"),
        "{found}"
    );
    assert!(!found.contains("AWS_") && !found.contains("BACKSTAY"), "{found}");
    let error = shell.complains(2, &["backup", "db"]);
    assert!(error.contains("variable GIVEN is not set"), "{error}");
}

#[test]
fn arguments_are_data_for_programs_and_no_shell() {
    let shell = with_outputs(
        "{ name = 'x', dump = ['printf', '%s|', '$(id)', '--', '; rm -rf /', \"a'b\"] }"
            .replace("$(", "$$(")
            .as_str(),
        "",
    );
    made(&shell);
    let file = shell.path("taken");
    shell.ends(0, &["restore", "db", "--to-file", file.to_str().unwrap()]);
    assert_eq!(std::fs::read_to_string(file).unwrap(), "$(id)|--|; rm -rf /|a'b|");
}

#[test]
fn wrong_configurations_are_told_with_what_is_expected() {
    for (outputs, more, expected) in [
        ("", "", "are missing"),
        ("{ name = '../x', dump = ['x'] }", "", "the name `../x`"),
        ("{ name = 'x', dump = [] }", "", "`dump` is empty"),
        ("{ name = 'x', dump = ['x'] }, { name = 'x', dump = ['y'] }", "", "twice"),
        ("{ name = 'x', dump = ['x'], timeout = 'soon' }", "", "found the timeout `soon`"),
        ("{ name = 'x', dump = ['x'], restor = ['y'] }", "", "did you mean `restore`"),
        (
            "{ name = 'x', dump = ['x'] }",
            "variables = { 'A=B' = 'c' }",
            "expected one of a variable",
        ),
        ("{ name = 'x', dump = ['x'] }", "path = '/x'", "has `outputs` instead"),
        ("{ name = 'x', dump = ['x'] }", "host = 'x'", "only a source of kind"),
        (
            "{ name = 'x', dump = ['x'] }",
            "checks = [{ name = 'a', query = 'b' }]",
            "answers no queries",
        ),
    ] {
        let error = with_outputs(outputs, more).complains(2, &["config", "check"]);
        assert!(error.contains(expected), "{outputs} {more}: {error}");
    }
    let shell = with_outputs("{ name = 'x', dump = ['no-such-program-here'] }", "");
    let error = shell.complains(1, &["source", "test", "db"]);
    assert!(error.contains("no-such-program-here is not found (x)"), "{error}");
}

#[test]
fn drill_proves_and_checks_and_gives_nothing_to_the_restore_program() {
    let outputs = format!(
        "{{ name = 'x', dump = ['cat', 'HERE/data'], restore = ['touch', 'HERE/restored'], check = {} }}",
        sh("test -e HERE/bad && exit 1; grep -q good")
    );
    let shell = with_outputs(&outputs, "");
    std::fs::write(shell.path("data"), "good\n").unwrap();
    made(&shell);
    shell.ends(0, &["drill", "db"]);
    assert!(!shell.path("restored").exists());
    std::fs::write(shell.path("bad"), "").unwrap();
    let error = shell.complains(1, &["drill", "db"]);
    assert!(error.contains("sh failed"), "{error}");
    assert_eq!(
        std::fs::read_dir(shell.path("home/spool")).unwrap().count(),
        0,
        "nothing is left in the spool"
    );
}

#[test]
fn full_spool_ends_a_restore_before_anything_is_replaced() {
    let outputs = format!(
        "{{ name = 'x', dump = {}, restore = ['touch', 'HERE/restored'] }}",
        sh("head -c 30000000 /dev/zero")
    );
    let shell = with_outputs(&outputs, "");
    made(&shell);
    let spool = shell.path("home/spool");
    let disk = SmallDisk::mount(&spool, 10);
    let error = shell.complains(14, &["restore", "db", "--yes"]);
    assert!(error.contains("bytes are needed") || error.contains("are needed"), "{error}");
    assert!(!shell.path("restored").exists());
    disk.grow(100);
    shell.ends(0, &["restore", "db", "--yes"]);
    assert!(shell.path("restored").exists());
}

#[test]
fn large_output_returns_equal_within_the_memory_promised() {
    let script = "seq 1 90000000 | head -c 650000000";
    let outputs = format!(
        "{{ name = 'x', dump = {}, restore = {} }}",
        sh(script),
        sh("sha256sum > HERE/sum")
    );
    let shell = with_outputs(&outputs, "");
    assert_within_promise(&shell, &["backup", "db"]);
    assert_within_promise(&shell, &["restore", "db", "--yes"]);
    let expected =
        Command::new("sh").args(["-c", &format!("{script} | sha256sum")]).output().unwrap();
    assert_same(
        &std::fs::read_to_string(shell.path("sum")).unwrap(),
        &String::from_utf8(expected.stdout).unwrap(),
    );
}

#[test]
fn list_of_backups_says_what_each_is_how_it_ended_and_how_long_it_took() {
    let shell = Shell::with_tree("");
    let made = shell.json(&["backup", "shop"]);
    let list = shell.ends(0, &["backups"]);
    let lines: Vec<Vec<&str>> =
        list.lines().map(|line| line.split_whitespace().collect()).collect();
    let [head, row] = lines.as_slice() else { panic!("{list}") };
    let at = |name: &str| head.iter().position(|word| *word == name).unwrap();
    assert_eq!(row[at("ID")], made["id"].as_str().unwrap());
    assert_eq!(&row[at("STATUS")..=at("TRIGGER")], ["complete", "manual"]);
    // Sizes and times have their units in a word of their own.
    assert_eq!(at("TOOK") - at("SIZE"), 2);
    assert!(row[at("SIZE") + 4].parse::<f64>().is_ok() && row[at("SIZE") + 5] == "s", "{list}");
}
