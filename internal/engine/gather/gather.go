// Package gather makes batches larger without a timer.
package gather

import "runtime"

// Until yields to goroutines that are about to add to a batch, until they add nothing more
// or the batch has enough: those that the previous batch released can run now and would
// miss this one. It waits for nothing else, so a single item costs two rounds of the
// scheduler. count returns the size of the batch.
func Until(enough int, count func() int) {
	for before := -1; ; {
		now := count()
		if now == before || now >= enough {
			return
		}

		before = now

		runtime.Gosched()
	}
}
