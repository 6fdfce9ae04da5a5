package app

import (
	"os"
	"runtime/debug"
)

// The live heap of the service is some 10 MB, so that Go's default would
// collect many times a second. Collecting at five times the live heap takes
// less CPU; the limit keeps memory small all the same.
const (
	gcPercent   = 400
	memoryLimit = 96 << 20 // bytes
)

// tuneGC sets the garbage collector, unless the environment does.
func tuneGC() {
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(gcPercent)
	}

	if os.Getenv("GOMEMLIMIT") == "" {
		debug.SetMemoryLimit(memoryLimit)
	}
}
