//! Real servers, faults and independent oracles for Backstay's tests.
//!
//! What is compared with the product shares no code with it: the walker of [`tree`] reads paths where the product uses
//! directory handles, and hashes with another library.

pub mod certificates;
pub mod daemon;
pub mod duckdb;
pub mod faulty;
pub mod gate;
pub mod ledger;
pub mod mysql;
pub mod postgres;
pub mod proxy;
pub mod redis;
pub mod s3;
pub mod servers;
mod spoil;
pub mod ssh;
pub mod tree;

/// Returns bytes as text that differs wherever they do, also where they are no text.
fn exact(bytes: &[u8]) -> String {
    let chunks = bytes.utf8_chunks();
    chunks.map(|chunk| format!("{}{}", chunk.valid(), chunk.invalid().escape_ascii())).collect()
}
