#!/usr/bin/env bash
# Upgrades three replicas of the previous release to this one under load, restarts three of
# this one, and checks that nothing is lost, applied twice or out of order.
#   scripts/upgrade.sh BROKER... [-- FLAG...]
# BROKER: embedded or kafka; `bin/proof upgrade -h` lists the flags. Needs bin/millrace,
# bin/proof and the repository's history.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"
cd "$(root)"

brokers=()
while [[ $# -gt 0 && $1 != -- ]]; do brokers+=("$1") && shift; done
shift || true

file=scripts/previous-release
commit=$(grep -v '^#' $file)
[[ $commit =~ ^[0-9a-f]{40}$ ]] || die "expected the full hash of a commit in $file, found '$commit'"
if ! git cat-file -e "$commit^{commit}" 2>/dev/null; then
  remedy="git fetch origin $commit"
  [[ $(git rev-parse --is-shallow-repository) != true ]] || remedy="git fetch --unshallow"
  die "this clone lacks commit $commit, the previous release in $file: run '$remedy'"
fi

source=.local/upgrade/source
previous=$(pwd)/.local/upgrade/millrace
say "building the previous release, ${commit:0:7}"
rm -rf "$source"
mkdir -p "$source"
git archive "$commit" | tar -xf - -C "$source"
go -C "$source" build -trimpath -buildvcs=false -ldflags "-X main.version=$commit" -o "$previous" ./cmd/millrace

failed=()
for broker in "${brokers[@]}"; do
  bin/proof upgrade -broker "$broker" -previous "$previous" "$@" || failed+=("$broker")
  bin/proof upgrade -broker "$broker" "$@" || failed+=("$broker, this release")
done
[[ ${#failed[@]} -eq 0 ]] || die "failed on ${failed[*]}"
