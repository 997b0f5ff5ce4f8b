use proptest::prelude::*;

use super::*;
use crate::Encryption;

fn entry(at: &str) -> IndexEntry {
    let started_at: Timestamp = at.parse().unwrap();
    IndexEntry {
        id: BackupId::new(started_at, [1; 8]),
        source: "shop".parse().unwrap(),
        source_kind: "files".to_owned(),
        status: Status::Complete,
        trigger: Trigger::Scheduled,
        started_at,
        finished_at: started_at,
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

/// One backup a day at 02:00, the newest on 31 March.
fn days(count: i64) -> Vec<IndexEntry> {
    let newest: Timestamp = "2026-03-31T02:00:00Z".parse().unwrap();
    (0..count).map(|i| entry(&(newest - SignedDuration::from_hours(24 * i)).to_string())).collect()
}

fn now() -> Timestamp {
    "2026-03-31T03:00:00Z".parse().unwrap()
}

fn kept(backups: &[IndexEntry], rules: &Rules) -> Vec<String> {
    let verdicts = plan(backups, rules, now()).unwrap();
    verdicts
        .into_iter()
        .filter(|v| v.keep)
        .map(|v| v.id.time().strftime("%m-%d").to_string())
        .collect()
}

#[test]
fn thirty_days_are_kept_unless_another_rule_is_given() {
    let read = |text: &str| serde_json::from_str::<Rules>(text).unwrap();
    assert_eq!(read("{}"), Rules::default());
    assert_eq!(read(r#"{"keep_at_least": 3}"#), Rules { keep_at_least: 3, ..Rules::default() });
    // A limit of size alone lets go of the oldest, and not of all but one.
    assert_eq!(read(r#"{"max_bytes": "1GB"}"#).days, 30);
    assert_eq!(read(r#"{"last": 7}"#), Rules { last: 7, ..Rules::none() });
    assert_eq!(read(r#"{"weekly": 4, "days": 2}"#), Rules { weekly: 4, days: 2, ..Rules::none() });
    assert_eq!(read(r#"{"days": 0}"#), Rules::none());
    assert!(serde_json::from_str::<Rules>(r#"{"lsat": 7}"#).is_err());
    let rules = Rules { last: 2, max_bytes: 5, ..Rules::default() };
    assert_eq!(read(&serde_json::to_string(&rules).unwrap()), rules);
}

#[test]
fn floor_is_of_backups_whose_time_is_known_as_long_as_there_are_enough() {
    let mut backups = days(3);
    backups[0].is_undated = true;
    assert_eq!(kept(&backups, &Rules::none()), ["03-30"]);
    let two = Rules { keep_at_least: 3, ..Rules::none() };
    assert_eq!(kept(&backups, &two), ["03-31", "03-30", "03-29"]);
    assert_eq!(kept(&backups[..1], &Rules::none()), ["03-31"]);
}

#[test]
fn each_rule_keeps_what_it_says() {
    let backups = days(100);
    assert_eq!(kept(&backups, &Rules { last: 3, ..Rules::none() }), ["03-31", "03-30", "03-29"]);
    assert_eq!(kept(&backups, &Rules { days: 2, ..Rules::none() }), ["03-31", "03-30"]);
    assert_eq!(kept(&backups, &Rules { daily: 2, ..Rules::none() }), ["03-31", "03-30"]);
    assert_eq!(kept(&backups, &Rules { weekly: 3, ..Rules::none() }), ["03-31", "03-29", "03-22"]);
    assert_eq!(kept(&backups, &Rules { monthly: 3, ..Rules::none() }), ["03-31", "02-28", "01-31"]);
    assert_eq!(kept(&backups, &Rules { yearly: 2, ..Rules::none() }), ["03-31", "12-31"]);
    assert_eq!(kept(&backups, &Rules::none()), ["03-31"]);
}

#[test]
fn floor_holds_against_every_rule() {
    let mut old = days(5);
    for backup in &mut old {
        backup.started_at -= SignedDuration::from_hours(24 * 400);
        backup.stored_bytes = u64::MAX;
    }
    let rules = Rules { days: 1, max_bytes: 1, keep_at_least: 2, ..Rules::none() };
    assert_eq!(kept(&old, &rules).len(), 2);
    assert_eq!(kept(&old, &Rules { keep_at_least: 0, ..Rules::none() }).len(), 1);
}

#[test]
fn size_limit_lets_the_oldest_go_first() {
    let rules = Rules { last: 10, max_bytes: 35, ..Rules::none() };
    assert_eq!(kept(&days(10), &rules), ["03-31", "03-30", "03-29"]);
}

#[test]
fn held_and_safety_backups_stay_and_are_not_counted() {
    let mut backups = days(4);
    backups[0].hold = Some("before the move".to_owned());
    backups[1].trigger = Trigger::PreRestore;
    backups[1].hold = Some("safety".to_owned());
    assert_eq!(kept(&backups, &Rules { last: 1, ..Rules::none() }), ["03-31", "03-30", "03-29"]);
    backups[1].hold = None;
    assert_eq!(kept(&backups, &Rules { last: 1, ..Rules::none() }), ["03-31", "03-29"]);
}

#[test]
fn incomplete_backups_never_push_out_good_ones() {
    let mut backups = days(5);
    for backup in &mut backups[..3] {
        backup.status = Status::Incomplete;
    }
    assert_eq!(
        kept(&backups, &Rules { last: 1, ..Rules::none() }),
        ["03-31", "03-30", "03-29", "03-28"]
    );
    backups[0].status = Status::Complete;
    assert_eq!(kept(&backups, &Rules { last: 1, ..Rules::none() }), ["03-31"]);
}

#[test]
fn nothing_is_planned_when_the_time_looks_wrong() {
    let mut backups = days(2);
    backups[0].started_at = now() + SignedDuration::from_hours(1);
    assert!(matches!(
        plan(&backups, &Rules::none(), now()),
        Err(RetentionError::FutureBackup { .. })
    ));
    backups[0].started_at = now() + SignedDuration::from_mins(5);
    assert!(plan(&backups, &Rules::none(), now()).is_ok());
}

proptest! {
    #[test]
    fn never_keeps_fewer_than_asked_and_forgetting_twice_changes_nothing(
        ages in proptest::collection::btree_set(0_i64..2_000, 1..60),
        (last, days, daily, weekly, monthly, floor) in (0_u32..9, 0_u32..40, 0_u32..9, 0_u32..6, 0_u32..6, 0_u32..5),
    ) {
        let backups: Vec<_> =
            ages.iter().map(|hours| entry(&(now() - SignedDuration::from_hours(*hours)).to_string())).collect();
        let rules = Rules { last, days, daily, weekly, monthly, keep_at_least: floor, ..Rules::none() };
        let verdicts = plan(&backups, &rules, now()).unwrap();
        let kept: Vec<_> = verdicts.iter().filter(|v| v.keep).map(|v| v.id.clone()).collect();
        prop_assert!(kept.len() >= backups.len().min(last.max(floor).max(1) as usize));
        let rest: Vec<_> = backups.into_iter().filter(|b| kept.contains(&b.id)).collect();
        let again = plan(&rest, &rules, now()).unwrap();
        prop_assert!(again.iter().all(|v| v.keep));
    }
}

#[test]
fn sizes_are_numbers_or_texts_with_a_unit() {
    for (text, bytes) in [("7", 7), ("50GB", 50_000_000_000), ("2 GiB", 2 << 30), ("1kb", 1000)] {
        assert_eq!(parse_bytes(text), Some(bytes), "{text}");
    }
    for text in ["", "GB", "1.5GB", "-1", "1XB", "99999999999TB"] {
        assert_eq!(parse_bytes(text), None, "{text}");
    }
    let rules: Rules = serde_json::from_str(r#"{"max_bytes": "50GB", "days": 1}"#).unwrap();
    assert_eq!(rules.max_bytes, 50_000_000_000);
    assert!(serde_json::from_str::<Rules>(r#"{"max_bytes": "lots"}"#).is_err());
}
