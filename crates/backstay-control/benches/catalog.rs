//! How long the catalog takes for each list, each lookup and the scheduler's pass, as it grows: in SQLite and in PostgreSQL.
//! Arguments: how many backups, smallest first.

#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::disallowed_methods,
    reason = "a program for a terminal, which measures time and stops where it cannot go on"
)]

#[path = "../tests/it/catalogs.rs"]
#[expect(dead_code, reason = "some of it is for tests alone")]
mod catalogs;

use std::collections::BTreeMap;
use std::sync::LazyLock;
use std::time::Instant;

use backstay_control::{Catalog, Holder, OfSource, Policy, Role, Since, Token, Whose};
use backstay_format::{
    BackupId, Encryption, IndexEntry, IndexPart, PartName, Slug, Status, Trigger,
};
use jiff::{SignedDuration, Timestamp};

use crate::catalogs::Place;

/// Backups, and jobs, of each source.
const EACH: u64 = 100;
/// Organisations; the sources are theirs in turn.
const ORGANISATIONS: u64 = 200;
/// Members of each, whatever the size.
const MEMBERS: u64 = 50;
/// Lookups of a kind, whose 95th percentile is told.
const LOOKUPS: u64 = 100;
const PASSES: u64 = 5;
/// When the newest backups were made.
static START: LazyLock<Timestamp> = LazyLock::new(Timestamp::now);
/// Eight digits, from which ids of backups are made: of these some must be letters.
const FIRST_TAIL: u64 = 10_000_000;
const VAULT: &str = "v00000000000000000000000000000000";
/// What may not take longer, in milliseconds.
const GOAL_MS: f64 = 50.0;
const PASS_GOAL_MS: f64 = 1000.0;

#[tokio::main]
async fn main() {
    // Whatever runs benchmarks adds options of its own.
    let sizes: Vec<u64> = std::env::args().filter_map(|word| word.parse().ok()).collect();
    assert!(!sizes.is_empty(), "how many backups?");
    for place in Place::both() {
        let mut rows: BTreeMap<&str, Vec<f64>> = BTreeMap::new();
        let mut filled = 0;
        let tokens = add_members(&place.open().await.unwrap()).await;
        for size in &sizes {
            let catalog = place.open().await.unwrap();
            fill(&place, filled, size / EACH);
            filled = size / EACH;
            let mut took = measure(&catalog, filled).await;
            took.extend(measure_backups(&catalog, filled).await);
            took.extend(measure_organisations(&catalog, filled, &tokens).await);
            for (what, ms) in took {
                rows.entry(what).or_default().push(ms);
            }
        }
        show(place.name(), &sizes, &rows);
    }
}

/// Makes the members of all organisations. Returns the tokens of the first of each.
async fn add_members(catalog: &Catalog) -> Vec<Token> {
    let now = Timestamp::now();
    let mut tokens = Vec::new();
    for organisation in 0..ORGANISATIONS {
        let organisation: Slug = format!("o{organisation}").parse().unwrap();
        for member in 0..MEMBERS {
            let name: Slug = format!("m{member}").parse().unwrap();
            let named = (&organisation, &name);
            let added = catalog.add_member(named, Role::Operator, None, now).await.unwrap();
            if member == 0 {
                tokens.extend(added);
            }
        }
    }
    tokens
}

