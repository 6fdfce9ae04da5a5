#!/usr/bin/env bash
# Writes the Go of the console's templates, or checks that it is current.
#   scripts/templ.sh [--check]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

if [[ ${1-} != --check ]]; then
  go tool templ generate -path internal/console -log-level error
  exit
fi

copy=$(mktemp -d)
trap 'rm -rf "$copy"' EXIT
cp internal/console/*.templ "$copy"
go tool templ generate -path "$copy" -log-level error

for file in internal/console/*_templ.go; do
  [[ -f $copy/${file##*/} ]] || { echo "$file has no template: delete it" >&2; exit 1; }
done

for file in "$copy"/*_templ.go; do
  cmp -s "$file" "internal/console/${file##*/}" || { echo "internal/console/${file##*/} is stale: run make generate" >&2; exit 1; }
done
