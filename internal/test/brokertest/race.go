//go:build race

package brokertest

import "testing"

// WithoutRaceDetector skips a test whose client library has data races. `make test`
// runs it in a separate step.
func WithoutRaceDetector(tb testing.TB) {
	tb.Helper()
	tb.Skip("runs without the race detector in a separate step of `make test`")
}
