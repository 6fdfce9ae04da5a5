package main

import (
	"context"
	"fmt"
	"os"
	"runtime"
	"slices"
	"strings"
	"time"
)

// machine describes what the figures depend on: the processor, how often it is slow, and how
// Postgres was compiled.
func machine(slow []figures, postgres string) string {
	return fmt.Sprintf("%d cores, %s, slow for %s %% of the time while idle; Postgres %s",
		runtime.NumCPU(), cpuModel(), cell(slow, slowPercent), postgres)
}

// build returns the version of Postgres and how it was optimized.
func (l *lab) build(ctx context.Context) (string, error) {
	var version string
	if err := l.server.QueryRow(ctx, `SHOW server_version`).Scan(&version); err != nil {
		return "", fmt.Errorf("asking Postgres for its version: %w", err)
	}

	var optimization string
	if err := l.server.QueryRow(ctx, `SELECT substring(setting FROM '-O\w+') FROM pg_config WHERE name = 'CFLAGS'`).Scan(&optimization); err != nil {
		optimization = "unknown optimization" // only superusers may ask
	}

	return version + ", " + optimization, nil
}

const (
	// idleTime is how long an idle machine is watched.
	idleTime = 5 * time.Second
	// slowFactor is how many times as long as usual work takes on a machine that is slow.
	slowFactor = 3
)

// idleMachine measures how often the machine is slow while it has nothing else to do. A
// virtual machine is slow when its host has other work, often without knowing it. If that is
// more than a hundredth of the time, a p99 is the machine's.
func idleMachine() figures {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()

	var took []time.Duration

	for began := time.Now(); time.Since(began) < idleTime; time.Sleep(2 * time.Millisecond) {
		start := time.Now()
		spin()

		took = append(took, time.Since(start))
	}

	return figures{slowPercent: 100 * slowShare(took)}
}

// spun keeps the compiler from removing the work of spin.
var spun uint64

// spin takes some 0.3 ms, without memory or the kernel.
func spin() {
	for range 200_000 {
		spun = spun*6364136223846793005 + 1442695040888963407
	}
}

// slowShare returns the share of equal pieces of work that took slowFactor times as long as
// the median.
func slowShare(took []time.Duration) float64 {
	sorted := slices.Sorted(slices.Values(took))
	usual := sorted[len(sorted)/2]

	slow := 0

	for _, d := range took {
		if d > slowFactor*usual {
			slow++
		}
	}

	return float64(slow) / float64(len(took))
}

func cpuModel() string {
	info, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		return runtime.GOARCH
	}

	for line := range strings.Lines(string(info)) {
		if name, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(name) == "model name" {
			return strings.TrimSpace(value)
		}
	}

	return runtime.GOARCH
}
