//! One meaning of every call at every storage, and the faults that a network and a provider have.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use backstay_engine::cx::Cx;
use backstay_engine::event::Silent;
use backstay_engine::store::{
    Addressing, LocalSpec, Profile, S3Credentials, S3Spec, Store, StoreErrorKind, StoreSpec,
    UploadCheck, UploadLog, UploadLogError, probe,
};
use backstay_testkit::s3::{ACCESS_KEY, BUCKET, Call, Fault, S3Server, SECRET_KEY};
use bytes::Bytes;
use object_store::memory::InMemory;

const PART: usize = 8 << 20;

fn cx() -> Cx {
    Cx::new(Arc::new(Silent))
}

/// The server makes a runtime of its own, which cannot be done on a thread that drives one.
fn start() -> S3Server {
    std::thread::spawn(S3Server::start).join().unwrap().unwrap()
}

fn spec(server: &S3Server) -> S3Spec {
    // Another test of this process may have been first.
    drop(rustls::crypto::aws_lc_rs::default_provider().install_default());
    S3Spec {
        bucket: BUCKET.to_owned(),
        prefix: "backstay".to_owned(),
        endpoint: Some(server.endpoint.clone()),
        region: "us-east-1".to_owned(),
        addressing: Addressing::Path,
        credentials: keys(ACCESS_KEY, SECRET_KEY),
        ca_pem: None,
    }
}

fn keys(id: &str, secret: &str) -> S3Credentials {
    S3Credentials::Static {
        access_key_id: id.to_owned(),
        secret_access_key: secret.to_owned().into(),
        session_token: None,
    }
}

/// A profile of a server that checks payloads, so that proofs cost little.
fn profile() -> Profile {
    Profile { upload_check: UploadCheck::SignedPayload, ..Profile::cautious() }
}

fn open(spec: S3Spec) -> Store {
    Store::open(&StoreSpec::S3(spec), profile()).unwrap()
}

#[derive(Debug)]
struct Forgetful;

#[async_trait::async_trait]
impl UploadLog for Forgetful {
    async fn begun(&self, _object: &str, _upload: &str) -> Result<(), UploadLogError> {
        Ok(())
    }

    async fn ended(&self, _object: &str, _upload: &str) -> Result<(), UploadLogError> {
        Ok(())
    }
}

/// Lets the first `times` calls that fit have the fault.
fn first(
    times: usize,
    fault: Fault,
    fits: impl Fn(&Call) -> bool + Send + Sync + 'static,
) -> impl Fn(&Call) -> Fault + Send + Sync + 'static {
    let seen = AtomicUsize::new(0);
    move |call| {
        let due = fits(call) && seen.fetch_add(1, Ordering::SeqCst) < times;
        if due { fault } else { Fault::Pass }
    }
}

async fn keeps_the_contract(store: &Store) {
    let cx = cx();
    assert!(store.head(&cx, "a/x").await.unwrap().is_none());
    let missing = store.get(&cx, "a/x", 10).await.unwrap_err();
    assert_eq!(missing.kind(), StoreErrorKind::NotFound);
    store.delete(&cx, "a/x").await.unwrap();

    store.create(&cx, "a/x", "first".into()).await.unwrap();
    store.create(&cx, "a/x", "first".into()).await.unwrap();
    let taken = store.create(&cx, "a/x", "other".into()).await.unwrap_err();
    assert_eq!(taken.kind(), StoreErrorKind::AlreadyExists);
    assert_eq!(store.get(&cx, "a/x", 5).await.unwrap(), "first");
    assert_eq!(store.get(&cx, "a/x", 4).await.unwrap_err().kind(), StoreErrorKind::TooLarge);
    store.put(&cx, "a/x", "second".into()).await.unwrap();
    assert_eq!(store.range(&cx, "a/x", 1..4).await.unwrap(), "eco");
    assert_eq!(store.range(&cx, "a/x", 3..3).await.unwrap(), "");
    assert!(store.range(&cx, "a/x", 4..9).await.is_err());
    assert_eq!(store.head(&cx, "a/x").await.unwrap().unwrap().bytes, 6);

    store.put(&cx, "a/deep/y", Bytes::new()).await.unwrap();
    store.put(&cx, "b/z", "z".into()).await.unwrap();
    let listed: Vec<String> =
        store.list(&cx, "a").await.unwrap().into_iter().map(|object| object.name).collect();
    assert_eq!(listed, ["a/deep/y", "a/x"]);
    assert_eq!(store.list_folders(&cx, "", "").await.unwrap(), ["a", "b"]);
    assert!(store.put(&cx, "../escape", "x".into()).await.is_err());

    for bytes in [0, 1, PART, PART + 1, 3 * PART + 5] {
        let data: Bytes = (0..bytes).map(|i| (i / 7) as u8).collect();
        let mut upload = store.upload(&cx, "b/upload", None).await.unwrap();
        for piece in data.chunks(1_000_003) {
            upload.write(&cx, Bytes::copy_from_slice(piece)).await.unwrap();
        }
        assert_eq!(upload.finish(&cx).await.unwrap(), bytes as u64);
        assert!(store.get(&cx, "b/upload", u64::MAX).await.unwrap() == data, "{bytes} bytes");
    }
}

