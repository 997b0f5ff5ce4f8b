//! When a source is to be backed up: a pure function of the schedule and the time.

use std::fmt;
use std::str::FromStr;

use croner::Cron;
use croner::parser::CronParser;
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};

/// Shorter intervals would follow each other without a pause.
const SHORTEST: SignedDuration = SignedDuration::from_mins(1);

/// A rule for times.
#[derive(Debug, Clone)]
pub struct Schedule {
    text: String,
    rule: Rule,
}

#[derive(Debug, Clone)]
enum Rule {
    /// At times of the calendar, in a time zone.
    Calendar(Box<Calendar>),
    /// Again and again after this time.
    Every(SignedDuration),
}

#[derive(Debug, Clone)]
struct Calendar {
    cron: Cron,
    /// It names hours, and does not mean every hour or every so many: in a night that has one of them twice it means it once.
    names_hours: bool,
}

/// From where slots are counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Since {
    /// Nothing was enqueued yet; the source is known since then.
    FirstSeen(Timestamp),
    /// The last slot that something was enqueued for.
    Slot(Timestamp),
}

/// What is known of a source's slots.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Seen {
    /// Since when they are looked for.
    pub first: Timestamp,
    /// The last one that something was enqueued for.
    pub last_slot: Option<Timestamp>,
}

impl Seen {
    /// Returns from where they are counted.
    pub fn since(self) -> Since {
        self.last_slot.map_or(Since::FirstSeen(self.first), Since::Slot)
    }
}

impl Since {
    /// Returns the point in time.
    pub fn time(self) -> Timestamp {
        match self {
            Self::FirstSeen(time) | Self::Slot(time) => time,
        }
    }
}

/// Words for what most people want; at night, and not all at once.
const PRESETS: [(&str, &str); 4] = [
    ("hourly", "0 * * * *"),
    ("daily", "0 2 * * *"),
    ("weekly", "0 3 * * 0"),
    ("monthly", "0 4 1 * *"),
];

/// How far slots are looked for backwards at first: a schedule of minutes has no more than some thousands in it.
const FIRST_WINDOW: SignedDuration = SignedDuration::from_hours(48);

/// Why a text is no schedule.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "found `{text}`, expected five fields such as \"0 2 * * *\" (minute, hour, day, month, weekday), one of the words hourly, daily, weekly and monthly, or an interval such as \"every 24h\": {finding}"
)]
pub struct ScheduleError {
    text: String,
    finding: String,
}

impl FromStr for Schedule {
    type Err = ScheduleError;

    fn from_str(text: &str) -> Result<Self, ScheduleError> {
        let wrong = |finding: String| ScheduleError { text: text.to_owned(), finding };
        let rule = match text.trim().strip_prefix("every ") {
            Some(interval) => {
                let interval = parse_interval(interval.trim()).map_err(wrong)?;
                if interval < SHORTEST {
                    return Err(wrong("the shortest interval is one minute".to_owned()));
                }
                Rule::Every(interval)
            }
            None => {
                let preset =
                    PRESETS.iter().find(|(word, _)| word.eq_ignore_ascii_case(text.trim()));
                let fields = preset.map_or(text, |(_, fields)| fields);
                let parser =
                    CronParser::builder().seconds(croner::parser::Seconds::Disallowed).build();
                let cron = parser.parse(fields).map_err(|error| wrong(error.to_string()))?;
                let any_day = Timestamp::UNIX_EPOCH.to_zoned(TimeZone::UTC);
                if cron.find_next_occurrence(&any_day, false).is_err() {
                    return Err(wrong("no year has such a day".to_owned()));
                }
                let names_hours = match fields.split_whitespace().nth(1) {
                    Some(hours) => !hours.contains('*'),
                    None => fields.trim() != "@hourly",
                };
                Rule::Calendar(Box::new(Calendar { cron, names_hours }))
            }
        };
        Ok(Self { text: text.to_owned(), rule })
    }
}

/// Reads an interval; days are 24 hours, whatever clocks do.
fn parse_interval(text: &str) -> Result<SignedDuration, String> {
    let days = |unit: char, days: i64| {
        Some(text.strip_suffix(unit)?.trim().parse::<i64>().ok()?.saturating_mul(days))
    };
    match days('d', 1).or_else(|| days('w', 7)) {
        Some(days) if (1..=3660).contains(&days) => Ok(SignedDuration::from_hours(24 * days)),
        Some(_) => Err("expected between one day and ten years".to_owned()),
        None => text.parse().map_err(|error: jiff::Error| error.to_string()),
    }
}

