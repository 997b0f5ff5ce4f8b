//! Whether a source is protected: what its backups, runs and restores say, beside what is expected of them (V29 to V32, V57 to
//! V61). Pure functions of these and of the time.

use std::fmt;

use backstay_format::retention::CLOCK_TOLERANCE;
use backstay_format::{IndexEntry, Trigger};
use jiff::{SignedDuration, Timestamp};

use crate::job::{Job, JobState, PastRestore};
use crate::{Policy, Seen, Since};

/// Without another objective no more than a day may be lost (V57), or what lies between two runs of the schedule.
const DEFAULT_RPO: SignedDuration = SignedDuration::from_hours(24);
/// What a backup may take before a source without an objective of its own counts as late.
const ROOM_FOR_A_BACKUP: SignedDuration = SignedDuration::from_hours(1);
/// Without another objective a restore takes no longer (V57).
const DEFAULT_RTO: SignedDuration = SignedDuration::from_mins(15);
/// A run that begins by so much later is not missed yet.
const PATIENCE: SignedDuration = SignedDuration::from_mins(5);
/// Of so many of the newest good backups the worst distance is told.
const RECENT: usize = 10;

/// What is expected of a source.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Objectives {
    /// The newest good backup is never older than this (RPO).
    pub rpo: SignedDuration,
    /// A restore takes no longer than this (RTO).
    pub rto: SignedDuration,
}

impl Objectives {
    /// Returns what somebody asked for, and what the policy promises where nobody asked.
    pub fn new(
        (rpo, rto): (Option<SignedDuration>, Option<SignedDuration>),
        (source, policy): (&str, Option<&Policy>),
        now: Timestamp,
    ) -> Self {
        let promised = || {
            let gap = policy.map(|policy| policy.longest_gap(source, now));
            gap.unwrap_or_default().max(DEFAULT_RPO) + ROOM_FOR_A_BACKUP
        };
        Self { rpo: rpo.unwrap_or_else(promised), rto: rto.unwrap_or(DEFAULT_RTO) }
    }
}

/// What is known of a source.
#[derive(Debug)]
pub struct Facts<'a> {
    /// Its name.
    pub source: &'a str,
    /// What is expected of it.
    pub objectives: Objectives,
    /// When it is backed up by itself.
    pub policy: Option<&'a Policy>,
    /// Its backups, newest first.
    pub backups: &'a [IndexEntry],
    /// The newest run that ended by itself, well or not.
    pub last_run: Option<&'a Job>,
    /// A run waits or is under way.
    pub is_at_work: bool,
    /// Backups of which objects are gone; they are not among the others.
    pub orphaned: usize,
    /// Since when its slots are looked for, and from where they are counted; none if nobody ever did.
    pub seen: Option<Seen>,
    /// The newest restore, in earnest or as a drill.
    pub last_restore: Option<&'a PastRestore>,
    /// What time it is.
    pub now: Timestamp,
}

/// How a source is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Health {
    /// How old the newest good backup is: what would be lost now.
    pub age: Option<SignedDuration>,
    /// What was lost at worst by a disaster at any time that the newest good backups span: until the next one was done.
    pub rpo_seen: Option<SignedDuration>,
    /// How long the newest restore took.
    pub rto_seen: Option<SignedDuration>,
    /// Runs that should have made a backup since the newest good one, and did not.
    pub missed: u32,
    /// What is wrong, the worst first.
    pub alarms: Vec<Alarm>,
}

/// Something that is wrong with the protection of a source.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Alarm {
    /// There is nothing to restore.
    NoBackup,
    /// The newest good backup is older than it may be.
    TooOld {
        /// How old it is.
        age: SignedDuration,
        /// How old it may be.
        objective: SignedDuration,
    },
    /// A backup was made in the future: a clock is or was wrong. It says nothing of how old the others are.
    Future {
        /// When.
        at: Timestamp,
    },
    /// The last run made no good backup. Stays until one does (V31).
    LastRun {
        /// How it ended.
        state: JobState,
        /// When.
        at: Timestamp,
        /// Why.
        error: Option<String>,
    },
    /// Runs of the schedule made no good backup.
    Missed {
        /// How many.
        runs: u32,
    },
    /// Objects of backups are gone from the storage.
    Orphaned {
        /// Of how many backups.
        backups: usize,
    },
    /// The last restore took too long.
    SlowRestore {
        /// How long it took.
        took: SignedDuration,
        /// How long it may take.
        objective: SignedDuration,
    },
}

impl Alarm {
    /// Returns the word for a source whose worst trouble this is, as it stands in JSON.
    pub fn word(&self) -> &'static str {
        match self {
            Self::NoBackup => "unprotected",
            Self::TooOld { .. } => "late",
            Self::LastRun { .. } => "failing",
            Self::Future { .. }
            | Self::Missed { .. }
            | Self::Orphaned { .. }
            | Self::SlowRestore { .. } => "attention",
        }
    }
}

