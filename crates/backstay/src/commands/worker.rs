//! `backstay worker`: makes backups beside databases, for a server that does the rest (ADR 19).

mod job;

use std::time::Duration;

use anyhow::Context as _;
use backstay_control::{Catalog, Home, Token, TokenKind};
use backstay_engine::cx::Cx;
use backstay_engine::event::Event;
use backstay_format::Slug;
use backstay_server::{CallError, Client, EnrolRequest, Enrolled, Process, TakeRequest};
use secrecy::{ExposeSecret as _, SecretString};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};

use super::asking::{client_of, read_token};
use crate::cli::{Global, WorkerArgs};
use crate::exit::{Exit, UsageError};
use crate::installation::{host, new_job_id};
use crate::opening::open_home_alone;
use crate::render;

/// The pause before work is asked for again, where there is no room for it or nobody answers.
const TURN: Duration = Duration::from_secs(5);
/// How long the server is to wait for work before it says that there is none, in seconds.
const PATIENCE: u64 = 20;
/// A server that answered sooner did not wait.
const WAITED: Duration = Duration::from_secs(1);
/// The pause between two tries to become a worker while the server is away.
const AGAIN: Duration = Duration::from_secs(5);
/// How long the server is told that this worker ends.
const FAREWELL: Duration = Duration::from_secs(5);
/// What a worker's program says of itself.
const VERSION: &str = env!("CARGO_PKG_VERSION");

/// A worker: who it is, whom it works for, where it keeps what it needs.
#[derive(Clone)]
struct Worker {
    client: Client,
    token: Token,
    process: Process,
    home: Home,
    catalog: Catalog,
    cx: Cx,
}

pub(super) async fn worker(global: &Global, cx: Cx, args: &WorkerArgs) -> anyhow::Result<Exit> {
    let (server, client) = client_of(global)?;
    let (home, catalog) = open_home_alone(global).await?;
    backstay_engine::spool::clean(&home.spool()).context("cannot clean the spool directory")?;
    let process = Process { instance: new_job_id(), pid: std::process::id() };
    let token = Token::new(TokenKind::Worker);
    let mut worker = Worker { client, token, process, home, catalog, cx };
    let name = format!("worker of {server}");
    match worker.kept(&name).await? {
        Some(kept) => worker.token = kept,
        None => worker.enrol((args, global), &name).await?,
    }
    let is_unknown =
        |error: &anyhow::Error| matches!(error.downcast_ref(), Some(CallError::Unknown(_)));
    match Box::pin(worker.run(args)).await {
        // A new invitation makes it another worker.
        Err(error) if is_unknown(&error) && global.token_file.is_some() => {
            worker.enrol((args, global), &name).await.context(error)?;
            Box::pin(worker.run(args)).await
        }
        ended => ended,
    }
}

impl Worker {
    /// Returns a token that is kept under this name.
    async fn kept(&self, name: &str) -> anyhow::Result<Option<Token>> {
        let kept = self.catalog.secret(name).await?;
        let text = kept.and_then(|bytes| String::from_utf8(bytes.to_vec()).ok());
        let text = text.map(SecretString::from);
        Ok(text.and_then(|text| Token::parse(TokenKind::Worker, text.expose_secret()).ok()))
    }

    async fn keep(&self, name: &str) -> anyhow::Result<()> {
        let text = self.token.to_text();
        Ok(self.catalog.set_secret(name, text.expose_secret().as_bytes()).await?)
    }

    /// Becomes a worker. Its new secret is kept before the server hears of it, so that an answer that is lost can be asked for
    /// again, and beside the one before, which may still be good.
    async fn enrol(&mut self, told: (&WorkerArgs, &Global), name: &str) -> anyhow::Result<()> {
        let pending = format!("{name}, enrolling");
        let token = self.kept(&pending).await?;
        self.token = token.unwrap_or_else(|| Token::new(TokenKind::Worker));
        self.keep(&pending).await?;
        match self.ask_to_enrol(told).await {
            Ok(enrolled) => {
                self.keep(name).await?;
                self.catalog.forget(&pending).await?;
                let labels = enrolled.labels.join(", ");
                let with = if labels.is_empty() { labels } else { format!(", with {labels}") };
                render::print(&format!("this machine is worker {} now{with}", enrolled.name))
            }
            Err(error) => {
                // Refused for good; else it is asked for again.
                if error.is::<CallError>() {
                    self.catalog.forget(&pending).await?;
                }
                Err(error)
            }
        }
    }

