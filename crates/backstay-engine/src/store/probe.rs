//! Finds out what a storage can do by doing it, below the prefix, with the four permissions that backups need.

use std::sync::Arc;

use bytes::Bytes;
use jiff::SignedDuration;
use rand::RngCore as _;

use super::{Profile, Store, StoreError, StoreErrorKind, StoreSpec, UploadCheck, UploadLog};
use crate::cx::Cx;

/// Two parts of the smallest size that S3 allows need this many bytes.
const MULTIPART_BYTES: usize = (8 << 20) + 1;

/// A clock that is further off than this deserves a word, before the storage refuses what is signed with it.
const LARGE_SKEW: SignedDuration = SignedDuration::from_secs(60);

/// What a probe found.
#[derive(Debug, Clone)]
pub struct ProbeReport {
    /// What the storage can do.
    pub profile: Profile,
    /// What was tried, in order.
    pub findings: Vec<Finding>,
    /// By how much its clock is ahead of ours; a directory has none of its own.
    pub clock_skew: Option<SignedDuration>,
}

/// One thing that was tried and went well, or that the storage cannot do and need not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// What was tried.
    pub what: &'static str,
    /// What came of it.
    pub result: String,
}

/// Tries everything that backups need (D5, V14), and finds out how far the storage can be trusted. Cleans up after itself.
pub async fn probe(
    cx: &Cx,
    spec: &StoreSpec,
    log: Arc<dyn UploadLog>,
) -> Result<ProbeReport, StoreError> {
    let mut tail = [0; 8];
    rand::rng().fill_bytes(&mut tail);
    let folder = format!(".backstay-probe-{}", hex::encode(tail));
    let report = probe_in(cx, spec, &folder, log).await;
    let cleaned = clean(cx, spec, &folder).await;
    let mut report = report?;
    cleaned?;
    report.findings.push(Finding { what: "delete", result: "works".to_owned() });
    Ok(report)
}

async fn clean(cx: &Cx, spec: &StoreSpec, folder: &str) -> Result<(), StoreError> {
    let (cx, store) = (cx.for_cleanup(), Store::open(spec, spec.documented_profile())?);
    for name in OBJECTS {
        store.delete(&cx, &format!("{folder}/{name}")).await?;
    }
    Ok(())
}

/// Every object that the probe writes.
const OBJECTS: [&str; 4] = ["small", "create", "corrupt", "multipart"];

async fn probe_in(
    cx: &Cx,
    spec: &StoreSpec,
    folder: &str,
    log: Arc<dyn UploadLog>,
) -> Result<ProbeReport, StoreError> {
    let mut profile = spec.documented_profile();
    let mut findings = Vec::new();
    let mut found = |what, result: &str| findings.push(Finding { what, result: result.to_owned() });
    let store = Store::open(spec, profile.clone())?;
    let [small, create, corrupt, multipart] = OBJECTS.map(|name| format!("{folder}/{name}"));

    store.list_folders(cx, folder, "").await?;
    found("list", "works");
    if let Some(skew) = store.clock_skew().filter(|skew| skew.abs() > LARGE_SKEW) {
        found(
            "clock",
            &format!("differs by {} s; above 900 s requests are refused", skew.as_secs()),
        );
    }
    let data = Bytes::from_static(b"backstay was here");
    store.put(cx, &small, data.clone()).await?;
    found("write", "works");
    let back = store.get(cx, &small, 1024).await?;
    let middle = store.range(cx, &small, 9..12).await?;
    let listed = store.list(cx, folder).await?;
    if back != data || middle != data.slice(9..12) || listed.len() != 1 {
        let what = "it gave back something else than was written".to_owned();
        return Err(StoreError::new(
            StoreErrorKind::Corrupt,
            "test",
            &small,
            store.location(),
            Some(what),
        ));
    }
    found("read back, whole and in ranges", "works");

    profile.create_only_put = refuses_second_create(cx, spec, &profile, &create).await?;
    found(
        "create only",
        if profile.create_only_put { "works" } else { "not offered; names are looked up first" },
    );
    if let StoreSpec::S3(_) = spec {
        profile.upload_check = upload_check(cx, spec, &profile, &corrupt).await?;
        found(
            "notices corrupted uploads",
            match profile.upload_check {
                UploadCheck::SignedPayload => "yes, by the signed payload",
                UploadCheck::ChecksumHeader => "yes, by a checksum header",
                UploadCheck::ReadBack | UploadCheck::Local => {
                    "no; every upload is read back and compared"
                }
            },
        );
    }
    let store = Store::open(spec, profile.clone())?.with_upload_log(log);
    let mut upload = store.upload(cx, &multipart, None).await?;
    upload.write(cx, vec![7; MULTIPART_BYTES].into()).await?;
    upload.finish(cx).await?;
    found("upload in parts", "works");
    Ok(ProbeReport { profile, findings, clock_skew: store.clock_skew() })
}

async fn refuses_second_create(
    cx: &Cx,
    spec: &StoreSpec,
    profile: &Profile,
    name: &str,
) -> Result<bool, StoreError> {
    let store = Store::open(spec, Profile { create_only_put: true, ..profile.clone() })?;
    match store.create(cx, name, Bytes::from_static(b"first")).await {
        Ok(()) => {}
        // Some providers answer a conditional put with 501, some with 400.
        Err(error)
            if matches!(error.kind(), StoreErrorKind::Unsupported | StoreErrorKind::Other) =>
        {
            return Ok(false);
        }
        Err(error) => return Err(error),
    }
    match store.create(cx, name, Bytes::from_static(b"second")).await {
        Ok(()) => Ok(false),
        Err(error) if error.kind() == StoreErrorKind::AlreadyExists => {
            // An answer is no proof: what was there first must still be there.
            Ok(store.get(cx, name, 1024).await? == "first")
        }
        Err(error) => Err(error),
    }
}

/// Sends a corrupted body under each check, cheapest first, until one is refused.
async fn upload_check(
    cx: &Cx,
    spec: &StoreSpec,
    profile: &Profile,
    name: &str,
) -> Result<UploadCheck, StoreError> {
    for check in [UploadCheck::SignedPayload, UploadCheck::ChecksumHeader] {
        let profile = Profile { upload_check: check, ..profile.clone() };
        let sound =
            Store::open(spec, profile.clone())?.put(cx, name, Bytes::from_static(b"sound")).await;
        if sound.is_err() {
            continue;
        }
        let corrupting = Store::open_with(spec, profile, true)?;
        let refused =
            corrupting.put(cx, name, Bytes::from_static(b"corrupted on the way")).await.is_err();
        if refused {
            return Ok(check);
        }
    }
    Ok(UploadCheck::ReadBack)
}