impl fmt::Display for Alarm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoBackup => f.write_str("there is no good backup"),
            Self::TooOld { age, objective } => {
                write!(
                    f,
                    "the newest good backup is {} old, expected at most {}",
                    Span(*age),
                    Span(*objective)
                )
            }
            Self::LastRun { state, at, error } => {
                write!(
                    f,
                    "the last run {} at {at:.0}",
                    match state {
                        JobState::Incomplete => "was incomplete",
                        _ => "failed",
                    }
                )?;
                error.as_ref().map_or(Ok(()), |error| write!(f, ": {error}"))
            }
            Self::Future { at } => {
                write!(f, "a backup was made at {at:.0}, which is in the future: check the clocks")
            }
            Self::Missed { runs: 1 } => f.write_str("a run of the schedule made no good backup"),
            Self::Missed { runs } => write!(f, "{runs} runs of the schedule made no good backup"),
            Self::Orphaned { backups: 1 } => {
                f.write_str("objects of a backup are gone from the storage")
            }
            Self::Orphaned { backups } => {
                write!(f, "objects of {backups} backups are gone from the storage")
            }
            Self::SlowRestore { took, objective } => {
                write!(
                    f,
                    "the last restore took {}, expected at most {}",
                    Span(*took),
                    Span(*objective)
                )
            }
        }
    }
}

/// A span of time for a person, in its two largest units.
#[derive(Debug, Clone, Copy)]
pub struct Span(pub SignedDuration);

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = self.0.as_secs().max(0);
        let units = [(86_400, "d"), (3600, "h"), (60, "min"), (1, "s")];
        let largest = units.iter().position(|(size, _)| seconds >= *size).unwrap_or(3);
        let (size, unit) = units[largest];
        write!(f, "{} {unit}", seconds / size)?;
        match units.get(largest + 1) {
            Some((smaller, unit)) if seconds % size >= *smaller => {
                write!(f, " {} {unit}", seconds % size / smaller)
            }
            _ => Ok(()),
        }
    }
}

impl Health {
    /// Works out how a source is.
    pub fn of(facts: &Facts<'_>) -> Self {
        let latest = facts.now.checked_add(CLOCK_TOLERANCE).unwrap_or(Timestamp::MAX);
        let (good, future): (Vec<&IndexEntry>, Vec<&IndexEntry>) = facts
            .backups
            .iter()
            .filter(|entry| entry.is_good_and_dated())
            .partition(|entry| entry.started_at <= latest);
        let newest = good.first().copied();
        let age = newest.map(|newest| facts.now.duration_since(newest.started_at));
        // What others dumped long ago says nothing of our runs.
        let is_ours = |entry: &&&IndexEntry| entry.trigger != Trigger::Imported;
        let ours: Vec<&IndexEntry> = good.iter().filter(is_ours).copied().collect();
        let newest_of_ours = ours.first().copied();
        let missed = missed(facts, newest_of_ours);
        let rto_seen = facts.last_restore.map(|restore| restore.took);
        let Objectives { rpo, rto } = facts.objectives;
        let orphaned = facts.orphaned;
        let alarms = [
            newest.is_none().then_some(Alarm::NoBackup),
            age.filter(|age| *age > rpo).map(|age| Alarm::TooOld { age, objective: rpo }),
            facts.last_run.and_then(|run| failed(run, newest_of_ours)),
            future.first().map(|entry| Alarm::Future { at: entry.started_at }),
            (missed > 0).then_some(Alarm::Missed { runs: missed }),
            (orphaned > 0).then_some(Alarm::Orphaned { backups: orphaned }),
            rto_seen
                .filter(|took| *took > rto)
                .map(|took| Alarm::SlowRestore { took, objective: rto }),
        ];
        let alarms = alarms.into_iter().flatten().collect();
        Self { age, rpo_seen: worst_loss(&ours), rto_seen, missed, alarms }
    }

    /// Returns the word for it, as it stands in JSON.
    pub fn word(&self) -> &'static str {
        self.alarms.first().map_or("good", Alarm::word)
    }
}

/// What was lost at worst by a disaster just before a backup was done: what was written since the one before it began. That is
/// the interval, and what the backup and its transfer took (V58).
fn worst_loss(newest_first: &[&IndexEntry]) -> Option<SignedDuration> {
    let recent = &newest_first[..newest_first.len().min(RECENT)];
    recent.windows(2).map(|two| two[0].finished_at.duration_since(two[1].started_at)).max()
}

/// A run that failed, unless a good backup was made since, by whomever.
fn failed(run: &Job, newest: Option<&IndexEntry>) -> Option<Alarm> {
    let at = run.finished_at?;
    let is_over =
        run.state == JobState::Succeeded || newest.is_some_and(|newest| newest.finished_at > at);
    (!is_over).then(|| Alarm::LastRun { state: run.state, at, error: run.error.clone() })
}

fn missed(facts: &Facts<'_>, newest: Option<&IndexEntry>) -> u32 {
    let (Some(policy), Some(newest), Some(seen)) = (facts.policy, newest, facts.seen) else {
        return 0;
    };
    // What a run begins late is for the slot before it; nobody looked for slots before the source was first seen.
    let since = match seen.since() {
        Since::Slot(slot) if slot <= newest.started_at => {
            let covered =
                policy.schedule.newest(Since::Slot(slot), newest.started_at, &policy.zone);
            Since::Slot(covered.unwrap_or(slot))
        }
        Since::Slot(_) => Since::Slot(newest.started_at.max(seen.first)),
        Since::FirstSeen(first) if first <= newest.started_at => Since::Slot(newest.started_at),
        first => first,
    };
    let until = facts.now.checked_sub(PATIENCE).unwrap_or(facts.now);
    let runs = policy.runs_between(facts.source, since, until);
    // One that waits or is under way may still make it good.
    runs.saturating_sub(u32::from(facts.is_at_work))
}

#[cfg(test)]
mod tests;
