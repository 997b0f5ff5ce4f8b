#!/bin/sh
# Takes a Garage server through everything: storage test, backup, verify, loss, recovery from the kit, restore.
# Needs `garage` 2.x (or $GARAGE) and a built `backstay` (or $BACKSTAY) in PATH; everything stays on the loopback interface.
# Not part of `cargo xtask test`: there is no package of Garage that could be installed by name.
set -eu
garage=${GARAGE:-garage}
backstay=${BACKSTAY:-backstay}
work=$(mktemp -d)
server=
stop() {
    [ -z "$server" ] || kill "$server"
    rm -rf "$work"
}
trap stop EXIT
cd "$work"
cat > garage.toml <<TOML
metadata_dir = "$work/meta"
data_dir = "$work/data"
db_engine = "sqlite"
replication_factor = 1
rpc_bind_addr = "127.0.0.1:3931"
rpc_public_addr = "127.0.0.1:3931"
rpc_secret = "$(head -c 32 /dev/urandom | od -An -tx1 | tr -d ' \n')"
[s3_api]
s3_region = "garage"
api_bind_addr = "127.0.0.1:3930"
TOML
export GARAGE_CONFIG_FILE="$work/garage.toml"
"$garage" server > garage.log 2>&1 &
server=$!
tries=0
until "$garage" status > status.txt 2>&1; do
    tries=$((tries + 1))
    [ "$tries" -lt 100 ] || { cat garage.log; exit 1; }
    sleep 0.2
done
"$garage" layout assign -z here -c 1G "$("$garage" node id -q | cut -d@ -f1)"
"$garage" layout apply --version 1
"$garage" bucket create app-backups
"$garage" key create backups > key.txt
"$garage" bucket allow --read --write app-backups --key backups
AWS_ACCESS_KEY_ID=$(sed -n 's/^Key ID: *//p' key.txt)
AWS_SECRET_ACCESS_KEY=$(sed -n 's/^Secret key: *//p' key.txt)
export AWS_ACCESS_KEY_ID AWS_SECRET_ACCESS_KEY
export BACKSTAY_HOME="$work/home" BACKSTAY_KIT_PASSPHRASE="garage has a passphrase"

mkdir shop
head -c 20000000 /dev/urandom > shop/large
echo hello > shop/hello
cp -a shop expected
cat > backstay.toml <<TOML
[storages.garage]
provider = "s3"
bucket = "app-backups"
endpoint = "http://127.0.0.1:3930"
region = "garage"
[sources.shop]
kind = "files"
path = "$work/shop"
storage = "garage"
TOML
"$backstay" storage test garage
"$backstay" backup shop
"$backstay" verify --all
"$backstay" keys kit --output kit.txt
rm -rf shop home backstay.toml
"$backstay" recover --storage s3://app-backups/backstay --endpoint http://127.0.0.1:3930 --region garage --kit kit.txt
"$backstay" verify --all
"$backstay" restore shop --yes
diff -r expected shop
echo "Garage: everything came back"
