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
name=s3 dir="$here/../../target/s3" port=9100 log=server.log
. "$here/../service.sh"
command="${1:-}"
options "${@:2}"

fetch() {
  [ -x "$dir/bin/versitygw-$version" ] && return
  command -v go >/dev/null || fail "Go is missing: install 1.21 or later (https://go.dev/dl)"
  echo "s3: building the server $version into $dir/bin"
  GOBIN="$dir/bin" GOFLAGS=-mod=mod go install "github.com/versity/versitygw/cmd/versitygw@$version" \
    || fail "Go could not build it: check the network, or GOPROXY"
  mv "$dir/bin/versitygw" "$dir/bin/versitygw-$version"
}

start() {
  mkdir -p "$dir/data/omnify"
  dir="$(cd "$dir" && pwd)"
  free "$port"
  fetch
  [ -f "$dir/secret" ] || (umask 077; od -An -N 16 -tx1 /dev/urandom | tr -d ' \n' > "$dir/secret")
  echo "$port" > "$dir/port"
  ROOT_ACCESS_KEY_ID=omnify ROOT_SECRET_ACCESS_KEY="$(cat "$dir/secret")" \
    serve 10 "$dir/bin/versitygw-$version" --port "127.0.0.1:$port" --keep-alive --quiet \
    posix "$dir/data"
}

case "$command" in
  env)
    [ -f "$dir/secret" ] || fail "it was never started in $dir"
    dir="$(cd "$dir" && pwd)"
    echo "export OMNIFY_S3_ENDPOINT=http://127.0.0.1:$(cat "$dir/port") OMNIFY_S3_DIR='$dir'"
    echo "export AWS_ACCESS_KEY_ID=omnify AWS_SECRET_ACCESS_KEY=$(cat "$dir/secret")" ;;
  clean) end TERM; rm -rf "${dir:?}/data" "$dir/server.log" ;;
  *) common "$command" ;;
esac
