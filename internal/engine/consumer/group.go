package consumer

import (
	"runtime"
	"sync"
)

// group implements natural group commit: items that arrive during a run form the next
// batch. There is no timer, so a single item does not wait.
type group[T any] struct {
	// run handles a batch; it must not panic.
	run func(batch []T)
	// key orders items: items with the same key are never in two runs at once and
	// keep their order of arrival.
	key func(T) string
	// maxBatch bounds the size of a batch, maxRuns the number of concurrent runs.
	maxBatch, maxRuns int

	mu      sync.Mutex
	waiting []T
	busy    map[string]struct{}
	runs    int
}

func newGroup[T any](maxBatch, maxRuns int, key func(T) string, run func([]T)) *group[T] {
	return &group[T]{run: run, key: key, maxBatch: maxBatch, maxRuns: maxRuns, busy: make(map[string]struct{})}
}

// add adds an item to the next batch and returns immediately.
func (g *group[T]) add(item T) {
	g.mu.Lock()
	defer g.mu.Unlock()

	g.waiting = append(g.waiting, item)

	if g.runs < g.maxRuns {
		g.runs++

		go g.work()
	}
}

// work runs batches until none may run. When a worker frees a busy key, it also takes
// the items that waited for that key.
func (g *group[T]) work() {
	var batch []T

	for {
		g.gather()

		batch = g.take(batch)
		if len(batch) == 0 {
			return
		}

		g.run(batch)
	}
}

// gather yields to goroutines that are about to add an item: those released by the
// previous batch are runnable now and would miss this one. It waits for nothing else,
// so a single item costs two scheduler rounds.
func (g *group[T]) gather() {
	for before := -1; ; {
		g.mu.Lock()
		now := len(g.waiting)
		g.mu.Unlock()

		if now == before || now >= g.maxBatch {
			return
		}

		before = now

		runtime.Gosched()
	}
}

// take ends the previous batch and starts the next. An empty batch ends the worker.
func (g *group[T]) take(previous []T) []T {
	g.mu.Lock()
	defer g.mu.Unlock()

	for _, item := range previous {
		delete(g.busy, g.key(item))
	}

	var (
		batch []T
		left  = g.waiting[:0]
	)

	for _, item := range g.waiting {
		if _, busy := g.busy[g.key(item)]; busy || len(batch) == g.maxBatch {
			left = append(left, item)
		} else {
			batch = append(batch, item)
		}
	}

	clear(g.waiting[len(left):])
	g.waiting = left

	for _, item := range batch {
		g.busy[g.key(item)] = struct{}{}
	}

	if len(batch) == 0 {
		g.runs--
	}

	return batch
}
