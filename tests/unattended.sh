#!/usr/bin/env bash
# What takes minutes of waiting, or a PostgreSQL of one's own: deployments on a server with that database and the
# runs that schedules and events start there, runs whose machine died, more faults. Arguments go to pytest. Needs root or the user
# postgres, and Debian's postgresql; about a quarter of an hour on two cores. Nothing listens on any network.
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=deploy/setup.sh
source deploy/setup.sh test

binaries="$(ls -d /usr/lib/postgresql/*/bin | tail -1)"
folder="$(mktemp -d)"
as_postgres() { if [ "$(id -u)" = 0 ]; then runuser -u postgres -- "$@"; else "$@"; fi; }
[ "$(id -u)" != 0 ] || chown postgres "$folder"
stop() {
    as_postgres "$binaries/pg_ctl" -D "$folder/data" -m immediate stop >"$folder/log" 2>&1 || true
    rm -rf "$folder"
}
trap stop EXIT
# A socket in a folder that only this user can enter: whoever gets there may come in.
as_postgres "$binaries/initdb" -D "$folder/data" --auth=trust --username=postgres >/dev/null
as_postgres "$binaries/pg_ctl" -D "$folder/data" -l "$folder/server.log" -w \
    -o "-c listen_addresses='' -c unix_socket_directories='$folder'" start >/dev/null
as_postgres "$binaries/createdb" -h "$folder" -U postgres prefect

export PREFECT_API_DATABASE_CONNECTION_URL="postgresql+asyncpg://postgres@/prefect?host=$folder"
python -m pytest -m "unattended or not unattended" tests/test_deployments.py tests/test_zombies.py "$@"
unset PREFECT_API_DATABASE_CONNECTION_URL
python -m pytest -m unattended tests/test_faults.py "$@"
