-- All that a MariaDB database can hold and a careless backup loses.
SET NAMES utf8mb4;
CREATE TABLE types (
  id bigint unsigned NOT NULL AUTO_INCREMENT PRIMARY KEY,
  tiny tinyint, small smallint, medium mediumint, plain int, big bigint unsigned, is_it boolean,
  exact decimal(30,10), single float, `double` double, bits bit(17),
  day date, at datetime(6), stamp timestamp(6) NULL, hour time(3), year year,
  c char(5), v varchar(200) CHARACTER SET latin1, t longtext, bin binary(4), vbin varbinary(300), b longblob,
  e enum('a','it''s','ü'), s set('x','y','z'), j json, g geometry, p point, u uuid, i6 inet6, i4 inet4,
  twice int GENERATED ALWAYS AS (plain * 2) VIRTUAL, thrice int GENERATED ALWAYS AS (plain * 3) STORED,
  hidden int INVISIBLE DEFAULT 7
) DEFAULT CHARSET=utf8mb4 AUTO_INCREMENT=1000 COMMENT='it''s a ''comment''; -- no remark /* nor this */';
INSERT INTO types (tiny, small, medium, plain, big, is_it, exact, single, `double`, bits, day, at, stamp, hour, year, c, v, t, bin, vbin, b, e, s, j, g, p, u, i6, i4, hidden)
VALUES (-128, -32768, -8388608, 42, 18446744073709551615, 1, 12345678901234567890.0123456789, 1.5, -2.25e300, b'10101', '2024-02-29', '2024-02-29 12:34:56.789012', '2024-06-30 23:59:59.999999', '-838:59:59', 2155,
  'ab', 'é', 'line\nline\ttab\\ \' " ; -- \Z \0 日本語 🦀', x'00ff00ff', x'00275c0a0d1a22', x'deadbeef00', 'it''s', 'x,z', '{"a": [1, "x;''"]}', ST_GeomFromText('LINESTRING(0 0, 1 1)'), POINT(1, 2), '123e4567-e89b-12d3-a456-426614174000', '::1', '10.0.0.1', 8),
  (NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, '', '', '', '', '', NULL, '', NULL, NULL, NULL, NULL, NULL, NULL, NULL);
