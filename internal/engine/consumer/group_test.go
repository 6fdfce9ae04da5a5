package consumer

import (
	"fmt"
	"slices"
	"sync"
	"testing"

	"pgregory.net/rapid"
)

type item struct {
	key string
	n   int
}

func TestAGroupKeepsOrderPerKeyAndNeverRunsAKeyConcurrently(t *testing.T) {
	t.Parallel()

	rapid.Check(t, func(t *rapid.T) {
		var (
			watch = watcher{running: map[string]int{}, seen: map[string][]int{}}
			left  sync.WaitGroup
		)

		items := rapid.SliceOfN(rapid.SampledFrom([]string{"a", "b", "c"}), 1, 60).Draw(t, "keys")
		maxBatch := rapid.IntRange(1, 8).Draw(t, "max batch")
		left.Add(len(items))

		g := newGroup(maxBatch, rapid.IntRange(1, 3).Draw(t, "runs"), func(i item) string { return i.key }, func(batch []item) {
			watch.begin(batch, maxBatch)
			watch.end(batch)
			left.Add(-len(batch))
		})

		for n, key := range items {
			g.add(item{key, n})
		}

		left.Wait()

		for key, order := range watch.seen {
			if !slices.IsSorted(order) {
				t.Errorf("%s ran as %v", key, order)
			}
		}

		if len(watch.faults) > 0 {
			t.Fatal(watch.faults)
		}
	})
}

// watcher records which batches run, and what must not happen.
type watcher struct {
	mu      sync.Mutex
	running map[string]int
	seen    map[string][]int
	faults  []string
}

func itemKeys(batch []item) map[string]bool {
	keys := map[string]bool{}
	for _, i := range batch {
		keys[i.key] = true
	}

	return keys
}

func (w *watcher) begin(batch []item, maxBatch int) {
	w.mu.Lock()
	defer w.mu.Unlock()

	for key := range itemKeys(batch) {
		if w.running[key]++; w.running[key] > 1 {
			w.faults = append(w.faults, "concurrent runs of "+key)
		}
	}

	if len(batch) > maxBatch {
		w.faults = append(w.faults, fmt.Sprint("a batch of ", len(batch)))
	}
}

func (w *watcher) end(batch []item) {
	w.mu.Lock()
	defer w.mu.Unlock()

	for _, i := range batch {
		w.seen[i.key] = append(w.seen[i.key], i.n)
	}

	for key := range itemKeys(batch) {
		w.running[key]--
	}
}

func TestItemsThatArriveDuringARunShareABatch(t *testing.T) {
	t.Parallel()

	var (
		begun   = make(chan int)
		proceed = make(chan struct{})
	)

	g := newGroup(10, 1, func(i item) string { return fmt.Sprint(i.n) }, func(batch []item) {
		begun <- len(batch)

		<-proceed
	})
	g.add(item{n: 0})

	first := <-begun

	for n := range 5 {
		g.add(item{n: n + 1})
	}

	proceed <- struct{}{}

	if second := <-begun; first != 1 || second != 5 {
		t.Errorf("got batches of %d and %d, expected 1 and 5", first, second)
	}

	proceed <- struct{}{}
}
