//! Where a guard has its checks and backups made: on this machine, or by a server.

use std::collections::BTreeSet;
use std::time::Duration;

use backstay_control::{BackupSpec, JobKind, JobState};
use backstay_engine::event::Event;
use backstay_format::Trigger;
use jiff::SignedDuration;
use tokio::time::Instant;

use crate::commands::asking::{Asking, backup_for};
use crate::commands::backup::{Made, backup_one, warn_without_kit};
use crate::commands::elsewhere::{Look, look, without_backup};
use crate::config::SourceConfig;
use crate::installation::Installation;
use crate::lease::is_held;

/// The pause between two looks at whether a source is free.
const LOOK: Duration = Duration::from_secs(2);

/// A backup that was made for a guard.
pub(super) struct Guarded {
    /// What was made, in a line.
    pub(super) summary: String,
    /// What is missing from it.
    pub(super) gap: Option<String>,
    /// What failed after it was made.
    pub(super) afterwards: Option<anyhow::Error>,
}

/// Where a guard has its checks and backups made.
pub(super) trait Ground {
    /// Returns the sources that the command may change.
    fn sources(&self) -> Vec<String>;
    /// Returns the storages of their backups.
    async fn storages(&self) -> anyhow::Result<BTreeSet<String>>;
    /// Looks at a source as a backup would, waiting so long for whoever works on it.
    async fn look_at(&self, source: &str, wait: SignedDuration) -> anyhow::Result<Look>;
    /// Tries all that backups need of a storage. Returns what a person should know all the same.
    async fn test(&self, storage: &str) -> anyhow::Result<Vec<String>>;
    /// Backs up a source, waiting so long for whoever works on it.
    async fn back_up(
        &self,
        source: &str,
        why: (Trigger, SignedDuration),
    ) -> anyhow::Result<Guarded>;
    /// Hears that no backup was made after the command.
    async fn not_made(&self, source: &str, error: &anyhow::Error);
    /// Does what is to be done after all backups.
    async fn settle(&self) -> anyhow::Result<()>;
}

/// On this machine.
pub(super) struct Here<'a> {
    pub(super) app: &'a Installation,
    pub(super) sources: Vec<SourceConfig>,
}

impl Here<'_> {
    fn source(&self, name: &str) -> anyhow::Result<&SourceConfig> {
        let source = self.sources.iter().find(|source| source.name.as_str() == name);
        source.ok_or_else(|| anyhow::anyhow!("there is no source {name}"))
    }
}

impl Ground for Here<'_> {
    fn sources(&self) -> Vec<String> {
        self.sources.iter().map(|source| source.name.to_string()).collect()
    }

    async fn storages(&self) -> anyhow::Result<BTreeSet<String>> {
        Ok(self.sources.iter().map(|source| source.storage.clone()).collect())
    }

    async fn look_at(&self, source: &str, _wait: SignedDuration) -> anyhow::Result<Look> {
        look(self.app, self.source(source)?).await
    }

    async fn test(&self, storage: &str) -> anyhow::Result<Vec<String>> {
        let storage = self.app.storage(storage)?;
        if let Some(text) = self.app.expired(storage) {
            anyhow::bail!(text);
        }
        self.app.test_storage(storage).await?;
        // The first backup makes one where there never was any.
        self.app.vault_if_any(storage).await?;
        // What there is to know was told meanwhile.
        Ok(Vec::new())
    }

    async fn back_up(
        &self,
        source: &str,
        (trigger, wait): (Trigger, SignedDuration),
    ) -> anyhow::Result<Guarded> {
        let (app, source) = (self.app, self.source(source)?);
        let spec = BackupSpec { trigger, note: None, hold: false };
        // Longer than anybody waits, where it cannot be counted.
        let patience = Instant::now().checked_add(wait.unsigned_abs());
        let mut is_told = false;
        loop {
            match backup_one(app, source, &spec).await {
                Ok(made) => return Ok(made.into()),
                Err(error)
                    if is_held(&error) && patience.is_none_or(|end| Instant::now() < end) =>
                {
                    if !is_told {
                        let what = format!("waiting, since {error:#}");
                        app.cx.event(Event::Step { what });
                        is_told = true;
                    }
                    app.cx.run(tokio::time::sleep(LOOK)).await?;
                }
                Err(error) => return Err(error),
            }
        }
    }

    async fn not_made(&self, source: &str, error: &anyhow::Error) {
        // Where somebody else works on the source, no other job says so.
        if is_held(error)
            && let Ok(source) = self.source(source)
            && let Ok(job) = self.app.start_job(source, JobKind::Backup).await
        {
            self.app.end_job(&job, JobState::Failed, Some(error), None).await;
        }
    }

    async fn settle(&self) -> anyhow::Result<()> {
        let storages = self.sources.iter().map(|source| source.storage.clone()).collect();
        self.app.back_up_catalog_too(&storages).await;
        warn_without_kit(self.app).await
    }
}

impl From<Made> for Guarded {
    fn from(made: Made) -> Self {
        Self { summary: made.summary(), gap: made.gap(), afterwards: made.afterwards }
    }
}

/// By a server.
pub(super) struct Asked<'a> {
    pub(super) asking: &'a Asking,
    pub(super) sources: Vec<String>,
}

impl Ground for Asked<'_> {
    fn sources(&self) -> Vec<String> {
        self.sources.clone()
    }

    async fn storages(&self) -> anyhow::Result<BTreeSet<String>> {
        let known = self.asking.client.sources().await?.into_iter();
        let ours = known.filter(|one| self.sources.iter().any(|name| *name == one.name.as_str()));
        Ok(ours.map(|source| source.storage).collect())
    }

    async fn look_at(&self, source: &str, wait: SignedDuration) -> anyhow::Result<Look> {
        self.asking.look_at(source, Some(wait.unsigned_abs())).await
    }

    async fn test(&self, storage: &str) -> anyhow::Result<Vec<String>> {
        let tested = self.asking.cx.run(self.asking.client.test_storage(storage)).await??;
        if let Some(text) = tested.expired {
            anyhow::bail!(text);
        }
        Ok(tested.warnings)
    }

    async fn back_up(
        &self,
        source: &str,
        (trigger, wait): (Trigger, SignedDuration),
    ) -> anyhow::Result<Guarded> {
        let work = (source, backup_for(trigger));
        let job = self.asking.have_done(work, Some(wait.unsigned_abs())).await?;
        let error = job.error.map(|error| anyhow::anyhow!(error));
        let Some(backup) = job.backup else {
            return Err(without_backup(error));
        };
        let gap = (job.state == JobState::Incomplete).then(|| {
            format!("backup {backup} is incomplete; `backstay show {backup}` says what is missing")
        });
        let summary = format!("backup {backup} was made by the server");
        Ok(Guarded { summary, gap, afterwards: error })
    }

    /// The server's job says so, if there is one.
    async fn not_made(&self, _source: &str, _error: &anyhow::Error) {}

    async fn settle(&self) -> anyhow::Result<()> {
        Ok(())
    }
}
