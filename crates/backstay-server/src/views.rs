//! What people see of an installation, as JSON: by way of a server, and of a command on the machine itself. Unknown fields are
//! ignored and new ones have defaults, as between servers and workers.

use backstay_control::{JobState, Progress, Role};
use backstay_format::{BackupId, Encryption, Slug, Trigger};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// How well all sources are protected.
#[derive(Debug, Serialize, Deserialize)]
pub struct StatusView {
    /// Of each source.
    pub sources: Vec<SourceStatus>,
    /// What is wrong with the whole.
    #[serde(default)]
    pub warnings: Vec<String>,
}

/// How well a source is protected.
#[derive(Debug, Serialize, Deserialize)]
pub struct SourceStatus {
    /// Its name.
    pub source: Slug,
    /// `good`, `attention`, or the word for its worst alarm.
    pub health: String,
    /// The newest backup that can bring it back.
    pub newest_good: Option<BackupId>,
    /// When that was begun.
    pub newest_good_at: Option<Timestamp>,
    /// Its bytes on the storage.
    pub newest_good_bytes: Option<u64>,
    /// How old it is.
    pub age_seconds: Option<i64>,
    /// How old it may be.
    pub rpo_seconds: i64,
    /// How old it was at most lately, just before the next was there.
    pub rpo_seen_seconds: Option<i64>,
    /// How long a restore may take.
    pub rto_seconds: i64,
    /// How long the last one took.
    pub rto_seen_seconds: Option<f64>,
    /// Slots of the schedule that passed without a backup.
    pub missed_runs: u32,
    /// How the newest backup job stands.
    pub last_job: Option<JobState>,
    /// When it was asked for.
    pub last_job_at: Option<Timestamp>,
    /// When the next one is due.
    pub next_at: Option<Timestamp>,
    /// What is wrong, the worst first.
    #[serde(default)]
    pub troubles: Vec<String>,
}

/// Something that is backed up.
#[derive(Debug, Serialize, Deserialize)]
pub struct SourceView {
    /// Its name.
    pub name: Slug,
    /// Whose it is.
    #[serde(default)]
    pub organisation: String,
    /// The word for its kind.
    pub kind: String,
    /// Where it is, without secrets.
    pub location: String,
    /// The storage of its backups.
    pub storage: String,
    /// When it is backed up by itself.
    pub schedule: Option<String>,
    /// Whether the configuration file declares it; else a command added it.
    #[serde(default)]
    pub declared: bool,
}

/// A place for backups.
#[derive(Debug, Serialize, Deserialize)]
pub struct StorageView {
    /// Its name.
    pub name: String,
    /// Whose it is.
    #[serde(default)]
    pub organisation: String,
    /// Where it is, without secrets.
    pub location: String,
    /// `unverified`, `verified` or `failed`.
    pub status: String,
    /// When it was tested last.
    pub tested_at: Option<Timestamp>,
    /// What was wrong then.
    pub error: Option<String>,
}

/// What the test of a storage found; one that fails is an error.
#[derive(Debug, Serialize, Deserialize)]
pub struct StorageTest {
    /// Its name.
    pub storage: String,
    /// `verified`.
    pub status: String,
    /// What it can do.
    #[serde(default)]
    pub profile: Value,
    /// What was tried, in the order of the attempts.
    pub findings: Vec<FindingView>,
    /// That its credentials have expired by the date in the configuration, if they have.
    #[serde(default)]
    pub expired: Option<String>,
    /// What a person should know all the same.
    #[serde(default)]
    pub warnings: Vec<String>,
}

/// One attempt of a storage's test.
#[derive(Debug, Serialize, Deserialize)]
pub struct FindingView {
    /// What was tried.
    pub what: String,
    /// What came of it.
    pub result: String,
}

/// Which backups somebody wants to see; without a word all, as they are now.
#[derive(Debug, Default, Clone, Serialize, Deserialize)]
pub struct WhichBackups {
    /// Of this source only, as they are now.
    pub source: Option<String>,
    /// So many of all sources, the newest, as they were seen last.
    pub newest: Option<u32>,
}

