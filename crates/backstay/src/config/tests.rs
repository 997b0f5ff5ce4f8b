use super::*;

fn faults(text: &str) -> Vec<String> {
    let env = |name: &str| (name == "SET").then(|| "value".to_owned());
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
        with("path = '/srv", "pth = '/srv").contains("3: : unknown field `pth`"),
        "{}",
        with("path = '/srv", "pth = '/srv")
    );
    assert!(with("path = '/srv", "pth = '/srv").contains("did you mean `path`?"));
    assert!(
        with("'files'", "'postgres'")
            .contains("5: sources.shop.kind: kind `postgres` is not in this version")
    );
    assert!(with("'files'", "'tree'").contains("found `tree`, expected `files` or `sqlite`"));
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
        let config = Config::parse(&text, &|_| None).unwrap();
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
