//! The state of a Backstay installation: home directory, master key, sealed secrets, catalog, leases.
//!
//! **Invariant:** nothing here is needed to restore. Losing all of it, with a recovery kit in hand, loses no backup.

#![cfg_attr(test, expect(clippy::unwrap_used, reason = "a test that cannot go on should stop"))]

mod audit;
mod catalog;
mod export;
mod health;
mod home;
mod index;
mod job;
mod job_spec;
mod lease;
mod master_key;
mod member;
mod migrations;
mod orphans;
mod policy;
mod queue;
mod schedule;
mod swap;
mod token;
mod upload;
mod worker;

pub use audit::{AuditEntry, Change};
pub use catalog::{Catalog, CatalogError};
pub use export::Imported;
pub use health::{Alarm, Facts, Health, Objectives, Span};
pub use home::{Home, HomeError};
pub use job::{Job, JobId, JobKind, JobState, OfSource, PastRestore, Progress, Whose};
pub use job_spec::{BackupSpec, JobSpec, RestoreSpec};
pub use lease::{Holder, Lease, LeaseError};
pub use master_key::{MasterKey, MasterKeyError};
pub use member::{Member, Role};
pub use orphans::Orphans;
pub use policy::{Blackout, BlackoutError, DueSlot, Policy};
pub use queue::{Again, LostJob, WaitingJob};
pub use schedule::{Schedule, ScheduleError, Seen, Since};
pub use swap::{SwapRecord, SwapState};
pub use token::{NoToken, Token, TokenKind};
pub use upload::UploadRecord;
pub use worker::{Allowance, EnrolError, Enrolment, Worker};
