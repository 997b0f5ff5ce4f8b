-- Everything that a dump could lose.
CREATE SCHEMA app;
CREATE SCHEMA "Odd Schema";
CREATE ROLE "owner of things" LOGIN PASSWORD 'hidden';
CREATE ROLE readers NOLOGIN;
GRANT readers TO "owner of things";
CREATE TYPE app.mood AS ENUM ('fine', 'so ''so''', 'bad');
CREATE DOMAIN app.percent AS int CHECK (VALUE BETWEEN 0 AND 100);
CREATE TYPE app.pair AS (a int, b text);
CREATE TABLE app.types (
  id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  flag bool, small smallint, whole int, amount numeric(20, 5), real4 real, real8 double precision,
  words text, fixed char(5), bytes bytea, at timestamptz, day date, lasting interval, clock time,
  id128 uuid, json1 json, json2 jsonb, numbers int[], network inet, mac macaddr, spot point,
  range int4range, bits bit varying, search tsvector, mood app.mood, share app.percent, pair app.pair, xml xml,
  doubled int GENERATED ALWAYS AS (whole * 2) STORED
);
INSERT INTO app.types (flag, small, whole, amount, real4, real8, words, fixed, bytes, at, day, lasting, clock, id128, json1, json2,
  numbers, network, mac, spot, range, bits, search, mood, share, pair, xml)
SELECT i % 2 = 0, i % 100, i, i / 7.0, i / 3.0, sqrt(i), E'line\nbreak\ttab \\ back "quote" ''single'' é ' || i, 'ab',
  decode(md5(i::text), 'hex'), '2026-03-08 12:00:00+02'::timestamptz + i * interval '1 hour', '2026-01-01'::date + i,
  i * interval '1 minute', '12:34:56', md5(i::text)::uuid, '{"a":  1}', jsonb_build_object('n', i), ARRAY[i, NULL, -i],
  '10.0.0.1/8', '08:00:2b:01:02:03', point(i, -i), int4range(i, i + 10), B'1010', to_tsvector('simple', 'some words'),
  (ARRAY['fine', 'so ''so''', 'bad'])[1 + i % 3]::app.mood, i % 101, ROW(i, 'b')::app.pair, NULL
FROM generate_series(1, 500) i;
INSERT INTO app.types DEFAULT VALUES;
CREATE TABLE "Odd Schema"."--table; with 'quotes' and ""more""" ("-- column" text, "sel""ect" int);
INSERT INTO "Odd Schema"."--table; with 'quotes' and ""more""" VALUES (E'\\.', 1), ('', NULL), (NULL, 2), (E'\\N', 3);
CREATE TABLE public.same (n int); CREATE TABLE app.same (n int);
INSERT INTO public.same VALUES (1); INSERT INTO app.same VALUES (2), (3);
CREATE TABLE app.empty ();
CREATE TABLE app.parent (id int PRIMARY KEY, name text);
CREATE TABLE app.child (extra text) INHERITS (app.parent);
INSERT INTO app.parent VALUES (1, 'of the parent'); INSERT INTO app.child VALUES (2, 'of the child', 'more');
CREATE TABLE app.measured (at date NOT NULL, value int) PARTITION BY RANGE (at);
CREATE TABLE app.measured_2025 PARTITION OF app.measured FOR VALUES FROM ('2025-01-01') TO ('2026-01-01');
CREATE TABLE app.measured_rest PARTITION OF app.measured DEFAULT;
INSERT INTO app.measured SELECT '2025-12-01'::date + i, i FROM generate_series(1, 60) i;
CREATE TABLE app.a (id int PRIMARY KEY, b int);
CREATE TABLE app.b (id int PRIMARY KEY, a int REFERENCES app.a DEFERRABLE INITIALLY DEFERRED);
ALTER TABLE app.a ADD FOREIGN KEY (b) REFERENCES app.b DEFERRABLE INITIALLY DEFERRED;
BEGIN; INSERT INTO app.a VALUES (1, 1); INSERT INTO app.b VALUES (1, 1); COMMIT;
CREATE VIEW app.seen AS SELECT id, words FROM app.types WHERE flag;
CREATE VIEW app.seen_again AS SELECT count(*) AS n FROM app.seen;
CREATE MATERIALIZED VIEW app.kept AS SELECT mood, count(*) AS n FROM app.types GROUP BY 1;
CREATE UNIQUE INDEX ON app.types (lower(words)) WHERE flag;
CREATE SEQUENCE app.counter START 1000; SELECT nextval('app.counter');
CREATE FUNCTION app.add(a int, b int) RETURNS int LANGUAGE sql IMMUTABLE AS $$ SELECT a + b $$;
CREATE PROCEDURE app.nothing() LANGUAGE plpgsql AS $$ BEGIN NULL; END $$;
CREATE FUNCTION app.touched() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN NEW.name = upper(NEW.name); RETURN NEW; END $$;
CREATE TRIGGER touch BEFORE INSERT ON app.parent FOR EACH ROW EXECUTE FUNCTION app.touched();
CREATE AGGREGATE app.total(int) (SFUNC = app.add, STYPE = int, INITCOND = '0');
CREATE FUNCTION app.noted() RETURNS event_trigger LANGUAGE plpgsql AS $$ BEGIN NULL; END $$;
CREATE EVENT TRIGGER noting ON ddl_command_end EXECUTE FUNCTION app.noted();
CREATE TABLE app.secret_rows (owner text, what text);
INSERT INTO app.secret_rows VALUES ('someone', 'hidden'), ('another', 'hidden too');
ALTER TABLE app.secret_rows ENABLE ROW LEVEL SECURITY; ALTER TABLE app.secret_rows FORCE ROW LEVEL SECURITY;
CREATE POLICY own ON app.secret_rows USING (owner = current_user);
ALTER TABLE app.secret_rows OWNER TO "owner of things";
GRANT USAGE ON SCHEMA app TO readers; GRANT SELECT ON app.types TO readers WITH GRANT OPTION;
ALTER DEFAULT PRIVILEGES IN SCHEMA app GRANT SELECT ON TABLES TO readers;
COMMENT ON TABLE app.types IS 'it''s a table'; COMMENT ON COLUMN app.types.words IS 'words';
CREATE PUBLICATION changes FOR TABLE app.a, app.b;
SELECT lo_create(4242); SELECT lo_put(4242, 0, decode(repeat('c0ffee', 3000), 'hex'));
CREATE STATISTICS app.related ON flag, mood FROM app.types;
CREATE RULE quiet AS ON DELETE TO app.same DO INSTEAD NOTHING;
-- What not every build of a server has.
DO $$ BEGIN
  IF EXISTS (SELECT FROM pg_available_extensions WHERE name = 'pg_trgm') THEN
    CREATE EXTENSION pg_trgm;
    CREATE INDEX types_words ON app.types USING gin (words gin_trgm_ops);
    UPDATE app.types SET xml = '<a>1</a>' WHERE id < 10;
  END IF;
END $$;
