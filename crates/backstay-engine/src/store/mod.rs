//! Raw objects by name below one prefix, with one meaning everywhere; knows no meaning of theirs.
//!
//! Retry, deadlines, and what differs between providers stand in this folder only, and only it names the client
//! library below.

mod credentials;
mod error;
mod http;
mod leftover;
mod open;
mod probe;
mod profile;
mod upload;

use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use backstay_format::Sha256;
use bytes::Bytes;
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use jiff::SignedDuration;
use object_store::list::{PaginatedListOptions, PaginatedListStore};
use object_store::path::Path;
use object_store::{GetOptions, ObjectStore, ObjectStoreExt as _, PutMode, PutOptions, PutPayload};

pub use error::{StoreError, StoreErrorKind};
pub use leftover::{UploadLog, UploadLogError};
pub use open::{Addressing, LocalSpec, S3Credentials, S3Spec, StoreSpec};
pub use probe::{Finding, ProbeReport, probe};
pub use profile::{Profile, UploadCheck};
pub use upload::Upload;

use self::http::StorageClock;
use self::leftover::{NoLog, Unfinished};
use crate::cx::Cx;

/// A listing beyond this is refused rather than held in memory: about 1 GiB of names.
const MAX_LISTED: usize = 5_000_000;
/// Times that a read whose answer was cut is asked again.
const READ_ATTEMPTS: u32 = 4;

/// Objects below one prefix of one storage. Cheap to clone.
#[derive(Clone)]
pub struct Store {
    backend: Arc<dyn ObjectStore>,
    prefix: String,
    /// A folder below the prefix, with its closing slash, or nothing.
    folder: String,
    location: String,
    profile: Profile,
    unfinished: Unfinished,
    log: Arc<dyn UploadLog>,
    /// Listings by the beginning of a name, where the client library offers them; they return less.
    pages: Option<Arc<dyn PaginatedListStore>>,
    clock: StorageClock,
}

/// One object in a listing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObjectInfo {
    /// Its name below the store's prefix.
    pub name: String,
    /// Its size.
    pub bytes: u64,
    /// When the storage says that it was written, in seconds since 1970.
    pub modified_secs: i64,
}

impl Store {
    /// Makes a store over any backend; for tests with faults in between.
    pub fn over(
        backend: Arc<dyn ObjectStore>,
        location: &str,
        prefix: &str,
        profile: Profile,
    ) -> Self {
        Self {
            backend,
            prefix: prefix.to_owned(),
            folder: String::new(),
            location: location.to_owned(),
            profile,
            unfinished: Unfinished::Hidden,
            log: Arc::new(NoLog),
            pages: None,
            clock: StorageClock::default(),
        }
    }

    /// Returns a store of what lies in a folder of this one.
    #[must_use]
    pub fn below(&self, folder: &str) -> Self {
        Self {
            folder: format!("{}{folder}/", self.folder),
            location: format!("{}/{folder}", self.location),
            ..self.clone()
        }
    }

    /// Returns where the objects are, for a person: `s3://bucket/prefix` or a path.
    pub fn location(&self) -> &str {
        &self.location
    }

    /// Returns by how much the storage's clock was ahead of ours in its last answer; negative if it was behind.
    pub fn clock_skew(&self) -> Option<SignedDuration> {
        self.clock.skew()
    }

    /// Returns what the storage can do.
    pub fn profile(&self) -> &Profile {
        &self.profile
    }

    /// Writes an object, replacing what has its name.
    pub async fn put(&self, cx: &Cx, name: &str, data: Bytes) -> Result<(), StoreError> {
        let path = self.path(name)?;
        let put = self.backend.put(&path, PutPayload::from_bytes(data));
        self.call(cx, "write", name, put).await.map(drop)
    }

