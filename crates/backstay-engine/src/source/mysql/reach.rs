//! How far a statement of a script reaches.

/// Words beyond these bytes are not looked at: bodies and rows.
const LOOKED_AT_BYTES: usize = 4 << 10;
/// What can be made, changed and dropped in a database.
const THINGS: [&str; 11] = [
    "TABLE",
    "VIEW",
    "TRIGGER",
    "PROCEDURE",
    "FUNCTION",
    "EVENT",
    "INDEX",
    "SEQUENCE",
    "PACKAGE",
    "DATABASE",
    "SCHEMA",
];
/// From here on a statement speaks of what is in the thing that it names.
const BODIES: [&str; 8] = ["(", "WHERE", "AS", "VALUES", "VALUE", "SELECT", "SET", "FOR"];

/// What a statement can change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Reach {
    /// What is in the session's database, or the session itself.
    Database,
    /// A database of this name itself, which may be a living one.
    OwnDatabase(String),
    /// Nothing that belongs to a dump's data: the server's record of what was replicated.
    Log,
    /// What would run by itself.
    Event,
    /// What would run with each row that is still to come.
    Trigger,
    /// Other databases, the server, the machine.
    Beyond,
}

/// A statement in words.
pub(super) struct Words(Vec<String>);

impl Words {
    pub(super) fn of(statement: &[u8]) -> Self {
        Self(words(statement))
    }

    /// Says whether it begins with one of these words, whatever version of server it is for.
    pub(super) fn begins(&self, with: &[&str]) -> bool {
        with.contains(&self.first())
    }

    /// Says whether it makes something that has statements in it.
    pub(super) fn is_program(&self) -> bool {
        const PROGRAMS: [&str; 5] = ["TRIGGER", "PROCEDURE", "FUNCTION", "EVENT", "PACKAGE"];
        let thing = self.thing().map(|at| self.0[at].as_str());
        self.first() == "CREATE" && thing.is_some_and(|thing| PROGRAMS.contains(&thing))
    }

    /// Says how far it reaches.
    pub(super) fn reach(&self) -> Reach {
        let Self(words) = self;
        let has = |word: &str| words.iter().any(|one| one == word);
        match self.first() {
            "" => Reach::Database,
            "USE" => Reach::OwnDatabase(name(&words[1..])),
            "SET" if ["GTID_PURGED", "GTID_SLAVE_POS", "SQL_LOG_BIN"].into_iter().any(has) => {
                Reach::Log
            }
            "CHANGE" if has("MASTER") => Reach::Log,
            "SET" if is_of_server(words) => Reach::Beyond,
            "CREATE" | "ALTER" | "DROP" => self.reach_of_thing(),
            "INSERT" | "REPLACE" | "UPDATE" | "DELETE" | "TRUNCATE" | "RENAME" | "LOCK"
            | "ANALYZE" | "OPTIMIZE" | "CHECK" => of_names(words),
            "START" if has("TRANSACTION") => Reach::Database,
            "SELECT" if has("OUTFILE") || has("DUMPFILE") => Reach::Beyond,
            "SET" | "UNLOCK" | "BEGIN" | "COMMIT" | "ROLLBACK" | "DO" | "SELECT" | "SHOW" => {
                Reach::Database
            }
            _ => Reach::Beyond,
        }
    }

    /// The same of a statement that makes, changes or drops something.
    fn reach_of_thing(&self) -> Reach {
        let Self(words) = self;
        let has = |word: &str| words.iter().any(|one| one == word);
        match self.thing().map(|at| (at, words[at].as_str())) {
            None => Reach::Beyond,
            Some((at, "DATABASE" | "SCHEMA")) => Reach::OwnDatabase(name(&words[at + 1..])),
            Some((_, "EVENT")) => Reach::Event,
            Some((_, "TRIGGER")) if words[0] == "CREATE" && of_names(words) == Reach::Database => {
                Reach::Trigger
            }
            // What is renamed can go to another database.
            Some(_) if words[0] == "ALTER" && has("RENAME") && has(".") => Reach::Beyond,
            Some(_) => of_names(words),
        }
    }

    fn first(&self) -> &str {
        self.0.first().map(String::as_str).unwrap_or_default()
    }

