//! What `source`, `storage` and `config import` change, as the command line says it.

use std::collections::BTreeMap;
use std::io::{BufRead as _, IsTerminal as _};
use std::path::Path;

use anyhow::Context as _;
use backstay_server::{AccessKey, SettingsChange, Subject, Wanted};
use toml::{Table, Value};

use super::settings::refuse_open_secrets;
use crate::cli::{Command, SetArgs, SourceAdd, SourceCommand, StorageAdd, StorageCommand};
use crate::config::Additions;
use crate::exit::UsageError;
use crate::installation::Installation;
use crate::render;

/// Returns what a command changes of what is kept, and asks for the secrets that go with it; none if it only looks.
pub(super) fn change_of(command: &Command) -> anyhow::Result<Option<SettingsChange>> {
    use SettingsChange::{Add, Remove, Set};
    use Subject::{Source, Storage};
    Ok(Some(match command {
        Command::Source(SourceCommand::Add(args)) => {
            Add(Source, args.name.clone(), new_source(args)?)
        }
        Command::Source(SourceCommand::Set(args)) => {
            let password = args.credentials.then(ask_password).transpose()?;
            Set(Source, args.name.clone(), Wanted { password, ..wanted(args)? })
        }
        Command::Source(SourceCommand::Credentials { name }) => {
            let password = Some(ask_password()?);
            Set(Source, name.clone(), Wanted { password, ..Wanted::default() })
        }
        Command::Source(SourceCommand::Remove { name }) => Remove(Source, name.clone()),
        Command::Storage(StorageCommand::Add(args)) => {
            Add(Storage, args.name.clone(), new_storage(args)?)
        }
        Command::Storage(StorageCommand::Set(args)) => {
            let credentials = args.credentials.then(ask_access_key).transpose()?;
            Set(Storage, args.name.clone(), Wanted { credentials, ..wanted(args)? })
        }
        Command::Storage(StorageCommand::Credentials { name }) => {
            let credentials = Some(ask_access_key()?);
            Set(Storage, name.clone(), Wanted { credentials, ..Wanted::default() })
        }
        Command::Storage(StorageCommand::Remove { name }) => Remove(Storage, name.clone()),
        _ => return Ok(None),
    }))
}

fn new_storage(args: &StorageAdd) -> anyhow::Result<Wanted> {
    let mut table = settings(&args.set)?;
    let provider = if args.path.is_some() { "local" } else { "s3" };
    put(&mut table, "provider", Some(provider));
    put(&mut table, "path", args.path.as_deref());
    put(&mut table, "bucket", args.bucket.as_deref());
    put(&mut table, "endpoint", args.endpoint.as_deref());
    put(&mut table, "region", args.region.as_deref());
    put(&mut table, "prefix", args.prefix.as_deref());
    refuse_open_secrets(&table)?;
    let credentials = args.credentials.then(ask_access_key).transpose()?;
    Ok(Wanted { settings: as_json(&table)?, credentials, ..Wanted::default() })
}

fn new_source(args: &SourceAdd) -> anyhow::Result<Wanted> {
    let mut table = settings(&args.set)?;
    put(&mut table, "kind", Some(&args.kind));
    put(&mut table, "path", args.path.as_deref());
    put(&mut table, "url", args.url.as_deref());
    put(&mut table, "storage", Some(&args.storage));
    put(&mut table, "schedule", args.schedule.as_deref());
    refuse_open_secrets(&table)?;
    let password = args.credentials.then(ask_password).transpose()?;
    Ok(Wanted { settings: as_json(&table)?, password, ..Wanted::default() })
}

fn wanted(args: &SetArgs) -> anyhow::Result<Wanted> {
    let table = settings(&args.set)?;
    refuse_open_secrets(&table)?;
    Ok(Wanted { settings: as_json(&table)?, unset: args.unset.clone(), ..Wanted::default() })
}

