//! The text as it stands, with the places of its values.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::ops::Range;
use std::rc::Rc;

use backstay_format::retention::Rules;
use serde::Deserialize;
use toml::Spanned;

use super::{Env, Fault};

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawConfig {
    pub(super) organisation: Option<Spanned<String>>,
    #[serde(default)]
    pub(super) storages: BTreeMap<String, RawStorage>,
    #[serde(default)]
    pub(super) sources: BTreeMap<String, RawSource>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawStorage {
    pub(super) provider: Spanned<String>,
    pub(super) bucket: Option<Spanned<String>>,
    pub(super) prefix: Option<Spanned<String>>,
    pub(super) endpoint: Option<Spanned<String>>,
    pub(super) use_ssl: Option<bool>,
    pub(super) region: Option<Spanned<String>>,
    pub(super) addressing: Option<Spanned<String>>,
    pub(super) access_key_id: Option<Spanned<String>>,
    pub(super) secret_access_key: Option<Spanned<String>>,
    pub(super) session_token: Option<Spanned<String>>,
    pub(super) credentials_expire: Option<Spanned<String>>,
    pub(super) profile: Option<Spanned<String>>,
    pub(super) ca_file: Option<Spanned<String>>,
    pub(super) path: Option<Spanned<String>>,
    pub(super) public_base_url: Option<Spanned<String>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawSource {
    pub(super) kind: Spanned<String>,
    pub(super) path: Option<Spanned<String>>,
    pub(super) storage: Spanned<String>,
    #[serde(default)]
    pub(super) exclude: Vec<Spanned<String>>,
    #[serde(default)]
    pub(super) transient: Vec<Spanned<String>>,
    #[serde(default)]
    pub(super) one_file_system: bool,
    pub(super) app: Option<Spanned<String>>,
    pub(super) environment: Option<Spanned<String>>,
    pub(super) keep: Option<Rules>,
    pub(super) encryption: Option<Spanned<String>>,
    pub(super) compression_level: Option<Spanned<i32>>,
    pub(super) undo_for: Option<Spanned<String>>,
    pub(super) before_backup: Option<Spanned<RawHook>>,
    pub(super) after_backup: Option<Spanned<RawHook>>,
    pub(super) before_restore: Option<Spanned<RawHook>>,
    pub(super) after_restore: Option<Spanned<RawHook>>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawHook {
    pub(super) run: Vec<String>,
    pub(super) timeout: Option<String>,
}

/// Reads the text; a fault here ends it, since nothing behind it can be trusted.
pub(super) fn parse(text: &str) -> Result<RawConfig, Vec<Fault>> {
    toml::from_str(text).map_err(|error| {
        let line = error.span().map_or(0, |span| line_of(text, span.start));
        let message = error.message().replace('\n', " ");
        let problem = match nearest(&message) {
            Some(near) => format!("{message}; did you mean `{near}`?"),
            None => message,
        };
        vec![Fault { line, field: String::new(), problem }]
    })
}

/// Finds the expected word that is nearest to the unknown one, in a message that quotes all of them.
fn nearest(message: &str) -> Option<String> {
    let mut quoted = message.split('`').skip(1).step_by(2);
    let unknown = quoted.next().filter(|_| message.starts_with("unknown field"))?;
    let near = quoted.min_by_key(|known| strsim::damerau_levenshtein(unknown, known))?;
    (strsim::damerau_levenshtein(unknown, near) <= 3).then(|| near.to_owned())
}

fn line_of(text: &str, offset: usize) -> usize {
    text.as_bytes().iter().take(offset).filter(|byte| **byte == b'\n').count() + 1
}

/// Gathers what is wrong, so that all of it can be mended at once.
pub(super) struct Faults<'a> {
    text: &'a str,
    field: String,
    list: Rc<RefCell<Vec<Fault>>>,
}

impl<'a> Faults<'a> {
    pub(super) fn new(text: &'a str) -> Self {
        Self { text, field: String::new(), list: Rc::default() }
    }

    /// Returns a gatherer for the fields of a table; what it gathers is here too.
    pub(super) fn below(&self, field: String) -> Self {
        Self { text: self.text, field, list: self.list.clone() }
    }

    pub(super) fn add(&mut self, name: &str, span: Range<usize>, problem: impl Into<String>) {
        let field =
            if self.field.is_empty() { name.to_owned() } else { format!("{}.{name}", self.field) };
        self.list.borrow_mut().push(Fault {
            line: line_of(self.text, span.start),
            field,
            problem: problem.into(),
        });
    }

    pub(super) fn is_empty(&self) -> bool {
        self.list.borrow().is_empty()
    }

    pub(super) fn into_list(self) -> Vec<Fault> {
        self.list.take()
    }

    /// Returns a text with its references to the environment filled in.
    pub(super) fn text(
        &mut self,
        name: &str,
        value: &Spanned<String>,
        env: Env<'_>,
    ) -> Option<String> {
        match expand(value.get_ref(), env) {
            Ok(text) => Some(text),
            Err(problem) => {
                self.add(name, value.span(), problem);
                None
            }
        }
    }
}

/// Fills in `${NAME}`; `$$` stands for `$`. An unset name is an error, never an empty text.
fn expand(text: &str, env: Env<'_>) -> Result<String, String> {
    let mut out = String::new();
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        out.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        if let Some(behind) = rest.strip_prefix('$') {
            out.push('$');
            rest = behind;
        } else if let Some((name, behind)) =
            rest.strip_prefix('{').and_then(|rest| rest.split_once('}'))
        {
            let value = env(name).filter(|value| !value.is_empty());
            out.push_str(
                &value.ok_or_else(|| format!("the environment variable {name} is not set"))?,
            );
            rest = behind;
        } else {
            return Err(
                "a `$` that begins no `${NAME}`; write `$$` for the character itself".to_owned()
            );
        }
    }
    out.push_str(rest);
    Ok(out)
}