impl fmt::Display for Schedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl Schedule {
    /// Returns the first slot that comes after. An interval has one at the moment when the source is first seen.
    pub fn next(&self, since: Since, zone: &TimeZone) -> Option<Timestamp> {
        match (&self.rule, since) {
            (Rule::Every(_), Since::FirstSeen(time)) => Some(time),
            (Rule::Every(interval), Since::Slot(last)) => last.checked_add(*interval).ok(),
            (Rule::Calendar(calendar), since) => calendar.next(since.time(), zone),
        }
    }

    /// Returns the newest slot that comes after, up to a time.
    pub fn newest(&self, since: Since, until: Timestamp, zone: &TimeZone) -> Option<Timestamp> {
        let first = self.next(since, zone).filter(|first| *first <= until)?;
        if let Rule::Every(interval) = &self.rule {
            let begun = until.duration_since(first).as_micros() / interval.as_micros();
            let after_first = i64::try_from(begun * interval.as_micros()).ok()?;
            return first.checked_add(SignedDuration::from_micros(after_first)).ok();
        }
        let mut window = FIRST_WINDOW;
        loop {
            let begin = until.checked_sub(window).unwrap_or(Timestamp::MIN);
            let from = if begin > since.time() { Since::Slot(begin) } else { since };
            let mut newest = None;
            let mut next = self.next(from, zone);
            while let Some(slot) = next.filter(|slot| *slot <= until) {
                newest = Some(slot);
                next = self.next(Since::Slot(slot), zone);
            }
            // There is one at least.
            if newest.is_some() {
                return newest;
            }
            window = window.saturating_mul(16);
        }
    }
}

impl Calendar {
    /// Returns the first time that comes after. What is named in an hour that clocks leave out is right after it.
    fn next(&self, after: Timestamp, zone: &TimeZone) -> Option<Timestamp> {
        let next = |after: Timestamp| {
            let next = self.cron.find_next_occurrence(&after.to_zoned(zone.clone()), false);
            next.ok().map(|next| next.timestamp())
        };
        let mut found = next(after)?;
        while self.names_hours && is_second_time(found, zone) {
            found = next(found)?;
        }
        // Of lists of hours and of steps the library leaves out what is in such an hour.
        let mut changes = zone.following(after).take_while(|change| change.timestamp() < found);
        let change = changes.find(|change| self.names_any_of_gap(change.timestamp(), zone));
        Some(change.map_or(found, |change| change.timestamp()))
    }

    fn names_any_of_gap(&self, change: Timestamp, zone: &TimeZone) -> bool {
        let Ok(before) = change.checked_sub(SignedDuration::from_nanos(1)) else { return false };
        let wall = |at: Timestamp| zone.to_offset(at).to_datetime(change).to_zoned(TimeZone::UTC);
        let (Ok(begin), Ok(end)) = (wall(before), wall(change)) else { return false };
        self.cron.find_next_occurrence(&begin, true).is_ok_and(|named| named < end)
    }
}

