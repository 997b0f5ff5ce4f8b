//! Comparing keys without keeping them: sums that do not depend on their order.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};

const HOUR_MILLISECONDS: u64 = 3_600_000;

/// The keys of a database.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Tally {
    /// By the hour in which they expire; those that do not have none.
    by_hour: BTreeMap<Option<u64>, Sum>,
    pub(super) types: BTreeMap<String, u64>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Sum {
    keys: u64,
    hashes: u128,
}

impl Tally {
    /// Adds a key.
    pub(super) fn add(&mut self, name: &[u8], kind: &str, expires: Option<u64>) {
        let mut hasher = DefaultHasher::new();
        (name, kind, expires).hash(&mut hasher);
        let sum = self.by_hour.entry(expires.map(|time| time / HOUR_MILLISECONDS)).or_default();
        sum.keys += 1;
        sum.hashes = sum.hashes.wrapping_add(u128::from(hasher.finish()));
        match self.types.get_mut(kind) {
            Some(count) => *count += 1,
            None => drop(self.types.insert(kind.to_owned(), 1)),
        }
    }

    pub(super) fn keys(&self) -> u64 {
        self.by_hour.values().map(|sum| sum.keys).sum()
    }

    pub(super) fn expiring(&self) -> u64 {
        self.by_hour.iter().filter(|(hour, _)| hour.is_some()).map(|(_, sum)| sum.keys).sum()
    }

    /// Compares with what was found at a time (milliseconds since 1970). Keys that may have expired by then may be missing.
    pub(super) fn check(&self, found: &Self, now: u64) -> Result<(), String> {
        let passing = now / HOUR_MILLISECONDS;
        let hours = self.by_hour.keys().chain(found.by_hour.keys());
        for hour in hours {
            let sum = |tally: &Self| tally.by_hour.get(hour).copied().unwrap_or_default();
            let (expected, found) = (sum(self), sum(found));
            let is_same = match hour {
                Some(hour) if *hour <= passing => found.keys <= expected.keys,
                _ => found == expected,
            };
            if !is_same {
                let when = if hour.is_some() {
                    "that expire in the same hour"
                } else {
                    "that do not expire"
                };
                return Err(if found.keys == expected.keys {
                    format!("of {} keys {when}, names, types or times differ", expected.keys)
                } else {
                    format!("of keys {when} there are {} instead of {}", found.keys, expected.keys)
                });
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: u64 = 1_000 * HOUR_MILLISECONDS + 5;

    fn tally(keys: &[(&str, &str, Option<u64>)]) -> Tally {
        let mut tally = Tally::default();
        for (name, kind, expires) in keys {
            tally.add(name.as_bytes(), kind, *expires);
        }
        tally
    }

    #[test]
    fn order_is_nothing_and_every_other_difference_is_found() {
        let (later, soon) = (Some(NOW + 2 * HOUR_MILLISECONDS), Some(NOW + 1));
        let whole = tally(&[("a", "string", None), ("b", "hash", later), ("c", "set", soon)]);
        let turned = tally(&[("c", "set", soon), ("b", "hash", later), ("a", "string", None)]);
        assert_eq!(whole.check(&turned, NOW), Ok(()));
        assert_eq!((whole.keys(), whole.expiring()), (3, 2));
        let expired = tally(&[("a", "string", None), ("b", "hash", later)]);
        assert_eq!(whole.check(&expired, NOW), Ok(()));
        for other in [
            tally(&[("b", "hash", later), ("c", "set", soon)]),
            tally(&[("a", "list", None), ("b", "hash", later), ("c", "set", soon)]),
            tally(&[
                ("a", "string", None),
                ("b", "hash", later.map(|time| time + 1)),
                ("c", "set", soon),
            ]),
            tally(&[("a", "string", None), ("b", "hash", None), ("c", "set", soon)]),
            tally(&[
                ("a", "string", None),
                ("b", "hash", later),
                ("c", "set", soon),
                ("d", "set", soon),
            ]),
        ] {
            assert!(whole.check(&other, NOW).is_err(), "{other:?}");
        }
    }
}