    /// Returns where it says what it makes, changes or drops.
    fn thing(&self) -> Option<usize> {
        self.0.iter().take(24).position(|word| THINGS.contains(&word.as_str()))
    }
}

/// Says whether something is set for more than the session, or for a statement that follows.
fn is_of_server(words: &[String]) -> bool {
    const SCOPES: [&str; 6] =
        ["GLOBAL", "PERSIST", "PERSIST_ONLY", "PASSWORD", "ROLE", "STATEMENT"];
    // What is read is no matter: `SET @x = @@GLOBAL.y`.
    let behind = words.get(1).is_some_and(|word| SCOPES.contains(&word.as_str()));
    behind || words.windows(2).any(|two| two[0] == "," && SCOPES.contains(&two[1].as_str()))
}

/// Returns the first name, in small letters; names need no quotation marks.
fn name(words: &[String]) -> String {
    let mut names = words.iter().filter(|word| !["IF", "NOT", "EXISTS"].contains(&word.as_str()));
    names.next().map(|name| name.trim_start_matches('`').to_lowercase()).unwrap_or_default()
}

/// Says whether what a statement changes has the name of a database before its own.
fn of_names(words: &[String]) -> Reach {
    let end = words.iter().position(|word| BODIES.contains(&word.as_str()));
    let head = &words[..end.unwrap_or(words.len())];
    if head.iter().any(|word| word == ".") { Reach::Beyond } else { Reach::Database }
}

/// Returns the words of a statement in capital letters, those of what only some servers execute among them; names in backticks
/// begin with one, texts are left out, and so are remarks.
fn words(statement: &[u8]) -> Vec<String> {
    let text = String::from_utf8_lossy(&statement[..statement.len().min(LOOKED_AT_BYTES)]);
    let (mut words, mut rest) = (Vec::new(), text.as_ref());
    while let Some(c) = rest.chars().next() {
        let behind = |end: &str, from: usize| {
            rest[from..].find(end).map_or("", |at| &rest[from + at + end.len()..])
        };
        rest = match c {
            '`' => {
                let after = behind("`", 1);
                let name = rest[1..rest.len() - after.len()].trim_end_matches('`');
                words.push(format!("`{name}"));
                after
            }
            '\'' | '"' => behind_text(rest),
            '#' => behind("\n", 1),
            _ if rest.starts_with("-- ") || rest.starts_with("--\n") => behind("\n", 2),
            // No server is of this version: it keeps clients from executing commands of their own.
            _ if rest.starts_with("/*M!999999") => behind("*/", 2),
            _ if rest.starts_with("/*!") => skip_digits(&rest[3..]),
            _ if rest.starts_with("/*M!") => skip_digits(&rest[4..]),
            _ if rest.starts_with("/*") => behind("*/", 2),
            '.' | '(' | ',' => {
                words.push(c.to_string());
                &rest[1..]
            }
            _ if c.is_ascii_digit() => {
                let is_number = |c: char| is_of_word(c) || c == '.';
                let length = rest.find(|c| !is_number(c)).unwrap_or(rest.len());
                words.push(String::new());
                &rest[length..]
            }
            _ if is_of_word(c) => {
                let length = rest.find(|c| !is_of_word(c)).unwrap_or(rest.len());
                words.push(rest[..length].to_uppercase());
                &rest[length..]
            }
            _ => &rest[c.len_utf8()..],
        };
    }
    words
}

/// Returns what comes behind a text in quotation marks.
fn behind_text(rest: &str) -> &str {
    let mark = rest.chars().next().unwrap_or_default();
    let mut is_escaped = false;
    for (at, c) in rest.char_indices().skip(1) {
        match c {
            _ if is_escaped => is_escaped = false,
            '\\' => is_escaped = true,
            _ if c == mark => return &rest[at + 1..],
            _ => {}
        }
    }
    ""
}

fn is_of_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_' || c == '$'
}

