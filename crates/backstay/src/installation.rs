//! Wires configuration, home directory and engine together: what every command works with.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use backstay_control::{Catalog, CatalogError, Holder, Home, JobId, JobKind, JobState};
use backstay_engine::cx::Cx;
use backstay_engine::event::Event;
use backstay_engine::source::postgres::OwnDatabase;
use backstay_engine::store::{Profile, S3Credentials, Store, StoreSpec, probe};
use backstay_engine::vault::Draft;
use backstay_format::{DataKey, Keyring, RecoveryKey, Slug, Trigger};
use jiff::{SignedDuration, Timestamp};
use rand::RngCore as _;
use serde::{Deserialize, Serialize};

use crate::cli::Global;
use crate::config::{
    Additions, Config, CredentialConfig, SourceConfig, StorageConfig, StorageKind,
};
use crate::exit::UsageError;
use crate::lease::LeaseGuard;
use crate::opening::{
    additions_in, config_path, configured, environment, is_home_there, open_catalog, own_database,
    shared_catalog,
};

/// Credentials that end within this time are warned of (T26).
const EXPIRY_WARNING: SignedDuration = SignedDuration::from_hours(30 * 24);
/// The pause between two tries to open a catalog that is away.
const CATALOG_PAUSE: Duration = Duration::from_secs(5);
/// The catalog's setting with storages that `recover` was told of.
pub(crate) const RECOVERED: &str = "recovered";
/// The catalog's setting with what `source add` and `storage add` were told.
pub(crate) const ADDITIONS: &str = "additions";
/// The setting with the directory of each source whose import was enqueued.
pub(crate) const IMPORTED_FROM: &str = "imported directories";

/// A configuration, a home directory, and what runs in them.
#[derive(Clone)]
pub(crate) struct Installation {
    /// Shared: each job of a server has an installation of its own.
    pub(crate) config: Arc<Config>,
    /// What of it was added by commands.
    pub(crate) additions: Additions,
    pub(crate) home: Home,
    pub(crate) catalog: Catalog,
    pub(crate) cx: Cx,
    /// The keys that a server lent to this worker; else the catalog's count.
    pub(crate) lent: Option<Arc<Keyring>>,
    /// The database that the shared catalog is in, this machine's or that of the server whose worker this is (ADR 25).
    pub(crate) own: Option<OwnDatabase>,
}

/// What `recover` was told, kept for later commands.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Recovered {
    pub(crate) organisation: Slug,
    pub(crate) storage: StorageKind,
}

impl Recovered {
    /// Returns the storage under the name that it has from now on.
    pub(crate) fn as_storage(&self) -> StorageConfig {
        StorageConfig {
            name: RECOVERED.to_owned(),
            organisation: self.organisation.clone(),
            kind: self.storage.clone(),
            credentials: CredentialConfig::Elsewhere { profile: None },
            credentials_expire: None,
            jobs: None,
        }
    }
}

/// What a storage showed in its last test.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Tested {
    pub(crate) at: Timestamp,
    /// Where it was then: another place must be tested anew.
    pub(crate) location: String,
    pub(crate) profile: Option<Profile>,
    pub(crate) error: Option<String>,
}

#[derive(Serialize, Deserialize)]
pub(crate) struct StoredCredentials {
    pub(crate) access_key_id: String,
    pub(crate) secret_access_key: String,
}

impl Installation {
    /// Opens the installation that the global options mean. A wrong configuration makes nothing.
    pub(crate) async fn open(global: &Global, cx: Cx) -> anyhow::Result<Self> {
        let installation = Self::open_even_empty(global, cx).await?;
        let config = &installation.config;
        if config_path(global).is_none() && config.storages.is_empty() && config.sources.is_empty()
        {
            let text =
                "there is no configuration: `backstay init` writes one, or name it with --config";
            return Err(UsageError(text.to_owned()).into());
        }
        Ok(installation)
    }

    /// Opens it for a server, which waits for a shared catalog that is away: machines are started in any order.
    pub(crate) async fn open_patiently(global: &Global, cx: Cx) -> anyhow::Result<Self> {
        let mut told = false;
        loop {
            let error = match Self::open(global, cx.clone()).await {
                Err(error) if is_outage(&error) => error,
                opened => return opened,
            };
            if !told {
                let text = format!("waiting for the catalog: {error:#}");
                cx.event(Event::Warning { text });
                told = true;
            }
            cx.run(tokio::time::sleep(CATALOG_PAUSE)).await?;
        }
    }

