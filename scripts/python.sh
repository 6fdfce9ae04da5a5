#!/usr/bin/env bash
# Installs the packages of scripts/python/requirements.txt for tests with other
# producers and consumers, and prints the path of the Python interpreter.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"
cd "$(root)"

wanted=scripts/python/requirements.txt
venv=.local/python
mkdir -p .local

(
  flock 9
  if ! cmp -s "$wanted" "$venv/installed"; then
    rm -rf "$venv"
    python3 -m venv "$venv" 2>/dev/null || { rm -rf "$venv" && apt_install python3-venv .local/apt.log && python3 -m venv "$venv"; }
    "$venv/bin/pip" install --quiet --disable-pip-version-check -r "$wanted"
    cp "$wanted" "$venv/installed"
  fi
) 9>.local/python.lock >&2

echo "$PWD/$venv/bin/python"
