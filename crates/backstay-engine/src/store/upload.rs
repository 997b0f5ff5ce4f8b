//! Writing an object whose length is not known beforehand, in bounded memory, with proof at the end.

use backstay_format::Hasher;
use bytes::Bytes;
use object_store::path::Path;
use object_store::{MultipartUpload, ObjectStore as _, PutMultipartOptions, PutPayload};
use tokio::task::JoinSet;

use super::http::Refusal;
use super::leftover::{FILES, Unfinished, UploadById};
use super::{Sent, Store, StoreError, StoreErrorKind, UploadCheck, http};
use crate::cx::Cx;

/// The smallest part, and the most that is written with one put.
const MIN_PART_BYTES: u64 = 8 << 20;
/// Parts in flight times their size stays below this, until an upload needs larger parts.
const IN_FLIGHT_BYTES: u64 = 24 << 20;
/// No provider takes larger parts.
const MAX_PART_BYTES: u64 = 5 << 30;
/// An estimate may be wrong by this factor before parts must grow on the way.
const ESTIMATE_SLACK: u64 = 2;
/// Bytes at the end that are compared after every upload.
const TAIL_BYTES: usize = 64 * 1024;
/// Bytes asked for at a time when everything is read back.
pub(super) const READ_BACK_BYTES: u64 = 8 << 20;
/// Reads that are under way at once, so that the next answer is on its way while one is compared.
pub(super) const READ_BACK_AT_ONCE: usize = 3;

/// An object that is being written.
pub struct Upload {
    store: Store,
    name: String,
    path: Path,
    part_bytes: u64,
    gathered: Vec<Bytes>,
    gathered_bytes: u64,
    multipart: Option<Box<dyn MultipartUpload>>,
    /// What the storage calls it, while it is written down.
    logged: Option<String>,
    // Tasks, not futures: parts must be on their way while the source is read. Dropping the set stops them.
    in_flight: JoinSet<(object_store::Result<()>, Option<Refusal>)>,
    parts: u32,
    bytes: u64,
    tail: Vec<u8>,
    hasher: Option<Hasher>,
}

impl Upload {
    pub(super) fn new(store: Store, name: String, path: Path, estimate: Option<u64>) -> Self {
        let profile = store.profile();
        let hasher = (profile.upload_check == UploadCheck::ReadBack).then(Hasher::new);
        let part_bytes = part_bytes(estimate, profile.max_parts);
        Self {
            store,
            name,
            path,
            part_bytes,
            gathered: Vec::new(),
            gathered_bytes: 0,
            multipart: None,
            logged: None,
            in_flight: JoinSet::new(),
            parts: 0,
            bytes: 0,
            tail: Vec::new(),
            hasher,
        }
    }

    /// Takes the next bytes; waits while enough are on their way.
    pub async fn write(&mut self, cx: &Cx, mut data: Bytes) -> Result<(), StoreError> {
        self.bytes += data.len() as u64;
        self.remember_tail(&data);
        if let Some(hasher) = &mut self.hasher {
            hasher.update(&data);
        }
        while !data.is_empty() {
            // A full part waits until more comes: only then it is known that one put will not do.
            if self.gathered_bytes == self.part_bytes {
                self.send_part(cx).await?;
            }
            let room = usize::try_from(self.part_bytes - self.gathered_bytes).unwrap_or(usize::MAX);
            let taken = data.split_to(room.min(data.len()));
            self.gathered_bytes += taken.len() as u64;
            self.gathered.push(taken);
        }
        Ok(())
    }

    /// Completes the object and proves that the storage has it. Returns its size.
    pub async fn finish(mut self, cx: &Cx) -> Result<u64, StoreError> {
        let completed = self.complete(cx).await;
        // A completion whose answer was lost finds no upload when it is tried again, and providers differ in how they
        // say so: the proof decides. Names carry the backup's id, so nothing older can stand in for the object.
        let unsure = |error: &StoreError| {
            error.action() == "finish" && error.kind() != StoreErrorKind::Cancelled
        };
        let completed = match completed {
            Err(error) if !unsure(&error) => {
                self.abort_quietly(cx).await;
                return Err(error);
            }
            completed => completed,
        };
        let sent = Sent {
            bytes: self.bytes,
            tail: std::mem::take(&mut self.tail).into(),
            sha256: self.hasher.take().map(Hasher::finish),
        };
        let proven = self.store.prove(cx, &self.name, &sent).await;
        match (completed, proven) {
            (_, Ok(())) => {
                self.strike_out().await?;
                Ok(self.bytes)
            }
            (Ok(()), Err(error)) => Err(error),
            (Err(error), Err(_)) => {
                self.abort_quietly(cx).await;
                Err(error)
            }
        }
    }

    /// Gives up: what was sent is removed from the storage.
    pub async fn abort(mut self, cx: &Cx) -> Result<(), StoreError> {
        let Some(mut multipart) = self.multipart.take() else { return Ok(()) };
        // Parts that are still on their way would come after the abort.
        self.in_flight.shutdown().await;
        self.store.call(cx, "abort", &self.name, multipart.abort()).await?;
        self.strike_out().await
    }

    async fn abort_quietly(&mut self, cx: &Cx) {
        self.in_flight.shutdown().await;
        if let Some(mut multipart) = self.multipart.take() {
            // The error that led here matters more; what could not be aborted stays in the log.
            let aborted =
                self.store.call(&cx.for_cleanup(), "abort", &self.name, multipart.abort()).await;
            if aborted.is_ok() {
                drop(self.strike_out().await);
            }
        }
    }

