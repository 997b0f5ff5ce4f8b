//! MariaDB when something breaks: what is not whole is never called good, and a database is old or new (V7, V8, V50, V51).

use std::os::unix::fs::PermissionsExt as _;
use std::process::Stdio;

use backstay_testkit::gate::Gate;
use backstay_testkit::mysql::{MysqlServer, PASSWORD, USER};
use backstay_testkit::proxy::{Network, Proxy};

use crate::mysql::{assert_same, made, nasty, with_database};
use crate::postgres::{Load, move_to};
use crate::shell::Shell;

const OURS: &str =
    "SELECT count(*) FROM information_schema.schemata WHERE schema_name LIKE 'backstay%'";

/// A directory of programs in which the dump's is a script.
fn with_dump(server: &MysqlServer, shell: &Shell, script: &str) {
    let programs = shell.path("programs");
    std::fs::create_dir_all(&programs).unwrap();
    let real = server.programs().join("mariadb-dump");
    // Whoever looks for the program asks it for its version.
    let text = format!(
        "#!/bin/sh\nREAL={}\ncase \"$*\" in *--version*) exec \"$REAL\" \"$@\";; esac\n{script}\n",
        real.display()
    );
    let path = programs.join("mariadb-dump");
    std::fs::write(&path, text).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    let line = format!("programs = '{}'\n", programs.display());
    if !shell.config().contains(&line) {
        shell.set_config(shell.config() + &line);
    }
}

#[test]
fn dump_that_is_not_whole_is_no_backup_however_its_program_ends() {
    let server = MysqlServer::start();
    nasty(&server, "shop");
    let shell = with_database(&server, "shop", "");
    let size = made(&shell)["parts"].as_array().unwrap().last().unwrap()["plain_bytes"].clone();
    let size = usize::try_from(size.as_u64().unwrap()).unwrap();
    let middle = format!("\"$REAL\" \"$@\" | head -c {}; exit 0", size / 2);
    let last = format!("\"$REAL\" \"$@\" | head -c {}; exit 0", size - 40);
    let scripts = [
        (
            "\"$REAL\" \"$@\" | sed 's/^CREATE TABLE `nothing`/CREATE TABLE `something`/'",
            "lacks the table nothing",
        ),
        ("exit 0", "its last line is missing"),
        (middle.as_str(), "its last line is missing"),
        (last.as_str(), "its last line is missing"),
        ("\"$REAL\" \"$@\"; echo 'late trouble' >&2; exit 2", "late trouble"),
        ("\"$REAL\" \"$@\" | head -c 3000; kill -9 $$", "the dump's program failed"),
        ("\"$REAL\" \"$@\"; echo 'INSERT INTO zero VALUES (9, 9);'", "its last line is missing"),
    ];
    for (script, expected) in scripts {
        with_dump(&server, &shell, script);
        let error = shell.complains(1, &["backup", "db"]);
        assert!(error.contains(expected), "{script}: {error}");
        assert_eq!(shell.json(&["backups", "db"]).as_array().unwrap().len(), 1, "{script}");
    }
}