#[tokio::test]
async fn memory_keeps_the_contract() {
    let store = Store::over(Arc::new(InMemory::new()), "memory", "p", Profile::local());
    keeps_the_contract(&store).await;
}

#[tokio::test]
async fn directory_keeps_the_contract_and_is_closed_to_others() {
    use std::os::unix::fs::PermissionsExt as _;
    let dir = tempfile::tempdir().unwrap();
    let spec = LocalSpec { path: dir.path().join("backups"), prefix: "p".to_owned() };
    let store = Store::open(&StoreSpec::Local(spec.clone()), Profile::local()).unwrap();
    keeps_the_contract(&store).await;
    assert_eq!(std::fs::metadata(&spec.path).unwrap().permissions().mode() & 0o777, 0o700);
}

#[test]
fn directory_below_a_missing_one_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("not-mounted/backups");
    let spec = StoreSpec::Local(LocalSpec { path, prefix: String::new() });
    let error = Store::open(&spec, Profile::local()).unwrap_err();
    assert!(error.to_string().contains("parent directory must exist"), "{error}");
    assert!(!dir.path().join("not-mounted").exists());
}

#[tokio::test]
async fn bucket_keeps_the_contract() {
    let server = start();
    keeps_the_contract(&open(spec(&server))).await;
}

#[tokio::test]
async fn missing_bucket_is_never_taken_for_a_missing_object() {
    let server = start();
    let store = open(S3Spec { bucket: "nowhere".to_owned(), ..spec(&server) });
    // What AWS does: the answer to HEAD has no body.
    server.script(|call| match call.method.as_str() {
        "HEAD" => Fault::Refuse(404, ""),
        _ => Fault::Refuse(404, "NoSuchBucket"),
    });
    let error = store.head(&cx(), "vault.json").await.unwrap_err();
    assert_eq!(error.kind(), StoreErrorKind::NoSuchBucket);
}

#[tokio::test]
async fn each_refusal_has_its_kind() {
    let server = start();
    let store = open(spec(&server));
    for (status, code, kind) in [
        (403, "RequestTimeTooSkewed", StoreErrorKind::ClockSkew),
        (400, "ExpiredToken", StoreErrorKind::Expired),
        (403, "AccessDenied", StoreErrorKind::Denied),
        (403, "InvalidAccessKeyId", StoreErrorKind::UnknownKey),
        (301, "PermanentRedirect", StoreErrorKind::WrongRegion),
        (400, "AuthorizationHeaderMalformed", StoreErrorKind::WrongRegion),
        (404, "NoSuchBucket", StoreErrorKind::NoSuchBucket),
        (507, "InsufficientStorage", StoreErrorKind::NoSpace),
    ] {
        server.script(move |_| Fault::Refuse(status, code));
        let error = store.put(&cx(), "x", "x".into()).await.unwrap_err();
        assert_eq!(error.kind(), kind, "{code}: {error}");
    }
    server.script(|_| Fault::Refuse(403, "RequestTimeTooSkewed"));
    let skewed = store.put(&cx(), "x", "x".into()).await.unwrap_err();
    assert!(skewed.to_string().contains(" there and "), "both clocks are named: {skewed}");
    assert!(store.clock_skew().unwrap().abs().as_secs() < 3600);
    server.script(|_| Fault::Refuse(403, "AccessDenied"));
    let denied = store.put(&cx(), "x", "x".into()).await.unwrap_err();
    assert!(denied.to_string().contains("s3:PutObject"), "{denied}");
}

#[tokio::test]
async fn wrong_secret_and_unreachable_endpoints_are_told_apart() {
    let server = start();
    let kind = async |spec: S3Spec| {
        let error = open(spec).put(&cx(), "x", "x".into()).await.unwrap_err();
        error.kind()
    };
    let wrong = S3Spec { credentials: keys(ACCESS_KEY, "not the secret"), ..spec(&server) };
    assert_eq!(kind(wrong).await, StoreErrorKind::WrongSecret);
    let port = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap().local_addr().unwrap().port();
    let closed = S3Spec { endpoint: Some(format!("http://127.0.0.1:{port}")), ..spec(&server) };
    assert_eq!(kind(closed).await, StoreErrorKind::Refused);
    let tls = server.endpoint.replace("http://", "https://");
    let plain = S3Spec { endpoint: Some(tls), ..spec(&server) };
    assert_eq!(kind(plain).await, StoreErrorKind::Tls);
}

#[tokio::test]
async fn outage_that_passes_is_outlasted() {
    let server = start();
    let store = open(spec(&server));
    server.script(first(3, Fault::Refuse(503, "SlowDown"), |_| true));
    store.put(&cx(), "x", "x".into()).await.unwrap();
    assert_eq!(server.calls().len(), 4);
    server.script(first(1, Fault::DropBefore, |_| true));
    assert_eq!(store.get(&cx(), "x", 1).await.unwrap(), "x");
}

