#!/usr/bin/env bash
# Fuzzes each decoder, and the whole path of messages, for a while. What the fuzzer finds
# interesting is in Go's cache, from where the next run continues.
#   scripts/fuzz.sh run [TIME]
#   scripts/fuzz.sh keep [N]   copy the N shortest such inputs of each target to testdata/fuzz,
#                              where all tests run them
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

# targets: print the package and the name of each target.
targets() {
  grep -rlE '^func Fuzz' --include='*_test.go' internal | while read -r file; do
    grep -oE '^func Fuzz[A-Za-z]+' "$file" | sed "s|func |./$(dirname "$file") |"
  done
}

case ${1-} in
  run)
    targets | while read -r package target; do
      echo "$target"
      go test -run '^$' -fuzz "^$target\$" -fuzztime "${2-30s}" "$package" </dev/null
    done
    ;;
  keep)
    targets | while read -r package target; do
      found=$(go env GOCACHE)/fuzz/$(go list "$package")/$target kept=$package/testdata/fuzz/$target
      [[ -d $found ]] || continue
      mkdir -p "$kept"
      find "$found" -type f -printf '%s %p\n' | sort -n | head -n "${2-20}" | cut -d' ' -f2- | xargs -r cp -t "$kept"
    done
    ;;
  *) echo "usage: fuzz.sh run [TIME] | keep [N]" >&2; exit 2 ;;
esac
