//! An object store that loses power: from one call on, nothing works any more.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::stream::{BoxStream, StreamExt as _};
use object_store::path::Path;
use object_store::{
    CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore,
    PutMultipartOptions, PutOptions, PutPayload, PutResult, Result, UploadPart,
};

/// Passes so many calls on, then fails every one.
#[derive(Debug, Clone)]
pub struct PowerCut {
    inner: Arc<dyn ObjectStore>,
    left: Arc<AtomicUsize>,
}

impl PowerCut {
    /// Fails every call after the first `calls`.
    pub fn after(inner: Arc<dyn ObjectStore>, calls: usize) -> Self {
        Self { inner, left: Arc::new(AtomicUsize::new(calls)) }
    }

    /// Returns whether the power was cut.
    pub fn is_cut(&self) -> bool {
        self.left.load(Ordering::SeqCst) == 0
    }

    fn pass(&self) -> Result<()> {
        let left =
            self.left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1));
        left.map(drop).map_err(|_| object_store::Error::Generic {
            store: "test",
            source: "the power is cut".into(),
        })
    }
}

impl fmt::Display for PowerCut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PowerCut({})", self.inner)
    }
}

#[async_trait]
impl ObjectStore for PowerCut {
    async fn put_opts(
        &self,
        path: &Path,
        payload: PutPayload,
        options: PutOptions,
    ) -> Result<PutResult> {
        self.pass()?;
        self.inner.put_opts(path, payload, options).await
    }

    async fn put_multipart_opts(
        &self,
        path: &Path,
        options: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        self.pass()?;
        let inner = self.inner.put_multipart_opts(path, options).await?;
        Ok(Box::new(CutUpload { inner, power: self.clone() }))
    }

    async fn get_opts(&self, path: &Path, options: GetOptions) -> Result<GetResult> {
        self.pass()?;
        self.inner.get_opts(path, options).await
    }

    async fn get_ranges(&self, path: &Path, ranges: &[Range<u64>]) -> Result<Vec<Bytes>> {
        self.pass()?;
        self.inner.get_ranges(path, ranges).await
    }

    fn delete_stream(
        &self,
        paths: BoxStream<'static, Result<Path>>,
    ) -> BoxStream<'static, Result<Path>> {
        if let Err(error) = self.pass() {
            return futures_util::stream::once(async { Err(error) }).boxed();
        }
        self.inner.delete_stream(paths)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        if let Err(error) = self.pass() {
            return futures_util::stream::once(async { Err(error) }).boxed();
        }
        self.inner.list(prefix)
    }

    fn list_with_offset(
        &self,
        prefix: Option<&Path>,
        offset: &Path,
    ) -> BoxStream<'static, Result<ObjectMeta>> {
        if let Err(error) = self.pass() {
            return futures_util::stream::once(async { Err(error) }).boxed();
        }
        self.inner.list_with_offset(prefix, offset)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.pass()?;
        self.inner.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.pass()?;
        self.inner.copy_opts(from, to, options).await
    }
}

/// An upload whose every part and completion needs power too.
#[derive(Debug)]
struct CutUpload {
    inner: Box<dyn MultipartUpload>,
    power: PowerCut,
}

#[async_trait]
impl MultipartUpload for CutUpload {
    fn put_part(&mut self, data: PutPayload) -> UploadPart {
        match self.power.pass() {
            Ok(()) => self.inner.put_part(data),
            Err(error) => Box::pin(async { Err(error) }),
        }
    }

    async fn complete(&mut self) -> Result<PutResult> {
        self.power.pass()?;
        self.inner.complete().await
    }

    async fn abort(&mut self) -> Result<()> {
        self.power.pass()?;
        self.inner.abort().await
    }
}

#[cfg(test)]
mod tests {
    use object_store::memory::InMemory;
    use object_store::{ObjectStoreExt as _, PutPayload};

    use super::*;

    /// Writes an object in two parts; returns whether that worked.
    async fn write(store: &PowerCut, path: &Path) -> Result<()> {
        let mut upload = store.put_multipart(path).await?;
        for byte in [1, 2] {
            upload.put_part(PutPayload::from(vec![byte; 8])).await?;
        }
        upload.complete().await.map(drop)
    }

    #[tokio::test]
    async fn every_part_and_the_completion_need_power() -> anyhow::Result<()> {
        let path = Path::from("a");
        for calls in 0..=4 {
            let inner: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
            let cut = PowerCut::after(inner.clone(), calls);
            assert_eq!(write(&cut, &path).await.is_ok(), calls == 4, "{calls} calls");
            assert!(cut.is_cut());
            assert_eq!(inner.head(&path).await.is_ok(), calls == 4, "{calls} calls");
        }
        Ok(())
    }
}
