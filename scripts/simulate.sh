#!/usr/bin/env bash
# Runs the simulation of the engine on a copy of Go's runtime that repeats itself: in the
# bubbles of testing/synctest, goroutines are never preempted, and random numbers depend on
# the simulated time alone. So a seed decides everything, and its number is enough to replay it.
#   scripts/simulate.sh -seeds 10000
#   scripts/simulate.sh -seed 4711 -test.v
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

runtime=$(go env GOROOT)/src/runtime
out=$PWD/.local/simulate
mkdir -p "$out"

# change FILE BEFORE AFTER replaces a piece of text.
change() {
  local text
  text=$(cat "$out/$1")
  if [[ $text != *"$2"* ]]; then
    echo "$1 of $(go env GOVERSION) has no \"$2\": adapt scripts/simulate.sh to it" >&2
    exit 1
  fi
  printf '%s\n' "${text/"$2"/"$3"}" >"$out/$1"
}

for file in rand.go proc.go; do cp "$runtime/$file" "$out/$file"; done

change rand.go 'globalRand.state.Init(*seed)' 'globalRand.state.Init([32]byte{1})'
change rand.go 'func rand() uint64 {' 'func rand() uint64 {
	if b := getg().bubble; b != nil {
		x := uint64(b.now) + 0x9e3779b97f4a7c15
		x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
		x = (x ^ x>>27) * 0x94d049bb133111eb
		return x ^ x>>31
	}'
change rand.go 'func cheaprand() uint32 {' 'func cheaprand() uint32 {
	if getg().bubble != nil {
		return uint32(rand() >> 32)
	}'
change proc.go 'if pp.schedtick%61 == 0 && !sched.runq.empty() {' 'if false {'
change proc.go 'if gp == nil || gp == mp.g0 {
		return false
	}
	if readgstatus' 'if gp == nil || gp == mp.g0 || gp.bubble != nil {
		return false
	}
	if readgstatus'

cat >"$out/overlay.json" <<JSON
{"Replace": {
  "$runtime/rand.go": "$out/rand.go",
  "$runtime/proc.go": "$out/proc.go"
}}
JSON

go test -c -overlay "$out/overlay.json" -o "$out/simulate.test" ./internal/engine/simulate
exec "$out/simulate.test" -test.run '^TestSimulation$' "$@"
