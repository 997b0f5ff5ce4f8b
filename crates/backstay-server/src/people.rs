//! The API for people: who may ask what, in one table (ADR 21).

use std::sync::Arc;

use async_trait::async_trait;
use axum::extract::rejection::{JsonRejection, QueryRejection};
use axum::extract::{Path, Query, Request, State};
use axum::middleware::{self, Next};
use axum::response::Response;
use axum::routing::{MethodRouter, delete, get, patch, post};
use axum::{Extension, Json, Router};
use backstay_control::{Member, Role, Token, TokenKind};
use serde::Deserialize;
use serde_json::Value;

use crate::api::{Refusal, bearer};
use crate::download::{Outgoing, PartQuery};
use crate::settings::{KeptView, SettingsChange, Subject, Wanted};
use crate::views::{
    AuditView, BackupsView, Done, JobRequest, JobView, Reason, SourceView, StatusView, StorageTest,
    StorageView, WhichBackups,
};

/// So many jobs or entries of the audit are shown where nobody says, and at most.
const FEW: u32 = 20;
const MANY: u32 = 1000;

/// Answers members. What it is asked for by somebody who may not, it never hears.
#[async_trait]
pub trait Desk: Send + Sync + 'static {
    /// Returns the member that shows this token.
    async fn member_of(&self, token: &Token) -> Result<Option<Member>, Refusal>;
    /// Says how well all sources are protected.
    async fn status(&self, member: Member) -> Result<StatusView, Refusal>;
    /// Returns the sources.
    async fn sources(&self, member: Member) -> Result<Vec<SourceView>, Refusal>;
    /// Returns the storages.
    async fn storages(&self, member: Member) -> Result<Vec<StorageView>, Refusal>;
    /// Tries all that backups need of a storage.
    async fn test_storage(&self, member: Member, name: String) -> Result<StorageTest, Refusal>;
    /// Returns backups.
    async fn backups(&self, member: Member, which: WhichBackups) -> Result<BackupsView, Refusal>;
    /// Returns all that is known of a backup.
    async fn backup(&self, member: Member, id: String) -> Result<Value, Refusal>;
    /// Returns a part of a backup.
    async fn download(
        &self,
        member: Member,
        id: String,
        wanted: PartQuery,
    ) -> Result<Outgoing, Refusal>;
    /// Keeps a backup from being forgotten.
    async fn hold(&self, member: Member, id: String, reason: String) -> Result<Done, Refusal>;
    /// Lets it be forgotten again.
    async fn release(&self, member: Member, id: String) -> Result<Done, Refusal>;
    /// Deletes a backup.
    async fn delete(&self, member: Member, id: String) -> Result<Done, Refusal>;
    /// Returns the newest jobs of a source, or of all.
    async fn jobs(
        &self,
        member: Member,
        source: Option<String>,
        limit: u32,
    ) -> Result<Vec<JobView>, Refusal>;
    /// Returns a job.
    async fn job(&self, member: Member, id: String) -> Result<JobView, Refusal>;
    /// Puts a job into the queue.
    async fn ask(&self, member: Member, request: JobRequest) -> Result<JobView, Refusal>;
    /// Cancels a job.
    async fn cancel(&self, member: Member, id: String, reason: String) -> Result<Done, Refusal>;
    /// Deletes a job from the list.
    async fn delete_job(&self, member: Member, id: String) -> Result<Done, Refusal>;
    /// Returns the newest entries of the audit.
    async fn audit(&self, member: Member, limit: u32) -> Result<Vec<AuditView>, Refusal>;
    /// Returns what is kept in the catalog instead of the configuration file.
    async fn kept(&self, member: Member) -> Result<KeptView, Refusal>;
    /// Changes that.
    async fn change_settings(
        &self,
        member: Member,
        change: SettingsChange,
    ) -> Result<Done, Refusal>;
}

