//! Chosen tables, restores in place, and loading by several sessions (V47-V51).

use backstay_testkit::postgres::{self, PostgresServer};

use crate::postgres::{made, nasty, with_database};
use crate::postgres_faults::{with_program, with_real_programs};
use crate::shell::Shell;

const SHOP: &str = "CREATE SCHEMA sales; CREATE TYPE sales.mood AS ENUM ('good', 'bad');
    CREATE TABLE sales.customer (id serial PRIMARY KEY, name text, mood sales.mood DEFAULT 'good');
    CREATE TABLE sales.invoice (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, customer int REFERENCES sales.customer, total numeric);
    CREATE INDEX ON sales.invoice (total); COMMENT ON TABLE sales.invoice IS 'what is owed'; CREATE TABLE public.\"order\" (n int);
    INSERT INTO sales.customer (name) SELECT 'customer ' || i FROM generate_series(1, 100) i;
    INSERT INTO sales.invoice (customer, total) SELECT i, i * 10 FROM generate_series(1, 100) i; INSERT INTO public.\"order\" VALUES (1), (2);
    CREATE ROLE seller; GRANT USAGE ON SCHEMA sales TO seller; GRANT SELECT ON sales.invoice TO seller";

fn shop(server: &PostgresServer) -> Shell {
    server.sql("postgres", "CREATE DATABASE shop");
    server.sql("shop", SHOP);
    with_database(server, "shop", "")
}

/// A role that owns its database and may make no other.
fn owned_by_a_weak_role(server: &PostgresServer, shell: &Shell) {
    server.sql("postgres", "CREATE ROLE weak LOGIN PASSWORD 'weak'");
    server.sql("postgres", "ALTER DATABASE shop OWNER TO weak");
    shell.edit_config("postgres://postgres@", "postgres://weak@");
    std::fs::write(shell.path("secret"), "weak").unwrap();
}

#[test]
fn chosen_tables_go_into_a_new_database_with_what_they_need() {
    for (_, programs) in postgres::installed() {
        let server = PostgresServer::start_with(&programs);
        let shell = shop(&server);
        made(&shell);
        shell.ends(0, &["restore", "db", "--only", "invoice", "--to", "some", "--yes"]);
        let tables = "SELECT string_agg(schemaname || '.' || relname, ' ' ORDER BY relname) FROM pg_stat_user_tables";
        assert_eq!(server.sql("some", tables), "sales.invoice");
        let rows = "SELECT count(*), sum(total), obj_description('sales.invoice'::regclass), has_table_privilege('seller', 'sales.invoice', 'SELECT') FROM sales.invoice";
        assert_eq!(server.sql("some", rows), server.sql("shop", rows));
        server.sql("some", "INSERT INTO sales.invoice (customer, total) VALUES (1, 1)");
        assert_eq!(
            server.sql("some", "SELECT max(id) FROM sales.invoice"),
            "101",
            "its sequence went on"
        );
        shell.ends(
            0,
            &[
                "restore",
                "db",
                "--only",
                "sales.*",
                "--only",
                "order",
                "--to",
                "all_of_it",
                "--yes",
            ],
        );
        assert_eq!(server.data_digest("all_of_it"), server.data_digest("shop"));
        let error =
            shell.complains(1, &["restore", "db", "--only", "nothing", "--to", "x", "--yes"]);
        assert!(error.contains("the backup has no table nothing"), "{error}");
        let left = "SELECT count(*) FROM pg_database WHERE datname ~ '^backstay_'";
        assert_eq!(server.sql("postgres", left), "0");
    }
}

