//go:build !race

package brokertest

import "testing"

// WithoutRaceDetector does nothing: there is none.
func WithoutRaceDetector(testing.TB) {}
