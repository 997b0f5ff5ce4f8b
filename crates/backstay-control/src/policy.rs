//! When a source is to be backed up by itself: pure functions of its policy, of what was done, and of the time.
//!
//! A **slot** is a point in time that the schedule names. Each slot is enqueued once at most; its run begins then, or later:
//! by the jitter of its source, after a blackout, or when somebody is there again to begin it.

use std::fmt;
use std::str::FromStr;

use backstay_format::Sha256;
use jiff::civil::{Date, Time};
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp, Zoned};

use crate::{Schedule, Since};

/// When a source is backed up by itself.
#[derive(Debug, Clone)]
pub struct Policy {
    /// The rule for slots.
    pub schedule: Schedule,
    /// Where its calendar and its blackouts are.
    pub zone: TimeZone,
    /// Runs begin up to this long after their slots, each source by its own share: many sources must not begin at once.
    pub jitter: SignedDuration,
    /// No run begins in these.
    pub blackouts: Vec<Blackout>,
}

/// More runs than this are not counted.
const MOST_RUNS: usize = 1000;
/// So many runs are looked at for the longest gap: two weeks of one each minute.
const MOST_RUNS_OF_WEEKS: usize = 2 * 7 * 24 * 60;
const YEAR: SignedDuration = SignedDuration::from_hours(366 * 24);
const WEEK: SignedDuration = SignedDuration::from_hours(7 * 24);

/// A slot whose run may begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DueSlot {
    /// The newest one.
    pub slot: Timestamp,
    /// There were slots before it that nothing was enqueued for: this run catches up for all of them.
    pub is_late: bool,
}

impl Policy {
    /// Returns the newest slot of a source that nothing was enqueued for and whose run may begin now.
    pub fn due(&self, source: &str, since: Since, now: Timestamp) -> Option<DueSlot> {
        if self.is_in_blackout(now) {
            return None;
        }
        let until = now.checked_sub(self.delay(source)).ok()?;
        let slot = self.schedule.newest(since, until, &self.zone)?;
        let first = self.schedule.next(since, &self.zone);
        Some(DueSlot { slot, is_late: first.is_some_and(|first| first < slot) })
    }

    /// Returns when the next run begins if all goes well, now at the earliest.
    pub fn next_start(&self, source: &str, since: Since, now: Timestamp) -> Option<Timestamp> {
        let slot = self.schedule.next(since, &self.zone)?;
        let mut start = slot.checked_add(self.delay(source)).ok()?.max(now);
        // One may follow another, on each day of a week.
        for _ in 0..=8 * self.blackouts.len() {
            match self.blackout_end(start) {
                Some(end) => start = end,
                None => return Some(start),
            }
        }
        None
    }

    /// Returns how many runs begin after one time and until another, a thousand at most. Slots that a blackout puts together
    /// are one run.
    pub fn runs_between(&self, source: &str, since: Since, until: Timestamp) -> u32 {
        let starts = self.starts(source, since).take_while(|start| *start <= until);
        u32::try_from(starts.take(MOST_RUNS).count()).unwrap_or(u32::MAX)
    }

    /// Returns the longest time between two runs that follow each other, of those of two weeks around now: after a weekend the
    /// one that it makes still counts, and before it, too.
    pub fn longest_gap(&self, source: &str, now: Timestamp) -> SignedDuration {
        let begin = now.checked_sub(WEEK).unwrap_or(now);
        // From the run before, so that the gap counts that we are in.
        let long_ago = Since::FirstSeen(now.checked_sub(YEAR).unwrap_or(now));
        let slot = self.schedule.newest(long_ago, begin, &self.zone);
        let mut before = slot.and_then(|slot| slot.checked_add(self.delay(source)).ok());
        let end = now.checked_add(WEEK).unwrap_or(now);
        let mut longest = SignedDuration::ZERO;
        let starts = self.starts(source, Since::Slot(slot.unwrap_or(begin)));
        for start in starts.take(MOST_RUNS_OF_WEEKS) {
            if let Some(before) = before {
                longest = longest.max(start.duration_since(before));
            }
            // The first run behind the end closes the last gap.
            if start > end && before.is_some() {
                break;
            }
            before = Some(start);
        }
        longest
    }

