//! Answers members: what there is, and what they may have done (ADR 21).

use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Context as _;
use async_trait::async_trait;
use backstay_control::{
    BackupSpec, CatalogError, Job, JobId, JobSpec, Member, RestoreSpec, Token, Whose,
};
use backstay_engine::event::{Event, Monitor};
use backstay_engine::part::PartReader;
use backstay_server::{
    AuditView, BackupsView, Desk, Done, JobRequest, JobView, KeptView, Outgoing, PartQuery,
    Refusal, SettingsChange, SourceView, StatusView, StorageTest, StorageView, WhichBackups, Work,
};
use bytes::Bytes;
use jiff::SignedDuration;
use serde_json::Value;
use tokio::sync::{Notify, Semaphore, mpsc, watch};
use tokio::time::timeout;
use tokio_util::task::TaskTracker;

use super::to_the_end;
use crate::commands::elsewhere::{nobody_takes, restore_of, specify, whole};
use crate::commands::files::{self, OpenPart};
use crate::commands::settings::{self, By};
use crate::commands::{find_backup, jobs, list, look, members, status};
use crate::exit::{Exit, UsageError, is_wrong_call};
use crate::installation::{Installation, new_job_id};
use crate::plain;

/// How often it is written down that a member is there.
const SEEN_EVERY: SignedDuration = SignedDuration::from_mins(1);
/// So many parts are given out at a time: each takes memory, and the server has other things to do.
const DOWNLOADS: usize = 4;
/// How long whoever downloads may take nothing.
const STALLED: Duration = Duration::from_mins(1);
/// How long an answer waits for the server's next turn.
const SHOWN: Duration = Duration::from_secs(10);

/// Answers members on behalf of a server.
#[derive(Clone)]
pub(super) struct FrontDesk {
    /// As the server's last turn left it.
    app: watch::Receiver<Installation>,
    /// What goes on though nobody waits for its answer any more.
    tasks: TaskTracker,
    /// Tells the server that somebody asked for a job.
    asked: Arc<Notify>,
    /// Places for downloads.
    downloads: Arc<Semaphore>,
}

impl FrontDesk {
    pub(super) fn new(app: watch::Receiver<Installation>) -> Self {
        let downloads = Arc::new(Semaphore::new(DOWNLOADS));
        Self { app, tasks: TaskTracker::new(), asked: Arc::default(), downloads }
    }

    /// Waits until somebody asks for a job.
    pub(super) async fn was_asked(&self) {
        self.asked.notified().await;
    }

    /// Waits for what is still being done.
    pub(super) async fn finish(&self) {
        self.tasks.close();
        self.tasks.wait().await;
    }

    /// Returns the installation for one request: what stops that stops nothing else.
    fn whole(&self) -> Installation {
        let app = self.app.borrow().clone();
        let cx = app.cx.piece();
        app.with_cx(cx)
    }

    /// Waits for a while until the server works by settings as they are now: who changed them asks for the next thing at once.
    async fn show(&self, now: &Installation) {
        self.asked.notify_one();
        let mut shown = self.app.clone();
        let is_shown = shown.wait_for(|shown| shown.additions == now.additions);
        drop(timeout(SHOWN, is_shown).await);
    }

    /// Returns of it what a member may know of: what is another organisation's is not there.
    fn app(&self, member: &Member) -> Installation {
        self.whole().of(&member.organisation)
    }
}

#[async_trait]
impl Desk for FrontDesk {
    async fn member_of(&self, token: &Token) -> Result<Option<Member>, Refusal> {
        let app = self.whole();
        let known = async {
            let now = app.catalog.time(app.cx.now()).await?;
            let Some(member) = app.catalog.member_of(token, now).await? else { return Ok(None) };
            let is_seen =
                member.seen_at.is_some_and(|at| now.duration_since(at).abs() < SEEN_EVERY);
            // That it cannot be written down now keeps nobody from anything.
            if !is_seen && let Err(error) = app.catalog.see_member(&member, now).await {
                app.cx.event(Event::Warning { text: error.to_string() });
            }
            anyhow::Ok(Some(member))
        };
        let member = known.await.map_err(|error| refusal(&error))?;
        match member {
            Some(member) if !app.config.knows(&member.organisation) => {
                Err(Refusal::NotAllowed(format!(
                    "{} is a member of {}, and nothing here is of that",
                    member.name, member.organisation
                )))
            }
            member => Ok(member),
        }
    }

    async fn status(&self, member: Member) -> Result<StatusView, Refusal> {
        let app = self.app(&member);
        status::view(&app).await.map_err(|error| refusal(&error))
    }

