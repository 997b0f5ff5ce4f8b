//! Asking a server for something instead of doing it here (`--server`, ADR 21).

use std::path::Path;
use std::time::Duration;

use anyhow::Context as _;
use backstay_control::{JobState, Progress, Token, TokenKind};
use backstay_engine::cx::Cx;
use backstay_engine::event::Event;
use backstay_format::Trigger;
use backstay_server::{
    BackupView, CallError, Client, JobRequest, JobView, MemberClient, PartQuery, WhichBackups, Work,
};
use tokio::time::{Instant, sleep, timeout};

use super::elsewhere::{Did, Look, how_far, tell, tell_again, without_backup};
use super::guard::guard_asking;
use super::{
    add, backup, drill, files, jobs, list, look, members, restore, said, show_done, status,
};
use crate::cli::{
    BackupArgs, Command, ConfigCommand, Global, JobsCommand, RestoreArgs, SourceCommand,
    StorageCommand,
};
use crate::exit::{Exit, UsageError};
use crate::installation::new_job_id;
use crate::render;

/// The pause between two looks at a job that a server does.
const LOOK: Duration = Duration::from_millis(500);
/// How long a server may be away while somebody waits for a job: it may be started anew, or its catalog.
const LONGEST_AWAY: Duration = Duration::from_mins(5);
/// A server takes its turn before a job begins, however little somebody wants to wait.
const LEAST_PATIENCE: Duration = Duration::from_secs(5);
/// How long it may take to cancel a job: whoever does it wants to go.
const LONGEST_CANCEL: Duration = Duration::from_secs(10);
/// How long what was asked for may arrive behind the wish to cancel it.
const LONGEST_OVERTAKEN: Duration = Duration::from_secs(3);
/// What is said to whoever wants more.
const NOT_ASKED: &str = "a server is asked for status, source, storage, backup, backups, show, download, hold, release, delete, drill, restore, undo, confirm, jobs, \
                         audit, guard and config export; for all else run the command on the server's machine, without --server and BACKSTAY_SERVER";

/// A member, who asks a server.
pub(super) struct Asking {
    pub(super) client: MemberClient,
    pub(super) cx: Cx,
}

/// Returns which server is meant, and what speaks to it.
pub(super) fn client_of(global: &Global) -> anyhow::Result<(&str, Client)> {
    let server = global.server.as_deref().ok_or_else(|| {
        let text = "which server? --server https://backup.example.com, or BACKSTAY_SERVER";
        UsageError(text.to_owned())
    })?;
    let ca = match &global.ca_file {
        None => None,
        Some(file) => {
            let read = std::fs::read(file);
            Some(read.with_context(|| format!("cannot read {}", file.display()))?)
        }
    };
    Ok((server, Client::new(server, ca.as_deref())?))
}

/// Reads a token of this kind from a file.
pub(super) fn read_token(kind: TokenKind, file: &Path) -> anyhow::Result<Token> {
    let text = std::fs::read_to_string(file);
    let text = text.with_context(|| format!("cannot read {}", file.display()))?;
    let token = Token::parse(kind, &text);
    Ok(token.map_err(|error| UsageError(format!("{}: {error}", file.display())))?)
}

/// Has a command done by a server.
pub(super) async fn ask(global: &Global, cx: Cx, command: Command) -> anyhow::Result<Exit> {
    let asking = Asking::new(global, cx)?;
    let json = global.json;
    if let Some(change) = add::change_of(&command)? {
        let done = asking.cx.run(asking.client.change_settings(&change)).await??;
        return show_done(&done);
    }
    match command {
        // These cancel what they asked for when they are interrupted.
        Command::Source(SourceCommand::Test { name }) => asking.test_source(&name).await,
        Command::Backup(args) => asking.backup_all(args, json).await,
        Command::Drill { source, id } => asking.drill(&source, id, json).await,
        Command::Restore(args) => asking.restore(&args, json).await,
        Command::Undo { source } => said(asking.said(source, Work::Undo).await),
        Command::Confirm { source } => said(asking.said(source, Work::Confirm).await),
        Command::Guard(args) => guard_asking(&asking, &args).await,
        // This takes away what it wrote.
        Command::Download { id, part, output, sealed } => {
            asking.download(&id, &PartQuery { part, sealed }, &output).await
        }
        command => asking.cx.run(asking.look(command, json)).await?,
    }
}

fn done(done: Result<backstay_server::Done, CallError>) -> anyhow::Result<String> {
    Ok(done?.said)
}

