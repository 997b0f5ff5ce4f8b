//! Times in the configuration.

use jiff::SignedDuration;
use toml::Spanned;

use super::raw::Faults;

/// Longer times are mistakes; a hundred years can be added to any date.
const LONGEST: SignedDuration = SignedDuration::from_hours(100 * 366 * 24);

/// Reads what is expected of backups or restores, if somebody says so.
pub(super) fn objective(
    name: &str,
    text: Option<&Spanned<String>>,
    faults: &mut Faults<'_>,
) -> Option<SignedDuration> {
    let text = text?;
    let time = duration(name, text, faults)?;
    if !time.is_positive() {
        faults.add(name, text.span(), "no backup and no restore is that fast");
    }
    Some(time)
}

/// Reads a time.
pub(super) fn duration(
    name: &str,
    text: &Spanned<String>,
    faults: &mut Faults<'_>,
) -> Option<SignedDuration> {
    let parsed = parse_duration(text.get_ref());
    if parsed.is_none() {
        faults.add(
            name,
            text.span(),
            format!("found `{}`, expected a time such as \"7d\" or \"12h\"", text.get_ref()),
        );
    }
    parsed
}

/// Reads a time such as `7d`, `12h` or `1h 30m`.
pub(crate) fn parse_duration(text: &str) -> Option<SignedDuration> {
    // Days are not of one length everywhere; here they are 24 hours.
    let time = match text.strip_suffix('d').and_then(|days| days.trim().parse::<i64>().ok()) {
        Some(days) => SignedDuration::try_from_hours(days.checked_mul(24)?)?,
        None => text.parse().ok()?,
    };
    (time.abs() <= LONGEST).then_some(time)
}
