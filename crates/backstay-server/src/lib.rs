//! What is said over HTTP: between servers and workers (ADR 19), and between people and servers (ADR 21).
//!
//! What is done with it all is not known here: a [`Dispatcher`] gives out jobs and hears what became of them, a [`Desk`] answers
//! people.

mod api;
mod client;
mod download;
mod limit;
mod listen;
mod member_client;
mod people;
mod settings;
mod views;
mod wire;

pub use axum::Router;

pub use api::{Dispatcher, Refusal, router};
pub use client::{CallError, Client};
pub use download::{Incoming, Outgoing, PartQuery};
pub use listen::{ListenError, Listening, Tls, listen};
pub use member_client::MemberClient;
pub use people::Desk;
pub use settings::{AccessKey, KeptView, SettingsChange, Subject, Wanted};
pub use views::{
    AuditView, BackupView, BackupsView, Done, FindingView, ItemErrorView, JobRequest, JobView,
    RestoreWish, SourceStatus, SourceView, StatusView, StorageTest, StorageView, WhichBackups,
    Work,
};
pub use wire::{
    EnrolRequest, Enrolled, Grant, JobEnd, JobReport, LeaseRef, Outcome, PROTOCOL, PROTOCOL_HEADER,
    Passing, Process, ReportAnswer, Stop, TakeAnswer, TakeRequest,
};