impl Asking {
    /// Does what needs no job.
    async fn look(&self, command: Command, json: bool) -> anyhow::Result<Exit> {
        let client = &self.client;
        match command {
            Command::Status { check } => status::show(&client.status().await?, check, json),
            Command::Source(SourceCommand::List) => {
                look::show_sources(&client.sources().await?, json)
            }
            Command::Storage(StorageCommand::Test { name }) => {
                look::show_test(&client.test_storage(&name).await?, json)
            }
            Command::Storage(StorageCommand::List) => {
                look::show_storages(&client.storages().await?, json)
            }
            Command::Backups { source, newest } => {
                let which = WhichBackups { source, newest };
                list::show_backups(&client.backups(&which).await?, json)
            }
            Command::Show { id } => list::show_backup(&client.backup(&id).await?, json),
            Command::Hold { id, reason } => {
                let id = self.backup(&id).await?.id;
                said(done(client.hold(id.as_str(), &reason).await))
            }
            Command::Release { id } => {
                let id = self.backup(&id).await?.id;
                said(done(client.release(id.as_str()).await))
            }
            Command::Delete { id, yes } => {
                let backup = self.backup(&id).await?;
                let what =
                    format!("This deletes backup {} of {}, for good.", backup.id, backup.source);
                restore::ask(&what, "DELETE", yes)?;
                said(done(client.delete(backup.id.as_str()).await))
            }
            Command::Jobs(command) => self.jobs(command, json).await,
            Command::Config(ConfigCommand::Export) => {
                render::print(client.kept().await?.toml.trim_end())?;
                Ok(Exit::Done)
            }
            Command::Audit { limit } => members::show_audit(&client.audit(limit).await?, json),
            _ => Err(UsageError(NOT_ASKED.to_owned()).into()),
        }
    }

    fn new(global: &Global, cx: Cx) -> anyhow::Result<Self> {
        let (_, client) = client_of(global)?;
        let token = match &global.token_file {
            Some(file) => read_token(TokenKind::Member, file)?,
            None => {
                let given = std::env::var("BACKSTAY_TOKEN").map_err(|_| {
                    let text = "who asks? --token-file FILE, or BACKSTAY_TOKEN, with what `backstay members add` printed on the server";
                    UsageError(text.to_owned())
                })?;
                let token = Token::parse(TokenKind::Member, &given);
                token.map_err(|error| UsageError(format!("BACKSTAY_TOKEN: {error}")))?
            }
        };
        Ok(Self { client: MemberClient::new(client, token), cx })
    }

    /// Has something done, and waits for its end; for its beginning no longer than `patience`, if that is given. Whoever stops
    /// waiting cancels it.
    pub(super) async fn have_done(
        &self,
        (source, work): (&str, Work),
        patience: Option<Duration>,
    ) -> anyhow::Result<JobView> {
        self.cx.check()?;
        let mut id = new_job_id();
        let request = JobRequest { id: Some(id.clone()), source: source.to_owned(), work };
        let patience = patience.map(|patience| patience.max(LEAST_PATIENCE));
        // Longer than anybody waits, where it cannot be counted.
        let until = patience.and_then(|patience| Instant::now().checked_add(patience));
        // Asked again under the same id it is the same job.
        let ask = async || self.client.ask_for(&request).await;
        let away = patience.map_or(LONGEST_AWAY, |patience| patience.min(LONGEST_AWAY));
        let error = match self.cx.run(self.patiently(away, CallError::is_passing, ask)).await {
            Ok(Ok(job)) => match self.cx.run(self.wait(job, &mut id, until)).await {
                Ok(Ok(job)) => return Ok(job),
                Ok(Err(error)) => error,
                Err(cancelled) => cancelled.into(),
            },
            // It was refused, so there is none.
            Ok(Err(error)) if !error.is_passing() => return Err(error.into()),
            Ok(Err(error)) => error.into(),
            Err(cancelled) => cancelled.into(),
        };
        self.cancel(&id).await;
        if request.work.is_change() {
            let text = how_far(&id, source, request.work.is_beside());
            self.cx.event(Event::Warning { text });
        }
        Err(error)
    }

