//! How far a statement of a script reaches.

/// Words beyond these bytes are not looked at: bodies and rows.
const LOOKED_AT_BYTES: usize = 8 << 10;

/// What a statement can change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reach {
    /// What is in the database.
    Database,
    /// What was there before: in a new database nothing was.
    Removal,
    /// Owners, rights and settings: what roles and servers know, which need not be here.
    Roles,
    /// The database itself, under the name that it had, which may be that of a living one.
    OwnDatabase,
    /// Other databases, the server, the machine.
    Beyond,
}

/// Says how far a statement reaches.
pub(super) fn reach(statement: &str) -> Reach {
    let words = words(statement);
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let has = |first: &str, second: &str| words.windows(2).any(|two| two == [first, second]);
    let first = |index: usize| words.get(index).copied().unwrap_or_default();
    match (first(0), first(1)) {
        ("CREATE" | "ALTER" | "DROP", "DATABASE") => Reach::OwnDatabase,
        ("ALTER", "ROLE" | "USER") if has("IN", "DATABASE") => Reach::OwnDatabase,
        ("CREATE" | "ALTER" | "DROP", "USER") if first(2) == "MAPPING" => Reach::Database,
        (
            "CREATE" | "ALTER" | "DROP",
            "ROLE" | "USER" | "GROUP" | "TABLESPACE" | "SUBSCRIPTION" | "SYSTEM",
        )
        | ("DROP" | "REASSIGN", "OWNED") => Reach::Beyond,
        ("COMMENT" | "SECURITY" | "GRANT" | "REVOKE", _) if has("ON", "DATABASE") => {
            Reach::OwnDatabase
        }
        ("COMMENT" | "SECURITY" | "GRANT" | "REVOKE", _)
            if ["ROLE", "TABLESPACE", "SUBSCRIPTION", "PARAMETER"]
                .into_iter()
                .any(|what| has("ON", what)) =>
        {
            Reach::Beyond
        }
        // One role becomes a member of another.
        ("GRANT" | "REVOKE", _) if !words.contains(&"ON") => Reach::Beyond,
        ("GRANT" | "REVOKE" | "SET", _) | ("ALTER", "DEFAULT") => Reach::Roles,
        ("COMMENT", "ON") if first(2) == "EXTENSION" => Reach::Roles,
        ("ALTER", _) if has("OWNER", "TO") => Reach::Roles,
        ("DROP", _) => Reach::Removal,
        ("ALTER", _) if words.contains(&"DROP") => Reach::Removal,
        _ => Reach::Database,
    }
}

/// Returns the words of a statement in capital letters, without comments; a name or text in quotation marks is an empty one.
fn words(statement: &str) -> Vec<String> {
    let (mut words, mut word) = (Vec::new(), String::new());
    let mut rest = statement;
    let limit = statement.len().saturating_sub(LOOKED_AT_BYTES);
    while let Some(c) = rest.chars().next().filter(|_| rest.len() > limit) {
        if c.is_alphanumeric() || c == '_' {
            word.push(c.to_ascii_uppercase());
            rest = &rest[c.len_utf8()..];
            continue;
        }
        if !word.is_empty() {
            words.push(std::mem::take(&mut word));
        }
        let behind = |end: &str, from: usize| {
            rest[from..].find(end).map_or("", |at| &rest[from + at + end.len()..])
        };
        rest = match c {
            '"' | '\'' => {
                words.push(String::new());
                behind(&c.to_string(), 1)
            }
            _ if rest.starts_with("--") => behind("\n", 2),
            _ if rest.starts_with("/*") => behind("*/", 2),
            _ => &rest[c.len_utf8()..],
        };
    }
    if !word.is_empty() {
        words.push(word);
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statements_are_known_by_how_far_they_reach() {
        for (statement, expected) in [
            ("CREATE TABLE t (a int)", Reach::Database),
            ("create table \"GRANT\" (a int)", Reach::Database),
            ("CREATE USER MAPPING FOR x SERVER y", Reach::Database),
            ("CREATE FUNCTION f() RETURNS int AS $$ DROP DATABASE shop $$", Reach::Database),
            ("SELECT 'DROP DATABASE shop'", Reach::Database),
            ("DROP DATABASE IF EXISTS shop", Reach::OwnDatabase),
            ("/* x */ drop -- y\n database shop", Reach::OwnDatabase),
            ("ALTER DATABASE shop SET work_mem = 1", Reach::OwnDatabase),
            ("ALTER ROLE x IN DATABASE shop SET work_mem = 1", Reach::OwnDatabase),
            ("COMMENT ON DATABASE shop IS 'x'", Reach::OwnDatabase),
            ("REVOKE CONNECT ON DATABASE shop FROM PUBLIC", Reach::OwnDatabase),
            ("DROP EVENT TRIGGER et", Reach::Removal),
            ("ALTER TABLE ONLY public.t DROP CONSTRAINT c", Reach::Removal),
            ("GRANT SELECT ON TABLE t TO x", Reach::Roles),
            ("GRANT SELECT ON TABLE \"on database\" TO x", Reach::Roles),
            ("ALTER DEFAULT PRIVILEGES FOR ROLE x GRANT SELECT ON TABLES TO y", Reach::Roles),
            ("ALTER FUNCTION f(a int, b text) OWNER TO x", Reach::Roles),
            ("SET transaction_timeout = 0", Reach::Roles),
            ("CREATE ROLE x SUPERUSER", Reach::Beyond),
            ("ALTER USER x PASSWORD 'y'", Reach::Beyond),
            ("DROP TABLESPACE x", Reach::Beyond),
            ("ALTER SYSTEM SET work_mem = 1", Reach::Beyond),
            ("GRANT admins TO x", Reach::Beyond),
            ("REASSIGN OWNED BY x TO y", Reach::Beyond),
            ("CREATE SUBSCRIPTION s CONNECTION '' PUBLICATION p", Reach::Beyond),
        ] {
            assert_eq!(reach(statement), expected, "{statement}");
        }
    }
}
