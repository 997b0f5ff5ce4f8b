//! What a server gives to a worker with a job, and the installation that a worker makes of it: all that this job needs, and
//! nothing else (ADR 19).

use std::io::Write as _;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use backstay_control::{BackupSpec, Catalog, Home, JobSpec, RestoreSpec, WaitingJob};
use backstay_engine::cx::Cx;
use backstay_engine::source::postgres::OwnDatabase;
use backstay_engine::store::{Profile, S3Credentials, StoreSpec};
use backstay_engine::vault::Vault;
use backstay_format::{
    BackupId, DataKey, Encryption, Keyring, KeyringEntry, Sha256, Slug, VaultId,
};
use jiff::Timestamp;
use secrecy::ExposeSecret as _;
use serde::{Deserialize, Serialize};
use tempfile::NamedTempFile;
use tokio::time::timeout;

use crate::config::{
    Additions, Config, CredentialConfig, Env, RemoteConfig, SourceConfig, StorageConfig,
    StorageKind,
};
use crate::installation::{Installation, Tested, tested_name};
use crate::past::Past;

/// How long the newest restore is looked for.
const LOOK_BACK: Duration = Duration::from_secs(5);

/// All that a worker needs for one job, with its secrets.
#[derive(Serialize, Deserialize)]
pub(crate) struct WorkOrder {
    organisation: Slug,
    pub(crate) source: Slug,
    /// Its table, in the words of the file; references in it are the worker's.
    declared: toml::Table,
    /// The database of the server's own catalog.
    #[serde(default)]
    own: Option<OwnDatabase>,
    pub(crate) task: Task,
}

/// What is to be done with the source.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Task {
    /// A backup of it.
    Backup(Box<BackupOrder>),
    /// A restore of one of its backups into a scratch place.
    Drill(Box<DrillOrder>),
    /// A look at it.
    Test,
    /// A look at what a restore of one of its backups would do.
    Preview(Box<RestoreOrder>),
    /// A restore of one of its backups.
    Restore(Box<RestoreOrder>),
    /// Putting back what its newest restore replaced: nothing of that is in the vault.
    Undo,
    /// Letting go of what that replaced.
    Confirm(Box<Access>),
}

impl Task {
    /// Returns what opens the vault that it needs, if it does.
    fn access(&self) -> Option<&Access> {
        match self {
            Self::Backup(order) => Some(&order.access),
            Self::Drill(order) => Some(&order.access),
            Self::Preview(order) | Self::Restore(order) => Some(&order.access),
            Self::Confirm(access) => Some(access),
            Self::Test | Self::Undo => None,
        }
    }

    /// Returns the keys that it needs.
    fn keys(&self) -> impl Iterator<Item = &KeyOrder> {
        let seals_with = match self {
            Self::Restore(order) => order.seals_with.as_ref(),
            _ => None,
        };
        self.access().and_then(|access| access.key.as_ref()).into_iter().chain(seals_with)
    }
}

/// What a backup needs beside its source.
#[derive(Serialize, Deserialize)]
pub(crate) struct BackupOrder {
    pub(crate) spec: BackupSpec,
    /// Whether a person waits for it, so that one that gave way to the app is tried again there.
    #[serde(default)]
    pub(crate) waits: bool,
    #[serde(flatten)]
    pub(crate) access: Access,
}

/// What a drill needs beside its source.
#[derive(Serialize, Deserialize)]
pub(crate) struct DrillOrder {
    pub(crate) backup: BackupId,
    #[serde(flatten)]
    pub(crate) access: Access,
}

/// What a restore needs beside its source.
#[derive(Serialize, Deserialize)]
pub(crate) struct RestoreOrder {
    pub(crate) spec: RestoreSpec,
    /// The newest restore that the server knows of, for a preview.
    #[serde(default)]
    pub(crate) past: Option<Past>,
    /// That seals the backup of what is there before; none if nothing is backed up.
    #[serde(default)]
    seals_with: Option<KeyOrder>,
    #[serde(flatten)]
    pub(crate) access: Access,
}

/// A vault, and as much of what opens it as one job needs.
#[derive(Serialize, Deserialize)]
pub(crate) struct Access {
    storage: StorageOrder,
    /// That seals the backup, or sealed it; none if it is not sealed.
    #[serde(default)]
    key: Option<KeyOrder>,
}

/// What a vault is opened for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Use {
    Read,
    Write,
}