#[test]
fn restore_that_is_killed_before_any_of_its_changes_leaves_the_database_old_or_new() {
    let server = MysqlServer::start();
    server.sql("", "CREATE DATABASE shop");
    server.sql(
        "shop",
        "CREATE TABLE plain (id int PRIMARY KEY); CREATE TABLE parent (id int PRIMARY KEY);
         CREATE TABLE child (id int PRIMARY KEY, p int, FOREIGN KEY (p) REFERENCES parent (id));
         CREATE TRIGGER counted BEFORE INSERT ON child FOR EACH ROW SET NEW.id = NEW.id + 1;
         CREATE VIEW seen AS SELECT * FROM child; CREATE PROCEDURE work() SELECT 1;
         CREATE EVENT later ON SCHEDULE EVERY 1 DAY STARTS '2037-01-01 00:00:00' DO DELETE FROM plain;
         INSERT INTO parent VALUES (1); INSERT INTO child VALUES (1, 1)",
    );
    let first = server.digest("shop");
    let shell = with_database(&server, "shop", "");
    let first_id = made(&shell)["id"].as_str().unwrap().to_owned();
    server.sql(
        "shop",
        "INSERT INTO child VALUES (5, 1); DROP TABLE plain; CREATE TABLE newer (n int); DROP TRIGGER counted;
         CREATE TRIGGER other AFTER DELETE ON newer FOR EACH ROW DELETE FROM child;
         CREATE OR REPLACE VIEW seen AS SELECT 1 AS n; DROP EVENT later",
    );
    let second = server.digest("shop");
    let second_id = made(&shell)["id"].as_str().unwrap().to_owned();
    let gate = Gate::open(server.port);
    move_to(&shell, server.port, gate.port);
    let (mut old, mut new) = ((second, second_id), (first, first_id));
    let mut killed = 0;
    for n in 0.. {
        let words = ["restore", "db", "--id", &new.1, "--yes", "--no-safety-backup"];
        let mut command = shell.command(&words);
        let mut restoring = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        gate.kill_before(n, restoring.id());
        let ended = restoring.wait().unwrap();
        gate.disarm();
        if ended.code().is_some() {
            assert!(ended.success(), "{n}");
            assert_same(&server.digest("shop"), &new.0);
            break;
        }
        killed += 1;
        // Whatever was begun is finished by the next command.
        while shell.run(&["confirm", "db"]).status.success() {}
        let now = server.digest("shop");
        assert!(now == old.0 || now == new.0, "{n}: {now}");
        if now == new.0 {
            std::mem::swap(&mut old, &mut new);
        }
    }
    assert!(killed > 20, "{killed}");
    // The way back is as safe, and goes on when it is asked for again.
    for n in 0.. {
        let mut command = shell.command(&["undo", "db"]);
        let mut undoing = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        gate.kill_before(n, undoing.id());
        let ended = undoing.wait().unwrap();
        gate.disarm();
        if ended.code().is_some() {
            assert!(ended.success(), "{n}");
            assert!(n > 10, "{n}");
            break;
        }
        shell.run(&["undo", "db"]);
        assert_same(&server.digest("shop"), &old.0);
        shell.ends(0, &["confirm", "db"]);
        shell.ends(0, &["restore", "db", "--id", &new.1, "--yes", "--no-safety-backup"]);
    }
    assert_same(&server.digest("shop"), &old.0);
    shell.ends(0, &["confirm", "db"]);
    // And what killed ones left beside is swept by the next.
    shell.ends(0, &["restore", "db", "--id", &new.1, "--yes", "--no-safety-backup"]);
    shell.ends(0, &["confirm", "db"]);
    assert_eq!(server.sql("", OURS), "0");
}

#[test]
fn network_that_is_cut_anywhere_makes_no_false_success_and_leaves_the_database_old_or_new() {
    let server = MysqlServer::start();
    server.sql("", "CREATE DATABASE shop");
    server.sql(
        "shop",
        "CREATE TABLE child (id int PRIMARY KEY, p int); CREATE VIEW seen AS SELECT * FROM child; INSERT INTO child VALUES (1, 1);
         CREATE TRIGGER counted BEFORE INSERT ON child FOR EACH ROW SET NEW.id = NEW.id + 1",
    );
    let shell = with_database(&server, "shop", "");
    let mut new = (server.digest("shop"), made(&shell)["id"].as_str().unwrap().to_owned());
    server.sql("shop", "INSERT INTO child VALUES (5, 1); CREATE TABLE newer (n int)");
    let mut old = (server.digest("shop"), made(&shell)["id"].as_str().unwrap().to_owned());
    let proxy = Proxy::start(server.port);
    move_to(&shell, server.port, proxy.port);
    // Until so many bytes are more than it takes.
    for bytes in (0..).map(|step| 1000 + step * 4000) {
        proxy.set_after(bytes, Network::Cut);
        let words = ["restore", "db", "--id", &new.1, "--yes", "--no-safety-backup"];
        let done = shell.run(&words).status;
        let was_cut = proxy.network() == Network::Cut;
        proxy.mend();
        if !was_cut {
            assert!(done.success(), "{bytes}");
            assert!(bytes > 30_000, "{bytes}");
            break;
        }
        while shell.run(&["confirm", "db"]).status.success() {}
        let now = server.digest("shop");
        assert!(now == old.0 || now == new.0, "{bytes}: {now}");
        assert!(now == new.0 || !done.success(), "{bytes}: a false success");
        if now == new.0 {
            std::mem::swap(&mut old, &mut new);
        }
    }
    assert_same(&server.digest("shop"), &new.0);
    let before = shell.json(&["backups", "db"]).as_array().unwrap().len();
    for bytes in [500, 5000, 12_000] {
        proxy.set_after(bytes, Network::Cut);
        shell.complains(1, &["backup", "db"]);
        proxy.mend();
        assert_eq!(shell.json(&["backups", "db"]).as_array().unwrap().len(), before, "{bytes}");
    }
    made(&shell);
}

