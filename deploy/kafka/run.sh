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
#
# It listens on 127.0.0.1: PORT without protection, PORT+2 with TLS and SASL (PLAIN, SCRAM-SHA-256 and
# -512; user omnify, password in DIR/tls/password), PORT+3 with TLS and client certificates. The CA is
# DIR/tls/ca.pem, a client's certificate and key are DIR/tls/client.pem and client.key: all made here,
# for tests only. PORT+1 is the broker's own.
set -euo pipefail

here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
name=kafka dir="$here/../../target/kafka" port=9092 partitions=4 log=broker.log
. "$here/../service.sh"
command="${1:-}"
options "${@:2}"

fetch() {
  [ -f "$dir/jars/.complete" ] && return
  command -v mvn >/dev/null || fail "Maven is missing: install it (Debian: apt-get install maven)"
  echo "kafka: fetching the broker's jars into $dir/jars"
  mvn -q -B -Dstyle.color=never -f "$here/pom.xml" package -Dbroker.dir="$dir/jars" \
    || fail "Maven could not fetch the jars: check the network, or the mirror in its settings.xml"
  touch "$dir/jars/.complete"
}

java_in() {
  java "-Xmx${KAFKA_HEAP:-512m}" -Dorg.slf4j.simpleLogger.defaultLogLevel=warn -cp "$dir/jars/*" "$@"
}

# A certificate of NAME for 127.0.0.1, signed by the CA: certificate NAME.pem, key NAME.key.
certificate() {
  local name="$1" tls="$dir/tls"
  openssl req -new -newkey rsa:2048 -nodes -subj "/CN=$name" -keyout "$tls/$name.key" \
    -out "$tls/$name.csr" 2>> "$tls/log"
  openssl x509 -req -in "$tls/$name.csr" -CA "$tls/ca.pem" -CAkey "$tls/ca.key" -CAcreateserial \
    -days 3650 -out "$tls/$name.pem" -extfile <(echo "subjectAltName=IP:127.0.0.1,DNS:localhost") \
    2>> "$tls/log"
}

secrets() {
  local tls="$dir/tls"
  [ -f "$tls/.complete" ] && return
  command -v openssl >/dev/null || fail "openssl is missing: install it (Debian: apt-get install openssl)"
  mkdir -p "$tls"
  openssl req -x509 -newkey rsa:2048 -nodes -days 3650 -subj "/CN=omnify-test-ca" \
    -keyout "$tls/ca.key" -out "$tls/ca.pem" 2>> "$tls/log"
  certificate server
  certificate client
  cat "$tls/server.key" "$tls/server.pem" > "$tls/server-all.pem"
  openssl rand -hex 16 > "$tls/password"
  touch "$tls/.complete"
}

configure() {
  mkdir -p "$dir/data"
  secrets
  local tls="$dir/tls" password
  password="$(cat "$dir/tls/password")"
  cat > "$dir/server.properties" <<EOF
process.roles=broker,controller
node.id=1
controller.quorum.voters=1@127.0.0.1:$((port + 1))
listeners=PLAINTEXT://127.0.0.1:$port,CONTROLLER://127.0.0.1:$((port + 1)),SASL_SSL://127.0.0.1:$((port + 2)),SSL://127.0.0.1:$((port + 3))
advertised.listeners=PLAINTEXT://127.0.0.1:$port,SASL_SSL://127.0.0.1:$((port + 2)),SSL://127.0.0.1:$((port + 3))
ssl.keystore.type=PEM
ssl.keystore.location=$tls/server-all.pem
ssl.truststore.type=PEM
ssl.truststore.location=$tls/ca.pem
listener.name.ssl.ssl.client.auth=required
sasl.enabled.mechanisms=PLAIN,SCRAM-SHA-256,SCRAM-SHA-512
listener.name.sasl_ssl.plain.sasl.jaas.config=org.apache.kafka.common.security.plain.PlainLoginModule required user_omnify="$password";
listener.name.sasl_ssl.scram-sha-256.sasl.jaas.config=org.apache.kafka.common.security.scram.ScramLoginModule required;
listener.name.sasl_ssl.scram-sha-512.sasl.jaas.config=org.apache.kafka.common.security.scram.ScramLoginModule required;
controller.listener.names=CONTROLLER
listener.security.protocol.map=CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT,SASL_SSL:SASL_SSL,SSL:SSL
log.dirs=$dir/data
num.partitions=$partitions
offsets.topic.replication.factor=1
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
group.initial.rebalance.delay.ms=0
EOF
  if [ ! -f "$dir/data/meta.properties" ]; then
    java_in kafka.tools.StorageTool format --config "$dir/server.properties" \
      --cluster-id "$(java_in kafka.tools.StorageTool random-uuid)" \
      --add-scram "SCRAM-SHA-256=[name=omnify,password=$password]" \
      --add-scram "SCRAM-SHA-512=[name=omnify,password=$password]" > "$dir/format.log" 2>&1 \
      || { tail -n 20 "$dir/format.log" >&2; fail "its data folder could not be prepared"; }
  fi
}

start() {
  command -v java >/dev/null \
    || fail "Java is missing: install version 17 or later (Debian: apt-get install default-jre-headless)"
  local version
  version="$(java -version 2>&1 | sed -n 's/.*version "\([0-9]*\).*/\1/p')"
  [ "${version:-0}" -ge 17 ] || fail "Java 17 or later is needed, this is ${version:-unknown}"
  mkdir -p "$dir"
  dir="$(cd "$dir" && pwd)"
  free "$port" $((port + 1)) $((port + 2)) $((port + 3))
  fetch
  configure
  serve 60 java "-Xmx${KAFKA_HEAP:-512m}" -Dorg.slf4j.simpleLogger.defaultLogLevel=info \
    -cp "$dir/jars/*" kafka.Kafka "$dir/server.properties"
}

case "$command" in
  clean) end TERM; rm -rf "${dir:?}/data" "$dir/tls" "$dir/broker.log" "$dir/server.properties" ;;
  *) common "$command" ;;
esac