/// Where the vault is, and who asks there.
#[derive(Serialize, Deserialize)]
struct StorageOrder {
    name: String,
    kind: StorageKind,
    /// The certificates to trust there, in the place of a file of the server's.
    #[serde(default)]
    ca_pem: Option<String>,
    credentials: CredentialOrder,
    /// What its last test showed. One of another version tells nothing: then the worker tests it.
    #[serde(default)]
    profile: serde_json::Value,
    /// The vault that the server found there a moment ago: another one is not meant.
    vault: VaultId,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum CredentialOrder {
    Given {
        access_key_id: String,
        secret_access_key: String,
        #[serde(default)]
        session_token: Option<String>,
    },
    /// What the worker's machine has.
    Elsewhere {
        #[serde(default)]
        profile: Option<String>,
    },
}

/// A key of the server's.
#[derive(Serialize, Deserialize)]
struct KeyOrder {
    created_at: Timestamp,
    /// In hexadecimal digits.
    key: String,
}

impl Installation {
    /// Makes the order for a job, after a look at the storage: the vault is there, and so is the slot of the key.
    pub(crate) async fn work_order(
        &self,
        source: &SourceConfig,
        remote: &RemoteConfig,
        job: &WaitingJob,
    ) -> anyhow::Result<WorkOrder> {
        let task = match &job.spec {
            JobSpec::Test => Task::Test,
            JobSpec::Backup(spec) => {
                let order = self.backup_order(source, spec, job.is_asked_for).await?;
                Task::Backup(Box::new(order))
            }
            JobSpec::Drill { backup } => {
                let (access, _) = self.access_to(source, backup).await?;
                Task::Drill(Box::new(DrillOrder { backup: backup.clone(), access }))
            }
            JobSpec::Preview(spec) => {
                let (access, vault) = self.access_to(source, &spec.backup).await?;
                // Nobody waits long for what is only of interest.
                let past = timeout(LOOK_BACK, Past::of(self, source, &vault)).await;
                let past = past.ok().and_then(Result::ok).flatten();
                let spec = spec.clone();
                Task::Preview(Box::new(RestoreOrder { spec, past, seals_with: None, access }))
            }
            JobSpec::Restore(spec) => {
                let seals_with = match spec.wants_safety() {
                    true => self.access_for_writing(source).await?.key,
                    false => None,
                };
                let (access, _) = self.access_to(source, &spec.backup).await?;
                let spec = spec.clone();
                Task::Restore(Box::new(RestoreOrder { spec, past: None, seals_with, access }))
            }
            JobSpec::Import { .. } => anyhow::bail!("a worker imports nothing"),
            JobSpec::Undo => Task::Undo,
            JobSpec::Confirm => Task::Confirm(Box::new(self.access_for_writing(source).await?)),
        };
        Ok(WorkOrder {
            organisation: source.organisation.clone(),
            source: source.name.clone(),
            declared: remote.declared.clone(),
            own: self.own.clone(),
            task,
        })
    }

    async fn backup_order(
        &self,
        source: &SourceConfig,
        spec: &BackupSpec,
        waits: bool,
    ) -> anyhow::Result<BackupOrder> {
        let access = self.access_for_writing(source).await?;
        Ok(BackupOrder { spec: spec.clone(), waits, access })
    }

    /// Gives what a new backup is sealed and written with.
    async fn access_for_writing(&self, source: &SourceConfig) -> anyhow::Result<Access> {
        let storage = self.storage(&source.storage)?;
        let vault = self.vault_for_writing(storage).await?;
        vault.ensure_key_slot(&self.cx).await?;
        self.access(storage, &vault, Some(vault.keyring().newest()?)).await
    }

    /// Gives what a backup is opened with, and the vault that it lies in.
    async fn access_to(
        &self,
        source: &SourceConfig,
        backup: &BackupId,
    ) -> anyhow::Result<(Access, Vault)> {
        let storage = self.storage(&source.storage)?;
        let vault = self.vault(storage).await?;
        let place = source.place(backup.clone());
        let manifest = vault.manifest(&self.cx, &place).await?;
        let key = match &manifest.encryption {
            Encryption::Sealed { key } => Some(vault.keyring().entry(key)?),
            Encryption::None => None,
        };
        Ok((self.access(storage, &vault, key).await?, vault))
    }

