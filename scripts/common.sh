# Shared by the scripts that start servers. Source it; it defines functions only.

say() { printf '%s\n' "$*" >&2; }
die() { say "$(basename "$0"): $*"; exit 1; }

# root of the repository
root() { cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd; }

have_docker() { command -v docker >/dev/null && timeout 5 docker info >/dev/null 2>&1; }

# answers HOST PORT: succeed if anything accepts connections there.
answers() { timeout 2 bash -c "exec 3<>/dev/tcp/$1/$2" 2>/dev/null; }

# free_port: print a port that is free together with its successor, which the
# brokers use too. Both are below the range from which the kernel assigns ports
# to connections (32768 and up, ip(7)), so that they stay free.
free_port() {
  local port
  for _ in $(seq 100); do
    port=$((10000 + 2 * (RANDOM % 10000)))
    answers 127.0.0.1 "$port" || answers 127.0.0.1 $((port + 1)) || { echo "$port"; return; }
  done
  die "found no free port"
}

# running PIDFILE: succeed if the process in this file is alive.
running() { [[ -s $1 ]] && kill -0 "$(cat "$1")" 2>/dev/null; }

# wait_until SECONDS LOG COMMAND...: poll, and show the log on a timeout.
wait_until() {
  local seconds=$1 log=$2 deadline
  shift 2
  deadline=$((SECONDS + seconds))
  until "$@"; do
    if ((SECONDS >= deadline)); then
      say "timed out after ${seconds}s; the end of $log:"
      tail -n 20 "$log" >&2 || true
      return 1
    fi
    sleep 0.2
  done
}

# end PIDFILE SIGNAL: send the signal and wait until the process has exited.
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

# apt_install PACKAGES LOG: install Debian packages, as root. Call it once.
apt_install() {
  [[ $(id -u) -eq 0 ]] || die "$1 is missing: run 'sudo apt-get install $1'"
  command -v apt-get >/dev/null || die "$1 is missing: install it"
  # Keep the package from starting its own service.
  if [[ ! -e /usr/sbin/policy-rc.d ]]; then
    printf '#!/bin/sh\nexit 101\n' >/usr/sbin/policy-rc.d
    chmod +x /usr/sbin/policy-rc.d
    trap 'rm -f /usr/sbin/policy-rc.d' EXIT
  fi
  say "installing $1"
  { apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends $1; } >"$2" 2>&1 ||
    { tail -n 20 "$2" >&2; die "could not install $1"; }
}

# act ACTION: the common part of the brokers' scripts, which define start_native,
# run_container, ready and the variables used here.
act() {
  case $1 in
    start) if have_docker; then start_docker; else start_native; fi ;;
    stop) if have_docker; then docker stop "$container" >/dev/null; else end "$pidfile" TERM; fi ;;
    kill) if have_docker; then docker kill "$container" >/dev/null; else end "$pidfile" KILL; fi ;;
    freeze) if have_docker; then docker pause "$container" >/dev/null; else kill -STOP "$(cat "$pidfile")"; fi ;;
    thaw) if have_docker; then docker unpause "$container" >/dev/null; else kill -CONT "$(cat "$pidfile")"; fi ;;
    *) die "unknown action $1, expected start, stop, kill, freeze or thaw" ;;
  esac
}

# start_docker: restart this directory's container, which has its data, or create one.
start_docker() {
  ready && return 0
  if [[ ! -e $dir/container ]] || ! docker start "$container" >/dev/null 2>&1; then
    docker rm -f "$container" >/dev/null 2>&1 || true
    run_container
    touch "$dir/container"
  fi
  wait_until 60 "$log" ready || die "it did not start: docker logs $container"
  say "$container answers on 127.0.0.1:$port"
}
