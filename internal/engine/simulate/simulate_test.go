package simulate_test

import (
	"flag"
	"regexp"
	"runtime"
	"runtime/debug"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

var (
	seeds  = flag.Int("seeds", defaultSeeds, "number of seeds to simulate, from 1")
	seed   = flag.Uint64("seed", 0, "simulate only this seed and print what happens")
	repeat = flag.Bool("repeat", false, "simulate each seed twice and compare; see scripts/simulate.sh")
)

// TestSimulation runs worlds. Whatever dies in them, each message is applied once and in
// order, and nothing is left behind.
func TestSimulation(t *testing.T) {
	first, last := uint64(1), uint64(*seeds) //nolint:gosec // a count
	if *seed != 0 {
		first, last = *seed, *seed
	}

	began, broken := time.Now(), 0

	for s := first; s <= last && broken < 5; s++ {
		w := simulate(t, s)

		if *seed != 0 {
			t.Log("\n" + strings.Join(w.lines, "\n"))
		}

		if *repeat {
			again := simulate(t, s)
			if i := differ(w.lines, again.lines); i >= 0 {
				t.Errorf("seed %d differs in line %d:\n%s\n%s", s, i, w.lines[i], again.lines[i])
			}
		}

		if len(w.problems) > 0 {
			broken++

			t.Errorf("seed %d: %s\nreplay it with: make simulate SEED=%d", s, strings.Join(w.problems[:min(3, len(w.problems))], "\n"), s)
		}
	}

	t.Logf("%d seeds in %s", last-first+1, time.Since(began).Round(time.Second))
}

// newID matches a UUIDv7. It differs if a process runs a seed twice.
var newID = regexp.MustCompile(`[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[0-9a-f]{4}-[0-9a-f]{12}`)

// differ returns the first line in which two runs differ, or -1.
func differ(a, b []string) int {
	for i := range min(len(a), len(b)) {
		if newID.ReplaceAllString(a[i], "") != newID.ReplaceAllString(b[i], "") {
			return i
		}
	}

	return -1
}

// simulate runs the world of a seed.
func simulate(t *testing.T, seed uint64) (w *world) {
	t.Helper()

	// On a single processor, without the collector and the profiler, nothing happens in an
	// order that the seed does not decide; see scripts/simulate.sh.
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
	defer debug.SetGCPercent(debug.SetGCPercent(-1))

	runtime.MemProfileRate = 0
	runtime.GC()

	synctest.Test(t, func(*testing.T) {
		w = newWorld(seed)
		w.run()
	})

	return w
}
