//! How tables keep time, and how a time is written for a comparison that an index can answer.

use super::{TableSpec, refused};
use crate::source::SourceError;

const SECOND: i64 = 1_000_000;
/// Microseconds of a day.
pub(crate) const DAY_MICROS: i64 = 86_400 * SECOND;

/// What a number in a column of time counts since 1970.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unit {
    /// Seconds.
    Seconds,
    /// Milliseconds.
    Milliseconds,
    /// Microseconds.
    Microseconds,
}

impl Unit {
    /// Returns how many microseconds one is.
    pub(crate) fn micros(self) -> i64 {
        match self {
            Self::Seconds => SECOND,
            Self::Milliseconds => 1000,
            Self::Microseconds => 1,
        }
    }
}

/// How a column keeps time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kept {
    /// A point in time.
    Instant,
    /// Date and time without a zone: taken as UTC.
    Local,
    /// A date: its midnight in UTC.
    Date,
    /// A number.
    Number(Unit),
    /// Text, as SQLite reads it.
    Text,
}

/// What a column is to somebody who looks for a time in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum TimeColumn {
    /// A type of the database for times.
    Time(Kept),
    /// Whole numbers.
    Whole,
    /// Anything else.
    Other,
}

impl TimeColumn {
    /// Says how the column of a table's time keeps it. `times` are the types of the database for times, in words.
    pub(crate) fn kept(
        self,
        declared: &str,
        times: &str,
        spec: &TableSpec,
    ) -> Result<Kept, SourceError> {
        let advice = match (self, spec.unit) {
            (Self::Time(kept), None) => return Ok(kept),
            (Self::Whole, Some(unit)) => return Ok(Kept::Number(unit)),
            (Self::Whole, None) => {
                "so say with column_unit whether it counts s, ms or us since 1970".to_owned()
            }
            (_, Some(_)) => "which is no whole number, so leave out column_unit".to_owned(),
            (Self::Other, None) => {
                format!("which is no time: expected {times}, or a whole number with column_unit")
            }
        };
        Err(refused(format!("column {} is of type {declared}, {advice}", spec.column)))
    }
}

/// Returns a number of units that a value must be less than, to be before a time.
pub(crate) fn bound(micros: i64, unit: Unit) -> i64 {
    let size = unit.micros();
    // Rounded up: a value of whole units is before 10.5 exactly if it is before 11.
    micros.div_euclid(size) + i64::from(micros.rem_euclid(size) != 0)
}

/// Returns the first day that does not begin before a time, in days since 1970.
pub(crate) fn day_bound(micros: i64) -> i64 {
    micros.div_euclid(DAY_MICROS) + i64::from(micros.rem_euclid(DAY_MICROS) != 0)
}

/// Writes a date as ISO 8601 does; years beyond four digits are written out, those before 1 as databases do.
pub(crate) fn date_text(days: i64) -> (String, bool) {
    let (year, month, day) = civil(days);
    let (year, is_bc) = if year < 1 { (1 - year, true) } else { (year, false) };
    (format!("{year:04}-{month:02}-{day:02}"), is_bc)
}

/// Writes a date and time to the microsecond.
pub(crate) fn time_text(micros: i64) -> (String, bool) {
    let (date, is_bc) = date_text(micros.div_euclid(DAY_MICROS));
    (format!("{date} {}", clock_text(micros.rem_euclid(DAY_MICROS))), is_bc)
}

/// Writes a time of day to the microsecond.
pub(crate) fn clock_text(micros: i64) -> String {
    let seconds = micros / SECOND;
    let (hours, minutes, seconds) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    format!("{hours:02}:{minutes:02}:{seconds:02}.{:06}", micros % SECOND)
}

/// Turns days since 1970 into year, month and day of the Gregorian calendar, for years far beyond what a library takes.
/// Counted in eras of 400 years that begin with March, so that a leap day is the last of its year.
pub(crate) fn civil(days: i64) -> (i64, i64, i64) {
    const ERA_DAYS: i64 = 146_097;
    let days = days + 719_468;
    let (era, day) = (days.div_euclid(ERA_DAYS), days.rem_euclid(ERA_DAYS));
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day_of_year = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    (year + era * 400 + i64::from(month <= 2), month, day)
}

/// Turns year, month and day into days since 1970.
pub(crate) fn days_of(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let era = year.div_euclid(400);
    let year_of_era = year.rem_euclid(400);
    let shifted = if month > 2 { month - 3 } else { month + 9 };
    let day_of_year = (153 * shifted + 2) / 5 + day - 1;
    era * 146_097 + year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year - 719_468
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_date_is_what_the_calendar_says() {
        for (days, text) in [
            (0, "1970-01-01"),
            (-1, "1969-12-31"),
            (11_016, "2000-02-29"),
            (20_779, "2026-11-22"),
            (2_932_896, "9999-12-31"),
            (2_932_897, "10000-01-01"),
        ] {
            assert_eq!(date_text(days), (text.to_owned(), false));
        }
        assert_eq!(date_text(-719_163), ("0001-12-31".to_owned(), true), "the day before year one");
    }

    #[test]
    fn a_date_goes_to_days_and_back() {
        for days in (-4_000_000..4_000_000).step_by(997) {
            let (year, month, day) = civil(days);
            assert_eq!(days_of(year, month, day), days);
        }
    }

    #[test]
    fn what_is_before_a_time_is_below_its_bound() {
        assert_eq!(bound(10 * SECOND, Unit::Seconds), 10);
        assert_eq!(bound(10 * SECOND + 1, Unit::Seconds), 11);
        assert_eq!(bound(-1, Unit::Seconds), 0);
        assert_eq!((day_bound(DAY_MICROS), day_bound(DAY_MICROS + 1), day_bound(-1)), (1, 2, 0));
    }
}