    /// Cancels a job that nobody waits for any more.
    async fn cancel(&self, id: &str) {
        let reason = match self.cx.cancelled() {
            Some(_) => "whoever asked for it was interrupted",
            None => "it was given up",
        };
        let until = Instant::now() + LONGEST_OVERTAKEN;
        let cancel = async {
            loop {
                match self.client.cancel(id, reason).await {
                    Err(CallError::Refused { status: 400, .. }) if Instant::now() < until => {
                        sleep(LOOK).await;
                    }
                    answered => return answered,
                }
            }
        };
        let why_not = match timeout(LONGEST_CANCEL, cancel).await {
            Ok(Ok(_)) => return,
            Ok(Err(error)) => error.to_string(),
            Err(_) => format!("no answer in {} s", LONGEST_CANCEL.as_secs()),
        };
        let text = format!("job {id} could not be cancelled, and may go on: {why_not}");
        self.cx.event(Event::Warning { text });
    }

    /// Waits for the end of a job and of its next tries, and for its beginning until then. The id is that of the last one.
    async fn wait(
        &self,
        mut job: JobView,
        id: &mut String,
        until: Option<Instant>,
    ) -> anyhow::Result<JobView> {
        let what = format!("the server has job {}: {} of {}", job.id, job.kind, job.source);
        self.cx.event(Event::Step { what });
        // That its catalog does not answer for a while ends no job.
        let passes =
            |error: &CallError| error.is_passing() || matches!(error, CallError::Failed { .. });
        let mut told = Progress::default();
        loop {
            if let Some(progress) = &job.progress {
                tell(&self.cx, &mut told, progress);
            }
            match job.state {
                JobState::Queued => {
                    let is_late = until.is_some_and(|until| Instant::now() >= until);
                    anyhow::ensure!(
                        !is_late,
                        "it did not begin in time: somebody else works on {}, or the server has no room",
                        job.source
                    );
                }
                JobState::Leased | JobState::Running => {}
                _ => {
                    let Some(next) = job.next_try else { return Ok(job) };
                    tell_again(&self.cx, job.error.as_deref(), &next);
                    *id = next;
                }
            }
            sleep(LOOK).await;
            job = self.patiently(LONGEST_AWAY, passes, async || self.client.job(id).await).await?;
        }
    }

    /// Asks again after what passes, for so long.
    async fn patiently<T>(
        &self,
        longest: Duration,
        passes: impl Fn(&CallError) -> bool,
        ask: impl AsyncFn() -> Result<T, CallError>,
    ) -> Result<T, CallError> {
        let until = Instant::now() + longest;
        let mut is_told = false;
        loop {
            match ask().await {
                Err(error) if passes(&error) && Instant::now() < until => {
                    if !is_told {
                        let what = "asking the server".to_owned();
                        let after = LOOK;
                        self.cx.event(Event::Retrying { what, error: error.to_string(), after });
                        is_told = true;
                    }
                    sleep(LOOK).await;
                }
                answered => return answered,
            }
        }
    }

    async fn download(&self, id: &str, wanted: &PartQuery, output: &Path) -> anyhow::Result<Exit> {
        let begun = async {
            let id = self.backup(id).await?.id;
            anyhow::Ok(self.client.download(id.as_str(), wanted).await?)
        };
        let incoming = self.cx.run(begun).await??;
        files::take_in(&self.cx, incoming, output).await
    }

    async fn backup(&self, id: &str) -> anyhow::Result<BackupView> {
        let value = self.client.backup(id).await?;
        serde_json::from_value(value).context("the server's answer cannot be understood")
    }

    /// Returns the sources of these names, or all; a misspelt name must be told before an hour of work.
    pub(super) async fn chosen(&self, names: &[String], all: bool) -> anyhow::Result<Vec<String>> {
        let known = self.client.sources().await?;
        let known: Vec<String> = known.iter().map(|source| source.name.to_string()).collect();
        let chosen = if all { known.clone() } else { names.to_vec() };
        if let Some(name) = chosen.iter().find(|name| !known.contains(name)) {
            let text = format!("the server has no source {name:?}; known: {}", known.join(", "));
            return Err(UsageError(text).into());
        }
        if chosen.is_empty() {
            let text = "the server has no sources: there is nothing to back up";
            return Err(UsageError(text.to_owned()).into());
        }
        let mut seen = std::collections::HashSet::new();
        Ok(chosen.into_iter().filter(|name| seen.insert(name.clone())).collect())
    }

