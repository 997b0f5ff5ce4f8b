use backstay_format::{BackupId, Encryption, Status, Trigger};
use jiff::tz::TimeZone;

use super::*;
use crate::JobId;

fn time(text: &str) -> Timestamp {
    text.parse().unwrap()
}

fn hours(hours: i64) -> SignedDuration {
    SignedDuration::from_hours(hours)
}

/// A good backup that took half an hour.
fn backup(at: &str) -> IndexEntry {
    let started_at = time(at);
    IndexEntry {
        id: BackupId::new(started_at, [1; 8]),
        source: "shop".parse().unwrap(),
        source_kind: "files".to_owned(),
        status: Status::Complete,
        trigger: Trigger::Scheduled,
        started_at,
        finished_at: started_at + SignedDuration::from_mins(30),
        host: "h".to_owned(),
        plain_bytes: 100,
        stored_bytes: 10,
        encryption: Encryption::None,
        parts: Vec::new(),
        note: None,
        warnings: Vec::new(),
        item_errors: Vec::new(),
        item_error_count: 0,
        hold: None,
        is_undated: false,
    }
}

fn run(state: JobState, at: &str) -> Job {
    Job {
        id: JobId("1".to_owned()),
        organisation: "default".to_owned(),
        source: "shop".to_owned(),
        kind: "backup".to_owned(),
        state,
        slot: None,
        attempt: 1,
        next_try: None,
        queued_at: time(at),
        not_before: time(at),
        started_at: Some(time(at)),
        finished_at: Some(time(at)),
        error: Some("disk full".to_owned()),
        backup: None,
        log: None,
        result: None,
        progress: None,
        worker: None,
        asked_by: None,
        is_queued_work: true,
        spec: None,
    }
}

fn policy(schedule: &str) -> Policy {
    Policy {
        schedule: schedule.parse().unwrap(),
        zone: TimeZone::UTC,
        jitter: SignedDuration::ZERO,
        blackouts: Vec::new(),
    }
}

fn facts<'a>(backups: &'a [IndexEntry], policy: &'a Policy, now: &str) -> Facts<'a> {
    let now = time(now);
    Facts {
        source: "shop",
        objectives: Objectives::new((None, None), ("shop", Some(policy)), now),
        policy: Some(policy),
        backups,
        last_run: None,
        is_at_work: false,
        orphaned: 0,
        seen: Some(Seen { first: time("2026-01-01T00:00:00Z"), last_slot: None }),
        last_restore: None,
        now,
    }
}

#[test]
fn source_is_good_until_its_newest_good_backup_is_older_than_the_objective() {
    let nightly = policy("0 2 * * *");
    let backups = [backup("2026-03-03T02:00:00Z"), backup("2026-03-02T02:00:00Z")];
    let health = |now| Health::of(&facts(&backups, &nightly, now));
    assert_eq!(health("2026-03-03T12:00:00Z").word(), "good");
    assert_eq!(health("2026-03-03T12:00:00Z").age, Some(hours(10)));
    // The next one is being made.
    assert_eq!(health("2026-03-04T02:04:00Z").word(), "good");
    let late = health("2026-03-04T03:00:01Z");
    assert_eq!((late.word(), late.missed), ("late", 1));
    assert!(
        late.alarms[0].to_string().contains("1 d 1 h old, expected at most 1 d 1 h"),
        "{late:?}"
    );
    assert_eq!(health("2026-03-06T12:00:00Z").missed, 3);
    let never = Health::of(&facts(&[], &nightly, "2026-03-03T12:00:00Z"));
    assert_eq!((never.word(), never.age), ("unprotected", None));
}

#[test]
fn backups_that_are_not_good_protect_nothing() {
    let nightly = policy("0 2 * * *");
    let incomplete = IndexEntry { status: Status::Incomplete, ..backup("2026-03-03T02:00:00Z") };
    let safety = IndexEntry { trigger: Trigger::PreRestore, ..backup("2026-03-03T01:00:00Z") };
    let undated = IndexEntry { is_undated: true, ..backup("2026-03-03T00:00:00Z") };
    let backups = [incomplete, safety, undated];
    let facts = facts(&backups, &nightly, "2026-03-03T03:00:00Z");
    let health = Health::of(&Facts { orphaned: 1, ..facts });
    assert_eq!(health.alarms, [Alarm::NoBackup, Alarm::Orphaned { backups: 1 }]);
}

