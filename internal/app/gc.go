package app

import (
	"os"
	"runtime/debug"
)

// The live heap of the service is about 10 MB, so by default Go would collect garbage
// many times a second. Collecting at five times the live heap takes less CPU, and the
// limit still keeps memory small.
const (
	gcPercent   = 400
	memoryLimit = 96 << 20 // bytes
)

// tuneGC configures the garbage collector, unless the environment does.
func tuneGC() {
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(gcPercent)
	}

	if os.Getenv("GOMEMLIMIT") == "" {
		debug.SetMemoryLimit(memoryLimit)
	}
}
