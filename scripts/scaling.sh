#!/usr/bin/env bash
# Writes KEDA's ScaledObjects from the routing table, or checks that they are current.
#   scripts/scaling.sh [--check]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

for broker in kafka rabbitmq; do
  file=deployments/kubernetes/$broker/scaling.yaml
  fresh=$(go run ./scripts/scaling "$broker")

  if [[ ${1-} == --check ]]; then
    [[ $fresh == "$(<"$file")" ]] || { echo "$file is stale: run make generate" >&2; exit 1; }
  else
    printf '%s\n' "$fresh" >"$file"
  fi
done