#[test]
fn chosen_tables_go_back_into_the_living_database_and_the_others_stay() {
    let server = PostgresServer::start();
    let shell = shop(&server);
    let before = server.data_digest("shop");
    let schema = server.digest("shop");
    made(&shell);
    server.sql("shop", "DROP TABLE sales.invoice; INSERT INTO public.\"order\" VALUES (3); ");
    shell.ends(0, &["restore", "db", "--only", "sales.invoice", "--yes"]);
    assert_eq!(
        server.sql("shop", "SELECT count(*) FROM public.\"order\""),
        "3",
        "others stay as they are"
    );
    server.sql("shop", "DELETE FROM public.\"order\" WHERE n = 3");
    assert_eq!(server.data_digest("shop"), before);
    assert_eq!(server.digest("shop"), schema);
    // One that is there is replaced; its safety backup brings back what was.
    server.sql("shop", "UPDATE sales.invoice SET total = 0");
    let spoilt = server.data_digest("shop");
    let done = shell.json(&["restore", "db", "--only", "sales.invoice", "--yes"]);
    assert_eq!(server.data_digest("shop"), before);
    let safety = done["safety_backup"].as_str().unwrap();
    shell.ends(0, &["restore", "db", "--id", safety, "--in-place", "--yes"]);
    assert_eq!(server.data_digest("shop"), spoilt);
    // What others lean on is not taken from under them.
    let now = server.digest("shop");
    let error = shell.complains(1, &["restore", "db", "--only", "sales.customer", "--yes"]);
    assert!(error.contains("other objects depend on it"), "{error}");
    assert_eq!(server.digest("shop"), now);
}

#[test]
fn role_that_may_not_create_databases_restores_in_place_and_nothing_newer_survives() {
    for (_, programs) in postgres::installed() {
        let server = PostgresServer::start_with(&programs);
        let shell = shop(&server);
        server.sql("shop", "DROP SCHEMA sales CASCADE; DROP TABLE public.\"order\"; DROP OWNED BY seller; DROP ROLE seller");
        owned_by_a_weak_role(&server, &shell);
        let weak = SHOP.replace("CREATE ROLE seller; GRANT USAGE ON SCHEMA sales TO seller; GRANT SELECT ON sales.invoice TO seller",
            "CREATE DOMAIN public.cents AS int; CREATE FUNCTION public.f(int) RETURNS int LANGUAGE sql AS 'SELECT $1'; SELECT lo_from_bytea(77, 'large')");
        server.sql("shop", &format!("SET ROLE weak; {weak}"));
        let before = server.digest("shop");
        made(&shell);
        server.sql("shop", "SET ROLE weak; CREATE SCHEMA newer; CREATE TABLE newer.t (n int); CREATE TABLE public.newer (c public.cents);
             CREATE TYPE public.color AS ENUM ('red'); CREATE VIEW public.v AS SELECT * FROM sales.customer; CREATE FUNCTION public.g(int) RETURNS int LANGUAGE sql AS 'SELECT 2';
             SELECT lo_from_bytea(78, 'newer'); DELETE FROM sales.invoice; DROP TABLE public.\"order\"; CREATE SEQUENCE public.counter; ALTER TABLE sales.customer ADD newer int");
        let spoilt = server.digest("shop");
        let plan = shell.json(&["restore", "db", "--dry-run"]);
        assert!(plan["how"].as_str().unwrap().starts_with("in place"), "{plan}");
        assert!(plan["warnings"].to_string().contains("may not create databases"), "{plan}");
        let done = shell.json(&["restore", "db", "--yes"]);
        assert_eq!(server.digest("shop"), before);
        let safety = done["safety_backup"].as_str().unwrap();
        let shown = shell.json(&["show", safety]);
        assert!(shown["held"].as_bool().unwrap_or(true), "{shown}");
        shell.ends(0, &["restore", "db", "--id", safety, "--yes"]);
        assert_eq!(server.digest("shop"), spoilt);
        assert!(
            std::fs::read_dir(shell.path("home/spool")).unwrap().next().is_none(),
            "no dump is left"
        );
    }
}

