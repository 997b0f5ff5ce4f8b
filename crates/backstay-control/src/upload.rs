//! Uploads in parts that go on: what a killed process leaves of them costs money until somebody ends it.

use crate::catalog::column;
use crate::{Catalog, CatalogError, Holder};

/// An upload that was begun and not seen to end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UploadRecord {
    /// The object that was to be written.
    pub object: String,
    /// The storage's name for the upload.
    pub upload: String,
}

impl Catalog {
    /// Writes down an upload before its first part is sent.
    pub async fn begin_upload(
        &self,
        storage: &str,
        record: &UploadRecord,
        holder: &Holder,
    ) -> Result<(), CatalogError> {
        let insert =
            "INSERT INTO uploads (storage, object, upload, holder) VALUES ($1, $2, $3, $4)";
        let values = [
            storage.into(),
            record.object.clone().into(),
            record.upload.clone().into(),
            holder.to_json().into(),
        ];
        self.execute("wrote down an upload", insert, values).await.map(drop)
    }

    /// Strikes out an upload that has ended.
    pub async fn end_upload(
        &self,
        storage: &str,
        record: &UploadRecord,
    ) -> Result<(), CatalogError> {
        let delete = "DELETE FROM uploads WHERE storage = $1 AND object = $2 AND upload = $3";
        let values = [storage.into(), record.object.clone().into(), record.upload.clone().into()];
        self.execute("struck out an upload", delete, values).await.map(drop)
    }

    /// Returns the uploads to a storage whose processes are certainly gone.
    pub async fn abandoned_uploads(
        &self,
        storage: &str,
        me: &Holder,
    ) -> Result<Vec<UploadRecord>, CatalogError> {
        let select =
            "SELECT object, upload, holder FROM uploads WHERE storage = $1 ORDER BY object";
        let mut abandoned = Vec::new();
        for row in self.query_all("looked for uploads", select, [storage.into()]).await? {
            let text = |name| column::<String>(&row, "uploads", name);
            if Holder::from_json(&text("holder")?).is_some_and(|holder| holder.is_gone(me)) {
                abandoned.push(UploadRecord { object: text("object")?, upload: text("upload")? });
            }
        }
        Ok(abandoned)
    }
}
