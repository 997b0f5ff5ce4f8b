//! `backstay config`.

use backstay_engine::cx::Cx;
use backstay_engine::hook::Hook;
use backstay_engine::source::Connection;
use backstay_engine::source::command::Output;
use serde_json::{Value, json};

use crate::cli::{ConfigCommand, Global};
use crate::config::{
    ArchiveConfig, Config, CredentialConfig, SourceConfig, SourceKind, StorageConfig, WorkerChoice,
};
use crate::exit::{Exit, UsageError};
use crate::installation::Installation;
use crate::opening::{config_path, environment, read_additions};
use crate::render;

pub(super) async fn config(
    global: &Global,
    cx: Cx,
    command: ConfigCommand,
) -> anyhow::Result<Exit> {
    match command {
        ConfigCommand::Schema => render::print_json(&Config::schema())?,
        ConfigCommand::Export => render::print(read_additions(global).await?.to_text().trim_end())?,
        ConfigCommand::Import { file, replace } => {
            let mut app = Installation::open_even_empty(global, cx).await?;
            let done = super::add::import(&mut app, (&file, replace)).await;
            let change = ("config import", file.display().to_string());
            app.write_audit(super::audit::user(), change, done.as_ref().map(|()| Exit::Done)).await;
            done?;
        }
        ConfigCommand::Check => look(global, false).await?,
        ConfigCommand::Show => look(global, true).await?,
    }
    Ok(Exit::Done)
}

/// Says what is wrong with the configuration; else that it is good, or what it is.
async fn look(global: &Global, show: bool) -> anyhow::Result<()> {
    let path = config_path(global);
    let additions = read_additions(global).await?;
    if path.is_none() && additions.is_empty() {
        let text =
            "there is no configuration: `backstay init` writes one, or name it with --config";
        return Err(UsageError(text.to_owned()).into());
    }
    let config = Config::load(path.as_deref(), &additions, &environment())?;
    for warning in &config.warnings {
        render::say(&format!("warning: {warning}"));
    }
    if show {
        return render::print_json(&shown(&config));
    }
    let file = path.map_or_else(|| "what was added".to_owned(), |path| path.display().to_string());
    let (storages, sources) = (config.storages.len(), config.sources.len());
    let archives = match config.archives.len() {
        0 => String::new(),
        archives => format!(", {archives} archives"),
    };
    render::print(&format!("{file} is good: {storages} storages, {sources} sources{archives}"))
}

/// The configuration as it counts, with every default, and without secrets.
fn shown(config: &Config) -> Value {
    let storages: serde_json::Map<String, Value> = config
        .storages
        .values()
        .map(|storage| (storage.name.clone(), storage_json(storage)))
        .collect();
    let sources: serde_json::Map<String, Value> = config
        .sources
        .values()
        .map(|source| (source.name.to_string(), source_json(source)))
        .collect();
    let archives: serde_json::Map<String, Value> = config
        .archives
        .values()
        .map(|archive| (archive.name.to_string(), archive_json(archive)))
        .collect();
    json!({
        "organisation": config.organisation,
        "disk_warn_bytes": config.disk_warn,
        "storages": storages,
        "sources": sources,
        "archives": archives,
    })
}

fn archive_json(archive: &ArchiveConfig) -> Value {
    json!({
        "source": archive.source,
        "table": archive.table.table,
        "column": archive.table.column,
        "older_than_seconds": archive.older_than.as_secs(),
        "partition": archive.partition.key(),
        "storage": archive.storage,
        "encryption": if archive.sealed { "sealed" } else { "none" },
        "delete": archive.delete,
        "as_text": archive.table.as_text,
        "keep_seconds": archive.keep.map(|keep| keep.as_secs()),
    })
}

fn storage_json(storage: &StorageConfig) -> Value {
    let mut value = json!(storage.kind);
    value["organisation"] = json!(storage.organisation);
    value["credentials"] = match &storage.credentials {
        CredentialConfig::Given { access_key_id, .. } => {
            json!({"access_key_id": access_key_id, "secret_access_key": "(hidden)"})
        }
        CredentialConfig::Elsewhere { profile } => json!({"elsewhere": true, "profile": profile}),
    };
    value["jobs"] = json!(storage.jobs);
    value["credentials_expire"] = json!(storage.credentials_expire);
    value
}