#[test]
fn restore_in_place_that_fails_leaves_everything_as_it_was() {
    let server = PostgresServer::start();
    nasty(&server, "shop");
    let shell = with_database(&server, "shop", "");
    made(&shell);
    server.sql("shop", "CREATE TABLE app.newer (n int); DELETE FROM app.types WHERE id > 100");
    let before = server.digest("shop");
    let scripts = [
        ("\"$REAL\" \"$@\" | head -c 20000; exit 1", "pg_restore failed"),
        ("\"$REAL\" \"$@\" | head -n 400; exit 0", ""),
        (
            "\"$REAL\" \"$@\" | sed '/^COPY app.secret_rows/,/^\\\\\\./{/^[a-z]/d}'; exit 0",
            "app.secret_rows should have 2 rows",
        ),
        ("echo 'SELECT 1/0;'; \"$REAL\" \"$@\"", "division by zero"),
        ("\"$REAL\" \"$@\" | head -c 20000; kill -9 $$", "pg_restore failed"),
    ];
    for (script, expected) in scripts {
        with_program(&server, &shell, "pg_restore", script);
        let error = shell.complains(1, &["restore", "db", "--in-place", "--yes"]);
        assert!(error.contains(expected), "{script}: {error}");
        assert_eq!(server.digest("shop"), before, "{script}");
        assert!(
            std::fs::read_dir(shell.path("home/spool")).unwrap().next().is_none(),
            "{script}: no dump is left"
        );
        with_real_programs(&server, &shell);
    }
    // Without a safety backup, nothing of what is there would be left.
    let words = ["restore", "db", "--in-place", "--yes", "--no-safety-backup"];
    let error = shell.complains(2, &words);
    assert!(error.contains("the only copy"), "{error}");
    // And then it works, as superuser, on all that there can be.
    let original = shell.json(&["backups", "db"]).as_array().unwrap().last().unwrap()["id"]
        .as_str()
        .unwrap()
        .to_owned();
    shell.ends(0, &["restore", "db", "--to", "as_backed_up", "--id", &original, "--yes"]);
    shell.ends(0, &["restore", "db", "--in-place", "--id", &original, "--yes"]);
    assert_eq!(server.data_digest("shop"), server.data_digest("as_backed_up"));
}

#[test]
fn several_sessions_load_a_spooled_dump_to_the_same_database() {
    for (_, programs) in postgres::installed() {
        let server = PostgresServer::start_with(&programs);
        nasty(&server, "shop");
        let before = server.digest("shop");
        let shell = with_database(&server, "shop", "restore_jobs = 3");
        made(&shell);
        server.sql("shop", "DROP TABLE app.types CASCADE");
        shell.ends(0, &["restore", "db", "--yes"]);
        assert_eq!(server.digest("shop"), before);
        assert!(
            std::fs::read_dir(shell.path("home/spool")).unwrap().next().is_none(),
            "no dump is left"
        );
    }
}

#[test]
fn what_an_app_writes_until_it_is_stopped_is_kept_by_a_restore_in_place() {
    let server = PostgresServer::start();
    server.sql("postgres", "CREATE DATABASE shop");
    server.sql("shop", "CREATE TABLE orders AS SELECT 1 AS n");
    let stop = format!(
        "before_restore = {{ run = ['{}', '{}', '-c', 'INSERT INTO orders VALUES (2)'] }}",
        server.programs().join("psql").display(),
        server.url("shop"),
    );
    let shell = with_database(&server, "shop", &stop);
    shell.ends(0, &["backup", "db"]);
    let done = shell.json(&["restore", "db", "--in-place", "--yes"]);
    assert_eq!(server.sql("shop", "SELECT count(*) FROM orders"), "1");
    let safety = done["safety_backup"].as_str().unwrap();
    shell.ends(0, &["restore", "db", "--id", safety, "--to", "then", "--yes"]);
    assert_eq!(server.sql("then", "SELECT count(*) FROM orders"), "2");
}
