//! What servers and workers say to each other over HTTP: the words, the server's side, the worker's side (ADR 19).
//!
//! What is done with it all is not known here: a [`Dispatcher`] gives out jobs and hears what became of them.

mod api;
mod client;
mod limit;
mod listen;
mod wire;

pub use api::{Dispatcher, Refusal, router};
pub use client::{CallError, Client};
pub use listen::{ListenError, Listening, Tls, listen};
pub use wire::{
    EnrolRequest, Enrolled, Grant, JobEnd, JobReport, LeaseRef, Outcome, PROTOCOL, PROTOCOL_HEADER,
    Passing, Process, ReportAnswer, Stop, TakeAnswer, TakeRequest,
};
