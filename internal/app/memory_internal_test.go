package app

import (
	"math"
	"os"
	"runtime/debug"
	"testing"

	"github.com/KimMachineGun/automemlimit/memlimit"

	"github.com/millracehq/millrace/internal/test/pgtest"
)

// The collector's limit must not be lower than the container's: with a limit below the
// live heap, it would run constantly.
func TestOnlyTheContainerLimitsTheCollector(t *testing.T) { //nolint:paralleltest // the collector is the process's
	limit, growth := debug.SetMemoryLimit(math.MaxInt64), debug.SetGCPercent(100)

	t.Cleanup(func() { debug.SetMemoryLimit(limit); debug.SetGCPercent(growth) })

	for _, name := range []string{"GOMEMLIMIT", "GOGC"} {
		t.Setenv(name, "") // restores it at the end

		if err := os.Unsetenv(name); err != nil {
			t.Fatal(err)
		}
	}

	tuneCollector(pgtest.Logger(t))

	want := int64(math.MaxInt64)
	if container, err := memlimit.FromCgroup(); err == nil {
		want = int64(0.9 * float64(container)) // give or take rounding
	}

	if got := debug.SetMemoryLimit(-1); math.Abs(float64(got-want)) > 1 {
		t.Errorf("the limit is %d, expected %d", got, want)
	}

	if got := debug.SetGCPercent(100); got != heapGrowth {
		t.Errorf("the heap grows by %d %%, expected %d", got, heapGrowth)
	}
}

func TestTheEnvironmentConfiguresTheCollector(t *testing.T) { //nolint:paralleltest // the collector is the process's
	limit, growth := debug.SetMemoryLimit(1<<30), debug.SetGCPercent(80)

	t.Cleanup(func() { debug.SetMemoryLimit(limit); debug.SetGCPercent(growth) })
	t.Setenv("GOMEMLIMIT", "1GiB")
	t.Setenv("GOGC", "80")

	tuneCollector(pgtest.Logger(t))

	if got := debug.SetMemoryLimit(-1); got != 1<<30 {
		t.Errorf("GOMEMLIMIT is %d, expected %d", got, 1<<30)
	}

	if got := debug.SetGCPercent(100); got != 80 {
		t.Errorf("GOGC is %d, expected 80", got)
	}
}
