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
    Cron(Box<Cron>),
    /// This long after the last run began.
    Every(SignedDuration),
}

/// Why a text is no schedule.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "found `{text}`, expected five fields such as \"0 2 * * *\" (minute, hour, day, month, weekday), a word such as \"@daily\", or an interval such as \"every 24h\": {finding}"
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
                let interval: SignedDuration = interval
                    .trim()
                    .parse()
                    .map_err(|error: jiff::Error| wrong(error.to_string()))?;
                if interval < SHORTEST {
                    return Err(wrong("the shortest interval is one minute".to_owned()));
                }
                Rule::Every(interval)
            }
            None => {
                let parser =
                    CronParser::builder().seconds(croner::parser::Seconds::Disallowed).build();
                let cron = parser.parse(text).map_err(|error| wrong(error.to_string()))?;
                Rule::Cron(Box::new(cron))
            }
        };
        Ok(Self { text: text.to_owned(), rule })
    }
}

impl fmt::Display for Schedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl Schedule {
    /// Returns when the next run is due after the last one began; at once if there was none. `None` if the calendar knows
    /// no such time.
    pub fn due(
        &self,
        last: Option<Timestamp>,
        now: Timestamp,
        zone: &TimeZone,
    ) -> Option<Timestamp> {
        let Some(last) = last else { return Some(now) };
        match &self.rule {
            Rule::Every(interval) => last.checked_add(*interval).ok(),
            Rule::Cron(cron) => {
                let after = last.to_zoned(zone.clone());
                cron.find_next_occurrence(&after, false).ok().map(|next| next.timestamp())
            }
        }
    }
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
            schedule.due(Some(time(last)), time(last), &zone).unwrap().to_string()
        };
        assert_eq!(due("0 2 * * *", "2026-01-01T12:00:00Z"), "2026-01-02T01:00:00Z");
        // Summer time: the same hour on the wall is another one in UTC.
        assert_eq!(due("0 2 * * *", "2026-07-01T12:00:00Z"), "2026-07-02T00:00:00Z");
        assert_eq!(due("every 24h", "2026-01-01T12:00:00Z"), "2026-01-02T12:00:00Z");
        assert_eq!(due("@daily", "2026-01-01T12:00:00Z"), "2026-01-01T23:00:00Z");
        let now = time("2026-01-01T00:00:00Z");
        assert_eq!("0 2 * * *".parse::<Schedule>().unwrap().due(None, now, &zone), Some(now));
    }

    #[test]
    fn what_is_no_schedule_is_refused() {
        for text in [
            "",
            "daily",
            "61 2 * * *",
            "0 2 * *",
            "* * * * * *",
            "every",
            "every 5",
            "every 10s",
            "every -1h",
        ] {
            assert!(text.parse::<Schedule>().is_err(), "{text}");
        }
    }
}