/// Adds sources with their backups, jobs and as many changes, past the program: through it each would wait for the disk.
fn fill(place: &Place, from: u64, to: u64) {
    let now = Timestamp::now().as_microsecond();
    // So that none is old enough to be forgotten.
    let day = SignedDuration::from_hours(20).as_micros();
    let numbers = |from: u64, to: u64| {
        format!(
            "WITH RECURSIVE n(i) AS (SELECT {from} UNION ALL SELECT i + 1 FROM n WHERE i + 1 < {to})"
        )
    };
    place.sql(&format!(
        "{} INSERT INTO slots (source, first_seen, last_slot) SELECT 's' || i, {now} - {day} * {EACH}, {now} - {day} / 2 FROM n;
         {} INSERT INTO jobs (id, source, kind, state, queued_at, started_at, finished_at, holder, slot, backup, log, organisation) \
            SELECT CAST(1000000000000000000 + i AS TEXT), 's' || (i / {EACH}), CASE WHEN i % {EACH} = 7 THEN 'restore' ELSE 'backup' END, \
                   CASE WHEN i % 50 = 9 THEN 'failed' ELSE 'succeeded' END, {now} - {day} * (i % {EACH}) - i, {now} - {day} * (i % {EACH}), \
                   {now} - {day} * (i % {EACH}) + 1000000, '{{}}', {now} - {day} * (i % {EACH}), '20260101T000000Z-22222222', \
                   'reading the source', 'o' || ((i / {EACH}) % {ORGANISATIONS}) FROM n;
         {} INSERT INTO audit (id, at, organisation, actor, action, subject, outcome) \
            SELECT CAST(i AS TEXT), {now} - i, 'o' || ((i / {EACH}) % {ORGANISATIONS}), 'm0', 'delete', '20260101T000000Z-22222222', 'done' FROM n;
         {}
         ANALYZE;",
        numbers(from, to),
        numbers(from * EACH, to * EACH),
        numbers(from * EACH, to * EACH),
        (0..EACH).map(|number| backups(&numbers(from, to), number)).collect::<String>(),
    ));
}

/// Adds that backup to each source, under an id of its own.
fn backups(numbers: &str, number: u64) -> String {
    let entry = entry(number);
    let (time, at) = (beginning(&entry), entry.started_at.as_microsecond());
    let text = serde_json::to_string(&entry).unwrap();
    let id =
        format!("'{time}' || REPLACE(REPLACE(CAST({FIRST_TAIL} + i AS TEXT), '0', 'b'), '1', 'c')");
    format!(
        "{numbers} INSERT INTO backups (storage, source, backup, started_at, entry) \
         SELECT '{VAULT}', 's' || i, {id}, {at} - i, REPLACE('{text}', '{}', {id}) FROM n;",
        entry.id
    )
}

/// The time in an id, and what parts it from the rest.
fn beginning(entry: &IndexEntry) -> String {
    entry.id.as_str()[..17].to_owned()
}

/// Returns the id of the newest backup of a source.
fn newest_of(time: &str, source: &str) -> BackupId {
    let tail = (FIRST_TAIL + number_of(source)).to_string().replace('0', "b").replace('1', "c");
    format!("{time}{tail}").parse().unwrap()
}

fn entry(number: u64) -> IndexEntry {
    let at = *START - SignedDuration::from_hours(24 * number.cast_signed());
    let (name, note) = ("database.dump".parse::<PartName>().unwrap(), "before the move".to_owned());
    IndexEntry {
        id: BackupId::new(at, number.to_be_bytes()),
        source: "shop-db".parse::<Slug>().unwrap(),
        source_kind: "postgres".to_owned(),
        status: Status::Complete,
        trigger: Trigger::Scheduled,
        started_at: at,
        finished_at: at,
        host: "web1".to_owned(),
        plain_bytes: 1 << 30,
        stored_bytes: 1 << 28,
        encryption: Encryption::Sealed { key: "k00112233445566778899".parse().unwrap() },
        parts: vec![IndexPart { name, plain_bytes: 1 << 30, stored_bytes: 1 << 28 }],
        note: Some(note),
        warnings: Vec::new(),
        item_errors: Vec::new(),
        item_error_count: 0,
        hold: None,
        is_undated: false,
    }
}