    /// Like [`Installation::open`], where nothing needs to be configured yet.
    pub(crate) async fn open_even_empty(global: &Global, cx: Cx) -> anyhow::Result<Self> {
        // Checked before anything is made, and before an existing home says what else belongs to it.
        let file = config_path(global);
        let shared = shared_catalog(global)?;
        // What a shared catalog adds to it is not known yet.
        if !is_home_there(global)? && shared.is_none() {
            Config::load(file.as_deref(), &Additions::default(), &environment())?;
        }
        let (home, catalog) = open_catalog(global, shared).await?;
        let additions = additions_in(&catalog).await?;
        let config = Arc::new(configured(file.as_deref(), &catalog, &additions).await?);
        backstay_engine::spool::clean(&home.spool()).context("cannot clean the spool directory")?;
        let own = own_database(&catalog).await?;
        Ok(Self { config, additions, home, catalog, cx, lent: None, own })
    }

    /// Keeps what was added by commands, after checking that the whole is still right.
    pub(crate) async fn set_additions(&mut self, mut additions: Additions) -> anyhow::Result<()> {
        additions.drop_unused_passwords();
        let config = Arc::new(self.with_additions(&additions).await?);
        if !self.catalog.replace_setting(ADDITIONS, &self.additions, &additions).await? {
            let text = "another command changed what is kept at the same moment, and this changed nothing; run it again";
            anyhow::bail!(text);
        }
        let before = std::mem::replace(&mut self.additions, additions);
        self.config = config;
        let used: BTreeSet<&String> = self.additions.passwords.values().collect();
        for unused in before.passwords.values().filter(|name| !used.contains(name)) {
            self.catalog.forget(unused).await?;
        }
        Ok(())
    }

    /// Returns the configuration as it would be with other additions.
    pub(crate) async fn with_additions(&self, additions: &Additions) -> anyhow::Result<Config> {
        configured(self.file(), &self.catalog, additions).await
    }

    /// Returns the configuration file, if there is one.
    pub(crate) fn file(&self) -> Option<&Path> {
        self.config.file.as_ref().map(|file| file.path.as_path())
    }

    /// Returns a source by name: of the configuration, else as a vault remembers it.
    pub(crate) async fn source(&self, name: &str) -> anyhow::Result<SourceConfig> {
        if let Some(source) = self.config.sources.get(name) {
            return Ok(source.clone());
        }
        if let Some(source) = self.remembered_source(name).await? {
            return Ok(source);
        }
        Err(self.no_source(name).into())
    }

    /// Says that nothing of this name is configured, and what is.
    pub(crate) fn no_source(&self, name: &str) -> UsageError {
        let known: Vec<&str> = self.config.sources.keys().map(String::as_str).collect();
        UsageError(format!("there is no source {name:?}; known: {}", known.join(", ")))
    }

    /// Returns the names of all sources: of the configuration, and of the vaults if `also_remembered`.
    pub(crate) async fn source_names(&self, also_remembered: bool) -> anyhow::Result<Vec<String>> {
        let mut names: Vec<String> = self.config.sources.keys().cloned().collect();
        if also_remembered {
            for storage in self.config.storages.values() {
                let Ok(vault) = self.vault(storage).await else { continue };
                names.extend(
                    vault
                        .sources(&self.cx, &storage.organisation)
                        .await?
                        .iter()
                        .map(ToString::to_string),
                );
            }
        }
        names.sort();
        names.dedup();
        Ok(names)
    }

    pub(crate) fn storage(&self, name: &str) -> anyhow::Result<&StorageConfig> {
        let known = || self.config.storages.keys().cloned().collect::<Vec<_>>().join(", ");
        self.config.storages.get(name).ok_or_else(|| {
            UsageError(format!("there is no storage {name:?}; known: {}", known())).into()
        })
    }

    /// Returns what is wrong with the credentials of a storage, if they have expired by what the configuration says.
    pub(crate) fn expired(&self, storage: &StorageConfig) -> Option<String> {
        let expires = storage.credentials_expire.filter(|expires| *expires <= self.cx.now())?;
        Some(format!(
            "the credentials of storage {} expired on {expires}; set new ones and correct credentials_expire",
            storage.name
        ))
    }

