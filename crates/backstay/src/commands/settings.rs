//! What is kept in the catalog instead of the file, and how it is changed: by commands on this machine, and by way of a server (ADR 23).

mod by_member;

use anyhow::Context as _;
use backstay_server::{AccessKey, Done, SettingsChange, Subject, Wanted};
use toml::{Table, Value};

use crate::config::{CredentialConfig, SourceConfig, StorageConfig, StorageKind};
use crate::exit::UsageError;
use crate::installation::{
    Installation, StoredCredentials, Tested, credentials_name, random, tested_name,
};

/// The kinds of sources that have a password.
const WITH_PASSWORD: [&str; 3] = ["postgres", "mysql", "redis"];

/// Who changes settings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum By {
    /// Somebody on this machine, who may say whatever the file may.
    Machine,
    /// A member, by way of a server.
    Member,
}

/// What a change begins with and ends with.
struct Edit<'a> {
    /// The table that is kept, if there is one.
    before: Option<&'a Table>,
    after: &'a Table,
    /// Whether a secret is given with it.
    has_secret: bool,
}

impl Edit<'_> {
    /// Returns the settings that are other ones afterwards.
    fn changed(&self) -> impl Iterator<Item = &str> {
        let before = |field: &str| self.before.and_then(|before| before.get(field));
        let gone = self.before.into_iter().flat_map(Table::keys);
        let gone = gone.filter(|field| !self.after.contains_key(*field));
        let new = self.after.iter().filter(move |(field, value)| before(field) != Some(*value));
        gone.chain(new.map(|(field, _)| field)).map(String::as_str)
    }
}

/// Changes what is kept, wholly or not at all.
pub(super) async fn change(
    app: &mut Installation,
    change: SettingsChange,
    by: By,
) -> anyhow::Result<Done> {
    let said = match change {
        SettingsChange::Add(Subject::Source, name, wanted) => {
            ensure_free(app.config.sources.contains_key(&name), ("source", &name))?;
            keep_source(app, &name, wanted, by).await?;
            format!("source {name} is kept; `backstay backup {name}` backs it up")
        }
        SettingsChange::Set(Subject::Source, name, wanted) => {
            ensure_added(&app.additions.sources, &app.config.sources, ("source", &name))?;
            keep_source(app, &name, wanted, by).await?;
            format!("source {name} is kept as it is now")
        }
        SettingsChange::Remove(Subject::Source, name) => remove_source(app, &name).await?,
        SettingsChange::Add(Subject::Storage, name, wanted) => {
            ensure_free(app.config.storages.contains_key(&name), ("storage", &name))?;
            keep_storage(app, &name, wanted, by).await?;
            format!("storage {name} is verified and kept")
        }
        SettingsChange::Set(Subject::Storage, name, wanted) if wanted.is_secret_alone() => {
            set_credentials(app, &name, wanted).await?;
            format!("the credentials of storage {name} are kept, sealed, and work")
        }
        SettingsChange::Set(Subject::Storage, name, wanted) => {
            ensure_added(&app.additions.storages, &app.config.storages, ("storage", &name))?;
            keep_storage(app, &name, wanted, by).await?;
            format!("storage {name} is verified and kept as it is now")
        }
        SettingsChange::Remove(Subject::Storage, name) => remove_storage(app, &name).await?,
    };
    Ok(Done { said, warnings: Vec::new() })
}

/// Keeps a source with what is said of it beside what was.
async fn keep_source(
    app: &mut Installation,
    name: &str,
    wanted: Wanted,
    by: By,
) -> anyhow::Result<()> {
    refuse("credentials", "a source has a `password`", wanted.credentials.is_some())?;
    let before = app.additions.sources.get(name);
    let mut after = merged(before, &wanted)?;
    refuse_open_secrets(&after)?;
    let password = wanted.password.as_deref().map(|given| checked_password(given, &after));
    let password = password.transpose()?;
    if by == By::Member {
        let has_secret = password.is_some();
        by_member::check_source(&Edit { before, after: &after, has_secret })?;
    }
    let mut additions = app.additions.clone();
    let mut sealed = None;
    if let Some(password) = password {
        after.remove("password");
        let secret = format!("password of source {name} {}", hex::encode(random::<8>()));
        app.catalog.set_secret(&secret, password.as_bytes()).await?;
        additions.passwords.insert(name.to_owned(), secret.clone());
        sealed = Some(secret);
    }
    additions.sources.insert(name.to_owned(), after);
    let kept = app.set_additions(additions).await;
    if let (Err(_), Some(unused)) = (&kept, sealed) {
        app.catalog.forget(&unused).await?;
    }
    kept
}

