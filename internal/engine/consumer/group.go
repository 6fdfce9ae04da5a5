package consumer

import (
	"cmp"
	"slices"

	"github.com/millracehq/millrace/internal/engine/gather"
)

// queued is an item of a group.
type queued interface {
	// key orders items: those with the same key are never in two runs at once.
	key() string
	// standing returns the item's place in its line, or nil.
	standing() *place
}

// group implements natural group commit: items that arrive during a run form the next
// batch. A single item waits for nothing but a turn, see turns. Another run starts beside
// the first only while a full batch waits, so that concurrent runs never make batches
// smaller. A batch may have several items from a line, in order. An item enters a batch only
// if those ahead of it in its line are finished or in the same batch.
type group[T queued] struct {
	lines

	// run handles a batch; it must not panic. It returns the items to run again later,
	// because one ahead of them in their line failed.
	run func(batch []T) (behind []T)
	// maxBatch bounds the size of a batch, maxRuns the number of concurrent runs.
	maxBatch, maxRuns int
	turns             turns
	// performed is true if the items' effects have been performed. Items of broken lines
	// are then not returned, so they stay in order.
	performed bool

	// waiting is ordered by ticket.
	waiting []ticketed[T]
	busy    map[string]struct{}
	runs    int
	// takes counts the batches.
	takes uint64
}

// ticketed is an item and its position in the order of arrival. An item that has a place
// takes its position from that place.
type ticketed[T queued] struct {
	item   T
	ticket uint64
}

func newGroup[T queued](maxBatch, maxRuns int, turns turns, run func([]T) (behind []T)) *group[T] {
	g := &group[T]{run: run, maxBatch: maxBatch, maxRuns: maxRuns, turns: turns, busy: make(map[string]struct{})}
	g.lines = newLines(g.start)

	return g
}

// add adds an item to the next batch and returns immediately.
func (g *group[T]) add(item T) {
	g.mu.Lock()
	defer g.mu.Unlock()

	g.insert(item)
	g.start()
}

// insert adds an item to those waiting, usually at the end.
func (g *group[T]) insert(item T) {
	t := ticketed[T]{item: item}

	if p := item.standing(); p != nil {
		t.ticket = p.ticket
	} else {
		t.ticket = g.nextTicket()
	}

	at := len(g.waiting)
	if at > 0 && g.waiting[at-1].ticket > t.ticket {
		at, _ = slices.BinarySearchFunc(g.waiting, t, func(a, b ticketed[T]) int { return cmp.Compare(a.ticket, b.ticket) })
	}

	g.waiting = slices.Insert(g.waiting, at, t)
}

// start starts a worker if the waiting items need one more.
func (g *group[T]) start() {
	if g.runs < g.maxRuns && g.needed(g.runs+1) {
		g.runs++

		go g.work()
	}
}

// needed reports whether the waiting items need this number of workers.
func (g *group[T]) needed(workers int) bool {
	return len(g.waiting) >= g.maxBatch || workers == 1 && len(g.waiting) > 0
}

// work runs batches until its worker is not needed or no item may run. Items that wait for
// a busy key are taken by the worker that frees it, or by one that still runs.
func (g *group[T]) work() {
	for {
		end := g.turns.take()

		gather.Until(g.maxBatch, g.size)

		batch := g.take()
		if len(batch) == 0 {
			end()

			return
		}

		g.free(batch, g.run(batch))

		end()
	}
}

// free ends a batch: its keys may enter another one. The items in behind wait again.
func (g *group[T]) free(batch, behind []T) {
	g.mu.Lock()
	defer g.mu.Unlock()

	for _, item := range batch {
		delete(g.busy, item.key())
	}

	for _, item := range behind {
		g.insert(item)
	}
}

// size returns the number of waiting items.
func (g *group[T]) size() int {
	g.mu.Lock()
	defer g.mu.Unlock()

	return len(g.waiting)
}

// take returns the next batch. An empty one ends the worker.
func (g *group[T]) take() []T {
	g.mu.Lock()
	defer g.mu.Unlock()

	if !g.needed(g.runs) {
		g.runs--

		return nil
	}

	g.takes++

	var (
		batch []T
		left  = g.waiting[:0]
	)

	for _, t := range g.waiting {
		if _, busy := g.busy[t.item.key()]; busy || len(batch) == g.maxBatch || !t.item.standing().enter(g.takes, g.performed) {
			left = append(left, t)
		} else {
			batch = append(batch, t.item)
		}
	}

	clear(g.waiting[len(left):])
	g.waiting = left

	for _, item := range batch {
		g.busy[item.key()] = struct{}{}
	}

	if len(batch) == 0 {
		g.runs--
	}

	return batch
}
