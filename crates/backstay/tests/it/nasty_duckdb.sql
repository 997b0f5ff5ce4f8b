-- All that a DuckDB database can hold and a careless export loses.
CREATE TYPE mood AS ENUM ('ok', 'it''s; fine', '', 'größe');
CREATE SCHEMA "S 2"; CREATE SCHEMA empty_one;
CREATE TYPE "S 2".pt AS STRUCT(x INTEGER, y INTEGER);
CREATE TYPE whole AS INTEGER;
CREATE SEQUENCE seq START 5; CREATE SEQUENCE "S 2".seq START 10 INCREMENT BY -2 MINVALUE -100 MAXVALUE 10 CYCLE;
SELECT nextval('seq'), nextval('seq'), nextval('"S 2".seq');
CREATE MACRO positive(a) AS a > 0, (a, b) AS a + b > 0;
CREATE MACRO "S 2".pairs(a, b := 'x;''y') AS TABLE SELECT a AS a, b AS b;
CREATE TABLE types (
  a BOOLEAN, b TINYINT, c SMALLINT, d INTEGER, e BIGINT, f HUGEINT, g UTINYINT, h USMALLINT, i UINTEGER, j UBIGINT, k UHUGEINT, l FLOAT, m DOUBLE,
  n DECIMAL(4,1), o DECIMAL(9,3), p DECIMAL(18,5), q DECIMAL(38,10), r VARCHAR, s BLOB, t BIT, u DATE, v TIME, w TIMESTAMP, w_s TIMESTAMP_S, w_ms TIMESTAMP_MS,
  w_ns TIMESTAMP_NS, tz TIMESTAMPTZ, ttz TIMETZ, tns TIME_NS, iv INTERVAL, uu UUID, js JSON, en mood, big BIGNUM, li INTEGER[], lh HUGEINT[], ls VARCHAR[],
  st STRUCT(a INTEGER, "b c" VARCHAR, h HUGEINT), mp MAP(VARCHAR, INTEGER), mh MAP(INTEGER, INTERVAL), un UNION(x INTEGER, y VARCHAR), ar INTEGER[3], pt "S 2".pt,
  nest STRUCT(a STRUCT(b INTEGER[])[])[], le mood[], wh whole
);
INSERT INTO types VALUES (true, -128, -32768, -2147483648, -9223372036854775808, -170141183460469231731687303715884105728, 255, 65535, 4294967295, 18446744073709551615,
  340282366920938463463374607431768211455, 'nan', 1e308, 123.4, 123456.789, 1234567890123.12345, 1234567890123456789012345678.0123456789, e'a''b"\n;\\日本🦀', '\x00\xFF\x27'::BLOB, '0101'::BIT,
  '0044-03-15 (BC)', '23:59:59.999999', '290309-12-22 (BC) 00:00:00', '1999-01-01 00:00:01', '1999-01-01 00:00:01.123', '1999-01-01 00:00:01.123456789', '2024-06-30 23:59:59.999999+02',
  '12:34:56.789+05:30', '12:34:56.123456789', INTERVAL '1 year 2 days 3.123456 seconds', '123e4567-e89b-12d3-a456-426614174000', '{"a": [1, 2.50], "x;''": null}', 'it''s; fine',
  '123456789012345678901234567890123456789012345678901234567890'::BIGNUM, [1, NULL, 3], [170141183460469231731687303715884105727, NULL], ['a,b', 'it''s "q"', NULL, '', 'NULL', ' sp ', '[', '\'],
  {'a': 1, 'b c': 'x, y', 'h': 170141183460469231731687303715884105727}, MAP {'k,1': 1}, MAP {1: INTERVAL '1.000001 seconds'}, union_value(y := 'txt'), [1, 2, 3], {'x': 1, 'y': 2},
  [{'a': [{'b': [1, 2]}]}], ['ok', 'größe'], 7);
INSERT INTO types (d, u, w, tz, l, m, f, iv, st) VALUES (2, 'infinity', 'infinity', '-infinity', '-inf', '-0', 0, INTERVAL '-1 month 1 microsecond', {'a': NULL, 'b c': e'it''s "x", {y: z}\n', 'h': -1});
INSERT INTO types (d) SELECT NULL FROM range(3);
CREATE TABLE "S 2"."odd ""n;'ame" ("se lect" INTEGER, "ta""b" VARCHAR DEFAULT 'x;''y', PRIMARY KEY ("se lect"));
INSERT INTO "S 2"."odd ""n;'ame" VALUES (1, e'line\nline'), (2, DEFAULT);
CREATE TABLE "S 2".types (x INTEGER); INSERT INTO "S 2".types VALUES (1);
CREATE TABLE "a.b" (i INTEGER); CREATE TABLE a_b (i INTEGER); CREATE SCHEMA a; CREATE TABLE a.b (i INTEGER); CREATE TABLE "../up" (i INTEGER); CREATE TABLE "größe" ("ä" INTEGER); CREATE TABLE "-- x" (i INTEGER);
INSERT INTO "a.b" VALUES (1); INSERT INTO a_b VALUES (2); INSERT INTO a.b VALUES (3); INSERT INTO "../up" VALUES (4); INSERT INTO "größe" VALUES (5); INSERT INTO "-- x" VALUES (6);
CREATE TABLE defaults (id INTEGER DEFAULT nextval('seq'), n VARCHAR NOT NULL UNIQUE, made TIMESTAMP DEFAULT current_timestamp, CHECK (length(n) < 100));
INSERT INTO defaults (n, made) VALUES ('q', '2024-01-01');
CREATE TABLE checked (a INTEGER CHECK (positive(a)), b INTEGER GENERATED ALWAYS AS (a * 2) VIRTUAL, c HUGEINT);
INSERT INTO checked (a, c) VALUES (4, 170141183460469231731687303715884105727);
CREATE TABLE parent (id INTEGER PRIMARY KEY); CREATE TABLE child (id INTEGER REFERENCES parent (id)); INSERT INTO parent VALUES (1); INSERT INTO child VALUES (1);
-- Named as the files of an export are.
CREATE TABLE "0003" (i INTEGER); CREATE TABLE "0001" (i INTEGER); CREATE TABLE "0002" (i INTEGER); INSERT INTO "0001" VALUES (11); INSERT INTO "0002" VALUES (12); INSERT INTO "0003" VALUES (13);
CREATE TABLE nothing (a INTEGER); CREATE TABLE nulls (a INTEGER); INSERT INTO nulls VALUES (NULL), (NULL);
-- Views of others, in an order that is not that of their names.
CREATE VIEW z_first AS SELECT d, positive(d) AS p FROM types; CREATE VIEW "S 2".second AS SELECT * FROM main.z_first; CREATE VIEW a_last AS SELECT *, 'it''s; x' AS x FROM "S 2".second;
CREATE VIEW of_macro AS SELECT * FROM "S 2".pairs(1);
CREATE INDEX ix ON parent (id); CREATE UNIQUE INDEX "ix;2" ON "S 2"."odd ""n;'ame" (("ta""b" || 'x'));
COMMENT ON TABLE types IS 'it''s; a comment'; COMMENT ON COLUMN types.a IS 'a column'; COMMENT ON VIEW a_last IS 'a view'; COMMENT ON INDEX ix IS 'an index'; COMMENT ON SEQUENCE seq IS 'a sequence';
COMMENT ON TYPE mood IS 'a type'; COMMENT ON MACRO positive IS 'a macro'; COMMENT ON MACRO TABLE "S 2".pairs IS 'a macro of tables';