/// Says whether the clocks show a time for the second time in a night.
fn is_second_time(time: Timestamp, zone: &TimeZone) -> bool {
    let first = zone.to_ambiguous_timestamp(zone.to_datetime(time)).earlier();
    first.is_ok_and(|first| first < time)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn time(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    #[test]
    fn next_run_is_due_by_calendar_or_interval() {
        let zone = TimeZone::get("Europe/Berlin").unwrap();
        let due = |schedule: &str, last: &str| {
            let schedule: Schedule = schedule.parse().unwrap();
            schedule.next(Since::Slot(time(last)), &zone).unwrap().to_string()
        };
        assert_eq!(due("0 2 * * *", "2026-01-01T12:00:00Z"), "2026-01-02T01:00:00Z");
        // Summer time: the same hour on the wall is another one in UTC.
        assert_eq!(due("0 2 * * *", "2026-07-01T12:00:00Z"), "2026-07-02T00:00:00Z");
        assert_eq!(due("every 24h", "2026-01-01T12:00:00Z"), "2026-01-02T12:00:00Z");
        assert_eq!(due("every 1d", "2026-01-01T12:00:00Z"), "2026-01-02T12:00:00Z");
        assert_eq!(due("every 2w", "2026-01-01T12:00:00Z"), "2026-01-15T12:00:00Z");
        assert_eq!(due("@daily", "2026-01-01T12:00:00Z"), "2026-01-01T23:00:00Z");
        assert_eq!(due("daily", "2026-01-01T12:00:00Z"), "2026-01-02T01:00:00Z");
        assert_eq!(due("Daily", "2026-01-01T12:00:00Z"), "2026-01-02T01:00:00Z");
    }

    /// All slots in a span, one after the other, as a wall clock shows them.
    fn walls(schedule: &str, zone: &str, from: &str, until: &str) -> Vec<String> {
        let (schedule, zone): (Schedule, _) =
            (schedule.parse().unwrap(), TimeZone::get(zone).unwrap());
        let (mut since, until) = (Since::Slot(time(from)), time(until));
        let mut walls = Vec::new();
        while let Some(slot) = schedule.next(since, &zone).filter(|slot| *slot <= until) {
            walls.push(slot.to_zoned(zone.clone()).strftime("%d %H:%M %z").to_string());
            since = Since::Slot(slot);
        }
        walls
    }

    #[test]
    fn nights_in_which_clocks_change_have_each_slot_once() {
        // Zone, the day before a change forward, that before one backward, when a night's slot is in the gap or doubled.
        for (zone, spring, autumn, cron) in [
            ("Europe/Berlin", "2026-03-28T12:00:00Z", "2026-10-24T12:00:00Z", "30 2 * * *"),
            ("America/New_York", "2026-03-07T20:00:00Z", "2026-10-31T20:00:00Z", "30 1,2 * * *"),
            ("Australia/Lord_Howe", "2026-10-03T04:00:00Z", "2026-04-04T04:00:00Z", "45 1,2 * * *"),
            ("America/Santiago", "2026-09-05T16:00:00Z", "2026-04-04T16:00:00Z", "30 0,23 * * *"),
            ("Africa/Cairo", "2026-04-23T12:00:00Z", "2026-10-29T12:00:00Z", "30 0,23 * * *"),
        ] {
            let each_day = cron.split(' ').nth(1).unwrap().split(',').count();
            for begin in [spring, autumn] {
                let end = (time(begin) + SignedDuration::from_hours(72)).to_string();
                let slots = walls(cron, zone, begin, &end);
                assert_eq!(slots.len(), 3 * each_day, "{zone} from {begin}: {slots:?}");
                // Looked at from the end, the newest slot is one of those that come one after the other.
                let (schedule, zone): (Schedule, _) =
                    (cron.parse().unwrap(), TimeZone::get(zone).unwrap());
                let newest = schedule.newest(Since::FirstSeen(time(begin)), time(&end), &zone);
                let wall = newest.unwrap().to_zoned(zone).strftime("%d %H:%M %z").to_string();
                assert_eq!(Some(&wall), slots.last());
            }
        }
    }

    #[test]
    fn times_of_the_calendar_are_those_that_cron_means() {
        let (from, until) = ("2028-02-27T00:00:00Z", "2028-03-02T00:00:00Z");
        let slots = |cron: &str| walls(cron, "UTC", from, until).join(", ").replace(" +0000", "");
        // The leap day, names of days and months, lists, ranges and steps (V26).
        assert_eq!(slots("0 2 29 2 *"), "29 02:00");
        assert_eq!(slots("0 3 * * 0"), "27 03:00");
        assert_eq!(slots("0 3 * * sun"), "27 03:00");
        assert_eq!(slots("0 0 1 mar,apr *"), "01 00:00");
        assert_eq!(slots("0 1 * * 1-5"), "28 01:00, 29 01:00, 01 01:00");
        assert_eq!(slots("0 2,14 28 * *"), "28 02:00, 28 14:00");
        assert_eq!(slots("0 */6 28 * *"), "28 00:00, 28 06:00, 28 12:00, 28 18:00");
        assert_eq!(walls("0 * * * *", "UTC", from, until).len(), 96);
    }

    #[test]
    fn newest_slot_is_found_however_long_nobody_looked() {
        let zone = TimeZone::UTC;
        let long_ago = Since::FirstSeen(time("2020-01-01T00:00:30Z"));
        let now = time("2026-11-22T12:34:56Z");
        let newest = |text: &str, since| {
            let schedule: Schedule = text.parse().unwrap();
            schedule.newest(since, now, &zone).map(|slot| slot.to_string())
        };
        assert_eq!(newest("* * * * *", long_ago).unwrap(), "2026-11-22T12:34:00Z");
        assert_eq!(newest("0 0 29 2 *", long_ago).unwrap(), "2024-02-29T00:00:00Z");
        assert_eq!(newest("every 1h", long_ago).unwrap(), "2026-11-22T12:00:30Z");
        assert_eq!(newest("every 1h", Since::FirstSeen(now)).unwrap(), now.to_string());
        assert_eq!(newest("every 1h", Since::Slot(now)), None);
        assert_eq!(newest("0 13 * * *", Since::Slot(now - SignedDuration::from_hours(20))), None);
    }

    #[test]
    fn what_is_no_schedule_is_refused() {
        for text in [
            "",
            "dayly",
            "0 0 30 2 *",
            "61 2 * * *",
            "0 2 * *",
            "* * * * * *",
            "every",
            "every 5",
            "every 10s",
            "every -1h",
            "every 0d",
            "every -2w",
        ] {
            assert!(text.parse::<Schedule>().is_err(), "{text}");
        }
    }
}
