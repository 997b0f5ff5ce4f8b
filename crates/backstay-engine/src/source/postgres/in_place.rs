//! Restoring in place: all that was there is dropped and all that was backed up is loaded in one transaction, which the
//! server takes back if anything fails.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};

use backstay_format::TableRows;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::process::{ChildStdin, ChildStdout};
use tokio_postgres::Client;

use super::archive::Entry;
use super::connection::PostgresConnection as _;
use super::error::{PostgresError, refused};
use super::exchange::DURABLE;
use super::globals::literal;
use super::load::{DUMP_FILE, LIST_FILE, connection_string};
use super::names::{self, bytes_of};
use super::selection::{self, Chosen, Surroundings};
use super::tools::Tools;
use super::{PostgresSource, describe};
use crate::cx::Cx;
use crate::source::SourceError;
use crate::source::program::Program;
use crate::spool;

const BEFORE_FILE: &str = "before.sql";
const AFTER_FILE: &str = "after.sql";
const COPY_BYTES: usize = 256 * 1024;
/// How `pg_restore --single-transaction` ends what it writes, but for remarks that fit into so many bytes.
const COMMIT: &[u8] = b"\nCOMMIT;\n";
const KEPT_BYTES: usize = 4 * 1024;

/// A dump that was proven, and what is done with it. Nothing of it is needed any more once the transaction has ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InPlace {
    /// Host and port.
    pub(super) server: String,
    /// Its version, which its programs must fit.
    pub(super) major: u32,
    /// The database.
    pub(super) database: String,
    /// The spool folder with the dump.
    pub(super) folder: PathBuf,
}

/// Schemas that are kept and only emptied, as one list for SQL: everybody's, and those that extensions live in.
const KEPT_SCHEMAS: &str = "SELECT oid FROM pg_namespace WHERE nspname = 'public'
     OR oid IN (SELECT extnamespace FROM pg_extension)";
/// Schemas that are the user's, as a condition on `n`.
const USERS_SCHEMA: &str = "n.nspname !~ '^pg_' AND n.nspname <> 'information_schema'
     AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.classid = 'pg_namespace'::regclass AND d.objid = n.oid AND d.deptype = 'e')";

/// Drops all that a dump can hold: whole schemas, what lies in those that are kept, and what lies in none. What belongs to
/// an extension stays with it.
fn drop_everything() -> String {
    format!(
        "DO $backstay$
         DECLARE statements text[]; statement text;
         BEGIN
           statements := ARRAY(
             SELECT format('DROP EVENT TRIGGER IF EXISTS %I', evtname) FROM pg_event_trigger
             UNION ALL SELECT format('DROP PUBLICATION IF EXISTS %I', pubname) FROM pg_publication
             UNION ALL SELECT format('DROP SCHEMA %I CASCADE', n.nspname) FROM pg_namespace n
              WHERE {USERS_SCHEMA} AND n.oid NOT IN ({KEPT_SCHEMAS})
             UNION ALL
             SELECT format('DROP %s IF EXISTS %s CASCADE', i.type, i.identity)
               FROM (SELECT 'pg_class'::regclass AS class, oid AS object, relnamespace AS space FROM pg_class WHERE relkind IN ('r', 'p', 'f', 'v', 'm', 'S')
                     UNION ALL SELECT 'pg_proc'::regclass, oid, pronamespace FROM pg_proc
                     UNION ALL SELECT 'pg_type'::regclass, oid, typnamespace FROM pg_type
                                WHERE typtype IN ('d', 'e', 'r') OR typtype = 'c' AND (SELECT relkind FROM pg_class c WHERE c.oid = typrelid) = 'c'
                     UNION ALL SELECT 'pg_operator'::regclass, oid, oprnamespace FROM pg_operator
                     UNION ALL SELECT 'pg_opfamily'::regclass, oid, opfnamespace FROM pg_opfamily
                     UNION ALL SELECT 'pg_collation'::regclass, oid, collnamespace FROM pg_collation
                     UNION ALL SELECT 'pg_conversion'::regclass, oid, connamespace FROM pg_conversion
                     UNION ALL SELECT 'pg_ts_config'::regclass, oid, cfgnamespace FROM pg_ts_config
                     UNION ALL SELECT 'pg_ts_dict'::regclass, oid, dictnamespace FROM pg_ts_dict) o,
                    pg_identify_object(o.class, o.object, 0) i
              WHERE o.space IN ({KEPT_SCHEMAS}) AND o.space <> 'pg_catalog'::regnamespace
                AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.classid = o.class AND d.objid = o.object AND d.deptype IN ('e', 'i'))
             UNION ALL SELECT format('SELECT lo_unlink(%s)', oid) FROM pg_largeobject_metadata);
           FOREACH statement IN ARRAY statements LOOP EXECUTE statement; END LOOP;
         END $backstay$;\n"
    )
}

