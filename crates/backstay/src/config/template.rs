//! The configuration that `backstay init` writes.

/// A commented configuration that says nothing yet.
pub(crate) const TEMPLATE: &str = r#"# Backstay: what is backed up, and where to.
# Check this file with `backstay config check`. ${NAME} stands for an environment variable, $$ for a $.

# --- Where backups go -------------------------------------------------------------------------------------------
#
# Any S3-compatible storage. Without access_key_id the machine's own credentials are used (environment, AWS profile,
# instance role), or those that `backstay storage credentials NAME` sealed.
#
# [storages.bucket]
# provider = "s3"
# bucket = "app-backups"
# endpoint = "https://<account>.r2.cloudflarestorage.com"   # leave it out for AWS
# region = "auto"                                           # us-east-1 if left out
# prefix = "backstay"                                       # the folder in the bucket
# addressing = "path"                                       # or "virtual"; path with an endpoint, virtual without
# access_key_id = "${S3_KEY_ID}"
# secret_access_key = "file:/etc/backstay/s3.secret"
# credentials_expire = "2027-06-30"                         # a warning comes 30 days before
# ca_file = "/etc/ssl/my-ca.pem"
#
# A directory, better on another disk. It is not off-site.
#
# [storages.disk]
# provider = "local"
# path = "/srv/backups"
# jobs = 1                             # how many jobs of servers write to it at a time

# --- What is backed up ------------------------------------------------------------------------------------------
#
# [sources.shop-files]
# kind = "files"                       # a tree; SQLite databases in it are taken as consistent snapshots
# path = "/var/lib/shop"
# storage = "bucket"
# exclude = ["cache/", "*.tmp"]        # left out
# transient = ["channels.sqlite"]      # left out, and gone after a restore
# schedule = "0 2 * * *"               # or "daily", "every 6h"; `backstay serve` backs up by it
# timezone = "Europe/Berlin"
# jitter = "10m"                       # begin up to this much later, each source by its own share
# blackout = ["Mon-Fri 08:00-18:00"]   # nothing begins in it
# keep = { last = 7, days = 14 }       # days = 30 if no rule is given; also hourly, daily, weekly, monthly, yearly, max_bytes, keep_at_least
# priority = 1                         # of jobs that wait, the highest begin first
# rpo = "25h"                          # `status` says so if the newest good backup is older, or a restore took longer
# rto = "15m"
# worker = "db1"                       # read by a worker on another machine; or worker_labels = ["db", "eu"]
# before_restore = { run = ["systemctl", "stop", "shop"] }
# after_restore = { run = ["systemctl", "start", "shop"], timeout = "2m" }
#
# [sources.shop-db]
# kind = "postgres"
# host = "127.0.0.1"                   # or url = "${SHOP_DATABASE_URL}" in the place of host, port, user and database
# port = 5432
# user = "postgres"                    # reads everything, and may create databases for restores
# password = "file:/etc/backstay/shop-db.secret"
# database = "shop"
# tls = "prefer"                       # disable, prefer, require, verify-ca, verify-full; with tls_ca_file
# ssh = { host = "bastion.example.com", user = "backup", identity_file = "/etc/backstay/id_ed25519" }   # if it is reached through it
# storage = "bucket"
# lock_timeout = "30s"                 # the dump gives way to whoever waits behind it longer than this
# retries = 2                          # how often a dump that gave way is tried again, retry_after = "1m" later
# migrations = "SELECT version FROM schema_migrations ORDER BY version"
#
# [sources.wiki-db]
# kind = "mysql"                       # MariaDB, too
# url = "mysql://backup@127.0.0.1:3306/wiki"
# password = "file:/etc/backstay/wiki-db.secret"
# storage = "bucket"
#
# [sources.queue]
# kind = "redis"                       # Valkey, too; all databases of the server
# url = "redis://127.0.0.1:6379"       # rediss:// where it is sealed
# password = "file:/etc/backstay/queue.secret"
# storage = "bucket"
#
# [sources.code]
# kind = "command"                     # what a program writes; another takes it back
# outputs = [{ name = "code.bundle", dump = ["git", "-C", "/srv/code.git", "bundle", "create", "-q", "-", "--all"] }]
# storage = "bucket"
#
# [sources.analytics]
# kind = "duckdb"                      # needs the program duckdb; an app that writes must be stopped meanwhile
# path = "/srv/app/analytics.duckdb"
# storage = "bucket"
# before_backup = { run = ["systemctl", "stop", "analytics"] }
# after_backup = { run = ["systemctl", "start", "analytics"] }
#
# [sources.tenants]
# kind = "sqlite"                      # or "duckdb": a database for each tenant, all of them as one
# path = "/srv/app"
# members = { shared = "data/app.db", tenants = "data/tenants/*/app.db" }
# storage = "bucket"
#
# [sources.crm]
# kind = "sqlite"                      # one database, while its app goes on writing
# path = "/var/lib/crm/crm.db"
# storage = "bucket"
# encryption = "sealed"                # "none" leaves standard files that anybody can read
# undo_for = "7d"                      # how long a restore can be undone
# import_from = "/var/lib/old/backups" # what another tool left there becomes backups, once

# --- Old rows that go to files ----------------------------------------------------------------------------------
#
# Retention archives are not backups: without a backup of the database, everything else in it is unprotected.
#
# [archives.events]
# source = "shop-db"                   # one database of postgres, mysql, sqlite or duckdb
# table = "public.events"
# column = "created_at"                # a timestamp, a date, or a number with column_unit = "s", "ms" or "us"
# older_than = "90d"
# partition = "month"                  # or "day"
# storage = "bucket"
# delete = false                       # true: out of the table once they are archived and read back
# keep = "3650d"                       # for ever if left out
"#;
