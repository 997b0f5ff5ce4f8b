//! `BACKSTAY_SOURCES__SHOP__PATH=/srv`: settings of the file that the environment replaces.

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::{Environment, Fault};

const PREFIX: &str = "BACKSTAY_";
/// What stands between the names of tables and fields; a name's own characters that a variable cannot hold become `_`.
const SEPARATOR: &str = "__";
/// Tables of named things.
const TABLES: [&str; 3] = ["storages", "sources", "archives"];
/// Fields that are no text; lists and tables show it by themselves.
const NO_TEXT: [&str; 6] =
    ["use_ssl", "one_file_system", "compression_level", "port", "retries", "delete"];

/// Puts the values of all variables that name a setting into the table.
pub(super) fn apply<'a>(table: &mut DeTable<'a>, env: &'a Environment) -> Result<(), Vec<Fault>> {
    let mut faults = Vec::new();
    for (variable, value) in env {
        let Some(path) = variable.strip_prefix(PREFIX) else { continue };
        let done = match path.split(SEPARATOR).collect::<Vec<_>>().as_slice() {
            [setting @ ("ORGANISATION" | "CATALOG")] => {
                set(table, setting.to_lowercase(), value);
                Ok(())
            }
            [of, name, field] if TABLES.contains(&of.to_lowercase().as_str()) => {
                set_in(table, (&of.to_lowercase(), name, field), value)
            }
            // One of the program's own, such as BACKSTAY_HOME.
            _ => Ok(()),
        };
        if let Err(problem) = done {
            faults.push(Fault { line: 0, field: variable.clone(), problem });
        }
    }
    if faults.is_empty() { Ok(()) } else { Err(faults) }
}

fn set_in<'a>(
    table: &mut DeTable<'a>,
    (of, name, field): (&str, &str, &str),
    value: &'a str,
) -> Result<(), String> {
    let things = table.get_mut(of).map(Spanned::get_mut);
    let Some(DeValue::Table(things)) = things else {
        return Err(format!("the configuration has no {of} to set it in"));
    };
    let found = things.iter_mut().find(|(known, _)| as_variable(known.get_ref()) == name);
    match found.map(|(_, thing)| thing.get_mut()) {
        Some(DeValue::Table(thing)) => {
            set(thing, field.to_lowercase(), value);
            Ok(())
        }
        _ => Err(format!("none of the {of} in the configuration is written {name} in a variable")),
    }
}

fn set<'a>(table: &mut DeTable<'a>, field: String, text: &'a str) {
    let value = value(&field, text);
    drop(table.insert(Spanned::new(0..0, field.into()), Spanned::new(0..0, value)));
}

fn value<'a>(field: &str, text: &'a str) -> DeValue<'a> {
    if (text.starts_with(['[', '{']) || NO_TEXT.contains(&field))
        && let Ok(parsed) = DeValue::parse(text)
    {
        return parsed.into_inner();
    }
    DeValue::String(text.into())
}

fn as_variable(name: &str) -> String {
    let legal = |c: char| if c.is_ascii_alphanumeric() { c.to_ascii_uppercase() } else { '_' };
    name.chars().map(legal).collect()
}
