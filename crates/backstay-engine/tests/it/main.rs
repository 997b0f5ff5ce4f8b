//! The engine's verbs against real trees, databases and stores.

#![expect(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "tests stop where they cannot go on"
)]

mod changing;
mod damage;
mod hostile;
mod listing;
mod power;
mod proofs;
mod sqlite;
mod store;
mod trees;
mod world;
