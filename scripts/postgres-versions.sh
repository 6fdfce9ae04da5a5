#!/usr/bin/env bash
# Tests what depends on Postgres on each supported version: everything with SQL, the
# service on the embedded broker, and the stories.
#   scripts/postgres-versions.sh [VERSION]...
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"
cd "$(root)"

[[ $# -gt 0 ]] || set -- 16 17 18
for version in "$@"; do
  dir=.local/postgres-$version
  address=$(go run ./scripts/localpg start -fast -version "$version" -dir "$dir")
  trap 'go run ./scripts/localpg stop -dir "$dir"' EXIT
  say "Postgres $version"
  export MILLRACE_TEST_DATABASE_URL=$address
  go test -count=1 ./internal/engine/{postgres,inbox,outbox,failed,eventstore,activity,upkeep,invariant,consumer} ./internal/shop/...
  go test -count=1 -run 'Role|Upkeep|Erase|Orders|Status' ./internal/app
  go test -count=1 -run 'TestStories/embedded' ./cmd/millrace
  go run ./scripts/localpg stop -dir "$dir"
  trap - EXIT
done
