//! A vault in memory or in a directory, and the verbs as short words.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use backstay_engine::backup::backup;
use backstay_engine::cx::Cx;
use backstay_engine::error::EngineError;
use backstay_engine::event::Silent;
use backstay_engine::restore::{
    Around, Journal, JournalError, RestoreOptions, Restored, Saved, plan_restore, restore,
};
use backstay_engine::source::files::FilesSource;
use backstay_engine::source::{Source, TargetOptions};
use backstay_engine::store::{Addressing, Profile, S3Credentials, S3Spec, Store, StoreSpec};

use backstay_engine::swap::Swap;
use backstay_engine::vault::{BackupPlace, Draft, Vault};
use backstay_format::{BackupId, DataKey, IndexEntry, Keyring, RecoveryKey, Slug, Trigger};
use backstay_testkit::s3::{ACCESS_KEY, BUCKET, S3Server, SECRET_KEY};
use object_store::ObjectStore;
use object_store::memory::InMemory;

pub(crate) struct World {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) backend: Arc<dyn ObjectStore>,
    pub(crate) cx: Cx,
}

/// A storage on a server, of which nothing is known.
pub(crate) fn bucket(server: &S3Server) -> Store {
    drop(rustls::crypto::aws_lc_rs::default_provider().install_default());
    let spec = S3Spec {
        bucket: BUCKET.to_owned(),
        prefix: "backstay".to_owned(),
        endpoint: Some(server.endpoint.clone()),
        region: "us-east-1".to_owned(),
        addressing: Addressing::Path,
        credentials: S3Credentials::Static {
            access_key_id: ACCESS_KEY.to_owned(),
            secret_access_key: SECRET_KEY.to_owned().into(),
            session_token: None,
        },
        ca_pem: None,
    };
    Store::open(&StoreSpec::S3(spec), Profile::cautious()).unwrap()
}

pub(crate) fn keyring(byte: u8) -> Arc<Keyring> {
    let mut ring = Keyring::new(RecoveryKey::new([9; 32]));
    ring.add(DataKey::new([byte; 32]), "2026-01-01T00:00:00Z".parse().unwrap());
    Arc::new(ring)
}

pub(crate) fn slug(text: &str) -> Slug {
    text.parse().unwrap()
}

impl World {
    pub(crate) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        Self { dir, backend: Arc::new(InMemory::new()), cx: Cx::new(Arc::new(Silent)) }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) fn store(&self, backend: Arc<dyn ObjectStore>) -> Store {
        Store::over(backend, "memory", "backstay", Profile::local())
    }

    pub(crate) async fn vault(&self) -> Vault {
        self.vault_with(keyring(1)).await.unwrap()
    }

    pub(crate) async fn vault_with(&self, keyring: Arc<Keyring>) -> Result<Vault, EngineError> {
        Vault::open_or_create(&self.cx, self.store(self.backend.clone()), keyring).await
    }

    pub(crate) fn files(&self, root: &Path) -> FilesSource {
        FilesSource {
            root: root.to_owned(),
            exclude: Vec::new(),
            transient: Vec::new(),
            one_file_system: false,
            spool: self.path("spool"),
        }
    }

    pub(crate) fn draft(&self, kind: &'static str) -> Draft {
        Draft {
            organisation: slug("default"),
            source: slug("shop"),
            source_kind: kind,
            trigger: Trigger::Manual,
            note: None,
            host: "test".to_owned(),
            app: None,
            environment: None,
            origin: None,
            sealed: true,
            compression_level: 1,
            imported: None,
        }
    }

    pub(crate) async fn backup(&self, source: &dyn Source) -> Result<IndexEntry, EngineError> {
        backup(&self.cx, source, &self.vault().await, self.draft("files")).await
    }

    pub(crate) fn place(&self, id: &BackupId) -> BackupPlace {
        BackupPlace { organisation: slug("default"), source: slug("shop"), backup: id.clone() }
    }

    /// Restores to another place, without hooks, safety backup and journal.
    pub(crate) async fn restore_to(
        &self,
        source: &dyn Source,
        id: &BackupId,
        to: &Path,
    ) -> Result<Restored, EngineError> {
        let target = TargetOptions {
            to: Some(to.into()),
            tag: "test".to_owned(),
            ..TargetOptions::default()
        };
        self.restore(source, id, target).await
    }

    pub(crate) async fn restore(
        &self,
        source: &dyn Source,
        id: &BackupId,
        target: TargetOptions,
    ) -> Result<Restored, EngineError> {
        let vault = self.vault().await;
        let options = RestoreOptions { target, accept_unsealed: false, expects_sealed: true };
        let planning = plan_restore(&self.cx, &vault, source, self.place(id), options);
        let plan = Box::pin(planning).await?;
        let around = Around { safety: None, before: None, after: None, journal: &NoJournal };
        Box::pin(restore(&self.cx, &vault, source, &plan, around)).await
    }
}

struct NoJournal;

#[async_trait]
impl Journal for NoJournal {
    async fn before_swap(&self, _swap: &Swap, _safety: Option<&Saved>) -> Result<(), JournalError> {
        Ok(())
    }

    async fn after_swap(&self) -> Result<(), JournalError> {
        Ok(())
    }

    async fn replaced_nothing(&self) -> Result<(), JournalError> {
        Ok(())
    }

    async fn swap_taken_back(&self) -> Result<(), JournalError> {
        Ok(())
    }
}
