//! When a dump was made.

use std::path::Path;

use backstay_format::TimeFrom;
use jiff::Timestamp;
use jiff::civil::DateTime;
use jiff::tz::TimeZone;

use super::form::{Form, POSTGRES_CONTENTS};
use super::packing::Packing;
use super::{Seen, head, refused};
use crate::source::SourceError;
use crate::source::{postgres, redis};

/// What a dump says of its time stands in these.
const HEAD_BYTES: usize = 4 << 10;

/// Says when a dump was made: what its name says in UTC, what it says itself, or when it was written.
pub(super) fn taken_at(
    path: &Path,
    form: &Form,
    packing: Packing,
    files: &[Seen],
) -> Result<(Timestamp, TimeFrom), SourceError> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    if let Some(time) = in_name(&name) {
        return Ok((time, TimeFrom::Name));
    }
    if let Some(time) = in_dump(path, form, packing)? {
        return Ok((time, TimeFrom::Dump));
    }
    // Of several, none is older than the last that was written.
    let written = files.iter().map(|file| file.modified).max();
    let written = written.and_then(|seconds| Timestamp::from_second(seconds).ok());
    let written = written.ok_or_else(|| refused(path, "it has no file with a time"))?;
    Ok((written, TimeFrom::File))
}

/// Finds a time in UTC in a name: `2026-03-08T120000Z`, `2025-01-15T02-00-00-000Z`, `20260308T120000Z`.
pub(super) fn in_name(name: &str) -> Option<Timestamp> {
    let digits = |text: &str| -> String { text.chars().filter(char::is_ascii_digit).collect() };
    let is_time = |c: char| c.is_ascii_digit() || matches!(c, '-' | ':' | '.' | '_');
    name.match_indices('T').find_map(|(at, _)| {
        let (before, after) = (&name[..at], &name[at + 1..]);
        let begin = before.rfind(|c: char| !c.is_ascii_digit() && c != '-').map_or(0, |at| at + 1);
        let date = digits(before.get(begin..)?);
        let end = after.find(|c| !is_time(c))?;
        if !after[end..].starts_with('Z') {
            return None;
        }
        let time = digits(&after[..end]);
        let (date, time) = (date.get(date.len().checked_sub(8)?..)?, time.get(..6)?);
        let text = format!("{}-{}-{}T{time}Z", &date[..4], &date[4..6], &date[6..]);
        text.parse().ok()
    })
}

/// Reads the time that a dump says of itself.
fn in_dump(path: &Path, form: &Form, packing: Packing) -> Result<Option<Timestamp>, SourceError> {
    let contents = match form {
        Form::PostgresDirectory => path.join(POSTGRES_CONTENTS),
        Form::PostgresCustom | Form::Rdb => path.to_owned(),
        _ => return Ok(None),
    };
    let read = head(&mut packing.open(&contents)?, HEAD_BYTES);
    let begin = read.map_err(|cause| refused(path, format!("it cannot be read: {cause}")))?;
    if *form == Form::Rdb {
        return Ok(redis::saved_at(&begin));
    }
    // In local time, without a zone: most dumps are imported where they were made.
    let local: Option<DateTime> = postgres::dumped_at(&begin);
    Ok(local.and_then(|local| Some(local.to_zoned(TimeZone::system()).ok()?.timestamp())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_in_names_are_found_in_the_forms_that_tools_write() {
        for (name, time) in [
            ("vectorflow-2025-01-15T02-00-00-000Z.dump", "2025-01-15T02:00:00Z"),
            ("2026-03-08T120000Z", "2026-03-08T12:00:00Z"),
            ("shop.20260308T120001Z.sql.gz", "2026-03-08T12:00:01Z"),
            ("T-2026-03-08T12:00:02.5Z", "2026-03-08T12:00:02Z"),
        ] {
            assert_eq!(in_name(name), Some(time.parse().unwrap()), "{name}");
        }
        for name in [
            "shop.dump",
            "2026-03-08.sql",
            "2026-03-08T12.sql",
            "2026-03-08T120000",
            "TZ",
            "2026-13-08T120000Z",
            "99T1Z",
        ] {
            assert_eq!(in_name(name), None, "{name}");
        }
    }
}
