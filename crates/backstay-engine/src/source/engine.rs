//! Engines and their versions, as manifests name them: `MariaDB 10.11.19`, `Redis 7.0.15`.

/// Reads the numbers of a version that stand for new features.
pub(super) fn series(version: &str) -> (u32, u32) {
    let mut numbers = version.split('.').map(|number| number.parse().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
}

/// Compares the server that was backed up with the one that is there. Fails, with words for a person, if that is older.
pub(super) fn compare(then: &str, now: &str, warnings: &mut Vec<String>) -> Result<(), String> {
    let (name_then, version_then) = then.split_once(' ').unwrap_or((then, ""));
    let (name_now, version_now) = now.split_once(' ').unwrap_or((now, ""));
    let (before, after) = (series(version_then), series(version_now));
    if name_then != name_now {
        warnings.push(format!(
            "the backup is of {then} and the server is {now}: what only one of them knows makes the restore fail"
        ));
    } else if before > after {
        return Err(format!(
            "the backup is of {then} and the server is {now}, which may not know all that it holds; restore to a server that is not older"
        ));
    } else if before < after {
        warnings.push(format!("the backup is of {then} and the server is {now}"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn older_servers_are_refused_and_others_that_differ_are_told() {
        let compared = |then: &str, now: &str| {
            let mut warnings = Vec::new();
            compare(then, now, &mut warnings).map(|()| warnings.concat())
        };
        assert_eq!(compared("Redis 7.0.15", "Redis 7.0.4"), Ok(String::new()));
        let newer = compared("MariaDB 10.6.1", "MariaDB 10.11.19").unwrap();
        assert_eq!(newer, "the backup is of MariaDB 10.6.1 and the server is MariaDB 10.11.19");
        let older = compared("Redis 7.2.0", "Redis 7.0.15").unwrap_err();
        assert!(older.contains("restore to a server that is not older"), "{older}");
        let other = compared("MySQL 8.4.3", "MariaDB 5.5.1").unwrap();
        assert!(other.contains("what only one of them knows"), "{other}");
    }
}
