//! The built program, as a user runs it, against a real S3 server and against directories.

#![expect(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "tests stop where they cannot go on, and wait with a deadline"
)]

mod archives;
mod archives_engines;
mod archives_kills;
mod archives_traps;
mod away;
mod backups;
mod catalog;
mod commands;
mod configure;
mod doctor;
mod downloads_asking;
mod drills;
mod duckdb;
mod faults;
mod foreign_keys;
mod golden;
mod guard;
mod guard_asking;
mod health;
mod imports;
mod imports_engines;
mod imports_once;
mod imports_undated;
mod jobs;
mod manual;
mod members;
mod mysql;
mod mysql_faults;
mod mysql_servers;
mod mysql_ways;
mod organisations;
mod own_catalog;
mod passfiles;
mod patience;
mod postgres;
mod postgres_faults;
mod postgres_kills;
mod postgres_network;
mod postgres_runbook;
mod postgres_servers;
mod postgres_shapes;
mod postgres_size;
mod postgres_tables;
mod postgres_tls;
mod recovered;
mod redis;
mod redis_faults;
mod redis_single;
mod redis_ways;
mod restores;
mod restores_asking;
mod restores_beside;
mod restores_kept;
mod s3;
mod serve;
mod serve_catalogs;
mod servers;
mod sets;
mod settings_asking;
mod shell;
mod size;
mod story;
mod tunnels;
mod uploads;
mod workers;
mod workers_by_hand;
mod workers_drills;
mod workers_restores;
