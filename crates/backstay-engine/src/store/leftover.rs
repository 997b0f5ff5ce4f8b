//! What an upload leaves at the storage when its process is killed, and how somebody else ends it later.

use std::fmt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use object_store::multipart::{MultipartStore, PartId};
use object_store::path::Path;
use object_store::{MultipartId, MultipartUpload, PutPayload, PutResult, UploadPart};

use super::{Store, StoreError, StoreErrorKind};
use crate::cx::Cx;

/// Remembers uploads until they have ended. A storage shows unfinished ones only to those with more rights than backups
/// need, so whoever begins one writes it down.
#[async_trait]
pub trait UploadLog: Send + Sync + fmt::Debug {
    /// An upload was begun; nothing is sent before this returns.
    async fn begun(&self, object: &str, upload: &str) -> Result<(), UploadLogError>;

    /// It was completed or ended.
    async fn ended(&self, object: &str, upload: &str) -> Result<(), UploadLogError>;
}

/// The log could not be written.
pub type UploadLogError = Box<dyn std::error::Error + Send + Sync>;

/// Keeps no log; for stores that only read.
#[derive(Debug)]
pub(super) struct NoLog;

#[async_trait]
impl UploadLog for NoLog {
    async fn begun(&self, _object: &str, _upload: &str) -> Result<(), UploadLogError> {
        Ok(())
    }

    async fn ended(&self, _object: &str, _upload: &str) -> Result<(), UploadLogError> {
        Ok(())
    }
}

/// How uploads lie at a storage before they are complete.
#[derive(Clone)]
pub(super) enum Unfinished {
    /// Unknown; only the client library that began one can end it.
    Hidden,
    /// Under ids, until they are completed or aborted.
    Ids(Arc<dyn MultipartStore>),
    /// As files beside the object's own below this directory, named like it with `#` and a number behind.
    Files(PathBuf),
}

/// The "id" of an upload whose leftovers are files.
pub(super) const FILES: &str = "#";

impl Store {
    /// Writes down from now on what uploads are under way.
    #[must_use]
    pub fn with_upload_log(mut self, log: Arc<dyn UploadLog>) -> Self {
        self.log = log;
        self
    }

    /// Removes what is left of an upload whose process is gone. One that has ended meanwhile is no error.
    pub async fn end_upload(&self, cx: &Cx, object: &str, upload: &str) -> Result<(), StoreError> {
        let path = self.path(object)?;
        match &self.unfinished {
            Unfinished::Hidden => Ok(()),
            Unfinished::Files(root) => remove_staged(&root.join(path.as_ref())).map_err(|error| {
                self.error(StoreErrorKind::Other, "abort", object, Some(error.to_string()))
            }),
            Unfinished::Ids(ids) => {
                let upload = upload.to_owned();
                let aborted = ids.abort_multipart(&path, &upload);
                match self.call(cx, "abort", object, aborted).await {
                    Err(error) if error.kind() != StoreErrorKind::NotFound => Err(error),
                    _ => Ok(()),
                }
            }
        }
    }

    pub(super) async fn log_begun(&self, object: &str, upload: &str) -> Result<(), StoreError> {
        let begun = self.log.begun(&self.below_prefix(object), upload).await;
        begun.map_err(|error| self.unlogged(object, &error))
    }

    pub(super) async fn log_ended(&self, object: &str, upload: &str) -> Result<(), StoreError> {
        let ended = self.log.ended(&self.below_prefix(object), upload).await;
        ended.map_err(|error| self.unlogged(object, &error))
    }

    /// What an object is called in the log, whose reader knows no folder.
    fn below_prefix(&self, object: &str) -> String {
        format!("{}{object}", self.folder)
    }

    fn unlogged(&self, object: &str, error: &UploadLogError) -> StoreError {
        let found = format!("the upload could not be written down: {error}");
        self.error(StoreErrorKind::Other, "upload", object, Some(found))
    }
}

/// Removes the files that writing an object leaves behind, of all objects in its folder: nobody else writes there.
fn remove_staged(object: &std::path::Path) -> std::io::Result<()> {
    let entries = match object.parent().map(std::fs::read_dir) {
        Some(Ok(entries)) => entries,
        Some(Err(error)) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
        _ => return Ok(()),
    };
    for entry in entries {
        let entry = entry?;
        let name = entry.file_name();
        let number = name.to_str().and_then(|name| name.rsplit_once('#')).map(|(_, number)| number);
        if number
            .is_some_and(|number| !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit()))
        {
            std::fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

/// An upload in parts whose id is known. The client library's own keeps it to itself.
#[derive(Debug)]
pub(super) struct UploadById {
    ids: Ids,
    path: Path,
    id: MultipartId,
    /// In the order of the parts, not of their arrival.
    parts: Arc<Mutex<Vec<Option<PartId>>>>,
}

struct Ids(Arc<dyn MultipartStore>);

impl fmt::Debug for Ids {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Ids")
    }
}

impl UploadById {
    pub(super) fn new(ids: Arc<dyn MultipartStore>, path: Path, id: MultipartId) -> Self {
        Self { ids: Ids(ids), path, id, parts: Arc::default() }
    }

    fn parts(&self) -> Option<Vec<PartId>> {
        self.parts.lock().unwrap_or_else(PoisonError::into_inner).iter().cloned().collect()
    }
}

#[async_trait]
impl MultipartUpload for UploadById {
    fn put_part(&mut self, data: PutPayload) -> UploadPart {
        let (ids, path, id) = (self.ids.0.clone(), self.path.clone(), self.id.clone());
        let parts = self.parts.clone();
        let index = {
            let mut parts = parts.lock().unwrap_or_else(PoisonError::into_inner);
            parts.push(None);
            parts.len() - 1
        };
        Box::pin(async move {
            let part = ids.put_part(&path, &id, index, data).await?;
            if let Some(slot) = parts.lock().unwrap_or_else(PoisonError::into_inner).get_mut(index)
            {
                *slot = Some(part);
            }
            Ok(())
        })
    }

    async fn complete(&mut self) -> object_store::Result<PutResult> {
        let parts = self.parts().ok_or_else(|| object_store::Error::Generic {
            store: "upload",
            source: "a part was not sent".into(),
        })?;
        self.ids.0.complete_multipart(&self.path, &self.id, parts).await
    }

    async fn abort(&mut self) -> object_store::Result<()> {
        self.ids.0.abort_multipart(&self.path, &self.id).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_numbered_leftovers_are_removed() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["files.tar#1", "manifest.json#22", "files.tar", "odd#name", "odd#"] {
            std::fs::write(dir.path().join(name), "x").unwrap();
        }
        remove_staged(&dir.path().join("files.tar")).unwrap();
        let mut left: Vec<_> =
            std::fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
        left.sort();
        assert_eq!(left, ["files.tar", "odd#", "odd#name"]);
        remove_staged(&dir.path().join("gone/files.tar")).unwrap();
    }
}
