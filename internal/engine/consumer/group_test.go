package consumer

import (
	"fmt"
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
			mu      sync.Mutex
			running = map[string]int{}
			seen    = map[string][]int{}
			faults  []string
			left    sync.WaitGroup
		)

		items := rapid.SliceOfN(rapid.SampledFrom([]string{"a", "b", "c"}), 1, 60).Draw(t, "keys")
		maxBatch := rapid.IntRange(1, 8).Draw(t, "max batch")
		left.Add(len(items))

		g := newGroup(maxBatch, rapid.IntRange(1, 3).Draw(t, "runs"), func(i item) string { return i.key }, func(batch []item) {
			keys := map[string]bool{}
			for _, i := range batch {
				keys[i.key] = true
			}

			mu.Lock()
			for key := range keys {
				if running[key]++; running[key] > 1 {
					faults = append(faults, "concurrent runs of "+key)
				}
			}

			if len(batch) > maxBatch {
				faults = append(faults, fmt.Sprint("a batch of ", len(batch)))
			}
			mu.Unlock()

			mu.Lock()
			for _, i := range batch {
				seen[i.key] = append(seen[i.key], i.n)
			}

			for key := range keys {
				running[key]--
			}
			mu.Unlock()

			left.Add(-len(batch))
		})

		for n, key := range items {
			g.add(item{key, n})
		}

		left.Wait()
		mu.Lock()
		defer mu.Unlock()

		for key, order := range seen {
			for i := 1; i < len(order); i++ {
				if order[i-1] > order[i] {
					faults = append(faults, fmt.Sprintf("%s ran as %v", key, order))
				}
			}
		}

		if len(faults) > 0 {
			t.Fatal(faults)
		}
	})
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
