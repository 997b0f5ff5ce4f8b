//! The catalog in both databases that it can be in: whatever holds in one holds in the other.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on should stop")]

mod catalogs;
mod export;
mod index;
mod lost;
mod members;
mod migrations;
mod queue;
mod workers;