fn skip_digits(text: &str) -> &str {
    text.trim_start_matches(|c: char| c.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statements_are_known_by_how_far_they_reach() {
        let own = |name: &str| Reach::OwnDatabase(name.to_owned());
        for (statement, expected) in [
            ("DROP TABLE IF EXISTS `t`", Reach::Database),
            ("CREATE TABLE `a.b` (`c` decimal(1,0) DEFAULT 1.0)", Reach::Database),
            ("INSERT INTO `t` VALUES (1.5,'DROP DATABASE x')", Reach::Database),
            (
                "/*M!999999\\- enable the sandbox mode */ \n/*!40101 SET NAMES utf8 */",
                Reach::Database,
            ),
            ("LOCK TABLES `t` WRITE", Reach::Database),
            ("/*!40000 ALTER TABLE `t` DISABLE KEYS */", Reach::Database),
            ("/*!40101 SET NAMES utf8mb4 */", Reach::Database),
            (
                "/*!40014 SET @OLD_UNIQUE_CHECKS=@@UNIQUE_CHECKS, UNIQUE_CHECKS=0 */",
                Reach::Database,
            ),
            (
                "/*!50003 CREATE*/ /*!50017 DEFINER=`r`@`10.0.0.%`*/ /*!50003 TRIGGER `g` BEFORE INSERT ON `t` FOR EACH ROW SET NEW.a = 1 */",
                Reach::Trigger,
            ),
            ("CREATE DEFINER=`r`@`%` PROCEDURE `p`(a int) SELECT b.c FROM b", Reach::Database),
            (
                "/*!50001 CREATE ALGORITHM=UNDEFINED */ /*!50013 DEFINER=`r`@`%` SQL SECURITY DEFINER */ /*!50001 VIEW `v` AS select `a`.`b` from `a` */",
                Reach::Database,
            ),
            ("ALTER TABLE t COMMENT = 'it\\'s a.b it\\'s'", Reach::Database),
            ("DELETE FROM t WHERE a > 1.5", Reach::Database),
            ("SET @x = @@GLOBAL.sql_mode", Reach::Database),
            ("CREATE SCHEMA IF NOT EXISTS sakila", own("sakila")),
            ("USE `Shop`", own("shop")),
            ("use shop", own("shop")),
            (
                "CREATE DATABASE /*!32312 IF NOT EXISTS*/ `shop` /*!40100 DEFAULT CHARACTER SET utf8mb4 */",
                own("shop"),
            ),
            ("ALTER DATABASE `shop` CHARACTER SET utf8mb4", own("shop")),
            ("DROP DATABASE IF EXISTS `shop`", own("shop")),
            ("SET @@GLOBAL.GTID_PURGED=/*!80000 '+'*/ ''", Reach::Log),
            ("SET @@SESSION.SQL_LOG_BIN= 0", Reach::Log),
            (
                "/*!50106 CREATE*/ /*!50117 DEFINER=`r`@`%`*/ /*!50106 EVENT `e` ON SCHEDULE EVERY 1 DAY DO DELETE FROM t */",
                Reach::Event,
            ),
            ("SET GLOBAL max_connections = 1", Reach::Beyond),
            ("DROP TABLE `t`, `shop`.`orders`", Reach::Beyond),
            ("drop table shop . orders", Reach::Beyond),
            ("INSERT INTO `shop`.`t` VALUES (1)", Reach::Beyond),
            ("CREATE TRIGGER g BEFORE INSERT ON shop.t FOR EACH ROW SET NEW.a = 1", Reach::Beyond),
            ("CREATE USER x", Reach::Beyond),
            ("GRANT ALL ON *.* TO x", Reach::Beyond),
            ("SELECT 1 INTO OUTFILE '/etc/x'", Reach::Beyond),
            ("LOAD DATA INFILE '/etc/passwd' INTO TABLE t", Reach::Beyond),
            (
                "SET STATEMENT max_statement_time=0 FOR INSERT INTO other.t VALUES (1)",
                Reach::Beyond,
            ),
            ("SET sql_mode = '', GLOBAL max_connections = 1", Reach::Beyond),
            ("ALTER TABLE t ADD PRIMARY KEY (id), RENAME TO other.stolen", Reach::Beyond),
            ("OPTIMIZE TABLE other.t", Reach::Beyond),
            ("CHANGE MASTER TO MASTER_LOG_FILE='x'", Reach::Log),
            ("/*!50003 DROP DATABASE */ `x`", own("x")),
        ] {
            assert_eq!(Words::of(statement.as_bytes()).reach(), expected, "{statement}");
        }
    }
}
