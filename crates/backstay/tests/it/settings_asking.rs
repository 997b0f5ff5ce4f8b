//! Storages and sources that owners add, change and remove by way of a server (D4, D9, V15, V24, X1, ADR 23).

use std::io::Write as _;
use std::process::{Output, Stdio};

use backstay_testkit::daemon::wait_until;
use backstay_testkit::postgres::{PASSWORD, PostgresServer, USER};
use backstay_testkit::s3::{ACCESS_KEY, BUCKET, S3Server, SECRET_KEY};

use crate::members::Office;
use crate::shell::{Shell, contains};
use crate::workers::{Fleet, start};

/// Has something done by a member who types these lines.
fn types(office: &Office, member: &str, words: &[&str], lines: &str) -> Output {
    let mut command = office.command(member, words);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    child.stdin.take().unwrap().write_all(lines.as_bytes()).unwrap();
    child.wait_with_output().unwrap()
}

fn done(output: &Output) {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

fn refused(output: &Output, code: i32, why: &str) {
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{said}");
    assert!(said.contains(why), "{why}: {said}");
}

/// A server with a database `crm`.
fn database() -> PostgresServer {
    let server = PostgresServer::start();
    server.sql("postgres", "CREATE DATABASE crm");
    server.sql("crm", "CREATE TABLE orders AS SELECT generate_series(1, 1000) AS id");
    server
}

/// Where it is, without its password.
fn url(server: &PostgresServer) -> String {
    format!("postgres://{USER}@127.0.0.1:{}/crm", server.port)
}

fn add_storage(office: &Office, bucket: &S3Server, secret: &str) -> Output {
    let add = ["storage", "add", "cloud", "--bucket", BUCKET, "--endpoint", &bucket.endpoint];
    let lines = format!("{ACCESS_KEY}\n{secret}\n");
    types(office, "owner", &[&add[..], &["--credentials"]].concat(), &lines)
}

fn add_source(office: &Office, server: &PostgresServer, more: &[&str]) -> Output {
    let url = url(server);
    let add = ["source", "add", "crm", "--kind", "postgres", "--storage", "cloud", "--url", &url];
    let words = [&add[..], &["--credentials"], more].concat();
    types(office, "owner", &words, &format!("{PASSWORD}\n"))
}

#[test]
fn owner_adds_a_storage_and_a_database_that_are_backed_up_restored_and_recovered() {
    let (bucket, server) = (S3Server::start().unwrap(), database());
    let office = Office::new(Shell::with_tree(""));
    let serving = office.serve(&[]);

    let wrong = add_storage(&office, &bucket, "wrong");
    refused(&wrong, 1, "the storage's test failed");
    assert_eq!(office.json("owner", &["storage", "list"]).as_array().unwrap().len(), 1);
    done(&add_storage(&office, &bucket, SECRET_KEY));
    done(&add_source(&office, &server, &["--schedule", "daily"]));
    // At once: whoever was answered need not wait for the server's next turn.
    let made = office.json("owner", &["backup", "crm"]);
    assert_eq!(made["status"], "complete");
    office.server.ends(0, &["verify", "crm"]);
    let sources = office.json("owner", &["source", "list"]);
    assert_eq!((&sources[0]["name"], &sources[0]["schedule"]), (&"crm".into(), &"daily".into()));

    // What is not said again stays.
    let set = ["source", "set", "crm", "--set", "keep = { last = 5 }", "--unset", "schedule"];
    office.ends(0, "owner", &set);
    let shown = office.server.json(&["config", "show"]);
    assert_eq!(shown["sources"]["crm"]["keep"]["last"], 5);
    assert!(shown["sources"]["crm"]["schedule"].is_null(), "{shown}");
    office.json("owner", &["backup", "crm"]);

    let before = server.digest("crm");
    server.sql("crm", "DELETE FROM orders");
    office.ends(0, "owner", &["restore", "crm", "--yes"]);
    assert_eq!(server.digest("crm"), before);

    // It can be read as a file, and has nothing that is secret.
    let exported = office.ends(0, "owner", &["config", "export"]);
    let tables: toml::Table = toml::from_str(&exported).unwrap();
    assert_eq!(tables["sources"]["crm"]["url"].as_str(), Some(url(&server).as_str()));
    assert!(tables["sources"].as_table().unwrap().len() == 1 && tables.len() == 2, "{exported}");
    for secret in [PASSWORD, SECRET_KEY] {
        assert!(!exported.contains(secret));
        assert!(!contains(&office.server.path("home"), secret.as_bytes()));
    }
    let audit = office.audit();
    for action in ["storage add", "source add", "source set"] {
        let by_owner = |entry: &[String; 4]| entry[0] == "owner" && entry[1] == action;
        assert!(audit.iter().any(by_owner), "{action}: {audit:?}");
    }

    // A new machine has the password, too.
    office.ends(0, "owner", &["backup", "crm"]);
    office.server.ends(0, &["keys", "kit", "--output", "kit.txt"]);
    serving.kill();
    std::fs::remove_dir_all(office.server.path("home")).unwrap();
    std::fs::remove_file(office.server.path("backstay.toml")).unwrap();
    let storage = format!("s3://{BUCKET}");
    let recover = ["recover", "--storage", &storage, "--endpoint", &bucket.endpoint];
    office.server.ends(0, &[&recover[..], &["--kit", "kit.txt"]].concat());
    office.server.ends(0, &["backup", "crm"]);
}

#[test]
fn password_is_replaced_and_is_forgotten_with_its_source() {
    let (bucket, server) = (S3Server::start().unwrap(), database());
    let office = Office::new(Shell::with_tree(""));
    let _serving = office.serve(&[]);
    done(&add_storage(&office, &bucket, SECRET_KEY));
    done(&add_source(&office, &server, &[]));
    let secrets = || {
        let catalog = rusqlite::Connection::open(office.server.path("home/catalog.db")).unwrap();
        let count = "SELECT count(*) FROM secrets WHERE name LIKE 'password of source crm%'";
        catalog.query_row(count, [], |row| row.get::<_, i64>(0)).unwrap()
    };
    let credentials = |password: &str| {
        types(&office, "owner", &["source", "credentials", "crm"], &format!("{password}\n"))
    };
    done(&credentials("wrong"));
    let failed = office.ends(1, "owner", &["backup", "crm"]);
    assert!(failed.contains("password"), "{failed}");
    refused(&credentials("file:/etc/passwd"), 2, "expected a password");
    refused(&credentials("\n"), 2, "expected a line with the password");
    done(&credentials(PASSWORD));
    office.ends(0, "owner", &["backup", "crm"]);
    assert_eq!(secrets(), 1, "only the newest is kept");

    // What says where a secret is sent is changed only by who knows it.
    let other = format!("url = '{}'", url(&server).replace("127.0.0.1", "localhost"));
    let move_it = ["source", "set", "crm", "--set", &other];
    let said = office.ends(2, "owner", &move_it);
    assert!(said.contains("`url` says where the password is sent"), "{said}");
    let with_it = [&move_it[..], &["--credentials"]].concat();
    done(&types(&office, "owner", &with_it, &format!("{PASSWORD}\n")));
    office.ends(0, "owner", &["backup", "crm"]);
    let elsewhere = ["storage", "set", "cloud", "--set", "endpoint = 'http://127.0.0.1:9'"];
    let said = office.ends(2, "owner", &elsewhere);
    assert!(said.contains("`endpoint` says where the credentials are sent"), "{said}");
    // A test that fails leaves all as it was, the credentials too.
    let lines = format!("{ACCESS_KEY}\nother\n");
    let with_them = [&elsewhere[..], &["--credentials"]].concat();
    refused(&types(&office, "owner", &with_them, &lines), 1, "nothing was changed");
    let of_storage = ["storage", "credentials", "cloud"];
    refused(&types(&office, "owner", &of_storage, &lines), 1, "those before stay");
    office.ends(0, "owner", &["backup", "crm"]);
    office.ends(0, "owner", &["storage", "set", "cloud", "--set", "jobs = 2"]);

    // A file that says another password counts for more than what was sealed before, and what it says is the machine's.
    std::fs::write(office.server.path("password"), PASSWORD).unwrap();
    let file = format!("password = 'file:{}'", office.server.path("password").display());
    let exported = office.ends(0, "owner", &["config", "export"]);
    let imported = exported.replace("[sources.crm]", &format!("[sources.crm]\n{file}"));
    std::fs::write(office.server.path("kept.toml"), imported).unwrap();
    office.server.ends(0, &["config", "import", "kept.toml", "--replace"]);
    assert_eq!(secrets(), 0);
    office.server.ends(0, &["backup", "crm"]);
    refused(&credentials(PASSWORD), 2, "is changed on the server's machine");

    let used = office.ends(2, "owner", &["storage", "remove", "cloud"]);
    assert!(used.contains("used by source crm"), "{used}");
    office.ends(0, "owner", &["source", "remove", "crm"]);
    assert_eq!(secrets(), 0);
    office.ends(2, "owner", &["backup", "crm"]);
    office.ends(0, "owner", &["storage", "remove", "cloud"]);
    let declared = office.ends(2, "owner", &["source", "remove", "shop"]);
    assert!(declared.contains("stands in the file"), "{declared}");
}

/// What a token can have done must not become a program, a file or a variable of the server's machine.
#[test]
fn token_gives_no_programs_files_and_variables_of_the_servers_machine() {
    let office = Office::new(Shell::with_tree(""));
    let _serving = office.serve(&[]);
    let token = office.token("owner");
    let post = |path: &str, body: &str| office.ask("POST", path, Some(&token), body);
    let source = |more: &str| {
        format!("{{\"settings\": {{\"storage\": \"main\", {more}}}, \"password\": \"secret\"}}")
    };
    let good = "\"kind\": \"postgres\", \"host\": \"db.example.com\", \"user\": \"me\", \"database\": \"crm\"";
    for (more, why) in [
        ("\"kind\": \"files\", \"path\": \"/etc\"", "a source of kind `files`"),
        ("\"kind\": \"command\", \"outputs\": []", "a source of kind `command`"),
        ("\"kind\": \"sqlite\", \"path\": \"/srv/app.db\"", "a source of kind `sqlite`"),
        (&format!("{good}, \"before_backup\": {{\"run\": [\"sh\"]}}"), "`before_backup`"),
        (&format!("{good}, \"programs\": \"/tmp\""), "`programs`"),
        (&format!("{good}, \"migrations\": \"COPY t TO PROGRAM 'sh'\""), "`migrations`"),
        (&format!("{good}, \"checks\": {{\"rows\": \"SELECT true\"}}"), "`checks`"),
        (&format!("{good}, \"ssh\": {{\"host\": \"x\"}}"), "`ssh`"),
        (&format!("{good}, \"passfile\": \"/root/.pgpass\""), "`passfile`"),
        (&format!("{good}, \"tls_ca_file\": \"/etc/shadow\""), "`tls_ca_file`"),
        (&format!("{good}, \"app\": \"${{HOME}}\""), "the reference in `app`"),
        (&good.replace("\"me\"", "\"file:/etc/hostname\""), "the reference in `user`"),
        (&good.replace("db.example.com", "/var/run/postgresql"), "the host"),
        (&good.replace("db.example.com", "@socket"), "the host"),
        (&good.replace("db.example.com", "a,/run"), "the host"),
        ("\"kind\": \"postgres\", \"url\": \"postgres://me@%2Frun/crm\"", "a URL without a host"),
        (
            "\"kind\": \"postgres\", \"url\": \"postgres://me@/crm?host=/run\"",
            "an address that is no URL",
        ),
        (
            "\"kind\": \"postgres\", \"url\": \"postgres://me@h/crm?host=/run\"",
            "the parameter `host`",
        ),
        (
            "\"kind\": \"postgres\", \"url\": \"postgres://me@h/crm?passfile=/x\"",
            "the parameter `passfile`",
        ),
        ("\"kind\": \"mysql\", \"url\": \"mysql://me@h/crm?ssl-ca=/x\"", "the parameter `ssl-ca`"),
        ("\"kind\": \"postgres\", \"url\": \"file:/etc/url\"", "the reference in `url`"),
        ("\"kind\": \"postgres\", \"url\": \"postgres://me:open@h/crm\"", "open secret"),
        (&format!("{good}, \"password\": \"open\""), "open secret"),
        (&format!("{good}, \"new_in_a_later_version\": 1"), "`new_in_a_later_version`"),
        (&format!("{good}, \"schedule\": \"at night\""), "found `at night`"),
        (&format!("{good}, \"app\": null"), "found settings that the file could not have"),
    ] {
        let (status, answer) = post("/sources/crm", &source(more));
        assert_eq!(status, 400, "{more}: {answer}");
        assert!(answer.contains(why), "{more}: {answer}");
    }
    let (status, answer) = post("/sources/crm", &source(good).replace("secret", ""));
    assert!(status == 400 && answer.contains("expected a password"), "{answer}");
    let (status, answer) = post("/sources/crm", &format!("{{\"settings\": {{{good}}}}}"));
    assert!(status == 400 && answer.contains("a password is missing"), "{answer}");
    let (status, answer) = post("/sources/crm", "{\"setings\": {}}");
    assert!(status == 400 && answer.contains("setings"), "{answer}");
    let storage = |more: &str| {
        format!(
            "{{\"settings\": {{{more}}}, \"credentials\": {{\"access_key_id\": \"a\", \"secret_access_key\": \"b\"}}}}"
        )
    };
    for (more, why) in [
        ("\"provider\": \"local\", \"path\": \"/etc\"", "the provider `local`"),
        ("\"provider\": \"s3\", \"bucket\": \"b\", \"ca_file\": \"/x\"", "`ca_file`"),
        ("\"provider\": \"s3\", \"bucket\": \"b\", \"profile\": \"root\"", "`profile`"),
        ("\"provider\": \"s3\", \"bucket\": \"${HOME}\"", "the reference in `bucket`"),
    ] {
        let (status, answer) = post("/storages/cloud", &storage(more));
        assert_eq!(status, 400, "{more}: {answer}");
        assert!(answer.contains(why), "{more}: {answer}");
    }
    // Nor are the machine's own credentials anybody's.
    let bare = "{\"settings\": {\"provider\": \"s3\", \"bucket\": \"b\"}}";
    let (status, answer) = post("/storages/cloud", bare);
    assert!(status == 400 && answer.contains("credentials are missing"), "{answer}");
    assert_eq!(office.ends(0, "owner", &["config", "export"]).trim(), "", "nothing was kept");
    assert!(office.audit().iter().all(|entry| entry[0] != "owner"));
}

#[test]
fn source_that_the_machine_added_keeps_what_only_the_machine_may_say() {
    let office = Office::new(Shell::with_tree(""));
    let _serving = office.serve(&[]);
    let (shop, hook) = (office.server.path("shop"), "before_backup = { run = ['true'] }");
    let add = ["source", "add", "more", "--kind", "files", "--path", shop.to_str().unwrap()];
    let words = [&add[..], &["--storage", "main", "--set", hook]].concat();
    office.server.ends(0, &words);
    wait_until("the server knows it", || {
        office.json("owner", &["source", "list"]).as_array().unwrap().len() == 2
    });
    office.ends(0, "owner", &["source", "set", "more", "--set", "schedule = 'daily'"]);
    office.ends(0, "owner", &["backup", "more"]);
    for line in ["path = '/etc'", "before_backup = { run = ['sh'] }", "encryption = 'none'"] {
        let said = office.ends(2, "owner", &["source", "set", "more", "--set", line]);
        assert!(said.contains("is changed on the server's machine"), "{line}: {said}");
    }
    let unset = office.ends(2, "owner", &["source", "set", "more", "--unset", "before_backup"]);
    assert!(unset.contains("is changed on the server's machine"), "{unset}");
    // Also the last one that is there by commands: the server goes on without it.
    office.ends(0, "owner", &["source", "remove", "more"]);
    office.ends(2, "owner", &["backup", "more"]);
    office.ends(0, "owner", &["backup", "shop"]);
}

#[test]
fn settings_are_changed_by_owners_of_the_installation_alone() {
    let office = Office::new(Shell::with_tree(""));
    let config = office.server.config();
    let other = office.server.path("acme");
    office.server.set_config(format!(
        "{config}\n[storages.acme]\nprovider = 'local'\npath = '{}'\norganisation = 'acme'\n",
        other.display()
    ));
    office.add("tenant", &["--role", "owner", "--organisation", "acme"]);
    let _serving = office.serve(&[]);
    let url = "redis://127.0.0.1:9";
    let add = ["source", "add", "cache", "--kind", "redis", "--storage", "main", "--url", url];
    let changes: [&[&str]; 5] = [
        &add,
        &["source", "set", "shop", "--set", "schedule = 'daily'"],
        &["source", "remove", "shop"],
        &["storage", "remove", "main"],
        &["config", "export"],
    ];
    for member in ["viewer", "operator", "admin", "tenant"] {
        for words in changes {
            let said = office.ends(14, member, words);
            assert!(said.contains("owner"), "{member} {words:?}: {said}");
        }
    }
    office.ends(0, "owner", &add);
    assert!(office.ends(0, "owner", &["config", "export"]).contains(url));
    assert!(!office.ends(0, "tenant", &["source", "list"]).contains("cache"));
}

#[test]
fn source_is_gone_for_whoever_asks_next_even_if_it_was_the_last() {
    let shell = Shell::with_tree("");
    let config = shell.config();
    shell.set_config(&config[..config.find("[sources").unwrap()]);
    let office = Office::new(shell);
    let _serving = office.serve(&[]);
    let url = "redis://127.0.0.1:9";
    let add = ["source", "add", "cache", "--kind", "redis", "--storage", "main", "--url", url];
    office.ends(0, "owner", &add);
    // By hand, so that the next question comes at once.
    let token = office.token("owner");
    let ask = |method, path| office.ask(method, path, Some(&token), "").1;
    assert!(ask("GET", "/sources").contains("cache"));
    assert!(ask("DELETE", "/sources/cache").contains("is forgotten here"));
    assert!(!ask("GET", "/sources").contains("cache"));
}

/// X5: a sealed password reaches the worker that leased the job, and stays in its memory.
#[test]
fn sealed_password_goes_to_the_worker_with_the_job() {
    let server = database();
    let fleet = Fleet::new("worker = 'db1'");
    let url = url(&server);
    let programs = format!("programs = '{}'", server.programs().display());
    let add = ["source", "add", "crm", "--kind", "postgres", "--storage", "main", "--url", &url];
    let more = ["--credentials", "--set", "worker = 'db1'", "--set", &programs];
    let mut command = fleet.server.command(&[&add[..], &more].concat());
    let mut child = command.stdin(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(format!("{PASSWORD}\n").as_bytes()).unwrap();
    assert!(child.wait().unwrap().success());
    let _serving = fleet.serve();
    fleet.invite(&["--name", "db1"]);
    let url = format!("http://127.0.0.1:{}", fleet.port);
    let words = ["worker", "--server", &url, "--token-file", "token", "--name", "db1"];
    let _working = start(&fleet.worker, &words, &[]);
    wait_until("the worker is there", || fleet.worker_is_there());
    fleet.server.ends(0, &["backup", "crm"]);
    fleet.server.ends(0, &["verify", "crm"]);
    assert_eq!(fleet.jobs("crm")[0]["worker"], "db1");
    for machine in [&fleet.worker, &fleet.server] {
        assert!(!contains(&machine.path("home"), PASSWORD.as_bytes()));
    }
}
