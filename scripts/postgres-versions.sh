#!/usr/bin/env bash
# Runs the tests that use Postgres most on each of its supported versions. Each version
# has its own server, which is started for the tests and stopped afterwards.
#   scripts/postgres-versions.sh VERSION...
# Needs the addresses of the other servers in .local/test/env or in the environment.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"
cd "$(root)"

[[ $# -ge 1 ]] || die "usage: postgres-versions.sh VERSION..."

dir=
stop() {
  [[ -z $dir ]] || go run ./scripts/localpg stop -dir "$dir" || true
  dir=
}
trap stop EXIT

# The packages of the engine and the shop whose tests ask for a database.
packages=$(go list -f '{{.ImportPath}} {{.TestImports}} {{.XTestImports}}' ./internal/engine/... ./internal/shop/... |
  awk '$1 !~ "engine/broker" && /test\/pgtest/ {print $1}')

# The tests of the service that depend on more of Postgres than tables and transactions.
service='Role|Privilege|Partition|Pooler|Schema|Tables|Failover|TakesThemAgain|VerifyFull|Erased|Expire|Replicas|Conversation|Unavailable'

# on VERSION WHAT ARGUMENTS...: run tests and print how long they took.
on() {
  local version=$1 what=$2 began=$SECONDS
  shift 2
  say "Postgres $version: $what"
  go test -count=1 -timeout 15m "$@"
  say "Postgres $version: $what passed in $((SECONDS - began)) s"
}

for version in "$@"; do
  dir=.local/postgres-$version
  MILLRACE_TEST_DATABASE_URL=$(go run ./scripts/localpg start -dir "$dir" -version "$version" -fast)
  export MILLRACE_TEST_DATABASE_URL MILLRACE_TEST_POSTGRES_VERSION=$version

  # shellcheck disable=SC2086 # a list
  on "$version" "engine and shop" $packages
  on "$version" "roles, poolers, failover, erasure and replicas" -run "$service" -skip 'Kafka|RabbitMQ' ./internal/app
  on "$version" "stories" -run 'TestStories/embedded' ./cmd/millrace
  stop
done

say "passed on Postgres $*"
