//! What it costs to prove an upload where the storage checks none, and that nothing else passes for it.

use std::sync::Arc;

use backstay_engine::cx::Cx;
use backstay_engine::event::Silent;
use backstay_engine::store::{Store, StoreError, StoreErrorKind};
use backstay_testkit::s3::{Fault, S3Server};
use bytes::Bytes;

use crate::world::bucket;

fn start() -> (S3Server, Store) {
    let server = std::thread::spawn(S3Server::start).join().unwrap().unwrap();
    let store = bucket(&server);
    (server, store)
}

async fn upload(store: &Store, bytes: impl Into<Bytes>) -> Result<u64, StoreError> {
    let cx = Cx::new(Arc::new(Silent));
    let mut upload = store.upload(&cx, "x", None).await.unwrap();
    upload.write(&cx, bytes.into()).await.unwrap();
    upload.finish(&cx).await
}

fn methods(server: &S3Server) -> Vec<String> {
    server.calls().iter().map(|call| call.method.to_string()).collect()
}

#[tokio::test]
async fn reading_a_small_upload_back_proves_it_with_one_request() {
    let (server, store) = start();
    assert_eq!(upload(&store, &b"all of it"[..]).await.unwrap(), 9);
    assert_eq!(methods(&server), ["PUT", "GET"]);
}

/// Servers that make the ETag of an object's content would make it once for each of several first requests.
#[tokio::test]
async fn large_upload_is_asked_for_once_before_it_is_read_back_at_once() {
    let (server, store) = start();
    upload(&store, vec![7; 20 << 20]).await.unwrap();
    let calls = methods(&server);
    assert_eq!(&calls[calls.len() - 4..], ["HEAD", "GET", "GET", "GET"], "{calls:?}");
}

#[tokio::test]
async fn object_that_is_longer_shorter_or_another_than_what_was_sent_is_no_success() {
    for there in [&b"all of it."[..], b"all of i", b"", b"all of at"] {
        let (server, store) = start();
        let file = server.bucket().join("backstay/x");
        server.script(move |call| {
            if call.method == "GET" {
                std::fs::write(&file, there).unwrap();
            }
            Fault::Pass
        });
        let error = upload(&store, &b"all of it"[..]).await.expect_err("it is not what was sent");
        // Of an object without bytes no range can be had, whatever the storage says of that.
        let expected = error.kind() == StoreErrorKind::Corrupt || there.is_empty();
        assert!(expected, "{there:?}: {error:?}");
    }
}

#[tokio::test]
async fn object_that_must_be_new_costs_two_requests_and_replaces_nothing() {
    let (server, store) = start();
    let cx = Cx::new(Arc::new(Silent));
    store.create(&cx, "x", Bytes::from_static(b"first")).await.unwrap();
    assert_eq!(methods(&server), ["GET", "PUT"]);
    let error = store.create(&cx, "x", Bytes::from_static(b"second")).await.unwrap_err();
    assert_eq!(error.kind(), StoreErrorKind::AlreadyExists);
    assert_eq!(store.get(&cx, "x", 100).await.unwrap(), "first");
}