/// Lets go of a source; its backups stay.
async fn remove_source(app: &mut Installation, name: &str) -> anyhow::Result<String> {
    ensure_added(&app.additions.sources, &app.config.sources, ("source", name))?;
    let mut additions = app.additions.clone();
    additions.sources.remove(name);
    app.set_additions(additions).await?;
    Ok(format!("source {name} is forgotten here; its backups are where they were"))
}

/// Keeps a storage with what is said of it beside what was, if its test passes (D4).
async fn keep_storage(
    app: &mut Installation,
    name: &str,
    wanted: Wanted,
    by: By,
) -> anyhow::Result<()> {
    refuse("password", "a storage has `credentials`", wanted.password.is_some())?;
    let before = app.additions.storages.get(name);
    let after = merged(before, &wanted)?;
    refuse_open_secrets(&after)?;
    if by == By::Member {
        let has_secret = wanted.credentials.is_some();
        by_member::check_storage(&Edit { before, after: &after, has_secret })?;
    }
    let mut additions = app.additions.clone();
    additions.storages.insert(name.to_owned(), after);
    let config = app.with_additions(&additions).await?;
    let storage = config.storages.get(name).context("the storage was not taken over")?;
    if wanted.credentials.is_some() {
        ensure_sealable(storage)?;
    }
    let past = Past::of(app, name).await?;
    let kept = async {
        if let Some(credentials) = wanted.credentials {
            seal(app, name, credentials).await?;
        }
        app.test_storage(storage)
            .await
            .context("the storage's test failed, so nothing was changed")?;
        app.set_additions(additions).await
    };
    let kept = kept.await;
    if kept.is_err() {
        past.bring_back(app, name).await?;
    }
    kept
}

/// Sets the credentials of a storage, if they work there.
async fn set_credentials(app: &Installation, name: &str, wanted: Wanted) -> anyhow::Result<()> {
    let storage = app.storage(name)?;
    ensure_sealable(storage)?;
    let credentials = wanted.credentials.context(UsageError(
        "expected `credentials`, with `access_key_id` and `secret_access_key`".to_owned(),
    ))?;
    let past = Past::of(app, name).await?;
    let kept = async {
        seal(app, name, credentials).await?;
        app.test_storage(storage)
            .await
            .context("the storage's test failed with these credentials, so those before stay")
    };
    match kept.await {
        Ok(_) => Ok(()),
        Err(error) => {
            past.bring_back(app, name).await?;
            Err(error)
        }
    }
}

/// Refuses credentials that would not be used.
fn ensure_sealable(storage: &StorageConfig) -> Result<(), UsageError> {
    let (name, local) = (&storage.name, matches!(storage.kind, StorageKind::Local { .. }));
    let text = match &storage.credentials {
        _ if local => format!("storage {name} is a directory and has no credentials"),
        CredentialConfig::Given { .. } => format!(
            "the configuration of storage {name} says `access_key_id` and `secret_access_key`, and these count: change them there, or take them out of it"
        ),
        CredentialConfig::Elsewhere { .. } => return Ok(()),
    };
    Err(UsageError(text))
}

/// Lets go of a storage; what lies on it stays.
async fn remove_storage(app: &mut Installation, name: &str) -> anyhow::Result<String> {
    ensure_added(&app.additions.storages, &app.config.storages, ("storage", name))?;
    let uses = |source: &&SourceConfig| source.storage == name;
    if let Some(source) = app.config.sources.values().find(uses) {
        let text = format!("storage {name} is used by source {}; remove that first", source.name);
        return Err(UsageError(text).into());
    }
    let mut additions = app.additions.clone();
    additions.storages.remove(name);
    app.set_additions(additions).await?;
    for name in [credentials_name(name), tested_name(name)] {
        app.catalog.forget(&name).await?;
    }
    Ok(format!("storage {name} is forgotten here; its backups are where they were"))
}

