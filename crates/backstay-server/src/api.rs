//! The server's side: how workers are answered, and what all answers have in common.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use axum::extract::{DefaultBodyLimit, Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Extension, Json, Router};
use backstay_control::{Token, TokenKind, Worker};
use serde_json::json;
use tokio::time::timeout;

use crate::people::{self, Desk};
use crate::wire::{
    EnrolRequest, Enrolled, Grant, JobEnd, JobReport, PROTOCOL, PROTOCOL_HEADER, ReportAnswer,
    TakeAnswer, TakeRequest,
};

/// No request is larger; a job's log is by far the largest part.
const MAX_BODY: usize = 4 << 20;

/// No answer takes longer: a worker waits for a job for half a minute, and a storage is looked at before it is given.
const LONGEST: Duration = Duration::from_secs(70);

/// Gives out jobs, and hears what became of them.
#[async_trait]
pub trait Dispatcher: Send + Sync + 'static {
    /// Fails if the server cannot do its work now.
    async fn health(&self) -> Result<(), Refusal>;
    /// Makes a worker of whoever was invited.
    async fn enrol(&self, request: EnrolRequest) -> Result<Enrolled, Refusal>;
    /// Returns the worker that shows this token.
    async fn worker_of(&self, token: &Token) -> Result<Option<Worker>, Refusal>;
    /// Sees that a worker is there, and gives it a job if there is one for it.
    async fn take(&self, worker: &Worker, request: TakeRequest) -> Result<Option<Grant>, Refusal>;
    /// Renews the leases of a job. Returns why it is to be stopped, if it is.
    async fn report(&self, worker: &Worker, report: JobReport) -> Result<Option<String>, Refusal>;
    /// Takes a job back.
    async fn end(&self, worker: &Worker, end: JobEnd) -> Result<(), Refusal>;
}

/// Why something was not done for a worker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refusal {
    /// It is no worker that is known here.
    Unknown,
    /// It is no member that is known here.
    NoMember,
    /// It may not have this.
    NotAllowed(String),
    /// What it asked cannot be understood.
    Malformed(String),
    /// The job is not its own any more.
    Lost,
    /// Not now.
    Away(String),
    /// It was tried, and failed.
    Failed {
        /// Why.
        text: String,
        /// The exit code of a command that would have tried it.
        exit_code: u8,
    },
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let mut code = None;
        let (status, text) = match self {
            Self::Unknown => {
                let text = "this worker is not known, or was revoked; `backstay workers invite` on the server makes a new token";
                (StatusCode::UNAUTHORIZED, text.to_owned())
            }
            Self::NoMember => {
                let text = "the token is not known, was revoked, or is too old; `backstay members add` on the server makes a new one";
                (StatusCode::UNAUTHORIZED, text.to_owned())
            }
            Self::NotAllowed(text) => (StatusCode::FORBIDDEN, text),
            Self::Malformed(text) => (StatusCode::BAD_REQUEST, text),
            Self::Lost => {
                let text =
                    "the job is not this worker's any more: its lease was lost, or it has ended";
                (StatusCode::CONFLICT, text.to_owned())
            }
            Self::Away(text) => (StatusCode::SERVICE_UNAVAILABLE, text),
            Self::Failed { text, exit_code } => {
                code = Some(exit_code);
                (StatusCode::INTERNAL_SERVER_ERROR, text)
            }
        };
        let body = json!({ "error": text, "backstay": true, "exit_code": code });
        (status, Json(body)).into_response()
    }
}

/// Returns all that a server answers.
pub fn router(dispatcher: Arc<dyn Dispatcher>, desk: Arc<dyn Desk>) -> Router {
    let of_workers = Router::new()
        .route("/take", post(take))
        .route("/report", post(report))
        .route("/end", post(end))
        // Everything above needs a worker's token.
        .layer(middleware::from_fn_with_state(dispatcher.clone(), known_workers_only))
        .route("/enrol", post(enrol))
        .layer(middleware::from_fn(same_protocol_only))
        .with_state(dispatcher.clone());
    let api = Router::new()
        .nest("/worker", of_workers)
        .merge(people::router(desk))
        .layer(middleware::from_fn(in_time_only))
        .layer(DefaultBodyLimit::max(MAX_BODY));
    Router::new().route("/healthz", get(health)).with_state(dispatcher).nest("/api/v1", api)
}

type Shared = State<Arc<dyn Dispatcher>>;

async fn health(State(dispatcher): Shared) -> Result<&'static str, Refusal> {
    dispatcher.health().await.map(|()| "ok\n")
}

/// Whoever sends no end of a body is not waited for.
async fn in_time_only(request: Request, next: Next) -> Result<Response, Refusal> {
    let answered = timeout(LONGEST, next.run(request)).await;
    answered.map_err(|_| Refusal::Away("it took too long".to_owned()))
}

async fn same_protocol_only(request: Request, next: Next) -> Response {
    let number = request.headers().get(PROTOCOL_HEADER);
    let number = number.and_then(|number| number.to_str().ok()?.parse::<u32>().ok());
    let older = match number {
        Some(number) if number == PROTOCOL => return next.run(request).await,
        Some(number) if number > PROTOCOL => "server",
        _ => "worker",
    };
    let found = number.map_or("none".to_owned(), |number| number.to_string());
    let text = format!(
        "found protocol {found}, this server speaks {PROTOCOL}: the {older} is too old, install the same version of backstay on both"
    );
    (StatusCode::UPGRADE_REQUIRED, Json(json!({ "error": text, "backstay": true }))).into_response()
}

async fn known_workers_only(
    State(dispatcher): Shared,
    mut request: Request,
    next: Next,
) -> Result<Response, Refusal> {
    let token = bearer(TokenKind::Worker, request.headers()).ok_or(Refusal::Unknown)?;
    let worker = dispatcher.worker_of(&token).await?.ok_or(Refusal::Unknown)?;
    request.extensions_mut().insert(worker);
    Ok(next.run(request).await)
}

/// Returns the token of this kind that a request shows.
pub(crate) fn bearer(kind: TokenKind, headers: &HeaderMap) -> Option<Token> {
    let text = headers.get(header::AUTHORIZATION)?.to_str().ok()?;
    Token::parse(kind, text.strip_prefix("Bearer ")?).ok()
}

async fn enrol(
    State(dispatcher): Shared,
    Json(request): Json<EnrolRequest>,
) -> Result<Json<Enrolled>, Refusal> {
    dispatcher.enrol(request).await.map(Json)
}

async fn take(
    State(dispatcher): Shared,
    Extension(worker): Extension<Worker>,
    Json(request): Json<TakeRequest>,
) -> Result<Json<TakeAnswer>, Refusal> {
    let job = dispatcher.take(&worker, request).await?;
    Ok(Json(TakeAnswer { job }))
}

async fn report(
    State(dispatcher): Shared,
    Extension(worker): Extension<Worker>,
    Json(report): Json<JobReport>,
) -> Result<Json<ReportAnswer>, Refusal> {
    let cancel = dispatcher.report(&worker, report).await?;
    Ok(Json(ReportAnswer { cancel }))
}

async fn end(
    State(dispatcher): Shared,
    Extension(worker): Extension<Worker>,
    Json(end): Json<JobEnd>,
) -> Result<StatusCode, Refusal> {
    dispatcher.end(&worker, end).await.map(|()| StatusCode::ACCEPTED)
}
