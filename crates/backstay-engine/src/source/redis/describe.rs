//! What a server says of itself.

use std::collections::BTreeMap;

use super::error::{RedisError, refused, statement};
use super::wire::{Reply, Session};
use crate::source::engine::series;

/// No server that anybody runs has more databases.
const MAX_DATABASES: u64 = 4096;

/// What a server says of itself.
#[derive(Debug, Clone, Default)]
pub(super) struct Server {
    /// Engine and version, for manifests and people.
    pub(super) engine: String,
    /// The numbers that stand for new features.
    pub(super) series: (u32, u32),
    /// Bytes of memory that its data takes.
    pub(super) data_bytes: u64,
    /// Bytes of memory that it takes.
    pub(super) used_bytes: u64,
    /// Bytes of memory that it may take; 0 is no limit.
    pub(super) max_bytes: u64,
    /// Whether it removes keys where it has too little memory.
    pub(super) evicts: bool,
    /// How many keys it has removed for want of memory since it was started.
    pub(super) evicted: u64,
    /// Whether every change goes into a log on its disk.
    pub(super) keeps_log: bool,
    pub(super) is_replica: bool,
    pub(super) is_cluster: bool,
    /// Databases that are not empty.
    pub(super) keyspace: BTreeMap<u64, Keyspace>,
}

/// How many keys a database has.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Keyspace {
    pub(super) keys: u64,
    pub(super) expiring: u64,
}

impl Server {
    /// Asks a server.
    pub(super) async fn of(session: &mut Session) -> Result<Self, RedisError> {
        let mut info = String::new();
        // Not every version answers to several names at once.
        for section in
            ["server", "memory", "persistence", "replication", "cluster", "stats", "keyspace"]
        {
            let words: [&[u8]; 2] = [b"INFO", section.as_bytes()];
            info.push_str(
                &session.ask("ask the server for its state (INFO)", &words).await?.text(),
            );
        }
        Ok(Self::parse(&info))
    }

    fn parse(info: &str) -> Self {
        let fields: BTreeMap<&str, &str> =
            info.lines().filter_map(|line| line.trim_end().split_once(':')).collect();
        let field = |name: &str| fields.get(name).copied().unwrap_or_default();
        let number = |name: &str| field(name).parse::<u64>().unwrap_or(0);
        let (name, version) = match field("valkey_version") {
            "" => ("Redis", field("redis_version")),
            version => ("Valkey", version),
        };
        let keyspace = fields.iter().filter_map(|(name, value)| {
            let database = name.strip_prefix("db")?.parse().ok()?;
            let of = |wanted: &str| {
                let mut pairs = value.split(',').filter_map(|pair| pair.split_once('='));
                pairs.find(|(name, _)| *name == wanted)?.1.parse().ok()
            };
            Some((database, Keyspace { keys: of("keys")?, expiring: of("expires")? }))
        });
        Self {
            engine: format!("{name} {version}"),
            series: series(version),
            // What the server calls its data lacks what it takes to find keys.
            data_bytes: number("used_memory").saturating_sub(number("used_memory_startup")),
            used_bytes: number("used_memory"),
            max_bytes: number("maxmemory"),
            evicts: !["", "noeviction"].contains(&field("maxmemory_policy")),
            evicted: number("evicted_keys"),
            keeps_log: field("aof_enabled") == "1",
            is_replica: field("role") == "slave",
            is_cluster: field("cluster_enabled") == "1",
            keyspace: keyspace.collect(),
        }
    }

    /// Refuses a node of a cluster.
    pub(super) fn check_whole(&self) -> Result<(), RedisError> {
        if self.is_cluster {
            return Err(refused(
                "this server is a node of a cluster and holds only a part of its keys; clusters are not in this version",
            ));
        }
        Ok(())
    }
}

/// Chooses a database for what comes next. Returns false if there is none of that number.
pub(super) async fn select(session: &mut Session, database: u64) -> Result<bool, RedisError> {
    let number = database.to_string();
    let action = "choose a database";
    let words: [&[u8]; 2] = [b"SELECT", number.as_bytes()];
    match session.exchange(&words).await {
        Ok(Reply::Error(text)) if text.contains("range") => Ok(false),
        Ok(Reply::Error(text)) => Err(statement(action, &text)),
        Ok(_) => Ok(true),
        Err(cause) => Err(RedisError::Broken { action, cause }),
    }
}

/// Counts the databases that can be chosen.
pub(super) async fn databases(session: &mut Session) -> Result<u64, RedisError> {
    let mut count = 1;
    while count < MAX_DATABASES && select(session, count).await? {
        count += 1;
    }
    Ok(count)
}

/// Reads the server's clock, in milliseconds since 1970: ours may be another.
pub(super) async fn now(session: &mut Session) -> Result<u64, RedisError> {
    let time = session.ask("ask for the server's time", &[b"TIME"]).await?.list();
    let part = |index: usize| time.get(index).and_then(|part| part.text().parse::<u64>().ok());
    let seconds = part(0).ok_or_else(|| refused("the server does not tell its time"))?;
    Ok(seconds * 1000 + part(1).unwrap_or(0) / 1000)
}

/// Counts the keys of the chosen database.
pub(super) async fn size(session: &mut Session) -> Result<u64, RedisError> {
    let counted = session.ask("count the keys", &[b"DBSIZE"]).await?;
    Ok(counted.number().and_then(|count| u64::try_from(count).ok()).unwrap_or(0))
}

/// Reads the code of the server's libraries of functions, in the order of their names.
pub(super) async fn functions(session: &mut Session) -> Result<Vec<String>, RedisError> {
    let action = "read the functions";
    let listed = match session.exchange(&[b"FUNCTION", b"LIST", b"WITHCODE"]).await {
        // Servers before Redis 7 know none.
        Ok(Reply::Error(text)) if text.contains("unknown command") => return Ok(Vec::new()),
        Ok(Reply::Error(text)) => return Err(statement(action, &text)),
        Ok(listed) => listed.list(),
        Err(cause) => return Err(RedisError::Broken { action, cause }),
    };
    let code = |library: Reply| {
        let fields = library.list();
        let at = fields.iter().position(|field| field.text() == "library_code")?;
        fields.get(at + 1).map(Reply::text)
    };
    let mut codes: Vec<String> = listed.into_iter().filter_map(code).collect();
    codes.sort();
    Ok(codes)
}

/// Returns the name of a library: its first line says `#!lua name=…`.
pub(super) fn name_of(code: &str) -> &str {
    let first = code.lines().next().unwrap_or_default();
    first.split_whitespace().find_map(|word| word.strip_prefix("name=")).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_are_read_as_they_describe_themselves() {
        let redis = Server::parse(
            "# Server\r\nredis_version:7.0.15\r\nused_memory:10\r\nmaxmemory:20\r\nrole:slave\r\ncluster_enabled:0\r\ndb0:keys=5,expires=2,avg_ttl=0\r\ndb12:keys=1,expires=0,avg_ttl=0\r\n",
        );
        assert_eq!((redis.engine.as_str(), redis.series), ("Redis 7.0.15", (7, 0)));
        assert_eq!((redis.used_bytes, redis.max_bytes, redis.is_replica), (10, 20, true));
        assert_eq!(redis.keyspace[&0], Keyspace { keys: 5, expiring: 2 });
        assert_eq!(redis.keyspace[&12].keys, 1);
        let valkey =
            Server::parse("redis_version:7.2.4\r\nserver_name:valkey\r\nvalkey_version:8.0.1\r\n");
        assert_eq!((valkey.engine.as_str(), valkey.series), ("Valkey 8.0.1", (8, 0)));
    }
}
