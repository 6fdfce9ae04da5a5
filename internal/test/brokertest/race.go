//go:build race

package brokertest

import "testing"

// WithoutRaceDetector skips a test whose client library has data races. `make test`
// runs it in a second step.
func WithoutRaceDetector(tb testing.TB) {
	tb.Helper()
	tb.Skip("runs without the race detector in another step of `make test`")
}
