//! Chosen tables of a dump: which entries of its table of contents come back.

use std::collections::{BTreeMap, BTreeSet};

use super::archive::Entry;
use super::error::{PostgresError, refused};

/// What a person can choose by name; in this order it is dropped.
const CHOOSABLE: [&str; 5] = ["VIEW", "MATERIALIZED VIEW", "TABLE", "FOREIGN TABLE", "SEQUENCE"];
/// What the program reads before all else, whatever is chosen.
const ALWAYS: [&str; 3] = ["ENCODING", "STDSTRINGS", "SEARCHPATH"];
/// What ties a table to another: worth nothing without both, and no reason to bring the other along.
const TIES: [&str; 4] = ["FK CONSTRAINT", "TABLE ATTACH", "INDEX ATTACH", "PUBLICATION TABLE"];
/// What comes with what it belongs to, and brings along what else it needs.
const BELONGINGS: [&str; 14] = [
    "TABLE DATA",
    "MATERIALIZED VIEW DATA",
    "SEQUENCE",
    "SEQUENCE SET",
    "SEQUENCE OWNED BY",
    "DEFAULT",
    "CONSTRAINT",
    "CHECK CONSTRAINT",
    "INDEX",
    "STATISTICS",
    "TRIGGER",
    "RULE",
    "POLICY",
    "ROW SECURITY",
];
/// The same, and not of tables only.
const MARKS: [&str; 4] = ["COMMENT", "ACL", "SECURITY LABEL", "STATISTICS DATA"];

/// The entries of a dump that come back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Chosen {
    /// Their numbers, one in a line, as `pg_restore --use-list` takes them.
    pub(super) list: String,
    /// The tables with rows among them, by name with schema.
    pub(super) tables: BTreeSet<String>,
    /// The statements that drop what stands in their place.
    pub(super) drops: Vec<String>,
    /// References to tables that do not come back, for a person.
    pub(super) left_out: Vec<String>,
}

/// Whether what the chosen tables need is there already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Surroundings {
    /// They go into an empty database.
    Empty,
    /// They go back to where they were.
    Present,
}

/// Chooses tables: `name`, `schema.name`, or `schema.*`.
pub(super) fn choose(
    entries: &[Entry],
    only: &[String],
    surroundings: Surroundings,
) -> Result<Chosen, PostgresError> {
    let by_id: BTreeMap<i64, &Entry> = entries.iter().map(|entry| (entry.id, entry)).collect();
    let mut named = BTreeSet::new();
    for pattern in only {
        named.extend(find(entries, pattern)?);
    }
    let mut choice = Choice { by_id, surroundings, chosen: named.clone() };
    choice.add_partitions(entries);
    let left_out = choice.grow(entries);
    let is_chosen = |entry: &&Entry| {
        choice.chosen.contains(&entry.id)
            || ALWAYS.contains(&entry.kind.as_str())
            || surroundings == Surroundings::Empty && entry.kind == "EXTENSION"
    };
    let taken: Vec<&Entry> = entries.iter().filter(is_chosen).collect();
    Ok(Chosen { left_out, drops: drops(&taken), ..of_entries(&taken) })
}

fn of_entries(taken: &[&Entry]) -> Chosen {
    let with_rows = taken.iter().filter(|entry| entry.kind == "TABLE DATA");
    Chosen {
        list: taken.iter().map(|entry| format!("{};\n", entry.id)).collect(),
        tables: with_rows.map(|entry| entry.qualified()).collect(),
        drops: Vec::new(),
        left_out: Vec::new(),
    }
}

/// All of a kind at once, so that tables which refer to each other can go.
fn drops(taken: &[&Entry]) -> Vec<String> {
    let of_kind = |kind: &&str| {
        let names = taken.iter().filter(|entry| entry.kind == **kind).map(|e| e.always_quoted());
        let names: Vec<String> = names.collect();
        (!names.is_empty()).then(|| format!("DROP {kind} IF EXISTS {}", names.join(", ")))
    };
    CHOOSABLE.iter().filter_map(of_kind).collect()
}

/// Leaves out entries, and takes all others.
pub(super) fn all_but(entries: &[Entry], is_left_out: impl Fn(&Entry) -> bool) -> Chosen {
    let taken: Vec<&Entry> = entries.iter().filter(|entry| !is_left_out(entry)).collect();
    of_entries(&taken)
}

