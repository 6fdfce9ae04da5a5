#!/usr/bin/env bash
# Checks the AsyncAPI document with @asyncapi/parser and the OpenAPI document with
# Spectral. Needs Node; their packages are installed once per package-lock.json.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

command -v node >/dev/null || { echo "make docs-test needs Node 20 or later, with npm" >&2; exit 1; }

tool=.local/apidocs
mkdir -p "$tool"

if ! cmp -s tools/apidocs/package-lock.json "$tool/installed"; then
  cp tools/apidocs/package.json tools/apidocs/package-lock.json "$tool"
  npm --prefix "$tool" ci --no-audit --no-fund --silent
  cp tools/apidocs/package-lock.json "$tool/installed"
fi

cp tools/apidocs/check.mjs "$tool"
go run ./cmd/millrace docs asyncapi >"$tool/asyncapi.json"
go run ./cmd/millrace docs openapi >"$tool/openapi.json"
node "$tool/check.mjs" "$tool/asyncapi.json" "$tool/openapi.json"
