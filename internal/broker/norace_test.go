//go:build !race

package broker_test

import "testing"

func withoutRaceDetector(*testing.T) {}
