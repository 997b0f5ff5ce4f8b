//! The state of a Backstay installation: home directory, master key, sealed secrets, catalog, leases.
//!
//! **Invariant:** nothing here is needed to restore. Losing all of it, with a recovery kit in hand, loses no backup.

#![cfg_attr(test, expect(clippy::unwrap_used, reason = "a test that cannot go on should stop"))]

mod catalog;
mod home;
mod lease;
mod master_key;
mod run;
mod swap;

pub use catalog::{Catalog, CatalogError};
pub use home::{Home, HomeError};
pub use lease::{Holder, Lease, LeaseError};
pub use master_key::{MasterKey, MasterKeyError};
pub use run::{Run, RunKind, RunState};
pub use swap::{SwapRecord, SwapState};
