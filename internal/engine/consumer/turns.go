package consumer

import (
	"runtime"
	"time"
)

// turns limits the number of batches that run at once, over all consumers of a service. A
// batch begins when the one before ends, so at a medium rate each consumer would always run
// one: they would share the CPU, slow each other down and stay small. A consumer takes its
// messages when it is its turn, with those that have arrived in the meantime.
type turns chan struct{}

const (
	// minTurns lets one batch compute while another waits for Postgres.
	minTurns = 2
	// patience is how long a batch waits for its turn. Then it runs without one, so a
	// transaction that is slow, or that waits for a lock, holds up nobody for longer.
	patience = 20 * time.Millisecond
)

// newTurns returns a turn for each CPU, but at least minTurns and as many as one consumer
// needs for its concurrent batches.
func newTurns(concurrentBatches int) turns {
	return make(turns, max(minTurns, runtime.GOMAXPROCS(0), concurrentBatches))
}

// take waits for a turn, for at most patience, and returns what ends the turn.
func (t turns) take() (end func()) {
	end = func() { <-t }

	select {
	case t <- struct{}{}:
		return end
	default:
	}

	impatient := time.NewTimer(patience)
	defer impatient.Stop()

	select {
	case t <- struct{}{}:
		return end
	case <-impatient.C:
		return func() {}
	}
}