#[tokio::test]
async fn swallowed_upload_is_no_success() {
    let server = start();
    let store = open(spec(&server));
    server.script(first(1, Fault::Swallow, |call| call.method == "PUT"));
    let mut upload = store.upload(&cx(), "x", None).await.unwrap();
    upload.write(&cx(), "never stored".into()).await.unwrap();
    assert_eq!(upload.finish(&cx()).await.unwrap_err().kind(), StoreErrorKind::Corrupt);
}

#[tokio::test]
async fn upload_survives_a_lost_answer_to_its_completion() {
    let server = start();
    let store = open(spec(&server));
    let data = Bytes::from(vec![5; PART + 9]);
    server.script(first(1, Fault::DropAfter, |call| {
        call.method == "POST" && call.query.contains("uploadId")
    }));
    let mut upload = store.upload(&cx(), "x", None).await.unwrap();
    upload.write(&cx(), data.clone()).await.unwrap();
    assert_eq!(upload.finish(&cx()).await.unwrap(), data.len() as u64);
    assert!(store.get(&cx(), "x", u64::MAX).await.unwrap() == data);
}

#[tokio::test]
async fn completion_that_did_nothing_is_no_success() {
    let server = start();
    let store = open(spec(&server));
    server.script(|call| match call.method.as_str() {
        "POST" if call.query.contains("uploadId") => Fault::Refuse(404, "NoSuchUpload"),
        _ => Fault::Pass,
    });
    let mut upload = store.upload(&cx(), "x", None).await.unwrap();
    upload.write(&cx(), vec![5; PART + 9].into()).await.unwrap();
    assert!(upload.finish(&cx()).await.is_err());
    assert!(store.head(&cx(), "x").await.unwrap().is_none());
}

#[tokio::test]
async fn parts_are_on_their_way_while_the_source_thinks() {
    let server = start();
    let store = open(spec(&server));
    let mut upload = store.upload(&cx(), "x", None).await.unwrap();
    upload.write(&cx(), vec![1; PART + 1].into()).await.unwrap();
    let deadline = Instant::now() + Duration::from_secs(20);
    while !server.calls().iter().any(|call| call.query.contains("partNumber=1")) {
        assert!(Instant::now() < deadline, "the first part waits for more data");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    upload.abort(&cx()).await.unwrap();
    assert!(store.head(&cx(), "x").await.unwrap().is_none());
}

#[tokio::test]
async fn upload_of_more_parts_than_allowed_ends_in_an_error() {
    let limits = Profile { max_parts: 2, equal_parts: true, ..Profile::local() };
    let store = Store::over(Arc::new(InMemory::new()), "memory", "p", limits);
    let fits = Bytes::from(vec![1; 2 * PART]);
    let mut upload = store.upload(&cx(), "fits", None).await.unwrap();
    upload.write(&cx(), fits.clone()).await.unwrap();
    assert_eq!(upload.finish(&cx()).await.unwrap(), fits.len() as u64);
    let mut upload = store.upload(&cx(), "large", None).await.unwrap();
    upload.write(&cx(), fits).await.unwrap();
    upload.write(&cx(), "x".into()).await.unwrap();
    assert_eq!(upload.finish(&cx()).await.unwrap_err().kind(), StoreErrorKind::TooLarge);
}

#[tokio::test]
async fn listing_a_thousand_folders_costs_one_request() {
    let server = start();
    std::fs::create_dir_all(server.bucket().join("backstay/org")).unwrap();
    std::fs::write(server.bucket().join("backstay/org/index.json"), "{}").unwrap();
    for folder in 0..1000 {
        let folder = server.bucket().join(format!("backstay/org/{folder:04}"));
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join("index.json"), "{}").unwrap();
    }
    let store = open(spec(&server));
    server.script(|_| Fault::Pass);
    assert_eq!(store.list_folders(&cx(), "org", "0").await.unwrap().len(), 1000);
    assert_eq!(server.calls().len(), 1);
}

#[tokio::test]
async fn probe_leaves_nothing_behind() {
    let server = start();
    probe(&cx(), &StoreSpec::S3(spec(&server)), Arc::new(Forgetful)).await.unwrap();
    let store = open(spec(&server));
    assert_eq!(store.list(&cx(), "").await.unwrap(), []);
    // What is refused after the first writes is cleaned up too.
    server.script(first(1, Fault::Refuse(403, "AccessDenied"), |call| {
        call.method == "POST" && call.query.contains("uploads")
    }));
    let denied =
        probe(&cx(), &StoreSpec::S3(spec(&server)), Arc::new(Forgetful)).await.unwrap_err();
    assert_eq!(denied.kind(), StoreErrorKind::Denied);
    assert_eq!(store.list(&cx(), "").await.unwrap(), []);
}
