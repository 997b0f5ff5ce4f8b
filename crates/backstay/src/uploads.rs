//! Uploads under way, written down in the catalog, and what becomes of those whose process died.

use std::sync::Arc;

use async_trait::async_trait;
use backstay_control::{Catalog, Holder, UploadRecord};
use backstay_engine::event::Event;
use backstay_engine::store::{Store, UploadLog, UploadLogError};

use crate::config::StorageConfig;
use crate::installation::{Installation, host};

impl Installation {
    /// Returns what remembers the uploads to a storage.
    pub(crate) fn upload_log(&self, storage: &StorageConfig) -> Arc<dyn UploadLog> {
        Arc::new(CatalogUploads {
            catalog: self.catalog.clone(),
            storage: storage.name.clone(),
            holder: Holder::this_process(&host()),
        })
    }

    /// Ends what killed processes of this machine left unfinished at a storage: invisible, but paid for.
    pub(crate) async fn end_abandoned_uploads(
        &self,
        storage: &StorageConfig,
        store: &Store,
    ) -> anyhow::Result<()> {
        let me = Holder::this_process(&host());
        for left in self.catalog.abandoned_uploads(&storage.name, &me).await? {
            if let Err(error) = store.end_upload(&self.cx, &left.object, &left.upload).await {
                let text = format!(
                    "an unfinished upload is left at storage {}: {error}; a lifecycle rule of the bucket can end such uploads \
                     after a day",
                    storage.name
                );
                self.cx.event(Event::Warning { text });
            }
            self.catalog.end_upload(&storage.name, &left).await?;
        }
        Ok(())
    }
}

/// Writes uploads down in the catalog.
#[derive(Debug)]
struct CatalogUploads {
    catalog: Catalog,
    storage: String,
    holder: Holder,
}

#[async_trait]
impl UploadLog for CatalogUploads {
    async fn begun(&self, object: &str, upload: &str) -> Result<(), UploadLogError> {
        let record = UploadRecord { object: object.to_owned(), upload: upload.to_owned() };
        Ok(self.catalog.begin_upload(&self.storage, &record, &self.holder).await?)
    }

    async fn ended(&self, object: &str, upload: &str) -> Result<(), UploadLogError> {
        let record = UploadRecord { object: object.to_owned(), upload: upload.to_owned() };
        Ok(self.catalog.end_upload(&self.storage, &record).await?)
    }
}
