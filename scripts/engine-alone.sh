#!/usr/bin/env bash
# Shows that the engine does not depend on the shop: builds and tests it in a copy
# of the repository without the shop and the packages that assemble the service.
#   scripts/engine-alone.sh [GO TEST FLAG]...
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"
cd "$(root)"

copy=.local/engine-alone # always the same, so that Go's cache applies
rm -rf "$copy"
mkdir -p "$copy"
git ls-files -co --exclude-standard -- go.mod go.sum internal migrations scripts |
  grep -vE '^internal/(shop|app|httpapi|config)/' |
  while read -r file; do [[ ! -e $file ]] || echo "$file"; done |
  tar -cf - -T - | tar -xf - -C "$copy"

cd "$copy"
go vet ./internal/engine/...
go test "$@" ./internal/engine/...