    async fn sources(&self, member: Member) -> Result<Vec<SourceView>, Refusal> {
        Ok(look::sources(&self.app(&member)))
    }

    async fn storages(&self, member: Member) -> Result<Vec<StorageView>, Refusal> {
        let app = self.app(&member);
        look::storages(&app).await.map_err(|error| refusal(&error))
    }

    async fn test_storage(&self, member: Member, name: String) -> Result<StorageTest, Refusal> {
        let heard = Arc::new(Warnings::default());
        let app = self.app(&member);
        let app = app.with_cx(app.cx.heard_by(|_| heard.clone()));
        to_the_end(&self.tasks, async move {
            let tested = async {
                let test = look::test(&app, &name).await?;
                // One that is gone is told: whether a new one is meant is said on the machine itself.
                app.vault_if_any(app.storage(&name)?).await?;
                anyhow::Ok(test)
            };
            let mut test = tested.await.map_err(|error| refusal(&error))?;
            test.warnings.extend(heard.take());
            Ok(test)
        })
        .await
    }

    async fn backups(&self, member: Member, which: WhichBackups) -> Result<BackupsView, Refusal> {
        let app = self.app(&member);
        list::backups_view(&app, &which).await.map_err(|error| refusal(&error))
    }

    async fn backup(&self, member: Member, id: String) -> Result<Value, Refusal> {
        let app = self.app(&member);
        list::backup_value(&app, &id).await.map_err(|error| refusal(&error))
    }

    async fn download(
        &self,
        member: Member,
        id: String,
        wanted: PartQuery,
    ) -> Result<Outgoing, Refusal> {
        let Ok(place) = self.downloads.clone().try_acquire_owned() else {
            let text = format!("{DOWNLOADS} parts are being downloaded; ask again later");
            return Err(Refusal::Away(text));
        };
        let app = self.app(&member);
        let opened = async {
            let (entry, storage) = find_backup(&app, whole(&id)?.as_str()).await?;
            let vault = app.vault(storage).await?;
            let lies = storage.place(&entry.source, entry.id);
            files::open_part(&app, &vault, &lies, (wanted.part.as_deref(), wanted.sealed)).await
        };
        let OpenPart { data, bytes, sha256, .. } = opened.await.map_err(|error| refusal(&error))?;
        // Before anything is given out.
        let named = ("download", plain::name(&id));
        app.audit_change(member.name.to_string(), named, "begun".to_owned()).await;
        let (sender, receiver) = mpsc::channel(1);
        drop(tokio::spawn(async move {
            give_out(&app, data, sender).await;
            drop(place);
        }));
        Ok(Outgoing { bytes, sha256, data: receiver })
    }

    async fn hold(&self, member: Member, id: String, reason: String) -> Result<Done, Refusal> {
        let app = self.app(&member);
        to_the_end(&self.tasks, async move {
            let reason = plain::sentence(&reason);
            let done = async { Box::pin(list::hold(&app, whole(&id)?.as_str(), &reason)).await };
            change(&app, (&member, "hold", &id), done).await
        })
        .await
    }

    async fn release(&self, member: Member, id: String) -> Result<Done, Refusal> {
        let app = self.app(&member);
        to_the_end(&self.tasks, async move {
            let done = async { Box::pin(list::release(&app, whole(&id)?.as_str())).await };
            change(&app, (&member, "release", &id), done).await
        })
        .await
    }

    async fn delete(&self, member: Member, id: String) -> Result<Done, Refusal> {
        let app = self.app(&member);
        to_the_end(&self.tasks, async move {
            // Whoever asks has said yes to it where he is.
            let done =
                async { Box::pin(list::delete(&app, whole(&id)?.as_str(), |_| Ok(()))).await };
            change(&app, (&member, "delete", &id), done).await
        })
        .await
    }

    async fn jobs(
        &self,
        member: Member,
        source: Option<String>,
        limit: u32,
    ) -> Result<Vec<JobView>, Refusal> {
        let app = self.app(&member);
        let own = app.config.organisation.as_str();
        // A name that another organisation's source has is none here.
        let whose = match source.as_deref() {
            Some(source) if app.config.sources.contains_key(source) => Whose::Source(source),
            Some(_) => return Ok(Vec::new()),
            None => Whose::Organisation(own),
        };
        let mut jobs = jobs::newest(&app, whose, limit).await.map_err(|error| refusal(&error))?;
        jobs.retain(|job| job.organisation == own);
        Ok(jobs)
    }