    /// When runs begin, one after the other.
    fn starts(&self, source: &str, since: Since) -> impl Iterator<Item = Timestamp> {
        let delay = self.delay(source);
        let (mut since, mut last) = (since, None);
        std::iter::from_fn(move || {
            loop {
                let slot = self.schedule.next(since, &self.zone)?;
                let start = self.next_start(source, since, since.time())?;
                // All slots of a blackout begin at its end, as one.
                let covered = start.checked_sub(delay).ok()?.max(slot);
                since = Since::Slot(covered);
                if last.replace(start) != Some(start) {
                    return Some(start);
                }
            }
        })
    }

    /// The source's share of the jitter: always the same, and the same for every server.
    fn delay(&self, source: &str) -> SignedDuration {
        let digest = Sha256::of(source.as_bytes());
        let share =
            digest.as_bytes().iter().take(4).fold(0_u32, |n, byte| n << 8 | u32::from(*byte));
        let micros = self.jitter.as_micros().max(0) * i128::from(share) / i128::from(u32::MAX);
        SignedDuration::from_micros(i64::try_from(micros).unwrap_or(0))
    }

    /// Says whether no run begins now.
    pub fn is_in_blackout(&self, now: Timestamp) -> bool {
        self.blackout_end(now).is_some()
    }

    fn blackout_end(&self, time: Timestamp) -> Option<Timestamp> {
        let local = time.to_zoned(self.zone.clone());
        self.blackouts.iter().filter_map(|blackout| blackout.end(&local)).max()
    }
}

/// A part of days in which no run begins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Blackout {
    text: String,
    /// The days that it begins on, Monday first.
    days: [bool; 7],
    from: Time,
    /// On the next day unless it is after the beginning.
    until: Time,
}

/// Why a text is no blackout.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "found `{text}`, expected times such as \"08:00-18:00\" or \"22:00-06:00\", perhaps with days before them: \"Mon-Fri 08:00-18:00\", \"Sat,Sun 00:00-24:00\""
)]
pub struct BlackoutError {
    text: String,
}

const DAYS: [&str; 7] = ["mon", "tue", "wed", "thu", "fri", "sat", "sun"];

impl FromStr for Blackout {
    type Err = BlackoutError;

    fn from_str(text: &str) -> Result<Self, BlackoutError> {
        let wrong = || BlackoutError { text: text.to_owned() };
        let (days, times) = match text.trim().split_once(' ') {
            Some((days, times)) => (parse_days(days).ok_or_else(wrong)?, times.trim()),
            None => ([true; 7], text.trim()),
        };
        let (from, until) = times.split_once('-').ok_or_else(wrong)?;
        let until = if until == "24:00" { "00:00" } else { until };
        let time = |text: &str| Time::strptime("%H:%M", text).map_err(|_| wrong());
        Ok(Self { text: text.to_owned(), days, from: time(from)?, until: time(until)? })
    }
}

fn parse_days(text: &str) -> Option<[bool; 7]> {
    let day = |name: &str| DAYS.iter().position(|day| name.eq_ignore_ascii_case(day));
    let mut days = [false; 7];
    for part in text.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last) = (day(first)?, day(last)?);
        // `Sat-Mon` goes over the end of the week.
        for step in 0..=(last + 7 - first) % 7 {
            days[(first + step) % 7] = true;
        }
    }
    Some(days)
}

impl fmt::Display for Blackout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl Blackout {
    /// Returns when the blackout ends that a time is in.
    fn end(&self, local: &Zoned) -> Option<Timestamp> {
        let today = local.date();
        [today.yesterday().ok()?, today].into_iter().find_map(|day| {
            let (from, until) = self.on(day, local.time_zone())?;
            (from <= local.timestamp() && local.timestamp() < until).then_some(until)
        })
    }