/// Finds what a person means.
fn find(entries: &[Entry], pattern: &str) -> Result<Vec<i64>, PostgresError> {
    let is_choosable = |entry: &&Entry| CHOOSABLE.contains(&entry.kind.as_str());
    let choosable = || entries.iter().filter(is_choosable);
    if let Some(schema) = pattern.strip_suffix(".*") {
        let found: Vec<i64> = choosable().filter(|e| e.schema == schema).map(|e| e.id).collect();
        return if found.is_empty() { Err(none_like(pattern)) } else { Ok(found) };
    }
    let exact = choosable().filter(|entry| {
        entry.qualified() == pattern || format!("{}.{}", entry.schema, entry.name) == pattern
    });
    let mut found: Vec<&Entry> = exact.collect();
    if found.is_empty() {
        found = choosable().filter(|entry| entry.name == pattern).collect();
    }
    match found.as_slice() {
        [] => Err(none_like(pattern)),
        [one] => Ok(vec![one.id]),
        several => {
            let names: Vec<String> = several.iter().map(|entry| entry.qualified()).collect();
            Err(refused(format!(
                "{pattern} may be any of {}; write it with its schema",
                names.join(", ")
            )))
        }
    }
}

fn none_like(pattern: &str) -> PostgresError {
    refused(format!(
        "the backup has no table {pattern}; expected a table, schema.table or schema.*, as `backstay show` lists them"
    ))
}

struct Choice<'a> {
    by_id: BTreeMap<i64, &'a Entry>,
    surroundings: Surroundings,
    chosen: BTreeSet<i64>,
}

impl Choice<'_> {
    /// Adds the partitions of chosen tables, and theirs.
    fn add_partitions(&mut self, entries: &[Entry]) {
        let attached: Vec<&Entry> =
            entries.iter().filter(|entry| entry.kind == "TABLE ATTACH").collect();
        let mut grew = true;
        while grew {
            grew = false;
            for attach in &attached {
                let partition = attach.needs.iter().find(|id| {
                    self.by_id.get(id).is_some_and(|table| {
                        table.name == attach.name && table.schema == attach.schema
                    })
                });
                let is_wanted = |id: &i64| Some(id) != partition && self.chosen.contains(id);
                if let Some(partition) = partition
                    && attach.needs.iter().any(is_wanted)
                {
                    grew |= self.chosen.insert(*partition);
                }
            }
        }
    }

    /// Adds what the chosen need and what belongs to them, until nothing is missing. Returns the ties that are left out.
    fn grow(&mut self, entries: &[Entry]) -> Vec<String> {
        let mut known = 0;
        while known < self.chosen.len() {
            known = self.chosen.len();
            if self.surroundings == Surroundings::Empty {
                self.add_needed();
            }
            let belonging =
                entries.iter().filter(|entry| self.belongs(entry)).map(|entry| entry.id);
            let belonging: Vec<i64> = belonging.collect();
            self.chosen.extend(belonging);
        }
        let is_left_out = |entry: &&Entry| {
            entry.kind == "FK CONSTRAINT"
                && !self.chosen.contains(&entry.id)
                && self.owner(entry).is_some_and(|owner| self.chosen.contains(&owner))
        };
        entries.iter().filter(is_left_out).map(Entry::qualified).collect()
    }

    fn add_needed(&mut self) {
        let mut unsettled: Vec<i64> = self.chosen.iter().copied().collect();
        while let Some(id) = unsettled.pop() {
            let Some(entry) = self.by_id.get(&id) else { continue };
            for needed in entry.needs.iter().filter(|needed| self.by_id.contains_key(needed)) {
                if self.chosen.insert(*needed) {
                    unsettled.push(*needed);
                }
            }
        }
    }

    fn belongs(&self, entry: &Entry) -> bool {
        let kind = entry.kind.as_str();
        let is_tie = TIES.contains(&kind);
        let is_mark = MARKS.contains(&kind);
        if !(is_tie || is_mark || BELONGINGS.contains(&kind)) {
            return false;
        }
        let is_chosen = |id: &i64| self.chosen.contains(id);
        if is_tie && self.surroundings == Surroundings::Empty {
            let is_there = |id: &i64| is_chosen(id) || !self.by_id.contains_key(id);
            return entry.needs.iter().any(is_chosen) && entry.needs.iter().all(is_there);
        }
        if let Some(owner) = self.owner(entry) {
            return is_chosen(&owner);
        }
        let needed = || entry.needs.iter().filter_map(|id| self.by_id.get(id).copied());
        let all_tables = needed().filter(|one| is_relation(one)).all(|one| is_chosen(&one.id));
        // That its schema comes back makes nothing come back but what is said of the schema itself.
        let any = needed().any(|one| is_chosen(&one.id) && (is_mark || one.kind != "SCHEMA"));
        all_tables && any
    }

    /// Returns the table that an entry bears in its name: `orders orders_pkey`.
    fn owner(&self, entry: &Entry) -> Option<i64> {
        let needed = entry.needs.iter().filter_map(|id| self.by_id.get(id));
        let mut owners = needed.filter(|table| {
            let rest = entry.name.strip_prefix(&table.name);
            is_relation(table)
                && table.schema == entry.schema
                && rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(' '))
        });
        owners.next().map(|table| table.id)
    }
}

