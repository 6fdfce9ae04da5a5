//go:build race

package brokertest

import "testing"

// WithoutRaceDetector skips a test whose library has data races of its own;
// `make test` runs it in a second step.
func WithoutRaceDetector(tb testing.TB) {
	tb.Helper()
	tb.Skip("runs without the race detector, in `make test` too")
}