    async fn job(&self, member: Member, id: String) -> Result<JobView, Refusal> {
        let app = self.app(&member);
        let job = its_job(&app, &id).await.map_err(|error| refusal(&error))?;
        Ok(jobs::view(&job))
    }

    async fn ask(&self, member: Member, request: JobRequest) -> Result<JobView, Refusal> {
        let app = self.app(&member);
        // Of whoever is gone before it is in the queue nothing is done: he could not cancel it.
        let job = enqueue(&app, &member, request).await.map_err(|error| refusal(&error))?;
        self.asked.notify_one();
        Ok(jobs::view(&job))
    }

    async fn cancel(&self, member: Member, id: String, reason: String) -> Result<Done, Refusal> {
        let app = self.app(&member);
        to_the_end(&self.tasks, async move {
            let reason = format!("{} by {}", plain::sentence(&reason), member.name);
            let done = async { jobs::cancel(&app, &this_job(&app, &id).await?, &reason).await };
            change(&app, (&member, "jobs cancel", &id), done).await
        })
        .await
    }

    async fn delete_job(&self, member: Member, id: String) -> Result<Done, Refusal> {
        let app = self.app(&member);
        to_the_end(&self.tasks, async move {
            let done = async {
                let job = this_job(&app, &id).await?;
                Ok(jobs::delete(&app, vec![job]).await?.join("\n"))
            };
            change(&app, (&member, "jobs delete", &id), done).await
        })
        .await
    }

    async fn audit(&self, member: Member, limit: u32) -> Result<Vec<AuditView>, Refusal> {
        let app = self.app(&member);
        members::entries(&app, Some(&app.config.organisation), limit)
            .await
            .map_err(|error| refusal(&error))
    }

    async fn kept(&self, member: Member) -> Result<KeptView, Refusal> {
        let app = self.whole();
        ensure_keeper(&app, &member)?;
        let kept = app.added().await.map_err(|error| refusal(&error))?;
        Ok(KeptView { toml: kept.to_text() })
    }

    async fn change_settings(
        &self,
        member: Member,
        change: SettingsChange,
    ) -> Result<Done, Refusal> {
        let app = self.whole();
        ensure_keeper(&app, &member)?;
        let desk = self.clone();
        to_the_end(&self.tasks, async move {
            let heard = Arc::new(Warnings::default());
            let mut app = app.with_cx(app.cx.heard_by(|_| heard.clone()));
            let (action, name) = change.named();
            let named = (action, plain::name(name));
            let done = async {
                app = app.reloaded(app.file()).await?;
                Box::pin(settings::change(&mut app, change, By::Member)).await
            };
            let done = done.await;
            let outcome = done.as_ref().map(|_| Exit::Done);
            app.write_audit(member.name.to_string(), named, outcome).await;
            let mut done = done.map_err(|error| refusal(&error))?;
            desk.show(&app).await;
            done.warnings.extend(heard.take());
            Ok(done)
        })
        .await
    }
}

/// Refuses members who do not look after the installation: what it connects to concerns all organisations.
fn ensure_keeper(app: &Installation, member: &Member) -> Result<(), Refusal> {
    if member.organisation == app.config.organisation {
        return Ok(());
    }
    let text = format!(
        "what this server connects to is for owners of {} to say; {} is a member of {}",
        app.config.organisation, member.name, member.organisation
    );
    Err(Refusal::NotAllowed(text))
}

/// Gives out a part, piece by piece. What fails ends it, and so does somebody who takes nothing any more.
async fn give_out(app: &Installation, mut data: PartReader, to: mpsc::Sender<io::Result<Bytes>>) {
    loop {
        let piece = match data.next().await {
            Ok(Some(bytes)) => Ok(bytes),
            Ok(None) => return,
            Err(error) => {
                let text = format!("a download is ended: {error}");
                app.cx.event(Event::Warning { text });
                Err(io::Error::other(error))
            }
        };
        let is_last = piece.is_err();
        let is_taken = matches!(timeout(STALLED, to.send(piece)).await, Ok(Ok(())));
        if is_last || !is_taken {
            return;
        }
    }
}