fn is_relation(entry: &Entry) -> bool {
    CHOOSABLE.contains(&entry.kind.as_str()) && entry.kind != "SEQUENCE"
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A table of contents as `pg_dump` writes it: number, kind, schema, name, what it needs.
    fn entries() -> Vec<Entry> {
        let rows: [(i64, &str, &str, &str, &[i64]); 20] = [
            (1, "ENCODING", "", "ENCODING", &[]),
            (6, "SCHEMA", "", "s", &[]),
            (7, "EXTENSION", "", "hstore", &[]),
            (10, "TYPE", "s", "mood", &[6]),
            (11, "FUNCTION", "s", "f()", &[6]),
            (20, "TABLE", "s", "child", &[6]),
            (21, "TABLE", "s", "parent", &[6, 10]),
            (22, "TABLE", "s", "parted", &[6]),
            (23, "TABLE", "s", "part1", &[22, 6]),
            (24, "TABLE", "other", "child", &[]),
            (30, "SEQUENCE", "s", "parent_id_seq", &[21, 6]),
            (31, "SEQUENCE", "s", "free", &[6]),
            (32, "DEFAULT", "s", "child p", &[30, 20]),
            (40, "TABLE ATTACH", "s", "part1", &[23, 22]),
            (50, "TABLE DATA", "s", "child", &[20]),
            (51, "TABLE DATA", "s", "part1", &[23]),
            (60, "CONSTRAINT", "s", "parent parent_pkey", &[21]),
            (61, "FK CONSTRAINT", "s", "child child_fkey", &[60, 20, 21]),
            (62, "TRIGGER", "s", "child stamp", &[11, 20]),
            (63, "COMMENT", "s", "TABLE child", &[20]),
        ];
        let entry = |(id, kind, schema, name, needs): &(i64, &str, &str, &str, &[i64])| Entry {
            id: *id,
            has_data: *kind == "TABLE DATA",
            kind: (*kind).to_owned(),
            schema: (*schema).to_owned(),
            name: (*name).to_owned(),
            needs: needs.to_vec(),
            ..Entry::default()
        };
        rows.iter().map(entry).collect()
    }

    fn chosen(only: &[&str], surroundings: Surroundings) -> Result<Chosen, PostgresError> {
        let only: Vec<String> = only.iter().map(|one| (*one).to_owned()).collect();
        choose(&entries(), &only, surroundings)
    }

    fn numbers(chosen: &Chosen) -> Vec<i64> {
        chosen.list.lines().map(|line| line.trim_end_matches(';').parse().unwrap()).collect()
    }

    #[test]
    fn table_in_an_empty_database_brings_what_it_needs_and_leaves_out_references_to_others() {
        let chosen = chosen(&["s.parent"], Surroundings::Empty).unwrap();
        assert_eq!(numbers(&chosen), [1, 6, 7, 10, 21, 30, 60]);
        let child = super::tests::chosen(&["s.child"], Surroundings::Empty).unwrap();
        // Its default needs a sequence, which belongs to its parent, which comes along; so the reference does, too.
        assert_eq!(numbers(&child), [1, 6, 7, 10, 11, 20, 21, 30, 32, 50, 60, 61, 62, 63]);
        assert_eq!(child.tables.iter().collect::<Vec<_>>(), ["s.child"]);
        assert!(child.left_out.is_empty());
    }

    #[test]
    fn reference_to_a_table_that_does_not_come_back_is_left_out_and_named() {
        let mut entries = entries();
        entries.retain(|entry| entry.id != 32);
        let chosen = choose(&entries, &["s.child".to_owned()], Surroundings::Empty).unwrap();
        assert_eq!(chosen.left_out, ["s.\"child child_fkey\""]);
        assert!(!numbers(&chosen).contains(&61));
    }

    #[test]
    fn table_that_goes_back_to_where_it_was_brings_only_its_own() {
        let chosen = chosen(&["s.child"], Surroundings::Present).unwrap();
        assert_eq!(numbers(&chosen), [1, 20, 32, 50, 61, 62, 63]);
        assert_eq!(chosen.drops, ["DROP TABLE IF EXISTS \"s\".\"child\""]);
    }

    #[test]
    fn partitions_come_with_their_table_and_schemas_with_all() {
        let parted = chosen(&["parted"], Surroundings::Present).unwrap();
        assert_eq!(numbers(&parted), [1, 22, 23, 40, 51]);
        assert_eq!(parted.tables.iter().collect::<Vec<_>>(), ["s.part1"]);
        let schema = chosen(&["s.*"], Surroundings::Present).unwrap();
        assert!(numbers(&schema).contains(&31) && !numbers(&schema).contains(&24));
    }

    #[test]
    fn unknown_and_ambiguous_names_are_refused() {
        for (name, expected) in
            [("child", "may be any of"), ("nothing", "no table nothing"), ("x.*", "no table x.*")]
        {
            let error = chosen(&[name], Surroundings::Empty).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
        assert!(chosen(&["other.child"], Surroundings::Present).is_ok());
    }
}
