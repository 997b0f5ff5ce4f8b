//! Which commands change something, restore it or take it away: these are written down (ADR 21). What makes a backup is a job.

use backstay_control::Change;
use backstay_engine::event::Event;
use backstay_format::Slug;

use crate::cli::{
    ArchivesCommand, Command, JobsCommand, KeysCommand, MembersCommand, SourceCommand,
    StorageCommand, WorkersCommand,
};
use crate::exit::{Exit, is_wrong_call};
use crate::installation::{Installation, host, new_job_id};

/// What a command changes: its own words, and of what.
pub(super) type Changed = (&'static str, String);

/// Says what a command changes; nothing if it only looks.
pub(super) fn change_of(command: &Command) -> Option<Changed> {
    let all = String::new;
    Some(match command {
        Command::Source(SourceCommand::Add(args)) => ("source add", args.name.clone()),
        Command::Source(SourceCommand::Set(args)) => ("source set", args.name.clone()),
        Command::Source(SourceCommand::Credentials { name }) => {
            ("source credentials", name.clone())
        }
        Command::Source(SourceCommand::Remove { name }) => ("source remove", name.clone()),
        Command::Storage(StorageCommand::Add(args)) => ("storage add", args.name.clone()),
        Command::Storage(StorageCommand::Set(args)) => ("storage set", args.name.clone()),
        Command::Storage(StorageCommand::Remove { name }) => ("storage remove", name.clone()),
        Command::Storage(StorageCommand::Credentials { name }) => {
            ("storage credentials", name.clone())
        }
        Command::Hold { id, .. } => ("hold", id.clone()),
        Command::Release { id } => ("release", id.clone()),
        Command::Delete { id, .. } => ("delete", id.clone()),
        Command::Restore(args) if !args.dry_run => ("restore", args.source.clone()),
        Command::Undo { source } => ("undo", source.clone().unwrap_or_default()),
        Command::Confirm { source } => ("confirm", source.clone().unwrap_or_default()),
        Command::Download { id, .. } => ("download", id.clone()),
        Command::Forget { source, dry_run: false } => {
            ("forget", source.clone().unwrap_or_default())
        }
        Command::Prune { dry_run: false } => ("prune", all()),
        Command::Archives(ArchivesCommand::Restore(args)) => {
            ("archives restore", args.name.clone())
        }
        Command::Archives(ArchivesCommand::Prune { names, dry_run: false }) => {
            ("archives prune", names.join(" "))
        }
        Command::Keys(KeysCommand::Rotate) => ("keys rotate", all()),
        Command::Keys(KeysCommand::Kit { .. }) => ("keys kit", all()),
        Command::Keys(KeysCommand::Export { .. }) => ("keys export", all()),
        Command::Keys(KeysCommand::Import { .. }) => ("keys import", all()),
        Command::Workers(WorkersCommand::Invite { name, .. }) => {
            ("workers invite", name.as_ref().map(ToString::to_string).unwrap_or_default())
        }
        Command::Workers(WorkersCommand::Revoke { name }) => ("workers revoke", name.to_string()),
        Command::Members(MembersCommand::Add { name, .. }) => ("members add", name.to_string()),
        Command::Members(MembersCommand::Revoke { name, .. }) => {
            ("members revoke", name.to_string())
        }
        Command::Jobs(JobsCommand::Cancel { id, .. }) => ("jobs cancel", id.clone()),
        Command::Jobs(JobsCommand::Delete { ids }) => ("jobs delete", ids.join(" ")),
        _ => return None,
    })
}

/// Returns who runs a command.
pub(super) fn user() -> String {
    format!("uid {} on {}", rustix::process::getuid().as_raw(), host())
}

impl Installation {
    /// Returns whose it is that was changed: nobody's, which only the machine itself shows, where several organisations could be
    /// meant.
    fn whose(&self, subject: &str) -> &str {
        let config = &self.config;
        let source = config.sources.get(subject).map(|source| &source.organisation);
        let storage = || config.storages.get(subject).map(|storage| &storage.organisation);
        let archive = || config.archives.get(subject).map(|archive| &archive.organisation);
        let own = &config.organisation;
        let is_alone = config.storages.values().all(|storage| storage.organisation == *own);
        let named = source.or_else(storage).or_else(archive);
        named.or(is_alone.then_some(own)).map_or("", Slug::as_str)
    }

    /// Writes down what somebody changed, or did not; a wrong call is no change. That it cannot be written down is warned of.
    pub(crate) async fn write_audit(
        &self,
        actor: String,
        (action, subject): Changed,
        done: Result<Exit, &anyhow::Error>,
    ) {
        let outcome = match done {
            Ok(Exit::Done) => "done".to_owned(),
            Ok(exit) => format!("ended with {}", exit.code()),
            Err(error) if is_wrong_call(error) => return,
            Err(error) => format!("failed: {error:#}"),
        };
        self.audit_change(actor, (action, subject), outcome).await;
    }

    /// Writes down who changed what, and what came of it.
    pub(crate) async fn audit_change(
        &self,
        actor: String,
        (action, subject): (&str, String),
        outcome: String,
    ) {
        let change = Change { actor, action: action.to_owned(), subject, outcome };
        let named = (new_job_id(), self.whose(&change.subject));
        if let Err(error) = self.catalog.audit(named, &change, self.cx.now()).await {
            let text = format!("the audit could not be written: {error}");
            self.cx.event(Event::Warning { text });
        }
    }
}
