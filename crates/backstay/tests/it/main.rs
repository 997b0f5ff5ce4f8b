//! The built program, as a user runs it, against a real S3 server and against directories.

#![expect(clippy::unwrap_used, reason = "tests stop where they cannot go on")]

mod configure;
mod faults;
mod golden;
mod restores;
mod s3;
mod servers;
mod shell;
mod size;
mod story;
mod uploads;
