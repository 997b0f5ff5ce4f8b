use super::*;

fn environment(variables: &[(&str, &str)]) -> Environment {
    variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

fn faults(text: &str) -> Vec<String> {
    let env = environment(&[("SET", "value")]);
    match Config::parse(text, &env) {
        Ok(_) => Vec::new(),
        Err(faults) => {
            faults.into_iter().map(|f| format!("{}: {}: {}", f.line, f.field, f.problem)).collect()
        }
    }
}

const GOOD: &str = "[storages.disk]\nprovider = 'local'\npath = '/srv/backups'\n\
                    [sources.shop]\nkind = 'files'\npath = '/var/lib/shop'\nstorage = 'disk'\n";

#[test]
fn template_is_legal_as_it_is_and_with_every_example_uncommented() {
    assert_eq!(faults(template::TEMPLATE), Vec::<String>::new());
    let is_setting = |line: &str| {
        line.starts_with('[') || line.split_once(" = ").is_some_and(|(k, _)| !k.contains(' '))
    };
    let uncommented: String = template::TEMPLATE
        .lines()
        .filter_map(|line| line.strip_prefix("# ").filter(|line| is_setting(line)))
        // What must exist on the machine is another test's business.
        .filter(|line| {
            !line.starts_with("ca_file")
                && !line.starts_with("password")
                && !line.starts_with("secret_access_key")
                && !line.starts_with("access_key_id")
        })
        .map(|line| format!("{}\n", line.replace("<account>", "account")))
        .collect();
    assert!(uncommented.contains("[sources.crm]"));
    assert_eq!(faults(&uncommented), Vec::<String>::new());
}

#[test]
fn each_fault_names_line_field_and_what_is_expected() {
    let with = |from: &str, to: &str| faults(&GOOD.replace(from, to)).join("\n");
    assert!(
        with("path = '/srv", "pth = '/srv").contains("3: storages.disk.pth: unknown field `pth`"),
        "{}",
        with("path = '/srv", "pth = '/srv")
    );
    assert!(with("path = '/srv", "pth = '/srv").contains("did you mean `path`?"));
    assert!(
        with("'files'", "'mongodb'").contains(
            "5: sources.shop.kind: found `mongodb`, expected `files`, `sqlite`, `duckdb`"
        )
    );
    assert!(with("'files'", "'tree'").contains(
        "found `tree`, expected `files`, `sqlite`, `duckdb`, `postgres`, `mysql`, `redis` or `command`"
    ));
    assert!(
        with("storage = 'disk'", "storage = 'dsk'")
            .contains("7: sources.shop.storage: found `dsk`")
    );
    assert!(
        with("'/var/lib/shop'", "'${UNSET}'")
            .contains("6: sources.shop.path: the environment variable UNSET is not set")
    );
    assert!(with("'/var/lib/shop'", "'relative'").contains("expected an absolute path"));
    assert!(with("[sources.shop]", "[sources.-x]").contains("is not a name"));
    assert!(with("storage = 'disk'", "").contains("missing field `storage`"));
    let s3 = |lines: &str| faults(&format!("[storages.b]\nprovider = 's3'\n{lines}\n")).join("\n");
    assert!(s3("").contains("2: storages.b.bucket: is missing"));
    assert!(s3("bucket = 'a/b'").contains("3: storages.b.bucket: found `a/b`"));
    assert!(
        s3("bucket = 'abc'\nendpoint = 'host:9x'")
            .contains("4: storages.b.endpoint: found the port `9x`")
    );
    assert!(
        s3("bucket = 'abc'\npublic_base_url = 'x'")
            .contains("public_base_url: backups are private")
    );
    assert!(s3("bucket = 'abc'\naccess_key_id = 'x'").contains("secret_access_key: is missing"));
    assert!(
        s3("bucket = 'abc'\nsecret_access_key = 'file:/does/not/exist'").contains("cannot be read")
    );
    assert!(
        s3("bucket = 'abc'\naccess_key_id = ' '\nsecret_access_key = 'x'").contains("is blank")
    );
}

#[test]
fn all_faults_are_told_at_once() {
    let text = GOOD
        .replace("'files'", "'tree'")
        .replace("'disk'", "'dsk'")
        .replace("'/srv/backups'", "'srv'");
    assert_eq!(faults(&text).len(), 3, "{:?}", faults(&text));
}

#[test]
fn endpoints_come_in_three_forms() {
    let endpoint = |lines: &str| {
        let text = format!("[storages.b]\nprovider = 's3'\nbucket = 'abc'\n{lines}\n");
        let config = Config::parse(&text, &Environment::new()).unwrap();
        match config.storages.into_values().next().unwrap().kind {
            StorageKind::S3 { endpoint, virtual_host, .. } => (endpoint, virtual_host),
            StorageKind::Local { .. } => (None, false),
        }
    };
    assert_eq!(endpoint(""), (None, true));
    let url = |text: &str| (Some(text.to_owned()), false);
    assert_eq!(endpoint("endpoint = 'https://s3.example.org/'"), url("https://s3.example.org"));
    assert_eq!(endpoint("endpoint = 'minio:9000'\nuse_ssl = false"), url("http://minio:9000"));
    assert_eq!(
        endpoint("endpoint = 'a.r2.cloudflarestorage.com'"),
        url("https://a.r2.cloudflarestorage.com")
    );
    assert!(endpoint("endpoint = 'https://s3.example.org'\naddressing = 'virtual'").1);
}

#[test]
fn schedules_time_zones_and_sizes_are_checked_where_they_stand() {
    let with = |line: &str| faults(&format!("{GOOD}{line}\n")).join("\n");
    for good in [
        "schedule = '0 2 * * *'\ntimezone = 'Europe/Berlin'",
        "schedule = 'every 24h'",
        "schedule = 'Hourly'\njitter = '59m'",
        "keep = { last = 7, max_bytes = '50GB' }",
    ] {
        assert_eq!(with(good), "");
    }
    let wrong = with("schedule = 'at night'");
    assert!(
        wrong.contains("8: sources.shop.schedule: found `at night`, expected five fields"),
        "{wrong}"
    );
    for schedule in ["hourly", "every 30m", "0,59 * * * *"] {
        let wrong = with(&format!("schedule = '{schedule}'\njitter = '1h'"));
        assert!(wrong.contains("9: sources.shop.jitter: is as long as the pause"), "{wrong}");
    }
    let wrong = with("timezone = 'Berlin'");
    assert!(wrong.contains("8: sources.shop.timezone: found `Berlin`"), "{wrong}");
    let wrong = with("keep = { max_bytes = 'lots' }");
    assert!(wrong.contains("8: sources.shop.keep") && wrong.contains("found `lots`"), "{wrong}");
    let wrong = with("compression_level = 'high'");
    assert!(
        wrong.contains("8: sources.shop.compression_level") && wrong.contains("expected i32"),
        "{wrong}"
    );
}

#[test]
fn variables_of_the_environment_replace_settings_and_a_misspelt_one_is_an_error() {
    let text = GOOD.replace("sources.shop", "sources.shop-1");
    let parse = |variables: &[(&str, &str)]| Config::parse(&text, &environment(variables));
    let config = parse(&[
        ("BACKSTAY_SOURCES__SHOP_1__PATH", "/elsewhere"),
        ("BACKSTAY_SOURCES__SHOP_1__COMPRESSION_LEVEL", "9"),
        ("BACKSTAY_SOURCES__SHOP_1__EXCLUDE", "['cache/']"),
        ("BACKSTAY_STORAGES__DISK__PREFIX", "2026"),
        ("BACKSTAY_ORGANISATION", "acme"),
        ("BACKSTAY_HOME", "/home"),
    ])
    .unwrap();
    let source = &config.sources["shop-1"];
    assert_eq!((source.kind.location().as_str(), source.compression_level), ("/elsewhere", 9));
    assert_eq!(config.organisation.as_str(), "acme");
    let StorageKind::Local { prefix, .. } = &config.storages["disk"].kind else { panic!("local") };
    assert_eq!(prefix, "2026");
    let wrong = parse(&[("BACKSTAY_SOURCES__SHIP__PATH", "/elsewhere")]).unwrap_err();
    assert_eq!(wrong[0].field, "BACKSTAY_SOURCES__SHIP__PATH");
    let wrong = parse(&[("BACKSTAY_SOURCES__SHOP_1__PTH", "/elsewhere")]).unwrap_err();
    assert!(wrong[0].problem.contains("did you mean `path`"), "{wrong:?}");
}

#[test]
fn additions_join_the_file_and_the_file_wins() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("backstay.toml");
    std::fs::write(&file, GOOD).unwrap();
    let source = |path: &str| -> toml::Table {
        toml::from_str(&format!("kind = 'files'\npath = '{path}'\nstorage = 'disk'")).unwrap()
    };
    let mut additions = Additions::default();
    additions.sources.insert("crm".to_owned(), source("/srv/crm"));
    additions.sources.insert("shop".to_owned(), source("/srv/other"));
    let config = Config::load(Some(&file), &additions, &Environment::new()).unwrap();
    assert_eq!(config.sources["crm"].kind.location(), "/srv/crm");
    assert_eq!(config.sources["shop"].kind.location(), "/var/lib/shop");
    assert!(config.warnings.iter().any(|warning| warning.contains("the file counts")));
    additions.sources.insert("bad".to_owned(), source("relative"));
    let wrong = Config::load(Some(&file), &additions, &Environment::new()).unwrap_err();
    assert_eq!(wrong.faults[0].line, 0);
    assert!(wrong.to_string().contains("kept in the catalog"), "{wrong}");
}

