//! What members ask a server for (ADR 21).

use backstay_control::Token;
use reqwest::Method;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::client::{CallError, Client};
use crate::download::{Incoming, PartQuery};
use crate::settings::{KeptView, SettingsChange, Subject};
use crate::views::{
    AuditView, BackupsView, Done, JobRequest, JobView, Reason, SourceView, StatusView, StorageTest,
    StorageView, WhichBackups,
};

/// Nothing is said with the request.
const NOTHING: Option<&()> = None;

/// Speaks to a server for a member.
#[derive(Debug, Clone)]
pub struct MemberClient {
    client: Client,
    token: Token,
}

impl MemberClient {
    /// Speaks with this token, which is sent with each request.
    pub fn new(client: Client, token: Token) -> Self {
        Self { client, token }
    }

    /// Asks how well all sources are protected.
    pub async fn status(&self) -> Result<StatusView, CallError> {
        self.get(&["status"], &[]).await
    }

    /// Asks for the sources.
    pub async fn sources(&self) -> Result<Vec<SourceView>, CallError> {
        self.get(&["sources"], &[]).await
    }

    /// Asks for the storages.
    pub async fn storages(&self) -> Result<Vec<StorageView>, CallError> {
        self.get(&["storages"], &[]).await
    }

    /// Has a storage tested.
    pub async fn test_storage(&self, name: &str) -> Result<StorageTest, CallError> {
        self.change(Method::POST, &["storages", name, "test"], NOTHING).await
    }

    /// Asks for backups.
    pub async fn backups(&self, which: &WhichBackups) -> Result<BackupsView, CallError> {
        let newest = which.newest.map(|newest| newest.to_string());
        let query = [("source", &which.source), ("newest", &newest)];
        let query: Vec<_> =
            query.iter().filter_map(|(name, value)| Some((*name, value.as_deref()?))).collect();
        self.get(&["backups"], &query).await
    }

    /// Asks for all that is known of a backup.
    pub async fn backup(&self, id: &str) -> Result<Value, CallError> {
        self.get(&["backups", id], &[]).await
    }

    /// Asks for a part of a backup.
    pub async fn download(&self, id: &str, wanted: &PartQuery) -> Result<Incoming, CallError> {
        let sealed = wanted.sealed.to_string();
        let mut query = vec![("sealed", sealed.as_str())];
        query.extend(wanted.part.as_deref().map(|part| ("part", part)));
        self.client.fetch(&["backups", id, "download"], &query, &self.token).await
    }

    /// Has a backup held.
    pub async fn hold(&self, id: &str, reason: &str) -> Result<Done, CallError> {
        let why = Reason { reason: reason.to_owned() };
        self.change(Method::POST, &["backups", id, "hold"], Some(&why)).await
    }

    /// Has a backup released.
    pub async fn release(&self, id: &str) -> Result<Done, CallError> {
        self.change(Method::DELETE, &["backups", id, "hold"], NOTHING).await
    }

    /// Has a backup deleted.
    pub async fn delete(&self, id: &str) -> Result<Done, CallError> {
        self.change(Method::DELETE, &["backups", id], NOTHING).await
    }

    /// Asks for the newest jobs of a source, or of all.
    pub async fn jobs(&self, source: Option<&str>, limit: u32) -> Result<Vec<JobView>, CallError> {
        let limit = limit.to_string();
        let mut query = vec![("limit", limit.as_str())];
        query.extend(source.map(|name| ("source", name)));
        self.get(&["jobs"], &query).await
    }

    /// Asks for a job.
    pub async fn job(&self, id: &str) -> Result<JobView, CallError> {
        self.get(&["jobs", id], &[]).await
    }

    /// Asks for something to be done.
    pub async fn ask_for(&self, request: &JobRequest) -> Result<JobView, CallError> {
        self.change(Method::POST, &["jobs"], Some(request)).await
    }

    /// Has a job cancelled.
    pub async fn cancel(&self, id: &str, reason: &str) -> Result<Done, CallError> {
        let why = Reason { reason: reason.to_owned() };
        self.change(Method::POST, &["jobs", id, "cancel"], Some(&why)).await
    }

    /// Has a job deleted.
    pub async fn delete_job(&self, id: &str) -> Result<Done, CallError> {
        self.change(Method::DELETE, &["jobs", id], NOTHING).await
    }

    /// Asks for the newest entries of the audit.
    pub async fn audit(&self, limit: u32) -> Result<Vec<AuditView>, CallError> {
        self.get(&["audit"], &[("limit", &limit.to_string())]).await
    }

    /// Asks for what is kept in the server's catalog instead of its configuration file.
    pub async fn kept(&self) -> Result<KeptView, CallError> {
        self.get(&["config"], &[]).await
    }

    /// Has that changed.
    pub async fn change_settings(&self, change: &SettingsChange) -> Result<Done, CallError> {
        let folder = |subject: &Subject| match subject {
            Subject::Source => "sources",
            Subject::Storage => "storages",
        };
        let (method, subject, name, wanted) = match change {
            SettingsChange::Add(subject, name, wanted) => {
                (Method::POST, subject, name, Some(wanted))
            }
            SettingsChange::Set(subject, name, wanted) => {
                (Method::PATCH, subject, name, Some(wanted))
            }
            SettingsChange::Remove(subject, name) => (Method::DELETE, subject, name, None),
        };
        self.change(method, &[folder(subject), name], wanted).await
    }

    async fn get<T: DeserializeOwned>(
        &self,
        path: &[&str],
        query: &[(&str, &str)],
    ) -> Result<T, CallError> {
        self.client.ask((Method::GET, path), query, &self.token, NOTHING).await
    }

    async fn change<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &[&str],
        body: Option<&(impl Serialize + Sync)>,
    ) -> Result<T, CallError> {
        self.client.ask((method, path), &[], &self.token, body).await
    }
}