async fn measure_backups(catalog: &Catalog, sources: u64) -> Vec<(&'static str, f64)> {
    let mut of = Lookups { sources, seed: 5 };
    let time = beginning(&entry(0));
    vec![
        (
            "a backup by its id",
            of.p95(async |source| {
                let seen = catalog.seen_of(&newest_of(&time, &source)).await.unwrap();
                assert_eq!(seen, [(VAULT.to_owned(), source)]);
            })
            .await,
        ),
        (
            "newest backups of a storage",
            of.p95(async |_| {
                assert_eq!(catalog.newest_backups(VAULT, 100).await.unwrap().len(), 100);
            })
            .await,
        ),
        (
            "the names of all sources",
            of.p95(async |_| {
                let listed = catalog.listed_sources(VAULT).await.unwrap();
                assert_eq!(listed.len() as u64, sources);
            })
            .await,
        ),
        (
            "listing a source again",
            of.p95(async |source| {
                let known = catalog.known_backups(VAULT, &source).await.unwrap();
                catalog.keep_listing((VAULT, &source), &known).await.unwrap();
            })
            .await,
        ),
        (
            "backups of a source",
            of.p95(async |source| {
                assert_eq!(catalog.known_backups(VAULT, &source).await.unwrap().len() as u64, EACH);
            })
            .await,
        ),
    ]
}

async fn measure(catalog: &Catalog, sources: u64) -> Vec<(&'static str, f64)> {
    let now = Timestamp::now();
    let mut of = Lookups { sources, seed: 7 };
    let holder = Holder::this_process("bench");
    let policy = Policy {
        schedule: "0 2 * * *".parse().unwrap(),
        zone: jiff::tz::TimeZone::UTC,
        jitter: SignedDuration::from_mins(10),
        blackouts: Vec::new(),
    };
    vec![
        (
            "orphans of a source",
            of.p95(async |source| drop(catalog.orphans(VAULT, &source).await.unwrap())).await,
        ),
        (
            "newest jobs of a source",
            of.p95(async |source| {
                assert_eq!(catalog.jobs(Whose::Source(&source), 20).await.unwrap().len(), 20);
            })
            .await,
        ),
        (
            "newest jobs of all",
            of.p95(async |_| assert_eq!(catalog.jobs(Whose::All, 20).await.unwrap().len(), 20))
                .await,
        ),
        (
            "a job by its id",
            of.p95(async |source| {
                let id = 1_000_000_000_000_000_000 + number_of(&source) * EACH;
                assert_eq!(catalog.jobs_by_id(&id.to_string(), None).await.unwrap().len(), 1);
            })
            .await,
        ),
        (
            "last run of a source",
            of.p95(async |source| {
                assert!(
                    catalog
                        .last_run(of_source(&organisation_of(&source), &source))
                        .await
                        .unwrap()
                        .is_some()
                );
            })
            .await,
        ),
        (
            "last restore of a source",
            of.p95(async |source| {
                drop(
                    catalog
                        .last_restore(of_source(&organisation_of(&source), &source))
                        .await
                        .unwrap(),
                );
            })
            .await,
        ),
        (
            "sources at work",
            of.p95(async |_| drop(catalog.sources_at_work(now).await.unwrap())).await,
        ),
        (
            "the scheduler's pass",
            of.worst(PASSES, async |_| {
                assert!(
                    catalog
                        .end_lost_jobs(None, &holder, now, || "1".to_owned())
                        .await
                        .unwrap()
                        .is_empty()
                );
                let slots = catalog.slots().await.unwrap();
                assert_eq!(slots.len() as u64, sources);
                let due = slots.iter().filter(|(name, seen)| {
                    let since: Since = seen.since();
                    policy.due(name, since, now).is_some()
                });
                std::hint::black_box(due.count());
                assert!(catalog.waiting_jobs(now).await.unwrap().is_empty());
            })
            .await,
        ),
        (
            "forgetting old jobs",
            of.worst(PASSES, async |_| catalog.tidy_jobs(now).await.unwrap()).await,
        ),
    ]
}