#[test]
fn server_that_is_killed_during_dump_or_restore_makes_no_false_success() {
    let mut server = MysqlServer::start_as(&["log-bin=log", "innodb-flush-log-at-trx-commit=1"]);
    nasty(&server, "shop");
    server.sql(
        "shop",
        "CREATE TABLE large AS SELECT seq AS id, md5(seq) AS text FROM seq_1_to_200000",
    );
    let before = server.digest("shop");
    let shell = with_database(&server, "shop", "");
    let id = made(&shell)["id"].as_str().unwrap().to_owned();
    let die = format!("kill -KILL {}", server.pid());
    with_dump(&server, &shell, &format!("\"$REAL\" \"$@\" | {{ head -c 300000; {die}; cat; }}"));
    shell.complains(1, &["backup", "db"]);
    server.revive();
    assert_eq!(shell.json(&["backups", "db"]).as_array().unwrap().len(), 1);
    assert_same(&server.digest("shop"), &before);
    with_dump(&server, &shell, "exec \"$REAL\" \"$@\"");
    // While it loads: the database beside has the large table then.
    let mut command = shell.command(&["restore", "db", "--id", &id, "--yes"]);
    let mut restoring = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let loading = "SELECT count(*) FROM information_schema.tables WHERE table_schema LIKE 'backstay%' AND table_name = 'large'";
    while server.sql("", loading) == "0" {
        assert!(restoring.try_wait().unwrap().is_none(), "it ended before");
    }
    let pid = rustix::process::Pid::from_raw(server.pid().cast_signed()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
    assert_eq!(restoring.wait().unwrap().code(), Some(1));
    server.revive();
    assert_same(&server.digest("shop"), &before);
    shell.ends(0, &["restore", "db", "--id", &id, "--yes"]);
    assert_same(&server.digest("shop"), &before);
    shell.ends(0, &["confirm", "db"]);
    assert_eq!(server.sql("", OURS), "0", "what the failed restore left is swept");
}

#[test]
fn causes_of_a_connection_that_fails_are_told_apart() {
    let server = MysqlServer::start();
    server.sql("", "CREATE DATABASE shop; CREATE TABLE shop.t (n int)");
    server.sql("", "CREATE USER weak@'127.0.0.1' IDENTIFIED BY 'my-secret-w3Kp'; CREATE USER poor@'127.0.0.1' IDENTIFIED BY 'my-secret-w3Kp'; GRANT SELECT ON shop.* TO poor@'127.0.0.1'; CREATE PROCEDURE shop.hidden() SELECT 1");
    server.sql("", "CREATE USER blind@'127.0.0.1' IDENTIFIED BY 'my-secret-w3Kp'; GRANT SELECT, SHOW VIEW, TRIGGER, EVENT, EXECUTE ON shop.* TO blind@'127.0.0.1'");
    // With what the message says, a role of its own is enough.
    server.sql("", "CREATE USER right_one@'127.0.0.1' IDENTIFIED BY 'my-secret-w3Kp'; CREATE ROLE reader; GRANT SELECT, SHOW VIEW, TRIGGER, EVENT ON shop.* TO reader; GRANT SELECT ON mysql.* TO reader; GRANT reader TO right_one@'127.0.0.1'; SET DEFAULT ROLE reader FOR right_one@'127.0.0.1'");
    let shell = with_database(&server, "shop", "");
    shell.edit_config(USER, "right_one");
    shell.ends(0, &["source", "test", "db"]);
    shell.ends(0, &["backup", "db"]);
    let port = format!(":{}/", server.port);
    let cases = [
        (PASSWORD, "wrong", "login failed"),
        ("/shop'", "/shoq'", "no database shoq"),
        ("127.0.0.1", "no.such.host.invalid", "name is not known"),
        (&port, ":1/", "connection refused"),
        ("/shop'", "/shop?ssl-mode=REQUIRED'", "TLS failed"),
        (USER, "weak", "no database shop that our user may see"),
        (USER, "poor", "it lacks SHOW VIEW, TRIGGER, EVENT, SELECT ON mysql.*"),
        (USER, "blind", "does not tell how hidden was made"),
        (
            "storage = 'main'",
            "storage = 'main'\nprograms = '/nowhere'",
            "install the package mariadb-client",
        ),
    ];
    // A program that is older than the server.
    let shell = with_database(&server, "shop", "");
    with_dump(&server, &shell, "exit 1");
    let older = "#!/bin/sh\necho 'mariadb-dump  Ver 10.19 Distrib 10.5.1-MariaDB, for Linux'\n";
    std::fs::write(shell.path("programs/mariadb-dump"), older).unwrap();
    let error = shell.complains(1, &["source", "test", "db"]);
    assert!(error.contains("mariadb-dump is of MariaDB 10.5.1"), "{error}");
    for (from, to, expected) in cases {
        let shell = with_database(&server, "shop", "");
        if from == PASSWORD {
            std::fs::write(shell.path("secret"), to).unwrap();
        } else {
            shell.edit_config(from, to);
        }
        let error = shell.complains(1, &["source", "test", "db"]);
        assert!(error.contains(expected), "{expected}: {error}");
        assert!(!error.contains(PASSWORD), "{error}");
    }
}

#[test]
fn restore_is_refused_where_it_would_hurt_or_cannot_work() {
    let server = MysqlServer::start();
    server.sql("", "CREATE DATABASE shop; CREATE TABLE shop.p (id int PRIMARY KEY); CREATE DATABASE other; CREATE TABLE other.c (p int, FOREIGN KEY (p) REFERENCES shop.p (id))");
    let shell = with_database(&server, "shop", "");
    made(&shell);
    // It would refer to what was set aside.
    let error = shell.complains(1, &["restore", "db", "--yes"]);
    assert!(error.contains("other.c"), "{error}");
    server.sql("", "DROP TABLE other.c");
    server.sql("", "CREATE USER modest@'127.0.0.1' IDENTIFIED BY 'my-secret-w3Kp'; GRANT ALL ON shop.* TO modest@'127.0.0.1'");
    shell.edit_config(USER, "modest");
    let error = shell.complains(1, &["restore", "db", "--yes"]);
    assert!(error.contains("gives our user the right"), "{error}");
    shell.edit_config("modest", USER);
    let error = shell.complains(1, &["restore", "db", "--to", "other", "--yes"]);
    assert!(error.contains("is there already"), "{error}");
    assert_eq!(server.sql("", OURS), "0");
    shell.ends(0, &["restore", "db", "--yes"]);
}

#[test]
fn parts_that_are_not_sealed_are_restored_with_standard_tools() {
    let server = MysqlServer::start();
    nasty(&server, "shop");
    let before = server.digest("shop");
    let shell = with_database(&server, "shop", "encryption = 'none'");
    let id = made(&shell)["id"].as_str().unwrap().to_owned();
    let folder = shell.path("storage/backstay/default/db").join(id);
    assert!(!crate::shell::contains(&folder, b"IDENTIFIED BY PASSWORD"), "a hash lies open");
    let new = MysqlServer::start();
    new.sql(
        "",
        "CREATE DATABASE shop CHARACTER SET utf8mb4 COLLATE utf8mb4_bin COMMENT 'it''s ours'",
    );
    for part in ["database.sql", "objects.sql"] {
        let script = shell.path(part);
        let zstd = std::process::Command::new("zstd")
            .args(["-q", "-d"])
            .arg(folder.join(format!("{part}.zst")))
            .arg("-o")
            .arg(&script)
            .status();
        assert!(zstd.unwrap().success());
        new.script("shop", &script);
    }
    assert_same(&new.digest("shop"), &before);
}

#[test]
fn database_moves_to_another_server_by_url_and_a_drill_leaves_nothing() {
    let (server, other) = (MysqlServer::start(), MysqlServer::start());
    nasty(&server, "shop");
    let before = server.digest("shop");
    let checks = "checks = [{ name = 'zero', query = 'SELECT id, n FROM zero', expect = '0|1' }]";
    let shell = with_database(&server, "shop", checks);
    made(&shell);
    shell.ends(0, &["drill", "db"]);
    assert_eq!(server.sql("", OURS), "0");
    shell.edit_config("0|1", "0|2");
    let told = shell.ends(1, &["drill", "db"]);
    assert!(told.contains("expected 0|2, found 0|1"), "{told}");
    std::fs::write(
        shell.path("url"),
        format!("{}\n", other.url("moved").replace('@', &format!(":{PASSWORD}@"))),
    )
    .unwrap();
    let to = format!("file:{}", shell.path("url").display());
    shell.ends(0, &["restore", "db", "--to", &to, "--yes"]);
    assert_same(&other.digest("moved"), &before);
    let error = shell.complains(1, &["restore", "db", "--to", &to, "--yes"]);
    assert!(error.contains("is there already"), "{error}");
}

#[test]
fn rows_that_the_server_would_change_end_a_restore() {
    let server = MysqlServer::start();
    server.sql("", "CREATE DATABASE shop; CREATE TABLE shop.t (id int PRIMARY KEY, v varchar(20)); INSERT INTO shop.t VALUES (1, 'rather long')");
    let before = server.digest("shop");
    let shell = with_database(&server, "shop", "encryption = 'none'");
    // The dump says of the column that it is shorter than what stands in it.
    with_dump(&server, &shell, "\"$REAL\" \"$@\" | sed 's/varchar(20)/varchar(5)/'");
    made(&shell);
    let error = shell.complains(1, &["restore", "db", "--yes"]);
    assert!(error.contains("Data truncated for column 'v'"), "{error}");
    assert_same(&server.digest("shop"), &before);
    assert_eq!(server.sql("", OURS), "0");
}

#[test]
fn app_that_goes_on_writing_never_writes_to_a_table_whose_trigger_is_missing() {
    let server = MysqlServer::start();
    server.sql("", "CREATE DATABASE shop");
    server.sql(
        "shop",
        "CREATE TABLE log (id int AUTO_INCREMENT PRIMARY KEY, what varchar(20));
         CREATE TRIGGER marked BEFORE INSERT ON log FOR EACH ROW SET NEW.what = concat(NEW.what, ' seen')",
    );
    let shell = with_database(&server, "shop", "");
    made(&shell);
    let mut client = server.command("mariadb");
    let forever = "DELIMITER //
        BEGIN NOT ATOMIC DECLARE CONTINUE HANDLER FOR SQLEXCEPTION BEGIN END; LOOP INSERT INTO log (what) VALUES ('row'); END LOOP; END //";
    client.args(["--database=shop", "--execute", forever]).stdout(Stdio::null());
    let mut load = Load(client.spawn().unwrap());
    let rows = "SELECT count(*), coalesce(sum(what NOT LIKE '% seen'), 0) FROM log";
    let mut written = 0;
    for _ in 0..6 {
        shell.ends(0, &["restore", "db", "--yes", "--no-safety-backup"]);
        let parked = server.sql("", "SELECT schema_name FROM information_schema.schemata WHERE schema_name LIKE 'backstay_old%'");
        for database in ["shop", &parked] {
            let found = server.sql(database, rows);
            let (count, unmarked) = found.split_once('\t').unwrap();
            written += count.parse::<u64>().unwrap();
            assert_eq!(unmarked, "0", "{database}");
        }
        shell.ends(0, &["undo", "db"]);
        assert!(server.sql("shop", rows).ends_with("\t0"));
        shell.ends(0, &["confirm", "db"]);
    }
    assert!(load.0.try_wait().unwrap().is_none(), "the load ended early");
    assert!(written > 1000, "{written}");
}
