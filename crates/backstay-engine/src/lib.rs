//! The work of Backstay: sources, pipeline, vault, store, and the verbs that use them.
//!
//! Start reading at [`backup`]. The engine knows no job, row or page: it is given values and returns values, and tells
//! a [`Monitor`](event::Monitor) what happens on the way.

#![cfg_attr(test, expect(clippy::unwrap_used, reason = "a test that cannot go on should stop"))]

pub mod archive;
pub mod backup;
pub mod cx;
pub mod document;
pub mod drill;
pub mod error;
pub mod event;
pub mod forget;
pub mod hook;
pub mod import;
pub mod part;
pub mod pipeline;
pub mod recover;
pub mod replace;
pub mod restore;
pub mod source;
pub mod spool;
pub mod store;
pub mod swap;
pub mod vault;
pub mod verify;
