#!/usr/bin/env bash
# A RabbitMQ broker on loopback, for development and tests.
#   scripts/rabbitmq.sh start|stop|kill DIR PORT
#   scripts/rabbitmq.sh ctl DIR PORT COMMAND...   run rabbitmqctl
# Uses Docker if it is available, else Debian's rabbitmq-server.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"

[[ $# -eq 3 || ($# -gt 3 && $1 == ctl) ]] || die "usage: rabbitmq.sh start|stop|kill DIR PORT, or ctl DIR PORT COMMAND..."
action=$1 port=$3
mkdir -p "$2"
dir=$(cd "$2" && pwd)
log=$dir/rabbitmq.log pidfile=$dir/rabbitmq.pid container=millrace-rabbitmq-$port
server=/usr/lib/rabbitmq/bin/rabbitmq-server

export HOME=$dir # for the Erlang cookie, which keeps instances apart
export RABBITMQ_NODENAME=millrace$port@localhost RABBITMQ_NODE_IP_ADDRESS=127.0.0.1 RABBITMQ_NODE_PORT=$port
export RABBITMQ_DIST_PORT=$((port + 1))
export RABBITMQ_MNESIA_BASE=$dir/data RABBITMQ_LOG_BASE=$dir/log RABBITMQ_PID_FILE=$pidfile
export RABBITMQ_ENABLED_PLUGINS_FILE=$dir/enabled_plugins RABBITMQ_CONFIG_FILE=$dir/rabbitmq
# Busy-waiting schedulers would take CPU from the service alongside them.
export RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS="+sbwt none +sbwtdcpu none +sbwtdio none -kernel inet_dist_use_interface {127,0,0,1}"
export ERL_EPMD_ADDRESS=127.0.0.1 ERL_CRASH_DUMP=$dir/erl_crash.dump

install_server() {
  [[ -x $server ]] || apt_install rabbitmq-server "$dir/apt.log"
}

# An open port is not enough: wait until the server speaks AMQP.
ready() {
  timeout 2 bash -c "exec 3<>/dev/tcp/127.0.0.1/$port && printf 'AMQP\0\0\11\1' >&3 && head -c 1 <&3 | grep -q . -a" 2>/dev/null
}

# ready_or_dead PID: stop waiting.
ready_or_dead() { ready || ! kill -0 "$1" 2>/dev/null; }

start_native() {
  running "$pidfile" && ready && return 0
  answers 127.0.0.1 "$port" && die "port $port is taken by another program"
  install_server
  mkdir -p "$dir/data" "$dir/log"
  # A test may add plugins and settings.
  echo "[$(cat "$dir/extra.plugins" 2>/dev/null || true)]." >"$RABBITMQ_ENABLED_PLUGINS_FILE"
  printf 'loopback_users.guest = true\nmax_message_size = 33554432\nvm_memory_high_watermark.absolute = 1GB\ndisk_free_limit.absolute = 100MB\n' >"$dir/rabbitmq.conf"
  [[ ! -e $dir/extra.conf ]] || cat "$dir/extra.conf" >>"$dir/rabbitmq.conf"
  setsid nohup "$server" >>"$log" 2>&1 </dev/null &
  child=$!
  wait_until 180 "$log" ready_or_dead "$child" && kill -0 "$child" || { tail -n 20 "$log" >&2; die "RabbitMQ did not start"; }
  say "RabbitMQ answers on 127.0.0.1:$port (node $RABBITMQ_NODENAME, HOME=$dir)"
}

run_container() {
  local extra=()
  if [[ -e $dir/extra.conf ]]; then
    echo "[$(<"$dir/extra.plugins")]." >"$dir/enabled_plugins"
    extra=(-v "$dir:$dir:ro" -v "$dir/extra.conf:/etc/rabbitmq/conf.d/90-extra.conf:ro" -v "$dir/enabled_plugins:/etc/rabbitmq/enabled_plugins:ro")
    for p in $(sed -n 's/^listeners[.]ssl.*= *//p' "$dir/extra.conf"); do extra+=(-p "127.0.0.1:$p:$p"); done
  fi
  docker run -d --name "$container" -p "127.0.0.1:$port:5672" "${extra[@]}" rabbitmq:4.1 >/dev/null
}

# The rabbitmqctl in the PATH changes the user and therefore HOME.
ctl() {
  if have_docker; then docker exec "$container" rabbitmqctl -q "$@"; else "${server%-server}ctl" -q "$@"; fi
}

if [[ $action == ctl ]]; then ctl "${@:4}"; else act "$action"; fi