    async fn backup_all(&self, args: BackupArgs, json: bool) -> anyhow::Result<Exit> {
        let sources = self.chosen(&args.sources, args.all).await?;
        let is_single = sources.len() == 1;
        let (mut exit, mut made) = (Exit::Done, Vec::new());
        for source in &sources {
            let work = Work::Backup {
                trigger: backup::trigger(&args.trigger),
                note: args.note.clone(),
                hold: args.hold,
            };
            let error = match self.backed_up(source, work).await {
                Ok((backup, afterwards)) => {
                    if backup.status == "incomplete" {
                        exit = exit.and(Exit::Incomplete);
                    }
                    made.push(backup);
                    afterwards
                }
                Err(error) => Some(error),
            };
            if let Some(error) = error {
                exit = exit.and(Exit::of(&error));
                render::say(&format!("error: source {source}: {error:#}"));
            }
            if self.cx.cancelled().is_some() {
                exit = exit.and(Exit::Interrupted);
                break;
            }
        }
        backup::show_made(&made, is_single, json)?;
        Ok(exit)
    }

    /// Has a source backed up. Returns what failed after that, too.
    async fn backed_up(
        &self,
        source: &str,
        work: Work,
    ) -> anyhow::Result<(BackupView, Option<anyhow::Error>)> {
        let job = self.have_done((source, work), None).await?;
        let error = job.error.map(|error| anyhow::anyhow!(error));
        let Some(made) = job.result else {
            return Err(without_backup(error));
        };
        let made = serde_json::from_value(made);
        Ok((made.context("the server's answer cannot be understood")?, error))
    }

    /// Has a look taken at a source. Returns what was seen.
    pub(super) async fn look_at(
        &self,
        source: &str,
        patience: Option<Duration>,
    ) -> anyhow::Result<Look> {
        let job = self.have_done((source, Work::Test), patience).await?;
        match job.error {
            Some(error) => Err(anyhow::anyhow!(error)),
            None => Ok(Look::of_log(&job.log.unwrap_or_default())),
        }
    }

    async fn test_source(&self, name: &str) -> anyhow::Result<Exit> {
        look::show_look(name, &self.look_at(name, None).await?)?;
        Ok(Exit::Done)
    }

    async fn drill(
        &self,
        source: &str,
        backup: Option<String>,
        json: bool,
    ) -> anyhow::Result<Exit> {
        let job = self.have_done((source, Work::Drill { backup }), None).await?;
        match (job.result, job.backup, job.error) {
            // One whose checks failed shows what they found.
            (Some(result), Some(backup), _) => {
                let report: drill::DrillReport = serde_json::from_value(result)
                    .context("the server's report of the drill cannot be understood")?;
                drill::show(&report, (&source.parse()?, &backup.parse()?), json)
            }
            (_, _, Some(error)) => Err(anyhow::anyhow!(error)),
            (_, _, None) => Err(anyhow::anyhow!("it ended without a result")),
        }
    }

    /// Has something done that has a result.
    async fn result(&self, source: &str, work: Work) -> anyhow::Result<Did> {
        let job = self.have_done((source, work), None).await?;
        Did::of(job.result, job.error, job.worker)
    }

    async fn restore(&self, args: &RestoreArgs, json: bool) -> anyhow::Result<Exit> {
        if args.to_file.is_some() {
            let text = "a server writes no files for members; for --to-file run the command on the server's machine, without --server and BACKSTAY_SERVER";
            return Err(UsageError(text.to_owned()).into());
        }
        let have_done = async |work| self.result(&args.source, work).await;
        restore::restore_by(&self.cx, args, json, have_done).await
    }

    /// Has something done for a source that ends with a sentence.
    async fn said(&self, source: Option<String>, work: Work) -> anyhow::Result<String> {
        let source = source.ok_or_else(|| UsageError("of which source? name it".to_owned()))?;
        let did = self.result(&source, work).await?;
        serde_json::from_value(did.result).context("the server's answer cannot be understood")
    }

    async fn jobs(&self, command: JobsCommand, json: bool) -> anyhow::Result<Exit> {
        match command {
            JobsCommand::List { source, limit } => {
                jobs::show_list(&self.client.jobs(source.as_deref(), limit).await?, json)
            }
            JobsCommand::Show { id } => jobs::show(&self.client.job(&id).await?, json),
            JobsCommand::Cancel { id, reason } => {
                let id = self.client.job(&id).await?.id;
                said(done(self.client.cancel(&id, &reason).await))
            }
            JobsCommand::Delete { ids } => {
                let mut whole = Vec::new();
                for id in &ids {
                    whole.push(self.client.job(id).await?.id);
                }
                for id in &whole {
                    said(done(self.client.delete_job(id).await))?;
                }
                Ok(Exit::Done)
            }
        }
    }
}

/// The trigger of a guard's backup, as a server is asked for it.
pub(super) fn backup_for(trigger: Trigger) -> Work {
    Work::Backup { trigger, note: None, hold: false }
}