type Asked = State<Arc<dyn Desk>>;
/// Where it is, what a member must at least be, what is done.
type Route = (&'static str, Role, MethodRouter<Arc<dyn Desk>>);

/// Every route that there is. What is asked for as a job may need more: [`crate::Work::least`].
fn routes() -> [Route; 23] {
    [
        ("/status", Role::Viewer, get(status)),
        ("/sources", Role::Viewer, get(sources)),
        ("/storages", Role::Viewer, get(storages)),
        ("/storages/{name}/test", Role::Operator, post(test_storage)),
        ("/backups", Role::Viewer, get(backups)),
        ("/backups/{id}", Role::Viewer, get(backup)),
        ("/backups/{id}", Role::Admin, delete(delete_backup)),
        ("/backups/{id}/download", Role::Owner, get(download)),
        ("/backups/{id}/hold", Role::Operator, post(hold)),
        ("/backups/{id}/hold", Role::Admin, delete(release)),
        ("/jobs", Role::Viewer, get(jobs)),
        ("/jobs", Role::Operator, post(ask)),
        ("/jobs/{id}", Role::Viewer, get(job)),
        ("/jobs/{id}", Role::Admin, delete(delete_job)),
        ("/jobs/{id}/cancel", Role::Operator, post(cancel)),
        ("/audit", Role::Admin, get(audit)),
        ("/config", Role::Owner, get(kept)),
        ("/sources/{name}", Role::Owner, post(add_source)),
        ("/sources/{name}", Role::Owner, patch(set_source)),
        ("/sources/{name}", Role::Owner, delete(remove_source)),
        ("/storages/{name}", Role::Owner, post(add_storage)),
        ("/storages/{name}", Role::Owner, patch(set_storage)),
        ("/storages/{name}", Role::Owner, delete(remove_storage)),
    ]
}

/// Returns what members are answered.
pub(crate) fn router(desk: Arc<dyn Desk>) -> Router {
    let mut router = Router::new();
    for (path, least, handler) in routes() {
        let gate = Gate { desk: desk.clone(), least };
        let gated = handler.route_layer(middleware::from_fn_with_state(gate, members_only));
        router = router.route(path, gated);
    }
    router.fallback(unknown).with_state(desk)
}

#[derive(Clone)]
struct Gate {
    desk: Arc<dyn Desk>,
    least: Role,
}

async fn members_only(
    State(gate): State<Gate>,
    mut request: Request,
    next: Next,
) -> Result<Response, Refusal> {
    let token = bearer(TokenKind::Member, request.headers()).ok_or(Refusal::NoMember)?;
    let member = gate.desk.member_of(&token).await?.ok_or(Refusal::NoMember)?;
    ensure_may(&member, gate.least)?;
    request.extensions_mut().insert(member);
    Ok(next.run(request).await)
}

fn ensure_may(member: &Member, least: Role) -> Result<(), Refusal> {
    if member.role < least {
        let text = format!(
            "{} is a member with the role {}, and this needs {least}; `backstay members` on the server gives roles",
            member.name, member.role
        );
        return Err(Refusal::NotAllowed(text));
    }
    Ok(())
}

async fn unknown(request: Request) -> Refusal {
    let text = format!(
        "this server knows no {} {}; the same version of backstay on both sides may help",
        request.method(),
        request.uri().path()
    );
    Refusal::Malformed(text)
}

#[derive(Deserialize)]
struct Newest {
    source: Option<String>,
    limit: Option<u32>,
}

impl Newest {
    fn limit(&self) -> u32 {
        self.limit.unwrap_or(FEW).min(MANY)
    }
}

fn body<T>(body: Result<Json<T>, JsonRejection>) -> Result<T, Refusal> {
    body.map(|Json(body)| body).map_err(|error| Refusal::Malformed(error.body_text()))
}

fn query<T>(query: Result<Query<T>, QueryRejection>) -> Result<T, Refusal> {
    query.map(|Query(query)| query).map_err(|error| Refusal::Malformed(error.body_text()))
}

async fn status(
    State(desk): Asked,
    Extension(member): Extension<Member>,
) -> Result<Json<StatusView>, Refusal> {
    desk.status(member).await.map(Json)
}

async fn sources(
    State(desk): Asked,
    Extension(member): Extension<Member>,
) -> Result<Json<Vec<SourceView>>, Refusal> {
    desk.sources(member).await.map(Json)
}

async fn storages(
    State(desk): Asked,
    Extension(member): Extension<Member>,
) -> Result<Json<Vec<StorageView>>, Refusal> {
    desk.storages(member).await.map(Json)
}

async fn test_storage(
    State(desk): Asked,
    Extension(member): Extension<Member>,
    Path(name): Path<String>,
) -> Result<Json<StorageTest>, Refusal> {
    desk.test_storage(member, name).await.map(Json)
}

async fn backups(
    State(desk): Asked,
    Extension(member): Extension<Member>,
    which: Result<Query<WhichBackups>, QueryRejection>,
) -> Result<Json<BackupsView>, Refusal> {
    let which = query(which)?;
    if which.source.is_some() && which.newest.is_some() {
        let text = "found both source and newest, expected one of them";
        return Err(Refusal::Malformed(text.to_owned()));
    }
    let newest = which.newest.map(|newest| newest.min(MANY));
    desk.backups(member, WhichBackups { newest, ..which }).await.map(Json)
}

async fn backup(
    State(desk): Asked,
    Extension(member): Extension<Member>,
    Path(id): Path<String>,
) -> Result<Json<Value>, Refusal> {
    desk.backup(member, id).await.map(Json)
}

async fn delete_backup(
    State(desk): Asked,
    Extension(member): Extension<Member>,
    Path(id): Path<String>,
) -> Result<Json<Done>, Refusal> {
    desk.delete(member, id).await.map(Json)
}

async fn download(
    State(desk): Asked,
    Extension(member): Extension<Member>,
    Path(id): Path<String>,
    wanted: Result<Query<PartQuery>, QueryRejection>,
) -> Result<Outgoing, Refusal> {
    desk.download(member, id, query(wanted)?).await
}

async fn hold(
    State(desk): Asked,
    Extension(member): Extension<Member>,
    Path(id): Path<String>,
    why: Result<Json<Reason>, JsonRejection>,
) -> Result<Json<Done>, Refusal> {
    desk.hold(member, id, body(why)?.reason).await.map(Json)
}

async fn release(
    State(desk): Asked,
    Extension(member): Extension<Member>,
    Path(id): Path<String>,
) -> Result<Json<Done>, Refusal> {
    desk.release(member, id).await.map(Json)
}

async fn jobs(
    State(desk): Asked,
    Extension(member): Extension<Member>,
    of: Result<Query<Newest>, QueryRejection>,
) -> Result<Json<Vec<JobView>>, Refusal> {
    let of = query(of)?;
    let limit = of.limit();
    desk.jobs(member, of.source, limit).await.map(Json)
}

async fn job(
    State(desk): Asked,
    Extension(member): Extension<Member>,
    Path(id): Path<String>,
) -> Result<Json<JobView>, Refusal> {
    desk.job(member, id).await.map(Json)
}

async fn ask(
    State(desk): Asked,
    Extension(member): Extension<Member>,
    request: Result<Json<Value>, JsonRejection>,
) -> Result<Json<JobView>, Refusal> {
    let asked = body(request)?;
    let request =
        JobRequest::deserialize(&asked).map_err(|error| Refusal::Malformed(error.to_string()))?;
    if let Some(word) = request.unknown_word(&asked) {
        let found: String = word.chars().take(100).collect();
        return Err(Refusal::Malformed(format!("a restore has no {found:?}; nothing was done")));
    }
    ensure_may(&member, request.work.least())?;
    desk.ask(member, request).await.map(Json)
}

async fn cancel(
    State(desk): Asked,
    Extension(member): Extension<Member>,
    Path(id): Path<String>,
    why: Result<Json<Reason>, JsonRejection>,
) -> Result<Json<Done>, Refusal> {
    desk.cancel(member, id, body(why)?.reason).await.map(Json)
}

async fn delete_job(
    State(desk): Asked,
    Extension(member): Extension<Member>,
    Path(id): Path<String>,
) -> Result<Json<Done>, Refusal> {
    desk.delete_job(member, id).await.map(Json)
}

async fn audit(
    State(desk): Asked,
    Extension(member): Extension<Member>,
    of: Result<Query<Newest>, QueryRejection>,
) -> Result<Json<Vec<AuditView>>, Refusal> {
    desk.audit(member, query(of)?.limit()).await.map(Json)
}

async fn kept(
    State(desk): Asked,
    Extension(member): Extension<Member>,
) -> Result<Json<KeptView>, Refusal> {
    desk.kept(member).await.map(Json)
}

async fn add_source(
    State(desk): Asked,
    Extension(member): Extension<Member>,
    Path(name): Path<String>,
    wanted: Result<Json<Wanted>, JsonRejection>,
) -> Result<Json<Done>, Refusal> {
    let change = SettingsChange::Add(Subject::Source, name, body(wanted)?);
    desk.change_settings(member, change).await.map(Json)
}

async fn add_storage(
    State(desk): Asked,
    Extension(member): Extension<Member>,
    Path(name): Path<String>,
    wanted: Result<Json<Wanted>, JsonRejection>,
) -> Result<Json<Done>, Refusal> {
    let change = SettingsChange::Add(Subject::Storage, name, body(wanted)?);
    desk.change_settings(member, change).await.map(Json)
}

async fn set_source(
    State(desk): Asked,
    Extension(member): Extension<Member>,
    Path(name): Path<String>,
    wanted: Result<Json<Wanted>, JsonRejection>,
) -> Result<Json<Done>, Refusal> {
    let change = SettingsChange::Set(Subject::Source, name, body(wanted)?);
    desk.change_settings(member, change).await.map(Json)
}

async fn set_storage(
    State(desk): Asked,
    Extension(member): Extension<Member>,
    Path(name): Path<String>,
    wanted: Result<Json<Wanted>, JsonRejection>,
) -> Result<Json<Done>, Refusal> {
    let change = SettingsChange::Set(Subject::Storage, name, body(wanted)?);
    desk.change_settings(member, change).await.map(Json)
}

async fn remove_source(
    State(desk): Asked,
    Extension(member): Extension<Member>,
    Path(name): Path<String>,
) -> Result<Json<Done>, Refusal> {
    desk.change_settings(member, SettingsChange::Remove(Subject::Source, name)).await.map(Json)
}

async fn remove_storage(
    State(desk): Asked,
    Extension(member): Extension<Member>,
    Path(name): Path<String>,
) -> Result<Json<Done>, Refusal> {
    desk.change_settings(member, SettingsChange::Remove(Subject::Storage, name)).await.map(Json)
}
