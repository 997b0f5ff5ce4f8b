//! What a source is asked in a drill, and what is run around its backups and restores.

use std::time::Duration;

use backstay_engine::drill::Check;
use backstay_engine::hook::Hook;
use jiff::SignedDuration;
use toml::Spanned;

use super::Env;
use super::raw::{Faults, RawCheck, RawHook, RawSource};

const DEFAULT_HOOK_TIMEOUT: Duration = Duration::from_mins(5);
/// What a check answers if nothing else is expected: true, as PostgreSQL writes it.
const DEFAULT_ANSWER: &str = "t";

pub(super) fn check(raw: &RawSource, env: Env<'_>, faults: &mut Faults<'_>) -> Vec<Check> {
    let kind = raw.kind.get_ref().as_str();
    if ["files", "command"].contains(&kind)
        && let Some(first) = raw.checks.first()
    {
        let problem =
            format!("a source of kind `{kind}` answers no queries; only a database has checks");
        faults.add("checks", first.span(), problem);
    }
    let checks = raw.checks.iter().filter_map(|check| {
        let RawCheck { name, database, query, expect } = check.get_ref();
        let mut text = |value: &str| {
            let value = Spanned::new(check.span(), value.to_owned());
            faults.text("checks", &value, env)
        };
        let expected = expect.as_deref().unwrap_or(DEFAULT_ANSWER);
        let (name, database) = (name.clone(), database.clone());
        Some(Check { name, database, query: text(query)?, expected: text(expected)? })
    });
    checks.collect()
}

pub(super) fn check_hook(
    name: &str,
    raw: &Spanned<RawHook>,
    faults: &mut Faults<'_>,
) -> Option<Hook> {
    let hook = raw.get_ref();
    if hook.run.first().is_none_or(String::is_empty) {
        faults.add(name, raw.span(), "`run` is empty, expected a program and its arguments: run = [\"systemctl\", \"stop\", \"shop\"]");
        return None;
    }
    let timeout = match &hook.timeout {
        None => Some(DEFAULT_HOOK_TIMEOUT),
        Some(text) => {
            let parsed =
                text.parse::<SignedDuration>().ok().and_then(|d| Duration::try_from(d).ok());
            if parsed.is_none() {
                faults.add(
                    name,
                    raw.span(),
                    format!("found the timeout `{text}`, expected one such as \"5m\" or \"30s\""),
                );
            }
            parsed
        }
    };
    Some(Hook { argv: hook.run.clone(), timeout: timeout? })
}