    async fn complete(&mut self, cx: &Cx) -> Result<(), StoreError> {
        if self.multipart.is_none() {
            if let Unfinished::Files(_) = self.store.unfinished {
                self.write_down(FILES.to_owned()).await?;
            }
            let payload: PutPayload = self.gathered.drain(..).collect();
            let put = self.store.backend.put_opts(
                &self.path,
                payload,
                object_store::PutOptions::default(),
            );
            return self.store.call(cx, "upload", &self.name, put).await.map(drop);
        }
        if self.gathered_bytes > 0 {
            self.send_part(cx).await?;
        }
        while !self.in_flight.is_empty() {
            self.settle_one(cx).await?;
        }
        let Some(multipart) = &mut self.multipart else { return Ok(()) };
        self.store.call(cx, "finish", &self.name, multipart.complete()).await.map(drop)
    }

    async fn send_part(&mut self, cx: &Cx) -> Result<(), StoreError> {
        if self.parts >= self.store.profile().max_parts {
            return Err(self.too_many_parts());
        }
        if self.multipart.is_none() {
            self.multipart = Some(self.begin(cx).await?);
        }
        let room = (IN_FLIGHT_BYTES / self.part_bytes).max(1) as usize;
        while self.in_flight.len() >= room {
            self.settle_one(cx).await?;
        }
        let payload: PutPayload = self.gathered.drain(..).collect();
        self.gathered_bytes = 0;
        if let Some(multipart) = &mut self.multipart {
            drop(self.in_flight.spawn(http::watched(multipart.put_part(payload))));
        }
        self.parts += 1;
        self.grow();
        Ok(())
    }

    async fn begin(&mut self, cx: &Cx) -> Result<Box<dyn MultipartUpload>, StoreError> {
        let store = self.store.clone();
        if let Unfinished::Ids(ids) = &store.unfinished {
            let begin = ids.create_multipart(&self.path);
            let id = store.call(cx, "upload", &self.name, begin).await?;
            self.write_down(id.clone()).await?;
            return Ok(Box::new(UploadById::new(ids.clone(), self.path.clone(), id)));
        }
        if let Unfinished::Files(_) = store.unfinished {
            self.write_down(FILES.to_owned()).await?;
        }
        let begin = store.backend.put_multipart_opts(&self.path, PutMultipartOptions::default());
        store.call(cx, "upload", &self.name, begin).await
    }

    async fn write_down(&mut self, id: String) -> Result<(), StoreError> {
        self.store.log_begun(&self.name, &id).await?;
        self.logged = Some(id);
        Ok(())
    }

    async fn strike_out(&mut self) -> Result<(), StoreError> {
        match self.logged.take() {
            Some(id) => self.store.log_ended(&self.name, &id).await,
            None => Ok(()),
        }
    }

    fn too_many_parts(&self) -> StoreError {
        let found = format!(
            "an object may have {} parts, and its size was estimated too small",
            self.store.profile().max_parts
        );
        let (name, location) = (&self.name, self.store.location());
        StoreError::new(StoreErrorKind::TooLarge, "upload", name, location, Some(found))
    }

    /// Makes later parts larger when the estimate was too small.
    fn grow(&mut self) {
        let profile = self.store.profile();
        let due = self.parts.is_multiple_of((profile.max_parts / 10).max(1));
        if due && !profile.equal_parts {
            self.part_bytes = (self.part_bytes * 2).min(MAX_PART_BYTES);
        }
    }

    async fn settle_one(&mut self, cx: &Cx) -> Result<(), StoreError> {
        let next = cx.run(self.in_flight.join_next()).await.map_err(StoreError::cancelled)?;
        let (name, location) = (&self.name, self.store.location());
        match next {
            None | Some(Ok((Ok(()), _))) => Ok(()),
            Some(Ok((Err(cause), refusal))) => {
                Err(StoreError::explain("upload", name, location, cause, refusal))
            }
            Some(Err(stopped)) => {
                let found = Some(stopped.to_string());
                Err(StoreError::new(StoreErrorKind::Other, "upload", name, location, found))
            }
        }
    }

    fn remember_tail(&mut self, data: &Bytes) {
        let new = data.get(data.len().saturating_sub(TAIL_BYTES)..).unwrap_or_default();
        let surplus = (self.tail.len() + new.len()).saturating_sub(TAIL_BYTES);
        self.tail.drain(..surplus);
        self.tail.extend_from_slice(new);
    }
}

impl std::fmt::Debug for Upload {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Upload")
            .field("name", &self.name)
            .field("bytes", &self.bytes)
            .finish_non_exhaustive()
    }
}

/// Chooses the size of parts: the smallest that holds twice the estimate within the number of parts allowed.
///
/// Without an estimate parts begin small and grow on the way. With 10,000 parts of 8 MiB that is up to 80 GB in the
/// memory bound; beyond about 240 GB stored bytes a part, and with it memory, must grow.
fn part_bytes(estimate: Option<u64>, max_parts: u32) -> u64 {
    let wanted =
        estimate.unwrap_or(0).saturating_mul(ESTIMATE_SLACK).div_ceil(u64::from(max_parts));
    wanted.next_multiple_of(1 << 20).clamp(MIN_PART_BYTES, MAX_PART_BYTES)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_hold_twice_the_estimate_within_the_limit() {
        assert_eq!(part_bytes(None, 10_000), MIN_PART_BYTES);
        assert_eq!(part_bytes(Some(1 << 30), 10_000), MIN_PART_BYTES);
        for (estimate, max_parts) in [(1_u64 << 40, 10_000), (100 << 30, 1_000)] {
            let bytes = part_bytes(Some(estimate), max_parts);
            assert!(bytes * u64::from(max_parts) >= 2 * estimate && bytes <= MAX_PART_BYTES);
        }
    }
}
