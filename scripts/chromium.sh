#!/usr/bin/env bash
# Installs Chromium, which tests the console, if it is missing: Debian's package.
#   scripts/chromium.sh
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"

command -v chromium >/dev/null || apt_install "chromium fonts-dejavu-core" "${TMPDIR:-/tmp}/millrace-apt-chromium.log"