fn as_json(table: &Table) -> anyhow::Result<serde_json::Map<String, serde_json::Value>> {
    match serde_json::to_value(table)? {
        serde_json::Value::Object(fields) => Ok(fields),
        _ => anyhow::bail!("a table is no object"),
    }
}

/// Keeps the storages and sources of a file, all or none.
pub(super) async fn import(
    app: &mut Installation,
    (file, replace): (&Path, bool),
) -> anyhow::Result<()> {
    let text =
        std::fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
    let found = Additions::from_text(&text).map_err(|problem| {
        let expected = "only tables of [storages] and [sources] are kept in the catalog";
        UsageError(format!("{}: {expected}: {problem}", file.display()))
    })?;
    for table in found.storages.values().chain(found.sources.values()) {
        refuse_open_secrets(table)?;
    }
    let mut additions = app.additions.clone();
    let (storages, sources) = (found.storages.len(), found.sources.len());
    merge(&mut additions.storages, found.storages, ("storage", replace))?;
    merge(&mut additions.sources, found.sources, ("source", replace))?;
    app.set_additions(additions).await?;
    for warning in &app.config.warnings {
        render::say(&format!("warning: {warning}"));
    }
    render::print(&format!(
        "{storages} storages and {sources} sources are kept; `backstay doctor` tries them, `backstay storage credentials NAME` and `backstay source \
         credentials NAME` seal what is missing"
    ))
}

/// Adds tables to those that are kept. Another one of the same name is replaced only where that is asked for.
fn merge(
    kept: &mut BTreeMap<String, Table>,
    found: BTreeMap<String, Table>,
    (what, replace): (&str, bool),
) -> anyhow::Result<()> {
    for (name, table) in found {
        if !replace && kept.get(&name).is_some_and(|before| *before != table) {
            let text = format!(
                "there is a {what} {name:?} already, and it is another; --replace takes the file's"
            );
            return Err(UsageError(text).into());
        }
        kept.insert(name, table);
    }
    Ok(())
}

fn put(table: &mut Table, field: &str, value: Option<&str>) {
    if let Some(value) = value {
        // What is data on the command line is data in the table, too.
        drop(table.insert(field.to_owned(), Value::String(value.replace('$', "$$"))));
    }
}

/// Reads `field=value` with values as the file writes them, so that everything the file can say can be added.
fn settings(pairs: &[String]) -> anyhow::Result<Table> {
    let mut table = Table::new();
    for pair in pairs {
        let read = toml::from_str::<Table>(pair).map_err(|error| {
            let message = error.message().to_owned();
            UsageError(format!("found --set {pair:?}, expected a line as in the file, for example --set 'keep = {{ last = 7 }}': {message}"))
        })?;
        table.extend(read);
    }
    Ok(table)
}

/// Never from the command line: other users can read that.
fn ask_access_key() -> anyhow::Result<AccessKey> {
    let (access_key_id, secret_access_key) = if std::io::stdin().is_terminal() {
        let id: String = dialoguer::Input::new().with_prompt("Access key ID").interact_text()?;
        (id, dialoguer::Password::new().with_prompt("Secret access key").interact()?)
    } else {
        let mut lines = std::io::stdin().lock().lines();
        let mut line = || lines.next().transpose().map(Option::unwrap_or_default);
        (line()?, line()?)
    };
    if access_key_id.trim().is_empty() || secret_access_key.trim().is_empty() {
        let text =
            "expected two lines: the access key id and the secret access key; nothing was kept";
        return Err(UsageError(text.to_owned()).into());
    }
    Ok(AccessKey { access_key_id, secret_access_key })
}

/// Likewise. Spaces may be part of it.
fn ask_password() -> anyhow::Result<String> {
    if std::io::stdin().is_terminal() {
        return Ok(dialoguer::Password::new().with_prompt("Password").interact()?);
    }
    let line = std::io::stdin().lock().lines().next().transpose()?.unwrap_or_default();
    if line.is_empty() {
        let text = "expected a line with the password; nothing was kept";
        return Err(UsageError(text.to_owned()).into());
    }
    Ok(line)
}
