#!/usr/bin/env bash
# Installs the packages of DIR/requirements.txt and prints the path of the Python
# interpreter that has them.
#   scripts/python.sh [DIR [WHERE]]
# DIR defaults to scripts/python: other producers and consumers, for tests. The packages go
# into a directory of WHERE, by default .local.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"
cd "$(root)"

dir=${1-scripts/python}
wanted=$dir/requirements.txt
where=${2-$PWD/.local}
venv=$where/$(basename "$dir")
mkdir -p "$where"

(
  flock 9
  if ! cmp -s "$wanted" "$venv/installed"; then
    rm -rf "$venv"
    python3 -m venv "$venv" 2>/dev/null || { rm -rf "$venv" && apt_install python3-venv "$where/apt.log" && python3 -m venv "$venv"; }
    "$venv/bin/pip" install --quiet --disable-pip-version-check -r "$wanted"
    cp "$wanted" "$venv/installed"
  fi
) 9>"$venv.lock" >&2

echo "$venv/bin/python"
