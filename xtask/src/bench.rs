//! Comparisons with what a user would do instead, side by side in one run.

pub(crate) mod files;
mod measure;
mod server;
mod subject;
