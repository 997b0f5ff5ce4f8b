//! What a member may say of sources and storages: nothing that becomes a program, a file or a variable of a machine (ADR 23).

use toml::{Table, Value};

use super::{Edit, WITH_PASSWORD};
use crate::exit::UsageError;

/// When a source is backed up, how long its backups are kept, what is expected of them.
const POLICY: [&str; 14] = [
    "schedule",
    "timezone",
    "jitter",
    "blackout",
    "keep",
    "priority",
    "rpo",
    "rto",
    "retries",
    "retry_after",
    "undo_for",
    "app",
    "environment",
    "compression_level",
];
/// Where the password of a source is sent.
const WHERE: [&str; 7] = ["kind", "url", "host", "port", "tls", "worker", "worker_labels"];
/// What else a source by the network has. Of what the database is asked (`migrations`, `checks`) there is nothing: a superuser's
/// SQL runs programs.
const DATABASE: [&str; 9] = [
    "storage",
    "user",
    "database",
    "databases",
    "encryption",
    "lock_timeout",
    "statement_timeout",
    "lock_tables",
    "restore_jobs",
];
/// Where the credentials of a storage are sent.
const STORAGE_WHERE: [&str; 6] =
    ["provider", "bucket", "endpoint", "use_ssl", "region", "addressing"];
const STORAGE: [&str; 4] = ["prefix", "organisation", "credentials_expire", "jobs"];
/// The parameters of URLs that name no files and no other host.
const PARAMETERS: [&str; 2] = ["sslmode", "ssl-mode"];

/// Refuses what a member may not say of a source.
pub(super) fn check_source(edit: &Edit<'_>) -> Result<(), UsageError> {
    let is_machines = edit.before.is_some_and(|before| fault_of_source(before).is_some());
    if is_machines {
        let mut changed = edit.changed();
        let other = changed.find(|field| !POLICY.contains(field));
        let other = other.or(edit.has_secret.then_some("password"));
        return other.map_or(Ok(()), |field| {
            Err(UsageError(format!(
                "`{field}` of this source is changed on the server's machine: it has settings that only that may give; when it is backed up, how long \
                 that is kept and what is expected of it may be changed here"
            )))
        });
    }
    if let Some(fault) = fault_of_source(edit.after) {
        return Err(on_the_machine(&fault));
    }
    let needs_password = text(edit.after, "kind") != "redis";
    if edit.before.is_none() && needs_password && !edit.has_secret {
        let text =
            "a password is missing: by way of a server each source has its own (--credentials)";
        return Err(UsageError(text.to_owned()));
    }
    ensure_said_again(edit, &WHERE, "the password is")
}

/// Refuses what a member may not say of a storage.
pub(super) fn check_storage(edit: &Edit<'_>) -> Result<(), UsageError> {
    for table in edit.before.into_iter().chain([edit.after]) {
        if let Some(fault) = fault_of_storage(table) {
            return Err(on_the_machine(&fault));
        }
    }
    if edit.before.is_none() && !edit.has_secret {
        let text =
            "credentials are missing: by way of a server each storage has its own (--credentials)";
        return Err(UsageError(text.to_owned()));
    }
    ensure_said_again(edit, &STORAGE_WHERE, "the credentials are")
}

/// A secret is sent elsewhere by nobody who does not know it.
fn ensure_said_again(edit: &Edit<'_>, places: &[&str], secret: &str) -> Result<(), UsageError> {
    if edit.before.is_none() || edit.has_secret {
        return Ok(());
    }
    let Some(field) = edit.changed().find(|field| places.contains(field)) else { return Ok(()) };
    Err(UsageError(format!(
        "`{field}` says where {secret} sent: --credentials gives them again with it"
    )))
}

/// Returns what of a source only its machine may say.
fn fault_of_source(table: &Table) -> Option<String> {
    let kind = text(table, "kind");
    if !WITH_PASSWORD.contains(&kind) {
        return Some(format!("a source of kind `{kind}`"));
    }
    let is_known =
        |field: &str| [&POLICY[..], &WHERE, &DATABASE].iter().any(|known| known.contains(&field));
    let unknown = table.keys().find(|field| !is_known(field));
    let unknown = unknown.map(|field| format!("`{field}` of a source"));
    let host = || {
        let host = table.get("host").and_then(Value::as_str).filter(|host| !is_host(host))?;
        Some(format!("the host `{host}`"))
    };
    unknown.or_else(|| reference(table)).or_else(host).or_else(|| fault_of_url(table))
}

/// Returns what of a storage only its machine may say.
fn fault_of_storage(table: &Table) -> Option<String> {
    let provider = text(table, "provider");
    if provider != "s3" {
        return Some(format!("a storage with the provider `{provider}`"));
    }
    let is_known = |field: &str| STORAGE_WHERE.contains(&field) || STORAGE.contains(&field);
    let unknown = table.keys().find(|field| !is_known(field));
    unknown.map(|field| format!("`{field}` of a storage")).or_else(|| reference(table))
}

/// Returns the setting of a table that stands for a file or a variable of the machine.
fn reference(table: &Table) -> Option<String> {
    fn is_in(value: &Value) -> bool {
        match value {
            Value::String(text) => text.starts_with("file:") || text.contains("${"),
            Value::Array(values) => values.iter().any(is_in),
            Value::Table(table) => table.values().any(is_in),
            _ => false,
        }
    }
    let found = table.iter().find(|(_, value)| is_in(value));
    found.map(|(field, _)| format!("the reference in `{field}`"))
}

/// Returns what a URL says that leads to files, or to a socket.
fn fault_of_url(table: &Table) -> Option<String> {
    let url = table.get("url")?;
    let Some(url) = url.as_str().and_then(|url| url::Url::parse(url).ok()) else {
        return Some("an address that is no URL".to_owned());
    };
    let host = percent_encoding::percent_decode_str(url.host_str().unwrap_or_default());
    if !is_host(&host.decode_utf8_lossy()) {
        return Some("a URL without a host".to_owned());
    }
    let mut parameters = url.query_pairs();
    let parameter = parameters.find(|(name, _)| !PARAMETERS.contains(&name.as_ref()));
    parameter.map(|(name, _)| format!("the parameter `{name}` of a URL"))
}

/// Says whether it is the name or the address of one machine: programs read sockets and lists of hosts out of others.
fn is_host(text: &str) -> bool {
    let bare = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')).unwrap_or(text);
    !bare.is_empty() && bare.chars().all(|c| c.is_ascii_alphanumeric() || "-._:".contains(c))
}

fn text<'a>(table: &'a Table, field: &str) -> &'a str {
    table.get(field).and_then(Value::as_str).unwrap_or_default()
}

fn on_the_machine(fault: &str) -> UsageError {
    let what = crate::plain::sentence(fault);
    UsageError(format!(
        "{what} is for the server's machine to say: by way of a server only databases with a host and a password, and S3 storages with credentials, are \
         taken; nothing was changed"
    ))
}
