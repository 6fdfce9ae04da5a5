#!/usr/bin/env bash
# The servers that the tests, the benchmark and `make run-local` need.
#   scripts/services.sh up|down PROFILE SERVICE...
#
# PROFILE: test   Postgres without fsync; own ports; .local/test
#          bench  Postgres as in production; own ports; .local/bench
#          run    standard ports; .local/run
# SERVICE: postgres, kafka, rabbitmq
#
# An address in the environment is used instead of starting a server:
#   test and bench: MILLRACE_TEST_DATABASE_URL, MILLRACE_TEST_KAFKA_BROKERS, MILLRACE_TEST_RABBITMQ_URL
#   run:            DATABASE_URL, MILLRACE_BROKER__KAFKA__BROKERS, MILLRACE_BROKER__RABBITMQ__URL
# `up` writes what it found to .local/PROFILE/env, to be sourced.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"

[[ $# -ge 2 ]] || die "usage: services.sh up|down test|bench|run SERVICE..."
action=$1 profile=$2
shift 2
cd "$(root)"
base=.local/$profile

case $profile in
  test) postgres_port=25432 kafka_port=29092 rabbitmq_port=25672 ;;
  bench) postgres_port=35432 kafka_port=39092 rabbitmq_port=35672 ;;
  run) postgres_port=5432 kafka_port=9092 rabbitmq_port=5672 ;;
  *) die "unknown profile $profile" ;;
esac

if [[ $profile == run ]]; then
  postgres_var=DATABASE_URL kafka_var=MILLRACE_BROKER__KAFKA__BROKERS rabbitmq_var=MILLRACE_BROKER__RABBITMQ__URL
else
  postgres_var=MILLRACE_TEST_DATABASE_URL kafka_var=MILLRACE_TEST_KAFKA_BROKERS rabbitmq_var=MILLRACE_TEST_RABBITMQ_URL
fi

# given VARIABLE: print the address in it, which must answer.
given() {
  local address=${!1} hostport
  hostport=${address##*@}
  hostport=${hostport#*://}
  hostport=${hostport%%[/,?]*}
  answers "${hostport%:*}" "${hostport##*:}" ||
    die "nothing answers at $hostport, which $1 names: start that server, or unset $1 to have one started"
  echo "$address"
}

# start SERVICE: start the server and print its address.
start() {
  local flags=
  case $1 in
    postgres)
      case $profile in
        test) flags=-fast ;;
        bench) flags=-commit-timestamps ;;
      esac
      go run ./scripts/localpg start -dir "$base/postgres" -port "$postgres_port" $flags
      ;;
    kafka) scripts/kafka.sh start "$base/kafka" "$kafka_port" && echo "127.0.0.1:$kafka_port" ;;
    rabbitmq) scripts/rabbitmq.sh start "$base/rabbitmq" "$rabbitmq_port" && echo "amqp://guest:guest@127.0.0.1:$rabbitmq_port/" ;;
    *) die "unknown service $1" ;;
  esac
}

# address SERVICE: print the address, after starting the server if need be.
address() {
  local variable=${1}_var
  variable=${!variable-}
  if [[ -n $variable && -n ${!variable-} ]]; then given "$variable"; else start "$1"; fi
}

up() {
  mkdir -p "$base"
  local service variable found
  : >"$base/env.new"
  for service in "$@"; do
    variable=${service}_var
    found=$(address "$service") || exit 1
    printf "export %s='%s'\n" "${!variable}" "$found" >>"$base/env.new"
  done
  mv "$base/env.new" "$base/env"
}

down() {
  local service
  for service in "$@"; do
    [[ -d $base/$service ]] || continue
    case $service in
      postgres) go run ./scripts/localpg stop -dir "$base/postgres" || true ;;
      kafka) scripts/kafka.sh stop "$base/kafka" "$kafka_port" ;;
      rabbitmq) scripts/rabbitmq.sh stop "$base/rabbitmq" "$rabbitmq_port" ;;
    esac
  done
  rm -f "$base/env"
}

case $action in
  up) up "$@" ;;
  down) down "$@" ;;
  *) die "unknown action $action" ;;
esac
