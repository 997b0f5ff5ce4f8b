//! When a source is backed up by itself.

use backstay_control::{Blackout, Policy, Schedule, ScheduleError, Since};
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};
use toml::Spanned;

use super::Env;
use super::raw::{Faults, RawSource};
use super::time::duration;

/// As many slots show how often a schedule comes: those of more than a day that has one each quarter of an hour.
const SLOTS_LOOKED_AT: usize = 100;

/// Reads the policy of a source; none if it has no schedule.
#[expect(clippy::option_option, reason = "what is wrong, what is not there, what is there")]
pub(super) fn check(
    raw: &RawSource,
    env: Env<'_>,
    faults: &mut Faults<'_>,
) -> Option<Option<Policy>> {
    let zone = raw.timezone.as_ref().map(|name| check_timezone(name, env, faults));
    let jitter = match &raw.jitter {
        None => Some(SignedDuration::ZERO),
        Some(text) => check_jitter(text, faults),
    };
    let blackouts = check_blackouts(raw, env, faults);
    let Some(text) = &raw.schedule else {
        let needs = [("jitter", raw.jitter.as_ref()), ("blackout", raw.blackout.first())];
        for (name, value) in needs {
            if let Some(value) = value {
                faults.add(name, value.span(), "has no meaning without a schedule");
            }
        }
        return Some(None);
    };
    let expanded = faults.text("schedule", text, env)?;
    let schedule: Option<Schedule> = expanded
        .parse()
        .map_err(|error: ScheduleError| faults.add("schedule", text.span(), error.to_string()))
        .ok();
    // The machine's is looked for among all zones that there are, which commands without schedules need not wait for.
    let zone = zone.unwrap_or_else(|| Some(TimeZone::system()));
    let policy =
        Policy { schedule: schedule?, zone: zone?, jitter: jitter?, blackouts: blackouts? };
    let any_time = Since::FirstSeen(Timestamp::UNIX_EPOCH);
    if let Some(text) = &raw.jitter
        && shortest_pause(&policy).is_some_and(|pause| policy.jitter >= pause)
    {
        faults.add("jitter", text.span(), "is as long as the pause between two backups, or longer");
    }
    if let Some(first) = raw.blackout.first()
        && policy.next_start("", any_time, any_time.time()).is_none()
    {
        faults.add("blackout", first.span(), "leaves no time for any backup");
    }
    Some(Some(policy))
}

/// Returns the shortest pause between two slots, of some that follow each other.
fn shortest_pause(policy: &Policy) -> Option<SignedDuration> {
    let next = |since| policy.schedule.next(since, &policy.zone);
    let first = next(Since::FirstSeen(Timestamp::UNIX_EPOCH));
    let slots = std::iter::successors(first, |slot| next(Since::Slot(*slot)));
    let slots: Vec<Timestamp> = slots.take(SLOTS_LOOKED_AT).collect();
    slots.windows(2).map(|pair| pair[1].duration_since(pair[0])).min()
}

fn check_jitter(text: &Spanned<String>, faults: &mut Faults<'_>) -> Option<SignedDuration> {
    let jitter = duration("jitter", text, faults)?;
    if jitter < SignedDuration::ZERO {
        faults.add("jitter", text.span(), "is less than nothing");
    }
    Some(jitter)
}

fn check_blackouts(
    raw: &RawSource,
    env: Env<'_>,
    faults: &mut Faults<'_>,
) -> Option<Vec<Blackout>> {
    let mut blackouts = Vec::new();
    for text in &raw.blackout {
        match faults.text("blackout", text, env)?.parse() {
            Ok(blackout) => blackouts.push(blackout),
            Err(error) => faults.add("blackout", text.span(), format!("{error}")),
        }
    }
    Some(blackouts)
}

fn check_timezone(
    text: &Spanned<String>,
    env: Env<'_>,
    faults: &mut Faults<'_>,
) -> Option<TimeZone> {
    let name = faults.text("timezone", text, env)?;
    let zone = TimeZone::get(&name).ok();
    if zone.is_none() {
        let problem =
            format!("found `{name}`, expected a time zone such as \"Europe/Berlin\" or \"UTC\"");
        faults.add("timezone", text.span(), problem);
    }
    zone
}
