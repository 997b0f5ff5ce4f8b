//! A MariaDB database.

use std::path::Path;
use std::process::Command;

use anyhow::ensure;

use crate::bench::course::{DATABASE, Engine, Way};
use crate::bench::database::Database;

/// How the programs are connected; the rest stands in the environment.
macro_rules! program {
    ($name:literal) => {
        concat!(
            $name,
            " --no-defaults --protocol=tcp --host=127.0.0.1 --port=$PORT --user=$USER_NAME "
        )
    };
}
/// What users write who want all of a database from one moment.
macro_rules! dump {
    () => {
        concat!(
            program!("mariadb-dump"),
            "--single-transaction --quick --routines --events --hex-blob bench"
        )
    };
}
/// A new database, filled with what comes.
macro_rules! load {
    () => {
        concat!(
            "{ ",
            program!("mariadb"),
            "-e \"CREATE DATABASE $TO\" </dev/null && ",
            program!("mariadb"),
            "$TO; }"
        )
    };
}

/// A MariaDB server.
pub(crate) struct Mysql(Database);

impl Mysql {
    /// Runs statements that must work. Returns what they print.
    fn sql(&self, database: &str, statements: &str) -> anyhow::Result<String> {
        let mut command = Command::new("bash");
        command.arg("-c").arg(concat!(program!("mariadb"), "--batch \"$@\"")).arg("bash");
        command.args(["--execute", statements]).arg(format!("--database={database}"));
        let output = command.envs(self.environment()).output()?;
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }
}

impl Engine for Mysql {
    const WAYS: &'static [Way] = &[
        Way {
            name: "mariadb-dump \\| zstd -3 -T0 \\| rclone rcat",
            prepare: None,
            backup: concat!(
                dump!(),
                " | zstd -q -3 -T0 | rclone rcat \"bench:$BUCKET/$PREFIX/dump.zst\""
            ),
            restore: concat!(
                "rclone cat \"bench:$BUCKET/$PREFIX/dump.zst\" | zstd -q -dc | ",
                load!()
            ),
        },
        Way {
            name: "mariadb-dump \\| restic --stdin",
            prepare: Some("restic init --quiet"),
            backup: concat!(dump!(), " | restic backup --quiet --stdin --stdin-filename dump"),
            restore: concat!("restic dump --quiet latest dump | ", load!()),
        },
    ];

    /// Makes half of the size of narrow rows and half of text and JSON.
    fn start(root: &Path, mib: usize) -> anyhow::Result<Self> {
        let server = Self(Database::start(root, "mysql-server")?);
        server.sql("", &format!("CREATE DATABASE {DATABASE}"))?;
        // About 100 and 500 bytes a row on the server's disk.
        let (narrow, wide) = (mib * 1024 * 1024 / 2 / 100, mib * 1024 * 1024 / 2 / 500);
        server.sql(
            DATABASE,
            &format!(
                "CREATE TABLE accounts (id bigint PRIMARY KEY, customer int, balance decimal(12,2), note varchar(64), KEY (customer))
                   SELECT seq AS id, seq % 1000 AS customer, seq / 7 AS balance, md5(seq) AS note FROM seq_1_to_{narrow};
                 CREATE TABLE documents (id bigint PRIMARY KEY, body text, data json, KEY (body(20)))
                   SELECT seq AS id, repeat(concat(md5(seq), ' words of customer ', seq % 1000, ' '), 4) AS body,
                          json_object('id', seq, 'name', concat('customer ', seq % 1000), 'tags', json_array(md5(seq * 7), 'tag')) AS data
                     FROM seq_1_to_{wide}"
            ),
        )?;
        Ok(server)
    }

    fn environment(&self) -> Vec<(String, String)> {
        let Self(server) = self;
        let values =
            [("PORT", &server.port), ("USER_NAME", &server.user), ("MYSQL_PWD", &server.password)];
        values.map(|(name, value)| (name.to_owned(), value.clone())).into()
    }

    fn programs(&self) -> &Path {
        &self.0.programs
    }

    fn source(&self) -> String {
        let Database { port, user, password, .. } = &self.0;
        format!("kind = 'mysql'\nurl = 'mysql://{user}:{password}@127.0.0.1:{port}/{DATABASE}'\n")
    }

    fn settle(&self) -> anyhow::Result<()> {
        self.sql("", "FLUSH TABLES").map(drop)
    }

    fn is_equal(&self, restored: &str) -> anyhow::Result<bool> {
        let sums = |database| -> anyhow::Result<String> {
            let sums = self.sql(database, "CHECKSUM TABLE accounts, documents EXTENDED")?;
            Ok(sums.replace(database, ""))
        };
        Ok(sums(DATABASE)? == sums(restored)?)
    }

    fn drop_database(&self, restored: &str) -> anyhow::Result<()> {
        self.sql("", &format!("DROP DATABASE {restored}")).map(drop)
    }
}
