# What the servers for tests have in common (deploy/kafka, deploy/s3): one process in a folder of its own.
# Sourced by their run.sh, which sets `name`, `dir`, `port` and `log` before, and defines `start`.

fail() { echo "$name: $*" >&2; exit 1; }

# Reads --dir, --port and, where it is set before, --partitions.
options() {
  while [ $# -gt 0 ]; do
    case "$1" in
      --dir) dir="${2:?--dir needs a folder}" ;;
      --port) port="${2:?--port needs a number}" ;;
      --partitions) : "${partitions:?no such option here}"; partitions="${2:?--partitions needs a number}" ;;
      *) echo "run.sh: unknown option $1 (see the head of the file)" >&2; exit 2 ;;
    esac
    shift 2
  done
}

pid() { cat "$dir/pid" 2>/dev/null || true; }

running() {
  local id
  id="$(pid)"
  [ -n "$id" ] && kill -0 "$id" 2>/dev/null
}

listening() { (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null; }

# Refuses ports that are taken.
free() {
  local taken
  for taken in "$@"; do
    listening "$taken" && fail "port $taken is taken: stop what listens there or pass --port"
  done
  return 0
}

# Runs a command in the background and waits until the port answers, SECONDS at most.
serve() {
  local patience="$1" began=$SECONDS
  shift
  nohup "$@" >> "$dir/$log" 2>&1 < /dev/null &
  echo $! > "$dir/pid"
  while [ $((SECONDS - began)) -lt "$patience" ]; do
    running || { tail -n 20 "$dir/$log" >&2; fail "it ended at once, see $dir/$log"; }
    if listening "$port"; then
      echo "$name: ready at 127.0.0.1:$port (process $(pid), log $dir/$log)"
      return
    fi
    sleep 0.1
  done
  fail "no answer on port $port after $patience s, see $dir/$log"
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
    echo "$name: stopped"
  else
    echo "$name: not running"
  fi
  rm -f "$dir/pid"
}

# Does one of the commands that all have; anything else shows the head of the script.
common() {
  case "$1" in
    start)
      running && { echo "$name: already running (process $(pid))"; return; }
      start ;;
    stop) end TERM ;;
    kill) end KILL ;;
    status)
      running || { echo "$name: not running"; exit 1; }
      echo "$name: running (process $(pid))" ;;
    *) sed -n '2,/^set /{/^#/s/^# \{0,1\}//p}' "$0"; exit 2 ;;
  esac
}