/// Puts a job into the queue that a member asks for; the same one again is the same job.
async fn enqueue(
    app: &Installation,
    member: &Member,
    JobRequest { id, source, work }: JobRequest,
) -> anyhow::Result<Job> {
    let given = id.unwrap_or_else(new_job_id);
    let id = JobId::parse(&given).ok_or_else(|| {
        let found = plain::name(&given);
        UsageError(format!("found the id {found:?} of a job, expected a number below 2^64"))
    })?;
    let source = app.config.sources.get(&source).ok_or_else(|| app.no_source(&source))?;
    let the_same = |job: Job| {
        let is_same = is_same_work(job.spec.as_ref(), &work)
            && job.source == source.name.as_str()
            && job.organisation == source.organisation.as_str()
            && job.asked_by.as_deref() == Some(member.name.as_str());
        is_same.then_some(job).ok_or_else(|| {
            UsageError(format!("there is another job {given}; ask with another id, or none")).into()
        })
    };
    if let Some(job) = app.catalog.job(&id).await? {
        return the_same(job);
    }
    let spec = specify(app, source, work.clone()).await?;
    if let Some(nobody) = nobody_takes(app, source, Some(&spec)).await? {
        anyhow::bail!(nobody);
    }
    let now = app.catalog.time(app.cx.now()).await?;
    if spec.is_change() {
        // Before it is one, so that no restore is without it.
        let changed = (spec.kind().as_str(), source.name.to_string());
        let beside = match &spec {
            JobSpec::Restore(RestoreSpec { to: Some(to), .. }) => {
                format!(", to {} beside it", plain::name(to))
            }
            _ => String::new(),
        };
        let outcome = format!("asked for as job {given}{beside}");
        app.audit_change(member.name.to_string(), changed, outcome).await;
    }
    let asked = (&spec, Some(member.name.as_str()));
    app.catalog.enqueue((given.clone(), source.as_job()), asked, now).await?;
    // Somebody may have had the same id a moment before.
    the_same(app.catalog.job(&id).await?.context("the job is gone from the catalog")?)
}

/// Says whether a job is what somebody asks for. Which backup is taken may have been chosen since.
fn is_same_work(spec: Option<&JobSpec>, work: &Work) -> bool {
    match (spec, work) {
        (Some(JobSpec::Backup(spec)), Work::Backup { trigger, note, hold }) => {
            let note = note.as_deref().map(plain::sentence);
            *spec == BackupSpec { trigger: *trigger, note, hold: *hold }
        }
        (Some(JobSpec::Preview(spec)), Work::Preview(wish))
        | (Some(JobSpec::Restore(spec)), Work::Restore(wish)) => {
            let id = wish.backup.as_deref().unwrap_or_default();
            spec.backup.as_str().starts_with(id)
                && *spec == restore_of(spec.backup.clone(), wish.clone())
        }
        (Some(JobSpec::Drill { .. }), Work::Drill { .. })
        | (Some(JobSpec::Test), Work::Test)
        | (Some(JobSpec::Undo), Work::Undo)
        | (Some(JobSpec::Confirm), Work::Confirm) => true,
        _ => false,
    }
}

/// Finds the one job of the member's organisation whose id begins so.
async fn its_job(app: &Installation, id: &str) -> anyhow::Result<Job> {
    jobs::one(app, (id, Some(app.config.organisation.as_str()))).await
}

/// Finds the job of the member's organisation that is to be changed: half an id may be another's.
async fn this_job(app: &Installation, id: &str) -> anyhow::Result<Job> {
    let job = its_job(app, id).await?;
    if job.id.as_str() != id {
        return Err(UsageError(format!("write the whole id: {}", job.id.as_str())).into());
    }
    Ok(job)
}

/// Does what a member changes, and writes down how it ended.
async fn change(
    app: &Installation,
    (member, action, subject): (&Member, &'static str, &str),
    work: impl Future<Output = anyhow::Result<String>>,
) -> Result<Done, Refusal> {
    let done = work.await;
    let outcome = done.as_ref().map(|_| Exit::Done);
    app.write_audit(member.name.to_string(), (action, plain::name(subject)), outcome).await;
    done.map(|said| Done { said, warnings: Vec::new() }).map_err(|error| refusal(&error))
}

/// Says why something was not done, in the words that a command would have for it.
fn refusal(error: &anyhow::Error) -> Refusal {
    let text = format!("{error:#}");
    if is_wrong_call(error) {
        return Refusal::Malformed(text);
    }
    if error.is::<CatalogError>() {
        return Refusal::Away(text);
    }
    Refusal::Failed { text, exit_code: Exit::of(error).code() }
}

/// Hears what whoever asked should know.
#[derive(Default)]
struct Warnings(Mutex<Vec<String>>);

impl Warnings {
    fn take(&self) -> Vec<String> {
        std::mem::take(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Monitor for Warnings {
    fn event(&self, event: Event) {
        if let Event::Warning { text } = event {
            self.0.lock().unwrap_or_else(PoisonError::into_inner).push(text);
        }
    }
}
