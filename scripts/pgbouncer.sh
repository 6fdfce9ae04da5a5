#!/usr/bin/env bash
# A PgBouncer on loopback in front of a Postgres, for tests.
#   scripts/pgbouncer.sh install
#   scripts/pgbouncer.sh start DIR PORT POOL_MODE HOST PORT USER PASSWORD
#   scripts/pgbouncer.sh stop DIR
# Uses Debian's pgbouncer.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"

action=$1
[[ $# -lt 2 ]] || { mkdir -p "$2" && dir=$(cd "$2" && pwd); }

install_pgbouncer() {
  command -v pgbouncer >/dev/null || apt_install pgbouncer "${TMPDIR:-/tmp}/millrace-apt-pgbouncer.log"
}

start() {
  local port=$1 mode=$2 host=$3 server=$4 user=$5 password=$6
  install_pgbouncer
  cat >"$dir/pgbouncer.ini" <<INI
[databases]
* = host=$host port=$server user=$user password='$password'
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = $port
unix_socket_dir =
auth_type = any
pool_mode = $mode
server_login_retry = 1
pidfile = $dir/pgbouncer.pid
logfile = $dir/pgbouncer.log
INI
  # It refuses to run as root.
  if [[ $(id -u) -eq 0 ]]; then
    chown -R nobody "$dir"
    chmod 755 "$dir"
    set -- -u nobody
  else
    set --
  fi
  pgbouncer -q -d "$@" "$dir/pgbouncer.ini"
  wait_until 10 "$dir/pgbouncer.log" answers 127.0.0.1 "$port"
}

case $action in
  install) install_pgbouncer ;;
  start) start "${@:3}" ;;
  stop) end "$dir/pgbouncer.pid" INT ;;
  *) die "unknown action $action, expected install, start or stop" ;;
esac
