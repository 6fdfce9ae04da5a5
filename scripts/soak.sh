#!/usr/bin/env bash
# Shows that nothing is lost or applied twice: an independent producer sends
# 10,000 orders, each twice and without headers, while the service is killed with
# SIGKILL five times.
#   scripts/soak.sh kafka|rabbitmq [ORDERS] [KILLS]
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"

broker=${1-} orders=${2-10000} kills=${3-5}
[[ $broker == kafka || $broker == rabbitmq ]] || die "usage: soak.sh kafka|rabbitmq [ORDERS] [KILLS]"
cd "$(root)"
dir=.local/soak
mkdir -p "$dir"

need() { command -v "$1" >/dev/null || apt_install "$2" "$dir/apt.log"; } # need COMMAND PACKAGE

need psql postgresql-client
if [[ $broker == kafka ]]; then need kcat kafkacat; else need amqp-publish amqp-tools; fi

cleanup() {
  [[ -n ${service-} ]] && kill -KILL "$service" 2>/dev/null || true
  scripts/$broker.sh kill "$dir/$broker" "$port" 2>/dev/null || true
  go run ./scripts/localpg stop -dir "$dir/postgres" 2>/dev/null || true
}
trap cleanup EXIT

port=$(free_port) http=$(free_port)

# Start empty, so that only this run is counted.
scripts/$broker.sh kill "$dir/$broker" "$port" 2>/dev/null || true
rm -rf "${dir:?}/$broker"
scripts/$broker.sh start "$dir/$broker" "$port"
server=$(go run ./scripts/localpg start -dir "$dir/postgres")
psql -q "$server" -c "DROP DATABASE IF EXISTS soak_$broker WITH (FORCE)" -c "CREATE DATABASE soak_$broker"
DATABASE_URL=${server/\/millrace\?//soak_$broker?}

export DATABASE_URL MILLRACE_BROKER__KIND=$broker MILLRACE_HTTP__ADDR=127.0.0.1:0 MILLRACE_HEALTH__ADDR=127.0.0.1:$http
export MILLRACE_BROKER__KAFKA__BROKERS=127.0.0.1:$port
export MILLRACE_BROKER__RABBITMQ__URL=amqp://guest:guest@127.0.0.1:$port/

ask() { psql -qAtX "$DATABASE_URL" -c "$1"; }
finished() { ask "SELECT count(*) FROM orders WHERE status IN ('completed', 'inventory_unavailable', 'payment_failed')"; }

start() {
  bin/millrace serve >>"$dir/$broker.service.log" 2>&1 &
  service=$!
  wait_until 60 "$dir/$broker.service.log" curl -sf "http://$MILLRACE_HEALTH__ADDR/readyz" -o /dev/null || die "the service did not start"
}

# Ten products with stock for 800 orders each, so that some orders find none. Every
# seventh order has amount 0, so that its payment fails.
generate() {
  awk -v n="$orders" 'BEGIN {
    for (i = 1; i <= n; i++) {
      line = sprintf("{\"order\":{\"id\":\"soak-%d\",\"product_id\":\"soak_%d\",\"quantity\":1,\"total_amount\":%s}}", i, i % 10, i % 7 ? "9.99" : "0")
      print line
      print line
    }
  }'
}

publish() {
  if [[ $broker == kafka ]]; then
    generate | kcat -P -b "127.0.0.1:$port" -t orders.created -X partitioner=random -X sticky.partitioning.linger.ms=0
  else
    generate | amqp-publish --server=127.0.0.1 --port="$port" --username=guest --password=guest -r orders.created -p -l
  fi
}

bin/millrace migrate up >/dev/null
ask "INSERT INTO stock (product_id, supplied, available) SELECT 'soak_' || i, $orders * 8 / 100, $orders * 8 / 100 FROM generate_series(0, 9) AS i"
: >"$dir/$broker.service.log"
start
say "publishing $orders orders, each twice"
publish

for ((i = 1; i <= kills; i++)); do
  goal=$((orders * i / (kills + 2)))
  progressed() { (($(finished) >= goal)); }
  wait_until 180 "$dir/$broker.service.log" progressed || die "no progress: orders are not completed"
  kill -KILL "$service"
  wait "$service" 2>/dev/null || true
  say "kill $i of $kills, with $(finished) orders finished"
  start
done

say "waiting until all orders are finished"
idle() { [[ $(finished) -eq $orders && $(ask 'SELECT count(*) FROM outbox') -eq 0 ]]; }
wait_until 300 "$dir/$broker.service.log" idle || true

# Duplicates may still be in transit: drain, then restart to check that they change
# nothing.
kill -INT "$service"
wait "$service" || die "the service did not drain"
start
kill -INT "$service"
wait "$service" || die "the service did not drain"
service=

failed=0
expect() { # expect WHAT WANTED SQL
  local got
  got=$(ask "$3")
  if [[ $got == "$2" ]]; then
    printf 'ok    %s: %s\n' "$1" "$got"
  else
    printf 'FAIL  %s: %s, expected %s\n' "$1" "$got" "$2"
    failed=1
  fi
}

expect "orders" "$orders" "SELECT count(*) FROM orders"
expect "orders not in a terminal state" 0 "SELECT count(*) FROM orders WHERE status NOT IN ('completed', 'inventory_unavailable', 'payment_failed')"
expect "stock that does not add up" 0 "SELECT count(*) FROM stock WHERE supplied <> available + reserved + sold OR reserved <> 0"
expect "products whose sales differ from the completed orders" 0 "SELECT count(*) FROM stock s WHERE sold <> (SELECT COALESCE(sum((l ->> 'quantity')::bigint), 0) FROM orders o, jsonb_array_elements(lines) AS l WHERE o.status = 'completed' AND l ->> 'product_id' = s.product_id)"
expect "streams with gaps" 0 "SELECT count(*) FROM (SELECT stream FROM events GROUP BY stream HAVING min(version) <> 1 OR max(version) <> count(*)) AS gaps"
expect "streams that differ from the order" 0 "SELECT count(*) FROM orders o WHERE version <> (SELECT max(version) FROM events WHERE stream = 'order-' || o.id)"
expect "paid or completed orders without exactly one capture" 0 "SELECT count(*) FROM orders o WHERE (status IN ('paid', 'completed')) <> EXISTS (SELECT FROM payments p WHERE p.order_id = o.id AND p.status = 'captured' AND p.amount = o.total_amount)"
expect "messages left in the outbox" 0 "SELECT count(*) FROM outbox"
expect "failed messages" 0 "SELECT count(*) FROM failed_messages"
ask "SELECT 'orders ' || status || ': ' || count(*) FROM orders GROUP BY status ORDER BY status"
exit $failed
