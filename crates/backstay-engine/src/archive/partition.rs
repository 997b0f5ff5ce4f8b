//! How rows are divided into files.

use std::collections::BTreeMap;

use crate::source::table::{DAY_MICROS, DayRows, Span, date_text, days_of};

/// How rows are divided into files, by their time in UTC.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Partition {
    /// `day=2026-01-03`.
    Day,
    /// `month=2026-01`.
    Month,
}

impl Partition {
    /// Returns the name of the partition in the files' paths.
    pub fn key(self) -> &'static str {
        match self {
            Self::Day => "day",
            Self::Month => "month",
        }
    }

    /// Returns the partition that a time is in.
    pub(super) fn of(self, micros: i64) -> String {
        let (date, is_bc) = date_text(micros.div_euclid(DAY_MICROS));
        let era = if is_bc { "-" } else { "" };
        match self {
            Self::Day => format!("{era}{date}"),
            Self::Month => format!("{era}{}", date.rsplit_once('-').map_or("", |(month, _)| month)),
        }
    }

    /// Returns the span of the partition that a time is in.
    pub(super) fn span(self, micros: i64) -> Span {
        match self {
            Self::Day => {
                let day = micros - micros.rem_euclid(DAY_MICROS);
                (day, day.saturating_add(DAY_MICROS))
            }
            Self::Month => {
                let (date, is_bc) = date_text(micros.div_euclid(DAY_MICROS));
                let mut parts = date.split('-').filter_map(|part| part.parse::<i64>().ok());
                let (year, month) = (parts.next().unwrap_or(1970), parts.next().unwrap_or(1));
                let year = if is_bc { 1 - year } else { year };
                let next = if month == 12 { (year + 1, 1) } else { (year, month + 1) };
                let at = |(year, month)| days_of(year, month, 1).saturating_mul(DAY_MICROS);
                (at((year, month)), at(next))
            }
        }
    }

    /// Adds up the rows of days by partition.
    pub(super) fn rows(self, days: &[DayRows]) -> BTreeMap<String, Tally> {
        let mut tallies: BTreeMap<String, Tally> = BTreeMap::new();
        for day in days {
            tallies.entry(self.of(day.day)).or_default().add(day.rows, day.times.into());
        }
        tallies
    }
}

/// What tells most sets of rows of a partition from others, without reading them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Tally {
    pub(super) rows: u64,
    /// The sum of their times of day, in microseconds.
    pub(super) times: i128,
}

impl Tally {
    pub(super) fn add(&mut self, rows: u64, times: i128) {
        self.rows += rows;
        self.times += times;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_in_the_partition_whose_span_holds_it() {
        for micros in [0_i64, -1, 1_772_323_199_999_999, 1_772_323_200_000_000] {
            for partition in [Partition::Day, Partition::Month] {
                let (from, before) = partition.span(micros);
                assert!(from <= micros && micros < before);
                assert_eq!(partition.of(from), partition.of(micros));
                assert_eq!(partition.of(before - 1), partition.of(micros));
                assert_ne!(partition.of(before), partition.of(micros));
            }
        }
        assert_eq!(Partition::Day.of(-1), "1969-12-31");
        assert_eq!(Partition::Month.of(-1), "1969-12");
    }
}