fn source_json(source: &SourceConfig) -> Value {
    let hook = |hook: &Option<Hook>| {
        hook.as_ref()
            .map(|hook| json!({"run": hook.argv, "timeout_seconds": hook.timeout.as_secs()}))
    };
    let mut value = json!({
        "kind": source.kind.as_str(),
        "location": source.kind.location(),
        "storage": source.storage,
        "app": source.app,
        "environment": source.environment,
        "schedule": source.schedule(),
        "timezone": source.policy.as_ref().and_then(|policy| policy.zone.iana_name()),
        "jitter_seconds": source.policy.as_ref().map(|policy| policy.jitter.as_secs()),
        "blackout": source.policy.as_ref().map(|policy| policy.blackouts.iter().map(ToString::to_string).collect::<Vec<_>>()),
        "priority": source.priority,
        "keep": source.keep,
        "rpo_seconds": source.rpo.map(|rpo| rpo.as_secs()),
        "rto_seconds": source.rto.map(|rto| rto.as_secs()),
        "encryption": if source.sealed { "sealed" } else { "none" },
        "compression_level": source.compression_level,
        "undo_for_seconds": source.undo_for.as_secs(),
        "import_from": source.import_from,
        "before_backup": hook(&source.before_backup),
        "after_backup": hook(&source.after_backup),
        "before_restore": hook(&source.before_restore),
        "after_restore": hook(&source.after_restore),
    });
    match &source.kind {
        SourceKind::Files(files) => {
            let texts = |patterns: &[backstay_engine::source::files::Pattern]| -> Vec<String> {
                patterns.iter().map(ToString::to_string).collect()
            };
            value["exclude"] = json!(texts(&files.exclude));
            value["transient"] = json!(texts(&files.transient));
            value["one_file_system"] = json!(files.one_file_system);
        }
        SourceKind::Sqlite { .. } => {}
        SourceKind::Set(set) => value["members"] = json!(set.members.to_string()),
        SourceKind::Duckdb { programs, .. } => value["programs"] = json!(programs),
        SourceKind::Postgres(postgres) => {
            let options = &postgres.options;
            show_connection(&postgres.connection, &mut value);
            value["lock_timeout_seconds"] = json!(options.lock_timeout.as_secs());
            value["statement_timeout_seconds"] =
                json!(options.statement_timeout.map(|timeout| timeout.as_secs()));
            value["migrations"] = json!(options.migrations);
            value["programs"] = json!(options.programs);
        }
        SourceKind::Mysql(mysql) => {
            show_connection(&mysql.connection, &mut value);
            value["lock_tables"] = json!(mysql.options.lock_tables);
            value["programs"] = json!(mysql.options.programs);
        }
        SourceKind::Command(command) => {
            let output = |output: &Output| {
                json!({
                    "name": output.name,
                    "dump": output.dump.to_string(),
                    "restore": output.restore.as_ref().map(ToString::to_string),
                    "check": output.check.as_ref().map(ToString::to_string),
                    "min_bytes": output.min_bytes,
                    "timeout_seconds": output.timeout.as_secs(),
                })
            };
            value["outputs"] = command.outputs.iter().map(output).collect();
            let names = command.variables.iter().map(|(name, _)| name.as_str());
            value["variables"] = names.collect();
        }
        SourceKind::Redis(redis) => show_connection(&redis.connection, &mut value),
        SourceKind::Remote(remote) => match &remote.worker {
            WorkerChoice::Named(name) => value["worker"] = json!(name),
            WorkerChoice::Labelled(labels) => value["worker_labels"] = json!(labels),
        },
    }
    value
}

/// Shows how a server is reached, without secrets.
fn show_connection(connection: &Connection, value: &mut serde_json::Value) {
    value["password"] = json!(connection.password.as_ref().map(|_| "given"));
    value["tls"] = json!(connection.tls.mode.as_str());
    value["tls_ca_file"] = json!(connection.tls.ca_file);
    value["tls_certificate_file"] = json!(connection.tls.certificate_file);
}