CREATE TABLE `it's a "name"; -- with `` everything; DROP` (`id``x;` int PRIMARY KEY, `values (1),(2)` text);
INSERT INTO `it's a "name"; -- with `` everything; DROP` VALUES (1, '),('), (2, 'x''),(''y'), (3, '\\'), (4, '\\''),(');
CREATE TABLE `-leading` (`select` int);
INSERT INTO `-leading` VALUES (-1), (-2), (-3);
CREATE TABLE `with.dot` (n int);
INSERT INTO `with.dot` VALUES (1);
CREATE TABLE `größe` (`ä` varchar(10)) DEFAULT CHARSET=utf8mb4;
INSERT INTO `größe` VALUES ('ö');
CREATE TABLE nothing (n int);
-- References in cycles, to itself, and with an order that no single pass has.
CREATE TABLE hen (id int PRIMARY KEY, egg int);
CREATE TABLE egg (id int PRIMARY KEY, hen int, CONSTRAINT from_hen FOREIGN KEY (hen) REFERENCES hen (id) ON DELETE CASCADE);
INSERT INTO hen VALUES (1, NULL);
INSERT INTO egg VALUES (1, 1);
UPDATE hen SET egg = 1;
ALTER TABLE hen ADD CONSTRAINT from_egg FOREIGN KEY (egg) REFERENCES egg (id);
CREATE TABLE tree (id int AUTO_INCREMENT PRIMARY KEY, up int, FOREIGN KEY (up) REFERENCES tree (id));
INSERT INTO tree VALUES (5, NULL), (3, 5), (9, 3);
DELETE FROM tree WHERE id = 9;
-- What has no id of its own, zero as one, partitions, versions, another engine, a check.
CREATE TABLE zero (id int AUTO_INCREMENT PRIMARY KEY, n int CHECK (n <> 13));
SET sql_mode = 'NO_AUTO_VALUE_ON_ZERO';
INSERT INTO zero VALUES (0, 1);
SET sql_mode = DEFAULT;
CREATE TABLE parts (id int, y int, PRIMARY KEY (id, y)) PARTITION BY RANGE (y) (PARTITION old VALUES LESS THAN (2000), PARTITION new VALUES LESS THAN MAXVALUE);
INSERT INTO parts VALUES (1, 1999), (2, 2024);
CREATE TABLE aged (id int PRIMARY KEY, v int) WITH SYSTEM VERSIONING;
INSERT INTO aged VALUES (1, 1);
CREATE TABLE plain_aria (n int) ENGINE=Aria;
INSERT INTO plain_aria VALUES (1);
CREATE TABLE plain_isam (n int, FULLTEXT KEY (w), w text) ENGINE=MyISAM;
INSERT INTO plain_isam VALUES (1, 'words of an index');
CREATE SEQUENCE counter START WITH 100 INCREMENT BY 5;
SELECT nextval(counter);
CREATE TABLE log (id int AUTO_INCREMENT PRIMARY KEY, what varchar(200));
-- Programs and views: of each other, in an order that is not that of their names, of another definer, another sql_mode.
CREATE VIEW a_of_b AS SELECT n + 1 AS n FROM (SELECT 1 AS n) x;
CREATE VIEW b AS SELECT id, v FROM types WHERE v <> 'it''s; ü';
CREATE OR REPLACE VIEW a_of_b AS SELECT id FROM b;
CREATE DEFINER='somebody'@'%' SQL SECURITY INVOKER VIEW by_another AS SELECT count(*) AS n FROM types;
CREATE ALGORITHM=MERGE VIEW checked AS SELECT id, n FROM zero WHERE n > 0 WITH CASCADED CHECK OPTION;
DELIMITER ;;
CREATE FUNCTION twice(n int) RETURNS int DETERMINISTIC COMMENT 'it''s; two' BEGIN DECLARE x int; SET x = n * 2; RETURN x; END;;
CREATE VIEW z_uses_function AS SELECT twice(id) AS n FROM zero;;
CREATE PROCEDURE `odd; proc`(IN a varchar(10), OUT b int) MODIFIES SQL DATA SQL SECURITY INVOKER BEGIN INSERT INTO log (what) VALUES (concat(a, '; ')); SET b = 1; END;;
CREATE TRIGGER t_first BEFORE INSERT ON log FOR EACH ROW SET NEW.what = concat(NEW.what, ' first');;
CREATE TRIGGER t_second BEFORE INSERT ON log FOR EACH ROW FOLLOWS t_first BEGIN SET NEW.what = concat(NEW.what, ' second;'); END;;
CREATE TRIGGER t_before BEFORE INSERT ON log FOR EACH ROW PRECEDES t_first SET NEW.what = concat(NEW.what, ' zeroth');;
CREATE TRIGGER t_after AFTER UPDATE ON zero FOR EACH ROW INSERT INTO log (what) VALUES ('zero changed');;
SET sql_mode = 'ANSI_QUOTES,PIPES_AS_CONCAT';;
CREATE PROCEDURE ansi() SELECT "id" FROM "zero" WHERE 'a' || 'b' = 'ab';;
SET sql_mode = DEFAULT;;
CREATE EVENT later ON SCHEDULE EVERY 1 DAY STARTS '2037-01-01 00:00:00' ON COMPLETION PRESERVE DISABLE COMMENT 'it''s' DO INSERT INTO log (what) VALUES ('event');;
CREATE EVENT soon ON SCHEDULE EVERY 1 DAY STARTS '2037-01-01 00:00:00' DO DELETE FROM log WHERE id < 0;;
DELIMITER ;
INSERT INTO log (what) VALUES ('row');
