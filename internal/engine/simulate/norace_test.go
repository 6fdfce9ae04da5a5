//go:build !race

package simulate_test

const defaultSeeds = 200
