package app

import (
	"errors"
	"log/slog"
	"os"
	"runtime/debug"

	"github.com/KimMachineGun/automemlimit/memlimit"
)

// heapGrowth is how much the heap may grow between two collections, in percent of what is
// in use. At Go's default of 100, the collector takes a fifth of the service's CPU at full
// load. The limits on messages in hand bound what is in use, and so the heap.
const heapGrowth = 150

// tuneCollector sets how much the heap may grow, unless the environment has GOGC, and sets
// its limit to 90 % of the container's, unless the environment has GOMEMLIMIT. There is no
// other limit: with a lower one, the collector would run constantly once the live heap came
// near it.
func tuneCollector(logger *slog.Logger) {
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(heapGrowth)
	}

	_, err := memlimit.Set()
	if err != nil && !errors.Is(err, memlimit.ErrCgroupsNotSupported) && !errors.Is(err, memlimit.ErrNoCgroup) {
		logger.Warn("cannot read the container's memory limit; set GOMEMLIMIT", slog.Any("error", err))
	}
}
