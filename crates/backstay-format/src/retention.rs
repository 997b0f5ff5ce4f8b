//! Which backups are kept: a pure function of the backups, the rules and the time.

use std::collections::{BTreeMap, BTreeSet};

use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

use crate::{BackupId, IndexEntry, Status, Trigger};

/// The rules of a source. A backup is kept if any rule keeps it; zero means that a rule keeps nothing. Where it is read and no
/// rule is given that keeps something, 30 days are kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "GivenRules")]
pub struct Rules {
    /// The newest so many.
    pub last: u32,
    /// All of the newest so many days.
    pub days: u32,
    /// The newest of each of the newest so many hours that have one.
    pub hourly: u32,
    /// The same for days (UTC).
    pub daily: u32,
    /// The same for ISO weeks.
    pub weekly: u32,
    /// The same for months.
    pub monthly: u32,
    /// The same for years.
    pub yearly: u32,
    /// Stored bytes of all kept backups together; the oldest go first. Zero means no limit.
    pub max_bytes: u64,
    /// This many of the newest are kept whatever else is said; at least 1.
    pub keep_at_least: u32,
}

/// Rules as somebody writes them.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct GivenRules {
    last: u32,
    days: Option<u32>,
    hourly: u32,
    daily: u32,
    weekly: u32,
    monthly: u32,
    yearly: u32,
    /// A number, or a text such as `50GB` or `50GiB`.
    #[serde(deserialize_with = "bytes")]
    max_bytes: u64,
    keep_at_least: Option<u32>,
}

impl From<GivenRules> for Rules {
    fn from(given: GivenRules) -> Self {
        let GivenRules { last, hourly, daily, weekly, monthly, yearly, max_bytes, .. } = given;
        let others = [last, hourly, daily, weekly, monthly, yearly];
        let is_other_rule = others.iter().any(|count| *count > 0);
        let base = if is_other_rule { Self::none() } else { Self::default() };
        let days = given.days.unwrap_or(base.days);
        let keep_at_least = given.keep_at_least.unwrap_or(base.keep_at_least);
        Self { last, days, hourly, daily, weekly, monthly, yearly, max_bytes, keep_at_least }
    }
}

impl Default for Rules {
    /// Keeps 30 days (T34), and never less than one.
    fn default() -> Self {
        Self {
            last: 0,
            days: 30,
            hourly: 0,
            daily: 0,
            weekly: 0,
            monthly: 0,
            yearly: 0,
            max_bytes: 0,
            keep_at_least: 1,
        }
    }
}

fn bytes<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Bytes {
        Number(u64),
        Text(String),
    }
    let wrong = |found: &str| {
        let text =
            format!("found `{found}`, expected a size such as 500000000, \"500MB\" or \"2GiB\"");
        serde::de::Error::custom(text)
    };
    match Bytes::deserialize(deserializer) {
        Ok(Bytes::Number(bytes)) => Ok(bytes),
        Ok(Bytes::Text(text)) => parse_bytes(&text).ok_or_else(|| wrong(&text)),
        Err(_) => Err(wrong("something else")),
    }
}

/// Reads a size with a unit: powers of 1000, or of 1024 with an `i`.
pub fn parse_bytes(text: &str) -> Option<u64> {
    let text = text.trim();
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let factor = match unit.trim().to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "kb" => 1_000,
        "mb" => 1_000_000,
        "gb" => 1_000_000_000,
        "tb" => 1_000_000_000_000,
        "kib" => 1 << 10,
        "mib" => 1 << 20,
        "gib" => 1 << 30,
        "tib" => 1 << 40,
        _ => return None,
    };
    number.parse::<u64>().ok()?.checked_mul(factor)
}

impl Rules {
    /// Rules that keep nothing but the floor; a base to set rules on.
    pub fn none() -> Self {
        Self { days: 0, ..Self::default() }
    }
}

/// What a rule said of a backup.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Verdict {
    /// Which backup.
    pub id: BackupId,
    /// Whether it stays.
    pub keep: bool,
    /// Why, for a person.
    pub reasons: Vec<String>,
}

/// Why nothing may be forgotten now.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RetentionError {
    /// A backup is younger than now: one of the clocks is wrong.
    #[error(
        "backup {id} was made in the future: {made_at}, and now is {now}; check the clocks, nothing was forgotten"
    )]
    FutureBackup {
        /// Which backup.
        id: BackupId,
        /// When it was made.
        made_at: Timestamp,
        /// What time it is here.
        now: Timestamp,
    },
}

/// Clocks of two machines may differ by this much without harm.
pub const CLOCK_TOLERANCE: SignedDuration = SignedDuration::from_mins(10);

