# Shared by the scripts that start servers. Source it; it defines functions only.

say() { printf '%s\n' "$*" >&2; }
die() { say "$(basename "$0"): $*"; exit 1; }

# root of the repository
root() { cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd; }

have_docker() { command -v docker >/dev/null && timeout 5 docker info >/dev/null 2>&1; }

# answers HOST PORT: does anything accept connections there?
answers() { timeout 2 bash -c "exec 3<>/dev/tcp/$1/$2" 2>/dev/null; }

# running PIDFILE: is the process of this file alive?
running() { [[ -s $1 ]] && kill -0 "$(cat "$1")" 2>/dev/null; }

# wait_until SECONDS LOG COMMAND...: poll, and show the log when time is up.
wait_until() {
  local seconds=$1 log=$2 deadline
  shift 2
  deadline=$((SECONDS + seconds))
  until "$@"; do
    if ((SECONDS >= deadline)); then
      say "gave up after ${seconds}s; the end of $log:"
      tail -n 20 "$log" >&2 || true
      return 1
    fi
    sleep 0.2
  done
}

# end PIDFILE SIGNAL: send the signal and wait until the process is gone.
end() {
  running "$1" || { rm -f "$1"; return 0; }
  local pid
  pid=$(cat "$1")
  kill "-$2" "$pid" 2>/dev/null || true
  for _ in $(seq 150); do
    kill -0 "$pid" 2>/dev/null || { rm -f "$1"; return 0; }
    sleep 0.2
  done
  kill -KILL "$pid" 2>/dev/null || true
  rm -f "$1"
}