    /// Returns its beginning and end, if it begins on a day.
    fn on(&self, day: Date, zone: &TimeZone) -> Option<(Timestamp, Timestamp)> {
        let index = usize::from(day.weekday().to_monday_zero_offset().unsigned_abs());
        if !self.days[index] {
            return None;
        }
        let last_day = if self.until > self.from { day } else { day.tomorrow().ok()? };
        let at = |day: Date, time: Time| {
            Some(zone.to_ambiguous_zoned(day.to_datetime(time)).compatible().ok()?.timestamp())
        };
        Some((at(day, self.from)?, at(last_day, self.until)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn time(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    fn policy(schedule: &str, jitter: SignedDuration, blackouts: &[&str]) -> Policy {
        Policy {
            schedule: schedule.parse().unwrap(),
            zone: TimeZone::get("Europe/Berlin").unwrap(),
            jitter,
            blackouts: blackouts.iter().map(|text| text.parse().unwrap()).collect(),
        }
    }

    #[test]
    fn missed_slots_are_caught_up_once() {
        let policy = policy("0 2 * * *", SignedDuration::ZERO, &[]);
        let last = Since::Slot(time("2026-01-01T01:00:00Z"));
        let due = |now: &str| policy.due("shop", last, time(now));
        assert_eq!(due("2026-01-02T00:59:59Z"), None);
        let slot = |slot: &str, is_late| Some(DueSlot { slot: time(slot), is_late });
        assert_eq!(due("2026-01-02T01:00:00Z"), slot("2026-01-02T01:00:00Z", false));
        assert_eq!(due("2026-01-09T12:00:00Z"), slot("2026-01-09T01:00:00Z", true));
    }

    #[test]
    fn jitter_spreads_sources_and_is_the_same_each_time() {
        let policy = policy("0 2 * * *", SignedDuration::from_hours(1), &[]);
        let since = Since::FirstSeen(time("2026-01-01T00:00:00Z"));
        let start = |source: &str| policy.next_start(source, since, since.time()).unwrap();
        let starts: Vec<Timestamp> = (0..100).map(|i| start(&format!("source-{i}"))).collect();
        let (first, last) = (time("2026-01-01T01:00:00Z"), time("2026-01-01T02:00:00Z"));
        assert!(starts.iter().all(|start| first <= *start && *start <= last));
        let early = starts.iter().filter(|start| **start < time("2026-01-01T01:30:00Z")).count();
        assert!((25..75).contains(&early), "{early} of 100 in the first half");
        let moment = SignedDuration::from_micros(1);
        assert_eq!(policy.due("shop", since, start("shop") - moment), None);
        assert_eq!(policy.due("shop", since, start("shop")).unwrap().slot, first);
    }

    #[test]
    fn nothing_begins_in_a_blackout_and_one_run_catches_up_after_it() {
        let blackouts = ["mon-fri 08:00-18:00", "Sat 22:00-06:00"];
        let policy = policy("0 * * * *", SignedDuration::ZERO, &blackouts);
        // A Monday in Berlin, an hour before UTC.
        let since = Since::Slot(time("2026-01-05T06:00:00Z"));
        let next = |since: Since| policy.next_start("shop", since, since.time());
        assert_eq!(next(since), Some(time("2026-01-05T17:00:00Z")));
        let late = policy.next_start("shop", since, time("2026-01-06T12:00:00Z"));
        assert_eq!(late, Some(time("2026-01-06T17:00:00Z")));
        assert_eq!(policy.due("shop", since, time("2026-01-05T12:00:00Z")), None);
        let due = policy.due("shop", since, time("2026-01-05T17:00:00Z")).unwrap();
        assert_eq!(due, DueSlot { slot: time("2026-01-05T17:00:00Z"), is_late: true });
        // From Saturday to Sunday.
        let night = Since::Slot(time("2026-01-10T20:30:00Z"));
        assert_eq!(next(night), Some(time("2026-01-11T05:00:00Z")));
        let sunday = Since::Slot(time("2026-01-11T20:30:00Z"));
        assert_eq!(next(sunday), Some(time("2026-01-11T21:00:00Z")));
    }

    #[test]
    fn blackouts_follow_each_other_and_one_of_all_days_leaves_nothing() {
        let since = Since::FirstSeen(time("2026-01-05T00:00:00Z"));
        let weekdays = policy("0 2 * * *", SignedDuration::ZERO, &["Mon-Fri 00:00-24:00"]);
        let start = weekdays.next_start("shop", since, since.time());
        assert_eq!(start, Some(time("2026-01-09T23:00:00Z")));
        let always = policy("0 2 * * *", SignedDuration::ZERO, &["00:00-12:00", "12:00-24:00"]);
        assert_eq!(always.next_start("shop", since, since.time()), None);
    }

    #[test]
    fn what_is_no_blackout_is_refused() {
        for text in [
            "",
            "8-18",
            "08:00",
            "25:00-26:00",
            "Mon",
            "Mun 08:00-18:00",
            "08:00-18:00 Mon",
            "Mon-",
        ] {
            assert!(text.parse::<Blackout>().is_err(), "{text}");
        }
    }
}
