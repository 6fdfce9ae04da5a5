package app

import (
	"errors"
	"log/slog"

	"github.com/KimMachineGun/automemlimit/memlimit"
)

// limitMemory sets the memory limit of the garbage collector to 90 % of the container's,
// unless the environment has GOMEMLIMIT. There is no other limit: with a lower one, the
// collector would run constantly once the live heap came near it. The limits on messages
// in hand bound the heap instead.
func limitMemory(logger *slog.Logger) {
	_, err := memlimit.Set()
	if err != nil && !errors.Is(err, memlimit.ErrCgroupsNotSupported) && !errors.Is(err, memlimit.ErrNoCgroup) {
		logger.Warn("cannot read the container's memory limit; set GOMEMLIMIT", slog.Any("error", err))
	}
}
