#!/usr/bin/env bash
# Fuzzes each decoder for a while.
#   scripts/fuzz.sh [TIME]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

grep -rlE '^func Fuzz' --include='*_test.go' internal | while read -r file; do
  grep -oE '^func Fuzz[A-Za-z]+' "$file" | sed 's/func //' | while read -r target; do
    echo "$target"
    go test -run '^$' -fuzz "^$target\$" -fuzztime "${1-30s}" "./$(dirname "$file")" </dev/null
  done
done