/// Says of each backup of one source whether it is kept, newest first.
///
/// Held backups and safety backups that were not released stay and are not counted. Incomplete ones are not counted, and
/// stay until `keep_at_least` complete ones are newer, so that a bad night never pushes out a good one.
pub fn plan(
    backups: &[IndexEntry],
    rules: &Rules,
    now: Timestamp,
) -> Result<Vec<Verdict>, RetentionError> {
    if let Some(future) =
        backups.iter().find(|b| b.started_at.duration_since(now) > CLOCK_TOLERANCE)
    {
        return Err(RetentionError::FutureBackup {
            id: future.id.clone(),
            made_at: future.started_at,
            now,
        });
    }
    let mut newest_first: Vec<&IndexEntry> = backups.iter().collect();
    newest_first.sort_by(|a, b| b.started_at.cmp(&a.started_at).then_with(|| b.id.cmp(&a.id)));
    let counted: Vec<&IndexEntry> = newest_first.iter().copied().filter(|b| counts(b)).collect();
    // The floor is of backups whose age is known, as long as there are enough of them.
    let (dated, undated): (Vec<&IndexEntry>, Vec<_>) = counted.iter().partition(|b| !b.is_undated);
    let lowest: Vec<&IndexEntry> =
        dated.into_iter().chain(undated).take(rules.keep_at_least.max(1) as usize).collect();
    let floor: BTreeSet<&BackupId> = lowest.iter().map(|b| &b.id).collect();
    let mut reasons = reasons_of_rules(&counted, rules, now);
    for id in &floor {
        reasons
            .entry((*id).clone())
            .or_default()
            .push("among the newest good ones that are always kept".to_owned());
    }
    enforce_size(&counted, rules, &floor, &mut reasons);
    let nth_good = lowest.get(rules.keep_at_least.max(1) as usize - 1).map(|b| b.started_at);
    let verdicts = newest_first.into_iter().map(|backup| {
        let kept = reasons.remove(&backup.id);
        verdict(backup, kept, nth_good)
    });
    Ok(verdicts.collect())
}

/// Whether the rules count a backup.
fn counts(backup: &IndexEntry) -> bool {
    backup.is_good() && backup.hold.is_none()
}

type Reasons = BTreeMap<BackupId, Vec<String>>;

fn reasons_of_rules(newest_first: &[&IndexEntry], rules: &Rules, now: Timestamp) -> Reasons {
    let mut reasons = Reasons::new();
    let mut keep = |id: &BackupId, why: String| reasons.entry(id.clone()).or_default().push(why);
    for (i, backup) in newest_first.iter().take(rules.last as usize).enumerate() {
        keep(&backup.id, format!("last {} of {}", i + 1, rules.last));
    }
    let window = SignedDuration::from_hours(24 * i64::from(rules.days));
    for backup in
        newest_first.iter().filter(|b| rules.days > 0 && now.duration_since(b.started_at) <= window)
    {
        keep(&backup.id, format!("within {} days", rules.days));
    }
    let periods: [(&str, u32, &str); 4] = [
        ("hourly", rules.hourly, "%Y-%m-%d %H:00"),
        ("daily", rules.daily, "%Y-%m-%d"),
        ("monthly", rules.monthly, "%Y-%m"),
        ("yearly", rules.yearly, "%Y"),
    ];
    for (name, count, format) in periods {
        newest_of_periods(
            newest_first,
            count,
            |at| at.strftime(format).to_string(),
            |id, period| {
                keep(id, format!("{name}: newest of {period}"));
            },
        );
    }
    newest_of_periods(newest_first, rules.weekly, iso_week, |id, period| {
        keep(id, format!("weekly: newest of {period}"));
    });
    reasons
}

fn iso_week(at: Timestamp) -> String {
    let week = at.to_zoned(TimeZone::UTC).date().iso_week_date();
    format!("{}-W{:02}", week.year(), week.week())
}

fn newest_of_periods(
    newest_first: &[&IndexEntry],
    count: u32,
    period_of: impl Fn(Timestamp) -> String,
    mut keep: impl FnMut(&BackupId, &str),
) {
    let mut seen = BTreeSet::new();
    for backup in newest_first {
        let period = period_of(backup.started_at);
        if seen.len() < count as usize && seen.insert(period.clone()) {
            keep(&backup.id, &period);
        }
    }
}

/// Takes the reasons from the oldest backups until the rest fits.
fn enforce_size(
    newest_first: &[&IndexEntry],
    rules: &Rules,
    floor: &BTreeSet<&BackupId>,
    reasons: &mut Reasons,
) {
    if rules.max_bytes == 0 {
        return;
    }
    let mut bytes = 0_u64;
    let mut full = false;
    for backup in newest_first {
        if !reasons.contains_key(&backup.id) {
            continue;
        }
        bytes = bytes.saturating_add(backup.stored_bytes);
        // Once one is too many, all older ones are: a small old one must not outlive a large newer one.
        full |= bytes > rules.max_bytes;
        if full && !floor.contains(&backup.id) {
            reasons.remove(&backup.id);
        }
    }
}

fn verdict(backup: &IndexEntry, kept: Option<Vec<String>>, nth_good: Option<Timestamp>) -> Verdict {
    let (keep, reasons) = if let Some(why) = &backup.hold {
        (true, vec![format!("held: {why}")])
    } else if backup.trigger == Trigger::PreRestore {
        (false, vec!["a safety backup that was released".to_owned()])
    } else if backup.status == Status::Incomplete {
        match nth_good {
            Some(good) if good > backup.started_at => {
                (false, vec!["incomplete, and there are newer good ones".to_owned()])
            }
            _ => (true, vec!["incomplete, but there are too few newer good ones".to_owned()]),
        }
    } else {
        match kept {
            Some(why) => (true, why),
            None => (false, vec!["no rule keeps it".to_owned()]),
        }
    };
    Verdict { id: backup.id.clone(), keep, reasons }
}

#[cfg(test)]
mod tests;
