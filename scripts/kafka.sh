#!/usr/bin/env bash
# A Kafka broker on loopback, for development and tests.
#   scripts/kafka.sh start|stop|kill DIR PORT
# Uses Docker if it is available, else Java with the jars that Maven downloads.
# KAFKA_HEAP sets the size of the heap; the default is 512m.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"

[[ $# -eq 3 ]] || die "usage: kafka.sh start|stop|kill DIR PORT"
action=$1 port=$3
mkdir -p "$2"
dir=$(cd "$2" && pwd)
pidfile=$dir/kafka.pid log=$dir/kafka.log container=millrace-kafka-$port
libs=$(root)/.local/kafka-libs
heap=${KAFKA_HEAP:-512m}

fetch() {
  command -v java >/dev/null || die "Kafka requires Java: install a JDK (17 or newer) or Docker, or set the address of your own Kafka"
  command -v mvn >/dev/null || die "downloading Kafka requires Maven: install mvn or Docker, or set the address of your own Kafka"
  mkdir -p "$libs"
  (
    flock 9
    [[ -e $libs/.complete ]] && exit 0
    say "downloading Kafka"
    mvn -q -B -f "$(root)/scripts/kafka/pom.xml" dependency:copy-dependencies -DoutputDirectory="$libs" >"$libs/.log" 2>&1 ||
      { tail -n 20 "$libs/.log" >&2; die "could not download Kafka"; }
    touch "$libs/.complete"
  ) 9>"$libs/.lock"
}

configure() {
  cat >"$dir/server.properties" <<PROPERTIES
process.roles=broker,controller
node.id=1
controller.quorum.voters=1@127.0.0.1:$((port + 1))
listeners=PLAINTEXT://127.0.0.1:$port,CONTROLLER://127.0.0.1:$((port + 1))
advertised.listeners=PLAINTEXT://127.0.0.1:$port
controller.listener.names=CONTROLLER
log.dirs=$dir/data
auto.create.topics.enable=false
offsets.topic.replication.factor=1
offsets.topic.num.partitions=4
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
group.initial.rebalance.delay.ms=0
log.cleaner.enable=true
PROPERTIES
  # A test may add settings, which override these.
  [[ -e $dir/extra.properties ]] && cat "$dir/extra.properties" >>"$dir/server.properties"
  cat >"$dir/log4j.properties" <<PROPERTIES
log4j.rootLogger=WARN, out
log4j.appender.out=org.apache.log4j.ConsoleAppender
log4j.appender.out.layout=org.apache.log4j.PatternLayout
log4j.appender.out.layout.ConversionPattern=%d %p %m (%c)%n
PROPERTIES
}

java_kafka() { java -Dlog4j.configuration="file:$dir/log4j.properties" "$@"; }

ready() { answers 127.0.0.1 "$port"; }

# ready_or_dead: stop waiting.
ready_or_dead() { ready || ! running "$pidfile"; }

start_native() {
  running "$pidfile" && ready && return 0
  answers 127.0.0.1 "$port" && die "port $port is taken by another program"
  fetch
  configure
  if [[ ! -e $dir/data/meta.properties ]]; then
    java_kafka -cp "$libs/*" kafka.tools.StorageTool format -t "$(java_kafka -cp "$libs/*" kafka.tools.StorageTool random-uuid 2>/dev/null)" \
      -c "$dir/server.properties" >"$dir/format.log" 2>&1 || { cat "$dir/format.log" >&2; die "could not format the storage"; }
  fi
  setsid nohup java "-Xms$heap" "-Xmx$heap" -XX:+UseG1GC -XX:MaxGCPauseMillis=20 -Dlog4j.configuration="file:$dir/log4j.properties" \
    -cp "$libs/*" kafka.Kafka "$dir/server.properties" >>"$log" 2>&1 </dev/null &
  echo $! >"$pidfile"
  wait_until 180 "$log" ready_or_dead && running "$pidfile" || { tail -n 20 "$log" >&2; die "Kafka did not start"; }
  say "Kafka answers on 127.0.0.1:$port"
}

# settings_of FILE: print the docker options that set the properties in FILE.
settings_of() {
  local name value
  while IFS='=' read -r name value; do
    name=${name//_/__} name=${name//-/___} name=${name//./_}
    printf '%s\n' -e "KAFKA_${name^^}=$value"
  done <"$1"
}

run_container() {
  local extra=(-p "127.0.0.1:$port:$port")
  [[ ! -e $dir/extra.properties ]] || { mapfile -t extra < <(settings_of "$dir/extra.properties"); extra+=(--network host); }
  docker run -d --name "$container" \
    -e KAFKA_NODE_ID=1 -e KAFKA_PROCESS_ROLES=broker,controller \
    -e KAFKA_LISTENERS="PLAINTEXT://0.0.0.0:$port,CONTROLLER://127.0.0.1:$((port + 1))" \
    -e KAFKA_ADVERTISED_LISTENERS="PLAINTEXT://127.0.0.1:$port" \
    -e KAFKA_CONTROLLER_LISTENER_NAMES=CONTROLLER \
    -e KAFKA_LISTENER_SECURITY_PROTOCOL_MAP=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT \
    -e KAFKA_CONTROLLER_QUORUM_VOTERS="1@127.0.0.1:$((port + 1))" \
    -e KAFKA_AUTO_CREATE_TOPICS_ENABLE=false -e KAFKA_OFFSETS_TOPIC_REPLICATION_FACTOR=1 \
    -e KAFKA_GROUP_INITIAL_REBALANCE_DELAY_MS=0 -e KAFKA_HEAP_OPTS="-Xms$heap -Xmx$heap" \
    "${extra[@]}" apache/kafka:3.9.1 >/dev/null
}

act "$action"