/// The backups that there are.
#[derive(Debug, Serialize, Deserialize)]
pub struct BackupsView {
    /// Newest first.
    pub backups: Vec<BackupView>,
    /// Which cannot be used, and why.
    #[serde(default)]
    pub errors: Vec<String>,
    /// The exit code that says so; 0 if all can.
    #[serde(default)]
    pub exit_code: u8,
}

/// A backup.
#[derive(Debug, Serialize, Deserialize)]
pub struct BackupView {
    /// Its id.
    pub id: BackupId,
    /// What it was made of.
    pub source: Slug,
    /// `complete`, `incomplete` or `orphaned`.
    pub status: String,
    /// What started it.
    pub trigger: Trigger,
    /// The name of its storage.
    pub storage: String,
    /// Where it lies.
    pub location: String,
    /// When the run began.
    pub started_at: Timestamp,
    /// When the last byte was durable.
    pub finished_at: Timestamp,
    /// Plain bytes of all parts.
    pub plain_bytes: u64,
    /// Their bytes on the storage.
    pub stored_bytes: u64,
    /// Its parts.
    #[serde(default)]
    pub parts: Value,
    /// What a person should know.
    #[serde(default)]
    pub warnings: Vec<String>,
    /// The first items that could not be read.
    #[serde(default)]
    pub item_errors: Vec<ItemErrorView>,
    /// How many could not be read.
    #[serde(default)]
    pub item_error_count: u64,
    /// Whether and with which key it is sealed.
    pub encryption: Encryption,
    /// The note of whoever made it.
    pub note: Option<String>,
    /// Why it must not be forgotten, if it is held.
    pub hold: Option<String>,
    /// Whether `started_at` is only when a file was written that was imported.
    #[serde(default)]
    pub undated: bool,
    /// The machine that it was made on.
    #[serde(default)]
    pub host: String,
}

/// An item that could not be read.
#[derive(Debug, Serialize, Deserialize)]
pub struct ItemErrorView {
    /// Which.
    pub item: String,
    /// Why.
    pub error: String,
}

/// A job.
#[derive(Debug, Serialize, Deserialize)]
pub struct JobView {
    /// Its id.
    pub id: String,
    /// Whose it is.
    #[serde(default)]
    pub organisation: String,
    /// Of which source.
    pub source: String,
    /// The word for what it does.
    pub kind: String,
    /// How far it is, or how it ended.
    pub state: JobState,
    /// The worker on another machine that it was given to.
    pub worker: Option<String>,
    /// The member who asked for it.
    #[serde(default)]
    pub asked_by: Option<String>,
    /// Which slot of the schedule it is for.
    pub slot: Option<Timestamp>,
    /// Which try it is, from 1.
    pub attempt: u32,
    /// The job that is the next try, if there is one.
    #[serde(default)]
    pub next_try: Option<String>,
    /// When it was asked for.
    pub queued_at: Timestamp,
    /// It does not begin before.
    pub not_before: Option<Timestamp>,
    /// When it began.
    pub started_at: Option<Timestamp>,
    /// When it ended.
    pub finished_at: Option<Timestamp>,
    /// The backup that it made or restored.
    pub backup: Option<String>,
    /// What went wrong.
    pub error: Option<String>,
    /// How far it is.
    pub progress: Option<Progress>,
    /// What was said meanwhile, line by line.
    pub log: Option<String>,
    /// What it found.
    #[serde(default)]
    pub result: Option<Value>,
}

/// A job that somebody asks for.
#[derive(Debug, Serialize, Deserialize)]
pub struct JobRequest {
    /// Its id, of up to twenty digits: asked for again under the same id, it is the same job. Made up by the server if left out.
    #[serde(default)]
    pub id: Option<String>,
    /// Of which source.
    pub source: String,
    /// What is to be done.
    #[serde(flatten)]
    pub work: Work,
}

