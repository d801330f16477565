#!/usr/bin/env bash
# A real S3 server without Docker, for tests and local use: the Versity gateway over a folder. It checks
# signatures (SigV4) and conditions (If-Match, If-None-Match), and knows multipart uploads.
#
#   run.sh start  [--dir DIR] [--port PORT]   build the server if missing, start, wait
#   run.sh stop   [--dir DIR]                 stop it cleanly
#   run.sh kill   [--dir DIR]                 stop it as a crash would (kill -9)
#   run.sh status [--dir DIR]                 exit 0 when it runs
#   run.sh env    [--dir DIR]                 prints what a client needs, to be evaluated by a shell
#   run.sh clean  [--dir DIR]                 stop it and delete its data
#
# DIR (default: target/s3 in the repository, on a file system with extended attributes) holds the
# program, data, log and credentials, which are made here. There is one bucket: omnify. A stopped or
# killed server starts again with its data. It listens on 127.0.0.1:PORT (default 9100), without TLS.
set -euo pipefail

version="v1.8.0"
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
command="${1:-}"
[ $# -gt 0 ] && shift
dir="$here/../../target/s3"
port=9100
while [ $# -gt 0 ]; do
  case "$1" in
    --dir) dir="${2:?--dir needs a folder}" ;;
    --port) port="${2:?--port needs a number}" ;;
    *) echo "run.sh: unknown option $1 (see the head of this file)" >&2; exit 2 ;;
  esac
  shift 2
done

fail() { echo "s3: $*" >&2; exit 1; }

pid() { cat "$dir/pid" 2>/dev/null || true; }

running() {
  local id
  id="$(pid)"
  [ -n "$id" ] && kill -0 "$id" 2>/dev/null
}

listening() { (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null; }

fetch() {
  [ -x "$dir/bin/versitygw-$version" ] && return
  command -v go >/dev/null || fail "Go is missing: install 1.21 or later (https://go.dev/dl)"
  echo "s3: building the server $version into $dir/bin"
  GOBIN="$dir/bin" GOFLAGS=-mod=mod go install "github.com/versity/versitygw/cmd/versitygw@$version" \
    || fail "Go could not build it: check the network, or GOPROXY"
  mv "$dir/bin/versitygw" "$dir/bin/versitygw-$version"
}

start() {
  running && { echo "s3: already running (process $(pid))"; return; }
  mkdir -p "$dir/data/omnify"
  dir="$(cd "$dir" && pwd)"
  listening "$port" && fail "port $port is taken: stop what listens there or pass --port"
  fetch
  [ -f "$dir/secret" ] || (umask 077; od -An -N 16 -tx1 /dev/urandom | tr -d ' \n' > "$dir/secret")
  echo "$port" > "$dir/port"
  ROOT_ACCESS_KEY_ID=omnify ROOT_SECRET_ACCESS_KEY="$(cat "$dir/secret")" \
    nohup "$dir/bin/versitygw-$version" --port "127.0.0.1:$port" --keep-alive --quiet \
    posix "$dir/data" >> "$dir/server.log" 2>&1 < /dev/null &
  echo $! > "$dir/pid"
  local try
  for try in $(seq 1 100); do
    running || { tail -n 20 "$dir/server.log" >&2; fail "it ended at once, see $dir/server.log"; }
    if listening "$port"; then
      echo "s3: ready at 127.0.0.1:$port (process $(pid), log $dir/server.log)"
      return
    fi
    sleep 0.1
  done
  fail "no answer on port $port after 10 s, see $dir/server.log"
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
    echo "s3: stopped"
  else
    echo "s3: not running"
  fi
  rm -f "$dir/pid"
}

case "$command" in
  start) start ;;
  stop) end TERM ;;
  kill) end KILL ;;
  status)
    running || { echo "s3: not running"; exit 1; }
    echo "s3: running (process $(pid))" ;;
  env)
    [ -f "$dir/secret" ] || fail "it was never started in $dir"
    echo "export OMNIFY_S3_ENDPOINT=http://127.0.0.1:$(cat "$dir/port") OMNIFY_S3_DIR='$dir'"
    echo "export AWS_ACCESS_KEY_ID=omnify AWS_SECRET_ACCESS_KEY=$(cat "$dir/secret")" ;;
  clean) end TERM; rm -rf "${dir:?}/data" "$dir/server.log" ;;
  *) sed -n '2,15s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; exit 2 ;;
esac