/// Names what stands in the way of dropping everything: what the role does not own.
pub(super) async fn not_owned(client: &Client) -> Result<Vec<String>, PostgresError> {
    let query = format!(
        "SELECT {class} FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
          WHERE c.relkind IN ('r', 'p', 'f', 'v', 'm', 'S') AND {USERS_SCHEMA} AND NOT pg_has_role(c.relowner, 'USAGE')
            AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.deptype = 'e')
          UNION ALL SELECT {schema} FROM pg_namespace n
          WHERE {USERS_SCHEMA} AND n.oid NOT IN ({KEPT_SCHEMAS}) AND NOT pg_has_role(n.nspowner, 'USAGE') LIMIT 5",
        class = bytes_of("c.oid::regclass"),
        schema = bytes_of("format('the schema %I', n.nspname)"),
    );
    names::read(client, &query, "look who owns what").await
}

/// What of a dump is not loaded, since what it would make is there and stays.
pub(super) struct Kept {
    extensions: Vec<String>,
    schemas: Vec<String>,
    /// Those of the schemas whose rights and comment the role may not change.
    foreign_schemas: Vec<String>,
}

impl Kept {
    pub(super) async fn of(client: &Client) -> Result<Self, PostgresError> {
        let schemas = |condition: &str| {
            let name = bytes_of("nspname");
            format!("SELECT {name} FROM pg_namespace WHERE oid IN ({KEPT_SCHEMAS}) {condition}")
        };
        let action = "look which schemas stay";
        Ok(Self {
            extensions: describe::extensions(client).await?,
            schemas: names::read(client, &schemas(""), action).await?,
            foreign_schemas: names::read(
                client,
                &schemas("AND NOT pg_has_role(nspowner, 'USAGE')"),
                action,
            )
            .await?,
        })
    }

    fn is_left_out(&self, entry: &Entry) -> bool {
        let is = |names: &[String], name: &str| names.iter().any(|one| one == name);
        match entry.kind.as_str() {
            "EXTENSION" => is(&self.extensions, &entry.name),
            "SCHEMA" => is(&self.schemas, &entry.name),
            "COMMENT" | "ACL" | "SECURITY LABEL" => {
                let of = |word: &str| entry.name.strip_prefix(word);
                of("EXTENSION ").is_some_and(|name| is(&self.extensions, name))
                    || of("SCHEMA ").is_some_and(|name| is(&self.foreign_schemas, name))
            }
            _ => false,
        }
    }
}

/// Chooses what is loaded, and writes what is done around it into the spool folder.
pub(super) fn prepare(
    folder: &Path,
    entries: &[Entry],
    only: &[String],
    (kept, tables): (&Kept, &[TableRows]),
) -> Result<Chosen, SourceError> {
    let (chosen, drop) = if only.is_empty() {
        (selection::all_but(entries, |entry| kept.is_left_out(entry)), drop_everything())
    } else {
        let chosen = selection::choose(entries, only, Surroundings::Present)?;
        let drops = chosen.drops.iter().map(|statement| format!("{statement};\n")).collect();
        (chosen, drops)
    };
    let texts = [
        (LIST_FILE, chosen.list.clone()),
        (BEFORE_FILE, drop),
        (AFTER_FILE, checks(entries, &chosen, tables)?),
    ];
    for (name, text) in texts {
        let path = folder.join(name);
        fs::write(&path, text).map_err(|cause| SourceError::io("write", &path, cause))?;
    }
    Ok(chosen)
}

/// Fails the transaction unless each table has the rows that were backed up.
fn checks(
    entries: &[Entry],
    chosen: &Chosen,
    tables: &[TableRows],
) -> Result<String, PostgresError> {
    let mut statements = vec!["SET client_encoding = 'UTF8';\n".to_owned()];
    for entry in entries.iter().filter(|entry| entry.kind == "TABLE DATA") {
        let name = entry.qualified();
        if !chosen.tables.contains(&name) {
            continue;
        }
        let Some(TableRows { rows, .. }) = tables.iter().find(|table| table.table == name) else {
            // Names in other encodings than UTF-8 can look so.
            return Err(refused(format!(
                "the rows of {name} cannot be counted in place; restore to another database with --to"
            )));
        };
        statements.push(format!(
            "DO $backstay$ DECLARE found bigint := (SELECT count(*) FROM ONLY {}); BEGIN
               IF found <> {rows} THEN RAISE EXCEPTION '% should have {rows} rows and has %', {}, found; END IF; END $backstay$;\n",
            entry.always_quoted(),
            literal(&name)
        ));
    }
    Ok(statements.concat())
}

