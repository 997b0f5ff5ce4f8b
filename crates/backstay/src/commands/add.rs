//! `backstay storage add`, `source add` and `config import`: what is kept in the catalog instead of the file, in the file's own words.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::Context as _;
use toml::{Table, Value};

use crate::cli::{Global, SourceAdd, SourceCommand, StorageAdd, StorageCommand};
use crate::config::Additions;
use crate::exit::{Exit, UsageError};
use crate::installation::{Installation, credentials_name, tested_name};
use crate::render;

/// Does what changes the configuration; everything else is left to whoever looks.
pub(super) async fn storage(
    app: &mut Installation,
    global: &Global,
    command: &StorageCommand,
) -> anyhow::Result<Option<Exit>> {
    match command {
        StorageCommand::Add(args) => add_storage(app, global, args).await?,
        StorageCommand::Remove { name } => remove_storage(app, global, name).await?,
        _ => return Ok(None),
    }
    Ok(Some(Exit::Done))
}

/// Does what changes the configuration; everything else is left to whoever looks.
pub(super) async fn source(
    app: &mut Installation,
    global: &Global,
    command: &SourceCommand,
) -> anyhow::Result<Option<Exit>> {
    match command {
        SourceCommand::Add(args) => add_source(app, global, args).await?,
        SourceCommand::Remove { name } => remove_source(app, global, name).await?,
        _ => return Ok(None),
    }
    Ok(Some(Exit::Done))
}

/// Keeps a storage only if its test passes (D4).
async fn add_storage(
    app: &mut Installation,
    global: &Global,
    args: &StorageAdd,
) -> anyhow::Result<()> {
    if app.config.storages.contains_key(&args.name) {
        return Err(taken("storage", &args.name));
    }
    let mut table = settings(&args.set)?;
    let provider = if args.path.is_some() { "local" } else { "s3" };
    put(&mut table, "provider", Some(provider));
    put(&mut table, "path", args.path.as_deref());
    put(&mut table, "bucket", args.bucket.as_deref());
    put(&mut table, "endpoint", args.endpoint.as_deref());
    put(&mut table, "region", args.region.as_deref());
    put(&mut table, "prefix", args.prefix.as_deref());
    refuse_open_secrets(&table)?;
    let mut additions = app.additions.clone();
    additions.storages.insert(args.name.clone(), table);
    let config = app.with_additions(global, &additions)?;
    let storage = config.storages.get(&args.name).context("the storage was not taken over")?;
    let secret = credentials_name(&args.name);
    if args.credentials {
        let credentials = super::look::ask_credentials()?;
        app.catalog.set_secret(&secret, &serde_json::to_vec(&credentials)?).await?;
    }
    if let Err(error) = app.test_storage(storage).await {
        for name in [secret, tested_name(&args.name)] {
            app.catalog.forget(&name).await?;
        }
        return Err(error.context("the storage's test failed, so it is not kept"));
    }
    app.set_additions(global, additions).await?;
    render::print(&format!("storage {} is verified and kept", args.name))
}

/// Lets go of a storage; what lies on it stays.
async fn remove_storage(app: &mut Installation, global: &Global, name: &str) -> anyhow::Result<()> {
    let mut additions = app.additions.clone();
    if additions.storages.remove(name).is_none() {
        return Err(not_added(app.config.storages.contains_key(name), "storage", name));
    }
    let used = app.config.sources.values().find(|source| source.storage == name);
    if let Some(source) = used {
        let text = format!("storage {name} is used by source {}; remove that first", source.name);
        return Err(UsageError(text).into());
    }
    app.set_additions(global, additions).await?;
    for name in [credentials_name(name), tested_name(name)] {
        app.catalog.forget(&name).await?;
    }
    render::print(&format!("storage {name} is forgotten here; its backups are where they were"))
}

async fn add_source(
    app: &mut Installation,
    global: &Global,
    args: &SourceAdd,
) -> anyhow::Result<()> {
    if app.config.sources.contains_key(&args.name) {
        return Err(taken("source", &args.name));
    }
    let mut table = settings(&args.set)?;
    put(&mut table, "kind", Some(&args.kind));
    put(&mut table, "path", args.path.as_deref());
    put(&mut table, "url", args.url.as_deref());
    put(&mut table, "storage", Some(&args.storage));
    put(&mut table, "schedule", args.schedule.as_deref());
    refuse_open_secrets(&table)?;
    let mut additions = app.additions.clone();
    additions.sources.insert(args.name.clone(), table);
    app.set_additions(global, additions).await?;
    render::print(&format!("source {0} is kept; `backstay backup {0}` backs it up", args.name))
}

/// What is added lies readable in the catalog, so secrets stand elsewhere.
fn refuse_open_secrets(table: &Table) -> anyhow::Result<()> {
    let text = |field| table.get(field).and_then(Value::as_str).unwrap_or_default();
    let is_reference =
        |text: &str| text.is_empty() || text.starts_with("file:") || text.contains("${");
    let has_password = url::Url::parse(text("url")).is_ok_and(|url| url.password().is_some());
    let variables = table.get("variables").and_then(Value::as_table);
    let secrets = variables.into_iter().flatten().filter(|(name, _)| {
        let name = name.to_uppercase();
        ["PASS", "PWD", "SECRET", "TOKEN", "KEY", "AUTH"].iter().any(|word| name.contains(word))
    });
    let mut secrets = secrets.map(|(_, value)| value.as_str().unwrap_or_default());
    let fields = ["password", "secret_access_key", "session_token"];
    let is_closed = fields.into_iter().map(text).all(is_reference);
    if is_closed && !has_password && secrets.all(is_reference) {
        return Ok(());
    }
    let text = "a secret is kept by reference: `password = \"file:/path\"` or `password = \"${NAME}\"`; those of a storage are sealed by `storage add --credentials`, too";
    Err(UsageError(text.to_owned()).into())
}

/// Lets go of a source; its backups stay.
async fn remove_source(app: &mut Installation, global: &Global, name: &str) -> anyhow::Result<()> {
    let mut additions = app.additions.clone();
    if additions.sources.remove(name).is_none() {
        return Err(not_added(app.config.sources.contains_key(name), "source", name));
    }
    app.set_additions(global, additions).await?;
    render::print(&format!("source {name} is forgotten here; its backups are where they were"))
}

/// Keeps the storages and sources of a file, all or none.
pub(super) async fn import(
    app: &mut Installation,
    global: &Global,
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
    app.set_additions(global, additions).await?;
    for warning in &app.config.warnings {
        render::say(&format!("warning: {warning}"));
    }
    render::print(&format!(
        "{storages} storages and {sources} sources are kept; `backstay doctor` tries them, `backstay storage credentials NAME` seals what is missing"
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

fn taken(what: &str, name: &str) -> anyhow::Error {
    UsageError(format!("there is a {what} {name:?} already")).into()
}

fn not_added(declared: bool, what: &str, name: &str) -> anyhow::Error {
    let text = if declared {
        format!("{what} {name:?} stands in the file; remove it there")
    } else {
        format!("no {what} {name:?} was added")
    };
    UsageError(text).into()
}