/// What is known of a storage before it is changed.
struct Past {
    credentials: Option<zeroize::Zeroizing<Vec<u8>>>,
    tested: Option<Tested>,
}

impl Past {
    async fn of(app: &Installation, name: &str) -> anyhow::Result<Self> {
        Ok(Self {
            credentials: app.catalog.secret(&credentials_name(name)).await?,
            tested: app.catalog.setting(&tested_name(name)).await?,
        })
    }

    async fn bring_back(&self, app: &Installation, name: &str) -> anyhow::Result<()> {
        match &self.credentials {
            Some(credentials) => {
                app.catalog.set_secret(&credentials_name(name), credentials).await?;
            }
            None => app.catalog.forget(&credentials_name(name)).await?,
        }
        match &self.tested {
            Some(tested) => app.catalog.set_setting(&tested_name(name), tested).await?,
            None => app.catalog.forget(&tested_name(name)).await?,
        }
        Ok(())
    }
}

async fn seal(app: &Installation, name: &str, given: AccessKey) -> anyhow::Result<()> {
    let text = |text: &str| text.trim().to_owned();
    let stored = StoredCredentials {
        access_key_id: text(&given.access_key_id),
        secret_access_key: text(&given.secret_access_key),
    };
    if stored.access_key_id.is_empty() || stored.secret_access_key.is_empty() {
        let text = "expected an access key id and its secret; nothing was changed";
        return Err(UsageError(text.to_owned()).into());
    }
    Ok(app.catalog.set_secret(&credentials_name(name), &serde_json::to_vec(&stored)?).await?)
}

/// Returns a table with what is said of it.
fn merged(before: Option<&Table>, wanted: &Wanted) -> anyhow::Result<Table> {
    let mut after = before.cloned().unwrap_or_default();
    for field in &wanted.unset {
        if after.remove(field).is_none() {
            let text = format!("nothing is said of {field:?}, so there is nothing to unset");
            return Err(UsageError(text).into());
        }
    }
    let settings = serde_json::Value::Object(wanted.settings.clone());
    let settings: Table = serde_json::from_value(settings).map_err(|error| {
        UsageError(format!("found settings that the file could not have: {error}"))
    })?;
    after.extend(settings);
    Ok(after)
}

/// Returns a password that can be sealed for a source.
fn checked_password<'a>(given: &'a str, table: &Table) -> Result<&'a str, UsageError> {
    let kind = table.get("kind").and_then(Value::as_str).unwrap_or_default();
    if !WITH_PASSWORD.contains(&kind) {
        let kinds = WITH_PASSWORD.join(", ");
        return Err(UsageError(format!("a source of kind `{kind}` has no password; {kinds} have")));
    }
    if given.is_empty() || given.starts_with("file:") || given.contains(['\0', '\n', '\r']) {
        let text =
            "expected a password in one line that does not begin with `file:`; nothing was changed";
        return Err(UsageError(text.to_owned()));
    }
    Ok(given)
}

/// What is kept lies readable in the catalog, so secrets stand elsewhere.
pub(super) fn refuse_open_secrets(table: &Table) -> Result<(), UsageError> {
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
    let text = "found an open secret; passwords of databases and access keys of storages are sealed by --credentials, and every secret can be kept by reference: `password = \"file:/path\"` or `password = \"${NAME}\"`";
    Err(UsageError(text.to_owned()))
}

fn refuse(what: &str, instead: &str, is_there: bool) -> Result<(), UsageError> {
    if is_there {
        return Err(UsageError(format!("found `{what}`: {instead}")));
    }
    Ok(())
}

fn ensure_free(is_taken: bool, (what, name): (&str, &str)) -> Result<(), UsageError> {
    if is_taken {
        return Err(UsageError(format!("there is a {what} {name:?} already")));
    }
    Ok(())
}

fn ensure_added<T>(
    added: &std::collections::BTreeMap<String, Table>,
    all: &std::collections::BTreeMap<String, T>,
    (what, name): (&str, &str),
) -> Result<(), UsageError> {
    if added.contains_key(name) {
        return Ok(());
    }
    let text = if all.contains_key(name) {
        format!("{what} {name:?} stands in the file; change it there")
    } else {
        format!("no {what} {name:?} was added")
    };
    Err(UsageError(text))
}
