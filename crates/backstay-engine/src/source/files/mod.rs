//! Trees of files.
