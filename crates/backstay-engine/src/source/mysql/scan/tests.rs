//! Dumps in all shapes, cut in all places.

use super::*;

const DUMP: &str = r"/*M!999999\- enable the sandbox mode */
-- MariaDB dump 10.19  Distrib 10.11.19-MariaDB
--
/*!40101 SET NAMES utf8mb4 */;
-- CHANGE MASTER TO MASTER_LOG_FILE='bin.000002', MASTER_LOG_POS=1234;
/* a ; in a comment */
CREATE TABLE `a``b` (
  `x;'` int(11) DEFAULT -1 COMMENT 'it''s; -- \' nothing',
  `y` int GENERATED ALWAYS AS (1 --1) STORED /*!50100 COMMENT 'z;' */
);
INSERT INTO `a``b` (`x;'`) VALUES (1),('a),(b'),('\\'),('it\'s (');
INSERT INTO `a``b` (`x;'`) VALUES
(-2);
INSERT INTO `c` VALUES (0x28,NULL,_binary 'x');
-- Dump completed on 2026-11-21
";

fn scanned(dump: &[u8], piece: usize) -> Result<Scanned, &'static str> {
    let mut scanner = Scanner::default();
    dump.chunks(piece).for_each(|piece| scanner.push(piece));
    scanner.finish()
}

#[test]
fn rows_are_counted_however_a_dump_is_cut_and_whatever_its_strings_say() {
    for piece in [1, 2, 3, 7, 64, DUMP.len()] {
        let scanned = scanned(DUMP.as_bytes(), piece).unwrap();
        let rows: Vec<_> = scanned.rows.iter().map(|(t, r)| (t.as_slice(), *r)).collect();
        assert_eq!(rows, [(b"a`b".as_slice(), 5), (b"c".as_slice(), 1)], "{piece}");
        assert_eq!(scanned.position.as_deref(), Some("bin.000002:1234"));
        assert_eq!(scanned.made.iter().map(Vec::as_slice).collect::<Vec<_>>(), [b"a`b"]);
    }
}

#[test]
fn statements_come_one_by_one_without_remarks() {
    let mut found = Vec::new();
    let mut statements = Statements::default();
    for piece in DUMP.as_bytes().chunks(5) {
        let pushed = statements.push(piece, |one| {
            if let Found::Statement(statement) = one {
                found.push(String::from_utf8(statement.to_vec()).unwrap());
            }
            Ok::<(), ()>(())
        });
        assert_eq!(pushed, Ok(()));
    }
    assert_eq!(found.len(), 5, "{found:#?}");
    assert!(found[0].ends_with("/*!40101 SET NAMES utf8mb4 */"), "{}", found[0]);
    assert!(found[1].starts_with("CREATE TABLE `a``b` ("), "{}", found[1]);
    assert!(found[1].contains("(1 --1) STORED /*!50100 COMMENT 'z;' */"), "{}", found[1]);
    assert!(found[3].ends_with("VALUES\n(-2)"), "{}", found[3]);
    assert_eq!(statements.rest(), b"");
}

#[test]
fn remarks_inside_of_programs_stay_and_delimiters_change() {
    let body = "CREATE PROCEDURE p()\nBEGIN\n  -- it's; one\n  SELECT 1 # it's;\n  ; SELECT 5--1; /* it's; */\nEND";
    for piece in [1, 2, 7, 400] {
        let (mut statements, mut found) = (Statements::default(), Vec::new());
        statements.set_delimiter(b";;");
        assert!(statements.is_between());
        for piece in format!("-- it's\n# it's\n{body} ;;\nSELECT 2;;").as_bytes().chunks(piece) {
            let pushed = statements.push(piece, |one| {
                if let Found::Statement(statement) = one {
                    found.push(String::from_utf8(statement.to_vec()).unwrap());
                }
                Ok::<(), ()>(())
            });
            assert_eq!(pushed, Ok(()));
        }
        assert_eq!(found, [body, "SELECT 2"], "{piece}");
    }
}

#[test]
fn chosen_tables_bring_their_statements_all_settings_and_all_sequences() {
    let tables = BTreeSet::from(["b".to_owned()]);
    let mut chosen = Chosen::new(Some(&tables));
    let statements: [(&[u8], bool); 9] = [
        (b"/*!40101 SET NAMES utf8mb4 */", true),
        (b"CREATE SEQUENCE `a` START WITH 1", true),
        (b"DO SETVAL(`a`, 7, 0)", true),
        (b"CREATE TABLE `a` (`b` int)", false),
        (b"INSERT INTO `a` VALUES ('SET ')", false),
        (b"/*!101100 SET @@system_versioning_insert_history=1 */", true),
        (b"CREATE TABLE `b` (`a` int)", true),
        (b"INSERT INTO `b` VALUES (1)", true),
        (b"CREATE TABLE `c` (`b` int)", false),
    ];
    for (statement, is_wanted) in statements {
        assert_eq!(chosen.wants(statement), is_wanted, "{}", statement.escape_ascii());
    }
    assert!(Chosen::new(None).wants(b"CREATE TABLE `a` (`b` int)"));
}

#[test]
fn dump_that_is_cut_anywhere_is_not_whole() {
    let end = DUMP.rfind("-- Dump completed").unwrap() + TRAILER.len() + 1;
    for length in 0..end - 1 {
        assert!(scanned(&DUMP.as_bytes()[..length], 64).is_err(), "{length}");
    }
    assert!(scanned(DUMP.as_bytes(), 64).is_ok());
    let mut more = DUMP.to_owned();
    more.push_str("INSERT INTO `c` VALUES (1);\n");
    assert!(scanned(more.as_bytes(), 64).is_err());
}
