//! `[sources.NAME]` of kind `command`: programs that write what they call their data.

use std::time::Duration;

use backstay_engine::source::command::{Argv, Output};
use jiff::SignedDuration;
use secrecy::SecretString;
use toml::Spanned;

use super::Env;
use super::raw::{Faults, RawOutput, RawSource};
use super::server::text_or_file;

const DEFAULT_TIMEOUT: Duration = Duration::from_hours(24);
/// Nothing at all is no backup of anything.
const DEFAULT_MIN_BYTES: u64 = 1;

/// Programs, checked.
#[derive(Debug, Clone, Default)]
pub(crate) struct CommandConfig {
    pub(crate) outputs: Vec<Output>,
    pub(crate) variables: Vec<(String, SecretString)>,
    /// What a vault knows of it, where no programs are configured.
    known_as: Option<String>,
}

impl CommandConfig {
    /// Makes a configuration of what [`CommandConfig::location`] returned: without programs.
    pub(crate) fn of_location(location: &str) -> Self {
        Self { known_as: Some(location.to_owned()), ..Self::default() }
    }

    /// Returns which programs write it.
    pub(crate) fn location(&self) -> String {
        let dumps = self.outputs.iter().map(|output| output.dump.program.as_str());
        self.known_as.clone().unwrap_or_else(|| dumps.collect::<Vec<_>>().join(", "))
    }
}

/// Refuses what would be ignored: no programs are run.
pub(super) fn refuse_fields(raw: &RawSource, faults: &mut Faults<'_>) {
    const PROBLEM: &str = "only a source of kind `command` has it";
    if let Some(first) = raw.outputs.first() {
        faults.add("outputs", first.span(), PROBLEM);
    }
    if let Some(first) = raw.variables.values().next() {
        faults.add("variables", first.span(), PROBLEM);
    }
}

pub(super) fn check(
    raw: &RawSource,
    env: Env<'_>,
    faults: &mut Faults<'_>,
) -> Option<CommandConfig> {
    if let Some(path) = &raw.path {
        faults.add("path", path.span(), "a source of kind `command` has `outputs` instead");
    }
    if raw.outputs.is_empty() {
        let problem = "are missing: outputs = [{ name = \"events.archive\", dump = [\"mongodump\", \"--archive\"], restore = [\"mongorestore\", \"--archive\", \"--drop\"] }]";
        faults.add("outputs", raw.kind.span(), problem);
    }
    let mut outputs: Vec<Output> = Vec::new();
    for raw_output in &raw.outputs {
        let Some(output) = check_output(raw_output, env, faults) else { continue };
        if outputs.iter().any(|other| other.name == output.name) {
            let problem = format!("has the name `{}` twice", output.name);
            faults.add("outputs", raw_output.span(), problem);
        }
        outputs.push(output);
    }
    let mut variables = Vec::new();
    for (name, value) in &raw.variables {
        if name.is_empty() || name.contains(['=', '\0']) {
            let problem =
                format!("found the name `{}`, expected one of a variable", name.escape_debug());
            faults.add("variables", value.span(), problem);
        }
        let value = text_or_file("variables", value, env, faults)?;
        variables.push((name.clone(), SecretString::from(value)));
    }
    Some(CommandConfig { outputs, variables, known_as: None })
}

fn check_output(raw: &Spanned<RawOutput>, env: Env<'_>, faults: &mut Faults<'_>) -> Option<Output> {
    let output = raw.get_ref();
    let name = output.name.parse();
    let name = name.map_err(|error| {
        faults.add("outputs", raw.span(), format!("the name `{}`: {error}", output.name));
    });
    let mut argv = |field: &str, words: &[String]| -> Option<Option<Argv>> {
        let mut expanded = Vec::new();
        for word in words {
            let word = Spanned::new(raw.span(), word.clone());
            expanded.push(faults.text("outputs", &word, env)?);
        }
        let mut words = expanded.into_iter();
        let Some(program) = words.next() else { return Some(None) };
        if program.is_empty() {
            faults.add(
                "outputs",
                raw.span(),
                format!("`{field}` begins with an empty text, expected a program"),
            );
            return None;
        }
        Some(Some(Argv { program, arguments: words.collect() }))
    };
    let dump = argv("dump", &output.dump)?;
    let (restore, check) = (argv("restore", &output.restore)?, argv("check", &output.check)?);
    if dump.is_none() {
        faults.add("outputs", raw.span(), "`dump` is empty, expected a program and its arguments");
    }
    let timeout = match &output.timeout {
        None => Some(DEFAULT_TIMEOUT),
        Some(text) => {
            let parsed =
                text.parse::<SignedDuration>().ok().and_then(|time| Duration::try_from(time).ok());
            if parsed.is_none() {
                let problem =
                    format!("found the timeout `{text}`, expected one such as \"2h\" or \"30m\"");
                faults.add("outputs", raw.span(), problem);
            }
            parsed
        }
    };
    Some(Output {
        name: name.ok()?,
        dump: dump?,
        restore,
        check,
        min_bytes: output.min_bytes.unwrap_or(DEFAULT_MIN_BYTES),
        timeout: timeout?,
    })
}