    /// Returns how to reach a storage, and warns if its credentials expire soon. The storage knows better than a date in a
    /// file whether they have: nobody is kept from a restore by it.
    pub(crate) async fn store_spec(&self, storage: &StorageConfig) -> anyhow::Result<StoreSpec> {
        let soon = storage.credentials_expire.filter(|expires| {
            let left = expires.duration_since(self.cx.now());
            left < EXPIRY_WARNING
        });
        let warning = self.expired(storage).or_else(|| {
            soon.map(|at| format!("the credentials of storage {} expire on {at}", storage.name))
        });
        if let Some(text) = warning {
            self.cx.event(Event::Warning { text });
        }
        let credentials = match &storage.credentials {
            CredentialConfig::Given { access_key_id, secret_access_key, session_token } => {
                S3Credentials::Static {
                    access_key_id: access_key_id.clone(),
                    secret_access_key: secret_access_key.clone(),
                    session_token: session_token.clone(),
                }
            }
            CredentialConfig::Elsewhere { profile } => {
                match self.catalog.secret(&credentials_name(&storage.name)).await? {
                    None => S3Credentials::Chain { profile: profile.clone() },
                    Some(bytes) => {
                        let stored: StoredCredentials = serde_json::from_slice(&bytes)
                            .context("the sealed credentials cannot be read")?;
                        S3Credentials::Static {
                            access_key_id: stored.access_key_id,
                            secret_access_key: stored.secret_access_key.into(),
                            session_token: None,
                        }
                    }
                }
            }
        };
        storage
            .spec(credentials)
            .with_context(|| format!("cannot read ca_file of storage {}", storage.name))
    }

    /// Opens a storage, testing it first if it was never found good (D4).
    pub(crate) async fn store(&self, storage: &StorageConfig) -> anyhow::Result<Store> {
        let spec = self.store_spec(storage).await?;
        let tested =
            self.tested(storage).await?.filter(|tested| tested.location == spec.location());
        let profile = match tested.and_then(|tested| tested.profile) {
            Some(profile) => profile,
            None => self.test_storage(storage).await?.profile,
        };
        let store = Store::open(&spec, profile)?.with_upload_log(self.upload_log(storage));
        self.end_abandoned_uploads(storage, &store).await?;
        Ok(store)
    }

    /// Tests a storage and remembers what came of it.
    pub(crate) async fn test_storage(
        &self,
        storage: &StorageConfig,
    ) -> anyhow::Result<backstay_engine::store::ProbeReport> {
        let spec = self.store_spec(storage).await?;
        let report = probe(&self.cx, &spec, self.upload_log(storage)).await;
        let tested = Tested {
            at: self.cx.now(),
            location: spec.location(),
            profile: report.as_ref().ok().map(|report| report.profile.clone()),
            error: report.as_ref().err().map(ToString::to_string),
        };
        self.catalog.set_setting(&tested_name(&storage.name), &tested).await?;
        Ok(report?)
    }

    pub(crate) async fn tested(&self, storage: &StorageConfig) -> anyhow::Result<Option<Tested>> {
        Ok(self.catalog.setting(&tested_name(&storage.name)).await?)
    }

    /// Opens a storage for reading, which needs no create and no upload check: an untested one is read with all caution.
    pub(crate) async fn store_for_reading(&self, storage: &StorageConfig) -> anyhow::Result<Store> {
        let spec = self.store_spec(storage).await?;
        let profile = self.tested(storage).await?.and_then(|tested| tested.profile);
        Ok(Store::open(&spec, profile.unwrap_or_else(|| spec.documented_profile()))?)
    }

    /// Returns the keys; none before the first backup.
    pub(crate) async fn keyring(&self) -> anyhow::Result<Keyring> {
        if let Some(lent) = &self.lent {
            return Ok(Keyring::clone(lent));
        }
        let kept = self.catalog.keyring().await?;
        Ok(kept.unwrap_or_else(|| Keyring::new(RecoveryKey::new(random()))))
    }

    pub(crate) async fn keyring_with_key(&self) -> anyhow::Result<Keyring> {
        if let Some(lent) = &self.lent {
            return Ok(Keyring::clone(lent));
        }
        if let Some(keyring) = self.catalog.keyring().await? {
            return Ok(keyring);
        }
        let mut made = Keyring::new(RecoveryKey::new(random()));
        made.add(DataKey::new(random()), self.cx.now());
        Ok(self.catalog.first_keyring(&made).await?)
    }

    pub(crate) fn draft(
        &self,
        source: &SourceConfig,
        trigger: Trigger,
        note: Option<String>,
    ) -> Draft {
        Draft {
            organisation: source.organisation.clone(),
            source: source.name.clone(),
            source_kind: source.kind.as_str(),
            trigger,
            note,
            host: host(),
            app: source.app.clone(),
            environment: source.environment.clone(),
            sealed: source.sealed,
            origin: Some(source.kind.location()),
            compression_level: source.compression_level,
            imported: None,
        }
    }

