//go:build race

package broker_test

import "testing"

func withoutRaceDetector(t *testing.T) {
	t.Helper()
	t.Skip("runs without the race detector, in `make test` too")
}
