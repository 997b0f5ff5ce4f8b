//! A PostgreSQL database.

use std::path::Path;
use std::process::Command;

use anyhow::ensure;

use crate::bench::course::{DATABASE, Engine, Way};
use crate::bench::database::Database;

/// Tables of pgbench have about fifteen mebibytes for each unit of scale.
const MIB_OF_SCALE: usize = 15;

/// A PostgreSQL server.
pub(crate) struct Postgres(Database);

impl Postgres {
    fn command(&self, program: &str, database: &str) -> Command {
        let mut command = Command::new(self.0.programs.join(program));
        command.envs(self.environment()).env("PGDATABASE", database);
        command
    }

    /// Runs statements that must work. Returns what they print.
    fn sql(&self, database: &str, statements: &str) -> anyhow::Result<String> {
        let words = ["-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-c", statements];
        let output = self.command("psql", database).args(words).output()?;
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }
}

impl Engine for Postgres {
    const WAYS: &'static [Way] = &[
        Way {
            name: "pg_dump -Fc, then rclone copyto",
            prepare: None,
            backup: "pg_dump -Fc -f dump && rclone copyto dump \"bench:$BUCKET/$PREFIX/dump\" && rm dump",
            restore: "createdb $TO && rclone copyto \"bench:$BUCKET/$PREFIX/dump\" dump && pg_restore -d $TO dump && rm dump",
        },
        Way {
            name: "pg_dump -Fc -Z0 \\| zstd -3 -T0 \\| rclone rcat",
            prepare: None,
            backup: "pg_dump -Fc -Z0 | zstd -q -3 -T0 | rclone rcat \"bench:$BUCKET/$PREFIX/dump.zst\"",
            restore: "createdb $TO && rclone cat \"bench:$BUCKET/$PREFIX/dump.zst\" | zstd -q -dc | pg_restore -d $TO",
        },
        Way {
            name: "pg_dump -Fc -Z0 \\| restic --stdin",
            prepare: Some("restic init --quiet"),
            backup: "pg_dump -Fc -Z0 | restic backup --quiet --stdin --stdin-filename dump",
            restore: "createdb $TO && restic dump --quiet latest dump | pg_restore -d $TO",
        },
    ];

    /// Makes half of the size by pgbench and half as text and JSON.
    fn start(root: &Path, mib: usize) -> anyhow::Result<Self> {
        let server = Self(Database::start(root, "postgres-server")?);
        server.sql("postgres", &format!("CREATE DATABASE {DATABASE}"))?;
        let scale = (mib / 2 / MIB_OF_SCALE).max(1);
        if mib > 2 * MIB_OF_SCALE {
            let mut pgbench = server.command("pgbench", DATABASE);
            let filled = pgbench.args(["-i", "-q", "-s", &scale.to_string()]).output()?;
            ensure!(filled.status.success(), "{}", String::from_utf8_lossy(&filled.stderr));
        }
        // About 500 bytes a row.
        let rows = mib * 1024 * 1024 / 2 / 500;
        server.sql(
            DATABASE,
            &format!(
                "CREATE TABLE documents (id bigint PRIMARY KEY, body text, data jsonb);
                 INSERT INTO documents SELECT i, repeat(md5(i::text) || ' words of customer ' || i % 1000 || ' ', 4),
                   jsonb_build_object('id', i, 'name', 'customer ' || i % 1000, 'tags', ARRAY[md5((i * 7)::text), 'tag'])
                 FROM generate_series(1, {rows}) i;
                 CREATE INDEX ON documents ((data ->> 'name')); ANALYZE; CHECKPOINT"
            ),
        )?;
        Ok(server)
    }

    fn environment(&self) -> Vec<(String, String)> {
        let Self(server) = self;
        let host = "127.0.0.1".to_owned();
        let values = [
            ("PGHOST", &host),
            ("PGPORT", &server.port),
            ("PGUSER", &server.user),
            ("PGPASSWORD", &server.password),
            ("PGDATABASE", &DATABASE.to_owned()),
        ];
        values.map(|(name, value)| (name.to_owned(), value.clone())).into()
    }

    fn programs(&self) -> &Path {
        &self.0.programs
    }

    fn source(&self) -> String {
        let Database { port, user, password, .. } = &self.0;
        format!(
            "kind = 'postgres'\nurl = 'postgres://{user}:{password}@127.0.0.1:{port}/{DATABASE}'\n"
        )
    }

    fn settle(&self) -> anyhow::Result<()> {
        self.sql("postgres", "CHECKPOINT").map(drop)
    }

    fn is_equal(&self, restored: &str) -> anyhow::Result<bool> {
        let digest =
            "SELECT count(*), md5(string_agg(md5(d::text), '' ORDER BY id)) FROM documents d";
        Ok(self.sql(DATABASE, digest)? == self.sql(restored, digest)?)
    }

    fn drop_database(&self, restored: &str) -> anyhow::Result<()> {
        self.sql("postgres", &format!("DROP DATABASE {restored}")).map(drop)
    }
}
