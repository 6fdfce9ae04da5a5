//go:build race

package simulate_test

// defaultSeeds is few, because the race detector takes ten times as long.
const defaultSeeds = 10
