#!/bin/sh
# Makes a golden vault: backups as this version writes them, for every later version to read.
# Usage: testdata/make-golden-vault.sh PROGRAM DIRECTORY. A vault that was released is never made anew.
set -eu
program=$(realpath "$1")
out=$(realpath -m "$2")
mkdir "$out"
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
cd "$scratch"
mkdir -p shop/empty
printf 'hello\n' > shop/hello.txt
printf 'odd\n' > "$(printf 'shop/not-utf8-\377')"
ln -s hello.txt shop/link
ln shop/hello.txt shop/second-name
truncate -s 1M shop/hole
sqlite3 crm.db "CREATE TABLE people (id INTEGER PRIMARY KEY, name TEXT); INSERT INTO people (name) VALUES ('Ada'), ('Grace')"
cat > backstay.toml <<TOML
[storages.disk]
provider = "local"
path = "$out/storage"
[sources.shop]
kind = "files"
path = "$scratch/shop"
storage = "disk"
[sources.crm]
kind = "sqlite"
path = "$scratch/crm.db"
storage = "disk"
[sources.plain]
kind = "files"
path = "$scratch/shop"
storage = "disk"
encryption = "none"
TOML
export BACKSTAY_HOME="$scratch/home" BACKSTAY_KIT_PASSPHRASE="golden vault passphrase"
"$program" backup shop --note "the first" --hold --quiet
"$program" keys rotate --quiet
"$program" backup shop crm plain --quiet
"$program" keys kit --output "$out/kit.txt" --quiet