    /// Writes an object that must not be there yet.
    ///
    /// A create whose first answer was lost finds its own object on the second try, so the content decides.
    pub async fn create(&self, cx: &Cx, name: &str, data: Bytes) -> Result<(), StoreError> {
        if !self.profile.create_only_put {
            // Names that must be unique carry random ids, so the gap between asking and writing is not used by anybody.
            return match self.definitely_missing(cx, name, &self.path(name)?).await? {
                None => self.put(cx, name, data).await,
                Some(_) => self.already_there(cx, name, &data).await,
            };
        }
        let path = self.path(name)?;
        let options = PutOptions { mode: PutMode::Create, ..PutOptions::default() };
        let put = self.backend.put_opts(&path, PutPayload::from_bytes(data.clone()), options);
        match self.call(cx, "create", name, put).await {
            Ok(_) => Ok(()),
            Err(error) if error.kind() == StoreErrorKind::AlreadyExists => {
                self.already_there(cx, name, &data).await
            }
            Err(error) => Err(error),
        }
    }

    async fn already_there(&self, cx: &Cx, name: &str, data: &Bytes) -> Result<(), StoreError> {
        match self.get(cx, name, data.len() as u64).await {
            Ok(there) if there == *data => Ok(()),
            Ok(_) => Err(self.error(StoreErrorKind::AlreadyExists, "create", name, None)),
            Err(error) if error.kind() == StoreErrorKind::TooLarge => {
                Err(self.error(StoreErrorKind::AlreadyExists, "create", name, None))
            }
            Err(error) => Err(error),
        }
    }

    /// Reads an object of at most `max_bytes`.
    pub async fn get(&self, cx: &Cx, name: &str, max_bytes: u64) -> Result<Bytes, StoreError> {
        let path = self.path(name)?;
        self.read_again(cx, "read", name, || async {
            let found = self.backend.get(&path).await?;
            let bytes = found.meta.size;
            if bytes > max_bytes {
                return Ok(Err(bytes));
            }
            http::body(found).await.map(Ok)
        })
        .await?
        .map_err(|_bytes| self.error(StoreErrorKind::TooLarge, "read", name, None))
    }

    /// Reads exactly the bytes of a range.
    pub async fn range(&self, cx: &Cx, name: &str, range: Range<u64>) -> Result<Bytes, StoreError> {
        if range.is_empty() {
            // A range of no bytes cannot be asked for in HTTP.
            return Ok(Bytes::new());
        }
        let wanted = range.end - range.start;
        let (bytes, _) = self.range_of(cx, name, range).await?;
        if bytes.len() as u64 == wanted {
            return Ok(bytes);
        }
        Err(self.error(StoreErrorKind::CutShort, "read", name, None))
    }

    /// Reads as much of a range as there is. Returns beside it how many bytes the whole object has.
    async fn range_of(
        &self,
        cx: &Cx,
        name: &str,
        range: Range<u64>,
    ) -> Result<(Bytes, u64), StoreError> {
        let path = self.path(name)?;
        self.read_again(cx, "read", name, || async {
            let options = GetOptions::new().with_range(Some(range.clone()));
            let found = self.backend.get_opts(&path, options).await?;
            let whole = found.meta.size;
            Ok((http::body(found).await?, whole))
        })
        .await
    }

    /// Returns what is known of an object, or `None` if it is definitely not there.
    pub async fn head(&self, cx: &Cx, name: &str) -> Result<Option<ObjectInfo>, StoreError> {
        let path = self.path(name)?;
        match self.call(cx, "look at", name, self.backend.head(&path)).await {
            Ok(meta) => Ok(Some(ObjectInfo::new(name.to_owned(), &meta))),
            Err(error) if error.kind() == StoreErrorKind::NotFound => {
                self.definitely_missing(cx, name, &path).await
            }
            Err(error) => Err(error),
        }
    }