    async fn access(
        &self,
        storage: &StorageConfig,
        vault: &Vault,
        key: Option<&KeyringEntry>,
    ) -> anyhow::Result<Access> {
        let spec_of_store = self.store_spec(storage).await?;
        let StoreSpec::S3(s3) = spec_of_store else {
            anyhow::bail!("storage {} is a directory, which no worker reaches", storage.name);
        };
        let credentials = match s3.credentials {
            S3Credentials::Chain { profile } => CredentialOrder::Elsewhere { profile },
            S3Credentials::Static { access_key_id, secret_access_key, session_token } => {
                CredentialOrder::Given {
                    access_key_id,
                    secret_access_key: secret_access_key.expose_secret().to_owned(),
                    session_token: session_token.map(|token| token.expose_secret().to_owned()),
                }
            }
        };
        let tested = self.tested(storage).await?.and_then(|tested| tested.profile);
        Ok(Access {
            storage: StorageOrder {
                name: storage.name.clone(),
                kind: storage.kind.clone(),
                ca_pem: s3.ca_pem.map(String::from_utf8).transpose()?,
                credentials,
                profile: serde_json::to_value(tested)?,
                vault: vault.id().clone(),
            },
            key: key.map(|key| KeyOrder {
                created_at: key.created_at,
                key: hex::encode(key.key.expose_secret()),
            }),
        })
    }

    /// Makes the installation in which a worker does what an order says. Its secrets stay in memory.
    pub(crate) fn for_order(
        (home, catalog): (Home, Catalog),
        order: &WorkOrder,
        cx: Cx,
        env: Env<'_>,
    ) -> anyhow::Result<Self> {
        let storage = order.task.access();
        let storage =
            storage.map(|access| access.storage.config(&order.organisation, &home)).transpose()?;
        let mut lent = Keyring::empty();
        for key in order.task.keys() {
            key.add_to(&mut lent)?;
        }
        let declared = (order.source.as_str(), order.declared.clone());
        let config = Config::for_job(&order.organisation, declared, storage, env)?;
        Ok(Self {
            config: Arc::new(config),
            additions: Additions::default(),
            home,
            catalog,
            cx,
            lent: Some(Arc::new(lent)),
            own: order.own.clone(),
        })
    }

    /// Opens the vault that an order names, and no other.
    pub(crate) async fn vault_of(&self, access: &Access, what_for: Use) -> anyhow::Result<Vault> {
        let StorageOrder { name, profile, vault: expected, .. } = &access.storage;
        let storage = self.storage(name)?;
        if let Ok(profile) = serde_json::from_value::<Profile>(profile.clone()) {
            let location = self.store_spec(storage).await?.location();
            let (at, profile) = (self.cx.now(), Some(profile));
            let tested = Tested { at, location, profile, error: None };
            self.catalog.set_setting(&tested_name(name), &tested).await?;
        }
        self.expect_vault(storage, expected).await?;
        let vault = match what_for {
            Use::Read => self.vault(storage).await?,
            Use::Write => self.vault_for_writing(storage).await?,
        };
        let found = vault.id();
        anyhow::ensure!(
            found == expected,
            "found vault {found} at {}, expected {expected}, which the server sees there: this machine reaches another storage by that address",
            vault.location()
        );
        Ok(vault)
    }
}

impl StorageOrder {
    fn config(&self, organisation: &Slug, home: &Home) -> anyhow::Result<StorageConfig> {
        let mut kind = self.kind.clone();
        if let (StorageKind::S3 { ca_file, .. }, Some(pem)) = (&mut kind, &self.ca_pem) {
            // Under a name that says what is in it, and whole: another job may read it just now.
            let path = home.path().join(format!("storage-{}.pem", Sha256::of(pem.as_bytes())));
            let written = NamedTempFile::new_in(home.path()).and_then(|mut file| {
                file.write_all(pem.as_bytes())?;
                Ok(file.persist(&path)?)
            });
            written.with_context(|| format!("cannot write {}", path.display()))?;
            *ca_file = Some(path);
        }
        let credentials = match &self.credentials {
            CredentialOrder::Elsewhere { profile } => {
                CredentialConfig::Elsewhere { profile: profile.clone() }
            }
            CredentialOrder::Given { access_key_id, secret_access_key, session_token } => {
                CredentialConfig::Given {
                    access_key_id: access_key_id.clone(),
                    secret_access_key: secret_access_key.as_str().into(),
                    session_token: session_token.as_deref().map(Into::into),
                }
            }
        };
        Ok(StorageConfig {
            name: self.name.clone(),
            organisation: organisation.clone(),
            kind,
            credentials,
            credentials_expire: None,
            jobs: None,
        })
    }
}

impl KeyOrder {
    fn add_to(&self, keyring: &mut Keyring) -> anyhow::Result<()> {
        let bytes = hex::decode(&self.key).ok().and_then(|bytes| bytes.try_into().ok());
        let bytes: [u8; 32] = bytes.context("the server sent a key that is none")?;
        keyring.add(DataKey::new(bytes), self.created_at);
        Ok(())
    }
}