#[test]
fn sealed_password_is_data_and_no_reference() {
    const PASSWORD: &str = "a$b${HOME}$$\"'\\ ü";
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("backstay.toml");
    std::fs::write(&file, GOOD).unwrap();
    let table = "kind = 'postgres'\nurl = 'postgres://me@h/crm'\nstorage = 'disk'";
    let mut additions = Additions::default();
    additions.sources.insert("crm".to_owned(), toml::from_str(table).unwrap());
    additions.fill_in([("crm".to_owned(), PASSWORD.into())].into());
    let config = Config::load(Some(&file), &additions, &Environment::new()).unwrap();
    let SourceKind::Postgres(crm) = &config.sources["crm"].kind else { panic!("postgres") };
    let password = crm.connection.password.as_ref().unwrap();
    assert_eq!(secrecy::ExposeSecret::expose_secret(password), PASSWORD);
}

#[test]
fn schema_describes_every_field_and_knows_no_others() {
    let schema = Config::schema();
    let source = &schema["$defs"]["RawSource"];
    assert_eq!(source["additionalProperties"], false);
    assert!(source["properties"]["schedule"]["description"].as_str().unwrap().contains("cron"));
    assert_eq!(source["required"], serde_json::json!(["kind", "storage"]));
}

#[test]
fn database_is_reached_by_a_url_or_by_fields_and_faults_never_repeat_a_password() {
    let source = |fields: &str| {
        let head = "[storages.disk]\nprovider = 'local'\npath = '/srv'\n[sources.db]\nkind = 'postgres'\nstorage = 'disk'\n";
        let env = environment(&[(
            "URL",
            "postgres://me:se%40cret@db.example:5433/shop?sslmode=verify-full",
        )]);
        Config::parse(&format!("{head}{fields}"), &env)
            .map(|config| config.sources["db"].kind.location())
    };
    let faults = |fields: &str| {
        let faults = source(fields).unwrap_err();
        faults.iter().map(|f| format!("{}: {}", f.field, f.problem)).collect::<Vec<_>>().join("\n")
    };
    assert_eq!(source("url = '${URL}'").unwrap(), "postgres://me@db.example:5433/shop");
    assert_eq!(
        source("url = '${URL}'\nssh = { host = 'bastion' }").unwrap(),
        "postgres://me@db.example:5433/shop"
    );
    assert_eq!(
        source("host = '/run/pg'\nuser = 'a b'\ndatabase = 'x/y'").unwrap(),
        "postgres://a%20b@%2Frun%2Fpg:5432/x%2Fy"
    );
    assert_eq!(
        source("url = 'postgres://a%20b@%2Frun%2Fpg:5432/x%2Fy'").unwrap(),
        "postgres://a%20b@%2Frun%2Fpg:5432/x%2Fy"
    );
    for (fields, expected) in [
        ("", "sources.db.host: is missing: give `url`, or `host`"),
        ("host = 'h'\nuser = 'u'\ndatabase = 'd'\nport = 70000", "sources.db.port: found 70000"),
        ("url = '${URL}'\nhost = 'h'", "sources.db.host: stands in `url` already"),
        ("url = 'mysql://u:secret@h/d'", "begins with `mysql:`"),
        ("url = 'postgres://u:secret@h'", "names no database"),
        ("url = 'postgres://u:secret@h/d?sslmode=on'", "has sslmode `on`"),
        ("url = 'postgres://u:secret@h:port/d'", "is no URL"),
        ("url = '${UNSET}'", "UNSET is not set"),
        ("url = '${URL}'\npath = '/srv'", "has `url` or `host` instead"),
        ("url = '${URL}'\nlock_timeout = 'soon'", "sources.db.lock_timeout: found `soon`"),
        ("url = '${URL}'\nssh = { user = 'u' }", "sources.db.ssh: missing field `host`"),
        ("url = '${URL}'\nssh = { host = 'h', hots = 'x' }", "unknown field `hots`"),
        ("url = '${URL}'\nssh = { host = '-oX' }", "sources.db.ssh.host: found `-oX`"),
        ("url = '${URL}'\nssh = { host = 'h', user = '' }", "sources.db.ssh.user: found ``"),
        ("url = '${URL}'\nssh = { host = 'h', port = 0 }", "sources.db.ssh.port: found 0"),
        (
            "url = '${URL}'\nssh = { host = 'h', identity_file = '~/id' }",
            "sources.db.ssh.identity_file: found `~/id`, expected an absolute path",
        ),
        (
            "url = '${URL}'\nssh = { host = 'h', known_hosts_file = '/%h' }",
            "sources.db.ssh.known_hosts_file: found `/%h`",
        ),
        (
            "host = '/run/pg'\nuser = 'u'\ndatabase = 'd'\nssh = { host = 'h' }",
            "sources.db.ssh: cannot lead to `/run/pg`",
        ),
        ("url = '${URL}'\npassfile = '/x'", "sources.db.passfile: there is a password already"),
        (
            "url = 'postgres://u@h/d'\npassfile = 'x'",
            "sources.db.passfile: found `x`, expected an absolute path",
        ),
        ("url = 'postgres://u@h/d?passfile=/does/not/exist'", "passfile: /does/not/exist cannot"),
        ("url = '${URL}'\nretries = -1", "sources.db.retries"),
        ("url = '${URL}'\nretry_after = 'soon'", "sources.db.retry_after: found `soon`"),
        ("url = '${URL}'\nretry_after = '-1m'", "sources.db.retry_after: is less than nothing"),
        ("url = '${URL}'\ntls = 'sometimes'", "sources.db.tls: found `sometimes`"),
    ] {
        let found = faults(fields);
        assert!(found.contains(expected), "{fields}: {found}");
        assert!(!found.contains("secret"), "{found}");
    }
}

#[test]
fn port_and_bastion_of_a_database_come_from_the_environment_too() {
    let text = "[storages.disk]\nprovider = 'local'\npath = '/srv'\n[sources.db]\nkind = 'postgres'\nstorage = 'disk'\n\
                host = 'h'\nuser = 'u'\ndatabase = 'd'\n";
    let env = environment(&[
        ("BACKSTAY_SOURCES__DB__PORT", "5433"),
        ("BACKSTAY_SOURCES__DB__SSH", "{ host = 'bastion', port = 2222 }"),
    ]);
    let config = Config::parse(text, &env).unwrap();
    let SourceKind::Postgres(postgres) = &config.sources["db"].kind else { panic!("postgres") };
    assert_eq!(postgres.connection.port, 5433);
    assert!(postgres.connection.tunnel.is_some());
}