    /// Asks again in a way that tells a missing object from a missing bucket: the answer to HEAD has no body to say so.
    async fn definitely_missing(
        &self,
        cx: &Cx,
        name: &str,
        path: &Path,
    ) -> Result<Option<ObjectInfo>, StoreError> {
        match self.call(cx, "look at", name, self.backend.get(path)).await {
            Ok(found) => Ok(Some(ObjectInfo::new(name.to_owned(), &found.meta))),
            Err(error) if error.kind() == StoreErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Lists all objects whose names begin with the folder `prefix`, sorted by name.
    pub async fn list(&self, cx: &Cx, prefix: &str) -> Result<Vec<ObjectInfo>, StoreError> {
        let path = self.path(prefix)?;
        let mut found = Vec::new();
        let mut pages = self.backend.list(Some(&path));
        while let Some(meta) = self.call(cx, "list", prefix, pages.try_next()).await? {
            if found.len() == MAX_LISTED {
                return Err(self.error(StoreErrorKind::TooLarge, "list", prefix, None));
            }
            let Some(name) = self.name(&meta.location) else { continue };
            found.push(ObjectInfo::new(name, &meta));
        }
        found.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(found)
    }

    /// Lists the folders directly below the folder `prefix` whose names start with `beginning`: one request for each
    /// thousand.
    pub async fn list_folders(
        &self,
        cx: &Cx,
        prefix: &str,
        beginning: &str,
    ) -> Result<Vec<String>, StoreError> {
        let path = self.path(prefix)?;
        let found = match &self.pages {
            Some(pages) => {
                let listed = list_pages(pages.as_ref(), format!("{path}/{beginning}"));
                self.call(cx, "list", prefix, listed).await?
            }
            None => {
                let listed = self.backend.list_with_delimiter(Some(&path));
                self.call(cx, "list", prefix, listed).await?.common_prefixes
            }
        };
        let last = |path: Path| path.filename().map(str::to_owned);
        let mut folders: Vec<String> = found.into_iter().filter_map(last).collect();
        folders.retain(|folder| folder.starts_with(beginning));
        folders.sort();
        Ok(folders)
    }

    /// Removes an object. One that is not there is removed already.
    pub async fn delete(&self, cx: &Cx, name: &str) -> Result<(), StoreError> {
        let path = self.path(name)?;
        match self.call(cx, "delete", name, self.backend.delete(&path)).await {
            Err(error) if error.kind() != StoreErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    /// Begins to write an object of unknown length; `estimate` counts its bytes.
    pub async fn upload(
        &self,
        cx: &Cx,
        name: &str,
        estimate: Option<u64>,
    ) -> Result<Upload, StoreError> {
        cx.check().map_err(StoreError::cancelled)?;
        Ok(Upload::new(self.clone(), name.to_owned(), self.path(name)?, estimate))
    }

    /// Compares an object with what was sent: its size and its last bytes, and all of it where the storage does not check
    /// uploads itself.
    async fn prove(&self, cx: &Cx, name: &str, sent: &Sent) -> Result<(), StoreError> {
        // All of it says more than its end does.
        let proven = match sent.sha256 {
            Some(sha256) if sent.bytes > 0 => self.read_back(cx, name, sent.bytes, sha256).await,
            _ => self.prove_end(cx, name, sent).await,
        };
        proven.map_err(|error| match error.kind() {
            StoreErrorKind::NotFound => {
                self.differs(name, "it acknowledged the object but does not have it".to_owned())
            }
            _ => error,
        })
    }

    fn differs(&self, name: &str, found: String) -> StoreError {
        self.error(StoreErrorKind::Corrupt, "prove", name, Some(found))
    }

    fn check_size(&self, name: &str, there: u64, sent: u64) -> Result<(), StoreError> {
        if there == sent {
            return Ok(());
        }
        Err(self.differs(name, format!("it has {there} bytes of the {sent} that were sent")))
    }

    /// Returns the size of an object that should be there.
    async fn size(&self, cx: &Cx, name: &str) -> Result<u64, StoreError> {
        let there = self.head(cx, name).await?;
        let missing = || self.error(StoreErrorKind::NotFound, "prove", name, None);
        there.map(|there| there.bytes).ok_or_else(missing)
    }

    async fn prove_end(&self, cx: &Cx, name: &str, sent: &Sent) -> Result<(), StoreError> {
        self.check_size(name, self.size(cx, name).await?, sent.bytes)?;
        let tail = self.range(cx, name, sent.bytes - sent.tail.len() as u64..sent.bytes).await?;
        if tail == sent.tail {
            return Ok(());
        }
        Err(self.differs(name, "its last bytes are not those that were sent".to_owned()))
    }

    /// Reads an object of at least one byte, and compares it with the digest of what was sent.
    async fn read_back(
        &self,
        cx: &Cx,
        name: &str,
        sent: u64,
        sha256: Sha256,
    ) -> Result<(), StoreError> {
        // Before several are asked for at once: a server that makes the ETag of the content, as rclone's does, would make
        // it once for each of them.
        if sent > upload::READ_BACK_BYTES {
            self.check_size(name, self.size(cx, name).await?, sent)?;
        }
        let starts = (0..sent).step_by(upload::READ_BACK_BYTES as usize);
        let read =
            |start| self.range_of(cx, name, start..(start + upload::READ_BACK_BYTES).min(sent));
        let mut ranges = stream::iter(starts).map(read).buffered(upload::READ_BACK_AT_ONCE);
        let mut hasher = backstay_format::Hasher::new();
        while let Some((bytes, whole)) = ranges.try_next().await? {
            self.check_size(name, whole, sent)?;
            hasher.update(&bytes);
        }
        if hasher.finish() == sha256 {
            return Ok(());
        }
        Err(self.differs(name, "its bytes are not those that were sent".to_owned()))
    }

    /// Runs one call, stopping with the context, and says what a failure means.
    async fn call<T>(
        &self,
        cx: &Cx,
        action: &'static str,
        name: &str,
        call: impl Future<Output = object_store::Result<T>>,
    ) -> Result<T, StoreError> {
        let (answer, refusal) = cx.run(http::watched(call)).await.map_err(StoreError::cancelled)?;
        answer.map_err(|cause| StoreError::explain(action, name, &self.location, cause, refusal))
    }

    /// Runs a read, again if its answer was cut: reading twice does no harm.
    async fn read_again<T, F>(
        &self,
        cx: &Cx,
        action: &'static str,
        name: &str,
        read: impl Fn() -> F,
    ) -> Result<T, StoreError>
    where
        F: Future<Output = object_store::Result<T>>,
    {
        let mut attempt = 1;
        loop {
            let error = match self.call(cx, action, name, read()).await {
                Err(error) if error.kind().may_pass() && attempt < READ_ATTEMPTS => error,
                settled => return settled,
            };
            let after = Duration::from_millis(200 << attempt);
            cx.event(crate::event::Event::Retrying {
                what: format!("{action} {name}"),
                error: error.to_string(),
                after,
            });
            cx.run(tokio::time::sleep(after)).await.map_err(StoreError::cancelled)?;
            attempt += 1;
        }
    }

    fn error(
        &self,
        kind: StoreErrorKind,
        action: &'static str,
        name: &str,
        found: Option<String>,
    ) -> StoreError {
        StoreError::new(kind, action, name, &self.location, found)
    }

    fn path(&self, name: &str) -> Result<Path, StoreError> {
        let full = format!("{}/{}{}", self.prefix, self.folder, name);
        let full = full.trim_matches('/');
        if full.split('/').any(|segment| segment == "..") {
            return Err(self.error(StoreErrorKind::BadName, "use", name, None));
        }
        Path::parse(full).map_err(|_| self.error(StoreErrorKind::BadName, "use", name, None))
    }

    /// Returns the name below the prefix and the folder, or `None` for what lies elsewhere.
    fn name(&self, path: &Path) -> Option<String> {
        let full: &str = path.as_ref();
        let prefix = self.prefix.trim_matches('/');
        let below = match prefix.is_empty() {
            true => full,
            false => full.strip_prefix(prefix)?.strip_prefix('/')?,
        };
        below.strip_prefix(&self.folder).map(str::to_owned)
    }
}

impl ObjectInfo {
    fn new(name: String, meta: &object_store::ObjectMeta) -> Self {
        Self { name, bytes: meta.size, modified_secs: meta.last_modified.timestamp() }
    }
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Store").field("location", &self.location).finish_non_exhaustive()
    }
}

async fn list_pages(
    pages: &dyn PaginatedListStore,
    beginning: String,
) -> object_store::Result<Vec<Path>> {
    let mut found = Vec::new();
    let mut page_token = None;
    loop {
        let options = PaginatedListOptions {
            delimiter: Some("/".into()),
            page_token,
            ..PaginatedListOptions::default()
        };
        let page = pages.list_paginated(Some(&beginning), options).await?;
        found.extend(page.result.common_prefixes);
        page_token = page.page_token;
        if page_token.is_none() || found.len() > MAX_LISTED {
            return Ok(found);
        }
    }
}

/// What was sent, to compare with what is there.
#[derive(Debug)]
struct Sent {
    bytes: u64,
    tail: Bytes,
    /// Only where everything is read back.
    sha256: Option<Sha256>,
}