async fn measure_organisations(
    catalog: &Catalog,
    sources: u64,
    tokens: &[Token],
) -> Vec<(&'static str, f64)> {
    let now = Timestamp::now();
    let mut of = Lookups { sources, seed: 11 };
    vec![
        (
            "newest jobs of an organisation",
            of.p95(async |source| {
                let jobs = catalog.jobs(Whose::Organisation(&organisation_of(&source)), 20).await;
                assert_eq!(jobs.unwrap().len(), 20);
            })
            .await,
        ),
        (
            "the audit of an organisation",
            of.p95(async |source| {
                let organisation = organisation_of(&source).parse().unwrap();
                let entries = catalog.audit_entries(Some(&organisation), 20).await.unwrap();
                assert_eq!(entries.len(), 20);
            })
            .await,
        ),
        (
            "the audit of all",
            of.p95(async |_| {
                assert_eq!(catalog.audit_entries(None, 20).await.unwrap().len(), 20);
            })
            .await,
        ),
        (
            "a member by its token",
            of.p95(async |source| {
                let token = &tokens[number_of(&source) as usize % tokens.len()];
                assert!(catalog.member_of(token, now).await.unwrap().is_some());
            })
            .await,
        ),
        (
            "members of an organisation",
            of.p95(async |source| {
                let organisation = organisation_of(&source).parse().unwrap();
                let members = catalog.members(Some(&organisation), None).await.unwrap();
                assert_eq!(members.len() as u64, MEMBERS);
            })
            .await,
        ),
        (
            "a page of all members",
            of.p95(async |_| {
                assert_eq!(catalog.members(None, None).await.unwrap().len(), 1000);
            })
            .await,
        ),
    ]
}

fn of_source<'a>(organisation: &'a str, source: &'a str) -> OfSource<'a> {
    OfSource { organisation, source }
}

fn number_of(source: &str) -> u64 {
    source[1..].parse().unwrap()
}

fn organisation_of(source: &str) -> String {
    format!("o{}", number_of(source) % ORGANISATIONS)
}

/// Lookups of sources that are not told beforehand.
struct Lookups {
    sources: u64,
    seed: u64,
}

impl Lookups {
    /// Returns how many milliseconds 95 of 100 need at most.
    async fn p95(&mut self, lookup: impl AsyncFn(String)) -> f64 {
        let mut took = self.timed(LOOKUPS, lookup).await;
        took.sort_by(f64::total_cmp);
        took[(LOOKUPS * 95 / 100) as usize - 1]
    }

    async fn worst(&mut self, times: u64, what: impl AsyncFn(String)) -> f64 {
        self.timed(times, what).await.into_iter().fold(0.0, f64::max)
    }

    async fn timed(&mut self, times: u64, what: impl AsyncFn(String)) -> Vec<f64> {
        let mut took = Vec::new();
        for _ in 0..times {
            self.seed = self.seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let source = format!("s{}", (self.seed >> 33) % self.sources);
            let begun = Instant::now();
            what(source).await;
            took.push(begun.elapsed().as_secs_f64() * 1000.0);
        }
        took
    }
}

fn show(database: &str, sizes: &[u64], rows: &BTreeMap<&str, Vec<f64>>) {
    let heads: String = sizes.iter().map(|size| format!(" {size} backups |")).collect();
    println!("| {database}, milliseconds |{heads} at most |");
    println!("|---|{}---:|", "---:|".repeat(sizes.len()));
    for (what, took) in rows {
        let passes = ["the scheduler's pass", "forgetting old jobs", "the names of all sources"];
        let goal = if passes.contains(what) { PASS_GOAL_MS } else { GOAL_MS };
        let cells: String = took.iter().map(|ms| format!(" {ms:.2} |")).collect();
        let verdict = if took.iter().all(|ms| *ms < goal) { "" } else { " (exceeded)" };
        println!("| {what} |{cells} {goal}{verdict} |");
    }
}
