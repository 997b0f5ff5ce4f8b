//! The work of Backstay: sources, pipeline, vault, store, and the verbs that use them.
//!
//! Start reading at [`backup`]. The engine knows no job, row or page: it is given values and returns values, and tells
//! a [`Monitor`](event::Monitor) what happens on the way.

pub mod cx;
pub mod error;
pub mod event;
pub mod part;
pub mod pipeline;
pub mod replace;
pub mod source;
pub mod store;
pub mod vault;
