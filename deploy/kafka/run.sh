#!/usr/bin/env bash
# A real Apache Kafka broker without Docker: one node, KRaft mode, for tests and local use.
#
#   run.sh start  [--dir DIR] [--port PORT] [--partitions N]   fetch jars if missing, start, wait
#   run.sh stop   [--dir DIR]                                  stop it cleanly
#   run.sh kill   [--dir DIR]                                  stop it as a crash would (kill -9)
#   run.sh status [--dir DIR]                                  exit 0 when it runs
#   run.sh clean  [--dir DIR]                                  stop it and delete its data
#
# DIR (default: target/kafka in the repository) holds jars, generated config, data and log. A
# stopped or killed broker starts again with its data. New topics get N partitions (default 4).
set -euo pipefail

here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
command="${1:-}"
[ $# -gt 0 ] && shift
dir="$here/../../target/kafka"
port=9092
partitions=4
while [ $# -gt 0 ]; do
  case "$1" in
    --dir) dir="${2:?--dir needs a folder}" ;;
    --port) port="${2:?--port needs a number}" ;;
    --partitions) partitions="${2:?--partitions needs a number}" ;;
    *) echo "run.sh: unknown option $1 (see the head of this file)" >&2; exit 2 ;;
  esac
  shift 2
done

fail() { echo "kafka: $*" >&2; exit 1; }

pid() { cat "$dir/pid" 2>/dev/null || true; }

running() {
  local id
  id="$(pid)"
  [ -n "$id" ] && kill -0 "$id" 2>/dev/null
}

listening() { (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null; }

fetch() {
  [ -f "$dir/jars/.complete" ] && return
  command -v mvn >/dev/null || fail "Maven is missing: install it (Debian: apt-get install maven)"
  echo "kafka: fetching the broker's jars into $dir/jars"
  mvn -q -B -Dstyle.color=never -f "$here/pom.xml" package -Dbroker.dir="$dir/jars" \
    || fail "Maven could not fetch the jars: check the network, or the mirror in its settings.xml"
  touch "$dir/jars/.complete"
}

java_in() {
  KAFKA_HEAP="${KAFKA_HEAP:-512m}"
  java "-Xmx$KAFKA_HEAP" -Dorg.slf4j.simpleLogger.defaultLogLevel=warn -cp "$dir/jars/*" "$@"
}

configure() {
  mkdir -p "$dir/data"
  cat > "$dir/server.properties" <<EOF
process.roles=broker,controller
node.id=1
controller.quorum.voters=1@127.0.0.1:$((port + 1))
listeners=PLAINTEXT://127.0.0.1:$port,CONTROLLER://127.0.0.1:$((port + 1))
advertised.listeners=PLAINTEXT://127.0.0.1:$port
controller.listener.names=CONTROLLER
log.dirs=$dir/data
num.partitions=$partitions
offsets.topic.replication.factor=1
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
group.initial.rebalance.delay.ms=0
EOF
  if [ ! -f "$dir/data/meta.properties" ]; then
    java_in kafka.tools.StorageTool format --config "$dir/server.properties" \
      --cluster-id "$(java_in kafka.tools.StorageTool random-uuid)" > "$dir/format.log" 2>&1 \
      || { tail -n 20 "$dir/format.log" >&2; fail "its data folder could not be prepared"; }
  fi
}

start() {
  running && { echo "kafka: already running (process $(pid))"; return; }
  command -v java >/dev/null \
    || fail "Java is missing: install version 17 or later (Debian: apt-get install default-jre-headless)"
  local version
  version="$(java -version 2>&1 | sed -n 's/.*version "\([0-9]*\).*/\1/p')"
  [ "${version:-0}" -ge 17 ] || fail "Java 17 or later is needed, this is ${version:-unknown}"
  mkdir -p "$dir"
  dir="$(cd "$dir" && pwd)"
  local taken
  for taken in "$port" $((port + 1)); do
    listening "$taken" && fail "port $taken is taken: stop what listens there or pass --port"
  done
  fetch
  configure
  KAFKA_HEAP="${KAFKA_HEAP:-512m}"
  nohup java "-Xmx$KAFKA_HEAP" -Dorg.slf4j.simpleLogger.defaultLogLevel=info \
    -cp "$dir/jars/*" kafka.Kafka "$dir/server.properties" >> "$dir/broker.log" 2>&1 < /dev/null &
  echo $! > "$dir/pid"
  local second
  for second in $(seq 1 60); do
    running || { tail -n 20 "$dir/broker.log" >&2; fail "it ended at once, see $dir/broker.log"; }
    if listening "$port"; then
      echo "kafka: ready at 127.0.0.1:$port after $second s (process $(pid), log $dir/broker.log)"
      return
    fi
    sleep 1
  done
  fail "no answer on port $port after 60 s, see $dir/broker.log"
}

# Sends a signal and waits for the end.
end() {
  if running; then
    kill "-$1" "$(pid)"
    local _
    for _ in $(seq 1 300); do
      running || break
      sleep 0.1
    done
    running && fail "process $(pid) does not end within 30 s"
    echo "kafka: stopped"
  else
    echo "kafka: not running"
  fi
  rm -f "$dir/pid"
}

case "$command" in
  start) start ;;
  stop) end TERM ;;
  kill) end KILL ;;
  status)
    running || { echo "kafka: not running"; exit 1; }
    echo "kafka: running (process $(pid))" ;;
  clean) end TERM; rm -rf "${dir:?}/data" "$dir/broker.log" "$dir/server.properties" ;;
  *) sed -n '2,12s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; exit 2 ;;
esac