/// What somebody asks for.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Work {
    /// A backup.
    Backup {
        /// What it is told to be started by: `manual`, `scheduled`, `pre-deploy` or `post-deploy`.
        #[serde(default = "manual")]
        trigger: Trigger,
        /// A note to keep with it.
        #[serde(default)]
        note: Option<String>,
        /// Whether retention is not to touch it.
        #[serde(default)]
        hold: bool,
    },
    /// A restore into a scratch place.
    Drill {
        /// Of this backup, by its id or the beginning of it; the newest good one if left out.
        #[serde(default)]
        backup: Option<String>,
    },
    /// A look at the source, as a backup would.
    Test,
    /// A look at what a restore would do.
    Preview(RestoreWish),
    /// A restore.
    Restore(RestoreWish),
    /// Putting back what the newest restore replaced.
    Undo,
    /// Letting go of what the newest restore replaced.
    Confirm,
}

/// What somebody wants restored, and how.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct RestoreWish {
    /// This backup, by its id or the beginning of it; a restore needs the whole id. The newest good one if left out.
    #[serde(default)]
    pub backup: Option<String>,
    /// The newest good one that began before this time.
    #[serde(default)]
    pub at: Option<Timestamp>,
    /// To a new database of this name on the source's server; to the source's own place if left out.
    #[serde(default)]
    pub to: Option<String>,
    /// Only this of it: paths or tables.
    #[serde(default)]
    pub only: Vec<String>,
    /// Replaces what is there name by name, or in one transaction, instead of swapping the whole.
    #[serde(default)]
    pub in_place: bool,
    /// Takes a backup that is not sealed although the source's should be.
    #[serde(default)]
    pub accept_unsealed: bool,
    /// Backs up what is there before.
    #[serde(default = "yes")]
    pub safety_backup: bool,
    /// What somebody said yes to replacing: the `target` of a preview.
    #[serde(default)]
    pub replaces: Option<String>,
    /// The worker that made the preview, if one did.
    #[serde(default)]
    pub worker: Option<Slug>,
}

impl JobRequest {
    /// Returns a word of what was asked that it does not know, where that would restore more than was meant, or elsewhere.
    pub(crate) fn unknown_word<'a>(&self, asked: &'a Value) -> Option<&'a str> {
        if !matches!(self.work, Work::Preview(_) | Work::Restore(_)) {
            return None;
        }
        let known = serde_json::to_value(self).expect("a request is plain values");
        let mut words = asked.as_object()?.keys();
        words.find(|word| known.get(word).is_none()).map(String::as_str)
    }
}

impl Work {
    /// Says whether it changes what the source's app sees.
    pub fn is_change(&self) -> bool {
        matches!(self, Self::Restore(_) | Self::Undo | Self::Confirm)
    }

    /// Says whether it is a look at, or a restore to, a new place beside the source.
    pub fn is_beside(&self) -> bool {
        matches!(self, Self::Preview(wish) | Self::Restore(wish) if wish.to.is_some())
    }

    /// Returns what a member must at least be to ask for it.
    pub fn least(&self) -> Role {
        if self.is_change() { Role::Admin } else { Role::Operator }
    }
}

fn yes() -> bool {
    true
}

fn manual() -> Trigger {
    Trigger::Manual
}

/// Why something is done: to cancel a job, to hold a backup.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Reason {
    /// In words.
    pub(crate) reason: String,
}

/// An entry of the audit.
#[derive(Debug, Serialize, Deserialize)]
pub struct AuditView {
    /// When it had ended.
    pub at: Timestamp,
    /// Who: a member, or a user of a machine.
    pub actor: String,
    /// What was done.
    pub action: String,
    /// With what.
    pub subject: String,
    /// `done`, or why not.
    pub outcome: String,
}

/// What a request asked for that changes something, and was done.
#[derive(Debug, Serialize, Deserialize)]
pub struct Done {
    /// In a line, for a person.
    pub said: String,
    /// What he should know all the same.
    #[serde(default)]
    pub warnings: Vec<String>,
}