#[test]
fn backup_of_the_future_hides_nothing() {
    let nightly = policy("0 2 * * *");
    let backups = [backup("2027-03-03T02:00:00Z"), backup("2026-03-01T02:00:00Z")];
    let failed = run(JobState::Failed, "2026-03-03T02:00:00Z");
    let facts = facts(&backups, &nightly, "2026-03-03T12:00:00Z");
    let health = Health::of(&Facts { last_run: Some(&failed), ..facts });
    assert_eq!((health.word(), health.missed, health.age), ("late", 2, Some(hours(58))));
    assert!(health.alarms.contains(&Alarm::Future { at: time("2027-03-03T02:00:00Z") }));
    assert!(health.alarms.iter().any(|alarm| alarm.word() == "failing"));
}

#[test]
fn runs_are_missed_from_when_somebody_looked_for_them() {
    let hourly = policy("0 * * * *");
    // By hand, a day before the source had a schedule.
    let backups = [backup("2026-03-02T12:00:00Z")];
    let missed = |seen: Option<Seen>| {
        Health::of(&Facts { seen, ..facts(&backups, &hourly, "2026-03-03T12:30:00Z") }).missed
    };
    assert_eq!(missed(None), 0);
    let first = time("2026-03-03T10:30:00Z");
    assert_eq!(missed(Some(Seen { first, last_slot: None })), 2);
    let last_slot = Some(time("2026-03-03T12:00:00Z"));
    assert_eq!(missed(Some(Seen { first, last_slot })), 2, "they ran, and made nothing");
    // What others made since the last slot that was enqueued here.
    let nightly = policy("0 2 * * *");
    let others = [backup("2026-03-03T02:00:10Z")];
    let seen =
        Seen { first: time("2026-01-01T00:00:00Z"), last_slot: Some(time("2026-01-01T02:00:00Z")) };
    let facts_of_others = facts(&others, &nightly, "2026-03-03T12:30:00Z");
    assert_eq!(Health::of(&Facts { seen: Some(seen), ..facts_of_others }).missed, 0);
    // By the grid of its slots, whatever was made by hand between two.
    let every = policy("every 6h");
    let by_hand = [backup("2026-03-03T07:00:00Z")];
    let last_slot = Some(time("2026-03-03T06:00:00Z"));
    let facts = facts(&by_hand, &every, "2026-03-03T12:30:00Z");
    let health = Health::of(&Facts { seen: Some(Seen { first, last_slot }), ..facts });
    assert_eq!(health.missed, 1);
}

#[test]
fn objective_follows_the_schedule_unless_somebody_sets_one() {
    let now = time("2026-03-03T12:00:00Z");
    let of = |schedule: &str| {
        let policy = policy(schedule);
        Objectives::new((None, None), ("shop", Some(&policy)), now).rpo
    };
    assert_eq!(of("0 2 * * *"), hours(25));
    assert_eq!(of("every 6h"), hours(25));
    assert_eq!(of("0 3 * * 0"), hours(7 * 24 + 1));
    // From Friday to Monday.
    assert_eq!(of("0 1 * * 1-5"), hours(3 * 24 + 1));
    assert_eq!(of("0 4 1 * *"), hours(31 * 24 + 1));
    let monthly = policy("monthly");
    let january =
        Objectives::new((None, None), ("shop", Some(&monthly)), time("2026-01-30T12:00:00Z"));
    assert_eq!(january.rpo, hours(31 * 24 + 1), "the month that we are in counts");
    // Over the weekend, on whatever day and however often a day it runs.
    for day in ["2026-03-03T12:00:00Z", "2026-03-06T17:30:00Z", "2026-03-08T12:00:00Z"] {
        let office = policy("0 9-17 * * 1-5");
        let rpo = Objectives::new((None, None), ("shop", Some(&office)), time(day)).rpo;
        assert_eq!(rpo, hours(2 * 24 + 16 + 1), "{day}");
        let quiet = Policy {
            blackouts: vec!["Sat,Sun 00:00-24:00".parse().unwrap()],
            ..policy("0 * * * *")
        };
        let rpo = Objectives::new((None, None), ("shop", Some(&quiet)), time(day)).rpo;
        assert_eq!(rpo, hours(2 * 24 + 1 + 1), "{day}");
        let often = Policy { blackouts: quiet.blackouts.clone(), ..policy("* * * * *") };
        let rpo = Objectives::new((None, None), ("shop", Some(&often)), time(day)).rpo;
        assert_eq!(rpo, hours(2 * 24 + 1) + SignedDuration::from_mins(1), "{day}");
    }
    let asked = Objectives::new((Some(hours(1)), Some(hours(2))), ("shop", None), now);
    assert_eq!((asked.rpo, asked.rto), (hours(1), hours(2)));
    let without = Objectives::new((None, None), ("shop", None), now);
    assert_eq!((without.rpo, without.rto), (hours(25), SignedDuration::from_mins(15)));
}