    async fn ask_to_enrol(
        &self,
        (args, global): (&WorkerArgs, &Global),
    ) -> anyhow::Result<Enrolled> {
        let file = global.token_file.as_deref().ok_or_else(|| {
            let text = "this machine is no worker of that server yet: --token-file names the file with the token that `backstay workers invite` printed there";
            UsageError(text.to_owned())
        })?;
        let invitation = read_token(TokenKind::Invitation, file)?;
        let wanted = match &args.name {
            Some(name) => name.clone(),
            None => name_of_host()?,
        };
        let request = EnrolRequest {
            invitation: invitation.to_text().expose_secret().to_owned(),
            id: self.token.id().to_owned(),
            secret: self.token.digest().to_string(),
            name: wanted.to_string(),
            labels: (!args.labels.is_empty())
                .then(|| args.labels.iter().map(ToString::to_string).collect()),
            host: host(),
            version: VERSION.to_owned(),
        };
        let mut told = false;
        loop {
            match self.cx.run(self.client.enrol(&request)).await? {
                Err(error) if error.is_passing() => {
                    if !std::mem::replace(&mut told, true) {
                        self.cx.event(Event::Warning { text: format!("waiting: {error}") });
                    }
                    self.cx.run(tokio::time::sleep(AGAIN)).await?;
                }
                enrolled => return Ok(enrolled?),
            }
        }
    }

    /// Asks for work and does it, until told to end or not known any more.
    async fn run(&self, args: &WorkerArgs) -> anyhow::Result<Exit> {
        let mut working: JoinSet<()> = JoinSet::new();
        let mut trouble: Option<String> = None;
        let mut is_told = false;
        let request = TakeRequest {
            process: self.process.clone(),
            host: host(),
            version: VERSION.to_owned(),
            has_room: false,
            patience: PATIENCE,
            leaves: false,
        };
        let ended = loop {
            if self.cx.cancelled().is_some() {
                break Ok(Exit::Done);
            }
            let has_room = working.len() < usize::from(args.jobs);
            let request = TakeRequest { has_room, ..request.clone() };
            let begun = Instant::now();
            let answer = self.cx.run(self.client.take(&self.token, &request)).await;
            let Ok(answer) = answer else { continue };
            match answer {
                Ok(answer) => {
                    trouble = None;
                    if !std::mem::replace(&mut is_told, true) {
                        render::print("working for the server")?;
                    }
                    // One that ends says so without waiting, again and again.
                    let waited = begun.elapsed() >= WAITED;
                    let has_job = answer.job.is_some();
                    if let Some(grant) = answer.job {
                        working.spawn(job::work(self.clone(), grant));
                    }
                    if has_room && (has_job || waited) {
                        continue;
                    }
                }
                Err(error @ CallError::Unknown(_)) => break Err(error),
                // Whatever it is, such as a server that is just replaced by a newer one: told once.
                Err(error) => {
                    let text = error.to_string();
                    if trouble.as_ref() != Some(&text) {
                        self.cx.event(Event::Warning { text: text.clone() });
                        trouble = Some(text);
                    }
                }
            }
            tokio::select! {
                _ = self.cx.until_cancelled() => {}
                Some(_) = working.join_next() => {}
                () = tokio::time::sleep(TURN) => {}
            }
        };
        // Those that are stopped say so to the server.
        while working.join_next().await.is_some() {}
        if ended.is_ok() {
            // One that nobody hears of is missed a little later.
            let leaving = TakeRequest { leaves: true, ..request };
            drop(timeout(FAREWELL, self.client.take(&self.token, &leaving)).await);
        }
        Ok(ended?)
    }
}

fn name_of_host() -> anyhow::Result<Slug> {
    let host = host().to_lowercase();
    let parsed = host.parse::<Slug>();
    Ok(parsed.map_err(|error| {
        UsageError(format!(
            "the name of this machine is no name for a worker ({error}); give one with --name"
        ))
    })?)
}