    /// Returns the same installation for a piece of the work.
    pub(crate) fn with_cx(&self, cx: Cx) -> Self {
        Self { cx, ..self.clone() }
    }

    /// Returns it as if there were nothing but what an organisation has.
    pub(crate) fn of(&self, organisation: &Slug) -> Self {
        let config = Arc::new(self.config.of(organisation));
        Self { config, ..self.clone() }
    }

    /// Returns what commands have added by now.
    pub(crate) async fn added(&self) -> anyhow::Result<Additions> {
        additions_in(&self.catalog).await
    }

    /// Returns it with the configuration as it is now.
    pub(crate) async fn reloaded(&self, file: Option<&Path>) -> anyhow::Result<Self> {
        let additions = self.added().await?;
        let config = Arc::new(configured(file, &self.catalog, &additions).await?);
        Ok(Self { config, additions, ..self.clone() })
    }

    /// Takes the lease on a source, and renews it.
    pub(crate) async fn lease(&self, source: &str) -> anyhow::Result<LeaseGuard> {
        let me = Holder::this_process(&host());
        let lease = self.catalog.lease(source, &me, self.cx.now()).await?;
        Ok(LeaseGuard::keep(self.catalog.clone(), lease, self.cx.clone()))
    }

    /// Does work on a source, or on what else has a name of its own, while no other process works on it.
    pub(crate) async fn under_lease<T>(
        &self,
        source: &str,
        work: impl Future<Output = anyhow::Result<T>>,
    ) -> anyhow::Result<T> {
        let me = Holder::this_process(&host());
        let guard = self.lease(source).await?;
        // Whatever ran on it has lost its lease to this.
        let lost = async {
            let now = self.catalog.time(self.cx.now()).await?;
            self.catalog.end_lost_jobs(Some(source), &me, now, new_job_id).await
        };
        let done = match lost.await {
            Ok(_) => work.await,
            Err(error) => Err(error.into()),
        };
        guard.release().await;
        done
    }

    /// Writes down that something is done for a source.
    pub(crate) async fn start_job(
        &self,
        source: &SourceConfig,
        kind: JobKind,
    ) -> anyhow::Result<JobId> {
        let me = Holder::this_process(&host());
        let named = (new_job_id(), source.as_job());
        Ok(self.catalog.start_job(named, kind, &me, self.cx.now()).await?)
    }

    /// Writes down how it ended. That this fails changes nothing of what was done, so it is only warned of.
    pub(crate) async fn end_job(
        &self,
        job: &JobId,
        state: JobState,
        error: Option<&anyhow::Error>,
        backup: Option<String>,
    ) {
        let outcome = (error.map(|error| format!("{error:#}")), backup);
        let ended = self.catalog.advance_job(job, state, self.cx.now(), outcome).await;
        if let Err(error) = ended {
            let text = format!("how it ended could not be written down: {error}");
            self.cx.event(Event::Warning { text });
        }
    }

    /// Keeps what was said while a job was done. Likewise.
    pub(crate) async fn keep_log(&self, job: &JobId, log: &str) {
        if let Err(error) = self.catalog.keep_log(job, log).await {
            let text = format!("the job's log could not be kept: {error}");
            self.cx.event(Event::Warning { text });
        }
    }

    /// How a job ends that could not be done.
    pub(crate) fn failed(&self) -> JobState {
        if self.cx.cancelled().is_some() { JobState::Cancelled } else { JobState::Failed }
    }

    pub(crate) async fn remember(&self, recovered: &Recovered) -> anyhow::Result<()> {
        Ok(self.catalog.set_setting(RECOVERED, recovered).await?)
    }
}

/// Says whether it failed since the catalog is away for a while.
fn is_outage(error: &anyhow::Error) -> bool {
    error.downcast_ref().is_some_and(CatalogError::is_outage)
}

pub(crate) fn credentials_name(storage: &str) -> String {
    format!("credentials of storage {storage}")
}

pub(crate) fn tested_name(storage: &str) -> String {
    format!("test of storage {storage}")
}

pub(crate) fn host() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

/// Makes the id of a job.
pub(crate) fn new_job_id() -> String {
    u64::from_be_bytes(random()).to_string()
}

/// Returns random bytes of the operating system.
pub(crate) fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    rand::rng().fill_bytes(&mut bytes);
    bytes
}