/// Runs the transaction.
pub(super) async fn run(
    cx: &Cx,
    source: &PostgresSource,
    prepared: &InPlace,
) -> Result<(), SourceError> {
    let connection = source.connection.with_database(&prepared.database);
    connection.check_server(&prepared.server).map_err(refused)?;
    let tools = Tools::find(source.options.programs.as_deref(), prepared.major).await?;
    let mut command = connection.program(tools.psql())?;
    command.args(["--no-psqlrc", "--quiet", "--no-password", "--set=ON_ERROR_STOP=1", "--file=-"]);
    command.arg(format!("--dbname={}", connection_string(&prepared.database)));
    command.stdin(Stdio::piped()).stdout(Stdio::null());
    let mut psql = Program::start("psql", command)?;
    let fed = match psql.child.stdin.take() {
        Some(input) => cx.run(feed(source, &tools, prepared, input)).await?,
        None => Ok(()),
    };
    let status: ExitStatus = cx.run(psql.wait()).await??;
    match (fed, psql.judge(status).await) {
        // Why it ended says more than that it did not listen to the rest.
        (Err(SourceError::Io { .. }) | Ok(()), Err(ended)) => Err(ended.into()),
        (fed, _) => fed,
    }
}

/// Says all that belongs to the transaction. Unless the program wrote all of the dump, no end is said.
async fn feed(
    source: &PostgresSource,
    tools: &Tools,
    prepared: &InPlace,
    mut input: ChildStdin,
) -> Result<(), SourceError> {
    let folder = &prepared.folder;
    let text = |name: &str| {
        let path = folder.join(name);
        fs::read(&path).map_err(|cause| SourceError::io("read", &path, cause))
    };
    let gone = |cause| SourceError::io("pass statements to", "psql", cause);
    let waiting = source.options.lock_timeout.as_millis();
    let begin = format!(
        "BEGIN;\n{DURABLE};\nSET LOCAL lock_timeout = {waiting};\nSET LOCAL client_min_messages = warning;\n"
    );
    input.write_all(begin.as_bytes()).await.map_err(gone)?;
    input.write_all(&text(BEFORE_FILE)?).await.map_err(gone)?;
    let mut command = source.connection.program(tools.pg_restore())?;
    // Without --single-transaction it would end our transaction with the first large object.
    command.args(["--format=custom", "--file=-", "--no-tablespaces", "--single-transaction"]);
    command.arg("--use-list").arg(folder.join(LIST_FILE)).arg("--").arg(folder.join(DUMP_FILE));
    command.stdin(Stdio::null()).stdout(Stdio::piped());
    let mut writing = Program::start("pg_restore", command)?;
    let output = writing.child.stdout.take();
    let last = match output {
        Some(output) => pass_all_but_the_end(output, &mut input).await.map_err(gone)?,
        None => Vec::new(),
    };
    let status = writing.wait().await?;
    writing.judge(status).await?;
    // Behind it are only remarks, so the last one is it.
    let Some(end) = last.windows(COMMIT.len()).rposition(|bytes| bytes == COMMIT) else {
        let finding = "what pg_restore wrote has no end".to_owned();
        return Err(PostgresError::Archive { finding }.into());
    };
    input.write_all(&last[..=end]).await.map_err(gone)?;
    input.write_all(&text(AFTER_FILE)?).await.map_err(gone)?;
    input.write_all(b"COMMIT;\n").await.map_err(gone)
}

/// Passes statements on, but keeps back their last bytes, in which the transaction is ended too early for us.
async fn pass_all_but_the_end(
    mut from: ChildStdout,
    to: &mut ChildStdin,
) -> std::io::Result<Vec<u8>> {
    let mut kept = Vec::with_capacity(COPY_BYTES);
    while from.read_buf(&mut kept).await? > 0 {
        if kept.len() >= COPY_BYTES {
            let passed = kept.len() - KEPT_BYTES;
            to.write_all(&kept[..passed]).await?;
            kept.drain(..passed);
        }
    }
    Ok(kept)
}

impl InPlace {
    /// Returns the database, for a person.
    pub fn target(&self) -> String {
        self.database.clone()
    }

    /// Returns where the proven dump lies, for a person.
    pub fn beside(&self) -> String {
        self.folder.display().to_string()
    }

    /// Removes the spooled dump.
    pub(super) fn discard(&self) -> Result<(), SourceError> {
        spool::remove(&self.folder)
    }
}
