#!/usr/bin/env bash
# Shows that nothing is lost, applied twice or out of order while replicas of the service
# are killed, restarted, rebalanced and upgraded. Starts the servers; scripts/soak does the rest.
#   scripts/soak.sh kafka|rabbitmq|embedded [FLAG...]
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"

broker=${1-}
[[ $broker == kafka || $broker == rabbitmq || $broker == embedded ]] || die "usage: soak.sh kafka|rabbitmq|embedded [FLAG...]; the flags are those of go run ./scripts/soak -h"
shift
cd "$(root)"
dir=.local/soak/$broker # separate from the other broker's, so that both may run at the same time
mkdir -p "$dir"

command -v psql >/dev/null || apt_install postgresql-client "$dir/apt.log"

cleanup() {
  [[ $broker == embedded ]] || scripts/$broker.sh kill "$dir/server" "$port" 2>/dev/null || true
  go run ./scripts/localpg stop -dir "$dir/postgres" 2>/dev/null || true
}
trap cleanup EXIT

go build -o "$dir/soak" ./scripts/soak

# Start empty, so that only this run is counted.
port=$(free_port)
rm -rf "${dir:?}/server"
[[ $broker == embedded ]] || scripts/$broker.sh start "$dir/server" "$port"
server=$(go run ./scripts/localpg start -dir "$dir/postgres" -commit-timestamps)
psql -q "$server" -c "DROP DATABASE IF EXISTS soak WITH (FORCE)" -c "CREATE DATABASE soak"

address=127.0.0.1:$port
[[ $broker != rabbitmq ]] || address=amqp://guest:guest@$address/

"$dir/soak" -broker "$broker" -address "$address" -database "${server/\/millrace\?//soak?}" \
  -control "scripts/rabbitmq.sh ctl $dir/server $port" -log "$dir/service.log" "$@"
