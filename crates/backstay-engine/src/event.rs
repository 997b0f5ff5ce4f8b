//! What the work tells those who watch. Events go sideways and change nothing.

use std::time::Duration;

/// Hears events; cannot answer, fail, block or cancel.
pub trait Monitor: Send + Sync {
    /// Hears one event. Must return at once.
    fn event(&self, event: Event);
}

/// A listener who is not there.
#[derive(Debug, Clone, Copy, Default)]
pub struct Silent;

impl Monitor for Silent {
    fn event(&self, _event: Event) {}
}

/// Something that happened while working.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Event {
    /// A step of a verb began: "capture", "verify", "load", "swap", …
    Step {
        /// The step in words for a person.
        what: String,
    },
    /// A part is being written or read; `estimate_bytes` counts plain bytes.
    PartStarted {
        /// The part's name.
        part: String,
        /// Expected plain bytes, if anybody knows.
        estimate_bytes: Option<u64>,
    },
    /// Plain bytes went through since the last such event.
    Progress {
        /// How many.
        plain_bytes: u64,
    },
    /// Stored bytes reached the storage, or came from it, since the last such event.
    Transferred {
        /// How many.
        stored_bytes: u64,
    },
    /// A part is done.
    PartFinished {
        /// The part's name.
        part: String,
        /// Its plain bytes.
        plain_bytes: u64,
        /// Its bytes on the storage.
        stored_bytes: u64,
    },
    /// One item could not be read; the backup will be incomplete.
    ItemError {
        /// Which item, readable for a person.
        item: String,
        /// What was wrong with it.
        error: String,
    },
    /// Something a person should know that does not make the result worse.
    Warning {
        /// The text.
        text: String,
    },
    /// A request failed in a way that may pass, and is tried again.
    Retrying {
        /// What is tried again.
        what: String,
        /// Why.
        error: String,
        /// When.
        after: Duration,
    },
}