#[test]
fn banner_of_a_failure_stays_until_a_good_backup_is_made_by_whomever() {
    let nightly = policy("0 2 * * *");
    let backups = [backup("2026-03-03T02:00:00Z")];
    let after = |run: &Job| {
        let facts =
            Facts { last_run: Some(run), ..facts(&backups, &nightly, "2026-03-03T12:00:00Z") };
        Health::of(&facts)
    };
    let failed = after(&run(JobState::Failed, "2026-03-03T11:00:00Z"));
    assert_eq!(failed.word(), "failing");
    assert!(failed.alarms[0].to_string().contains("failed at 2026-03-03T11:00:00Z: disk full"));
    assert_eq!(after(&run(JobState::Incomplete, "2026-03-03T11:00:00Z")).word(), "failing");
    assert_eq!(after(&run(JobState::Succeeded, "2026-03-03T11:00:00Z")).word(), "good");
    assert_eq!(after(&run(JobState::Failed, "2026-03-03T02:29:00Z")).word(), "good");
}

#[test]
fn run_that_is_under_way_is_not_missed_yet() {
    let hourly = policy("0 * * * *");
    let backups = [backup("2026-03-03T02:00:01Z")];
    let missed =
        |now, is_at_work| Health::of(&Facts { is_at_work, ..facts(&backups, &hourly, now) }).missed;
    assert_eq!(missed("2026-03-03T03:04:00Z", false), 0, "a server has minutes to begin it");
    assert_eq!(missed("2026-03-03T03:06:00Z", false), 1);
    assert_eq!(missed("2026-03-03T03:06:00Z", true), 0);
    assert_eq!(missed("2026-03-03T05:06:00Z", true), 2);
    let mut busy = policy("0 * * * *");
    busy.blackouts = vec!["03:00-12:00".parse().unwrap()];
    let facts = facts(&backups, &busy, "2026-03-03T11:00:00Z");
    assert_eq!(Health::of(&facts).missed, 0, "a blackout is meant");
    let facts = Facts { now: time("2026-03-03T12:06:00Z"), ..facts };
    assert_eq!(Health::of(&facts).missed, 1, "one run catches up at its end");
    let often = Policy { blackouts: busy.blackouts.clone(), ..policy("* * * * *") };
    let facts = Facts { policy: Some(&often), ..facts };
    assert_eq!(
        Health::of(&facts).missed,
        59 + 2,
        "an hour of minutes, and what came after the blackout"
    );
}

#[test]
fn worst_loss_and_the_time_of_a_restore_are_measured() {
    let nightly = policy("0 2 * * *");
    let backups = [
        backup("2026-03-05T02:00:00Z"),
        backup("2026-03-04T02:00:00Z"),
        // One night was missed.
        backup("2026-03-02T02:00:00Z"),
    ];
    let restore = PastRestore { backup: "x".to_owned(), took: SignedDuration::from_mins(20) };
    let facts = facts(&backups, &nightly, "2026-03-05T12:00:00Z");
    let health = Health::of(&Facts { last_restore: Some(&restore), ..facts });
    assert_eq!(health.rpo_seen, Some(hours(48) + SignedDuration::from_mins(30)));
    assert_eq!(health.rto_seen, Some(SignedDuration::from_mins(20)));
    assert_eq!(health.word(), "attention");
    assert!(health.alarms[0].to_string().contains("took 20 min, expected at most 15 min"));
}

#[test]
fn spans_show_their_two_largest_units() {
    let shown = |seconds| Span(SignedDuration::from_secs(seconds)).to_string();
    let expected = [
        (0, "0 s"),
        (59, "59 s"),
        (60, "1 min"),
        (3599, "59 min 59 s"),
        (90_000, "1 d 1 h"),
        (86_460, "1 d"),
    ];
    for (seconds, text) in expected {
        assert_eq!(shown(seconds), text);
    }
}
