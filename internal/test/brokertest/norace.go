//go:build !race

package brokertest

import "testing"

// WithoutRaceDetector does nothing in this build.
func WithoutRaceDetector(testing.TB) {}
